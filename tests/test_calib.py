import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.calib import (
    GoodScores,
    Wanted,
    choose_threshold,
    decide,
    false_reject,
    good_scores_needed,
    misses,
    promised_threshold,
    upper_bound,
)

SCORES = st.lists(st.floats(0, 2) | st.sampled_from([0.25, 0.5]), min_size=1, max_size=60)


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


@pytest.mark.parametrize(("n", "bound"), [(1, 0.95), (20, 0.1391), (59, 0.0495), (299, 0.00997)])
def test_no_reject_among_n_good_scores_bounds_the_rate(n: int, bound: float) -> None:
    promise = false_reject(list(np.linspace(0.1, 0.4, n)), 0.5)
    assert promise.estimate == 0 and promise.n_ok == n and promise.confidence == 0.95
    assert promise.upper_bound == pytest.approx(bound, abs=5e-5)
    assert promise.upper_bound == pytest.approx(1 - 0.05 ** (1 / n))


@pytest.mark.parametrize(("rate", "n"), [(0.05, 59), (0.01, 299), (0.005, 598), (0.5, 5), (0.14, 20)])
def test_the_good_scores_that_a_promise_needs(rate: float, n: int) -> None:
    assert good_scores_needed(rate) == n
    assert upper_bound(0, n, 0.95) <= rate < upper_bound(0, n - 1, 0.95)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_what_no_number_of_good_scores_can_promise(rate: float) -> None:
    assert good_scores_needed(rate) is None


@given(SCORES, st.floats(0.005, 0.5), st.sampled_from([0.9, 0.95, 0.99]))
def test_a_promised_threshold_is_the_lowest_good_score_that_the_bound_allows(
    ok: list[float], rate: float, confidence: float
) -> None:
    chosen = promised_threshold(ok, rate, confidence=confidence)
    assert (chosen is None) == (len(ok) < (good_scores_needed(rate, confidence) or math.inf))
    if chosen is None:
        return
    threshold, rank = chosen
    assert threshold == sorted(ok)[rank - 1]
    promise = false_reject(ok, threshold, rank=rank, asked=rate, confidence=confidence)
    assert promise.upper_bound == upper_bound(len(ok) - rank, len(ok), confidence) <= rate
    assert rank == 1 or upper_bound(len(ok) - rank + 1, len(ok), confidence) > rate


@given(SCORES, st.floats(0.05, 0.5))
def test_where_the_threshold_itself_rejects_the_promised_one_lies_just_above_the_good_score(
    ok: list[float], rate: float
) -> None:
    above, at = promised_threshold(ok, rate), promised_threshold(ok, rate, at_or_above=True)
    assert (above is None) == (at is None)
    if above and at:
        assert at[1] == above[1] and at[0] == np.nextafter(above[0], np.inf)
        assert false_reject(ok, at[0], at_or_above=True) == false_reject(ok, above[0])


def test_ties_are_counted_against_the_promise() -> None:
    ok = [0.1] * 10 + [0.5] * 50
    threshold, rank = promised_threshold(ok, 0.1) or (0.0, 0)
    promise = false_reject(ok, threshold, rank=rank)
    assert threshold == 0.5 and promise.estimate == 0
    assert promise.upper_bound == upper_bound(60 - rank, 60, 0.95) > upper_bound(0, 60, 0.95)


@given(SCORES, st.floats(50, 100), st.floats(0, 0.5))
def test_the_contracts_own_rule_promises_what_its_rank_does(ok: list[float], percentile: float, margin: float) -> None:
    chosen = choose_threshold(ok, percentile=percentile, margin=margin)
    assert chosen.rank is not None
    promise = false_reject(ok, chosen.value, rank=chosen.rank)
    assert promise.estimate <= (len(ok) - chosen.rank) / len(ok) <= promise.upper_bound


def test_a_threshold_midway_to_bad_parts_promises_what_it_rejects() -> None:
    ok = list(np.linspace(0.1, 0.2, 20))
    chosen = choose_threshold(ok, [0.8, 0.9])
    assert chosen.rank is None
    assert false_reject(ok, chosen.value, rank=chosen.rank).upper_bound == pytest.approx(0.1391, abs=5e-5)


