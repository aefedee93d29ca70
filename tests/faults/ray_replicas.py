"""Two replicas of the Ray Serve application: the contract's calls, then one replica is killed under load.

python -m tests.faults.ray_replicas
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.api.service import IDS, calibrate, fit, infer
from tests.faults.service import environment, free_port


def replicas() -> list[psutil.Process]:
    """The processes that Ray runs the deployment's replicas in."""
    return [p for p in psutil.Process().children(recursive=True) if "ServeReplica" in title(p)]


def title(process: psutil.Process) -> str:
    """What the process calls itself; nothing once it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def check_contract(client: httpx.Client) -> float:
    """The four calls, as any client of the service makes them; the score of a part."""
    health = client.get("/health").json()
    assert {"status", "device", "model", "version", "request_id"} <= health.keys(), health
    assert infer(client, roi_id="Nowhere").json()["code"] == "memory_not_found"
    fitted = fit(client)
    assert fitted.status_code == 200 and fitted.json()["n_images"] == 3, fitted.text
    calibrated = calibrate(client, ok_scores=[0.25])
    assert calibrated.status_code == 200 and calibrated.json()["threshold"] == 0.25, calibrated.text
    answers = [infer(client).json() for _ in range(12)]
    assert {a["threshold"] for a in answers} == {0.25}, "a replica does not see the calibration"
    assert len({a["score"] for a in answers}) == 1
    assert {answers[0][name] for name in IDS} == set(IDS.values())
    return float(answers[0]["score"])


def load(url: str, score: float, stop: threading.Event, counts: Counter[str], wrong: list[str]) -> None:
    """Inspect until told to stop; a request that was cut, or answered with a 5xx, is sent once more."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            for attempt in range(2):
                try:
                    answer = infer(client)
                except httpx.TransportError as err:
                    answer, failure = None, repr(err)
                else:
                    failure = f"{answer.status_code} {answer.text[:200]}"
                if answer is not None and answer.status_code == 200:
                    counts["answered" if attempt == 0 else "answered at the second attempt"] += 1
                    if answer.json()["score"] != score:
                        wrong.append(f"score {answer.json()['score']}")
                    break
                counts["retries"] += attempt == 0
                time.sleep(0.5)
            else:
                wrong.append(f"lost: {failure}")


def run(seconds_before: float = 3, seconds_after: float = 12) -> dict[str, Any]:
    """Start two replicas, call, kill one of them, call on."""
    import ray
    from ray import serve

    from backend.tools.serve_ray import Replicas, application

    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        own = {k: v for k, v in environment(Path(folder)).items() if os.environ.get(k) != v}
        # Ray itself must not see the service's own settings, which include HOST and PORT by their plain names.
        os.environ.update(own)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": own})
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(application(Replicas(min_replicas=2, max_replicas=2, cpus=0.5)))
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                score = check_contract(client)
            before = replicas()
            assert len(before) == 2, before
            stop, counts, wrong = threading.Event(), Counter[str](), list[str]()
            url = f"http://127.0.0.1:{port}"
            clients = [threading.Thread(target=load, args=(url, score, stop, counts, wrong)) for _ in range(4)]
            for thread in clients:
                thread.start()
            time.sleep(seconds_before)
            before[0].kill()
            time.sleep(seconds_after)
            stop.set()
            for thread in clients:
                thread.join(120)
            after = replicas()
            assert not wrong, (wrong[:5], dict(counts))
            assert before[0].pid not in {p.pid for p in after}
            return {**counts, "replicas afterwards": len(after)}
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    print(json.dumps(run()))
    sys.exit(0)
