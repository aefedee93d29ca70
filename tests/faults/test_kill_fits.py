import sys
from pathlib import Path

import pytest

from tests.faults.kill_fits import run


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a matter of POSIX")
def test_after_a_kill_at_any_moment_every_model_and_sample_is_whole(tmp_path: Path) -> None:
    report = run(3, seed=1, folder=tmp_path)
    assert report.faults == []
    assert report.answered > 0
