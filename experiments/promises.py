"""What thresholds promise, held against what they keep: tables of docs/ACCURACY.md.

    python experiments/promises.py bounds
    python experiments/promises.py bounds --scores SCORES.json      # and good scores of real sets, resampled

`bounds` draws good scores from distributions whose tail is known, has the service choose the threshold, and looks up
what it really rejects.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from backend.calib import (  # noqa: E402
    GoodScores,
    choose_threshold,
    false_reject,
    promised_threshold,
    upper_bound,
)

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


@app.command()
def bounds(
    draws: Annotated[int, typer.Option(min=100, help="Draws of good scores for each row.")] = 10_000,
    scores: Annotated[
        Path | None, typer.Option(exists=True, help="Good scores by set, as `splits` writes them.")
    ] = None,
) -> None:
    """How often the rate that a threshold rejects lies within what was promised, and how often p-values are small."""
    populations = {name: Population.known(one) for name, one in KNOWN.items()}
    if scores:
        real = json.loads(scores.read_text("utf-8"))
        populations |= {f"{name}, resampled": Population.resampled(values) for name, values in real.items()}
    _line(["scores", "n", *(f"{rate:.1%}" for rate in RATES), "p99 rule", "p95 rule", "with bad parts", "chosen"])
    _line(["---"] * (len(RATES) + 6))
    for name, population in populations.items():
        for n in SIZES:
            rng = np.random.default_rng([n, draws])
            drawn = population.draw(rng, (draws, n))
            kept = [_kept(drawn, population, rate) for rate in RATES]
            rules = [_rule_kept(drawn, population, percentile) for percentile in (99, 95)]
            others = [_kept_with_bad_parts(drawn, population), _chosen_kept(drawn, population)]
            _line([name, str(n), *map(_share, [*kept, *rules, *others])])
    typer.echo("")
    _line(["scores", "n", *(f"P(p ≤ {alpha})" for alpha in ALPHAS)])
    _line(["---"] * (len(ALPHAS) + 2))
    for name, population in populations.items():
        for n in SIZES:
            rng = np.random.default_rng([n, draws, 1])
            drawn, tested = population.draw(rng, (draws, n)), population.draw(rng, (draws, 1))[:, 0]
            p = np.array([GoodScores.of(ok).p_value(score) for ok, score in zip(drawn.tolist(), tested, strict=True)])
            _line([name, str(n), *(f"{np.mean(p <= alpha):.4f}" for alpha in ALPHAS)])


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


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _line(cells: Sequence[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    app()
