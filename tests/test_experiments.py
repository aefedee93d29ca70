"""The programs that measure for the documents: what their figures are made of."""

import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer

from backend.base.arrays import l2_normalize
from backend.base.config import load_settings
from backend.base.images import decode_image
from backend.evaluation.figures import ImageFigures, Interval
from backend.evaluation.results import Cost, Figures, ScoredImage, SetResult
from backend.evaluation.sets import InspectionSet, LabelledImage
from backend.extractors.protocol import ExtractorOptions
from backend.features import build_extractor
from backend.infer import Roi, RoiSize
from experiments import accuracy, detection, eight_bits, families, giant, growing, light, masked_tokens, sizes, turns


@pytest.fixture
def parts(tmp_path: Path) -> InspectionSet:
    """Eight good parts to learn from, six to test on, one that is bad."""
    images = []
    for n in range(15):
        path = tmp_path / f"{n}.png"
        cv2.imwrite(str(path), np.full((200, 300, 3), 100 + n, np.uint8))
        images.append(LabelledImage(path, "scratch" if n == 14 else "good"))
    return InspectionSet("parts", tuple(images[:8]), tuple(images[8:]))


def rates(*first: float) -> np.ndarray:
    return np.array([*first, *[1.0] * (len(accuracy.AREAS) - len(first))])


def test_the_least_area_lies_between_the_last_missed_and_the_first_found() -> None:
    found = accuracy.least_area(rates(0.0, 0.0, 0.25, 0.75))
    assert found == pytest.approx((accuracy.AREAS[2] * accuracy.AREAS[3]) ** 0.5)
    assert accuracy.least_area(rates(0.0, 0.5)) == pytest.approx(accuracy.AREAS[1])


def test_an_area_counts_only_if_larger_ones_are_found_too() -> None:
    found = accuracy.least_area(rates(1.0, 1.0, 0.0, 1.0))
    assert found is not None and found > accuracy.AREAS[2]


def test_no_area_is_made_up_beyond_those_tried() -> None:
    n = len(accuracy.AREAS)
    assert accuracy.least_area(rates()) == accuracy.AREAS[0]
    assert accuracy.least_area(np.array([1.0] * (n - 1) + [0.4])) is None
    assert accuracy.least_area(np.full(n, np.mean([0.1, 0.9, 0.3, 0.7]))) == accuracy.AREAS[0]


@pytest.mark.parametrize("share", [0.001, 0.01])
def test_a_spot_covers_its_share_of_the_part(share: float) -> None:
    plain = np.full((300, 400, 3), 128, np.uint8)
    spotted = decode_image(accuracy.with_spot(plain, share, (20, 20, 20), np.random.default_rng(0)))
    cover = (128.0 - spotted[..., 0]) / (128 - 20)
    assert cover.mean() == pytest.approx(share, rel=0.05)


def test_every_area_of_a_kind_lies_at_one_place(parts: InspectionSet) -> None:
    spotted = accuracy.Spotted.of(parts, 3)
    for dark, red in zip(spotted.spots["dark"], spotted.spots["red"], strict=True):
        small, large, other = (decode_image(data)[..., 0] < 60 for data in (dark[5], dark[8], red[8]))
        assert small.any()
        assert large[small].all()
        assert large[other].all()
        assert other.sum() > 0.8 * large.sum()


@pytest.mark.parametrize("split", [0, 1, 2])
def test_parts_with_spots_are_never_learnt_from(parts: InspectionSet, split: int) -> None:
    spotted = accuracy.Spotted.of(parts, 3)
    held = spotted.held_out(split)
    assert len(held) == 6
    assert set(spotted.chosen) <= held
    if split == 0:
        assert {spotted.parts[n] for n in held} == {image.path for image in parts.test if not image.defective}


def test_other_splits_hold_other_parts_out(parts: InspectionSet) -> None:
    spotted = accuracy.Spotted.of(parts, 3)
    assert len({frozenset(spotted.held_out(split)) for split in range(4)}) == 4


@pytest.mark.parametrize("title", [*accuracy.COMMON, *accuracy.RESNET, *accuracy.VIT])
def test_every_row_of_the_table_is_a_setting_that_the_service_takes(title: str) -> None:
    changed = accuracy.changed_by(title)
    settings = load_settings(**changed)
    assert all(name in settings.model_fields_set for name in changed)


def test_a_row_says_what_it_changes() -> None:
    settings = load_settings(**accuracy.changed_by("SCORE_METHOD=top_mean, SCORE_TOP_SHARE=0.5, BLOCKS=7,9"))
    assert (settings.score_method, settings.score_top_share, settings.blocks) == ("top_mean", 0.5, ("7", "9"))


