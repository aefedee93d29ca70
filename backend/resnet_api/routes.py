"""Routes of the ResNet18 web API: /predict, /predict/batch, /config and the pictures under /static."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Query, Request, UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from backend.api.catalogue import reason_of, sentence
from backend.api.problems import language_of
from backend.api.recording import Recording, trace_form
from backend.api.requests import RecipeHeader, run_job, sentences, warned
from backend.api.schemas import ErrorBody
from backend.api.uploads import PICKED_FILES, UploadRoute, uploads
from backend.base.errors import BadRequest
from backend.base.keys import check_recipe
from backend.records.verdicts import Trace
from backend.resnet_api.predictor import Mode, Prediction, Predictor
from backend.resnet_api.recorded import PredictionVerdict
from backend.service.images import ImageFile
from backend.service.jobs import Job

logger = logging.getLogger(__name__)

router = APIRouter(
    route_class=UploadRoute,
    tags=["ResNet18"],
    responses={
        400: {"model": ErrorBody, "description": "The file is empty or no image."},
        503: {"model": ErrorBody, "description": "There is no memory bank or no ResNet18, or the service is busy."},
    },
)


class PredictResponse(BaseModel):
    """What the ResNet18 web API answers for one image."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "score": 0.57,
                "threshold": 0.42,
                "is_anomaly": True,
                "polygons": [[[12, 45], [38, 44], [41, 70], [10, 72]]],
                "overlay_url": "/static/overlays/pieza-6f1c2e5a7b9d0e21_overlay.png",
                "heat_url": "/static/overlays/pieza-6f1c2e5a7b9d0e21_heat.png",
                "mask_url": "/static/overlays/pieza-6f1c2e5a7b9d0e21_mask.png",
                "filename": "pieza.png",
                "image_size": [768, 576],
                "img_size": 256,
                "timings_ms": {"extract": 31.0, "score": 9.0, "pictures": 4.1, "total": 44.1},
                "warnings": [],
                "recipe_id": "default",
                "request_id": "9f1c2e5a7b",
            }
        }
    )

    score: float = Field(description="Largest value of the anomaly map inside the ROI.")
    threshold: float = Field(description="The threshold that was applied.")
    is_anomaly: bool = Field(description="score > threshold.")
    polygons: list[list[list[int]]] = Field(
        description="Outlines [[x, y], …] in pixels of the image resized to img_size × img_size; only of an anomaly."
    )
    overlay_url: str | None = Field(description="Picture of heat, outlines and ROI; null with SAVE_VIS=0.")
    heat_url: str | None = Field(description="Picture of the heat; null with SAVE_VIS=0.")
    mask_url: str | None = Field(description="Picture of what is outlined; null with SAVE_VIS=0.")
    filename: str
    inspection_id: str = Field(default="", description="Name of the recorded verdict; left out where none is kept.")
    image_size: list[int] = Field(description="[width, height] of the image as it was sent.")
    img_size: int
    timings_ms: dict[str, float]
    warnings: list[str]
    recipe_id: str
    request_id: str


class FailedItem(BaseModel):
    """A file of a batch that could not be scored."""

    filename: str
    error: str
    code: str
    reason: str = Field("", description="Why the image was not read; left out where the text says it.")


class BatchResponse(BaseModel):
    """One item for each file, in the order they were sent."""

    items: list[PredictResponse | FailedItem]
    n_total: int
    n_errors: int
    n_anomalies: int
    warnings: list[str]
    recipe_id: str
    request_id: str


class BankOut(BaseModel):
    """The memory bank. `rows` and `dim` are 0 until it has been read."""

    path: str
    rows: int
    dim: int
    n_images: int
    created_utc: str


class ConfigResponse(BaseModel):
    """What the ResNet18 web API has loaded."""

    status: str = Field(description="`absent` (no bank), `idle`, `loading`, `ready` or `failed`.")
    img_size: int
    knn_k: int
    threshold: float
    ignore_border_pct: float
    roi_path: str | None
    patch_stride: int
    save_vis: bool
    area_min: float
    model: str
    device: str
    embedding_version: str
    memory_bank: BankOut
    recipe_id: str
    request_id: str


async def get_predictor(request: Request) -> Predictor:
    """The app's predictor."""
    predictor: Predictor = request.app.state.predictor
    return predictor


PredictorDep = Annotated[Predictor, Depends(get_predictor)]
PredictTrace = Annotated[Trace, Depends(trace_form("predict"))]
EmptyIsNone = BeforeValidator(lambda given: None if given == "" else given)
Thr = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
    EmptyIsNone,
    Query(description="Threshold to apply instead of the configured one."),
]
ModeQuery = Annotated[
    Mode | None,
    EmptyIsNone,
    Query(description="`sensitive`: the threshold × 0.8; `strict`: × 1.2; ignored with `thr`."),
]


