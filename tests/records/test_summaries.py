"""Summaries count every committed inspection, whether it is tallied yet or not."""

from collections import Counter
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from backend.base.errors import InvalidValue
from backend.records.database import Database
from backend.records.entries import InspectionDraft, ReviewDraft
from backend.records.ledger import Ledger
from backend.records.queries import Filters, parse_time
from backend.records.summaries import span_of, summary
from backend.records.tallies import bin_of, catch_up, score_of_bin
from tests.records.made import NOON_US, faults, raises, record

HOUR_US = 3_600_000_000
RANGE = {"since_us": NOON_US, "until_us": NOON_US + 72 * HOUR_US}


def summed(ledger: Ledger, bucket: str = "day", zone: str | None = None, **filters: Any) -> dict[str, Any]:
    asked = Filters(**{**RANGE, **filters})
    with ledger.reading() as connection:
        return summary(connection, span_of(connection, bucket, asked, zone), asked)


@pytest.fixture(params=["tallied", "not yet tallied"])
def scores(request: pytest.FixtureRequest, ledger: Ledger) -> list[tuple[int, float]]:
    """Hour and score of 300 inspections."""
    rng = np.random.default_rng(2)
    made = [(int(rng.integers(0, 60)), float(rng.gamma(9, 0.05))) for _ in range(300)]
    for future in [
        ledger.writer.submit(InspectionDraft.of(record(score=score, time_us=NOON_US + hour * HOUR_US)))
        for hour, score in made
    ]:
        future.result()
    if request.param == "tallied":
        catch_up(ledger.database)
    return made


def test_each_bucket_counts_what_was_inspected_in_it(ledger: Ledger, scores: list[tuple[int, float]]) -> None:
    found = summed(ledger, "hour")
    expected = Counter((hour, score > 0.5) for hour, score in scores)
    for item in found["items"]:
        start = datetime.fromisoformat(item["start"])
        hour = round((start.timestamp() * 1e6 - NOON_US) / HOUR_US)
        assert (item["ok"], item["ng"]) == (expected[hour, False], expected[hour, True])
        assert item["yield"] == item["ok"] / item["n"]
    assert len(found["items"]) == len({hour for hour, _ in scores})
    assert found["total"]["n"] == 300


def test_quantiles_are_within_one_per_cent(ledger: Ledger, scores: list[tuple[int, float]]) -> None:
    found = summed(ledger)["total"]["score"]
    own = sorted(score for _, score in scores)
    for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        rank = int(np.floor(share * (len(own) - 1)))
        assert found[name] == pytest.approx(own[rank], rel=0.0101)


def test_buckets_are_days_and_shifts_of_the_zone_that_is_asked_for(ledger: Ledger) -> None:
    for hour in (-7, -6, 0, 1, 9, 10, 11):  # 5, 6, 12, 13, 21, 22 and 23 o'clock UTC
        ledger.record(record(time_us=NOON_US + hour * HOUR_US))
    since = {"since_us": NOON_US - 12 * HOUR_US}
    days = summed(ledger, "day", "Europe/Madrid", **since)["items"]
    assert [(item["start"], item["n"]) for item in days] == [
        ("2026-09-21T00:00:00+02:00", 5),
        ("2026-09-22T00:00:00+02:00", 2),
    ]
    shifts = summed(ledger, "shift", None, **since)["items"]
    assert [(item["start"], item["n"]) for item in shifts] == [
        ("2026-09-20T22:00:00+00:00", 1),
        ("2026-09-21T06:00:00+00:00", 3),
        ("2026-09-21T14:00:00+00:00", 1),
        ("2026-09-21T22:00:00+00:00", 2),
    ]
    whole = summed(ledger, "day", since_us=NOON_US - 6 * HOUR_US, until_us=NOON_US + 40 * HOUR_US)
    assert [(item["start"], item["n"]) for item in whole["items"]] == [("2026-09-21T00:00:00+00:00", 6)]


@pytest.mark.parametrize("tallied", [True, False])
def test_people_overturn_verdicts(ledger: Ledger, database: Database, tallied: bool) -> None:
    scores = (0.9, 0.8, 0.2, 0.1, 0.1)
    names = [str(ledger.record(record(score=s, time_us=NOON_US)).inspection_id) for s in scores]
    if tallied:
        catch_up(ledger.database)
    said = [(0, "good"), (1, "bad"), (2, "bad"), (3, "good"), (3, "unclear"), (1, "good"), (1, "bad")]
    for number, verdict in said:
        ledger.review(ReviewDraft(inspection_id=names[number], verdict=verdict))  # type: ignore[arg-type]
    total = summed(ledger)["total"]
    assert (total["n"], total["reviewed"], total["false_alarms"], total["misses"]) == (5, 4, 1, 1)
    catch_up(ledger.database)
    assert summed(ledger)["total"] == total
    assert faults(database) == []


