"""What the quality checks look at: every row of a day as the store has it, and what the store knows of it besides.

Rows are read as they are, whatever is wrong with them: a number that is none is a null, a file that cannot be read a
flaw with its reason. What may be wrong, and what that means, is the quality room's to say.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final, LiteralString

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import sql
from pyarrow import csv

from okx_pipeline.candles import COLUMNS, FRACTION_DIGITS, INTEGER_DIGITS, VALUE_COLUMNS
from okx_pipeline.storage.database import Connection, session_lock, snapshot
from okx_pipeline.storage.doubles import doubles
from okx_pipeline.storage.parquet import ARROW_SCHEMA, NUMBER, DamagedFileError, ParquetStore, SeriesMonth, day_hashes
from okx_pipeline.storage.quality_results import Store
from okx_pipeline.timeframes import DAY_MS, day_ms, day_of, month_bounds, utc

SeriesKey = tuple[str, str]
"""Symbol and timeframe, by their names."""

VALUES: Final = tuple(column.name for column in VALUE_COLUMNS)
CANDLES: Final = pa.schema(
    [
        pa.field("series", pa.int32()),
        pa.field("timestamp_ms", pa.int64()),
        pa.field("open_time_ms", pa.int64()),
        *(pa.field(name, NUMBER) for name in VALUES),
        pa.field("source", pa.string()),
        pa.field("received_at", pa.bool_()),
        pa.field("updated_at", pa.bool_()),
    ]
)
"""Rows of a day: `series` is the number of the series among those asked for, `open_time_ms` the open time that a
Parquet file says besides (null in PostgreSQL), and of the moments of landing only whether they are there."""

EARLIER: Final = pa.schema(
    [
        pa.field("series", pa.int32()),
        pa.field("timestamp_ms", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("high_price", "low_price", "close_price", "volume")),
    ]
)
"""Rows of the day before, as far as a day is measured against them: nothing there has to be exact."""

HASH_OF_NOTHING: Final = sha256().hexdigest()


@dataclass(slots=True)
class Flaws:
    """What is wrong with how a series is stored, in words; None where nothing is.

    Parameters
    ----------
    unreadable
        Why its file cannot be read.
    differences
        Where its columns and types are not those of the schema.
    disorder
        That its rows are not in key order.
    contradiction
        That its file does not hold what it says it holds.
    """

    unreadable: str | None = None
    differences: str | None = None
    disorder: str | None = None
    contradiction: str | None = None


@dataclass(frozen=True, slots=True)
class DayRows:
    """What is held of some series on a UTC day.

    Parameters
    ----------
    series
        Those that were asked for; the tables name them by number.
    day, store
        What was asked for.
    candles, earlier
        Tables of the schemas `CANDLES` and `EARLIER`.
    flaws
        By series.
    in_files
        The series whose rows were read from Parquet: all, or those of archived months.
    read_at
        By the database's clock.
    """

    series: tuple[SeriesKey, ...]
    day: date
    store: Store
    candles: pa.Table
    earlier: pa.Table
    flaws: Mapping[SeriesKey, Flaws]
    in_files: frozenset[SeriesKey]
    read_at: datetime


@dataclass(frozen=True, slots=True)
class Expected:
    """What the ledger says of a series-day: candles expected, and those of them that need not be held, or are not.

    `missing` is told besides, as candles held that nobody expects may stand for ones that lack.
    """

    expected: int
    absent: int = 0
    quarantined: int = 0
    missing: int = 0

    @property
    def due(self) -> int:
        """How many candles ought to be held."""
        return self.expected - self.absent - self.quarantined


@dataclass(frozen=True, slots=True)
class DayMismatch:
    """A value of a candle that differs from what shorter ones give; `is_exchanges` if REST has confirmed both."""

    symbol: str
    timeframe: str
    timestamp_ms: int
    against: str
    column: str
    value: str
    summed: str
    is_exchanges: bool


@dataclass(frozen=True, slots=True)
class InstrumentRules:
    """Rules of an instrument to hold a day against.

    Parameters
    ----------
    covers
        Whether they were in force on the day; else they are the first known after it.
    is_spot
        Whether it is a spot instrument.
    contract_value
        Base coin in a contract of a linear swap or future; None for others, and where it changed on the day.
    tick_size
        What every price is a multiple of; None where it is not known or changed on the day.
    """

    covers: bool
    is_spot: bool
    contract_value: Decimal | None
    tick_size: Decimal | None


@dataclass(frozen=True, slots=True)
class Parity:
    """The hashes of a series-day, or of an archived series-month, in PostgreSQL and in Parquet.

    Parameters
    ----------
    postgres
        What PostgreSQL holds; of an archived month what it held when it was archived. None if that is not known.
    parquet
        What the file says it holds; None if it cannot be read.
    waits
        Whether landings wait to be projected.
    """

    postgres: str | None
    parquet: str | None
    waits: bool = False


# The day's partition is all that is looked at; a lateral join keeps each series an own look along its key.
# Ordered inside, so that each series is an own look along its key, not a scan of the month for all of them.
_ROWS: Final = sql.SQL(
    """
