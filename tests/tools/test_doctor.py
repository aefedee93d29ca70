"""What the doctor finds, and that it says what to do."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backend.tools import cli, doctor
from backend.tools.doctor import Finding, examine
from tests.parts import quick_settings


def found(root: Path, what: str, **given: Any) -> Finding:
    (finding,) = [f for f in examine(quick_settings(root, **{"port": 0, **given})) if f.what == what]
    return finding


def test_a_sound_machine_has_nothing_bad(tmp_path: Path) -> None:
    findings = examine(quick_settings(tmp_path, port=0))
    assert [f for f in findings if f.level == "bad"] == []
    assert {"Python", "torch", "weights", "MODELS_DIR", "DATASETS_DIR", "CPU", "GPU", "port", "access"} <= {
        f.what for f in findings
    }


def test_missing_weights_are_named_with_what_to_do(tmp_path: Path) -> None:
    model = "vit_small_patch14_dinov2.lvd142m"
    finding = found(tmp_path, "weights", model_name=model, weights=str(tmp_path / "none.pth"))
    assert finding.level == "bad" and "none.pth" in finding.says and "WEIGHTS" in finding.says


def test_a_folder_that_cannot_be_made_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = found(tmp_path, "MODELS_DIR", models_dir=tmp_path / "file" / "models")
    assert finding.level == "bad" and "MODELS_DIR" in finding.says


def test_a_replica_needs_no_writable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert found(tmp_path, "MODELS_DIR", models_dir=tmp_path / "file" / "models", read_only=True).level == "ok"


def test_too_little_disk_is_bad(tmp_path: Path) -> None:
    finding = found(tmp_path, "MODELS_DIR", min_free_mb=1e12)
    assert finding.level == "bad" and "MIN_FREE_MB" in finding.says


def test_a_database_of_verdicts_that_cannot_be_used_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database" * 200)
    for url, says in (
        ("mysql://x/y", "not mysql"),
        (f"sqlite:///{tmp_path / 'file'}", "damaged"),
        (f"sqlite:///{tmp_path / 'file' / 'x.db'}", "cannot be written"),
        ("postgresql://nobody@/nothing?host=/nowhere", "cannot be reached"),
    ):
        finding = found(tmp_path, "RESULTS_DB", results_db=url)
        assert finding.level == "bad" and says in finding.says, finding
    assert found(tmp_path, "RESULTS_DB", results_db="none").level == "note"
    assert found(tmp_path, "RESULTS_DB", results_db=f"sqlite:///{tmp_path / 'new' / 'x.db'}").level == "ok"


def test_a_taken_port_is_bad(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = found(tmp_path, "port", port=taken.getsockname()[1])
    assert finding.level == "bad" and "PORT" in finding.says


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({}, "ok"),
        ({"host": "0.0.0.0"}, "bad"),
        ({"host": "0.0.0.0", "api_keys": "k"}, "ok"),
        ({"allow_insecure": True}, "note"),
    ],
)
def test_who_is_let_in_is_said(tmp_path: Path, given: dict[str, Any], level: str) -> None:
    assert found(tmp_path, "access", **given).level == level


def test_a_missing_package_is_bad_and_an_optional_one_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package", "no-such-runtime"))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-runtime": "another runs"})
    assert found(tmp_path, "no-such-package").level == "bad"
    assert found(tmp_path, "no-such-runtime") == Finding("note", "no-such-runtime", "not installed: another runs")


@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
def test_the_command_ends_with_one_when_something_must_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, code: int
) -> None:
    settings = quick_settings(tmp_path, port=0, host=host)
    monkeypatch.setattr(cli, "load_settings", lambda: settings)
    result = CliRunner().invoke(cli.app, ["doctor"], env={**os.environ, "COLUMNS": "200"})
    assert result.exit_code == code
    assert "MODELS_DIR" in result.output
