import io
from pathlib import Path
from typing import Any

from rich.console import Console

from backend.demo import _print


def said(*decisions: tuple[str, str | None, str]) -> str:
    rows: list[dict[str, Any]] = [
        {"part": part, "defect": defect, "score": 0.5, "decision": decision, "area_mm2": 0.0, "regions": 0,
         "regions_on_the_defect": 0}
        for part, defect, decision in decisions
    ]  # fmt: skip
    console = Console(file=io.StringIO(), width=400)
    _print(console, {"threshold": 0.4, "parts": rows}, Path("demo"))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_defective_part_that_passes_is_named_with_why_and_what_sees_it() -> None:
    text = said(("unseen_good_00", None, "ok"), ("crack", "crack", "ng"), ("scratch", "scratch", "ok"))
    (line,) = [line for line in text.splitlines() if "passed although defective" in line]
    assert "scratch" in line and "crack" not in line and "unseen" not in line
    assert "less than 1 %" in line and "SCORE_METHOD=max" in line and "PRESET=recommended" in line


def test_when_every_defect_is_found_nothing_is_explained() -> None:
    assert "passed" not in said(("unseen_good_00", None, "ok"), ("scratch", "scratch", "ng"))
