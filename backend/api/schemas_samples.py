"""Requests of the sample routes that come as JSON or as a form."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from backend.samples.store import LABELS

MmPerPxOrNone = Annotated[float | None, Field(gt=0, le=1e6, allow_inf_nan=False)]


def _split(value: Any) -> Any:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list):
        return parts
    return [piece.strip() for part in parts if isinstance(part, str) for piece in part.split(",") if piece.strip()]


def _blank_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


class DatasetRequest(BaseModel):
    """Whose samples."""

    model_config = ConfigDict(protected_namespaces=())

    role_id: str
    roi_id: str
    model_key: str | None = Field(None, description="The station's name of the ROI; roi_id is used.")
    recipe_id: str | None = None
    default_mm_per_px: Annotated[MmPerPxOrNone, BeforeValidator(_blank_is_none)] = Field(
        None, description="For samples that do not say; without it the memory's own."
    )


class CalibrateDatasetRequest(DatasetRequest):
    """Calibrate with the stored samples."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "role_id": "Master1",
                "roi_id": "Pattern",
                "score_percentile": 99,
                "area_mm2_thr": 1.0,
                "require_ng": False,
            }
        }
    )

    score_percentile: Annotated[int | None, BeforeValidator(_blank_is_none)] = Field(
        None, gt=0, le=100, description="Percentile of the heatmap that is the score; SCORE_PERCENTILE without it."
    )
    area_mm2_thr: Annotated[float | None, BeforeValidator(_blank_is_none)] = Field(
        None, ge=0, le=1e12, allow_inf_nan=False, description="Smallest region, mm²."
    )
    require_ng: bool = Field(False, description="Refuse to calibrate without NG samples.")


class InferDatasetRequest(DatasetRequest):
    """Score the stored samples."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"role_id": "Master1", "roi_id": "Pattern", "labels": ["ok", "ng"], "include_heatmap": False}
        }
    )

    labels: Annotated[list[str], BeforeValidator(_split)] = Field(
        list(LABELS), max_length=10, description="Which samples: ok, ng or both; also as text with commas."
    )
    include_heatmap: bool = Field(False, description="A heatmap PNG with each item.")
    leave_one_out: bool = Field(
        False, description="Score a sample that the memory was fitted on without its own rows, as a calibration does."
    )
    stream: bool = Field(False, description="One JSON object a line; Accept: application/x-ndjson says the same.")


class CalibrateDatasetResponse(BaseModel):
    """The threshold that the stored samples gave. `ng_mean` and `p5_ng` are left out without NG samples."""

    status: str
    threshold: float
    score_percentile: int = Field(description="The percentile, rounded to an integer.")
    area_mm2_thr: float
    n_ok: int
    n_ng: int
    p99_ok: float = Field(description="The `score_percentile` of the OK scores.")
    p5_ng: float = 0.0
    ok_mean: float
    ng_mean: float = 0.0
    mm_per_px: float
    warnings: list[str]
    role_id: str
    roi_id: str
    recipe_id: str
    request_id: str
