import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.api.catalogue import sentence
from backend.base.config import Settings
from backend.base.errors import NotReady, WeightsUnavailable
from backend.extractors.texture import TextureFeatures
from backend.extractors.weights import PACKAGED
from backend.features import build_extractor
from backend.service.host import ExtractorHost
from tests.parts import quick_settings


def started(settings: Settings, extractor: Any = None) -> ExtractorHost:
    host = ExtractorHost(settings, extractor)
    host.start()
    return host


def wait_until_warm(host: ExtractorHost) -> None:
    for _ in range(3000):
        if host.status not in {"warming"}:
            return
        threading.Event().wait(0.02)
    raise AssertionError("it never became warm")


def test_closing_waits_for_an_extractor_that_is_being_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slowly(_: Any) -> TextureFeatures:
        begun.set()
        threading.Event().wait(0.2)
        ended.set()
        return TextureFeatures(112)

    monkeypatch.setattr("backend.service.host.build_extractor", slowly)
    host = started(quick_settings(tmp_path))
    assert begun.wait(10)
    host.close()
    assert ended.is_set()
    with pytest.raises(NotReady):
        host.queue().submit(np.zeros((112, 112, 3), np.uint8))


def test_closing_waits_for_a_rehearsal_under_way(tmp_path: Path) -> None:
    """A process that ends meanwhile is aborted by a library's native code, and its exit code is lost."""
    begun, ended = threading.Event(), threading.Event()

    def slowly(_: Any) -> None:
        begun.set()
        threading.Event().wait(0.2)
        ended.set()

    host = ExtractorHost(quick_settings(tmp_path), TextureFeatures(112), slowly)
    host.start()
    assert begun.wait(10)
    host.close()
    assert ended.is_set()


@pytest.fixture
def absent(tmp_path: Path) -> dict[str, Any]:
    """The real model's name, and weights that are nowhere."""
    return {"model_name": "vit_small_patch14_dinov2.lvd142m", "weights": str(tmp_path / "absent.pth")}


@pytest.mark.parametrize(("installed", "stand_in"), [(True, "lite"), (False, "texture")])
def test_without_weights_it_runs_degraded_and_says_why_on_what_and_what_to_do(
    tmp_path: Path,
    absent: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
    stand_in: str,
) -> None:
    if not installed:
        monkeypatch.setitem(PACKAGED, "lite", replace(PACKAGED["lite"], module="no_such_package"))
    host = started(quick_settings(tmp_path, runtime="torch", **absent))
    assert host.queue().extractor.name == stand_in
    wait_until_warm(host)
    assert host.status == "degraded" and host.degraded is not None
    for language in ("es", "en"):
        said = sentence(host.degraded, language)
        assert all(word in said for word in ("absent.pth", f"'{stand_in}'", "WEIGHTS"))
    assert any("degraded" in record.message for record in caplog.records if record.levelname == "WARNING")
    host.close()


def test_weights_that_are_required_stop_the_start(tmp_path: Path, absent: dict[str, Any]) -> None:
    host = ExtractorHost(quick_settings(tmp_path, require_pretrained=True, **absent))
    with pytest.raises(WeightsUnavailable, match=r"vit_small.*no_such_file\(.*absent\.pth"):
        host.start()


def test_the_weight_free_extractor_asked_for_is_not_degraded(tmp_path: Path) -> None:
    host = started(quick_settings(tmp_path))
    host.queue()
    wait_until_warm(host)
    assert host.status == "ok" and host.degraded is None and host.extractor is not None
    host.close()


@pytest.mark.parametrize(("size", "said"), [(112, ""), (120, "INPUT_SIZE=120"), (115, "resized to 112×112")])
def test_an_input_size_that_is_no_multiple_of_the_patch_is_said_with_what_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int, said: str
) -> None:
    host = started(quick_settings(tmp_path, input_size=size), TextureFeatures(size))
    wait_until_warm(host)
    assert said in caplog.text and bool(said) is ("no multiple" in caplog.text)
    host.close()


def test_it_warms_up_in_the_background_and_requests_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, real = threading.Event(), build_extractor

    def slow(*args: Any, **kwargs: Any) -> Any:
        gate.wait(20)
        return real(*args, **kwargs)

    monkeypatch.setattr("backend.service.host.build_extractor", slow)
    host = started(quick_settings(tmp_path))
    before = host.status, host.extractor
    assert before == ("warming", None)
    with pytest.raises(NotReady):
        host.queue(wait=0.01)
    gate.set()
    assert host.queue().extractor is host.extractor
    wait_until_warm(host)
    host.close()


def test_many_first_requests_load_one_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, real = [], build_extractor

    def counted(*args: Any, **kwargs: Any) -> Any:
        built.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr("backend.service.host.build_extractor", counted)
    host = ExtractorHost(quick_settings(tmp_path))
    lanes: list[Any] = []
    threads = [threading.Thread(target=lambda: lanes.append(host.queue())) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and len({id(queue) for queue in lanes}) == 1
    host.close()


def test_a_fault_while_loading_reaches_whoever_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ImportError("no torch here")

    monkeypatch.setattr("backend.service.host.build_extractor", broken)
    host = started(quick_settings(tmp_path))
    with pytest.raises(ImportError, match="no torch"):
        host.queue()
    assert host.status == "failed" and host.extractor is None
    host.close()


def test_a_first_pass_that_fails_shows_in_the_status(tmp_path: Path) -> None:
    class Broken(TextureFeatures):
        def extract(self, images: Any) -> Any:
            raise RuntimeError("out of memory")

    host = started(quick_settings(tmp_path), Broken(112))
    host.queue()
    wait_until_warm(host)
    assert host.status == "failed"
    host.close()


def test_closing_before_it_is_warm_is_quiet(tmp_path: Path) -> None:
    gate = threading.Event()

    class Slow(TextureFeatures):
        def extract(self, images: Any) -> Any:
            gate.wait(10)
            return super().extract(images)

    host = started(quick_settings(tmp_path), Slow(112))
    host.queue().submit(np.zeros((28, 28, 3), np.uint8))
    threading.Timer(0.1, gate.set).start()
    host.close()


@pytest.mark.parametrize(("given", "device", "batch"), [(None, "cpu", 1), (None, "cuda", 32), (5, "cpu", 5)])
def test_batches_are_for_the_gpu_unless_said(tmp_path: Path, given: int | None, device: str, batch: int) -> None:
    extractor = TextureFeatures(112)
    extractor.device = device
    host = started(quick_settings(tmp_path, max_batch=given), extractor)
    assert host.queue().max_batch == batch
    wait_until_warm(host)
    host.close()
