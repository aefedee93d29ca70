"""Ray Serve with two replicas on this machine; in a process of its own, since Ray takes over the one it is in."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'")
def test_two_replicas_keep_the_contract_and_lose_no_request_when_one_is_killed() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults.ray_replicas"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["answered"] > 0 and seen["replicas afterwards"] == 2
