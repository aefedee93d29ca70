"""What goes from machine to machine: extractors as .bdix or ONNX files, models as .bdim files."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from backend.assurance.golden import GoldenSet
from backend.assurance.moving import receive, send
from backend.base.config import Settings
from backend.base.files import write_atomic
from backend.base.keys import ModelKey
from backend.extractors.protocol import ExtractorOptions
from backend.features import torch_network
from backend.samples.collector import Collector
from backend.service import packing
from backend.storage import Change, ModelStore, StoredMemory
from backend.tools.terminal import say, sentence


def write_extractor(settings: Settings, out: Path) -> None:
    """Write the extractor of `settings` to `out`, whose ending says the format.

    Raises:
        WeightsUnavailable, NotExported, ExportDisagrees, DiskFull, ReadOnlyStore.
    """
    network = torch_network(ExtractorOptions.of(settings))
    from backend.extractors.export import export_bytes, onnx_bytes

    square = network.grid(settings.input_size, settings.input_size)
    made = onnx_bytes(network, square) if out.suffix == ".onnx" else export_bytes(network)
    write_atomic(out, lambda file: file.write(made.data))
    say(str(out), f"{network.name}, {len(made.data) / 2**20:.0f} MB, within {made.gap:.1e} of torch")


def pack_model(settings: Settings, key: ModelKey, out: Path | None, *, with_extractor: bool) -> None:
    """Write the model of `key` to `out`. Raises what moving.send does, DiskFull, ReadOnlyStore."""
    exported = packing.extractor_of(settings) if with_extractor else None
    with closing(Collector(settings)) as collector:
        data = send(GoldenSet(collector.inspector, collector.samples), key, exported)
    path = out or Path(f"{key.role_id}_{key.roi_id}.bdim")
    write_atomic(path, lambda file: file.write(data))
    say(str(path), f"{key}, {len(data) / 2**20:.1f} MB")


def unpack_model(
    settings: Settings,
    file: Path,
    named: tuple[str | None, str | None, str | None],
    *,
    overwrite: bool,
    extractor: Path | None,
) -> None:
    """Put the model in `file` in place, under other ids where `named` (role, roi, recipe) gives them.

    Golden samples that came with it are scored first, by the extractor in the file where that is asked for.

    Raises:
        BundleRefused, PackDisagrees, ExtractorMismatch, ModelExists, FitInProgress, DiskFull, ReadOnlyStore.
    """
    packed = packing.read_packed(file.read_bytes(), file.name)
    if extractor is not None and packed.extractor is None:
        raise typer.BadParameter(f"there is no extractor in {file.name}: pack it with --with-extractor")
    key = packed.key_of(*(name or "" for name in named))
    if packed.golden:
        stored = _received(settings, packed, key, overwrite=overwrite, own_extractor=extractor is not None)
    else:
        stored = _put(settings, packed, key, overwrite=overwrite)
    made_by = f"{stored.metadata.get('extractor')}, {stored.fingerprint}"
    say(str(key), f"{len(stored.rows)} rows, model version {stored.metadata['model_version']}, extractor {made_by}")
    if extractor is not None and packed.extractor is not None:
        data = packed.extractor
        write_atomic(extractor, lambda target: target.write(data))
        say(str(extractor), f"WEIGHTS={extractor}")


def _received(
    settings: Settings, packed: packing.Packed, key: ModelKey, *, overwrite: bool, own_extractor: bool
) -> StoredMemory:
    with TemporaryDirectory(prefix="bdi-unpack-") as folder, ExitStack() as stack:
        if own_extractor and packed.extractor is not None:
            path = Path(folder) / "extractor.bdix"
            path.write_bytes(packed.extractor)
            settings = settings.model_copy(update={"weights": str(path), "runtime": "auto"})
        collector = stack.enter_context(closing(Collector(settings)))
        received = receive(
            GoldenSet(collector.inspector, collector.samples), packed, key, Change("unpack"), overwrite=overwrite
        )
    for notice in received.notices:
        say("warning", sentence(notice))
    if received.arrival is not None:
        say(str(key), sentence(received.arrival.told()))
    return received.stored


def _put(settings: Settings, packed: packing.Packed, key: ModelKey, *, overwrite: bool) -> StoredMemory:
    store = _store(settings)
    packing.refuse_existing(store, key, overwrite=overwrite)
    with store.writing(key, settings.fit_wait_s):
        return packing.put(store, packed, key, Change("unpack"), overwrite=overwrite)


def _store(settings: Settings) -> ModelStore:
    return ModelStore(
        settings.models_dir,
        read_only=settings.read_only,
        min_free_mb=settings.min_free_mb,
        versions=settings.model_versions,
        versions_max_gb=settings.versions_max_gb,
    )
