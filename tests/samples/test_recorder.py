import json
from pathlib import Path

from fastapi.testclient import TestClient

from backend.app import create_app
from backend.base.images import decode_image
from backend.samples.recorder import DebugFolder
from tests.api.routes.calls import FIT, fit
from tests.parts import encoded, part, quick_settings


def test_heatmaps_are_kept_for_debugging_and_bounded(tmp_path: Path) -> None:
    settings = quick_settings(tmp_path, debug_heatmaps=True, debug_dir=tmp_path / "debug", debug_max_files=3)
    with TestClient(create_app(settings)) as client:
        fit(client, 0, 1)
        for _ in range(5):
            client.post(
                "/infer", data={**FIT, "heatmap": "none"}, files={"image": ("pieza.png", encoded(part(7, defect=True)))}
            )
    pictures = sorted((tmp_path / "debug").glob("*.png"))
    assert len(pictures) == len(list((tmp_path / "debug").glob("*.json"))) == 3
    assert decode_image(pictures[0].read_bytes()).shape == (96, 96, 3)
    assert json.loads(pictures[0].with_suffix(".json").read_text("utf-8"))["score"] > 0.1
    assert "Master1_Pattern_pieza.png" in pictures[0].name
    DebugFolder(tmp_path / "debug", 1).write("../x", pictures[0].read_bytes(), {})
    assert [path.parent for path in tmp_path.rglob("*x.png")] == [tmp_path / "debug"]
