"""The scored area, and the folder of pictures: whole files, never overwritten, never too many."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.resnet_api.pictures import LEFT_OVER_S, OverlayFolder, scored_area

PICTURE = np.zeros((40, 40, 3), np.uint8)
SET: dict[str, Any] = {"overlay": PICTURE, "heat": PICTURE, "mask": PICTURE}


def test_without_border_and_mask_everything_is_scored() -> None:
    assert scored_area(64, 0) is None


@pytest.mark.parametrize("percent", [10, 49])
def test_the_border_is_left_out_on_all_sides(percent: int) -> None:
    area, margin = scored_area(100, percent), percent
    assert area is not None and area[margin:-margin, margin:-margin].all() and area.sum() == (100 - 2 * margin) ** 2


def test_a_mask_of_any_size_and_the_border_hold_together() -> None:
    left = np.zeros((7, 10), np.uint8)
    left[:, :5] = 255
    area = scored_area(100, 10, left)
    assert area is not None and area[50, 10] and not area[50, 9] and not area[50, 60]


def test_a_mask_that_leaves_nothing_is_ignored() -> None:
    assert scored_area(100, 50) is None
    assert scored_area(100, 0, np.zeros((5, 5), np.uint8)) is None


def test_the_pictures_of_the_last_predictions_are_kept(tmp_path: Path) -> None:
    folder = OverlayFolder(tmp_path / "overlays", keep=2)
    names = [folder.save(f"{n}.png", SET) for n in range(4)]
    assert sorted(path.name for path in folder.folder.iterdir()) == sorted(
        name for kept in names[-2:] for name in kept.values()
    )


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    folder = OverlayFolder(tmp_path, keep=2)
    left, fresh, foreign = tmp_path / ".a.png.0.tmp", tmp_path / ".b.png.1.tmp", tmp_path / "notes.txt"
    for path in (left, fresh, foreign):
        path.write_bytes(b"half")
    long_ago = time.time() - LEFT_OVER_S - 60
    for path in (left, foreign):
        os.utime(path, (long_ago, long_ago))
    folder.save("c.png", SET)
    assert not left.exists() and fresh.exists() and foreign.exists()


def test_a_picture_that_cannot_be_written_leaves_no_half_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        OverlayFolder(tmp_path, keep=2).save("a.png", SET)
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_neither_fail_nor_pile_up(tmp_path: Path) -> None:
    folder = OverlayFolder(tmp_path, keep=1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: folder.save(f"{n}.png", SET), range(24)))
    folder.save("last.png", SET)
    assert len(list(tmp_path.glob("*.png"))) == 3
