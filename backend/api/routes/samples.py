"""Stored samples: upload, list, look at, look for what is not good among them, relabel, delete."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Path, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile as AnyUpload

from backend.api.answers import reviewed_fields
from backend.api.meant import BodyOf
from backend.api.problems import language_of
from backend.api.requests import (
    RESPONSES,
    CollectorDep,
    FormKey,
    MmPerPx,
    QueryKey,
    RecipeHeader,
    ShapeField,
    described,
    identity,
    run_job,
    run_tracked,
    warned,
)
from backend.api.schemas import RelabelRequest
from backend.api.uploads import PICKED_FILES, UploadRoute, uploads
from backend.assurance.review import Reviewer
from backend.assurance.suspects import SHOWN
from backend.base.decoding import ImageOptions
from backend.base.errors import InvalidValue
from backend.base.images import encode_jpeg, resize
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.roi_mask import parse_shape
from backend.samples.collector import Collector
from backend.samples.intake import drafts
from backend.samples.nearest import Box, nearest_good
from backend.samples.store import LABELS, Kept, check_label, media_type
from backend.service.images import ImageFile, decoded

router = APIRouter(route_class=UploadRoute, tags=["samples"])

Label = Annotated[str, Path(description="`ok` or `ng`.", examples=["ok"])]
LabelQuery = Annotated[str, Query(description="`ok` or `ng`.", examples=["ok"])]
Filename = Annotated[str, Query(description="Name of the image, as /datasets/list gives it.")]
Images = Annotated[
    list[UploadFile], File(description="Canonical ROIs; all are stored, or none.", json_schema_extra=PICKED_FILES)
]
Metas = Annotated[list[Any], Form(description="One JSON object per image, in the same order, or none.")]
Scale = Annotated[
    float | None,
    Form(
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Millimetres per pixel of images whose metas do not say.",
        examples=[0.2],
    ),
]


Side = Annotated[float, Form(gt=0, allow_inf_nan=False, examples=[40])]
Place = Annotated[float, Form(ge=0, allow_inf_nan=False, examples=[100])]


async def _box(x: Place, y: Place, w: Side, h: Side) -> Box:
    """Where in the image, in its pixels: the left upper corner and the sides, as a region of /infer has them."""
    return x, y, w, h


@router.post("/datasets/{label}/upload", responses=RESPONSES)
async def upload(
    request: Request,
    collector: CollectorDep,
    label: Label,
    key: FormKey,
    images: Images = [],  # noqa: B006
    metas: Metas = [],  # noqa: B006
    mm_per_px: Scale = None,
    shape: ShapeField = None,
) -> dict[str, Any]:
    """Store samples of good (`ok`) or bad (`ng`) parts: all of them, or none if one cannot be used."""
    intake = _Intake(collector, key, check_label(label), "upload", uploads(images), await _texts(metas))
    kept, notices = await run_tracked(request, lambda _: intake.keep(mm_per_px, shape))
    return {**_kept(kept), "label": intake.label, "warnings": warned(request, notices), **identity(request, key)}


@router.post("/send_ng", responses=RESPONSES)
async def send_ng(
    request: Request,
    collector: CollectorDep,
    key: FormKey,
    images: Images = [],  # noqa: B006
    metas: Metas = [],  # noqa: B006
    mm_per_px: Scale = None,
    shape: ShapeField = None,
) -> dict[str, Any]:
    """Store bad parts, to calibrate with later. With STORE_SAMPLES=0 they are checked and not kept."""
    intake = _Intake(collector, key, "ng", "send_ng", uploads(images), await _texts(metas))
    store = collector.settings.store_samples
    kept, notices = await run_tracked(request, lambda _: intake.keep(mm_per_px, shape, store=store))
    return {**_kept(kept), "label": "ng", "warnings": warned(request, notices), **identity(request, key)}


@router.get("/datasets/list", responses=RESPONSES)
def list_samples(request: Request, collector: CollectorDep, key: QueryKey) -> dict[str, Any]:
    """The stored samples by label, and which of them have metadata."""
    return {"classes": collector.listing(key), "warnings": warned(request), **identity(request, key)}


@router.get("/datasets/file", responses=RESPONSES, response_class=FileResponse)
def get_file(collector: CollectorDep, key: QueryKey, label: LabelQuery, filename: Filename) -> Response:
    """The image, byte for byte as it was sent."""
    path = collector.samples.path(key, check_label(label), filename)
    return FileResponse(path, media_type=media_type(filename), headers={"X-Content-Type-Options": "nosniff"})


@router.get("/datasets/meta", responses=RESPONSES)
def get_meta(
    request: Request, collector: CollectorDep, key: QueryKey, label: LabelQuery, filename: Filename
) -> dict[str, Any]:
    """What is known of a sample: what was sent with it, and what the service added."""
    label = check_label(label)
    meta = collector.samples.meta(key, label, filename)
    return {**meta, "label": label, "filename": filename, **identity(request, key)}


@router.get("/datasets/thumb", responses=RESPONSES, response_class=Response)
def get_thumb(
    collector: CollectorDep,
    key: QueryKey,
    label: LabelQuery,
    filename: Filename,
    size: Annotated[int, Query(ge=16, le=1024, description="Longer side at most, px.")] = 160,
) -> Response:
    """A small JPEG of a sample."""
    file = ImageFile(filename, partial(collector.samples.read, key, check_label(label), filename))
    with decoded(file, ImageOptions.of(collector.settings)) as (_, found):
        scale = min(1.0, size / max(found.pixels.shape[:2]))
        small = resize(found.pixels, *(max(1, round(side * scale)) for side in found.pixels.shape[:2]))
    return Response(encode_jpeg(small), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/datasets/suspects", responses=RESPONSES)
async def get_suspects(
    request: Request,
    collector: CollectorDep,
    key: QueryKey,
    limit: Annotated[int, Query(ge=1, le=200, description="Samples at most, the most suspect first.")] = SHOWN,
    heatmap: Annotated[bool, Query(description="With a heatmap of what sets each apart.")] = True,
) -> dict[str, Any]:
    """The stored OK samples by how much they stand out from the others, as a bad part among good ones does."""
    review = await run_tracked(request, lambda job: Reviewer(collector, key).review(limit, job))
    language = language_of(request.headers)
    return {
        "suspects": [reviewed_fields(one, language, heatmap=heatmap) for one in review.parts],
        "n_images": review.n_images,
        "warnings": warned(request, review.notices),
        **identity(request, key),
    }


@router.post("/nearest", responses=RESPONSES)
async def get_nearest(
    request: Request,
    collector: CollectorDep,
    key: FormKey,
    mm_per_px: MmPerPx,
    box: Annotated[Box, Depends(_box)],
    image: Annotated[UploadFile, File(description="The canonical ROI of the part.")],
    shape: ShapeField = None,
) -> dict[str, Any]:
    """What good parts look like where this one differs: the stored sample, and the place in it, that comes nearest.

    Nothing is recorded.
    """
    (sent,) = uploads([image])
    file = replace(sent, shape=parse_shape(shape))
    found, notices = await run_job(
        request, lambda job: nearest_good(collector, key, file, box, mm_per_px=mm_per_px, job=job)
    )
    place = found and {
        "label": "ok",
        "filename": found.name,
        **{name: round(value, 1) for name, value in zip("xywh", found.box, strict=True)},
        "distance": found.distance,
    }
    return {"nearest": place, "warnings": warned(request, notices), **identity(request, key)}


@router.post("/datasets/relabel", responses=RESPONSES, openapi_extra=described(RelabelRequest))
async def relabel(
    request: Request,
    collector: CollectorDep,
    body: Annotated[RelabelRequest, Depends(BodyOf(RelabelRequest))],
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Give a sample the other label. A memory fitted with it stays as it is until the next fit."""
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    label, to = check_label(body.label), check_label(body.to)
    if label == to:
        raise InvalidValue(field="to", value=repr(to), expected=LABELS[1 - LABELS.index(label)])
    there = await run_job(request, lambda _: collector.samples.move(key, body.filename, label, to))
    return {"filename": there, "from": label, "to": to, **identity(request, key)}


