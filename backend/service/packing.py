"""One model as one file (.bdim): packed where it was fitted, checked whole and put in place on another machine.

Its parts, beside the manifest, which names the model, its token grid, the metadata of its memory and the settings that
count:

emb.npy, src.npy   the rows of the memory, and the images that they came from
extra_<name>.npy   how some memories measure; see StoredMemory.extras
calibration.json   calib.json as it was, its good scores included
certificate.json   the last certificate, if there is one
extractor.bdix     the extractor, if it was asked for
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backend.base.bundle import Bundle, npy_bytes, read_bundle, write_bundle
from backend.base.config import Settings
from backend.base.errors import InspectionError, ModelExists
from backend.base.keys import ModelKey
from backend.base.messages import Phrase
from backend.base.options import filled
from backend.extractors.exported import is_exported
from backend.extractors.protocol import ExtractorOptions
from backend.features import export_extractor
from backend.storage import ModelStore, StoredMemory, read_calibration, read_memory

_EXTRA = "extra_"
_OF_THE_MACHINE = ("weights", "device", "runtime", "precision", "threads")  # which another machine has its own of


@dataclass(frozen=True)
class Packed:
    """What a .bdim held, checked.

    Attributes:
        key: the model that was packed.
        memory: its memory; the metadata are those of the machine that packed it.
        calibration: as calib.json has it; None: it was never calibrated.
        certificate: None: it was never certified.
        settings: the settings that decide its embeddings, by name.
        extractor: the bytes of a .bdix, whose format was checked; None: it was packed without.
    """

    key: ModelKey
    memory: StoredMemory
    calibration: dict[str, Any] | None
    certificate: dict[str, Any] | None
    settings: dict[str, Any]
    extractor: bytes | None


def pack(store: ModelStore, settings: Settings, key: ModelKey, *, with_extractor: bool = False) -> bytes:
    """The model of `key` as the bytes of a .bdim.

    Raises:
        MemoryNotFound, DamagedFile.
        WeightsUnavailable, NotExported: with the extractor, which cannot be had or exported.
    """
    memory, calibration = store.load_memory(key), store.load_calibration(key)
    parts = {"emb.npy": npy_bytes(memory.emb), "src.npy": npy_bytes(memory.image_ids)}
    parts |= {f"{_EXTRA}{name}.npy": npy_bytes(array) for name, array in memory.extras.items()}
    for part, name in (("calibration.json", "calib.json"), ("certificate.json", "certificate.json")):
        if store.stamp(key, name) is not None and (part != "calibration.json" or calibration):
            parts[part] = (store.folder(key) / name).read_bytes()
    if with_extractor:
        parts["extractor.bdix"] = _extractor(settings)
    counting = filled(ExtractorOptions, settings)
    about = {
        "model": {"role_id": key.role_id, "roi_id": key.roi_id, "recipe_id": key.recipe_id},
        "grid": list(memory.grid),
        "metadata": memory.metadata,
        "settings": {name: value for name, value in counting.items() if name not in _OF_THE_MACHINE},
    }
    file = io.BytesIO()
    write_bundle(file, "bdim", about, parts)
    return file.getvalue()


def _extractor(settings: Settings) -> bytes:
    if is_exported(settings.weights):
        return Path(settings.weights).expanduser().read_bytes()
    return export_extractor(ExtractorOptions.of(settings))


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
    settings = bundle.about.get("settings")
    return Packed(
        key=_key(bundle),
        memory=_memory(bundle),
        calibration=_calibration(bundle),
        certificate=bundle.json("certificate.json") if "certificate.json" in bundle.parts else None,
        settings=settings if isinstance(settings, dict) else {},
        extractor=extractor,
    )


def unpack(
    store: ModelStore, packed: Packed, key: ModelKey, *, overwrite: bool = False, wait_s: float = 600
) -> StoredMemory:
    """Put a model in place under `key`, in one step: until its memory is renamed nothing has changed.

    Its calibration and its certificate hold for it as they did where it was packed.

    Raises:
        ModelExists: there is one, and it is not to be replaced.
        FitInProgress, DiskFull, ReadOnlyStore, ReadOnlyReplica.
    """
    with store.writing(key, wait_s):
        if store.stamp(key) is not None and not overwrite:
            raise ModelExists(key=key)
        came_from = {name: packed.memory.metadata.get(name) for name in ("model", "model_version", "generation")}
        memory = replace(packed.memory, metadata={**packed.memory.metadata, "unpacked_from": came_from})
        return store.place(key, memory, packed.calibration, packed.certificate)


def _known(part: str) -> bool:
    fixed = {"emb.npy", "src.npy", "calibration.json", "certificate.json", "extractor.bdix"}
    return part in fixed or (part.startswith(_EXTRA) and part.endswith(".npy"))


def _not_valid(part: str) -> Phrase:
    return Phrase("part_not_valid", {"part": part})


def _key(bundle: Bundle) -> ModelKey:
    try:
        model = bundle.about["model"]
        return ModelKey.of(model["role_id"], model["roi_id"], model["recipe_id"])
    except (InspectionError, KeyError, TypeError, AttributeError) as err:
        raise bundle.refused(_not_valid("manifest.json")) from err


def _memory(bundle: Bundle) -> StoredMemory:
    wanted = [name for name in bundle.parts if name.endswith(".npy")]
    arrays = {name.removesuffix(".npy").removeprefix(_EXTRA): bundle.array(name) for name in wanted}
    try:
        rows, cols = bundle.about["grid"]
        metadata = bundle.about["metadata"]
        memory = read_memory({**arrays, "token_h": rows, "token_w": cols}, metadata)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as err:
        raise bundle.refused(_not_valid("emb.npy")) from err
    return memory


def _calibration(bundle: Bundle) -> dict[str, Any] | None:
    if "calibration.json" not in bundle.parts:
        return None
    found = bundle.json("calibration.json")
    try:
        read_calibration(found)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        raise bundle.refused(_not_valid("calibration.json")) from err
    return found
