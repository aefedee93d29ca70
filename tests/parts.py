"""Pictures of parts, good and bad, bodies that carry them, and settings of a service that is quick to test."""

import io
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.base.bundle import read_bundle
from backend.base.config import Settings
from backend.service.images import ImageFile

BGR = NDArray[np.uint8]


def part(seed: int = 0, *, height: int = 96, width: int = 96, defect: bool = False) -> BGR:
    """A brushed disc on a dark ground with noise of its own; a bad one has a bright blue scratch."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    radius = np.hypot(y - height / 2, x - width / 2)
    grey = np.where(radius < 0.42 * min(height, width), 150 + 25 * np.sin(radius * 0.9), 40.0)
    image = np.repeat(grey[:, :, None], 3, axis=2) * (1.0, 0.97, 0.94) + rng.normal(0, 3, (height, width, 3))
    if defect:
        cv2.line(image, (width // 3, height // 2), (2 * width // 3, height // 2 + 6), (255, 60, 20), 4)
    return np.asarray(np.clip(image, 0, 255), np.uint8)


def encoded(image: NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    """`image` (BGR, grey or BGRA; uint8 or uint16 grey) as a file of that format."""
    if image.ndim == 3:
        image = image[:, :, [2, 1, 0, 3][: image.shape[2]]]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def image_file(image: NDArray[Any], name: str = "part.png") -> ImageFile:
    """The image as the Inspector takes it."""
    data = encoded(image)
    return ImageFile.named(name, lambda: data)


def part_file(seed: int, name: str | None = None, **kind: Any) -> ImageFile:
    """A part as the Inspector takes it."""
    return image_file(part(seed, **kind), name or f"{seed}.png")


def good_files(count: int = 3, **size: Any) -> list[ImageFile]:
    return [part_file(seed, f"good_{seed}.png", **size) for seed in range(count)]


@dataclass(frozen=True)
class FormPart:
    """One part of a multipart body as .NET's MultipartFormDataContent writes it."""

    name: str
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    filename: str | None = None
    filename_star: str | None = None

    def encode(self) -> bytes:
        """The part with its head: the name unquoted, a filename* beside the filename, a Content-Type even on text."""
        disposition = f"form-data; name={self.name}"
        if self.filename is not None:
            disposition += f"; filename={self.filename}; filename*=utf-8''{self.filename_star or self.filename}"
        head = f"Content-Type: {self.content_type}\r\nContent-Disposition: {disposition}\r\n\r\n"
        return head.encode("ascii") + self.body


def text_parts(fields: Mapping[str, str]) -> list[FormPart]:
    return [FormPart(name, value.encode()) for name, value in fields.items()]


def picture_part(name: str, seed: int, **kind: Any) -> FormPart:
    """A part's picture in the form field `name`."""
    return FormPart(name, encoded(part(seed, **kind)), "image/png", f"SAMPLE_{seed}.png")


def dotnet(parts: Sequence[FormPart]) -> tuple[dict[str, str], bytes]:
    """Headers and body of System.Net.Http.MultipartFormDataContent, whose boundary is quoted."""
    boundary = str(uuid.UUID(int=7))
    body = f"--{boundary}\r\n".encode()
    body += f"\r\n--{boundary}\r\n".encode().join(part.encode() for part in parts)
    body += f"\r\n--{boundary}--\r\n".encode()
    return {"Content-Type": f'multipart/form-data; boundary="{boundary}"', "Content-Length": str(len(body))}, body


def _extractor(exported: str | None) -> dict[str, Any]:
    if exported is None:
        return {"model_name": "texture", "input_size": 112}
    about = read_bundle(Path(exported).read_bytes(), "bdix", exported).about
    return {"model_name": about["model_name"], "weights": exported, "input_size": 8 * about["patch"]}


EXTRACTOR = _extractor(os.environ.get("TEST_EXTRACTOR"))


def quick_settings(root: Path, **given: Any) -> Settings:
    """The weight-free extractor on 8×8 tokens, and folders under `root`.

    The environment variable TEST_EXTRACTOR puts an exported extractor (.bdix) in its place, on 8×8 tokens as well.
    """
    own: dict[str, Any] = {"models_dir": root / "models", "datasets_dir": root / "datasets", **EXTRACTOR}
    return Settings(**{**own, **given})


def tree(root: Path) -> dict[str, bytes]:
    """Every file under `root` and what is in it, but for drift.npz: a fit leaves it up to a second after its answer."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "drift.npz")
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}
