"""A verdict is told in sentences and shown as a picture, whether its image was kept or not."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.api.catalogue import sentence
from backend.base.images import decode_image
from backend.base.messages import Notice, Phrase
from backend.records.entries import ReviewDraft
from backend.records.explaining import GROUND, overlay, reasons
from backend.records.ledger import Ledger
from backend.records.notices import as_json
from backend.records.queries import Whole
from tests.records.made import picture, record


def found(ledger: Ledger, **given: Any) -> Whole:
    return ledger.inspection(str(ledger.record(record(**given)).inspection_id))


def told(whole: Whole, language: Any = "en") -> str:
    return " ".join(sentence(reason, language) for reason in reasons(whole))


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def test_a_bad_part_is_explained_by_its_score_its_rank_and_its_largest_region(ledger: Ledger) -> None:
    warnings = [{"code": "few_ok_scores", "values": {"n": 7}}]
    whole = found(ledger, score=0.75, p_value=0.02, warnings=warnings)
    assert told(whole) == (
        "NG: it scored 0.7500, and the threshold is 0.5000. "
        "A good part scores at least as much with a probability of 2 %. "
        "Regions that reach the threshold: 1. The largest is 0.36 mm² (3×4 px at x=1, y=2). "
        "OK scores: 7. With fewer than 20 the threshold is not reliable."
    )
    assert told(whole, "es").startswith("NG: puntuó 0,7500 y el umbral es 0,5000. Una pieza buena")


def test_a_warning_of_then_is_told_with_the_phrases_in_it(ledger: Ledger) -> None:
    lost = Phrase("weights_absent", {"reason": [Phrase("drift_light"), "x"]})
    drift = Notice("drift", {"cause": Phrase("drift_position"), "since": "2026-11-27T09:56:44Z"})
    whole = found(ledger, warnings=[as_json(drift)])
    assert "desde el 2026-11-27T09:56:44Z: la pieza está en otro sitio o se ve de otro tamaño." in told(whole, "es")
    whole = found(ledger, warnings=[as_json(Notice("drift", {"cause": lost, "since": "x"}))])
    assert reasons(whole)[-1].values["cause"] == lost


@pytest.mark.parametrize(("as_high", "n"), [(0, 20), (3, 200), (200, 200)])
def test_the_good_parts_that_score_as_high_are_counted_where_it_is_known_how_many_there_are(
    ledger: Ledger, as_high: int, n: int
) -> None:
    whole = found(ledger, score=0.75, p_value=(1 + as_high) / (n + 1), calibration={"n_ok": n})
    assert f"Good parts of the calibration that score at least as high: {as_high} of {n}." in told(whole)
    assert f"Piezas buenas de la calibración que puntúan al menos tanto: {as_high} de {n}." in told(whole, "es")


def test_a_good_part_is_explained(ledger: Ledger) -> None:
    assert told(found(ledger, score=0.25)) == (
        "OK: it scored 0.2500, and the threshold is 0.5000. No region of the least area reaches the threshold."
    )


def test_without_a_calibration_there_is_no_verdict_to_explain(ledger: Ledger) -> None:
    whole = found(ledger, score=0.25, threshold=None, decision=None)
    assert told(whole) == "No verdict: it scored 0.2500, and without a calibration there was no threshold."


def test_what_people_said_is_told(ledger: Ledger) -> None:
    name = str(ledger.record(record(score=0.9)).inspection_id)
    ledger.review(ReviewDraft(inspection_id=name, verdict="good", note="dust"))
    assert told(ledger.inspection(name)).endswith("Reviews: 1. The last one says that the part is good.")
    assert told(ledger.inspection(name), "es").endswith("La última dice que la pieza es buena.")


def test_the_map_glows_where_it_is_high_over_the_image_or_a_plain_ground(ledger: Ledger) -> None:
    heat = np.zeros((4, 6), np.float32)
    heat[:, 4:] = 1.0
    whole = found(ledger, score=0.9, token_map=heat, regions=[])
    plain = pixels(overlay(whole, None))
    assert plain.shape == (32, 48, 3)
    assert (plain[:, :20] == GROUND).all() and (plain[:, 44:] != GROUND).any(axis=2).all()
    image = decode_image(picture())
    over = pixels(overlay(whole, image))
    assert (over[:, :20] == image[:, :20]).all() and (over[:, 44:] != image[:, 44:]).any()


def test_regions_and_the_part_are_outlined(ledger: Ledger) -> None:
    square = [{"bbox": [10, 10, 9, 9], "area_px": 81.0, "area_mm2": 3.2, "contour": [[10, 10], [18, 10], [18, 18]]}]
    cold = np.zeros((4, 6), np.float32)
    whole = found(
        ledger, score=0.9, token_map=cold, regions=square, shape={"kind": "circle", "cx": 24, "cy": 16, "r": 12}
    )
    shown = pixels(overlay(whole, None))
    assert (shown[10, 14] != GROUND).any() and (shown[16, 36] != GROUND).any()
    assert (shown[0, 0] == GROUND).all()


@pytest.mark.parametrize("token_map", [None, np.zeros((4, 6), np.float32)])
def test_without_a_map_and_without_heat_there_is_a_picture_too(ledger: Ledger, token_map: Any) -> None:
    assert (pixels(overlay(found(ledger, token_map=token_map, threshold=None, decision=None), None)) == GROUND).all()


def test_a_large_inspection_is_drawn_small(ledger: Ledger) -> None:
    whole = found(ledger, height=5000, width=4000)
    height, width = pixels(overlay(whole, None)).shape[:2]
    assert height * width <= 1 << 20 and height / width == pytest.approx(1.25, rel=1e-3)
