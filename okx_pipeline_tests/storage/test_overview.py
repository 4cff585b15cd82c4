"""The store at a glance: what it shows of each series, and what it does not read for that."""

from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import Refused, Source
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import Read
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.overview import _SERIES, SeriesLedger, SeriesOverview, ledger, overview
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.subscriptions import seed_subscriptions, unsubscribe
from okx_pipeline.timeframes import DAY_MS, parse_timeframes
from okx_pipeline_tests.storage.test_landing import AUGUST, MINUTE, candle, now


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def store(connection: Connection, tmp_path: Path) -> CandleStore:
    return CandleStore(connection, ParquetStore(str(tmp_path / "parquet")), "here")


def test_an_empty_store_shows_its_server_and_nothing_else(connection: Connection) -> None:
    seen = overview(connection)
    assert seen.server_version.split(".")[0].isdigit()
    assert seen.size_bytes > 1_000_000
    assert (seen.origin, seen.quarantined, seen.revisions, seen.series) == (None, 0, 0, [])


def test_a_series_shows_its_first_and_last_candle_what_is_in_files_and_what_waits(
    connection: Connection, store: CandleStore
) -> None:
    seed_subscriptions(connection, ["BTC-USDT-SWAP"], parse_timeframes("1d,1m"), 0)
    store.claim_for("market")
    store.land([candle(minute) for minute in (0, 1, 44_640)], source=Source.REST)
    store.land([candle(7, symbol="ETH-USDT")], source=Source.REST)
    store.project([])
    refused = Refused("BTC-USDT-SWAP", "1m", AUGUST + MINUTE, "a price is zero", "[]")
    store.land([candle(1, "63031")], [refused], source=Source.REST, requested_at=now(connection))
    seen = overview(connection)
    assert seen.series == [
        SeriesOverview("BTC-USDT-SWAP", "1m", AUGUST, AUGUST + 44_640 * MINUTE, 3, True),
        SeriesOverview("BTC-USDT-SWAP", "1d", None, None, 0, False),
        SeriesOverview("ETH-USDT", "1m", AUGUST + 7 * MINUTE, AUGUST + 7 * MINUTE, 1, False),
    ]
    assert (seen.origin, seen.quarantined, seen.revisions) == ("market", 1, 1)
    store.project([])
    assert not any(series.waiting for series in overview(connection).series)


def test_what_has_ended_is_shown_as_long_as_candles_of_it_are_kept(connection: Connection, store: CandleStore) -> None:
    seed_subscriptions(connection, ["BTC-USDT-SWAP", "ETH-USDT"], parse_timeframes("1m"), 0)
    store.land([candle(0)], source=Source.REST)
    store.project([])
    connection.execute("UPDATE trading.subscriptions SET until_ms = 1")
    assert [series.symbol for series in overview(connection).series] == ["BTC-USDT-SWAP"]


def test_the_rows_of_a_series_are_not_read_to_show_it(connection: Connection, store: CandleStore) -> None:
    store.land([candle(minute) for minute in range(0, 200_000, 10)], source=Source.REST)
    store.project([])
    connection.execute("ANALYZE")
    (plan,) = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {_SERIES}").fetchone() or ()

    def rows(node: dict[str, object]) -> int:
        own = node["Actual Rows"] * node["Actual Loops"]  # type: ignore[operator]
        below = node.get("Plans", [])
        return int(max(own, *map(rows, below))) if below else int(own)  # type: ignore[call-overload]

    assert rows(plan[0]["Plan"]) < 100


DAY = 1_440
"""Minutes."""


def read(store: CandleStore, *days: int, at_ms: int) -> None:
    """As a run does that has read those days of August from REST."""
    keys = [SeriesDay("BTC-USDT-SWAP", "1m", date(2026, 8, day)) for day in days]
    store.account(at_ms, {key: Read(DAY, DAY, False, at_ms) for key in keys})


def seen(connection: Connection, now_ms: int | None) -> tuple[int, int, int, int, int]:
    """Expected, present, being fetched, in gaps and overdue."""
    [each] = ledger(connection, now_ms).values()
    return each.expected, each.present, each.fetching, each.in_gaps, each.overdue


def a_day_goes_by(connection: Connection) -> None:
    connection.execute("UPDATE trading.coverage SET counted_at = counted_at - interval '1 day'")


def test_history_that_was_not_read_yet_is_on_its_way_and_what_it_did_not_bring_is_overdue_after_a_day(
    connection: Connection, store: CandleStore
) -> None:
    seed_subscriptions(connection, ["BTC-USDT-SWAP"], parse_timeframes("1m"), AUGUST)
    now_ms = AUGUST + 2 * DAY_MS + 5 * MINUTE
    assert ledger(connection, now_ms) == {}
    store.account(now_ms)
    a_day_goes_by(connection)
    assert seen(connection, now_ms) == (2 * DAY + 4, 0, 2 * DAY + 4, 0, 0)

    store.land([candle(minute) for minute in range(2 * DAY) if minute not in (7, 8, DAY)], source=Source.REST)
    read(store, 1, 2, at_ms=now_ms)
    assert seen(connection, now_ms) == (2 * DAY + 4, 2 * DAY - 3, 4, 3, 0)
    # By one clock alone a day has not passed: the database's may have been put, the exchange's be a stand-in's.
    assert seen(connection, now_ms + DAY_MS + 1) == (2 * DAY + 4, 2 * DAY - 3, 4, 3, 0)
    a_day_goes_by(connection)
    assert seen(connection, now_ms) == (2 * DAY + 4, 2 * DAY - 3, 4, 3, 0)
    assert seen(connection, now_ms + DAY_MS + 1) == (2 * DAY + 4, 2 * DAY - 3, 4, 3, 3)
    assert seen(connection, None) == (2 * DAY + 4, 2 * DAY - 3, 4, 3, 3)

    store.land([candle(minute) for minute in (7, 8)], source=Source.REST)
    store.account(now_ms)
    assert seen(connection, now_ms + DAY_MS + 1) == (2 * DAY + 4, 2 * DAY - 1, 4, 1, 1)


def test_of_what_is_subscribed_no_more_the_days_that_were_read_stay_wanted_and_the_others_are_not_on_their_way(
    connection: Connection, store: CandleStore
) -> None:
    seed_subscriptions(connection, ["BTC-USDT-SWAP"], parse_timeframes("1m"), AUGUST)
    now_ms = AUGUST + 2 * DAY_MS
    store.account(now_ms)
    read(store, 1, at_ms=now_ms)
    a_day_goes_by(connection)
    unsubscribe(connection, ["BTC-USDT-SWAP"], [], now_ms)
    store.account(now_ms)
    a_day_goes_by(connection)
    assert seen(connection, now_ms + 2 * DAY_MS) == (DAY, 0, 0, DAY, DAY)


def test_a_day_that_is_held_and_that_nobody_wants_lacks_nothing(connection: Connection, store: CandleStore) -> None:
    store.land([candle(0), candle(3)], source=Source.REST)
    store.account(AUGUST + DAY_MS)
    assert list(ledger(connection, None).values()) == [SeriesLedger("BTC-USDT-SWAP", "1m", 2, 2, 0, 0, 0, 0, 0)]
    seed_subscriptions(connection, ["BTC-USDT-SWAP"], parse_timeframes("1m"), AUGUST + DAY_MS)
    store.account(AUGUST + 2 * DAY_MS + 2 * MINUTE)
    [each] = ledger(connection, None).values()
    assert each == SeriesLedger("BTC-USDT-SWAP", "1m", DAY + 3, 2, 0, 0, DAY + 1, DAY + 1, 0)