COPY (
    SELECT wanted.number, held.timestamp_ms, {columns}
    FROM unnest(%s::int[], %s::text[], %s::text[]) AS wanted (number, symbol, timeframe)
    CROSS JOIN LATERAL (
        SELECT * FROM trading.candlesticks AS held
        WHERE held.symbol = wanted.symbol AND held.timeframe = wanted.timeframe
          AND held.timestamp_ms >= %s AND held.timestamp_ms < %s
        ORDER BY held.timestamp_ms
    ) AS held
) TO STDOUT (FORMAT csv)
"""
)

_FOUND_COLUMNS: Final[LiteralString] = """
SELECT attname, format_type(atttypid, atttypmod)
FROM pg_attribute
WHERE attrelid = 'trading.candlesticks'::regclass AND attnum > 0 AND NOT attisdropped
"""
_WANTED_TYPES: Final[LiteralString] = "SELECT name, to_regtype(name)::text FROM unnest(%s::text[]) AS name"

_ARCHIVED: Final[LiteralString] = """
SELECT symbol, timeframe, content_hash FROM trading.candle_months WHERE state = 'archived' AND month = %s
"""

# What a ledger that is behind calls missing may have landed since.
_EXPECTED: Final[LiteralString] = """
SELECT symbol, timeframe, expected, absent, quarantined,
       CASE WHEN counted < revision OR (symbol, timeframe, day) IN (
           SELECT symbol, timeframe, day FROM trading.unmarked_days
       ) THEN 0 ELSE missing END
