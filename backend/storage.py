"""ModelStore: models/<role>/<roi>/ on disk. The rename of memory.npz is the commit; all else is derived from it.

memory.npz    emb float32 or float16 (N, D) unit rows, or codes uint8 (N, D) with low and step float32 (D,)
              token_h · token_w · src int32 (N,) · metadata (JSON text)
              and how some memories measure: whiten, foreground, cosine
reserve.npz   rows likewise · src int32 (R,) · beyond float64 () · generation: what the next growth may still take
index.faiss   FAISS index of the rows, followed by a trailer that names the generation
calib.json    the threshold and what it was made for
drift.npz     what the images of the fit look like, and the generation; written a moment after it
certificate.json  what was found of the model the last time it was certified
manifest.json the metadata again, for people
.version      of a deleted model, its last model_version: the next model of that name goes on from there

A deleted model stays for a while in .trash/<utc>/<role>/<roi>/, from where its files can be moved back.
"""

from __future__ import annotations

import json
import logging
import lzma
import os
import re
import shutil
import struct
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import reading_arrays
from backend.base.errors import (
    DamagedFile,
    InvalidId,
    MemoryNotFound,
    ReadOnlyReplica,
    RecipeInvalid,
    StorageFailed,
    VersionNotFound,
)
from backend.base.files import (
    disk_errors,
    link_or_copy,
    one_writer,
    patiently,
    read_fault,
    utc_now,
    write_atomic,
    write_folder,
    write_json,
)
from backend.base.keys import ModelKey, folder_of
from backend.base.messages import Phrase
from backend.calib import GoodScores
from backend.memory.compact import CompactRows, Rows, compacted, in_float32, rows_dtype
from backend.patchcore import Reserve, checked_extras

logger = logging.getLogger(__name__)

# Each number of a calibration lies above the first and is at most the second: only a percentile may not be 0.
_CALIBRATED = {
    "threshold": (-np.nextafter(0, 1), np.finfo(np.float64).max),
    "area_mm2_thr": (-np.nextafter(0, 1), np.finfo(np.float64).max),
    "score_percentile": (0.0, 100.0),
}
_TRAILER = b"BDI-GENERATION:"
_VERSION = ".version"
_VERSIONS = re.compile(r"(\d{4})\.(\d+)")
_TRASH = ".trash"
_TRASHED = "%Y%m%dT%H%M%S%fZ"
# A deletion moves them in this order: without memory.npz the model is gone.
_FILES = (
    "memory.npz",
    "calib.json",
    "certificate.json",
    "manifest.json",
    "index.faiss",
    "reserve.npz",
    "drift.npz",
    "versions",
)
_KEPT = ("memory.npz", "calib.json", "reserve.npz", "drift.npz")
_VERSION_NAME = re.compile(r"([0-9A-Za-z]{1,64})\.([1-9]\d{0,8})")
# What zipfile and NumPy raise on files that are cut off, corrupt or no npz at all.
_NPZ_ERRORS = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, MemoryError, OverflowError, SyntaxError,
    TypeError, AttributeError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


@dataclass(frozen=True)
class StoredMemory:
    """What memory.npz holds.

    Attributes:
        rows: (N, D) float32 unit rows, or CompactRows.
        grid: token rows and columns of the ROI.
        image_ids: (N,) int32, which of `images` a row came from; −1 where that is not known, or several share the row.
        metadata: a JSON object; files of the older layout say little in it.
        extras: what a memory stores beside its rows so as to measure the way it was fitted (see patchcore).
        reserve: what a growth may still take. It has a file of its own, which only a growth reads.
    """

    rows: Rows
    grid: tuple[int, int]
    image_ids: NDArray[np.int32]
    metadata: dict[str, Any]
    extras: dict[str, NDArray[Any]] = field(default_factory=dict)
    reserve: Reserve | None = None

    @property
    def emb(self) -> NDArray[np.float32]:
        """(N, D) float32: the rows, a copy of them where they are kept in fewer digits."""
        return in_float32(self.rows)

    @property
    def generation(self) -> str:
        """Identifier of this very memory; empty for the older layout."""
        return str(self.metadata.get("generation", ""))

    def number(self, name: str, default: float) -> float:
        """A number of the metadata; `default` where older files have none, or something else."""
        value = self.metadata.get(name)
        known = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
        return float(value) if known else default  # type: ignore[arg-type]

    @property
    def images(self) -> list[dict[str, str]]:
        """The images it was made from, each with its `name` and `sha256`; empty for the older layout."""
        return list(self.metadata.get("images", ()))

    @property
    def known_images(self) -> dict[str, int]:
        """SHA-256 of every image it was made from, with the number that its rows carry in `image_ids`."""
        numbers: dict[str, int] = {}
        for number, image in enumerate(self.images):
            numbers.setdefault(image["sha256"], number)
        return numbers

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the extractor that made it; None for the older layout."""
        value = self.metadata.get("fingerprint")
        return None if value is None else str(value)

    @property
    def jpeg_scaled(self) -> bool:
        """Whether JPEGs are decoded no larger than the extractor needs; those of earlier releases' memories are not."""
        return self.metadata.get("jpeg_scaled") is True

    @property
    def part_alone(self) -> bool:
        """Whether the extractor saw the part of each image alone, and so must in inspections."""
        return self.metadata.get("part_alone") is True


Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Change:
    """What is done to a model, by whom, and what they noted.

    `event`: `fit`, `grow`, `teach`, `calibrate`, `restore`, `rebuild` or `unpack`.
    """

    event: str = "fit"
    author: str = ""
    note: str = ""

    def said(self) -> dict[str, str]:
        """Author and note, as far as there are any."""
        return {name: value for name, value in (("author", self.author), ("note", self.note)) if value}


