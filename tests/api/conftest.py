"""Services that the tests of the HTTP edge call."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.app import create_app
from tests.api.service import BAD, Client, calibrate, client_of, fit, infer, served
from tests.parts import quick_settings, tree


def app_in(folder: Path) -> FastAPI:
    """A service whose requests may hold 4 MB, in files of at most 1 MB."""
    return create_app(quick_settings(folder, coreset_rate=0.5, max_upload_mb=1, max_request_mb=4))


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return app_in(tmp_path)


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


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    """A client of one calibrated model of Master1/Pattern for all tests that must not change it, and its folder."""
    folder = tmp_path_factory.mktemp("standing")
    with client_of(app_in(folder)) as opened:
        assert fit(opened).status_code == 200
        assert calibrate(opened).status_code == 200
        yield opened, folder


@pytest.fixture
def unchanged(standing: tuple[TestClient, Path]) -> Iterator[TestClient]:
    """A client of a fitted service, which must be exactly as it was, and answer as it did, when the test is over."""
    client, folder = standing
    answer, before = infer(client, BAD).json(), tree(folder)
    yield client
    assert tree(folder) == before
    again = infer(client, BAD).json()
    assert all(again[name] == answer[name] for name in ("score", "threshold", "regions"))


@pytest.fixture(params=["in process", "uvicorn"])
def either(request: pytest.FixtureRequest, app: FastAPI) -> Iterator[Client]:
    """The same service called in this process and through a socket."""
    if request.param == "in process":
        with client_of(app) as opened:
            yield opened
    else:
        with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as opened:
            yield opened
