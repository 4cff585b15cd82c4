"""Incidents in PostgreSQL: which are open, and what each sink was told of them.

What an incident is, and how a sink is told, stand in the alerts room; the rows that incidents are found in, in
`alert_sources`.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, LiteralString

from okx_pipeline.storage.database import AsyncConnection, Connection, lock_key

Severity = Literal["critical", "warning"]
State = Literal["open", "resolved"]

LONGEST_TEXT: Final = 1_000
KEPT_DAYS: Final = 90
STALE_HOURS: Final = 24
"""A sink that was away for longer is not told of what is over by now."""

RETRY_S: Final = 30
LONGEST_RETRY_S: Final = 900

_SEE: Final[LiteralString] = """
INSERT INTO trading.alerts AS known (what, key, symbol, severity, text, announce_at)
SELECT %s, seen.key, seen.symbol, seen.severity, seen.text, clock_timestamp() + seen.patience_s * interval '1 second'
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::float8[])
    AS seen (key, symbol, severity, text, patience_s)
ON CONFLICT (key) WHERE resolved_at IS NULL DO UPDATE SET
    last_seen_at = excluded.last_seen_at, text = excluded.text, severity = excluded.severity
"""

_FORGET_UNANNOUNCED: Final[LiteralString] = """
DELETE FROM trading.alerts
WHERE what = %s AND resolved_at IS NULL AND key <> ALL(%s) AND announce_at > clock_timestamp()
"""

_RESOLVE: Final[LiteralString] = """
UPDATE trading.alerts SET resolved_at = clock_timestamp() WHERE what = %s AND resolved_at IS NULL AND key <> ALL(%s)
"""

_ENLIST: Final[LiteralString] = """
INSERT INTO trading.alert_deliveries (alert, sink)
SELECT alerts.id, sinks.name FROM trading.alerts, unnest(%s::text[]) AS sinks (name)
WHERE alerts.what = %s AND alerts.resolved_at IS NULL
ON CONFLICT (alert, sink) DO NOTHING
"""

_OPEN: Final[LiteralString] = """
SELECT key, text, symbol, severity, extract(epoch FROM announce_at - opened_at)::float8
FROM trading.alerts WHERE resolved_at IS NULL AND what = %s
ORDER BY id
"""

_NEXT: Final[LiteralString] = """
SELECT alert.id, alert.what, alert.key, alert.symbol, alert.severity, alert.text, alert.opened_at,
       CASE WHEN delivery.opened_sent_at IS NOT NULL THEN alert.resolved_at END
FROM trading.alert_deliveries AS delivery
JOIN trading.alerts AS alert ON alert.id = delivery.alert
WHERE delivery.sink = %s AND delivery.resolved_sent_at IS NULL AND delivery.try_again_at <= clock_timestamp()
  AND alert.announce_at <= clock_timestamp()
  AND CASE WHEN delivery.opened_sent_at IS NOT NULL THEN alert.resolved_at IS NOT NULL
           ELSE coalesce(alert.resolved_at, 'infinity') > clock_timestamp() - %s * interval '1 hour' END
ORDER BY CASE WHEN delivery.opened_sent_at IS NULL THEN alert.opened_at ELSE alert.resolved_at END, alert.id
LIMIT 1
"""

_DELIVERED: Final[LiteralString] = """
UPDATE trading.alert_deliveries SET
    opened_sent_at = coalesce(opened_sent_at, clock_timestamp()),
    resolved_sent_at = CASE WHEN %(state)s = 'resolved' THEN clock_timestamp() END,
    attempts = 0, try_again_at = '-infinity', problem = NULL
WHERE alert = %(incident)s AND sink = %(sink)s
"""

_UNDELIVERED: Final[LiteralString] = """
UPDATE trading.alert_deliveries SET
    attempts = attempts + 1, problem = %(problem)s,
    try_again_at = clock_timestamp()
        + least(%(retry_s)s * 2.0 ^ least(attempts, 20), %(longest_s)s) * interval '1 second'