@router.post("/predict", response_model=PredictResponse, response_model_exclude_unset=True)
async def predict(
    request: Request,
    predictor: PredictorDep,
    trace: PredictTrace,
    file: Annotated[UploadFile, File(description="The image (PNG, JPEG, BMP, TIFF or WebP).")],
    thr: Thr = None,
    mode: ModeQuery = None,
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Score one image against the memory bank, and draw where it differs."""
    (image,) = uploads([file])
    own = _own(request, x_recipe_id)
    each = _Each(request, predictor, trace, own["recipe_id"], thr, mode)
    found = await run_job(request, lambda job: each.predicted(image, job))
    answer = each.answer(image, found)
    return answer | {"warnings": [*answer["warnings"], *warned(request)]} | own


@router.post("/predict/batch", response_model=BatchResponse, response_model_exclude_unset=True)
async def predict_batch(
    request: Request,
    predictor: PredictorDep,
    trace: PredictTrace,
    files: Annotated[list[UploadFile], File(description="The images.", json_schema_extra=PICKED_FILES)],
    thr: Thr = None,
    mode: ModeQuery = None,
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """As /predict for each of several images; one that cannot be read has its error in its own item."""
    images = uploads(files)
    own = _own(request, x_recipe_id)
    predictor.bank()
    each = _Each(request, predictor, trace, own["recipe_id"], thr, mode)
    found = await run_job(request, lambda job: [each.attempted(image, job) for image in images])
    language = language_of(request.headers)
    items = [
        {"filename": image.name, "error": sentence(one, language), "code": one.code, **reason_of(one, language)}
        if isinstance(one, BadRequest)
        else each.answer(image, one) | own
        for image, one in zip(images, found, strict=True)
    ]
    return {
        "items": items,
        "n_total": len(items),
        "n_errors": sum(isinstance(one, BadRequest) for one in found),
        "n_anomalies": sum(not isinstance(one, BadRequest) and one[0].is_anomaly for one in found),
        "warnings": warned(request),
        **own,
    }


@router.get("/config", response_model=ConfigResponse)
def config(request: Request, predictor: PredictorDep, x_recipe_id: RecipeHeader = None) -> dict[str, Any]:
    """What the ResNet18 web API has loaded: bank, method and settings."""
    return predictor.about() | _own(request, x_recipe_id)


def mount_pictures(app: FastAPI, folder: Path) -> None:
    """Serve STATIC_DIR under /static."""
    app.mount("/static", _Pictures(directory=folder, check_dir=False), name="static")


class _Pictures(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response


def _own(request: Request, recipe: str | None) -> dict[str, str]:
    return {"recipe_id": check_recipe(recipe), "request_id": request.state.request_id}


Predicted = tuple[Prediction, dict[str, Any]]  # and the fields that the record gives the answer


class _Each:
    """Predicts, records and answers each image of a request."""

    def __init__(
        self,
        request: Request,
        predictor: Predictor,
        trace: Trace,
        recipe_id: str,
        thr: float | None,
        mode: Mode | None,
    ) -> None:
        self.request, self.predictor, self.recipe_id = request, predictor, recipe_id
        self.thr, self.mode = thr, mode
        self.recording = Recording(request, trace)

    def predicted(self, image: ImageFile, job: Job) -> Predicted:
        found = self.predictor.predict(image, thr=self.thr, mode=self.mode, job=job)
        verdict = PredictionVerdict(image, found, self.recipe_id, self.predictor.settings)
        named, notices = self.recording.add(verdict, job)
        return replace(found, warnings=[*found.warnings, *notices]), named

    def attempted(self, image: ImageFile, job: Job) -> Predicted | BadRequest:
        """As `predicted`, or what is wrong with the file; what is wrong with the service raises."""
        job.check()
        try:
            return self.predicted(image, job)
        except BadRequest as err:
            return err

    def answer(self, image: ImageFile, predicted: Predicted) -> dict[str, Any]:
        found, named = predicted
        logger.info("predict: score %.6g, threshold %.6g, %s ms", found.score, found.threshold, found.timings_ms)
        height, width = found.size
        settings = self.predictor.settings
        urls = {kind: f"/static/{settings.overlays_subdir}/{name}" for kind, name in found.files.items()}
        return {
            **named,
            "score": found.score,
            "threshold": found.threshold,
            "is_anomaly": found.is_anomaly,
            "polygons": found.polygons,
            **{f"{kind}_url": urls.get(kind) for kind in ("overlay", "heat", "mask")},
            "filename": image.name,
            "image_size": [width, height],
            "img_size": settings.img_size,
            "timings_ms": found.timings_ms,
            "warnings": sentences(self.request, found.warnings),
        }
