"""The rows that incidents are found in: gaps, quarantined rows, verdicts, and when Dagster was last heard of.

What is made of them stands in the alerts room.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection

# A closed day that was never read from REST is history still to be fetched, which is progress.
_OPEN_GAPS: Final[LiteralString] = """
SELECT gap.symbol, array_agg(DISTINCT gap.timeframe), count(*), sum(gap.candles)::bigint
FROM trading.candle_gaps AS gap
WHERE gap.status = 'open' AND gap.detected_at <= clock_timestamp() - %s * interval '1 hour'
  AND NOT EXISTS (
      SELECT FROM trading.coverage AS day
      WHERE day.symbol = gap.symbol AND day.timeframe = gap.timeframe
        AND day.day BETWEEN date '1970-01-01' + (gap.first_ms / 86400000)::int
                        AND date '1970-01-01' + (gap.last_ms / 86400000)::int
        AND day.read_at IS NULL AND day.content_hash IS NOT NULL
  )
  AND NOT EXISTS (
      SELECT FROM trading.accepted_findings AS accepted
      JOIN trading.coverage AS day USING (symbol, timeframe, day, content_hash)
      WHERE accepted.symbol = gap.symbol AND accepted.timeframe = gap.timeframe
        AND accepted.day = date '1970-01-01' + (gap.first_ms / 86400000)::int
  )
GROUP BY gap.symbol
ORDER BY gap.symbol
"""

_QUARANTINED: Final[LiteralString] = """
SELECT symbol, coalesce(array_agg(DISTINCT timeframe) FILTER (WHERE timeframe IS NOT NULL), '{}'), count(*), min(reason)
FROM trading.candlesticks_quarantine
WHERE received_at > clock_timestamp() - %s * interval '1 hour'
GROUP BY symbol
ORDER BY symbol
"""

_FAILED_CHECKS: Final[LiteralString] = """
SELECT check_name, symbol, array_agg(DISTINCT timeframe), count(DISTINCT day), max(day)
FROM trading.quality_results
LEFT JOIN (
    SELECT symbol, timeframe, day, reason FROM trading.accepted_findings
    JOIN trading.coverage USING (symbol, timeframe, day, content_hash)
) AS accepted USING (symbol, timeframe, day)
WHERE NOT passed AND severity = 'critical' AND accepted.reason IS NULL
GROUP BY check_name, symbol
ORDER BY check_name, symbol
"""

_NOTE_DAEMON: Final[LiteralString] = """
INSERT INTO trading.store_facts (name, value) VALUES ('daemon_seen_at', clock_timestamp()::text)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""

_DAEMON_SILENT: Final[LiteralString] = """
SELECT extract(epoch FROM clock_timestamp() - value::timestamptz)::float8
FROM trading.store_facts WHERE name = 'daemon_seen_at'
"""


@dataclass(frozen=True, slots=True)
class OpenGaps:
    """The gaps of a symbol that have been open for long: in which timeframes, how many, of how many candles."""

    symbol: str
    timeframes: list[str]
    gaps: int
    candles: int


@dataclass(frozen=True, slots=True)
class QuarantinedRows:
    """The rows of a symbol that were lately quarantined: in which timeframes, how many, and one of the reasons.

    Without a symbol: the frames that could not be read.
    """

    symbol: str | None
    timeframes: list[str]
    rows: int
    reason: str


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check that fails at the level of an error for days of a symbol: how many, and the newest of them."""

    check: str
    symbol: str
    timeframes: list[str]
    days: int
    newest: date


def gaps_open_for(connection: Connection, hours: int) -> list[OpenGaps]:
    """By symbol, the gaps detected so long ago and still open; those of days that are still to be fetched are not."""
    return [OpenGaps(*row) for row in connection.execute(_OPEN_GAPS, (hours,))]


def quarantined_within(connection: Connection, hours: int) -> list[QuarantinedRows]:
    """By symbol, the rows quarantined in the last `hours`."""
    return [QuarantinedRows(*row) for row in connection.execute(_QUARANTINED, (hours,))]


def failed_checks(connection: Connection) -> list[FailedCheck]:
    """The checks whose latest verdict on some day is an error, by check and symbol."""
    return [FailedCheck(*row) for row in connection.execute(_FAILED_CHECKS)]


def judged_checks(connection: Connection) -> set[str]:
    """Names of the checks that have verdicts by the day."""
    return {name for (name,) in connection.execute("SELECT DISTINCT check_name FROM trading.quality_results")}


def note_daemon(connection: Connection) -> None:
    """Dagster's daemon is there: one of its sensors ticks."""
    connection.execute(_NOTE_DAEMON)


def daemon_silent_s(connection: Connection) -> float | None:
    """Seconds since Dagster's daemon was last heard of; None if it never was."""
    found = connection.execute(_DAEMON_SILENT).fetchone()
    return float(found[0]) if found else None
