"""A service with samples of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from tests.parts import quick_settings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(quick_settings(tmp_path, coreset_rate=0.5))) as client:
        client.headers["Accept-Language"] = "en"
        yield client
