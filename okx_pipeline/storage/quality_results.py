"""Verdicts of the quality checks in PostgreSQL: the latest of each check on each series-day.

A check that had nothing to look at has no verdict: it is not judged, and never passed. How a verdict is reached stands
in the quality room.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from okx_pipeline.storage.database import Connection
from okx_pipeline.timeframes import Timeframe


class Severity(StrEnum):
    """How bad it is if an expectation fails."""

    CRITICAL = "critical"
    """The data is wrong."""
    WARNING = "warning"
    """A person should look; the exchange itself may be like that."""
    INFO = "info"
    """Good to know; the check passes."""


class Store(StrEnum):
    """Whose rows are judged."""

    POSTGRES = "postgres"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of a series-day.

    Parameters
    ----------
    check
        Name of the check.
    store
        Whose rows were judged.
    severity
        The worst that failed; None if nothing did.
    failed
        Names of the expectations that failed, worst first.
    observed
        ``unexpected``: number of rows by failed expectation; ``samples``: the first of them; ``notes``: what was not
        judged, and why. JSON, bounded.
    rows
        Candles that were judged.
    validated_at
        When they were read, by the database's clock.
    docs_page
        Path of its page below the Data Docs, with the check as its fragment.
    accepted
        Why somebody accepted what was found on the day as it is; then it is no error.
    """

    symbol: str
    timeframe: str
    day: date
    check: str
    store: Store
    severity: Severity | None
    failed: tuple[str, ...]
    observed: dict[str, Any]
    rows: int
    validated_at: datetime
    docs_page: str | None = None
    accepted: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing but infos failed."""
        return self.severity in (None, Severity.INFO)

    @property
    def is_error(self) -> bool:
        """Whether it failed at the level of an error that nobody has accepted."""
        return self.severity is Severity.CRITICAL and self.accepted is None


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A check that had nothing to look at on a series-day, and why; `read_at` is when that was found."""

    symbol: str
    timeframe: str
    day: date
    check: str
    store: Store
    reason: str
    read_at: datetime


@dataclass(frozen=True, slots=True)
class QualitySummary:
    """How the days of the ledger fared, all of them.

    Parameters
    ----------
    day, validated_at
        The newest day judged, and as of when something was judged last.
    series_days
        Series-days with a standing verdict.
    unjudged
        Closed series-days with candles that were not judged, or have changed since.
    with_errors, with_warnings
        Series-days whose worst standing verdict is an error that nobody has accepted, or less than that.
    """

    day: date
    validated_at: datetime
    series_days: int
    unjudged: int
    with_errors: int
    with_warnings: int


@dataclass(frozen=True, slots=True)
class DayVerdicts:
    """What a check says of a day: series judged, and of how many it warns and fails at the level of an error."""

    day: date
    check: str
    series: int
    warnings: int
    errors: int


# Rows are written in key order, so that two who validate at once never wait for each other in a circle; and a verdict
# on older rows never replaces one on newer.
_RECORD: Final[LiteralString] = """
INSERT INTO trading.quality_results AS known (
    symbol, timeframe, day, check_name, store, passed, severity, failed, observed, rows, validated_at, docs_page)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (symbol, timeframe, day, check_name, store) DO UPDATE SET
    passed = excluded.passed, severity = excluded.severity, failed = excluded.failed, observed = excluded.observed,
    rows = excluded.rows, validated_at = excluded.validated_at, docs_page = excluded.docs_page
WHERE excluded.validated_at >= known.validated_at
"""

_WITHDRAW: Final[LiteralString] = """
DELETE FROM trading.quality_results
WHERE symbol = %s AND timeframe = %s AND day = %s AND check_name = %s AND store = %s AND validated_at <= %s
"""

_LATEST: Final[LiteralString] = """
SELECT symbol, timeframe, day, check_name, store, severity, failed, observed, rows, validated_at, docs_page,
       accepted.reason
FROM trading.quality_results
LEFT JOIN (
    SELECT symbol, timeframe, day, reason FROM trading.accepted_findings
    JOIN trading.coverage USING (symbol, timeframe, day, content_hash)
) AS accepted USING (symbol, timeframe, day)
WHERE (%(symbols)s::text[] IS NULL OR symbol = ANY(%(symbols)s))
  AND (%(timeframes)s::text[] IS NULL OR timeframe = ANY(%(timeframes)s))
  AND day >= coalesce(%(start)s::date, '-infinity') AND day < coalesce(%(end)s::date, 'infinity')
  AND NOT (%(failed_only)s AND passed)
ORDER BY day, symbol, timeframe, check_name, store
"""

_SUMMARY: Final[LiteralString] = """
WITH newest AS (
    SELECT max(day) AS day, max(validated_at) AS validated_at FROM trading.quality_results
), ledger AS (
    SELECT count(*) FILTER (WHERE judged_at IS NOT NULL) AS judged,
           count(*) FILTER (WHERE judged_at IS NULL OR judged_at < counted_at) AS unjudged
    FROM trading.coverage WHERE content_hash IS NOT NULL AND present > 0
), failing AS (
    SELECT bool_or(severity = 'critical' AND accepted.reason IS NULL) AS is_error
    FROM trading.quality_results JOIN trading.coverage USING (symbol, timeframe, day)
    LEFT JOIN trading.accepted_findings AS accepted USING (symbol, timeframe, day, content_hash)
    WHERE NOT passed
    GROUP BY symbol, timeframe, day
)
SELECT newest.day, newest.validated_at, ledger.judged, ledger.unjudged,
       (SELECT count(*) FROM failing WHERE is_error), (SELECT count(*) FROM failing WHERE NOT is_error)
FROM newest, ledger WHERE newest.day IS NOT NULL
"""

