"""Bodies of requests and answers, as /docs shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from backend.samples.store import LABELS

Number = Annotated[float, PlainSerializer(lambda v: int(v) if float(v).is_integer() else v, return_type=float | int)]


def _no_truth(value: Any) -> Any:
    """Refuse JSON's true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_parsing", "not a number")
    return value


Real = Annotated[float, BeforeValidator(_no_truth)]
RealOrNone = Annotated[float | None, BeforeValidator(_no_truth)]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e9), BeforeValidator(_no_truth)]
MmPerPxOrNone = Annotated[float | None, Field(gt=0, le=1e6, allow_inf_nan=False), BeforeValidator(_no_truth)]


def _split(value: Any) -> Any:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list):
        return parts
    return [piece.strip() for part in parts if isinstance(part, str) for piece in part.split(",") if piece.strip()]


def _listed(value: Any) -> Any:
    """One name as a list; blank ones, as a form without any sends them, are none."""
    names = [value] if isinstance(value, str) else value
    return [name for name in names if name != ""] if isinstance(names, list) else names


def _blank_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


class Health(BaseModel):
    """State of the service."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "status": "ok",
                "device": "cpu",
                "model": "vit_small_patch14_dinov2.lvd142m",
                "version": "0.1.0",
                "request_id": "9f1c2e5a7b",
                "recipe_id": "default",
            }
        },
    )

    status: str = Field(description="`ok`, `warming` (still loading), `degraded` (see reason) or `failed`.")
    device: str = Field(description="`cpu` or `cuda`; the DEVICE setting while loading.")
    model: str = Field(description="The extractor in use.")
    version: str = Field(description="Version of the service.")
    runtime: str = Field(default="", description="`torch`, `openvino` or `numpy`; left out while it loads.")
    precision: str = Field(default="", description="`fp32`, `bf16` or `fp16`; left out while it loads.")
    reason: str = Field(default="", description="Why the service is degraded; left out when it is not.")
    may_change: bool = Field(default=True, description="Whether this key may change models, samples and reviews.")
    request_id: str = ""
    recipe_id: str = "default"


class SuspectOut(BaseModel):
    """An image of a fit that stands out from the others, as a bad part among good ones does."""

    filename: str = Field(description="As it was sent, or the name of the stored sample.")
    score: float = Field(description="Distance of its farthest places from the images that are not like it.")
    p_value: float = Field(description="How likely an image stands out as much by chance.")
    why: str


class FitOkResponse(BaseModel):
    """The memory that was built."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "n_embeddings": 10240,
                "coreset_size": 205,
                "token_shape": [32, 32],
                "coreset_rate_requested": 0.02,
                "coreset_rate_applied": 0.02002,
                "n_images": 10,
                "radius": 0.41,
                "model_version": "2026.1",
                "generation": "0b7c",
                "suspects": [
                    {
                        "filename": "part_07.png",
                        "score": 0.52,
                        "p_value": 0.0004,
                        "why": "Its strangest places are 1.9 times as far from the other images as is usual.",
                    }
                ],
                "timings_ms": {"extract": 900.0, "coreset": 40.0, "store": 12.0, "suspects": 30.0, "total": 982.0},
                "warnings": [],
                "role_id": "Master1",
                "roi_id": "Pattern",
                "recipe_id": "default",
                "request_id": "9f1c2e5a7b",
            }
        }
    )

    n_embeddings: int = Field(description="Embeddings of all images: images × token rows × token columns.")
    coreset_size: int = Field(description="Rows kept in the memory.")
    token_shape: list[int] = Field(description="[rows, columns] of the token grid.")
    coreset_rate_requested: float
    coreset_rate_applied: float = Field(description="coreset_size / n_embeddings.")
    n_images: int
    radius: float = Field(description="Covering radius: the farthest embedding is this far from the memory (0–2).")
    model_version: str = Field(description="`<year>.<n>`, one more with each fit.")
    generation: str
    suspects: list[SuspectOut] = Field(
        description="Images of this fit that stand out from the others, at most 20, the most suspect first."
    )
    timings_ms: dict[str, float]
    warnings: list[str]
    role_id: str
    roi_id: str
    recipe_id: str
    request_id: str


class Promise(BaseModel):
    """What a calibration may be asked for beside its scores."""

    max_false_reject: Annotated[float | None, BeforeValidator(_blank_is_none), BeforeValidator(_no_truth)] = Field(
        None,
        ge=0,
        le=0.5,
        allow_inf_nan=False,
        description="The lowest threshold that can be promised to reject no larger share of good parts.",
    )
    confidence: Annotated[float | None, BeforeValidator(_blank_is_none), BeforeValidator(_no_truth)] = Field(
        None, ge=0.5, le=0.9999, allow_inf_nan=False, description="Of what is promised; 0.95 without it."
    )
    threshold: Annotated[float | None, BeforeValidator(_blank_is_none), BeforeValidator(_no_truth)] = Field(
        None, ge=0, le=1e9, allow_inf_nan=False, description="This threshold, kept as chosen."
    )
    note: str | None = Field(None, max_length=2000, description="Kept with the calibration.")
    author: str | None = Field(None, max_length=128, description="Who calibrates; the API key's name without it.")


