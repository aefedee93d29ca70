"""Files of a camera with 12 bits a pixel: however it writes one scene, the scene scores alike or is warned of."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend.base.errors import BadImage, MemoryMismatch
from backend.base.keys import ModelKey
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from tests.parts import quick_settings
from tests.tiffs import Page, write_tiff

KEY = ModelKey.of("Master1", "Camera")
Deep = NDArray[Any]


def seen(path: Path) -> Deep:
    """A real photograph as a camera of 12 bits would have seen it: (H, W) values of 0 … 4095."""
    grey = np.asarray(Image.open(path).convert("L").resize((160, 160)))
    fine = np.random.default_rng(len(path.name)).integers(0, 16, grey.shape)
    return np.asarray(16 * grey.astype(np.uint16) + fine, np.uint16)


def png(values: Deep) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def tiff(bits: int, order: str = "<", **kind: Any) -> Callable[[Deep], bytes]:
    return lambda values: write_tiff([Page(values=values, bits=bits, **kind)], order)


def colour(values: Deep) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(values << 4, cv2.COLOR_GRAY2BGR))[1].tobytes()


def inverted(values: Deep) -> bytes:
    return write_tiff([Page(values=4095 - values, bits=12, photometric=0)])


# How the camera's program writes what it saw, and with which PIXEL_BITS that is understood without a guess.
WAYS: list[tuple[str, Callable[[Deep], bytes], set[int | None]]] = [
    ("8 bits", lambda v: png((v >> 4).astype(np.uint8)), {None, 12}),
    ("PNG, shifted", lambda v: png(v << 4), {None}),
    ("PNG, shifted and filled", lambda v: png(v << 4 | v >> 8), {None}),
    ("PNG in colour, shifted", colour, {None}),
    ("PNG, not shifted", png, {12}),
    ("TIFF, shifted", lambda v: tiff(16)(v << 4), {None}),
    ("TIFF, shifted, big endian, LZW", lambda v: tiff(16, ">", compression="lzw")(v << 4), {None}),
    ("TIFF, not shifted", tiff(16), {12}),
    ("TIFF, not shifted, big endian", tiff(16, ">"), {12}),
    ("TIFF of 12 bits", tiff(12), {None, 12}),
    ("TIFF of 12 bits, big endian, in strips", tiff(12, ">", rows_per_strip=16), {None, 12}),
    ("TIFF of 12 bits, white is zero", inverted, {None, 12}),
]


def folder(shared_data: Path, kind: str) -> list[Path]:
    return sorted((shared_data / "cookies" / kind).glob("*.jpg"))


@pytest.fixture(scope="module")
def scenes(shared_data: Path) -> dict[str, list[Deep]]:
    return {
        "good": [seen(path) for path in folder(shared_data, "train/good")[:4]],
        "test": [seen(path) for path in folder(shared_data, "test/crack")[:1]],
    }


def inspector_of(root: Path, bits: int | None) -> Inspector:
    return Inspector(quick_settings(root, pixel_bits=bits, store_samples=False))


def file_of(data: bytes, name: str = "scene") -> ImageFile:
    return ImageFile(name, lambda: data)


@pytest.mark.parametrize("bits", [None, 12], ids=["auto", "12"])
def test_one_scene_scores_alike_however_it_is_written_or_is_warned_of(
    scenes: dict[str, list[Deep]], tmp_path: Path, bits: int | None
) -> None:
    inspector = inspector_of(tmp_path, bits)
    learnt = [file_of(png((values >> 4).astype(np.uint8)), f"{n}.png") for n, values in enumerate(scenes["good"])]
    Fitter(inspector).fit(KEY, learnt, mm_per_px=0.1)
    (scene,) = scenes["test"]
    expected = inspector.infer(KEY, file_of(WAYS[0][1](scene)), mm_per_px=0.1, heatmap="none").inspection.score
    for way, write, understood in WAYS:
        try:
            found = inspector.infer(KEY, file_of(write(scene), way), mm_per_px=0.1, heatmap="none")
        except BadImage as err:
            assert bits not in understood and "PIXEL_BITS" in str(err).upper(), way
            continue
        guessed = "read_as_12_bits" in {notice.code for notice in found.warnings}
        assert guessed == (bits not in understood), way
        assert found.inspection.score == pytest.approx(expected, rel=0.01), way
    inspector.close()


def test_a_model_says_when_images_are_read_otherwise_than_its_own_were(
    scenes: dict[str, list[Deep]], tmp_path: Path
) -> None:
    learnt = [file_of(png(values), f"{n}.png") for n, values in enumerate(scenes["good"])]
    scene = file_of(png(scenes["test"][0]))
    for bits, said in ((12, False), (None, True), (14, True), (12, False)):
        inspector = inspector_of(tmp_path, bits)
        if bits == 12 and inspector.store.stamp(KEY) is None:
            Fitter(inspector).fit(KEY, learnt, mm_per_px=0.1)
        codes = {notice.code for notice in inspector.infer(KEY, scene, mm_per_px=0.1, heatmap="none").warnings}
        assert ("pixel_bits_differ" in codes) == said
        if said:
            with pytest.raises(MemoryMismatch, match="PIXEL_BITS"):
                Fitter(inspector).grow(KEY, [scene], mm_per_px=0.1)
        inspector.close()
