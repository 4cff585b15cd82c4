"""Candles for analysis: a range of a series as a pandas frame or an Arrow table, from Parquet or PostgreSQL."""

import warnings
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from okx_pipeline.candles import VALUE_COLUMNS, parse_symbol
from okx_pipeline.errors import PipelineError, UsageError, command
from okx_pipeline.ranges import Range
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, iso, parse_timeframe

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from okx_pipeline.storage.parquet import DamagedFileError

StoreName = Literal["parquet", "postgres"]
Moment = date | datetime | str | int
"""A UTC day, an aware moment, either of them as ISO text, or Unix milliseconds."""


class DamagedFileWarning(UserWarning):
    """A Parquet file is damaged, and its candles were read from PostgreSQL instead."""


NAMES: Final = {column.name: column.name.removesuffix("_price") for column in VALUE_COLUMNS}
"""Columns as people read them, as in the view `trading.candles`."""

_EARLIEST_MS: Final = 100_000_000_000
"""In 1973, before any candle; read as seconds, in the year 5138."""
END_OF_TIME_MS: Final = 253_402_300_800_000


@overload
def load_candles(
    symbol: str,
    timeframe: str | Timeframe,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    store: StoreName = "parquet",
    numbers: Literal["decimal", "float"] = "decimal",
    kind: Literal["pandas"] = "pandas",
    settings: Settings | None = None,
) -> "pd.DataFrame": ...


@overload
def load_candles(
    symbol: str,
    timeframe: str | Timeframe,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    store: StoreName = "parquet",
    numbers: Literal["decimal", "float"] = "decimal",
    kind: Literal["arrow"],
    settings: Settings | None = None,
) -> "pa.Table": ...


def load_candles(
    symbol: str,
    timeframe: str | Timeframe,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    store: StoreName = "parquet",
    numbers: Literal["decimal", "float"] = "decimal",
    kind: Literal["pandas", "arrow"] = "pandas",
    settings: Settings | None = None,
) -> "pd.DataFrame | pa.Table":
    """The confirmed candles of a series that open in [start, end), ascending; archived months included.

    Parameters
    ----------
    symbol, timeframe
        The series, as ``"BTC-USDT-SWAP"`` and ``"1h"``.
    start, end
        UTC days, aware moments, ISO text or Unix milliseconds; everything that is held where left out.
    store
        ``parquet`` reads the files, and PostgreSQL only if one is damaged; ``postgres`` has the last minutes, too.
    numbers
        ``decimal`` for exact numbers (decimal128(38, 18); `decimal.Decimal` in pandas), ``float`` for fast ones, each
        the double nearest to the decimal, as ``float("0.25387")`` gives it.
    kind
        ``pandas``: a frame indexed by ``open_time`` (UTC); ``arrow``: a table with ``timestamp_ms`` and ``open_time``.
    settings
        Those of the environment where left out.

    Returns
    -------
    pandas.DataFrame or pyarrow.Table
        Columns ``open``, ``high``, ``low``, ``close``, ``volume``, ``volume_currency``, ``volume_quote``; no row where
        nothing is held: whether it ought to be is the ledger's to say.

    Raises
    ------
    UsageError
        If the symbol, timeframe or a moment cannot be.
    StorageError
        If the store is out of reach, or a file is damaged whose rows PostgreSQL does not have.

    Warns
    -----
    DamagedFileWarning
        If a file is damaged and PostgreSQL had the rows.

    Examples
    --------
    >>> candles = load_candles("BTC-USDT-SWAP", "1h", "2026-08-01", "2026-09-01", numbers="float")
    >>> candles["close"].resample("1D").last()
    """
    for name, value, choices in (
        ("store", store, ("parquet", "postgres")),
        ("numbers", numbers, ("decimal", "float")),
        ("kind", kind, ("pandas", "arrow")),
    ):
        if value not in choices:
            raise UsageError(f"{name} is {value!r}; it is one of {', '.join(choices)}")
    length = timeframe if isinstance(timeframe, Timeframe) else parse_timeframe(timeframe)
    within = Range(
        0 if start is None else moment_ms("start", start), END_OF_TIME_MS if end is None else moment_ms("end", end)
    )
    if within.start_ms > within.end_ms:
        raise UsageError(f"start {start} is not before end {end}")
    table = _read(settings or read_settings(), store, parse_symbol(symbol), length, within)
    if numbers == "float":
        table = _as_floats(table)
    table = for_people(table)
    if kind == "arrow":
        return table
    return table.drop_columns("timestamp_ms").to_pandas(split_blocks=True, self_destruct=True).set_index("open_time")


