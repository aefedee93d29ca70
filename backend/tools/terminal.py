"""What commands show at a terminal: sentences, progress bars, and tables that leave nothing out.

Names of files are printed as they are: square brackets are no markup, and a character that cannot be shown or that the
terminal's encoding lacks is written as an escape.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from backend.api import catalogue
from backend.base.errors import InspectionError
from backend.base.messages import Message

T = TypeVar("T")
ENDLESS = 100_000  # columns of a file or a pipe, where no line needs to be broken
SHORT = 12  # letters of a cell that is not worth breaking
_UNSHOWN = frozenset({"Cc", "Cs", "Zl", "Zp"})  # Unicode's controls, bytes that were no text, and line breaks


def console(stream: TextIO | None = None) -> Console:
    """A console on `stream` (standard error without one) that takes text as it is.

    In a file or a pipe no line is broken: whoever searches for a name finds it in one piece.
    """
    target = stream or sys.stderr
    width = None if target.isatty() else ENDLESS
    return Console(file=target, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def any_encoding() -> None:
    """Have standard output and error write what their encoding lacks as escapes, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def plain(text: str) -> str:
    r"""`text` on one line: line breaks, control characters and bytes that are no text become escapes such as `\n`."""
    shown = (c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSHOWN else c for c in text)
    return "".join(shown)


def sentence(said: InspectionError | Message) -> str:
    """The English words for an error or a warning."""
    return catalogue.sentence(said, "en")


def say(kind: str, text: str) -> None:
    """`kind: text` on standard error, with a colour for `error` and `warning`."""
    colour = {"error": "red", "warning": "yellow"}.get(kind, "")
    console().print(Text.assemble((kind, colour), f": {plain(text)}"))


@contextmanager
def going_on(what: str, failed: list[str]) -> Iterator[None]:
    """What goes wrong inside is printed as `error: what: …`, `what` joins `failed`, and the program goes on.

    That is an InspectionError, or a file that cannot be read.
    """
    try:
        yield
    except (InspectionError, OSError) as err:
        say("error", f"{what}: {reason(err)}")
        failed.append(what)


def reason(err: InspectionError | OSError) -> str:
    """What went wrong, with the file's name."""
    if isinstance(err, InspectionError):
        return sentence(err)
    return f"{err.filename}: {err.strerror}" if err.filename else str(err)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str | Text]], *, title: str = "", stderr: bool = False
) -> None:
    """A table on standard output (or error) that leaves out no letter.

    Where a terminal is too narrow, the columns of long cells go on in the next line; those of numbers stay whole.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=title or None, title_justify="left")
    shown = [[plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    for number, name in enumerate(header):
        short = max((len(row[number]) for row in shown), default=0) <= SHORT
        table.add_column(name, overflow="fold", no_wrap=short)
    for row in shown:
        table.add_row(*row)
    console(sys.stderr if stderr else sys.stdout).print(table, soft_wrap=False)


class Bars:
    """Progress bars on standard error, one for each thing that is under way.

    Standard output is left alone: what is printed there meanwhile arrives there, also when it is a file. `quiet`: no
    bars, where that is the terminal that they would be drawn on.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console(),
            redirect_stdout=False,
            disable=quiet,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what`, in the bar of that name."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(plain(what), total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)

    def track(self, what: str, items: Collection[T]) -> Iterator[T]:
        """The `items` one by one, counted in the bar `what` as each is done."""
        for number, item in enumerate(items, start=1):
            yield item
            self.show(what, number, len(items))
