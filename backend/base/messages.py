"""What the layers below HTTP have to say, as codes and data. The words for each code are in `backend.api.catalogue`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

FAULTS_KEPT = 10  # of a thousand values that are all wrong, the first ten are enough to mend the request

Location = Sequence[str | int]


@dataclass(frozen=True)
class Message:
    """A stable code and the data that belong to it; a value may be a message or an error itself, or a list of them."""

    code: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return brief(self.code, self.values)


class Notice(Message):
    """A warning that travels with an answer."""


class Phrase(Message):
    """Part of a sentence: why something is so, as the `reason` of an error."""


@dataclass(frozen=True)
class Fault:
    """A field that was sent or set, and what is wrong with it: `kind` and `values` are pydantic's `type` and `ctx`."""

    name: str
    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}: {brief(self.kind, self.values)}"


def faults_of(errors: Iterable[Mapping[str, Any]], name: Callable[[Location], str]) -> list[Fault]:
    """The first ten of what pydantic's `ValidationError.errors()` lists.

    Args:
        name: gives the field's name from pydantic's `loc`.
    """
    return [Fault(name(e["loc"]), e["type"], e.get("ctx", {})) for e in islice(errors, FAULTS_KEPT)]


def field_name(loc: Location) -> str:
    """A field's name, with the number of a value in a list: `ok_scores[3]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def brief(code: str, values: Mapping[str, Any]) -> str:
    """`code(name=value, …)`: how logs show what only the catalogue has words for."""
    told = ", ".join(f"{name}={_shown(value)}" for name, value in values.items())
    return f"{code}({told})" if told else code


def _shown(value: Any) -> str:
    return f"[{'; '.join(map(str, value))}]" if isinstance(value, list) else str(value)