class FalseRejectOut(BaseModel):
    """What a threshold promises about good parts that are drawn like those that were scored."""

    estimate: float = Field(description="The share of the good scores that the threshold rejects.")
    upper_bound: float = Field(
        description="The share of good parts that it rejects is at most this, with `confidence`."
    )
    confidence: float
    n_ok: int
    n_ok_needed: int = Field(
        default=0,
        description="Good scores with which the rate asked for (else 1 − score_percentile) can be promised.",
    )
    basis: str = Field(description="held_out, leave_one_out or given: where the good scores come from.")


class MissesOut(BaseModel):
    """The share of the bad parts that the threshold passes, with its exact interval (Clopper and Pearson)."""

    estimate: float
    lower_bound: float
    upper_bound: float
    confidence: float
    n_ng: int


class Promised(BaseModel):
    """What every calibration answers of its threshold. `misses` and `note` are left out where there is none."""

    rule: str = Field(description="percentile (the contract's), promised or chosen: what settled the threshold.")
    false_reject: FalseRejectOut
    misses: MissesOut | None = Field(None, description="Left out without scores of bad parts.")
    note: str = ""


class CalibrateRequest(Promise):
    """Scores that /infer gave for parts known to be good (OK) and, if there are any, bad (NG)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "role_id": "Master1",
                "roi_id": "Pattern",
                "mm_per_px": 0.2,
                "ok_scores": [0.41, 0.38, 0.44],
                "ng_scores": [0.71],
                "area_mm2_thr": 1.0,
                "score_percentile": 99,
            }
        }
    )

    role_id: str
    roi_id: str
    mm_per_px: Real = Field(gt=0, le=1e6, allow_inf_nan=False)
    ok_scores: list[Finite] = Field(min_length=1, max_length=1_000_000)
    ng_scores: list[Finite] | None = Field(None, max_length=1_000_000)
    area_mm2_thr: RealOrNone = Field(
        None, ge=0, le=1e12, allow_inf_nan=False, description="Smaller regions are dropped, mm²."
    )
    score_percentile: RealOrNone = Field(
        None,
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="Percentile of the heatmap that is the score, such as 99 or 95.",
    )
    model_key: str | None = Field(None, description="The station's own name of the ROI; roi_id is what counts.")
    recipe_id: str | None = None


class CalibrateResponse(Promised):
    """The threshold and what it was made from. `ng_mean` is left out when there were no NG scores."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "threshold": 0.575,
                "p99_ok": 0.44,
                "p5_ng": 0.71,
                "mm_per_px": 0.2,
                "area_mm2_thr": 1.0,
                "score_percentile": 99,
                "ok_mean": 0.41,
                "ng_mean": 0.71,
                "n_ok": 3,
                "n_ng": 1,
                "rule": "percentile",
                "false_reject": {
                    "estimate": 0.0,
                    "upper_bound": 0.6316,
                    "confidence": 0.95,
                    "n_ok": 3,
                    "n_ok_needed": 299,
                    "basis": "given",
                },
                "misses": {
                    "estimate": 0.0,
                    "lower_bound": 0.0,
                    "upper_bound": 0.975,
                    "confidence": 0.95,
                    "n_ng": 1,
                },
                "warnings": [],
                "role_id": "Master1",
                "roi_id": "Pattern",
                "recipe_id": "default",
                "request_id": "9f1c2e5a7b",
            }
        }
    )

    threshold: float
    p99_ok: float = Field(description="The `score_percentile` of the OK scores.")
    p5_ng: float | None = Field(description="5th percentile of the NG scores; null without any.")
    mm_per_px: float
    area_mm2_thr: float
    score_percentile: Number
    ok_mean: float
    ng_mean: float = Field(default=0.0, description="Mean of the NG scores; left out without any.")
    n_ok: int
    n_ng: int
    warnings: list[str]
    role_id: str
    roi_id: str
    recipe_id: str
    request_id: str


