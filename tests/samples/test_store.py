"""Samples on disk."""

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.api.catalogue import sentence, status_of
from backend.base.errors import (
    BrokenImages,
    DamagedFile,
    DatasetNotFound,
    DatasetsFull,
    DiskFull,
    InvalidFilename,
    InvalidLabel,
    InvalidShape,
    MetaInvalid,
    MetasMismatch,
    MetasNotJson,
    SampleNotFound,
    UndecodableImage,
)
from backend.base.keys import ModelKey
from backend.samples.intake import drafts
from backend.samples.store import (
    Draft,
    SampleStore,
    check_filename,
    check_label,
)
from backend.service.images import ImageFile
from backend.service.sidecars import known_mm_per_px, known_shape
from tests.parts import encoded, part, part_file

KEY = ModelKey.of("Master1", "Pattern")
RED = ModelKey.of("Master1", "Pattern", "red")


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    return SampleStore(tmp_path / "datasets", max_gb=1)


def draft(seed: int, data: bytes | None = None) -> Draft:
    return Draft(f"{seed}.png", lambda: encoded(part(seed)) if data is None else data, "test", 0.2)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_the_bytes_come_back_as_they_were_sent(store: SampleStore) -> None:
    jpeg = b"\xff\xd8" + bytes(4)
    with pytest.raises(UndecodableImage):
        store.add(KEY, "ok", [draft(0, jpeg)])
    (kept,) = store.add(KEY, "ok", [draft(0)])
    assert store.read(KEY, "ok", kept.name) == encoded(part(0))
    meta = store.meta(KEY, "ok", kept.name)
    assert (meta["role_id"], meta["roi_id"], meta["source"], meta["mm_per_px"]) == ("Master1", "Pattern", "test", 0.2)
    assert (meta["sha256"], meta["width"], meta["height"]) == (kept.sha256, 96, 96)
    assert meta["timestamp_utc"].endswith("Z")


def test_identical_images_are_stored_once(store: SampleStore) -> None:
    first = store.add(KEY, "ok", [draft(0), draft(1), draft(0)])
    again = store.add(KEY, "ok", [draft(1), draft(2)])
    assert [kept.new for kept in first + again] == [True, True, False, False, True]
    assert first[0].name == first[2].name
    assert again[0].name == first[1].name
    assert len(store.names(KEY, "ok")) == 3
    assert store.add(KEY, "ng", [draft(0)])[0].new
    assert store.add(RED, "ok", [draft(0)])[0].new


def test_a_recipe_has_its_own_samples(store: SampleStore) -> None:
    store.add(RED, "ok", [draft(0)])
    assert store.names(KEY, "ok") == []
    assert store.all_keys() == [RED]
    assert (store.root / "recipes" / "red" / "Master1" / "Pattern" / "ok").is_dir()


def test_what_the_station_exported_is_read_as_it_is(store: SampleStore) -> None:
    folder = store.root / "Master1" / "Pattern" / "ok"
    folder.mkdir(parents=True)
    (folder / "SAMPLE_1.png").write_bytes(encoded(part(0)))
    exported = {"role_id": "Master1", "roi_id": "Pattern", "mm_per_px": 0.25, "angle": 3, "timestamp": "x"}
    exported["shape_json"] = '{"kind":"circle","cx":50,"cy":50,"r":40}'
    (folder / "SAMPLE_1.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(exported).encode())
    (folder / "SAMPLE_2.bmp").write_bytes(encoded(part(1)))
    (folder / "notes.txt").write_text("not an image")
    assert store.names(KEY, "ok") == ["SAMPLE_1.png", "SAMPLE_2.bmp"]
    assert store.meta(KEY, "ok", "SAMPLE_1.png") == exported
    assert (store.meta(KEY, "ok", "SAMPLE_2.bmp"), store.has_meta(KEY, "ok", "SAMPLE_2.bmp")) == ({}, False)
    shape = known_shape(exported)
    assert shape and (shape.kind, known_mm_per_px(exported)) == ("circle", 0.25)
    assert not store.add(KEY, "ok", [draft(0)])[0].new
    assert store.all_keys() == [KEY]


def test_a_changed_file_is_no_longer_the_image_that_its_metadata_names(store: SampleStore) -> None:
    (kept,) = store.add(KEY, "ok", [draft(0)])
    store.path(KEY, "ok", kept.name).write_bytes(encoded(part(1)))
    assert store.add(KEY, "ok", [draft(0)])[0].new
    assert not store.add(KEY, "ok", [draft(1)])[0].new


def test_a_full_quota_refuses_and_deletes_nothing(tmp_path: Path) -> None:
    size = len(encoded(part(0)))
    store = SampleStore(tmp_path / "datasets", max_gb=3.5 * size / 2**30)
    store.add(KEY, "ok", [draft(0)])
    before = tree(store.root)
    with pytest.raises(DatasetsFull) as caught:
        store.add(KEY, "ok", [draft(n) for n in range(1, 5)])
    assert (status_of(caught.value), tree(store.root)) == (507, before)
    assert not store.add(KEY, "ok", [draft(0)])[0].new


def test_a_disk_that_fills_half_way_leaves_none_of_the_batch(
    store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(KEY, "ok", [draft(0)])
    before, real, left = tree(store.root), os.fsync, [7]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "no space")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFull):
        store.add(KEY, "ok", [draft(n) for n in range(1, 9)])
    assert tree(store.root) == before


