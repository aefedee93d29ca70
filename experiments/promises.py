"""What thresholds promise, held against what they keep: tables of docs/ACCURACY.md.

    python -m experiments.promises bounds
    python -m experiments.promises bounds --scores SCORES.json      # and good scores of real sets, resampled
    python -m experiments.promises p-values --scores SCORES.json
    python -m experiments.promises splits --sets SET … --model resnet18=WEIGHTS --input-size 256 --scores SCORES.json

`bounds` draws good scores from distributions whose tail is known, has the service choose the threshold, and looks up
what it really rejects. `splits` divides the good parts of real sets at random into parts to fit, to calibrate and to
test on.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import betabinom

from backend.calib import (
    Basis,
    GoodScores,
    Wanted,
    choose_threshold,
    decide,
    false_reject,
    promised_threshold,
    upper_bound,
)
from backend.evaluation.sets import read_set
from experiments.embedded import EmbeddedSet, InputSize, Model, Sets, settings_of

app = typer.Typer(add_completion=False)
Values = NDArray[np.float64]

SIZES = (10, 20, 50, 100, 200, 500)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Population:
    """Scores that good parts may have: how to draw them, and the share of all parts above a score."""

    draw: Callable[[np.random.Generator, tuple[int, int]], Values]
    above: Callable[[Values], Values]
    bad: Values  # scores that bad parts may have, from hopeless to clear

    @classmethod
    def known(cls, distribution: stats.rv_continuous) -> Population:
        """Scores with the distribution of scipy.stats."""
        return cls(
            lambda rng, shape: np.asarray(distribution.rvs(size=shape, random_state=rng)),
            lambda scores: np.asarray(distribution.sf(scores)),
            np.asarray(distribution.isf([0.3, 0.1, 0.03, 0.01, 0.003, 0.0003])),
        )

    @classmethod
    def resampled(cls, scores: Sequence[float]) -> Population:
        """Scores drawn from real ones, with replacement: they tie."""
        ordered = np.sort(np.asarray(scores, np.float64))
        return cls(
            lambda rng, shape: rng.choice(ordered, shape),
            lambda given: 1.0 - np.searchsorted(ordered, given, side="right") / ordered.size,
            np.quantile(ordered, [0.7, 0.9, 0.97, 1.0]) * [1, 1, 1, 1.2],
        )


KNOWN = {
    "normal": stats.norm(0.4, 0.05),
    "skewed (lognormal)": stats.lognorm(0.4, scale=0.3),
    "heavy tail (Pareto, 2)": stats.pareto(2, scale=0.2),
    "bounded (beta)": stats.beta(2, 5),
    "flat": stats.uniform(0.2, 0.4),
}


Draws = Annotated[int, typer.Option(min=100, help="Draws of good scores for each row.")]
KnownToo = Annotated[bool, typer.Option(help="The known distributions too.")]
RealScores = Annotated[Path | None, typer.Option(exists=True, help="Good scores by set, as `splits` writes them.")]


@app.command()
def bounds(draws: Draws = 10_000, scores: RealScores = None, known: KnownToo = True) -> None:
    """How often the rate that a threshold rejects lies within what was promised.

    The column with bad parts is of a fifth of the draws.
    """
    _line(["scores", "n", *(f"{rate:.1%}" for rate in RATES), "p99 rule", "p95 rule", "with bad parts", "chosen"])
    _line(["---"] * (len(RATES) + 6))
    for name, population in _populations(scores, known).items():
        for n in SIZES:
            drawn = population.draw(np.random.default_rng([n, draws]), (draws, n))
            kept = [_kept(drawn, population, rate) for rate in RATES]
            rules = [_rule_kept(drawn, population, percentile) for percentile in (99, 95)]
            others = [_kept_with_bad_parts(drawn[: draws // 5], population), _chosen_kept(drawn, population)]
            _line([name, str(n), *map(_share, [*kept, *rules, *others])])


@app.command()
def p_values(draws: Draws = 10_000, scores: RealScores = None, known: KnownToo = True) -> None:
    """How often the p-value of a good part is at most α."""
    _line(["scores", "n", *(f"P(p ≤ {alpha})" for alpha in ALPHAS)])
    _line(["---"] * (len(ALPHAS) + 2))
    for name, population in _populations(scores, known).items():
        for n in SIZES:
            rng = np.random.default_rng([n, draws, 1])
            drawn, tested = population.draw(rng, (draws, n)), population.draw(rng, (draws, 1))[:, 0]
            p = np.array([GoodScores.of(ok).p_value(score) for ok, score in zip(drawn.tolist(), tested, strict=True)])
            _line([name, str(n), *(f"{np.mean(p <= alpha):.4f}" for alpha in ALPHAS)])


def _populations(scores: Path | None, known: bool) -> dict[str, Population]:
    """The known distributions, and the real scores in a file."""
    real = json.loads(scores.read_text("utf-8")) if scores else {}
    drawn = {name: Population.known(one) for name, one in KNOWN.items()} if known else {}
    return drawn | {f"{name}, resampled": Population.resampled(values) for name, values in real.items()}


def _kept(drawn: Values, population: Population, rate: float) -> float | None:
    """The share of draws in which a threshold for which `rate` was promised rejects no more; None where none can be."""
    promised = [promised_threshold(ok, rate) for ok in drawn]
    if promised[0] is None:
        return None
    return float(np.mean(population.above(np.array([one[0] for one in promised if one])) <= rate))


def _rule_kept(drawn: Values, population: Population, percentile: float) -> float:
    """The share of draws in which the contract's rule, without bad parts, stays within the bound that goes with it."""
    chosen = [choose_threshold(ok, percentile=percentile) for ok in drawn]
    limits = [false_reject(ok, one.value, rank=one.rank).upper_bound for ok, one in zip(drawn, chosen, strict=True)]
    return float(np.mean(population.above(np.array([one.value for one in chosen])) <= limits))


