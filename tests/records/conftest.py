"""Records in both databases: each test that takes `url`, `ledger` or `database` runs on SQLite and on PostgreSQL."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.records.database import Database
from backend.records.images import KeepPolicy
from backend.records.ledger import Ledger


@pytest.fixture
def open_ledger(url: str, tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Opens the record of `url`, as often as asked; all are closed at the end."""
    opened: list[Ledger] = []

    def open_one(**given: Any) -> Ledger:
        keep = KeepPolicy.of(given.pop("keep", "all"))
        one = Ledger(url, images=given.pop("images", tmp_path / "images"), keep=keep, **given)
        opened.append(one)
        return one

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def ledger(open_ledger: Callable[..., Ledger]) -> Ledger:
    return open_ledger()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    one = Database(url)
    yield one
    one.close()
