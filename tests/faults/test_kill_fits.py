import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from backend.storage import ModelStore, StoredMemory
from tests.faults.kill_fits import KEPT, KEYS, Model, run, version_faults


def test_a_version_that_went_or_changed_and_an_answered_model_that_is_lost_are_found_out(tmp_path: Path) -> None:
    store, key, model = ModelStore(tmp_path / "models", versions=KEPT), KEYS[0], Model()
    rows = np.eye(4, dtype=np.float32)
    for _ in range(3):
        with store.writing(key):
            stored = store.save_memory(
                key, StoredMemory(rows, (2, 2), np.zeros(4, np.int32), {"n_images": 0, "images": []})
            )
        model.now(stored.generation)
    assert version_faults(store, key, model, stored.generation) == []
    first, second = store.versions(key)
    (first.folder / "calib.json").write_text("{}")
    shutil.rmtree(second.folder)
    model.now("never kept")
    found = version_faults(store, key, model, stored.generation)
    assert [one.partition(": ")[2].rpartition(" ")[2] for one in found] == ["lost", "lost", "changed"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a matter of POSIX")
def test_after_a_kill_at_any_moment_every_model_and_sample_is_whole(tmp_path: Path) -> None:
    report = run(3, seed=1, folder=tmp_path)
    assert report.faults == []
    assert report.answered > 0
