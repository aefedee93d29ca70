"""FitHistory: datasets/<role>/<roi>/history.jsonl says what was fitted and calibrated from what, and only grows.

One JSON object a line, fsynced. `fit` begins a memory, `grow` adds to it, `calibrate` sets its threshold,
`rebuild` says that the same steps were taken anew, `restore` goes back to an earlier memory, `delete` ends it. Images
are named by the SHA-256 of their bytes, so that they are found again under whatever name they are stored.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backend.base.files import disk_errors, utc_now
from backend.base.keys import ModelKey, folder_of
from backend.service.fitting import FitOptions

logger = logging.getLogger(__name__)

NAME = "history.jsonl"
# What a line holds of a memory's metadata, beside its images.
RECORDED = (
    "generation",
    "model_version",
    "extractor",
    "fingerprint",
    "mm_per_px",
    *FitOptions().metadata(),
    "grown_from",
    "n_reserve",
    "author",
    "note",
)


@dataclass(frozen=True)
class Plan:
    """The steps that make a model again: a fit and the growths after it, oldest first, and the last calibration.

    `deleted`: someone deleted the model, so it is not made again unasked.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    deleted: bool = False

    def after(self, event: Mapping[str, Any]) -> Plan:
        """The plan once `event` happened too."""
        match event["event"]:
            case "fit":
                return Plan([dict(event)], self.calibration)
            case "grow":
                return Plan([*self.steps, dict(event)], self.calibration)
            case "calibrate":
                return replace(self, calibration=event["values"])
            case "rebuild" if self.steps:
                return self._rebuilt(event)
            case "delete":
                return Plan(deleted=True)
        return self

    def _rebuilt(self, event: Mapping[str, Any]) -> Plan:
        new = event["generation"]
        calibration = self.calibration
        if calibration and event.get("complete") and calibration.get("generation") == self.generation:
            calibration = {**calibration, "generation": new}
        return Plan([*self.steps[:-1], {**self.steps[-1], "generation": new}], calibration)

    @property
    def generation(self) -> str:
        """Generation of the memory that the last step made; empty without steps."""
        return str(self.steps[-1].get("generation", "")) if self.steps else ""


class FitHistory:
    """The histories of a datasets folder. Writers hold the model's lock, so lines come in the order of the commits."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: ModelKey) -> Path:
        """Where the history of `key` lies."""
        return folder_of(self.root, key) / NAME

    def append(self, key: ModelKey, event: str, values: Mapping[str, Any]) -> None:
        """Add one line and fsync it. Raises DiskFull, ReadOnlyStore."""
        path = self.path(key)
        line = json.dumps({"event": event, "utc": utc_now(), **values}, ensure_ascii=False, allow_nan=False) + "\n"
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                torn = file.seek(0, os.SEEK_END) > 0 and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n"
                file.write(b"\n" * torn + line.encode())
                file.flush()
                os.fsync(file.fileno())

    def read(self, key: ModelKey) -> list[dict[str, Any]]:
        """All lines, oldest first; one that was cut off by a crash is left out."""
        try:
            lines = self.path(key).read_bytes().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [event for number, line in enumerate(lines) if (event := _parsed(line, key, number + 1))]

    def plan(self, key: ModelKey) -> Plan:
        """The steps that make the model of `key` as it was last."""
        plan, former = Plan(), dict[str, Plan]()
        for event in self.read(key):
            if event["event"] == "restore":
                steps = former.get(str(event.get("generation")), Plan()).steps
                plan = Plan(steps, event.get("values"))
            else:
                plan = plan.after(event)
            former[plan.generation] = plan
        return plan

    def images(self, key: ModelKey) -> set[str]:
        """The SHA-256 of every image that a memory of `key` was ever made from."""
        return {str(digest) for event in self.read(key) for digest in event.get("images", ())}

    def record_memory(self, key: ModelKey, metadata: Mapping[str, Any]) -> None:
        """Add the line of a memory, from its metadata: it began, grew from the one recorded last, or was rebuilt.

        Raises:
            DiskFull, ReadOnlyStore.
        """
        last = self.plan(key).generation
        generation = metadata.get("generation", "")
        if last and metadata.get("rebuilt_from") == last:
            whole = not metadata.get("n_missing")
            self.append(key, "rebuild", {"generation": generation, "of": last, "complete": whole})
            return
        if generation and any(event.get("generation") == generation for event in self.read(key)):
            self.append(key, "restore", {"generation": generation})  # by someone who died before they could say so
            return
        grew = bool(last) and metadata.get("grown_from") == last
        images = [image["sha256"] for image in metadata.get("images", [])]
        added = int(metadata.get("n_added", 0)) if grew else len(images)
        values = {name: metadata[name] for name in RECORDED if name in metadata}
        self.append(key, "grow" if grew else "fit", {**values, "images": images[len(images) - added :]})


def _parsed(line: bytes, key: ModelKey, number: int) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        event = json.loads(line)
        if not isinstance(event, dict) or not isinstance(event["event"], str):
            raise ValueError("no event")
    except (ValueError, KeyError, RecursionError):
        logger.info("line %d of the history of %s cannot be read and is left out", number, key)
        return None
    return event
