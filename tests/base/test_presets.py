"""Presets are settings that somebody published; each is held against a slow, obvious computation of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from backend.base.config import Settings, load_settings
from backend.base.errors import InvalidSettings
from backend.base.images import decode_image, encode_png
from backend.base.keys import ModelKey
from backend.base.presets import PRESETS
from backend.extractors.protocol import RGB, Edge, Extractor
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector

KEY = ModelKey.of("preset", "part")


class Cells(Extractor):
    """Twelve numbers a token: mean and spread of its colours, and those of its right and lower neighbour's; unit."""

    name = "cells"
    dim = 12
    widths = (6, 6)
    patch = 8
    runtime = device = "test"
    fingerprint = "cells"

    def __init__(self, input_size: int, input_edge: Edge = "area") -> None:
        self.input_size, self.input_edge = input_size, input_edge

    def extract(self, images: Sequence[RGB]) -> np.ndarray:
        return np.stack([np.stack(self.rows(image)) for image in images])

    def rows(self, image: RGB) -> list[np.ndarray]:
        h, w = image.shape[0] // 8, image.shape[1] // 8
        cells = image.reshape(h, 8, w, 8, 3).astype(np.float32) / 255
        own = np.concatenate([cells.mean((1, 3)), cells.std((1, 3))], axis=2)
        joined = np.concatenate([own, np.roll(own, -1, 1) * np.roll(own, -1, 0)], axis=2).reshape(h * w, 12)
        return list(joined / np.linalg.norm(joined, axis=1, keepdims=True))


def picture(seed: int, spot: bool = False) -> bytes:
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(60, 200, (96, 150, 3), dtype=np.uint8), (0, 0), 3)
    if spot:
        image[30:50, 60:84] = (30, 200, 240)
    return encode_png(image)


@pytest.fixture
def files() -> list[ImageFile]:
    return [ImageFile.named(f"{n}.png", lambda n=n: picture(n)) for n in range(4)]  # type: ignore[misc]


def inspect(files: list[ImageFile], folder: Path, data: bytes, **given: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Score, token map's source (the memory's rows) and heatmap of `data` through the service's own code."""
    settings = Settings(models_dir=folder, knn_backend="sklearn", **given)
    inspector = Inspector(settings, Edged(settings))
    Fitter(inspector).fit(KEY, files, mm_per_px=1.0)
    found = inspector.infer(KEY, ImageFile.named("x.png", lambda: data), mm_per_px=1.0).inspection
    rows = inspector.store.load_memory(KEY).emb
    inspector.close()
    return found.score, rows, found.anomaly_map


def Edged(settings: Settings) -> Any:
    from backend.extractors.neighbourhood import Neighbourhood

    extractor: Any = Cells(settings.input_size, settings.input_edge)
    if settings.patchcore_patch_size not in {None, 1}:
        extractor = Neighbourhood(extractor, settings.patchcore_patch_size, settings.patchcore_stride)
    return extractor


def tokens_of(data: bytes, height: int, width: int) -> np.ndarray:
    image = decode_image(data)
    shrinks = height * width < image.shape[0] * image.shape[1]
    sized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.array(Cells(64).rows(np.ascontiguousarray(sized[:, :, ::-1])), np.float64)


def slow_nearest(token: np.ndarray, rows: np.ndarray) -> tuple[float, int]:
    lengths = [float(np.sqrt(((token - row) ** 2).sum())) for row in rows]
    return min(lengths), int(np.argmin(lengths))


def test_anomalydino_is_the_mean_of_the_top_percent_of_cosine_distances(files: list[ImageFile], tmp_path: Path) -> None:
    data = picture(77, spot=True)
    score, rows, _ = inspect(files, tmp_path, data, preset="anomalydino", input_size=128)
    height, width = 128, 200  # the smaller edge is 128, and 150/96 of it to the nearest multiple of 8
    memory = np.concatenate([tokens_of(file.read(), height, width) for file in files])
    assert len(rows) == len(memory)
    distances = [min(1 - float(token @ row) for row in memory) for token in tokens_of(data, height, width)]
    worst = sorted(distances)[-round(0.01 * len(distances)) :]
    assert score == pytest.approx(np.mean(worst), abs=1e-5)


def slow_greedy(rows: np.ndarray, first: int, n: int) -> list[int]:
    chosen = [first]
    while len(chosen) < n:
        gaps = [min(float(((row - rows[c]) ** 2).sum()) for c in chosen) for row in rows]
        chosen.append(int(np.argmax(gaps)))
    return chosen


