import numpy as np
import pytest

from backend.assurance.parts import Parts, PartScorer
from backend.assurance.stability import CHANGES, Change, stability
from backend.samples.collector import Collector
from backend.service.jobs import Job
from tests.assurance.conftest import KEY
from tests.parts import part


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_keeps_size_and_kind_of_the_picture(change: Change) -> None:
    picture = part(1, height=256, width=256)
    before = picture.copy()
    changed = change.of(picture, np.random.default_rng(0))
    assert changed.shape == picture.shape and changed.dtype == np.uint8 and (picture == before).all()
    assert (changed == picture).all() == (change.what == "none")


def test_changes_are_as_large_as_they_say() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((256, 256, 3), 100, np.uint8)
    assert (Change("light", 0.1).of(grey, rng) == 110).all()
    edge = grey.copy()
    edge[:, 128:] = 200
    ramp = Change("focus", 2.0).of(edge, rng)[128, :, 0].astype(float)
    assert np.interp([116, 184], ramp, np.arange(256.0)) == pytest.approx([127.5 - 2, 127.5 + 2], abs=0.3)  # ± 1 σ
    spot = grey.copy()
    spot[120:137, 120:137] = 255
    moved = Change("shift", 0.1).of(spot, rng)[:, :, 0].astype(float) - 100
    rows, columns = np.mgrid[:256, :256]
    centre = (rows * moved).sum() / moved.sum(), (columns * moved).sum() / moved.sum()
    assert np.hypot(centre[0] - 128, centre[1] - 128) == pytest.approx(25.6, abs=0.1)


def test_the_rate_of_rejects_under_each_change_has_a_bound(collector: Collector) -> None:
    parts = Parts.stored(collector, KEY, most=12, seed=0)
    changes = [Change("none", 0.0), Change("light", 0.02), Change("light", -1.0)]
    found = stability(PartScorer(collector.inspector, KEY), parts.chosen, Job(), changes=changes)
    assert [one.change for one in found] == changes and all(one.n == 12 for one in found)
    assert found[0].n_rejected <= 1 < found[2].n_rejected
    assert found[0].rate <= found[0].upper_bound < 0.4
    if found[0].n_rejected == 0:
        assert found[0].upper_bound == pytest.approx(1 - 0.05 ** (1 / 12))
