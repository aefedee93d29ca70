"""Scores of stored samples, each as if the memory had never seen it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from backend.api.catalogue import sentence
from backend.base.errors import NgRequired, NotEnoughSamples, OnlyImage
from backend.base.images import decode_image, encode_png
from backend.base.keys import ModelKey
from backend.patchcore import covering_radius
from backend.samples.collector import Collector
from backend.samples.intake import drafts
from backend.samples.scoring import Sample, SampleScorer
from backend.service.fitting import embed
from backend.service.images import ImageFile
from backend.service.jobs import Job
from tests.parts import encoded, part, part_file, quick_settings

KEY = ModelKey.of("Master1", "Pattern")
WITHOUT = ModelKey.of("Master1", "Without")


def collector_of(folder: Path, **settings: float) -> Collector:
    collector = Collector(quick_settings(folder, **settings))
    collector.start()
    return collector


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    collector = collector_of(tmp_path)
    yield collector
    collector.close()


def keep(collector: Collector, key: ModelKey, label: str, files: list[ImageFile]) -> list[str]:
    ready, _ = drafts(files, [], source="test", mm_per_px=0.2)
    return [kept.name for kept in collector.keep(key, label, ready)[0]]


def score(collector: Collector, name: str, *, leave_out: bool) -> float:
    scorer = SampleScorer(collector.inspector, collector.samples, KEY, leave_out=leave_out)
    (scored,) = scorer.run([Sample("ok", name)], Job())
    assert scored.inspection, scored.error
    assert (scored.in_memory, scored.left_out) == (True, leave_out)
    return scored.inspection.score


def half_alike(seed: int) -> ImageFile:
    """Parts that differ in their lower half alone, and not in brightness: they share embeddings bit for bit."""
    image = decode_image(encoded(part(0)))
    image[56:] = np.roll(image[56:], 9 * seed, axis=1)
    data = encode_png(image)
    return ImageFile(f"{seed}.png", lambda: data)


@pytest.mark.parametrize("make", [part_file, half_alike])
def test_at_rate_one_leaving_out_equals_a_memory_fitted_without(
    tmp_path: Path, make: Callable[[int], ImageFile]
) -> None:
    collector = collector_of(tmp_path, coreset_rate=1.0)
    files = [make(seed) for seed in range(4)]
    names = keep(collector, KEY, "ok", files)
    collector.fit(KEY, files, mm_per_px=0.2)
    for left, name in enumerate(names):
        others = [file for n, file in enumerate(files) if n != left]
        collector.fitter.fit(WITHOUT, others, mm_per_px=0.2, keep=False)
        truth = collector.inspector.infer(WITHOUT, files[left], mm_per_px=0.2).inspection.score
        assert score(collector, name, leave_out=True) == pytest.approx(truth, abs=1e-5)
        assert score(collector, name, leave_out=False) < 1e-3 < truth
    collector.close()


def test_below_rate_one_leaving_out_stays_within_the_documented_bound(tmp_path: Path) -> None:
    collector = collector_of(tmp_path, coreset_rate=0.1)
    files = [part_file(seed) for seed in range(5)]
    names = keep(collector, KEY, "ok", files)
    collector.fit(KEY, files, mm_per_px=0.2)
    stored = collector.inspector.cache.model(KEY).stored
    queue = collector.inspector.host.queue()
    for left, name in enumerate(names):
        others = [file for n, file in enumerate(files) if n != left]
        collector.fitter.fit(WITHOUT, others, mm_per_px=0.2, keep=False)
        refit = collector.inspector.cache.model(WITHOUT)
        emb = embed(others, queue, Job(), collector.fitter.options).emb
        radius = covering_radius([emb], stored.emb[stored.image_ids != left])
        bound = max(radius, float(refit.memory.radius or 0))
        truth = collector.inspector.infer(WITHOUT, files[left], mm_per_px=0.2).inspection.score
        assert abs(score(collector, name, leave_out=True) - truth) <= bound + 1e-5
    collector.close()


def test_an_image_fitted_twice_is_left_out_twice(tmp_path: Path) -> None:
    collector = collector_of(tmp_path, coreset_rate=1.0)
    files = [part_file(0), part_file(1), part_file(0, "copy.png")]
    collector.fit(KEY, files, mm_per_px=0.2)
    (name, _) = collector.samples.names(KEY, "ok")
    assert set(collector.inspector.cache.model(KEY).stored.image_ids.tolist()) <= {0, 1}
    assert score(collector, name, leave_out=True) > 0.01 > score(collector, name, leave_out=False)
    collector.close()
    collector.close()


def test_a_calibration_from_samples_is_that_of_their_left_out_scores(collector: Collector) -> None:
    names = keep(collector, KEY, "ok", [part_file(seed) for seed in range(5)])
    keep(collector, KEY, "ng", [part_file(9, defect=True)])
    collector.fit(KEY, [], mm_per_px=0.2, use_dataset=True)
    result = collector.calibrate(KEY, score_percentile=95)
    scorer = SampleScorer(collector.inspector, collector.samples, KEY, leave_out=True)
    assert scorer.criteria.scoring.percentile == 95
    scores = [s.inspection.score for s in scorer.run([Sample("ok", n) for n in names], Job()) if s.inspection]
    assert result.values["ok_mean"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert result.values["p99_ok"] == pytest.approx(np.percentile(scores, 95), rel=1e-6)
    assert (result.values["n_ok"], result.values["n_ng"], result.values["mm_per_px"]) == (5, 1, 0.2)
    assert "percentile_changed" not in {notice.code for notice in result.warnings}
    assert collector.inspector.infer(KEY, part_file(9, defect=True), mm_per_px=0.2).is_anomaly is True


def test_a_sample_that_cannot_be_read_is_left_out_and_named(collector: Collector) -> None:
    names = keep(collector, KEY, "ok", [part_file(seed) for seed in range(4)])
    collector.fit(KEY, [], mm_per_px=0.2, use_dataset=True)
    collector.samples.path(KEY, "ok", names[1]).write_bytes(b"not an image")
    result = collector.calibrate(KEY)
    assert result.values["n_ok"] == 3
    (notice,) = [notice for notice in result.warnings if notice.code == "samples_left_out"]
    assert names[1] in sentence(notice, "es")
    items = list(collector.score(KEY).items)
    assert [item.error is None for item in items] == [True, False, True, True]


def test_without_samples_that_help_there_is_no_calibration(collector: Collector) -> None:
    keep(collector, KEY, "ok", [part_file(0)])
    collector.fit(KEY, [part_file(0)], mm_per_px=0.2)
    with pytest.raises(OnlyImage):
        collector.calibrate(KEY)
    keep(collector, KEY, "ok", [part_file(1)])
    with pytest.raises(NgRequired):
        collector.calibrate(KEY, require_ng=True)
    assert not collector.state(KEY)["calib_present"]
    assert collector.calibrate(KEY).values["n_ok"] == 1


def test_a_fit_from_samples_needs_enough_of_them(collector: Collector) -> None:
    keep(collector, KEY, "ok", [part_file(seed) for seed in range(2)])
    with pytest.raises(NotEnoughSamples, match="n=2, wanted=3"):
        collector.fit(KEY, [], mm_per_px=0.2, use_dataset=True)
    assert collector.fit(KEY, [part_file(2)], mm_per_px=0.2, use_dataset=True).metadata["n_images"] == 3


def test_a_stored_shape_masks_the_score(collector: Collector) -> None:
    collector.fit(KEY, [part_file(seed) for seed in range(4)], mm_per_px=0.2)
    shape = '{"shape_json": {"kind": "rect", "x": 0, "y": 70, "w": 96, "h": 26}}'
    hidden, _ = drafts([part_file(9, defect=True)], [shape], source="test")
    seen, _ = drafts([part_file(8, defect=True)], [], source="test")
    collector.keep(KEY, "ng", hidden + seen)
    inside, outside = (item.inspection.score for item in collector.score(KEY, ["ng"]).items if item.inspection)
    assert inside < 0.7 * outside


def test_a_shape_that_is_not_understood_means_the_whole_roi_and_is_said(collector: Collector) -> None:
    collector.fit(KEY, [part_file(seed) for seed in range(4)], mm_per_px=0.2)
    ready, notices = drafts([part_file(9)], ['{"shape_json": "{\\"Kind\\": \\"blob\\"}"}'], source="test")
    collector.keep(KEY, "ok", ready)
    assert [notice.code for notice in notices] == ["shape_not_understood"]
    (scored,) = [item for item in collector.score(KEY, ["ok"]).items if not item.in_memory]
    assert scored.inspection
    assert [notice.code for notice in scored.notices] == ["shape_not_understood"]
