"""`python -m backend doctor`: looks at this machine and says what to do."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import psutil

from backend.api.catalogue import sentence
from backend.base.arrays import instruction_set
from backend.base.bundle import read_bundle
from backend.base.config import Settings, unknown_settings
from backend.base.errors import AddressUnavailable, BundleRefused, InspectionError, RecordsRefused, WeightsUnavailable
from backend.base.messages import Phrase
from backend.extractors.weights import WEIGHTS_DIR, exported_file, find_weights, torch_installed
from backend.records.database import Database, Unavailable
from backend.records.upgrading import version_of
from backend.service.host import extractor_for
from backend.tools.serve import check_address

Level = Literal["ok", "note", "bad"]
PACKAGES = ("fastapi", "starlette", "uvicorn", "torch", "timm", "faiss-cpu", "scikit-learn", "numpy", "openvino")
OF_THE_FULL = ("torch", "timm")
OPTIONAL = {
    "faiss-cpu": "scikit-learn searches instead",
    "openvino": "torch runs the network, several times slower",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it is, and what to do when it is not well."""

    level: Level
    what: str
    says: str


def examine(settings: Settings) -> list[Finding]:
    """Everything worth knowing about this machine, in the order in which one would mend it."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python,
        _files,
        _installation,
        _packages,
        _weights,
        _runtime,
        _folders,
        _records,
        _hardware,
        _port,
        _access,
    )
    return [finding for check in checks for finding in check(settings)]


def _python(_: Settings) -> Iterator[Finding]:
    version = platform.python_version()
    fits = sys.version_info >= (3, 10)
    yield Finding("ok" if fits else "bad", "Python", version if fits else f"{version}: install 3.10 or newer")


def _installation(_: Settings) -> Iterator[Finding]:
    if torch_installed():
        yield Finding("ok", "installation", "full: any extractor runs, and can be exported")
    else:
        yield Finding("ok", "installation", "station, without torch: it runs the extractor that was exported (WEIGHTS)")


def _packages(_: Settings) -> Iterator[Finding]:
    full, required = torch_installed(), set(PACKAGES) - OPTIONAL.keys()
    if not full:
        required = required - set(OF_THE_FULL) | {"openvino"}
    installed = {d.name.lower(): d.version for d in importlib.metadata.distributions() if d.name}
    for name in PACKAGES:
        if name in installed:
            yield Finding("ok", name, installed[name])
        elif name in required:
            file = "requirements.txt" if full else "requirements-station.txt"
            yield Finding("bad", name, f"not installed: pip install -r {file}")
        elif name in OPTIONAL:
            yield Finding("note", name, f"not installed: {OPTIONAL[name]}")


def _files(_: Settings) -> Iterator[Finding]:
    for notice in unknown_settings():
        yield Finding("bad", str(notice.values["file"]), sentence(notice, "en"))


def _weights(settings: Settings) -> Iterator[Finding]:
    name = settings.model_name
    if name == "texture":
        yield Finding("ok", "weights", "texture needs none")
        return
    try:
        exported = exported_file(settings.weights, WEIGHTS_DIR)
        if exported is None and not torch_installed():
            raise WeightsUnavailable(model=name, reason=Phrase("needs_torch"))
        path = (
            exported
            if exported is not None and exported.is_file()
            else find_weights(name, settings.weights, WEIGHTS_DIR)
        )
        if exported is not None:
            read_bundle(path.read_bytes(), "bdix", path.name)
        yield Finding("ok", "weights", f"{path.name}, {path.stat().st_size / 2**20:.0f} MB")
    except (WeightsUnavailable, BundleRefused) as err:
        yield Finding("bad", "weights", sentence(err, "en"))


def _runtime(settings: Settings) -> Iterator[Finding]:
    """Who runs the network here, which only a pass of it tells; nothing without weights."""
    try:
        extractor = extractor_for(settings)
    except WeightsUnavailable:
        return
    except InspectionError as err:
        yield Finding("bad", "runtime", sentence(err, "en"))
        return
    precision = getattr(extractor, "precision", None)
    yield Finding(
        "ok", "runtime", f"{extractor.runtime}{f' in {precision}' if precision else ''} on {extractor.device}"
    )


def _folders(settings: Settings) -> Iterator[Finding]:
    for name, folder in (("MODELS_DIR", settings.models_dir), ("DATASETS_DIR", settings.datasets_dir)):
        if settings.read_only:
            yield Finding("ok", name, f"{folder} is only read (READ_ONLY=1)")
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as err:
            yield Finding("bad", name, f"{folder} cannot be written ({err.strerror}): change its owner, or {name}")
            continue
        free = shutil.disk_usage(folder).free / 2**20
        enough = free > settings.min_free_mb
        advice = "" if enough else f", and {settings.min_free_mb:.0f} MB must stay free (MIN_FREE_MB): make room"
        yield Finding("ok" if enough else "bad", name, f"{folder}, {free:,.0f} MB free{advice}")


def _records(settings: Settings) -> Iterator[Finding]:
    if settings.results_db is None:
        yield Finding("note", "RESULTS_DB", "none: verdicts are not recorded")
        return
    try:
        database = Database(settings.results_db)
        if database.path is not None:
            database.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=database.path.parent):
                pass
        if database.path is None or database.path.exists():
            with database.reading() as connection:
                version_of(connection)
        database.close()
    except RecordsRefused as err:
        yield Finding("bad", "RESULTS_DB", sentence(err, "en"))
    except Unavailable as trouble:
        yield Finding("bad", "RESULTS_DB", f"{database.name}: {sentence(trouble.reason, 'en')}")
    except OSError as err:
        yield Finding(
            "bad", "RESULTS_DB", f"{database.name} cannot be written ({err.strerror}): change its owner, or it"
        )
    else:
        yield Finding("ok", "RESULTS_DB", database.name)


def _hardware(settings: Settings) -> Iterator[Finding]:
    memory = psutil.virtual_memory().total / 2**30
    cores = psutil.cpu_count(logical=False) or "?"
    yield Finding("ok", "CPU", f"{cores} cores, {memory:.0f} GB, {instruction_set() or 'no vector instructions known'}")
    needed = (settings.fit_memory_mb + settings.cache_mb) / 1024 + 1.5
    if memory < needed:
        yield Finding(
            "note", "memory", f"{memory:.0f} GB: lower FIT_MEMORY_MB or CACHE_MB, which may need {needed:.0f} GB"
        )
    gpu = _gpu_name()
    if gpu is None and settings.device == "cuda":
        yield Finding("bad", "GPU", "DEVICE=cuda, but torch sees none: install the driver, or set DEVICE=auto")
    else:
        yield Finding("ok", "GPU", gpu or "none: the CPU is used")


def _gpu_name() -> str | None:
    if not torch_installed():
        return None
    from backend.extractors.torch_runtime import gpu_name

    return gpu_name()


def _port(settings: Settings) -> Iterator[Finding]:
    try:
        check_address(settings.host, settings.port)
    except AddressUnavailable as err:
        yield Finding("bad", "port", sentence(err, "en"))
    else:
        yield Finding("ok", "port", f"{settings.host}:{settings.port} is free")


def _access(settings: Settings) -> Iterator[Finding]:
    if settings.api_keys or settings.api_keys_read:
        yield Finding("ok", "access", "clients need an API key")
    elif settings.allow_insecure:
        yield Finding("note", "access", "ALLOW_INSECURE=1: anyone who reaches the port is served; set API_KEYS")
    elif settings.host not in {"127.0.0.1", "localhost", "::1"}:
        yield Finding(
            "bad", "access", f"HOST={settings.host} without API_KEYS: other machines will get a 403; set API_KEYS"
        )
    else:
        yield Finding("ok", "access", "this machine alone")
