"""The HTTP service: `create_app`, what starts and stops with it, and the four routes of the contract.

Importing this module builds nothing. `uvicorn backend.app:app` builds the app when it reads that name, and the lifespan
loads the extractor.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from backend import __version__
from backend.api.answers import Answer, infer_fields, shown_fields, suspect_fields
from backend.api.catalogue import sentence
from backend.api.limits import BodyLimit, HeadAsGet
from backend.api.meant import look_for_what_is_not_meant, unmeant
from backend.api.metrics import Measured, Metrics
from backend.api.problems import language_of, on_http_exception, on_inspection_error, on_invalid_fields
from backend.api.recording import Recording, trace_form
from backend.api.requests import (
    LEFT_OUT,
    RESPONSES,
    CollectorDep,
    FormKey,
    InspectorDep,
    MmPerPx,
    RecipeHeader,
    ShapeField,
    change_form,
    identity,
    run_job,
    run_tracked,
    terms_of,
    warned,
)
from backend.api.routes import (
    certificates,
    console,
    drift,
    golden,
    models,
    ops,
    records,
    samples,
    teaching,
    versions,
    work,
)
from backend.api.schemas import (
    CalibrateRequest,
    CalibrateResponse,
    FitOkResponse,
    Health,
    InferResponse,
)
from backend.api.security import Guard
from backend.api.telemetry import RequestIdentity, configure_logging
from backend.api.uploads import PICKED_FILES, UploadRoute, uploads
from backend.assurance.golden import GoldenSet, record_flips
from backend.assurance.suspects import about_suspects, suspects_of
from backend.assurance.watch import DriftWatch, watch_of
from backend.base.config import Settings, load_settings, unknown_settings
from backend.base.errors import InspectionError, InvalidValue, StartupError
from backend.base.keys import ModelKey, check_recipe
from backend.extractors.protocol import Extractor
from backend.infer import HeatmapScale
from backend.records.ledger import Ledger
from backend.records.verdicts import Trace, Verdict, checked_text
from backend.resnet_api import routes as predict
from backend.resnet_api.predictor import Predictor
from backend.roi_mask import parse_shape
from backend.samples.collector import Collector
from backend.service.jobs import Job, ProgressBoard
from backend.service.results import InferResult
from backend.storage import Change

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Tells a good part from a bad one having only seen good ones: where it differs, and how large the difference is in mm².

1. `POST /fit_ok` with images of good parts.
2. `POST /infer` some more good parts, and bad ones if there are any; `POST /calibrate_ng` with their scores.
3. `POST /infer` each part.
"""

contract = APIRouter(route_class=UploadRoute, tags=["contract"])


def create_app(settings: Settings | None = None, extractor: Extractor | None = None) -> FastAPI:
    """The service.

    Args:
        settings: read from the environment and the files when None.
        extractor: used instead of the one that the settings name.
    """
    settings = settings or load_settings()
    app = FastAPIOffline(  # /docs without a CDN: a station has no internet
        redoc_url=None if settings.contract_only else "/redoc",
        title="Brake disc inspector",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan,
        dependencies=[Depends(look_for_what_is_not_meant)],
    )
    app.state.settings = settings
    app.state.collector = Collector(settings, extractor)
    app.state.inspector = app.state.collector.inspector
    app.state.progress = ProgressBoard()
    app.state.ledger = Ledger.of(settings)
    app.state.golden = _golden_of(app.state.collector, app.state.ledger)
    app.state.inspector.gate = app.state.golden
    app.state.drift = watch_of(app.state.inspector.store, app.state.ledger, settings)
    app.state.limiter = anyio.CapacityLimiter(settings.max_queue + 8)
    app.state.metrics = Metrics(settings.prometheus_multiproc_dir)
    app.include_router(contract)
    if not settings.contract_only:
        for router in (
            samples.router,
            work.router,
            models.router,
            certificates.router,
            versions.router,
            golden.router,
            teaching.router,
            drift.router,
            ops.router,
            records.router,
        ):
            app.include_router(router)
        _include_predict(app, settings)
        console.mount_console(app)
    app.add_exception_handler(InspectionError, on_inspection_error)
    app.add_exception_handler(RequestValidationError, on_invalid_fields)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Guard, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_middleware(Measured, metrics=app.state.metrics, inspector=app.state.inspector)
    app.add_middleware(RequestIdentity)
    return app