FROM trading.coverage
JOIN unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe) USING (symbol, timeframe)
LEFT JOIN trading.landing_marks USING (symbol, timeframe, day)
WHERE day = %s
"""

_MISMATCHES: Final[LiteralString] = """
SELECT symbol, timeframe, timestamp_ms, against, column_name, value::text, summed::text, class = 'exchange'
FROM trading.timeframe_mismatches
JOIN unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe) USING (symbol, timeframe)
WHERE class IN ('open', 'exchange') AND timestamp_ms >= %s AND timestamp_ms < %s
ORDER BY symbol, timeframe, timestamp_ms, against, column_name
"""

_RULES: Final[LiteralString] = """
SELECT symbol, valid_from, instrument_type, contract_type, contract_value * coalesce(contract_multiplier, 1), tick_size
FROM trading.instruments
WHERE symbol = ANY(%s)
ORDER BY symbol, valid_from
"""

_WAITING: Final[LiteralString] = """
SELECT symbol, timeframe
FROM (
    SELECT symbol, timeframe, day FROM trading.landing_marks WHERE projected < revision
    UNION ALL
    SELECT symbol, timeframe, day FROM trading.unmarked_days
) AS waiting
JOIN unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe) USING (symbol, timeframe)
WHERE day = %s
"""

_HASHES: Final[LiteralString] = """
SELECT symbol, timeframe, trading.content_hash(symbol, timeframe, %s, %s)
FROM unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe)
"""

_NOW: Final[LiteralString] = "SELECT statement_timestamp()"

_PLAIN: Final = rf"^-?\d{{1,{INTEGER_DIGITS}}}(\.\d{{1,{FRACTION_DIGITS}}})?$"


def read_rows(
    connection: Connection, files: ParquetStore, series: Sequence[SeriesKey], day: date, store: Store
) -> DayRows:
    """Every row of `series` that opens on `day` or the day before, from PostgreSQL or the months' Parquet files.

    Archived months are read from their files whichever store is asked for.

    Parameters
    ----------
    connection
        An autocommit connection.

    Raises
    ------
    psycopg.Error
        If the database fails.
    StorageError
        If the Parquet store is out of reach; a file that is missing or damaged is a flaw.
    """
    wanted = tuple(dict.fromkeys(series))
    # One snapshot, or a month archived meanwhile would be looked for where it is not.
    with snapshot(connection):
        read_at = _value(connection.execute(_NOW).fetchone())
        archived = set(_archived(connection, day)) & set(wanted)
        in_files = frozenset(wanted) if store is Store.PARQUET else frozenset(archived)
        live = [(number, key) for number, key in enumerate(wanted) if key not in in_files]
        differences, found = _columns_in_postgresql(connection) if live else (None, frozenset())
        candles = [_candles_in_postgresql(connection, live, day, found)] if live else []
        earlier = [_earlier_in_postgresql(connection, live, day, found)] if live else []
    flaws = {key: Flaws(differences=differences) for _, key in live}
    for number, key in enumerate(wanted):
        if key in in_files:
            rows, before, flaws[key] = _in_file(files, number, key, day)
            candles.append(rows)
            earlier.append(before)
    return DayRows(
        wanted,
        day,
        store,
        pa.concat_tables(candles or [CANDLES.empty_table()]).combine_chunks(),
        pa.concat_tables(earlier or [EARLIER.empty_table()]).combine_chunks(),
        flaws,
        in_files,
        read_at,
    )


def read_expected(connection: Connection, series: Sequence[SeriesKey], day: date) -> dict[SeriesKey, Expected]:
    """What the ledger says of `day`, by series; one it has no row of has none here."""
    found = connection.execute(_EXPECTED, (*_names(series), day))
    return {(symbol, timeframe): Expected(*counts) for symbol, timeframe, *counts in found}


def read_mismatches(connection: Connection, series: Sequence[SeriesKey], day: date) -> list[DayMismatch]:
    """Where candles of `series` that open on `day` differ from what shorter ones give, as far as it was looked at."""
    start_ms = day_ms(day)
    found = connection.execute(_MISMATCHES, (*_names(series), start_ms, start_ms + DAY_MS))
    return [DayMismatch(*row) for row in found]


def read_rules(connection: Connection, symbols: Sequence[str], day: date) -> dict[str, InstrumentRules]:
    """The rules to hold `day` against, by symbol: those in force then, else the first known after; may be none."""
    start = utc(day_ms(day))
    versions: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for symbol, *version in connection.execute(_RULES, (list(symbols),)):
        versions[symbol].append(tuple(version))
    return {symbol: _rules_of(known, start, start + timedelta(days=1)) for symbol, known in versions.items()}


def read_parity(
    connection: Connection, files: ParquetStore, series: Sequence[SeriesKey], day: date
) -> dict[SeriesKey, Parity]:
    """The hashes of `day` in PostgreSQL and in Parquet, by series.

    Parameters
    ----------
    connection
        An autocommit connection.
    """
    with snapshot(connection):
        archived = _archived(connection, day)
        held = _hashes_and_waiting(connection, [key for key in series if key not in archived], day)
    parities = {}
    for key in series:
        month = _month(key, day)
        if key in archived:
            parities[key] = Parity(archived[key], _hash_in_file(files, month, None))
            continue
        parities[key] = Parity(held[key][0], _hash_in_file(files, month, day), held[key][1])
        if parities[key].parquet != parities[key].postgres and not parities[key].waits:
            # The file may have been projected since the snapshot; nobody writes it under this lock.
            with session_lock(connection, "parquet", *map(str, month)):
                with snapshot(connection):
                    hashed, waits = _hashes_and_waiting(connection, [key], day)[key]
                parities[key] = Parity(hashed, _hash_in_file(files, month, day), waits)
    return parities


def _value(row: tuple[Any, ...] | None) -> Any:
    assert row is not None
    return row[0]


def _names(series: Sequence[SeriesKey]) -> tuple[list[str], list[str]]:
    return [symbol for symbol, _ in series], [timeframe for _, timeframe in series]


def _month(key: SeriesKey, day: date) -> SeriesMonth:
    return SeriesMonth(*key, day.replace(day=1))


def _archived(connection: Connection, day: date) -> dict[SeriesKey, str | None]:
    """The series whose month of `day` is archived, with the hash it was archived with."""
    found = connection.execute(_ARCHIVED, (day.replace(day=1),))
    return {(symbol, timeframe): hashed for symbol, timeframe, hashed in found}


def _hashes_and_waiting(
    connection: Connection, series: Sequence[SeriesKey], day: date
) -> dict[SeriesKey, tuple[str, bool]]:
    start_ms = day_ms(day)
    waiting = {(symbol, timeframe) for symbol, timeframe in connection.execute(_WAITING, (*_names(series), day))}
    found = connection.execute(_HASHES, (start_ms, start_ms + DAY_MS, *_names(series)))
    return {(symbol, name): (hashed, (symbol, name) in waiting) for symbol, name, hashed in found}


def _hash_in_file(files: ParquetStore, month: SeriesMonth, day: date | None) -> str | None:
    """The hash of `day`, or of the month without one, that the file states; None if it cannot be read."""
    try:
        state = files.state(month)
    except DamagedFileError:
        return None
    if state is None:
        return HASH_OF_NOTHING if day is not None else None
    return state.content_hash if day is None else state.day_hashes.get(day, HASH_OF_NOTHING)


def _rules_of(versions: Sequence[tuple[Any, ...]], start: datetime, end: datetime) -> InstrumentRules:
    """The rules of [start, end) of an instrument's versions, oldest first: of those in force, or else of the first.

    Listings are recorded daily, so that a version recorded a day after the end may have been in force before it.
    """
    begun = [version for version in versions if version[0] < end]
    old = [version for version in begun if version[0] <= start]
    recorded = [version for version in versions if version[0] < end + timedelta(days=1)] if begun else versions[:1]
    chosen = [*old[-1:], *recorded[len(old) :]]
    contract_values = {value if contract_type == "linear" else None for _, _, contract_type, value, _ in chosen}
    ticks = {tick for *_, tick in chosen}
    return InstrumentRules(
        covers=bool(begun),
        is_spot=chosen[0][1] == "SPOT",
        contract_value=contract_values.pop() if len(contract_values) == 1 else None,
        tick_size=ticks.pop() if len(ticks) == 1 else None,
    )


def _columns_in_postgresql(connection: Connection) -> tuple[str | None, frozenset[str]]:
    """Where the table's columns are not those of the schema, in words; and the names of those there are."""
    found: dict[str, str] = dict(connection.execute(_FOUND_COLUMNS).fetchall())
    types: dict[str, str] = dict(connection.execute(_WANTED_TYPES, ([column.sql for column in COLUMNS],)).fetchall())
    return _differences(found, {column.name: types[column.sql] for column in COLUMNS}), frozenset(found)


