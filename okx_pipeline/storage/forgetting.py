"""Deleting what nobody wants: the rows, files, gaps and verdicts of series-days that were forgotten.

What is wanted stands in `wanted`, and ending it there comes first. Rows leave PostgreSQL month by month, and the marks
that this leaves have ledger and Parquet files follow; a file of which no row is left goes.
"""

from collections.abc import Collection
from datetime import date
from typing import Final, LiteralString

from okx_pipeline.errors import UsageError, command
from okx_pipeline.ranges import Range, difference, intersection, union
from okx_pipeline.storage import coverage, projection
from okx_pipeline.storage.database import Connection, one, session_lock
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.wanted import NOTHING, Series, wants
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_of, month_bounds

_MONTHS: Final[LiteralString] = """
SELECT timeframe, month FROM trading.candle_months WHERE symbol = %(symbol)s
UNION
SELECT timeframe, date_trunc('month', day)::date FROM trading.coverage WHERE symbol = %(symbol)s
UNION
SELECT timeframe, date_trunc('month', day)::date FROM trading.landing_marks
WHERE symbol = %(symbol)s AND counted < revision
"""

_ARCHIVED: Final[LiteralString] = """
SELECT month.timeframe, month.month FROM trading.candle_months AS month
WHERE month.symbol = %s AND month.state = 'archived' AND EXISTS (
    SELECT FROM trading.coverage AS day
    WHERE day.symbol = month.symbol AND day.timeframe = month.timeframe AND day.present > 0
      AND day.day >= month.month AND day.day < month.month + interval '1 month'
      AND (day.day - date '1970-01-01') * 86400000::bigint >= %s
      AND (day.day - date '1970-01-01') * 86400000::bigint < %s
)
ORDER BY month.month, month.timeframe
"""

_DELETE_ROWS: Final[LiteralString] = """
DELETE FROM trading.candlesticks
WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
"""

# What was found of the days' candles says nothing any more: gaps, verdicts, mismatches and what was noted of them.
_DELETE_FINDINGS: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM trading.candle_gaps WHERE symbol = %s AND timeframe = %s AND first_ms >= %s AND last_ms < %s",
    "DELETE FROM trading.timeframe_mismatches "
    "WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s",
)
_DELETE_VERDICTS: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM trading.quality_results WHERE symbol = %s AND timeframe = %s AND day >= %s AND day < %s",
    "DELETE FROM trading.accepted_findings WHERE symbol = %s AND timeframe = %s AND day >= %s AND day < %s",
)

_IS_EMPTY: Final[LiteralString] = """
SELECT NOT EXISTS (
    SELECT FROM trading.candlesticks
    WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
) AND NOT EXISTS (
    SELECT FROM trading.coverage WHERE symbol = %s AND timeframe = %s AND day >= %s AND day < %s
) AND EXISTS (
    SELECT FROM trading.candle_months WHERE symbol = %s AND timeframe = %s AND month = %s AND state = 'live'
)
"""


def refuse_archived(connection: Connection, symbol: str, timeframes: Collection[Timeframe], within: Range) -> None:
    """Raise `UsageError` if a month of the symbol is archived that holds rows in `within`: they cannot be deleted."""
    names = {timeframe.name for timeframe in timeframes}
    for timeframe, month in connection.execute(_ARCHIVED, (symbol, *within)):
        if not names or timeframe in names:
            back = command(f"restore --month {month:%Y-%m} --symbols {symbol}")
            raise UsageError(
                f"{symbol} {timeframe} {month:%Y-%m} is archived, with its rows in Parquet alone; bring it back first: "
                + back
            )


def delete_unwanted(
    connection: Connection,
    files: ParquetStore,
    symbol: str,
    timeframes: Collection[Timeframe],
    within: Range,
    now_ms: int,
) -> int:
    """Delete everything of a symbol's UTC days in `within` that nobody wants; returns how many rows went.

    Of archived months nothing goes: see `refuse_archived`.

    Parameters
    ----------
    timeframes
        All of them where empty.
    now_ms
        The exchange's time.

    Raises
    ------
    psycopg.Error
        If the database fails. What went before is gone; called again, it goes on from there.
    StorageError
        If a file cannot be written or removed; likewise.
    """
    names = {timeframe.name for timeframe in timeframes}
    wanted = wants(connection)
    chosen: dict[SeriesMonth, list[Range]] = {}
    for timeframe, month in connection.execute(_MONTHS, {"symbol": symbol}):
        if names and timeframe not in names:
            continue
        pieces = wanted.get((symbol, timeframe), NOTHING).ranges
        # Whole days: of one that is wanted in part, all stays.
        kept = union(Range(start - start % DAY_MS, end + -end % DAY_MS) for start, end in pieces)
        days = difference(intersection([within], [Range(*month_bounds(month))]), kept)
        if days:
            chosen[SeriesMonth(symbol, timeframe, month)] = days
    deleted = 0
    for series_month, days in sorted(chosen.items()):
        with connection.transaction():
            deleted += sum(_delete(connection, series_month[:2], each) for each in days)
    coverage.count(connection, files, now_ms)
    projection.project(connection, files, sorted(chosen))
    for series_month in sorted(chosen):
        _remove_if_empty(connection, files, series_month)
    return deleted


def _delete(connection: Connection, key: Series, days: Range) -> int:
    between: tuple[date, date] = day_of(days.start_ms), day_of(days.end_ms)
    for query in _DELETE_FINDINGS:
        connection.execute(query, (*key, *days))
    for query in _DELETE_VERDICTS:
        connection.execute(query, (*key, *between))
    return connection.execute(_DELETE_ROWS, (*key, *days)).rowcount


def _remove_if_empty(connection: Connection, files: ParquetStore, month: SeriesMonth) -> None:
    """Remove the file of a live month that holds no row, and of which nothing is wanted."""
    start_ms, end_ms = month_bounds(month.month)
    key = month[:2]
    with session_lock(connection, "parquet", *map(str, month)):
        if one(connection, _IS_EMPTY, (*key, start_ms, end_ms, *key, day_of(start_ms), day_of(end_ms), *month)):
            files.remove(month)
            connection.execute(
                "DELETE FROM trading.candle_months WHERE symbol = %s AND timeframe = %s AND month = %s", month
            )