def _golden_of(collector: Collector, ledger: Ledger | None) -> GoldenSet:
    return GoldenSet(collector.inspector, collector.samples, partial(record_flips, ledger))


def _include_predict(app: FastAPI, settings: Settings) -> None:
    collector: Collector = app.state.collector
    app.state.predictor = Predictor(settings, collector.inspector.busy)
    app.include_router(predict.router)
    predict.mount_pictures(app, settings.static_dir)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    configure_logging(settings.log_level, settings.log_format)
    collector: Collector = app.state.collector
    logger.info("version %s, models in %s", __version__, settings.models_dir)
    for notice in unknown_settings():
        logger.warning("%s", sentence(notice, "en"))
    predictor: Predictor | None = getattr(app.state, "predictor", None)
    ledger: Ledger | None = app.state.ledger
    if ledger is not None:
        ledger.start()
    collector.start()
    app.state.golden.start()
    if predictor is not None:
        predictor.start(after=collector.inspector.host.queue)
    yield
    if predictor is not None:
        predictor.close()
    collector.close()
    drift_watch: DriftWatch = app.state.drift
    drift_watch.close()
    if ledger is not None:
        ledger.close()


@contract.get("/health", response_model=Health, response_model_exclude_unset=True, responses=RESPONSES)
def health(request: Request, inspector: InspectorDep, x_recipe_id: RecipeHeader = None) -> dict[str, Any]:
    """Whether the service is up, on which device, with which extractor."""
    own = {"request_id": request.state.request_id, "recipe_id": check_recipe(x_recipe_id)}
    may_change: bool = request.state.may_change
    predictor: Predictor | None = getattr(request.app.state, "predictor", None)
    known = inspector.health()
    if "reason" in known:
        known["reason"] = sentence(known["reason"], language_of(request.headers))
    return {**(predictor.health() if predictor else {}), **known, "may_change": may_change, **own}


@contract.post("/fit_ok", response_model=FitOkResponse, responses=RESPONSES)
async def fit_ok(
    request: Request,
    collector: CollectorDep,
    key: FormKey,
    mm_per_px: MmPerPx,
    change: Annotated[Change, Depends(change_form)],
    images: Annotated[
        list[UploadFile], File(description="Canonical ROIs of good parts.", json_schema_extra=PICKED_FILES)
    ] = [],  # noqa: B006
    use_dataset: Annotated[bool, Form(description="Fit from the stored OK samples, and from images if any.")] = False,
    shape: ShapeField = None,
) -> dict[str, Any]:
    """Build the memory of a model from images of good parts. It replaces the former one in one step, or grows it."""
    part = parse_shape(shape)
    files = [replace(file, shape=part) for file in uploads(images)]
    fit = partial(
        collector.fit,
        key,
        files,
        mm_per_px=mm_per_px,
        memory_fit=change.event == "grow",
        use_dataset=use_dataset,
        change=change,
    )
    result = await run_tracked(request, lambda job: fit(job=job))
    metrics: Metrics = request.app.state.metrics
    metrics.fitted(key, result)
    watch: DriftWatch = request.app.state.drift
    watch.fitted(key, result.metadata, result.appearances)
    metadata = result.metadata
    n_images, n_rows = metadata["n_images"], result.coreset_size
    logger.info("fit_ok %s: %d images, %d rows in %s ms", key, n_images, n_rows, result.timings_ms)
    named, names = suspects_of(result)
    return {
        "n_embeddings": metadata["n_embeddings"],
        "coreset_size": result.coreset_size,
        "token_shape": list(result.token_shape),
        "coreset_rate_requested": metadata["coreset_rate"],
        "coreset_rate_applied": metadata["coreset_rate_applied"],
        "n_images": metadata["n_images"],
        "radius": metadata["radius"],
        "model_version": metadata["model_version"],
        "generation": metadata["generation"],
        "suspects": [suspect_fields(one, names, language_of(request.headers)) for one in named],
        "timings_ms": result.timings_ms,
        "warnings": warned(request, [*result.warnings, *about_suspects(named, names)]),
        **identity(request, key),
    }


