"""The rehearsal before the first request."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from backend.base.keys import ModelKey
from backend.extractors.texture import TextureFeatures
from backend.service.fitting import Fitter
from backend.service.inspection import Inspector
from backend.service.models import ModelCache
from backend.service.queue import InferenceQueue
from backend.service.warmup import rehearse
from backend.storage import ModelStore, StoredMemory
from tests.parts import good_files, image_file, part, quick_settings

ROOT = Path(__file__).resolve().parents[2]


class Watched(TextureFeatures):
    """Remembers the sizes of the images it was given."""

    def __init__(self) -> None:
        super().__init__(112)
        self.sizes: set[tuple[int, ...]] = set()

    def extract(self, images):  # type: ignore[no-untyped-def]
        self.sizes |= {image.shape[:2] for image in images}
        return super().extract(images)


@pytest.fixture
def queue() -> InferenceQueue:
    return InferenceQueue(Watched(), max_batch=2)


def stored(store: ModelStore, roi: str, fingerprint: str, grid: tuple[int, int]) -> None:
    key = ModelKey.of("role", roi)
    rows = np.eye(4, TextureFeatures.dim, dtype=np.float32)
    with store.writing(key):
        store.save_memory(key, StoredMemory(rows, grid, np.zeros(4, np.int32), {"fingerprint": fingerprint}))


def test_the_default_grid_and_those_of_stored_models_are_run_and_models_cached(
    tmp_path: Path, queue: InferenceQueue
) -> None:
    store = ModelStore(tmp_path)
    stored(store, "wide", queue.extractor.fingerprint, (5, 12))
    stored(store, "others", "another extractor", (3, 3))
    cache = ModelCache(store, cache_mb=64, knn_backend="auto")
    rehearse(queue, cache)
    assert queue.extractor.sizes == {(112, 112), (70, 168)}  # type: ignore[attr-defined]
    before = cache.nbytes
    cache.model(ModelKey.of("role", "wide"))
    assert cache.nbytes == before > 0
    queue.close()


def test_a_damaged_model_is_left_for_its_own_request(
    tmp_path: Path, queue: InferenceQueue, caplog: pytest.LogCaptureFixture
) -> None:
    store = ModelStore(tmp_path)
    stored(store, "broken", queue.extractor.fingerprint, (5, 12))
    (tmp_path / "role" / "broken" / "memory.npz").write_bytes(b"PK")
    rehearse(queue, ModelCache(store, cache_mb=64, knn_backend="auto"))
    assert queue.extractor.sizes == {(112, 112)}  # type: ignore[attr-defined]
    assert "role/broken" in caplog.text
    queue.close()


FIRST_REQUEST = """
import sys
from pathlib import Path
from time import sleep
from tests.parts import image_file, part, quick_settings
from backend.base.keys import ModelKey
from backend.service.inspection import Inspector

file = image_file(part(9))
inspector = Inspector(quick_settings(Path(sys.argv[1])))
inspector.start()
while inspector.host.status == "warming":
    sleep(0.01)
known = set(sys.modules)
inspector.infer(ModelKey.of("Master1", "Pattern"), file, mm_per_px=1)
inspector.close()
print(*sorted(set(sys.modules) - known))
"""


def test_after_the_rehearsal_the_first_request_loads_nothing_more(tmp_path: Path) -> None:
    inspector = Inspector(quick_settings(tmp_path))
    Fitter(inspector).fit(ModelKey.of("Master1", "Pattern"), good_files(1), mm_per_px=1)
    inspector.close()
    command = [sys.executable, "-c", FIRST_REQUEST, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split() == []


def called(work: Callable[[], object]) -> set[str]:
    """The functions of decoding and the memory that `work` calls in this thread, by file and name."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT / "backend"):
            seen.add(f"{path.relative_to(ROOT / 'backend').as_posix()} {frame.f_code.co_name}")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return {name for name in seen if name.startswith(("base/decoding.py", "memory/", "patchcore.py"))}


def test_a_request_takes_no_way_that_the_rehearsal_did_not_take(tmp_path: Path) -> None:
    inspector, key = Inspector(quick_settings(tmp_path)), ModelKey.of("Master1", "Pattern")
    Fitter(inspector).fit(key, good_files(1), mm_per_px=1)
    queue = inspector.host.queue()
    cache = ModelCache(inspector.store, cache_mb=64, knn_backend="auto")
    rehearsed = called(lambda: rehearse(queue, cache))
    asked = called(lambda: inspector.infer(key, image_file(part(9)), mm_per_px=1))
    inspector.close()
    assert "base/decoding.py decode" in asked
    assert asked - rehearsed <= {"base/decoding.py of"}  # the settings are read as options
