"""The projection of PostgreSQL into Parquet, month by month, driven by the marks that landings leave.

A file is written from PostgreSQL's rows only, under one database lock per file from read to rename, so the next pass
completes one that was killed anywhere. The lock belongs to the connection: right before the rename, a statement on the
same connection proves that it is still held. An archived month, whose rows are in Parquet alone, is never projected;
landing into it restores it first, under the same lock.
"""

import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date
from functools import partial
from operator import itemgetter
from time import perf_counter
from typing import Final, LiteralString, NamedTuple

import pyarrow as pa
from psycopg import sql
from pyarrow import csv

from okx_pipeline.candles import VALUE_COLUMNS
from okx_pipeline.errors import command
from okx_pipeline.storage.database import Connection, StorageError, session_lock, snapshot
from okx_pipeline.storage.gaps import lock_ledger
from okx_pipeline.storage.landing import (
    LEAVES_MARKS,
    SeriesDay,
    ensure_months,
    leave_marks,
    mark_landings,
    with_months,
)
from okx_pipeline.storage.parquet import (
    ARROW_SCHEMA,
    MOMENT,
    NUMBER,
    DamagedFileError,
    FileState,
    ParquetStore,
    SeriesMonth,
    canonical_texts,
    day_hashes,
    month_hash,
)
from okx_pipeline.storage.partitions import InUseError, leave_archived_out, lock_writers_out, series_in
from okx_pipeline.timeframes import day_of, month_bounds

log = logging.getLogger(__name__)

REWRITE_AT_MOST_EVERY_S: Final = 60
REWRITE_SHARE: Final = 20
"""A month is rewritten at most every 60 s and every 20 times its last rewrite took: 5 % of the time at the most."""

_PENDING: Final[LiteralString] = """
SELECT mark.symbol, mark.timeframe, date_trunc('month', mark.day)::date AS month,
       coalesce(bool_and(
           month.projected_at + greatest(%(every_s)s, month.projection_ms * %(share)s / 1000.0) * interval '1 second'
           <= clock_timestamp()
       ), true), coalesce(extract(epoch FROM min(month.projected_at)), 0)
FROM trading.landing_marks AS mark
LEFT JOIN trading.candle_months AS month
    ON month.symbol = mark.symbol AND month.timeframe = mark.timeframe
   AND month.month = date_trunc('month', mark.day)::date
WHERE mark.projected < mark.revision AND month.state IS DISTINCT FROM 'archived'
GROUP BY 1, 2, 3
UNION
SELECT symbol, timeframe, month, true, coalesce(extract(epoch FROM projected_at), 0)
FROM trading.candle_months WHERE state = 'live' AND content_hash IS NULL
ORDER BY 1, 2, 3
"""

# Day by day along the key: one scan grouped by day sorts the month first, on disk, and took up to a third longer.
_DAY_HASHES: Final[LiteralString] = """
SELECT from_ms, trading.content_hash(%s, %s, from_ms, from_ms + 86400000)
FROM generate_series(%s::bigint, %s::bigint - 1, 86400000) AS from_ms
"""
_HASH_OF_NOTHING: Final = hashlib.sha256().hexdigest()

_VALUE_NAMES: Final = sql.SQL(", ").join(sql.Identifier(column.name) for column in VALUE_COLUMNS)
_COPY_OUT: Final = sql.SQL(
    """
COPY (
    SELECT timestamp_ms, {}, source,
           (extract(epoch FROM received_at) * 1000000)::bigint, (extract(epoch FROM updated_at) * 1000000)::bigint
    FROM trading.candlesticks
    WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
    ORDER BY timestamp_ms
) TO STDOUT (FORMAT csv)
"""
).format(_VALUE_NAMES)
_COPY_BACK: Final = sql.SQL(
    "COPY trading.candlesticks (symbol, timeframe, timestamp_ms, {}, source, received_at, updated_at) FROM STDIN"
).format(_VALUE_NAMES)

