"""Pages hold what the filters admit, in order, each inspection once: held against a plain list of the same records."""

import base64
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from backend.base.errors import InspectionNotFound, InvalidValue, RecordsUnavailable
from backend.records import queries
from backend.records.database import Database
from backend.records.entries import InspectionDraft, ReviewDraft
from backend.records.ledger import Ledger
from backend.records.queries import Filters, Order, Place, page, parse_order, parse_time, time_text, whole
from tests.records.made import NOON_US, raises, record

HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Plain:
    """An inspection as the test knows it."""

    name: str
    time_us: int
    fields: dict[str, Any]


@pytest.fixture
def stored(ledger: Ledger) -> list[Plain]:
    """100 inspections of several models and stations, some of the same microsecond and score, some reviewed."""
    rng = np.random.default_rng(5)
    made = []
    for n in range(100):
        score = round(float(rng.gamma(9, 0.03)), 2)
        given: dict[str, Any] = {
            "role_id": f"Master{rng.integers(2)}",
            "roi_id": str(rng.choice(["Pattern", "Edge"])),
            "recipe_id": str(rng.choice(["default", "night"])),
            "station_id": [None, "A", "B"][rng.integers(3)],
            "batch_id": [None, "L1", "L2"][rng.integers(3)],
            "part_id": f"P{n // 2}",
            "decision": None if rng.random() < 0.1 else "ng" if score > 0.3 else "ok",
        }
        time_us = NOON_US + int(rng.integers(0, 40)) * HOUR_US
        made.append((record(n, score=score, time_us=time_us, **given), {**given, "score": score, "review": None}))
    names = [future.result() for future in [ledger.writer.submit(InspectionDraft.of(one)) for one, _ in made]]
    plain = [Plain(name, one.time_us, fields) for name, (one, fields) in zip(names, made, strict=True)]
    for one in plain[::9]:
        one.fields["review"] = "good" if one.fields["decision"] == "ng" else "bad"
        ledger.review(ReviewDraft(inspection_id=one.name, verdict=one.fields["review"]))
    return plain


def read(ledger: Ledger, filters: Filters, order: Order = "newest", limit: int = 7) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    after: Place | None = None
    while True:
        with ledger.reading() as connection:
            some = page(connection, filters, order, limit, after)
        assert len(some.items) == limit or some.next is None
        found += some.items
        if some.next is None:
            return found
        after = Place.parse(some.next.as_cursor(), order)


def admitted(stored: list[Plain], filters: Filters) -> Iterator[str]:
    def one_of(name: str, value: Any) -> bool:
        asked = getattr(filters, name)
        return asked is None or asked == value

    for one in stored:
        own = one.fields
        named = ("role_id", "roi_id", "recipe_id", "station_id", "decision", "part_id", "batch_id")
        if not all(one_of(name, own[name]) for name in named):
            continue
        if filters.except_station_id is not None and own["station_id"] == filters.except_station_id:
            continue
        if filters.reviewed is not None and filters.reviewed != (own["review"] is not None):
            continue
        low, high = filters.min_score, filters.max_score
        if (low is not None and own["score"] < low) or (high is not None and own["score"] > high):
            continue
        since, until = filters.since_us, filters.until_us
        if (since is None or one.time_us >= since) and (until is None or one.time_us < until):
            yield one.name


ASKED: list[dict[str, Any]] = [
    {},
    {"role_id": "Master1"},
    {"role_id": "Master1", "roi_id": "Edge", "recipe_id": "night"},
    {"station_id": "A", "decision": "ng"},
    {"except_station_id": "A"},
    {"except_station_id": "A", "batch_id": "L2"},
    {"reviewed": True},
    {"reviewed": False, "decision": "ok"},
    {"part_id": "P33"},
    {"batch_id": "L2"},
    {"batch_id": "L1", "decision": "ng", "min_score": 0.35},
    {"since_us": NOON_US + 10 * HOUR_US, "until_us": NOON_US + 20 * HOUR_US},
    {"min_score": 0.3, "max_score": 0.4},
    {"min_score": 0.25, "since_us": NOON_US + 5 * HOUR_US, "station_id": "B"},
    {"role_id": "nobody"},
    {"min_score": 99.0},
    {"until_us": 0, "decision": "ok"},
]


def test_pages_hold_each_admitted_inspection_once_in_order(ledger: Ledger, stored: list[Plain]) -> None:
    keys: dict[Order, Callable[[dict[str, Any]], Any]] = {
        "newest": lambda item: item["time"],
        "oldest": lambda item: item["time"],
        "score": lambda item: item["score"],
    }
    for asked in ASKED:
        filters = Filters(**asked)
        for order, key in keys.items():
            found = read(ledger, filters, order)
            names = [item["inspection_id"] for item in found]
            assert sorted(names) == sorted(admitted(stored, filters)), (asked, order)
            values = [key(item) for item in found]
            assert all(a <= b if order == "oldest" else a >= b for a, b in pairwise(values)), (asked, order)


def test_an_item_is_admitted_where_a_page_lists_it(ledger: Ledger, stored: list[Plain]) -> None:
    items = read(ledger, Filters(), "newest")
    for asked in ASKED:
        filters = Filters(**asked)
        names = [item["inspection_id"] for item in items if filters.admits(item)]
        assert sorted(names) == sorted(admitted(stored, filters)), asked


