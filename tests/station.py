"""Parts to look at, and bodies as the station's program writes them."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from backend.base.config import Settings
from backend.base.images import encode_png
from backend.service.images import ImageFile


def small_settings(folder: Path, **given: Any) -> Settings:
    """Everything under `folder`, the weight-free extractor on an 8×8 grid."""
    own = {"models_dir": folder / "models", "datasets_dir": folder / "datasets", "model_name": "texture"}
    return Settings(**{**own, "input_size": 112, **given})


def image_file(seed: int, name: str | None = None, **kind: Any) -> ImageFile:
    """A part as an image file."""
    data = part(seed, **kind)
    return ImageFile(name or f"{seed}.png", lambda: data)


def part(seed: int, *, bad: bool = False, size: tuple[int, int] = (112, 112)) -> bytes:
    """A small textured part; a bad one has a bright square."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), (90, 110, 130), np.uint8) + rng.integers(0, 30, (*size, 3), dtype=np.uint8)
    if bad:
        image[40:70, 40:70] = (20, 20, 250)
    return encode_png(image)


def dotnet_form(fields: dict[str, str], parts: list[tuple[str, str, bytes, str]]) -> tuple[bytes, dict[str, str]]:
    """A body as .NET's MultipartFormDataContent writes it, and its headers.

    Names are unquoted, texts carry a Content-Type, files also a filename*, and the boundary is quoted.
    """
    boundary = str(uuid.uuid4())
    chunks = []
    for name, text in fields.items():
        head = f"Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name={name}\r\n\r\n"
        chunks.append(head.encode() + text.encode())
    for name, filename, data, kind in parts:
        where = f"; filename={filename}; filename*=utf-8''{filename}" if filename else ""
        head = f"Content-Type: {kind}\r\nContent-Disposition: form-data; name={name}{where}\r\n\r\n"
        chunks.append(head.encode() + data)
    line = f"--{boundary}".encode()
    body = b"".join(line + b"\r\n" + chunk + b"\r\n" for chunk in chunks) + line + b"--\r\n"
    return body, {"Content-Type": f'multipart/form-data; boundary="{boundary}"'}
