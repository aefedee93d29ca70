"""SampleStore: datasets/<role>/<roi>/<ok|ng>/ on disk, the layout that the station exports.

SAMPLE_<utc>_<n>.png|jpg|bmp|tif|webp   the bytes as they were sent; its rename is the commit
SAMPLE_<utc>_<n>.json                   what is known of it, written before the image

Beside `ok` and `ng`, `taken_back` holds what teaching stored as OK for a memory that was replaced by an earlier one.
"""

from __future__ import annotations

import hashlib
import math
import mimetypes
import os
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from glob import escape
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

from backend.base.errors import (
    DatasetNotFound,
    DatasetsFull,
    InvalidFilename,
    InvalidId,
    InvalidLabel,
    RecipeInvalid,
    SampleNotFound,
)
from backend.base.files import disk_errors, one_writer, read_fault, require_room, utc_now, write_atomic, write_json
from backend.base.images import ENDINGS, image_header, is_image_name
from backend.base.keys import ModelKey, folder_of
from backend.base.messages import Phrase
from backend.service.sidecars import meta_path, read_meta
from backend.storage import Stamp

LABELS = ("ok", "ng")
TAKEN_BACK = "taken_back"
TAUGHT = "teach"
"""The source of what teaching stores."""
WRITERS = 4
USAGE_AGE_S = 30.0
LOCK_WAIT_S = 120.0
_FORBIDDEN = set('/\\:*?"<>|')


def check_label(value: str) -> str:
    """`ok` or `ng`, in any case. Raises InvalidLabel."""
    label = value.strip().lower()
    if label not in LABELS:
        raise InvalidLabel(value=repr(value[:40]))
    return label


def check_filename(value: str) -> str:
    """`value`, if it can be the name of a sample's image and nothing else. Raises InvalidFilename."""
    unfit = any(c in _FORBIDDEN or not c.isprintable() for c in value) or value.startswith(".")
    if unfit or len(value.encode("utf-8", "replace")) > 255 or Path(value).suffix.lower() not in ENDINGS:
        raise InvalidFilename(value=repr(value[:80]))
    return value


@dataclass(frozen=True)
class Draft:
    """An image to be stored, and what is known of it.

    `read` gives the bytes and may be called more than once. `meta` is kept as it came, except for the fields that the
    store knows itself.
    """

    name: str
    read: Callable[[], bytes]
    source: str
    mm_per_px: float | None = None
    shape: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """One image after `SampleStore.add`: the name it is stored under, and whether it is `new` or was there already."""

    name: str
    sha256: str
    new: bool


@dataclass(frozen=True)
class _Measured:
    draft: Draft
    suffix: str
    width: int
    height: int
    sha256: str
    size: int

    @classmethod
    def of(cls, draft: Draft) -> _Measured:
        data = draft.read()
        suffix, width, height = image_header(data, name=draft.name)
        return cls(draft, suffix, width, height, hashlib.sha256(data).hexdigest(), len(data))

    def document(self, key: ModelKey, label: str) -> dict[str, Any]:
        draft = self.draft
        own = {
            "role_id": key.role_id,
            "roi_id": key.roi_id,
            "recipe_id": key.recipe_id,
            "label": label,
            "mm_per_px": draft.mm_per_px,
            "shape": draft.shape,
            "timestamp_utc": utc_now(),
            "source": draft.source,
            "original_name": draft.name,
            "sha256": self.sha256,
            "bytes": self.size,
            "width": self.width,
            "height": self.height,
        }
        return {**draft.meta, **{name: value for name, value in own.items() if value is not None}}


