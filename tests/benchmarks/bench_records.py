"""The record at 1,000,000 verdicts: python tests/benchmarks/bench_records.py [--rows 1000000] [--postgres | --url URL].

The rows are written by the writer itself: 250 days of four models at two stations, 5 % NG, one in fifty reviewed, two
inspections of each part, a token map of 32×32. Every look-up is timed 5 times in turn with the others, on connections
that have read before; on a machine of its own its worst time counts, on one that others use its best.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import psutil
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.records.database import Database
from backend.records.entries import InspectionDraft, ReviewDraft
from backend.records.export import as_csv
from backend.records.feed import Feed
from backend.records.ledger import Ledger
from backend.records.own_chain import OwnChain
from backend.records.queries import Filters, Order, Place, page, whole
from backend.records.record import Decision, Record, now_us
from backend.records.summaries import span_of, summary
from backend.records.tables import inspections
from backend.records.tallies import catch_up
from backend.records.verifying import verify
from tests.records.postgres import Server

DAY_US = 86_400_000_000
DAYS = 250
CHAINS = 4
BATCH = 500


def made(rows: int, seed: int = 0) -> Iterator[Record]:
    """Verdicts from 250 days ago until now."""
    rng = np.random.default_rng(seed)
    end = now_us()
    step = DAYS * DAY_US // rows
    contour = [[100 + 3 * n, 80 + n] for n in range(20)]
    maps = [rng.random((32, 32)).astype(np.float32) for _ in range(50)]
    for n in range(rows):
        bad = rng.random() < 0.05
        score = float(rng.gamma(60, 0.005) + 0.3 * bad)
        decision: Decision = "ng" if score > 0.5 else "ok"
        region = {"bbox": [100, 80, 60, 20], "area_px": 700.0, "area_mm2": 28.0, "contour": contour}
        yield Record(
            role_id=f"Master{n % 2}",
            roi_id=["Pattern", "Edge"][n // 2 % 2],
            station_id=f"station {n // 4 % 2}",
            source="infer",
            score=score,
            threshold=0.5,
            decision=decision,
            p_value=0.25,
            part_id=f"part {n // 2}",
            batch_id=f"batch {n // 500}",
            operator="Ana",
            request_id=f"{n:032x}",
            key_id="5f3a09c1",
            image_name=f"{n}.png",
            image_sha256=n.to_bytes(32, "big"),
            image_size=300_000,
            height=448,
            width=448,
            mm_per_px=0.2,
            generation="0123456789abcdef",
            fingerprint="vit_small_patch14_dinov2.lvd142m/448/9,11/0123456789abcdef",
            model_version="2026.3",
            service_version="1.0",
            scoring={"method": "percentile", "percentile": 99.0, "blur_sigma": 1.0, "k": 1, "where": "roi"},
            calibration={"threshold": 0.5, "p99_ok": 0.48, "p5_ng": 0.55, "area_mm2_thr": 1.0, "n_ok": 120, "n_ng": 9},
            stats={"max": score * 1.2, "mean": score / 2, "median": score / 2, "top1_mean": score},
            regions=[region] if decision == "ng" else [],
            timings_ms={"decode": 2.5, "forward": 74.2, "knn": 5.3, "post": 0.8, "png": 0.5, "total": 83.4},
            token_map=maps[n % 50],
            time_us=end - (rows - n) * step,
        )


def fill(url: str, rows: int) -> float:
    """Write the rows in four chains, and reviews of one in fifty. Returns the seconds it took."""
    started = perf_counter()
    own = [OwnChain(Database(url)) for _ in range(CHAINS)]
    records = made(rows)
    for turn in itertools.count():
        some = list(itertools.islice(records, BATCH))
        if not some:
            break
        chain = own[turn % CHAINS]
        names = chain.append([InspectionDraft.of(one) for one in some])
        chain.append([ReviewDraft(inspection_id=str(name), verdict="good") for name in names[::50]])
        if turn % 200 == 199:
            print(f"{turn * BATCH + len(some):,} rows after {perf_counter() - started:.0f} s", flush=True)
    for chain in own:
        chain.close()
        chain.database.close()
    catch_up(own[0].database)
    if own[0].database.on_sqlite:
        with own[0].database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA optimize")
    else:
        with own[0].database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")  # as the server does by itself in time
    own[0].database.close()
    return perf_counter() - started


class Timed:
    """Look-ups by name, and how long each took."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.asked: dict[str, Callable[[Any], Any]] = {}

    def pages(
        self, name: str, order: Order = "newest", limit: int = 100, after: Place | None = None, **given: Any
    ) -> None:
        self.asked[name] = lambda connection: page(connection, Filters(**given), order, limit, after)

    def summary(self, name: str, bucket: str, zone: str | None = None, **given: Any) -> None:
        asked = Filters(**given)
        self.asked[name] = lambda c: summary(c, span_of(c, bucket, asked, zone), asked)

    def run(self, times: int = 5) -> dict[str, list[float]]:
        spent: dict[str, list[float]] = {name: [] for name in self.asked}
        for turn in range(times + 1):
            for name, ask in self.asked.items():
                started = perf_counter()
                with self.database.reading() as connection:
                    ask(connection)
                if turn:
                    spent[name].append(1000 * (perf_counter() - started))
        return spent


