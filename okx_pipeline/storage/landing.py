"""Landing: how confirmed candles get into PostgreSQL, one path for every source.

The rules of truth, kept here and nowhere else:

- A key is stored once. A batch is sorted by key (unsorted batches of two writers deadlocked 3 times in 80, sorted
  never) and a key twice in a batch is resolved before PostgreSQL sees it.
- The WebSocket only inserts. A later frame that differs from what is stored is counted as disputed: REST decides.
- REST changes a stored row only if its request was sent after the row last changed. The old value is kept as a
  revision.
- A row that is there already is not rewritten.
- A row that no market can have goes to the quarantine with its reason, and the rest of the batch lands.
- The transaction that lands leaves one mark per series and day in which anything changed. That of a stream's edge,
  where a thousand series close at once, leaves a single note of them instead, from which `mark_landings` makes the
  marks: candles are durable in a third of the time.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import groupby, islice, pairwise
from operator import eq, itemgetter
from typing import Final, LiteralString, NamedTuple, TypeVar

from psycopg import Cursor, errors, sql
from psycopg.rows import TupleRow

from okx_pipeline.candles import VALUE_COLUMNS, Candle, Refused, Source
from okx_pipeline.storage.database import Connection, StorageError, one
from okx_pipeline.storage.partitions import DetachedMonthError, detached_months
from okx_pipeline.timeframes import DAY_MS, day_of

Key = tuple[str, str, int]
T = TypeVar("T")

_VALUES: Final = sql.SQL(", ").join(sql.Identifier(column.name) for column in VALUE_COLUMNS)
_STORED_VALUES: Final = sql.SQL(", ").join(sql.Identifier("stored", column.name) for column in VALUE_COLUMNS)
_STAGED_VALUES: Final = sql.SQL(", ").join(sql.Identifier("staged", column.name) for column in VALUE_COLUMNS)
_EXCLUDED: Final = sql.SQL(", ").join(
    sql.SQL("{column} = excluded.{column}").format(column=sql.Identifier(column.name)) for column in VALUE_COLUMNS
)

_STAGE: Final = sql.SQL(
    "CREATE TEMPORARY TABLE IF NOT EXISTS landing (symbol text, timeframe text, timestamp_ms bigint, {}) "
    "ON COMMIT DELETE ROWS"
).format(sql.SQL(", ").join(sql.SQL("{} numeric").format(sql.Identifier(column.name)) for column in VALUE_COLUMNS))

LEAVES_MARKS: Final[LiteralString] = "SELECT set_config('okx_pipeline.leaves_marks', 'on', true)"
"""Says in a transaction, before it changes candles, that it leaves the marks of that itself."""

_COPY_STAGED: Final = sql.SQL("COPY pg_temp.landing FROM STDIN")
_COPY_STRAIGHT: Final = sql.SQL(
    "COPY trading.candlesticks (symbol, timeframe, timestamp_ms, {}, source) FROM STDIN"
).format(_VALUES)

_REMARK: Final[LiteralString] = """
    ON CONFLICT (symbol, timeframe, day) DO UPDATE SET
        revision = mark.revision + 1,
        landed_at = excluded.landed_at,
        corrected_at = coalesce(excluded.corrected_at, mark.corrected_at),
        streamed_at = coalesce(excluded.streamed_at, mark.streamed_at),
        first_streamed_at = coalesce(mark.first_streamed_at, excluded.first_streamed_at)
"""

# The look at what is stored goes by the key, row by row: a join could choose to read whole months for a small batch.
# Rows that are there already are left out before the insert, which would lock, and so write to, the row it meets.
# What comes back is the days that changed, the rows this source may not change, and how many rows were to be written:
# fewer are where somebody else wrote one of them meanwhile.
_LAND: Final = sql.SQL(
    """