@dataclass(frozen=True)
class Version:
    """A state of a model that was replaced and kept.

    Attributes:
        name: `<generation>.<n>`.
        about: what version.json says: of the memory, its calibration, when it was replaced and by what.
    """

    name: str
    folder: Path
    about: dict[str, Any]

    @property
    def generation(self) -> str:
        """That of its memory."""
        return self.name.rpartition(".")[0]

    def calibration_text(self) -> str | None:
        """calib.json as it was, byte for byte; None without one."""
        return _text(self.folder / "calib.json")


class ModelStore:
    """The models folder.

    A writer locks its model's folder against other threads and processes, until it is done or dies. Readers never wait.
    """

    def __init__(
        self,
        root: Path,
        *,
        read_only: bool = False,
        min_free_mb: float = 0,
        versions: int = 0,
        versions_max_gb: float = 10,
    ) -> None:
        self.root = root
        self.read_only = read_only
        self.min_free_mb = min_free_mb
        self.n_versions = versions
        self.versions_max_gb = versions_max_gb

    def folder(self, key: ModelKey) -> Path:
        """models/<role>/<roi>, or models/recipes/<recipe>/<role>/<roi>."""
        return folder_of(self.root, key)

    def stamp(self, key: ModelKey, name: str = "memory.npz") -> Stamp | None:
        """What changes whenever the file does (inode, size, mtime), without reading it; None when it is absent."""
        try:
            status = (self.folder(key) / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    @contextmanager
    def writing(self, key: ModelKey, timeout: float = 600) -> Iterator[None]:
        """Hold the model for writing, against other threads and other processes.

        Raises:
            FitInProgress: another writer held it for `timeout` seconds.
            ReadOnlyStore, DiskFull: the folder cannot be made.
        """
        if self.read_only:
            raise ReadOnlyReplica()
        with one_writer(self.folder(key), key, timeout=timeout, left_overs=".*.tmp", min_free_mb=self.min_free_mb):
            self._finish_restore(key)
            yield

    def save_memory(
        self,
        key: ModelKey,
        memory: StoredMemory,
        index: bytes | None = None,
        change: Change | None = None,
        calibration: dict[str, Any] | None = None,
    ) -> StoredMemory:
        """Replace the memory in one step, then what is derived from it. The caller holds `writing(key)`.

        Its version is a new one, whatever became of the former memory: it may be damaged, or in the trash.

        `index`: what index.faiss is to hold. `change`: what replaces the former model, which is kept as a version.
        `calibration`: what calib.json is to hold from then on, for this memory; without one it stays as it is.

        Returns:
            The memory as it is stored: without its reserve, and with its generation, version and time in the metadata.

        Raises:
            DiskFull, ReadOnlyStore: nothing was changed.
        """
        change = change or Change()
        self._keep(key, change)
        stored, folder = self._as_new(key, memory, change), self.folder(key)
        if calibration is None:
            _write_memory(folder / "memory.npz", stored)
        else:
            own = {**calibration, "generation": stored.generation, "created_utc": utc_now()}
            self._arrive(key, stored, json.dumps(own, ensure_ascii=False, indent=2))
        # The memory is committed, so what fails from here on is no failure.
        try:
            self.write_derived(key, stored, index)
        except (StorageFailed, OSError) as err:
            logger.warning("index and manifest of %s could not be written, so the next load does it: %s", key, err)
        try:
            self._write_reserve(key, stored.generation, memory.reserve, stored.rows)
        except (StorageFailed, OSError) as err:
            logger.warning(
                "the reserve of %s could not be written, so the next growth chooses among new images alone: %s",
                key,
                err,
            )
        return stored

    def _as_new(self, key: ModelKey, memory: StoredMemory, change: Change) -> StoredMemory:
        """The memory as it is to be stored: a new generation and version of `key`, without its reserve."""
        return replace(
            memory,
            reserve=None,
            metadata={
                **{name: value for name, value in memory.metadata.items() if name not in {"author", "note"}},
                **change.said(),
                "model": str(key),
                "generation": uuid.uuid4().hex,
                "model_version": next_version(self._last_version(key)),
                "created_utc": utc_now(),
            },
        )

    def place(
        self,
        key: ModelKey,
        memory: StoredMemory,
        calibration: dict[str, Any] | None,
        certificate: dict[str, Any] | None,
        change: Change,
    ) -> StoredMemory:
        """Replace all of a model by one of another machine. The caller holds `writing(key)`.

        The rename of memory.npz brings the calibration with it, as in `restore`. Calibration and certificate hold for
        the memory if they held for it on the other machine, where its generation is another.

        Args:
            calibration: what calib.json is to hold; None: the model is not calibrated.
            certificate: what certificate.json is to hold; None: the model was not certified.

        Raises:
            DiskFull, ReadOnlyStore: the model is as it was.
        """
        self._keep(key, change)
        stored, folder = self._as_new(key, memory, change), self.folder(key)
        text = None
        if calibration is not None:
            text = json.dumps(_moved(calibration, memory, stored), ensure_ascii=False, indent=2)
        self._arrive(key, stored, text)
        # The model is in place, so what fails from here on is no failure.
        try:
            for name in ("reserve.npz", "drift.npz"):
                (folder / name).unlink(missing_ok=True)
            self._put_certificate(key, certificate, memory, stored)
            self.write_derived(key, stored, None)
        except (StorageFailed, OSError) as err:
            logger.warning("certificate, index or manifest of %s could not be written: %s", key, err)
        return stored

    def _put_certificate(
        self, key: ModelKey, certificate: dict[str, Any] | None, memory: StoredMemory, stored: StoredMemory
    ) -> None:
        if certificate is None:
            (self.folder(key) / "certificate.json").unlink(missing_ok=True)
            return
        about = certificate.get("model")
        moved = {"model": _moved(about, memory, stored)} if isinstance(about, dict) else {}
        self.save_certificate(key, {**certificate, **moved})

    def write_derived(self, key: ModelKey, stored: StoredMemory, index: bytes | None) -> None:
        """Write index.faiss and manifest.json of `stored`; without `index` an index of another generation goes."""
        if self.read_only:
            raise ReadOnlyReplica()
        folder = self.folder(key)
        if index is None:
            (folder / "index.faiss").unlink(missing_ok=True)
        else:
            trailer = _TRAILER + stored.generation.encode()
            write_atomic(folder / "index.faiss", lambda file: file.write(index + trailer))
        manifest = {
            **stored.metadata,
            "token_shape": list(stored.grid),
            "coreset_size": len(stored.rows),
            "dim": int(stored.rows.shape[1]),
        }
        write_json(folder / "manifest.json", manifest)

    def _write_reserve(self, key: ModelKey, generation: str, reserve: Reserve | None, like: Rows) -> None:
        path = self.folder(key) / "reserve.npz"
        if reserve is None or len(reserve.emb) == 0:
            path.unlink(missing_ok=True)
            return
        rows = compacted(reserve.emb, rows_dtype(like))
        arrays: dict[str, Any] = {**_written(rows), "src": reserve.image_ids, "beyond": np.float64(reserve.beyond)}
        write_atomic(path, lambda file: np.savez(file, generation=np.array(generation), **arrays))

    def derived_is_current(self, key: ModelKey, generation: str, *, indexed: bool = True) -> bool:
        """Whether manifest.json, and index.faiss if `indexed`, belong to `generation`; the older layout has neither."""
        if not generation:
            return True
        if self.manifest(key).get("generation") != generation:
            return False
        try:
            return not indexed or _trailer(self.folder(key) / "index.faiss") == generation
        except OSError:
            return False

    def manifest(self, key: ModelKey) -> dict[str, Any]:
        """manifest.json, a cheap look at the memory's metadata; empty when it cannot be read."""
        try:
            manifest = json.loads((self.folder(key) / "manifest.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def load_memory(self, key: ModelKey) -> StoredMemory:
        """Read memory.npz, of this layout or the older one (emb, token_h, token_w, metadata).

        Raises:
            MemoryNotFound: it was never fitted.
            DamagedFile: the file is cut off, is no npz, or its arrays do not fit each other.
            StorageFailed, OutOfMemory: it cannot be read for a reason that does not lie in it.
        """
        try:
            return self._read_memory(self.folder(key) / "memory.npz", remedy=Phrase("the_learning"))
        except (FileNotFoundError, NotADirectoryError) as err:
            raise MemoryNotFound(key=key) from err

    def metadata(self, key: ModelKey) -> dict[str, Any]:
        """The metadata of memory.npz, without its rows. Raises MemoryNotFound, DamagedFile, StorageFailed."""
        path = self.folder(key) / "memory.npz"
        try:
            with patiently(lambda: path.open("rb")) as file, reading_arrays(), np.load(file, allow_pickle=False) as npz:
                return _metadata(npz)
        except (FileNotFoundError, NotADirectoryError) as err:
            raise MemoryNotFound(key=key) from err
        except _NPZ_ERRORS as err:
            raise read_fault(err, path, path=self._relative(path), remedy=Phrase("the_learning")) from err

    def _read_memory(self, path: Path, *, remedy: Phrase) -> StoredMemory:
        """The memory in a file. Raises DamagedFile, StorageFailed, OutOfMemory, FileNotFoundError."""
        try:
            with patiently(lambda: path.open("rb")) as file, reading_arrays(), np.load(file, allow_pickle=False) as npz:
                arrays = {name: npz[name] for name in npz.files if name != "metadata"}
                metadata = _metadata(npz)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except _NPZ_ERRORS as err:
            raise read_fault(err, path, path=self._relative(path), remedy=remedy) from err
        try:
            return _stored_memory(arrays, metadata)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as err:
            raise DamagedFile(path=self._relative(path), reason=_brief(err), remedy=remedy) from err

    def load_reserve(self, key: ModelKey, stored: StoredMemory) -> Reserve | None:
        """What a growth of `stored` may still take; None without a file, or with one that is damaged or of another.

        The growth then chooses among its new images alone.

        Raises:
            StorageFailed, OutOfMemory: it cannot be read for a reason that does not lie in it.
        """
        path = self.folder(key) / "reserve.npz"
        try:
            with patiently(lambda: path.open("rb")) as file, reading_arrays(), np.load(file, allow_pickle=False) as npz:
                if not stored.generation or str(npz["generation"]) != stored.generation:
                    return None
                arrays = {name: npz[name] for name in npz.files}
                if "emb" in arrays and arrays["emb"].dtype not in {np.dtype(np.float32), np.dtype(np.float16)}:
                    raise ValueError(f"emb is {arrays['emb'].dtype}")
                emb = in_float32(_read(arrays))
                return _checked_reserve(Reserve(emb, npz["src"], float(npz["beyond"])), stored.rows.shape[1])
        except FileNotFoundError:
            return None
        except _NPZ_ERRORS as err:
            fault = read_fault(err, path, path=self._relative(path), remedy=Phrase("the_learning"))
            if not isinstance(fault, DamagedFile):
                raise fault from err
            logger.warning("%s cannot be used, so this growth chooses among new images alone: %s", path, err)
            return None

    def save_calibration(self, key: ModelKey, calibration: dict[str, Any], change: Change | None = None) -> None:
        """Replace calib.json in one step; the former one is kept as a version. The caller holds `writing(key)`.

        Raises:
            DiskFull, ReadOnlyStore.
        """
        self._keep(key, change or Change("calibrate"))
        write_json(self.folder(key) / "calib.json", {**calibration, "created_utc": utc_now()})

    def load_calibration(self, key: ModelKey) -> dict[str, Any] | None:
        """calib.json, its `good_scores` as GoodScores; None when the model was never calibrated.

        Raises:
            DamagedFile: it is no JSON object with a finite `threshold` ≥ 0, or its other numbers cannot be used.
        """
        path = self.folder(key) / "calib.json"
        try:
            text = self.calibration_text(key)
            return None if text is None else read_calibration(json.loads(text))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
            raise read_fault(err, path, path=self._relative(path), remedy=Phrase("the_calibration")) from err

    def calibration_stamp(self, key: ModelKey) -> tuple[Stamp | None, ...] | None:
        """What changes whenever the calibration that applies does; None when there is none."""
        restoring = self._restoring(key)
        if restoring is not None:
            stamps = self.stamp(key, "restoring.json"), self.stamp(key)
            return None if restoring["calibration"] is None else stamps
        own = self.stamp(key, "calib.json")
        return None if own is None else (own,)

    def versions(self, key: ModelKey) -> list[Version]:
        """What was kept of the model, the newest first."""
        found = []
        for path in (self.folder(key) / "versions").glob("*/version.json"):
            try:
                about = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                continue
            if _VERSION_NAME.fullmatch(path.parent.name) and isinstance(about, dict):
                found.append(Version(path.parent.name, path.parent, about))
        return sorted(found, key=lambda one: str(one.about.get("replaced_utc")), reverse=True)

    def version(self, key: ModelKey, name: str) -> Version:
        """The version of that name, or the last one of the memory that has it as its generation.

        Raises:
            VersionNotFound.
        """
        for one in self.versions(key):
            if name in {one.name, one.generation}:
                return one
        raise VersionNotFound(key=key, version=repr(name[:80]))

    def load_version(self, key: ModelKey, version: Version) -> tuple[StoredMemory, dict[str, Any] | None]:
        """The memory and the calibration of a version. Raises DamagedFile, VersionNotFound."""
        try:
            stored = self._read_memory(version.folder / "memory.npz", remedy=Phrase("the_learning"))
            text = version.calibration_text()
            return stored, None if text is None else read_calibration(json.loads(text))
        except (FileNotFoundError, NotADirectoryError) as err:  # dropped meanwhile
            raise VersionNotFound(key=key, version=version.name) from err
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
            where = self._relative(version.folder / "calib.json")
            raise DamagedFile(path=where, reason=_brief(err), remedy=Phrase("the_learning")) from err

    def is_current(self, key: ModelKey, version: Version) -> bool:
        """Whether the model is, file for file, what `version` was."""
        return self._same_memory(key, version) and self.calibration_text(key) == version.calibration_text()

    def restore(self, key: ModelKey, version: Version, change: Change) -> None:
        """Bring memory, calibration and reserve of `version` back, bit for bit. The caller holds `writing(key)`.

        Raises:
            DiskFull, ReadOnlyStore, VersionNotFound.
        """
        folder, text = self.folder(key), version.calibration_text()
        source = version.folder / "memory.npz"
        self._keep(key, change, spare=version)
        with disk_errors(folder):
            if self._same_memory(key, version):
                self._put_calibration(key, text)
                return
            try:
                self._swap(key, source, text)
            except FileNotFoundError as err:
                raise VersionNotFound(key=key, version=version.name) from err
            (folder / "index.faiss").unlink(missing_ok=True)
            for name in ("reserve.npz", "drift.npz"):
                if (version.folder / name).exists():
                    link_or_copy(version.folder / name, folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)

    def _arrive(self, key: ModelKey, stored: StoredMemory, calibration: str | None) -> None:
        """Write a memory and the text of its calibration, which take effect in one step."""
        folder = self.folder(key)
        arriving = folder / ".arriving.tmp"
        _write_memory(arriving, stored)
        with disk_errors(folder):
            self._swap(key, arriving, calibration)
        with suppress(OSError):  # the next writer removes it
            arriving.unlink(missing_ok=True)

    def _swap(self, key: ModelKey, source: Path, calibration: str | None) -> None:
        """Put the memory in `source` into its place, and the text of its calibration with it.

        restoring.json, written before, says which calibration belongs to that very file. Whoever dies on the way leaves
        the former model or the new one, each with its own.
        """
        folder, status = self.folder(key), source.stat()
        own = json.dumps({"memory": [status.st_size, status.st_mtime_ns], "calibration": calibration}).encode()
        write_atomic(folder / "restoring.json", lambda file: file.write(own))
        link_or_copy(source, folder / "memory.npz")
        self._finish_restore(key)

    def _finish_restore(self, key: ModelKey) -> None:
        """Put the calibration of a restored memory into its place, if somebody died before."""
        path = self.folder(key) / "restoring.json"
        restoring = self._restoring(key)
        if restoring is not None:
            self._put_calibration(key, restoring["calibration"])
        path.unlink(missing_ok=True)

    def _put_calibration(self, key: ModelKey, text: str | None) -> None:
        path = self.folder(key) / "calib.json"
        if text is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))

    def _restoring(self, key: ModelKey) -> dict[str, Any] | None:
        """What restoring.json says, if the memory that it is about is in its place."""
        path = self.folder(key) / "restoring.json"
        text = _text(path)
        stamp = self.stamp(key) if text is not None else None
        if text is None or stamp is None:
            return None
        try:
            found = json.loads(text)
            return found if found["memory"] == list(stamp[1:]) and "calibration" in found else None
        except (ValueError, KeyError, TypeError):
            return None

    def calibration_text(self, key: ModelKey) -> str | None:
        """The calibration that applies, as its file has it."""
        restoring = self._restoring(key)
        if restoring is not None:
            text: str | None = restoring["calibration"]
            return text
        return _text(self.folder(key) / "calib.json")

    def _same_memory(self, key: ModelKey, version: Version) -> bool:
        ours, theirs = self.stamp(key), version.folder / "memory.npz"
        try:
            status = theirs.stat()
        except FileNotFoundError:
            return False
        return ours is not None and ours[1:] == (status.st_size, status.st_mtime_ns)

    def _keep(self, key: ModelKey, change: Change, *, spare: Version | None = None) -> None:
        """Keep the model as it is now as a version, unless it is one already. The caller holds `writing(key)`.

        `spare`: the version that is about to be restored, which makes room for none.

        Raises:
            DiskFull, ReadOnlyStore.
        """
        folder = self.folder(key)
        if self.n_versions < 1 or not (folder / "memory.npz").exists():
            return
        try:
            about = {
                **self._about(key),
                "replaced_utc": utc_now(),
                "replaced_by": {"event": change.event, **change.said()},
            }
        except DamagedFile as err:
            logger.warning("a damaged memory is not kept as a version: %s", err)
            return
        kept = folder / "versions"
        for left_over in kept.glob(".*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        same = next((one for one in self.versions(key) if self.is_current(key, one)), None)
        if same is not None:
            write_json(same.folder / "version.json", about)
        else:
            generation = re.sub(r"[^0-9A-Za-z]", "", str(about.get("generation", "")))[:64] or "older"
            taken = [int(path.suffix[1:]) for path in kept.glob(f"{generation}.*") if path.suffix[1:].isdecimal()]
            files = {name: folder / name for name in _KEPT if (folder / name).exists()}
            write_folder(kept / f"{generation}.{max(taken, default=0) + 1}", files, {"version.json": about})
        self._drop_versions(key, spare)

    def _about(self, key: ModelKey) -> dict[str, Any]:
        """What the list of versions says of the model as it is now. Raises DamagedFile, MemoryNotFound."""
        known = self.metadata(key)
        shown = (
            "generation", "model_version", "created_utc", "n_images", "extractor", "fingerprint", "mm_per_px", "shape",
            "author", "note",
        )  # fmt: skip
        about = {name: known[name] for name in shown if name in known}
        text = self.calibration_text(key)
        try:
            calibration = read_calibration(json.loads(text)) if text else None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # it is damaged
            calibration = None
        if calibration is not None:
            said = ("threshold", "score_percentile", "created_utc", "author", "note")
            about["calibration"] = {name: calibration[name] for name in said if name in calibration}
        return about

    def about(self, key: ModelKey) -> dict[str, Any] | None:
        """What the list of versions says of the model as it is now; None when there is none. Raises DamagedFile."""
        try:
            return self._about(key)
        except MemoryNotFound:
            return None

    def _drop_versions(self, key: ModelKey, spare: Version | None) -> None:
        """Remove versions beyond their number, and the oldest of all models beyond their size, but not `spare`."""
        spared = None if spare is None else spare.folder
        own = [one for one in self.versions(key) if one.folder != spared and not self.is_current(key, one)]
        gone = {one.folder for one in own[self.n_versions :]}
        everyone = [(str(v.about.get("replaced_utc")), v) for k in self.keys() for v in self.versions(k)]
        left = [one for _, one in sorted(everyone, key=lambda pair: pair[0], reverse=True) if one.folder not in gone]
        seen, used = set[tuple[int, int]](), 0
        for one in left:
            for path in one.folder.glob("*"):
                status = path.stat()
                used += status.st_size * ((status.st_dev, status.st_ino) not in seen)
                seen.add((status.st_dev, status.st_ino))
            if used > self.versions_max_gb * 2**30 and one.folder != spared:
                gone.add(one.folder)
        for folder in gone:
            logger.info("the version %s is dropped (MODEL_VERSIONS, VERSIONS_MAX_GB)", self._relative(folder))
            doomed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
            try:
                folder.rename(doomed)
            except OSError:  # another process drops it too
                continue
            shutil.rmtree(doomed, ignore_errors=True)

    def save_certificate(self, key: ModelKey, certificate: dict[str, Any]) -> None:
        """Replace certificate.json in one step. Raises DiskFull, ReadOnlyStore."""
        write_json(self.folder(key) / "certificate.json", certificate)

    def load_certificate(self, key: ModelKey) -> dict[str, Any] | None:
        """certificate.json, or None when the model was never certified.

        Raises:
            DamagedFile: it is no JSON object.
        """
        path = self.folder(key) / "certificate.json"
        try:
            found = json.loads(patiently(lambda: path.read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as err:
            raise read_fault(err, path, path=self._relative(path), remedy=Phrase("the_certificate")) from err
        if not isinstance(found, dict):
            raise DamagedFile(
                path=self._relative(path), reason="it is no JSON object", remedy=Phrase("the_certificate")
            )
        return found

    def keys(self) -> list[ModelKey]:
        """Every (role, roi, recipe) that has a memory."""
        found = []
        for path in sorted(self.root.glob("*/*/memory.npz")) + sorted(self.root.glob("recipes/*/*/*/memory.npz")):
            parts = path.parent.relative_to(self.root).parts
            recipe = parts[1] if len(parts) == 4 else None
            try:
                found.append(ModelKey.of(parts[-2], parts[-1], recipe))
            except (InvalidId, RecipeInvalid):
                continue
        return found

    def move_to_trash(self, key: ModelKey) -> Path:
        """Move the files of `key` to the trash, memory.npz first: from then on the model is gone. Hold `writing(key)`.

        Returns:
            The folder in the trash; moving its files back brings the model back.

        Raises:
            MemoryNotFound: there is neither a memory nor a calibration.
            DiskFull, ReadOnlyStore.
        """
        folder = self.folder(key)
        if not any((folder / name).exists() for name in ("memory.npz", "calib.json")):
            raise MemoryNotFound(key=key)
        trash = self.root / _TRASH / datetime.now(timezone.utc).strftime(_TRASHED) / key.path
        version = self._last_version(key).encode()
        write_atomic(folder / _VERSION, lambda file: file.write(version))
        with disk_errors(trash):
            trash.mkdir(parents=True)
            for name in _FILES:
                if (folder / name).exists():
                    (folder / name).replace(trash / name)
        return trash

    def empty_trash(self, days: float) -> int:
        """Remove what was deleted more than `days` ago, unless the store is read-only; how many models went."""
        limit = datetime.now(timezone.utc) - timedelta(days=days)
        gone = 0
        for folder in () if self.read_only else (self.root / _TRASH).glob("*"):
            try:
                deleted = datetime.strptime(folder.name, _TRASHED).replace(tzinfo=timezone.utc)
            except ValueError:
                continue
            if deleted < limit:
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
        if gone:
            logger.info("emptied %d models deleted more than %g days ago from the trash", gone, days)
        return gone

    def _last_version(self, key: ModelKey) -> str:
        """The highest version that memory, manifest, versions and what a deletion left say; empty where none does."""
        said: list[object] = [self.manifest(key).get("model_version")]
        said += [one.about.get("model_version") for one in self.versions(key)]
        with suppress(MemoryNotFound, DamagedFile):
            said.append(self.load_memory(key).metadata.get("model_version"))
        with suppress(FileNotFoundError, UnicodeDecodeError):
            said.append((self.folder(key) / _VERSION).read_text("ascii"))
        known = [str(version) for version in said if _VERSIONS.fullmatch(str(version))]
        return max(known, key=_by_number, default="")

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root.parent).as_posix()


def _trailer(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 128))
        return file.read().rpartition(_TRAILER)[2].decode("ascii", "replace")


def _metadata(npz: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    if "metadata" not in npz:
        return {}
    try:
        text = npz["metadata"]
    except ValueError as err:
        if "allow_pickle" in str(err):  # a dict that an older file holds as a pickle, which is never opened
            return {}
        raise
    metadata = json.loads(text.tobytes().rstrip(b"\0") if text.dtype.kind in "Sui" else str(text))
    if not isinstance(metadata, dict):
        raise ValueError("metadata is no JSON object")
    return metadata


def _stored_memory(arrays: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> StoredMemory:
    rows = _read(arrays)
    grid = int(arrays["token_h"].item()), int(arrays["token_w"].item())
    if min(grid) < 1:
        raise ValueError(f"token grid {grid}")
    image_ids = arrays.get("src", np.full(len(rows), -1))
    if image_ids.shape != (len(rows),) or image_ids.dtype.kind not in "iu":
        raise ValueError(f"src is {image_ids.dtype} {image_ids.shape} for {len(rows)} rows")
    return StoredMemory(rows, grid, image_ids.astype(np.int32), metadata, checked_extras(arrays, rows.shape[1]))


def _written(rows: Rows) -> dict[str, NDArray[Any]]:
    """The arrays that a file holds for `rows`. In 8 bits there is no `emb`, which a reader would take for the rows."""
    if not isinstance(rows, CompactRows):
        return {"emb": rows}
    if rows.low is None or rows.step is None:
        return {"emb": rows.codes}
    return {"codes": rows.codes, "low": rows.low, "step": rows.step}


def _write_memory(path: Path, stored: StoredMemory) -> None:
    """Write memory.npz. Raises DiskFull, ReadOnlyStore."""
    arrays: dict[str, Any] = {
        **_written(stored.rows),
        "token_h": np.int64(stored.grid[0]),
        "token_w": np.int64(stored.grid[1]),
        "src": stored.image_ids,
        "metadata": np.array(json.dumps(stored.metadata, ensure_ascii=False)),
        **stored.extras,
    }
    write_atomic(path, lambda file: np.savez(file, **arrays))


def memory_arrays(stored: StoredMemory) -> dict[str, NDArray[Any]]:
    """The arrays that `read_memory` reads, beside the grid."""
    return {**_written(stored.rows), "src": stored.image_ids, **stored.extras}


def _read(arrays: Mapping[str, NDArray[Any]]) -> Rows:
    """The rows that a file's arrays hold. Raises KeyError, ValueError."""
    if "codes" in arrays:
        return CompactRows(arrays["codes"], arrays["low"], arrays["step"])
    emb = arrays["emb"]
    if emb.dtype.kind not in "fiu":
        raise ValueError(f"emb is {emb.dtype}, which are no numbers")
    if emb.dtype == np.float16:
        return CompactRows(emb)
    emb = np.ascontiguousarray(emb, dtype=np.float32)
    if emb.ndim != 2 or 0 in emb.shape or not np.isfinite(emb).all():
        raise ValueError(f"emb has shape {emb.shape} or values that are not finite")
    return emb


def read_memory(arrays: dict[str, Any], metadata: Any) -> StoredMemory:
    """The memory in arrays that came from elsewhere: those of `memory_arrays`, `token_h` and `token_w`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: they do not fit each other.
    """
    if not isinstance(metadata, dict):
        raise ValueError("metadata is no JSON object")
    numbers = {name: np.asarray(value) for name, value in arrays.items()}
    memory = _stored_memory(numbers, metadata)
    if not all(type(image[name]) is str for image in memory.images for name in ("name", "sha256")):
        raise ValueError("images have names and digests that are no texts")
    if not all(type(metadata.get(name, "")) is str for name in ("fingerprint", "generation", "model_version")):
        raise ValueError("metadata hold what is no text")
    if not memory.number("mm_per_px", 1.0) > 0 or not memory.number("n_embeddings", 0.0) >= 0:
        raise ValueError("metadata hold numbers that cannot be meant")
    return memory


def _moved(about: dict[str, Any], memory: StoredMemory, stored: StoredMemory) -> dict[str, Any]:
    """What was said of `memory`, of `stored`; what was said of another memory stays as it is."""
    return {**about, "generation": stored.generation} if about.get("generation") == memory.generation else about


def _checked_reserve(reserve: Reserve, dim: int) -> Reserve:
    emb, image_ids = reserve.emb, reserve.image_ids
    if (
        emb.dtype != np.float32
        or image_ids.dtype != np.int32
        or image_ids.ndim != 1
        or emb.shape != (len(image_ids), dim)
    ):
        found = f"emb is {emb.dtype} {emb.shape} and src {image_ids.dtype} {image_ids.shape}"
        raise ValueError(f"{found} for rows of {dim} numbers")
    if not (np.isfinite(emb).all() and np.isfinite(reserve.beyond)):
        raise ValueError("emb or beyond holds values that are not finite")
    return reserve


def read_calibration(given: Any) -> dict[str, Any]:
    """What a calib.json holds, its `good_scores` as GoodScores.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: it cannot be used.
    """
    if not isinstance(given, dict) or given.get("threshold") is None:
        raise ValueError("it has no threshold")
    for name, (over, most) in _CALIBRATED.items():
        value = given.get(name)
        if value is not None and not over < float(value) <= most:
            raise ValueError(f"{name} is {str(value)[:40]}")
    known = {name: value for name, value in given.items() if value is not None or name not in _CALIBRATED}
    return known | ({"good_scores": GoodScores.read(known["good_scores"])} if "good_scores" in known else {})


def next_version(former: object) -> str:
    """`<year>.<n>`: one more than the former version of this year, else <year>.1.

    When the clock says an earlier year than the former version, that year's numbers go on.
    """
    year = datetime.now(timezone.utc).year
    match = _VERSIONS.fullmatch(str(former or ""))
    if match and int(match[1]) >= year:
        return f"{match[1]}.{int(match[2]) + 1}"
    return f"{year}.1"


def _by_number(version: str) -> tuple[int, int]:
    year, _, number = version.partition(".")
    return int(year), int(number)


def _text(path: Path) -> str | None:
    """What a text file holds; None when it is not there."""
    try:
        return patiently(path.read_bytes).decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _brief(err: Exception) -> str:
    return " ".join(str(err).split())[:160] or type(err).__name__
