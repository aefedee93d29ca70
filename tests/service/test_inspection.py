import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from backend.base.errors import (
    BadImage,
    Cancelled,
    DamagedFile,
    DiskFull,
    ExtractorMismatch,
    FitInProgress,
    MaskEmpty,
    MemoryNotFound,
    NoImages,
    Notice,
    TokenGridMismatch,
)
from backend.base.keys import ModelKey
from backend.extractors.protocol import prepare
from backend.extractors.texture import TextureFeatures
from backend.infer import InferenceEngine, RoiSize, Scoring
from backend.roi_mask import Shape
from backend.service.fitting import ImageFile, prepare_image
from backend.service.inspection import Inspector
from backend.service.queue import Job
from backend.storage import ModelStore
from tests.parts import good_files, image_file, part, quick_settings, tree

KEY = ModelKey.of("Master1", "Pattern")
GOOD, BAD = image_file(part(50)), image_file(part(51, defect=True))


class Other(TextureFeatures):
    """The same numbers under another name: what a different extractor looks like to a memory."""

    def __init__(self, fingerprint: str = "other") -> None:
        super().__init__(112)
        self.fingerprint = fingerprint


def opened(root: Path, extractor: Any = None, **given: Any) -> Inspector:
    inspector = Inspector(quick_settings(root, **given), extractor)
    inspector.start()
    return inspector


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    inspector = opened(tmp_path, coreset_rate=0.5)
    yield inspector
    inspector.close()


def codes(notices: list[Notice]) -> set[str]:
    return {notice.code for notice in notices}


def calibrated(inspector: Inspector, **given: Any) -> Any:
    scores = [inspector.infer(KEY, image_file(part(n)), mm_per_px=0.2).inspection.score for n in range(30, 36)]
    return inspector.calibrate(KEY, **{"ok_scores": scores, "mm_per_px": 0.2, **given})


def test_a_fitted_model_tells_good_from_bad_and_where(inspector: Inspector) -> None:
    fitted = inspector.fit(KEY, good_files(6), mm_per_px=0.2)
    assert fitted.token_shape == (8, 8) and fitted.coreset_size == 192
    assert fitted.metadata["n_embeddings"] == 384 and fitted.metadata["n_images"] == 6
    assert fitted.metadata["coreset_rate_applied"] == 0.5
    assert [image["name"] for image in fitted.metadata["images"]] == [f"good_{n}.png" for n in range(6)]
    calibrated(inspector, area_mm2_thr=0.1)
    good = inspector.infer(KEY, GOOD, mm_per_px=0.2)
    bad = inspector.infer(KEY, BAD, mm_per_px=0.2)
    assert bad.inspection.score > 1.5 * good.inspection.score
    assert bad.is_anomaly is True and bad.threshold is not None
    region = bad.inspection.regions[0]
    x, y, w, h = region.bbox
    assert x < 48 < x + w and y < 50 < y + h
    assert region.area_mm2 == pytest.approx(region.area_px * 0.04)


def test_a_fit_is_the_same_each_time(tmp_path: Path, inspector: Inspector) -> None:
    for _ in range(2):
        inspector.fit(KEY, good_files(), mm_per_px=1)
    first = inspector.store.load_memory(KEY)
    other = opened(tmp_path / "other", coreset_rate=0.5)
    other.fit(KEY, good_files(), mm_per_px=1)
    again = other.store.load_memory(KEY)
    other.close()
    assert (first.emb == again.emb).all() and (first.src == again.src).all()
    assert first.generation != again.generation


def test_every_row_knows_its_image(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(3), mm_per_px=1)
    stored = inspector.store.load_memory(KEY)
    extractor = inspector.host.queue().extractor
    for row, image in list(zip(stored.emb, stored.src, strict=True))[::10]:
        tokens = extractor.extract([prepare(part(int(image)), (8, 8), 14)])[0]
        assert np.abs(tokens - row).sum(axis=1).min() < 1e-5