class DriftResponse(BaseModel):
    """Whether parts drift. What is not known is left out."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "state": "drift",
                "cause": "dirt",
                "where": "upper left",
                "at": [0.25, 0.25],
                "since": "2026-01-31T12:00:00Z",
                "evidence": {"brightness_pct": -1.9, "sharpness_pct": -0.4, "charts": 2.31, "parts": 412},
                "advice": "Clean the lens and the glass before it.",
                "role_id": "Master1",
                "roi_id": "Pattern",
                "recipe_id": "default",
                "request_id": "9f1c2e5a7b",
            }
        }
    )

    state: Literal["learning", "steady", "drift"]
    cause: Literal["light", "colour", "focus", "dirt", "position", "turn", "parts"] = Field(
        default="parts", description="What has changed; left out without a drift."
    )
    where: str = Field(default="", description="The place in words, where it is one place.")
    at: list[float] = Field(default=[], description="The place: [x, y] in shares of the ROI's sides.")
    since: str = Field(default="", description="When it began, UTC.")
    evidence: dict[str, float] = Field(description="How the last parts look beside the first ones.")
    advice: str = Field(default="", description="What to do.")
    learnt: int = Field(default=0, description="Good parts that the limits have been learnt from so far.")
    wanted: int = Field(default=0, description="How many they are learnt from: DRIFT_PARTS.")
    role_id: str
    roi_id: str
    recipe_id: str
    request_id: str


class RegionOut(BaseModel):
    """A defective area, in pixels of the sent image (x to the right, y down)."""

    x: int
    y: int
    w: int
    h: int
    bbox: list[int] = Field(description="[x, y, w, h]")
    area_px: float = Field(description="Pixels at or above the threshold.")
    area_mm2: float = Field(description="The same in mm².")
    area_mm2_estimate: float = Field(
        description="Estimated size of the defect: what is above half of the region's peak over its surroundings."
    )
    contour: list[list[int]] = Field(description="The outline as [[x, y], …].")


class MasterOut(BaseModel):
    """A master that was shown, and what it got the first time; left out the first time."""

    name: str
    former_score: float = 0.0
    former_decision: str = ""
    flipped: bool = Field(description="Whether it gets another verdict than the first time.")


class InferResponse(BaseModel):
    """The verdict on one ROI. `decision` is left out, and `is_anomaly` null, without a threshold."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "role_id": "Master1",
                "roi_id": "Pattern",
                "inspection_id": "3f9a1c07-1042",
                "score": 0.66,
                "threshold": 0.575,
                "is_anomaly": True,
                "decision": "ng",
                "p_value": 0.0196,
                "ok_as_high": 0,
                "n_ok": 50,
                "heatmap_png_base64": "iVBORw0K…",
                "heatmap_range": [0.18, 0.79],
                "regions": [
                    {
                        "x": 120,
                        "y": 88,
                        "w": 31,
                        "h": 12,
                        "bbox": [120, 88, 31, 12],
                        "area_px": 250.0,
                        "area_mm2": 10.0,
                        "area_mm2_estimate": 6.4,
                        "contour": [[120, 90], [150, 88], [150, 99]],
                    }
                ],
                "area_resolution_mm2": 7.84,
                "token_shape": [32, 32],
                "stats": {"max": 0.81, "mean": 0.22, "median": 0.2, "top1_mean": 0.7},
                "inference_ms": 118.4,
                "timings_ms": {
                    "decode": 6.1,
                    "forward": 101.0,
                    "knn": 3.0,
                    "post": 4.1,
                    "png": 2.2,
                    "total": 118.4,
                },
                "params": {
                    "extractor": "vit_small_patch14_dinov2.lvd142m",
                    "input_size": 448,
                    "patch_size": 14,
                    "k": 1,
                },
                "warnings": [],
                "recipe_id": "default",
                "request_id": "9f1c2e5a7b",
            }
        }
    )

    role_id: str
    roi_id: str
    inspection_id: str = Field(default="", description="Name of the recorded verdict; left out where none is kept.")
    score: float = Field(
        description="How unlike good parts: a percentile of the map's distances (0–2; to 4 with PATCHCORE_DENSITY_K)."
    )
    threshold: float | None = Field(description="Null until the model is calibrated.")
    is_anomaly: bool | None = Field(
        description="score > threshold (scored by area: score ≥ threshold); null without a threshold."
    )
    decision: str = Field(default="", description='"ok" or "ng"; left out without a threshold.')
    p_value: float = Field(
        default=1.0,
        description="How likely a good part scores as high: (1 + ok_as_high) / (n_ok + 1); left out if not known.",
    )
    ok_as_high: int = Field(default=0, description="Good scores of the calibration that are as high.")
    n_ok: int = Field(default=0, description="Good scores of the calibration.")
    heatmap_png_base64: str = Field(description="PNG of the ROI's size; empty with heatmap=none.")
    heatmap_range: list[float] = Field(
        description="[low, high]: the distances that 0 and 255 of the heatmap stand for."
    )
    regions: list[RegionOut] = Field(description="Areas at or above the threshold, largest first.")
    area_resolution_mm2: float = Field(
        description="The area that one token sees: what covers less is shown as large as this."
    )
    token_shape: list[int]
    stats: dict[str, float] = Field(description="max, mean, median and top1_mean of the heatmap inside the mask.")
    inference_ms: float
    timings_ms: dict[str, float]
    params: dict[str, Any]
    golden: MasterOut | None = Field(None, description="Left out unless the request names a master.")
    warnings: list[str]
    recipe_id: str
    request_id: str


