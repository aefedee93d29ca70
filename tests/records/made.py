"""Verdicts as the service would record them."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest

from backend.api.catalogue import Language, sentence
from backend.base.errors import InspectionError
from backend.records.database import Database
from backend.records.images import ImageStore
from backend.records.ledger import Recorded
from backend.records.record import Record
from backend.records.verifying import verify
from tests.parts import encoded, part

DAY_US = 86_400_000_000
NOON_US = 1_790_000_000_000_000 // DAY_US * DAY_US + DAY_US // 2  # some day in 2026


@cache
def picture(number: int = 0) -> bytes:
    return encoded(part(number, height=32, width=48))


def record(number: int = 0, *, image: bytes | None = None, **given: Any) -> Record:
    """A verdict: good below 0.5, bad above."""
    data = picture() if image is None else image
    score = given.pop("score", 0.2 + number % 10 / 100)
    decision = given.pop("decision", "ng" if score > 0.5 else "ok")
    region = {"bbox": [1, 2, 3, 4], "area_px": 9.0, "area_mm2": 0.36, "contour": [[1, 2], [4, 2], [4, 6]]}
    own: dict[str, Any] = {
        "role_id": "Master1",
        "roi_id": "Pattern",
        "source": "infer",
        "score": score,
        "threshold": 0.5,
        "decision": decision,
        "image_name": f"part_{number}.png",
        "image_sha256": hashlib.sha256(data).digest(),
        "image_size": len(data),
        "height": 32,
        "width": 48,
        "mm_per_px": 0.2,
        "generation": "g1",
        "scoring": {"method": "percentile", "percentile": 99.0, "blur_sigma": 1.0},
        "stats": {"max": score, "mean": score / 2},
        "regions": [region] if decision == "ng" else [],
        "timings_ms": {"total": 12.5},
        "token_map": np.full((4, 6), score, np.float32),
    }
    return Record(**{**own, **given})


def faults(database: Database, store: ImageStore | None = None, **given: Any) -> list[str]:
    """What `verify` finds wrong, in English."""
    return [sentence(one, "en") for one in verify(database, store, **given).found]


@contextmanager
def raises(kind: type[InspectionError], match: str, language: Language = "en") -> Iterator[pytest.ExceptionInfo[Any]]:
    """Like pytest.raises, of what the client reads."""
    with pytest.raises(kind) as caught:
        yield caught
    assert re.search(match, sentence(caught.value, language)), sentence(caught.value, language)


def told(recorded: Recorded, language: Language = "en") -> str:
    """The warnings of an answer."""
    return " ".join(sentence(notice, language) for notice in recorded.notices)
