"""Damage to Parquet files: how it is found, noted and forgotten.

A noted damage of a live month lets the projection write the file again from PostgreSQL. An archived month has no other
copy here: its damage stays noted until the file is brought back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection, session_lock_if_free
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore, SeriesMonth, day_hashes, month_hash
from okx_pipeline.storage.projection import project_month

FILES_AT_ONCE: Final = 500

# The projection writes a month again whose hash is null.
_NOTE: Final[LiteralString] = """
UPDATE trading.candle_months SET
    damage = %s, damaged_at = coalesce(damaged_at, clock_timestamp()),
    content_hash = CASE state WHEN 'archived' THEN content_hash END
WHERE symbol = %s AND timeframe = %s AND month = %s
"""

_FORGET: Final[LiteralString] = """
UPDATE trading.candle_months SET damage = NULL, damaged_at = NULL
WHERE symbol = %s AND timeframe = %s AND month = %s AND state = 'archived' AND damage IS NOT NULL
"""

_FILES: Final[LiteralString] = """
SELECT symbol, timeframe, month, state = 'archived', content_hash, damage
FROM trading.candle_months
WHERE content_hash IS NOT NULL AND (symbol, timeframe, month) > (%s, %s, %s)
ORDER BY symbol, timeframe, month LIMIT %s
"""

_NOTED: Final[LiteralString] = """
SELECT content_hash FROM trading.candle_months WHERE symbol = %s AND timeframe = %s AND month = %s
"""

_STATE: Final[LiteralString] = """
SELECT state FROM trading.candle_months WHERE symbol = %s AND timeframe = %s AND month = %s
"""

_DAMAGED: Final[LiteralString] = """
SELECT symbol, timeframe, month, state = 'archived', damage, damaged_at
FROM trading.candle_months WHERE damage IS NOT NULL
ORDER BY symbol, timeframe, month
"""


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A month whose file is damaged: whether it is archived, what is wrong, and when that was found."""

    key: SeriesMonth
    archived: bool
    damage: str
    damaged_at: datetime


def note_damage(connection: Connection, month: SeriesMonth, damage: str) -> None:
    """Note what is wrong with the file of `month`; the next projection writes that of a live month again."""
    connection.execute(_NOTE, (damage, *month))


def damaged_files(connection: Connection) -> list[DamagedFile]:
    """The months whose file is known to be damaged, by series and month."""
    return [DamagedFile(SeriesMonth(*row[:3]), *row[3:]) for row in connection.execute(_DAMAGED)]


def look_at_files(
    connection: Connection, files: ParquetStore, after: SeriesMonth | None, goes_on: Callable[[float], bool]
) -> SeriesMonth | None:
    """Look whether the files after `after` are there and say that they hold what was written; notes the damage found.

    Only what a file says of itself is read, a quarter of a millisecond each on a local disk.

    Parameters
    ----------
    connection
        An autocommit connection.
    goes_on
        Asked after every file, with the seconds since the call began; a no ends the look.

    Returns
    -------
    SeriesMonth or None
        The file that was looked at last; None after the last of all, so that the next look begins anew.

    Raises
    ------
    psycopg.Error
        If the database fails.
    StorageError
        If the Parquet store is out of reach.
    """
    began_s = monotonic()
    place = ("", "", "-infinity") if after is None else after
    found = connection.execute(_FILES, (*place, FILES_AT_ONCE)).fetchall()
    for symbol, timeframe, first, archived, noted_hash, damage in found:
        month = SeriesMonth(symbol, timeframe, first)
        wrong = _wrong_with(files, month, noted_hash)
        if wrong is not None and damage is None:
            _confirm(connection, files, month)
        elif wrong is None and damage is not None and archived:
            check_archived(connection, files, month)
        if not goes_on(monotonic() - began_s):
            return month
    return month if len(found) == FILES_AT_ONCE else None


def check_archived(connection: Connection, files: ParquetStore, month: SeriesMonth) -> str | None:
    """Read the file of an archived month whole; notes what is wrong with it, or forgets what was. Returns the former.

    Raises
    ------
    StorageError
        If the Parquet store is out of reach.
    """
    found = connection.execute(_NOTED, month).fetchone()
    noted_hash = found[0] if found else None
    wrong = _wrong_with(files, month, noted_hash)
    if wrong is None:
        try:
            if month_hash(day_hashes(files.read(month))) != noted_hash:
                wrong = f"{files.place(month)}: it does not hold the rows that were archived in it"
        except DamagedFileError as problem:
            wrong = str(problem)
    if wrong is None:
        connection.execute(_FORGET, month)
    else:
        note_damage(connection, month, wrong)
    return wrong


def write_again(connection: Connection, files: ParquetStore, month: SeriesMonth, why: str) -> bool:
    """Write the file of a live month again from PostgreSQL, whatever it says of itself; returns whether that was done.

    An archived month is checked, and its damage noted.

    Raises
    ------
    StorageError
        If the file cannot be written; the damage is noted, and the next projection tries again.
    """
    found = connection.execute(_STATE, month).fetchone()
    if found is None or found[0] == "archived":
        if found is not None:
            check_archived(connection, files, month)
        return False
    note_damage(connection, month, f"{files.place(month)}: {why}")
    return project_month(connection, files, month) is not None


def _confirm(connection: Connection, files: ParquetStore, month: SeriesMonth) -> None:
    """Note the damage if it is there while nobody writes the file: between the file and its note they differ."""
    with session_lock_if_free(connection, "parquet", *map(str, month)) as free:
        if not free:
            return
        found = connection.execute(_NOTED, month).fetchone()
        wrong = _wrong_with(files, month, found[0]) if found and found[0] else None
        if wrong is not None:
            note_damage(connection, month, wrong)


def _wrong_with(files: ParquetStore, month: SeriesMonth, noted_hash: str | None) -> str | None:
    """What the file says of itself that cannot be; None if it says what was noted."""
    try:
        state = files.state(month)
    except DamagedFileError as problem:
        return str(problem)
    if state is None:
        return f"{files.place(month)}: it is gone"
    if state.content_hash != noted_hash:
        return f"{files.place(month)}: it does not hold the rows that were written to it"
    return None
