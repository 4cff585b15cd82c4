"""The gap scan of ten million rows of 1m against a plain count of the same rows, and of one day.

The rows are of 20 series over a year, a few hundred of them missing here and there, vacuumed as a server's own daemon
leaves them.
"""

import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

from psycopg import sql

from benchmarks.figures import Figure
from okx_pipeline.quality.gaps import SeriesRange, look
from okx_pipeline.ranges import Range
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, one
from okx_pipeline.storage.landing import ensure_months
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS, day_ms, parse_timeframe

ROWS = 10_000_000
SYMBOLS = [f"SYN{number:02d}-USDT-SWAP" for number in range(20)]
MINUTE = parse_timeframe("1m")
START_MS = day_ms(date(2025, 1, 1))
ROUNDS = 3

_FILL = """
INSERT INTO trading.candlesticks (symbol, timeframe, timestamp_ms, open_price, high_price, low_price, close_price,
                                  volume, volume_currency, volume_quote, source)
SELECT %s, '1m', minute, 45890.8, 46030.7, 45771.9, 45802.9, 55031.6, 550.316, 25270722.67163, 'rest'
FROM generate_series(%s::bigint, %s::bigint, 60000) AS minute
WHERE hashint8(minute + %s) %% 2000 <> 0
"""
_COUNT = "SELECT count(*) FROM trading.candlesticks WHERE timeframe = '1m' AND timestamp_ms >= %s AND timestamp_ms < %s"


def run(rows: int = ROWS) -> list[Figure]:
    """The scan's time as a multiple of the count's, the median of three rounds, and the seconds one day takes."""
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(home=Path(home))
        files = ParquetStore(settings.parquet_root)
        with opened_database(settings) as database, CandleStore.opened(database, files) as store:
            end_ms = START_MS + rows // len(SYMBOLS) * MINUTE_MS
            held = fill(store.connection, end_ms)
            ratios = []
            for _ in range(ROUNDS):
                counted_s = _timed(lambda: one(store.connection, _COUNT, (START_MS, end_ms)))
                scanned_s = _timed(lambda: _scan(store, Range(START_MS, end_ms), held))
                ratios.append(scanned_s / counted_s)
            day = SeriesRange(SYMBOLS[7], MINUTE, Range(end_ms - 2 * DAY_MS, end_ms - DAY_MS))
            day_s = _timed(lambda: look(store, day))
    return [
        Figure(f"gap scan of {held:,} rows, times a plain count", median(ratios), at_most=3.0),
        Figure("gap scan of one day of them, seconds", day_s, at_most=1.0),
    ]


def fill(connection: Connection, end_ms: int) -> int:
    """Make the rows of every symbol up to `end_ms`; returns how many."""
    ensure_months(connection, [date(2025, month, 1) for month in range(1, 13)])
    for number, symbol in enumerate(SYMBOLS):
        connection.execute(_FILL, (symbol, START_MS, end_ms - MINUTE_MS, number))
    connection.execute(sql.SQL("VACUUM (ANALYZE) trading.candlesticks"))
    return int(one(connection, _COUNT, (START_MS, end_ms)))


def _scan(store: CandleStore, within: Range, held: int) -> None:
    found = [look(store, SeriesRange(symbol, MINUTE, within)) for symbol in SYMBOLS]
    if sum(each.present for each in found) != held:
        raise AssertionError("the scan and the count differ")


def _timed(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started