_CSV_NAMES: Final = ["timestamp_ms", *(column.name for column in VALUE_COLUMNS), "source", "received_at", "updated_at"]
_CSV_TYPES: Final = {
    "timestamp_ms": pa.int64(),
    **{column.name: NUMBER for column in VALUE_COLUMNS},
    "source": pa.string(),
    "received_at": pa.int64(),
    "updated_at": pa.int64(),
}


@dataclass(frozen=True, slots=True)
class Projected:
    """A month whose file now holds what PostgreSQL holds.

    Parameters
    ----------
    month
        Which.
    rows
        How many candles it holds.
    written
        Whether the file was written now; else it held them already.
    damage
        What was wrong with the file that was there, where something was.
    """

    month: SeriesMonth
    rows: int
    written: bool
    damage: str | None = None


Done = Callable[[int, int], None]
"""Called with how many months of how many are done."""


def pending_months(connection: Connection, *, due_only: bool = False) -> list[SeriesMonth]:
    """Months with landings that their file does not hold yet; with `due_only`, those whose turn it is, oldest first."""
    mark_landings(connection)
    parameters = {"every_s": REWRITE_AT_MOST_EVERY_S, "share": REWRITE_SHARE}
    found = connection.execute(_PENDING, parameters).fetchall()
    if due_only:
        found = sorted((row for row in found if row[3]), key=itemgetter(4))
    return [SeriesMonth(*row[:3]) for row in found]


def project(
    connection: Connection, store: ParquetStore, months: Collection[SeriesMonth], told: Done = lambda done, total: None
) -> list[Projected]:
    """Bring the files of `months` up to what PostgreSQL holds; one that already does is not rewritten.

    Parameters
    ----------
    told
        Called after each month.

    Raises
    ------
    StorageError
        If a file cannot be written; those of all other months are.
    """
    projected: list[Projected] = []
    problems: list[StorageError] = []
    for number, month in enumerate(months, 1):
        try:
            result = project_month(connection, store, month)
        except StorageError as problem:
            problems.append(problem)
        else:
            projected += [] if result is None else [result]
        told(number, len(months))
    # Arrow keeps what it has freed: 1.2 MB a minute over ten minutes of 500 series, none with this.
    pa.default_memory_pool().release_unused()
    if problems:
        raise problems[0]
    return projected


def project_month(connection: Connection, store: ParquetStore, month: SeriesMonth) -> Projected | None:
    """Bring one file up to date; None if the month is archived or empty.

    Raises
    ------
    StorageError
        If the file cannot be written; PostgreSQL keeps the rows and the mark, so the next pass tries again.
    psycopg.Error
        If the database fails, or the connection was lost, and with it the lock, before the file was replaced.
    """
    with session_lock(connection, "parquet", *map(str, month)):
        started = perf_counter()
        with snapshot(connection):
            noted = _noted(connection, month)
            if noted.state == "archived":
                return None
            marks = _marks(connection, month)
            held = _held_hashes(connection, month)
            wanted = month_hash(held)
            damage, known = _look_at(store, month, wanted, expected=noted.content_hash is not None)
            written = known is None or known.content_hash != wanted or noted.damage is not None
            table = _rows(connection, month) if written else None
        rows = table.num_rows if table is not None else known.rows if known is not None else 0
        if table is not None and rows:
            store.write(month, table, held, confirm=partial(_check_unprojected_since, connection, month, noted))
        if rows:
            elapsed_ms = int((perf_counter() - started) * 1000)
            _note(connection, month, rows, wanted, elapsed_ms if written else None)
        elif known is not None and known.rows:
            # Whoever emptied the month may not have meant to. The file is kept: it may be the last copy.
            _note_emptied(connection, store, month, known.rows)
        _settle(connection, month, marks)
    return Projected(month, rows, written, damage or noted.damage) if rows else None