@router.delete("/datasets/file", responses=RESPONSES)
def delete_file(
    request: Request, collector: CollectorDep, key: QueryKey, label: LabelQuery, filename: Filename
) -> dict[str, Any]:
    """Delete one sample. A memory fitted with it stays as it is."""
    collector.samples.delete(key, check_label(label), filename)
    return {"deleted": True, "warnings": warned(request), **identity(request, key)}


@router.delete("/datasets/clear", responses=RESPONSES)
def clear(
    request: Request,
    collector: CollectorDep,
    key: QueryKey,
    label: Annotated[str | None, Query(description="`ok` or `ng`; both without it.")] = None,
) -> dict[str, Any]:
    """Delete all samples of a label. A memory fitted with them stays as it is."""
    labels = (check_label(label),) if label else LABELS
    cleared = collector.samples.clear(key, labels)
    return {"cleared": cleared, "warnings": warned(request), **identity(request, key)}


class _Intake:
    """The images and metadata of one upload, on their way into the store."""

    def __init__(
        self, collector: Collector, key: ModelKey, label: str, source: str, files: list[ImageFile], metas: list[str]
    ) -> None:
        self.collector, self.key, self.label, self.source = collector, key, label, source
        self.files, self.metas = files, metas

    def keep(
        self, mm_per_px: float | None, shape: str | None, *, store: bool = True
    ) -> tuple[list[Kept], list[Notice]]:
        ready, notices = drafts(
            self.files,
            self.metas,
            source=self.source,
            mm_per_px=mm_per_px,
            shape=parse_shape(shape),
            options=ImageOptions.of(self.collector.settings),
        )
        if not store:
            return [], [*notices, Notice("samples_not_kept", {"reason": "STORE_SAMPLES=0"})]
        kept, more = self.collector.keep(self.key, self.label, ready)
        return kept, notices + more


async def _texts(metas: list[Any]) -> list[str]:
    """The metas parts as text, whether their client sent them as fields or as files."""
    parts = [await part.read() if isinstance(part, AnyUpload) else part for part in metas]
    return [part.decode("utf-8-sig", "replace") if isinstance(part, bytes) else str(part) for part in parts]


def _kept(kept: list[Kept]) -> dict[str, Any]:
    return {
        "status": "ok",
        "saved": sum(k.new for k in kept),
        "duplicates": sum(not k.new for k in kept),
        "files": [k.name for k in kept],
    }
