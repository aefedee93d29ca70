"""ROIs that a torch device resizes, here the CPU: the pixels are those that OpenCV gives."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions, decode
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import RGB, ExtractorOptions, needed_by, prepare
from backend.extractors.resizing import LONGEST, DeviceResizer, area_taps
from backend.features import build_extractor
from backend.service.images import ImageFile, prepare_image
from tests.parts import encoded, part

PATCH = 14


class Counting(DeviceResizer):
    """Knows how many images it resized."""

    resized = 0

    def __call__(self, *given: Any) -> RGB | None:
        seen = super().__call__(*given)
        self.resized += seen is not None
        return seen


without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, without_gpu])])
def resizer(request: pytest.FixtureRequest) -> DeviceResizer:
    return DeviceResizer(request.param)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def pictures(height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    yield noise(height, width)
    yield part(1, height=height, width=width, defect=True)
    yield np.full((height, width, 3), 255, np.uint8)


@pytest.mark.parametrize("grid", [(32, 32), (16, 16), (28, 36), (8, 45)])
@pytest.mark.parametrize(
    "size", [(448, 448), (449, 630), (672, 896), (896, 896), (1448, 1448), (1344, 1344), (777, 1301), (1000, 2240)]
)
def test_an_roi_gets_the_pixels_of_opencv_to_the_last_bit(
    resizer: DeviceResizer, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    height, width = PATCH * grid[0], PATCH * grid[1]
    for image in pictures(*size):
        seen = resizer(image, size, height, width)
        assert (seen is None) == (size == (height, width) or size[0] < height or size[1] < width)
        if seen is not None:
            np.testing.assert_array_equal(seen, prepare(image, grid, PATCH))


@pytest.mark.parametrize("size", [(1800, 1800), (1999, 1801), (1793, 1792)])
@pytest.mark.parametrize("side", [448, 224])
def test_a_jpeg_that_was_decoded_smaller_gets_them_too(
    resizer: DeviceResizer, size: tuple[int, int], side: int
) -> None:
    grid = side // PATCH, side // PATCH
    for image in (noise(*size), part(1, height=size[0], width=size[1], defect=True)):
        data = encoded(image, "JPEG", quality=90)
        found = decode(data, options=ImageOptions(), needed=lambda *_: (side, side))
        assert found.pixels.shape[0] < size[0] / 1.9
        seen = resizer(found.pixels, found.size, side, side)
        np.testing.assert_array_equal(seen, prepare(found.pixels, grid, PATCH, found.size))


def parts_of(n: int, factor: float, *, fitted: bool) -> NDArray[np.float32]:
    """(size, n) how much of each new pixel OpenCV takes of each of a line of `n`."""
    size = (n, round(n * factor)) if fitted else None
    line = np.eye(n, dtype=np.float32)
    return np.asarray(cv2.resize(line, size, fx=1, fy=0 if fitted else factor, interpolation=cv2.INTER_AREA))


def test_the_parts_of_a_line_are_those_that_opencv_takes() -> None:
    rng = np.random.default_rng(0)
    lines = [(n, int(rng.integers(14, n)), bool(rng.integers(2))) for n in rng.integers(30, 900, 200).tolist()]
    for n, size, fitted in [*lines, (448, 448, True), (449, 448, True), (2901, 448, True), (1001, 1000, False)]:
        factor = size / n if fitted else size / (n - 0.37)
        at, shares = area_taps(n, factor, fitted=fitted)
        found = np.zeros((shares.shape[1], n), np.float32)
        for pixels, parts in zip(at, shares, strict=True):
            found[np.arange(len(parts))[parts > 0], pixels[parts > 0]] += parts[parts > 0]
        np.testing.assert_array_equal(found, parts_of(n, factor, fitted=fitted))
        assert all((np.diff(own[own_shares > 0]) > 0).all() for own, own_shares in zip(at.T, shares.T, strict=True))


def test_a_new_size_costs_as_much_as_its_line_is_long() -> None:
    resizer = DeviceResizer("cpu")
    tracemalloc.start()
    resizer._tabulated(LONGEST, 448 / LONGEST - 1e-5, True)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 400 * LONGEST, "bytes; a table of each pixel by each has 4 of them for every pair"


def test_what_opencv_does_in_another_way_is_left_to_it(resizer: DeviceResizer) -> None:
    assert resizer(noise(448, 448), (448, 448), 448, 448) is None
    assert resizer(noise(300, 900), (300, 900), 448, 448) is None
    assert resizer(noise(28, LONGEST + 1), (28, LONGEST + 1), 14, 448) is None


def test_an_image_that_the_devices_memory_does_not_hold_is_left_to_it(
    resizer: DeviceResizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: Any, **options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "clamp", full)
    assert resizer(noise(600, 600), (600, 600), 448, 448) is None and "too small to resize" in caplog.text


def test_a_resizer_that_is_taken_away_meanwhile_still_ends_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    own = build_extractor(ExtractorOptions(model_name="lite", input_size=160, runtime="torch", device="cpu"))
    assert isinstance(own, NetworkFeatures)
    resizer, reads = Counting("cpu"), list[bool]()

    def once(_: NetworkFeatures) -> DeviceResizer | None:
        reads.append(True)
        return resizer if len(reads) == 1 else None  # as if `leave_to_host` had come just after

    monkeypatch.setattr(NetworkFeatures, "resizer", property(once), raising=False)
    image, grid = noise(301, 420), own.grid(301, 420)
    np.testing.assert_array_equal(own.prepare(image, grid), prepare(image, grid, own.patch))
    assert resizer.resized == 1


def test_an_extractor_on_a_device_sees_the_pixels_that_one_on_the_cpu_sees(resizer: DeviceResizer) -> None:
    options = ExtractorOptions(model_name="lite", input_size=160, runtime="torch", device=resizer.device)  # type: ignore[arg-type]
    own = build_extractor(options)
    assert isinstance(own, NetworkFeatures) and (own.resizer is None) == (own.device == "cpu")
    own.resizer = Counting(resizer.device)
    for size in ((301, 420), (1000, 1000)):
        image = part(3, height=size[0], width=size[1])
        data = encoded(image, "JPEG", quality=95)
        file = ImageFile("a.jpg", lambda data=data: data)  # type: ignore[misc]
        grid = own.grid(*size)
        found = decode(data, options=ImageOptions(), needed=needed_by(own, None))
        np.testing.assert_array_equal(prepare_image(file, own).pixels, prepare(found.pixels, grid, own.patch, size))
    assert own.resizer.resized == 2