def rebuild_month(connection: Connection, store: ParquetStore, month: SeriesMonth) -> bool:
    """Rewrite the file of a complete month smaller and read it back; returns whether that was done.

    Nothing is done if the month is archived, empty, or not projected yet.

    Raises
    ------
    StorageError
        If the file cannot be written, or does not read as it was written.
    psycopg.Error
        As `project_month` raises it.
    """
    with session_lock(connection, "parquet", *map(str, month)):
        with snapshot(connection):
            noted = _noted(connection, month)
            held = _held_hashes(connection, month)
            if noted.state == "archived" or not held or _marks(connection, month):
                return False
            if month_hash(held) != noted.content_hash:
                return False
            table = _rows(connection, month)
        check = partial(_check_unprojected_since, connection, month, noted)
        store.write(month, table, held, for_good=True, confirm=check)
        if day_hashes(store.read(month)) != held:
            raise DamagedFileError(f"{store.place(month)}: it does not read as it was written; is the disk sound?")
        connection.execute(
            "UPDATE trading.candle_months SET rebuilt_hash = content_hash "
            "WHERE symbol = %s AND timeframe = %s AND month = %s AND content_hash = %s",
            (*month, noted.content_hash),
        )
        return True


def restore_month(connection: Connection, store: ParquetStore, month: SeriesMonth) -> int:
    """Bring the rows of a month that PostgreSQL holds none of back from its file; returns how many.

    That is an archived month, or one that somebody emptied. A live month with rows is left alone.

    Raises
    ------
    DamagedFileError
        If the file is not there or cannot be read whole; nothing has changed.
    """
    with session_lock(connection, "parquet", *map(str, month)):
        noted = _noted(connection, month)
        if noted.state != "archived" and (noted.damage is None or _held_hashes(connection, month)):
            return 0
        table = store.read(month)
        days = day_hashes(table)
        if month_hash(days) != noted.content_hash:
            raise DamagedFileError(
                f"{store.place(month)}: it does not hold the rows that were written to it; bring it back from a backup"
            )

        def write() -> None:
            with connection.transaction():
                connection.execute(LEAVES_MARKS)
                _copy_back(connection, month, table)
                if noted.state != "archived":
                    # The ledger has counted the month without them.
                    leave_marks(connection, [SeriesDay(month.symbol, month.timeframe, day) for day in days])
                # Whoever counts sees the rows and where they are as one.
                lock_ledger(connection)
                _set_state(connection, month, "live")

        with_months(connection, [month.month], write)
        return int(table.num_rows)


def archive_month(connection: Connection, store: ParquetStore, month: SeriesMonth) -> int:
    """Delete a month's rows from PostgreSQL once its file is proven to hold them all; returns how many went.

    Raises
    ------
    DamagedFileError
        If the file does not hold exactly what PostgreSQL holds; nothing has changed.
    InUseError
        If the month is written to for seconds on end; nothing has changed.
    """
    with session_lock(connection, "parquet", *map(str, month)):
        if _noted(connection, month)[0] == "archived":
            return 0
        proven = month_hash(day_hashes(store.read(month)))
        ensure_months(connection, [month.month])
        with connection.transaction():
            # They wait until we are done, and then find it archived.
            lock_writers_out(connection, month.month)
            _check_held(connection, store, month, proven)
            connection.execute(LEAVES_MARKS)
            lock_ledger(connection)
            _set_state(connection, month, "archived")
            gone = connection.execute(
                "DELETE FROM trading.candlesticks "
                "WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s",
                (*month[:2], *month_bounds(month.month)),
            )
        return gone.rowcount


def archive_whole(connection: Connection, store: ParquetStore, months: Collection[SeriesMonth]) -> int:
    """Drop a month's partition once the files of all its series are proven to hold it; returns how many rows went.

    Parameters
    ----------
    months
        Every live series of one month that has rows.

    Raises
    ------
    DamagedFileError
        If a file does not hold exactly what PostgreSQL holds; nothing has changed.
    InUseError
        If candles are read or written all the time, or a series of the month is not named; nothing has changed.
    """
    [month] = {each.month for each in months}
    proven, rows = {}, 0
    for each in months:
        table = store.read(each)
        proven[each] = month_hash(day_hashes(table))
        rows += table.num_rows
    with connection.transaction():
        lock_writers_out(connection, month)
        if series_in(connection, month) - {each[:2] for each in months}:
            raise InUseError(f"{month:%Y-%m} has rows of another series; it is left as it is for now")
        for each, file_hash in proven.items():
            _check_held(connection, store, each, file_hash)
        for each in months:
            _set_state(connection, each, "archived")
        leave_archived_out(connection, month)
    return rows


