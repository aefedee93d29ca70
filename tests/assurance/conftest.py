"""A model of rendered parts, calibrated, with stored good parts that it has not seen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.base.keys import ModelKey
from backend.samples.collector import Collector
from backend.samples.store import Draft
from tests.parts import encoded, good_files, part, quick_settings

KEY = ModelKey.of("Master1", "Pattern")


def draft(seed: int, *, defect: bool = False) -> Draft:
    return Draft(f"{seed}.png", lambda: encoded(part(seed, defect=defect)), "upload", 0.2)


def fitted_collector(root: Path, *, held_out: int = 12, bad: int = 3) -> Collector:
    """Fitted on ten good parts that are kept as samples, beside others; calibrated with what is stored."""
    collector = Collector(quick_settings(root, coreset_rate=0.5, results_db="none"))
    collector.inspector.start()
    collector.fit(KEY, good_files(10), mm_per_px=0.2)
    collector.samples.add(KEY, "ok", [draft(100 + n) for n in range(held_out)])
    collector.samples.add(KEY, "ng", [draft(200 + n, defect=True) for n in range(bad)])
    collector.calibrate(KEY)
    return collector


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    made = fitted_collector(tmp_path_factory.mktemp("assurance"))
    yield made
    made.inspector.close()