WITH looked AS MATERIALIZED (
    SELECT staged.*, stored.symbol IS NULL
           OR coalesce(%(source)s = 'rest' AND stored.updated_at < %(requested_at)s, false) AS wanted
    FROM pg_temp.landing AS staged
    LEFT JOIN LATERAL (
        SELECT stored.symbol, stored.updated_at, {stored_values}
        FROM trading.candlesticks AS stored
        WHERE stored.symbol = staged.symbol AND stored.timeframe = staged.timeframe
          AND stored.timestamp_ms = staged.timestamp_ms
        LIMIT 1
    ) AS stored ON true
    WHERE stored.symbol IS NULL OR ({stored_values}) IS DISTINCT FROM ({staged_values})
), landed AS (
    INSERT INTO trading.candlesticks AS stored (symbol, timeframe, timestamp_ms, {values}, source)
    SELECT symbol, timeframe, timestamp_ms, {values}, %(source)s
    FROM looked
    WHERE wanted
    ORDER BY symbol, timeframe, timestamp_ms
    ON CONFLICT (symbol, timeframe, timestamp_ms) DO UPDATE
        SET {excluded}, source = excluded.source, updated_at = statement_timestamp()
        WHERE %(source)s = 'rest' AND stored.updated_at < %(requested_at)s
          AND ({stored_values}) IS DISTINCT FROM ({excluded_values})
    RETURNING symbol, timeframe, timestamp_ms, received_at = updated_at AS inserted
), days AS (
    SELECT symbol, timeframe, date '1970-01-01' + (timestamp_ms / 86400000)::integer AS day,
           count(*) FILTER (WHERE inserted) AS inserted, count(*) FILTER (WHERE NOT inserted) AS corrected
    FROM landed
    GROUP BY 1, 2, 3
), marked AS (
    INSERT INTO trading.landing_marks AS mark (
        symbol, timeframe, day, corrected_at, streamed_at, first_streamed_at)
    SELECT symbol, timeframe, day, CASE WHEN corrected > 0 THEN clock_timestamp() END,
           CASE WHEN %(source)s = 'websocket' THEN clock_timestamp() END,
           CASE WHEN %(source)s = 'websocket' THEN clock_timestamp() END
    FROM days ORDER BY symbol, timeframe, day
    {remark}
)
SELECT symbol, timeframe, day, inserted, corrected, NULL::bigint FROM days
UNION ALL
SELECT symbol, timeframe, NULL, 0, 0, timestamp_ms FROM looked WHERE NOT wanted
UNION ALL
SELECT NULL, NULL, NULL, count(*), 0, NULL FROM looked WHERE wanted
"""
).format(
    remark=sql.SQL(_REMARK),
    values=_VALUES,
    staged_values=_STAGED_VALUES,
    stored_values=_STORED_VALUES,
    excluded=_EXCLUDED,
    excluded_values=sql.SQL(", ").join(sql.Identifier("excluded", column.name) for column in VALUE_COLUMNS),
)

_DISPUTED: Final = sql.SQL(
    """
SELECT staged.symbol, staged.timeframe, staged.timestamp_ms
FROM pg_temp.landing AS staged
CROSS JOIN LATERAL (
    SELECT {stored_values}
    FROM trading.candlesticks AS stored
    WHERE stored.symbol = staged.symbol AND stored.timeframe = staged.timeframe
      AND stored.timestamp_ms = staged.timestamp_ms
    LIMIT 1
) AS stored
WHERE ({stored_values}) IS DISTINCT FROM ({staged_values})
ORDER BY staged.symbol, staged.timeframe, staged.timestamp_ms
"""
).format(stored_values=_STORED_VALUES, staged_values=_STAGED_VALUES)

# One look along the key a series, whatever the planner thinks of so many; the outer bounds leave the other months out.
_OCCUPIED: Final[LiteralString] = """
SELECT EXISTS (
    SELECT FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) AS wanted (symbol, timeframe, first, last)
    CROSS JOIN LATERAL (
        SELECT FROM trading.candlesticks AS stored
        WHERE stored.symbol = wanted.symbol AND stored.timeframe = wanted.timeframe
          AND stored.timestamp_ms BETWEEN wanted.first AND wanted.last
          AND stored.timestamp_ms BETWEEN %s AND %s
        LIMIT 1
    ) AS stored
)
"""

_MARK_DAYS: Final[LiteralString] = """
INSERT INTO trading.landing_marks AS mark (symbol, timeframe, day, projected, streamed_at, first_streamed_at)
SELECT symbol, timeframe, day, {projected}, CASE WHEN %(source)s = 'websocket' THEN clock_timestamp() END,
       CASE WHEN %(source)s = 'websocket' THEN clock_timestamp() END
