"""Inspected parts move the charts of their model, whichever worker inspected them."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backend.assurance.reference import FEWEST, VERSION
from backend.assurance.watch import FILE, DriftWatch, remember
from backend.base.errors import DriftNewer, MemoryNotFound
from backend.base.keys import ModelKey
from backend.extractors.protocol import prepare
from backend.records.drifts import Drifts, KeptDrift, OwnDrifts, SharedDrifts
from backend.records.ledger import Ledger
from backend.service.appearance import appearance_of
from backend.service.fitting import Fitter
from backend.service.inspection import Inspector
from backend.service.results import FitResult, InferResult
from backend.storage import Change
from tests.parts import good_files, part, quick_settings
from tests.records.postgres import Server

KEY = ModelKey.of("Master1", "Pattern")
WANTED = 40


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Inspector, FitResult]]:
    inspector = Inspector(quick_settings(tmp_path_factory.mktemp("watch"), coreset_rate=0.2, results_db=None))
    inspector.start()
    yield inspector, Fitter(inspector).fit(KEY, good_files(24), mm_per_px=0.2)
    inspector.close()


@pytest.fixture(params=["own", "sqlite", "postgresql"])
def drifts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Drifts]:
    """Where what is found is kept: in this process, or in a database for all."""
    if request.param == "own":
        yield OwnDrifts()
        return
    server: Server | None = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    url = server.database() if server else f"sqlite:///{tmp_path / 'records.db'}"
    ledger = Ledger(url)
    yield SharedDrifts(ledger)
    ledger.close()
    if server:
        server.drop(url)


@pytest.fixture(autouse=True)
def no_file(fitted: tuple[Inspector, FitResult]) -> None:
    (fitted[0].store.folder(KEY) / FILE).unlink(missing_ok=True)


def inspected(result: FitResult, seed: int, *, dark: bool = False, bad: bool = False) -> Any:
    """What /infer found of a part, as far as the watch looks at it."""
    lit = np.asarray(part(seed) * 0.8, np.uint8) if dark else part(seed)
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        provenance=SimpleNamespace(generation=result.metadata["generation"]),
        appearance=appearance_of(prepare(lit, result.token_shape, 112 // result.token_shape[0])),
        inspection=SimpleNamespace(token_map=rng.uniform(0.1, 0.2, (8, 8)).astype(np.float32)),
        is_anomaly=bad,
    )


def rewritten(drifts: Drifts, **changed: object) -> KeptDrift:
    """What is kept of the model, changed by another hand."""
    kept = drifts.load(KEY)
    assert kept is not None
    assert drifts.save(KEY, replace(kept, **changed))  # type: ignore[arg-type]
    return replace(kept, revision=kept.revision + 1, **changed)  # type: ignore[arg-type]


def told(watch: DriftWatch, result: FitResult, first: int, n: int, **kind: bool) -> None:
    for seed in range(first, first + n):
        found: InferResult = inspected(result, seed, **kind)
        watch.add(KEY, found)


def test_from_the_fit_to_a_drift_and_back(fitted: tuple[Inspector, FitResult], drifts: Drifts) -> None:
    inspector, result = fitted
    watch = DriftWatch(inspector.store, drifts, WANTED)
    watch.fitted(KEY, result.metadata, result.appearances)
    watch.take_in()
    assert (inspector.store.folder(KEY) / FILE).exists()
    told(watch, result, 100, 10)
    found = watch.finding(KEY)
    assert (found.state, found.learnt, found.wanted) == ("learning", 10, WANTED)
    told(watch, result, 200, WANTED - 10)
    assert watch.finding(KEY).state == "steady"
    told(watch, result, 300, 10, dark=True)
    found = watch.finding(KEY)
    assert (found.state, found.cause) == ("drift", "light")
    assert found.evidence["brightness_pct"] < -5
    notices = watch.add(KEY, inspected(result, 1))
    assert [(one.code, one.values["cause"].code) for one in notices] == [("drift", "drift_light")]
    assert [(key, kept.cause) for key, kept in watch.states()] == [(KEY, "light")]
    told(watch, result, 400, 60)
    assert watch.finding(KEY).state == "steady"
    assert watch.add(KEY, inspected(result, 1)) == []
    watch.close()


def test_the_reference_is_not_written_while_another_writer_holds_the_model(
    fitted: tuple[Inspector, FitResult],
) -> None:
    inspector, result = fitted
    written = inspector.store.folder(KEY) / FILE
    with ThreadPoolExecutor(1) as pool:
        with inspector.store.writing(KEY):  # which removes what writers before it left half done
            waiting = pool.submit(remember, inspector.store, KEY, result.metadata, result.appearances)
            time.sleep(0.5)
            assert [path.name for path in written.parent.glob(f"*{FILE}*")] == []
        waiting.result(30)
    assert written.exists()


def test_a_reference_of_a_model_that_is_gone_or_replaced_is_not_left(fitted: tuple[Inspector, FitResult]) -> None:
    inspector, result = fitted
    other = ModelKey.of("Master1", "Gone")
    remember(inspector.store, other, result.metadata, result.appearances)
    assert not inspector.store.folder(other).exists()
    remember(inspector.store, KEY, {**result.metadata, "generation": "another"}, result.appearances)
    assert not (inspector.store.folder(KEY) / FILE).exists()


def test_a_change_right_after_the_fit_is_a_drift_and_is_not_learnt(
    fitted: tuple[Inspector, FitResult], drifts: Drifts
) -> None:
    inspector, result = fitted
    watch = DriftWatch(inspector.store, drifts, WANTED)
    watch.fitted(KEY, result.metadata, result.appearances)
    watch.take_in()
    told(watch, result, 100, WANTED + 20, dark=True)
    found = watch.finding(KEY)
    assert (found.state, found.cause) == ("drift", "light")
    assert found.learnt < 10


def test_a_model_that_was_fitted_before_learns_from_its_first_good_parts(
    fitted: tuple[Inspector, FitResult], drifts: Drifts
) -> None:
    inspector, result = fitted
    watch = DriftWatch(inspector.store, drifts, WANTED)
    told(watch, result, 100, 30, dark=True, bad=True)
    assert watch.finding(KEY).learnt == 0
    told(watch, result, 200, FEWEST - 1)
    assert (watch.finding(KEY).state, watch.finding(KEY).learnt) == ("learning", FEWEST - 1)
    told(watch, result, 300, WANTED)
    assert watch.finding(KEY).state == "steady"
    told(watch, result, 400, 8, dark=True, bad=True)
    assert watch.finding(KEY).cause == "light"


def test_workers_share_what_they_see_and_it_survives_them(fitted: tuple[Inspector, FitResult], url: str) -> None:
    inspector, result = fitted
    ledgers = [Ledger(url) for _ in range(3)]
    one, other, later = (DriftWatch(inspector.store, SharedDrifts(ledger), WANTED) for ledger in ledgers)
    for number in range(WANTED // 4):
        told(one, result, 100 + 4 * number, 2)
        told(other, result, 102 + 4 * number, 2)
        one.take_in()
        other.take_in()
    assert one.finding(KEY).state == other.finding(KEY).state == "steady"
    told(one, result, 300, 5, dark=True)
    assert other.finding(KEY).seen == 0
    assert one.finding(KEY).cause == "light"
    for watch in (one, other):
        watch.close()
    assert (later.finding(KEY).state, later.finding(KEY).cause) == ("drift", "light")
    for ledger in ledgers:
        ledger.close()


def test_parts_of_another_memory_do_not_count_and_a_new_memory_begins_anew(
    fitted: tuple[Inspector, FitResult], drifts: Drifts
) -> None:
    inspector, result = fitted
    watch = DriftWatch(inspector.store, drifts, WANTED)
    told(watch, result, 100, 5)
    former = inspected(result, 1)
    former.provenance.generation = "former"
    watch.add(KEY, former)
    assert watch.finding(KEY).learnt == 5
    rewritten(drifts, generation="former")
    told(watch, result, 200, 3)
    assert watch.finding(KEY).learnt == 3


def test_after_a_refit_the_pictures_of_the_new_fit_count(fitted: tuple[Inspector, FitResult], drifts: Drifts) -> None:
    inspector, result = fitted
    watch = DriftWatch(inspector.store, drifts, WANTED)
    told(watch, result, 100, WANTED + FEWEST)
    watch.take_in()
    rewritten(drifts, generation="former")
    watch.fitted(KEY, result.metadata, result.appearances)
    told(watch, result, 200, 5)
    assert watch.finding(KEY).learnt == 5
    told(watch, result, 300, 8, dark=True)
    assert watch.finding(KEY).cause == "light"


def test_a_state_of_a_newer_version_is_left_alone_and_said(fitted: tuple[Inspector, FitResult], drifts: Drifts) -> None:
    inspector, result = fitted
    watch = DriftWatch(inspector.store, drifts, WANTED)
    told(watch, result, 100, 1)
    watch.take_in()
    newer = rewritten(drifts, version=VERSION + 1)
    told(watch, result, 101, 1)
    with pytest.raises(DriftNewer):
        watch.finding(KEY)
    assert [one.code for one in watch.add(KEY, inspected(result, 1))] == ["drift_unknown"]
    assert drifts.load(KEY) == newer


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off"])
def test_what_is_damaged_is_learnt_anew(fitted: tuple[Inspector, FitResult], drifts: Drifts, damage: bytes) -> None:
    inspector, result = fitted
    watch = DriftWatch(inspector.store, drifts, WANTED)
    told(watch, result, 100, 4)
    watch.take_in()
    rewritten(drifts, learnt=b"no npz", chart=b"odd")
    (inspector.store.folder(KEY) / FILE).write_bytes(damage)
    told(watch, result, 200, 2)
    assert watch.finding(KEY).learnt == 2


def test_without_a_model_there_is_nothing_to_say_and_with_0_parts_nothing_is_watched(
    fitted: tuple[Inspector, FitResult], drifts: Drifts
) -> None:
    inspector, result = fitted
    with pytest.raises(MemoryNotFound):
        DriftWatch(inspector.store, drifts, WANTED).finding(ModelKey.of("Master1", "Other"))
    off = DriftWatch(inspector.store, drifts, 0)
    told(off, result, 100, 3)
    off.take_in()
    assert drifts.load(KEY) is None
    assert not off.states()


def test_a_restore_brings_back_what_the_images_of_its_fit_look_like(tmp_path: Path) -> None:
    inspector = Inspector(quick_settings(tmp_path, coreset_rate=0.2, results_db=None))
    inspector.start()
    fitter, store, path = Fitter(inspector), inspector.store, inspector.store.folder(KEY) / FILE
    first = fitter.fit(KEY, good_files(FEWEST), mm_per_px=0.2)
    remember(store, KEY, first.metadata, first.appearances)
    before = path.read_bytes()
    second = fitter.fit(KEY, good_files(FEWEST + 1), mm_per_px=0.2)
    remember(store, KEY, first.metadata, first.appearances)  # by a worker that comes late
    assert path.read_bytes() == before
    remember(store, KEY, second.metadata, second.appearances)
    assert path.read_bytes() != before
    inspector.restore(KEY, str(first.metadata["generation"]), Change("restore"))
    assert path.read_bytes() == before
    inspector.close()
