"""PART_ALONE: models whose extractor sees the part alone, in fits and in whatever compares with them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch, which a station's installation leaves out")

from backend.api.catalogue import sentence
from backend.assurance.parts import GoodPart, PartScorer
from backend.base.errors import ExtractorMismatch, FitInProgress, MemoryNotFound, PartNotAlone, ShapeNeeded
from backend.base.images import decode_image
from backend.base.keys import ModelKey
from backend.evaluation.runner import RememberingExtractor
from backend.extractors.neighbourhood import Wrapped
from backend.extractors.protocol import RGB, Extractor, ExtractorOptions, Rows, Runtime
from backend.extractors.texture import TextureFeatures
from backend.extractors.weights import write_random_weights
from backend.features import DinoV2Features
from backend.infer import Criteria
from backend.roi_mask import Shape
from backend.samples.collector import Collector
from backend.samples.nearest import nearest_good
from backend.samples.scoring import Sample, SampleScorer
from backend.samples.store import Draft
from backend.service.fitting import FitOptions, embed
from backend.service.images import ImageFile
from backend.service.jobs import Job
from backend.service.packing import pack, read_packed
from backend.service.pipeline import Pipeline
from backend.service.queue import InferenceQueue
from backend.service.warmup import rehearse
from tests.parts import good_files, image_file, part, part_file, quick_settings

openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed (pip install .[openvino])"
)
KEY, OTHER = ModelKey.of("Master1", "Pattern"), ModelKey.of("Master1", "Other")
CIRCLE = Shape("circle", {"cx": 48, "cy": 48, "r": 22})
NEAR = Shape("circle", {"cx": 49, "cy": 48, "r": 22})
RING = Shape("annulus", {"cx": 48, "cy": 48, "r": 46, "r_inner": 30})


def shaped(files: Sequence[ImageFile], *shapes: Shape | None) -> list[ImageFile]:
    return [replace(file, shape=shapes[n % len(shapes)]) for n, file in enumerate(files)]


GOOD = good_files(6)
BAD = part_file(51, defect=True)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> DinoV2Features:
    name = "vit_tiny_patch16_224"
    path = write_random_weights(name, tmp_path_factory.mktemp("tiny") / "w.safetensors", np.random.default_rng(0))
    return DinoV2Features(
        ExtractorOptions(model_name=name, weights=str(path), input_size=96, device="cpu", blocks=(0, 1))
    )


class Whole(Wrapped):
    """A runtime of the same network that leaves nothing out."""

    def __init__(self, inner: Extractor) -> None:
        super().__init__(inner, "")
        self.leaves_out = False

    def extract(self, images: Sequence[RGB]) -> Rows:
        return self.inner.extract(images)


Opened = Callable[..., Collector]


@pytest.fixture
def opened(tmp_path: Path, vit: DinoV2Features) -> Iterator[Opened]:
    """Services that share one folder of models and samples."""
    with ExitStack() as stack:

        def begin(extractor: Extractor | None = None, **given: Any) -> Collector:
            settings = quick_settings(tmp_path, **{"coreset_rate": 0.5, "part_alone": True, **given})
            own = Collector(settings, extractor or vit)
            own.start()
            stack.callback(own.close)
            return own

        yield begin


def score(service: Collector, file: ImageFile = BAD, key: ModelKey = KEY) -> float:
    return service.inspector.infer(key, file, mm_per_px=1.0).inspection.score


def said(service: Collector, file: ImageFile) -> set[str]:
    return {notice.code for notice in service.inspector.infer(KEY, file, mm_per_px=1.0).warnings}


def fit(service: Collector, files: Sequence[ImageFile], key: ModelKey = KEY, **given: Any) -> Any:
    return service.fit(key, list(files), mm_per_px=1.0, **given)


def metadata(service: Collector, key: ModelKey = KEY) -> dict[str, Any]:
    return service.inspector.cache.model(key).stored.metadata


def repainted(file: ImageFile) -> ImageFile:
    """The image with other pixels wherever they are more than a cell away from CIRCLE."""
    image = decode_image(file.read())
    y, x = np.mgrid[:96, :96]
    image[np.hypot(y - 48, x - 48) > 22 + 16 * 2**0.5] = (10, 200, 90)
    return image_file(image, "repainted.png")


def test_what_lies_outside_the_shape_never_changes_a_score(opened: Opened) -> None:
    service = opened()
    fit(service, shaped(GOOD, CIRCLE))
    one, other = (service.inspector.infer(KEY, file, mm_per_px=1.0) for file in (BAD, repainted(BAD)))
    assert one.inspection.score == other.inspection.score > 0
    np.testing.assert_array_equal(one.inspection.anomaly_map, other.inspection.anomaly_map)
    whole = opened(part_alone=False)
    fit(whole, shaped(GOOD, CIRCLE))
    assert score(whole) != score(whole, repainted(BAD))


def test_a_memory_remembers_it_and_is_followed_whatever_the_setting_says(opened: Opened, vit: DinoV2Features) -> None:
    service = opened()
    fit(service, shaped(GOOD, CIRCLE))
    assert metadata(service)["part_alone"] is True
    assert metadata(service)["fingerprint"] == vit.fingerprint_of(part_alone=True)
    later = opened(part_alone=False)
    assert score(later) == score(service)
    fit(later, shaped(GOOD, CIRCLE), OTHER)
    assert metadata(later, OTHER)["part_alone"] is False and metadata(later, OTHER)["fingerprint"] == vit.fingerprint
    assert score(later, key=OTHER) == score(opened(), key=OTHER) != score(later)


@pytest.mark.parametrize("shapes", [(None,), (CIRCLE, None)])
def test_a_fit_without_a_shape_for_every_image_is_what_it_was(opened: Opened, shapes: tuple[Shape | None, ...]) -> None:
    without, service = opened(part_alone=False), opened()
    fit(without, shaped(GOOD, *shapes), OTHER)
    fit(service, shaped(GOOD, *shapes))
    assert metadata(service)["part_alone"] is False
    assert metadata(service)["fingerprint"] == metadata(without, OTHER)["fingerprint"]
    assert score(service) == score(without, key=OTHER)


def test_the_images_of_a_fit_are_seen_alike_in_fits_and_inspections(opened: Opened) -> None:
    service, rng = opened(), np.random.default_rng(0)
    large = rng.integers(0, 256, (1300, 1310, 3)).astype(np.uint8)  # a mask of more than a megapixel is made smaller
    shape = Shape("circle", {"cx": 655.5, "cy": 650, "r": 437.3})
    files = shaped([image_file(large, "large.png"), image_file(large[::-1], "turned.png")], shape)
    queue, options = service.inspector.host.queue(), FitOptions.of(service.settings)
    embeddings = embed(files, queue, Job(), options)
    fit(service, files)
    pipeline = Pipeline(queue, service.inspector.cache.model(KEY), Criteria())
    ends = np.cumsum(embeddings.counts)
    for file, end, count in zip(files, ends, embeddings.counts, strict=True):
        image, roi = pipeline.prepare(file, 1.0)
        assert roi.inside is not None and np.count_nonzero(roi.inside) == count
        tokens = pipeline.submit(image.pixels, roi).result()[roi.inside.ravel()]
        np.testing.assert_allclose(tokens, embeddings.emb[end - count : end], atol=1e-6)


def test_scores_of_the_fits_own_images_are_those_of_parts_that_it_never_saw(opened: Opened) -> None:
    service = opened(coreset_rate=1.0)
    fit(service, shaped(GOOD, CIRCLE))
    names = {digest: name for name, digest in service.samples.digests(KEY, "ok").items()}
    scorer = SampleScorer(service.inspector, service.samples, KEY, leave_out=True)
    for file in GOOD:
        fit(service, shaped([other for other in GOOD if other is not file], CIRCLE), OTHER)
        (stored,) = scorer.run([Sample("ok", names[hashlib.sha256(file.read()).hexdigest()])], Job())
        assert stored.inspection and stored.left_out
        assert stored.inspection.score == pytest.approx(score(service, file, OTHER), abs=1e-5)


def test_what_joins_a_memory_is_seen_as_its_fit_was(opened: Opened) -> None:
    fit(opened(), shaped(GOOD[:3], CIRCLE))
    later = opened(part_alone=False)
    fit(later, GOOD[3:], memory_fit=True)  # without shapes: they have that of the model
    assert metadata(later)["part_alone"] is True
    fit(opened(), shaped(GOOD[:3], CIRCLE), OTHER)
    fit(opened(), shaped(GOOD[3:], CIRCLE), OTHER, memory_fit=True)
    assert score(later) == score(later, key=OTHER)
    fit(later, shaped(GOOD[:3], CIRCLE))
    fit(opened(), shaped(GOOD[3:], CIRCLE), memory_fit=True)
    assert metadata(later)["part_alone"] is False


def test_a_model_of_several_shapes_asks_for_that_of_each_image(opened: Opened) -> None:
    service = opened()
    fit(service, shaped(GOOD, CIRCLE, RING))
    assert metadata(service)["part_alone"] is True
    assert score(service, replace(BAD, shape=RING)) > 0
    generation = metadata(service)["generation"]
    with pytest.raises(ShapeNeeded, match=BAD.name):
        score(service)
    with pytest.raises(ShapeNeeded, match=BAD.name):
        fit(service, [*shaped(good_files(8)[6:], CIRCLE), BAD], memory_fit=True)
    assert metadata(service)["generation"] == generation


def test_a_shape_that_is_not_the_fits_is_told_of(opened: Opened) -> None:
    service = opened()
    fit(service, shaped(GOOD, CIRCLE))
    assert "part_differs" in said(service, replace(BAD, shape=RING))
    for same in (BAD, replace(BAD, shape=CIRCLE), replace(BAD, shape=NEAR)):
        assert "part_differs" not in said(service, same)
    whole = opened(part_alone=False)
    fit(whole, shaped(GOOD, CIRCLE))
    assert "part_differs" not in said(whole, replace(BAD, shape=RING))


def test_an_extractor_that_cannot_refuses_the_fit_and_writes_nothing(opened: Opened) -> None:
    service = opened(TextureFeatures(112))
    with pytest.raises(PartNotAlone) as refused:
        fit(service, shaped(GOOD, CIRCLE))
    with pytest.raises(MemoryNotFound):
        metadata(service)
    assert "PART_ALONE=0" in sentence(refused.value, "en") and "PART_ALONE=0" in sentence(refused.value, "es")
    assert "a rebuild does not" in sentence(refused.value, "en") and "reconstruir no" in sentence(refused.value, "es")
    fit(service, GOOD)
    assert metadata(service)["part_alone"] is False


def test_a_model_is_not_inspected_by_a_runtime_that_leaves_nothing_out(opened: Opened, vit: DinoV2Features) -> None:
    fit(opened(), shaped(GOOD, CIRCLE))
    whole = opened(Whole(vit), part_alone=False)
    with pytest.raises(PartNotAlone):
        score(whole)
    with pytest.raises(PartNotAlone):
        fit(whole, shaped(good_files(8)[6:], CIRCLE), memory_fit=True)
    assert whole.state(KEY)["memory_usable"] is False and opened().state(KEY)["memory_usable"] is True


def test_a_release_that_knows_nothing_of_it_refuses_the_model(opened: Opened, vit: DinoV2Features) -> None:
    service = opened()
    fit(service, shaped(GOOD, CIRCLE))
    model = service.inspector.cache.model(KEY)
    metadata = {name: value for name, value in model.stored.metadata.items() if name != "part_alone"}
    service.inspector.store.save_memory(KEY, replace(model.stored, metadata=metadata))
    with pytest.raises(ExtractorMismatch):
        score(service)


def test_a_threshold_of_the_whole_image_does_not_serve_the_part_alone(opened: Opened) -> None:
    service = opened(part_alone=False)
    fit(service, shaped(GOOD, CIRCLE))
    service.inspector.calibrate(KEY, ok_scores=[0.1, 0.2, 0.3], mm_per_px=1.0)
    assert service.inspector.infer(KEY, BAD, mm_per_px=1.0).threshold is not None
    alone = opened()
    fit(alone, shaped(GOOD, CIRCLE))
    result = alone.inspector.infer(KEY, BAD, mm_per_px=1.0)
    assert result.threshold is None and "calibration_stale" in {notice.code for notice in result.warnings}
    alone.inspector.calibrate(KEY, ok_scores=[0.1, 0.2, 0.3], mm_per_px=1.0)
    assert alone.inspector.infer(KEY, BAD, mm_per_px=1.0).threshold is not None


def test_a_model_that_is_made_again_is_the_same(opened: Opened) -> None:
    service = opened()
    fit(service, shaped(GOOD[:4], CIRCLE))
    fit(service, shaped(GOOD[4:], CIRCLE), memory_fit=True)
    before = score(service)
    later = opened(part_alone=False)
    assert later.rebuilder.foreign() == []
    later.rebuilder.rebuild(KEY, replace=True)
    assert metadata(later)["part_alone"] is True and score(later) == pytest.approx(before, abs=1e-6)


def test_images_that_joined_without_a_shape_are_made_again_with_that_of_the_model(opened: Opened) -> None:
    service = opened()
    fit(service, shaped(GOOD[:3], CIRCLE))
    for file in GOOD[3:]:
        service.samples.add(KEY, "ok", [Draft(file.name, file.read, "upload", 1.0)])
        fit(service, [], memory_fit=True, use_dataset=True)
    before = score(service)
    service.rebuilder.rebuild(KEY, replace=True)
    assert metadata(service)["shape"] == CIRCLE.as_dict() and metadata(service)["part_alone"] is True
    assert score(service) == pytest.approx(before, abs=1e-6)


def test_a_model_whose_images_lost_their_shape_is_not_made_again_in_another_way(opened: Opened) -> None:
    service = opened()
    fit(service, shaped(GOOD, CIRCLE))
    for name in service.samples.names(KEY, "ok"):
        path = (service.samples.folder(KEY, "ok") / name).with_suffix(".json")
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "shape": None}), "utf-8")
    generation = metadata(service)["generation"]
    with pytest.raises(ShapeNeeded):
        service.rebuilder.rebuild(KEY, replace=True)
    assert metadata(service)["generation"] == generation


@pytest.mark.parametrize("shape", [CIRCLE, None])
def test_samples_that_were_never_fitted_become_the_model_that_a_fit_makes(opened: Opened, shape: Shape | None) -> None:
    service = opened()
    given = None if shape is None else shape.as_dict()
    service.samples.add(KEY, "ok", [Draft(file.name, file.read, "upload", 1.0, given) for file in GOOD])
    service.rebuilder.rebuild(KEY)
    assert metadata(service)["part_alone"] is (shape is not None)


@pytest.mark.parametrize("before", [0, 2])
def test_a_growth_gives_way_to_a_model_that_was_seen_otherwise_meanwhile(opened: Opened, before: int) -> None:
    slow, other = opened(part_alone=False), opened()
    if before:
        fit(slow, shaped(GOOD[:before], CIRCLE))
    reads: list[bool] = []

    def meanwhile() -> bytes:
        reads.append(True)
        if len(reads) == 2:  # the first read compares it with what is known, the next one embeds it
            fit(other, shaped(GOOD[2:4], CIRCLE))
        return GOOD[5].read()

    with pytest.raises(FitInProgress):
        slow.fitter.grow(KEY, shaped([ImageFile("last.png", meanwhile)], CIRCLE), mm_per_px=1.0, keep=False)
    assert metadata(slow)["part_alone"] is True and metadata(slow)["n_images"] == 2


def test_a_box_that_reaches_beyond_the_part_is_compared_inside_it(opened: Opened) -> None:
    service = opened(coreset_rate=1.0)
    fit(service, shaped(GOOD, CIRCLE))
    pipeline = Pipeline(service.inspector.host.queue(), service.inspector.cache.model(KEY), Criteria())
    image, roi = pipeline.prepare(BAD, 1.0)
    apart, inside = pipeline.judge(pipeline.submit(image.pixels, roi).result(), roi).token_map, roi.inside
    assert inside is not None
    for box, nearest in (((0, 0, 96, 96), inside), ((0, 0, 96, 40), inside[:3]), ((92, 40, 2, 2), inside[2:3, 4:5])):
        found, _ = nearest_good(service, KEY, BAD, box, mm_per_px=1.0, job=Job())
        rows, columns = nearest.shape
        part = apart[:rows, :columns] if rows > 1 else apart[2:3, 4:5]
        assert found and nearest.any() and found.distance == pytest.approx(part[nearest].max(), abs=1e-5)


def test_good_parts_without_a_shape_are_not_scored_whole(opened: Opened) -> None:
    service = opened()
    fit(service, shaped(GOOD, CIRCLE, RING))
    service.inspector.calibrate(KEY, ok_scores=[0.1, 0.2, 0.3], mm_per_px=1.0)
    parts = [GoodPart(file, 1.0) for file in (BAD, replace(BAD, shape=RING))]
    fine, _, errors = PartScorer(service.inspector, KEY).readable(parts, Job())
    assert fine == parts[1:] and [type(error) for error in errors] == [ShapeNeeded]


def test_a_shape_of_the_model_that_lies_beside_the_image_differs(tmp_path: Path, vit: DinoV2Features) -> None:
    class Square(Wrapped):
        def extract(self, images: Sequence[RGB]) -> Rows:
            return self.inner.extract(images)

        def extract_part(self, images: Sequence[RGB], inside: Any) -> Rows:
            return self.inner.extract_part(images, inside)

    square = Square(vit, "")
    square.input_aspect = "square"
    service = Collector(quick_settings(tmp_path, part_alone=True, input_aspect="square"), square)
    service.start()
    fit(service, shaped(GOOD, Shape("rect", {"x": 72, "y": 40, "w": 20, "h": 20})))
    narrow = replace(part_file(9, width=28), shape=Shape("circle", {"cx": 14, "cy": 48, "r": 10}))
    assert "part_differs" in said(service, narrow)
    service.close()


def test_the_rehearsal_runs_what_models_of_the_part_alone_need(opened: Opened, vit: DinoV2Features) -> None:
    seen: list[int] = []

    class Watched(Wrapped):
        def extract(self, images: Sequence[RGB]) -> Rows:
            return self.inner.extract(images)

        def extract_part(self, images: Sequence[RGB], inside: Any) -> Rows:
            seen.append(int(inside.sum()))
            return self.inner.extract_part(images, inside)

    service = opened()
    queue = InferenceQueue(Watched(vit, ""))
    rehearse(queue, service.inspector.cache)
    assert not seen
    fit(service, shaped(GOOD, CIRCLE))
    rehearse(queue, service.inspector.cache)
    queue.close()
    assert set(seen) == {36}


def test_a_packed_model_of_the_part_alone_says_so(opened: Opened) -> None:
    service = opened()
    fit(service, shaped(GOOD, CIRCLE))
    packed = read_packed(pack(service.inspector.store, KEY, settings=service.settings), "model.bdim")
    assert packed.memory.part_alone and packed.memory.fingerprint == metadata(service)["fingerprint"]


def test_images_of_other_parts_are_not_embedded_in_one_batch(vit: DinoV2Features) -> None:
    seen: list[tuple[int, int]] = []

    class Watched(RememberingExtractor):
        def extract(self, images: Sequence[RGB]) -> Rows:
            seen.append((len(images), 36))
            return self.inner.extract(images)

        def extract_part(self, images: Sequence[RGB], inside: Any) -> Rows:
            seen.append((len(images), int(inside.sum())))
            return self.inner.extract_part(images, inside)

    inside = {kind: np.zeros((6, 6), bool) for kind in "ab"}
    inside["a"][1:4, 1:4], inside["b"][2:4, :] = True, True
    images = [np.ascontiguousarray(part(seed)) for seed in range(8)]
    kinds = [None, "a", "a", "b", "b", "a", None, None]
    queue = InferenceQueue(Watched(vit, Path()), max_batch=4)
    with queue._ready:  # nothing is taken before all are there
        asked = [(None if kind is None else inside[kind].copy()) for kind in kinds]
        futures = [queue.submit(image, inside=own) for image, own in zip(images, asked, strict=True)]
    rows = [future.result() for future in futures]
    queue.close()
    assert seen[-5:] == [(1, 36), (2, 9), (2, 12), (1, 9), (2, 36)]
    for image, own, found in zip(images, asked, rows, strict=True):
        wanted = vit.extract([image]) if own is None else vit.extract_part([image], own)
        np.testing.assert_allclose(found, wanted[0], atol=1e-6)


def test_fits_of_images_with_shapes_of_their_own_are_those_of_each_alone(opened: Opened) -> None:
    one_by_one, together = opened(max_batch=1), opened(max_batch=8)
    fit(one_by_one, shaped(GOOD, CIRCLE, RING), OTHER)
    fit(together, shaped(GOOD, CIRCLE, RING))
    bad = replace(BAD, shape=CIRCLE)
    assert score(together, bad) == pytest.approx(score(one_by_one, bad, OTHER), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", pytest.param("openvino", marks=openvino)])
def test_real_pills_are_told_apart_whatever_lies_beside_them(
    tmp_path: Path, shared_data: Path, runtime: Runtime
) -> None:
    pills, weights = shared_data / "pills", shared_data / "weights" / "vit_tiny_patch16_224.safetensors"
    given = {"model_name": "vit_tiny_patch16_224", "weights": str(weights), "runtime": runtime, "precision": "fp32"}
    circle = Shape("circle", {"cx": 112, "cy": 112, "r": 88})

    def files(kind: str, n: int) -> list[ImageFile]:
        paths = sorted((pills / kind).iterdir())[:n]
        return [ImageFile.named(path.name, path.read_bytes, circle) for path in paths]

    def elsewhere(file: ImageFile) -> ImageFile:
        image = decode_image(file.read())
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        image[np.hypot(y - 112, x - 112) > 88 + 17 * 2**0.5] = 0  # a cell has 16 pixels a side
        return replace(image_file(image, file.name), shape=circle)

    service = Collector(quick_settings(tmp_path, input_size=224, part_alone=True, coreset_rate=0.05, **given))
    service.start()
    fit(service, files("train/good", 20))
    good, bad = files("test/good", 5), files("test/chip", 5)
    scores = [[score(service, file) for file in of_kind] for of_kind in (good, bad)]
    assert np.mean(scores[0]) < np.mean(scores[1])
    assert [score(service, elsewhere(file)) for file in (*good, *bad)] == [*scores[0], *scores[1]]
    assert service.inspector.health()["runtime"] == runtime
    service.close()
