"""One model as one file (.bdim): packed where it was fitted, checked whole and put in place on another machine.

Its parts, beside the manifest, which names the model, its token grid and the metadata of its memory:

memory_<name>.npy  each array of the memory: its rows, the images that they came from, and how some memories measure
calibration.json   calib.json as it was, its good scores included
certificate.json   the last certificate, if there is one
golden.json        its golden samples: what each must get, what is known of it, and the score that it got there
golden_<n>.image   the image of each, as it is stored
extractor.bdix     the exported extractor, if it was asked for

The manifest also says what its versions were, the settings that count for its scores, and what computed the scores of
its golden samples. What a growth may still take (reserve.npz), the other samples and the versions stay where they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from backend.base.arrays import cpu_name
from backend.base.bundle import Bundle, npy_bytes, read_bundle, write_bundle
from backend.base.config import Settings
from backend.base.errors import InspectionError, ModelExists
from backend.base.keys import ModelKey
from backend.base.messages import Phrase
from backend.base.options import settings_of
from backend.extractors.protocol import Extractor, ExtractorOptions
from backend.extractors.weights import exported_file
from backend.features import export_extractor
from backend.infer import Scoring
from backend.storage import Change, ModelStore, StoredMemory, memory_arrays, read_calibration, read_memory

_MEMORY = "memory_"
_MOST_NAMED = 200
# A fingerprint tells of these, and the others do not change what the network says.
_FINGERPRINTED = {"model_name", "weights", "blocks", "resnet_offset", "device", "runtime", "precision", "threads"}


@dataclass(frozen=True)
class GoldenImage:
    """A golden sample that goes along.

    Attributes:
        name, label: those of the stored sample.
        known: what golden.json says of it, such as `expected`.
        meta: what is known of its image, as the sample's .json has it.
        score: what it got where it was packed; None: it could not be scored there.
        data: the image's bytes.
    """

    name: str
    label: Literal["ok", "ng"]
    known: dict[str, Any]
    meta: dict[str, Any]
    score: float | None
    data: bytes

    def read(self) -> bytes:
        """The image's bytes."""
        return self.data


@dataclass(frozen=True)
class Packed:
    """What a .bdim held, checked.

    Attributes:
        file: its name, for sentences.
        key: the model that was packed.
        memory: its memory; the metadata are those of the machine that packed it.
        calibration: as calib.json has it; None: it was never calibrated.
        certificate: None: it was never certified.
        extractor: the bytes of a .bdix, whose format was checked; None: it was packed without.
        golden: its golden samples.
        scored_by: what computed their scores, as `scored_by` says it.
        settings: those that count for scores where it was packed, by name.
        versions: what the list of its versions said there, the model itself first.
    """

    file: str
    key: ModelKey
    memory: StoredMemory
    calibration: dict[str, Any] | None
    certificate: dict[str, Any] | None
    extractor: bytes | None
    golden: tuple[GoldenImage, ...]
    scored_by: dict[str, str]
    settings: dict[str, Any]
    versions: list[dict[str, Any]]

    def key_of(self, role_id: str = "", roi_id: str = "", recipe_id: str = "") -> ModelKey:
        """The packed model's name, with other ids where some are given. Raises InvalidId, RecipeInvalid."""
        own = self.key
        return ModelKey.of(role_id or own.role_id, roi_id or own.roi_id, recipe_id or own.recipe_id)


def pack(
    store: ModelStore,
    key: ModelKey,
    extractor: bytes | None = None,
    *,
    settings: Settings,
    golden: Sequence[GoldenImage] = (),
    scored_by: Mapping[str, str] | None = None,
) -> bytes:
    """The model of `key` as the bytes of a .bdim.

    Args:
        extractor: an exported extractor that goes along, as the bytes of a .bdix.
        settings: those that the model is scored with.
        golden, scored_by: see Packed.

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
    samples = []
    for number, one in enumerate(golden):
        part = f"golden_{number}.image"
        told = {"name": one.name, "label": one.label, "known": one.known, "meta": one.meta, "score": one.score}
        samples.append({"part": part, **told})
        parts[part] = one.data
    if samples:
        parts["golden.json"] = json.dumps({"samples": samples}, ensure_ascii=False, indent=2).encode()
    about = {
        "model": {"role_id": key.role_id, "roi_id": key.roi_id, "recipe_id": key.recipe_id},
        "grid": list(memory.grid),
        "metadata": memory.metadata,
        "versions": [store.about(key) or {}, *(version.about for version in store.versions(key))],
        "settings": counting(settings),
        "scored_by": dict(scored_by or {}),
    }
    file = io.BytesIO()
    write_bundle(file, "bdim", about, parts)
    return file.getvalue()


def counting(settings: Settings) -> dict[str, Any]:
    """The settings that scores depend on, by name, beside what an extractor's fingerprint says of it."""
    names = {*settings_of(ExtractorOptions), *settings_of(Scoring), "pixel_bits"} - _FINGERPRINTED
    return dict(sorted(settings.model_dump(mode="json", include=names).items()))


