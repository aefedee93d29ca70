"""Artefacts of the ResNet18 web API: memory_bank_core.npz and config.json in one folder.

memory_bank_core.npz   memory_bank float32 (N, 384) unit rows · src int32 (N,), the image that each row came from ·
                       metadata (JSON text)
config.json            threshold and embedding_version, which are read, and the rest of the metadata for people

A bank that another program made may hold its rows under any name. It has no metadata: what is known of it is what
config.json says.
"""

from __future__ import annotations

import json
import uuid
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import reading_arrays
from backend.base.errors import BankNotFound
from backend.base.files import read_fault, utc_now, write_atomic, write_json
from backend.base.messages import Notice
from backend.patchcore import PatchCoreMemory, l2_normalize

BANK = "memory_bank_core.npz"
CONFIG = "config.json"
DEFAULT_THRESHOLD = 0.35
REMEDY = "python -m backend bank"
_OWN_ARRAYS = {"metadata", "src"}
_KNOWN_NAMES = ("memory_bank", "memory_bank_core", "bank", "core", "memory", "embeddings", "emb", "features")
_UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError)

Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class Bank:
    """A memory bank ready to be searched, and its metadata (`about`)."""

    memory: PatchCoreMemory
    about: dict[str, Any]
    notices: tuple[Notice, ...] = field(default=())


class BankStore:
    """The artefacts folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The bank's file."""
        return self.folder / BANK

    def stamp(self) -> Stamp:
        """Identity, size and time of both files: it differs as soon as one of them was replaced."""
        return tuple(_stamp(self.folder / name) for name in (BANK, CONFIG))

    def exists(self) -> bool:
        """Whether there is a bank."""
        return self.path.is_file()

    def config(self) -> dict[str, Any]:
        """config.json, or an empty object when there is none.

        Raises:
            DamagedFile: it is no JSON object, or its threshold is no finite number.
        """
        try:
            given = json.loads((self.folder / CONFIG).read_text("utf-8-sig"))
            if not isinstance(given, dict) or not np.isfinite(float(given.get("threshold", 0))):
                raise ValueError("it is no JSON object with a finite threshold")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, TypeError) as err:
            raise read_fault(err, self.folder / CONFIG, path=CONFIG, remedy=REMEDY) from err
        return given

    def load(self) -> Bank:
        """The bank with its metadata. Its rows are normalised once more: another program may not have done so.

        Raises:
            BankNotFound, DamagedFile.
        """
        try:
            with self.path.open("rb") as file, reading_arrays(), np.load(file, allow_pickle=False) as npz:
                arrays = {name: npz[name] for name in npz.files}
            rows = _rows(arrays)
            own = json.loads(str(arrays["metadata"])) if "metadata" in arrays else {}
            src = arrays["src"].astype(np.int32) if "src" in arrays and own else None
            memory = PatchCoreMemory(l2_normalize(rows), image_ids=src)
        except (FileNotFoundError, NotADirectoryError) as err:
            raise BankNotFound(path=str(self.path)) from err
        except _UNREADABLE as err:
            raise read_fault(err, self.path, path=BANK, remedy=REMEDY) from err
        about, notices = _agreed(own, self.config())
        return Bank(memory, about, notices)

    def save(self, memory: PatchCoreMemory, about: dict[str, Any]) -> Bank:
        """Write both files, the bank first: it carries its own threshold, so that it can be used before config.json is.

        Raises:
            DiskFull, ReadOnlyStore.
        """
        about = {**about, "generation": uuid.uuid4().hex, "created_utc": utc_now()}
        src = memory.image_ids if memory.image_ids is not None else np.full(len(memory), -1, np.int32)
        arrays: dict[str, Any] = {
            "memory_bank": memory.emb,
            "src": src,
            "metadata": np.array(json.dumps(about, ensure_ascii=False)),
        }
        write_atomic(self.path, lambda file: np.savez(file, **arrays))
        write_json(self.folder / CONFIG, about)
        return Bank(memory, about)


def _rows(arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    named = [arrays[name] for name in _KNOWN_NAMES if name in arrays]
    rest = [array for name, array in arrays.items() if name not in _OWN_ARRAYS]
    found = next((a for a in (*named, *rest) if a.ndim == 2 and a.dtype.kind == "f" and 0 not in a.shape), None)
    if found is None:
        raise ValueError("it holds no table of vectors")
    rows = np.ascontiguousarray(found, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("its vectors hold values that are not finite")
    return rows


def _agreed(own: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """The metadata in force: the bank's own, with the threshold of config.json, which a person may have edited.

    A config.json of another generation is not that bank's; its threshold is left aside, and a notice says so.
    """
    if not own:
        return config, ()
    if config.get("generation") not in {None, own.get("generation")}:
        return own, (Notice("bank_threshold_of_former"),)
    return {**config, **own, **{k: config[k] for k in ("threshold",) if k in config}}, ()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
