"""Which exceptions are the client's fault and which the service's, and what the answers say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from backend.app import create_app
from backend.extractors.texture import TextureFeatures
from tests.api.service import client_of, fit, infer
from tests.parts import quick_settings


class Broken(TextureFeatures):
    """An extractor that does for the second image what code with a fault in it does."""

    calls = 0

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.calls += 1
        if images[0].any():
            raise ValueError("rows must be finite")
        return super().extract(images)


@pytest.mark.parametrize(
    ("language", "words"), [("es", "Error interno. Busca el identificador r-1"), ("en", "Internal error. Look for r-1")]
)
def test_a_value_error_of_ours_is_a_500_and_not_the_clients_fault(tmp_path: Path, language: str, words: str) -> None:
    with client_of(create_app(quick_settings(tmp_path), Broken(112))) as client:
        client.headers.update({"Accept-Language": language, "X-Request-Id": "r-1"})
        answer = fit(client)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.json()["error"].replace("the identifier ", "").startswith(words)
    assert "rows must be finite" in answer.json()["trace"] and "rows must be finite" not in answer.json()["error"]


def test_a_fit_that_does_not_fit_into_its_memory_says_how_much_it_needs(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path, fit_memory_mb=0.001))) as client:
        answer = fit(client, 8)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_value")
    assert "FIT_MEMORY_MB" in answer.json()["error"]


def test_an_error_knows_when_to_come_back(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path, rate_limit="1/hour"))) as client:
        client.get("/health")
        answer = client.get("/health")
    assert 1 <= int(answer.headers["retry-after"]) <= 3600 and answer.headers["retry-after"] in answer.json()["error"]


def test_an_http_error_of_the_framework_keeps_its_status(client: TestClient) -> None:
    answer = client.post("/infer", headers={"Accept-Language": "en"})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")
    assert infer(client).status_code == 400