FROM unnest(%(symbols)s::text[], %(timeframes)s::text[], %(days)s::date[]) AS landed (symbol, timeframe, day)
ORDER BY symbol, timeframe, day
{remark}
"""
_MARK: Final = sql.SQL(_MARK_DAYS).format(projected=sql.SQL("0"), remark=sql.SQL(_REMARK))

# What is refused is in no file: one that held everything does so still, and that of an archived month is never written.
_MARK_REFUSED: Final = sql.SQL(_MARK_DAYS).format(
    projected=sql.SQL("1"),
    remark=sql.SQL(_REMARK)
    + sql.SQL(", projected = mark.projected + CASE WHEN mark.projected = mark.revision THEN 1 ELSE 0 END"),
)

# As one text each: a thousand elements take five times as long to send.
_NOTE: Final[LiteralString] = """
INSERT INTO trading.unmarked_landings (symbols, timeframes, days)
VALUES (string_to_array(%s, ','), string_to_array(%s, ','), string_to_array(%s, ',')::date[])
"""

_MARK_NOTED: Final = sql.SQL(
    """
WITH noted AS (
    DELETE FROM trading.unmarked_landings RETURNING symbols, timeframes, days, origin
), landed AS (
    SELECT symbol, timeframe, day, bool_or(origin = 'stream') AS streamed, bool_or(origin = 'values') AS changed
    FROM noted CROSS JOIN LATERAL unnest(symbols, timeframes, days) AS landed (symbol, timeframe, day)
    GROUP BY symbol, timeframe, day
)
INSERT INTO trading.landing_marks AS mark (
    symbol, timeframe, day, streamed_at, first_streamed_at, corrected_at, changed_at)
SELECT symbol, timeframe, day, CASE WHEN streamed THEN clock_timestamp() END,
       CASE WHEN streamed THEN clock_timestamp() END, CASE WHEN changed THEN clock_timestamp() END,
       CASE WHEN changed THEN clock_timestamp() END
FROM landed
WHERE streamed OR NOT EXISTS (
    SELECT FROM trading.candle_months AS month
    WHERE month.symbol = landed.symbol AND month.timeframe = landed.timeframe AND month.state = 'archived'
      AND month.month = date_trunc('month', landed.day)
)
ORDER BY symbol, timeframe, day
{remark}, changed_at = coalesce(excluded.changed_at, mark.changed_at)
"""
).format(remark=sql.SQL(_REMARK))

_QUARANTINE: Final[LiteralString] = """
INSERT INTO trading.candlesticks_quarantine (symbol, timeframe, timestamp_ms, reason, original, source)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""

_ANY_ARCHIVED: Final[LiteralString] = """
SELECT EXISTS (SELECT FROM trading.candle_months WHERE state = 'archived' AND month = ANY(%s))
"""

_ARCHIVED: Final[LiteralString] = """
SELECT month.symbol, month.timeframe, month.month
FROM trading.candle_months AS month
JOIN unnest(%s::text[], %s::text[], %s::date[]) AS landing (symbol, timeframe, month) USING (symbol, timeframe, month)
WHERE month.state = 'archived'
"""

# Few, so that PostgreSQL works on some while the next are made ready.
_COPY_CHUNK: Final = 1_000
_TRIES: Final = 3
_YEAR_10000_MS: Final = 2_932_897 * DAY_MS

