import errno
import io
import json
import os
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.api.catalogue import sentence
from backend.base import files as atomic
from backend.base.errors import (
    DamagedFile,
    DiskFull,
    FitInProgress,
    InspectionError,
    InvalidId,
    MemoryNotFound,
    OutOfMemory,
    ReadOnlyReplica,
    ReadOnlyStore,
    RecipeInvalid,
    StorageFailed,
)
from backend.base.files import read_fault
from backend.base.keys import ModelKey, check_id, check_recipe
from backend.base.messages import Phrase
from backend.memory.compact import compacted, in_float32, rows_dtype
from backend.patchcore import PatchCoreMemory, Reserve
from backend.service.models import ModelCache
from backend.storage import ModelStore, StoredMemory, next_version
from tests.parts import tree

KEY = ModelKey.of("Master1", "Pattern")


def rows(seed: int = 0, count: int = 12, dim: int = 8) -> Any:
    emb = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return emb / np.linalg.norm(emb, axis=1, keepdims=True)


def made(seed: int = 0, reserve: Reserve | None = None, **metadata: Any) -> StoredMemory:
    """A memory to be saved, one row from each of twelve images."""
    return StoredMemory(rows(seed), (3, 4), np.arange(12, dtype=np.int32), metadata, reserve=reserve)


def save(
    store: ModelStore, key: ModelKey = KEY, seed: int = 0, reserve: Reserve | None = None, **metadata: Any
) -> StoredMemory:
    with store.writing(key):
        return store.save_memory(key, made(seed, reserve, **metadata), PatchCoreMemory(rows(seed)).index_bytes())


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_a_memory_comes_back_as_it_was_saved(store: ModelStore) -> None:
    saved = save(store, fingerprint="f1", images=[{"name": "ñandú 零.png"}])
    loaded = store.load_memory(KEY)
    assert (loaded.emb == rows()).all() and loaded.emb.dtype == np.float32
    assert loaded.grid == (3, 4) and loaded.image_ids.tolist() == list(range(12))
    assert loaded.metadata == saved.metadata and loaded.fingerprint == "f1"
    assert loaded.generation == saved.generation != ""


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_in_fewer_digits_come_back_as_they_were_kept(store: ModelStore, dtype: Any) -> None:
    kept = compacted(rows(), dtype)
    spare = Reserve(rows(3, 5), np.arange(5, dtype=np.int32), 0.25)
    with store.writing(KEY):
        store.save_memory(KEY, replace(made(reserve=spare), rows=kept), PatchCoreMemory(kept).index_bytes())
    loaded = store.load_memory(KEY)
    assert rows_dtype(loaded.rows) == dtype and (loaded.emb == in_float32(kept)).all()
    assert 0 < np.abs(loaded.emb - rows()).max() < 0.005
    reserve = store.load_reserve(KEY, loaded)
    assert reserve is not None and (reserve.emb == in_float32(compacted(spare.emb, dtype))).all()
    with np.load(store.folder(KEY) / "memory.npz") as npz:  # codes are not called emb, or a reader took them for rows
        assert ("emb" in npz.files) is (dtype == "float16")


def test_plain_numpy_and_json_read_what_is_written(store: ModelStore) -> None:
    saved = save(store, coreset_rate=0.02)
    folder = store.folder(KEY)
    assert folder == store.root / "Master1" / "Pattern"
    with np.load(folder / "memory.npz", allow_pickle=False) as npz:
        assert set(npz.files) == {"emb", "token_h", "token_w", "src", "metadata"}
        assert npz["emb"].dtype == np.float32 and npz["src"].dtype == np.int32
        assert (int(npz["token_h"]), int(npz["token_w"])) == (3, 4)
        assert json.loads(str(npz["metadata"]))["generation"] == saved.generation
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["token_shape"] == [3, 4] and manifest["dim"] == 8 and manifest["coreset_size"] == 12


def test_faiss_reads_the_index(store: ModelStore) -> None:
    import faiss

    save(store)
    index = faiss.read_index(str(store.folder(KEY) / "index.faiss"))
    assert (index.ntotal, index.d) == (12, 8)
    assert np.allclose(index.reconstruct_n(0, 12), rows())