def test_filters_apply(ledger: Ledger) -> None:
    for n in range(10):
        ledger.record(record(n, station_id="AB"[n % 2], roi_id="Edge" if n < 3 else "Pattern", time_us=NOON_US))
    assert summed(ledger, station_id="A")["total"]["n"] == 5
    assert summed(ledger, except_station_id="A", roi_id="Edge")["total"]["n"] == 1
    assert summed(ledger, except_station_id="C")["total"]["n"] == 10
    assert summed(ledger, station_id="A", roi_id="Edge")["total"]["n"] == 2
    assert summed(ledger, roi_id="nothing")["items"] == []
    assert summed(ledger, until_us=NOON_US)["total"]["n"] == 0


def test_nothing_recorded_is_a_summary_of_nothing(ledger: Ledger) -> None:
    found = summed(ledger)
    assert found["items"] == []
    assert found["total"]["n"] == 0 and "yield" not in found["total"] and "score" not in found["total"]


def test_without_a_span_it_covers_what_there_is(ledger: Ledger) -> None:
    ledger.record(record(time_us=NOON_US))
    catch_up(ledger.database)
    found = summed(ledger, "day", since_us=None, until_us=None)
    assert found["total"]["n"] == 1
    assert found["since"] == "2026-09-21T12:00:00.000000Z"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"bucket": "week"}, "bucket"),
        ({"zone": "Europe/Atlantis"}, "tz"),
        ({"zone": "../../etc/passwd"}, "tz"),
        ({"bucket": "hour", "since_us": NOON_US - 40 * 24 * HOUR_US}, "since"),
        ({"bucket": "shift", "since_us": NOON_US - 100 * 24 * HOUR_US}, "since"),
    ],
)
def test_what_cannot_be_summed_is_refused_with_its_field(ledger: Ledger, given: dict[str, Any], field: str) -> None:
    with raises(InvalidValue, f"^{field}"):
        summed(ledger, **given)


def test_an_empty_span_is_empty(ledger: Ledger) -> None:
    ledger.record(record(time_us=NOON_US))
    assert summed(ledger, since_us=NOON_US + HOUR_US, until_us=NOON_US)["items"] == []


@pytest.mark.parametrize("score", [1e-9, 0.001, 0.25, 1.0, 1.99, 18.7, 1e6])
def test_a_bin_stands_for_its_scores_within_one_per_cent(score: float) -> None:
    assert score_of_bin(np.array([bin_of(score)]))[0] == pytest.approx(score, rel=0.0101)
    assert bin_of(0.0) == 0 and score_of_bin(np.array([0]))[0] == 0


def test_an_hour_that_the_clock_shows_twice_is_two_hours_and_one_day(ledger: Ledger) -> None:
    changed = 1_792_890_000_000_000  # 2026-10-25T01:00Z, when three o'clock becomes two in Madrid
    for half_hours in (-3, -1, 1, 3):
        ledger.record(record(time_us=changed + half_hours * HOUR_US // 2))
    span = {"since_us": changed - 20 * HOUR_US, "until_us": changed + 40 * HOUR_US}
    hours = summed(ledger, "hour", "Europe/Madrid", **span)["items"]
    assert [(item["start"], item["n"]) for item in hours] == [
        ("2026-10-25T01:00:00+02:00", 1),
        ("2026-10-25T02:00:00+02:00", 1),
        ("2026-10-25T02:00:00+01:00", 1),
        ("2026-10-25T03:00:00+01:00", 1),
    ]
    assert [item["n"] for item in summed(ledger, "day", "Europe/Madrid", **span)["items"]] == [4]


@pytest.mark.parametrize("bucket", ["hour", "shift", "day"])
def test_the_ends_of_time_are_summed_as_any_other(ledger: Ledger, bucket: str) -> None:
    first, last = (parse_time(text, "since") for text in ("0001-01-01", "9999-12-31T23:59:59.999999"))
    for since, until in ((last, last), (first, first), (last, first)):
        assert summed(ledger, bucket, since_us=since, until_us=until)["items"] == []
    assert summed(ledger, bucket, since_us=None, until_us=last)["total"]["n"] == 0
