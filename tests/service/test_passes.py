"""Fits of more embeddings than FIT_MEMORY_MB holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend.service.growing import grow
from backend.service.passes import Budget

from backend.base.config import Settings
from backend.base.errors import FitInProgress
from backend.base.keys import ModelKey
from backend.extractors.texture import TextureFeatures
from backend.patchcore import covering_radius
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from backend.service.jobs import Job
from tests.parts import encoded, part

KEY = ModelKey.of("role", "roi")
FILES = [ImageFile(f"{n}.png", lambda n=n: encoded(part(n), "PNG")) for n in range(30)]  # type: ignore[misc]


def inspector(folder: Path, megabytes: float, **more: Any) -> Inspector:
    settings = Settings(models_dir=folder, fit_memory_mb=megabytes, input_size=448, coreset_rate=0.02, **more)
    return Inspector(settings, TextureFeatures(448))


def test_a_budget_counts_bytes_of_float32() -> None:
    budget = Budget(megabytes=1, rate=0.1, limit=100, seed=0)
    assert budget.holds(2**18, 1) and not budget.holds(2**18 + 1, 1)


def test_a_fit_beyond_its_memory_says_so_and_covers_nearly_as_well(tmp_path: Path) -> None:
    needs = 30 * 1024 * TextureFeatures.dim * 4 / 2**20
    small, large = inspector(tmp_path / "a", needs * 0.95), inspector(tmp_path / "b", needs * 1.05)
    found, other = (one.fit(KEY, FILES, mm_per_px=1.0) for one in (small, large))
    assert found.metadata["in_passes"] and "in_passes" not in other.metadata
    assert "fitted_in_passes" in {notice.code for notice in found.warnings}
    assert found.metadata["n_embeddings"] == other.metadata["n_embeddings"] == 30 * 1024
    assert found.coreset_size == other.coreset_size == 614

    queue = large.host.queue()
    emb = large.embed(FILES, queue, Job()).emb
    memory, src = (getattr(small.cache.model(KEY).memory, name) for name in ("emb", "src"))
    radius = covering_radius([emb], memory)
    assert radius <= found.metadata["radius"] + 1e-6
    assert radius <= 1.25 * other.metadata["radius"]
    assert src is not None and set(np.unique(src)) <= set(range(-1, 30))
    rows = emb.reshape(30, 1024, -1)
    for row, image in list(zip(memory, src, strict=True))[::60]:
        assert image == -1 or np.abs(rows[image] - row).max(axis=1).min() == 0
    for one in (small, large):
        one.close()


def test_a_first_growth_beyond_its_memory_is_the_same_fit_in_passes(tmp_path: Path) -> None:
    needs = 30 * 1024 * TextureFeatures.dim * 4 / 2**20
    fitted, grown = inspector(tmp_path / "a", needs / 2), inspector(tmp_path / "b", needs / 2)
    fitted.fit(KEY, FILES, mm_per_px=1.0)
    found = grow(grown, KEY, FILES, mm_per_px=1.0)
    assert found.metadata["in_passes"]
    assert "fitted_in_passes" in {notice.code for notice in found.warnings}
    np.testing.assert_array_equal(grown.cache.model(KEY).memory.emb, fitted.cache.model(KEY).memory.emb)
    for one in (fitted, grown):
        one.close()


def test_a_first_growth_in_passes_gives_way_to_a_model_that_came_meanwhile(tmp_path: Path) -> None:
    needs = 30 * 1024 * TextureFeatures.dim * 4 / 2**20
    slow, quick = inspector(tmp_path, needs / 2), inspector(tmp_path, 4096)

    def meanwhile() -> bytes:
        if not (tmp_path / "role" / "roi" / "memory.npz").exists() and embedding:
            quick.fit(KEY, FILES[:2], mm_per_px=1.0)
        embedding.append(True)
        return FILES[-1].read()

    embedding: list[bool] = []  # the first read compares it with what is known, the next ones embed it
    files = [*FILES[:-1], ImageFile("last.png", meanwhile)]
    with pytest.raises(FitInProgress):
        grow(slow, KEY, files, mm_per_px=1.0)
    assert slow.cache.model(KEY).stored.metadata["n_images"] == 2
    for one in (slow, quick):
        one.close()


def test_foreground_is_not_learnt_of_pieces_of_images_and_that_is_said(tmp_path: Path) -> None:
    needs = 30 * 1024 * TextureFeatures.dim * 4 / 2**20
    own = inspector(tmp_path, needs / 2, foreground_mask="pca")
    result = own.fit(KEY, FILES, mm_per_px=1.0)
    assert {notice.code for notice in result.warnings} == {"fitted_in_passes", "foreground_not_learnt"}
    assert own.cache.model(KEY).memory.kind == ""
    own.close()


def test_a_fit_within_its_memory_is_what_it_was(tmp_path: Path) -> None:
    own = inspector(tmp_path, 4096)
    result = own.fit(KEY, FILES[:4], mm_per_px=1.0)
    assert {notice.code for notice in result.warnings} & {"fitted_in_passes"} == set()
    assert result.metadata["radius"] == pytest.approx(
        covering_radius([own.embed(FILES[:4], own.host.queue(), Job()).emb], own.cache.model(KEY).memory.emb), abs=1e-5
    )
    own.close()