@pytest.mark.parametrize(
    "older",
    [
        {"metadata": '{"coreset_rate": 0.02}'},
        {"metadata": np.array(b'{"coreset_rate": 0.02}')},
        {"metadata": np.frombuffer(b'{"coreset_rate": 0.02}', np.uint8)},
        {"metadata": np.array({"coreset_rate": 0.02}, dtype=object)},
        {},
        {"token_h": np.array([3]), "token_w": np.array([4])},
        {"emb": rows().astype(np.float64)},
    ],
    ids=["text", "bytes", "utf8 array", "pickled", "none", "1-d numbers", "float64"],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_the_older_layout_loads(store: ModelStore, older: dict[str, Any], compressed: bool) -> None:
    folder = store.folder(KEY)
    folder.mkdir(parents=True)
    write = np.savez_compressed if compressed else np.savez
    write(folder / "memory.npz", **{"emb": rows(), "token_h": 3, "token_w": 4, **older})
    loaded = store.load_memory(KEY)
    assert np.allclose(loaded.emb, rows()) and loaded.emb.dtype == np.float32
    assert loaded.grid == (3, 4) and (loaded.image_ids == -1).all()
    assert loaded.generation == "" and loaded.fingerprint is None


def test_no_pickle_is_opened(store: ModelStore, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    folder = store.folder(KEY)
    folder.mkdir(parents=True)
    np.savez(
        folder / "memory.npz", emb=np.array([Trap()], dtype=object), token_h=1, token_w=1, metadata=np.array(Trap())
    )
    with pytest.raises(DamagedFile):
        store.load_memory(KEY)
    assert not (tmp_path / "sprung").exists()


def test_what_was_never_fitted_is_not_found(store: ModelStore) -> None:
    with pytest.raises(MemoryNotFound, match="Master1/Pattern"):
        store.load_memory(KEY)
    assert store.load_calibration(KEY) is None
    assert store.stamp(KEY) is None
    assert not store.root.exists()


def bad_npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{"emb": rows(), "token_h": 3, "token_w": 4, "src": np.arange(12), **arrays})
    return buffer.getvalue()


DAMAGED = {
    "empty": b"",
    "garbage": os.urandom(500),
    "cut off": bad_npz()[:-60],
    "cut in half": bad_npz()[:400],
    "a text": b'{"emb": []}',
    "a lone npy": b"\x93NUMPY\x01\x00v\x00",
    "rows of nan": bad_npz(emb=np.full((12, 8), np.nan, np.float32)),
    "one dimension": bad_npz(emb=rows().ravel()),
    "no rows": bad_npz(emb=np.empty((0, 8), np.float32), src=np.empty(0)),
    "text for numbers": bad_npz(emb=np.array([["a"] * 8] * 12)),
    "src of another length": bad_npz(src=np.arange(5)),
    "a grid of nothing": bad_npz(token_h=0),
    "two heights": bad_npz(token_h=np.array([3, 3])),
    "digits for numbers": bad_npz(emb=np.array([["1"] * 8] * 12)),
    "bytes for numbers": bad_npz(emb=np.array([[b"1"] * 8] * 12)),
    "complex rows": bad_npz(emb=rows().astype(np.complex64)),
    "dates for rows": bad_npz(emb=np.zeros((12, 8), "datetime64[s]")),
    "an endless height": bad_npz(token_h=np.inf),
    "src of text": bad_npz(src=np.array(["0"] * 12)),
    "src that is no number": bad_npz(src=np.full(12, np.nan)),
    "a narrow whitening": bad_npz(whiten=np.eye(7, dtype=np.float32)),
    "a flat whitening": bad_npz(whiten=np.ones(8, np.float32)),
    "a whitening of text": bad_npz(whiten=np.array([["1"] * 8] * 8)),
    "a whitening of nan": bad_npz(whiten=np.full((8, 8), np.nan, np.float32)),
    "a memory for each block": bad_npz(widths=np.array([4, 4]), part_src=np.zeros((12, 2), np.int32)),
    "a short foreground": bad_npz(foreground=np.ones(8, np.float32)),
    "a foreground of text": bad_npz(foreground=np.array(["1"] * 9)),
    "a foreground of nan": bad_npz(foreground=np.full(9, np.nan, np.float32)),
    "cosine that is a table": bad_npz(cosine=np.ones((2, 2), bool)),
    "cosine that is text": bad_npz(cosine="yes"),
    "metadata that is no json": bad_npz(metadata="{"),
    "metadata that is a list": bad_npz(metadata="[1]"),
}


def test_arrays_that_nobody_knows_are_let_be(store: ModelStore) -> None:
    save(store)
    (store.folder(KEY) / "memory.npz").write_bytes(bad_npz(theirs=np.array(["x"]), whiten=np.eye(8)))
    loaded = store.load_memory(KEY)
    assert loaded.extras.keys() == {"whiten"} and loaded.extras["whiten"].dtype == np.float32
    ModelCache(store, cache_mb=1, knn_backend="faiss").model(KEY)


@pytest.mark.parametrize("value", [None, "0.2", "x", [], {}, float("nan"), float("inf"), True])
def test_a_number_of_older_metadata_that_is_none_has_its_default(value: Any) -> None:
    stored = StoredMemory(rows(), (3, 4), np.zeros(12, np.int32), {"coreset_rate": value, "seed": 3})
    assert stored.number("coreset_rate", 0.02) == 0.02
    assert stored.number("seed", 0) == 3 and stored.number("absent", 7) == 7


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_memory_is_named_and_never_half_read(store: ModelStore, kind: str) -> None:
    save(store)
    path = store.folder(KEY) / "memory.npz"
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(DamagedFile, match=r"models/Master1/Pattern/memory\.npz"):
        store.load_memory(KEY)
    assert path.read_bytes() == DAMAGED[kind]


def test_a_zip_without_the_arrays_is_damaged(store: ModelStore) -> None:
    save(store)
    with zipfile.ZipFile(store.folder(KEY) / "memory.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(DamagedFile):
        store.load_memory(KEY)


def test_a_folder_in_the_files_place_is_damaged(store: ModelStore) -> None:
    (store.folder(KEY) / "memory.npz").mkdir(parents=True)
    with pytest.raises(DamagedFile):
        store.load_memory(KEY)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.integers(0, 10**6), st.binary(min_size=1, max_size=6))
def test_flipped_bytes_are_noticed_or_harmless(store: ModelStore, compressed: bool, place: int, patch: bytes) -> None:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, emb=rows(), token_h=3, token_w=4, metadata="{}")
    data = bytearray(buffer.getvalue())
    at = place % len(data)
    data[at : at + len(patch)] = patch
    path = store.folder(KEY) / "memory.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    with suppress(DamagedFile):
        assert np.array_equal(store.load_memory(KEY).emb, rows())


