"""What is read for a glance, and how often: what moves at every look, what is long to sum up as seldom as it costs.

How it is drawn stands in `screen`.
"""

import os
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Final, Self

from okx_pipeline.errors import PipelineError, command
from okx_pipeline.monitor.health import Health, Ledger, health_of
from okx_pipeline.settings import Settings
from okx_pipeline.storage.activity import (
    OpenDay,
    OpenGaps,
    budget_use,
    landed_within,
    last_opens,
    open_days,
    open_gaps,
)
from okx_pipeline.storage.database import Connection, Database, translated
from okx_pipeline.storage.migrations import pending_migrations
from okx_pipeline.storage.overview import StoreOverview, ledger, overview
from okx_pipeline.storage.stream_status import SidecarStatus, sidecar_status
from okx_pipeline.stream.health import StreamHealth, judge
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_of, parse_timeframe

STORE_SHARE: Final = 20
"""What is long to sum up is read for a twentieth of the time at the most: 2 s for a thousand series of seven years."""

DISK_EVERY_S: Final = 60.0
DISK_SHARE: Final = 50
LATELY_S: Final = 3600.0
MOST_LATELY: Final = 120
RATE_OVER_S: Final = 30.0
PACE_OVER_S: Final = 300.0
PACE_AFTER_S: Final = 15.0
PACE_SHARE: Final = 200
"""How long history will take is guessed once a two-hundredth of it came in so long."""


@dataclass(frozen=True, slots=True)
class SeriesNow:
    """A series that is subscribed, wanted or held.

    Parameters
    ----------
    last_ms
        Open time of its last candle.
    age_ms
        How long ago that one closed, by the exchange's clock.
    late_ms
        How long ago the next one was due; 0 if it is not.
    refused
        Why OKX does not send it; None if it does.
    missing
        Candles missing on days that REST was read for.
    day, day_candles
        The day under way as the ledger has it, and how many candles open on all of it.
    landed
        Candles that landed within the last hour, counted up to `MOST_LATELY`; None where that was not asked.
    """

    symbol: str
    timeframe: str
    last_ms: int | None
    age_ms: int | None
    late_ms: int
    refused: str | None
    missing: int
    day: OpenDay | None
    day_candles: int
    landed: int | None = None

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with it."""
        return not (self.late_ms or self.refused or self.missing)


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes that OKX_HOME takes, and that are free on its disk."""

    used: int
    free: int