def _kept_with_bad_parts(drawn: Values, population: Population) -> float:
    """The same with a bad part, whose score is the worst of several for the promise."""
    return min(
        float(np.mean(population.above(np.array(values)) <= np.array(limits)))
        for values, limits in (_midway(drawn, bad) for bad in population.bad)
    )


def _midway(drawn: Values, bad: float) -> tuple[list[float], list[float]]:
    chosen = [choose_threshold(ok, [bad]) for ok in drawn]
    limits = [false_reject(ok, one.value, rank=one.rank).upper_bound for ok, one in zip(drawn, chosen, strict=True)]
    return [one.value for one in chosen], limits


def _chosen_kept(drawn: Values, population: Population) -> float:
    """The share of draws in which no threshold at all, wherever it is dragged to, rejects more than its bound."""
    n = drawn.shape[1]
    limits = np.array([upper_bound(n - k, n, 0.95) for k in range(1, n + 1)])
    return float(np.mean((population.above(np.sort(drawn, axis=1)) <= limits).all(axis=1)))


RULES = {"p99": Wanted(), "≤ 10 %": Wanted(max_false_reject=0.1), "≤ 20 %": Wanted(max_false_reject=0.2)}
OF_TESTED = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Split:
    """One division of a set's good parts: scores to set a threshold with, of either basis, and scores to test it on."""

    held_out: Values
    leave_one_out: Values
    tested: Values

    @classmethod
    def drawn(cls, one: EmbeddedSet, seed: int) -> Split:
        """A third of the good parts to fit on, a third to calibrate with, and the rest to test."""
        order = np.random.default_rng(seed).permutation(len(one.good)).tolist()
        third = len(order) // 3
        fitted, held_out, tested = order[:third], order[third : 2 * third], order[2 * third :]
        memory = one.memory(fitted, seed)
        own = one.scores(memory, fitted, leave_out=True)
        return cls(one.scores(memory, held_out), own, one.scores(memory, tested))


