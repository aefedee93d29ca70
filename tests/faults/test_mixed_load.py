"""Half a minute of what the script does for thirty."""

import sys

import pytest

from tests.faults.mixed_load import growth_mb, run


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills workers with SIGKILL")
def test_under_load_and_kills_no_answer_is_wrong_and_no_model_lost() -> None:
    # Of three workers one may be killed while the last that was has not been replaced yet.
    seen = run(0.4, workers=3, clients=6, fit_every_s=3, kill_every_s=8)
    assert seen["kills"] >= 2
    assert seen["lost models"] == []


def test_growth_is_seen_and_filling_caches_are_not() -> None:
    assert growth_mb([*range(100, 200), *[200.0] * 300]) == 0
    assert growth_mb([100.0 + n for n in range(400)]) == pytest.approx(200)