def _check_held(connection: Connection, store: ParquetStore, month: SeriesMonth, file_hash: str) -> None:
    """Raise unless the file, of which the hash was taken, holds what PostgreSQL does; the caller keeps writers out.

    Nothing may wait to be projected: it could be on its way into the file.
    """
    noted_hash = _noted(connection, month)[1]
    waits = _marks(connection, month)
    if waits or not file_hash == noted_hash == month_hash(_held_hashes(connection, month)):
        raise DamagedFileError(f"{store.place(month)}: it does not hold what PostgreSQL holds; project the month again")


class _Noted(NamedTuple):
    """What is known of a month and its file: ``live`` or ``archived``, the hash of what was last projected, damage."""

    state: str
    content_hash: str | None
    damage: str | None = None


def _check_unprojected_since(connection: Connection, month: SeriesMonth, noted: _Noted) -> None:
    """Raise if another projection may have written the file since `noted` was read under the lock.

    Locks are lost with their connection: if that was lost, this statement fails. If it was not, nobody else had the
    lock, and a difference was written by somebody who did not take it.
    """
    if _noted(connection, month)[:2] != noted[:2]:
        raise StorageError(f"{month} was projected or archived meanwhile; its file is left to the next pass")


def _noted(connection: Connection, month: SeriesMonth) -> _Noted:
    found = connection.execute(
        "SELECT state, content_hash, damage FROM trading.candle_months "
        "WHERE symbol = %s AND timeframe = %s AND month = %s",
        month,
    ).fetchone()
    return _Noted(*found) if found else _Noted("live", None)


def _set_state(connection: Connection, month: SeriesMonth, state: str) -> None:
    connection.execute(
        "UPDATE trading.candle_months SET state = new.state, "
        "archived_at = CASE new.state WHEN 'archived' THEN clock_timestamp() ELSE archived_at END, "
        "restored_at = CASE new.state WHEN 'live' THEN clock_timestamp() ELSE restored_at END "
        "FROM (SELECT %s AS state) AS new WHERE symbol = %s AND timeframe = %s AND month = %s",
        (state, *month),
    )


def _held_hashes(connection: Connection, month: SeriesMonth) -> dict[date, str]:
    found = connection.execute(_DAY_HASHES, (month.symbol, month.timeframe, *month_bounds(month.month)))
    return {day_of(from_ms): hashed for from_ms, hashed in found if hashed != _HASH_OF_NOTHING}


def _copy_back(connection: Connection, month: SeriesMonth, table: pa.Table) -> None:
    # As text without padding: a numeric keeps the zeros it is given.
    columns = [table[name].to_pylist() for name in ("source", "received_at", "updated_at")]
    numbers = [canonical_texts(table[column.name]) for column in VALUE_COLUMNS]
    with connection.cursor() as cursor, cursor.copy(_COPY_BACK) as copy:
        for row in zip(table["timestamp_ms"].to_pylist(), *numbers, *columns, strict=True):
            copy.write_row((month.symbol, month.timeframe, *row))


def _look_at(
    store: ParquetStore, month: SeriesMonth, wanted: str, *, expected: bool
) -> tuple[str | None, FileState | None]:
    """What is wrong with the file, and what it holds; one that says it holds what is `wanted` is read to prove it."""
    try:
        state = store.state(month)
        damage = f"{store.place(month)}: it is gone" if expected and state is None else None
        if state is not None and state.content_hash == wanted and month_hash(day_hashes(store.read(month))) != wanted:
            damage, state = f"{store.place(month)}: it does not hold what it says it holds", None
    except DamagedFileError as problem:
        state, damage = None, str(problem)
    if damage:
        log.warning("rebuilding from PostgreSQL: %s", damage)
    return damage, state