def for_people(table: "pa.Table") -> "pa.Table":
    """`table` with its columns named as in the view `trading.candles`."""
    return table.rename_columns([NAMES.get(name, name) for name in table.schema.names])


def moment_ms(name: str, moment: Moment) -> int:
    """Unix milliseconds of a moment that a user wrote.

    Raises
    ------
    UsageError
        If it is no moment, has no time zone, or is a number of seconds, microseconds or nanoseconds.
    """
    if isinstance(moment, str):
        try:
            moment = date.fromisoformat(moment) if len(moment) == len("2026-08-01") else datetime.fromisoformat(moment)
        except ValueError:
            raise UsageError(f"{name} {moment!r} is no moment; write it as 2026-08-01 or 2026-08-01T12:00Z") from None
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise UsageError(f"{name} {moment} has no time zone; write for example {moment.isoformat()}Z")
        since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
        return since.days * DAY_MS + since.seconds * 1000 + since.microseconds // 1000
    if isinstance(moment, date):
        return day_ms(moment)
    return _checked_ms(name, int(moment))


def _checked_ms(name: str, number: int) -> int:
    """`number` if it can be meant as Unix milliseconds; one of seconds would name 1970, one of nanoseconds no year."""
    if number <= 0 or _EARLIEST_MS <= number <= END_OF_TIME_MS:
        return number
    in_milliseconds = iso(number) if number < _EARLIEST_MS else "past the year 9999"
    for unit, meant_ms in (
        ("seconds", number * 1000 if number < _EARLIEST_MS else None),
        ("microseconds", number // 1000),
        ("nanoseconds", number // 1_000_000),
    ):
        if meant_ms is not None and meant_ms <= END_OF_TIME_MS:
            raise UsageError(
                f"{name} {number} is {in_milliseconds} in milliseconds and {iso(meant_ms)} in {unit}; "
                f"write {meant_ms:d}, or {iso(meant_ms)} as text"
            )
    raise UsageError(f"{name} {number} is {in_milliseconds}; write milliseconds, as 1785542400000")


def _read(settings: Settings, store: str, symbol: str, timeframe: Timeframe, within: Range) -> "pa.Table":
    from okx_pipeline.storage.candle_store import CandleStore
    from okx_pipeline.storage.opening import opened_database
    from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore
    from okx_pipeline.storage.reading import read_files, read_store

    files = ParquetStore(settings.parquet_root)
    if store == "parquet":
        try:
            return read_files(files, symbol, timeframe, within)
        except DamagedFileError as damage:
            warn = partial(warnings.warn, category=DamagedFileWarning, stacklevel=4)
            return instead_of_damaged(settings, symbol, timeframe, within, damage, warn)
    with opened_database(settings) as database, CandleStore.opened(database, files) as opened:
        return read_store(opened, symbol, timeframe, within)


def instead_of_damaged(
    settings: Settings,
    symbol: str,
    timeframe: Timeframe,
    within: Range,
    damage: "DamagedFileError",
    warn: Callable[[str], None],
) -> "pa.Table":
    """The range from PostgreSQL, as `read_store` reads it, where a file of it is damaged; `warn` is told.

    Raises
    ------
    StorageError
        If PostgreSQL does not have the rows, either, or cannot be asked.
    """
    from okx_pipeline.storage.candle_store import CandleStore
    from okx_pipeline.storage.database import StorageError
    from okx_pipeline.storage.opening import opened_database
    from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore
    from okx_pipeline.storage.reading import read_store

    files = ParquetStore(settings.parquet_root)
    try:
        with opened_database(settings) as database, CandleStore.opened(database, files) as opened:
            table = read_store(opened, symbol, timeframe, within)
    except DamagedFileError:
        raise StorageError(f"{damage}; the month is archived: bring the file back from a backup") from damage
    except (PipelineError, OSError) as problem:
        raise StorageError(f"{damage}; PostgreSQL, which may have the rows, cannot be asked: {problem}") from damage
    repair = command(f"validate --symbols {symbol} --timeframes {timeframe}")
    warn(
        f"{damage}; the candles were read from PostgreSQL. A running sidecar writes the file again within minutes, "
        f"and so does: {repair}"
    )
    return table


def _as_floats(table: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    from okx_pipeline.storage.doubles import doubles

    columns: dict[str, Any] = {
        name: pa.array(doubles(table[name])) if name in NAMES else table[name] for name in table.schema.names
    }
    return pa.table(columns)
