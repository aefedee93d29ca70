"""A copy as docs/DEPLOYMENT.md says, made while the service writes, is whole and goes on once it is put back."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend.records.database import Database
from backend.records.images import KeepPolicy
from backend.records.ledger import Ledger
from tests.records.made import faults, picture, record
from tests.records.postgres import Server

HALF_WRITTEN = shutil.ignore_patterns("*.tmp")


@contextmanager
def writing(ledger: Ledger) -> Iterator[list[str]]:
    """Verdicts with images are recorded meanwhile; the names of those that were before."""
    stop = threading.Event()

    def work() -> None:
        number = 100
        while not stop.is_set():
            ledger.record(record(number, score=0.9, image=picture(number % 30)), picture(number % 30))
            number += 1

    before = [str(ledger.record(record(n, image=picture(n)), picture(n)).inspection_id) for n in range(5)]
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield before
    finally:
        stop.set()
        thread.join()


def put_back(url: str, images: Path, before: list[str]) -> None:
    """The copy is whole, has what was there before it, and goes on."""
    restored = Ledger(url, images=images, keep=KeepPolicy.of("all"))
    assert faults(restored.database, restored.images) == []
    for number, name in enumerate(before):
        assert restored.image(restored.inspection(name))[0] == picture(number)
    restored.record(record(1))
    restored.close()
    again = Database(url)
    assert faults(again) == []
    again.close()


@pytest.mark.parametrize("way", ["sqlite3", "python"])
def test_a_copy_of_sqlite_made_meanwhile_goes_on(tmp_path: Path, way: str) -> None:
    if way == "sqlite3" and shutil.which("sqlite3") is None:
        pytest.skip("needs the program sqlite3")
    path, copy = tmp_path / "inspections.db", tmp_path / "backup" / "inspections.db"
    copy.parent.mkdir()
    ledger = Ledger(f"sqlite:///{path}", keep=KeepPolicy.of("all"))
    with writing(ledger) as before:
        script = f"import sqlite3; sqlite3.connect({str(path)!r}).backup(sqlite3.connect({str(copy)!r}))"
        command: list[str] = (
            ["sqlite3", str(path), f".backup '{copy}'"] if way == "sqlite3" else [sys.executable, "-c", script]
        )
        subprocess.run(command, check=True, timeout=60)
        shutil.copytree(ledger.images.folder, tmp_path / "backup" / "inspections.images", ignore=HALF_WRITTEN)
    ledger.close()
    put_back(f"sqlite:///{copy}", tmp_path / "backup" / "inspections.images", before)


def test_a_dump_of_postgresql_made_meanwhile_goes_on(postgres: Server, tmp_path: Path) -> None:
    url, other = postgres.database(), postgres.database()
    ledger = Ledger(url, images=tmp_path / "images", keep=KeepPolicy.of("all"))
    with writing(ledger) as before:
        dump = postgres.root / "inspections.dump"
        postgres.run("pg_dump", "-Fc", "-d", url, "-f", dump)
        shutil.copytree(ledger.images.folder, tmp_path / "copy", ignore=HALF_WRITTEN)
    ledger.close()
    postgres.run("pg_restore", "-d", other, dump)
    put_back(other, tmp_path / "copy", before)