_BY_DAY: Final[LiteralString] = """
SELECT day, check_name, count(*), count(*) FILTER (WHERE warned AND NOT error), count(*) FILTER (WHERE error)
FROM (
    SELECT day, check_name, bool_or(severity IS NOT DISTINCT FROM 'critical') AS error,
           bool_or(severity IS NOT DISTINCT FROM 'warning') AS warned
    FROM trading.quality_results
    WHERE day >= %s AND day < %s
    GROUP BY day, check_name, symbol, timeframe
) AS judged
GROUP BY day, check_name
ORDER BY day, check_name
"""


# A verdict is dated when its rows are read and committed some seconds later.
_JUDGED_AFTER: Final[LiteralString] = """
SELECT symbol, day, max(validated_at) AS judged_at FROM trading.quality_results
WHERE validated_at > %s AND validated_at < clock_timestamp() - interval '2 minutes'
GROUP BY symbol, day
ORDER BY judged_at
FETCH FIRST %s ROWS WITH TIES
"""


_UNJUDGED: Final[LiteralString] = """
SELECT day, count(*) FROM trading.coverage
WHERE content_hash IS NOT NULL AND (judged_at IS NULL OR judged_at < counted_at) AND present > 0
  AND day >= %s AND day < %s
GROUP BY day ORDER BY day
"""


def record(connection: Connection, verdicts: Iterable[Verdict], unjudged: Iterable[Unjudged] = ()) -> None:
    """Write down `verdicts`, each in place of an older one of the same check on the same series-day and store.

    An older verdict of what is `unjudged` is removed.
    """
    ordered = sorted(verdicts, key=lambda each: (each.symbol, each.timeframe, each.day, each.check, each.store))
    rows = [
        (
            *(each.symbol, each.timeframe, each.day, each.check, each.store, each.passed, each.severity),
            *(list(each.failed), Jsonb(each.observed), each.rows, each.validated_at, each.docs_page),
        )
        for each in ordered
    ]
    gone = sorted((each.symbol, each.timeframe, each.day, each.check, each.store, each.read_at) for each in unjudged)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(_RECORD, rows)
        cursor.executemany(_WITHDRAW, gone)


def latest(
    connection: Connection,
    *,
    symbols: Sequence[str] = (),
    timeframes: Sequence[Timeframe] = (),
    start: date | None = None,
    end: date | None = None,
    failed_only: bool = False,
) -> list[Verdict]:
    """The verdicts on the days [start, end), by day and series; filters may be empty.

    Parameters
    ----------
    failed_only
        Leave out those that passed.
    """
    parameters = {
        "symbols": list(symbols) or None,
        "timeframes": [timeframe.name for timeframe in timeframes] or None,
        "start": start,
        "end": end,
        "failed_only": failed_only,
    }
    return [_verdict(*row) for row in connection.execute(_LATEST, parameters)]


def _verdict(
    symbol: str,
    timeframe: str,
    day: date,
    check: str,
    store: str,
    severity: str | None,
    failed: Sequence[str],
    *rest: Any,
) -> Verdict:
    worst = Severity(severity) if severity else None
    return Verdict(symbol, timeframe, day, check, Store(store), worst, tuple(failed), *rest)


def summary(connection: Connection) -> QualitySummary | None:
    """How everything that was judged fared; None if nothing ever was."""
    found = connection.execute(_SUMMARY).fetchone()
    return QualitySummary(*found) if found else None


def newest_day(connection: Connection) -> date | None:
    """The newest day that was judged; None if none was."""
    found = connection.execute("SELECT max(day) FROM trading.quality_results").fetchone()
    return found[0] if found else None


def last_judged_at(connection: Connection) -> datetime | None:
    """As of when something was judged last; None if nothing ever was."""
    found = connection.execute("SELECT max(validated_at) FROM trading.quality_results").fetchone()
    return found[0] if found else None


def judged_after(connection: Connection, after: datetime, most: int) -> list[tuple[str, date, datetime]]:
    """Symbol, day and time of the verdicts reached after `after` and two minutes ago or earlier, oldest first.

    At most `most` of them, and those of the same time as the last. By the database's clock.
    """
    return [(symbol, day, at) for symbol, day, at in connection.execute(_JUDGED_AFTER, (after, most))]


def unjudged_by_day(connection: Connection, start: date, end: date) -> dict[date, int]:
    """Series of the closed days [start, end) that the checks have not judged as they are now, by day."""
    return dict(connection.execute(_UNJUDGED, (start, end)).fetchall())


def verdicts_by_day(connection: Connection, start: date, end: date) -> list[DayVerdicts]:
    """How the days [start, end) fared, by day and check; of both stores the worse counts."""
    return [DayVerdicts(*row) for row in connection.execute(_BY_DAY, (start, end))]


def forget_pages(connection: Connection, pages: Sequence[str]) -> None:
    """Take back the links to pages of the Data Docs that are no more; `pages` without fragments."""
    connection.execute(
        "UPDATE trading.quality_results SET docs_page = NULL WHERE split_part(docs_page, '#', 1) = ANY(%s)",
        (list(pages),),
    )
