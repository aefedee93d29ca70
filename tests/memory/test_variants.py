"""Options of the extractor and the memory, each against what it is defined as."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from scipy.spatial.distance import mahalanobis

from backend.app import create_app
from backend.base.config import Settings, load_settings
from backend.base.errors import InvalidSettings
from backend.base.images import encode_png
from backend.base.keys import ModelKey
from backend.extractors.neighbourhood import Neighbourhood, SmallerEdge, Tiled, spans
from backend.extractors.texture import TextureFeatures
from backend.features import RGB, build_extractor, grid_of, token_grid
from backend.memory.approximate import GraphRows
from backend.memory.foreground import Foreground
from backend.memory.variants import Variant, build_memory, stored_memory, whitening
from backend.patchcore import PatchCoreMemory, l2_normalize
from backend.roi_mask import Shape, build_mask, nearest_inside, token_mask
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector

KEY = ModelKey.of("options", "part")
Array = np.ndarray


class Means:
    """The mean colour of each cell and a constant; unit rows."""

    name, dim, patch, runtime, device, fingerprint = "means", 4, 8, "test", "cpu", "means"
    input_size = 64

    def extract(self, images: Sequence[RGB]) -> Array:
        cells = [image.reshape(image.shape[0] // 8, 8, -1, 8, 3).mean((1, 3)).reshape(-1, 3) / 255 for image in images]
        return np.stack([l2_normalize(np.hstack([c, np.ones((len(c), 1))]).astype(np.float32)) for c in cells])


@pytest.fixture
def image(rng: np.random.Generator) -> RGB:
    return cv2.GaussianBlur(rng.integers(0, 255, (48, 72, 3), dtype=np.uint8), (0, 0), 4).astype(np.uint8)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 1), (3, 2), (1, 3)])
def test_a_token_is_the_mean_of_its_neighbourhood(image: RGB, size: int, stride: int) -> None:
    own = Neighbourhood(Means(), size, stride)
    maps = Means().extract([image])[0].reshape(6, 9, 4)
    slow = []
    for y in range(stride // 2, 6, stride):
        for x in range(stride // 2, 9, stride):
            h = size // 2
            around = maps[max(0, y - h) : y + h + 1, max(0, x - h) : x + h + 1].reshape(-1, 4).mean(axis=0)
            slow.append(around / np.linalg.norm(around))
    np.testing.assert_allclose(own.extract([image])[0], slow, atol=1e-6)
    assert own.patch == 8 * stride
    assert own.fingerprint not in {"means", Neighbourhood(Means(), 7, stride).fingerprint}


def test_resnet_levels_are_averaged_before_they_are_joined(tmp_path: Path, rng: np.random.Generator) -> None:
    import timm
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional

    torch.manual_seed(1)
    model: Any = timm.create_model("resnet18.tv_in1k", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    own = build_extractor("resnet18", weights=str(tmp_path), device="cpu", threads=1, around=(3, 2), offset=0.7)
    pixels = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    taken: dict[str, torch.Tensor] = {}
    for name in ("layer2", "layer3"):
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: taken.update({name: out}))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        model(torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]).float())
    layer2, layer3 = (_slow_average(taken[name][0].numpy()) for name in ("layer2", "layer3"))
    layer2 = layer2[:, ::2, ::2]
    joined = np.concatenate(
        [layer2, functional.interpolate(torch.from_numpy(layer3)[None], layer2.shape[1:], mode="bilinear")[0].numpy()]
    )
    joined = joined.reshape(384, -1).T + np.where(np.arange(384) % 2, -0.7, 0.7)
    expected = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    assert own.patch == 16
    np.testing.assert_allclose(own.extract([pixels])[0], expected, atol=1e-5)


def _slow_average(level: Array) -> Array:
    """3×3 sums over nine, with nothing beyond the border."""
    out = np.zeros_like(level)
    for y in range(level.shape[1]):
        for x in range(level.shape[2]):
            out[:, y, x] = level[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].sum(axis=(1, 2)) / 9
    return out


def test_tiles_see_the_whole_roi_on_a_finer_grid() -> None:
    own = Tiled(Means(), 2, 0.25)
    assert own.input_size == 112
    rng = np.random.default_rng(2)
    image = rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_allclose(own.extract([image]), Means().extract([image]), atol=1e-6)


@pytest.mark.parametrize(("length", "tiles", "overlap"), [(14, 2, 0.25), (15, 3, 0.5), (7, 4, 0.0), (3, 3, 0.9)])
def test_tiles_cover_everything_and_are_of_one_size(length: int, tiles: int, overlap: float) -> None:
    found = list(spans(length, tiles, overlap))
    assert {n for span in found for n in range(span.start, span.stop)} == set(range(length))
    assert len({span.stop - span.start for span in found}) == 1


def test_the_smaller_edge_gets_the_input_size() -> None:
    own = SmallerEdge(TextureFeatures(448))
    assert grid_of(own, 300, 600) == (32, 64)
    assert grid_of(own, 448, 448) == (32, 32)
    assert grid_of(TextureFeatures(448), 300, 600) == token_grid(300, 600, input_size=448, patch=14)
    assert own.fingerprint == TextureFeatures(448).fingerprint


def test_an_even_neighbourhood_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="PATCHCORE_PATCH_SIZE"):
        load_settings(patchcore_patch_size=4)


@pytest.fixture
def rows(rng: np.random.Generator) -> Array:
    mixed = rng.normal(size=(200, 6)) * (3, 1, 1, 0.3, 0.1, 0.1) + (4, 0, 2, 0, 1, 0)
    return l2_normalize(mixed.astype(np.float32))


def memory(rows: Array, variant: Variant, rate: float = 1.0, **more: Any) -> PatchCoreMemory:
    return build_memory(rows, variant, (1, 1), coreset_rate=rate, limit=999, rng=np.random.default_rng(0), **more)


def test_whitened_distances_are_mahalanobis_distances_times_one_factor(rows: Array, rng: np.random.Generator) -> None:
    own = memory(rows, Variant(distance="mahalanobis"))
    covariance = np.cov(rows.T.astype(np.float64))
    inverse = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / 6 * np.eye(6))
    queries = l2_normalize(rng.normal(size=(20, 6)).astype(np.float32))
    slow = np.array([min(mahalanobis(q, row, inverse) for row in rows) for q in queries])
    ratio = own.distances(queries) / slow
    assert ratio.max() / ratio.min() < 1.001
    assert 0.1 < ratio.mean() < 1


def test_whitening_keeps_how_much_good_parts_vary(rows: Array) -> None:
    spread = rows.var(axis=0).sum()
    assert (rows @ whitening(rows)).var(axis=0).sum() == pytest.approx(spread, rel=1e-3)


def test_cosine_distance_is_one_minus_the_cosine(rows: Array, rng: np.random.Generator) -> None:
    queries = l2_normalize(rng.normal(size=(20, 6)).astype(np.float32))
    cosines = np.sort(1 - queries @ rows.T, axis=1)
    for k in (1, 3):
        found = memory(rows, Variant(distance="cosine")).distances(queries, k)
        np.testing.assert_allclose(found, cosines[:, :k].mean(axis=1), atol=1e-5)


def test_separate_memories_average_the_distances_of_the_blocks(rows: Array, rng: np.random.Generator) -> None:
    own = memory(rows, Variant(widths=(2, 4)))
    queries = l2_normalize(rng.normal(size=(15, 6)).astype(np.float32))
    slow = []
    for q in queries:
        parts = []
        for columns in (slice(0, 2), slice(2, 6)):
            unit = q[columns] / np.linalg.norm(q[columns])
            parts.append(min(np.linalg.norm(unit - r[columns] / np.linalg.norm(r[columns])) for r in rows))
        slow.append(np.mean(parts))
    np.testing.assert_allclose(own.distances(queries), slow, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(own.emb, axis=1), 1, atol=1e-6)


VARIANTS = [
    Variant(distance="mahalanobis"),
    Variant(distance="cosine", widths=(3, 3)),
    Variant(distance="mahalanobis", widths=(2, 4)),
    Variant(foreground=True),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_memory_measures_the_same_after_it_was_stored(rows: Array, variant: Variant) -> None:
    src = np.repeat(np.arange(20, dtype=np.int32), 10)
    own = build_memory(rows, variant, (2, 5), coreset_rate=0.3, limit=99, rng=np.random.default_rng(0), src=src)
    back = stored_memory(own.emb, (2, 5), own.extras, src=own.src)
    assert back.kind == own.kind == str(variant)
    for k, leave_out in ((1, None), (3, 4)):
        found = back.distances(rows[:10], k, leave_out=leave_out)
        np.testing.assert_array_equal(found, own.distances(rows[:10], k, leave_out=leave_out))


@pytest.mark.parametrize(
    "variant", [Variant(distance="cosine"), Variant(widths=(2, 4)), Variant(distance="mahalanobis")]
)
def test_every_part_is_searched_by_what_quickens_it(rows: Array, variant: Variant) -> None:
    plain, quick = memory(rows, variant), memory(rows, variant)
    asked: list[Array] = []

    def graph(given: Array) -> GraphRows:
        asked.append(given)
        return GraphRows(given)

    quick.attach_index(graph)
    assert len(asked) == max(1, len(variant.widths))
    assert quick.nbytes > plain.nbytes
    np.testing.assert_allclose(quick.distances(rows[::-1]), plain.distances(rows[::-1]), atol=1e-6)


def test_leaving_an_image_out_leaves_out_its_rows_in_every_part(rows: Array) -> None:
    src = np.repeat(np.arange(2, dtype=np.int32), 100)
    own = memory(rows, Variant(widths=(2, 4)), src=src)
    other = memory(rows[100:], Variant(widths=(2, 4)))
    np.testing.assert_allclose(own.distances(rows[:9], leave_out=0), other.distances(rows[:9]), atol=1e-6)


def test_foreground_is_what_the_border_has_less_of(rng: np.random.Generator) -> None:
    disc = build_mask(Shape("circle", {"cx": 6, "cy": 6, "r": 4}), 12, 12)
    assert disc is not None
    tokens = np.where(disc.ravel()[:, None], (0.9, 0.3, 0.3), (0.2, 0.9, 0.3)) + rng.normal(0, 0.02, (144, 3))
    emb = l2_normalize(np.tile(tokens, (5, 1)).astype(np.float32))
    found = Foreground.learnt(emb, (12, 12))
    np.testing.assert_array_equal(found.of(emb[:144]), disc.ravel())
    wider = found.of_image(emb[:144], (12, 12))
    assert wider.sum() > disc.sum()
    assert wider[disc.ravel()].all()
    assert Foreground.from_array(found.as_array()).cut == found.cut
    np.testing.assert_array_equal(Foreground.from_array(found.as_array()).axis, found.axis)
    own = build_memory(
        emb, Variant(foreground=True), (12, 12), coreset_rate=0.5, limit=999, rng=rng, src=np.zeros(720, np.int32)
    )
    strange = emb[:144].copy()
    strange[0] = strange[77] = l2_normalize(np.array([[0.9, 0.1, 0.8]], np.float32))
    heat = own.distances(strange)
    assert heat[77] > 0.1
    assert heat[5] == 0


def test_tokens_beside_the_part_take_on_the_nearest_ones_distance() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    inside = np.zeros((3, 4), bool)
    inside[1, 1:3] = True
    spread = nearest_inside(values, inside)
    np.testing.assert_array_equal(spread, [[5, 5, 6, 6]] * 3)


def test_a_token_is_of_the_part_when_its_cell_touches_it() -> None:
    mask = np.zeros((40, 60), bool)
    mask[19:21, 29] = True
    np.testing.assert_array_equal(np.argwhere(token_mask(mask, (4, 6))), [[1, 2], [2, 2]])


def part_image(seed: int, *, junk: bool, spot: bool = False) -> bytes:
    """A grey disc, on a background that is black or of bright junk."""
    rng = np.random.default_rng(seed)
    image = np.zeros((140, 140, 3), np.uint8)
    if junk:
        image[:] = rng.integers(0, 255, (10, 10, 3), dtype=np.uint8).repeat(14, 0).repeat(14, 1)
    cv2.circle(image, (70, 70), 46, (120, 120, 120), -1)
    if spot:
        cv2.circle(image, (80, 60), 9, (40, 40, 200), -1)
    return encode_png(image)


CIRCLE = {"kind": "circle", "cx": 70, "cy": 70, "r": 40}


@pytest.fixture
def client(tmp_path: Path) -> Any:
    settings = Settings(models_dir=tmp_path / "m", datasets_dir=tmp_path / "d", coreset_rate=1.0, input_size=140)
    with TestClient(create_app(settings, TextureFeatures(140)), client=("127.0.0.1", 1)) as client:
        yield client


def post(client: Any, path: str, images: list[bytes], **fields: Any) -> dict[str, Any]:
    name = "image" if path == "/infer" else "images"
    files = [(name, (f"{n}.png", data, "image/png")) for n, data in enumerate(images)]
    answer = client.post(path, data={"role_id": "r", "roi_id": "p", "mm_per_px": "0.5", **fields}, files=files)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_shape_at_fit_keeps_what_lies_beside_the_part_out_of_the_memory(client: Any) -> None:
    good = [part_image(n, junk=True) for n in range(3)]
    whole = post(client, "/fit_ok", good)
    part = post(client, "/fit_ok", good, shape=json.dumps(CIRCLE))
    mask = build_mask(Shape("circle", {k: float(str(v)) for k, v in CIRCLE.items() if k != "kind"}), 140, 140)
    assert mask is not None
    assert whole["n_embeddings"] == 300
    assert part["n_embeddings"] == 3 * int(token_mask(mask, (10, 10)).sum())


def test_score_then_speaks_of_the_part_alone(client: Any) -> None:
    post(client, "/fit_ok", [part_image(0, junk=False)], shape=json.dumps(CIRCLE))
    known = post(client, "/infer", [part_image(0, junk=False)], shape=json.dumps(CIRCLE))
    other = post(client, "/infer", [part_image(9, junk=False, spot=True)], shape=json.dumps(CIRCLE))
    assert known["score"] == pytest.approx(0, abs=1e-5)
    assert known["stats"]["max"] == pytest.approx(0, abs=1e-5)
    assert other["score"] > 0.2


def test_a_shape_that_is_missing_is_missed(client: Any) -> None:
    good = [part_image(n, junk=True) for n in range(3)]
    known = "solo conoce la pieza dentro de su shape"
    post(client, "/fit_ok", good[:2], shape=json.dumps(CIRCLE))
    assert not any(known in text for text in post(client, "/infer", good[:1], shape=json.dumps(CIRCLE))["warnings"])
    assert any(known in text for text in post(client, "/infer", good[:1])["warnings"])
    grown = post(client, "/fit_ok", good[2:], memory_fit="true")
    assert any("otras sin él" in text for text in grown["warnings"])
    assert not any(known in text for text in post(client, "/infer", good[:1])["warnings"])
    again = post(client, "/fit_ok", [part_image(7, junk=True)], memory_fit="true", shape=json.dumps(CIRCLE))
    assert any("otras sin él" in text for text in again["warnings"])


def test_samples_bring_their_own_shapes_to_a_fit(client: Any) -> None:
    for n in range(3):
        post(client, "/datasets/ok/upload", [part_image(n, junk=True)], metas=json.dumps({"shape_json": CIRCLE}))
    fitted = post(client, "/fit_ok", [], use_dataset="true")
    assert fitted["n_images"] == 3
    assert fitted["n_embeddings"] < 300


@pytest.mark.parametrize("changed", [
    {"patchcore_distance": "mahalanobis"},
    {"patchcore_memories": "separate"},
    {"foreground_mask": "pca"},
    {"patchcore_distance": "cosine", "score_map": "tokens", "patchcore_reweight": 3},
    {"token_blur": 1.0, "score_method": "max"},
])  # fmt: skip
def test_options_go_through_the_service_and_survive_a_restart(tmp_path: Path, changed: dict[str, Any]) -> None:
    def service(**more: Any) -> Inspector:
        return Inspector(Settings(models_dir=tmp_path, coreset_rate=0.3, input_size=140, **more), TextureFeatures(140))

    files = [ImageFile.named(f"{n}", lambda n=n: part_image(n, junk=n == 1)) for n in range(3)]  # type: ignore[misc]
    probe = ImageFile.named("x", lambda: part_image(1, junk=True, spot=True))
    first = service(**changed)
    Fitter(first).fit(KEY, files, mm_per_px=1.0)
    first.calibrate(KEY, ok_scores=[0.1] * 20, mm_per_px=1.0)
    before = first.infer(KEY, probe, mm_per_px=1.0)
    first.close()
    again = service(**changed)
    after = again.infer(KEY, probe, mm_per_px=1.0)
    again.close()
    assert before.threshold == after.threshold == pytest.approx(0.1)
    assert before.inspection.score == after.inspection.score
    np.testing.assert_array_equal(before.inspection.anomaly_map, after.inspection.anomaly_map)


def test_a_threshold_does_not_serve_another_way_of_measuring(tmp_path: Path) -> None:
    files = [ImageFile.named("0", lambda: part_image(0, junk=False))]
    for changed, kept in (({}, True), ({"patchcore_distance": "cosine"}, False), ({"token_blur": 2.0}, False)):
        given: dict[str, Any] = changed
        plain = Inspector(Settings(models_dir=tmp_path, input_size=140), TextureFeatures(140))
        Fitter(plain).fit(KEY, files, mm_per_px=1.0)
        plain.calibrate(KEY, ok_scores=[0.1] * 20, mm_per_px=1.0)
        plain.close()
        other = Inspector(Settings(models_dir=tmp_path, input_size=140, **given), TextureFeatures(140))
        if "patchcore_distance" in given:
            Fitter(other).fit(KEY, files, mm_per_px=1.0)
        found = other.infer(KEY, files[0], mm_per_px=1.0)
        other.close()
        assert (found.threshold is not None) is kept


def test_a_memory_that_measures_otherwise_does_not_grow(tmp_path: Path) -> None:
    settings = Settings(
        models_dir=tmp_path / "m", datasets_dir=tmp_path / "d", input_size=140, patchcore_distance="cosine"
    )
    with TestClient(create_app(settings, TextureFeatures(140)), client=("127.0.0.1", 1)) as client:
        post(client, "/fit_ok", [part_image(0, junk=False)])
        answer = client.post(
            "/fit_ok",
            data={"role_id": "r", "roi_id": "p", "mm_per_px": "0.5", "memory_fit": "true"},
            files=[("images", ("1.png", part_image(1, junk=True), "image/png"))],
        )
    assert answer.status_code == 409
    assert answer.json()["code"] == "memory_mismatch"
