"""The feed brings what every writer commits, once, in the order of each chain."""

from collections.abc import Callable
from typing import Any

import pytest

from backend.records import feed
from backend.records.feed import Feed
from backend.records.ledger import Ledger
from tests.records.made import record


def names(looked: list[dict[str, Any]]) -> list[str]:
    return [item["inspection_id"] for item in looked]


def test_it_brings_what_comes_from_all_writers(open_ledger: Callable[..., Ledger]) -> None:
    one, other = open_ledger(), open_ledger()
    one.record(record())
    reader = Feed(one.database)
    assert reader.look() == []
    made = [str(ledger.record(record(n)).inspection_id) for n in range(3) for ledger in (one, other)]
    assert sorted(names(reader.look())) == sorted(made)
    assert reader.look() == []


def test_it_brings_what_a_short_lived_writer_committed(open_ledger: Callable[..., Ledger]) -> None:
    one = open_ledger()
    one.record(record())
    reader = Feed(one.database)
    reader.look()
    for n in range(2):
        short = open_ledger()
        name = short.record(record(n)).inspection_id
        short.writer.close()
        assert names(reader.look()) == [name]
    assert reader.look() == []


def test_it_goes_on_where_an_earlier_one_was(ledger: Ledger) -> None:
    ledger.record(record())
    reader = Feed(ledger.database)
    reader.look()
    missed = ledger.record(record(1)).inspection_id
    assert names(Feed(ledger.database, reader.place).look()) == [missed]


@pytest.mark.parametrize(
    "place", ["", "nonsense", "[1]", '{"a":1}', '{"1":"x"}', "null", '{"1":-1}', f'{{"{9**30}":1}}', f'{{"1":{9**30}}}']
)
def test_a_place_that_no_feed_had_begins_now(ledger: Ledger, place: str) -> None:
    ledger.record(record())
    reader = Feed(ledger.database, place)
    assert reader.look() == []
    name = ledger.record(record(1)).inspection_id
    assert names(reader.look()) == [name]


def test_much_at_once_comes_in_portions(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "AT_ONCE", 4)
    ledger.record(record())
    reader = Feed(ledger.database)
    reader.look()
    made = [ledger.record(record(n)).inspection_id for n in range(10)]
    looks = [names(reader.look()) for _ in range(4)]
    assert [len(look) for look in looks] == [4, 4, 2, 0]
    assert [name for look in looks for name in look] == made


def test_nothing_recorded_yet_is_nothing_to_bring(ledger: Ledger) -> None:
    ledger.ready()
    reader = Feed(ledger.database)
    assert reader.look() == []
    name = ledger.record(record()).inspection_id
    assert names(reader.look()) == [name]