def test_rejecting_all_good_parts_promises_nothing() -> None:
    promise = false_reject([0.5, 0.6], 0.1)
    assert promise.estimate == promise.upper_bound == 1.0


def test_misses_have_an_exact_interval() -> None:
    found = misses([0.9, 0.8, 0.7, 0.3], 0.5)
    assert found.estimate == 0.25 and found.n_ng == 4
    # Clopper and Pearson's interval of 1 in 4, as scipy.stats.binomtest(1, 4).proportion_ci() gives it.
    assert (found.lower_bound, found.upper_bound) == pytest.approx((0.0063094, 0.8058796), abs=1e-6)


def test_a_bad_part_at_the_threshold_is_missed_unless_the_threshold_itself_rejects() -> None:
    assert misses([0.5], 0.5).estimate == 1 and misses([0.5], 0.5, at_or_above=True).estimate == 0
    assert false_reject([0.5], 0.5).estimate == 0 and false_reject([0.5], 0.5, at_or_above=True).estimate == 1


@given(SCORES, st.floats(0, 2))
def test_a_p_value_counts_the_good_scores_as_high(ok: list[float], score: float) -> None:
    kept = GoodScores.of(ok)
    assert kept.as_high(score) == sum(good >= score for good in ok)
    assert kept.p_value(score) == (1 + kept.as_high(score)) / (len(ok) + 1)


@given(SCORES, st.floats(0, 2), st.integers(1, 60))
def test_where_few_of_the_good_scores_are_kept_a_p_value_is_never_too_small(
    ok: list[float], score: float, limit: int
) -> None:
    kept = GoodScores.of(ok, limit)
    assert len(kept.values) <= limit
    assert 0 <= kept.as_high(score) - sum(good >= score for good in ok) < kept.step
    assert kept.as_high(max(ok)) >= 1


def test_kept_scores_are_read_as_they_were_written() -> None:
    kept = GoodScores.of([0.3, 0.1, 0.2, 0.1], limit=3)
    assert GoodScores.read(kept.as_dict()) == kept


@pytest.mark.parametrize(
    "spoiled",
    [
        {"values": [0.2, 0.1], "n": 2, "step": 1},
        {"values": [0.1, float("nan")], "n": 2, "step": 1},
        {"values": [], "n": 0, "step": 1},
        {"values": [0.1, 0.2], "n": 9, "step": 1},
        {"values": "0.1", "n": 3, "step": 1},
        {"values": [0.1, "0.2"], "n": 2, "step": 1},
        {"values": [0.1]},
    ],
)
def test_kept_scores_that_were_spoiled_are_refused(spoiled: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        GoodScores.read(spoiled)


OK = list(np.linspace(0.1, 0.3, 100))


def test_a_decision_is_the_contracts_rule_unless_something_else_is_wanted() -> None:
    decision = decide(OK, [], Wanted(percentile=95))
    assert decision.rule == "percentile" and decision.value == np.percentile(OK, 95)
    assert decision.false_reject.n_ok_needed == 59 and decision.misses is None


def test_a_promise_settles_the_threshold_whatever_bad_parts_score() -> None:
    decision = decide(OK, [0.9, 0.15], Wanted(max_false_reject=0.05))
    assert decision.rule == "promised" and (decision.value, 99) == promised_threshold(OK, 0.05)
    assert decision.false_reject.estimate == 0.01 < decision.false_reject.upper_bound <= 0.05
    assert decision.misses is not None and decision.misses.estimate == 0.5


@pytest.mark.parametrize(("asked", "needed"), [(0.01, 299), (0.0, None)])
def test_where_good_scores_are_too_few_for_a_promise_the_contracts_rule_applies(
    asked: float, needed: int | None
) -> None:
    decision = decide(OK, [], Wanted(max_false_reject=asked))
    assert decision.rule == "percentile" and decision.value == np.percentile(OK, 99)
    assert decision.false_reject.n_ok_needed == needed


def test_a_chosen_threshold_is_kept_and_said_what_it_promises() -> None:
    decision = decide(OK, [0.5], Wanted(threshold=0.31, confidence=0.9))
    assert (decision.rule, decision.value) == ("chosen", 0.31)
    assert decision.false_reject.upper_bound == pytest.approx(1 - 0.1 ** (1 / 100))
    assert decision.by_rule.p_ok == np.percentile(OK, 99)
