"""Files that are whole or absent: each is written beside its place, fsynced, and renamed over the former one."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import FileLock, Timeout

from backend.base.errors import (
    DamagedFile,
    DiskFull,
    FitInProgress,
    InspectionError,
    OutOfMemory,
    ReadOnlyStore,
    StorageFailed,
)
from backend.base.messages import Phrase

logger = logging.getLogger(__name__)
T = TypeVar("T")

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", -1)}
# What a file's own content brings about: an archive whose directory points nowhere, a folder in the file's place.
_OF_CONTENT = {None, errno.EINVAL, errno.EISDIR}
_OF_MACHINE = _FULL | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS, getattr(errno, "ESTALE", -1)}
_UNPACKED = 1000  # times its size that a file may hold once it is unpacked; more is a damaged header's claim

# Seconds between tries: Windows refuses to rename over a file, or to open it, while another process still holds it.
PAUSES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if os.name == "nt" else ()


def utc_now() -> str:
    """The time as 2026-01-31T12:00:00.123456Z."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file in one step. Raises DiskFull, ReadOnlyStore."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False).encode()
    write_atomic(path, lambda file: file.write(text))


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write beside `path`, fsync, rename over it, fsync the folder: a reader sees the old file or the whole new one.

    Raises:
        DiskFull, ReadOnlyStore: `path` is as it was.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            patiently(lambda: temporary.replace(path))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_folder(path: Path, files: Mapping[str, Path], documents: Mapping[str, dict[str, Any]]) -> None:
    """Make the folder `path` in one step: `files` as hard links where the disk has them, `documents` as JSON.

    Raises:
        DiskFull, ReadOnlyStore: there is no such folder.
    """
    with disk_errors(path):
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        temporary.mkdir(parents=True)
        try:
            for name, source in files.items():
                link_or_copy(source, temporary / name)
            for name, document in documents.items():
                write_json(temporary / name, document)
            _sync_folder(temporary)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Put `source` in the place of `target` in one step, with its time: as a hard link where the disk has them."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copy2(source, temporary)
            status = source.stat()
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        patiently(lambda: temporary.replace(target))
    finally:
        temporary.unlink(missing_ok=True)  # two links of one file are no rename
    _sync_folder(target.parent)


def require_room(folder: Path, free_mb: float, wanted: int = 0) -> None:
    """Make sure that the disk of `folder` (or of the nearest one that exists) keeps `free_mb` after `wanted` bytes.

    Raises:
        DiskFull: it would not.
    """
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < wanted + free_mb * 2**20:
        raise DiskFull(path=folder.name)


@contextmanager
def one_writer(folder: Path, key: object, *, timeout: float, left_overs: str, min_free_mb: float = 0) -> Iterator[None]:
    """Keep other threads and processes from writing in `folder`, which is made if it is not there.

    What a killed writer left is removed first.

    Args:
        key: whose folder it is, for the error's text.
        timeout: seconds to wait for another writer.
        left_overs: pattern of the files that a killed writer leaves.
        min_free_mb: space that the disk must have left.

    Raises:
        FitInProgress: another writer held it for `timeout` seconds.
        ReadOnlyStore, DiskFull: the folder cannot be made.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        require_room(folder, min_free_mb)
        lock = FileLock(folder / ".lock", thread_local=False)
        try:
            lock.acquire(timeout=timeout)
        except Timeout as err:
            raise FitInProgress(key=key, retry_after=5) from err
    try:
        for left_over in folder.glob(left_overs):
            left_over.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def patiently(action: Callable[[], T]) -> T:
    """What `action` returns; while Windows says that another process holds the file, it is tried again."""
    for pause in PAUSES:
        with suppress(PermissionError):
            return action()
        time.sleep(pause)
    return action()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as err:  # the rename is done and cannot be taken back
        logger.warning("%s is renamed, but may not survive a loss of power: %s", folder.name, err)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An OSError inside becomes what `storage_fault` makes of it."""
    try:
        yield
    except OSError as err:
        raise storage_fault(err, path.name) from err


def is_the_machines(err: BaseException) -> bool:
    """Whether an error speaks of the machine, wherever it comes up: no memory, no open files left, a broken disk."""
    return isinstance(err, MemoryError) or (isinstance(err, OSError) and err.errno in _OF_MACHINE)


def storage_fault(err: OSError, path: str) -> StorageFailed:
    """The error for a file that cannot be written: a full disk, one that is read-only, or what the system says."""
    if err.errno in _FULL:
        return DiskFull(path=path)
    if isinstance(err, PermissionError) or err.errno == errno.EROFS:
        return ReadOnlyStore(path=path)
    return StorageFailed(path=path, reason=_brief(err), retry_after=5)


def read_fault(err: Exception, file: Path, *, path: str, remedy: Phrase | str) -> InspectionError:
    """The error for a file that cannot be read: it is damaged, or the system does not hand it over.

    Too many open files, too little memory or a network drive that is gone say nothing of what the file holds.

    Args:
        path: what the error calls the file.
        remedy: the work, or the command, that makes a damaged file again.
    """
    if isinstance(err, OSError) and err.errno in _FULL:
        return DiskFull(path=path)
    if isinstance(err, OSError) and err.errno not in _OF_CONTENT:
        return StorageFailed(path=path, reason=_brief(err), retry_after=5)
    if isinstance(err, MemoryError) and not _claims_too_much(err, file):
        return OutOfMemory(retry_after=5)
    return DamagedFile(path=path, reason=_brief(err), remedy=remedy)


def _claims_too_much(err: MemoryError, file: Path) -> bool:
    """Whether NumPy was asked for an array that so small a file cannot hold."""
    shape, dtype = getattr(err, "shape", ()), getattr(err, "dtype", None)
    claimed = math.prod(shape) * dtype.itemsize if dtype else 0
    try:
        return claimed > _UNPACKED * file.stat().st_size
    except OSError:
        return False


def _brief(err: Exception) -> str:
    text = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
    return " ".join(text.split())[:160] or type(err).__name__
