"""A verdict as plain data, and the names that entries go by."""

import hashlib

import numpy as np
import pytest

from backend.base.errors import InspectionNotFound
from backend.records.chain import Facet, canonical_json, inspection_hash
from backend.records.record import entry_id, parse_public_id, plain, public_id, split_id, token_map_of
from tests.records.made import record


def test_details_hold_no_null_and_no_number_that_json_lacks() -> None:
    details = record(1, stats={"max": float("inf"), "n": np.int64(3)}, shape=None).details()
    assert details["stats"] == {"max": None, "n": 3}
    assert "shape" not in details
    assert details["token_shape"] == [4, 6]
    canonical_json(details)


def test_what_json_has_no_type_for_is_kept_as_its_text() -> None:
    assert plain({1: (np.float32(0.5), ValueError("why"))}) == {"1": [0.5, "why"]}


def test_a_token_map_is_kept_within_half_precision() -> None:
    heat = np.random.default_rng(1).random((5, 7)).astype(np.float32) * 2
    again = token_map_of(record(token_map=heat).token_bytes(), (5, 7))
    np.testing.assert_allclose(again, heat, rtol=2**-10)
    assert record(token_map=None).token_bytes() == b""


def test_an_entry_is_found_by_the_name_it_goes_by() -> None:
    assert split_id(entry_id(12, 345)) == (12, 345)
    assert parse_public_id(public_id("3f9a1c07", 345)) == ("3f9a1c07", 345)


@pytest.mark.parametrize("text", ["", "3f9a1c07", "3f9a1c07-", "3f9a1c07-0", "3F9A1C07-1", "x-1", "3f9a1c07-1' OR 1=1"])
def test_what_is_no_identifier_names_no_inspection(text: str) -> None:
    with pytest.raises(InspectionNotFound):
        parse_public_id(text)


def test_a_place_beyond_any_chain_names_no_inspection() -> None:
    with pytest.raises(InspectionNotFound):
        parse_public_id(f"3f9a1c07-{1 << 41}")


def test_the_hash_of_an_entry_is_what_it_was_when_the_format_was_set() -> None:
    """Records of years ago are verified with it: a change here needs a new kind of entry beside the old one."""
    facet = Facet("Master1", "Pattern", "default", "station 2", "ng")
    fields = [
        (1 << 40) + 1, 1_790_000_000_000_000, "infer", 0.625, 0.5, None, 1, "ñ1", None, None, "r1", None, "g1", "a.png",
        bytes(range(32)), 1234, None,
    ]  # fmt: skip
    header = (
        '["inspection","Master1","Pattern","default","station 2","ng",1099511627777,1790000000000000,"infer",0.625,0.5,'
        'null,1,"\\u00f11",null,null,"r1",null,"g1","a.png",'
        '"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",1234,null,13,2]'
    )
    written = bytes(32) + header.encode("ascii") + b'{"height":32}' + b"\x00\x3c"
    digest = inspection_hash(facet, fields, '{"height":32}', b"\x00\x3c", bytes(32))
    assert digest == hashlib.sha256(written).digest()


def test_facets_of_other_content_have_other_numbers() -> None:
    facets = [Facet("a", "b", "c"), Facet("a", "b", "c", "s"), Facet("a", "b", "c", None, "ok"), Facet("a", "bc", "")]
    assert len({facet.id for facet in facets}) == len(facets)
    assert all(0 < facet.id < 1 << 63 for facet in facets)
    assert facets[0].reviewed("good").reviewed(None).id == facets[0].id
