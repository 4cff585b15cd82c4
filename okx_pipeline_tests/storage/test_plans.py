"""What a day costs in a store of ten years: one partition is touched, by its key."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.ranges import Range
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import recount
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.landing import SeriesDay, ensure_months
from okx_pipeline.storage.landings import totals_of_days
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.reading import read_store
from okx_pipeline.timeframes import DAY_MS, day_ms, parse_timeframe

BTC = "BTC-USDT-SWAP"
MINUTE = parse_timeframe("1m")
DAY = date(2024, 3, 15)
START_MS = day_ms(DAY)
MONTHS = [date(2017 + month // 12, month % 12 + 1, 1) for month in range(120)]


def candle(open_ms: int) -> Candle:
    return Candle(BTC, "1m", open_ms, "10", "11", "9", "10", "5", "1", "50")


@pytest.fixture(scope="module")
def store(new_database: Callable[[bool], Database], tmp_path_factory: pytest.TempPathFactory) -> Iterator[CandleStore]:
    """Ten years of partitions, three of which hold candles, one of them a whole month."""
    files = ParquetStore(str(tmp_path_factory.mktemp("parquet")))
    with CandleStore.opened(new_database(True), files) as opened:
        ensure_months(opened.connection, MONTHS)
        for first, last in ((date(2024, 2, 1), date(2024, 2, 3)), (date(2024, 3, 1), date(2024, 4, 3))):
            opens = MINUTE.opens(day_ms(first), day_ms(last))
            opened.land([candle(open_ms) for open_ms in opens], source=Source.REST)
        opened.project([])
        opened.connection.execute("VACUUM (ANALYZE) trading.candlesticks")
        yield opened


def touched(connection: Connection) -> dict[str, tuple[int, int]]:
    """Scans of each partition so far, of the table and of its key."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    return {
        name: (scans, by_key)
        for name, scans, by_key in connection.execute(
            "SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname LIKE 'candlesticks_20%'"
        )
    }


READS: dict[str, Callable[[CandleStore], Any]] = {
    "open times": lambda store: store.opens(BTC, MINUTE, START_MS, START_MS + DAY_MS),
    "the loader": lambda store: read_store(store, BTC, MINUTE, Range(START_MS, START_MS + DAY_MS)),
    "closing prices": lambda store: store.closes(BTC, MINUTE, START_MS, START_MS + DAY_MS),
    "rows of stretches": lambda store: store.rows_per_stretch(BTC, MINUTE, 1440, START_MS, START_MS + DAY_MS),
    "the hash": lambda store: one(
        store.connection, "SELECT trading.content_hash(%s, '1m', %s, %s)", (BTC, START_MS, START_MS + DAY_MS)
    ),
    "the view": lambda store: store.connection.execute(
        "SELECT open_time, close FROM trading.candles WHERE symbol = %s AND timeframe = '1m' "
        "AND timestamp_ms >= trading.ms(%s) AND timestamp_ms < trading.ms(%s)",
        (BTC, "2024-03-15 00:00+00", "2024-03-16 00:00+00"),
    ).fetchall(),
    "totals": lambda store: totals_of_days(store.connection, [(BTC, DAY, "1m")]),
    "the ledger": lambda store: recount(
        store.connection, store.files, START_MS + 90 * DAY_MS, [SeriesDay(BTC, "1m", DAY)]
    ),
    "landing again": lambda store: store.land([candle(START_MS + 60_000)], source=Source.WEBSOCKET),
}


@pytest.mark.parametrize("what", READS)
def test_a_day_of_a_series_touches_one_of_120_partitions_by_its_key(store: CandleStore, what: str) -> None:
    assert len(touched(store.connection)) == 120
    before = touched(store.connection)
    READS[what](store)
    after = touched(store.connection)
    grown = {name for name in after if after[name] != before[name]}
    assert grown == {"candlesticks_2024_03"}
    assert after["candlesticks_2024_03"][0] == before["candlesticks_2024_03"][0], "the whole partition was read"


def test_the_plan_of_a_day_names_one_partition_and_its_key(store: CandleStore) -> None:
    plan = one(
        store.connection,
        "EXPLAIN (FORMAT JSON) SELECT * FROM trading.candlesticks WHERE symbol = 'BTC-USDT-SWAP' AND timeframe = '1m' "
        f"AND timestamp_ms >= {START_MS} AND timestamp_ms < {START_MS + DAY_MS}",
    )
    assert set(_named(plan, "Relation Name")) == {"candlesticks_2024_03"}
    assert set(_named(plan, "Index Name")) == {"candlesticks_2024_03_pkey"}


def _named(plan: Any, key: str) -> Iterator[str]:
    if isinstance(plan, dict):
        if key in plan:
            yield plan[key]
        for value in plan.values():
            yield from _named(value, key)
    elif isinstance(plan, list):
        for value in plan:
            yield from _named(value, key)
