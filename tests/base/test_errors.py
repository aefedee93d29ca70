import inspect
import string
from collections.abc import Iterator

import pytest

from backend.base import errors
from backend.base.errors import InspectionError, Notice
from backend.base.messages import NOTICES


def descendants(kind: type[InspectionError]) -> Iterator[type[InspectionError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


def named_in(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


ALL: list[type[InspectionError]] = sorted(
    {InspectionError, *descendants(InspectionError)}, key=lambda kind: kind.__name__
)


def test_each_code_belongs_to_one_kind_of_error() -> None:
    owners: dict[str, list[str]] = {}
    for kind in ALL:
        if "code" in vars(kind):
            owners.setdefault(kind.code, []).append(kind.__name__)
    shared = {code: names for code, names in owners.items() if len(names) > 1}
    assert shared == {"internal_error": ["InspectionError", "ServerFault"]}  # the same fault, by its public name


@pytest.mark.parametrize("kind", ALL)
def test_both_languages_say_the_same_things(kind: type[InspectionError]) -> None:
    assert named_in(kind.es) == named_in(kind.en)
    assert kind.es != kind.en
    assert 400 <= kind.status < 600


@pytest.mark.parametrize("kind", ALL)
def test_no_sentence_keeps_a_hole_when_its_values_are_given(kind: type[InspectionError]) -> None:
    error = kind(**dict.fromkeys(named_in(kind.en), 7))
    for language in ("es", "en"):
        text = error.text(language)
        assert "?" not in text and "{" not in text.replace('{"kind"', "")
    assert str(error) == error.text("en")


def test_a_value_that_was_not_given_reads_as_a_question_mark() -> None:
    assert errors.EmptyFile().text("en") == "?: the file is empty."


@pytest.mark.parametrize("code", NOTICES)
def test_notices_speak_both_languages(code: str) -> None:
    spanish, english = NOTICES[code]
    assert named_in(spanish) == named_in(english)
    notice = Notice(code, dict.fromkeys(named_in(english), 0.5))
    assert notice.text("es") != notice.text("en")
    assert "?" not in notice.text("es") + notice.text("en")


COUNTS = {"n", "count", "waiting", "total"}


@pytest.mark.parametrize(
    "template",
    [
        *(text for kind in ALL for text in (kind.es, kind.en)),
        *(text for texts in NOTICES.values() for text in texts),
    ],
)
def test_no_noun_has_to_agree_with_a_count(template: str) -> None:
    """One of them is as right as several: a count stands after a colon or a preposition, never before its noun."""
    pieces = list(string.Formatter().parse(template))
    for (_, name, *_), (after, *_) in zip(pieces, [*pieces[1:], ("", None, None, None)], strict=True):
        assert name not in COUNTS or after[:1] in {"", ".", ",", ";", ")"}, template


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = inspect.getdoc(errors) or ""
    missing = [kind.__name__ for kind in ALL if kind.__module__ == errors.__name__ and kind.__name__ not in drawn]
    assert missing == []


def test_the_customers_phrases_are_kept() -> None:
    assert "Memoria no encontrada" in errors.MemoryNotFound(key="a/b").text("es")
    grids = {"got": (1, 2), "expected": (3, 4), "name": "x"}
    for language in ("es", "en"):
        assert "Token grid mismatch: got (1, 2), expected (3, 4)" in errors.TokenGridMismatch(**grids).text(language)