def slow_patches(tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """3×3 means over the neighbours there are, normalised."""
    maps = tokens.reshape(*grid, -1)
    patches = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            around = maps[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].reshape(-1, maps.shape[2])
            patches.append(around.sum(axis=0))
    joined = np.array(patches)
    unit: np.ndarray = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("neighbours", [0, 3, 9])
def test_patchcore_is_the_farthest_patch_weighed_by_equation_7(
    files: list[ImageFile], tmp_path: Path, neighbours: int
) -> None:
    data, grid = picture(78, spot=True), (6, 10)
    score, rows, _ = inspect(
        files, tmp_path, data, preset="patchcore", input_size=64, patchcore_reweight=neighbours, coreset_rate=0.2
    )
    everything = np.concatenate([slow_patches(tokens_of(f.read(), 48, 80), grid) for f in files])
    first = int(np.random.default_rng(0).integers(len(everything)))
    memory = everything[slow_greedy(everything, first, 48)]
    np.testing.assert_allclose(rows, memory, atol=1e-6)
    patches = slow_patches(tokens_of(data, 48, 80), grid)
    nearest = [slow_nearest(patch, memory) for patch in patches]
    worst = int(np.argmax([length for length, _ in nearest]))
    expected, star = nearest[worst]
    if neighbours:
        around = sorted(range(48), key=lambda m: float(((memory[m] - memory[star]) ** 2).sum()))[:neighbours]
        total = sum(np.exp(np.linalg.norm(patches[worst] - memory[m])) for m in around)
        expected *= 1 - np.exp(np.linalg.norm(patches[worst] - memory[star])) / total
    assert score == pytest.approx(expected, abs=1e-6)


def test_reference_is_the_99th_percentile_of_the_blurred_heatmap(files: list[ImageFile], tmp_path: Path) -> None:
    data = picture(79, spot=True)
    score, rows, heat = inspect(files, tmp_path, data, preset="reference", input_size=64, coreset_rate=0.5)
    distances = [slow_nearest(token, rows)[0] for token in tokens_of(data, 48, 80)]
    token_map = np.array(distances, np.float32).reshape(6, 10)
    slow = np.zeros((96, 150))
    for y in range(96):
        for x in range(150):
            v, u = np.clip((y + 0.5) * 6 / 96 - 0.5, 0, 5), np.clip((x + 0.5) * 10 / 150 - 0.5, 0, 9)
            y0, x0 = min(int(v), 4), min(int(u), 8)
            b, a = v - y0, u - x0
            slow[y, x] = (
                token_map[y0, x0] * (1 - a) * (1 - b)
                + token_map[y0, x0 + 1] * a * (1 - b)
                + token_map[y0 + 1, x0] * (1 - a) * b
                + token_map[y0 + 1, x0 + 1] * a * b
            )
    blurred = cv2.GaussianBlur(slow, (0, 0), 1.0)
    np.testing.assert_allclose(heat, blurred, atol=2e-3)
    ordered = np.sort(np.ravel(blurred))
    position = 0.99 * (len(ordered) - 1)
    low = int(position)
    expected = ordered[low] + (ordered[low + 1] - ordered[low]) * (position - low)
    assert score == pytest.approx(expected, rel=2e-3)


def test_what_somebody_sets_goes_before_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESET", "patchcore")
    monkeypatch.setenv("BDI_CORESET_RATE", "0.25")
    settings = load_settings(input_size=320)
    assert settings.coreset_rate == 0.25
    assert settings.input_size == 320
    assert (settings.model_name, settings.score_method, settings.patchcore_reweight) == ("resnet18", "max", 9)


@pytest.mark.parametrize("model", ["lite", "resnet18", "wide_resnet50_2", "texture"])
def test_a_vit_has_a_recommended_setting_of_its_own(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    vit, other = Settings(preset="recommended"), Settings(preset="recommended", model_name=model)
    assert (vit.score_method, vit.score_map, vit.score_power) == ("power_mean", "tokens", 32.0)
    assert (vit.patchcore_density_k, vit.coreset_rate) == (0, 0.02)
    assert (other.score_method, other.patchcore_density_k) == ("power_mean", 9)
    monkeypatch.setenv("BDI_MODEL_NAME", f" {model} ")
    monkeypatch.setenv("PRESET", "Recommended")
    assert load_settings().patchcore_density_k == 9


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_preset_names_settings_that_there_are(name: str) -> None:
    settings = Settings(preset=name, **({} if "model_name" in PRESETS[name] else {"model_name": "resnet18"}))  # type: ignore[arg-type]
    assert {field: getattr(settings, field) for field in PRESETS[name]} == PRESETS[name]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="PRESET"):
        load_settings(preset="magic")


def test_the_reference_is_what_the_contract_says() -> None:
    reference, default = Settings(preset="reference"), Settings()
    for name in ("model_name", "input_size", "coreset_rate", "score_percentile", "score_method", "blur_sigma"):
        assert getattr(reference, name) == getattr(default, name)