def test_a_write_still_under_way_when_another_fails_leaves_nothing(
    store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(KEY, "ok", [draft(0)])
    before, real, first = tree(store.root), os.fsync, [True]

    def fsync(handle: int) -> None:
        if first.pop() if first else False:
            raise OSError(errno.ENOSPC, "no space")
        time.sleep(0.1)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFull):
        store.add(KEY, "ok", [draft(n) for n in range(1, 9)])
    assert tree(store.root) == before


def test_writers_at_the_same_time_store_each_image_once(store: SampleStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.add(KEY, "ok", [draft(n) for n in range(5)]), range(8)))
    assert len(store.names(KEY, "ok")) == 5
    assert sorted(store.digests(KEY, "ok").values()) == sorted(set(store.digests(KEY, "ok").values()))


def test_deleting_and_clearing(store: SampleStore) -> None:
    kept = store.add(KEY, "ok", [draft(n) for n in range(3)])
    store.add(KEY, "ng", [draft(9)])
    store.delete(KEY, "ok", kept[0].name)
    with pytest.raises(SampleNotFound):
        store.read(KEY, "ok", kept[0].name)
    (store.folder(KEY, "ok") / "of_a_sample_whose_deletion_was_cut_off.json").write_text("{}")
    assert (store.clear(KEY, ["ok"]), store.clear(KEY, ["ok"]), len(store.names(KEY, "ng"))) == (2, 0, 1)
    assert not list(store.folder(KEY, "ok").iterdir())
    with pytest.raises(DatasetNotFound):
        store.clear(RED)


def test_a_sample_moves_to_the_other_label_with_what_is_known_of_it(store: SampleStore) -> None:
    (kept,) = store.add(KEY, "ok", [draft(1)])
    known = store.meta(KEY, "ok", kept.name)
    assert store.move(KEY, kept.name, "ok", "ng") == kept.name
    assert store.names(KEY, "ok") == [] and not list(store.folder(KEY, "ok").glob("*.json"))
    moved = store.meta(KEY, "ng", kept.name)
    assert moved.pop("relabelled_utc") and moved == {**known, "label": "ng"}
    assert store.read(KEY, "ng", kept.name) == encoded(part(1))
    assert list(store.digests(KEY, "ng").values()) == [kept.sha256]


def test_a_name_that_is_taken_under_the_other_label_gets_a_number(store: SampleStore) -> None:
    for label, seed in (("ok", 1), ("ng", 2)):
        store.folder(KEY, label).mkdir(parents=True)
        (store.folder(KEY, label) / "a[1].png").write_bytes(encoded(part(seed)))
    assert store.move(KEY, "a[1].png", "ok", "ng") == "a[1]_1.png"
    assert store.names(KEY, "ng") == ["a[1].png", "a[1]_1.png"]
    assert store.read(KEY, "ng", "a[1]_1.png") == encoded(part(1))


def test_an_image_that_is_under_the_other_label_already_is_there_once(store: SampleStore) -> None:
    (ok,), (ng,) = store.add(KEY, "ok", [draft(1)]), store.add(KEY, "ng", [draft(1)])
    assert store.move(KEY, ok.name, "ok", "ng") == ng.name
    assert (store.names(KEY, "ok"), store.names(KEY, "ng")) == ([], [ng.name])


def test_a_move_that_the_disk_refuses_leaves_the_sample_where_it_was(
    store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = store.add(KEY, "ok", [draft(1)])
    before, rename = tree(store.root), Path.replace

    def refuses(path: Path, target: Path) -> Path:
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, "no space")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", refuses)
    with pytest.raises(DiskFull):
        store.move(KEY, kept.name, "ok", "ng")
    monkeypatch.undo()
    assert tree(store.root) == before
    assert store.move(KEY, kept.name, "ok", "ng") == kept.name