NO_CALIBRATIONS = [
    "",
    "{",
    "[]",
    "{}",
    '{"threshold": null}',
    '{"threshold": "x"}',
    '{"threshold": NaN}',
    '{"threshold": -0.1}',
    '{"threshold": -Infinity}',
    '{"threshold": []}',
    '{"threshold": 1' + "0" * 400 + "}",
    '{"threshold": 1, "area_mm2_thr": -1}',
    '{"threshold": 1, "area_mm2_thr": Infinity}',
    '{"threshold": 1, "score_percentile": 0}',
    '{"threshold": 1, "score_percentile": -5}',
    '{"threshold": 1, "score_percentile": []}',
    '{"threshold": 1, "area_mm2_thr": "a"}',
    '{"threshold": 1, "score_percentile": 101}',
    '{"threshold": 1, "score_percentile": NaN}',
    "[" * 100_000,
    "\0\0",
]


@pytest.mark.parametrize("text", NO_CALIBRATIONS)
def test_a_damaged_calibration_is_named(store: ModelStore, text: str) -> None:
    save(store)
    (store.folder(KEY) / "calib.json").write_text(text, "utf-8")
    with pytest.raises(DamagedFile, match=r"calib\.json") as caught:
        store.load_calibration(KEY)
    assert caught.value.values["remedy"] == Phrase("the_calibration")


def test_a_calibration_comes_back(store: ModelStore) -> None:
    store.save_calibration(KEY, {"threshold": 0.5, "p5_ng": None})
    assert store.load_calibration(KEY) == {**(store.load_calibration(KEY) or {}), "threshold": 0.5, "p5_ng": None}


@pytest.mark.parametrize(("name", "value"), [("threshold", 0), ("area_mm2_thr", 0.0), ("score_percentile", 100)])
def test_a_calibration_may_go_to_the_edge(store: ModelStore, name: str, value: float) -> None:
    store.save_calibration(KEY, {"threshold": 0.5, name: value})
    assert (store.load_calibration(KEY) or {})[name] == value


