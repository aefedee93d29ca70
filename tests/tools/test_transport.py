"""Extractors and models as files, as a person writes and reads them on the command line."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from backend.api.catalogue import sentence
from backend.assurance.golden import GoldenSet
from backend.base.bundle import write_bundle
from backend.base.errors import BundleRefused, PackDisagrees
from backend.base.keys import ModelKey
from backend.extractors.openvino_runtime import openvino_installed
from backend.samples.collector import Collector
from backend.samples.intake import drafts
from backend.storage import ModelStore, StoredMemory
from backend.tools import cli
from tests.extractors.station import small_network
from tests.mutations import Whole, each
from tests.parts import part_file, quick_settings, tree

KEY = ModelKey.of("Master1", "Pattern")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with one calibrated model, and an exported extractor that nobody runs here."""
    monkeypatch.chdir(tmp_path)
    store = ModelStore(tmp_path / "models")
    with store.writing(KEY):
        rows = np.eye(4, 8, dtype=np.float32)
        made = store.save_memory(KEY, StoredMemory(rows, (2, 2), np.zeros(4, np.int32), {"fingerprint": "f"}))
        store.save_calibration(KEY, {"threshold": 0.5, "generation": made.generation})
    with (tmp_path / "own.bdix").open("wb+") as file:
        write_bundle(file, "bdix", {}, {"network.bin": b"weights"})
    return tmp_path


def run(*words: object, models: str = "models", **env: str) -> Result:
    given = {"COLUMNS": "300", "MODELS_DIR": str(Path.cwd() / models), "WEIGHTS": str(Path.cwd() / "own.bdix"), **env}
    return CliRunner().invoke(cli.app, [str(word) for word in words], env=given)


def test_a_model_and_its_extractor_go_to_another_folder_as_one_file(folder: Path) -> None:
    assert run("pack", "Master1", "Pattern", "--with-extractor").exit_code == 0
    done = run("unpack", "Master1_Pattern.bdim", "--roi", "B", "--extractor", "here.bdix", models="others")
    assert done.exit_code == 0 and "Master1/B" in done.output, done.output
    assert Path("here.bdix").read_bytes() == Path("own.bdix").read_bytes()
    here, there = ModelStore(folder / "others"), ModelStore(folder / "models")
    key = ModelKey.of("Master1", "B")
    np.testing.assert_array_equal(here.load_memory(key).emb, there.load_memory(KEY).emb)
    calibration = here.load_calibration(key)
    assert calibration is not None
    assert (calibration["threshold"], calibration["generation"]) == (0.5, here.load_memory(key).generation)


def test_what_cannot_be_unpacked_is_said_and_leaves_everything_as_it_was(folder: Path) -> None:
    assert run("pack", "Master1", "Pattern", "--out", "plain.bdim").exit_code == 0
    generation = ModelStore(folder / "models").load_memory(KEY).generation
    for words, env in (
        (("plain.bdim",), {}),
        (("plain.bdim", "--extractor", "here.bdix"), {}),
        (("own.bdix",), {}),
        (("plain.bdim", "--roi", "B"), {"READ_ONLY": "1"}),
    ):
        assert run("unpack", *words, **env).exit_code != 0
    assert not Path("here.bdix").exists()
    store = ModelStore(folder / "models")
    assert store.keys() == [KEY] and store.load_memory(KEY).generation == generation
    assert run("unpack", "plain.bdim", "--replace").exit_code == 0
    assert store.load_memory(KEY).generation != generation


@pytest.mark.skipif(not openvino_installed(), reason="OpenVINO is not installed (pip install .[openvino])")
def test_golden_samples_are_scored_with_the_extractor_that_came_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.bdix").write_bytes(small_network())
    own = {"BDI_DATASETS_DIR": str(tmp_path / "datasets"), "INPUT_SIZE": "128"}
    there = quick_settings(tmp_path, weights=str(tmp_path / "own.bdix"), model_name="small", input_size=128)
    with closing(Collector(there)) as collector:
        collector.keep(KEY, "ok", drafts([part_file(n) for n in range(4)], (), source="upload")[0])
        collector.fit(KEY, [part_file(n) for n in range(4)], mm_per_px=0.2)
        golden = GoldenSet(collector.inspector, collector.samples)
        golden.mark(KEY, collector.samples.names(KEY, "ok")[0], None, golden=True)
    packed = run("pack", "Master1", "Pattern", "--with-extractor", MODEL_NAME="small", **own)
    assert packed.exit_code == 0, packed.output
    own |= {"BDI_DATASETS_DIR": str(tmp_path / "others"), "WEIGHTS": str(tmp_path / "absent.bdix")}
    words = ("unpack", "Master1_Pattern.bdim", "--role", "Line 2", "--extractor", "here.bdix")
    done = run(*words, models="elsewhere", MODEL_NAME="small", **own)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "to the last bit" in done.output and "the same extractor file, the same processor" in done.output
    assert (tmp_path / "others" / "Line 2" / "Pattern" / "golden.json").is_file()
    blurred = run(*words, "--roi", "B", models="elsewhere", MODEL_NAME="small", BLUR_SIGMA="9", **own)
    assert isinstance(blurred.exception, PackDisagrees) and "BLUR_SIGMA=9.0" in sentence(blurred.exception, "en")
    assert ModelStore(tmp_path / "elsewhere").keys() == [ModelKey.of("Line 2", "Pattern")]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_two_hundred_damaged_files_are_refused_in_words(folder: Path, step: int) -> None:
    assert run("pack", "Master1", "Pattern", "--out", "line.bdim").exit_code == 0
    whole, tried = Whole(Path("line.bdim").read_bytes(), "bdim"), 0
    before = tree(folder).keys()
    for what, data in each(whole, step):
        Path("line.bdim").write_bytes(data)
        tried += step
        done = run("unpack", "line.bdim", "--roi", "B", "--extractor", "here.bdix")
        assert isinstance(done.exception, BundleRefused), (what, done.exception)  # which `main` says
        assert "line.bdim" in sentence(done.exception, "en") and tree(folder).keys() == before, what
    assert tried > 200


def test_an_export_needs_a_network_and_a_name_that_says_the_format(folder: Path) -> None:
    assert run("export", "out.zip").exit_code == 2
    assert run("export", "out.bdix", "--format", "onnx").exit_code == 2
    assert run("export", "out.bdix", MODEL_NAME="texture", WEIGHTS="auto").exit_code == 1
    assert not (folder / "out.bdix").exists()