def look_ups(database: Database, rows: int) -> Timed:
    """All that the routes ask, the filters alone and together, and what nothing matches."""
    timed = Timed(database)
    with database.reading() as connection:
        own = inspections.c
        middle = connection.execute(select(own.time_us, own.id).order_by(own.time_us).offset(rows // 2).limit(1)).one()
        last = connection.execute(select(func.max(own.time_us))).scalar_one()
        top = connection.execute(select(own.score, own.id).order_by(own.score.desc()).offset(rows // 3).limit(1)).one()
        (first,) = page(connection, Filters(), "newest", 1).items
    half = int(middle.time_us)
    week: dict[str, Any] = {"since_us": half, "until_us": half + 7 * DAY_US}
    model: dict[str, Any] = {"role_id": "Master1", "roi_id": "Edge", "recipe_id": "default"}
    timed.asked["one inspection"] = lambda connection: whole(connection, first["inspection_id"])
    timed.pages("part_id", part_id=f"part {rows // 4}")
    timed.pages("part_id, decision", part_id=f"part {rows // 4}", decision="ng")
    timed.pages("batch_id", batch_id=f"batch {rows // 1000}")
    timed.pages("batch_id, decision, score", "score", batch_id=f"batch {rows // 1000}", decision="ng")
    timed.pages("no filter")
    timed.pages("no filter, limit 1000", limit=1000)
    timed.pages("no filter, from the middle", after=Place("newest", half, middle.id))
    timed.pages("oldest first", "oldest")
    timed.pages("by score", "score")
    timed.pages("by score, from a third on", "score", after=Place("score", top.score, top.id))
    timed.pages("model", **model)
    timed.pages("model, from the middle", after=Place("newest", half, middle.id), **model)
    timed.pages("decision=ng", decision="ng")
    timed.pages(
        "decision=ng, from the middle, limit 1000", limit=1000, after=Place("newest", half, middle.id), decision="ng"
    )
    timed.pages("reviewed", reviewed=True)
    timed.pages("not reviewed, by score", "score", reviewed=False)
    timed.pages("station, decision=ng, reviewed", station_id="station 1", decision="ng", reviewed=True)
    timed.pages("a station that there is not", station_id="nowhere")
    timed.pages("a week", **week)
    timed.pages("a week, by score", "score", **week)
    timed.pages("three months, by score", "score", since_us=half, until_us=half + 90 * DAY_US)
    timed.pages("a minute, by score, model", "score", since_us=half, until_us=half + 60_000_000, **model)
    timed.pages("score over 0.9", min_score=0.9)
    timed.pages("score from 0.28 to 0.3", min_score=0.28, max_score=0.3)
    timed.pages("score over anything", min_score=99.0)
    timed.pages("a week, score over 0.5, model", min_score=0.5, **week, **model)
    timed.pages("a week, a score nobody had in it, by score", "score", min_score=0.75, max_score=0.7501, **week)
    timed.pages("high scores of the first day", min_score=0.4, until_us=last - (DAYS - 1) * DAY_US)
    timed.summary("summary by day", "day")
    timed.summary("summary by day of a model and station", "day", station_id="station 1", **model)
    timed.summary("summary by shift, two months", "shift")
    timed.summary("summary by hour, a month", "hour")
    timed.summary("summary by day in Madrid, two months", "day", "Europe/Madrid")
    return timed


def combinations(database: Database, rows: int) -> Timed:
    """Filters of facet, time and score, rare and frequent, in all orders, from the top and from the middle."""
    own, timed = inspections.c, Timed(database)
    with database.reading() as connection:
        first, last = connection.execute(select(func.min(own.time_us), func.max(own.time_us))).one()
        by_time = select(own.time_us, own.id).order_by(own.time_us).offset(rows // 2).limit(1)
        middle = connection.execute(by_time).one()
        by_score = select(own.score, own.id).order_by(own.score)
        shares = (0.1, 0.3, 0.5, 0.67, 0.95, 0.999)
        at = [connection.execute(by_score.offset(int(rows * share)).limit(1)).one() for share in shares]
    low, some, half, third, high, top = (row.score for row in at)
    model = {"role_id": "Master1", "roi_id": "Edge"}
    kinds: list[dict[str, Any]] = [{}, model, {"decision": "ng"}, {"decision": "ok", "reviewed": False}]
    kinds += [{"reviewed": True}, {**model, "station_id": "station 1", "decision": "ng"}, {"station_id": "nowhere"}]
    times: list[dict[str, int]] = [{}, {"since_us": first + 2 * DAY_US, "until_us": first + 3 * DAY_US}]
    times += [{"since_us": middle.time_us, "until_us": middle.time_us + 7 * DAY_US}]
    times += [{"until_us": first + 30 * DAY_US}, {"since_us": last - 100 * DAY_US}, {"since_us": last + DAY_US}]
    scores: list[dict[str, float]] = [{}, {"min_score": top}, {"min_score": high}, {"min_score": third}]
    scores += [{"min_score": some, "max_score": half}, {"max_score": low}, {"min_score": 99.0}]
    orders: tuple[Order, ...] = ("newest", "oldest", "score")
    for kind, when, score, order in itertools.product(kinds, times, scores, orders):
        place = at[3] if order == "score" else middle
        for after in (None, Place(order, *place)):
            given = {**kind, **when, **score}
            timed.pages(f"{order}, {'top' if after is None else 'middle'}, {given}", order, after=after, **given)
    return timed


def writing(url: str, folder: Path) -> list[str]:
    """What a record costs its request: one at a time, and from sixteen threads."""
    ledger = Ledger(url, images=folder)
    records = made(4000, seed=1)
    ledger.record(next(records))
    spent = []
    for one in itertools.islice(records, 500):
        started = perf_counter()
        ledger.record(one)
        spent.append(1000 * (perf_counter() - started))
    rest = list(records)
    threads = [threading.Thread(target=lambda n=n: [ledger.record(one) for one in rest[n::16]]) for n in range(16)]
    started = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pace = len(rest) / (perf_counter() - started)
    feed = Feed(ledger.database)
    feed.look()
    ledger.record(rest[0])
    started = perf_counter()
    feed.look()
    look = 1000 * (perf_counter() - started)
    ledger.close()
    p50, p99 = statistics.median(spent), sorted(spent)[-6]
    return [f"| a record | p50 {p50:.1f} ms, p99 {p99:.1f} ms |", f"| records of 16 threads | {pace:.0f} per second |",
            f"| a look at the feed | {look:.1f} ms |"]  # fmt: skip


def exported(database: Database) -> list[str]:
    """How long the CSV of all of it takes, and by how much the process grows after the first portions."""
    process, pieces, size = psutil.Process(), as_csv(database, Filters()), 0
    started, busy = perf_counter(), process_time()
    for piece in itertools.islice(pieces, 20):
        size += len(piece)
    before = process.memory_info().rss
    highest = before
    for piece in pieces:
        size += len(piece)
        highest = max(highest, process.memory_info().rss)
    grown = (highest - before) / 2**20
    return [f"| CSV of all, {size / 2**20:.0f} MB | {_since(started, busy)}, {grown:.0f} MB more memory |"]


def _since(started: float, busy: float) -> str:
    """How long something took, and for how much of it this process computed."""
    return f"{perf_counter() - started:.0f} s ({process_time() - busy:.0f} s of this process)"


def whole_record(url: str, database: Database, folder: Path) -> list[str]:
    """Verifying, exporting and going on writing."""
    started, busy = perf_counter(), process_time()
    report = verify(database)
    assert not report.found, report.found[:3]
    lines = [f"| verify, {report.inspections:,} | {_since(started, busy)} |"]
    return lines + exported(database) + writing(url, folder / "images")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--postgres", action="store_true", help="a PostgreSQL server of its own")
    options.add_argument("--combinations", action="store_true", help="only the slowest of 1,764 pages of all filters")
    options.add_argument("--url", help="a database; one that has rows is used as it is")
    given = options.parse_args()
    server = Server(safe=True, settings=("shared_buffers=1GB", "max_wal_size=4GB")) if given.postgres else None
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, server or nullcontext():
        folder = Path(scratch)
        url = given.url or (server.database() if server else f"sqlite:///{folder / 'inspections.db'}")
        ledger = Ledger(url, images=folder / "images")
        ledger.ready()
        with ledger.reading() as connection:
            present = connection.execute(select(func.count()).select_from(inspections)).scalar_one()
        lines = [] if present else [f"| {given.rows:,} rows written | {fill(url, given.rows):.0f} s |"]
        rows = int(present) or given.rows
        database = ledger.database
        if database.path is not None:
            lines.append(f"| the file | {database.path.stat().st_size / 2**30:.2f} GB |")
        asked = combinations(database, rows).run(3) if given.combinations else look_ups(database, rows).run()
        for name, spent in sorted(asked.items(), key=lambda one: -min(one[1]))[: 12 if given.combinations else None]:
            median, worst = statistics.median(spent), max(spent)
            lines.append(f"| {name} | {median:.1f} ms, at best {min(spent):.1f} ms, at worst {worst:.1f} ms |")
        lines += [] if given.combinations else whole_record(url, database, folder)
        ledger.close()
    print("\n".join(["| | |", "| --- | --- |", *lines]))


if __name__ == "__main__":
    main()
