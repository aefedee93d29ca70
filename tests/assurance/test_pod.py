import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from backend.assurance.pod import HitMiss


def drawn(rng: np.random.Generator, n: int, slope: float = 4.0, a50: float = 20.0) -> tuple[NDArray[np.float64], ...]:
    """Sizes of 1 to 300 and whether each is found, by a logistic curve of the size's logarithm."""
    sizes = np.exp(rng.uniform(0, np.log(300), n))
    return sizes, rng.random(n) < expit(slope * np.log(sizes / a50))


def test_the_curve_of_many_defects_is_the_one_they_came_from() -> None:
    sizes, hits = drawn(np.random.default_rng(0), 4000)
    found = HitMiss.of(sizes.tolist(), hits.tolist())
    a90 = 20 * 9 ** (1 / 4)
    assert found.size_found() == pytest.approx(a90, rel=0.1)
    assured = found.size_assured()
    assert assured is not None and a90 < assured < 1.3 * a90
    at = np.array([5.0, 20.0, 80.0])
    assert found.curve(at) == pytest.approx(expit(4 * np.log(at / 20)), abs=0.03)
    assert (found.lower_bound(at) < found.curve(at)).all()
    assert found.lower_bound(np.array([assured])) == pytest.approx([0.9], abs=0.005)


@pytest.mark.slow
def test_nineteen_of_twenty_assured_sizes_are_no_smaller_than_the_true_one() -> None:
    a90, reached, draws = 20 * 9 ** (1 / 4), 0, 150
    for seed in range(draws):
        sizes, hits = drawn(np.random.default_rng(seed), 60)
        assured = HitMiss.of(sizes.tolist(), hits.tolist()).size_assured()
        reached += assured is None or assured >= a90
    assert reached >= 0.95 * draws - 2 * (draws * 0.95 * 0.05) ** 0.5


def test_defects_that_all_are_found_or_missed_by_size_alone_have_a_bound_above_the_step() -> None:
    sizes = np.geomspace(1, 100, 60)
    found = HitMiss.of(sizes.tolist(), (sizes > 20).tolist())
    likely, assured = found.size_found(), found.size_assured()
    missed, hit = sizes[sizes <= 20].max(), sizes[sizes > 20].min()
    assert likely is not None and assured is not None and missed < likely <= hit * 1.03 < assured < 35


def test_where_every_defect_is_found_the_smallest_size_is_the_likely_one() -> None:
    found = HitMiss.of(np.geomspace(1, 100, 60).tolist(), [True] * 60)
    likely, assured = found.size_found(), found.size_assured()
    assert likely == 1.0 and assured is not None and 1.0 < assured < 2.5


@pytest.mark.parametrize("hits", [[False] * 60, [True] * 3 + [False] * 57])
def test_where_no_size_is_found_so_often_none_is_stated(hits: list[bool]) -> None:
    found = HitMiss.of(np.geomspace(1, 100, 60).tolist(), hits)
    assert found.size_assured() is None
    assert found.lower_bound(np.array([100.0]))[0] < 0.5


def test_few_defects_assure_nothing() -> None:
    assert HitMiss.of([5.0, 50.0], [False, True]).size_assured() is None
    assert HitMiss.of([5.0], [True]).size_assured() is None


def test_defects_on_the_same_parts_widen_the_bound() -> None:
    rng = np.random.default_rng(3)
    parts = np.repeat(np.arange(20), 5)
    sizes = np.exp(rng.uniform(0, np.log(300), 100))
    hits = rng.random(100) < expit(4 * np.log(sizes / 20) + rng.normal(0, 3, 20)[parts])
    apart = HitMiss.of(sizes.tolist(), hits.tolist()).size_assured()
    together = HitMiss.of(sizes.tolist(), hits.tolist(), parts.tolist()).size_assured()
    assert apart is not None and (together is None or together > apart)


def test_the_unit_of_the_sizes_is_the_unit_of_the_answer() -> None:
    sizes, hits = drawn(np.random.default_rng(1), 80)
    in_px, in_mm = HitMiss.of(sizes.tolist(), hits.tolist()), HitMiss.of((0.04 * sizes).tolist(), hits.tolist())
    assert in_mm.size_assured() == pytest.approx(0.04 * (in_px.size_assured() or 0), rel=1e-3)


@pytest.mark.parametrize("sizes", [[], [0.0, 1.0], [-1.0], [float("nan")]])
def test_sizes_that_mean_nothing_are_refused(sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        HitMiss.of(sizes, [True] * len(sizes))
