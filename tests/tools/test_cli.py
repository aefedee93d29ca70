"""The command line as a person types it: help, options, and what a mistake is answered with."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer.testing import CliRunner, Result

from backend.base.errors import MemoryNotFound
from backend.base.keys import ModelKey
from backend.tools import cli

COMMANDS = [
    "bank", "bench", "calibrate", "certify", "demo", "doctor", "evaluate", "export", "fit", "infer", "msa", "pack",
    "rebuild", "restore", "serve", "settings", "teach", "unpack", "versions",
]  # fmt: skip
HEAVY = {"torch", "timm", "faiss", "sklearn", "numpy", "cv2", "fastapi", "matplotlib", "openvino", "uvicorn"}


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "300"})


def test_help_opens_without_the_libraries_that_take_long() -> None:
    code = f"import sys, backend.tools.cli; sys.exit(', '.join({HEAVY!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_the_commands() -> None:
    text = run("--help").output
    assert [name for name in COMMANDS if not re.search(rf"^\W*{name}\b", text, re.MULTILINE)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and command in result.output


def test_settings_are_printed_as_the_documents_have_them() -> None:
    result = run("settings")
    assert result.exit_code == 0
    assert "| `CORESET_RATE` | `0.02` |" in result.output


@pytest.mark.parametrize("text", ["1;2", "1,x", "0", "-1", "1.5", "1,,2", "²"])
@pytest.mark.parametrize("words", [("evaluate", "{set}", "--shots"), ("bench", "--fits"), ("bench", "--clients")])
def test_lists_of_numbers_that_are_none_are_shown(tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    result = run(*(word.format(set=tmp_path) for word in words), text)
    assert result.exit_code == 2
    assert repr(text) in result.output and "1,2,4" in result.output


SCORES = ("--ok-scores", "0.2 0.3")


@pytest.mark.parametrize(
    "words",
    [(), ("{good}", *SCORES), ("--ng-scores", "0.9"), ("--ng", "{good}"), ("{good}", "--ng-scores", "0.9"),
     (*SCORES, "--ng", "{good}")],
)  # fmt: skip
def test_a_calibration_comes_from_folders_or_from_scores(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = run("calibrate", *(word.format(good=tmp_path) for word in words))
    assert result.exit_code == 2
    assert "--ok-scores" in result.output and "folder of good parts" in result.output


@pytest.mark.parametrize(
    ("text", "shown"),
    [("8,3 9", "'8,3'"), ("0.2 1_0", "'1_0'"), ("nan", "'nan'"), ("0.2 inf", "'inf'"), ("0.2;x", "'0.2;x'"),
     ("1e400", "'1e400'"), ("0x10", "'0x10'"), ("[0.2]", "'[0.2]'")],
)  # fmt: skip
def test_a_score_that_is_no_number_is_shown(text: str, shown: str) -> None:
    result = run("calibrate", "--ok-scores", text)
    assert result.exit_code == 2
    assert shown in result.output and "is no number" in result.output


def test_a_decimal_comma_is_answered_with_a_point() -> None:
    assert "use a point" in run("calibrate", "--ok-scores", "8,3").output


@pytest.mark.parametrize("text", ["0,05", "1_0", "inf", "nan", "1e400", "٥", "0x10", "0.05mm", "", "-1", "0", "1 000"])
@pytest.mark.parametrize("command", ["fit", "infer", "calibrate", "certify"])
def test_an_option_that_is_no_number_is_shown_and_nothing_is_done(tmp_path: Path, command: str, text: str) -> None:
    result = run(command, tmp_path, "--mm-per-px", text)
    assert result.exit_code == 2 and "--mm-per-px" in result.output
    assert repr(text) in result.output and ("is no number" in result.output or "must be from" in result.output)
    assert ("use a point" in result.output) == ("," in text)


@pytest.mark.parametrize("text", ["1_0", "5.0", "4", "٦", "six"])
def test_so_is_one_that_is_no_whole_number(tmp_path: Path, text: str) -> None:
    result = run("certify", tmp_path, "--parts", text)
    assert result.exit_code == 2 and repr(text) in result.output


def test_no_number_is_read_as_python_reads_its_own() -> None:
    """Python takes `1_0`, `inf` and `٥`."""
    commands = [cli.app, cli.records]
    own = [
        f"{command.name or command.callback.__name__} {name}"
        for one in commands
        for command in one.registered_commands
        if command.callback is not None
        for name, kind in get_type_hints(command.callback, include_extras=True).items()
        if kind is not type(None) and {int, float} & {*get_args(get_args(kind)[0]), get_args(kind)[0]}
        if get_args(kind)[1].parser is None
    ]
    assert own == []


def test_a_score_below_zero_is_none() -> None:
    result = run("calibrate", "--ok-scores", "0.3 -1")
    assert result.exit_code == 2 and "-1 is no score" in result.output


def test_the_bank_wants_a_recipe_that_exists(tmp_path: Path) -> None:
    result = run("bank", tmp_path, "--embedding-version", "nonsense")
    assert result.exit_code == 2 and "known versions are" in result.output


@pytest.mark.parametrize("name", ["pieza[roja].png", "[/red].png"])
@pytest.mark.parametrize("command", ["infer", "fit", "bank", "evaluate", "calibrate"])
def test_a_path_that_does_not_exist_is_named_letter_by_letter(tmp_path: Path, command: str, name: str) -> None:
    result = run(command, tmp_path / name)
    assert result.exit_code == 2
    assert name in result.output


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryNotFound(key=ModelKey.of("Line", "Disc")), "Line/Disc"),
        (FileNotFoundError(2, "No such file or directory", "parts/a[1].png"), "parts/a[1].png: No such file"),
        (PermissionError(13, "Permission denied", "models"), "models: Permission denied"),
    ],
)
def test_what_goes_wrong_ends_with_a_sentence_and_no_traceback(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(cli, "settings_table", broken)
    monkeypatch.setattr(sys, "argv", ["backend", "settings"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
