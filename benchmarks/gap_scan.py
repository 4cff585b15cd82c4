"""The gap scan of millions of rows of 1m, and of one day.

The rows are of 20 series, one in two thousand missing here and there, vacuumed as a server's own daemon leaves them.
The peer does what is often done: reads each series' times into pandas and takes them from a range of all there should
be. The limit is a plain count of the same rows.
"""

import tempfile
from datetime import date
from pathlib import Path

import pandas as pd

from benchmarks.contest import Contest, elapsed
from benchmarks.figures import Figure
from okx_pipeline.quality.gaps import SeriesRange, look
from okx_pipeline.ranges import Range
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, one
from okx_pipeline.storage.landing import ensure_months
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS, day_ms, month_of, parse_timeframe

ROWS = 2_000_000
MANY_ROWS = 10_000_000
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
_OPENS = (
    "SELECT timestamp_ms FROM trading.candlesticks "
    "WHERE symbol = %s AND timeframe = '1m' AND timestamp_ms >= %s AND timestamp_ms < %s"
)


def run(rows: int = ROWS) -> list[Figure]:
    """The scan's time as a multiple of the count's, the median of three rounds, and the seconds one day takes."""
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(home=Path(home))
        files = ParquetStore(settings.parquet_root)
        with opened_database(settings) as database, CandleStore.opened(database, files) as store:
            end_ms = START_MS + rows // len(SYMBOLS) * MINUTE_MS
            held = fill(store.connection, end_ms)
            within = Range(START_MS, end_ms)
            contest = Contest(
                {
                    "ours": lambda: elapsed(lambda: scan(store, within, held)),
                    "pandas": lambda: elapsed(lambda: _peer(store.connection, within, held)),
                    "count(*)": lambda: elapsed(lambda: one(store.connection, _COUNT, within)),
                },
                ROUNDS,
            )
            day = SeriesRange(SYMBOLS[7], MINUTE, Range(end_ms - 2 * DAY_MS, end_ms - DAY_MS))
            day_s = [elapsed(lambda: look(store, day)) for _ in range(ROUNDS)]
    return [
        Figure("rows", held),
        *contest.times(),
        contest.speed("ours", "pandas"),
        contest.cost("ours", "count(*)", at_most=3.0),
        Figure.of("one day of them, seconds", day_s, at_most=1.0),
    ]


def fill(connection: Connection, end_ms: int, from_ms: int = START_MS) -> int:
    """Make the rows of every symbol from `from_ms` to `end_ms`; returns how many there are from the start."""
    ensure_months(connection, {month_of(open_ms) for open_ms in (*range(from_ms, end_ms, DAY_MS), end_ms - MINUTE_MS)})
    for number, symbol in enumerate(SYMBOLS):
        connection.execute(_FILL, (symbol, from_ms, end_ms - MINUTE_MS, number))
    connection.execute("VACUUM (ANALYZE) trading.candlesticks")
    return int(one(connection, f"{_COUNT} AND symbol = ANY(%s)", (START_MS, end_ms, SYMBOLS)))


def scan(store: CandleStore, within: Range, held: int) -> None:
    """Look for gaps in every series, and see that what is held was counted right."""
    found = [look(store, SeriesRange(symbol, MINUTE, within)) for symbol in SYMBOLS]
    if sum(each.present for each in found) != held:
        raise AssertionError("the scan and the count differ")


def _peer(connection: Connection, within: Range, held: int) -> None:
    wanted = pd.RangeIndex(within.start_ms, within.end_ms, MINUTE_MS)
    missing = 0
    for symbol in SYMBOLS:
        found = connection.execute(_OPENS, (symbol, *within)).fetchall()
        missing += len(wanted.difference(pd.Index([open_ms for (open_ms,) in found])))
    if missing + held != len(wanted) * len(SYMBOLS):
        raise AssertionError("the peer and the count differ")