def test_extraction_and_scoring_are_separate_calls(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    queue, model = inspector.host.queue(), inspector.cache.model(KEY)
    image = prepare_image(BAD, queue.extractor, expected=model.stored.grid, max_megapixels=100)
    tokens = queue.submit(image.pixels).result()
    scored = {}
    for method in ("percentile", "max", "top_mean", "power_mean"):
        engine = InferenceEngine(Scoring(method=method))
        scored[method] = engine.run(engine.token_map(tokens, image.grid, model.memory), RoiSize(*image.size)).score
    assert scored["percentile"] == pytest.approx(inspector.infer(KEY, BAD, mm_per_px=1).inspection.score)
    assert scored["max"] > scored["top_mean"] > scored["percentile"]
    assert scored["max"] > scored["power_mean"] > 0.75 * scored["max"]


@pytest.mark.parametrize("size", [(96, 97), (97, 96), (95, 96), (97, 97), (95, 95), (192, 192)])
def test_an_roi_a_pixel_larger_or_smaller_still_infers(inspector: Inspector, size: tuple[int, int]) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    result = inspector.infer(KEY, image_file(part(9, height=size[0], width=size[1])), mm_per_px=1)
    assert result.token_shape == (8, 8) and result.inspection.heat.shape == size


@pytest.mark.parametrize("size", [(28, 200), (200, 28), (40, 600), (37, 411), (96, 160)])
@pytest.mark.parametrize("change", [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1)])
def test_a_pixel_more_or_less_never_matters_however_long_the_roi(
    tmp_path: Path, size: tuple[int, int], change: tuple[int, int]
) -> None:
    height, width = max(28, size[0] + change[0]), max(28, size[1] + change[1])
    inspector = opened(tmp_path, input_size=448)
    fitted = inspector.fit(KEY, good_files(1, height=size[0], width=size[1]), mm_per_px=1)
    result = inspector.infer(KEY, image_file(part(9, height=height, width=width)), mm_per_px=1)
    assert result.token_shape == fitted.token_shape
    inspector.close()


