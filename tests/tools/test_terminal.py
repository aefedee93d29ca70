"""What a terminal, a file and a pipe get to see."""

import io
import json
import re
import sys

import pytest

from backend.base.errors import QueueFull
from backend.tools.terminal import Bars, any_encoding, going_on, plain, print_table, say


class Stream(io.TextIOWrapper):
    """Standard output or error of some encoding, a terminal or not."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def written(self) -> str:
        self.flush()
        data = self.buffer.getvalue()  # type: ignore[attr-defined]
        return str(data, self.encoding)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pieza[roja].png", "pieza[roja].png"),
        ("[bold]x[/bold].png", "[bold]x[/bold].png"),
        ("[/].png", "[/].png"),
        (":warning: 1.png", ":warning: 1.png"),
        ("Ñandú 盘 1.png", "Ñandú 盘 1.png"),
        ("a\nb\tc.png", r"a\nb\tc.png"),
        ("\x1b[31mred.png", r"\x1b[31mred.png"),
        ("no text \udcff.png", r"no text \udcff.png"),
    ],
)
def test_names_are_shown_as_they_are_on_one_line(name: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Stream(), Stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    print_table(["file", "score"], [(name, "1.0")], title="night")
    say("error", f"{name}: broken")
    with Bars() as bars:
        assert list(bars.track(name, [1, 2])) == [1, 2]
    assert plain(name) == shown
    assert shown in out.written()
    assert f"error: {shown}: broken" in err.written()
    assert err.written().count(shown) == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
def test_no_encoding_stops_a_command(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Stream(encoding), Stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    any_encoding()
    print_table(["file", "mm²"], [("盘 ñ.png", "≥ 1")], title="a · b")
    say("warning", "盘: 12 mm² – 3 %")
    assert ("盘 ñ.png" if encoding == "utf-8" else r"\u76d8") in out.written()
    assert "warning: " in err.written()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_table_leaves_out_no_letter(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Stream(terminal=terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "60")
    name = "lot_2024-03-01/station_7/" + "part_" * 20 + ".png"
    print_table(["file", "threshold", "overlay"], [(name, "0.1234", name)])
    shown = re.sub(r"\x1b\[\d*m", "", out.written())
    assert "…" not in shown
    assert shown.count("p") == 2 * name.count("p")
    assert "threshold" in shown
    assert (name in shown) is not terminal
    assert max(map(len, shown.splitlines())) <= 60 or not terminal


def test_what_is_printed_beside_a_bar_reaches_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Stream(), Stream(terminal=True)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with Bars() as bars:
        for n in bars.track("inspect", [1, 2]):
            print(json.dumps({"n": n}))
    assert [json.loads(line)["n"] for line in out.written().splitlines()] == [1, 2]


def test_after_an_error_the_program_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    failed: list[str] = []
    for name in ("a", "b"):
        with going_on(name, failed):
            if name == "a":
                raise QueueFull(waiting=3, retry_after=1)
    assert failed == ["a"]
    assert "error: a: " in capsys.readouterr().err


def test_a_fault_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), going_on("a", []):
        raise ZeroDivisionError
