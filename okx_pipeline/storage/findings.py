"""Findings: everything that the store knows to be wrong with the days that are wanted or held, however long ago.

A finding stands until it is repaired or somebody accepts it. An accepted one stays listed, and holds for as long as its
day has the same content. How findings read, and what repairs them, stands in the monitor room.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final, LiteralString

from okx_pipeline.errors import UsageError, command
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.partitions import DetachedMonth, detached_months

MOST_LISTED: Final = 1_000
"""Findings of a kind that are listed; the counts are of all."""

# Days that REST was not read for are history on its way, or today.
_MISSING: Final[LiteralString] = """
SELECT known.symbol, known.timeframe, known.day, known.missing, accepted.reason
FROM trading.coverage AS known
LEFT JOIN trading.accepted_findings AS accepted
    ON accepted.symbol = known.symbol AND accepted.timeframe = known.timeframe AND accepted.day = known.day
   AND accepted.content_hash = known.content_hash
WHERE known.missing > 0 AND known.read_at IS NOT NULL
ORDER BY known.day DESC, known.symbol, known.timeframe
"""

_FAILING: Final[LiteralString] = """
SELECT verdict.symbol, verdict.timeframe, verdict.day, verdict.check_name, verdict.store, verdict.failed,
       verdict.docs_page, accepted.reason
FROM trading.quality_results AS verdict
JOIN trading.coverage AS known USING (symbol, timeframe, day)
LEFT JOIN trading.accepted_findings AS accepted
    ON accepted.symbol = known.symbol AND accepted.timeframe = known.timeframe AND accepted.day = known.day
   AND accepted.content_hash = known.content_hash
WHERE NOT verdict.passed AND verdict.severity = 'critical'
ORDER BY verdict.day DESC, verdict.symbol, verdict.timeframe, verdict.check_name, verdict.store
"""

_CHANGED: Final[LiteralString] = """
SELECT known.symbol, known.timeframe, known.day, accepted.reason
FROM trading.landing_marks AS mark
JOIN trading.coverage AS known USING (symbol, timeframe, day)
LEFT JOIN trading.accepted_findings AS accepted
    ON accepted.symbol = known.symbol AND accepted.timeframe = known.timeframe AND accepted.day = known.day
   AND accepted.content_hash = known.content_hash
WHERE mark.changed_at IS NOT NULL AND known.content_hash IS NOT NULL AND known.wanted
ORDER BY known.day DESC, known.symbol, known.timeframe
"""

_DAMAGED: Final[LiteralString] = """
SELECT month.symbol, month.timeframe, month.month, month.state = 'archived', month.damage, (
    SELECT min(accepted.reason) FROM trading.accepted_findings AS accepted
    JOIN trading.coverage AS known USING (symbol, timeframe, day, content_hash)
    WHERE accepted.symbol = month.symbol AND accepted.timeframe = month.timeframe
      AND accepted.day >= month.month AND accepted.day < month.month + interval '1 month'
      AND accepted.accepted_at > month.damaged_at
)
FROM trading.candle_months AS month WHERE month.damage IS NOT NULL
ORDER BY month.month DESC, month.symbol, month.timeframe
"""

_INCIDENTS: Final[LiteralString] = """
SELECT symbol, text FROM trading.alerts
WHERE resolved_at IS NULL AND announce_at <= clock_timestamp() AND severity = 'critical' AND what <> ALL(%s)
  AND NOT (what = 'failed_check' AND key !~ '^failed_check:okx/')
ORDER BY id
"""

_SEEN_ELSEWHERE: Final = ["open_gaps", "stale_stream", "detached_partition", "damaged_archive"]
"""Kinds of incident that are read here from the store itself, and would be told twice."""

_ACCEPT: Final[LiteralString] = """
INSERT INTO trading.accepted_findings AS known (symbol, timeframe, day, reason, content_hash)
SELECT symbol, timeframe, day, %s, content_hash FROM trading.coverage
WHERE symbol = %s AND timeframe = %s AND day = %s AND content_hash IS NOT NULL
ON CONFLICT (symbol, timeframe, day) DO UPDATE SET
    reason = excluded.reason, content_hash = excluded.content_hash, accepted_at = excluded.accepted_at
"""

_ACCEPTED: Final[LiteralString] = """
SELECT accepted.symbol, accepted.timeframe, accepted.day, accepted.reason, accepted.accepted_at,
       accepted.content_hash IS NOT DISTINCT FROM known.content_hash
