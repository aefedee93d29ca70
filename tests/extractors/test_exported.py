"""Exported extractors that somebody damaged: each is refused in words, soon, and nothing is written or run."""

from pathlib import Path
from time import perf_counter

import pytest

from backend.api.catalogue import sentence
from backend.base.errors import ExportDisagrees, WeightsUnavailable
from backend.extractors.openvino_runtime import openvino_installed
from backend.extractors.protocol import ExtractorOptions
from backend.features import build_extractor
from backend.tools.doctor import examine
from tests.extractors.station import small_network
from tests.mutations import Whole, each
from tests.parts import quick_settings, tree

pytestmark = pytest.mark.skipif(not openvino_installed(), reason="OpenVINO is not installed (pip install .[openvino])")


@pytest.fixture(scope="module")
def whole() -> Whole:
    return Whole(small_network(), "bdix")


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_two_hundred_damaged_extractors_are_refused_in_words(
    whole: Whole, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, tried = tmp_path / "line.bdix", 0
    path.write_bytes(whole.data)
    build_extractor(ExtractorOptions(weights=str(path), precision="fp32"))
    for what, data in each(whole, step):
        path.write_bytes(data)
        began, tried = perf_counter(), tried + step
        with pytest.raises((WeightsUnavailable, ExportDisagrees)) as caught:
            build_extractor(ExtractorOptions(weights=str(path), precision="fp32"))
        assert perf_counter() - began < 5, what
        for language in ("es", "en"):
            said = sentence(caught.value, language)
            assert "?" not in said and "\n" not in said and len(said) < 500, what
        assert tree(tmp_path).keys() == {"line.bdix"}, what
    assert tried > 200


def test_the_doctor_names_a_damaged_extractor(whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / "line.bdix"
    settings = quick_settings(tmp_path, port=0, weights=str(path), model_name="small")
    for data, level, says in (
        (whole.data, "ok", "line.bdix"),
        (whole.data[:-1], "bad", "damaged"),
        (None, "bad", "no file"),
    ):
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        (found,) = [one for one in examine(settings) if one.what == "weights"]
        assert found.level == level and says in found.says, found
