"""The charts of a model: quiet while nothing changes, and the right cause when something does."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from backend.assurance.control import Limits
from backend.assurance.drift import Chart, Finding, cause_of, distances_of, evidence_of, find
from backend.assurance.likeness import features_of
from backend.assurance.reference import FEWEST, N_DISTANCES, Gauge, Reference
from backend.base.errors import DriftNewer
from backend.service.appearance import Appearance, appearance_of
from tests.assurance.test_likeness import moved, scene
from tests.parts import BGR

N_FIRST = 60


def picture(seed: int, change: Callable[[BGR], BGR] = lambda image: image) -> BGR:
    """One scene, never quite in the same place and the same light, with grain of its own."""
    rng = np.random.default_rng(seed)
    right, down, turn = rng.normal(0, (0.003, 0.003, 0.4))
    lit = change(moved(scene(), right, down, turn)) * rng.normal(1, 0.01) + rng.normal(0, 2, (128, 128, 3))
    return np.asarray(np.clip(np.rint(lit), 0, 255), np.uint8)


def seen(seed: int, change: Callable[[BGR], BGR] = lambda image: image) -> Appearance:
    return appearance_of(picture(seed, change))


def token_map(seed: int, grown: float = 1.0) -> np.ndarray:
    """Distances of a part; `grown` at the lower right."""
    found = np.random.default_rng(seed).uniform(0.2, 0.3, (16, 16)).astype(np.float32)
    found[11:15, 11:15] *= grown
    return found


@pytest.fixture(scope="module")
def reference() -> Reference:
    made = Reference.of([seen(seed) for seed in range(N_FIRST)])
    distances = np.array([distances_of(token_map(seed)) for seed in range(N_FIRST)])
    return Reference(made.mean, made.features, distances, made.signatures)


@pytest.fixture(scope="module")
def gauge(reference: Reference) -> Gauge:
    return reference.gauge


def charted(
    reference: Reference, n: int, change: Callable[[BGR], BGR] = lambda image: image, *, grown: float = 1.0
) -> Chart:
    """After 20 parts as ever and `n` with a change, one a second."""
    chart = Chart()
    for number in range(20 + n):
        late = number >= 20
        appearance = seen(1000 + number, change) if late else seen(1000 + number)
        distances = distances_of(token_map(number, grown if late else 1.0))
        chart.add(reference.gauge, features_of(appearance, reference.placing), distances, 1_000_000 * (number + 1))
    return chart


def with_plate(image: BGR) -> BGR:
    """The variant that has a bright plate riveted on."""
    return np.asarray(cv2.rectangle(image.copy(), (40, 80), (100, 110), (200, 200, 200), -1), np.uint8)


def fouled(image: BGR) -> BGR:
    y, x = np.mgrid[:128, :128] / 128
    left = 1 - 0.5 * np.exp(-(((x - 0.3) ** 2 + (y - 0.7) ** 2) / 0.1**2))
    return np.asarray(image * left[..., None], np.uint8)


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("light", lambda image: np.asarray(image * 0.8, np.uint8)),
        ("light", lambda image: np.asarray(255 * (image / 255) ** 1.2, np.uint8)),
        ("colour", lambda image: np.asarray(np.clip(image * (0.9, 1, 1.1), 0, 255), np.uint8)),
        ("focus", lambda image: cv2.GaussianBlur(image, (0, 0), 1.5)),
        ("position", lambda image: moved(image, right=0.03)),
        ("turn", lambda image: moved(image, degrees=5)),
        ("turn", lambda image: np.rot90(image, 2)),
        ("turn", lambda image: np.rot90(image)),
        ("parts", lambda image: image[:, ::-1]),
        ("dirt", fouled),
        ("parts", with_plate),
    ],
)
def test_a_change_is_found_at_once_and_its_cause_named(
    reference: Reference, cause: str, change: Callable[[BGR], BGR]
) -> None:
    found = find(charted(reference, 8, change), reference.gauge)
    assert (found.state, found.cause) == ("drift", cause)
    assert 12_000_000 <= found.since_us <= 21_000_000
    if cause == "dirt":
        assert found.place == pytest.approx((0.3, 0.7), abs=0.1)


def test_parts_that_look_as_ever_but_lie_far_from_the_memory_in_one_place_have_changed_there(
    reference: Reference,
) -> None:
    found = find(charted(reference, 15, grown=2.0), reference.gauge)
    assert (found.state, found.cause) == ("drift", "parts")
    assert found.place is not None
    assert min(found.place) > 0.6


def test_what_came_first_is_steady_and_one_odd_part_is_no_drift(reference: Reference, gauge: Gauge) -> None:
    chart = charted(reference, 30)
    assert find(chart, gauge) == Finding("steady", seen=50)
    chart.add(gauge, features_of(appearance_of(scene(9)), reference.placing), distances_of(token_map(3)), 10**9)
    assert find(chart, gauge).state == "steady"


def test_a_drift_is_over_when_parts_are_as_before(reference: Reference, gauge: Gauge) -> None:
    chart = charted(reference, 8, lambda image: np.asarray(image * 0.8, np.uint8))
    for number in range(60):
        chart.add(gauge, features_of(seen(2000 + number), reference.placing), distances_of(token_map(number)), 10**9)
    assert find(chart, gauge).state == "steady"


def test_the_evidence_is_in_numbers_that_people_know(reference: Reference, gauge: Gauge) -> None:
    darker = evidence_of(charted(reference, 40, lambda image: np.asarray(image * 0.8, np.uint8)), gauge)
    assert darker["brightness_pct"] == pytest.approx(-20, abs=2)
    assert darker["parts"] == 60
    right = evidence_of(charted(reference, 40, lambda image: moved(image, right=0.03, degrees=2)), gauge)
    assert right["right_pct"] == pytest.approx(3, abs=0.4)
    assert right["turn_deg"] == pytest.approx(2, abs=0.5)


def test_a_chart_and_a_reference_are_the_same_after_they_were_kept(reference: Reference, gauge: Gauge) -> None:
    chart = charted(reference, 5)
    again, kept = Chart.read(chart.to_bytes()), Reference.read(reference.to_bytes("g"))
    assert again.to_bytes() == chart.to_bytes()
    assert (again.seen, again.since_us) == (25, chart.since_us)
    assert cause_of(again, kept.gauge) == cause_of(chart, gauge)
    assert kept.to_bytes("g") == reference.to_bytes("g")


def test_what_is_damaged_or_of_a_newer_version_is_refused(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no chart"):
        Chart.read(b"12345678")
    monkeypatch.setattr("backend.assurance.reference.VERSION", 99)
    newer = reference.to_bytes()
    monkeypatch.undo()
    with pytest.raises(DriftNewer):
        Reference.read(newer)


def test_limits_leave_one_false_alarm_in_a_thousand_parts() -> None:
    rng = np.random.default_rng(1)
    learnt, distances = rng.normal(size=(200, 30)), rng.normal(size=(100, N_DISTANCES))
    limits = Limits.of(learnt, distances, ())
    alarms, inside, mean = 0, True, np.zeros(30 + N_DISTANCES)
    for numbers in limits.standardised(rng.normal(size=(8000, 30 + N_DISTANCES))):
        mean += 0.12 * (numbers - mean)
        now = bool((np.abs(mean) <= limits.reach).all())
        alarms, inside = alarms + (inside and not now), now
    assert alarms <= 16


def test_few_pictures_are_enough_for_limits() -> None:
    assert np.isfinite(Reference.of([seen(seed) for seed in range(FEWEST)]).gauge.limits.centre).all()


def test_pictures_that_are_all_the_same_have_limits_that_a_change_is_beyond() -> None:
    reference = Reference.of([seen(1)] * FEWEST)
    chart = Chart()
    for number in range(10):
        changed = features_of(seen(1, lambda image: np.asarray(image * 0.8, np.uint8)), reference.placing)
        chart.add(reference.gauge, changed, np.zeros(N_DISTANCES), number + 1)
    assert find(chart, reference.gauge).cause == "light"
