"""Folders of labelled images become sets, in whichever layout they come, and what looks wrong is named."""

import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from backend.base.errors import SetNotUnderstood, UndecodableImage
from backend.evaluation.sets import InspectionSet, LabelledImage, read_mask, read_set

# (height, width) bool with a block marked, as every mask below draws it.
BLOCK = np.zeros((12, 16), bool)
BLOCK[3:7, 5:11] = True


def touch(*paths: Path) -> None:
    """Files of one size and different content: sets compare them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{path!s:>300}".encode())


def draw(path: Path, marked: np.ndarray = BLOCK, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(marked.astype(np.uint8) * value).save(path)
    return path


def bytes_of(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def masks(found: InspectionSet) -> dict[str, list[str]]:
    """The masks of each defective image, by the end of its path."""
    return {
        "/".join(image.path.parts[-2:]): [path.name for path in image.masks] for image in found.test if image.defective
    }


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "bottle"
    touch(*(root / "train" / "good" / f"{n:03}.png" for n in range(5)), root / "train" / "good" / "notes.txt")
    touch(root / "test" / "good" / "a.PNG", root / "test" / "hole" / "b.jpg", root / "test" / "dent" / "c.bmp")
    touch(root / "test" / "dent" / "d.bmp")
    draw(root / "ground_truth" / "dent" / "c_mask.png")
    draw(root / "ground_truth" / "hole" / "b.png")
    return root


@pytest.fixture
def station(tmp_path: Path) -> Path:
    root = tmp_path / "datasets" / "Master1" / "Pattern"
    touch(*(root / "ok" / f"ok{n}.png" for n in range(9)), root / "ng" / "bad.png")
    meta = {"shape": {"kind": "circle", "cx": 20, "cy": 20, "r": 9}, "mm_per_px": 0.2}
    (root / "ng" / "bad.json").write_text(json.dumps(meta))
    return root


def test_mvtec_layout_gives_classes_and_masks_by_the_stem(mvtec: Path) -> None:
    found = read_set(mvtec)
    assert found.name == "bottle"
    assert [image.path.name for image in found.train] == [f"{n:03}.png" for n in range(5)]
    assert found.counts == {"good": 1, "dent": 2, "hole": 1}
    assert masks(found) == {"dent/c.bmp": ["c_mask.png"], "dent/d.bmp": [], "hole/b.jpg": ["b.png"]}
    assert found.warnings == ()


def test_station_layout_keeps_a_third_of_the_good_parts_for_testing(station: Path) -> None:
    found = read_set(station)
    assert found.name == "Master1/Pattern"
    assert len(found.train) == 6
    assert found.counts == {"good": 3, "ng": 1}
    assert not {i.path for i in found.train} & {i.path for i in found.test}
    assert read_set(station) == found
    assert read_set(station, seed=1).train != found.train


def test_station_sidecars_give_shape_and_scale(station: Path) -> None:
    bad = next(image for image in read_set(station).test if image.defective)
    assert bad.mm_per_px == 0.2
    assert bad.shape is not None
    assert bad.shape.as_dict() == {"kind": "circle", "cx": 20.0, "cy": 20.0, "r": 9.0}


def test_mvtec_images_may_have_sidecars_too(mvtec: Path) -> None:
    shape = {"kind": "circle", "cx": 20, "cy": 20, "r": 9}
    for path in (mvtec / "train" / "good" / "001.json", mvtec / "test" / "dent" / "c.json"):
        path.write_text(json.dumps({"shape": shape, "mm_per_px": 0.5}))
    found = read_set(mvtec)
    assert [image.mm_per_px for image in found.train] == [None, 0.5, None, None, None]
    dented = next(image for image in found.test if image.path.name == "c.bmp")
    assert dented.masks and dented.shape is not None and dented.mm_per_px == 0.5


@pytest.mark.parametrize(
    ("said", "scale", "shaped", "named"),
    [
        (b'\xef\xbb\xbf{"mm_per_px": "0.25"}', 0.25, False, False),
        (
            b'{"mm_per_px": " 2.5e-1 ", "shape_json": "{\\"kind\\":\\"circle\\",\\"cx\\":9,\\"cy\\":9,\\"r\\":5}"}',
            0.25,
            True,
            False,
        ),
        ('{"mm_per_px": 0.25}'.encode("utf-16"), 0.25, False, False),
        (b'{"mm_per_px": "0,25"}', None, False, True),
        (b'{"mm_per_px": "0.25 mm"}', None, False, True),
        (b'{"mm_per_px": "1_0"}', None, False, True),
        ('{"mm_per_px": "٠.٢"}'.encode(), None, False, True),
        (b'{"mm_per_px": 1e7}', None, False, True),
        (b'{"mm_per_px": true}', None, False, True),
        (b'{"mm_per_px": 1e999}', None, False, True),
        (b'{"mm_per_px": 0.25, "shape": {"kind": "polygon", "points": []}}', 0.25, False, True),
        (b'{"mm_per_px": null, "shape": null, "note": "x"}', None, False, False),
    ],
)
def test_sidecars_are_read_as_everywhere_and_those_not_understood_are_named(
    mvtec: Path, said: bytes, scale: float | None, shaped: bool, named: bool
) -> None:
    (mvtec / "train" / "good" / "001.json").write_bytes(said)
    found = read_set(mvtec)
    image = next(image for image in found.train if image.path.stem == "001")
    assert (image.mm_per_px, image.shape is not None) == (scale, shaped)
    assert any("train/good/001" in warning for warning in found.warnings) == named


def test_few_are_drawn_without_repetition_and_the_test_images_stay(mvtec: Path) -> None:
    whole = read_set(mvtec)
    few = whole.few(3, np.random.default_rng(4))
    assert len(set(few.train)) == 3
    assert set(few.train) <= set(whole.train)
    assert few.test == whole.test
    assert len(whole.few(50, np.random.default_rng(4)).train) == 5


@pytest.mark.parametrize("lost", ["train/good", "test/good", "test/dent"])
def test_a_set_that_lacks_a_part_is_refused(mvtec: Path, lost: str) -> None:
    for path in (mvtec / lost).iterdir():
        path.unlink()
    if lost == "test/dent":
        (mvtec / "test" / "hole" / "b.jpg").unlink()
    with pytest.raises(SetNotUnderstood, match="bottle"):
        read_set(mvtec)


def test_parts_to_learn_from_that_nobody_called_good_are_refused(mvtec: Path) -> None:
    (mvtec / "train" / "good").rename(mvtec / "train" / "parts")
    with pytest.raises(SetNotUnderstood, match="bottle"):
        read_set(mvtec)


def test_a_sidecar_that_is_no_json_is_named(station: Path) -> None:
    (station / "ng" / "bad.json").write_text("{")
    with pytest.raises(SetNotUnderstood, match=r"bad\.json"):
        read_set(station)


# Each layout: images to learn from, good ones and bad ones to test on, the bad ones' masks; then what is found of it.
LAYOUTS: dict[str, tuple[Sequence[str], Sequence[str], dict[str, Sequence[str]], dict[str, int]]] = {
    "MVTec AD": (
        ["train/good/000.png", "train/good/001.png"],
        ["test/good/000.png"],
        {
            "test/hole/000.png": ["ground_truth/hole/000_mask.png"],
            "test/cut/000.png": ["ground_truth/cut/000_mask.png"],
        },
        {"good": 1, "cut": 1, "hole": 1},
    ),
    "MVTec AD with other endings and cases": (
        ["Train/Good/000.JPG"],
        ["Test/Good/000.JPG"],
        {"Test/Hole/A 1.JPG": ["Ground_Truth/hole/a 1_MASK.PNG"]},
        {"good": 1, "Hole": 1},
    ),
    "MVTec LOCO": (
        ["train/good/000.png"],
        ["test/good/000.png"],
        {
            "test/logical_anomalies/000.png": [
                "ground_truth/logical_anomalies/000/000.png",
                "ground_truth/logical_anomalies/000/001.png",
            ],
            "test/logical_anomalies/001.png": ["ground_truth/logical_anomalies/001/000.png"],
            "test/structural_anomalies/000.png": ["ground_truth/structural_anomalies/000/000.png"],
        },
        {"good": 1, "logical_anomalies": 2, "structural_anomalies": 1},
    ),
    "MVTec AD 2": (
        ["train/good/000.png"],
        ["test_public/good/000.png"],
        {"test_public/bad/000.png": ["test_public/ground_truth/bad/000_mask.png"]},
        {"good": 1, "bad": 1},
    ),
    "BTAD": (
        ["train/ok/0000.bmp"],
        ["test/ok/0000.bmp"],
        {"test/ko/0001.bmp": ["ground_truth/ko/0001.png"]},
        {"good": 1, "ko": 1},
    ),
    "VisA as it is published": (
        [],
        ["Data/Images/Normal/000.JPG", "Data/Images/Normal/001.JPG", "Data/Images/Normal/002.JPG"],
        {"Data/Images/Anomaly/000.JPG": ["Data/Masks/Anomaly/000.png"]},
        {"good": 1, "Anomaly": 1},
    ),
    "VisA as others arrange it": (
        ["train/good/000.JPG"],
        ["test/good/001.JPG"],
        {"test/bad/000.JPG": ["ground_truth/bad/000.png"]},
        {"good": 1, "bad": 1},
    ),
    "a station on a system that tells cases apart": (
        [],
        ["OK/a.png", "OK/b.png", "Ok/c.png"],
        {"NG/a.png": []},
        {"good": 1, "NG": 1},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_are_read_with_the_masks_of_each_image(tmp_path: Path, name: str) -> None:
    learn, good, bad, counts = LAYOUTS[name]
    touch(*(tmp_path / path for path in (*learn, *good, *bad)))
    for paths in bad.values():
        for path in paths:
            draw(tmp_path / path)
    found = read_set(tmp_path)
    assert found.counts == counts
    assert len(found.train) == (len(learn) or round(len(good) * 2 / 3))
    of_images = {i.path.relative_to(tmp_path.resolve()).as_posix(): i.masks for i in found.test if i.defective}
    assert {n: [p.relative_to(tmp_path.resolve()).as_posix() for p in ps] for n, ps in of_images.items()} == bad
    assert found.warnings == ()


@pytest.mark.parametrize("name", ["good", "Good", "GOOD", "ok", "OK", "Ok", "normal"])
def test_good_parts_are_good_by_any_of_their_names(mvtec: Path, name: str) -> None:
    (mvtec / "test" / "good").rename(mvtec / "test" / "elsewhere")
    (mvtec / "test" / "elsewhere").rename(mvtec / "test" / name)
    assert read_set(mvtec).counts == {"good": 1, "dent": 2, "hole": 1}


def test_good_parts_in_two_folders_are_all_good(mvtec: Path) -> None:
    touch(mvtec / "test" / "OK" / "x.png", mvtec / "train" / "ok" / "y.png")
    found = read_set(mvtec)
    assert found.counts == {"good": 2, "dent": 2, "hole": 1}
    assert len(found.train) == 6


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", ".thumbnails", "__MACOSX"])
def test_a_folder_that_the_system_made_is_no_class(mvtec: Path, name: str) -> None:
    touch(mvtec / "test" / name / "x.png", mvtec / "train" / "good" / "._000.png", mvtec / "test" / "good" / "._a.PNG")
    (mvtec / "test" / "dent" / "folder.png").mkdir()
    found = read_set(mvtec)
    assert found.counts == {"good": 1, "dent": 2, "hole": 1}
    assert len(found.train) == 5
    assert found.warnings == ()


GREY = Image.fromarray(BLOCK.astype(np.uint8) * 255)
COLOUR = np.zeros((*BLOCK.shape, 3), np.uint8)
COLOUR[BLOCK] = (0, 0, 128)
PALETTE = Image.fromarray(BLOCK.astype(np.uint8), "P")
PALETTE.putpalette([0, 0, 0, 128, 0, 0])
ALPHA = np.dstack([COLOUR, np.full(BLOCK.shape, 255, np.uint8)])
PAINTED = np.dstack([np.full((*BLOCK.shape, 3), 255, np.uint8), BLOCK.astype(np.uint8) * 255])

MASKS: dict[str, bytes] = {
    "8 bits": bytes_of(GREY),
    "8 bits with numbers of defects": bytes_of(Image.fromarray(BLOCK.astype(np.uint8) * 3)),
    "1 bit": bytes_of(GREY.convert("1")),
    "16 bits": bytes_of(Image.fromarray(BLOCK.astype(np.uint16) * 65535)),
    "16 bits with small numbers": bytes_of(Image.fromarray(BLOCK.astype(np.uint16))),
    "colour": bytes_of(Image.fromarray(COLOUR)),
    "palette": bytes_of(PALETTE),
    "alpha everywhere": bytes_of(Image.fromarray(ALPHA, "RGBA")),
    "painted on transparent white": bytes_of(Image.fromarray(PAINTED, "RGBA")),
    "grey with alpha": bytes_of(GREY.convert("LA")),
    "BMP": bytes_of(GREY, "BMP"),
    "BMP of 1 bit": bytes_of(GREY.convert("1"), "BMP"),
    "TIFF": bytes_of(GREY, "TIFF"),
    "TIFF of 1 bit": bytes_of(GREY.convert("1"), "TIFF"),
    "TIFF of 16 bits": bytes_of(Image.fromarray(BLOCK.astype(np.uint16)), "TIFF"),
    "TIFF of floats": bytes_of(Image.fromarray(BLOCK.astype(np.float32)), "TIFF"),
    "JPEG": bytes_of(GREY, "JPEG", quality=60),
    "WebP": bytes_of(GREY, "WEBP", lossless=True),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_any_depth_marks_what_is_not_black(tmp_path: Path, name: str) -> None:
    (tmp_path / "mask.png").write_bytes(MASKS[name])
    found = read_mask(tmp_path / "mask.png")
    assert found.dtype == bool
    assert np.array_equal(found, BLOCK)


@pytest.mark.parametrize("data", [b"", b"no picture", bytes_of(GREY)[:60]])
def test_a_mask_that_is_no_picture_is_refused_by_name(mvtec: Path, data: bytes) -> None:
    (mvtec / "ground_truth" / "dent" / "c_mask.png").write_bytes(data)
    with pytest.raises(UndecodableImage) as caught:
        read_set(mvtec)
    assert caught.value.values["name"] == "dent/c_mask.png"


def test_several_masks_of_an_image_are_one_defect(tmp_path: Path) -> None:
    left, right = np.zeros((8, 10), bool), np.zeros((8, 10), bool)
    left[2:4, 1:3], right[5, 8] = True, True
    paths = draw(tmp_path / "0.png", left, 7), draw(tmp_path / "1.png", right)
    image = LabelledImage(tmp_path / "x.png", "logical", paths)
    assert np.array_equal(image.defect(8, 10), left | right)
    assert image.defect(80, 100).sum() == 100 * (left | right).sum()
    assert not LabelledImage(tmp_path / "x.png", "good").defect(8, 10).any()


def test_a_mask_that_marks_nothing_is_named_and_its_image_counts_as_without(mvtec: Path) -> None:
    draw(mvtec / "ground_truth" / "dent" / "c_mask.png", np.zeros_like(BLOCK))
    found = read_set(mvtec)
    assert masks(found)["dent/c.bmp"] == []
    (warning,) = found.warnings
    assert "mark nothing" in warning and "ground_truth/dent/c_mask.png" in warning


@pytest.mark.parametrize(
    "path", ["dent/e_mask.png", "hole/c_mask.png", "scratch/c_mask.png", "c_mask.png", "dent/e/000.png", "good/a.png"]
)
def test_a_mask_that_belongs_to_no_defective_image_is_named(mvtec: Path, path: str) -> None:
    draw(mvtec / "ground_truth" / path)
    (warning,) = read_set(mvtec).warnings
    assert "no defective image" in warning and f"ground_truth/{path}" in warning


def test_a_mask_that_marks_nearly_all_is_named(mvtec: Path) -> None:
    draw(mvtec / "ground_truth" / "dent" / "c_mask.png", ~BLOCK)
    assert any("inverted: ground_truth/dent/c_mask.png" in warning for warning in read_set(mvtec).warnings)


@pytest.mark.parametrize("name", ["c_mask.png", "C_MASK.PNG", "c_mask.bmp"])
def test_a_mask_beside_its_image_is_no_image(mvtec: Path, name: str) -> None:
    (mvtec / "ground_truth" / "dent" / "c_mask.png").unlink()
    draw(mvtec / "test" / "dent" / name)
    found = read_set(mvtec)
    assert found.counts["dent"] == 2
    assert masks(found)["dent/c.bmp"] == [name]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_that_lead_nowhere_or_round_in_circles_are_left_to_whoever_reads_them(mvtec: Path) -> None:
    (mvtec / "test" / "dent" / "gone.png").symlink_to("nowhere.png")
    (mvtec / "test" / "dent" / "self.png").symlink_to("self.png")
    (mvtec / "test" / "loop").symlink_to("..")
    assert read_set(mvtec).counts == {"good": 1, "dent": 4, "hole": 1}


def test_a_black_mask_of_a_good_image_is_as_it_should_be(mvtec: Path) -> None:
    draw(mvtec / "ground_truth" / "good" / "a_mask.png", np.zeros_like(BLOCK))
    assert read_set(mvtec).warnings == ()


def test_a_long_list_is_cut_short(mvtec: Path) -> None:
    for n in range(9):
        draw(mvtec / "ground_truth" / "lost" / f"{n}.png")
    (warning,) = read_set(mvtec).warnings
    assert warning.endswith("ground_truth/lost/4.png and 4 more.")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_an_image_that_is_learnt_and_tested_is_named(mvtec: Path, ending: str) -> None:
    data = (mvtec / "train" / "good" / "002.png").read_bytes()
    (mvtec / "test" / "good" / f"other.{ending}").write_bytes(data)
    (warning,) = read_set(mvtec).warnings
    assert "learnt from" in warning and f"test/good/other.{ending}" in warning


def test_an_image_that_is_tested_as_good_and_as_bad_is_named(mvtec: Path) -> None:
    (mvtec / "test" / "hole" / "again.png").write_bytes((mvtec / "test" / "good" / "a.PNG").read_bytes())
    (warning,) = read_set(mvtec).warnings
    assert "two classes" in warning and "test/good/a.PNG" in warning and "test/hole/again.png" in warning


def test_copies_among_the_good_parts_of_a_station_are_named_when_one_is_tested(station: Path) -> None:
    for n in range(9):
        (station / "ok" / f"ok{n}.png").write_bytes(b"one and the same")
    (warning,) = read_set(station).warnings
    assert "learnt from" in warning and warning.count("ok/ok") == 3


@pytest.mark.parametrize(
    "path", ["train/bad/x.png", "train/x.png", "test/x.png", "validation/good/x.png", "extra/x.png"]
)
def test_what_is_passed_over_is_named(mvtec: Path, path: str) -> None:
    touch(mvtec / path)
    found = read_set(mvtec)
    assert found.counts == {"good": 1, "dent": 2, "hole": 1} and len(found.train) == 5
    (warning,) = found.warnings
    assert "passed over" in warning and path.removesuffix("/x.png") in warning


def test_cookies_have_masks_and_nothing_wrong(shared_data: Path) -> None:
    found = read_set(shared_data / "cookies")
    assert found.counts == {"good": 14, "crack": 40}
    assert sum(bool(image.masks) for image in found.test) == 32
    assert found.warnings == ()
    image = next(image for image in found.test if image.masks)
    picture = cv2.imread(str(image.masks[0]), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    assert np.array_equal(image.defect(*picture.shape), picture > 0)
