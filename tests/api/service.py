"""A service to call: in this process, or behind a real uvicorn on a free port."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.parts import encoded, part

IDS = {"role_id": "Master1", "roi_id": "Pattern"}
FORM = {**IDS, "mm_per_px": "0.2"}
GOOD = encoded(part(40))
BAD = encoded(part(41, defect=True))
Client = httpx.Client | TestClient
LOCAL = ("127.0.0.1", 50_000)


@contextmanager
def client_of(app: FastAPI, client: tuple[str, int] = LOCAL) -> Iterator[TestClient]:
    """A client in this process; it gets 500s as answers, as a real one would."""
    with TestClient(app, raise_server_exceptions=False, client=client) as opened:
        yield opened


@contextmanager
def served(app: FastAPI) -> Iterator[int]:
    """The port of `app` behind uvicorn."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for _ in range(1000):
            if server.started or not thread.is_alive():
                break
            threading.Event().wait(0.01)
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)


def until_ready(client: Client) -> None:
    """Wait until the extractor has run, after which `/readyz` and `/health` say the same at each call."""
    for _ in range(600):
        if client.get("/readyz").status_code == 200:
            return
        threading.Event().wait(0.05)
    raise TimeoutError("the service did not become ready")


def fit(client: Client, count: int = 3, **form: str) -> Any:
    files = [("images", (f"good_{n}.png", encoded(part(n)), "image/png")) for n in range(count)]
    return client.post("/fit_ok", data={**FORM, **form}, files=files)


def infer(client: Client, image: bytes = GOOD, headers: Mapping[str, str] | None = None, **form: str) -> Any:
    files = {"image": ("roi.png", image, "image/png")}
    return client.post("/infer", data={**FORM, **form}, files=files, headers=headers)


def calibrate(client: Client, **body: Any) -> Any:
    return client.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.2, 0.21], **body})
