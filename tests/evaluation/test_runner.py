"""evaluate runs the service's own code over a set and reports what it found."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from backend.base.config import Settings
from backend.base.errors import WeightsUnavailable
from backend.base.keys import ModelKey
from backend.evaluation import runner
from backend.evaluation.perturb import Perturbation
from backend.evaluation.report import html_report, worth_showing
from backend.evaluation.results import SetResult
from backend.evaluation.runner import SETTINGS_THAT_COUNT, Evaluator, RememberingExtractor
from backend.evaluation.sets import InspectionSet, read_set
from backend.extractors.texture import TextureFeatures
from backend.infer import Scoring
from backend.service.fitting import FitOptions, Fitter
from backend.service.host import extractor_for
from backend.service.images import ImageFile
from backend.service.inspection import Inspector

SETTINGS: dict[str, Any] = {"model_name": "texture", "input_size": 112, "coreset_rate": 0.2}


def part(rng: np.random.Generator, spot: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A striped plate of 120×90 px and the mask of its spot."""
    y, x = np.mgrid[:90, :120]
    image = 120 + 30 * np.sin(x / 7 + rng.uniform(0, 6)) + rng.normal(0, 4, (90, 120))
    mask = (x - rng.integers(30, 90)) ** 2 + (y - rng.integers(25, 65)) ** 2 < spot**2
    image[mask] += 80
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(np.uint8) * 255


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("sets") / "plates", np.random.default_rng(3)
    kinds = {"train/good": (8, 0), "test/good": (13, 0), "test/large": (4, 14), "test/small": (4, 2)}
    for kind, (n, spot) in kinds.items():
        for number in range(n):
            image, mask = part(rng, spot)
            (root / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / kind / f"{number:02}.png"), image)
            if spot == 14:
                truth = root / "ground_truth" / "large"
                truth.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(truth / f"{number:02}_mask.png"), mask)
    return root


@pytest.fixture(scope="module")
def result(plates: Path) -> Iterator[SetResult]:
    with Evaluator(Settings(**SETTINGS), remember=True) as evaluator:
        yield evaluator.run(read_set(plates), shots=[2], draws=2)


def test_scores_are_those_of_the_service(plates: Path, result: SetResult, tmp_path: Path) -> None:
    inspector = Inspector(Settings(**SETTINGS, models_dir=tmp_path))
    key, given = ModelKey.of("a", "b"), read_set(plates)
    Fitter(inspector).fit(key, [ImageFile.named(i.path.name, i.path.read_bytes) for i in given.train], mm_per_px=1.0)
    for scored in result.scored[::7]:
        file = ImageFile.named("x.png", scored.image.path.read_bytes)
        assert inspector.infer(key, file, mm_per_px=1.0).inspection.score == scored.score
    inspector.close()


def test_figures_speak_of_every_image_and_of_each_class(result: SetResult) -> None:
    defective = [s.image.defective for s in result.scored]
    assert result.counts == {"good": 13, "large": 4, "small": 4}
    assert len(result.scored) == 21
    assert result.figures.image.auroc == roc_auc_score(defective, [s.score for s in result.scored])
    assert result.classes["large"].image.auroc == 1.0
    assert result.classes["small"].image.auroc < 1.0
    assert result.interval.low <= result.figures.image.auroc <= result.interval.high


def test_pixels_count_where_masks_say_where_the_defect_is(result: SetResult) -> None:
    assert result.figures.pixels is not None
    assert result.figures.pixels.auroc > 0.9
    assert result.classes["large"].pixels is not None
    assert result.classes["small"].pixels is None


def test_rates_are_given_for_each_calibration_that_leaves_parts_to_judge(result: SetResult) -> None:
    assert [(r.n_ok, r.n_ng) for r in result.rates] == [(10, 0), (10, 1), (10, 2), (10, 3)]


