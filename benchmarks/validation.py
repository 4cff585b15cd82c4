"""Validating a day of 100 series, rows read and verdicts written down.

Ours judges all of them in one batch. The peer is Great Expectations used as its guides have it, one validation a
series, with our rules and our reading, so that the batch is all the difference. The limit is plain SQL that finds the
rows for which the rules about single candles do not hold, and the holes, of all series at once.
"""

import tempfile
from pathlib import Path

from benchmarks.contest import Contest, elapsed
from benchmarks.figures import Figure
from benchmarks.market import candles
from okx_pipeline.candles import Source
from okx_pipeline.quality.validation import validate
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.coverage import recount
from okx_pipeline.storage.landing import SeriesDay, land
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.projection import pending_months, project
from okx_pipeline.timeframes import DAY_MS, day_ms, day_of

SYMBOLS = [f"SYN{number:03d}-USDT-SWAP" for number in range(100)]
START_MS = 1_785_542_400_000
ROUNDS = 3

_RULES_IN_SQL = """
SELECT count(*) FILTER (WHERE high_price < greatest(open_price, close_price, low_price)),
       count(*) FILTER (WHERE low_price > least(open_price, close_price)),
       count(*) FILTER (WHERE least(open_price, high_price, low_price, close_price) <= 0),
       count(*) FILTER (WHERE least(volume, volume_currency, volume_quote) < 0),
       count(*) FILTER (WHERE (volume = 0) <> (volume_quote = 0)),
       count(*) FILTER (WHERE timestamp_ms %% 60000 <> 0),
       count(*) FILTER (WHERE open_price %% 0.1 <> 0 OR high_price %% 0.1 <> 0
                           OR low_price %% 0.1 <> 0 OR close_price %% 0.1 <> 0),
       count(*) FILTER (WHERE volume_quote NOT BETWEEN low_price * volume_currency * 0.99
                                                   AND high_price * volume_currency * 1.01),
       count(*) FILTER (WHERE before IS NOT NULL AND timestamp_ms - before <> 60000),
       count(*) FILTER (WHERE last_close IS NOT NULL AND abs(open_price / last_close - 1) > 0.1)
FROM (
    SELECT *, lag(timestamp_ms) OVER series AS before, lag(close_price) OVER series AS last_close
    FROM trading.candlesticks
    WHERE timeframe = '1m' AND timestamp_ms >= %s AND timestamp_ms < %s
    WINDOW series AS (PARTITION BY symbol ORDER BY timestamp_ms)
) AS candles
"""


def run() -> list[Figure]:
    """How many times as fast as the peer; the limit is shown beside."""
    day = day_of(START_MS + DAY_MS)
    series = [(symbol, "1m") for symbol in SYMBOLS]
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(home=Path(home))
        files = ParquetStore(settings.parquet_root)
        with opened_database(settings) as database, database.connect() as connection:
            land(connection, candles(START_MS, 2 * 1_440, SYMBOLS), source=Source.REST)
            project(connection, files, pending_months(connection))
            days = [SeriesDay(*key, each) for key in series for each in (day_of(START_MS), day)]
            recount(connection, files, START_MS + 3 * DAY_MS, days)
            connection.execute("VACUUM (ANALYZE) trading.candlesticks")
            bounds = (day_ms(day), day_ms(day) + DAY_MS)

            def one_by_one() -> None:
                for key in series:
                    validate(connection, files, [key], day)

            validate(connection, files, series[:1], day)
            contest = Contest(
                {
                    "ours": lambda: elapsed(lambda: validate(connection, files, series, day)),
                    "a validation for each series": lambda: elapsed(one_by_one),
                    "ten rules in SQL": lambda: elapsed(lambda: connection.execute(_RULES_IN_SQL, bounds)),
                },
                ROUNDS,
            )
    return [
        *contest.times(),
        contest.speed("ours", "a validation for each series", at_least=10.0),
        contest.cost("ours", "ten rules in SQL"),
    ]
