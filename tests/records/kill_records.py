"""kill -9 at random moments while verdicts are recorded: what was answered is there, once, and the chains verify.

    python -m tests.records.kill_records                                  # 200 kills, SQLite
    python -m tests.records.kill_records --postgres                       # the same with a PostgreSQL server of its own
    python -m tests.records.kill_records --url postgresql://…             # an empty database of yours

A forked writer records verdicts from four threads, with images that make room for each other and with reviews, and
tells each identifier that it was answered. It is killed; what it told must be in the database.
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from sqlalchemy import select

from backend.api.catalogue import sentence
from backend.records.database import Database
from backend.records.entries import ReviewDraft
from backend.records.images import GB, ImageStore, KeepPolicy
from backend.records.ledger import Ledger
from backend.records.record import now_us, parse_public_id, public_id, split_id
from backend.records.tables import chains, inspections
from backend.records.verifying import verify
from tests.records.made import picture, record
from tests.records.postgres import Server

THREADS = 4
PICTURES = 12


def opened(url: str, images: Path) -> Ledger:
    """A record whose images do not all fit."""
    room = 6.5 * len(picture()) / GB
    return Ledger(url, images=images, keep=KeepPolicy.of("ng,1/2"), images_max_gb=room)


def write(url: str, images: Path, told: int, seed: int) -> None:
    """Record until killed; each answered identifier becomes a line of `told`."""
    ledger = opened(url, images)

    def work(number: int) -> None:
        rng = np.random.default_rng((seed, number))
        while True:
            n = int(rng.integers(PICTURES))
            one = record(n, score=0.9 if n == 0 else 0.2, image=picture(n), time_us=now_us())
            name = ledger.record(one, picture(n)).inspection_id
            if name is not None:
                os.write(told, f"{name}\n".encode())
            if name is not None and rng.random() < 0.05:
                ledger.review(ReviewDraft(inspection_id=name, verdict="good"))

    for number in range(THREADS):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    threading.Event().wait()


def one_kill(url: str, images: Path, seconds: float, seed: int, *, early: bool) -> list[str]:
    """The identifiers that a writer answered until it was killed, so long after its first answer (early: its start)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            write(url, images, writer, seed)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        first = b"" if early else pipe.readline()
        killer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
        killer.start()
        said = first + pipe.read()  # ends with the writer
    killer.join()
    os.waitpid(child, 0)
    return said.decode().split("\n")[:-1]


def present(database: Database, names: list[str]) -> Counter[str]:
    """How often each of these identifiers is in the database."""
    wanted = {parse_public_id(name)[0] for name in names}
    found: Counter[str] = Counter()
    with database.reading() as connection:
        for row in connection.execute(select(chains.c.id, chains.c.key).where(chains.c.key.in_(wanted))).all():
            ids = select(inspections.c.id).where(inspections.c.id.between(row.id << 40, (row.id + 1) << 40))
            found.update(public_id(row.key, split_id(n)[1]) for n in connection.execute(ids).scalars())
    return found


def examine(url: str, images: Path) -> list[str]:
    """What verify finds wrong, once what the killed writers left was put right."""
    database = Database(url)
    store = ImageStore(images, database, max_gb=1, told=lambda *_: None)
    store.tidy(0)
    found = [sentence(one, "en") for one in verify(database, store).found]
    database.close()
    return found


def run(
    kills: int, url: str, images: Path, *, seed: int = 0, longest_s: float = 0.6, say: bool = False
) -> Counter[str]:
    """Kill `kills` times. Returns what was counted; raises AssertionError with what was wrong."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    first = opened(url, images)
    first.record(record())
    first.close()
    for number in range(kills):
        seconds, seed = float(rng.uniform(0.0, longest_s)), int(rng.integers(2**31))
        names = one_kill(url, images, seconds, seed, early=number % 5 == 0)
        database = Database(url)
        found = present(database, names)
        database.close()
        lost = [name for name in names if found[name] == 0]
        assert not lost, f"kill {number + 1}: answered and lost: {lost[:5]}"
        assert not found or max(found.values()) == 1
        counts.update(kills=1, answered=len(names), recorded=sum(found.values()))
        if (number + 1) % 25 == 0 or number + 1 == kills:
            wrong = examine(url, images)
            assert not wrong, f"kill {number + 1}: {wrong[:5]}"
            if say:
                print(f"{dict(counts)}, chains whole", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres", action="store_true", help="with a PostgreSQL server of its own")
    parser.add_argument("--url", help="of an empty database")
    given = parser.parse_args()
    started = time.monotonic()
    server = Server() if given.postgres else None
    with tempfile.TemporaryDirectory() as folder, server or nullcontext():
        url = given.url or (server.database() if server else f"sqlite:///{folder}/inspections.db")
        counts = run(given.kills, url, Path(folder) / "images", seed=given.seed, say=True)
    print(f"{counts['kills']} kills in {time.monotonic() - started:.0f} s: {dict(counts)}, none lost, none twice")


if __name__ == "__main__":
    main()