def _differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    told = [f"there is no {name}" for name in wanted if name not in found]
    told += [
        f"{name} is {found[name]}, not {type_}" for name, type_ in wanted.items() if found.get(name, type_) != type_
    ]
    told += [f"{name} does not belong there" for name in found if name not in wanted]
    return "; ".join(told) or None


def _candles_in_postgresql(
    connection: Connection, series: Sequence[tuple[int, SeriesKey]], day: date, found: frozenset[str]
) -> pa.Table:
    held = {name: sql.SQL("held.{}").format(sql.Identifier(name)) for name in found}
    nothing = sql.SQL("NULL")
    columns = [held.get(name, nothing) for name in (*VALUES, "source")]
    columns += [sql.SQL("{} IS NOT NULL").format(held.get(name, nothing)) for name in ("received_at", "updated_at")]
    names = [name for name in CANDLES.names if name != "open_time_ms"]
    body = _copied(connection, series, columns, day_ms(day))
    types = {name: CANDLES.field(name).type for name in names}
    try:
        table = _parsed(body, names, types)
    except pa.ArrowInvalid:
        # A numeric can be what no decimal of ours is: NaN, infinite, too long.
        table = _parsed(body, names, {**types, **dict.fromkeys(VALUES, pa.string())})
        for name in VALUES:
            table = table.set_column(table.schema.get_field_index(name), name, _numbers(table[name]))
    return _of_schema({name: table[name] for name in names}, table.num_rows, CANDLES)


