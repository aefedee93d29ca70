"""Inspections whose tokens stay on a torch device, here the CPU, beside those of the host's own way."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from backend.base.errors import BadImage, ExtractorFault, NotReady
from backend.base.images import decode_image, is_image_name
from backend.base.keys import ModelKey
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import Device, ExtractorOptions
from backend.extractors.resizing import DeviceResizer
from backend.features import build_extractor
from backend.infer import HeatmapScale, heatmap_range
from backend.memory import products
from backend.roi_mask import Shape
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from backend.service.models import ModelCache
from backend.service.queue import InferenceQueue
from backend.service.results import InferResult
from backend.service.warmup import rehearse
from backend.storage import ModelStore
from tests.parts import encoded, part, quick_settings

KEY = ModelKey.of("Master1", "Pattern")
CIRCLE = Shape("circle", {"cx": 80, "cy": 80, "r": 62})
SCALES: tuple[HeatmapScale, ...] = ("relative", "absolute")
Both = Callable[..., tuple[Inspector, Inspector]]


def network(device: Device, **given: Any) -> NetworkFeatures:
    options = ExtractorOptions(**{"model_name": "lite", "input_size": 160, **given}, runtime="torch", device=device)
    found = build_extractor(options)
    assert isinstance(found, NetworkFeatures)
    return found


def on_device(**given: Any) -> NetworkFeatures:
    """One that does on the CPU what it does on a GPU."""
    found = network("cpu", **given)
    found.resizer = DeviceResizer("cpu")
    return found


@pytest.fixture(scope="module")
def extractor() -> NetworkFeatures:
    return on_device()


@pytest.fixture(scope="module")
def host_extractor() -> NetworkFeatures:
    return network("cpu")


def jpeg(seed: int, *, height: int = 160, width: int = 160, shape: Shape | None = None, **kind: Any) -> ImageFile:
    data = encoded(part(seed, height=height, width=width, **kind), "JPEG", quality=95)
    return ImageFile(f"{seed}.jpg", lambda: data, shape)


@pytest.fixture
def both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: NetworkFeatures, host_extractor: NetworkFeatures
) -> Iterator[Both]:
    """Gives two services of one model: the first goes the host's way, the second has its rows where torch computes."""
    with ExitStack() as stack:

        def opened(
            files: list[ImageFile] | None = None,
            extractors: tuple[NetworkFeatures, NetworkFeatures] = (host_extractor, extractor),
            **given: Any,
        ) -> tuple[Inspector, Inspector]:
            settings = quick_settings(tmp_path, **{"coreset_rate": 0.5, "store_samples": False, **given})
            host, device = (Inspector(settings, one) for one in extractors)
            for one in (host, device):
                stack.callback(one.close)
                one.start()
            Fitter(host).fit(KEY, files or [jpeg(seed) for seed in range(3)], mm_per_px=0.1)
            with monkeypatch.context() as there:
                there.setattr(products, "device", lambda: extractors[1].device)
                device.cache.model(KEY)
            return host, device

        yield opened


def compared(services: tuple[Inspector, Inspector], file: ImageFile, **given: Any) -> InferResult:
    """What the device's way says, which is what the host's says up to rounding."""
    ours, theirs = (one.infer(KEY, file, mm_per_px=0.1, **given) for one in services)
    assert ours.inspection.heat.seen is None
    np.testing.assert_array_equal(theirs.appearance.colour, ours.appearance.colour)
    assert theirs.inspection.score == pytest.approx(ours.inspection.score, rel=1e-5)
    assert theirs.inspection.stats == pytest.approx(ours.inspection.stats, rel=1e-5)
    assert theirs.heatmap_range == pytest.approx(ours.heatmap_range, rel=1e-5)
    np.testing.assert_allclose(theirs.inspection.token_map, ours.inspection.token_map, rtol=1e-5, atol=1e-6)
    assert theirs.is_anomaly == ours.is_anomaly
    assert [region.bbox for region in theirs.inspection.regions] == [region.bbox for region in ours.inspection.regions]
    ranges = {ours.heatmap_range, *(heatmap_range(ours.inspection, scale, ours.threshold) for scale in SCALES)}
    for limits in (None, *ranges):
        drawn = [one.inspection.heat.picture(*(limits or one.heatmap_range)) for one in (ours, theirs)]
        assert cv2.absdiff(*drawn).max() <= 1
    assert theirs.inspection.heat.seen is None or theirs.inspection.heat.seen.limits == theirs.heatmap_range
    sizes = [decode_image(one.heatmap).shape for one in (ours, theirs) if one.heatmap]
    assert len(set(sizes)) == (given.get("heatmap") != "none")
    return theirs