class SampleStore:
    """The datasets folder. Writers of one (role, roi) exclude each other across processes; readers never wait.

    Every image in a folder `ok` or `ng` is a sample, whoever put it there; a .json of the same stem is its metadata.
    """

    def __init__(self, root: Path, *, max_gb: float, min_free_mb: float = 0) -> None:
        self.root = root
        self.max_gb = max_gb
        self.min_free_mb = min_free_mb
        self._lock = threading.Lock()
        self._digests: dict[Path, tuple[Stamp, str]] = {}
        self._usage = (0, -math.inf)

    def folder(self, key: ModelKey, label: str = "") -> Path:
        """datasets/<role>/<roi>[/<label>], or the same under datasets/recipes/<recipe>."""
        return folder_of(self.root, key) / label

    def names(self, key: ModelKey, label: str) -> list[str]:
        """Names of the stored images, sorted."""
        try:
            with os.scandir(self.folder(key, label)) as entries:
                return sorted(e.name for e in entries if is_image_name(e.name) and e.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def has_meta(self, key: ModelKey, label: str, name: str) -> bool:
        """Whether there is a .json beside the image."""
        return meta_path(self.folder(key, label) / name) is not None

    def path(self, key: ModelKey, label: str, name: str) -> Path:
        """Where the image lies. Raises InvalidFilename, SampleNotFound."""
        folder = self.folder(key, label)
        path = folder / check_filename(name)
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise SampleNotFound(key=key, label=label, name=name)
        return path

    def read(self, key: ModelKey, label: str, name: str) -> bytes:
        """The image's bytes as they were sent. Raises InvalidFilename, SampleNotFound."""
        try:
            return self.path(key, label, name).read_bytes()
        except FileNotFoundError as err:
            raise SampleNotFound(key=key, label=label, name=name) from err

    def meta(self, key: ModelKey, label: str, name: str) -> dict[str, Any]:
        """What is known of a sample; empty without a .json. Raises SampleNotFound, DamagedFile."""
        path = meta_path(self.path(key, label, name))
        if path is None:
            return {}
        try:
            meta = read_meta(path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as err:
            where = path.relative_to(self.root.parent).as_posix()
            raise read_fault(err, path, path=where, remedy=Phrase("the_upload")) from err
        return meta

    def digests(self, key: ModelKey, label: str) -> dict[str, str]:
        """SHA-256 of every stored image, by name."""
        return {name: self._digest(self.folder(key, label) / name) for name in self.names(key, label)}

    def add(self, key: ModelKey, label: str, drafts: Sequence[Draft]) -> list[Kept]:
        """Store images, all of them or none. One that is stored under `label` already is not stored again.

        Raises:
            DatasetsFull, DiskFull, ReadOnlyStore, FitInProgress, UndecodableImage: nothing was stored.
        """
        with ThreadPoolExecutor(WRITERS) as pool:
            measured = list(pool.map(_Measured.of, drafts))
            with self._writing(key):
                known = {sha: name for name, sha in self.digests(key, label).items()}
                fresh = {m.sha256: m for m in measured if m.sha256 not in known}
                self._check_room(sum(m.size for m in fresh.values()))
                folder = self.folder(key, label)
                names = _free_names(folder, list(fresh.values()))
                files = [(folder / name, m, m.document(key, label)) for name, m in names.items()]
                writes = [pool.submit(self._write, *file) for file in files]
                try:
                    for write in writes:
                        write.result()
                except BaseException:
                    for write in writes:
                        write.cancel()
                    wait(writes)  # one still under way would bring back what is removed here
                    for path, _, _ in files:
                        _remove(path)
                    raise
        stored = known | {m.sha256: name for name, m in names.items()}
        first = {m.sha256: i for i, m in reversed(list(enumerate(measured)))}
        return [
            Kept(stored[m.sha256], m.sha256, m.sha256 in fresh and first[m.sha256] == i) for i, m in enumerate(measured)
        ]

    def move(self, key: ModelKey, name: str, label: str, to: str) -> str:
        """Put a sample under another label; the name that it has there. The same image may be there already.

        The image's rename is what moves it: until then it is under `label`, from then on under `to`.

        Raises:
            InvalidFilename, SampleNotFound, DamagedFile, FitInProgress, DiskFull, ReadOnlyStore: nothing was moved.
        """
        with self._writing(key):
            path, meta = self.path(key, label, name), self.meta(key, label, name)
            digest = self._digest(path)
            there = next((other for other, known in self.digests(key, to).items() if known == digest), None)
            if there is None:
                there = _free_name(self.folder(key, to), name)
                target = self.folder(key, to) / there
                write_json(target.with_suffix(".json"), {**meta, "label": to, "relabelled_utc": utc_now()})
                try:
                    with disk_errors(target):
                        path.replace(target)
                except BaseException:
                    target.with_suffix(".json").unlink(missing_ok=True)
                    raise
            _remove(path)
        return there

    def take_back(self, key: ModelKey, learnt: Collection[str]) -> list[str]:
        """Take what teaching stored as OK out of the samples, and bring back what had been taken out of them.

        Args:
            learnt: SHA-256 of the images that the memory in use was made from. What is among them is a sample again.

        Returns:
            The names of the samples that were taken out.

        Raises:
            DamagedFile, FitInProgress, DiskFull, ReadOnlyStore, SampleNotFound.
        """
        for name, digest in self.digests(key, TAKEN_BACK).items():
            if digest in learnt:
                self.move(key, name, TAKEN_BACK, "ok")
        return [self.move(key, name, "ok", TAKEN_BACK) for name in self.taught_beyond(key, learnt)]

    def taught_beyond(self, key: ModelKey, learnt: Collection[str]) -> list[str]:
        """The names of what teaching stored as OK and is not among `learnt`, by SHA-256. Raises DamagedFile."""
        unknown = [name for name, digest in self.digests(key, "ok").items() if digest not in learnt]
        return [name for name in unknown if self.meta(key, "ok", name).get("source") == TAUGHT]

    def delete(self, key: ModelKey, label: str, name: str) -> None:
        """Remove one sample. Raises InvalidFilename, SampleNotFound."""
        self.path(key, label, name)
        with self._writing(key):
            _remove(self.path(key, label, name))
        self._usage = (0, -math.inf)

    def clear(self, key: ModelKey, labels: Sequence[str] = LABELS) -> int:
        """Remove all samples of `labels`; how many there were. Raises DatasetNotFound when there is no such dataset."""
        if not any(self.folder(key, label).is_dir() for label in LABELS):
            raise DatasetNotFound(key=key)
        cleared = 0
        with self._writing(key):
            for label in labels:
                for name in self.names(key, label):
                    _remove(self.folder(key, label) / name)
                    cleared += 1
                for left_over in self.folder(key, label).glob("*.json"):
                    left_over.unlink(missing_ok=True)
            if set(labels) == {*LABELS}:
                shutil.rmtree(self.folder(key, TAKEN_BACK), ignore_errors=True)
        self._usage = (0, -math.inf)
        return cleared

    def all_keys(self) -> list[ModelKey]:
        """Every (role, roi, recipe) that has a folder of OK or NG samples, or a history."""
        found: dict[ModelKey, None] = {}
        for pattern in ("*/*/*", "recipes/*/*/*/*"):
            for path in sorted(self.root.glob(pattern)):
                parts = path.parent.relative_to(self.root).parts
                if path.name not in {*LABELS, "history.jsonl"} or (len(parts) == 2 and parts[0] == "recipes"):
                    continue
                try:
                    found[ModelKey.of(parts[-2], parts[-1], parts[1] if len(parts) == 4 else None)] = None
                except (InvalidId, RecipeInvalid):
                    continue
        return list(found)

    def used_bytes(self) -> int:
        """Bytes of all files in the datasets folder, counted every USAGE_AGE_S seconds; this process's own at once."""
        used, when = self._usage
        if monotonic() - when > USAGE_AGE_S:
            used = sum(_size(Path(folder) / name) for folder, _, names in os.walk(self.root) for name in names)
            self._usage = (used, monotonic())
        return used

    def _check_room(self, wanted: int) -> None:
        if wanted:
            require_room(self.root, self.min_free_mb, wanted)
        used, gb = self.used_bytes(), 2**30
        if wanted and used + wanted > self.max_gb * gb:
            raise DatasetsFull(used=used / gb, limit=self.max_gb, wanted=wanted / gb)
        self._usage = (used + wanted, self._usage[1])

    def _write(self, path: Path, measured: _Measured, document: dict[str, Any]) -> None:
        write_json(path.with_suffix(".json"), document)
        write_atomic(path, lambda file: file.write(measured.draft.read()))

    def _digest(self, path: Path) -> str:
        try:
            status = path.stat()
            stamp = status.st_ino, status.st_size, status.st_mtime_ns
            known = self._digests.get(path)
            if known is None or known[0] != stamp:
                known = (stamp, _recorded_digest(path, status.st_size) or _hash(path))
                with self._lock:
                    self._digests[path] = known
            return known[1]
        except FileNotFoundError:
            return ""

    def _writing(self, key: ModelKey) -> AbstractContextManager[None]:
        return one_writer(self.folder(key), key, timeout=LOCK_WAIT_S, left_overs="*/.*.tmp")


def media_type(name: str) -> str:
    """The media type of an image, by its name."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _recorded_digest(image: Path, size: int) -> str | None:
    """The digest that our own metadata holds, unless the image was changed since."""
    try:
        meta = read_meta(image.with_suffix(".json"))
        return str(meta["sha256"]) if meta["bytes"] == size else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _size(path: Path) -> int:
    """Bytes of a file; 0 when it went away in the meantime."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _free_names(folder: Path, measured: Sequence[_Measured]) -> dict[str, _Measured]:
    """SAMPLE_<utc>_<n> for each, none of them taken."""
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
    taken = {path.stem for path in folder.glob(f"SAMPLE_{moment}_*")}
    start = 1 + len(taken)
    return {f"SAMPLE_{moment}_{start + i:04d}{m.suffix}": m for i, m in enumerate(measured)}


def _free_name(folder: Path, name: str) -> str:
    """`name`, or with a number before its ending where an image or its metadata has that name."""
    stem, suffix = Path(name).stem, Path(name).suffix
    numbered = (name if n == 0 else f"{stem}_{n}{suffix}" for n in count())
    return next(free for free in numbered if not {*folder.glob(f"{escape(Path(free).stem)}.*")})


def _remove(image: Path) -> None:
    """Remove an image, which takes the sample away, then its metadata."""
    metas = (image.with_suffix(".json"), image.with_name(f"{image.name}.json"))
    image.unlink(missing_ok=True)
    for meta in metas:
        meta.unlink(missing_ok=True)
