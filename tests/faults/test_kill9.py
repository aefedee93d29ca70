"""kill -9 at random moments: what is on the disk is always a whole model."""

import sys

import pytest

pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="needs fork"), pytest.mark.slow]


def test_ten_kills_leave_whole_models() -> None:
    from tests.faults.kill9 import run

    counts = run(10, seed=3)
    assert counts["kills"] == 10
    assert counts["whole models"] >= 10
    assert counts["fit 200"] > 0