def test_the_same_test_is_repeated_under_each_change(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = (Perturbation("gain", 1.0), Perturbation("blur", 8.0))
    monkeypatch.setattr(runner, "PERTURBATIONS", changes)
    with Evaluator(Settings(**SETTINGS)) as evaluator:
        found = evaluator.run(read_set(plates), perturb=True)
    none, same, blurred = found.changed
    assert [one.change for one in found.changed] == ["none", "gain 1", "blur 8 %"]
    assert (none.auroc, none.false_reject, none.miss) == (same.auroc, same.false_reject, same.miss)
    assert none.auroc == found.figures.image.auroc
    assert blurred.false_reject is not None and none.false_reject is not None
    assert blurred.false_reject > none.false_reject + 0.3
    assert "blur 8 %" in html_report([found]) and len(found.as_dict()["changed"]) == 3


def test_a_shape_beside_a_training_image_keeps_to_the_part_in_the_memory(plates: Path, tmp_path: Path) -> None:
    masked = tmp_path / "plates"
    shutil.copytree(plates, masked)
    for path in (masked / "train" / "good").glob("*.png"):
        path.with_suffix(".json").write_text(
            json.dumps({"shape": {"kind": "rect", "x": 40, "y": 30, "w": 40, "h": 30}})
        )
    with Evaluator(Settings(**SETTINGS)) as evaluator:
        rows = [evaluator.run(read_set(root)).cost.memory_rows for root in (plates, masked)]
    assert 0 < rows[1] < rows[0] / 2


def test_few_shots_are_fitted_on_few_parts(result: SetResult) -> None:
    (few,) = result.few
    assert (few.shots, few.draws) == (2, 2)
    assert 0.4 < few.auroc[0] <= 1.0
    assert few.pixel_auroc is not None


def test_each_image_is_embedded_once_however_often_it_is_asked_for(tmp_path: Path, rng: np.random.Generator) -> None:
    calls = []

    class Counted(TextureFeatures):
        def extract(self, images):  # type: ignore[no-untyped-def]
            calls.extend(images)
            return super().extract(images)

    images = [rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for _ in range(2)]
    extractor = RememberingExtractor(Counted(56), tmp_path)
    first = extractor.extract(images)
    again = extractor.extract(images[::-1])
    assert len(calls) == 2
    np.testing.assert_array_equal(first, again[::-1])
    np.testing.assert_array_equal(first, TextureFeatures(56).extract(images))


COUNTING = """
    PRESET MODEL_NAME WEIGHTS INPUT_SIZE INPUT_EDGE INPUT_ASPECT PRECISION BLOCKS TILES PIXEL_BITS
    MAX_IMAGE_MP CORESET_RATE MAX_CORESET SEED PATCHCORE_DISTANCE FOREGROUND_MASK
    AUGMENT_ROTATION_DEG MEMORY_DTYPE KNN_BACKEND FIT_MEMORY_MB SCORE_METHOD SCORE_PERCENTILE
    BLUR_SIGMA PATCHCORE_KNN_K SCORE_MAP PATCHCORE_REWEIGHT PATCHCORE_DENSITY_K SCORE_AREA_MM2
    AREA_MM2_THR THRESHOLD_MARGIN
"""


@pytest.mark.parametrize("name", COUNTING.split())
def test_the_report_says_each_setting_that_changes_figures(result: SetResult, name: str) -> None:
    assert name in result.as_dict()["settings"]


def test_nothing_falls_back_to_another_extractor(tmp_path: Path) -> None:
    settings = Settings(weights=str(tmp_path / "absent.safetensors"))
    with pytest.raises(WeightsUnavailable), Evaluator(settings):
        pytest.fail("it must not start")


def test_a_report_shows_the_worst_and_one_of_each_class(result: SetResult) -> None:
    chosen = worth_showing(result.scored, each=2)
    ranked = sorted(result.scored, key=lambda s: s.score)
    assert [s for why, s in chosen if why == "miss"] == [s for s in ranked if s.image.defective][:2]
    assert [s for why, s in chosen if why == "false alarm"] == [s for s in ranked[::-1] if not s.image.defective][:2]
    assert {s.image.label for why, s in chosen if why == "class"} == {"good", "large", "small"}


def test_the_report_needs_nothing_from_elsewhere(result: SetResult) -> None:
    page = html_report([result], command="python -m backend evaluate <b>")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == len(result.shown) + 1
    assert all(source.startswith("data:image/") for source in sources)
    assert "&lt;b&gt;" in page
    assert f"{result.figures.image.auroc:.4f}" in page
    assert "With few good parts" in page


def test_sets_are_immutable(plates: Path) -> None:
    assert isinstance(hash(read_set(plates)), int)
    assert isinstance(read_set(plates), InspectionSet)


def test_what_the_service_says_of_a_fit_and_of_images_is_kept(plates: Path, tmp_path: Path) -> None:
    given = tmp_path / "plates"
    shutil.copytree(plates, given)
    plate = cv2.imread(str(given / "test/good/00.png"))
    assert plate is not None
    cv2.imwrite(str(given / "test/good/00.png"), cv2.copyMakeBorder(plate, 0, 0, 0, 14, cv2.BORDER_REPLICATE))
    with Evaluator(Settings(**SETTINGS, max_coreset=5), words=lambda notice: f"<{notice.code}>") as evaluator:
        found = evaluator.run(read_set(given))
    assert found.warnings == ("<coreset_capped>", "<roi_resized> (1 of 21 test images)")
    assert found.as_dict()["warnings"] == found.warnings


def test_every_setting_that_reaches_an_extractor_or_a_memory_is_reported() -> None:
    class Watched:
        def __init__(self) -> None:
            self.asked: set[str] = set()

        def __getattr__(self, name: str) -> Any:
            self.asked.add(name)
            return getattr(Settings(**SETTINGS), name)

    watched = Watched()
    extractor_for(watched)  # type: ignore[arg-type]
    FitOptions.of(watched)  # type: ignore[arg-type]
    Scoring.of(watched)  # type: ignore[arg-type]
    assert {"model_name", "coreset_rate", "score_method"} < watched.asked
    assert watched.asked - {"threads"} <= set(SETTINGS_THAT_COUNT)
