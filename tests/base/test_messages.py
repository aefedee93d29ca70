from collections.abc import Iterator
from typing import Any

from backend.base.messages import FAULTS_KEPT, Fault, faults_of, field_name


def test_a_field_is_named_with_the_number_of_the_value_in_its_list() -> None:
    assert field_name(("ok_scores", 3)) == "ok_scores[3]"
    assert field_name(("shape", "r")) == "shape.r"
    assert field_name(()) == ""


def test_faults_keep_what_pydantic_says_of_them() -> None:
    said: list[dict[str, Any]] = [
        {"loc": ("k",), "type": "greater_than", "ctx": {"gt": 0}},
        {"loc": ("m",), "type": "missing"},
    ]
    assert faults_of(said, field_name) == [Fault("k", "greater_than", {"gt": 0}), Fault("m", "missing", {})]


def test_of_very_many_faults_only_the_first_are_looked_at() -> None:
    looked_at = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield {"loc": ("ok_scores", looked_at), "type": "float_type"}

    assert len(faults_of(endless(), field_name)) == FAULTS_KEPT
    assert looked_at <= FAULTS_KEPT + 1
