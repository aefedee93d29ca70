"""Kill the service in the middle of fits, uploads, calibrations and inspections, and look at what is left.

    python -m tests.faults.kill9 --kills 200

Each time a service is forked, kept busy on three models, killed with SIGKILL after a random pause, and every model is
then read from the disk: its memory must be, bit for bit, that of the last acknowledged fit or of the one under way, its
calibration whole, and a fresh service must score a part exactly as that memory does.
"""

import argparse
import os
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from backend.base.keys import ModelKey
from backend.storage import ModelStore
from tests.faults.service import CORESET, Variant, post_calibration, post_fit, post_infer, variant
from tests.parts import quick_settings

ROIS = ("a", "b", "c")


def fork_service(listener: socket.socket, root: Path) -> int:
    """A child that serves on `listener`; everything is imported already, so it takes no time to come up."""
    import uvicorn

    from backend.app import create_app

    child = os.fork()
    if child:
        return child
    try:
        app = create_app(quick_settings(root, coreset_rate=CORESET, min_free_mb=0, log_level="ERROR"))
        uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])
    finally:
        os._exit(0)


@dataclass
class Model:
    """What may be on the disk: the variant that was acknowledged last, or the one being fitted."""

    acknowledged: int | None = None
    under_way: int | None = None
    thresholds: set[float] = field(default_factory=set)

    @property
    def possible(self) -> set[int]:
        return {v for v in (self.acknowledged, self.under_way) if v is not None}


class Trial:
    """One service, kept busy until it is killed."""

    def __init__(self, url: str, variants: list[Variant], models: dict[str, Model], rng: np.random.Generator) -> None:
        self.url, self.variants, self.models, self.rng = url, variants, models, rng
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()

    def work(self, roi: str, seed: int) -> None:
        rng, model = np.random.default_rng(seed), self.models[roi]
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while not self.stop.is_set():
                with suppress(httpx.TransportError):  # the connections that the kill cuts
                    self._step(client, roi, model, rng)

    def _step(self, client: httpx.Client, roi: str, model: Model, rng: np.random.Generator) -> None:
        kind = "fit" if model.acknowledged is None else str(rng.choice(["fit", "fit", "calibrate", "infer"]))
        if kind == "fit":
            model.under_way = int(rng.integers(len(self.variants)))
            answer = post_fit(client, roi, self.variants[model.under_way].images)
            if answer.status_code == 200:
                model.acknowledged, model.under_way = model.under_way, None
        elif kind == "calibrate":
            threshold = float(rng.uniform(0.1, 0.9))
            model.thresholds.add(threshold)
            answer = post_calibration(client, roi, threshold)
        else:
            answer = post_infer(client, roi)
            if answer.status_code == 200 and not self._right(answer.json()["score"], model):
                self.wrong.append(f"{roi}: a score of none of its memories")
        self.done[f"{kind} {answer.status_code}"] += 1
        if answer.status_code not in (200, 503):
            self.wrong.append(f"{roi}: {kind} gave {answer.status_code} {answer.text[:300]}")

    def wait_for(self, answers: int) -> None:
        """Until so many calls were answered: how far the service gets does not depend on how fast the machine is."""
        deadline = time.monotonic() + 60
        while sum(self.done.values()) < answers and time.monotonic() < deadline:
            time.sleep(0.005)

    def _right(self, score: float, model: Model) -> bool:
        return any(score == self.variants[v].score for v in model.possible)


def examine(store: ModelStore, roi: str, model: Model, variants: list[Variant]) -> list[str]:
    """What is wrong with the model on the disk; settles which variant it is."""
    key = ModelKey.of("Master1", roi)
    if not model.possible:
        return []
    if store.stamp(key) is None:
        return [] if model.acknowledged is None else [f"{roi}: the model is lost"]
    emb = store.load_memory(key).emb
    found = [v for v in model.possible if np.array_equal(variants[v].emb, emb)]
    if not found:
        return [f"{roi}: the memory is neither the old nor the new one"]
    model.acknowledged, model.under_way = found[0], None
    calibration = store.load_calibration(key)
    if calibration is not None and calibration["threshold"] not in model.thresholds:
        return [f"{roi}: a threshold that was never sent"]
    return []


def rescore(url: str, models: dict[str, Model], variants: list[Variant]) -> list[str]:
    """Whether a fresh service scores with what is on the disk."""
    wrong = []
    with httpx.Client(base_url=url, timeout=180) as client:
        for roi, model in models.items():
            if model.acknowledged is not None:
                answer = inspect_again(client, roi)
                if answer.get("score") != variants[model.acknowledged].score:
                    wrong.append(f"{roi}: after the restart {answer}")
    return wrong


def inspect_again(client: httpx.Client, roi: str) -> dict[str, object]:
    """The answer to an inspection; a connection that the service closed as idle is made anew."""
    for _ in range(5):
        with suppress(httpx.RemoteProtocolError, httpx.ReadError):
            return dict(post_infer(client, roi).json())
    raise AssertionError(f"{roi}: the fresh service hangs up")


def run(kills: int, seed: int = 0, *, say: bool = False) -> Counter[str]:
    """Kill `kills` times. Returns what was counted; raises AssertionError with what was wrong."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        root = Path(folder)
        started = time.monotonic()
        variants = [variant(root, seed, count) for seed, count in ((1, 3), (2, 4), (3, 6))]
        longest_s = (time.monotonic() - started) / len(variants)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        store, models = ModelStore(root / "models"), {roi: Model() for roi in ROIS}
        for number in range(kills):
            wrong, done = one_kill(listener, url, root, variants, models, rng, longest_s)
            counts.update(done)
            for roi, model in models.items():
                counts["whole models"] += store.stamp(ModelKey.of("Master1", roi)) is not None
                wrong += examine(store, roi, model, variants)
            counts["left-over files"] = len(list((root / "models").rglob("*.tmp")))
            counts["kills"] += 1
            assert not wrong, f"kill {number + 1}: " + "; ".join(wrong)
            if say and (number + 1) % 10 == 0:
                print(f"{number + 1} kills: {dict(counts)}", flush=True)
    assert counts["left-over files"] <= len(ROIS) * 3, counts
    return counts


def one_kill(
    listener: socket.socket,
    url: str,
    root: Path,
    variants: list[Variant],
    models: dict[str, Model],
    rng: np.random.Generator,
    longest_s: float,
) -> tuple[list[str], Counter[str]]:
    trial = Trial(url, variants, models, rng)
    threads: list[threading.Thread] = []
    child = fork_service(listener, root)
    try:
        wrong = rescore(url, models, variants)
        threads = [threading.Thread(target=trial.work, args=(roi, int(rng.integers(2**31)))) for roi in ROIS]
        for thread in threads:
            thread.start()
        trial.wait_for(int(rng.integers(0, 7)))
        time.sleep(float(rng.uniform(0, longest_s)))
    finally:
        trial.stop.set()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    drop_waiting(listener)
    for thread in threads:
        thread.join(60)
    drop_waiting(listener)
    return wrong + trial.wrong, trial.done


def drop_waiting(listener: socket.socket) -> None:
    """Hang up on who still waits for the dead service."""
    listener.setblocking(False)
    try:
        while True:
            listener.accept()[0].close()
    except BlockingIOError:
        pass
    finally:
        listener.setblocking(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    counts = run(given.kills, given.seed, say=True)
    print(f"{counts['kills']} kills in {time.monotonic() - started:.0f} s, every model whole: {dict(counts)}")


if __name__ == "__main__":
    main()
