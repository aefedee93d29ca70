"""What a service answers with an extractor, whether torch is installed or not."""

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from backend.app import create_app
from tests.api.routes.calls import FIT, IDS, fit
from tests.parts import encoded, part, quick_settings


def scored(root: Path, **settings: Any) -> tuple[str, str, float]:
    """Name and fingerprint of the extractor, and the score of a bad part, of a service that learns two good ones."""
    with TestClient(create_app(quick_settings(root, results_db="none", **settings))) as client:
        fit(client, 0, 1)
        files = {"image": ("roi.png", encoded(part(9, defect=True)), "image/png")}
        score = client.post("/infer", data=FIT, files=files).json()["score"]
        return (
            client.get("/health").json()["model"],
            client.get("/manifest", params=IDS).json()["memory"]["fingerprint"],
            score,
        )