def test_what_is_not_there_does_not_move(store: SampleStore) -> None:
    with pytest.raises(SampleNotFound):
        store.move(KEY, "gone.png", "ok", "ng")


@pytest.mark.parametrize(
    "name",
    ["", "../a.png", "a/b.png", "a\\b.png", "/etc/a.png", "C:a.png", ".hidden.png", "a.json", "history.jsonl",
     "a.png\0", "..", "x" * 300 + ".png", "a.png:stream.png", "ok/../../x.png"],
)  # fmt: skip
def test_a_filename_with_a_path_in_it_is_refused(store: SampleStore, name: str) -> None:
    store.add(KEY, "ok", [draft(0)])
    for work in (check_filename, lambda n: store.read(KEY, "ok", n), lambda n: store.delete(KEY, "ok", n)):
        with pytest.raises(InvalidFilename):
            work(name)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_that_leads_out_of_the_folder_is_no_sample(store: SampleStore, tmp_path: Path) -> None:
    store.add(KEY, "ok", [draft(0)])
    (tmp_path / "secret.png").write_bytes(b"secret")
    (store.folder(KEY, "ok") / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SampleNotFound):
        store.read(KEY, "ok", "link.png")


@pytest.mark.parametrize("label", ["", "good", "OK/", "ok,ng", "../ok"])
def test_a_label_that_is_neither_ok_nor_ng_is_refused(label: str) -> None:
    assert check_label(" NG ") == "ng"
    with pytest.raises(InvalidLabel):
        check_label(label)


def test_damaged_metadata_is_named(store: SampleStore) -> None:
    (kept,) = store.add(KEY, "ok", [draft(0)])
    (store.folder(KEY, "ok") / kept.name).with_suffix(".json").write_text("{")
    with pytest.raises(DamagedFile, match=r"datasets/Master1/Pattern/ok/SAMPLE_.*\.json"):
        store.meta(KEY, "ok", kept.name)
    assert store.read(KEY, "ok", kept.name) == encoded(part(0))
    assert not store.add(KEY, "ok", [draft(0)])[0].new


FILES = [part_file(0), part_file(1)]


@pytest.mark.parametrize(
    ("metas", "error"),
    [
        (["{}"], MetasMismatch),
        (["{}", "{}", "{}"], MetasMismatch),
        (["[{}]"], MetasMismatch),
        (["{}", "no json"], MetasNotJson),
        (["{}", "[]"], MetasNotJson),
        (["{}", '"text"'], MetasNotJson),
        (["{}", '{"angle": NaN}'], MetasNotJson),
        (["{}", '{"a": "\\ud800"}'], MetasNotJson),
        (["{}", "[" * 100_000], MetasNotJson),
        (["{}", '{"mm_per_px": 0}'], MetaInvalid),
        (["{}", '{"mm_per_px": "wide"}'], MetaInvalid),
        (["{}", '{"mm_per_px": true}'], MetaInvalid),
        (["{}", '{"mm_per_px": [1]}'], MetaInvalid),
    ],
)
def test_metas_that_do_not_fit_are_refused(metas: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        drafts(FILES, metas, source="test")


def test_metas_may_come_one_by_one_or_as_one_list() -> None:
    each, _ = drafts(FILES, ['{"mm_per_px": "0.5"}', '{"mm_per_px": null}'], source="test", mm_per_px=0.1)
    listed, _ = drafts(FILES, ['[{"mm_per_px": 0.5}, {}]'], source="test", mm_per_px=0.1)
    assert [d.mm_per_px for d in each] == [d.mm_per_px for d in listed] == [0.5, 0.1]


def test_every_broken_image_is_named() -> None:
    cut = encoded(part(5))[:200]
    files = [part_file(0), ImageFile("cut.png", lambda: cut), ImageFile("text.png", lambda: b"text")]
    with pytest.raises(BrokenImages) as caught:
        drafts(files, [], source="test")
    assert all(
        name in sentence(caught.value, language) for name in ("cut.png", "text.png") for language in ("es", "en")
    )
    assert "0.png" not in sentence(caught.value, "en").replace("cut.png", "")


def test_a_shape_in_metadata_may_be_text_object_or_nothing() -> None:
    assert known_shape({"shape": None, "shape_json": ""}) is None
    assert known_shape({"shape_json": {"kind": "circle", "cx": 1, "cy": 1, "r": 1}}) is not None
    with pytest.raises(InvalidShape):
        known_shape({"shape_json": "{"})