STRAIGHT_FROM: Final = 50
"""From this many rows on it pays that COPY goes straight in where the range is empty."""


class SeriesDay(NamedTuple):
    """A series on a UTC day."""

    symbol: str
    timeframe: str
    day: date


class ArchivedError(Exception):
    """The batch reaches into months whose rows are in Parquet alone; restore them, then land again.

    Parameters
    ----------
    months
        The (symbol, timeframe, first day of the month) of each.
    """

    def __init__(self, months: list[tuple[str, str, date]]) -> None:
        super().__init__(f"{len(months)} archived months")
        self.months = months


class Change(NamedTuple):
    """How many rows of a series-day are new, and how many have another value now."""

    inserted: int
    corrected: int


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of a batch.

    Parameters
    ----------
    changes
        By series and day, where anything changed.
    unchanged
        Rows that were there already.
    quarantined
        Rows that no market can have and that were not in the quarantine yet.
    disputed
        Keys whose stored value this source contradicts and may not change.
    """

    changes: dict[SeriesDay, Change] = field(default_factory=dict)
    unchanged: int = 0
    quarantined: int = 0
    disputed: list[Key] = field(default_factory=list)

    @property
    def inserted(self) -> int:
        """New rows."""
        return sum(change.inserted for change in self.changes.values())

    @property
    def corrected(self) -> int:
        """Rows that have another value now."""
        return sum(change.corrected for change in self.changes.values())


def land(
    connection: Connection,
    candles: Iterable[Candle],
    refused: Sequence[Refused] = (),
    *,
    source: Source,
    requested_at: datetime | None = None,
) -> Landed:
    """Land a batch of candles, whole or not at all, in one durable transaction.

    Parameters
    ----------
    connection
        An autocommit connection; when this returns, the batch is committed.
    candles
        Possible candles with canonical numbers, in any order.
    refused
        Rows for the quarantine.
    source
        Where they come from.
    requested_at
        For REST: when the request was sent, by the database's clock; needed to correct what is stored.

    Raises
    ------
    ArchivedError
        If a month of the batch is archived; nothing landed.
    DetachedMonthError
        If the partition of a month of the batch is detached; nothing landed.
    psycopg.Error
        If the database fails; nothing landed, and the same batch can be landed again.
    """
    rows, contradicted = _one_a_key(candles, keep_first=source is Source.WEBSOCKET)
    days = _rows_a_day(rows)
    months = {day.replace(day=1) for day in {day.day for day in days}}

    def write() -> tuple[Landed, int]:
        with connection.transaction():
            landed = _land_rows(connection, rows, days, source, requested_at) if rows else Landed()
            # After the rows, whose partition whoever archives it locks before any mark.
            quarantined = _quarantine(connection, refused, source)
            if months:
                _refuse_archived(connection, days, months)
        return landed, quarantined

    landed, quarantined = with_months(connection, months, write)
    disputed = sorted(set(landed.disputed).union(contradicted))
    return Landed(landed.changes, landed.unchanged, quarantined, disputed)


def mark_landings(connection: Connection) -> None:
    """Make the marks of landings and changes that left only a note: called after a landing, and by readers of marks.

    Raises
    ------
    psycopg.Error
        If the database fails; the notes stay, and whoever is next marks them.
    """
    connection.execute(_MARK_NOTED)


def leave_marks(connection: Connection, days: Collection[SeriesDay]) -> None:
    """Mark `days` as changed, so that they are counted and projected again; those of archived months are left out."""
    if days:
        connection.execute("SELECT trading.leave_marks(%s, %s, %s, 'rows')", _columns(days))


def mark_uncounted(connection: Connection, days: Collection[SeriesDay]) -> None:
    """Mark `days` to be counted again, those of archived months too; their files are not written for that."""
    _mark(connection, days, Source.REST, _MARK_REFUSED)


def with_months(connection: Connection, months: Collection[date], write: Callable[[], T]) -> T:
    """Make the missing partitions of `months`, then call `write`, which has a transaction of its own.

    Raises
    ------
    DetachedMonthError
        If the partition of one of `months` is detached.
    StorageError
        If partitions vanish as often as they are made.
    """
    tries = 0
    while True:
        tries += 1
        ensure_months(connection, months)
        try:
            return write()
        except errors.DeadlockDetected:
            # Two landings waited for each other's marks, and PostgreSQL has ended this one, which begins anew.
            if tries == _TRIES:
                raise
        except errors.CheckViolation as problem:
            # If the error names no constraint, the partition is missing. Maintenance may have dropped an empty one
            # after it was found here.
            if problem.diag.constraint_name is not None:
                raise
            detached = [each for each in detached_months(connection) if each.month in months]
            if detached:
                raise DetachedMonthError(detached) from problem
            if tries == _TRIES:
                raise StorageError(f"{problem.diag.message_primary}; run the same again") from problem


def ensure_months(connection: Connection, months: Iterable[date]) -> None:
    """Make the partitions of `months` where they are not there yet."""
    for month in sorted(set(months)):
        connection.execute("SELECT trading.ensure_month(%s)", (month,))


def _refuse_archived(connection: Connection, days: Iterable[SeriesDay], months: Collection[date]) -> None:
    # Asked after the insert, which holds off the archiver until this transaction ends: an answer from before it
    # could be out of date by the time the rows are in.
    if not one(connection, _ANY_ARCHIVED, (list(months),)):
        return
    wanted = {SeriesDay(day.symbol, day.timeframe, day.day.replace(day=1)) for day in days}
    archived = connection.execute(_ARCHIVED, _columns(wanted)).fetchall()
    if archived:
        raise ArchivedError([(str(symbol), str(timeframe), month) for symbol, timeframe, month in archived])


def _quarantine(connection: Connection, refused: Sequence[Refused], source: Source) -> int:
    quarantined = 0
    days: set[SeriesDay] = set()
    for row in refused:
        values = (row.symbol, row.timeframe, row.timestamp_ms, row.reason, row.original.replace("\0", "\ufffd"), source)
        if connection.execute(_QUARANTINE, values).rowcount:
            quarantined += 1
            is_of_a_day = row.timestamp_ms is not None and 0 <= row.timestamp_ms < _YEAR_10000_MS
            if row.symbol is not None and row.timeframe is not None and is_of_a_day:
                days.add(SeriesDay(row.symbol, row.timeframe, day_of(row.timestamp_ms or 0)))
    _mark(connection, days, source, _MARK_REFUSED)
    return quarantined


def _one_a_key(candles: Iterable[Candle], *, keep_first: bool) -> tuple[list[Candle], list[Key]]:
    """The batch sorted by key, each key once, and the keys that came with two values; the first or last one stays."""
    rows = list(candles)
    ordered = sorted(rows)
    opens = list(map(itemgetter(2), ordered))
    # Neighbours that open at once are mostly of two series, or there are none.
    neighbours = pairwise(ordered) if any(map(eq, opens, islice(opens, 1, None))) else ()
    if all(left[:3] != right[:3] for left, right in neighbours):
        return ordered, []
    batch = {row.key: row for row in (reversed(rows) if keep_first else rows)}
    contradicted = [row.key for row in rows if keep_first and batch[row.key] != row]
    return sorted(batch.values()), contradicted


def _rows_a_day(rows: Sequence[Candle]) -> dict[SeriesDay, int]:
    """How many rows there are of each series-day; `rows` are sorted, each key once."""
    counted: dict[SeriesDay, int] = {}
    dates: dict[int, date] = {}
    start, end = 0, len(rows)
    while start < end:
        symbol, timeframe, open_ms = rows[start][:3]
        number = open_ms // DAY_MS
        if number not in dates:
            dates[number] = day_of(open_ms)
        following = (symbol, timeframe, (number + 1) * DAY_MS)
        step = 1
        while start + step < end and rows[start + step] < following:
            step *= 2
        stop = bisect_left(rows, following, start + step // 2 + 1, min(start + step, end)) if step > 1 else start + 1
        counted[SeriesDay(symbol, timeframe, dates[number])] = stop - start
        start = stop
    return counted


def _land_rows(
    connection: Connection,
    rows: list[Candle],
    days: Mapping[SeriesDay, int],
    source: Source,
    requested_at: datetime | None,
) -> Landed:
    # What a stream confirms is hardly ever there already: it costs more to look than to fail now and then.
    if len(rows) >= STRAIGHT_FROM and (source is Source.WEBSOCKET or not _occupied(connection, rows, days)):
        try:
            with connection.transaction():
                return _copy_straight(connection, rows, days, source)
        except errors.UniqueViolation:
            pass  # some of it is there; the other way knows what to do with that
    connection.execute(LEAVES_MARKS)
    connection.execute(_STAGE)
    changes, disputed, wanted = {}, [], 0
    with connection.cursor() as cursor:
        _copy(cursor, _COPY_STAGED, rows, "\n")
        cursor.execute(_LAND, {"source": source, "requested_at": requested_at})
        for symbol, timeframe, day, inserted, corrected, timestamp_ms in cursor:
            if day is not None:
                changes[SeriesDay(symbol, timeframe, day)] = Change(inserted, corrected)
            elif timestamp_ms is not None:
                disputed.append((symbol, timeframe, timestamp_ms))
            else:
                wanted = inserted
        written = sum(map(sum, changes.values()))
        if written < wanted:
            disputed = [(row[0], row[1], row[2]) for row in cursor.execute(_DISPUTED)]
    return Landed(changes, len(rows) - written - len(disputed), 0, disputed)


def _occupied(connection: Connection, rows: Sequence[Candle], days: Mapping[SeriesDay, int]) -> bool:
    symbols, timeframes, firsts, lasts = [], [], [], []
    end = 0
    for (symbol, timeframe), group in groupby(days, key=itemgetter(0, 1)):
        symbols.append(symbol)
        timeframes.append(timeframe)
        firsts.append(rows[end].timestamp_ms)
        end += sum(days[day] for day in group)
        lasts.append(rows[end - 1].timestamp_ms)
    return bool(one(connection, _OCCUPIED, (symbols, timeframes, firsts, lasts, min(firsts), max(lasts))))


def _copy_straight(connection: Connection, rows: list[Candle], days: Mapping[SeriesDay, int], source: Source) -> Landed:
    with connection.cursor() as cursor:
        _copy(cursor, _COPY_STRAIGHT, rows, f"\t{source}\n")
    if source is Source.WEBSOCKET:
        connection.execute(_NOTE, [",".join(map(str, column)) for column in _columns(days)])
    else:
        _mark(connection, days, source)
    changes = {inserted: Change(inserted, 0) for inserted in set(days.values())}
    return Landed({day: changes[inserted] for day, inserted in days.items()})


def _copy(cursor: Cursor[TupleRow], statement: sql.SQL | sql.Composed, rows: list[Candle], ending: str) -> None:
    # Symbols, timeframes and canonical numbers hold nothing that COPY's text format would have to escape.
    line = "\t".join(["%s", "%s", "%d", *["%s"] * len(VALUE_COLUMNS)]) + ending
    with cursor.copy(statement) as copy:
        for start in range(0, len(rows), _COPY_CHUNK):
            copy.write("".join([line % row for row in rows[start : start + _COPY_CHUNK]]))


def _mark(connection: Connection, days: Collection[SeriesDay], source: Source, statement: sql.Composed = _MARK) -> None:
    if days:
        symbols, timeframes, dates = _columns(days)
        parameters = {"symbols": symbols, "timeframes": timeframes, "days": dates, "source": source}
        connection.execute(statement, parameters)


def _columns(days: Collection[SeriesDay]) -> tuple[list[str], list[str], list[date]]:
    return [day[0] for day in days], [day[1] for day in days], [day[2] for day in days]
