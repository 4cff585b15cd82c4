"""What only a process beside Dagster can tell: that Dagster's daemon is silent, or the database, in which all others
keep what is to be told, out of reach; and, to the outside, that we are not.

Whatever goes wrong here is counted, and never a matter of the stream's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Final

from okx_pipeline.alerts.delivery import deliver
from okx_pipeline.alerts.incidents import Source, look
from okx_pipeline.alerts.outbound import Outbound, UndeliveredError
from okx_pipeline.alerts.sinks import Sink, sinks_of
from okx_pipeline.errors import PipelineError
from okx_pipeline.settings import Settings
from okx_pipeline.storage.alert_sources import daemon_silent_s
from okx_pipeline.storage.alerts import Incident, Message, State, open_incidents
from okx_pipeline.storage.database import Connection, Database, DatabaseError, StorageError
from okx_pipeline.stream.counters import Counters
from okx_pipeline.stream.health import stream_health

WHAT: Final = "silent_daemon"
AWAY: Final = "database_away"

AWAY_AFTER_S: Final = 120.0
"""A server that is restarted is back by then."""

SILENT_AFTER_S: Final = 300.0
"""The sensor of alerts ticks every 60 s; a daemon that starts takes a minute to."""

LOOK_EVERY_S: Final = 60.0
PING_EVERY_S: Final = 60.0
UNSOUND_S: Final = 5.0
"""How soon a stream that was not sound is looked at again."""

AFTER_FAILURE_S: Final = 15.0


@dataclass(slots=True)
class _Absence:
    """The database is out of reach: since when, by our clock and the monotonic one, why, and who was told."""

    at: datetime
    since_s: float
    problem: str
    told: set[str] = field(default_factory=set)


class Watch:
    """Watches over Dagster's daemon, and pings the dead man's URL while the stream is sound.

    Parameters
    ----------
    settings
        Who is told of incidents, and the URL.
    database
        The store's database.
    counters
        Where what goes wrong here is counted.
    silent_after_s
        So long after the daemon was last heard of, or after this watch began, it counts as silent.
    """

    def __init__(
        self, settings: Settings, database: Database, counters: Counters, *, silent_after_s: float = SILENT_AFTER_S
    ) -> None:
        self._database = database
        self._counters = counters
        self._silent_after_s = silent_after_s
        self._began_s = monotonic()
        self._sinks = sinks_of(settings)
        self._absence: _Absence | None = None
        self._dead_man = settings.dead_man_url
        self._outbound = None if settings.dead_man_url is None else Outbound(settings)

    async def run(self) -> None:
        """Watch until cancelled; ends at once if nobody is to be told of anything."""
        async with asyncio.TaskGroup() as group:
            if self._sinks:
                group.create_task(self._for_ever(self.look))
            if self._dead_man is not None:
                group.create_task(self._for_ever(self.ping))

    async def _for_ever(self, work: Callable[[], Awaitable[float]]) -> None:
        while True:
            pause_s = AFTER_FAILURE_S
            try:
                pause_s = await work()
            except (PipelineError, DatabaseError) as problem:
                self._counters.wrong("watch failed", str(problem).partition("\n")[0])
            except Exception as problem:  # noqa: BLE001  # whatever it is, it must not end the stream
                # By its name: what it says may repeat an address that holds a secret.
                self._counters.wrong("watch failed", type(problem).__name__)
            await asyncio.sleep(pause_s)

    async def look(self) -> float:
        """Look whether the daemon is silent, and tell who is to be told; returns when to look again, in seconds."""
        try:
            await asyncio.to_thread(self._look)
        except StorageError as problem:
            # It cannot be connected to: whatever else a query may fail of is no absence.
            await self._tell_of_absence(str(problem).partition("\n")[0])
            raise
        await self._tell_of_return()
        for each in await deliver(self._database, self._sinks):
            self._counters.count("alerts sent", each.messages)
            if each.problem is not None:
                self._counters.wrong("alert not sent", str(each))
        return LOOK_EVERY_S

    async def ping(self) -> float:
        """Ping the dead man's URL if the stream is sound; returns when to do so again, in seconds."""
        assert self._outbound is not None
        assert self._dead_man is not None
        if not await asyncio.to_thread(self._is_sound):
            return UNSOUND_S
        await self._outbound.ask("GET", self._dead_man)
        self._counters.count("pings")
        return PING_EVERY_S

    async def _tell_of_absence(self, problem: str) -> None:
        if self._absence is None:
            self._absence = _Absence(datetime.now(UTC), monotonic(), problem)
        if monotonic() - self._absence.since_s >= AWAY_AFTER_S:
            text = f"the database has been out of reach for minutes, so that nothing lands: {self._absence.problem}"
            for sink in self._sinks:
                if sink.name not in self._absence.told and await self._tells(sink, "open", text, self._absence.at):
                    self._absence.told.add(sink.name)

    async def _tell_of_return(self) -> None:
        if self._absence is None:
            return
        text = "the database is there again, and what was missed is asked for"
        for sink in self._sinks:
            if sink.name in self._absence.told and await self._tells(sink, "resolved", text, datetime.now(UTC)):
                self._absence.told.remove(sink.name)
        if not self._absence.told:
            self._absence = None

    async def _tells(self, sink: Sink, state: State, text: str, at: datetime) -> bool:
        """Tell a sink of the absence, by ourselves; returns whether it has taken it."""
        assert self._absence is not None
        number = int(self._absence.at.timestamp())
        try:
            await sink.send(Message(number, AWAY, AWAY, None, "critical", text, state, at))
        except UndeliveredError as problem:
            self._counters.wrong("alert not sent", f"{sink.name}: {problem}")
            return False
        self._counters.count("alerts sent")
        return True

    def _look(self) -> None:
        with self._database.connect() as connection:
            look(connection, [Source(WHAT, self._silent_daemon)], [sink.name for sink in self._sinks])

    def _silent_daemon(self, connection: Connection) -> list[Incident]:
        silent_s = daemon_silent_s(connection)
        if silent_s is None or silent_s < self._silent_after_s:
            return []
        if monotonic() - self._began_s < self._silent_after_s:
            # Both may just be starting; what was open when we began is neither over nor new.
            return open_incidents(connection, WHAT)
        return [
            Incident(
                "",
                f"Dagster was last heard of {silent_s / 60:,.0f} minutes ago: its daemon or the sensor okx_alerts "
                "does not run, so that nothing is scheduled or checked",
            )
        ]

    def _is_sound(self) -> bool:
        with self._database.connect() as connection:
            health = stream_health(connection)
        streams = health.sidecar is not None and health.sidecar.state == "streaming"
        return streams and health.problem is None