def _earlier_in_postgresql(
    connection: Connection, series: Sequence[tuple[int, SeriesKey]], day: date, found: frozenset[str]
) -> pa.Table:
    # As text that is read as floats here: PostgreSQL's own cast costs three times as much.
    held = {name: sql.SQL("held.{}").format(sql.Identifier(name)) for name in found}
    columns = [held.get(name, sql.SQL("NULL")) for name in EARLIER.names[2:]]
    body = _copied(connection, series, columns, day_ms(day) - DAY_MS)
    return _parsed(body, EARLIER.names, {field.name: field.type for field in EARLIER}).cast(EARLIER)


def _copied(
    connection: Connection,
    series: Sequence[tuple[int, SeriesKey]],
    columns: Sequence[sql.Composable],
    start_ms: int,
) -> bytes:
    statement = _ROWS.format(columns=sql.SQL(", ").join(columns))
    numbers = [number for number, _ in series]
    parameters = (numbers, *_names([key for _, key in series]), start_ms, start_ms + DAY_MS)
    with connection.cursor() as cursor, cursor.copy(statement, parameters) as copy:
        return b"".join(bytes(chunk) for chunk in copy)


def _parsed(body: bytes, names: Sequence[str], types: Mapping[str, pa.DataType]) -> pa.Table:
    if not body:
        return pa.schema([(name, types[name]) for name in names]).empty_table()
    return csv.read_csv(
        pa.BufferReader(body),
        read_options=csv.ReadOptions(column_names=list(names)),
        convert_options=csv.ConvertOptions(
            column_types=dict(types),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t"],
            false_values=["f"],
        ),
    )


def _numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts as decimals; null where one is no number or does not fit."""
    return pc.if_else(pc.match_substring_regex(texts, _PLAIN), texts, None).cast(NUMBER)


def _of_schema(columns: Mapping[str, Any], rows: int, schema: pa.Schema) -> pa.Table:
    """A table of `schema`, a column that is not there full of nulls."""
    whole = [columns[field.name] if field.name in columns else pa.nulls(rows, field.type) for field in schema]
    return pa.table(whole, schema=schema)


def _in_file(files: ParquetStore, number: int, key: SeriesKey, day: date) -> tuple[pa.Table, pa.Table, Flaws]:
    """Rows of the day and of the day before from the months' files, and what is wrong with the file of the day."""
    month, start_ms = _month(key, day), day_ms(day)
    whole, flaws = _whole_file(files, month)
    rows = _opening_in(whole, start_ms)
    if flaws.unreadable is None:
        flaws.contradiction = _contradiction(files, month, day, whole, rows)
    if day.day > 1:
        before = whole
    else:
        before, _ = _whole_file(files, _month(key, day_of(start_ms - DAY_MS)))
    before = _opening_in(before, start_ms - DAY_MS)
    numbered = {"series": pa.array(np.full(rows.num_rows, number, dtype=np.int32))}
    candles = _of_schema({**numbered, **_by_name(rows)}, rows.num_rows, CANDLES)
    numbered = {"series": pa.array(np.full(before.num_rows, number, dtype=np.int32))}
    floats = {name: pa.array(doubles(before[name]), from_pandas=True) for name in EARLIER.names[2:]}
    floats["timestamp_ms"] = before["timestamp_ms"]
    return candles, _of_schema({**numbered, **floats}, before.num_rows, EARLIER), flaws