def scored_by(extractor: Extractor, settings: Settings) -> dict[str, str]:
    """What computes scores on this machine: processor, extractor, its file if it is exported, and how it runs."""
    options = ExtractorOptions.of(settings)
    exported = exported_file(options.weights, options.weights_dir)
    return {
        "processor": cpu_name(),
        "fingerprint": extractor.fingerprint,
        "runtime": f"{extractor.runtime} {getattr(extractor, 'precision', '')}".strip(),
        "device": extractor.device,
        "file": "" if exported is None else hashlib.sha256(exported.read_bytes()).hexdigest(),
    }


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
        file=name,
        key=_key(bundle),
        memory=_memory(bundle),
        calibration=_calibration(bundle),
        certificate=bundle.json("certificate.json") if "certificate.json" in bundle.parts else None,
        extractor=extractor,
        golden=_golden(bundle),
        scored_by=_named(bundle, "scored_by", str),
        settings=_named(bundle, "settings", object),
        versions=_versions(bundle),
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
    came_from |= {"settings": packed.settings, "versions": packed.versions}
    memory = replace(packed.memory, metadata={**packed.memory.metadata, "unpacked_from": came_from})
    return store.place(key, memory, packed.calibration, packed.certificate, change)


def refuse_existing(store: ModelStore, key: ModelKey, *, overwrite: bool) -> None:
    """Raises ModelExists when there is a model of `key`, and it is not to be replaced."""
    if not overwrite and store.stamp(key) is not None:
        raise ModelExists(key=key)


def _known(part: str) -> bool:
    fixed = {"calibration.json", "certificate.json", "extractor.bdix", "golden.json"}
    return part in fixed or re.fullmatch(rf"{_MEMORY}.*\.npy|golden_\d+\.image", part) is not None


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


def _golden(bundle: Bundle) -> tuple[GoldenImage, ...]:
    samples: Any = bundle.json("golden.json").get("samples") if "golden.json" in bundle.parts else []
    images = {part for part in bundle.parts if part.endswith(".image")}
    fits = isinstance(samples, list) and all(map(_can_be_golden, samples))
    if not fits or sorted(one["part"] for one in samples) != sorted(images):
        raise bundle.refused(_not_valid("golden.json"))
    return tuple(
        GoldenImage(
            **{name: one[name] for name in ("name", "label", "known", "meta", "score")}, data=bundle.parts[one["part"]]
        )
        for one in samples
    )


def _can_be_golden(one: Any) -> bool:
    """Whether an entry of golden.json has the fields of a GoldenImage."""
    types = {"name": str, "label": str, "known": dict, "meta": dict, "score": float | None, "part": str}
    if not isinstance(one, dict) or not all(isinstance(one.get(name), kind) for name, kind in types.items()):
        return False
    score: float | None = one["score"]
    labelled = one["label"] in ("ok", "ng") and one["known"].get("expected") in ("ok", "ng")
    return labelled and (score is None or math.isfinite(score))


def _named(bundle: Bundle, field: str, kind: type) -> dict[str, Any]:
    found = bundle.about.get(field)
    if not isinstance(found, dict) or len(found) > _MOST_NAMED or not all(isinstance(v, kind) for v in found.values()):
        raise bundle.refused(_not_valid("manifest.json"))
    return found


def _versions(bundle: Bundle) -> list[dict[str, Any]]:
    found = bundle.about.get("versions")
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise bundle.refused(_not_valid("manifest.json"))
    return found
