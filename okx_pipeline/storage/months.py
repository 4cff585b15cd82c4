"""The months of every series at a glance: where their rows are, what the ledger says of them, what was done to them."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, LiteralString, NamedTuple

from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.parquet import SeriesMonth
from okx_pipeline.storage.partitions import partition_bytes

_MONTHS: Final[LiteralString] = """
WITH ledger AS (
    SELECT symbol, timeframe, date_trunc('month', day)::date AS month, sum(missing)::bigint AS missing,
           bool_and(content_hash IS NOT NULL) AS closed,
           bool_and((verified_at IS NOT NULL OR NOT wanted) AND judged_at >= counted_at) AS confirmed
    FROM trading.coverage
    WHERE day >= coalesce(%(month)s::date, '-infinity'::date)
      AND day < coalesce(%(month)s::date + interval '1 month', 'infinity')
      AND (expected > 0 OR content_hash IS NULL)
    GROUP BY 1, 2, 3
), waiting AS (
    SELECT DISTINCT symbol, timeframe, date_trunc('month', day)::date AS month
    FROM trading.landing_marks WHERE projected < revision
    UNION
    SELECT symbol, timeframe, date_trunc('month', day)::date FROM trading.unmarked_days
)
SELECT known.symbol, known.timeframe, known.month, known.state = 'archived', coalesce(known.rows, 0),
       coalesce(ledger.missing, 0), coalesce(ledger.closed, false), coalesce(ledger.confirmed, false),
       waiting.month IS NOT NULL, known.rebuilt_hash IS NOT DISTINCT FROM known.content_hash,
       known.archived_at, known.restored_at, known.damage
FROM trading.candle_months AS known
LEFT JOIN ledger USING (symbol, timeframe, month)
LEFT JOIN waiting USING (symbol, timeframe, month)
WHERE known.month = coalesce(%(month)s::date, known.month)
ORDER BY known.month, known.symbol, known.timeframe
"""

_CARED_FOR: Final[LiteralString] = """
SELECT known.month, trading.month_fingerprint(known.month), done.vacuumed_hash, done.swapped_at
FROM (SELECT DISTINCT month FROM trading.candle_months) AS known
LEFT JOIN trading.month_partitions AS done USING (month)
"""

_SUMMARIES: Final[LiteralString] = """
SELECT month, count(*), coalesce(sum(rows) FILTER (WHERE state = 'live'), 0)::bigint,
       coalesce(sum(rows) FILTER (WHERE state = 'archived'), 0)::bigint
FROM trading.candle_months
GROUP BY month
"""

_HELD: Final[LiteralString] = """
SELECT known.symbol, known.timeframe, known.month, known.state = 'archived',
       CASE WHEN NOT EXISTS (
           SELECT FROM trading.landing_marks AS mark
           WHERE mark.symbol = known.symbol AND mark.timeframe = known.timeframe AND mark.projected < mark.revision
             AND mark.day >= known.month AND mark.day < known.month + interval '1 month'
       ) AND NOT EXISTS (
           SELECT FROM trading.unmarked_days AS landed
           WHERE landed.symbol = known.symbol AND landed.timeframe = known.timeframe
             AND landed.day >= known.month AND landed.day < known.month + interval '1 month'
       ) THEN known.content_hash END
FROM trading.candle_months AS known
WHERE known.content_hash IS NOT NULL
ORDER BY 3, 1, 2
"""


@dataclass(frozen=True, slots=True)
class SeriesMonthState:
    """A month of a series that has a file.

    Parameters
    ----------
    archived
        Whether its rows are in the file alone.
    rows
        Candles in the file.
    missing
        Expected candles of which nothing is known.
    closed
        Whether all its candles are due, and counted.
    confirmed
        Whether REST, asked for each of its wanted days, served exactly what is held, and the quality checks have judged
        all of them.
    waiting
        Whether landings wait to be projected.
    rebuilt
        Whether the file was rebuilt for good since it last changed.
    archived_at, restored_at
        When its rows last left PostgreSQL and last came back.
    damage
        What is wrong with its file, or that PostgreSQL holds none of its rows; None where nothing is known to be.
    """

    key: SeriesMonth
    archived: bool
    rows: int
    missing: int
    closed: bool
    confirmed: bool
    waiting: bool
    rebuilt: bool
    archived_at: datetime | None
    restored_at: datetime | None
    damage: str | None


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What was done to a month's partition.

    Parameters
    ----------
    fingerprint
        What the month is known to hold.
    vacuumed
        Whether it was vacuumed since that last changed.
    swapped_at
        When it was last made anew, or dropped.
    """

    fingerprint: str
    vacuumed: bool
    swapped_at: datetime | None


def series_months(connection: Connection, month: date | None = None) -> list[SeriesMonthState]:
    """Every month of a series that has a file, or those of one `month`, by month and series."""
    return [
        SeriesMonthState(SeriesMonth(symbol, timeframe, first), *rest)
        for symbol, timeframe, first, *rest in connection.execute(_MONTHS, {"month": month})
    ]


def partition_states(connection: Connection) -> dict[date, PartitionState]:
    """Of every month that holds anything, what was done to its partition, whether it has one or not."""
    return {
        month: PartitionState(fingerprint, fingerprint == vacuumed_hash, swapped_at)
        for month, fingerprint, vacuumed_hash, swapped_at in connection.execute(_CARED_FOR)
    }


class HeldMonth(NamedTuple):
    """A month of a series, and the hash of its rows; None where landings wait to be projected."""

    symbol: str
    timeframe: str
    month: date
    archived: bool
    content_hash: str | None

    @property
    def key(self) -> SeriesMonth:
        """Which month of which series."""
        return SeriesMonth(self.symbol, self.timeframe, self.month)


def held_months(connection: Connection) -> list[HeldMonth]:
    """Every month of a series that has a file, by month and series."""
    return [HeldMonth(*row) for row in connection.execute(_HELD)]


def forget_files(connection: Connection) -> None:
    """Take it that no live month has a file: each is projected anew, or found to be there."""
    connection.execute("UPDATE trading.candle_months SET content_hash = NULL, rebuilt_hash = NULL WHERE state = 'live'")


@dataclass(frozen=True, slots=True)
class MonthSummary:
    """A month over all series: candles in PostgreSQL and in Parquet alone, and the size of its partition, if any."""

    series: int
    rows: int
    archived_rows: int
    bytes: int | None


def month_summaries(connection: Connection) -> dict[date, MonthSummary]:
    """Every month that has candles or a partition."""
    sizes = partition_bytes(connection)
    found = {
        month: MonthSummary(series, rows, archived_rows, sizes.get(month))
        for month, series, rows, archived_rows in connection.execute(_SUMMARIES)
    }
    return {month: MonthSummary(0, 0, 0, size) for month, size in sizes.items()} | found
