"""Images that are to be stored as samples: all of them are checked, with their metadata, before any is taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from backend.base.decoding import ImageOptions
from backend.base.errors import (
    BadImage,
    BrokenImages,
    InvalidShape,
    MetaInvalid,
    MetasMismatch,
    MetasNotJson,
    NoImages,
    once_each,
)
from backend.base.messages import Notice
from backend.roi_mask import Shape
from backend.samples.store import Draft
from backend.service.images import DECODERS, ImageFile, decoded
from backend.service.sidecars import known_mm_per_px, known_shape

NAMED = 20  # broken images that an error names


def drafts(
    files: Sequence[ImageFile],
    metas: Sequence[str],
    *,
    source: str,
    mm_per_px: float | None = None,
    shape: Shape | None = None,
    options: ImageOptions | None = None,
) -> tuple[list[Draft], list[Notice]]:
    """The images with their metadata, ready to be stored, and what is to be said of them.

    Args:
        metas: one JSON object per image in the same order, or a single JSON list of them, or none.
        source: the route that they came by.
        mm_per_px, shape: for the images whose metadata do not say.

    Raises:
        NoImages, MetasMismatch, MetasNotJson, FieldTwice, MetaInvalid.
        BrokenImages: names every image that cannot be decoded.
    """
    if not files:
        raise NoImages()
    parsed = _parsed(metas, files)
    notices = _checked(files, options)
    ready = []
    for file, meta in zip(files, parsed, strict=True):
        own = _shape(file.name, meta, notices) or shape
        scale = _mm_per_px(file.name, meta) or mm_per_px
        ready.append(Draft(file.name, file.read, source, scale, own.as_dict() if own else None, meta))
    return ready, notices


def _parsed(metas: Sequence[str], files: Sequence[ImageFile]) -> list[dict[str, Any]]:
    texts: list[Any] = list(metas)
    if len(texts) == 1 and texts[0].lstrip("\ufeff \t\r\n").startswith("["):
        texts = _load(texts[0], 1, files[0].name, list)
    if not texts:
        return [{} for _ in files]
    if len(texts) != len(files):
        raise MetasMismatch(metas=len(texts), images=len(files))
    return [_load(text, n + 1, files[n].name, dict) for n, text in enumerate(texts)]


def _load(given: Any, number: int, name: str, kind: type) -> Any:
    try:
        value = _meant(given) if isinstance(given, str) else given
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as err:
        raise MetasNotJson(number=number, name=name) from err
    if not isinstance(value, kind):
        raise MetasNotJson(number=number, name=name)
    return value


def _meant(text: str) -> Any:
    """The value of a JSON text, which may begin with a byte order mark. Raises ValueError, FieldTwice."""
    return json.loads(text.removeprefix("\ufeff"), parse_constant=_no_constant, object_pairs_hook=once_each)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _checked(files: Sequence[ImageFile], options: ImageOptions | None) -> list[Notice]:
    """What is to be said of how the images are read, each code once. Raises BrokenImages."""

    def read(file: ImageFile) -> BadImage | tuple[Notice, ...]:
        try:
            with decoded(file, options) as (_, found):
                return found.notices
        except BadImage as err:
            return err

    with ThreadPoolExecutor(DECODERS, thread_name_prefix="check") as pool:
        found = list(pool.map(read, files))
    broken = [one for one in found if isinstance(one, BadImage)]
    if broken:
        raise BrokenImages(total=len(files), count=len(broken), reasons=broken[:NAMED])
    said = [notice for one in found if not isinstance(one, BadImage) for notice in one]
    return list({notice.code: notice for notice in reversed(said)}.values())


def _mm_per_px(name: str, meta: dict[str, Any]) -> float | None:
    value, number = meta.get("mm_per_px"), known_mm_per_px(meta)
    if number is None and value not in (None, ""):
        raise MetaInvalid(name=name, field="mm_per_px", value=repr(value)[:40], expected="0 < mm_per_px ≤ 1e6")
    return number


def _shape(name: str, meta: dict[str, Any], notices: list[Notice]) -> Shape | None:
    try:
        return known_shape(meta)
    except InvalidShape as err:
        notices.append(Notice("shape_not_understood", {"name": name, "reason": err}))
        return None
