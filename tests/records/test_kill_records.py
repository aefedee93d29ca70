"""kill -9 while verdicts are recorded: none that was answered is lost, and the chains verify."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def test_eight_kills_lose_no_answered_verdict(url: str, tmp_path: Path) -> None:
    from tests.records.kill_records import run

    counts = run(8, url, tmp_path / "images", seed=1, longest_s=0.4)
    assert counts["kills"] == 8
    assert counts["answered"] > 20
