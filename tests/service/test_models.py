"""Loaded models: the newest ones, and no more of them than there is memory for."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.base.keys import ModelKey
from backend.service.fitting import Fitter
from backend.service.inspection import Inspector
from backend.storage import ModelStore
from tests.parts import good_files, image_file, part, quick_settings

KEY = ModelKey.of("Master1", "Pattern")
GOOD, BAD = image_file(part(50)), image_file(part(51, defect=True))


def opened(root: Path, extractor: Any = None, **given: Any) -> Inspector:
    inspector = Inspector(quick_settings(root, **given), extractor)
    inspector.start()
    return inspector


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    inspector = opened(tmp_path, coreset_rate=0.5)
    yield inspector
    inspector.close()


def test_a_model_fitted_by_another_process_is_noticed(tmp_path: Path, inspector: Inspector) -> None:
    Fitter(inspector).fit(KEY, good_files(1), mm_per_px=1)
    before = inspector.infer(KEY, BAD, mm_per_px=1).inspection.score
    other = opened(tmp_path, coreset_rate=0.5)
    Fitter(other).fit(KEY, [BAD], mm_per_px=1)
    other.calibrate(KEY, ok_scores=[0.1], mm_per_px=1)
    other.close()
    result = inspector.infer(KEY, BAD, mm_per_px=1)
    assert result.inspection.score < 0.1 < before and result.threshold == 0.1


def test_requests_that_all_miss_load_the_model_once(
    tmp_path: Path, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    loads, real = [], ModelStore.load_memory

    def counted(store: ModelStore, key: ModelKey) -> Any:
        loads.append(key)
        return real(store, key)

    # Before the start, whose rehearsal may be the one that loads it.
    monkeypatch.setattr(ModelStore, "load_memory", counted)
    fresh = opened(tmp_path)
    scores: list[float] = []
    threads = [
        threading.Thread(target=lambda: scores.append(fresh.infer(KEY, GOOD, mm_per_px=1).inspection.score))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh.close()
    assert len(scores) == 12 and len(set(scores)) == 1 and len(loads) == 1


def test_the_cache_is_bounded_and_a_larger_model_still_serves(tmp_path: Path) -> None:
    inspector = opened(tmp_path, cache_mb=0.001, coreset_rate=0.5)
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    assert inspector.infer(KEY, GOOD, mm_per_px=1).inspection.score > 0
    assert inspector.cache.nbytes == 0
    inspector.close()


def test_the_least_recently_used_model_leaves_the_cache(tmp_path: Path) -> None:
    inspector = opened(tmp_path, cache_mb=0.15, coreset_rate=0.5)
    keys = [ModelKey.of("r", f"roi{n}") for n in range(4)]
    for key in keys:
        Fitter(inspector).fit(key, good_files(), mm_per_px=1)
    assert 0 < inspector.cache.nbytes <= 0.15 * 2**20
    assert all(inspector.infer(key, GOOD, mm_per_px=1).inspection.score > 0 for key in keys)
    inspector.close()
