"""What each change does to a picture."""

import cv2
import numpy as np
import pytest

from backend.evaluation.perturb import PERTURBATIONS, Perturbation
from tests.parts import part

IMAGE = part(3, height=240, width=300)


def test_every_change_is_another_picture_of_the_same_size() -> None:
    found = [change(IMAGE) for change in PERTURBATIONS]
    assert all(one.shape == IMAGE.shape and one.dtype == np.uint8 for one in found)
    assert len({one.tobytes() for one in (IMAGE, *found)}) == len(PERTURBATIONS) + 1
    assert len({str(change) for change in PERTURBATIONS}) == len(PERTURBATIONS)


def test_light_changes_each_pixel_by_what_it_says() -> None:
    grey = np.full((4, 5, 3), 100, np.uint8)
    assert (Perturbation("gain", 1.3)(grey) == 130).all() and (Perturbation("gain", 3.0)(grey) == 255).all()
    assert (Perturbation("gamma", 2.0)(grey) == round(255 * (100 / 255) ** 2)).all()
    assert Perturbation("colour", 0.1)(grey)[0, 0].tolist() == [90, 100, 110]


def test_position_moves_by_shares_of_the_smaller_side_and_by_degrees() -> None:
    assert (Perturbation("shift", 5.0)(IMAGE)[12:, 12:] == IMAGE[:-12, :-12]).all()
    dot = np.zeros((81, 81, 3), np.uint8)
    dot[40, 70] = 255
    turned = Perturbation("turn", 90.0)(dot)
    assert int(turned[..., 0].argmax()) == 10 * 81 + 40


def test_blur_is_a_gaussian_of_that_share_of_the_smaller_side() -> None:
    assert (Perturbation("blur", 2.5)(IMAGE) == cv2.GaussianBlur(IMAGE, (0, 0), 6.0)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [(Perturbation("gain", 0.85), "gain 0.85"), (Perturbation("turn", 2.0), "turn +2°"),
     (Perturbation("colour", -0.1), "colour -0.1"), (Perturbation("shift", 0.5), "shift 0.5 %")],
)  # fmt: skip
def test_a_change_names_itself(change: Perturbation, words: str) -> None:
    assert str(change) == words
