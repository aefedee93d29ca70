"""What a request sends that its route cannot mean: names that it does not have, and single values that come twice.

What a route has is read from its own declaration, so a parameter or field that is added there is known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from pydantic import BaseModel, ValidationError

from backend.base.errors import BadForm, FieldTwice
from backend.base.messages import Notice

M = TypeVar("M", bound=BaseModel)

# The station's present program sends these with every request, to routes that have no use for them too.
STATIONS_OWN = frozenset({"model_key", "recipe_id"})
NAMES_SHOWN = 10

Known = dict[str, bool]  # a name, and whether it may come several times


class BodyOf(Generic[M]):
    """A dependency that reads `model` from a JSON body or from a form."""

    def __init__(self, model: type[M]) -> None:
        self.model = model
        self._several = [name for name, several in _fields_of(model) if several]

    async def __call__(self, request: Request) -> M:
        """The body as the model. Raises RequestValidationError, BadForm."""
        try:
            if _is_form(request):
                form = await request.form()
                given: Any = {name: form.getlist(name) if name in self._several else form[name] for name in form}
            else:
                given = await request.json()
            return self.model.model_validate(given)
        except ValidationError as err:
            raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in err.errors()]) from err
        except (ValueError, RecursionError) as err:
            raise BadForm() from err


async def look_for_what_is_not_meant(request: Request) -> None:
    """Refuse a single value that was sent twice, and keep a notice of unknown names for the answer (`unmeant`).

    Raises:
        FieldTwice: in the query or in a form; in JSON, `base.errors.once_each` raises it.
    """
    dependant: Dependant | None = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return
    parts = [(dict(_parameters(dependant, "query_params")), [name for name, _ in request.query_params.multi_items()])]
    body = dict(_parameters(dependant, "body_params"))
    if body:
        parts.append((body, await _sent(request, dependant)))
    unknown: list[str] = []
    for known, sent in parts:
        _refuse_repeated(name for name, n in Counter(sent).items() if n > 1 and known.get(name) is False)
        unknown += [name for name in dict.fromkeys(sent) if name not in known and name not in STATIONS_OWN]
    if unknown:
        names = ", ".join(name[:40] for name in unknown[:NAMES_SHOWN])
        request.state.unmeant = [Notice("unknown_fields", {"names": names})]


def unmeant(request: Request) -> Sequence[Notice]:
    """What is to be said of the names that the request sent and its route does not have."""
    said: Sequence[Notice] = getattr(request.state, "unmeant", ())
    return said


def _refuse_repeated(names: Iterable[str]) -> None:
    for name in names:
        raise FieldTwice(field=name[:40])


async def _sent(request: Request, dependant: Dependant) -> list[str]:
    """The names in a form or in a JSON object; none where the body is not what the route reads, which refuses it."""
    if _is_form(request):
        if not _reads_forms(dependant):
            return []
        return [name for name, _ in (await request.form()).multi_items()]
    try:
        given = await request.json()
    except (ValueError, RecursionError):
        return []
    return list(given) if isinstance(given, dict) else []


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "").lower()
    return kind.startswith(("multipart/", "application/x-www-form"))


def _reads_forms(dependant: Dependant) -> bool:
    own = isinstance(dependant.call, BodyOf) or any(isinstance(f.field_info, Form) for f in dependant.body_params)
    return own or any(_reads_forms(one) for one in dependant.dependencies)


def _parameters(dependant: Dependant, place: str) -> Iterator[tuple[str, bool]]:
    for field in getattr(dependant, place):
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields_of(annotation)
        else:
            yield field.alias, get_origin(annotation) is list
    if place == "body_params" and isinstance(dependant.call, BodyOf):
        yield from _fields_of(dependant.call.model)
    for one in dependant.dependencies:
        yield from _parameters(one, place)


def _fields_of(model: type[BaseModel]) -> Iterator[tuple[str, bool]]:
    for name, field in model.model_fields.items():
        yield field.alias or name, get_origin(field.annotation) is list
