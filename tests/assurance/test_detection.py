"""Defects drawn on good parts and judged by a real model."""

from dataclasses import replace

import numpy as np
import pytest

from backend.assurance.defects import GRADES, ZONES
from backend.assurance.detection import Curve, Detection
from backend.assurance.parts import Parts, PartScorer
from backend.base.errors import CalibrationNeeded, Cancelled, NotEnoughSamples, OnlyImage
from backend.base.keys import ModelKey
from backend.roi_mask import Shape
from backend.samples.collector import Collector
from backend.service.images import ImageFile
from backend.service.jobs import Job
from tests.assurance.conftest import KEY
from tests.parts import good_files, image_file, part


def scored(collector: Collector) -> tuple[PartScorer, Parts]:
    return PartScorer(collector.inspector, KEY), Parts.stored(collector, KEY, most=50, seed=0)


def test_parts_that_the_model_has_not_seen_come_first(collector: Collector) -> None:
    parts = Parts.stored(collector, KEY, most=50, seed=0)
    assert parts.basis == "held_out" and len(parts.chosen) == 12
    assert all(one.number is None and one.mm_per_px == 0.2 for one in parts.chosen)
    assert len(Parts.stored(collector, KEY, most=7, seed=0).chosen) == 7


def test_scores_are_those_that_infer_gives(collector: Collector) -> None:
    scorer, parts = scored(collector)
    fine, scores, errors = scorer.readable(parts.chosen, Job())
    assert (fine, errors) == (parts.chosen, [])
    for one, score in zip(fine, scores, strict=True):
        assert score == collector.inspector.infer(KEY, one.file, mm_per_px=0.2).inspection.score


def test_a_part_of_the_fit_is_scored_without_its_rows(collector: Collector) -> None:
    files = good_files(10)
    parts = Parts.of(collector.inspector, KEY, files, mm_per_px=0.2, most=50)
    assert parts.basis == "leave_one_out" and [one.number for one in parts.chosen] == list(range(10))
    scorer = PartScorer(collector.inspector, KEY)
    _, scores, _ = scorer.readable(parts.chosen, Job())
    plain = [collector.inspector.infer(KEY, file, mm_per_px=0.2).inspection.score for file in files]
    assert min(np.subtract(scores, plain)) > 0


def test_files_that_cannot_be_used_are_named_and_the_others_tried(collector: Collector) -> None:
    files = [*(image_file(part(seed), f"{seed}.png") for seed in range(300, 306)), ImageFile("x.png", lambda: b"none")]
    parts = Parts.of(collector.inspector, KEY, files, mm_per_px=0.2, most=50)
    fine, scores, errors = PartScorer(collector.inspector, KEY).readable(parts.chosen, Job())
    assert (len(fine), len(scores), [err.code for err in errors]) == (6, 6, ["unreadable_image"])


def test_too_few_parts_and_no_threshold_are_said_before_anything_is_tried(collector: Collector) -> None:
    with pytest.raises(NotEnoughSamples):
        Parts.of(collector.inspector, KEY, good_files(4), mm_per_px=0.2, most=50)
    other = ModelKey.of("Master1", "Uncalibrated")
    collector.fit(other, good_files(3), mm_per_px=0.2)
    with pytest.raises(CalibrationNeeded):
        PartScorer(collector.inspector, other)


def test_the_only_image_of_a_memory_cannot_be_left_out(collector: Collector) -> None:
    alone = ModelKey.of("Master1", "Alone")
    collector.fit(alone, good_files(1), mm_per_px=0.2)
    collector.inspector.calibrate(alone, ok_scores=[0.1], mm_per_px=0.2)
    parts = Parts.of(collector.inspector, alone, good_files(5), mm_per_px=0.2, most=50)
    _, _, errors = PartScorer(collector.inspector, alone).readable(parts.chosen, Job())
    assert [type(err) for err in errors] == [OnlyImage]


def test_curves_say_which_share_of_the_defects_is_found_by_their_size(collector: Collector) -> None:
    scorer, parts = scored(collector)
    detection = Detection(scorer, parts.chosen, trials=36, kinds=["bright"])
    curves = detection.curves(Job())
    assert [(c.kind, c.zone, c.grade) for c in curves] == [
        ("bright", zone, grade) for zone in ZONES for grade in GRADES
    ]
    clear = [curve for curve in curves if curve.grade == "clear"]
    for curve in clear:
        assert 30 <= curve.n <= 36 and 0 < curve.n_found < curve.n
        assert curve.smallest and curve.largest and curve.smallest < 0.05 * curve.largest
        assert (np.diff(curve.pod) >= 0).all() and (np.array(curve.lower_bound) <= np.array(curve.pod) + 1e-9).all()
    found = [curve for curve in clear if curve.a90 and curve.a90_95]
    assert found and all((c.a50 or 0) < (c.a90 or 0) <= (c.a90_95 or 0) <= (c.largest or 0) for c in found)
    faint = sum(curve.n_found / curve.n for curve in curves if curve.grade == "faint")
    assert faint < sum(curve.n_found / curve.n for curve in clear)


def test_the_same_seed_gives_the_same_curves_and_another_one_others(collector: Collector) -> None:
    scorer, parts = scored(collector)
    first, again, other = (
        Detection(scorer, parts.chosen, trials=6, seed=seed, kinds=["dark"]).curves(Job()) for seed in (1, 1, 2)
    )
    assert first == again and first != other


def test_few_defects_assure_no_size(collector: Collector) -> None:
    scorer, parts = scored(collector)
    curves = Detection(scorer, parts.chosen, trials=9, kinds=["colour"]).curves(Job())
    assert all(curve.a90_95 is None for curve in curves) and any(curve.a90 for curve in curves)


def test_examples_show_the_defect_cut_out(collector: Collector) -> None:
    scorer, parts = scored(collector)
    (example,) = Detection(scorer, parts.chosen, kinds=["scratch"]).examples(lambda _: 2.0)
    assert example.kind == "scratch" and example.area == pytest.approx(2.0, rel=0.3)
    assert example.picture.shape[0] == example.picture.shape[1] >= 48


def test_it_shows_how_far_it_is_and_stops_when_told(collector: Collector) -> None:
    scorer, parts = scored(collector)
    seen: list[tuple[str, int, int]] = []

    class Watched(Job):
        def report(self, stage: str, done: int, total: int) -> None:
            seen.append((stage, done, total))
            if done == 5:
                self.cancel()

    with pytest.raises(Cancelled):
        Detection(scorer, parts.chosen, trials=6, kinds=["dark"]).curves(Watched())
    assert seen == [("detection", n, 36) for n in range(1, 6)]


def test_the_extent_of_an_area_is_the_length_of_a_scratch_and_the_diameter_of_the_rest() -> None:
    spot, scratch = (Curve(kind, "centre", "clear", 0, 0) for kind in ("dark", "scratch"))
    assert spot.extent(np.pi) == pytest.approx(2.0) and scratch.extent(3.0) == pytest.approx(6.0)
    assert spot.extent(None) is None


def test_a_part_with_a_shape_gets_its_defects_on_the_part(collector: Collector) -> None:
    scorer, _ = scored(collector)
    shape = Shape("circle", {"cx": 48, "cy": 48, "r": 20})
    files = [replace(file, shape=shape) for file in good_files(5)]
    seen = scorer.see(Parts.of(collector.inspector, KEY, files, mm_per_px=0.2, most=5).chosen[0])
    assert seen.mask is not None and 1200 < seen.mask.sum() < 1300 and seen.roi.mask is not None
