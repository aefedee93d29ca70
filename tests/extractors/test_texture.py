from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.extractors import texture
from backend.extractors.protocol import Extractor
from backend.extractors.texture import DIM, PATCH, TextureFeatures, texture_tokens

Picture = NDArray[np.uint8]
Tokens = NDArray[np.float32]
PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
GRID = (32, 32)


def scene(grid: tuple[int, int]) -> Picture:
    """Stripes that widen to the right, over a slow change of colour: every token differs from the next."""
    y, x = np.mgrid[0 : grid[0] * PATCH, 0 : grid[1] * PATCH].astype(np.float64)
    stripes = 30 * np.sin((x + 2 * y) / (2 + x / 60))
    layers = [128 + 60 * np.sin(x / 70) + stripes, 120 + 50 * np.cos(y / 50) + stripes, 100 + 0.1 * (x + y) + stripes]
    return np.asarray(np.clip(np.stack(layers, axis=2), 0, 255), np.uint8)


def read(path: Path, grid: tuple[int, int] = GRID) -> Picture:
    """The file as RGB, resized to a token grid."""
    image = cv2.imread(str(path))
    assert image is not None
    size = (grid[1] * PATCH, grid[0] * PATCH)
    method = cv2.INTER_AREA if image.shape[1] > size[0] else cv2.INTER_CUBIC
    picture: Picture = cv2.resize(image, size, interpolation=method).astype(np.uint8)[:, :, ::-1].copy()
    return picture


def some(folder: Path, count: int) -> list[Picture]:
    """`count` pictures spread evenly over the folder."""
    paths = sorted(folder.iterdir())
    return [read(paths[i]) for i in np.linspace(0, len(paths) - 1, count).astype(int)]


