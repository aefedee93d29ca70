"""Golden samples name whatever costs them their verdict, and nothing else does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from backend.assurance.golden import GoldenSet
from backend.base.errors import GoldenStopped
from backend.base.keys import ModelKey
from backend.extractors.neighbourhood import Wrapped
from backend.extractors.protocol import RGB, Extractor, Rows, prepare
from backend.memory.compact import in_float32
from backend.samples.collector import Collector
from backend.samples.store import Draft
from backend.service.calibration import Terms
from backend.service.host import extractor_for
from backend.service.images import ImageFile
from tests.parts import encoded, good_files, part, quick_settings, tree

KEY = ModelKey.of("Master1", "Pattern")
GOOD = encoded(part(30))


class Elsewhere(Wrapped):
    """The same network on another device, by another runtime, or of another precision: its numbers differ a little."""

    def __init__(self, inner: Extractor, *, device: str = "cpu", runtime: str = "numpy", digits: int = 2) -> None:
        super().__init__(inner, "")
        self.runtime, self.digits, self._device = runtime, digits, device

    @property
    def device(self) -> str:
        return self._device

    def extract(self, images: Sequence[RGB]) -> Rows:
        rows = np.round(self.inner.extract(images), self.digits)
        return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def opened(root: Path, extractor: Extractor | None = None, **given: object) -> tuple[Collector, GoldenSet]:
    settings = quick_settings(root, coreset_rate=0.5, results_db=None, score_method="max", golden_blocks=True, **given)
    collector = Collector(settings, extractor)
    golden = GoldenSet(collector.inspector, collector.samples)
    collector.inspector.gate = golden
    collector.inspector.start()
    return collector, golden


@pytest.fixture
def near(tmp_path: Path) -> tuple[Path, str]:
    """A model whose threshold lies just above the score of a golden good part, and the name of that part."""
    collector, golden = opened(tmp_path)
    collector.fit(KEY, good_files(6), mm_per_px=0.2)
    (kept,) = collector.samples.add(KEY, "ok", [Draft("good.png", lambda: GOOD, "upload", 0.2)])
    score = collector.inspector.infer(KEY, seen(), mm_per_px=0.2).inspection.score
    terms = Terms(threshold=score * 1.0001)
    collector.inspector.calibrate(KEY, ok_scores=[score], mm_per_px=0.2, terms=terms)
    golden.mark(KEY, kept.name, "ok", golden=True)
    assert golden.run(KEY).outcomes[0].right
    collector.close()
    return tmp_path, kept.name


def seen() -> ImageFile:
    return ImageFile.named("good.png", lambda: GOOD)


def assert_named(collector: Collector, golden: GoldenSet, name: str) -> None:
    """Verdicts stop, and the sample that flipped is named to whoever asks and to all workers."""
    with pytest.raises(GoldenStopped) as stopped:
        collector.inspector.infer(KEY, seen(), mm_per_px=0.2)
    assert name in str(stopped.value.values["samples"])
    with pytest.raises(GoldenStopped):
        collector.score(KEY)
    other = GoldenSet(collector.inspector, collector.samples)
    assert golden.lost() == other.lost() == {KEY: [name]}
    collector.close()


@pytest.mark.parametrize(
    "elsewhere",
    [partial(Elsewhere, device="cuda"), partial(Elsewhere, runtime="openvino"), partial(Elsewhere, digits=3)],
)
def test_another_device_runtime_or_precision(
    near: tuple[Path, str], elsewhere: Callable[[Extractor], Extractor]
) -> None:
    root, name = near
    collector, golden = opened(root, elsewhere(extractor_for(quick_settings(root))))
    assert_named(collector, golden, name)


def test_another_extractor(near: tuple[Path, str]) -> None:
    root, name = near
    collector, golden = opened(root, patchcore_patch_size=3)
    assert_named(collector, golden, name)


def test_another_threshold(near: tuple[Path, str]) -> None:
    root, name = near
    collector, golden = opened(root)
    store = collector.inspector.store
    known = store.load_calibration(KEY)
    assert known is not None
    with store.writing(KEY):
        store.save_calibration(KEY, {**known, "threshold": known["threshold"] * 0.999, "good_scores": None})
    assert_named(collector, golden, name)


def test_one_row_of_the_memory(near: tuple[Path, str]) -> None:
    root, name = near
    collector, golden = opened(root)
    collector.inspector.infer(KEY, seen(), mm_per_px=0.2)
    store = collector.inspector.store
    stored = store.load_memory(KEY)
    rows = in_float32(stored.rows).copy()
    tokens = collector.inspector.host.queue().extractor.extract([_pixels(collector)])[0]
    distances = np.linalg.norm(tokens[:, None] - rows[None], axis=2)
    farthest = int(distances.min(axis=1).argmax())
    row = int(distances[farthest].argmin())  # without this one the farthest token is farther still
    rows[row] = rows[(row + 1) % len(rows)]
    with store.writing(KEY):
        store.save_memory(KEY, replace(stored, rows=rows))
    assert_named(collector, golden, name)


def _pixels(collector: Collector) -> RGB:
    extractor = collector.inspector.host.queue().extractor
    return prepare(part(30), extractor.grid(96, 96), extractor.patch)


def test_the_same_again(near: tuple[Path, str]) -> None:
    root, _ = near
    collector, golden = opened(root)
    kept = (collector.samples.folder(KEY) / "golden.json").read_bytes()
    assert collector.inspector.infer(KEY, seen(), mm_per_px=0.2).is_anomaly is False
    assert golden.lost() == {KEY: []}
    assert (collector.samples.folder(KEY) / "golden.json").read_bytes() == kept
    collector.close()


@pytest.mark.slow
def test_an_unchanged_model_has_no_flip_in_a_thousand_runs(near: tuple[Path, str]) -> None:
    collector, golden = opened(near[0])
    scores = {one.score for _ in range(1000) for one in golden.run(KEY).outcomes if not one.flipped}
    assert len(scores) == 1
    collector.close()


def test_a_replica_names_what_it_finds_and_changes_nothing(near: tuple[Path, str]) -> None:
    root, name = near
    before = tree(root)
    inner = extractor_for(quick_settings(root))
    collector, golden = opened(root, Elsewhere(inner, device="cuda"), read_only=True)
    with pytest.raises(GoldenStopped):
        collector.inspector.infer(KEY, seen(), mm_per_px=0.2)
    assert golden.lost() == {KEY: [name]}
    collector.close()
    assert tree(root) == before