@app.command()
def splits(
    sets: Sets,
    model: Model,
    input_size: InputSize = 448,
    n: Annotated[int, typer.Option(min=2, help="Random divisions of each set.")] = 50,
    scores: Annotated[Path | None, typer.Option(help="File for the held-out good scores by set, for `bounds`.")] = None,
) -> None:
    """Promised and seen false rejects, for parts outside the fit and for parts of it left out one by one."""
    titles = [
        "set",
        "basis",
        "n",
        "rule",
        "promised",
        "expected at most",
        "seen",
        "seen within the promise",
        "expected to be",
    ]
    _line([*titles, *(f"P(p ≤ {alpha})" for alpha in OF_TESTED)])
    _line(["---"] * (len(titles) + len(OF_TESTED)))
    real: dict[str, list[float]] = json.loads(scores.read_text("utf-8")) if scores and scores.exists() else {}
    for folder in sets:
        one = EmbeddedSet(read_set(folder), settings_of(model, input_size))
        drawn = [Split.drawn(one, seed) for seed in range(n)]
        bases: dict[Basis, list[Values]] = {
            "held_out": [split.held_out for split in drawn],
            "leave_one_out": [split.leave_one_out for split in drawn],
        }
        for basis, of_splits in bases.items():
            small = _small_p_values(of_splits, drawn)
            for name, wanted in RULES.items():
                cells = _promised_and_seen(of_splits, drawn, wanted)
                if cells:
                    _line([one.name, basis, str(len(of_splits[0])), name, *cells, *small])
                small = [""] * len(OF_TESTED)
        real[one.name] = sorted(np.concatenate([drawn[0].held_out, drawn[0].tested]).tolist())
    if scores:
        scores.write_text(json.dumps(real), "utf-8")


def _promised_and_seen(of_splits: Sequence[Values], drawn: Sequence[Split], wanted: Wanted) -> list[str]:
    """What was promised, what exchangeable parts would show, and what the tested ones did; nothing if none could be.

    Of n + 1 exchangeable parts, any is as likely the one that was not scored: a threshold at the k-th of n good scores
    rejects (n + 1 − k) / (n + 1) of the others on average, and of m others a number that is beta-binomial. It is fewer
    where the threshold lies between two scores. Seen is a rate among few parts, so it is above the promise now and then
    although the true rate is not: the last figure says how often it would not be.
    """
    decisions = [decide(ok.tolist(), [], wanted) for ok in of_splits]
    if wanted.max_false_reject is not None and decisions[0].rule != "promised":
        return []
    seen = [split.tested > decision.value for split, decision in zip(drawn, decisions, strict=True)]
    limits = [decision.false_reject.upper_bound for decision in decisions]
    above = [round(decision.false_reject.estimate * len(ok)) for decision, ok in zip(decisions, of_splits, strict=True)]
    expected = float(np.mean([(k + 1) / (len(ok) + 1) for k, ok in zip(above, of_splits, strict=True)]))
    within = np.mean([one.mean() <= limit for one, limit in zip(seen, limits, strict=True)])
    due = [
        betabinom.cdf(math.floor(limit * len(one)), len(one), k + 1, len(ok) - k)
        for limit, one, k, ok in zip(limits, seen, above, of_splits, strict=True)
    ]
    means = [float(one.mean()) for one in seen]
    error = float(np.std(means)) / len(means) ** 0.5
    return [
        f"{np.mean(limits):.1%}",
        f"{expected:.1%}",
        f"{np.mean(means):.1%} ± {error:.1%}",
        f"{within:.0%}",
        f"{np.mean(due):.0%}",
    ]


def _small_p_values(of_splits: Sequence[Values], drawn: Sequence[Split]) -> list[str]:
    """How often the p-value of a tested part is at most each of OF_TESTED."""
    p = np.concatenate(
        [
            [GoodScores.of(ok.tolist()).p_value(score) for score in split.tested]
            for ok, split in zip(of_splits, drawn, strict=True)
        ]
    )
    return [f"{np.mean(p <= alpha):.3f}" for alpha in OF_TESTED]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _line(cells: Sequence[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    app()
