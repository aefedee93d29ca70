"""What the service produced, for a person to look at: DEBUG_DIR, bounded in number."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from backend.base.files import write_atomic, write_json


class DebugFolder:
    """Pairs of <utc>_<title>.png and .json; when there are more than `limit` the oldest go."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._lock = threading.Lock()

    def write(self, title: str, png: bytes, values: Mapping[str, Any]) -> None:
        """Keep one picture and its numbers. Raises DiskFull, ReadOnlyStore."""
        moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
        stem = f"{moment}_{re.sub(r'[^0-9A-Za-z.-]+', '_', title)[:120]}"
        with self._lock:
            write_json(self.folder / f"{stem}.json", dict(values))
            write_atomic(self.folder / f"{stem}.png", lambda file: file.write(png))
            for old in sorted(self.folder.glob("*.png"))[: -self.limit]:
                old.with_suffix(".json").unlink(missing_ok=True)
                old.unlink(missing_ok=True)
