"""The rehearsal before the first request."""

from pathlib import Path

import numpy as np
import pytest

from backend.base.keys import ModelKey
from backend.extractors.texture import TextureFeatures
from backend.service.models import ModelCache
from backend.service.queue import InferenceQueue
from backend.service.warmup import rehearse
from backend.storage import ModelStore


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
    emb = np.eye(4, TextureFeatures.dim, dtype=np.float32)
    with store.writing(key):
        store.save_memory(key, emb, grid, np.zeros(4, np.int32), {"fingerprint": fingerprint})


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