def _whole_file(files: ParquetStore, month: SeriesMonth) -> tuple[pa.Table, Flaws]:
    """The rows of a file in its own order, columns as in `CANDLES` without the series, and what is wrong with it."""
    flaws = Flaws()
    try:
        with files.opened(month) as source:
            raw = pq.ParquetFile(source, page_checksum_verification=True).read()
    except FileNotFoundError:
        raw = ARROW_SCHEMA.empty_table()
    except DamagedFileError as problem:
        flaws.unreadable = str(problem)
        raw = ARROW_SCHEMA.empty_table()
    flaws.differences = _differences(_types(raw.schema), _types(ARROW_SCHEMA))
    columns = {name: _cast(raw, name, ARROW_SCHEMA.field(name).type) for name in ARROW_SCHEMA.names}
    opens = columns["timestamp_ms"]
    if opens.null_count:
        nulls = f"timestamp_ms has {opens.null_count} nulls"
        flaws.differences = f"{flaws.differences}; {nulls}" if flaws.differences else nulls
    columns["open_time_ms"] = columns.pop("open_time").cast(pa.int64())
    columns["received_at"] = pc.is_valid(columns["received_at"])
    columns["updated_at"] = pc.is_valid(columns["updated_at"])
    table = pa.table(columns).filter(pc.is_valid(opens))
    keys = table["timestamp_ms"].to_numpy()
    falls = np.flatnonzero(keys[1:] < keys[:-1])
    if len(falls):
        flaws.disorder = f"the row of {keys[falls[0] + 1]} comes after that of {keys[falls[0]]}"
    return table, flaws


def _contradiction(files: ParquetStore, month: SeriesMonth, day: date, whole: pa.Table, rows: pa.Table) -> str | None:
    first_ms, end_ms = month_bounds(month.month)
    keys = whole["timestamp_ms"].to_numpy()
    astray = int(np.count_nonzero((keys < first_ms) | (keys >= end_ms)))
    if astray:
        return f"{astray} of its rows open in another month"
    try:
        state = files.state(month)
    except DamagedFileError as problem:
        return str(problem)
    if state is None or any(rows[name].null_count for name in VALUES):
        return None
    said, held = state.day_hashes.get(day, HASH_OF_NOTHING), day_hashes(rows).get(day, HASH_OF_NOTHING)
    return None if said == held else f"it says that the day's rows have the hash {said}, and they have {held}"


def _types(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def _cast(table: pa.Table, name: str, wanted: pa.DataType) -> pa.ChunkedArray:
    """A column in the type it should have; nulls where it is not there or cannot be."""
    nulls = pa.chunked_array([pa.nulls(table.num_rows, wanted)])
    if name not in table.schema.names:
        return nulls
    try:
        return table[name].cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return nulls  # its type is among the flaws that are told of


def _opening_in(table: pa.Table, start_ms: int) -> pa.Table:
    opens = table["timestamp_ms"].to_numpy()
    return table.filter(pa.array((opens >= start_ms) & (opens < start_ms + DAY_MS)))


def _by_name(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.schema.names}