def memory_of(good: list[Picture]) -> Tokens:
    """A random tenth of the good pictures' tokens."""
    tokens = np.concatenate(list(TextureFeatures().extract(good)))
    return tokens[np.random.default_rng(0).permutation(len(tokens))[: len(tokens) // 10]]


def heat(picture: Picture, memory: Tokens) -> NDArray[np.float32]:
    """Distance of each token to the nearest of the memory, on the token grid."""
    nearest = (texture_tokens(picture, GRID) @ memory.T).max(axis=1)
    return np.asarray(np.sqrt(np.maximum(2 - 2 * nearest, 0)).reshape(GRID), np.float32)


def auroc(good: list[float], bad: list[float]) -> float:
    """How often a bad score exceeds a good one, ties counted half."""
    higher = np.subtract.outer(np.array(bad), np.array(good))
    return float(((higher > 0) + 0.5 * (higher == 0)).mean())


@pytest.fixture(scope="module")
def cookies(shared_data: Path) -> tuple[Tokens, float]:
    """The memory of all good cookies to learn from, and the highest distance on a good one held out."""
    memory = memory_of(some(shared_data / "cookies" / "train" / "good", 31))
    held_out = some(shared_data / "cookies" / "test" / "good", 14)
    return memory, max(float(heat(picture, memory).max()) for picture in held_out)


def apart(a: Tokens, b: Tokens) -> NDArray[np.float32]:
    return np.asarray(np.linalg.norm(a - b, axis=-1), np.float32)


@pytest.mark.parametrize("grid", [(1, 1), (1, 60), (60, 1), (2, 3), (45, 22), (23, 46), (32, 32)])
def test_any_grid_gives_a_unit_row_per_token(grid: tuple[int, int]) -> None:
    tokens = texture_tokens(scene(grid), grid)
    assert tokens.shape == (grid[0] * grid[1], DIM)
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_flat_pictures_give_the_same_finite_unit_row_everywhere(level: int) -> None:
    tokens = texture_tokens(np.full((5 * PATCH, 7 * PATCH, 3), level, np.uint8), (5, 7))
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(tokens, np.broadcast_to(tokens[:1], tokens.shape), atol=1e-5)


def test_extreme_pictures_give_finite_unit_rows(rng: np.random.Generator) -> None:
    shape = (6 * PATCH, 6 * PATCH, 3)
    spark = np.zeros(shape, np.uint8)
    spark[40, 40] = 255
    chequered = (np.indices(shape).sum(axis=0) % 2 * 255).astype(np.uint8)
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    blue = np.zeros(shape, np.uint8)
    blue[:, :, 2] = 255
    grey = np.repeat(noise[:, :, :1], 3, axis=2)
    for picture in (spark, chequered, noise, blue, grey):
        np.testing.assert_allclose(np.linalg.norm(texture_tokens(picture, (6, 6)), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "grid"), [(42, 42, (2, 3)), (43, 42, (3, 3)), (28, 42, (3, 2))])
def test_a_picture_of_another_size_than_its_grid_is_refused(height: int, width: int, grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="tokens of 14 px"):
        texture_tokens(np.zeros((height, width, 3), np.uint8), grid)


def test_rows_run_left_to_right_then_down_and_only_neighbours_feel_a_change() -> None:
    grid, (row, column) = (9, 12), (3, 7)
    plain = scene(grid)
    dotted = plain.copy()
    cell = dotted[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
    cell[:] = np.rot90(cell, axes=(0, 1))[:, :, ::-1]
    change = apart(texture_tokens(dotted, grid), texture_tokens(plain, grid)).reshape(grid)
    assert divmod(int(change.argmax()), grid[1]) == (row, column)
    rows, columns = np.indices(grid)
    far = (abs(rows - row) > 2) | (abs(columns - column) > 2)
    assert change[far].max() < 1e-4
    assert change.max() > 0.1


def test_the_same_picture_gives_the_same_bits_whatever_its_batch_or_memory_layout() -> None:
    picture, other = scene((8, 9)), scene((8, 9))[::-1].copy()
    features = TextureFeatures()
    alone = features.extract([picture])
    batch = features.extract([other, picture])
    assert batch.shape == (2, 72, DIM)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[1], alone[0])
    np.testing.assert_array_equal(features.extract([picture]), alone)
    np.testing.assert_array_equal(TextureFeatures().extract([np.asfortranarray(picture)]), alone)
    assert apart(batch[0], batch[1]).max() > 0.1


def test_a_fresh_process_gives_the_same_tokens_on_one_thread() -> None:
    script = (
        "import sys; from tests.extractors.test_texture import scene, texture_tokens;"
        "sys.stdout.buffer.write(texture_tokens(scene((8, 9)), (8, 9)).tobytes())"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True, timeout=60)
    there = np.frombuffer(done.stdout, np.float32).reshape(72, DIM)
    np.testing.assert_allclose(there, texture_tokens(scene((8, 9)), (8, 9)), atol=1e-6)


def test_exposure_moves_tokens_far_less_than_contents_do(shared_data: Path) -> None:
    cookie = some(shared_data / "cookies" / "train" / "good", 1)[0]
    tokens = texture_tokens(cookie, GRID)
    contents = apart(tokens, np.random.default_rng(0).permutation(tokens)).mean()
    for gain in (0.5, 0.7, 0.9):
        darker = np.round(cookie * gain).astype(np.uint8)
        assert apart(texture_tokens(darker, GRID), tokens).mean() < contents / 30


def test_sensor_noise_moves_tokens_far_less_than_contents_do(shared_data: Path, rng: np.random.Generator) -> None:
    cookie = some(shared_data / "cookies" / "train" / "good", 1)[0]
    tokens = texture_tokens(cookie, GRID)
    contents = apart(tokens, np.random.default_rng(0).permutation(tokens)).mean()
    noisy = np.clip(np.round(cookie + rng.normal(0, 2, cookie.shape)), 0, 255).astype(np.uint8)
    assert apart(texture_tokens(noisy, GRID), tokens).mean() < contents / 20


def test_hue_is_told_at_equal_brightness_and_texture_at_equal_colour() -> None:
    red, green = np.full((56, 56, 3), 90, np.uint8), np.full((56, 56, 3), 90, np.uint8)
    red[:, :, 0], green[:, :, 1] = 180, 180
    assert apart(texture_tokens(red, (4, 4)), texture_tokens(green, (4, 4))).min() > 0.5
    upright = scene((4, 4))
    upright[:] = (128 + 80 * np.sin(np.arange(56) / 1.5)).astype(np.uint8)[None, :, None]
    lying = upright.transpose(1, 0, 2).copy()
    assert apart(texture_tokens(upright, (4, 4)), texture_tokens(lying, (4, 4))).min() > 0.2


@pytest.mark.parametrize("colour", [(150, 165, 190), (20, 18, 16), (240, 240, 240), (40, 60, 160)])
def test_a_foreign_body_on_a_good_cookie_stands_out_above_every_good_one_and_where_it_lies(
    shared_data: Path, cookies: tuple[Tokens, float], colour: tuple[int, int, int]
) -> None:
    memory, highest = cookies
    for picture in some(shared_data / "cookies" / "test" / "good", 3):
        defect = picture.copy()
        cv2.circle(defect, (224, 224), 20, colour, -1, cv2.LINE_AA)
        spots = heat(defect, memory)
        assert spots.max() > 1.1 * highest
        row, column = divmod(int(spots.argmax()), GRID[1])
        assert abs(row + 0.5 - 16) < 3
        assert abs(column + 0.5 - 16) < 3


@pytest.mark.parametrize(
    ("name", "train", "tested", "floor_max", "floor_p99"),
    [
        pytest.param("cookies", 31, {"good": 14, "crack": 30}, 0.93, 0.92, marks=pytest.mark.slow),
        ("pills", 25, {"good": 20, "dirt": 15, "chip": 15}, 0.98, 0.98),
        pytest.param("coffee", 120, {"good": 76, "bad": 85}, 0.60, 0.58, marks=pytest.mark.slow),
    ],
)
def test_real_defects_score_above_good_parts(
    shared_data: Path, name: str, train: int, tested: dict[str, int], floor_max: float, floor_p99: float
) -> None:
    memory = memory_of(some(shared_data / name / "train" / "good", train))
    maps = {kind: [heat(p, memory) for p in some(shared_data / name / "test" / kind, n)] for kind, n in tested.items()}
    good, bad = maps.pop("good"), [m for kind in maps.values() for m in kind]
    by_max = auroc([float(m.max()) for m in good], [float(m.max()) for m in bad])
    by_p99 = auroc([float(np.percentile(m, 99)) for m in good], [float(np.percentile(m, 99)) for m in bad])
    print(f"{name}: AUROC max {by_max:.3f}, p99 {by_p99:.3f}")
    assert by_max >= floor_max
    assert by_p99 >= floor_p99


def test_it_is_an_extractor_that_tells_what_it_is() -> None:
    features: Extractor = TextureFeatures(input_size=336)
    assert (features.name, features.dim, features.patch, features.input_size) == ("texture", DIM, 14, 336)
    assert (features.device, features.runtime) == ("cpu", "numpy")
    assert TextureFeatures().input_size == 448


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("VERSION", 99), ("BRIGHTNESS", 0.5), ("DARK", 0.1), ("BINS", 9), ("RANGES", ((0.0, 1.0),) * 3),
        ("NEIGHBOURHOODS", (1, 5)), ("SCALES", ((14, 2, (4, 0, 0)),)), ("FLOOR", 2.0), ("ENERGY_WEIGHT", 1.0),
    ],
)  # fmt: skip
def test_the_fingerprint_follows_every_constant(monkeypatch: pytest.MonkeyPatch, constant: str, value: object) -> None:
    before = TextureFeatures().fingerprint
    assert getattr(texture, constant) != value
    monkeypatch.setattr(texture, constant, value)
    assert TextureFeatures().fingerprint != before


def test_descriptor_and_fingerprint_change_together_or_not_at_all() -> None:
    """Stored memories hang on these numbers. Whoever changes them on purpose raises VERSION and renews them here."""
    assert TextureFeatures().fingerprint == "cf3cacf4723d5fd0"
    tokens = texture_tokens(scene((4, 5)), (4, 5))
    colours, energies = [0.01289, 0.14828, 0.15948], [0.39193, 0.00509, 0.04290, 0.06008]
    np.testing.assert_allclose(tokens[7, [3, 12, 20, 48, 49, 60, 75]], colours + energies, atol=1e-4)
    mixed = (tokens @ np.cos(np.arange(DIM)))[[0, 6, 13, 19]]
    np.testing.assert_allclose(mixed, [-1.09472, -0.86472, -0.50543, -0.31691], atol=5e-4)