def test_an_older_calibration_may_leave_numbers_out_or_null(store: ModelStore) -> None:
    folder = store.folder(KEY)
    folder.mkdir(parents=True)
    (folder / "calib.json").write_text('{"threshold": 20.0, "area_mm2_thr": null, "score_percentile": null}')
    assert store.load_calibration(KEY) == {"threshold": 20.0}


class Broken:
    """Makes one step of writing fail with an errno."""

    def __init__(self, patch: pytest.MonkeyPatch, step: str, number: int) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        def half(file: Any, **_: Any) -> None:
            file.write(b"half of it")
            fail()

        opened = Path.open

        def to_write(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
            return fail() if "x" in mode else opened(path, mode, *args, **named)

        if step == "open":
            patch.setattr(Path, "open", to_write)
        elif step == "write":
            patch.setattr(np, "savez", half)
        elif step == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "replace", fail)


FAULTS = [
    (errno.ENOSPC, DiskFull),
    (errno.EDQUOT, DiskFull),
    (errno.EROFS, ReadOnlyStore),
    (errno.EACCES, ReadOnlyStore),
    (errno.EIO, StorageFailed),
]


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize(("number", "error"), FAULTS)
def test_a_failed_write_leaves_the_old_model(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, step: str, number: int, error: type[Exception]
) -> None:
    former = save(store, seed=1)
    before = tree(store.root)
    with store.writing(KEY), monkeypatch.context() as patch:
        Broken(patch, step, number)
        with pytest.raises(error):
            store.save_memory(KEY, made(2), b"index")
    assert tree(store.root) == before
    assert store.load_memory(KEY).generation == former.generation


def test_what_fails_after_the_commit_does_not_undo_it(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, seed=1)
    with store.writing(KEY), monkeypatch.context() as patch:
        patch.setattr(ModelStore, "write_derived", lambda *_: (_ for _ in ()).throw(DiskFull(path="index.faiss")))
        saved = store.save_memory(KEY, made(2), b"index")
    assert store.load_memory(KEY).generation == saved.generation
    assert not store.derived_is_current(KEY, saved.generation)
    ModelCache(store, cache_mb=1, knn_backend="faiss").model(KEY)
    assert store.derived_is_current(KEY, saved.generation)


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "open", refuse)
    atomic.write_atomic(tmp_path / "file", lambda file: file.write(b"new"))
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_held_open_by_windows_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "PAUSES", (0.0, 0.0))
    tries: list[int] = []

    def action() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError
        return "done"

    assert atomic.patiently(action) == "done"
    with pytest.raises(PermissionError):
        atomic.patiently(lambda: (_ for _ in ()).throw(PermissionError()))