@contract.post(
    "/calibrate_ng", response_model=CalibrateResponse, response_model_exclude_unset=True, responses=RESPONSES
)
async def calibrate_ng(
    request: Request, inspector: InspectorDep, body: CalibrateRequest, x_recipe_id: RecipeHeader = None
) -> dict[str, Any]:
    """Choose the threshold from the scores of good parts and, if there are any, of bad ones."""
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    result = await run_job(
        request,
        lambda _: inspector.calibrate(
            key,
            ok_scores=body.ok_scores,
            ng_scores=body.ng_scores or (),
            mm_per_px=body.mm_per_px,
            area_mm2_thr=body.area_mm2_thr,
            score_percentile=body.score_percentile,
            terms=terms_of(request, body),
        ),
    )
    logger.info("calibrate_ng %s: threshold %.6g", key, result.values["threshold"])
    known = {name: value for name, value in result.values.items() if name in CalibrateResponse.model_fields}
    return {**known, "warnings": warned(request, result.warnings), **identity(request, key)}


@dataclass(frozen=True)
class Asked:
    """What /infer is asked for beside a verdict.

    `heatmap`: how to draw it; HEATMAP_SCALE when None. `master`: the name of the master that is shown, if it is one.
    """

    heatmap: HeatmapScale | None
    master: str | None


async def asked_form(
    heatmap: Annotated[
        str | None,
        Form(description="relative, absolute, color or none; HEATMAP_SCALE without it.", examples=LEFT_OUT),
    ] = None,
    golden: Annotated[
        str | None,
        Form(
            description="The name of a master that is shown: its verdict is held against that of the first time.",
            examples=LEFT_OUT,
        ),
    ] = None,
) -> Asked:
    """What a form asks for. Raises InvalidValue."""
    return Asked(_heatmap_scale(heatmap), checked_text(golden, "golden"))


def _heatmap_scale(value: str | None) -> HeatmapScale | None:
    text = (value or "").strip().lower()
    if text in {"relative", "absolute", "color", "none"}:
        return text  # type: ignore[return-value]
    if text:
        raise InvalidValue(field="heatmap", value=repr(text[:40]), expected="relative, absolute, color, none")
    return None


@contract.post("/infer", response_model=InferResponse, response_model_exclude_unset=True, responses=RESPONSES)
async def infer(
    request: Request,
    inspector: InspectorDep,
    key: FormKey,
    mm_per_px: MmPerPx,
    trace: Annotated[Trace, Depends(trace_form("infer"))],
    asked: Annotated[Asked, Depends(asked_form)],
    image: Annotated[UploadFile, File(description="The canonical ROI of the part.")],
    shape: ShapeField = None,
) -> Answer:
    """Inspect one part: its score, the verdict, a heatmap and the regions that differ from good parts.

    The verdict is recorded before it is answered; `inspection_id` is its name there.
    """
    (sent,) = uploads([image])
    file = replace(sent, shape=parse_shape(shape))
    recording = Recording(request, trace)
    watch: DriftWatch = request.app.state.drift
    golden: GoldenSet = request.app.state.golden

    def inspect(job: Job) -> tuple[InferResult, dict[str, Any]]:
        found = inspector.infer(key, file, mm_per_px=mm_per_px, heatmap=asked.heatmap, job=job)
        shown = None if asked.master is None else golden.show(key, asked.master, found)
        noticed = watch.add(key, found) if shown is None else shown.notices  # a master says nothing of the parts
        found = replace(found, warnings=[*found.warnings, *noticed])
        named, notices = recording.add(Verdict.of(key, file, found), job)
        own = {} if shown is None else {"golden": shown_fields(shown)}
        return replace(found, warnings=[*found.warnings, *notices, *unmeant(request)]), {**named, **own}

    result, named = await run_job(request, inspect, timeout_s=inspector.settings.request_timeout_s)
    score = result.inspection.score
    logger.info("infer %s: score %.6g, threshold %s, %s ms", key, score, result.threshold, result.timings_ms)
    metrics: Metrics = request.app.state.metrics
    metrics.inspected(key, result)
    return Answer({**identity(request, key), **named, **infer_fields(result, language_of(request.headers))})


@cache
def _default_app() -> FastAPI:
    try:
        return create_app()
    except StartupError as err:
        logger.critical(sentence(err, "en"))  # whoever imports the app shows a traceback, which has only the code
        raise


def __getattr__(name: str) -> Any:
    if name == "app":
        return _default_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
