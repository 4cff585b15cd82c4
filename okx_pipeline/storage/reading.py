"""A range of a series as an Arrow table, from PostgreSQL or from the Parquet files: for analysis, not for bookkeeping.

Both give the same rows. PostgreSQL has the last minutes, too, and archived months come from their files all the same.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, LiteralString

import pyarrow as pa
from psycopg import sql
from pyarrow import csv

from okx_pipeline.candles import VALUE_COLUMNS
from okx_pipeline.ranges import Range, difference, intersection, union
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import snapshot, translated
from okx_pipeline.storage.parquet import NUMBER, DamagedFileError, ParquetStore, SeriesMonth
from okx_pipeline.timeframes import Timeframe, month_bounds

SCHEMA: Final = pa.schema(
    [
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("open_time", pa.timestamp("ms", tz="UTC"), nullable=False),
        *(pa.field(column.name, NUMBER, nullable=False) for column in VALUE_COLUMNS),
    ]
)
"""What a table that was read has."""

_NAMES: Final = ["timestamp_ms", *(column.name for column in VALUE_COLUMNS)]
_TYPES: Final = {"timestamp_ms": pa.int64(), **{column.name: NUMBER for column in VALUE_COLUMNS}}
FILES_AT_ONCE: Final = 4
"""One is on its way from the disk or the object store while another is decoded."""

CANDLES_AT_ONCE: Final = 50_000
"""Candles of a piece: a month of 1m and more, 10 MB."""

_ARCHIVED: Final[LiteralString] = """
SELECT month FROM trading.candle_months WHERE symbol = %s AND timeframe = %s AND state = 'archived' ORDER BY month
"""
_ENDS: Final[LiteralString] = """
SELECT min(timestamp_ms), max(timestamp_ms) FROM trading.candlesticks
WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
"""
_COPY: Final = sql.SQL(
    """
COPY (
    SELECT {} FROM trading.candlesticks
    WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
    ORDER BY timestamp_ms
) TO STDOUT (FORMAT csv)
"""
).format(sql.SQL(", ").join(map(sql.Identifier, _NAMES)))


def read_files(files: ParquetStore, symbol: str, timeframe: Timeframe, within: Range) -> pa.Table:
    """The candles of a series that open in `within`, ascending, from the Parquet files alone; shape (rows, 9).

    Raises
    ------
    DamagedFileError
        If a file cannot be read whole.
    StorageError
        If the object store is out of reach.
    """
    months = [month for month in files.months(symbol, timeframe.name) if _reaches(month, within)]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return _joined(pool.map(lambda month: _cut(files.columns(month, SCHEMA), within), months))


def read_store(store: CandleStore, symbol: str, timeframe: Timeframe, within: Range) -> pa.Table:
    """The same from PostgreSQL, and of archived months from their files.

    Raises
    ------
    StorageError
        If the database is out of reach.
    DamagedFileError
        If the file of an archived month cannot be read whole.
    """
    with translated(store.place), snapshot(store.connection):
        archived = [
            SeriesMonth(symbol, timeframe.name, month)
            for (month,) in store.connection.execute(_ARCHIVED, (symbol, timeframe.name))
        ]
        away = [month for month in archived if _reaches(month, within)]
        tables = [
            (piece.start_ms, _copied(store, symbol, timeframe, piece))
            for piece in difference([within], [Range(*month_bounds(month.month)) for month in away])
        ]
    tables += [(month_bounds(month.month)[0], _cut(store.files.columns(month, SCHEMA), within)) for month in away]
    return _joined(table for _, table in sorted(tables, key=lambda each: each[0]))


def pieces_of_files(
    files: ParquetStore,
    symbol: str,
    timeframe: Timeframe,
    within: Range,
    instead: Callable[[Range, DamagedFileError], pa.Table],
) -> Iterator[pa.Table]:
    """What `read_files` reads, a month at a time, so that memory is bounded by a month.

    Parameters
    ----------
    instead
        Gives what is asked of a month whose file is damaged.
    """
    for month in files.months(symbol, timeframe.name):
        if _reaches(month, within):
            try:
                piece = _cut(files.columns(month, SCHEMA), within)
            except DamagedFileError as damage:
                [wanted] = intersection([Range(*month_bounds(month.month))], [within])
                piece = instead(wanted, damage)
            yield piece


def pieces_of_store(store: CandleStore, symbol: str, timeframe: Timeframe, within: Range) -> Iterator[pa.Table]:
    """What `read_store` reads, `CANDLES_AT_ONCE` at a time, so that memory is bounded.

    Each piece is read in a transaction of its own: whoever takes their time with one keeps nobody from the table.
    """
    held = _held(store, symbol, timeframe, within)
    start_ms = held.start_ms
    while start_ms < held.end_ms:
        end_ms = min(held.end_ms, timeframe.step(timeframe.open_at(start_ms), CANDLES_AT_ONCE))
        yield read_store(store, symbol, timeframe, Range(start_ms, end_ms))
        start_ms = end_ms


def _held(store: CandleStore, symbol: str, timeframe: Timeframe, within: Range) -> Range:
    """From the first to the last candle in `within`, of an archived month all of it."""
    with translated(store.place), snapshot(store.connection):
        found = store.connection.execute(_ENDS, (symbol, timeframe.name, *within)).fetchone()
        months = store.connection.execute(_ARCHIVED, (symbol, timeframe.name)).fetchall()
    bounds = [Range(*month_bounds(month)) for (month,) in months]
    first_ms, last_ms = found or (None, None)
    if first_ms is not None:
        bounds.append(Range(first_ms, last_ms + 1))
    whole = intersection(union(bounds), [within])
    return Range(whole[0].start_ms, whole[-1].end_ms) if whole else Range(0, 0)


def _copied(store: CandleStore, symbol: str, timeframe: Timeframe, within: Range) -> pa.Table:
    with store.connection.cursor() as cursor, cursor.copy(_COPY, (symbol, timeframe.name, *within)) as copy:
        body = b"".join(bytes(chunk) for chunk in copy)
    if not body:
        return SCHEMA.empty_table()
    table = csv.read_csv(
        pa.BufferReader(body),
        read_options=csv.ReadOptions(column_names=_NAMES),
        convert_options=csv.ConvertOptions(column_types=_TYPES, null_values=[], strings_can_be_null=False),
    )
    columns = {name: table[name] for name in _NAMES}
    columns["open_time"] = table["timestamp_ms"].cast(pa.timestamp("ms", tz="UTC"))
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _reaches(month: SeriesMonth, within: Range) -> bool:
    start_ms, end_ms = month_bounds(month.month)
    return start_ms < within.end_ms and within.start_ms < end_ms


def _cut(table: pa.Table, within: Range) -> pa.Table:
    opens = table["timestamp_ms"].to_numpy()
    start, end = bisect_left(opens, within.start_ms), bisect_left(opens, within.end_ms)
    return table if (start, end) == (0, len(opens)) else table.slice(start, end - start)


def _joined(tables: Iterable[pa.Table]) -> pa.Table:
    return pa.concat_tables([SCHEMA.empty_table(), *tables])
