"""PatchCore's memory: built from a coreset, asked with and without an image, weighed, stored and restored."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.memory.density import Spacing
from backend.memory.foreground import Foreground
from backend.memory.products import Bf16Rows
from backend.memory.search import ExactSearch, load_faiss
from backend.memory.whitening import whitening
from backend.patchcore import (
    Array,
    Distance,
    NothingLeft,
    PatchCoreMemory,
    checked_extras,
    covering_radius,
    kcenter_greedy,
    l2_normalize,
)
from tests.memory.rows import clustered, distances_to, gaussian, nearest_by_hand, two_clouds

GRID = (6, 8)


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    """Seven images of 6×8 tokens of 12 numbers: a part that varies, on a background that hardly does."""
    y, x = np.mgrid[: GRID[0], : GRID[1]]
    inside = np.asarray((abs(y - 2.5) < 1) & (abs(x - 3.5) < 2)).ravel()
    part, ground = gaussian(rng, 2, 12)
    spread = np.where(inside, 0.6, 0.1)[:, None] * gaussian(rng, 7 * 48, 12).reshape(7, 48, 12)
    rows = np.where(inside[:, None], part, ground) + spread
    return np.stack([l2_normalize(one.astype(np.float32)) for one in rows])


KINDS: dict[str, tuple[Distance, bool]] = {
    "": ("l2", False),
    "cosine": ("cosine", False),
    "mahalanobis": ("mahalanobis", False),
    "foreground": ("l2", True),
    "cosine,foreground": ("cosine", True),
    "mahalanobis,foreground": ("mahalanobis", True),
}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind or "l2")


def built(images: Array, kind: str, rate: float = 0.5, **options: Any) -> PatchCoreMemory:
    distance, foreground = KINDS[kind]
    emb = images.reshape(-1, images.shape[2])
    return PatchCoreMemory.build(
        emb,
        rate,
        rng=np.random.default_rng(0),
        image_ids=np.repeat(np.arange(len(images), dtype=np.int32), images.shape[1]),
        distance=distance,
        foreground=Foreground.learnt(emb, GRID) if foreground else None,
        **options,
    )


def measured(memory: PatchCoreMemory, x: Array) -> Array:
    return x if memory.whiten is None else x @ memory.whiten


def test_a_memory_is_a_coreset_of_what_it_is_built_from() -> None:
    x = clustered(np.random.default_rng(0), 1500, 32)
    image_ids = np.repeat(np.arange(15, dtype=np.int32), 100)
    memory = PatchCoreMemory.build(x, 0.04, rng=np.random.default_rng(3), image_ids=image_ids)
    coreset = kcenter_greedy(x, 60, rng=np.random.default_rng(3))
    assert memory.indices is not None and memory.image_ids is not None
    np.testing.assert_array_equal(memory.emb, x[coreset.indices])
    np.testing.assert_array_equal(memory.indices, coreset.indices)
    np.testing.assert_array_equal(memory.image_ids, image_ids[coreset.indices])
    assert (len(memory), memory.dim, memory.n_embeddings) == (60, 32, 1500)
    assert memory.radius == coreset.radius == pytest.approx(memory.distances(x).max(), rel=1e-6)
    assert memory.nbytes == 60 * 32 * 4 + 60 * 4
    assert memory.reserve is None


def test_a_memory_is_capped() -> None:
    assert len(PatchCoreMemory.build(gaussian(np.random.default_rng(1), 300, 8), 0.5, limit=40)) == 40


def test_progress_is_told_and_may_end_the_build() -> None:
    seen: list[tuple[int, int]] = []
    x = gaussian(np.random.default_rng(1), 300, 8)
    PatchCoreMemory.build(x, 0.1, progress=lambda *at: seen.append(at))
    assert seen[-1] == (30, 30)

    def stop(*_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        PatchCoreMemory.build(x, 0.1, progress=stop)


def test_a_memory_that_is_to_grow_keeps_a_reserve_of_the_farthest_rows_left(rng: np.random.Generator) -> None:
    x, image_ids = clustered(rng, 900, 16), np.arange(900, dtype=np.int32) // 90
    memory = PatchCoreMemory.build(x, 0.1, image_ids=image_ids, growing=True)
    assert memory.reserve is not None and memory.indices is not None
    left = np.delete(np.arange(900), memory.indices)
    farthest = left[np.argsort(-memory.distances(x[left]), kind="stable")][:90]
    assert len(memory.reserve.emb) == 90
    np.testing.assert_allclose(memory.distances(memory.reserve.emb), memory.distances(x[farthest]), atol=1e-6)
    for row, image in zip(memory.reserve.emb, memory.reserve.image_ids, strict=True):
        assert image in image_ids[(x == row).all(axis=1)]
    assert memory.distances(np.delete(x, [*memory.indices, *farthest], axis=0)).max() <= memory.reserve.beyond + 1e-6


def test_a_memory_of_everything_is_everything_in_order(rng: np.random.Generator) -> None:
    x = l2_normalize(rng.standard_normal((20_000, 8)).astype(np.float32))
    image_ids = np.arange(20_000, dtype=np.int32)
    memory = PatchCoreMemory.build(x, 1.0, limit=10**7, image_ids=image_ids, growing=True)
    np.testing.assert_array_equal(memory.emb, x)
    np.testing.assert_array_equal(memory.image_ids, image_ids)
    assert memory.radius == 0 and memory.reserve is not None and len(memory.reserve.emb) == 0


@every_kind
def test_a_memory_that_measures_otherwise_keeps_no_reserve(images: Array, kind: str) -> None:
    memory = built(images, kind, growing=True)
    assert (memory.reserve is None) is bool(kind)


@every_kind
def test_the_coreset_is_chosen_where_distances_are_measured(images: Array, kind: str) -> None:
    memory = built(images, kind, rate=0.2)
    emb = images.reshape(-1, 12)
    shown = emb if memory.foreground is None else emb[memory.foreground.of_images(emb)]
    whiten = whitening(shown) if "mahalanobis" in kind else None
    coreset = kcenter_greedy(
        shown if whiten is None else shown @ whiten, round(0.2 * len(shown)), rng=np.random.default_rng(0)
    )
    np.testing.assert_array_equal(memory.emb, shown[coreset.indices])
    assert memory.image_ids is not None and memory.radius == coreset.radius
    for row, image in zip(memory.emb, memory.image_ids, strict=True):
        assert (images[image] == row).all(axis=1).any()
    assert memory.n_embeddings == len(emb)
    assert (len(shown) < len(emb)) is ("foreground" in kind)


@pytest.mark.parametrize(
    ("emb", "image_ids", "said"),
    [
        (np.empty((0, 4), np.float32), None, "shape"),
        (np.full((2, 4), np.nan, np.float32), None, "NaN"),
        (np.ones((2, 4), np.float32), np.zeros(3, np.int32), r"2 rows have image numbers of shape \(3,\)"),
    ],
)
def test_rows_that_are_none_are_refused(emb: Array, image_ids: NDArray[np.int32] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PatchCoreMemory(emb, image_ids=image_ids)


def test_a_memory_keeps_the_rows_it_is_given() -> None:
    rows = l2_normalize(gaussian(np.random.default_rng(2), 30, 8))
    memory = PatchCoreMemory(rows)
    assert memory.emb is rows
    assert (memory.radius, memory.indices, memory.reserve, memory.image_ids) == (None, None, None, None)
    assert (memory.n_embeddings, memory.kind, memory.extras) == (30, "", {})
    assert memory.nbytes == rows.nbytes


@every_kind
@pytest.mark.parametrize("k", [1, 3])
def test_distances_are_means_over_the_nearest_rows(images: Array, kind: str, k: int) -> None:
    memory, q = built(images[:6], kind), images[6]
    near = nearest_by_hand(measured(memory, q), measured(memory, memory.emb), k)
    expected = (near**2 / 2 if "cosine" in kind else near).mean(axis=1)
    if memory.foreground is not None:
        part = memory.foreground.of(q)
        assert 0 < part.sum() < len(q)
        expected[~part] = 0
    found = memory.distances(q, k)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_cosine_distance_is_one_minus_the_cosine(images: Array) -> None:
    memory = built(images[:6], "cosine")
    expected = np.sort(1 - images[6] @ memory.emb.T, axis=1)
    for k in (1, 3):
        np.testing.assert_allclose(memory.distances(images[6], k), expected[:, :k].mean(axis=1), atol=1e-5)


def test_tokens_that_are_not_an_image_are_judged_one_by_one(images: Array) -> None:
    memory = built(images[:6], "foreground")
    assert memory.foreground is not None
    loose = memory.distances(images[6][:-1])
    np.testing.assert_array_equal(loose > 0, memory.foreground.of(images[6][:-1]))


@every_kind
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("density", [0, 5])
def test_leaving_an_image_out_is_a_memory_without_it(images: Array, kind: str, k: int, density: int) -> None:
    memory = built(images, kind, rate=1.0)
    assert memory.image_ids is not None
    keep = memory.image_ids != 4
    without = PatchCoreMemory(
        memory.emb[keep],
        image_ids=memory.image_ids[keep],
        whiten=memory.whiten,
        cosine=memory.cosine,
        foreground=memory.foreground,
    )
    left_out = memory.distances(images[4], k, leave_out=4, density=density)
    np.testing.assert_allclose(left_out, without.distances(images[4], k, density=density), rtol=1e-5, atol=1e-7)
    assert left_out.max() > memory.distances(images[4], k, density=density).max()


def test_leaving_out_an_image_that_has_no_row_changes_nothing(images: Array) -> None:
    memory = built(images, "")
    np.testing.assert_array_equal(memory.distances(images[0], leave_out=99), memory.distances(images[0]))


def test_an_image_that_is_the_only_one_cannot_be_left_out() -> None:
    memory = PatchCoreMemory(np.eye(3, dtype=np.float32), image_ids=np.zeros(3, np.int32))
    with pytest.raises(NothingLeft, match="without image 0 no row is left"):
        memory.distances(memory.emb, leave_out=0)


@pytest.mark.parametrize(
    ("q", "options", "said"),
    [
        (np.ones((2, 5), np.float32), {}, "shape"),
        (np.full((2, 4), np.nan, np.float32), {}, "NaN"),
        (np.ones((2, 4), np.float32), {"k": 0}, "0 neighbours"),
        (np.ones((2, 4), np.float32), {"leave_out": 1}, "image 1 is to be left out of a memory that does not know"),
    ],
)
def test_what_cannot_be_compared_is_refused(q: Array, options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PatchCoreMemory(np.eye(4, dtype=np.float32)).distances(q, **options)


@every_kind
@pytest.mark.parametrize("k", [1, 3])
def test_density_divides_euclidean_distances(rng: np.random.Generator, kind: str, k: int) -> None:
    distance, has_foreground = KINDS[kind]
    rows = two_clouds(rng)  # 640: as many as 16 × 40 tokens
    foreground = Foreground(rows[0], 0.0, (16, 40)) if has_foreground else None
    memory = PatchCoreMemory.build(rows, 1.0, distance=distance, foreground=foreground)
    q = l2_normalize(rows[::40] + np.float32(0.1))
    search = ExactSearch(measured(memory, memory.emb))
    near, at = search.neighbours(measured(memory, q), k)
    divided = near / Spacing(search, 5)(at[:, 0])[:, None]
    expected = (divided**2 / 2 if distance == "cosine" else divided).mean(axis=1)
    if foreground is not None:
        expected[~foreground.of(q)] = 0
    found = memory.distances(q, k, density=5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found - memory.distances(q, k)).max() > 0.01
    np.testing.assert_array_equal(found, memory.distances(q, k, density=5))


def test_the_spacing_of_the_whole_memory_is_kept_and_that_without_an_image_is_not(rng: np.random.Generator) -> None:
    rows, image_ids = two_clouds(rng), np.repeat(np.arange(4, dtype=np.int32), 160)
    memory = PatchCoreMemory(rows, image_ids=image_ids)
    memory.distances(rows[:9], density=5, leave_out=1)
    whole = memory.distances(rows[:9], density=5)
    np.testing.assert_array_equal(whole, PatchCoreMemory(rows, image_ids=image_ids).distances(rows[:9], density=5))
    assert list(memory._spacings) == [5]


@every_kind
@pytest.mark.parametrize("neighbours", [1, 3, 9])
def test_the_weight_is_equation_7_where_distances_are_measured(images: Array, kind: str, neighbours: int) -> None:
    memory = built(images[:6], kind)
    rows = measured(memory, memory.emb)
    for q in images[6][[0, 20, 47]]:
        to_q = distances_to(rows, measured(memory, q[None])[0])
        nearest = int(to_q.argmin())
        around = np.argsort(distances_to(rows, rows[nearest]), kind="stable")[:neighbours]
        expected = 1 - np.exp(to_q[nearest]) / np.exp(to_q[around]).sum()
        assert memory.weight(q, neighbours) == pytest.approx(expected, abs=1e-5)
        assert expected == 0 if neighbours == 1 else 0.5 < expected < 0.98


def test_a_patch_whose_nearest_row_is_alone_weighs_more() -> None:
    rows = l2_normalize(np.array([[1, 0, 0], [1, 0.01, 0], [1, 0.02, 0], [0, 0, 1]], np.float32))
    memory, step = PatchCoreMemory(rows), np.array([0, 0.3, 0], np.float32)
    among, alone = (memory.weight(l2_normalize(rows[[n]] + step)[0], 3) for n in (0, 3))
    assert among < alone


@every_kind
def test_a_memory_measures_the_same_after_it_was_stored(images: Array, kind: str) -> None:
    memory = built(images, kind, rate=0.3)
    extras = checked_extras({**memory.extras, "emb": memory.emb, "theirs": np.array(["x"])}, memory.dim)
    back = PatchCoreMemory.stored(memory.emb, GRID, extras, image_ids=memory.image_ids)
    assert back.kind == memory.kind == kind
    assert extras.keys() == memory.extras.keys()
    for k, leave_out in ((1, None), (3, 4)):
        found = back.distances(images[4], k, leave_out=leave_out, density=3)
        np.testing.assert_array_equal(found, memory.distances(images[4], k, leave_out=leave_out, density=3))
    assert back.weight(images[4][20], 3) == memory.weight(images[4][20], 3)


@pytest.mark.parametrize("name", ["widths", "part_src"])
def test_memories_of_each_block_are_not_read_and_say_so(name: str) -> None:
    with pytest.raises(ValueError, match="PATCHCORE_MEMORIES=separate.* no longer read"):
        checked_extras({name: np.array([4, 4], np.int32)}, 8)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("whiten", np.eye(7, dtype=np.float32)),
        ("whiten", np.eye(8, dtype=np.int32)),
        ("whiten", np.full((8, 8), np.inf, np.float32)),
        ("foreground", np.ones(8, np.float32)),
        ("cosine", np.ones(2, bool)),
        ("cosine", np.array(1.0)),
    ],
)
def test_what_is_stored_beside_rows_must_fit_them(name: str, array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=f"{name} is .* fits rows of 8"):
        checked_extras({name: array}, 8)


def test_wider_numbers_beside_rows_are_read_as_float32() -> None:
    assert checked_extras({"whiten": np.eye(8)}, 8)["whiten"].dtype == np.float32


@every_kind
def test_what_is_measured_is_what_an_index_knows(images: Array, kind: str) -> None:
    plain, quick, asked = built(images, kind), built(images, kind), []

    def index(given: Array) -> Bf16Rows:
        asked.append(given)
        return Bf16Rows(given)

    quick.attach_index(index)
    assert len(asked) == 1
    np.testing.assert_array_equal(asked[0], measured(plain, plain.emb))
    assert quick.nbytes > plain.nbytes
    np.testing.assert_array_equal(quick.distances(images[2], 3), plain.distances(images[2], 3))


def test_bytes_are_counted_once(images: Array) -> None:
    common, whitened = built(images, ""), built(images, "mahalanobis")
    rows = common.emb.nbytes
    assert common.nbytes == rows + 4 * len(common)
    assert whitened.nbytes == 2 * rows + 4 * len(common) + 12 * 12 * 4


def test_the_index_file_is_of_the_rows_as_they_are_stored(images: Array) -> None:
    memory = built(images, "mahalanobis")
    index = load_faiss().deserialize_index(np.frombuffer(memory.index_bytes(), np.uint8))
    np.testing.assert_array_equal(index.reconstruct_n(0, len(memory)), memory.emb)


@pytest.mark.parametrize("backend", ["faiss", "sklearn"])
def test_the_library_is_the_one_asked_for(backend: Any) -> None:
    rows = np.eye(3, dtype=np.float32)
    assert PatchCoreMemory(rows, backend=backend).backend == backend
    assert PatchCoreMemory.build(rows, 1.0, backend=backend).backend == backend
    assert PatchCoreMemory.stored(rows, (1, 3), {}, backend=backend).backend == backend


def test_a_covering_radius_is_the_farthest_any_row_is_from_its_nearest_centre(rng: np.random.Generator) -> None:
    chunks, centres = [gaussian(rng, n, 5) for n in (30, 1, 20)], gaussian(rng, 4, 5)
    expected = nearest_by_hand(np.concatenate(chunks), centres)[:, 0].max()
    assert covering_radius(iter(chunks), centres) == pytest.approx(expected, rel=1e-6)


def test_the_weight_leaves_an_image_out_as_the_distances_do(images: Array) -> None:
    memory = built(images[:6], "")
    assert memory.image_ids is not None
    q, others = images[2][20], memory.emb[memory.image_ids != 2]
    assert memory.weight(q, 3, leave_out=2) == pytest.approx(PatchCoreMemory(others).weight(q, 3), abs=1e-6)
    assert memory.weight(q, 3, leave_out=2) != memory.weight(q, 3)
