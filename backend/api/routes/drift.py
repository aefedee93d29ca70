"""Whether the parts that come in still look like those of the fit, and if not, what has changed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from backend.api.catalogue import sentence
from backend.api.problems import language_of
from backend.api.requests import RESPONSES, QueryKey, identity
from backend.api.schemas import DriftResponse
from backend.assurance.watch import ADVICE, DriftWatch, place_words, utc

router = APIRouter(tags=["models"])


@router.get("/drift", response_model=DriftResponse, response_model_exclude_unset=True, responses=RESPONSES)
def drift(request: Request, key: QueryKey) -> dict[str, Any]:
    """Whether the parts of a model look as they did at first, and if not: what has changed, since when, what to do.

    The parts inspected by all workers count, stored samples do not.
    """
    watch: DriftWatch = request.app.state.drift
    found, language = watch.finding(key), language_of(request.headers)
    said: dict[str, Any] = {"state": found.state, "evidence": found.evidence}
    if found.cause is not None:
        advice = sentence(ADVICE[found.cause], language)
        said |= {"cause": found.cause, "since": utc(found.since_us), "advice": advice}
    if found.place is not None:
        where = sentence(place_words(*found.place), language)
        said |= {"where": where, "at": [round(share, 2) for share in found.place]}
    if found.state != "steady" and found.wanted:
        said |= {"learnt": found.learnt, "wanted": found.wanted}
    return {**said, **identity(request, key)}
