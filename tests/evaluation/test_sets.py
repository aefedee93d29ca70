"""Folders of labelled images become sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from backend.base.errors import SetNotUnderstood
from backend.evaluation.sets import read_set


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "bottle"
    touch(*(root / "train" / "good" / f"{n:03}.png" for n in range(5)), root / "train" / "good" / "notes.txt")
    touch(root / "test" / "good" / "a.PNG", root / "test" / "hole" / "b.jpg", root / "test" / "dent" / "c.bmp")
    touch(root / "test" / "dent" / "d.bmp", root / "ground_truth" / "dent" / "c_mask.png")
    touch(root / "ground_truth" / "hole" / "b.png")
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
    masks = {image.path.name: image.mask and image.mask.name for image in found.test}
    assert masks == {"a.PNG": None, "c.bmp": "c_mask.png", "d.bmp": None, "b.jpg": "b.png"}


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
    assert dented.mask is not None and dented.shape is not None and dented.mm_per_px == 0.5


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


def test_a_sidecar_that_is_no_json_is_named(station: Path) -> None:
    (station / "ng" / "bad.json").write_text("{")
    with pytest.raises(SetNotUnderstood, match=r"bad\.json"):
        read_set(station)
