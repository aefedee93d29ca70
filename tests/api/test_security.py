"""Who may call, as the layers in front of the routes see it."""

import hashlib
from typing import Any

import pytest
from starlette.datastructures import Headers

from backend.api.security import Guard, host_is_ours, key_hashes, known_key
from backend.base.config import Settings
from backend.base.errors import InvalidSettings

PLAIN = "correct horse"


@pytest.mark.parametrize("stored", [PLAIN, "sha256:" + hashlib.sha256(PLAIN.encode()).hexdigest()])
@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({"x-api-key": PLAIN}, True),
        ({"authorization": f"Bearer {PLAIN}"}, True),
        ({"authorization": f"bearer  {PLAIN} "}, True),
        ({"authorization": f"Basic {PLAIN}"}, False),
        ({"x-api-key": PLAIN[:-1]}, False),
        ({"x-api-key": "sha256:" + hashlib.sha256(PLAIN.encode()).hexdigest()}, False),
        ({"x-api-key": ""}, False),
        ({}, False),
    ],
)
def test_keys_are_known_by_their_hash(stored: str, headers: dict[str, str], known: bool) -> None:
    assert known_key(Headers(headers), key_hashes([stored])) is known


@pytest.mark.parametrize(
    "header", ["127.0.0.1:8000", "[::1]:8000", "localhost", "station7:80", "10.0.0.4", "", "plant.example"]
)  # fmt: skip
def test_names_that_only_this_machine_can_have_are_ours(header: str) -> None:
    assert host_is_ours(header, "plant.example")


@pytest.mark.parametrize(
    "header", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "evil.", "[evil.example]"]
)  # fmt: skip
def test_names_that_a_stranger_can_own_are_not(header: str) -> None:
    assert not host_is_ours(header, "127.0.0.1")


def scope(client: tuple[str, int] | None = ("127.0.0.1", 1), path: str = "/health", **headers: str) -> dict[str, Any]:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "path": path, "headers": raw, "client": client}


async def _nothing(*_: Any) -> None: ...


def code_of(settings: Settings, given: dict[str, Any]) -> str | None:
    refusal = Guard(_nothing, settings)._stranger(given)
    return None if refusal is None else refusal.code


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (scope(), None),
        (scope(("::1", 1)), None),
        (scope(("::ffff:127.0.0.1", 1)), None),
        (scope(None), None),
        (scope(("10.0.0.9", 1)), "loopback_only"),
        (scope(x_forwarded_for="127.0.0.1"), "loopback_only"),
        (scope(x_forwarded_host="localhost"), "loopback_only"),
        (scope(forwarded="for=127.0.0.1"), "loopback_only"),
        (scope(host="evil.example:8000"), "host_refused"),
    ],
)
def test_without_keys_only_this_machine_is_served(given: dict[str, Any], code: str | None) -> None:
    assert code_of(Settings(), given) == code
    assert code_of(Settings(allow_insecure=True), given) is None
    assert code_of(Settings(api_keys="k"), given) == "unauthorized"


@pytest.mark.parametrize("key", ["sha256:12", "sha256:" + "g" * 64])
@pytest.mark.parametrize("name", ["api_keys", "api_keys_read"])
def test_half_a_hash_ends_the_start_without_showing_the_key(name: str, key: str) -> None:
    from backend.base.config import load_settings

    with pytest.raises(InvalidSettings) as refused:
        load_settings(**{name: f"secret-key,{key}"})
    assert "secret-key" not in str(refused.value)
