"""Masters that are shown to the camera, and golden samples as all workers see them."""

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from tests.api.routes.calls import FIT, IDS, fit, upload
from tests.api.routes.test_versions import serving
from tests.parts import encoded, part


def show(client: TestClient, image: bytes, **form: str) -> dict[str, Any]:
    answer = client.post("/infer", data={**FIT, **form}, files={"image": ("master.png", image, "image/png")})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def flips(client: TestClient) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(one.value for family in families if family.name == "bdi_golden_flips" for one in family.samples)


def test_a_master_that_gets_another_verdict_is_named_everywhere_by_every_worker(tmp_path: Path, url: str) -> None:
    good, bad = encoded(part(40)), encoded(part(41, defect=True))
    own = {"results_db": url, "images_dir": tmp_path / "images"}
    with serving(tmp_path, **own) as client, serving(tmp_path, **own) as worker:
        fit(client, *range(6))
        upload(client, 50, 51, label="ng")
        client.post("/calibrate_dataset", json=IDS)
        first = show(client, good, golden="M-1")
        assert first["golden"] == {"name": "M-1", "flipped": False} and not first["is_anomaly"]
        again = show(worker, good, golden="M-1")
        assert again["golden"]["former_score"] == first["score"] and not again["golden"]["flipped"]
        assert again["warnings"] == [] and "golden" not in show(client, good)
        lost = show(client, bad, golden="M-1")
        assert lost["golden"]["flipped"] and any("M-1" in one for one in lost["warnings"])
        for one in (client, worker):
            assert one.get("/readyz").json()["golden"] == {"Master1/Pattern": ["M-1"]}
            assert flips(one) == 1
        (kept,) = client.get("/golden", params=IDS).json()["masters"]
        assert (kept["name"], kept["first_verdict"], kept["decision"]) == ("M-1", "ok", "ng")
        item = client.get(f"/inspections/{lost['inspection_id']}").json()
        assert "golden_lost" in item["warnings"]
        assert show(worker, good, golden="M-1")["warnings"] == []
        assert flips(client) == 0
        assert client.post("/datasets/golden", json={**IDS, "filename": "M-1", "golden": False}).status_code == 200
        assert "former_score" not in show(client, good, golden="M-1")["golden"]


def test_a_replica_says_that_a_master_flipped_and_writes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        fit(client, *range(6))
        upload(client, 50, 51, label="ng")
        client.post("/calibrate_dataset", json=IDS)
        show(client, encoded(part(40)), golden="M-1")
    kept = (tmp_path / "datasets/Master1/Pattern/golden.json").read_bytes()
    with serving(tmp_path, read_only=True) as replica:
        assert show(replica, encoded(part(41, defect=True)), golden="M-1")["golden"]["flipped"]
    assert (tmp_path / "datasets/Master1/Pattern/golden.json").read_bytes() == kept
