"""The monthly partitions of the candles in PostgreSQL: which exist, and how one is vacuumed, rebuilt or dropped.

Which rows may leave a month is decided elsewhere. Every statement on candles locks their table and most partitions, so
nothing here waits for a lock that would make others wait behind it: it tries again for some seconds, and gives up.
"""

from collections.abc import Iterable
from datetime import date
from random import random
from time import monotonic, sleep
from typing import Final, LiteralString, NamedTuple

from psycopg import errors, sql
from psycopg.errors import Diagnostic

from okx_pipeline.candles import Candle
from okx_pipeline.storage.database import Connection, StorageError, one
from okx_pipeline.storage.gaps import try_lock_ledger
from okx_pipeline.timeframes import month_bounds, month_of

SWAP_WITHIN_S: Final = 5.0
"""How long a moment is looked for in which nobody reads or writes candles; a landing takes some milliseconds."""

WRITERS_OUT_WITHIN_MS: Final = 2_000
"""How long writers of an old month are waited for. Nobody else waits behind that."""

_PARTITIONS: Final[LiteralString] = """
SELECT to_date(right(relname, 7), 'YYYY_MM'), pg_total_relation_size(oid)
FROM pg_inherits JOIN pg_class ON oid = inhrelid
WHERE inhparent = 'trading.candlesticks'::regclass AND NOT inhdetachpending
"""

# While DETACH CONCURRENTLY has not finished, the table is still listed as a partition, and takes no rows any more.
_DETACHED: Final[LiteralString] = """
SELECT to_date(right(relname, 7), 'YYYY_MM'), coalesce(inhdetachpending, false)
FROM pg_class
LEFT JOIN pg_inherits ON inhrelid = pg_class.oid AND inhparent = 'trading.candlesticks'::regclass
WHERE relnamespace = 'trading'::regnamespace AND relname ~ '^candlesticks_[1-9][0-9]{3}_(0[1-9]|1[0-2])$'
  AND coalesce(inhdetachpending, true)
ORDER BY 1
"""

_SOMEBODY_WAITS: Final[LiteralString] = """
SELECT EXISTS (
    SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE datname = current_database() AND relation = to_regclass(%s) AND NOT granted
)
"""

# From key to key: an aggregate would read every row.
_SERIES: Final[LiteralString] = """
WITH RECURSIVE series AS (
    (SELECT symbol, timeframe FROM {month} ORDER BY symbol, timeframe LIMIT 1)
    UNION ALL
    SELECT following.symbol, following.timeframe
    FROM series
    CROSS JOIN LATERAL (
        SELECT symbol, timeframe FROM {month} AS held
        WHERE (held.symbol, held.timeframe) > (series.symbol, series.timeframe)
        ORDER BY symbol, timeframe LIMIT 1
    ) AS following
)
SELECT symbol, timeframe FROM series
"""

# VACUUM can be granted since version 17.
_MAY_VACUUM: Final[LiteralString] = """
SELECT CASE WHEN pg_has_role(relowner, 'USAGE') THEN true
            WHEN current_setting('server_version_num')::int >= 170000 THEN has_table_privilege(oid, 'MAINTAIN')
            ELSE false END
FROM pg_class WHERE oid = 'trading.candlesticks'::regclass
"""

_NOTE_VACUUM: Final[LiteralString] = """
INSERT INTO trading.month_partitions (month, vacuumed_hash, vacuumed_at) VALUES (%s, %s, clock_timestamp())
ON CONFLICT (month) DO UPDATE SET vacuumed_hash = excluded.vacuumed_hash, vacuumed_at = excluded.vacuumed_at
"""


class InUseError(StorageError):
    """Somebody reads or writes candles all the time; nothing has changed, and it can be tried again."""


class DetachedMonth(NamedTuple):
    """A month whose table exists and is not a partition of the candles: its rows are not read, and none can land.

    Parameters
    ----------
    month
        Its first day.
    unfinished
        Whether a DETACH CONCURRENTLY was interrupted, which has to be finished first.
    """

    month: date
    unfinished: bool = False

    @property
    def remedy(self) -> str:
        """The SQL that attaches it again."""
        name = f"trading.{name_of(self.month)}"
        bounds = "FROM ({}) TO ({})".format(*month_bounds(self.month))
        finish = f"ALTER TABLE trading.candlesticks DETACH PARTITION {name} FINALIZE; " if self.unfinished else ""
        attach = f"ALTER TABLE trading.candlesticks ATTACH PARTITION {name} FOR VALUES {bounds}"
        return finish + attach

    def __str__(self) -> str:
        return (
            f"the partition of {self.month:%Y-%m} is detached, so its candles can be neither stored nor read; "
            f"attach it again with: {self.remedy}"
        )


