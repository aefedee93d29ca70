"""The ids of a role, an ROI and a recipe, which together name a model and its folder."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from backend.base.errors import IdTwin, InvalidId, RecipeInvalid

DEFAULT_RECIPE = "default"
_RECIPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ID_MAX = 64
_RESERVED_IDS = {"recipes", "patchcore", "datasets"}
_DEVICE_NAMES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{d}{n}" for d in ("com", "lpt") for n in "0123456789¹²³"
}


def check_id(value: str, field: str) -> str:
    """`value` in its composed Unicode form, if it can name a folder on every system.

    Raises:
        InvalidId: it cannot.
    """
    text = unicodedata.normalize("NFC", value)
    allowed = all(c.isalnum() or unicodedata.category(c).startswith("M") or c in " _-." for c in text)
    reserved = text.lower() in _RESERVED_IDS or text.split(".", 1)[0].strip().lower() in _DEVICE_NAMES
    edges = text[:1] in {"", " ", "."} or text[-1:] in {" ", "."}
    too_long = len(text) > _ID_MAX or len(text.encode("utf-8", "surrogatepass")) > 255
    if not allowed or reserved or edges or too_long:
        raise InvalidId(field=field, value=repr(value[:80]))
    return text


def check_recipe(value: str | None) -> str:
    """The recipe id in lower case; `default` for None or blank.

    Raises:
        RecipeInvalid: it is not [a-z0-9][a-z0-9_-]{0,63}, or it is `last`.
    """
    text = (value or "").strip().lower() or DEFAULT_RECIPE
    if not _RECIPE.fullmatch(text) or text == "last":
        raise RecipeInvalid(value=repr((value or "")[:80]))
    return text


@dataclass(frozen=True)
class ModelKey:
    """A model's name: a role, an ROI and a recipe. `ModelKey.of` checks the ids."""

    role_id: str
    roi_id: str
    recipe_id: str = DEFAULT_RECIPE

    @classmethod
    def of(cls, role_id: str, roi_id: str, recipe_id: str | None = None) -> ModelKey:
        """The key of these ids. Raises InvalidId or RecipeInvalid."""
        return cls(check_id(role_id, "role_id"), check_id(roi_id, "roi_id"), check_recipe(recipe_id))

    @property
    def path(self) -> Path:
        """The model's folder, relative to the root of a store."""
        own = Path(self.role_id) / self.roi_id
        return own if self.recipe_id == DEFAULT_RECIPE else Path("recipes") / self.recipe_id / own

    def __str__(self) -> str:
        recipe = "" if self.recipe_id == DEFAULT_RECIPE else f" ({self.recipe_id})"
        return f"{self.role_id}/{self.roi_id}{recipe}"


def folder_of(root: Path, key: ModelKey) -> Path:
    """The folder of `key` under `root`, as it is named on disk: a folder in NFD is that of its ids in NFC.

    Raises:
        IdTwin: there is no such folder, and one whose name differs in case alone.
        InvalidId: it would lie outside `root`.
    """
    folder = root
    parts = key.path.parts
    for part, field in zip(parts, ("recipe_id", "recipe_id", "role_id", "roi_id")[-len(parts) :], strict=True):
        folder = folder / _on_disk(folder, part, field)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise InvalidId(field="role_id/roi_id", value=str(key))
    return folder


def twins(root: Path, key: ModelKey) -> list[str]:
    """Names beside the folders of `key` that differ from its own in case alone."""
    folder, found = root, []
    for part in key.path.parts:
        found += [name for name in _names(folder) if _folded(name) == _folded(part) and _composed(name) != part]
        folder = folder / part
    return found


def _on_disk(parent: Path, part: str, field: str) -> str:
    names = _names(parent)
    if part in names:
        return part
    same = next((name for name in names if _composed(name) == part), None)
    if same is not None:
        return same
    twin = next((name for name in names if _folded(name) == _folded(part)), None)
    if twin is not None:
        raise IdTwin(field=field, value=part, twin=_composed(twin))
    return part


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
