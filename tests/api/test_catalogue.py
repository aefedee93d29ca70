"""The catalogue has words for everything that the code can say, in both languages, and for nothing else."""

import ast
import inspect
import re
import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError

from backend.api.catalogue import ERRORS, FAULTS, NOTICES, PHRASES, Entry, Language, Words, sentence, status_of
from backend.api.schemas import CalibrateDatasetRequest, CalibrateRequest, InferDatasetRequest
from backend.base import errors
from backend.base.config import Settings
from backend.base.errors import InspectionError
from backend.base.messages import Fault, Notice, Phrase, field_name

BACKEND = Path(errors.__file__).resolve().parent.parent
LANGUAGES: tuple[Language, Language] = ("es", "en")
TEXTS: dict[str, Words | Entry] = {
    f"{table}: {code}": text
    for table, texts in {"error": ERRORS, "notice": NOTICES, "phrase": PHRASES, "fault": FAULTS}.items()
    for code, text in texts.items()  # type: ignore[attr-defined]
}


def descendants(kind: type[InspectionError]) -> Iterator[type[InspectionError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


ALL = {kind.__name__: kind for kind in descendants(InspectionError)}


def named_in(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def values_in_the_tree() -> dict[str, set[str]]:
    """The values that each class of the tree in the docstring of `backend.base.errors` is said to carry."""
    lines = [line.partition("── ")[2] for line in (inspect.getdoc(errors) or "").splitlines()]
    pairs = [line.partition(": ") for line in lines if line]
    return {name: set(values.split(", ")) - {""} for name, _, values in pairs}


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """All syntax of backend/ but for the catalogue, each node with the file it is in."""
    return [
        (path.relative_to(BACKEND).as_posix(), node)
        for path in sorted(BACKEND.rglob("*.py"))
        if path.name != "catalogue.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    ]


def calls(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of one of `names`, and where it stands."""
    for file, node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield f"{file}:{node.lineno}", node


def texts(node: ast.AST) -> set[str]:
    """The texts that stand as such within `node`."""
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_every_error_has_an_entry_and_every_entry_an_error() -> None:
    assert ERRORS.keys() == {kind.code for kind in ALL.values()}
    assert not [code for code, entry in ERRORS.items() if not 400 <= entry.status < 600]


def test_every_notice_and_phrase_has_words_and_all_words_are_used() -> None:
    literal = {node.value for _, node in nodes() if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for kind, words in (("Notice", NOTICES), ("Phrase", PHRASES)):
        said = {text for _, call in calls(kind) for text in texts(call.args[0])}
        assert said <= words.keys()
        assert words.keys() <= literal, "an entry that nothing says"


def test_a_sentence_names_only_values_that_its_error_carries() -> None:
    named = {name: named_in(ERRORS[kind.code].en) - {"request_id"} for name, kind in ALL.items()}  # the edge knows that
    assert not [name for name, carried in values_in_the_tree().items() if not named[name] <= carried]


def test_errors_are_raised_with_the_values_that_they_carry() -> None:
    carried = values_in_the_tree()
    wrong = []
    for place, call in calls(*ALL):
        given = {keyword.arg for keyword in call.keywords}
        assert isinstance(call.func, ast.Name)
        if call.args or (None not in given and given != carried[call.func.id]):
            wrong.append(f"{place}: {call.func.id} carries {', '.join(carried[call.func.id]) or 'nothing'}")
    assert wrong == []


@pytest.mark.parametrize("kind", ["Notice", "Phrase"])
def test_notices_and_phrases_are_made_with_the_values_that_they_name(kind: str) -> None:
    words: dict[str, Words] = NOTICES if kind == "Notice" else PHRASES
    wrong: list[str] = []
    for place, call in calls(kind):
        code, *values = call.args
        if isinstance(code, ast.Constant) and not (values and not isinstance(values[0], ast.Dict)):
            given = {k.value for v in values for k in v.keys if isinstance(k, ast.Constant)}  # type: ignore[attr-defined]
            wrong += [place] if given != named_in(words[str(code.value)].en) else []
    assert wrong == []


def test_both_languages_say_the_same_things() -> None:
    assert not [code for code, text in TEXTS.items() if named_in(text.es) != named_in(text.en)]
    assert {code for code, text in TEXTS.items() if text.es == text.en} == {"error: validation_error"}  # a phrase alone


def test_no_sentence_keeps_a_hole_when_its_values_are_given() -> None:
    said = {
        f"{code} ({language})": getattr(text, language).format(**dict.fromkeys(named_in(text.en), 7))
        for code, text in TEXTS.items()
        for language in LANGUAGES
    }
    assert not [code for code, text in said.items() if "?" in text or "{" in text.replace('{"kind"', "")]


COUNTS = {"n", "count", "waiting", "total"}


def test_no_noun_has_to_agree_with_a_count() -> None:
    """One of them is as right as several: a count stands after a colon or a preposition, never before its noun."""
    wrong = []
    known: list[Words | Entry] = [*ERRORS.values(), *NOTICES.values()]
    for text in (template for words in known for template in (words.es, words.en)):
        pieces = list(string.Formatter().parse(text))
        for (_, name, *_), (after, *_) in zip(pieces, [*pieces[1:], ("", None, None, None)], strict=True):
            wrong += [text] if name in COUNTS and after[:1] not in {"", ".", ",", ";", ")"} else []
    assert wrong == []


# The customer's own sentence names the route, and its texts name where /docs is for a program that asked for no route.
NAME_A_ROUTE = {"error: memory_not_found", "error: not_found", "error: method_not_allowed", "phrase: body_not_object"}


def test_no_text_names_a_route_or_shows_a_regular_expression(standing: tuple[TestClient, Path]) -> None:
    client, _ = standing
    routes = {"/" + path.split("/")[1] for path in client.get("/openapi.json").json()["paths"]} | {"/docs"}
    in_text = re.compile(rf"(?<![\w/:.…])(?:{'|'.join(sorted(map(re.escape, routes)))})\b")
    expression = re.compile(r"\[[^\]\s]*\w-\w[^\]\s]*\]|\\[dws]|\[\^|\{pattern\}|\(\?")
    said = {code: f"{text.es}\n{text.en}" for code, text in TEXTS.items()}
    assert {code for code, text in said.items() if in_text.search(text)} == NAME_A_ROUTE
    assert not [code for code, text in said.items() if expression.search(text)]
    remedies = {k.value.value for _, call in calls(*ALL) for k in call.keywords if isinstance(k.value, ast.Constant)}
    assert not [text for text in remedies if isinstance(text, str) and text.startswith("/")]


def test_the_customers_phrases_are_kept() -> None:
    assert "Memoria no encontrada" in sentence(errors.MemoryNotFound(key="a/b"), "es")
    mismatch = errors.TokenGridMismatch(got=(1, 2), expected=(3, 4), name="x")
    for language in LANGUAGES:
        assert "Token grid mismatch: got (1, 2), expected (3, 4)" in sentence(mismatch, language)


def test_a_value_that_was_not_given_reads_as_a_question_mark() -> None:
    assert sentence(errors.EmptyFile(), "en") == "?: the file is empty."


def test_spanish_writes_measured_numbers_with_a_comma_and_names_as_they_are() -> None:
    said: list[tuple[Any, str, str]] = [
        (Notice("ok_with_region", {"area": "0.625"}), "región de 0,625 mm²", "region of 0.625 mm²"),
        (Notice("area_changed", {"former": "0.5", "new": "1.25"}), "de 0,5 mm² y ahora", "; 1.25 mm² are"),
        (Notice("promise_impossible", {"rate": "0.5"}), "un 0,5 %", "0.5 %"),
        (Notice("roi_size_differs", {"got": "8.5 × 6", "expected": "9 × 6.4"}), "8,5 × 6 mm", "9 × 6.4 mm"),
        (
            Phrase("golden_scores", {"name": "disc_0.5.png", "former": "0.41", "score": 0.39}),
            "disc_0.5.png tenía una puntuación de 0,41 y ahora tiene 0,39",
            "disc_0.5.png had a score of 0.41 and now has 0.39",
        ),
        (errors.FileTooLarge(name="a.b.png", limit="0.5"), "a.b.png supera el límite de 0,5 MB", "limit of 0.5 MB"),
        (Notice("ok_with_region"), "región de ? mm²", "region of ? mm²"),
    ]
    for one, spanish, english in said:
        assert spanish in sentence(one, "es") and english in sentence(one, "en")


def test_what_only_the_edge_knows_can_be_added() -> None:
    assert sentence(errors.ServerFault(), "en", request_id="r-1").endswith("r-1 in the service's log.")


def test_messages_within_a_sentence_are_said_in_its_language() -> None:
    why = Phrase("no_such_file", {"path": "w.pth"})
    broken = [errors.EmptyFile(name="a.png"), errors.UndecodableImage(name="b.png")]
    faults = [Fault("k", "missing"), Fault("m", "float_type")]
    said: list[tuple[Any, str, str]] = [
        (errors.WeightsUnavailable(model="m", reason=why), "no existe el fichero w.pth", "there is no file w.pth"),
        (
            Notice("degraded", {"model": "m", "reason": why, "extractor": "x"}),
            "(no existe el fichero w.pth)",
            "(there is no file w.pth)",
        ),
        (
            errors.BrokenImages(total=3, count=2, reasons=broken),
            "2. a.png: Archivo vacío. b.png: No se pudo",
            "2. a.png: the file is empty. b.png: the image could not",
        ),
        (
            errors.InvalidFields(reason=Phrase("fields_invalid", {"fields": faults})),
            "no son válidos: k: falta; m: debe ser un número.",
            "not valid: k: is missing; m: must be a number.",
        ),
    ]
    for one, spanish, english in said:
        assert spanish in sentence(one, "es") and english in sentence(one, "en")


def test_a_status_belongs_to_each_error() -> None:
    assert [status_of(error) for error in (errors.NoImages(), errors.DiskFull(), errors.QueueFull())] == [400, 507, 503]


HOSTILE: list[Any] = [None, "x", -1, 0, 101, 1.5, 1e300, float("nan"), [], [None], ["x"], {}, "\ud800", b"\xff", True]


@pytest.mark.parametrize("model", [CalibrateRequest, CalibrateDatasetRequest, InferDatasetRequest, Settings])
def test_whatever_the_fields_refuse_has_words(model: type[BaseModel]) -> None:
    found = set()
    for value in HOSTILE:
        with pytest.raises(ValidationError) as caught:
            model.model_validate(dict.fromkeys(model.model_fields, value))
        faults = [Fault(field_name(e["loc"]), e["type"], e.get("ctx", {})) for e in caught.value.errors()]
        found |= {(fault.kind, sentence(fault, "es")) for fault in faults}
    assert len(found) > 5
    assert {kind for kind, _ in found} <= FAULTS.keys()
    assert not [text for _, text in found if "?" in text or "{" in text]


def test_an_unforeseen_fault_still_names_its_field() -> None:
    assert sentence(Fault("a", "of_tomorrow"), "es") == "a: no es válido"


def test_choices_are_listed_without_words_of_one_language() -> None:
    fault = Fault("mode", "literal_error", {"expected": "'sensitive', 'normal' or 'strict'"})
    assert sentence(fault, "es") == "mode: debe ser uno de: sensitive, normal, strict"


def test_limits_are_said_as_people_write_them() -> None:
    assert sentence(Fault("k", "greater_than", {"gt": 0.0}), "en") == "k: must be greater than 0"
