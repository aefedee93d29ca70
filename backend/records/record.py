"""What is kept of one verdict, as plain data, and the identifier under which it is found again."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import InspectionNotFound

Decision = Literal["ok", "ng"]
Verdict = Literal["good", "bad", "unclear"]
VERDICTS: tuple[Verdict, ...] = ("good", "bad", "unclear")

SEQUENCE_BITS = 40
_SEQUENCES = 1 << SEQUENCE_BITS
_PUBLIC_ID = re.compile(r"([0-9a-f]{8})-([1-9][0-9]{0,12})")


def now_us() -> int:
    """The time in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True, kw_only=True)
class Record:
    """One verdict, with what is needed to explain and to repeat it.

    Attributes:
        source: what asked for it: `infer`, `infer_dataset`, `cli` or `predict`.
        score, threshold: distances, as /infer answers them; the threshold is None without a calibration.
        p_value: how likely a good part scores at least as high, as /infer answers it, in (0, 1].
        image_sha256: (32,) bytes of the file as it was sent; `image_size` in bytes, `height` and `width` in pixels.
        generation, fingerprint, model_version: of the memory and of the extractor.
        scoring, calibration: how the heatmap became a score, and where the threshold came from.
        shape: the part inside the ROI, in the image's pixels.
        regions: `bbox` [x, y, w, h], `area_px`, `area_mm2` and `contour` of each, in the image's pixels.
        warnings: `code` and `values` of each.
        token_map: (h, w) distances on the token grid, kept as float16.
        key_id: which API key asked, never the key.
        time_us: when it was inspected, in microseconds since 1970, UTC.
    """

    role_id: str
    roi_id: str
    recipe_id: str = "default"
    source: str
    score: float
    threshold: float | None = None
    decision: Decision | None = None
    p_value: float | None = None
    part_id: str | None = None
    batch_id: str | None = None
    station_id: str | None = None
    operator: str | None = None
    request_id: str | None = None
    key_id: str | None = None
    image_name: str
    image_sha256: bytes
    image_size: int
    height: int
    width: int
    mm_per_px: float | None = None
    shape: Mapping[str, Any] | None = None
    generation: str = ""
    fingerprint: str = ""
    model_version: str = ""
    service_version: str = ""
    scoring: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    stats: Mapping[str, float] = field(default_factory=dict)
    regions: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[Mapping[str, Any]] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    token_map: NDArray[np.floating[Any]] | None = None
    time_us: int = field(default_factory=now_us)

    def details(self) -> dict[str, Any]:
        """What is looked at one record at a time, as a JSON object without null and without numbers JSON lacks."""
        grid = None if self.token_map is None else list(self.token_map.shape)
        own = {
            "height": self.height,
            "width": self.width,
            "mm_per_px": self.mm_per_px,
            "shape": self.shape,
            "fingerprint": self.fingerprint,
            "model_version": self.model_version,
            "service_version": self.service_version,
            "scoring": self.scoring,
            "calibration": self.calibration,
            "stats": self.stats,
            "regions": self.regions,
            "warnings": self.warnings,
            "timings_ms": self.timings_ms,
            "token_shape": grid,
        }
        return {name: plain(value) for name, value in own.items() if value is not None}

    def token_bytes(self) -> bytes:
        """The token map as little-endian float16, row by row; empty without one."""
        return b"" if self.token_map is None else self.token_map.astype("<f2").tobytes()


def plain(value: Any) -> Any:
    """`value` as JSON holds it: numbers that it lacks become null, texts storable, and what is of no type its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | np.floating):
        return float(value) + 0.0 if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        return {storable(str(name)): plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return storable(str(value))


def storable(text: str) -> str:
    r"""`text` as every database and every JSON takes it: a byte that is no UTF-8 becomes `\udcff`, and NUL a mark."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\ufffd")


def token_map_of(data: bytes, grid: Sequence[int]) -> NDArray[np.float32]:
    """The (h, w) float32 token map that `Record.token_bytes` wrote."""
    return np.frombuffer(data, "<f2").astype(np.float32).reshape(tuple(grid))


def entry_id(chain: int, sequence: int) -> int:
    """The number of an entry: the chain's in the upper bits, the place in it in the lower 40."""
    return (chain << SEQUENCE_BITS) | sequence


def split_id(number: int) -> tuple[int, int]:
    """The chain and the place in it of an entry's number."""
    return number >> SEQUENCE_BITS, number & (_SEQUENCES - 1)


def public_id(chain_key: str, sequence: int) -> str:
    """What clients know an entry by: `3f9a1c07-1042`, the name of its chain and its place in it."""
    return f"{chain_key}-{sequence}"


def parse_public_id(text: str) -> tuple[str, int]:
    """The chain's name and the place in it. Raises InspectionNotFound for what is no such identifier."""
    match = _PUBLIC_ID.fullmatch(text)
    if match is None or int(match[2]) >= _SEQUENCES:
        raise InspectionNotFound(id=repr(text[:80]))
    return match[1], int(match[2])
