from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from backend.extractors.neighbourhood import Neighbourhood, SmallerEdge, Tiled, spans
from backend.extractors.texture import TextureFeatures
from backend.features import RGB, build_extractor, grid_of, token_grid
from backend.patchcore import l2_normalize

Array = np.ndarray


class Means:
    """The mean colour of each cell and a constant; unit rows."""

    name, dim, patch, runtime, device, fingerprint = "means", 4, 8, "test", "cpu", "means"
    input_size = 64

    def extract(self, images: Sequence[RGB]) -> Array:
        cells = [image.reshape(image.shape[0] // 8, 8, -1, 8, 3).mean((1, 3)).reshape(-1, 3) / 255 for image in images]
        return np.stack([l2_normalize(np.hstack([c, np.ones((len(c), 1))]).astype(np.float32)) for c in cells])


@pytest.fixture
def image(rng: np.random.Generator) -> RGB:
    return cv2.GaussianBlur(rng.integers(0, 255, (48, 72, 3), dtype=np.uint8), (0, 0), 4).astype(np.uint8)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 1), (3, 2), (1, 3)])
def test_a_token_is_the_mean_of_its_neighbourhood(image: RGB, size: int, stride: int) -> None:
    own = Neighbourhood(Means(), size, stride)
    maps = Means().extract([image])[0].reshape(6, 9, 4)
    slow = []
    for y in range(stride // 2, 6, stride):
        for x in range(stride // 2, 9, stride):
            h = size // 2
            around = maps[max(0, y - h) : y + h + 1, max(0, x - h) : x + h + 1].reshape(-1, 4).mean(axis=0)
            slow.append(around / np.linalg.norm(around))
    np.testing.assert_allclose(own.extract([image])[0], slow, atol=1e-6)
    assert own.patch == 8 * stride
    assert own.fingerprint not in {"means", Neighbourhood(Means(), 7, stride).fingerprint}


def test_resnet_levels_are_averaged_before_they_are_joined(tmp_path: Path, rng: np.random.Generator) -> None:
    import timm
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional

    torch.manual_seed(1)
    model: Any = timm.create_model("resnet18.tv_in1k", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    own = build_extractor("resnet18", weights=str(tmp_path), device="cpu", threads=1, around=(3, 2), offset=0.7)
    pixels = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    taken: dict[str, torch.Tensor] = {}
    for name in ("layer2", "layer3"):
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: taken.update({name: out}))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        model(torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]).float())
    layer2, layer3 = (_slow_average(taken[name][0].numpy()) for name in ("layer2", "layer3"))
    layer2 = layer2[:, ::2, ::2]
    joined = np.concatenate(
        [layer2, functional.interpolate(torch.from_numpy(layer3)[None], layer2.shape[1:], mode="bilinear")[0].numpy()]
    )
    joined = joined.reshape(384, -1).T + np.where(np.arange(384) % 2, -0.7, 0.7)
    expected = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    assert own.patch == 16
    np.testing.assert_allclose(own.extract([pixels])[0], expected, atol=1e-5)


def _slow_average(level: Array) -> Array:
    """3×3 sums over nine, with nothing beyond the border."""
    out = np.zeros_like(level)
    for y in range(level.shape[1]):
        for x in range(level.shape[2]):
            out[:, y, x] = level[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].sum(axis=(1, 2)) / 9
    return out


def test_tiles_see_the_whole_roi_on_a_finer_grid() -> None:
    own = Tiled(Means(), 2, 0.25)
    assert own.input_size == 112
    rng = np.random.default_rng(2)
    image = rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_allclose(own.extract([image]), Means().extract([image]), atol=1e-6)


@pytest.mark.parametrize(("length", "tiles", "overlap"), [(14, 2, 0.25), (15, 3, 0.5), (7, 4, 0.0), (3, 3, 0.9)])
def test_tiles_cover_everything_and_are_of_one_size(length: int, tiles: int, overlap: float) -> None:
    found = list(spans(length, tiles, overlap))
    assert {n for span in found for n in range(span.start, span.stop)} == set(range(length))
    assert len({span.stop - span.start for span in found}) == 1


def test_the_smaller_edge_gets_the_input_size() -> None:
    own = SmallerEdge(TextureFeatures(448))
    assert grid_of(own, 300, 600) == (32, 64)
    assert grid_of(own, 448, 448) == (32, 32)
    assert grid_of(TextureFeatures(448), 300, 600) == token_grid(300, 600, input_size=448, patch=14)
    assert own.fingerprint == TextureFeatures(448).fingerprint
