"""Golden samples: mark them, look at them, score them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from backend.api.catalogue import sentence
from backend.api.meant import BodyOf
from backend.api.problems import language_of
from backend.api.requests import (
    RESPONSES,
    QueryKey,
    RecipeHeader,
    change_of,
    described,
    identity,
    run_job,
    run_tracked,
    warned,
)
from backend.api.uploads import UploadRoute
from backend.assurance.golden import GoldenSet, Outcome, Run, about
from backend.base.keys import ModelKey

router = APIRouter(route_class=UploadRoute, tags=["models"])


async def get_golden(request: Request) -> GoldenSet:
    """The app's golden samples."""
    golden: GoldenSet = request.app.state.golden
    return golden


GoldenDep = Annotated[GoldenSet, Depends(get_golden)]


class GoldenRequest(BaseModel):
    """A stored sample that must get a certain verdict from now on."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"role_id": "Master1", "roi_id": "Pattern", "filename": "part.png", "golden": True}
        }
    )

    role_id: str
    roi_id: str
    recipe_id: str | None = None
    filename: str = Field(description="Name of the image, as /datasets/list gives it; to unmark it, also of a master.")
    expected: Literal["ok", "ng"] | None = Field(None, description="The verdict that it must get; its label's without.")
    golden: bool = Field(True, description="false: it is golden no longer.")
    author: str | None = Field(None, max_length=128, description="Who says so; the API key's name without it.")
    note: str | None = Field(None, max_length=2000, description="Kept with it.")


class ModelRequest(BaseModel):
    """Which model is meant."""

    model_config = ConfigDict(json_schema_extra={"example": {"role_id": "Master1", "roi_id": "Pattern"}})

    role_id: str
    roi_id: str
    recipe_id: str | None = None


@router.post("/datasets/golden", responses=RESPONSES, openapi_extra=described(GoldenRequest))
async def mark(
    request: Request,
    golden: GoldenDep,
    body: Annotated[GoldenRequest, Depends(BodyOf(GoldenRequest))],
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Make a stored sample golden, or no longer so, and say what verdict each golden sample gets now."""
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    said = change_of(request, "golden", body.author, body.note).said()

    def work(_: Any) -> Run:
        golden.mark(key, body.filename, body.expected, golden=body.golden, **said)
        return golden.run(key)

    return {**_told(request, await run_job(request, work)), **identity(request, key)}


@router.get("/golden", responses=RESPONSES)
def get_samples(request: Request, golden: GoldenDep, key: QueryKey) -> dict[str, Any]:
    """The golden samples and masters, and what came of the samples the last time that this process scored them."""
    last = golden.runs.get(key)
    known = list(golden.samples(key).values())
    masters = [{"name": name, **one} for name, one in golden.masters(key).items()]
    return {
        "samples": known,
        "masters": masters,
        **({"last": _told(request, last)} if last else {}),
        **identity(request, key),
    }


@router.post("/golden/run", responses=RESPONSES, openapi_extra=described(ModelRequest))
async def run(
    request: Request,
    golden: GoldenDep,
    body: Annotated[ModelRequest, Depends(BodyOf(ModelRequest))],
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Score the golden samples with the model in use and name those that lost their verdict."""
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    done = await run_tracked(request, lambda job: golden.run(key, job))
    return {**_told(request, done), **identity(request, key)}


def _told(request: Request, run: Run) -> dict[str, Any]:
    language = language_of(request.headers)

    def item(one: Outcome) -> dict[str, Any]:
        numbers = {"former_score": one.former_score, "score": one.score, "decision": one.verdict}
        own = {name: value for name, value in numbers.items() if value is not None}
        error = {} if one.error is None else {"error": sentence(one.error, language)}
        return {"filename": one.filename, "expected": one.expected, "right": one.right, **own, **error}

    return {
        "time": run.time,
        "generation": run.generation,
        "n_total": len(run.outcomes),
        "n_right": sum(one.right for one in run.outcomes),
        "flips": [item(one) for one in run.flips],
        "items": [item(one) for one in run.outcomes],
        "warnings": warned(request, about(run)),
    }