def test_files_are_as_readable_as_the_users_others(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    atomic.write_json(tmp_path / "ours", {})
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_left_overs_of_a_killed_writer_go_with_the_next_write(store: ModelStore) -> None:
    save(store)
    left_over = store.folder(KEY) / ".memory.npz.0123.tmp"
    left_over.write_bytes(b"half")
    assert len(store.load_memory(KEY).emb) == 12
    save(store)
    assert not left_over.exists()


def test_an_index_of_another_generation_is_rebuilt(store: ModelStore) -> None:
    save(store, seed=1)
    old_index = (store.folder(KEY) / "index.faiss").read_bytes()
    saved = save(store, seed=2)
    (store.folder(KEY) / "index.faiss").write_bytes(old_index)
    assert not store.derived_is_current(KEY, saved.generation)
    model = ModelCache(store, cache_mb=1, knn_backend="faiss").model(KEY)
    assert model.memory.distances(rows(2)).max() < 1e-3
    assert store.derived_is_current(KEY, saved.generation)
    assert (store.folder(KEY) / "index.faiss").read_bytes() != old_index


@pytest.mark.parametrize("lost", ["index.faiss", "manifest.json"])
def test_what_is_derived_may_be_deleted(store: ModelStore, lost: str) -> None:
    saved = save(store)
    (store.folder(KEY) / lost).unlink()
    assert not store.derived_is_current(KEY, saved.generation)
    ModelCache(store, cache_mb=1, knn_backend="faiss").model(KEY)
    assert (store.folder(KEY) / lost).exists()


def test_a_reader_does_not_wait_for_a_writer_to_rebuild_an_index(store: ModelStore) -> None:
    save(store)
    (store.folder(KEY) / "index.faiss").unlink()
    with store.writing(KEY):
        assert len(ModelCache(store, cache_mb=1, knn_backend="faiss").model(KEY).memory) == 12
    assert not (store.folder(KEY) / "index.faiss").exists()


def test_without_faiss_no_index_is_kept(store: ModelStore) -> None:
    saved = save(store)
    assert store.derived_is_current(KEY, saved.generation, indexed=False)
    with store.writing(KEY):
        store.save_memory(KEY, made())
    assert not (store.folder(KEY) / "index.faiss").exists()


def test_two_writers_exclude_each_other(store: ModelStore) -> None:
    with store.writing(KEY):
        with pytest.raises(FitInProgress), store.writing(KEY, timeout=0.05):
            pass
        other = ModelKey.of("Master1", "Other")
        with store.writing(other, timeout=0.05):
            pass
    with FileLock(store.folder(KEY) / ".lock"), pytest.raises(FitInProgress), store.writing(KEY, timeout=0.05):
        pass


def test_readers_see_whole_files_while_a_writer_writes(store: ModelStore) -> None:
    save(store)
    stop = threading.Event()
    wrong: list[str] = []

    def look() -> None:
        try:
            loaded = store.load_memory(KEY)
            assert np.array_equal(loaded.emb, rows(int(loaded.metadata.get("seed", 0))))
        except (AssertionError, InspectionError) as err:
            wrong.append(f"{err!r} from {err.__cause__!r}")

    def read() -> None:
        while not stop.is_set():
            look()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for seed in range(25):
        with store.writing(KEY):
            store.save_memory(KEY, replace(made(seed), metadata={"seed": seed}))
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_the_stamp_changes_with_each_write(store: ModelStore) -> None:
    stamps = set()
    for _ in range(5):
        save(store)
        stamps.add(store.stamp(KEY))
    assert len(stamps) == 5


def test_the_version_counts_the_fits_of_a_year(store: ModelStore) -> None:
    first, second = (save(store).metadata["model_version"] for _ in range(2))
    year, _, number = first.partition(".")
    assert number == "1" and second == f"{year}.2"
    assert next_version("1999.7").endswith(".1") and next_version("junk").endswith(".1")


GOOD_IDS = ["Master1", "Pattern 2", "pieza_ñ", "盤", "a.b-c", "x" * 64, "1", "conveyor", "é"]
BAD_IDS = [
    "", " ", ".", "..", "../x", "a/b", "a\\b", "/etc", "C:x", "CON", "con.txt", "nul", "COM1", "com¹", "LPT9.log",
    "aux ", " a", "a ",
    ".a", "a.", "x" * 65, "x" * 300, "a\0b", "a\nb", "a:b", "a*b", "a?b", 'a"b', "a<b", "a|b",
    "recipes", "Datasets", "PATCHCORE",
    "\ud800", "a\u202eb", "🙂", "CONIN$",
]  # fmt: skip


@pytest.mark.parametrize("value", GOOD_IDS)
def test_ids_may_be_names_of_any_script(store: ModelStore, value: str) -> None:
    key = ModelKey.of(value, value)
    save(store, key)
    assert store.keys() == [key]


@pytest.mark.parametrize("value", BAD_IDS)
def test_an_id_that_cannot_name_a_folder_everywhere_is_refused(value: str) -> None:
    for arguments in ((value, "ok"), ("ok", value)):
        with pytest.raises(InvalidId) as caught:
            ModelKey.of(*arguments)
        assert len(sentence(caught.value, "es")) < 400
        sentence(caught.value, "en").encode()  # an answer must be able to carry it


def test_the_same_name_composed_differently_is_the_same_id() -> None:
    assert check_id("n\u0303", "role_id") == "\u00f1"


@given(st.text(max_size=80))
def test_any_text_is_an_id_or_is_refused(value: str) -> None:
    try:
        folder = ModelStore(Path("/models")).folder(ModelKey.of(value, value))
    except InspectionError:
        return
    assert folder.parent.parent == Path("/models")


def test_a_link_out_of_the_models_folder_is_not_followed(store: ModelStore, tmp_path: Path) -> None:
    store.root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (store.root / "Master1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidId):
        store.folder(KEY)


def test_a_recipe_is_a_namespace_of_its_own(store: ModelStore) -> None:
    key = ModelKey.of("Master1", "Pattern", "Night-Shift")
    save(store, key)
    assert store.folder(key) == store.root / "recipes" / "night-shift" / "Master1" / "Pattern"
    with pytest.raises(MemoryNotFound):
        store.load_memory(KEY)
    assert store.keys() == [key] and str(key) == "Master1/Pattern (night-shift)"


@pytest.mark.parametrize("value", [None, "", "  ", "default", "DEFAULT"])
def test_without_a_recipe_it_is_the_default_one(value: str | None) -> None:
    assert ModelKey.of("a", "b", value) == ModelKey.of("a", "b")


@pytest.mark.parametrize("value", ["last", "LAST", "_a", "-a", "a b", "a/b", "../x", "ñ", "a" * 65, "a\0", "a\nb"])
def test_a_recipe_outside_the_rule_is_refused(value: str) -> None:
    with pytest.raises(RecipeInvalid):
        check_recipe(value)


def test_folders_that_are_no_models_are_not_listed(store: ModelStore) -> None:
    save(store)
    stray = store.root / "_bad." / "x"
    stray.mkdir(parents=True)
    (stray / "memory.npz").write_bytes(b"")
    assert store.keys() == [KEY]


def test_a_store_that_cannot_be_written_says_so(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ReadOnlyStore), store.writing(KEY):
        pass


def reserve_of(count: int = 5) -> Reserve:
    return Reserve(rows(9, count), np.arange(count, dtype=np.int32), 0.25)


def test_what_a_memory_has_in_reserve_lies_beside_it_for_whoever_asks(store: ModelStore) -> None:
    saved = save(store, reserve=reserve_of())
    assert saved.reserve is None and store.load_memory(KEY).reserve is None
    found = store.load_reserve(KEY, saved)
    assert found is not None and (found.emb == rows(9, 5)).all() and found.emb.dtype == np.float32
    assert found.image_ids.tolist() == [0, 1, 2, 3, 4] and found.beyond == 0.25
    with np.load(store.folder(KEY) / "reserve.npz", allow_pickle=False) as npz:
        assert set(npz.files) == {"emb", "src", "beyond", "generation"}


def test_a_reserve_belongs_to_one_generation(store: ModelStore) -> None:
    former = save(store, reserve=reserve_of())
    now = save(store, reserve=reserve_of(3))
    assert store.load_reserve(KEY, former) is None
    assert len(store.load_reserve(KEY, now).emb) == 3  # type: ignore[union-attr]
    assert store.load_reserve(KEY, replace(now, metadata={})) is None


@pytest.mark.parametrize("nothing", [None, Reserve(np.empty((0, 8), np.float32), np.empty(0, np.int32), 0.0)])
def test_a_memory_with_nothing_in_reserve_leaves_no_file(store: ModelStore, nothing: Reserve | None) -> None:
    save(store, reserve=reserve_of())
    saved = save(store, reserve=nothing)
    assert not (store.folder(KEY) / "reserve.npz").exists()
    assert store.load_reserve(KEY, saved) is None


DAMAGED_RESERVES: dict[str, dict[str, Any]] = {
    "rows of another width": {"emb": rows(9, 5, dim=7)},
    "float64 rows": {"emb": rows(9, 5).astype(np.float64)},
    "fewer images": {"src": np.arange(4, dtype=np.int32)},
    "images of int64": {"src": np.arange(5)},
    "a table of images": {"src": np.zeros((5, 1), np.int32)},
    "rows of nan": {"emb": np.full((5, 8), np.nan, np.float32)},
    "an endless distance": {"beyond": np.inf},
    "text for a distance": {"beyond": "far"},
}


@pytest.mark.parametrize("kind", [*DAMAGED_RESERVES, "cut off", "no file of ours"])
def test_a_damaged_reserve_is_done_without_and_said(
    store: ModelStore, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved = save(store, reserve=reserve_of())
    path = store.folder(KEY) / "reserve.npz"
    if kind in DAMAGED_RESERVES:
        known = {"emb": rows(9, 5), "src": np.arange(5, dtype=np.int32), "beyond": 0.25, "generation": saved.generation}
        np.savez(path, **{**known, **DAMAGED_RESERVES[kind]})
    else:
        path.write_bytes(path.read_bytes()[:99] if kind == "cut off" else b"text")
    assert store.load_reserve(KEY, saved) is None
    assert "reserve.npz cannot be used, so this growth chooses among new images alone" in caplog.text


def test_a_reserve_that_cannot_be_written_costs_the_next_growth_and_nothing_else(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    former = save(store, reserve=reserve_of())
    (store.folder(KEY) / "reserve.npz").unlink()
    (store.folder(KEY) / "reserve.npz").mkdir()  # no file can be renamed over it
    saved = save(store, seed=1, reserve=reserve_of())
    assert store.load_memory(KEY).generation == saved.generation != former.generation
    assert store.derived_is_current(KEY, saved.generation)
    assert "the next growth chooses among new images alone" in caplog.text
    assert store.load_reserve(KEY, saved) is None


def test_a_deleted_model_can_be_moved_back(store: ModelStore) -> None:
    saved = save(store, reserve=reserve_of())
    store.save_calibration(KEY, {"threshold": 0.5})
    with store.writing(KEY):
        trash = store.move_to_trash(KEY)
    assert trash.relative_to(store.root).parts[::2] == (".trash", "Master1") and trash.name == "Pattern"
    names = ["calib.json", "index.faiss", "manifest.json", "memory.npz", "reserve.npz"]
    assert sorted(path.name for path in trash.iterdir()) == names
    assert store.stamp(KEY) is None and store.keys() == []
    with pytest.raises(MemoryNotFound), store.writing(KEY):
        store.move_to_trash(KEY)
    for path in trash.iterdir():
        path.rename(store.folder(KEY) / path.name)
    assert store.load_memory(KEY).generation == saved.generation and store.load_reserve(KEY, saved) is not None


def test_a_calibration_alone_can_be_deleted_too(store: ModelStore) -> None:
    store.save_calibration(KEY, {"threshold": 0.5})
    with store.writing(KEY):
        assert [path.name for path in store.move_to_trash(KEY).iterdir()] == ["calib.json"]
    assert store.load_calibration(KEY) is None


def test_the_trash_keeps_for_days_and_leaves_alone_what_it_did_not_put_there(store: ModelStore) -> None:
    trash = []
    for recipe in (None, "night"):
        key = ModelKey.of("Master1", "Pattern", recipe)
        save(store, key)
        with store.writing(key):
            trash.append(store.move_to_trash(key))
    assert trash[1].relative_to(store.root).parts[2:] == ("recipes", "night", "Master1", "Pattern")
    stray = store.root / ".trash" / "notes"
    stray.mkdir()
    assert store.empty_trash(1) == 0 and all(folder.is_dir() for folder in trash)
    assert store.empty_trash(0) == 2 and [path.name for path in (store.root / ".trash").iterdir()] == ["notes"]
    assert store.empty_trash(0) == 0


def test_a_read_only_store_writes_nothing_and_empties_no_trash(store: ModelStore) -> None:
    save(store)
    with store.writing(KEY):
        store.move_to_trash(KEY)
    saved = save(store)
    before = tree(store.root)
    replica = ModelStore(store.root, read_only=True)
    assert replica.empty_trash(0) == 0
    with pytest.raises(ReadOnlyReplica), replica.writing(KEY):
        pytest.fail("it must not be let in")
    with pytest.raises(ReadOnlyReplica):
        replica.write_derived(KEY, saved, None)
    assert tree(store.root) == before and replica.load_memory(KEY).generation == saved.generation


def test_an_older_memory_has_nothing_derived_that_could_be_out_of_date(store: ModelStore) -> None:
    assert store.derived_is_current(KEY, "") and not store.derived_is_current(KEY, "g")


@pytest.mark.parametrize("text", ["", "[1]", '"text"', "7", "{"])
def test_a_manifest_that_is_no_object_says_nothing(store: ModelStore, text: str) -> None:
    assert store.manifest(KEY) == {}
    save(store, images=[{"name": "ñandú.png", "sha256": ""}])
    assert store.manifest(KEY)["images"][0]["name"] == "ñandú.png"
    (store.folder(KEY) / "manifest.json").write_text(text, "utf-8")
    assert store.manifest(KEY) == {}


def test_what_is_damaged_is_told_with_the_reason_and_the_remedy(store: ModelStore) -> None:
    save(store)
    (store.folder(KEY) / "memory.npz").write_bytes(bad_npz(metadata="[1]"))
    (store.folder(KEY) / "calib.json").write_text('{"threshold": 0.1, "area_mm2_thr": -1}', "utf-8")
    loads: list[tuple[Callable[[ModelKey], object], str, str, str]] = [
        (store.load_memory, "memory.npz", "metadata is no JSON object", "the_learning"),
        (store.load_calibration, "calib.json", "area_mm2_thr is -1", "the_calibration"),
    ]
    for load, name, reason, remedy in loads:
        with pytest.raises(DamagedFile) as caught:
            load(KEY)
        path = f"models/Master1/Pattern/{name}"
        assert caught.value.values == {"path": path, "reason": reason, "remedy": Phrase(remedy)}


def test_a_calibration_says_when_it_was_made(store: ModelStore) -> None:
    store.save_calibration(KEY, {"threshold": 0.5})
    found = store.load_calibration(KEY)
    assert found is not None and list(found) == ["threshold", "created_utc"] and found["created_utc"].endswith("Z")


def test_a_folder_with_an_unfit_name_hides_no_model_after_it(store: ModelStore) -> None:
    keys = [ModelKey.of("a", "b"), ModelKey.of("z", "b"), ModelKey.of("a", "b", "night")]
    for key in keys:
        save(store, key)
    for unfit in (
        store.root / "b_." / "x",
        store.root / "recipes" / "No" / "a" / "b",
        store.root / "recipes" / "last" / "a" / "b",
    ):
        unfit.mkdir(parents=True)
        (unfit / "memory.npz").write_bytes(b"")
    assert set(store.keys()) >= set(keys) and len(store.keys()) <= len(keys) + 1


def test_what_the_trash_did_is_in_the_log(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with pytest.raises(MemoryNotFound, match=r"key=Master1/Pattern"), store.writing(KEY):
        store.move_to_trash(KEY)
    save(store)
    with store.writing(KEY):
        store.move_to_trash(KEY)
    store.empty_trash(0.5)
    assert caplog.text == ""
    store.empty_trash(0)
    assert "emptied 1 models deleted more than 0 days ago from the trash" in caplog.text


REFUSALS = [(errno.EMFILE, "Too many open files"), (errno.EIO, "Input/output error"), (errno.EACCES, "Permission")]


@pytest.mark.parametrize("name", ["memory.npz", "calib.json", "certificate.json", "reserve.npz"])
@pytest.mark.parametrize(("number", "said"), REFUSALS)
def test_a_file_that_the_system_does_not_hand_over_is_not_called_damaged(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, name: str, number: int, said: str
) -> None:
    stored = save(store, seed=1)
    store.save_calibration(KEY, {"threshold": 0.5})
    (store.folder(KEY) / name).touch()
    read: dict[str, Callable[[ModelKey], object]] = {
        "memory.npz": store.load_memory,
        "calib.json": store.load_calibration,
        "certificate.json": store.load_certificate,
        "reserve.npz": lambda key: store.load_reserve(key, stored),
    }
    with monkeypatch.context() as patch, pytest.raises(StorageFailed, match=said):
        Refusing(patch, number)
        read[name](KEY)
    with store.writing(KEY), monkeypatch.context() as patch, pytest.raises(StorageFailed):
        Refusing(patch, number)
        store.save_memory(KEY, made(2), b"index")
    assert store.load_memory(KEY).metadata["model_version"] == stored.metadata["model_version"]


class Refusing:
    """A system that opens no file for reading."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        patch.setattr(Path, "open", fail)
        patch.setattr(Path, "read_text", fail)


def test_only_an_array_that_the_file_cannot_hold_makes_a_lack_of_memory_damage(tmp_path: Path) -> None:
    file = tmp_path / "memory.npz"
    file.write_bytes(bytes(1000))
    for shape, kind in (((10, 10), OutOfMemory), ((10**9, 10**6), DamagedFile)):
        err = MemoryError("no")
        err.shape, err.dtype = shape, np.dtype(np.float32)  # type: ignore[attr-defined]
        assert isinstance(read_fault(err, file, path="memory.npz", remedy="/fit_ok"), kind)
    assert isinstance(read_fault(MemoryError(), file, path="memory.npz", remedy="/fit_ok"), OutOfMemory)


def test_no_version_is_given_twice_whatever_became_of_the_memory(store: ModelStore) -> None:
    def number() -> int:
        return int(save(store, seed=1).metadata["model_version"].partition(".")[2])

    assert [number(), number()] == [1, 2]
    (store.folder(KEY) / "memory.npz").write_bytes(b"damaged")
    assert number() == 3
    (store.folder(KEY) / "manifest.json").write_bytes(b"damaged")
    assert number() == 4
    for expected in (5, 6):
        with store.writing(KEY):
            store.move_to_trash(KEY)
        store.empty_trash(0)
        assert number() == expected
