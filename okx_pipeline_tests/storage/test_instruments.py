"""Instruments: a version for every change of rules, none for none, nothing deleted, listings one after another."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.exchange.messages import Instrument
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.instruments import Life, Snapshot, life_of, lives, record_listing, symbols
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import day_ms, parse_timeframe, parse_timeframes

BTC = Instrument(
    symbol="BTC-USDT-SWAP",
    instrument_type="SWAP",
    family="BTC-USDT",
    settle_currency="USDT",
    contract_type="linear",
    contract_value="0.01",
    contract_multiplier="1",
    contract_currency="BTC",
    tick_size="0.1",
    lot_size="0.01",
    minimum_size="0.01",
    listed="1611916828000",
)
ETH = Instrument(
    symbol="ETH-USDT", instrument_type="SPOT", base_currency="ETH", quote_currency="USDT", tick_size="0.000000000001"
)
FUTURE = msgspec.structs.replace(BTC, symbol="BTC-USDT-261225", instrument_type="FUTURES", expires="1798185600000")


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


def versions(connection: Connection, symbol: str) -> list[tuple[Any, ...]]:
    query = "SELECT tick_size::text, state FROM trading.instruments WHERE symbol = %s ORDER BY valid_from"
    return connection.execute(query, (symbol,)).fetchall()


def test_a_first_listing_adds_every_instrument_with_all_its_rules(connection: Connection) -> None:
    assert not lives(connection)
    assert record_listing(connection, [BTC, ETH, FUTURE]) == Snapshot(listed=3, added=3, delisted=0)
    assert lives(connection)
    stored = connection.execute(
        "SELECT instrument_type, family, base_currency, quote_currency, settle_currency, contract_type, "
        "contract_value::text, contract_multiplier::text, contract_currency, tick_size::text, lot_size::text, "
        "minimum_size::text, listed_ms, expires_ms, state FROM trading.current_instruments ORDER BY symbol"
    ).fetchall()
    swap = ("BTC-USDT", None, None, "USDT", "linear", "0.01", "1", "BTC", "0.1", "0.01", "0.01", 1611916828000)
    assert stored == [
        ("FUTURES", *swap, 1798185600000, "live"),
        ("SWAP", *swap, None, "live"),
        ("SPOT", None, "ETH", "USDT", *[None] * 5, "0.000000000001", *[None] * 4, "live"),
    ]


def test_an_instrument_lives_from_its_listing_to_its_expiry(connection: Connection) -> None:
    record_listing(connection, [BTC, FUTURE])
    assert life_of(connection, "BTC-USDT-261225") == Life(1611916828000, 1798185600000, "live")
    assert life_of(connection, "BTC-USDT-SWAP") == Life(1611916828000, None, "live")
    assert life_of(connection, "NO-SUCH") is None


def test_the_same_listing_again_adds_nothing_however_it_is_ordered_or_written(connection: Connection) -> None:
    record_listing(connection, [BTC, ETH])
    padded = msgspec.structs.replace(BTC, tick_size="0.10", contract_multiplier="1.0")
    assert record_listing(connection, [ETH, padded, ETH]) == Snapshot(listed=2, added=0, delisted=0)
    assert one(connection, "SELECT count(*) FROM trading.instruments") == 2


def test_a_changed_rule_is_a_new_version_and_the_old_one_stays(connection: Connection) -> None:
    record_listing(connection, [BTC, ETH])
    finer = msgspec.structs.replace(BTC, tick_size="0.01")
    assert record_listing(connection, [finer, ETH]) == Snapshot(listed=2, added=1, delisted=0)
    assert versions(connection, "BTC-USDT-SWAP") == [("0.1", "live"), ("0.01", "live")]
    assert versions(connection, "ETH-USDT") == [("0.000000000001", "live")]
    suspended = msgspec.structs.replace(finer, state="suspend")
    record_listing(connection, [suspended, ETH])
    assert versions(connection, "BTC-USDT-SWAP")[-1] == ("0.01", "suspend")
    announced = msgspec.structs.replace(suspended, expires="1798185600000")
    assert record_listing(connection, [announced, ETH]).added == 1
    assert life_of(connection, "BTC-USDT-SWAP") == Life(1611916828000, 1798185600000, "suspend")


def test_one_that_is_listed_no_more_is_delisted_once_and_listed_again_when_it_is_back(connection: Connection) -> None:
    record_listing(connection, [BTC, ETH])
    assert record_listing(connection, [ETH]) == Snapshot(listed=1, added=0, delisted=1)
    assert record_listing(connection, [ETH]) == Snapshot(listed=1, added=0, delisted=0)
    assert life_of(connection, "BTC-USDT-SWAP") == Life(1611916828000, None, "delisted")
    assert record_listing(connection, [BTC, ETH]) == Snapshot(listed=2, added=1, delisted=0)
    assert versions(connection, "BTC-USDT-SWAP") == [("0.1", "live"), ("0.1", "delisted"), ("0.1", "live")]


def test_a_listing_that_fails_leaves_nothing(connection: Connection) -> None:
    with pytest.raises(Exception, match="invalid input syntax for type numeric"):
        record_listing(connection, [ETH, msgspec.structs.replace(BTC, tick_size="a tenth")])
    assert not lives(connection)
    assert record_listing(connection, [BTC]).added == 1


def test_of_listings_at_once_each_sees_what_the_one_before_it_added(database: Database) -> None:
    listings = 6

    def record() -> int:
        with database.connect() as connection:
            return record_listing(connection, [BTC, ETH]).added

    with database.connect() as holder, database.connect() as watcher, ThreadPoolExecutor(listings) as threads:
        with holder.transaction():
            holder.execute("LOCK TABLE trading.instruments IN SHARE ROW EXCLUSIVE MODE")
            added = [threads.submit(record) for _ in range(listings)]
            while one(watcher, "SELECT count(*) FROM pg_locks WHERE NOT granted") < listings:
                assert not any(listing.done() for listing in added)
        assert sorted(listing.result(60) for listing in added) == [0] * (listings - 1) + [2]
        assert one(watcher, "SELECT count(*) FROM trading.instruments") == 2


def test_a_listing_that_waited_for_another_counts_from_when_its_turn_came(database: Database) -> None:
    finer = msgspec.structs.replace(BTC, tick_size="0.01")
    with database.connect() as first, database.connect() as second, database.connect() as watcher:
        second.execute("BEGIN")
        second.execute("SELECT 1")  # its transaction's time is before the first's
        record_listing(first, [BTC])
        record_listing(second, [finer])
        second.execute("COMMIT")
        current = "SELECT tick_size::text FROM trading.current_instruments WHERE symbol = 'BTC-USDT-SWAP'"
        assert one(watcher, current) == "0.01"


def test_of_a_symbol_it_tells_what_is_subscribed_and_held_archived_months_included(
    connection: Connection, tmp_path: Path
) -> None:
    record_listing(connection, [BTC, ETH, FUTURE])
    record_listing(connection, [BTC, FUTURE])
    subscribe(connection, ["BTC-USDT-SWAP", "ETH-USDT"], parse_timeframes("1h,1m"), day_ms(date(2026, 7, 1)))
    store = CandleStore(connection, ParquetStore(str(tmp_path)), "here")
    noon = 12 * 3_600_000
    july, august = day_ms(date(2026, 7, 30)) + noon, day_ms(date(2026, 8, 2)) + noon
    for symbol, timeframe, open_ms in (
        *(("ETH-USDT", "1m", open_ms) for open_ms in (july, august)),
        *(("ETH-USDT", "1h", august), ("ODD-USDT", "5m", july)),
    ):
        store.land([Candle(symbol, timeframe, open_ms, "1", "1", "1", "1", "1", "1", "1")], source=Source.REST)
    store.project([])
    store.account(day_ms(date(2026, 8, 10)))
    for symbol, timeframe in (("ETH-USDT", "1m"), ("ODD-USDT", "5m")):
        archive_month(connection, store.files, SeriesMonth(symbol, timeframe, date(2026, 7, 1)))
    minute, five, hour = map(parse_timeframe, ("1m", "5m", "1h"))
    assert {
        each.symbol: (each.type, each.state, each.subscribed, each.held, each.first_ms, each.last_ms)
        for each in symbols(connection)
    } == {
        "BTC-USDT-261225": ("FUTURES", "live", [], [], None, None),
        "BTC-USDT-SWAP": ("SWAP", "live", [minute, hour], [], None, None),
        # Its first candle is in a file alone, and the ledger knows the day.
        "ETH-USDT": ("SPOT", "delisted", [minute, hour], [minute, hour], july - noon, august),
        "ODD-USDT": (None, None, [], [five], july - noon, july - noon),
    }
