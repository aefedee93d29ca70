"""kill -9 at random moments of fits, growths, lessons, restores, uploads and calibrations.

Models, versions and samples are whole afterwards. Every model that was answered is in use or kept as a version, and no
version changes or goes but by MODEL_VERSIONS.

python -m tests.faults.kill_fits --rounds 100
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import httpx

from backend.base.errors import MemoryNotFound
from backend.base.images import decode_image
from backend.base.keys import ModelKey
from backend.samples.history import FitHistory
from backend.samples.store import LABELS, TAKEN_BACK, SampleStore
from backend.storage import ModelStore
from tests.faults.service import running
from tests.parts import BGR, encoded, part

KEYS = [ModelKey.of("Master1", "Pattern"), ModelKey.of("Master1", "Pattern", "red")]
PATIENCE_S = 300.0
NOT_CALIBRATED = {"memory_not_found", "not_enough_samples", "only_image_of_memory"}
KEPT, MOST_WRITES = 40, 16  # versions, and what one round may add to them


@dataclass
class Report:
    """What was seen, over all rounds."""

    rounds: int = 0
    killed_at_work: int = 0
    answered: int = 0
    samples: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass
class Model:
    """What the client knows of one model: the last answer, and whether another fit may have been committed since.

    Attributes:
        answered: the generations of this round's answers.
        versions: digests of the files of each version, the newest first, as they were after the last round.
    """

    generation: str = ""
    under_way: bool = False
    answered: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def now(self, generation: str) -> None:
        """An answer says that this is the memory in use."""
        self.generation, self.under_way = generation, False
        self.answered.append(generation)


class Client(threading.Thread):
    """Fits, grows, uploads and calibrates one model until the service is gone."""

    def __init__(self, url: str, key: ModelKey, known: Model, seed: int) -> None:
        super().__init__(daemon=True)
        self.url, self.key, self.known = url, key, known
        self.random = random.Random(seed)
        self.answered = 0
        self.faults: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            try:
                while True:
                    self._one(client)
            except httpx.TransportError:
                return

    def _one(self, client: httpx.Client) -> None:
        ids = {"role_id": self.key.role_id, "roi_id": self.key.roi_id, "recipe_id": self.key.recipe_id}
        seeds = self.random.sample(range(60), self.random.randint(1, 4))
        files = [("images", (f"{seed}.png", encoded(part(seed)), "image/png")) for seed in seeds]
        kind = self.random.choice(["fit", "grow", "upload", "calibrate", "restore", "teach"])
        if kind in {"fit", "grow"}:
            self.known.under_way = True
            form = {**ids, "mm_per_px": "0.2", "memory_fit": str(kind == "grow").lower()}
            answer = self._checked(client.post("/fit_ok", data=form, files=files))
            self.known.now(answer["generation"])
        elif kind == "restore":
            kept = self._checked(client.get("/versions", params=ids)).get("versions")
            if kept:
                self.known.under_way = True
                version = self.random.choice(kept)["version"]
                answer = self._checked(client.post(f"/versions/{version}/restore", json=ids))
                self.known.now(answer["generation"])
        elif kind == "teach":
            self._teach(client, ids)
        elif kind == "upload":
            self._checked(client.post(f"/datasets/{self.random.choice(LABELS)}/upload", data=ids, files=files))
        else:
            answer = client.post("/calibrate_dataset", json=ids).json()
            if answer.get("code", "memory_not_found") not in NOT_CALIBRATED:
                self.faults.append(f"/calibrate_dataset answered {answer}")
        self.answered += 1

    def _teach(self, client: httpx.Client, ids: dict[str, str]) -> None:
        image = {"image": ("seen.png", encoded(stained(self.random.randrange(60))), "image/png")}
        seen = client.post("/infer", data={**ids, "mm_per_px": "0.2"}, files=image).json()
        if seen.get("code") == "memory_not_found":
            return
        self.known.under_way = True
        lesson = {"inspection_ids": [seen["inspection_id"]], "force": True, "recalibrate": self.random.random() < 0.5}
        response = client.post("/teach", json={**ids, **lesson})
        if response.json().get("code") == "calibration_needed":
            self.known.under_way = False
        else:
            self.known.now(self._checked(response)["generation"])

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        answer: dict[str, Any] = response.json()
        if response.status_code != 200:
            self.faults.append(f"{response.request.url.path} answered {answer}")
            return {"generation": self.known.generation}
        return answer


def stained(seed: int) -> BGR:
    """A good part with a stain that no part of the fits has."""
    image = part(seed)
    cv2.circle(image, (30, 62), 9, (90, 90, 90), -1)
    return image


def run(rounds: int, seed: int, folder: Path) -> Report:
    """Kill the service `rounds` times at random moments; what was wrong afterwards is in `faults`."""
    chance, report = random.Random(seed), Report()
    known = {key: Model() for key in KEYS}
    for number in range(rounds):
        with running(folder, MODEL_VERSIONS=str(KEPT), KEEP_IMAGES="all") as service:
            report.faults += [f"round {number}: {fault}" for fault in _unlearnt(folder)]
            clients = [Client(service.url, key, known[key], chance.randrange(10**9)) for key in KEYS]
            for client in clients:
                client.start()
            _let_work(clients, chance)
            service.process.kill()
        for client in clients:
            client.join(60)
            report.answered += client.answered
            report.faults += client.faults
        report.rounds += 1
        report.killed_at_work += any(model.under_way for model in known.values())
        report.faults += [f"round {number}: {fault}" for fault in _faults(folder, known)]
        report.samples = _count(folder)
    return report


def _unlearnt(folder: Path) -> list[str]:
    """What a lesson of the last round stored and no memory learnt; the service takes it back soon after its start."""
    store, history = SampleStore(folder / "datasets", max_gb=1), FitHistory(folder / "datasets")
    give_up = time.monotonic() + 30
    for key in KEYS:
        while left := store.taught_beyond(key, history.images(key)):
            if time.monotonic() > give_up:
                return [f"{key}: {left} were stored to be taught, and no memory learnt them"]
            time.sleep(0.05)
    return []


def _let_work(clients: list[Client], chance: random.Random) -> None:
    """Until a random number of answers came, and a random moment of the next request."""
    wanted, give_up = chance.randint(0, 8), time.monotonic() + PATIENCE_S
    while sum(client.answered for client in clients) < wanted and time.monotonic() < give_up:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.2))


def _faults(folder: Path, known: dict[ModelKey, Model]) -> list[str]:
    faults = []
    truth = {hashlib.sha256(encoded(make(seed))).hexdigest() for seed in range(60) for make in (part, stained)}
    for key, model in known.items():
        faults += _model_faults(folder, key, model)
        faults += _sample_faults(SampleStore(folder / "datasets", max_gb=1), key, truth)
    return faults


def _model_faults(folder: Path, key: ModelKey, model: Model) -> list[str]:
    store, faults = ModelStore(folder / "models"), []
    try:
        memory = store.load_memory(key)
        if memory.generation != model.generation and not model.under_way:
            faults.append(f"{key}: generation {memory.generation} is neither old nor new")
        if len(memory.metadata["images"]) != memory.metadata["n_images"]:
            faults.append(f"{key}: the metadata do not fit each other")
        model.generation = memory.generation
        store.load_calibration(key)
        faults += version_faults(store, key, model, memory.generation)
    except MemoryNotFound:
        if model.generation:
            faults.append(f"{key}: the model is lost")
    model.under_way = False
    store.load_calibration(key)
    samples = SampleStore(folder / "datasets", max_gb=1)
    stored = {digest for label in ("ok", TAKEN_BACK) for digest in samples.digests(key, label).values()}
    needed = {digest for step in FitHistory(folder / "datasets").plan(key).steps for digest in step["images"]}
    if not needed <= stored:
        faults.append(f"{key}: {len(needed - stored)} recorded images are not stored")
    return faults


def version_faults(store: ModelStore, key: ModelKey, model: Model, generation: str) -> list[str]:
    """What is wrong with the versions: one cannot be read, another one is gone or has changed."""
    faults, versions = [], store.versions(key)
    for version in versions:
        if version.name not in model.versions:
            store.load_version(key, version)
    found = {version.name: _digest(version.folder) for version in versions}
    kept = {generation, *(version.generation for version in versions)}
    faults += [f"{key}: the answered model {one} is lost" for one in model.answered if one not in kept]
    sure = list(model.versions)[: KEPT - MOST_WRITES]
    faults += [f"{key}: the version {name} is lost" for name in sure if name not in found]
    changed = [name for name, digest in found.items() if model.versions.get(name, digest) != digest]
    faults += [f"{key}: the version {name} has changed" for name in changed]
    model.versions, model.answered = found, []
    return faults


def _digest(version: Path) -> str:
    """Of the memory and the calibration of a version."""
    files = (version / name for name in ("memory.npz", "calib.json"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.exists())).hexdigest()


def _sample_faults(store: SampleStore, key: ModelKey, truth: set[str]) -> list[str]:
    faults, digests = [], []
    for label in LABELS:
        for name in store.names(key, label):
            data = store.read(key, label, name)
            digest = hashlib.sha256(data).hexdigest()
            digests.append((label, digest))
            decode_image(data)
            if digest not in truth or store.meta(key, label, name)["sha256"] != digest:
                faults.append(f"{key}: {label}/{name} is not what was sent")
    return faults + ([f"{key}: an image is stored twice"] if len(digests) != len(set(digests)) else [])


def _count(folder: Path) -> int:
    store = SampleStore(folder / "datasets", max_gb=1)
    return sum(len(store.names(key, label)) for key in KEYS for label in LABELS)


def main() -> None:
    """Run from the command line; exit code 1 when something was not whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(given.rounds, given.seed, Path(folder))
    print(json.dumps(report.__dict__, indent=2))
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
