"""How much a client may send, and how long it may take over it."""

import select
import socket
import time
from pathlib import Path

import pytest

from backend.api import limits
from backend.app import create_app
from backend.base.config import load_settings
from backend.base.errors import InvalidSettings
from tests.api.service import client_of, served
from tests.parts import quick_settings


def test_too_many_requests_are_told_when_to_come_back(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path, rate_limit="3/hour"))) as client:
        assert [client.get("/health").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        answer = client.get("/health")
        assert answer.json()["code"] == "too_many_requests"
        assert 1 <= int(answer.headers["retry-after"]) <= 3600
        assert client.get("/livez").status_code == 200


def test_the_limit_is_each_keys_own_behind_one_proxy(tmp_path: Path) -> None:
    app = create_app(quick_settings(tmp_path, rate_limit="2/hour", api_keys="admin-key", api_keys_read="reader-key"))
    with client_of(app) as proxy:
        for key in ("admin-key", "reader-key"):
            codes = [proxy.get("/health", headers={"X-API-Key": key}).status_code for _ in range(3)]
            assert codes == [200, 200, 429]
        guesses = [proxy.get("/health", headers={"X-API-Key": f"guess {n}"}).status_code for n in range(4)]
        assert guesses == [401, 401, 429, 429], "guessing keys counts against the address"


def test_a_clock_set_back_locks_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(create_app(quick_settings(tmp_path, rate_limit="2/second"))) as client:
        while [client.get("/health").status_code for _ in range(3)][-1] != 429:
            pass
        back = time.time() - 86_400
        monkeypatch.setattr(time, "time", lambda: back)
        monkeypatch.setattr(limits, "time", time.time)
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("limit", ["fast", "0/minute", "10", "10/fortnight"])
def test_a_rate_that_means_nothing_ends_the_start(limit: str) -> None:
    with pytest.raises(InvalidSettings, match="RATE_LIMIT"):
        load_settings(rate_limit=limit)


def speak(port: int, *pieces: bytes, pause: float = 0.0, wait: float = 60.0) -> bytes:
    """What comes back on a raw connection that sends `pieces` with pauses, until there is an answer."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        for piece in pieces:
            connection.sendall(piece)
            if select.select([connection], [], [], pause)[0]:
                break
        while received := connection.recv(65_536):
            answer += received
    return answer


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "application/json", "application/x-www-form-urlencoded"]
)
def test_a_body_that_stalls_is_given_up(tmp_path: Path, kind: str) -> None:
    route = "/calibrate_ng" if "json" in kind else "/infer"
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 900\r\n\r\n".encode()
    with served(create_app(quick_settings(tmp_path, body_timeout_s=0.5))) as port:
        answer = speak(port, head + b"--x\r\n")
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert b'"body_timeout"' in answer and b"connection: close" in answer.lower()


def test_a_body_that_trickles_is_given_up_too(tmp_path: Path) -> None:
    head = b"POST /calibrate_ng HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 900\r\n\r\n"
    with served(create_app(quick_settings(tmp_path, body_timeout_s=0.6))) as port:
        answer = speak(port, head, *[b" "] * 12, pause=0.2)
        assert answer.startswith(b"HTTP/1.1 408"), answer
