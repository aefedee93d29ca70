"""Models that come back from their samples."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import pytest

from backend.base.errors import (
    Cancelled,
    FitInProgress,
    MemoryNotFound,
    NotEnoughSamples,
    WeightsUnavailable,
)
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.extractors.texture import TextureFeatures
from backend.samples.collector import Collector
from backend.samples.history import FitHistory
from backend.samples.intake import drafts
from backend.samples.store import TAKEN_BACK, TAUGHT, Draft
from backend.service.jobs import Job
from backend.tools import cli
from tests.parts import encoded, part, part_file, quick_settings

KEY = ModelKey.of("Master1", "Pattern")
RED = ModelKey.of("Master1", "Pattern", "red")
PROBES = [part_file(50), part_file(51, defect=True)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Collector]]:
    """Starts the service on one folder, as often as asked; the former one is stopped first."""
    started: list[Collector] = []

    def start(extractor: TextureFeatures | None = None, **given: Any) -> Collector:
        stop()
        collector = Collector(quick_settings(tmp_path, **{"coreset_rate": 0.1, **given}), extractor)
        collector.start()
        started.append(collector)
        return collector

    def stop() -> None:
        while started:
            started.pop().close()

    yield start
    stop()


def scores(collector: Collector, key: ModelKey = KEY) -> list[tuple[float, float | None]]:
    results = [collector.inspector.infer(key, probe, mm_per_px=0.2) for probe in PROBES]
    return [(result.inspection.score, result.threshold) for result in results]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    give_up = monotonic() + seconds
    while not condition():
        assert monotonic() < give_up, "it did not happen in time"
        sleep(0.02)


def rebuilt(collector: Collector, key: ModelKey = KEY) -> Collector:
    until(lambda: (collector.rebuilder.status(key) or {}).get("state") == "done")
    return collector


def lose_models(tmp_path: Path) -> None:
    """Move them away: something may still be written there, beside which a deletion would fail."""
    (tmp_path / "models").rename(tmp_path / f"lost-{uuid4()}")


@pytest.mark.parametrize("key", [KEY, RED])
def test_lost_models_come_back_with_their_scores_and_threshold(
    running: Callable[..., Collector], tmp_path: Path, key: ModelKey
) -> None:
    collector = running(augment_jitter=0.1)
    collector.fit(key, [part_file(n) for n in (2, 0, 1)], mm_per_px=0.2)
    collector.fit(key, [part_file(n) for n in (5, 1, 3)], mm_per_px=0.2, memory_fit=True)
    collector.fit(key, [part_file(4)], mm_per_px=0.2, memory_fit=True)
    calibrated = collector.calibrate(key)
    before, manifest = scores(collector, key), collector.manifest(key)
    lose_models(tmp_path)
    collector = rebuilt(running(rebuild_on_start=True, coreset_rate=0.5, seed=3), key)
    for (score, threshold), (was, threshold_was) in zip(scores(collector, key), before, strict=True):
        assert score == pytest.approx(was, abs=1e-4)
        assert threshold == threshold_was == calibrated.values["threshold"]
    after = collector.manifest(key)
    same = ("n_images", "n_embeddings", "coreset_size", "radius", "coreset_rate", "mm_per_px")
    assert [after["memory"][name] for name in same] == [manifest["memory"][name] for name in same]
    assert after["stale"] == {"memory": False, "calibration": False, "reasons": []}
    lose_models(tmp_path)
    again = scores(rebuilt(running(rebuild_on_start=True), key), key)
    assert [s for s, _ in again] == pytest.approx([s for s, _ in before], abs=1e-4)
    assert again[0][1] == before[0][1]


def test_every_step_of_a_rebuild_is_told_and_can_be_cancelled(
    running: Callable[..., Collector], tmp_path: Path
) -> None:
    class Watched(Job):
        def __init__(self, leaves_at: str = "") -> None:
            super().__init__()
            self.leaves_at, self.stages = leaves_at, list[str]()

        def report(self, stage: str, done: int, total: int) -> None:
            self.stages += [stage] if self.stages[-1:] != [stage] else []
            if " ".join(self.stages) == self.leaves_at:
                self.cancel()

    collector = running(coreset_rate=0.5)
    collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    collector.fit(KEY, [part_file(n) for n in range(3, 6)], mm_per_px=0.2, memory_fit=True)
    stamp = collector.inspector.store.stamp(KEY)
    leaver = Watched("extract coreset extract coreset")
    with pytest.raises(Cancelled):
        collector.rebuilder.rebuild(KEY, leaver, replace=True)
    assert collector.inspector.store.stamp(KEY) == stamp
    stayer = Watched()
    collector.rebuilder.rebuild(KEY, stayer, replace=True)
    assert stayer.stages == leaver.stages == ["extract", "coreset"] * 2


def test_nothing_is_rebuilt_unasked(running: Callable[..., Collector], tmp_path: Path) -> None:
    running().fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    lose_models(tmp_path)
    collector = running()
    collector.rebuilder.wait(60)
    assert collector.state(KEY)["memory_fitted"] is False
    assert "rebuild" not in collector.state(KEY)


def test_samples_without_a_record_are_fitted_whole(running: Callable[..., Collector], tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "Master1" / "Pattern" / "ok"
    folder.mkdir(parents=True)
    for n in range(4):
        (folder / f"SAMPLE_{n}.png").write_bytes(encoded(part(n)))
        (folder / f"SAMPLE_{n}.json").write_text(json.dumps({"mm_per_px": 0.4}))
    collector = rebuilt(running(rebuild_on_start=True))
    assert collector.state(KEY)["memory_fitted"] is True
    memory = collector.manifest(KEY)["memory"]
    assert (memory["n_images"], memory["mm_per_px"]) == (4, 0.4)
    assert collector.history.plan(KEY).generation == memory["generation"]


def test_a_deleted_model_stays_deleted_and_its_trash_brings_it_back(
    running: Callable[..., Collector], tmp_path: Path
) -> None:
    collector = running()
    collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    collector.calibrate(KEY)
    before = scores(collector)
    trash = tmp_path / "models" / collector.delete_model(KEY)
    assert sorted(path.name for path in trash.iterdir() if path.suffix != ".faiss") == [
        "calib.json",
        "manifest.json",
        "memory.npz",
        "reserve.npz",
        "versions",
    ]
    with pytest.raises(MemoryNotFound):
        collector.delete_model(KEY)
    collector = running(rebuild_on_start=True)
    collector.rebuilder.wait(60)
    assert (collector.state(KEY)["memory_fitted"], collector.models()) == (False, [])
    for path in trash.iterdir():
        path.rename(tmp_path / "models" / "Master1" / "Pattern" / path.name)
    assert scores(collector) == before
    collector.delete_model(KEY)
    assert collector.inspector.store.empty_trash(1) == 0
    assert collector.inspector.store.empty_trash(0) >= 1
    assert not list((tmp_path / "models" / ".trash").iterdir())


def test_images_that_are_gone_are_done_without_and_the_calibration_says_so(
    running: Callable[..., Collector], tmp_path: Path
) -> None:
    collector = running()
    collector.fit(KEY, [part_file(n) for n in range(4)], mm_per_px=0.2)
    collector.calibrate(KEY)
    collector.samples.delete(KEY, "ok", collector.samples.names(KEY, "ok")[0])
    lose_models(tmp_path)
    result = running().rebuilder.rebuild(KEY)
    assert result and (result.n_images, result.n_missing) == (3, 1)
    assert [notice.code for notice in result.notices] == ["rebuilt_in_part"]
    collector = running()
    codes = [notice.code for notice in collector.inspector.infer(KEY, PROBES[0], mm_per_px=0.2).warnings]
    assert codes == ["calibration_of_former_memory"]


def test_a_model_that_had_a_memory_for_each_block_comes_back_with_a_joint_one(
    running: Callable[..., Collector], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collector = running()
    collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    before = scores(collector)
    history = collector.history.path(KEY)
    line = json.loads(history.read_text("utf-8"))
    history.write_text(json.dumps({**line, "patchcore_memories": "separate"}) + "\n", "utf-8")
    lose_models(tmp_path)
    assert scores(rebuilt(running(rebuild_on_start=True))) == before
    assert "Master1/Pattern had a memory for each block" in caplog.text


def test_without_any_of_its_images_a_model_cannot_come_back(running: Callable[..., Collector], tmp_path: Path) -> None:
    collector = running()
    collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    collector.samples.clear(KEY)
    lose_models(tmp_path)
    with pytest.raises(NotEnoughSamples):
        running().rebuilder.rebuild(KEY)


def test_a_memory_of_another_extractor_is_reported_and_rebuilt_only_when_asked(
    running: Callable[..., Collector], caplog: pytest.LogCaptureFixture
) -> None:
    collector = running()
    collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    generation = collector.manifest(KEY)["memory"]["generation"]
    other = TextureFeatures(112)
    other.fingerprint = "another"
    collector = running(other, rebuild_on_start=True)
    collector.rebuilder.wait(60)
    assert "the memory of Master1/Pattern was made with another extractor: python -m backend rebuild" in caplog.text
    state = collector.state(KEY)
    assert (state["memory_fitted"], state["memory_usable"]) == (True, False)
    manifest = collector.manifest(KEY)
    assert (manifest["memory"]["generation"], manifest["stale"]["memory"]) == (generation, True)
    assert collector.rebuilder.foreign() == [KEY]
    collector.rebuilder.rebuild(KEY, replace=True)
    assert collector.state(KEY)["memory_usable"] is True
    assert collector.inspector.infer(KEY, PROBES[0], mm_per_px=0.2).inspection.score > 0


def test_a_degraded_service_rebuilds_nothing(running: Callable[..., Collector], tmp_path: Path) -> None:
    running().fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    lose_models(tmp_path)
    collector = running()
    collector.inspector.host.degraded = Notice("degraded", {"model": "m", "reason": "r", "extractor": "x"})
    assert collector.rebuilder.lost() == [KEY]
    with pytest.raises(WeightsUnavailable):
        collector.rebuilder.rebuild(KEY)
    collector.rebuilder.settings.__dict__["rebuild_on_start"] = True
    collector.rebuilder._run()
    assert collector.state(KEY)["memory_fitted"] is False


def test_a_memory_whose_line_was_never_written_is_recorded_at_the_next_start(
    running: Callable[..., Collector], tmp_path: Path
) -> None:
    collector = running()
    collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    record = collector.history.path(KEY)
    first = record.read_bytes()
    collector.fit(KEY, [part_file(3)], mm_per_px=0.2, memory_fit=True)
    before = scores(collector)
    record.write_bytes(first + b'{"event": "gr')
    collector = running()
    collector.rebuilder.wait(60)
    plan = collector.history.plan(KEY)
    assert [step["event"] for step in plan.steps] == ["fit", "grow"]
    lose_models(tmp_path)
    after = scores(rebuilt(running(rebuild_on_start=True)))
    assert [score for score, _ in after] == pytest.approx([score for score, _ in before], abs=1e-4)


def test_a_growth_that_had_no_reserve_comes_back_as_it_was(running: Callable[..., Collector], tmp_path: Path) -> None:
    collector = running()
    collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    (collector.inspector.store.folder(KEY) / "reserve.npz").unlink()
    for n in (3, 4):
        collector.fit(KEY, [part_file(n)], mm_per_px=0.2, memory_fit=True)
    assert [step.get("n_reserve", 0) > 0 for step in collector.history.plan(KEY).steps] == [False, False, True]
    before = collector.inspector.store.load_memory(KEY).emb
    lose_models(tmp_path)
    collector = rebuilt(running(rebuild_on_start=True))
    after = collector.inspector.store.load_memory(KEY).emb
    assert after.shape == before.shape and abs(after - before).max() < 1e-5


def test_a_memory_that_came_back_grows_as_the_lost_one_would_have(
    running: Callable[..., Collector], tmp_path: Path
) -> None:
    rows = []
    for lost in (False, True):
        collector = running(rebuild_on_start=lost)
        if lost:
            rebuilt(collector)
        else:
            collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
            shutil.copytree(tmp_path / "datasets", tmp_path / "kept")
        collector.fit(KEY, [part_file(3)], mm_per_px=0.2, memory_fit=True)
        rows.append(collector.inspector.store.load_memory(KEY).emb)
        if not lost:
            collector.close()
            lose_models(tmp_path)
            shutil.rmtree(tmp_path / "datasets")
            (tmp_path / "kept").rename(tmp_path / "datasets")
    assert rows[0].shape == rows[1].shape and abs(rows[0] - rows[1]).max() < 1e-5


def test_a_torn_line_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    history = FitHistory(tmp_path)
    history.append(KEY, "fit", {"generation": "a", "images": ["x"]})
    with history.path(KEY).open("ab") as file:
        file.write(b'{"event": "grow", "gener')
    history.append(KEY, "calibrate", {"values": {"threshold": 1.0, "generation": "a"}})
    assert [event["event"] for event in history.read(KEY)] == ["fit", "calibrate"]
    assert history.plan(KEY).calibration == {"threshold": 1.0, "generation": "a"}


def test_with_samples_off_nothing_is_written_beside_the_models(
    running: Callable[..., Collector], tmp_path: Path
) -> None:
    collector = running(store_samples=False)
    collector.fit(KEY, [part_file(n) for n in range(3)], mm_per_px=0.2)
    assert not (tmp_path / "datasets").exists()
    ready, _ = drafts([part_file(n) for n in range(3)], [], source="test")
    collector.keep(KEY, "ok", ready)
    collector.fit(KEY, [], mm_per_px=0.2, use_dataset=True)
    assert len(collector.history.plan(KEY).steps) == 1


def test_the_command_line_rebuilds_what_is_lost(
    running: Callable[..., Collector],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    collector = running()
    for key in (KEY, RED):
        collector.fit(key, [part_file(n) for n in range(3)], mm_per_px=0.2)
    lose_models(tmp_path)
    for name, value in {"MODELS_DIR": "models", "DATASETS_DIR": "datasets"}.items():
        monkeypatch.setenv(f"BDI_{name}", str(tmp_path / value))
    monkeypatch.setenv("BDI_MODEL_NAME", "texture")
    monkeypatch.setenv("BDI_INPUT_SIZE", "112")
    monkeypatch.setattr("sys.argv", ["backend", "rebuild", "--recipe", "red"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "Master1/Pattern (red): 3 images" in capsys.readouterr().err
    states = [collector.state(key)["memory_fitted"] for key in (KEY, RED)]
    assert states == [False, True]


def test_of_what_was_stored_to_be_taught_only_what_no_memory_ever_learnt_is_taken_back(
    running: Callable[..., Collector],
) -> None:
    collector = running()
    learnt, never, upload = (
        Draft(f"{seed}.png", partial(encoded, part(seed)), source)
        for seed, source in ((0, TAUGHT), (70, TAUGHT), (71, "upload"))
    )
    (known,) = collector.samples.add(KEY, "ok", [learnt])
    collector.fit(KEY, [part_file(0), part_file(1)], mm_per_px=0.2)
    collector.fit(KEY, [part_file(2), part_file(3)], mm_per_px=0.2)  # the memory in use has not seen it
    (half,) = collector.samples.add(KEY, "ok", [never])
    (sent,) = collector.samples.add(KEY, "ok", [upload])
    assert collector.rebuilder.drop_unlearnt(KEY) == [half.name]
    assert {known.name, sent.name} <= {*collector.samples.names(KEY, "ok")}
    assert collector.samples.names(KEY, TAKEN_BACK) == [half.name]
    assert collector.rebuilder.drop_unlearnt(KEY) == []


def test_a_lesson_that_is_under_way_keeps_what_it_stored(running: Callable[..., Collector]) -> None:
    collector = running(fit_wait_s=0.2)
    collector.fit(KEY, [part_file(0), part_file(1)], mm_per_px=0.2)
    with collector.inspector.store.writing(KEY):
        (kept,) = collector.samples.add(KEY, "ok", [Draft("70.png", partial(encoded, part(70)), TAUGHT)])
        with pytest.raises(FitInProgress):
            collector.rebuilder.drop_unlearnt(KEY)
    assert kept.name in collector.samples.names(KEY, "ok")
