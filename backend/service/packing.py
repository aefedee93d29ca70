"""One model as one file (.bdim): packed where it was fitted, checked whole and put in place on another machine.

Its parts, beside the manifest, which names the model, its token grid and the metadata of its memory:

memory_<name>.npy  each array of the memory: its rows, the images that they came from, and how some memories measure
calibration.json   calib.json as it was, its good scores included
certificate.json   the last certificate, if there is one
extractor.bdix     the exported extractor, if it was asked for

What a growth may still take (reserve.npz), the samples and the versions stay where they are.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from typing import Any

from backend.base.bundle import Bundle, npy_bytes, read_bundle, write_bundle
from backend.base.config import Settings
from backend.base.errors import InspectionError, ModelExists
from backend.base.keys import ModelKey
from backend.base.messages import Phrase
from backend.extractors.protocol import ExtractorOptions
from backend.extractors.weights import exported_file
from backend.features import export_extractor
from backend.storage import Change, ModelStore, StoredMemory, memory_arrays, read_calibration, read_memory

_MEMORY = "memory_"


@dataclass(frozen=True)
class Packed:
    """What a .bdim held, checked.

    Attributes:
        key: the model that was packed.
        memory: its memory; the metadata are those of the machine that packed it.
        calibration: as calib.json has it; None: it was never calibrated.
        certificate: None: it was never certified.
        extractor: the bytes of a .bdix, whose format was checked; None: it was packed without.
    """

    key: ModelKey
    memory: StoredMemory
    calibration: dict[str, Any] | None
    certificate: dict[str, Any] | None
    extractor: bytes | None

    def key_of(self, role_id: str = "", roi_id: str = "", recipe_id: str = "") -> ModelKey:
        """The packed model's name, with other ids where some are given. Raises InvalidId, RecipeInvalid."""
        own = self.key
        return ModelKey.of(role_id or own.role_id, roi_id or own.roi_id, recipe_id or own.recipe_id)


def pack(store: ModelStore, key: ModelKey, extractor: bytes | None = None) -> bytes:
    """The model of `key` as the bytes of a .bdim, with an exported extractor if one is given.

    Raises:
        MemoryNotFound, DamagedFile.
    """
    seen: object = None
    while seen != (stamps := (store.stamp(key), store.calibration_stamp(key))):  # a fit may come in between
        seen, memory, certificate = stamps, store.load_memory(key), store.load_certificate(key)
        store.load_calibration(key)  # which says so if it is damaged
        calibration = store.calibration_text(key)
    parts = {f"{_MEMORY}{name}.npy": npy_bytes(array) for name, array in memory_arrays(memory).items()}
    if calibration is not None:
        parts["calibration.json"] = calibration.encode("utf-8", "surrogateescape")
    if certificate is not None:
        parts["certificate.json"] = json.dumps(certificate, ensure_ascii=False, indent=2).encode()
    if extractor is not None:
        parts["extractor.bdix"] = extractor
    about = {
        "model": {"role_id": key.role_id, "roi_id": key.roi_id, "recipe_id": key.recipe_id},
        "grid": list(memory.grid),
        "metadata": memory.metadata,
    }
    file = io.BytesIO()
    write_bundle(file, "bdim", about, parts)
    return file.getvalue()


def extractor_of(settings: Settings) -> bytes:
    """The extractor of `settings` as a .bdix. Raises WeightsUnavailable, NotExported, ExportDisagrees, OSError."""
    options = ExtractorOptions.of(settings)
    exported = exported_file(options.weights, options.weights_dir)
    return export_extractor(options) if exported is None else exported.read_bytes()


def read_packed(data: bytes, name: str) -> Packed:
    """Check a .bdim whole.

    Args:
        name: the file's name, for sentences.

    Raises:
        BundleRefused: with the reason.
    """
    bundle = read_bundle(data, "bdim", name)
    odd = [part for part in sorted(bundle.parts) if not _known(part)]
    if odd:
        raise bundle.refused(Phrase("part_not_listed", {"part": odd[0]}))
    extractor = bundle.parts.get("extractor.bdix")
    if extractor is not None:
        read_bundle(extractor, "bdix", name)
    return Packed(
        key=_key(bundle),
        memory=_memory(bundle),
        calibration=_calibration(bundle),
        certificate=bundle.json("certificate.json") if "certificate.json" in bundle.parts else None,
        extractor=extractor,
    )


def put(store: ModelStore, packed: Packed, key: ModelKey, change: Change, *, overwrite: bool) -> StoredMemory:
    """Put a model in place under `key`, in one step. The caller holds `store.writing(key)`.

    Its calibration and its certificate hold for it as they did where it was packed. A model that it replaces is kept as
    a version.

    Raises:
        ModelExists: there is one, and it is not to be replaced.
        DiskFull, ReadOnlyStore: the model is as it was.
    """
    refuse_existing(store, key, overwrite=overwrite)
    came_from = {name: packed.memory.metadata.get(name) for name in ("model", "model_version", "generation")}
    memory = replace(packed.memory, metadata={**packed.memory.metadata, "unpacked_from": came_from})
    return store.place(key, memory, packed.calibration, packed.certificate, change)


def refuse_existing(store: ModelStore, key: ModelKey, *, overwrite: bool) -> None:
    """Raises ModelExists when there is a model of `key`, and it is not to be replaced."""
    if not overwrite and store.stamp(key) is not None:
        raise ModelExists(key=key)


def _known(part: str) -> bool:
    fixed = {"calibration.json", "certificate.json", "extractor.bdix"}
    return part in fixed or (part.startswith(_MEMORY) and part.endswith(".npy"))


def _not_valid(part: str) -> Phrase:
    return Phrase("part_not_valid", {"part": part})


def _key(bundle: Bundle) -> ModelKey:
    try:
        model = bundle.about["model"]
        return ModelKey.of(model["role_id"], model["roi_id"], model["recipe_id"])
    except (InspectionError, KeyError, TypeError, AttributeError) as err:
        raise bundle.refused(_not_valid("manifest.json")) from err


def _memory(bundle: Bundle) -> StoredMemory:
    arrays = {
        part.removeprefix(_MEMORY).removesuffix(".npy"): bundle.array(part)
        for part in bundle.parts
        if part.startswith(_MEMORY)
    }
    try:
        rows, cols = bundle.about["grid"]
        return read_memory({**arrays, "token_h": rows, "token_w": cols}, bundle.about["metadata"])
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as err:
        raise bundle.refused(_not_valid("memory")) from err


def _calibration(bundle: Bundle) -> dict[str, Any] | None:
    if "calibration.json" not in bundle.parts:
        return None
    found = bundle.json("calibration.json")
    try:
        read_calibration(found)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        raise bundle.refused(_not_valid("calibration.json")) from err
    return found