class DatasetRequest(BaseModel):
    """The model whose samples are meant."""

    model_config = ConfigDict(protected_namespaces=())

    role_id: str
    roi_id: str
    model_key: str | None = Field(None, description="The station's own name of the ROI; roi_id is what counts.")
    recipe_id: str | None = None
    default_mm_per_px: Annotated[MmPerPxOrNone, BeforeValidator(_blank_is_none)] = Field(
        None, description="Millimetres per pixel of samples that do not say; without it the memory's own."
    )


class CalibrateDatasetRequest(DatasetRequest, Promise):
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
        None, ge=0, le=1e12, allow_inf_nan=False, description="Smaller regions are dropped, mm²."
    )
    require_ng: bool = Field(False, description="Refuse to calibrate when there are no NG samples.")


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
    part_id: str | None = Field(None, description="Recorded with each verdict; at most 128 characters.")
    batch_id: str | None = Field(None, description="Recorded with each verdict.")
    station_id: str | None = Field(None, description="Recorded with each verdict.")
    operator: str | None = Field(None, description="Recorded with each verdict.")


class TeachRequest(Promise):
    """Parts that were rejected though they are good, and defects that were missed."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "role_id": "Master1",
                "roi_id": "Pattern",
                "inspection_ids": ["0f3a9c1e-12"],
                "dry_run": True,
                "note": "New supplier, the same part.",
            }
        }
    )

    role_id: str
    roi_id: str
    recipe_id: str | None = None
    inspection_ids: Annotated[list[str], BeforeValidator(_split)] = Field(
        [],
        max_length=1000,
        description="Inspections whose image is kept; one that was reviewed as `bad` and passed is a missed defect.",
    )
    filenames: Annotated[list[str], BeforeValidator(_listed)] = Field(
        [], max_length=1000, description="Names of stored OK samples, as /datasets/list gives them."
    )
    dry_run: bool = Field(False, description="Say what would change, and change nothing.")
    force: bool = Field(False, description="Teach although known parts lose a right verdict.")
    recalibrate: bool = Field(
        False, description="Choose the threshold anew, as /calibrate_dataset does with the other fields."
    )


class CertifyRequest(BaseModel):
    """The model to certify, and how much is tried."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"role_id": "Master1", "roi_id": "Pattern", "parts": 50, "trials": 60}},
        protected_namespaces=(),
    )

    role_id: str
    roi_id: str
    model_key: str | None = Field(None, description="The station's own name of the ROI; roi_id is what counts.")
    recipe_id: str | None = None
    parts: int = Field(50, ge=5, le=1000, description="Good parts at most that it is tried on.")
    trials: int = Field(
        60, ge=3, le=1000, description="Defects of each kind, zone and contrast; fewer than 30 assure no size."
    )
    seed: int = Field(0, ge=0, le=2**31, description="Of what is drawn.")


class RelabelRequest(BaseModel):
    """Which sample goes where."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "role_id": "Master1",
                "roi_id": "Pattern",
                "filename": "SAMPLE_20260101T000000000000Z_0001.png",
                "from": "ok",
                "to": "ng",
            }
        },
        populate_by_name=True,
        protected_namespaces=(),
    )

    role_id: str
    roi_id: str
    model_key: str | None = Field(None, description="The station's own name of the ROI; roi_id is what counts.")
    recipe_id: str | None = None
    filename: str = Field(description="Name of the stored image.")
    label: str = Field(alias="from", description="Its label: ok or ng.")
    to: str = Field(description="The label that it gets: ok or ng.")


class CalibrateDatasetResponse(Promised):
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


class ErrorBody(BaseModel):
    """Every 4xx and 5xx."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": "Memoria no encontrada para Master1/Pattern. Ejecuta /fit_ok primero.",
                "trace": None,
                "code": "memory_not_found",
                "request_id": "9f1c2e5a7b",
                "detail": "Memoria no encontrada para Master1/Pattern. Ejecuta /fit_ok primero.",
            }
        }
    )

    error: str = Field(description="A sentence, in the language of Accept-Language (es, en).")
    trace: str | None = Field(description="Traceback, on 5xx and for clients on the same machine only.")
    code: str = Field(description="Stable name of the error.")
    request_id: str
    detail: Any = Field(description="The text again; on 422 the list of fields.")
    reason: str = Field("", description="Why an image was not read, where the text does not say it; else left out.")
