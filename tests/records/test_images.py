"""Images are kept by policy, once by content, and only those that may go make room for others."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from backend.base.errors import ImageNotKept
from backend.records.database import Database
from backend.records.entries import ReviewDraft
from backend.records.images import ASIDE, GB, KeepPolicy
from backend.records.ledger import Ledger
from backend.records.tables import images
from tests.records.made import NOON_US, faults, picture, raises, record, told

SIZE = len(picture())


def keep(ledger: Ledger, number: int, *, score: float = 0.2) -> str:
    """An inspection of picture `number`."""
    given = record(number, score=score, image=picture(number), time_us=NOON_US + number)
    return str(ledger.record(given, picture(number)).inspection_id)


def kept(ledger: Ledger) -> list[Path]:
    return sorted(path for path in ledger.images.folder.glob("??/*"))


def holds(ledger: Ledger, name: str) -> bool:
    try:
        ledger.image(ledger.inspection(name))
    except ImageNotKept:
        return False
    return True


@pytest.mark.parametrize(
    ("policy", "score", "decision", "wanted"),
    [
        ("ng", 0.9, "ng", True),
        ("ng", 0.2, "ok", False),
        ("near", 0.476, "ok", True),
        ("near", 0.524, "ng", True),
        ("near", 0.47, "ok", False),
        ("near", 0.53, "ng", False),
        ("near", 0.2, None, False),
        ("ng,near", 0.9, "ng", True),
        ("1/1", 0.2, "ok", True),
        ("1/1", 0.2, None, True),
        ("1/1", 0.9, "ng", False),
        ("all", 0.2, "ok", True),
        ("all", 0.9, "ng", True),
        ("all", 0.9, None, True),
        ("none", 0.9, "ng", False),
    ],
)
def test_the_policy_decides(policy: str, score: float, decision: str | None, wanted: bool) -> None:
    one = record(score=score, decision=decision, threshold=None if decision is None else 0.5)
    assert KeepPolicy.of(policy).wants(one) is wanted


def test_one_in_a_hundred_is_about_one_in_a_hundred() -> None:
    policy = KeepPolicy.of("ng,near,1/100")
    chosen = sum(policy.wants(record(image=str(n).encode())) for n in range(5000))
    assert 25 <= chosen <= 80


def test_an_image_is_kept_byte_for_byte_once(ledger: Ledger) -> None:
    names = [keep(ledger, 1), keep(ledger, 1, score=0.9), keep(ledger, 2)]
    assert len(kept(ledger)) == 2
    for name, number in zip(names, (1, 1, 2), strict=True):
        found = ledger.inspection(name)
        assert ledger.image(found) == (picture(number), ".png")
        assert found.image_sha256 == hashlib.sha256(picture(number)).digest()
        assert found.item["image"]["kept"] is True


def test_an_image_that_the_policy_does_not_want_is_not_kept(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(keep="ng")
    name = keep(ledger, 1)
    assert kept(ledger) == []
    with raises(ImageNotKept, "KEEP_IMAGES"):
        ledger.image(ledger.inspection(name))
    assert ledger.inspection(name).item["image"]["kept"] is False


def test_the_oldest_that_nobody_reviewed_go_first_and_ng_and_reviewed_never(
    open_ledger: Callable[..., Ledger], database: Database
) -> None:
    ledger = open_ledger(images_max_gb=4.5 * SIZE / GB)
    bad, reviewed, *good = keep(ledger, 0, score=0.9), keep(ledger, 1), keep(ledger, 2), keep(ledger, 3)
    ledger.review(ReviewDraft(inspection_id=reviewed, verdict="good"))
    late = keep(ledger, 4)
    assert [holds(ledger, name) for name in (bad, reviewed, *good, late)] == [True, True, False, True, True]
    with raises(ImageNotKept, "IMAGES_MAX_GB"):
        ledger.image(ledger.inspection(good[0]))
    assert faults(database, ledger.images) == []
    for n in range(5, 9):
        keep(ledger, n, score=0.9)
    assert [holds(ledger, name) for name in (bad, reviewed)] == [True, True]
    assert len(kept(ledger)) == 4
    assert faults(database, ledger.images) == []


def test_where_nothing_may_go_the_answer_says_that_its_image_is_not_kept(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(images_max_gb=2.5 * SIZE / GB)
    for n in range(2):
        keep(ledger, n, score=0.9)
    recorded = ledger.record(record(2, score=0.9, image=picture(2)), picture(2))
    assert recorded.inspection_id is not None
    assert [notice.code for notice in recorded.notices] == ["image_not_kept"]
    assert "NG or reviewed" in told(recorded)
    assert len(kept(ledger)) == 2


def test_a_disk_that_must_stay_free_keeps_images_out(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(min_free_mb=1e9)
    recorded = ledger.record(record(), picture())
    assert [notice.code for notice in recorded.notices] == ["image_not_kept"]
    assert kept(ledger) == []


def test_a_folder_that_cannot_be_made_is_told(open_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    ledger = open_ledger(images=tmp_path / "file" / "images")
    recorded = ledger.record(record(), picture())
    assert recorded.inspection_id is not None
    assert [notice.code for notice in recorded.notices] == ["image_not_kept"]


def test_an_image_that_is_removed_between_its_writing_and_its_record_is_written_again(
    ledger: Ledger, database: Database
) -> None:
    ledger.ready()
    image = ledger.images.put(hashlib.sha256(picture()).digest(), picture())
    (path,) = kept(ledger)
    path.unlink()
    from backend.records.entries import InspectionDraft

    ledger.writer.submit(InspectionDraft.of(record(), image)).result()
    assert path.read_bytes() == picture()
    assert faults(database, ledger.images) == []


def test_what_an_interrupted_removal_set_aside_is_put_back_and_what_nobody_names_goes(
    ledger: Ledger, database: Database
) -> None:
    keep(ledger, 1)
    (path,) = kept(ledger)
    path.rename(path.with_name(path.name + ASIDE))
    orphan = ledger.images.path(hashlib.sha256(b"x").digest(), ".png")
    fresh = ledger.images.path(hashlib.sha256(b"y").digest(), ".png")
    for one in (orphan, fresh):
        one.parent.mkdir(exist_ok=True)
        one.write_bytes(b"x")
    old = time.time() - 3600
    for one in (orphan, path.with_name(path.name + ASIDE)):
        os.utime(one, (old, old))
    assert ledger.images.tidy() == 1
    assert kept(ledger) == sorted([path, fresh])
    assert faults(database, ledger.images) == []


def test_a_removal_that_is_not_committed_leaves_the_files(ledger: Ledger, database: Database) -> None:
    from backend.records.images import removing

    keep(ledger, 1)
    (path,) = kept(ledger)
    with database.reading() as connection:
        row = connection.execute(select(images)).one()
    with pytest.raises(RuntimeError), removing(ledger.images) as removal, database.writing() as connection:
        removal.take(connection, row)
        assert not path.exists()
        raise RuntimeError("the power goes")
    assert path.exists()
    assert faults(database, ledger.images) == []


def test_machines_with_a_folder_each_do_not_count_each_others_images(
    open_ledger: Callable[..., Ledger], tmp_path: Path
) -> None:
    here, there = open_ledger(images=tmp_path / "here"), open_ledger(images=tmp_path / "there")
    name = keep(here, 1, score=0.9)
    assert holds(here, name)
    with raises(ImageNotKept, "another machine"):
        there.image(there.inspection(name))
    assert here.images.name != there.images.name
    assert len(kept(here)) == 1 and kept(there) == []


@pytest.mark.parametrize("damage", ["another image", "cut", "a link"])
def test_what_lies_in_an_images_place_is_not_shown_for_it_and_gives_way_when_the_image_comes_again(
    ledger: Ledger, database: Database, damage: str, tmp_path: Path
) -> None:
    name = keep(ledger, 1)
    (path,) = kept(ledger)
    path.unlink()
    with raises(ImageNotKept, "its file is missing"):
        ledger.image(ledger.inspection(name))
    if damage == "a link":
        (tmp_path / "secret").write_text("not an image")
        path.symlink_to(tmp_path / "secret")
    else:
        path.write_bytes(picture(2) if damage == "another image" else picture(1)[:-9])
    with raises(ImageNotKept, "no longer the one that was kept"):
        ledger.image(ledger.inspection(name))
    assert holds(ledger, keep(ledger, 1)) and holds(ledger, name)
    assert faults(database, ledger.images) == []
    assert damage != "a link" or (tmp_path / "secret").read_text() == "not an image"
