"""Works that are timed in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np

from backend.extractors.protocol import RGB, Extractor, Mask

Work = Callable[[int], object]


@dataclass(frozen=True)
class Took:
    """Medians of one work: milliseconds that passed, and milliseconds of processor that all threads took."""

    ms: float
    cpu_ms: float


def in_turn(works: Mapping[str, Work], rounds: int) -> dict[str, Took]:
    """What each work takes: once a round, called with the round's number. The first round only warms up."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start, start_cpu = perf_counter(), process_time()
            work(number)
            took[name].append((1000 * (perf_counter() - start), 1000 * (process_time() - start_cpu)))
    medians = {name: np.median(found[1:], axis=0).tolist() for name, found in took.items()}
    return {name: Took(ms, cpu_ms) for name, (ms, cpu_ms) in medians.items()}


def forward(extractor: Extractor, pictures: Sequence[RGB], inside: Mask | None = None) -> Work:
    """The bare pass of a network over one of the pictures, or over its tokens `inside` (rows, columns) bool alone."""

    def passed(number: int) -> object:
        one = [pictures[number % len(pictures)]]
        return extractor.extract(one) if inside is None else extractor.extract_part(one, inside)

    return passed
