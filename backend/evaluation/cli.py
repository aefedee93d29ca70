"""python -m backend evaluate: the figures of labelled sets, as a table, a report and JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand

from backend.base.config import Settings, load_settings

console = Console(stderr=True)
WIDTH_OF_FILES = 160


class ManyNumbers(TyperCommand):
    """Lets `--shots 1 2 4` stand for `--shots 1 --shots 2 --shots 4`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's hook for the arguments."""
        spread: list[str] = []
        for arg in args:
            follows = len(spread) > 1 and spread[-2] == "--shots" and arg.isdecimal()
            spread += ["--shots", arg] if follows else [arg]
        return super().parse_args(ctx, spread)


def evaluate(
    sets: Annotated[
        list[Path],
        typer.Argument(exists=True, file_okay=False, help="Folders: train/good and test/<class>, or ok and ng."),
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME=WEIGHTS, any number of times; MODEL_NAME without.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="reference, anomalydino, patchcore or recommended; what is set otherwise wins.")
    ] = None,
    shots: Annotated[
        list[int] | None, typer.Option(min=1, help="Figures with this few good parts too, as in --shots 1 2 4.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of those few parts.")] = 3,
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("evaluation.html"),
    as_json: Annotated[Path | None, typer.Option("--json", help="A file for the figures; - for stdout.")] = None,
) -> None:
    """Measure the service on labelled images with the field's own figures; leave a report."""
    from backend.evaluation.report import SUMMARY, html_report, listings, summary_row
    from backend.evaluation.runner import Evaluator
    from backend.evaluation.sets import read_set

    given, results = [read_set(folder) for folder in sets], []
    for name in model or [""]:
        with (
            _Bars() as bars,
            Evaluator(_settings_for(name, preset), remember=bool(shots), progress=bars.show) as evaluator,
        ):
            results += [evaluator.run(one, shots=shots or (), draws=seeds) for one in given]
    command = f"python -m backend {shlex.join(sys.argv[1:])}"
    report.write_text(html_report(results, command=command), encoding="utf-8")
    console.print(f"report: {report}", highlight=False)
    if as_json:
        text = json.dumps([result.as_dict() for result in results], ensure_ascii=False, indent=1, default=str)
        sys.stdout.write(text) if as_json == Path("-") else as_json.write_text(text, encoding="utf-8")
    to_stderr = as_json == Path("-")
    for result in results:
        for listing in listings(result):
            title = f"{result.set_name} · {result.model}: {listing.title.lower()}"
            _print_table(listing.header, listing.rows, title=title, stderr=to_stderr)
    _print_table(SUMMARY, [summary_row(result) for result in results], title="summary", stderr=to_stderr)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, stderr: bool) -> None:
    """A table that leaves out no digit: long cells go on in the next line, a file or pipe is wide enough."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=title, title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_OF_FILES
    Console(file=stream, width=width, markup=False, emoji=False).print(table)


def _settings_for(model: str, preset: str | None) -> Settings:
    """The settings with a preset, and `NAME` or `NAME=WEIGHTS` for the model."""
    name, _, weights = model.partition("=")
    given = {"preset": preset, "model_name": name, "weights": weights}
    return load_settings(**{field: value for field, value in given.items() if value})


class _Bars:
    """Progress bars on standard error, one for each thing that is under way."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)