FROM trading.accepted_findings AS accepted
LEFT JOIN trading.coverage AS known USING (symbol, timeframe, day)
ORDER BY accepted.day DESC, accepted.symbol, accepted.timeframe
"""


@dataclass(frozen=True, slots=True)
class MissingCandles:
    """A series-day that lacks candles though REST was read for it; `accepted` says why somebody accepted that."""

    symbol: str
    timeframe: str
    day: date
    missing: int
    accepted: str | None


@dataclass(frozen=True, slots=True)
class FailingCheck:
    """A check whose standing verdict on a series-day is an error; `page` is below the Data Docs."""

    symbol: str
    timeframe: str
    day: date
    check: str
    store: str
    failed: list[str]
    page: str | None
    accepted: str | None


@dataclass(frozen=True, slots=True)
class ChangedDay:
    """A series-day whose values somebody changed by hand, until REST is read for it again."""

    symbol: str
    timeframe: str
    day: date
    accepted: str | None


@dataclass(frozen=True, slots=True)
class DamagedMonth:
    """A series-month whose Parquet file is damaged, by its first day."""

    symbol: str
    timeframe: str
    month: date
    archived: bool
    damage: str
    accepted: str | None


@dataclass(frozen=True, slots=True)
class OpenIncident:
    """An incident that is open, critical and of no other kind of finding."""

    symbol: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that is known to be wrong, the newest day first.

    Parameters
    ----------
    detached
        Months whose partition somebody has detached.
    missing, checks, changed, files, incidents
        What nobody has accepted, `MOST_LISTED` of each at the most.
    missing_candles, missing_days, failing_days, failing_checks, changed_days, damaged
        How much of it there is in all: candles, series-days with missing ones, series-days and checks that fail,
        series-days changed by hand, files.
    accepted
        How many findings are accepted.
    series
        Every (symbol, timeframe) that has a finding nobody has accepted.
    """

    missing: list[MissingCandles] = field(default_factory=list)
    checks: list[FailingCheck] = field(default_factory=list)
    changed: list[ChangedDay] = field(default_factory=list)
    files: list[DamagedMonth] = field(default_factory=list)
    incidents: list[OpenIncident] = field(default_factory=list)
    missing_candles: int = 0
    missing_days: int = 0
    failing_days: int = 0
    failing_checks: int = 0
    changed_days: int = 0
    damaged: int = 0
    accepted: int = 0
    series: frozenset[tuple[str, str]] = frozenset()
    detached: list[DetachedMonth] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A series-day whose findings somebody accepted; `holds` while the day is what it was."""

    symbol: str
    timeframe: str
    day: date
    reason: str
    accepted_at: datetime
    holds: bool


def findings(connection: Connection) -> Findings:
    """Everything that the store knows to be wrong."""
    missing = [MissingCandles(*row) for row in connection.execute(_MISSING)]
    checks = [FailingCheck(*row) for row in connection.execute(_FAILING)]
    changed = [ChangedDay(*row) for row in connection.execute(_CHANGED)]
    files = [DamagedMonth(*row) for row in connection.execute(_DAMAGED)]
    incidents = [OpenIncident(*row) for row in connection.execute(_INCIDENTS, (_SEEN_ELSEWHERE,))]
    all_found: list[MissingCandles | FailingCheck | ChangedDay | DamagedMonth] = [*missing, *checks, *changed, *files]
    lacking = [each for each in missing if each.accepted is None]
    failing = [each for each in checks if each.accepted is None]
    touched = [each for each in changed if each.accepted is None]
    damaged = [each for each in files if each.accepted is None]
    return Findings(
        lacking[:MOST_LISTED],
        failing[:MOST_LISTED],
        touched[:MOST_LISTED],
        damaged[:MOST_LISTED],
        incidents[:MOST_LISTED],
        missing_candles=sum(each.missing for each in lacking),
        missing_days=len(lacking),
        failing_days=len({(each.symbol, each.timeframe, each.day) for each in failing}),
        failing_checks=len(failing),
        changed_days=len(touched),
        damaged=len(damaged),
        accepted=sum(each.accepted is not None for each in all_found),
        series=frozenset((each.symbol, each.timeframe) for each in all_found if each.accepted is None),
        detached=detached_months(connection),
    )


def accept(connection: Connection, key: SeriesDay, reason: str) -> None:
    """Take note of the findings on a closed day, until its content changes.

    Raises
    ------
    UsageError
        If the ledger has no such day, or it is not over.
    """
    if not connection.execute(_ACCEPT, (reason, *key)).rowcount:
        raise UsageError(f"{key.symbol} {key.timeframe} has no closed day {key.day}; see: {command('coverage')}")


def accepted_findings(connection: Connection) -> list[Accepted]:
    """What was accepted, the newest day first; of a day that has changed since, too."""
    return [Accepted(*row) for row in connection.execute(_ACCEPTED)]


def accepted_days(connection: Connection, days: Collection[SeriesDay] = ()) -> dict[SeriesDay, str]:
    """Why the findings of each of `days` are accepted as they are now; of all days, where none is named."""
    holding = {
        SeriesDay(each.symbol, each.timeframe, each.day): each.reason
        for each in accepted_findings(connection)
        if each.holds
    }
    return {key: reason for key, reason in holding.items() if not days or key in days}