def test_another_grid_is_refused_with_both_grids(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    with pytest.raises(TokenGridMismatch, match=r"got \(5, 11\), expected \(8, 8\)"):
        inspector.infer(KEY, image_file(part(1, height=96, width=192)), mm_per_px=1)


def test_nothing_is_written_by_a_fit_that_fails(inspector: Inspector, tmp_path: Path) -> None:
    failing: list[tuple[list[ImageFile], type[Exception]]] = [
        ([], NoImages),
        ([*good_files(2), ImageFile.named("x.png", lambda: b"no image")], BadImage),
        ([ImageFile.named("x.png", lambda: b"")], BadImage),
        ([*good_files(2), image_file(part(1, height=96, width=200))], TokenGridMismatch),
    ]
    for files, error in failing:
        with pytest.raises(error):
            inspector.fit(KEY, files, mm_per_px=1)
        assert tree(tmp_path) == {}
    inspector.fit(KEY, good_files(), mm_per_px=1)
    before = tree(tmp_path)
    for files, error in failing:
        with pytest.raises(error):
            inspector.fit(KEY, files, mm_per_px=1)
        assert tree(tmp_path) == before


def test_a_cancelled_fit_changes_nothing(inspector: Inspector, tmp_path: Path) -> None:
    job = Job()
    job.cancel()
    with pytest.raises(Cancelled):
        inspector.fit(KEY, good_files(), mm_per_px=1, job=job)
    assert tree(tmp_path) == {}


def test_a_fit_that_waits_for_another_can_be_cancelled_or_gives_up(inspector: Inspector) -> None:
    job, outcome = Job(), []

    def fit() -> None:
        try:
            inspector.fit(KEY, good_files(), mm_per_px=1, job=job)
        except Cancelled as err:
            outcome.append(err)

    with inspector._fitting:
        thread = threading.Thread(target=fit)
        thread.start()
        job.cancel()
        thread.join(5)
    assert len(outcome) == 1
    impatient = Inspector(inspector.settings.model_copy(update={"fit_wait_s": 0.0}))
    with impatient._fitting, pytest.raises(FitInProgress):
        impatient.fit(KEY, good_files(), mm_per_px=1)
    impatient.close()


def test_a_full_disk_keeps_the_old_model_serving(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    before = inspector.infer(KEY, BAD, mm_per_px=1).inspection.score
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(DiskFull):
            inspector.fit(KEY, good_files(5), mm_per_px=1)
    assert inspector.infer(KEY, BAD, mm_per_px=1).inspection.score == before


def test_a_refit_in_flight_is_seen_whole_or_not_at_all(inspector: Inspector) -> None:
    sets = [good_files(1), [image_file(part(n, defect=True)) for n in range(1)]]
    allowed = set()
    for files in sets:
        inspector.fit(KEY, files, mm_per_px=1)
        allowed.add(inspector.infer(KEY, GOOD, mm_per_px=1).inspection.score)
    assert len(allowed) == 2
    seen, stop = set(), threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(inspector.infer(KEY, GOOD, mm_per_px=1).inspection.score)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(10):
        inspector.fit(KEY, sets[number % 2], mm_per_px=1)
    stop.set()
    for thread in threads:
        thread.join()
    assert seen <= allowed


def test_a_model_fitted_by_another_process_is_noticed(tmp_path: Path, inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(1), mm_per_px=1)
    before = inspector.infer(KEY, BAD, mm_per_px=1).inspection.score
    other = opened(tmp_path, coreset_rate=0.5)
    other.fit(KEY, [BAD], mm_per_px=1)
    other.calibrate(KEY, ok_scores=[0.1], mm_per_px=1)
    other.close()
    result = inspector.infer(KEY, BAD, mm_per_px=1)
    assert result.inspection.score < 0.1 < before and result.threshold == 0.1


def test_requests_that_all_miss_load_the_model_once(
    tmp_path: Path, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    loads, real = [], ModelStore.load_memory

    def counted(store: ModelStore, key: ModelKey) -> Any:
        loads.append(key)
        return real(store, key)

    # Before the start, whose rehearsal may be the one that loads it.
    monkeypatch.setattr(ModelStore, "load_memory", counted)
    fresh = opened(tmp_path)
    scores: list[float] = []
    threads = [
        threading.Thread(target=lambda: scores.append(fresh.infer(KEY, GOOD, mm_per_px=1).inspection.score))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh.close()
    assert len(scores) == 12 and len(set(scores)) == 1 and len(loads) == 1


def test_the_cache_is_bounded_and_a_larger_model_still_serves(tmp_path: Path) -> None:
    inspector = opened(tmp_path, cache_mb=0.001, coreset_rate=0.5)
    inspector.fit(KEY, good_files(), mm_per_px=1)
    assert inspector.infer(KEY, GOOD, mm_per_px=1).inspection.score > 0
    assert inspector.cache.nbytes == 0
    inspector.close()


def test_the_least_recently_used_model_leaves_the_cache(tmp_path: Path) -> None:
    inspector = opened(tmp_path, cache_mb=0.15, coreset_rate=0.5)
    keys = [ModelKey.of("r", f"roi{n}") for n in range(4)]
    for key in keys:
        inspector.fit(key, good_files(), mm_per_px=1)
    assert 0 < inspector.cache.nbytes <= 0.15 * 2**20
    assert all(inspector.infer(key, GOOD, mm_per_px=1).inspection.score > 0 for key in keys)
    inspector.close()


def test_before_a_fit_there_is_no_memory(inspector: Inspector) -> None:
    for call in (
        lambda: inspector.infer(KEY, GOOD, mm_per_px=1),
        lambda: inspector.calibrate(KEY, ok_scores=[0.1], mm_per_px=1),
    ):
        with pytest.raises(MemoryNotFound):
            call()
    assert not inspector.store.folder(KEY).exists()


def test_without_a_calibration_there_is_no_verdict(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    result = inspector.infer(KEY, BAD, mm_per_px=1)
    assert result.threshold is None and result.is_anomaly is None and result.inspection.regions == []
    assert codes(result.warnings) == {"not_calibrated"}


def test_calib_json_is_bound_to_what_it_was_made_for(inspector: Inspector) -> None:
    fitted = inspector.fit(KEY, good_files(), mm_per_px=1)
    inspector.calibrate(KEY, ok_scores=[0.2, 0.3], ng_scores=[0.5], mm_per_px=0.5, area_mm2_thr=2, score_percentile=95)
    written = json.loads((inspector.store.folder(KEY) / "calib.json").read_text("utf-8"))
    assert written["generation"] == fitted.metadata["generation"]
    assert written["scoring"] == {"method": "percentile", "blur_sigma": 1.0, "k": 1}
    assert written["fingerprint"] == fitted.metadata["fingerprint"]
    assert written["threshold"] == pytest.approx((np.percentile([0.2, 0.3], 95) + 0.5) / 2)
    result = inspector.infer(KEY, BAD, mm_per_px=1)
    assert result.params["score_percentile"] == 95 and result.params["area_mm2_thr"] == 2
    assert result.threshold == written["threshold"]


def test_after_a_refit_the_threshold_serves_with_a_warning(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    inspector.calibrate(KEY, ok_scores=[0.2], mm_per_px=1)
    assert codes(inspector.infer(KEY, GOOD, mm_per_px=1).warnings) == set()
    inspector.fit(KEY, good_files(4), mm_per_px=1)
    result = inspector.infer(KEY, GOOD, mm_per_px=1)
    assert result.threshold == 0.2 and codes(result.warnings) == {"calibration_of_former_memory"}


@pytest.mark.parametrize("change", [{"score_method": "max"}, {"blur_sigma": 2.0}, {"patchcore_knn_k": 2}])
def test_another_way_of_scoring_makes_the_threshold_stale(tmp_path: Path, change: dict[str, Any]) -> None:
    first = opened(tmp_path)
    first.fit(KEY, good_files(), mm_per_px=1)
    first.calibrate(KEY, ok_scores=[0.2], mm_per_px=1, score_percentile=90)
    first.close()
    second = opened(tmp_path, **change)
    result = second.infer(KEY, GOOD, mm_per_px=1)
    second.close()
    assert result.threshold is None and result.is_anomaly is None
    assert codes(result.warnings) == {"calibration_stale"}
    assert result.params["score_percentile"] == 99


def test_a_calibration_of_another_extractor_is_stale(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.fit(KEY, good_files(), mm_per_px=1)
    first.calibrate(KEY, ok_scores=[0.2], mm_per_px=1)
    first.close()
    second = opened(tmp_path, Other())
    second.fit(KEY, good_files(), mm_per_px=1)
    result = second.infer(KEY, GOOD, mm_per_px=1)
    second.close()
    assert result.threshold is None and codes(result.warnings) == {"calibration_stale"}


def test_a_memory_of_another_extractor_is_refused_and_kept(tmp_path: Path, inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    before = tree(tmp_path / "models")
    second = opened(tmp_path, Other())
    for call in (
        lambda: second.infer(KEY, GOOD, mm_per_px=1),
        lambda: second.calibrate(KEY, ok_scores=[0.1], mm_per_px=1),
    ):
        with pytest.raises(ExtractorMismatch, match="/fit_ok"):
            call()
    second.close()
    assert tree(tmp_path / "models") == before


def older(inspector: Inspector, dim: int | None = None) -> None:
    """Leave memory.npz and calib.json as the older layout has them."""
    inspector.fit(KEY, good_files(), mm_per_px=1)
    emb = inspector.store.load_memory(KEY).emb[:, :dim]
    folder = inspector.store.folder(KEY)
    for path in folder.iterdir():
        path.unlink()
    np.savez(folder / "memory.npz", emb=emb, token_h=8, token_w=8, metadata='{"coreset_rate": 0.02}')
    (folder / "calib.json").write_text('{"threshold": 0.3, "p99_ok": 0.3, "p5_ng": null, "area_mm2_thr": 0.5}')


def test_artefacts_of_the_older_layout_score_with_warnings(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    now = inspector.infer(KEY, BAD, mm_per_px=1).inspection.score
    older(inspector)
    result = inspector.infer(KEY, BAD, mm_per_px=1)
    assert result.inspection.score == pytest.approx(now)
    assert result.threshold == 0.3 and result.is_anomaly is True
    assert codes(result.warnings) == {"older_memory", "older_calibration"}
    assert result.params["area_mm2_thr"] == 0.5 and result.params["model_version"] == ""
    assert codes(inspector.calibrate(KEY, ok_scores=[0.1] * 20, mm_per_px=1).warnings) == {"older_memory"}
    assert codes(inspector.infer(KEY, BAD, mm_per_px=1).warnings) == {"older_memory"}


def test_an_older_memory_of_another_width_is_refused(inspector: Inspector) -> None:
    older(inspector, dim=50)
    with pytest.raises(ExtractorMismatch, match=r"another extractor \(50 dims\);"):
        inspector.infer(KEY, BAD, mm_per_px=1)


def test_a_damaged_memory_does_not_stop_a_refit(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    (inspector.store.folder(KEY) / "memory.npz").write_bytes(b"junk")
    with pytest.raises(DamagedFile):
        inspector.infer(KEY, GOOD, mm_per_px=1)
    inspector.fit(KEY, good_files(), mm_per_px=1)
    assert inspector.infer(KEY, GOOD, mm_per_px=1).inspection.score > 0


def test_warnings_of_a_calibration(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    assert codes(inspector.calibrate(KEY, ok_scores=[0.1] * 20, mm_per_px=1).warnings) == set()
    few = inspector.calibrate(KEY, ok_scores=[0.4], ng_scores=[0.3], mm_per_px=1, score_percentile=95)
    assert codes(few.warnings) == {"few_ok_scores", "scores_overlap", "percentile_changed"}
    assert few.values["threshold"] == pytest.approx(0.408)


def test_warnings_of_an_inspection(tmp_path: Path) -> None:
    inspector = opened(tmp_path, max_coreset=10, coreset_rate=1)
    assert codes(inspector.fit(KEY, good_files(), mm_per_px=0.2).warnings) == {"coreset_capped"}
    inspector.calibrate(KEY, ok_scores=[0.1], mm_per_px=0.2)
    resized = image_file(part(3, height=96, width=120))
    assert codes(inspector.infer(KEY, resized, mm_per_px=0.3).warnings) == {"roi_resized", "mm_per_px_differs"}
    huge = image_file(np.zeros((3500, 3500, 3), np.uint8))
    result = inspector.infer(KEY, huge, mm_per_px=0.2)
    assert codes(result.warnings) == {"image_downscaled"}
    assert result.inspection.heat.size <= 12_100_000
    inspector.close()


def test_the_mask_is_in_the_senders_pixels(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    away = Shape("rect", {"x": 0, "y": 0, "w": 20, "h": 20})
    score = inspector.infer(KEY, BAD, mm_per_px=1, shape=away).inspection.score
    assert score < 0.7 * inspector.infer(KEY, BAD, mm_per_px=1).inspection.score
    with pytest.raises(MaskEmpty, match="96×96"):
        inspector.infer(KEY, BAD, mm_per_px=1, shape=Shape("circle", {"cx": 500, "cy": 500, "r": 3}))
    huge = image_file(np.zeros((4000, 4000, 3), np.uint8))
    with pytest.raises(MaskEmpty, match="4000×4000"):
        inspector.infer(KEY, huge, mm_per_px=1, shape=Shape("circle", {"cx": 5000, "cy": 500, "r": 3}))


def test_recipes_do_not_borrow_from_each_other(inspector: Inspector) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    night = ModelKey.of("Master1", "Pattern", "night")
    with pytest.raises(MemoryNotFound):
        inspector.infer(night, GOOD, mm_per_px=1)
    inspector.fit(night, good_files(), mm_per_px=1)
    inspector.calibrate(night, ok_scores=[0.2], mm_per_px=1)
    assert inspector.infer(KEY, GOOD, mm_per_px=1).threshold is None


@pytest.mark.parametrize("scale", ["relative", "absolute", "color", "none"])
def test_the_heatmap_has_the_size_of_the_roi(inspector: Inspector, scale: Any) -> None:
    inspector.fit(KEY, good_files(2, height=70, width=100), mm_per_px=1)
    result = inspector.infer(KEY, image_file(part(4, height=70, width=100)), mm_per_px=1, heatmap=scale)
    assert result.heatmap_range[1] > result.heatmap_range[0] >= 0
    if scale == "none":
        assert result.heatmap == b""
    else:
        picture = cv2.imdecode(np.frombuffer(result.heatmap, np.uint8), cv2.IMREAD_UNCHANGED)
        assert picture is not None and picture.shape == ((70, 100, 3) if scale == "color" else (70, 100))


def test_an_empty_calibration_is_refused(inspector: Inspector, tmp_path: Path) -> None:
    inspector.fit(KEY, good_files(), mm_per_px=1)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="finite"):
        inspector.calibrate(KEY, ok_scores=[float("nan")], mm_per_px=1)
    assert tree(tmp_path) == before


def test_file_names_lose_their_folders_and_control_characters() -> None:
    assert ImageFile.named("C:\\parts\\a\x07b.png", bytes).name == "ab.png"
    assert ImageFile.named("../../x.png", bytes).name == "x.png"
    assert ImageFile.named(None, bytes).name == ImageFile.named("", bytes).name == "image"
    assert len(ImageFile.named("x" * 500, bytes).name) == 120