WHERE alert = %(incident)s AND sink = %(sink)s
"""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that is wrong now.

    Parameters
    ----------
    subject
        What it is about, by which it is known again; empty where there is only one of its kind.
    text
        What is wrong, in one line.
    symbol
        The instrument concerned, if it is one.
    patience_s
        How long it has to last before anybody is told.
    """

    subject: str
    text: str
    symbol: str | None = None
    severity: Severity = "critical"
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Message:
    """What a sink is to be told next: that an incident is open, or that it is resolved.

    Parameters
    ----------
    incident
        Number of the incident: a message that is sent twice has the same number and state.
    at
        When it opened or was resolved, by the database's clock; of the database's absence, by the sidecar's.
    """

    incident: int
    what: str
    key: str
    symbol: str | None
    severity: Severity
    text: str
    state: State
    at: datetime


@contextmanager
def looking(connection: Connection, what: str) -> Iterator[None]:
    """A transaction in which nobody else looks at incidents of a kind, so that none is resolved by an older look."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key("alerts", what),))
        yield


def see(connection: Connection, what: str, incidents: Sequence[Incident], sinks: Collection[str]) -> None:
    """Write down the incidents of a kind that are true now: new ones open, missing ones are resolved.

    To be called while `looking`.

    Parameters
    ----------
    sinks
        Names of those who are to be told of what is open.
    """
    by_key = {_key(what, each.subject): each for each in incidents}
    seen = by_key.values()
    connection.execute(
        _SEE,
        (
            what,
            list(by_key),
            [each.symbol for each in seen],
            [each.severity for each in seen],
            [each.text[:LONGEST_TEXT] for each in seen],
            [each.patience_s for each in seen],
        ),
    )
    connection.execute(_FORGET_UNANNOUNCED, (what, list(by_key)))
    connection.execute(_RESOLVE, (what, list(by_key)))
    connection.execute(_ENLIST, (list(sinks), what))


def open_incidents(connection: Connection, what: str) -> list[Incident]:
    """The incidents of a kind that are open, oldest first."""
    found = connection.execute(_OPEN, (what,)).fetchall()
    return [Incident(key.partition(":")[2], *rest) for key, *rest in found]


def forget_old(connection: Connection) -> None:
    """Let go of what was resolved long ago."""
    connection.execute(
        "DELETE FROM trading.alerts WHERE resolved_at < clock_timestamp() - %s * interval '1 day'", (KEPT_DAYS,)
    )


@asynccontextmanager
async def claimed_sink(connection: AsyncConnection, sink: str) -> AsyncIterator[bool]:
    """Be the only one to tell a sink while the block runs; gives False if somebody else is. A dead one lets go."""
    key = (lock_key("alert sink", sink),)
    row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", key)).fetchone()
    assert row is not None
    try:
        yield row[0]
    finally:
        # Not left to the end of the session, which the server may notice after the next round has begun.
        if row[0] and not connection.broken:
            await connection.execute("SELECT pg_advisory_unlock(%s)", key)


async def next_message(connection: AsyncConnection, sink: str) -> Message | None:
    """The oldest message that is due to a sink; None if it knows everything, or is to be left alone for now."""
    found = await (await connection.execute(_NEXT, (sink, STALE_HOURS))).fetchone()
    if found is None:
        return None
    incident, what, key, symbol, severity, text, opened_at, resolved_at = found
    state: State = "open" if resolved_at is None else "resolved"
    return Message(incident, what, key, symbol, severity, text, state, resolved_at or opened_at)


async def note_delivered(connection: AsyncConnection, sink: str, message: Message) -> None:
    """A sink has taken a message."""
    await connection.execute(_DELIVERED, {"incident": message.incident, "sink": sink, "state": message.state})


async def note_undelivered(connection: AsyncConnection, sink: str, message: Message, problem: str) -> None:
    """A sink has not taken a message: it is tried again, the later the more often that happened."""
    await connection.execute(
        _UNDELIVERED,
        {
            "incident": message.incident,
            "sink": sink,
            "problem": problem,
            "retry_s": RETRY_S,
            "longest_s": LONGEST_RETRY_S,
        },
    )


def _key(what: str, subject: str) -> str:
    return f"{what}:{subject}" if subject else what
