"""A model that goes from one service to another as one file."""

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from backend.base.bundle import read_bundle, write_bundle
from backend.base.keys import ModelKey
from backend.samples.history import FitHistory
from backend.service.packing import put, read_packed
from backend.storage import Change, ModelStore
from tests.api.routes.calls import FIT, IDS, fit
from tests.api.routes.test_versions import golden_scores, prepare, serving
from tests.mutations import Whole, each
from tests.parts import encoded, part, tree

KEY = ModelKey.of("Master1", "Pattern")
OTHER = {"role_id": "Line 2", "roi_id": "Muelle ñ"}
SEEDS = (90, 91)


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service with a calibrated model, whose good scores are kept, and a golden sample of it."""
    with serving(tmp_path_factory.mktemp("packing")) as client:
        fit(client, *range(6))
        body = {**IDS, "mm_per_px": 0.2, "ok_scores": [0.1, 0.2, 0.3], "ng_scores": [0.8]}
        assert client.post("/calibrate_ng", json=body).status_code == 200
        name = client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["files"][0]
        assert client.post("/datasets/golden", json={**IDS, "filename": name}).status_code == 200
        store = client.app.state.inspector.store  # type: ignore[attr-defined]
        store.save_certificate(KEY, {"model": {"generation": store.load_memory(KEY).generation}, "parts": {"n": 6}})
        yield client


@pytest.fixture(scope="module")
def packed(packing: TestClient) -> bytes:
    answer = packing.get("/models/pack", params=IDS)
    assert answer.status_code == 200, answer.text
    assert "Master1_Pattern.bdim" in answer.headers["content-disposition"]
    return answer.content


def unpack(client: TestClient, data: bytes, **fields: Any) -> Any:
    return client.post("/models/unpack", data=fields, files={"file": ("line.bdim", data, "application/octet-stream")})


def verdicts(client: TestClient, **ids: str) -> list[tuple[Any, ...]]:
    found = []
    for seed in SEEDS:
        files = {"image": ("roi.png", encoded(part(seed, defect=True)), "image/png")}
        answer = client.post("/infer", data={**FIT, **ids}, files=files).json()
        found.append((answer["score"], answer["threshold"], answer["regions"], answer["heatmap_png_base64"]))
    return found


@pytest.mark.parametrize("kept", [pytest.param("float16", marks=pytest.mark.slow), "int8"])
def test_a_compact_memory_scores_elsewhere_as_it_did_to_the_last_bit(kept: str, tmp_path: Path) -> None:
    with serving(tmp_path / "one", memory_dtype=kept) as one, serving(tmp_path / "two") as two:
        fit(one, *range(4))
        data = one.get("/models/pack", params=IDS).content
        answer = unpack(two, data, **OTHER)
        assert answer.status_code == 200, answer.text
        assert verdicts(two, **OTHER) == verdicts(one)


def test_calibration_and_certificate_come_along_under_another_name(
    packing: TestClient, packed: bytes, tmp_path: Path
) -> None:
    (tmp_path / "datasets" / Path(*OTHER.values())).mkdir(parents=True)  # without samples there is no history
    with serving(tmp_path) as client:
        answer = unpack(client, packed, author="Eva", note="line 2", **OTHER).json()
        assert answer["unpacked"] and answer["calib_present"] and answer["warnings"] == []
        assert (answer["role_id"], answer["roi_id"]) == tuple(OTHER.values())
        assert answer["unpacked_from"]["model"] == str(KEY)
        assert verdicts(client, **OTHER) == verdicts(packing)
        store, key = client.app.state.inspector.store, ModelKey.of(**OTHER)  # type: ignore[attr-defined]
        ours = packing.app.state.inspector.store.load_calibration(KEY)  # type: ignore[attr-defined]
        theirs = store.load_calibration(key)
        assert theirs["generation"] == answer["generation"]
        assert {**theirs, "generation": ""} == {**ours, "generation": ""}
        assert store.load_certificate(key) == {"model": {"generation": answer["generation"]}, "parts": {"n": 6}}
        assert store.metadata(key)["author"] == "Eva"
        events = FitHistory(tmp_path / "datasets").read(key)
        assert [event["event"] for event in events] == ["fit", "calibrate"]
        assert not [name for name in tree(tmp_path / "models") if "arriving" in name or "restoring" in name]
        state = client.get("/state", params=OTHER).json()
        assert state["memory_fitted"] and state["calib_present"]


def test_a_model_that_is_there_is_replaced_only_when_asked_and_is_kept(packed: bytes, tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        fit(client, 20, 21, 22)
        scores, before = verdicts(client), tree(tmp_path / "models")
        refused = unpack(client, packed)
        assert (refused.status_code, refused.json()["code"]) == (409, "model_exists")
        assert tree(tmp_path / "models") == before
        assert unpack(client, packed, replace="true").status_code == 200
        assert verdicts(client) != scores
        former = client.get("/versions", params=IDS).json()["versions"][0]
        assert former["replaced_by"]["event"] == "unpack"
        assert client.post(f"/versions/{former['version']}/restore", json=IDS).status_code == 200
        assert verdicts(client) == scores


def test_an_uncalibrated_model_takes_the_former_calibration_away(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        fit(client, 0, 1, 2)
        bare = client.get("/models/pack", params=IDS).content
        assert client.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.1]}).status_code == 200
        assert unpack(client, bare, replace="true").json()["calib_present"] is False
        assert verdicts(client)[0][1] is None
        assert client.get("/state", params=IDS).json()["calib_present"] is False


def test_a_damaged_file_is_refused_and_nothing_is_written(packed: bytes, tmp_path: Path) -> None:
    bundle = read_bundle(packed, "bdim", "line.bdim")
    grid = bundle.about | {"grid": [0, 8]}
    odd = {**bundle.parts, "more.json": b"{}"}
    short = {**bundle.parts, "memory_src.npy": bundle.parts["memory_src.npy"].replace(b"i4", b"i2")}
    loose = {**bundle.parts, "calibration.json": b'{"threshold": NaN}'}
    flipped = bytearray(packed)
    flipped[len(flipped) // 2] ^= 1
    with serving(tmp_path) as client:
        before = tree(tmp_path / "models")
        for data in (
            bytes(flipped), packed[:-9], b"", b"no zip at all",
            *(bundled(tmp_path, about, parts) for about, parts in (
                (grid, bundle.parts), (bundle.about, odd), (bundle.about, short), (bundle.about, loose),
                (bundle.about | {"model": {"role_id": "../x", "roi_id": "y", "recipe_id": "default"}}, bundle.parts),
                (bundle.about | {"metadata": []}, bundle.parts),
            )),
        ):  # fmt: skip
            answer = unpack(client, data)
            assert (answer.status_code, answer.json()["code"]) == (400, "bundle_refused"), answer.text
            assert "line.bdim" in answer.json()["error"]
        assert tree(tmp_path / "models") == before
        assert client.post("/models/unpack", data=IDS).status_code == 422
        assert unpack(client, packed, role_id="../x").json()["code"] == "invalid_id"


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_two_hundred_damaged_files_are_refused_in_words_and_nothing_is_written(
    packed: bytes, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = 0
    with serving(tmp_path) as client:
        before = tree(tmp_path).keys()
        for what, data in each(Whole(packed, "bdim"), step):
            began, tried = perf_counter(), tried + step
            answer = unpack(client, data)
            assert perf_counter() - began < 5, what
            assert (answer.status_code, answer.json()["code"]) == (400, "bundle_refused"), (what, answer.text)
            assert "line.bdim" in answer.json()["error"] and "\n" not in answer.json()["error"], what
            assert tree(tmp_path).keys() == before, what
    assert tried > 200


def bundled(folder: Path, about: dict[str, Any], parts: Any) -> bytes:
    path = folder / "changed.bdim"
    with path.open("wb+") as file:
        write_bundle(file, "bdim", {k: v for k, v in about.items() if k not in {"kind", "format"}}, parts)
    return path.read_bytes()


def test_a_model_of_another_extractor_is_refused_before_anything_is_written(packed: bytes, tmp_path: Path) -> None:
    bundle = read_bundle(packed, "bdim", "line.bdim")
    metadata = {**bundle.about["metadata"], "fingerprint": "another"}
    other = bundled(tmp_path, bundle.about | {"metadata": metadata}, bundle.parts)
    with serving(tmp_path) as client:
        answer = unpack(client, other)
        assert answer.json()["code"] == "extractor_mismatch" and "another" in answer.json()["error"]
        assert tree(tmp_path / "models") == {}


def test_a_service_that_only_reads_packs_and_does_not_unpack(packing: TestClient, packed: bytes) -> None:
    root = packing.app.state.settings.models_dir.parent  # type: ignore[attr-defined]
    with serving(root, read_only=True) as client:
        assert client.get("/models/pack", params=IDS).content == packed
        assert unpack(client, packed, **OTHER).json()["code"] == "read_only_replica"
    missing = packing.get("/models/pack", params={**IDS, "roi_id": "Nothing"})
    assert (missing.status_code, missing.json()["code"]) == (400, "memory_not_found")


def test_golden_samples_are_held_against_a_model_that_comes(packed: bytes, tmp_path: Path) -> None:
    with serving(tmp_path, golden_blocks=True) as client:
        fit(client, 20, 21, 22)
        assert client.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.4]}).status_code == 200
        name = client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["files"][0]
        client.post("/datasets/golden", json={**IDS, "filename": name})
        strict = read_bundle(packed, "bdim", "line.bdim")
        low = {**strict.parts, "calibration.json": b'{"threshold": 0.0}'}
        before = tree(tmp_path / "models")
        answer = unpack(client, bundled(tmp_path, strict.about, low), replace="true")
        assert (answer.status_code, answer.json()["code"]) == (409, "golden_flipped"), answer.text
        assert tree(tmp_path / "models") == before


def test_golden_samples_come_along_and_score_as_they_did_to_the_last_bit(tmp_path: Path) -> None:
    with serving(tmp_path / "one") as one:
        prepare(one)
        scores = golden_scores(one)
        data = one.get("/models/pack", params=IDS).content
    with serving(tmp_path / "two") as two:
        answer = unpack(two, data, **OTHER).json()
        assert answer["golden"] == {
            "n": 2, "gap": 0.0, "same_extractor": True, "same_processor": True,
            "says": (
                "The golden samples score to the last bit as where it was packed "
                "(the same extractor file, the same processor)."
            ),
        }  # fmt: skip
        assert answer["warnings"] == []
        assert answer["unpacked_from"]["versions"][0]["calibration"]["threshold"] > 0
        assert answer["unpacked_from"]["settings"]["input_size"] == 112
        run = two.post("/golden/run", json=OTHER).json()
        assert {item["score"] for item in run["items"]} == set(scores.values()) and run["n_right"] == 2
        known = two.get("/golden", params=OTHER).json()["samples"]
        assert {sample["expected"] for sample in known} == {"ok", "ng"}
        again = unpack(two, data, replace="true", **OTHER).json()
        assert again["golden"]["gap"] == 0 and len(two.get("/golden", params=OTHER).json()["samples"]) == 2


def test_a_model_whose_golden_samples_score_otherwise_here_is_not_taken(tmp_path: Path) -> None:
    with serving(tmp_path / "one") as one:
        prepare(one)
        data = one.get("/models/pack", params=IDS).content
    bundle = read_bundle(data, "bdim", "line.bdim")
    known = bundle.json("golden.json")

    def moved(by: float, **scored_by: str) -> bytes:
        samples = [{**sample, "score": sample["score"] + by} for sample in known["samples"]]
        about = {**bundle.about, "scored_by": {**bundle.about["scored_by"], **scored_by}}
        return bundled(tmp_path, about, {**bundle.parts, "golden.json": json.dumps({"samples": samples}).encode()})

    with serving(tmp_path / "two") as two:
        refused = unpack(two, moved(0.002))
        assert (refused.status_code, refused.json()["code"]) == (409, "pack_disagrees"), refused.text
        broken = unpack(two, bundled(tmp_path, bundle.about, {**bundle.parts, "golden_0.image": b"no image"}))
        assert (broken.status_code, broken.json()["code"]) == (400, "bundle_refused"), broken.text
        assert tree(tmp_path / "two" / "models") == {}
        taken = unpack(two, moved(0.0005, processor="another", file="another")).json()["golden"]
        assert taken["gap"] == pytest.approx(0.0005)
        assert taken["says"] == (
            "The golden samples score within 5.0e-04 of where it was packed "
            "(another extractor file or way to run it, another processor)."
        )
    with serving(tmp_path / "three", score_method="max") as three:
        assert "(SCORE_METHOD=max, percentile there)" in unpack(three, data).json()["error"]


def test_whoever_dies_on_the_way_leaves_one_model_or_the_other(
    packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, rename = read_packed(packed, "line.bdim"), Path.replace
    for n_steps in range(5):
        store = ModelStore(tmp_path / str(n_steps))
        with store.writing(KEY):
            former = put(store, here, KEY, Change("unpack"), overwrite=False)
            store.save_calibration(KEY, {"threshold": 9.0, "generation": former.generation})
        left = iter(range(n_steps))

        def dying(path: Path, target: Path, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), store.writing(KEY):
            patch.setattr(Path, "replace", dying)
            put(store, here, KEY, Change("unpack"), overwrite=True)
        calibration, memory = store.load_calibration(KEY), store.load_memory(KEY)
        assert calibration is not None and calibration["generation"] == memory.generation
        assert (calibration["threshold"] == 9.0) == (memory.generation == former.generation)


def test_packing_is_the_same_each_time_and_gives_back_what_was_packed(packing: TestClient, packed: bytes) -> None:
    store = packing.app.state.inspector.store  # type: ignore[attr-defined]
    assert packing.get("/models/pack", params=IDS).content == packed
    here, there = read_packed(packed, "line.bdim").memory, store.load_memory(KEY)
    np.testing.assert_array_equal(here.emb, there.emb)
    assert here.metadata == there.metadata and here.grid == there.grid