@pytest.mark.parametrize(
    ("size", "heatmap"),
    [((160, 160), "relative"), ((301, 420), "absolute"), ((1100, 1300), "color"), ((160, 160), "none")],
)
def test_they_say_the_same_of_parts_of_any_size(both: Both, size: tuple[int, int], heatmap: Any) -> None:
    height, width = size
    services = both([jpeg(seed, height=height, width=width) for seed in range(2)])
    good, bad = jpeg(8, height=height, width=width), jpeg(9, height=height, width=width, defect=True)
    score = compared(services, good, heatmap=heatmap).inspection.score
    services[0].calibrate(KEY, ok_scores=[score, 1.1 * score], mm_per_px=0.1)
    assert compared(services, good, heatmap=heatmap).is_anomaly is False
    found = compared(services, bad, heatmap=heatmap)
    assert found.is_anomaly and found.inspection.regions and found.inspection.heat.seen
    assert bool(found.inspection.heat.seen.picture.size) == (heatmap != "none")


@pytest.mark.parametrize("name", ["cookies", "pills", "coffee"])
def test_they_say_the_same_of_real_parts(both: Both, shared_data: Path, name: str) -> None:
    weights = shared_data / "weights/resnet18_layers1-3.safetensors"
    trained = {"model_name": "resnet18", "weights": str(weights), "input_size": 224}
    train, test = ([file_of(path) for path in chosen(shared_data / name / kind, 6)] for kind in ("train", "test"))
    services = both(train, (network("cpu", **trained), on_device(**trained)), coreset_rate=0.02)
    scores = [compared(services, file).inspection.score for file in test]
    services[0].calibrate(KEY, ok_scores=sorted(scores)[:3], mm_per_px=0.1)
    found = [compared(services, file) for file in (*train, *test)]
    assert all(one.inspection.heat.seen for one in found) and any(one.inspection.regions for one in found)


