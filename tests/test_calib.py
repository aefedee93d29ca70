import numpy as np
import pytest

from backend.calib import choose_threshold


def test_without_bad_parts_the_threshold_is_the_percentile_of_the_good_ones() -> None:
    ok = [0.1, 0.2, 0.3, 0.4]
    chosen = choose_threshold(ok, percentile=50)
    assert chosen.value == chosen.p_ok == 0.25
    assert chosen.p5_ng is None and chosen.ng_mean is None and chosen.overlap is False
    assert chosen.ok_mean == pytest.approx(0.25)


def test_the_99th_percentile_decides_unless_another_is_asked_for() -> None:
    ok = np.arange(1000) / 1000
    assert choose_threshold(list(ok)).value == pytest.approx(np.percentile(ok, 99))


def test_the_margin_applies_only_without_bad_parts() -> None:
    assert choose_threshold([1.0], margin=0.1).value == pytest.approx(1.1)
    assert choose_threshold([1.0], [3.0], margin=0.1).value == 2.0


def test_with_bad_parts_the_threshold_is_midway() -> None:
    ok, ng = np.linspace(0.2, 0.4, 30), np.linspace(0.6, 0.9, 20)
    chosen = choose_threshold(list(ok), list(ng), percentile=95)
    assert chosen.value == pytest.approx((np.percentile(ok, 95) + np.percentile(ng, 5)) / 2)
    assert chosen.p_ok == pytest.approx(np.percentile(ok, 95))
    assert chosen.p5_ng == pytest.approx(np.percentile(ng, 5))
    assert chosen.ok_mean == pytest.approx(0.3) and chosen.ng_mean == pytest.approx(0.75)


@pytest.mark.parametrize("ng", [[0.5], [0.3, 0.9], [0.4]])
def test_overlapping_scores_put_the_threshold_just_above_the_good_ones(ng: list[float]) -> None:
    chosen = choose_threshold([0.5, 0.5], ng)
    assert chosen.overlap
    assert chosen.value == pytest.approx(0.51)


@pytest.mark.parametrize(("ok", "ng"), [([], []), ([0.1, float("nan")], []), ([0.1], [float("inf")])])
def test_scores_that_mean_nothing_are_refused(ok: list[float], ng: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        choose_threshold(ok, ng)
