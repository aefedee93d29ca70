from pathlib import Path

import cv2
import numpy as np
import pytest

from backend.patchcore import Array, l2_normalize


def patches(path: Path, side: int = 12) -> Array:
    """The pixels of an image's tiles as unit rows."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None
    h, w = (size // side for size in image.shape[:2])
    tiles = image[: h * side, : w * side].reshape(h, side, w, side, 3).swapaxes(1, 2).reshape(h * w, -1)
    return l2_normalize(tiles.astype(np.float32))


@pytest.fixture(scope="session")
def cookie_patches(shared_data: Path) -> list[Array]:
    return [patches(path) for path in sorted((shared_data / "cookies/train/good").iterdir())[:4]]
