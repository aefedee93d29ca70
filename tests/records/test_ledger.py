"""The record as the service holds it: from its settings to its end."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from backend.base.config import PROJECT_ROOT, Settings
from backend.records import ledger as module
from backend.records.database import Database
from backend.records.entries import ReviewDraft
from backend.records.images import KeepPolicy
from backend.records.ledger import Ledger, images_beside
from backend.records.record import now_us
from backend.records.tables import chains, events
from tests.records.made import DAY_US, NOON_US, faults, picture, record


def test_the_settings_say_what_is_kept(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "results_db": f"sqlite:///{tmp_path}/x.db",
        "results_required": True,
        "results_sync": "full",
    }
    made = Ledger.of(Settings(**given, results_days=7, keep_images="ng,1/10", images_max_gb=3))
    assert made is not None
    assert (made.required, made.days, made.policy) == (True, 7, KeepPolicy(ng=True, one_in=10))
    assert made.database.durable and made.images.folder == tmp_path / "x.images"
    assert Ledger.of(Settings(results_db="none")) is None


def test_images_lie_beside_the_file_or_in_the_data_folder(tmp_path: Path) -> None:
    assert images_beside(Database("postgresql://nobody@nowhere.invalid/x")) == PROJECT_ROOT / "data" / "images"


def test_starting_and_stopping_leave_the_heads_in_the_log(
    open_ledger: Callable[..., Ledger], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backend")
    ledger = open_ledger()
    ledger.start()
    ledger.record(record(operator="Ana María", part_id="P 77"))
    ledger.close()
    heads = [line.rpartition(" ")[2] for line in caplog.messages if "chain" in line and "=" in line]
    assert len(heads) >= 2
    assert faults(database, heads=heads) == []
    assert heads[0].split("=")[0].endswith("-0") and heads[-1].split("=")[0].endswith("-2")
    assert "Ana" not in caplog.text and "P 77" not in caplog.text


def test_it_looks_after_itself_each_hour(
    open_ledger: Callable[..., Ledger], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOUR_S", 0.05)
    ledger = open_ledger(days=30)
    ledger.record(record(time_us=NOON_US - 10_000 * DAY_US))
    ledger.record(record(time_us=now_us()))
    ledger.start()
    deadline = time.monotonic() + 120
    kinds: list[str] = []
    while "pruned" not in kinds and time.monotonic() < deadline:
        with database.reading() as connection:
            kinds = list(connection.execute(select(events.c.kind)).scalars())
        time.sleep(0.05)
    assert "pruned" in kinds
    ledger.close()
    assert faults(database) == []


def test_a_verdict_without_its_image_has_none(ledger: Ledger) -> None:
    found = ledger.inspection(str(ledger.record(record()).inspection_id))
    assert found.item["image"]["kept"] is False and found.image_store is None


def test_many_threads_with_images_of_their_own_and_shared_ones(ledger: Ledger, database: Database) -> None:
    def work(seed: int) -> None:
        for n in range(8):
            number = 50 + n % 2 if n < 4 else 100 + 10 * seed + n
            one = record(number, score=0.9 if n % 3 else 0.2, image=picture(number))
            name = str(ledger.record(one, picture(number)).inspection_id)
            if n % 4 == 0:
                ledger.review(ReviewDraft(inspection_id=name, verdict="unclear"))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults(database, ledger.images) == []
    assert len(list(ledger.images.folder.glob("??/*"))) == 2 + 6 * 4


def test_closing_twice_is_closing_once(open_ledger: Callable[..., Ledger], database: Database) -> None:
    ledger = open_ledger()
    ledger.start()
    ledger.close()
    ledger.close()
    with database.reading() as connection:
        assert connection.execute(select(chains.c.closed)).scalars().all() == [True]
