"""The record of every verdict: find inspections, look at them, explain them, review them, export them."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from itertools import chain
from time import monotonic
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from backend.api.catalogue import Language, sentence
from backend.api.problems import language_of
from backend.api.recording import LedgerDep
from backend.api.requests import RESPONSES, CollectorDep, identity, warned
from backend.api.uploads import UploadRoute
from backend.base.decoding import ImageOptions
from backend.base.errors import ImageNotKept, InvalidValue, RecordsUnavailable
from backend.base.keys import ModelKey
from backend.base.messages import Message, Phrase
from backend.records.entries import ReviewDraft
from backend.records.explaining import Form, overlay, reasons
from backend.records.export import as_csv
from backend.records.feed import Feed
from backend.records.ledger import Ledger
from backend.records.queries import MAX_LIMIT, Filters, Place, page, parse_order, parse_time
from backend.records.record import VERDICTS, Verdict
from backend.records.summaries import span_of, summary
from backend.records.verdicts import checked_text
from backend.samples.store import Draft, check_label, media_type
from backend.service.images import ImageFile, decoded

router = APIRouter(route_class=UploadRoute, tags=["records"], responses=RESPONSES)

STREAM_PERIOD_S = 0.2
STREAM_KEEPALIVE_S = 15.0
NOTE_MAX = 2000

Text = str | None


class FilterQuery(BaseModel):
    """Which inspections are meant; a parameter that is left out admits all."""

    role_id: Text = Field(None, description="Role of the model.")
    roi_id: Text = Field(None, description="ROI of the model.")
    recipe_id: Text = Field(None, description="Recipe of the model.")
    decision: Text = Field(None, description="`ok` or `ng`.")
    reviewed: Text = Field(None, description="`true`: only what somebody reviewed; `false`: only what nobody did.")
    part_id: Text = Field(None, description="The part.")
    batch_id: Text = Field(None, description="The batch.")
    station_id: Text = Field(None, description="The station.")
    except_station_id: Text = Field(None, description="A station to leave out, such as the console's: `console`.")
    since: Text = Field(None, description="From this date or time on (ISO 8601, UTC unless it says otherwise).")
    until: Text = Field(None, description="Before this date or time.")
    min_score: Text = Field(None, description="At least this score.")
    max_score: Text = Field(None, description="At most this score.")

    def parsed(self) -> Filters:
        """The filters. Raises InvalidValue: it names the parameter."""
        return Filters(
            role_id=checked_text(self.role_id, "role_id"),
            roi_id=checked_text(self.roi_id, "roi_id"),
            recipe_id=checked_text((self.recipe_id or "").lower(), "recipe_id"),
            station_id=checked_text(self.station_id, "station_id"),
            except_station_id=checked_text(self.except_station_id, "except_station_id"),
            part_id=checked_text(self.part_id, "part_id"),
            batch_id=checked_text(self.batch_id, "batch_id"),
            decision=_one_of("decision", self.decision, {"ok": "ok", "ng": "ng"}),
            reviewed=_one_of("reviewed", self.reviewed, {"true": True, "1": True, "false": False, "0": False}),
            since_us=parse_time(self.since, "since"),
            until_us=parse_time(self.until, "until"),
            min_score=_number("min_score", self.min_score),
            max_score=_number("max_score", self.max_score),
        )


class PageQuery(FilterQuery):
    """Which inspections, in which order, and how many."""

    order: str = Field("newest", description="`newest`, `oldest`, `score` (highest first), `informative` (to review).")
    limit: str = Field("100", description="How many at most, 1 to 1000.")
    cursor: Text = Field(None, description="`next_cursor` of the page before.")


class SummaryQuery(FilterQuery):
    """Which inspections, and by what they are counted."""

    bucket: str = Field("day", description="`hour`, `shift` (from 6, 14 and 22 o'clock) or `day`.")
    tz: Text = Field(None, description="The zone of shifts and days, such as Europe/Madrid; UTC without one.")


class InspectionPage(BaseModel):
    """Some inspections, and where the next ones begin."""

    items: list[dict[str, Any]]
    next_cursor: str | None = Field(description="Send it as `cursor` to go on; null at the end.")
    warnings: list[str] = []
    request_id: str


class ReviewRequest(BaseModel):
    """What a person says of an inspection."""

    model_config = ConfigDict(json_schema_extra={"example": {"verdict": "good"}})

    verdict: str = Field(description="`good`, `bad` or `unclear`: what the part is.", examples=["good"])
    defect: Text = Field(None, description="The kind of defect.")
    note: Text = Field(None, description="Anything else, at most 2000 characters.")
    reviewer: Text = Field(None, description="Who says so.")


class SampleRequest(BaseModel):
    """What the image of an inspection is an example of."""

    label: str = Field(description="`ok` or `ng`.", examples=["ok"])


@router.get("/inspections")
def list_inspections(request: Request, ledger: LedgerDep, query: Annotated[PageQuery, Query()]) -> InspectionPage:
    """A page of the recorded inspections."""
    filters, order, limit = query.parsed(), parse_order(query.order), _whole("limit", query.limit, MAX_LIMIT)
    after = Place.parse(query.cursor, order) if query.cursor else None
    with ledger.reading() as connection:
        found = page(connection, filters, order, limit, after)
    cursor = found.next.as_cursor() if found.next else None
    own = {"warnings": warned(request), "request_id": request.state.request_id}
    return InspectionPage(items=found.items, next_cursor=cursor, **own)


@router.get("/inspections/summary")
def summarise(request: Request, ledger: LedgerDep, query: Annotated[SummaryQuery, Query()]) -> dict[str, Any]:
    """Counts, yield, score quantiles (within 1 %), confirmed false alarms and misses by hour, shift or day."""
    filters = query.parsed()
    for name in ("part_id", "batch_id", "min_score", "max_score"):
        if getattr(filters, name) is not None:
            raise InvalidValue(field=name, value=repr(getattr(filters, name)), expected=Phrase("not_in_summaries"))
    with ledger.reading() as connection:
        found = summary(connection, span_of(connection, query.bucket, filters, query.tz), filters)
    return {**found, "warnings": warned(request), "request_id": request.state.request_id}


@router.get("/inspections/export", response_class=StreamingResponse)
def export(ledger: LedgerDep, query: Annotated[FilterQuery, Query()]) -> StreamingResponse:
    """The inspections that the filters admit as CSV, oldest first, however many they are."""
    filters = query.parsed()
    pieces = as_csv(ledger.database, filters)
    with ledger.asked():
        first = next(pieces)
    headers = {"Content-Disposition": 'attachment; filename="inspections.csv"', "Cache-Control": "no-store"}
    return StreamingResponse(chain([first], pieces), media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/inspections/stream", response_class=StreamingResponse)
async def stream(
    request: Request,
    ledger: LedgerDep,
    query: Annotated[FilterQuery, Query()],
    last_event_id: Annotated[Text, Header(description="Where an earlier stream ended: this one goes on there.")] = None,
) -> StreamingResponse:
    """The verdicts of all workers as they come, as server-sent events: each `data` is an item of /inspections."""
    filters = query.parsed()
    feed = Feed(ledger.database, last_event_id)
    missed = await anyio.to_thread.run_sync(lambda: _look(ledger, feed))
    request.scope["state"]["endless"] = True  # the server ends it when it stops
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(ledger, feed, filters, missed), media_type="text/event-stream", headers=headers)


@router.get("/inspections/{inspection_id}")
def get_inspection(request: Request, ledger: LedgerDep, inspection_id: str) -> dict[str, Any]:
    """All that is kept of one inspection, why its verdict was what it was, and what people said of it."""
    found = ledger.inspection(inspection_id)
    details = {name: value for name, value in found.details.items() if name not in {"regions", "warnings"}}
    return {
        **found.item,
        **details,
        "regions": [{**dict(zip("xywh", one["bbox"], strict=True)), **one} for one in found.details["regions"]],
        "warnings": [one["code"] for one in found.details["warnings"]],
        "reviews": found.reviews,
        "reasons": [_told(reason, language_of(request.headers)) for reason in reasons(found)],
        "prev_hash": found.prev_hash.hex(),
    }


@router.get("/inspections/{inspection_id}/image", response_class=Response)
def get_image(ledger: LedgerDep, inspection_id: str) -> Response:
    """The image that was inspected, byte for byte as it was sent, where it was kept (KEEP_IMAGES)."""
    data, suffix = ledger.image(ledger.inspection(inspection_id))
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type=media_type(f"image{suffix}"), headers=headers)


@router.get("/inspections/{inspection_id}/overlay", response_class=Response)
def get_overlay(
    ledger: LedgerDep,
    collector: CollectorDep,
    inspection_id: str,
    width: Annotated[Text, Query(description="At most so many pixels wide, 16 to 4096.")] = None,
    form: Annotated[Text, Query(alias="format", description="`png`, or `jpeg`, which is smaller.")] = None,
) -> Response:
    """The anomaly map and the regions over the image, or over a plain ground where that was not kept."""
    wide = None if width is None else _whole("width", width, 4096, least=16)
    kind: Form = _one_of("format", form, {"png": "png", "jpeg": "jpeg"}) or "png"
    found = ledger.inspection(inspection_id)
    try:
        data, _ = ledger.image(found)
        file = ImageFile(str(found.item.get("filename") or "image"), lambda: data)
        with decoded(file, ImageOptions.of(collector.settings)) as (_, seen):
            picture = overlay(found, seen.pixels, wide, kind)
    except ImageNotKept:
        picture = overlay(found, None, wide, kind)
    return Response(picture, media_type=f"image/{kind}", headers={"Cache-Control": "private, max-age=60"})


@router.post("/inspections/{inspection_id}/review")
def review(request: Request, ledger: LedgerDep, inspection_id: str, body: ReviewRequest) -> dict[str, Any]:
    """Say what the part really is. It is added to what others said; the last review counts."""
    verdict: Verdict = _one_of("verdict", body.verdict, {one: one for one in VERDICTS})
    if verdict is None:
        raise InvalidValue(field="verdict", value=repr(body.verdict), expected=", ".join(VERDICTS))
    name = ledger.review(
        ReviewDraft(
            inspection_id=inspection_id,
            verdict=verdict,
            defect=checked_text(body.defect, "defect"),
            note=checked_text(body.note, "note", NOTE_MAX, lines=True),
            reviewer=checked_text(body.reviewer, "reviewer"),
            key_id=getattr(request.state, "key_id", None),
            request_id=request.state.request_id,
        )
    )
    reviews = ledger.inspection(inspection_id).reviews
    own = {"inspection_id": inspection_id, "review_id": name, "request_id": request.state.request_id}
    return {**own, "verdict": verdict, "reviews": reviews, "warnings": warned(request)}


@router.post("/inspections/{inspection_id}/sample")
def make_sample(
    request: Request, ledger: LedgerDep, collector: CollectorDep, inspection_id: str, body: SampleRequest
) -> dict[str, Any]:
    """Store the image of an inspection as a sample of good (`ok`) or bad (`ng`) parts."""
    label = check_label(body.label)
    found = ledger.inspection(inspection_id)
    data, _ = ledger.image(found)
    item, details = found.item, found.details
    key = ModelKey.of(item["role_id"], item["roi_id"], item["recipe_id"])
    meta = {"inspection_id": inspection_id}
    draft = Draft(
        item["image"]["filename"], lambda: data, "inspection", details.get("mm_per_px"), details.get("shape"), meta
    )
    kept, notices = collector.keep(key, label, [draft])
    return {
        "status": "ok",
        "label": label,
        "saved": sum(one.new for one in kept),
        "files": [one.name for one in kept],
        "inspection_id": inspection_id,
        "warnings": warned(request, notices),
        **identity(request, key),
    }


def _told(reason: Message, language: Language) -> str:
    """A reason in words; a warning of another version, which this one has no words for, by its code."""
    try:
        return sentence(reason, language)
    except (KeyError, ValueError, TypeError):
        return sentence(Phrase("why_warned", {"code": reason.code}), language)


async def _events(ledger: Ledger, feed: Feed, filters: Filters, items: list[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events: the items, and whatever comes after them."""
    spoke = monotonic()
    yield "retry: 500\n\n"
    while True:
        for item in items:
            if filters.admits(item):
                spoke = monotonic()
                yield f"data: {json.dumps(item, ensure_ascii=False)}\n\n"
        if items:  # a client that loses its connection before this line is told them again
            yield f"id: {feed.place}\n\n"
        if monotonic() - spoke > STREAM_KEEPALIVE_S:
            spoke = monotonic()
            yield ": still there\n\n"
        await anyio.sleep(STREAM_PERIOD_S)
        try:
            items = await anyio.to_thread.run_sync(lambda: _look(ledger, feed))
        except RecordsUnavailable:
            items = []


def _look(ledger: Ledger, feed: Feed) -> list[dict[str, Any]]:
    with ledger.asked():
        return feed.look()


def _one_of(field: str, text: str | None, choices: dict[str, Any]) -> Any:
    """The choice that `text` names, in any case; None for None or blank. Raises InvalidValue."""
    word = (text or "").strip().lower()
    if word and word not in choices:
        raise InvalidValue(field=field, value=repr(word[:40]), expected=", ".join(choices))
    return choices[word] if word else None


def _number(field: str, text: str | None) -> float | None:
    """A finite number; None for None or blank. Raises InvalidValue."""
    if text is None or not text.strip():
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidValue(field=field, value=repr(text[:40]), expected=Phrase("finite_number"))
    return number


def _whole(field: str, text: str, most: int, *, least: int = 1) -> int:
    """A whole number from `least` to `most`. Raises InvalidValue."""
    if not text.isascii() or not text.isdecimal() or len(text) > 12 or not least <= int(text) <= most:
        raise InvalidValue(
            field=field, value=repr(text[:40]), expected=Phrase("whole_number", {"least": least, "most": most})
        )
    return int(text)