@dataclass(frozen=True, slots=True)
class History:
    """How far history has come, in candles of all that is or was subscribed; `left_s` is a guess, None without one."""

    expected: int
    present: int
    fetching: int
    left_s: float | None

    @property
    def percent(self) -> float:
        """Share of the expected candles that are not on their way any more."""
        return 100.0 * (self.expected - self.fetching) / self.expected if self.expected else 100.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at a glance.

    Parameters
    ----------
    at, read_s
        When it was read, by this machine's clock and by its monotonic one.
    series
        Every series that is subscribed, wanted or held, the worst first.
    frames_s, landed_s
        Frames and candles a second, of late; None while only one look was taken.
    budget
        Requests by endpoint that count against OKX's limit.
    """

    at: datetime
    read_s: float
    place: str
    stream: StreamHealth
    series: Sequence[SeriesNow]
    store: StoreOverview
    history: History
    gaps: OpenGaps
    health: Health
    disk: Disk | None
    frames_s: float | None
    landed_s: float | None
    budget: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Store:
    overview: StoreOverview
    held: Ledger
    gaps: OpenGaps
    history: History


class Reader:
    """Reads everything at a glance, on a connection of its own; for one thread at a time.

    Parameters
    ----------
    settings
        Where the home is.
    database
        The store's.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._home = settings.root
        self._database = database
        self._connection: Connection | None = None
        self._store: _Store | None = None
        self._store_from_s = 0.0
        self._disk: Disk | None = None
        self._disk_from_s = 0.0
        self._beats: deque[SidecarStatus] = deque()
        self._fetching: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next look opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def read(self, rows: int) -> Reading:
        """Read everything; of the worst `rows` series also what landed lately.

        Raises
        ------
        PipelineError
            If the database cannot be reached, or its schema is too old.
        """
        try:
            with translated(self._database.place):
                return self._read(self._opened(), rows)
        except PipelineError:
            self.close()
            raise

    def measure_disk(self) -> None:
        """See how big the home is, unless that was seen lately; of later readings, as it takes a while."""
        if monotonic() < self._disk_from_s:
            return
        began_s = monotonic()
        self._disk = Disk(used_bytes(self._home), shutil.disk_usage(self._home).free)
        self._disk_from_s = monotonic() + max(DISK_EVERY_S, DISK_SHARE * (monotonic() - began_s))

    def _opened(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._database.revive()
            connection = self._database.connect()
            pending = pending_migrations(connection)
            if pending:
                connection.close()
                raise PipelineError(f"the schema lacks {', '.join(pending)}; run: {command('migrate')}")
            self._connection = connection
        return self._connection

    def _read(self, connection: Connection, rows: int) -> Reading:
        sidecar = sidecar_status(connection)
        lasts = last_opens(connection)
        stream = StreamHealth(sidecar, None, [])
        if sidecar is not None and sidecar.exchange_ms is not None:
            stream = judge(sidecar, lasts)
        if self._store is None or monotonic() >= self._store_from_s:
            self._store = self._read_store(connection, stream.now_ms)
        store = self._store
        every = {(each.symbol, each.timeframe): each.last_ms for each in store.overview.series}
        series = _series(connection, stream, store.held, {**every, **lasts})
        lately = landed_within(
            connection, [(each.symbol, each.timeframe) for each in series[:rows]], LATELY_S, most=MOST_LATELY
        )
        frames_s, landed_s = self._rates(sidecar)
        return Reading(
            at=datetime.now(tz=UTC),
            read_s=monotonic(),
            place=self._database.place,
            stream=stream,
            series=[replace(each, landed=lately.get((each.symbol, each.timeframe))) for each in series],
            store=store.overview,
            history=store.history,
            gaps=store.gaps,
            health=health_of(store.overview, store.held, stream, lasts.keys()),
            disk=self._disk,
            frames_s=frames_s,
            landed_s=landed_s,
            budget=budget_use(connection),
        )

    def _read_store(self, connection: Connection, now_ms: int | None) -> _Store:
        began_s = monotonic()
        held = ledger(connection, now_ms)
        fetching = sum(each.fetching for each in held.values())
        history = History(
            expected=sum(each.expected for each in held.values()),
            present=sum(each.present for each in held.values()),
            fetching=fetching,
            left_s=self._left_s(fetching),
        )
        store = _Store(overview(connection), held, open_gaps(connection), history)
        self._store_from_s = monotonic() + STORE_SHARE * (monotonic() - began_s)
        return store

    def _left_s(self, fetching: int) -> float | None:
        """How long history will take at the pace of the last minutes; None where nothing can be said."""
        now_s = monotonic()
        self._fetching.append((now_s, fetching))
        while now_s - self._fetching[0][0] > PACE_OVER_S:
            self._fetching.popleft()
        began_s, before = self._fetching[0]
        fetched, seconds = before - fetching, now_s - began_s
        if seconds < PACE_AFTER_S or fetched * PACE_SHARE < before or not fetched:
            return None
        return fetching * seconds / fetched

    def _rates(self, sidecar: SidecarStatus | None) -> tuple[float | None, float | None]:
        """Frames and candles a second over the last beats of the sidecar that beats now."""
        if sidecar is None:
            return None, None
        beats = self._beats
        if beats and beats[-1].started_at != sidecar.started_at:
            beats.clear()
        if not beats or beats[-1].heartbeat_at < sidecar.heartbeat_at:
            beats.append(sidecar)
        while (sidecar.heartbeat_at - beats[0].heartbeat_at).total_seconds() > RATE_OVER_S:
            beats.popleft()
        seconds = (sidecar.heartbeat_at - beats[0].heartbeat_at).total_seconds()
        if not seconds:
            return None, None
        frames, landed = (
            (sidecar.counters.get(kind, 0) - beats[0].counters.get(kind, 0)) / seconds
            for kind in ("frames", "inserted")
        )
        return frames, landed


def used_bytes(folder: Path) -> int:
    """What `folder` takes on its disk, as far as it can be read."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                # Blocks, not length: write-ahead logs are made long before they are full.
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                continue  # gone since it was listed, or not ours to see
    return total


def _series(
    connection: Connection, stream: StreamHealth, held: Ledger, lasts: Mapping[tuple[str, str], int | None]
) -> list[SeriesNow]:
    """Every series as it is now, the worst first."""
    now_ms = stream.now_ms
    days = {} if now_ms is None else open_days(connection, day_of(now_ms))
    late = {(each.symbol, each.timeframe): each.late_ms for each in stream.silent}
    refused = {} if stream.sidecar is None else stream.sidecar.refused
    found = []
    for key, last_ms in lasts.items():
        symbol, name = key
        timeframe = parse_timeframe(name)
        today_ms = 0 if now_ms is None else now_ms - now_ms % DAY_MS
        found.append(
            SeriesNow(
                symbol,
                name,
                last_ms,
                None if now_ms is None or last_ms is None else now_ms - timeframe.close_of(last_ms),
                late.get(key, 0),
                refused.get(f"{symbol} {name}"),
                held[key].in_gaps if key in held else 0,
                days.get(key),
                timeframe.count(today_ms, today_ms + DAY_MS),
            )
        )
    return sorted(found, key=_worst_first)


def _worst_first(series: SeriesNow) -> tuple[bool, int, int, str, Timeframe]:
    return not series.refused, -series.late_ms, -series.missing, series.symbol, parse_timeframe(series.timeframe)
