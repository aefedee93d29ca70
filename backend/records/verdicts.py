"""What an inspection becomes in the record, and who and what it was for."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backend import __version__
from backend.base.errors import InspectionError, InvalidValue, NotRecorded
from backend.base.keys import ModelKey
from backend.base.messages import Notice, Phrase
from backend.infer import Inspection, Region
from backend.records.ledger import Ledger, Recorded
from backend.records.notices import as_json
from backend.records.record import Record
from backend.service.images import ImageFile
from backend.service.results import InferResult, Provenance

TEXT_MAX = 128


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Who and what an inspection was for. Build it with `Trace.of`, which checks the texts.

    Attributes:
        source: what asked for it: `infer`, `infer_dataset`, `cli` or `predict`.
        key_id: which API key asked, never the key.
    """

    source: str
    part_id: str | None = None
    batch_id: str | None = None
    station_id: str | None = None
    operator: str | None = None
    request_id: str | None = None
    key_id: str | None = None

    @classmethod
    def of(
        cls,
        source: str,
        said: Mapping[str, str | None],
        *,
        request_id: str | None = None,
        key_id: str | None = None,
    ) -> Trace:
        """The trace of a request that says part_id, batch_id, station_id and operator, or some of them.

        Raises:
            InvalidValue: one of them has over 128 characters, or a control character.
        """
        texts = {name: checked_text(said.get(name), name) for name in ("part_id", "batch_id", "station_id", "operator")}
        return cls(source=source, request_id=request_id, key_id=key_id, **texts)


def checked_text(text: str | None, field: str, limit: int = TEXT_MAX, *, lines: bool = False) -> str | None:
    """`text` without spaces around it; None for a blank one. `lines`: line breaks and tabs may be in it.

    Raises:
        InvalidValue: it is longer than `limit` characters, or has a control character.
    """
    own = (text or "").strip()
    allowed = "\n\r\t" if lines else ""
    if len(own) > limit or any(unicodedata.category(c) in {"Cc", "Cs"} and c not in allowed for c in text or ""):
        raise InvalidValue(field=field, value=repr((text or "")[:40]), expected=Phrase("plain_text", {"limit": limit}))
    return own or None


@dataclass(frozen=True)
class Verdict:
    """One inspection of one image, and what it was made with.

    `left_out`: a stored sample was inspected as if the memory did not have its rows.
    """

    key: ModelKey
    file: ImageFile
    inspection: Inspection
    provenance: Provenance
    notices: Sequence[Notice] = ()
    timings_ms: Mapping[str, float] | None = None
    left_out: bool = False

    @classmethod
    def of(cls, key: ModelKey, file: ImageFile, result: InferResult) -> Verdict:
        """What /infer found."""
        return cls(key, file, result.inspection, result.provenance, result.warnings, result.timings_ms)

    def record(self, ledger: Ledger, trace: Trace) -> Recorded:
        """Record it, with its image if the policy wants it.

        Raises:
            NotRecorded: only if the record is required.
        """
        try:
            data = self.file.read()
        except InspectionError as err:  # a sample that was deleted meanwhile
            if ledger.required:
                raise NotRecorded(reason=err, retry_after=5) from err
            return Recorded(None, [Notice("not_recorded", {"reason": err})])
        found, made = self.inspection, self.provenance
        rejected = made.criteria.rejects(found.score)
        size, shape = found.roi.size, found.roi.shape
        record = Record(
            role_id=self.key.role_id,
            roi_id=self.key.roi_id,
            recipe_id=self.key.recipe_id,
            **asdict(trace),
            score=found.score,
            p_value=None if made.criteria.good is None else made.criteria.good.p_value(found.score),
            threshold=made.criteria.threshold,
            decision=None if rejected is None else "ng" if rejected else "ok",
            image_name=self.file.name,
            image_sha256=hashlib.sha256(data).digest(),
            image_size=len(data),
            height=size.height,
            width=size.width,
            mm_per_px=found.roi.mm_per_px,
            shape=shape.as_dict() if shape else None,
            generation=made.generation,
            fingerprint=made.fingerprint,
            model_version=made.model_version,
            service_version=__version__,
            scoring={
                **asdict(made.criteria.scoring),
                "area_mm2_thr": made.criteria.area_mm2_thr,
                **({"left_out": True} if self.left_out else {}),
                **({"weight": found.weight} if found.weight != 1 else {}),
            },
            calibration=made.calibration,
            stats=found.stats,
            regions=[_region(region) for region in found.regions],
            warnings=[as_json(notice) for notice in self.notices],
            timings_ms=self.timings_ms or {},
            token_map=found.token_map,
        )
        return ledger.record(record, data)


def _region(region: Region) -> dict[str, Any]:
    return {
        "bbox": list(region.bbox),
        "area_px": region.area_px,
        "area_mm2": region.area_mm2,
        "area_mm2_estimate": region.area_mm2_estimate,
        "contour": region.contour,
    }