def chosen(folder: Path, n: int) -> list[Path]:
    """`n` images of a folder and those in it, evenly spaced."""
    found = sorted(path for path in folder.rglob("*") if is_image_name(path.name) and path.is_file())
    return found[:: max(1, len(found) // n)][:n]


def file_of(path: Path) -> ImageFile:
    return ImageFile(path.name, path.read_bytes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("size", [(160, 160), (1100, 1300)])
def test_a_gpu_says_what_the_cpu_says(both: Both, host_extractor: NetworkFeatures, size: tuple[int, int]) -> None:
    height, width = size
    files = [jpeg(seed, height=height, width=width) for seed in range(3)]
    host, device = both(files, (host_extractor, network("cuda", precision="fp32")))
    for file in (files[0], jpeg(9, height=height, width=width, defect=True), replace(files[1], shape=CIRCLE)):
        ours, theirs = (one.infer(KEY, file, mm_per_px=0.1) for one in (host, device))
        assert theirs.inspection.heat.seen
        assert theirs.inspection.score == pytest.approx(ours.inspection.score, rel=1e-3, abs=1e-5)
        np.testing.assert_array_equal(theirs.appearance.colour, ours.appearance.colour)


@pytest.mark.parametrize("shaped_fit", [False, True])
@pytest.mark.parametrize("method", ["percentile", "max", "top_mean", "power_mean", "area"])
def test_they_say_the_same_of_a_shape_however_it_is_scored(both: Both, shaped_fit: bool, method: str) -> None:
    fitted = [jpeg(seed, shape=CIRCLE if shaped_fit else None) for seed in range(3)]
    services = both(fitted, score_method=method, patchcore_knn_k=3, blur_sigma=2.0, coreset_rate=1.0)
    for file in (jpeg(8, shape=CIRCLE), jpeg(9, shape=CIRCLE, defect=True)):
        found = compared(services, file).inspection
        assert found.heat.seen and not found.anomaly_map[0].any() and not found.heat.seen.picture[0].any()


@pytest.mark.parametrize("map_", ["roi", "tokens"])
def test_they_say_the_same_where_tokens_are_scored(both: Both, map_: str) -> None:
    services = both(score_map=map_, score_method="top_mean", score_top_share=0.05)
    assert compared(services, jpeg(9, defect=True, shape=CIRCLE)).inspection.heat.seen


@pytest.mark.parametrize(
    "given",
    [
        {"patchcore_reweight": 5},
        {"patchcore_density_k": 3},
        {"token_blur": 0.7},
        {"patchcore_distance": "cosine"},
        {"patchcore_distance": "mahalanobis"},
        {"foreground_mask": "pca"},
        {"memory_dtype": "float16"},
    ],
)
def test_what_is_more_than_a_plain_distance_goes_the_hosts_way(both: Both, given: dict[str, Any]) -> None:
    services = both(**given)
    assert compared(services, jpeg(9, defect=True)).inspection.heat.seen is None


def test_parts_that_come_together_each_get_what_is_theirs(both: Both) -> None:
    services = both(max_batch=8)
    files = [jpeg(seed, defect=seed % 2 > 0) for seed in range(20, 36)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda file: services[1].infer(KEY, file, mm_per_px=0.1), files))
    for file, found in zip(files, together, strict=True):
        alone = services[0].infer(KEY, file, mm_per_px=0.1).inspection
        assert found.inspection.heat.seen and found.inspection.score == pytest.approx(alone.score, rel=1e-5)
    assert len({found.inspection.score for found in together}) == len(files)


def test_a_map_that_the_devices_memory_does_not_hold_is_made_by_the_host(
    both: Both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    services = both()

    def full(*given: Any, **options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as filled:
        filled.setattr(torch.Tensor, "sort", full)
        assert compared(services, jpeg(9, defect=True)).inspection.heat.seen is None
    assert "too small for an anomaly map" in caplog.text and "the CPU does the work" not in caplog.text
    assert compared(services, jpeg(9, defect=True)).inspection.heat.seen


def test_batches_that_the_devices_memory_does_not_hold_are_halved_and_looked_at(
    both: Both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, extractor: NetworkFeatures
) -> None:
    services, real = both(max_batch=8), extractor.run.forward

    def small(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(pixels)

    monkeypatch.setattr(extractor.run, "forward", small)
    files = [jpeg(seed) for seed in range(20, 30)]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda file: services[1].infer(KEY, file, mm_per_px=0.1), files))
    assert "images at once: trying" in caplog.text
    for file, found in zip(files, together, strict=True):
        alone = services[0].infer(KEY, file, mm_per_px=0.1).inspection
        assert found.inspection.heat.seen and found.inspection.score == pytest.approx(alone.score, rel=1e-5)


def test_rows_that_moved_away_from_the_tokens_are_searched_by_the_host(both: Both) -> None:
    services = both()
    rows = services[1].cache.model(KEY).memory._search.on_device
    assert rows is not None
    held = rows._held
    rows._held = replace(held, rows=held.rows.to("meta"))
    assert rows.distances(torch.zeros(4, held.rows.shape[1]), 1) is None


def test_tokens_that_are_no_numbers_are_an_error_and_no_verdict(
    both: Both, monkeypatch: pytest.MonkeyPatch, extractor: NetworkFeatures, host_extractor: NetworkFeatures
) -> None:
    services, real = both(), extractor.run.forward

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        rows = real(pixels).clone()
        rows[:, 5, 7] = torch.nan
        return rows

    for one in (extractor, host_extractor):
        monkeypatch.setattr(one.run, "forward", broken)
    for service in services:
        with pytest.raises(ExtractorFault):
            service.infer(KEY, jpeg(9), mm_per_px=0.1)


@pytest.mark.parametrize("damage", [lambda d: d[:-300], lambda d: d[: len(d) // 2], lambda d: d[:700], lambda d: b""])
def test_files_that_are_refused_stay_refused(both: Both, damage: Callable[[bytes], bytes]) -> None:
    services, data = both(), damage(jpeg(9).read())
    said = []
    for service in services:
        with pytest.raises(BadImage) as refused:
            service.infer(KEY, ImageFile("9.jpg", lambda: data), mm_per_px=0.1)
        said.append((type(refused.value), str(refused.value)))
    assert said[0] == said[1]


def test_a_service_on_a_cpu_goes_the_hosts_way(both: Both) -> None:
    host, _ = both()
    assert host.infer(KEY, jpeg(9, defect=True), mm_per_px=0.1).inspection.heat.seen is None


def rehearsed(root: Path, monkeypatch: pytest.MonkeyPatch) -> NetworkFeatures:
    """An extractor after the rehearsal of a service whose memories are where torch computes."""
    extractor = on_device()
    monkeypatch.setattr(products, "device", lambda: extractor.device)
    with ExitStack() as stack:
        inspector = Inspector(quick_settings(root), extractor)
        stack.callback(inspector.close)
        inspector.start()
        rehearse(inspector.host.queue(), inspector.cache)
    return extractor


def test_a_device_that_agrees_with_the_host_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rehearsed(tmp_path, monkeypatch)
    assert found.looks and found.resizer is not None


def farther(distances: torch.Tensor) -> torch.Tensor:
    return distances * 1.01


def broken(distances: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel image is available for execution on the device")


@pytest.mark.parametrize("fault", [farther, broken])
def test_a_device_that_says_otherwise_or_cannot_say_is_not_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    own = products.DeviceRows.distances

    def distances(rows: products.DeviceRows, q: torch.Tensor, k: int) -> Any:
        found = own(rows, q, k)
        return None if found is None else (fault(found[0]), found[1])

    monkeypatch.setattr(products.DeviceRows, "distances", distances)
    found = rehearsed(tmp_path, monkeypatch)
    assert not found.looks and found.resizer is None
    assert "the CPU makes all of them" in caplog.text


def test_tokens_of_another_forward_pass_are_not_held_against_the_devices_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = NetworkFeatures.extract

    def rounded_otherwise(extractor: NetworkFeatures, images: Any) -> Any:
        rows = own(extractor, images)
        return rows + np.random.default_rng(0).normal(0, 1e-3, rows.shape).astype(np.float32)

    monkeypatch.setattr(NetworkFeatures, "extract", rounded_otherwise)
    found = rehearsed(tmp_path, monkeypatch)
    assert found.looks and found.resizer is not None


def test_a_service_that_closes_during_the_rehearsal_says_nothing_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = on_device()
    queue = InferenceQueue(found)
    monkeypatch.setattr(products, "device", lambda: found.device)
    own = DeviceResizer.__call__

    def closing(resizer: DeviceResizer, *given: Any) -> Any:
        queue.close()
        return own(resizer, *given)

    monkeypatch.setattr(DeviceResizer, "__call__", closing)
    with pytest.raises(NotReady):
        rehearse(queue, ModelCache(ModelStore(tmp_path), cache_mb=64, knn_backend="auto"))
    assert found.looks and found.resizer is not None


def test_a_device_that_resizes_otherwise_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = DeviceResizer.__call__

    def brighter(resizer: DeviceResizer, *given: Any) -> Any:
        found = own(resizer, *given)
        return None if found is None else found | 1

    monkeypatch.setattr(DeviceResizer, "__call__", brighter)
    assert rehearsed(tmp_path, monkeypatch).resizer is None
