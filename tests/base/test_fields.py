import string
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from backend.api.schemas import CalibrateRequest
from backend.api.schemas_samples import CalibrateDatasetRequest, InferDatasetRequest
from backend.base.config import Settings
from backend.base.fields import FAULTS, SHOWN, Fault, Faults, place

HOSTILE: list[Any] = [None, "x", -1, 0, 101, 1.5, 1e300, float("nan"), [], [None], ["x"], {}, "\ud800", b"\xff", True]


def test_every_fault_is_said_in_both_languages() -> None:
    for spanish, english in FAULTS.values():
        named = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (spanish, english)]
        assert spanish != english and named[0] == named[1]


@pytest.mark.parametrize("model", [CalibrateRequest, CalibrateDatasetRequest, InferDatasetRequest, Settings])
def test_whatever_the_fields_refuse_has_words(model: type[BaseModel], monkeypatch: pytest.MonkeyPatch) -> None:
    # The environment and the files beside it, which Settings would read each time, have no say in what a field takes.
    monkeypatch.setattr(Settings, "settings_customise_sources", lambda _, init_settings, *__, **___: (init_settings,))
    seen = set()
    for name in model.model_fields:
        for value in HOSTILE:
            try:
                model.model_validate({name: value})
            except ValidationError as err:
                seen |= {(e["type"], Fault(name, e["type"], e.get("ctx", {})).text("es")) for e in err.errors()}
    assert {kind for kind, _ in seen} <= FAULTS.keys()
    assert not [text for _, text in seen if "?" in text or "{" in text]


def test_an_unforeseen_fault_still_names_its_field() -> None:
    assert Fault("a", "of_tomorrow", {}).text("es") == "a: no es válido"


def test_choices_are_listed_without_words_of_one_language() -> None:
    fault = Fault("mode", "literal_error", {"expected": "'sensitive', 'normal' or 'strict'"})
    assert fault.text("es") == "mode: debe ser uno de: sensitive, normal, strict"


def test_a_long_list_of_faults_is_cut() -> None:
    faults = Faults([Fault(place(("ok_scores", n)), "float_type", {}) for n in range(1000)])
    assert faults.text("en").count(";") == SHOWN - 1 and str(faults).startswith("ok_scores[0]: must be a number;")
