"""What there is, over HTTP: models, their state and their samples."""

from pathlib import Path

from fastapi.testclient import TestClient

from backend.app import create_app
from tests.api.routes.calls import IDS, fit, upload
from tests.parts import quick_settings


def test_the_manifest_and_the_list_of_models_say_what_there_is(client: TestClient) -> None:
    empty = client.get("/manifest", params=IDS).json()
    assert (empty["memory_fitted"], empty["calib_present"], "memory" in empty) == (False, False, False)
    fit(client, 0, 1, 2)
    fit(client, 5, recipe_id="red")
    client.post("/calibrate_dataset", json=IDS)
    upload(client, 8)
    found = client.get("/manifest", params=IDS).json()
    assert (found["memory"]["n_images"], found["memory"]["fingerprint"]) == (3, found["extractor"]["fingerprint"])
    assert found["samples"] == {"ok": 4, "ng": 0, "ok_in_memory": 3, "ok_not_in_memory": 1}
    assert found["stale"] == {"memory": False, "calibration": False, "reasons": []}
    fit(client, 8, memory_fit="true")
    stale = client.get("/manifest", params=IDS).json()["stale"]
    assert (stale["calibration"], len(stale["reasons"])) == (True, 1)
    models = client.get("/models").json()["models"]
    assert [(m["recipe_id"], m["n_images"], m["calib_present"]) for m in models] == [
        ("default", 4, True),
        ("red", 1, False),
    ]
    assert client.delete("/models/Master1/Pattern", params={"recipe_id": "red"}).json()["deleted"] is True
    assert [m["recipe_id"] for m in client.get("/models").json()["models"]] == ["default"]
    assert client.get("/datasets/list", params={**IDS, "recipe_id": "red"}).json()["classes"]["ok"]["count"] == 1


def test_with_contract_only_there_are_no_samples_routes(tmp_path: Path) -> None:
    with TestClient(create_app(quick_settings(tmp_path, contract_only=True))) as client:
        for path in ("/state", "/datasets/list", "/models", "/manifest", "/progress/x"):
            assert client.get(path, params=IDS).status_code == 404
        assert fit(client, 0)["n_images"] == 1