def _marks(connection: Connection, month: SeriesMonth) -> list[tuple[date, int]]:
    return [
        (day, revision)
        for day, revision in connection.execute(
            "SELECT day, revision FROM trading.landing_marks WHERE symbol = %s AND timeframe = %s "
            "AND day >= %s AND day < (%s + interval '1 month') AND projected < revision",
            (*month, month.month),
        )
    ]


def _settle(connection: Connection, month: SeriesMonth, marks: list[tuple[date, int]]) -> None:
    # Only what was read: a landing since then has moved the revision on, and stays to be projected.
    # Locked in the order in which landings lock them.
    connection.execute(
        "WITH known AS (SELECT mark.day, seen.revision FROM trading.landing_marks AS mark "
        "JOIN unnest(%(days)s::date[], %(revisions)s::bigint[]) AS seen (day, revision) USING (day) "
        "WHERE mark.symbol = %(symbol)s AND mark.timeframe = %(timeframe)s AND mark.projected < seen.revision "
        "ORDER BY mark.day FOR NO KEY UPDATE OF mark) "
        "UPDATE trading.landing_marks AS mark SET projected = known.revision FROM known "
        "WHERE mark.symbol = %(symbol)s AND mark.timeframe = %(timeframe)s AND mark.day = known.day",
        {
            "days": [day for day, _ in marks],
            "revisions": [revision for _, revision in marks],
            "symbol": month.symbol,
            "timeframe": month.timeframe,
        },
    )


def _note(connection: Connection, month: SeriesMonth, rows: int, hashed: str, elapsed_ms: int | None) -> None:
    connection.execute(
        "INSERT INTO trading.candle_months AS known "
        "(symbol, timeframe, month, rows, content_hash, projected_at, projection_ms) "
        "VALUES (%s, %s, %s, %s, %s, clock_timestamp(), %s) "
        "ON CONFLICT (symbol, timeframe, month) DO UPDATE SET rows = excluded.rows, "
        "content_hash = excluded.content_hash, projected_at = excluded.projected_at, damage = NULL, damaged_at = NULL, "
        "projection_ms = coalesce(excluded.projection_ms, known.projection_ms)",
        (*month, rows, hashed, elapsed_ms),
    )


def _note_emptied(connection: Connection, store: ParquetStore, month: SeriesMonth, rows: int) -> None:
    back = command(f"restore --month {month.month:%Y-%m} --symbols {month.symbol} --timeframes {month.timeframe}")
    connection.execute(
        "UPDATE trading.candle_months SET damage = %s, damaged_at = coalesce(damaged_at, clock_timestamp()) "
        "WHERE symbol = %s AND timeframe = %s AND month = %s",
        (f"{store.place(month)}: PostgreSQL holds none of its {rows:,} rows; bring them back with: {back}", *month),
    )


def _rows(connection: Connection, month: SeriesMonth) -> pa.Table:
    parameters = (month.symbol, month.timeframe, *month_bounds(month.month))
    with connection.cursor() as cursor, cursor.copy(_COPY_OUT, parameters) as copy:
        body = b"".join(bytes(chunk) for chunk in copy)
    if not body:
        return ARROW_SCHEMA.empty_table()
    table = csv.read_csv(
        pa.BufferReader(body),
        read_options=csv.ReadOptions(column_names=_CSV_NAMES),
        convert_options=csv.ConvertOptions(column_types=_CSV_TYPES, null_values=[], strings_can_be_null=False),
    )
    columns = {
        **{name: table[name] for name in _CSV_NAMES},
        "open_time": table["timestamp_ms"].cast(pa.timestamp("ms", tz="UTC")),
        "received_at": table["received_at"].cast(MOMENT),
        "updated_at": table["updated_at"].cast(MOMENT),
    }
    return pa.table([columns[name] for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA)
