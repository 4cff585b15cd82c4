"""What goes on right now: told exactly, and without reading what is long past."""

import asyncio
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import Source
from okx_pipeline.exchange.protocol import CANDLES
from okx_pipeline.storage.activity import (
    _LAST,
    OpenDay,
    OpenGaps,
    budget_use,
    history_is_read,
    landed_within,
    last_opens,
    open_days,
    open_gaps,
)
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import Read, note_reads
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.request_budget import SharedBudget
from okx_pipeline.storage.subscriptions import seed_subscriptions, unsubscribe
from okx_pipeline.timeframes import DAY_MS, day_ms, parse_timeframes
from okx_pipeline_tests.storage.test_landing import AUGUST, MINUTE, candle

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT"


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def store(connection: Connection, tmp_path: Path) -> CandleStore:
    seed_subscriptions(connection, [BTC, ETH], parse_timeframes("1m"), AUGUST)
    return CandleStore(connection, ParquetStore(str(tmp_path / "parquet")), "here")


def test_the_last_candle_of_a_series_is_found_however_long_it_is_past(
    store: CandleStore, connection: Connection
) -> None:
    store.land([candle(minute) for minute in (0, 5, 7)], source=Source.REST)
    store.land([candle(400 * 1_440, symbol="SOL-USDT")], source=Source.REST)
    assert last_opens(connection) == {(BTC, "1m"): AUGUST + 7 * MINUTE, (ETH, "1m"): None}
    unsubscribe(connection, [ETH], (), AUGUST)
    assert last_opens(connection).keys() == {(BTC, "1m")}


def test_months_that_are_past_are_not_looked_at_for_it(store: CandleStore, connection: Connection) -> None:
    months = [candle(minute) for minute in range(0, 200 * 1_440, 30 * 1_440)]
    store.land([*months, *(candle(minute, symbol=ETH) for minute in (200 * 1_440,))], source=Source.REST)
    store.land([candle(200 * 1_440)], source=Source.REST)
    (plan,) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT json) {_LAST}").fetchone() or ()

    def looks(node: dict[str, object]) -> int:
        own = int(node["Actual Loops"]) if node.get("Relation Name", "").startswith("candlesticks") else 0  # type: ignore[call-overload, attr-defined]
        return own + sum(map(looks, node.get("Plans", [])))  # type: ignore[call-overload]

    assert looks(plan[0]["Plan"]) <= 2 * 2, "the month under way and an empty one ahead, for each of two"


def test_the_day_under_way_is_told_as_the_ledger_has_it(store: CandleStore, connection: Connection) -> None:
    store.land([candle(minute) for minute in range(100) if minute != 50], source=Source.REST)
    store.account(AUGUST + 101 * MINUTE + 1)
    today = date(2026, 8, 1)
    assert day_ms(today) == AUGUST
    assert open_days(connection, today)[BTC, "1m"] == OpenDay(100, 99, 1)
    assert open_days(connection, today)[ETH, "1m"] == OpenDay(100, 0, 100)
    store.account(AUGUST + 2 * DAY_MS)
    assert open_days(connection, today) == {}, "over"


def test_what_landed_lately_is_counted_among_the_newest(store: CandleStore, connection: Connection) -> None:
    store.land([candle(minute) for minute in range(10)], source=Source.REST)
    connection.execute("UPDATE trading.candlesticks SET received_at = received_at - interval '2 hours'")
    store.land([candle(minute) for minute in range(10, 14)], source=Source.REST)
    both = [(BTC, "1m"), (ETH, "1m")]
    assert landed_within(connection, both, 3600, most=1000) == {(BTC, "1m"): 4, (ETH, "1m"): 0}
    assert landed_within(connection, both, 3 * 3600, most=12)[BTC, "1m"] == 12
    assert landed_within(connection, [], 3600, most=12) == {}


def test_open_gaps_are_counted_and_those_repaired_or_being_fetched_are_not(
    store: CandleStore, connection: Connection
) -> None:
    now_ms = AUGUST + 2 * DAY_MS
    store.account(now_ms + 31 * MINUTE)
    assert open_gaps(connection) == OpenGaps(0, 0)
    for number, status in enumerate(["open", "open", "absent", "repaired"]):
        connection.execute(
            "INSERT INTO trading.candle_gaps (symbol, timeframe, first_ms, last_ms, candles, status, reason, "
            "resolved_at) VALUES (%s, '1m', %s, %s, 3, %s, CASE %s WHEN 'absent' THEN 'not_served' END, "
            "CASE WHEN %s <> 'open' THEN now() END)",
            (BTC, AUGUST + number * 10 * MINUTE, AUGUST + number * 10 * MINUTE + 2 * MINUTE, status, status, status),
        )
    assert open_gaps(connection) == OpenGaps(0, 0), "nobody has read the day yet: it is on its way"
    first = SeriesDay(BTC, "1m", date(2026, 8, 1))
    store.account(now_ms + 31 * MINUTE, {first: Read(1440, 0, False, now_ms)})
    assert open_gaps(connection) == OpenGaps(2, 6)
    # Of the day under way, what the sidecar has dealt with is not on its way any more.
    connection.execute(
        "UPDATE trading.candle_gaps SET first_ms = first_ms + %(ms)s, last_ms = last_ms + %(ms)s", {"ms": 2 * DAY_MS}
    )
    connection.execute(
        "INSERT INTO trading.stream_offsets (symbol, timeframe, through_ms) VALUES (%s, '1m', %s)",
        (BTC, now_ms + 5 * MINUTE),
    )
    assert open_gaps(connection) == OpenGaps(1, 3)


def test_history_is_read_once_rest_was_read_for_every_closed_day(store: CandleStore, connection: Connection) -> None:
    assert not history_is_read(connection), "nothing is known of the days yet"
    now_ms = AUGUST + 2 * DAY_MS + 10 * MINUTE
    store.account(now_ms)
    assert not history_is_read(connection)
    for number, symbol in enumerate((BTC, ETH)):
        assert not history_is_read(connection), number
        for day in (date(2026, 8, 1), date(2026, 8, 2)):
            reads = {SeriesDay(symbol, "1m", day): Read(1_440, 0, False, now_ms)}
            note_reads(connection, reads)
    assert history_is_read(connection)
    store.account(AUGUST + 3 * DAY_MS + 10 * MINUTE)
    assert not history_is_read(connection), "another day is over"
    unsubscribe(connection, [BTC, ETH], (), now_ms)
    store.account(AUGUST + 3 * DAY_MS + 11 * MINUTE)
    assert history_is_read(connection)


async def _used_while_asking(database: Database, connection: Connection) -> list[dict[str, int]]:
    seen = []
    async with SharedBudget(database) as budget:
        async with budget.request(CANDLES) as permit:
            seen.append(budget_use(connection))
            permit.round_trip_s = 0.01
        seen.append(budget_use(connection))
    return seen


def test_a_request_uses_the_budget_until_it_has_left_the_window(database: Database, connection: Connection) -> None:
    assert asyncio.run(_used_while_asking(database, connection)) == [{"candles": 1}, {"candles": 1}]
    connection.execute("UPDATE trading.request_slots SET free_at = clock_timestamp()")
    assert budget_use(connection) == {"candles": 0}
