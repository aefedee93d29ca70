"""The figures of labelled sets, as tables, a report and JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from backend.base.config import Settings
from backend.evaluation.report import SUMMARY, html_report, listings, summary_row
from backend.evaluation.results import SetResult
from backend.evaluation.runner import Evaluator
from backend.evaluation.sets import read_set
from backend.tools.terminal import Bars, going_on, print_table, say, sentence

STDOUT = Path("-")


def run_evaluation(
    folders: Sequence[Path],
    models: Sequence[Settings],
    *,
    shots: Sequence[int],
    draws: int,
    perturb: bool,
    report: Path,
    as_json: Path | None,
) -> list[str]:
    """Measure each model on each set; write the report and the JSON, and print the tables.

    A model or a set that fails is printed as an error and the others are measured. What was measured before somebody
    stops the program is written too.

    Args:
        shots, draws: also the figures with so many good parts, over so many draws of them.
        perturb: also the figures under changes of light, focus and position.
        as_json: a file; `-` for standard output, where the tables then go to standard error.

    Returns:
        The models and sets that failed.

    Raises:
        SetNotUnderstood, UndecodableImage: before anything is measured.
    """
    sets = [read_set(folder) for folder in folders]
    for one in sets:
        _warn(one.name, one.warnings)
    for file in (report, as_json):
        if file is not None and file != STDOUT:
            file.parent.mkdir(parents=True, exist_ok=True)
    results: list[SetResult] = []
    failed: list[str] = []
    try:
        for settings in models:
            with (
                going_on(settings.model_name, failed),
                Bars() as bars,
                Evaluator(settings, remember=bool(shots), progress=bars.show, words=sentence) as evaluator,
            ):
                for one in sets:
                    with going_on(one.name, failed):
                        results.append(evaluator.run(one, shots=shots, draws=draws, perturb=perturb))
                        _warn(one.name, results[-1].warnings[len(one.warnings) :])
    finally:
        if results:
            _write_report(results, report)
            _write_json(results, as_json)
            _print_tables(results, stderr=as_json == STDOUT)
    return failed


def _warn(name: str, warnings: Sequence[str]) -> None:
    for warning in warnings:
        say("warning", f"{name}: {warning}")


def _write_report(results: Sequence[SetResult], path: Path) -> None:
    page = html_report(results, command=f"python -m backend {shlex.join(sys.argv[1:])}")
    path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    say("report", str(path))


def _write_json(results: Sequence[SetResult], path: Path | None) -> None:
    """The figures as JSON, in UTF-8 in a file and in ASCII on standard output, which any terminal takes.

    A file's name that is no text is written with JSON's own escapes, so that it can be read back as it was.
    """
    values = [result.as_dict() for result in results]
    if path == STDOUT:
        sys.stdout.write(json.dumps(values, indent=1, default=str))
    elif path is not None:
        text = json.dumps(values, ensure_ascii=False, indent=1, default=str)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _print_tables(results: Sequence[SetResult], *, stderr: bool) -> None:
    for result in results:
        for listing in listings(result):
            title = f"{result.set_name} · {result.model}: {listing.title.lower()}"
            print_table(listing.header, listing.rows, title=title, stderr=stderr)
    print_table(SUMMARY, [summary_row(result) for result in results], title="summary", stderr=stderr)