class DetachedMonthError(StorageError):
    """Candles open in months whose partition is detached; nothing of the batch landed, and the rest of it can.

    Parameters
    ----------
    months
        Which, at least one.
    """

    def __init__(self, months: Iterable[DetachedMonth]) -> None:
        self.months = sorted(months)
        first, *others = self.months
        rest = f" (and so for {', '.join(f'{each.month:%Y-%m}' for each in others)})" if others else ""
        super().__init__(f"{first}{rest}")

    def divide(self, candles: Iterable[Candle]) -> tuple[list[Candle], list[Candle]]:
        """The candles that open in these months, and the others."""
        months = {each.month for each in self.months}
        detached: list[Candle] = []
        others: list[Candle] = []
        for candle in candles:
            (detached if month_of(candle.timestamp_ms) in months else others).append(candle)
        return detached, others


def name_of(month: date) -> str:
    """The name of a month's partition."""
    return f"candlesticks_{month:%Y_%m}"


def detached_months(connection: Connection) -> list[DetachedMonth]:
    """The months whose partition somebody has detached, ascending. One that was dropped is made again when needed."""
    return [DetachedMonth(*row) for row in connection.execute(_DETACHED)]


def partition_bytes(connection: Connection) -> dict[date, int]:
    """The months that have a partition, and what each takes on disk, indexes included."""
    return dict(connection.execute(_PARTITIONS).fetchall())


def series_in(connection: Connection, month: date) -> set[tuple[str, str]]:
    """The (symbol, timeframe) that have rows in a month's partition, which has to be there."""
    return set(connection.execute(sql.SQL(_SERIES).format(month=_table(month))).fetchall())


def lock_writers_out(connection: Connection, month: date) -> None:
    """Keep everybody from writing to a month until the caller's transaction ends; they can read.

    Raises
    ------
    InUseError
        If somebody writes to it for long.
    """
    connection.execute(f"SET LOCAL lock_timeout = {WRITERS_OUT_WITHIN_MS}")
    try:
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(_table(month)))
    except errors.LockNotAvailable as problem:
        raise InUseError(f"{month:%Y-%m} is being written to; it is left as it is for now") from problem
    connection.execute("SET LOCAL lock_timeout TO DEFAULT")


def leave_archived_out(connection: Connection, month: date) -> bool:
    """Swap a month's partition for a copy without the rows of archived series, or drop it where no row is left.

    Parameters
    ----------
    connection
        In a transaction, or autocommit.

    Returns
    -------
    bool
        Whether there is a partition now.

    Raises
    ------
    InUseError
        If no moment was found in which nobody reads or writes candles, or somebody waits to write to the month.
    """
    with connection.transaction():
        lock_writers_out(connection, month)
        connection.execute("SELECT trading.build_month(%s)", (month,))
        until = monotonic() + SWAP_WITHIN_S
        while True:
            try:
                with connection.transaction():
                    # Whoever counts the ledger reads rows by several statements, which are to see the same.
                    if try_lock_ledger(connection):
                        return bool(one(connection, "SELECT trading.swap_month(%s)", (month,)))
            except errors.LockNotAvailable:
                pass
            if monotonic() > until or one(connection, _SOMEBODY_WAITS, (f"trading.{name_of(month)}",)):
                raise InUseError(f"candles are read or written all the time; {month:%Y-%m} is left as it is for now")
            sleep(0.01 + 0.04 * random())  # noqa: S311 - so that two who take turns fall out of step


def may_vacuum(connection: Connection) -> bool:
    """Whether the user may vacuum; if not, it is autovacuum's."""
    return bool(one(connection, _MAY_VACUUM))


def vacuum_month(connection: Connection, month: date, fingerprint: str) -> bool:
    """Vacuum, freeze and analyse a month's partition; nobody waits for it. Autocommit connections only.

    Parameters
    ----------
    fingerprint
        What is then noted as vacuumed: `month_fingerprint` from before.

    Returns
    -------
    bool
        False where it cannot be now: another vacuum is at it, or the user may not.
    """
    told: list[str | None] = []

    def hear(notice: Diagnostic) -> None:
        told.append(notice.severity_nonlocalized)

    connection.add_notice_handler(hear)
    try:
        # Cutting off an empty end would take a lock that readers of any month wait for.
        vacuum = sql.SQL("VACUUM (FREEZE, ANALYZE, TRUNCATE false, SKIP_LOCKED) {}")
        connection.execute(vacuum.format(_table(month)))
    finally:
        connection.remove_notice_handler(hear)
    if "WARNING" in told:
        return False
    connection.execute(_NOTE_VACUUM, (month, fingerprint))
    return True


def _table(month: date) -> sql.Identifier:
    return sql.Identifier("trading", name_of(month))