@pytest.mark.parametrize("title", ["CORESET=0.1", "SEED", "SEED=1, CORESET=0.1", "", "recommended"])
def test_a_row_that_names_no_setting_is_refused(title: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no setting"):
        accuracy.changed_by(title)


@pytest.mark.parametrize("reserve", [False, True])
def test_a_grown_memory_has_about_as_many_rows_as_one_made_at_once(rng: np.random.Generator, reserve: bool) -> None:
    images = l2_normalize(rng.standard_normal((6 * 25, 8), np.float32)).reshape(6, 25, 8)
    memory = growing.grown(images, (5, 5), 2, 0.2, rng, reserve=reserve)
    assert 0.8 * 30 <= len(memory) <= 30


def test_crops_of_five_proportions_keep_the_middle(parts: InspectionSet, tmp_path: Path) -> None:
    found = families.cropped(parts, tmp_path)
    sizes = {decode_image(image.path.read_bytes()).shape[:2] for image in (*found.train, *found.test)}
    assert sizes == {(200, 300), (180, 300), (200, 270), (160, 300), (200, 240)}
    assert (len(found.train), len(found.test), found.counts) == (8, 7, parts.counts)


def test_a_half_has_every_other_image_of_each_class(parts: InspectionSet) -> None:
    scored = [ScoredImage(image, 0.1 * n, 1.0) for n, image in enumerate((*parts.test, *parts.test[-1:]))]
    first, second = families.halves(result_of(parts, scored))
    assert [s.score for s in first.scored] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert [s.score for s in second.scored] == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert families.figures(first).auroc == families.figures(second).auroc == 1.0


def test_maps_of_several_sizes_are_averaged_on_the_finest_grid() -> None:
    size = RoiSize(40, 40)
    coarse, fine = np.full((2, 2), 1.0, np.float32), np.arange(16, dtype=np.float32).reshape(4, 4)
    averaged, roi = sizes.mean_map([(coarse, Roi(size, (2, 2))), (fine, Roi(size, (4, 4)))])
    assert roi.grid == (4, 4)
    assert np.allclose(averaged, (1 + fine) / 2)


def test_one_size_is_left_as_it_is() -> None:
    fine = np.arange(16, dtype=np.float32).reshape(4, 4)
    averaged, _ = sizes.mean_map([(fine, Roi(RoiSize(40, 40), (4, 4)))])
    assert np.array_equal(averaged, fine)


def test_sizes_are_read_as_they_are_written() -> None:
    assert sizes.combinations("256,256+320") == [(256,), (256, 320)]
    with pytest.raises(typer.BadParameter, match="write sizes as"):
        sizes.combinations("256+,320")


def test_an_even_light_takes_gains_of_channels_away(rng: np.random.Generator) -> None:
    picture = rng.integers(40, 120, (32, 48, 3)).astype(np.uint8)
    even = light.EvenLight(build_extractor(ExtractorOptions(model_name="texture")), picture.mean(axis=(0, 1)))
    darker = np.rint(picture * (0.8, 1.0, 1.2)).astype(np.uint8)
    assert np.abs(even.lit(darker).astype(float) - picture).max() <= 1
    assert even.fingerprint != even.inner.fingerprint


def test_contrast_is_that_of_a_defect_and_what_is_next_to_it() -> None:
    picture, defect = np.full((200, 300, 3), 100, np.uint8), np.zeros((200, 300), bool)
    defect[50:70, 80:120] = True
    picture[defect] = (100, 130, 60)
    picture[100:] = 0  # far away
    assert detection.contrast(picture, defect) == pytest.approx(50.0)


def test_operations_grow_with_the_tokens() -> None:
    small, large = (giant.flops("vit_tiny_patch16_224", side) for side in (64, 128))
    assert 3.0 < large / small < 5.0


def test_works_are_timed_in_turn_and_the_first_round_is_not_counted() -> None:
    called: list[tuple[str, int]] = []

    def slow_at_first(number: int) -> None:
        called.append(("slow at first", number))
        if number == 0:
            time.sleep(0.2)

    took = turns.in_turn({"slow at first": slow_at_first, "quick": lambda n: called.append(("quick", n))}, 3)
    assert called == [(name, n) for n in range(4) for name in ("slow at first", "quick")]
    assert all(one.ms < 100 for one in took.values())


def test_a_circle_is_read_as_it_is_written() -> None:
    assert masked_tokens.circle_of("288,384,285").as_dict() == {"kind": "circle", "cx": 288, "cy": 384, "r": 285}
    with pytest.raises(typer.BadParameter, match="CX,CY,R"):
        masked_tokens.circle_of("288,384")


@pytest.mark.skipif(find_spec("nncf") is not None, reason="NNCF is installed")
def test_without_nncf_eight_bits_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="pip install nncf"):
        eight_bits.compare([tmp_path], "resnet18")


def result_of(one: InspectionSet, scored: list[ScoredImage]) -> SetResult:
    image = ImageFigures(1.0, 1.0, 1.0, 0.5)
    return SetResult(
        set_name=one.name, model="m", settings={}, n_train=8, counts=one.counts, figures=Figures(image, None),
        interval=Interval(0.0, 1.0), classes={}, rates=[], cost=Cost(1.0, 1.0, 1, 1.0, 1.0), few=[], changed=[],
        scored=scored, shown=[],
    )  # fmt: skip
