"""Deleted models: MODELS_DIR/.trash/<utc>/<role>/<roi>, kept for a while."""

from __future__ import annotations

import logging
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

from backend.base.errors import MemoryNotFound
from backend.base.files import disk_errors
from backend.base.keys import ModelKey
from backend.storage import ModelStore

logger = logging.getLogger(__name__)

FOLDER = ".trash"
FILES = ("memory.npz", "calib.json", "manifest.json", "index.faiss", "reserve.npz")
_STAMP = "%Y%m%dT%H%M%S%fZ"


def move_to_trash(store: ModelStore, key: ModelKey) -> Path:
    """Move the files of `key` to the trash, memory.npz first: from then on the model is gone. Hold `writing(key)`.

    Returns:
        The folder in the trash; moving its files back brings the model back.

    Raises:
        MemoryNotFound: there is no such model.
        DiskFull, ReadOnlyStore.
    """
    folder = store.folder(key)
    if not any((folder / name).exists() for name in FILES[:2]):
        raise MemoryNotFound(key=key)
    bin_ = store.root / FOLDER / datetime.now(timezone.utc).strftime(_STAMP) / key.path
    with disk_errors(bin_):
        bin_.mkdir(parents=True)
        for name in FILES:
            if (folder / name).exists():
                (folder / name).replace(bin_ / name)
    return bin_


def empty_trash(store: ModelStore, days: float) -> int:
    """Remove what was deleted more than `days` ago; how many models went."""
    limit = datetime.now(timezone.utc) - timedelta(days=days)
    gone = 0
    for folder in (store.root / FOLDER).glob("*"):
        try:
            deleted = datetime.strptime(folder.name, _STAMP).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
        if deleted < limit:
            shutil.rmtree(folder, ignore_errors=True)
            gone += 1
    if gone:
        logger.info("emptied %d models deleted more than %g days ago from the trash", gone, days)
    return gone
