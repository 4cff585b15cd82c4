"""The sidecar in PostgreSQL: its lock, heartbeat and counters, how far each series is, and requests to start it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, LiteralString

from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.process_lock import ProcessLock
from okx_pipeline.timeframes import parse_timeframe

_OFFSETS: Final[LiteralString] = """
SELECT symbol, timeframe, through_ms FROM trading.stream_offsets
JOIN unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe) USING (symbol, timeframe)
"""

_SAVE: Final[LiteralString] = """
INSERT INTO trading.stream_offsets AS known (symbol, timeframe, through_ms)
SELECT symbol, timeframe, through_ms FROM unnest(%s::text[], %s::text[], %s::bigint[])
    AS moved (symbol, timeframe, through_ms)
ORDER BY symbol, timeframe
ON CONFLICT (symbol, timeframe) DO UPDATE SET through_ms = excluded.through_ms, moved_at = clock_timestamp()
WHERE known.through_ms < excluded.through_ms
"""

_BEAT: Final[LiteralString] = """
INSERT INTO trading.stream_status AS known (sidecar, state, exchange_ms, counters, refused, maintenance)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (sidecar) DO UPDATE SET state = excluded.state, heartbeat_at = clock_timestamp(),
    exchange_ms = excluded.exchange_ms, counters = excluded.counters, refused = excluded.refused,
    maintenance = excluded.maintenance
"""

_FORGET: Final[LiteralString] = """
DELETE FROM trading.stream_status WHERE heartbeat_at < clock_timestamp() - interval '7 days'
"""

_LATEST: Final[LiteralString] = """
SELECT sidecar, state, started_at, heartbeat_at,
       extract(epoch FROM clock_timestamp() - heartbeat_at)::float8, exchange_ms, counters, refused, maintenance
FROM trading.stream_status WHERE state <> 'standby'
ORDER BY heartbeat_at DESC LIMIT 1
"""

_NEWEST: Final[LiteralString] = """
SELECT known.timeframe, (
    SELECT max(timestamp_ms) FROM trading.candlesticks AS held
    WHERE held.symbol = known.symbol AND held.timeframe = known.timeframe)
FROM trading.subscriptions AS known
"""

_ASK: Final[LiteralString] = """
INSERT INTO trading.store_facts (name, value) VALUES ('sidecar_asked_for_at', clock_timestamp()::text)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""

_ASKED: Final[LiteralString] = """
SELECT extract(epoch FROM clock_timestamp() - value::timestamptz)::float8
FROM trading.store_facts WHERE name = 'sidecar_asked_for_at'
"""


@dataclass(frozen=True, slots=True)
class SidecarStatus:
    """The sidecar that beat last.

    Parameters
    ----------
    age_s
        Seconds since its last heartbeat.
    exchange_ms
        The exchange's time at that heartbeat.
    counters, refused
        What it counted since it started, and the series OKX refuses, with why.
    maintenance
        Windows OKX has announced: {"title", "state", "begin_ms", "end_ms", "stops_candles"}.
    """

    sidecar: str
    state: str
    started_at: datetime
    heartbeat_at: datetime
    age_s: float
    exchange_ms: int | None
    counters: dict[str, Any]
    refused: dict[str, str]
    maintenance: list[dict[str, Any]]


class SidecarLock(ProcessLock):
    """The lock of the one sidecar that streams into a database.

    It saves work only: landing keeps two sidecars at once from doing harm.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database, "sidecar")


def stream_offsets(connection: Connection, series: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """How far each of `series` (symbol, timeframe) has come, where it was ever streamed: see the table."""
    wanted = list(series)
    parameters = ([symbol for symbol, _ in wanted], [timeframe for _, timeframe in wanted])
    return {(symbol, name): through_ms for symbol, name, through_ms in connection.execute(_OFFSETS, parameters)}


def save_offsets(connection: Connection, offsets: Mapping[tuple[str, str], int]) -> None:
    """Note how far series have come; never backwards, whoever else notes it too."""
    if offsets:
        symbols, timeframes = [symbol for symbol, _ in offsets], [timeframe for _, timeframe in offsets]
        connection.execute(_SAVE, (symbols, timeframes, list(offsets.values())))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a sidecar says of itself; see `SidecarStatus`."""

    sidecar: str
    state: str
    exchange_ms: int | None = None
    counters: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    maintenance: Sequence[Mapping[str, Any]] = ()


def beat(connection: Connection, heartbeat: Heartbeat) -> None:
    """Write a heartbeat."""
    parts = (dict(heartbeat.counters), dict(heartbeat.refused), list(heartbeat.maintenance))
    parameters = (heartbeat.sidecar, heartbeat.state, heartbeat.exchange_ms, *map(json.dumps, parts))
    connection.execute(_BEAT, parameters)
    if heartbeat.state == "starting":
        connection.execute(_FORGET)


def sidecar_status(connection: Connection) -> SidecarStatus | None:
    """The sidecar that beat last; None if none ever did."""
    found = connection.execute(_LATEST).fetchone()
    return SidecarStatus(*found) if found else None


def last_exchange_ms(connection: Connection) -> int | None:
    """The latest moment of the exchange that the store knows of; None if it knows none.

    It is the time of the last heartbeat, or the close of the newest candle, which may have landed after that.
    """
    beaten_ms = one(connection, "SELECT max(exchange_ms) FROM trading.stream_status")
    closes = [
        parse_timeframe(timeframe).close_of(open_ms)
        for timeframe, open_ms in connection.execute(_NEWEST)
        if open_ms is not None
    ]
    return max([*closes, *([] if beaten_ms is None else [beaten_ms])], default=None)


def ask_for_sidecar(connection: Connection) -> None:
    """Leave word that the sidecar is to be started; whoever supervises it obeys."""
    connection.execute(_ASK)


def sidecar_asked_for_s(connection: Connection) -> float | None:
    """Seconds since somebody asked for the sidecar to be started; None if nobody did."""
    found = connection.execute(_ASKED).fetchone()
    return float(found[0]) if found else None