@pytest.mark.parametrize("order", ["newest", "oldest", "score"])
def test_models_with_many_matches_and_models_with_few_share_pages(
    ledger: Ledger, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "FEW_ROWS", 2)  # more than a page holds are not sorted
    drafts = []
    for n in range(24):
        own: dict[str, Any] = {
            "roi_id": "often" if n % 4 else "seldom",
            "score": 0.3 + n % 7 / 100,
            "time_us": NOON_US + n,
        }
        drafts.append(InspectionDraft.of(record(n, decision="ok", **own)))
    names = [future.result() for future in [ledger.writer.submit(draft) for draft in drafts]]
    filters = Filters(min_score=0.3, since_us=NOON_US + 3, until_us=NOON_US + 20)
    found = [item["inspection_id"] for item in read(ledger, filters, order, limit=3)]
    assert sorted(found) == sorted(names[3:20])
    if order != "score":
        assert found == (names[3:20] if order == "oldest" else names[19:2:-1])


def test_with_more_facets_than_are_looked_at_one_by_one_pages_are_the_same(
    ledger: Ledger, stored: list[Plain], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MANY_FACETS", 3)
    for asked in ASKED:
        filters = Filters(**asked)
        names = [item["inspection_id"] for item in read(ledger, filters, "score")]
        assert sorted(names) == sorted(admitted(stored, filters))


def test_what_comes_while_pages_are_turned_shifts_none(ledger: Ledger) -> None:
    for n in range(6):
        ledger.record(record(n, time_us=NOON_US + n))
    with ledger.reading() as connection:
        first = page(connection, Filters(), "newest", 3)
    ledger.record(record(9, time_us=NOON_US + 9))
    with ledger.reading() as connection:
        second = page(connection, Filters(), "newest", 3, first.next)
    scores = [item["score"] for item in first.items + second.items]
    assert scores == [record(n).score for n in (5, 4, 3, 2, 1, 0)]


def test_an_item_tells_what_is_known_and_leaves_out_what_is_not(ledger: Ledger) -> None:
    given: dict[str, Any] = {"threshold": None, "decision": None, "p_value": None, "station_id": "A", "operator": "Ana"}
    name = ledger.record(record(**given, time_us=NOON_US)).inspection_id
    with ledger.reading() as connection:
        (item,) = page(connection, Filters()).items
    assert item["inspection_id"] == name and item["time"] == time_text(NOON_US) == "2026-09-21T12:00:00.000000Z"
    assert item["operator"] == "Ana" and item["station_id"] == "A" and item["image"]["filename"] == "part_0.png"
    assert not {"threshold", "decision", "p_value", "part_id", "review"} & item.keys()


def test_one_inspection_is_found_with_all_that_is_kept_of_it(ledger: Ledger) -> None:
    sent = record(score=0.9, warnings=[{"code": "shape_missing", "values": {}}], shape={"kind": "circle"})
    name = str(ledger.record(sent).inspection_id)
    found = ledger.inspection(name)
    assert found.item["decision"] == "ng"
    assert found.details["regions"][0]["contour"] == [[1, 2], [4, 2], [4, 6]]
    assert found.details["warnings"] == [{"code": "shape_missing", "values": {}}]
    assert found.token_map == sent.token_bytes()


@pytest.mark.parametrize("which", ["0badf00d-1", "{key}-2", "nonsense"])
def test_an_unknown_inspection_is_not_found(ledger: Ledger, which: str) -> None:
    name = str(ledger.record(record()).inspection_id)
    with ledger.reading() as connection, pytest.raises(InspectionNotFound):
        whole(connection, which.format(key=name.split("-", maxsplit=1)[0]))


def _cursor(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "", "nonsense", "ñ", _cursor(), _cursor("newest", "now", 1), _cursor("oldest", 1, 1), _cursor("newest", 1, 1.5),
        _cursor("newest", 1, 1 << 70), _cursor("newest", 1e300, 1), _cursor("newest", True, 1), _cursor(None, 1, 1),
        _cursor("newest", 1, True), _cursor("newest", math.nan, 1), _cursor("newest", math.inf, 1),
    ],
)  # fmt: skip
def test_a_cursor_that_no_page_gave_is_refused(cursor: str) -> None:
    with raises(InvalidValue, "^cursor"):
        Place.parse(cursor, "newest")


def test_an_order_that_there_is_not_is_refused() -> None:
    assert parse_order("score") == "score"
    with raises(InvalidValue, "newest, oldest, score"):
        parse_order("random")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-09-21T12:00:00Z", NOON_US),
        ("2026-09-21T14:00:00+02:00", NOON_US),
        ("2026-09-21T14:00:00 02:00", NOON_US),
        ("2026-09-21T14:00:00.000001 02:00", NOON_US + 1),
        ("2026-09-21 12:00", NOON_US),
        ("2026-09-21T12:00:00.000001", NOON_US + 1),
        ("2026-09-21", NOON_US - 12 * HOUR_US),
        ("", None),
        (None, None),
    ],
)
def test_times_are_read_as_utc_unless_they_say_otherwise(text: str | None, expected: int | None) -> None:
    assert parse_time(text, "since") == expected


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "2026-13-01",
        "2026-09-21T25:00Z",
        "1e9",
        "9" * 50,
        "0001-01-01T00:00+01:00",
        "9999-12-31T23:30-01:00",
    ],
)
def test_what_is_no_time_is_refused_with_its_field(text: str) -> None:
    with raises(InvalidValue, "^since"):
        parse_time(text, "since")


@pytest.mark.parametrize("change", ["details = '{'", "details = '[]'", "token_map = substr(token_map, 1, 7)"])
def test_an_inspection_that_is_damaged_is_told(ledger: Ledger, database: Database, change: str) -> None:
    name = str(ledger.record(record()).inspection_id)
    with database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE inspections SET {change}")
    with raises(RecordsUnavailable, "damaged"):
        ledger.inspection(name)
