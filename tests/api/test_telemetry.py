import io
import json
import logging
from pathlib import Path

import pytest

from backend.api.telemetry import configure_logging
from backend.app import create_app
from tests.api.service import GOOD, IDS, calibrate, client_of, fit, infer
from tests.parts import quick_settings


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_call_leaves_lines_with_its_correlation_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    with client_of(create_app(quick_settings(tmp_path, log_format=form))) as client:
        client.headers["X-Correlation-Id"] = "line-7"
        fit(client)
        calibrate(client)
        infer(client)
    lines = capsys.readouterr().err.splitlines()
    said = [json.loads(line)["message"] if form == "json" else line for line in lines]
    for call in (
        "fit_ok Master1/Pattern",
        "calibrate_ng Master1/Pattern",
        "infer Master1/Pattern",
        "POST /infer -> 200",
    ):
        (line,) = [lines[n] for n, text in enumerate(said) if call in text]
        assert "line-7" in line
    assert any("version" in text for text in said)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "value", [b"a\nINFO forged", b"a\r\nINFO forged", b"a\x85INFO forged", b"a\xe2\x80\xa8INFO forged"]
)
def test_an_id_writes_no_line_of_its_own_into_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, value: bytes
) -> None:
    with client_of(create_app(quick_settings(tmp_path, log_format=form))) as client:
        client.get("/health", headers=[(b"X-Correlation-Id", value), (b"X-Request-Id", value)])
    said = capsys.readouterr().err
    assert "GET /health -> 200" in said and "forged" not in said


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_id_with_spaces_and_quotes_is_logged_as_it_was_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    value = 'line 7, "part" [3]'
    with client_of(create_app(quick_settings(tmp_path, log_format=form))) as client:
        client.get("/health", headers={"X-Correlation-Id": value})
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "GET /health" in line]
    assert (json.loads(line)["correlation_id"] if form == "json" else line.split("[", 1)[1].rsplit("] ", 1)[0]) == value


def test_a_traceback_is_one_json_line() -> None:
    stream = io.StringIO()
    configure_logging("INFO", "json")
    handler = logging.getLogger("backend").handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    try:
        raise ValueError("línea\nrota")
    except ValueError:
        logging.getLogger("backend.x").exception("falló %s", "ñ")
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["message"] == "falló ñ" and "línea" in said["exception"] and said["level"] == "ERROR"
    assert said.keys() >= {"time", "logger", "request_id", "correlation_id"}


def test_the_log_level_is_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with client_of(create_app(quick_settings(tmp_path, log_level="ERROR"))) as client:
        client.get("/health")
    assert capsys.readouterr().err == ""


def test_images_and_keys_are_not_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with client_of(create_app(quick_settings(tmp_path, api_keys=("hush-hush",), log_level="DEBUG"))) as client:
        for headers in ({"X-API-Key": "hush-hush"}, {"X-API-Key": "guess-work"}):
            client.post("/infer", data={**IDS, "mm_per_px": "1"}, files={"image": GOOD}, headers=headers)
    said = capsys.readouterr().err
    assert "hush-hush" not in said and "guess-work" not in said and "401" in said
