"""How densely a memory's rows lie, and distances that count by it."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from backend.base.config import Settings
from backend.base.keys import ModelKey
from backend.extractors.texture import TextureFeatures
from backend.memory.density import FLOOR, SAMPLE, WINDOW
from backend.patchcore import Array, Backend, PatchCoreMemory, l2_normalize
from backend.service.fitting import Fitter
from backend.service.inspection import Inspector
from tests.memory.rows import two_clouds
from tests.parts import part_file

KEY = ModelKey.of("Master1", "Pattern")


def slow(rows: Array, q: Array, k: int, n: int, src: np.ndarray | None = None) -> np.ndarray:
    """One patch and one row at a time."""
    rows, q = rows.astype(np.float64), q.astype(np.float64)
    images = [-1] * len(rows) if src is None else src.tolist()
    between = np.linalg.norm(rows[:, None] - rows[None], axis=2).tolist()

    def spacing(number: int) -> float:
        others = sorted((between[number][i], i) for i in range(len(rows)) if i != number)
        alone = min(images) >= 0 and len(set(images)) == 1
        strange = [d for d, i in others[:WINDOW] if alone or images[i] < 0 or images[i] != images[number]][:n]
        return float(np.mean(strange + (n - len(strange)) * [others[:WINDOW][-1][0]]))

    typical = float(np.median([spacing(number) for number in range(0, len(rows), -(-len(rows) // SAMPLE))]))
    found = []
    for patch in q:
        lengths = [float(np.linalg.norm(patch - row)) for row in rows]
        divisor = max(spacing(int(np.argmin(lengths))) / typical, FLOOR)
        found.append(np.mean(sorted(lengths)[:k]) / divisor)
    return np.array(found)


@pytest.mark.parametrize("backend", ["faiss", "sklearn"])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 9), (3, 5)])
def test_a_distance_counts_by_the_spacing_around_the_nearest_row(
    rng: np.random.Generator, backend: Backend, k: int, n: int
) -> None:
    rows = two_clouds(rng)
    q = l2_normalize((rows[::37] + 0.1 * rng.standard_normal(rows[::37].shape)).astype(np.float32))
    memory = PatchCoreMemory(rows, backend=backend)
    expected = slow(rows, q, k, n)
    for _ in range(2):  # what was computed the first time is remembered
        np.testing.assert_allclose(memory.distances(q, k, density=n), expected, rtol=1e-4)
    np.testing.assert_allclose(memory.distances(q[::-1], k, density=n), expected[::-1], rtol=1e-4)


@pytest.mark.parametrize("n", [1, 9])
@pytest.mark.parametrize("images", ["blocks", "turns", "shared", "one", "lopsided"])
def test_neighbours_are_those_of_other_images(rng: np.random.Generator, images: str, n: int) -> None:
    rows = two_clouds(rng)
    number = np.arange(len(rows), dtype=np.int32)
    src = {
        "blocks": number // 40,
        "turns": number % 4,
        "shared": np.where(number % 3 == 0, -1, number // 40),
        "one": np.zeros_like(number),
        # The first cloud is one image's alone: within the window it has few strangers, or none.
        "lopsided": np.where(number < 317, 0, number % 5).astype(np.int32),
    }[images]
    q = l2_normalize((rows[::29] + 0.1 * rng.standard_normal(rows[::29].shape)).astype(np.float32))
    memory = PatchCoreMemory(rows, image_ids=src)
    expected = slow(rows, q, 1, n, src)
    for _ in range(2):
        np.testing.assert_allclose(memory.distances(q, density=n), expected, rtol=1e-4)


def test_what_one_image_alone_shows_many_times_over_is_judged_by_the_others(rng: np.random.Generator) -> None:
    rows = two_clouds(rng)
    close, far = np.arange(320), np.arange(320, 640)
    of_many = np.concatenate([close % 10, far % 10]).astype(np.int32)
    of_one = np.concatenate([np.where(close < 300, 99, close % 10), far % 10]).astype(np.int32)
    step = l2_normalize(rows[:40] + 0.2 * l2_normalize(rng.standard_normal((40, 24)).astype(np.float32)))
    usual, alone = (PatchCoreMemory(rows, image_ids=src).distances(step, density=9).mean() for src in (of_many, of_one))
    assert alone < 0.95 * usual


def test_a_row_whose_window_its_own_image_fills_is_no_denser_for_it(rng: np.random.Generator) -> None:
    rows = two_clouds(rng, 400)
    step = l2_normalize(rows[:40] + 0.2 * l2_normalize(rng.standard_normal((40, 24)).astype(np.float32)))
    found = []
    for own in (WINDOW - 20, WINDOW + 60):
        src = np.where(np.arange(800) < own, 99, np.arange(800) % 10).astype(np.int32)
        found.append(PatchCoreMemory(rows, image_ids=src).distances(step, density=9).mean())
    assert found[1] < 1.05 * found[0]


def test_the_same_step_counts_more_where_good_patches_hardly_vary(rng: np.random.Generator) -> None:
    rows = two_clouds(rng)
    step = l2_normalize(rng.standard_normal((1, rows.shape[1])).astype(np.float32)) * 0.3
    plain, weighed = (PatchCoreMemory(rows).distances(l2_normalize(rows[[10, 400]] + step), density=n) for n in (0, 9))
    assert plain[0] < 1.5 * plain[1]
    assert weighed[0] > 2 * weighed[1]


def test_rows_that_coincide_do_not_make_the_least_difference_an_anomaly(rng: np.random.Generator) -> None:
    rows = two_clouds(rng)
    rows[:100] = rows[0]
    memory = PatchCoreMemory(rows)
    near = l2_normalize(rows[[0]] + np.float32(1e-3))
    assert memory.distances(near, density=5)[0] <= memory.distances(near)[0] / FLOOR
    assert memory.distances(near, density=5)[0] > memory.distances(near)[0]
    same = PatchCoreMemory(np.repeat(rows[:1], 12, axis=0))
    np.testing.assert_array_equal(same.distances(near, density=5), same.distances(near))


@pytest.mark.parametrize("n_rows", [1, 191])
def test_a_memory_of_few_rows_measures_as_it_would_without(rng: np.random.Generator, n_rows: int) -> None:
    rows = two_clouds(rng)
    memory = PatchCoreMemory(rows[:n_rows])
    np.testing.assert_array_equal(memory.distances(rows, density=9), memory.distances(rows))


def test_neighbours_are_no_more_than_a_small_part_of_the_memory(rng: np.random.Generator) -> None:
    rows = two_clouds(rng)
    memory = PatchCoreMemory(rows)
    assert (
        memory.distances(rows[:9] + np.float32(0.1), density=99)
        != memory.distances(rows[:9] + np.float32(0.1), density=9)
    ).any()


def test_an_image_left_out_is_left_out_of_the_spacing_too(rng: np.random.Generator) -> None:
    rows = two_clouds(rng)
    src = np.repeat(np.arange(4, dtype=np.int32), 160)
    without = PatchCoreMemory(rows[src != 3], image_ids=src[src != 3])
    left_out = PatchCoreMemory(rows, image_ids=src).distances(rows[src == 3], density=9, leave_out=3)
    np.testing.assert_allclose(left_out, without.distances(rows[src == 3], density=9), rtol=1e-5)


def test_a_memory_goes_when_nobody_holds_it(rng: np.random.Generator) -> None:
    memory = PatchCoreMemory(two_clouds(rng))
    memory.distances(memory.emb[:5], density=5)
    gone = weakref.ref(memory)
    gc.disable()
    try:
        del memory
        assert gone() is None
    finally:
        gc.enable()


def test_threads_that_meet_measure_the_same(rng: np.random.Generator) -> None:
    rows = two_clouds(rng)
    q = l2_normalize((rows + 0.1 * rng.standard_normal(rows.shape)).astype(np.float32))
    expected = PatchCoreMemory(rows).distances(q, density=9)
    memory = PatchCoreMemory(rows)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: memory.distances(q, density=9), range(16)):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_density_goes_through_the_service_and_a_threshold_does_not_outlive_its_change(tmp_path: Path) -> None:
    def opened(n: int) -> Inspector:
        settings = Settings(models_dir=tmp_path, coreset_rate=0.9, input_size=140, patchcore_density_k=n)
        return Inspector(settings, TextureFeatures(140))

    plain, weighed = opened(0), opened(5)
    Fitter(plain).fit(KEY, [part_file(seed) for seed in range(4)], mm_per_px=0.2)
    scores = [one.infer(KEY, part_file(9), mm_per_px=0.2).inspection.score for one in (plain, weighed)]
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)
    plain.calibrate(KEY, ok_scores=scores[:1] * 9, mm_per_px=0.2)
    assert plain.infer(KEY, part_file(9), mm_per_px=0.2).threshold is not None
    assert weighed.infer(KEY, part_file(9), mm_per_px=0.2).threshold is None
