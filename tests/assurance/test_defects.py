from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.assurance.defects import GRADES, KINDS, ZONES, Kind, extent_of, make_defect, zones_of
from tests.parts import part

WHOLE = np.ones((120, 160), np.bool_)


def donor() -> NDArray[np.uint8]:
    return part(9, height=120, width=160)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("area", [12.0, 90.0, 900.0])
def test_a_defect_covers_the_area_asked_for_and_changes_nothing_else(kind: Kind, area: float) -> None:
    picture = part(1, height=120, width=160)
    before = picture.copy()
    zone = np.zeros_like(WHOLE)
    zone[50:70, 70:90] = True
    made = make_defect(
        picture, kind, area_px=area, strength=1.0, zone=zone, donor=donor(), rng=np.random.default_rng(3)
    )
    assert (picture == before).all()
    if made is None:  # texture that is missing where there was none
        assert kind in {"missing", "dent", "patch"}
        return
    assert made.area_px == pytest.approx(area, rel=0.15, abs=4)
    changed = (made.picture != picture).any(axis=2)
    reach = extent_of(kind, area) / 2 + 3
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 50 - reach and rows.max() <= 69 + reach
    assert columns.min() >= 70 - reach and columns.max() <= 89 + reach
    assert changed.sum() <= 1.4 * area + 40


def test_faint_defects_change_less_than_clear_ones() -> None:
    picture, changes = part(1, height=120, width=160), []
    for strength in (GRADES["faint"], GRADES["clear"]):
        rng = np.random.default_rng(0)
        made = make_defect(picture, "bright", area_px=200, strength=strength, zone=WHOLE, donor=donor(), rng=rng)
        assert made is not None
        changes.append(np.abs(made.picture.astype(int) - picture).max())
    assert 2 * changes[0] < changes[1]


def test_what_cannot_be_told_from_the_part_is_no_defect() -> None:
    black = np.full((120, 160, 3), 20, np.uint8)
    rng = np.random.default_rng(0)
    assert make_defect(black, "dark", area_px=90, strength=1.0, zone=WHOLE, donor=donor(), rng=rng) is None
    assert make_defect(black, "missing", area_px=90, strength=1.0, zone=WHOLE, donor=donor(), rng=rng) is None


def test_a_defect_at_the_border_counts_the_area_that_is_there() -> None:
    corner = np.zeros_like(WHOLE)
    corner[0, 0] = True
    rng = np.random.default_rng(0)
    made = make_defect(
        part(1, height=120, width=160), "bright", area_px=400, strength=1, zone=corner, donor=donor(), rng=rng
    )
    assert made is not None and made.area_px == pytest.approx(100, rel=0.15)


def test_the_same_seed_makes_the_same_defect() -> None:
    made = [
        make_defect(part(1), kind, area_px=60, strength=0.8, zone=np.ones(part(1).shape[:2], np.bool_), donor=part(2),
                    rng=np.random.default_rng(5))
        for kind in KINDS for _ in range(2)
    ]  # fmt: skip
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert (one is None) == (other is None)
        if one and other:
            assert (one.picture == other.picture).all() and one.area_px == other.area_px


@pytest.mark.parametrize("masked", [False, True])
def test_zones_share_the_part_evenly_from_its_edge_inwards(masked: bool) -> None:
    mask = None
    if masked:
        rows, columns = np.ogrid[:120, :160]
        mask = np.hypot(rows - 60, columns - 80) < 50
    zones = zones_of(mask, 120, 160)
    assert list(zones) == list(ZONES)
    counted = np.sum(list(zones.values()), axis=0)
    assert (counted == (WHOLE if mask is None else mask)).all()
    sizes = Counter({name: int(zone.sum()) for name, zone in zones.items()})
    assert max(sizes.values()) < 1.2 * min(sizes.values())
    assert zones["centre"][60, 80] and not zones["edge"][60, 80]


def test_a_part_of_a_few_pixels_has_zones_without_any() -> None:
    mask = np.zeros((5, 5), np.bool_)
    mask[2, 2] = True
    assert sum(int(zone.sum()) for zone in zones_of(mask, 5, 5).values()) == 1
