"""Services that the tests of the HTTP edge call."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.app import create_app
from tests.api.service import Client, calibrate, client_of, fit, served
from tests.parts import quick_settings


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return create_app(quick_settings(tmp_path, coreset_rate=0.5, max_upload_mb=1, max_request_mb=4))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with client_of(app) as opened:
        yield opened


@pytest.fixture
def fitted(client: TestClient) -> TestClient:
    """A client of a service that has a calibrated model of Master1/Pattern."""
    assert fit(client).status_code == 200
    assert calibrate(client).status_code == 200
    return client


@pytest.fixture(params=["in process", "uvicorn"])
def either(request: pytest.FixtureRequest, app: FastAPI) -> Iterator[Client]:
    """The same service called in this process and through a socket."""
    if request.param == "in process":
        with client_of(app) as opened:
            yield opened
    else:
        with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as opened:
            yield opened
