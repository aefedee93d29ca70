"""What is wrong with a field that was sent or set, in Spanish and English, by pydantic's type of the error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.base.messages import Language, Lenient

SHOWN = 10  # fields that one sentence names

_NUMBER = ("debe ser un número", "must be a number")
_WHOLE = ("debe ser un número entero", "must be a whole number")
_SWITCH = ("debe ser true o false", "must be true or false")
_TEXT = ("debe ser un texto", "must be text")
_LIST = ("debe ser una lista", "must be a list")
_OBJECT = ("debe ser un objeto JSON", "must be a JSON object")
_CHOICE = ("debe ser uno de: {choices}", "must be one of: {choices}")
_FILE = ("debe ser un fichero", "must be a file")
_OTHER = ("no es válido", "is not valid")

FAULTS: dict[str, tuple[str, str]] = {
    "missing": ("falta", "is missing"),
    "greater_than": ("debe ser mayor que {gt}", "must be greater than {gt}"),
    "greater_than_equal": ("debe ser {ge} o más", "must be {ge} or more"),
    "less_than": ("debe ser menor que {lt}", "must be less than {lt}"),
    "less_than_equal": ("debe ser {le} o menos", "must be {le} or less"),
    "finite_number": ("debe ser un número finito", "must be a finite number"),
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "string_type": _TEXT,
    "string_unicode": _TEXT,
    "string_too_short": ("debe tener {min_length} o más caracteres", "must have {min_length} or more characters"),
    "string_too_long": ("debe tener {max_length} o menos caracteres", "must have {max_length} or fewer characters"),
    "string_pattern_mismatch": ("debe tener la forma {pattern}", "must have the form {pattern}"),
    "list_type": _LIST,
    "tuple_type": _LIST,
    "too_short": ("debe tener {min_length} o más valores", "must have {min_length} or more values"),
    "too_long": ("debe tener {max_length} o menos valores", "must have {max_length} or fewer values"),
    "model_attributes_type": _OBJECT,
    "model_type": _OBJECT,
    "dict_type": _OBJECT,
    "literal_error": _CHOICE,
    "enum": _CHOICE,
    "path_type": ("debe ser una ruta", "must be a path"),
    "value_error": _FILE,  # FastAPI's only one: text where an upload belongs
    "hashed_key": (
        "tras sha256: van las 64 cifras hexadecimales del SHA-256 de una clave",
        "after sha256: come the 64 hexadecimal digits of a key's SHA-256",
    ),
    "rate": ("debe ser como 600/minute", "must be such as 600/minute"),
    "keep_images": (
        "debe ser all, none o una lista de ng, near y 1/N, como ng,near,1/100",
        "must be all, none, or a list of ng, near and 1/N, such as ng,near,1/100",
    ),
    "block_numbers": ("debe ser números de bloque como 9,11", "must be block numbers such as 9,11"),
    "even": (
        "debe ser impar: una vecindad tiene su token en el centro",
        "must be odd: a neighbourhood has its token in the middle",
    ),
}


@dataclass(frozen=True)
class Fault:
    """One field and what is wrong with it. `kind` and `values` are the type and ctx of a pydantic error."""

    field: str
    kind: str
    values: Mapping[str, Any]

    def text(self, language: Language) -> str:
        """`field: what is wrong with it`."""
        es, en = FAULTS.get(self.kind, _OTHER)
        choices = ", ".join(re.findall(r"'([^']*)'", str(self.values.get("expected", ""))))
        values = Lenient({**{name: _short(value) for name, value in self.values.items()}, "choices": choices})
        return f"{self.field}: {(es if language == 'es' else en).format_map(values)}"


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Faults:
    """Several faults as one text, in whichever language it is asked for."""

    faults: Sequence[Fault]

    def text(self, language: Language) -> str:
        """The first of them, separated by semicolons."""
        return "; ".join(fault.text(language) for fault in self.faults[:SHOWN])

    def __str__(self) -> str:
        return self.text("en")


def place(loc: Sequence[str | int]) -> str:
    """A field's name and, of a value in a list, its number: `ok_scores[3]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")
