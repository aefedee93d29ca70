"""What is known of drift is shared through the database; whoever comes second sees that he was overtaken."""

from dataclasses import replace

import pytest

from backend.base.keys import ModelKey
from backend.records.drifts import Drifts, KeptDrift, OwnDrifts, SharedDrifts, digest_of
from backend.records.ledger import Ledger

KEY, OTHER = ModelKey.of("Master1", "Pattern"), ModelKey.of("Master1", "Pattern", "winter")
KEPT = KeptDrift("g1", 1, learnt=b"learnt", chart=b"chart", state="drift", cause="light", since_us=5)


@pytest.fixture(params=["shared", "own"])
def drifts(request: pytest.FixtureRequest, ledger: Ledger) -> Drifts:
    return OwnDrifts() if request.param == "own" else SharedDrifts(ledger)


def test_what_is_saved_is_found_again_by_recipe(drifts: Drifts) -> None:
    assert drifts.load(KEY) is None
    assert drifts.reference(KEY) == b""
    assert drifts.save(KEY, replace(KEPT, reference=digest_of(b"first")), b"first")
    assert drifts.save(OTHER, replace(KEPT, state="steady", cause=None))
    found = drifts.load(KEY)
    assert found == replace(KEPT, reference=digest_of(b"first"), revision=1)
    assert drifts.reference(KEY) == b"first"
    assert {(key, kept.state, kept.cause) for key, kept in drifts.states()} == {
        (KEY, "drift", "light"),
        (OTHER, "steady", None),
    }


def test_of_two_who_write_at_once_the_second_changes_nothing(drifts: Drifts) -> None:
    assert drifts.save(KEY, KEPT)
    assert not drifts.save(KEY, replace(KEPT, chart=b"late"))  # it saw nothing there
    first, second = drifts.load(KEY), drifts.load(KEY)
    assert first is not None and second is not None
    assert drifts.save(KEY, replace(first, chart=b"first"), b"of the first")
    assert not drifts.save(KEY, replace(second, chart=b"second"), b"of the second")
    found = drifts.load(KEY)
    assert found is not None
    assert (found.chart, found.revision) == (b"first", 2)
    assert drifts.reference(KEY) == b"of the first"


def test_a_reference_stays_until_another_one_is_saved(drifts: Drifts) -> None:
    assert drifts.save(KEY, KEPT, b"one")
    assert drifts.save(KEY, replace(KEPT, revision=1))
    assert drifts.reference(KEY) == b"one"
    assert drifts.save(KEY, replace(KEPT, revision=2), b"two")
    assert drifts.reference(KEY) == b"two"
