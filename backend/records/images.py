"""The images of inspections: which are kept, and where they lie, once by content and byte for byte.

    <folder>/.store            the folder's name in the database, 8 hexadecimal digits
    <folder>/3f/3f9a….png      an image, named by its SHA-256

An image is there before its record names it, and is gone before the database forgets it: whoever removes one holds its
row meanwhile, and sets the file aside first, so that what is interrupted can be taken back.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import Connection, Row, delete, func, select

from backend.base.errors import DiskFull, StorageFailed
from backend.base.files import disk_errors, patiently, write_atomic
from backend.base.images import image_header
from backend.base.messages import Phrase
from backend.records.database import Database, Unavailable
from backend.records.entries import StoredImage
from backend.records.record import Record
from backend.records.tables import images

logger = logging.getLogger(__name__)

GB = 2**30
NEAR = 0.05
ASIDE = ".aside"
USAGE_AGE_S = 30.0
LEFT_OVER_S = 600.0
_EVICTED_AT_ONCE = 256
# An image, one that was set aside, or one that was being written.
_OWN_NAME = re.compile(r"[0-9a-f]{64}\.[a-z]+(\.aside)?|\.[0-9a-f]{64}\..*\.tmp")


@dataclass(frozen=True)
class KeepPolicy:
    """Which images are kept.

    `ng`: of NG parts; `near`: whose score is within 5 % of the threshold; `one_in`: one in so many of the others,
    chosen by content, so that every worker chooses alike (0: none).
    """

    ng: bool = False
    near: bool = False
    one_in: int = 0

    @classmethod
    def of(cls, setting: str) -> KeepPolicy:
        """The policy that KEEP_IMAGES names: `all`, `none`, or a list such as `ng,near,1/100`."""
        if setting == "all":
            return cls(ng=True, near=True, one_in=1)
        words = setting.split(",")
        share = next((word for word in words if word.startswith("1/")), "1/0")
        return cls("ng" in words, "near" in words, int(share[2:]))

    def wants(self, record: Record) -> bool:
        """Whether the image of this verdict is kept."""
        if self.ng and record.decision == "ng":
            return True
        threshold = record.threshold
        if self.near and threshold is not None and abs(record.score - threshold) <= NEAR * abs(threshold):
            return True
        chosen = self.one_in and int.from_bytes(record.image_sha256[:8], "big") % self.one_in == 0
        return record.decision != "ng" and bool(chosen)


class NoRoom(Unavailable):
    """There is no room for an image, and nothing that may go to make some."""

    def __init__(self, reason: Phrase) -> None:
        super().__init__(reason, passing=False)


class OtherImage(Exception):
    """What lies in the place of an image is not that image."""


class Removal:
    """Images that a transaction removes: their files are set aside meanwhile, then deleted or put back.

    Args:
        store: whose files go. Those of other folders are left to their owner, who finds no row for them.
    """

    def __init__(self, store: ImageStore | None) -> None:
        self.store = store
        self._aside: list[Path] = []

    def take(self, connection: Connection, row: Row[Any]) -> None:
        """Delete a row of `images` if it is still as it was seen, and set its file aside."""
        own = images.c
        here = (own.store == row.store) & (own.sha256 == row.sha256) & (own.time_us == row.time_us)
        gone = connection.execute(delete(images).where(here))
        if not gone.rowcount or self.store is None or self.store.name != row.store:
            return
        path = self.store.path(row.sha256, row.suffix)
        if path.exists():
            aside = path.with_name(path.name + ASIDE)
            patiently(partial(path.replace, aside))
            self._aside.append(aside)

    def settle(self, *, done: bool) -> None:
        """The transaction was committed, or was not."""
        for aside in self._aside:
            if done:
                aside.unlink(missing_ok=True)
            else:
                patiently(partial(aside.replace, aside.with_name(aside.name.removesuffix(ASIDE))))

    def __len__(self) -> int:
        return len(self._aside)


@contextmanager
def removing(store: ImageStore | None) -> Iterator[Removal]:
    """Around a transaction that removes images; that they go is recorded beforehand."""
    removal = Removal(store)
    try:
        yield removal
    except BaseException:
        removal.settle(done=False)
        raise
    removal.settle(done=True)
    if store is not None:
        store.count_anew()


class ImageStore:
    """A folder of images and its rows in the database; safe to use from many threads and processes.

    Args:
        told: called with what is about to be removed (SHA-256 in hexadecimal), before it is; it records that.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        *,
        max_gb: float,
        min_free_mb: float = 0,
        told: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self.folder = folder
        self.database = database
        self.max_bytes = int(max_gb * GB)
        self.min_free = int(min_free_mb * 2**20)
        self._told = told
        self._lock = threading.Lock()
        self._name: str | None = None
        self._used, self._counted_at = 0, -math.inf

    @property
    def name(self) -> str:
        """What the database calls this folder. Raises NoRoom: the folder cannot be written."""
        if self._name is None:
            marker = self.folder / ".store"
            try:
                with disk_errors(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    with FileLock(self.folder / ".lock"):
                        if not marker.exists():
                            write_atomic(marker, lambda file: file.write(secrets.token_hex(4).encode()))
                        self._name = marker.read_text("ascii").strip()
            except StorageFailed as err:
                raise _no_room(err) from err
        return self._name

    def path(self, sha256: bytes, suffix: str) -> Path:
        """Where an image lies."""
        text = sha256.hex()
        return self.folder / text[:2] / f"{text}{suffix}"

    def put(self, sha256: bytes, data: bytes) -> StoredImage:
        """Write an image unless it is there. A record must name it next, or it is a left-over.

        Raises:
            NoRoom: it does not fit, and only images that may not go are in the way.
            BadImage, Unavailable.
        """
        suffix, _, _ = image_header(data)
        image = StoredImage(self.name, sha256, suffix, len(data), data, self._restore)
        path = self.path(sha256, suffix)
        try:
            os.utime(path)  # `tidy` takes it for new
            whole = path.read_bytes() == data
        except FileNotFoundError:
            self._make_room(len(data))
            self._restore(image)
            with self._lock:
                self._used += len(data)
        else:
            if not whole:
                logger.warning("%s is not the image that it is named after, and is written anew", path)
                _write(image, path)
        return image

    def read(self, sha256: bytes) -> tuple[bytes, str] | None:
        """The bytes of an image and the suffix of its format; None where it is not in this folder.

        Raises OtherImage.
        """
        for path in (self.folder / sha256.hex()[:2]).glob(f"{sha256.hex()}.*"):
            if path.suffix != ASIDE:
                try:
                    data = path.read_bytes()
                except FileNotFoundError:
                    return None
                except OSError as err:
                    raise OtherImage(str(err)) from err
                if hashlib.sha256(data).digest() != sha256:
                    raise OtherImage(f"{path} is not the image that it is named after")
                return data, path.suffix
        return None

    def count_anew(self) -> None:
        """What the images take is counted when it is next asked."""
        with self._lock:
            self._counted_at = -math.inf

    def tidy(self, age_s: float = LEFT_OVER_S) -> int:
        """Put right what a killed process left: files set aside are put back or deleted, files without a row deleted.

        Files younger than `age_s` may be on their way into a record. Returns how many went. Raises Unavailable.
        """
        gone = 0
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            old = [path for path in folder.iterdir() if _OWN_NAME.fullmatch(path.name) and _age_s(path) >= age_s]
            with self.database.reading() as connection:
                known = self._known(connection, old)
            for path in old:
                whole = path.with_name(path.name.removesuffix(ASIDE))
                if whole.name in known and path.name.endswith(ASIDE) and not whole.exists():
                    path.replace(whole)
                elif path.name not in known and _age_s(path) >= age_s:
                    path.unlink(missing_ok=True)
                    gone += 1
        return gone

    def _known(self, connection: Connection, paths: Sequence[Path]) -> set[str]:
        digests = {bytes.fromhex(path.name[:64]) for path in paths if not path.name.startswith(".")}
        found = set()
        for some in _portions(sorted(digests), 500):
            own = images.c
            rows = connection.execute(
                select(own.sha256, own.suffix).where(own.store == self.name, own.sha256.in_(some))
            )
            found |= {row.sha256.hex() + row.suffix for row in rows}
        return found

    def _restore(self, image: StoredImage) -> None:
        """Write the image unless it is there."""
        path = self.path(image.sha256, image.suffix)
        if not path.exists():
            _write(image, path)

    def _make_room(self, size: int) -> None:
        """Remove the oldest images that may go until `size` more bytes fit. Raises NoRoom, Unavailable."""
        wanted = self._lacking(size)
        while wanted > 0:
            if not self._evict(max(wanted, self.max_bytes // 100)):  # not one for each that comes
                raise NoRoom(Phrase("images_full"))
            wanted = self._lacking(size)

    def _lacking(self, size: int) -> int:
        existing = self.folder if self.folder.exists() else self.folder.parent
        return max(self._usage() + size - self.max_bytes, self.min_free + size - shutil.disk_usage(existing).free)

    def _usage(self) -> int:
        """Bytes of all images of this folder, counted in the database now and then: others write there too."""
        with self._lock:
            if time.monotonic() - self._counted_at > USAGE_AGE_S:
                with self.database.reading() as connection:
                    query = select(func.coalesce(func.sum(images.c.size), 0)).where(images.c.store == self.name)
                    self._used = int(connection.execute(query).scalar_one())
                self._counted_at = time.monotonic()
            return self._used

    def _evict(self, wanted: int) -> int:
        """Remove the oldest images that are neither NG nor reviewed, `wanted` bytes of them; the bytes freed."""
        own = images.c
        oldest = select(images).where(own.store == self.name, own.protected.is_(False)).order_by(own.time_us)
        with self.database.reading() as connection:
            candidates = connection.execute(oldest.limit(_EVICTED_AT_ONCE)).all()
        chosen: list[Row[Any]] = []
        freed = 0
        for row in candidates:
            if freed < wanted:
                chosen.append(row)
                freed += row.size
        if chosen:
            self._told("images_removed", {"store": self.name, "sha256": [row.sha256.hex() for row in chosen]})
            with removing(self) as removal, self.database.writing() as connection:
                for row in sorted(chosen, key=lambda row: row.sha256):
                    removal.take(connection, row)
            logger.info("%d images were removed to make room for new ones", len(removal))
        return freed


def _write(image: StoredImage, path: Path) -> None:
    """Raises NoRoom."""
    try:
        write_atomic(path, lambda file: file.write(image.data))
    except StorageFailed as err:
        raise _no_room(err) from err


def _no_room(err: StorageFailed) -> NoRoom:
    return NoRoom(Phrase("images_disk_full" if isinstance(err, DiskFull) else "images_read_only"))


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _portions(items: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    return (items[at : at + size] for at in range(0, len(items), size))
