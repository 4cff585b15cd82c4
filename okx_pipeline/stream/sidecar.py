"""The sidecar: every subscribed series from the exchange into the store, live, through everything.

Frames come from the feed, what they mean for a series is kept in `series`, landing is the lander's; here they are put
together with the clock, the catch-up from REST, the projection into Parquet, the heartbeat and the subscriptions.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.errors import AlreadyRunningError, PipelineError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.clock import ExchangeClock
from okx_pipeline.exchange.connection import Oddity
from okx_pipeline.exchange.feed import CandleFeed
from okx_pipeline.exchange.frames import Series
from okx_pipeline.exchange.messages import Page, judge_row, open_time
from okx_pipeline.exchange.rest import RestClient
from okx_pipeline.exchange.windows import fetch_window
from okx_pipeline.history.backfill import client_of
from okx_pipeline.history.plan import Span, windows_of
from okx_pipeline.settings import Settings
from okx_pipeline.storage import coverage, projection
from okx_pipeline.storage.audit import audit
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.damage import look_at_files
from okx_pipeline.storage.database import Database, DatabaseError, StorageError
from okx_pipeline.storage.landing import Landed
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.request_budget import SharedBudget
from okx_pipeline.storage.stream_status import Heartbeat, SidecarLock, beat, save_offsets, stream_offsets
from okx_pipeline.storage.subscriptions import seed_subscriptions, subscriptions
from okx_pipeline.stream.counters import Counters, Figures
from okx_pipeline.stream.lander import Batch, Lander
from okx_pipeline.stream.series import SeriesProgress
from okx_pipeline.stream.watch import Watch
from okx_pipeline.timeframes import DAY_MS, day_ms, iso, parse_timeframe

if TYPE_CHECKING:
    from okx_pipeline.stream.metrics import Metrics

Say = Callable[[str], None]

LOOK_AT_SUBSCRIPTIONS_S: Final = 1.0
LOOK_AT_SERIES_S: Final = 0.25
HEARTBEAT_S: Final = 2.0
PROJECT_S: Final = 5.0
PROJECT_WITHIN_S: Final = 1.0
"""So long it writes files each time; what is left waits for the next, so that thousands never take all there is."""

ACCOUNT_S: Final = 15.0
ACCOUNT_SHARE: Final = 20
"""What moves is counted in the ledger this often, and for a twentieth of the time at the most."""

AUDIT_WITHIN_S: Final = 0.75
"""So long it audits the ledger each time, if anything is due: a twentieth of the time at the most."""

FILES_S: Final = 15.0
FILES_WITHIN_S: Final = 0.75
"""So long it looks at what Parquet files say of themselves each time, some 3,000 of them."""

LAY_OUT_WITHIN_S: Final = 10.0
"""So long it lays out new days in between."""

KEEP_LOCK_S: Final = 5.0
KEEP_CLOCK_S: Final = 0.5
LOOK_AT_MAINTENANCE_S: Final = 300.0
STANDBY_S: Final = 0.5
CATCH_UP_AT_ONCE: Final = 12
"""Series caught up side by side; the request budget decides how fast."""

GIVE_UP_TRIES: Final = 8
"""After so many answers of REST without a candle that has closed, it is left to gap repair: some ten minutes."""

WINDOWS_AT_ONCE: Final = 10
"""Pages a series fetches before others have their turn."""

DISPUTE_AFTER_S: Final = 2.0
DISPUTE_AGAIN_S: Final = 30.0
"""REST is asked for a disputed candle this long after the frame, and again if it does not serve it yet."""

MOST_GARBLED: Final = 1_000
"""Frames that cannot be read and are kept, by one sidecar; further ones are counted: they could fill the disk."""

MOST_GARBLED_BYTES: Final = 4_096
"""So much of each; a push is some 200 bytes."""

EARLY_MS: Final = 5_000
"""A confirmation that comes this long before its candle closes is not believed."""


class Sidecar:
    """One sidecar on its connections; made and run by `stream`.

    Parameters
    ----------
    settings
        Where the exchange's WebSocket is, and how it is reached.
    database
        The store's database.
    client
        The exchange's REST API.
    name
        Host and process, for `stream_status`.
    lock
        The taken lock of the one sidecar that streams.
    """

    def __init__(
        self, settings: Settings, database: Database, client: RestClient, name: str, lock: SidecarLock
    ) -> None:
        self.counters = Counters()
        self._database = database
        self._files = ParquetStore(settings.parquet_root)
        self._client = client
        self._clock = ExchangeClock(client)
        self._name = name
        self._lock = lock
        self._state = "starting"
        self._maintenance: list[dict[str, str | int | bool]] = []
        self._watch = Watch(settings, database, self.counters)
        self._lander = Lander(database, self._files, self.counters, self._landed)
        self._feed = CandleFeed(
            settings.ws_url,
            self,
            proxy=settings.proxy.get_secret_value() if settings.proxy else None,
            ca_file=settings.ca_file,
        )
        self._progress: dict[Series, SeriesProgress] = {}
        self._newest: dict[Series, str] = {}
        self._confirmed: dict[Series, Candle] = {}
        self._refused: dict[Series, str] = {}
        self._offsets: dict[Series, int] = {}
        self._catching_up: set[Series] = set()
        self._disputed: dict[tuple[Series, int], float] = {}
        self._account_from = 0.0
        self._looked_at: SeriesMonth | None = None
        self._ended = Event()
        self._metrics = self._metrics_of(settings)

    def _metrics_of(self, settings: Settings) -> "Metrics | None":
        if settings.metrics_port is None:
            return None
        # What serves them takes a while to import.
        from okx_pipeline.stream.metrics import Metrics

        return Metrics(settings.metrics_port, self.figures, self._database, self.counters)

    async def run(self) -> None:
        """Stream until cancelled; what has been received by then is landed first.

        Raises
        ------
        ExceptionGroup
            Of an `AlreadyRunningError`, if another sidecar has taken over while the database was away.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._every(HEARTBEAT_S, self._beat))
                group.create_task(self._every(KEEP_LOCK_S, self._keep_lock))
                group.create_task(self._every(PROJECT_S, self._project))
                if self._files.is_local:
                    # Each look at an object store would be a request that somebody pays.
                    group.create_task(self._every(FILES_S, self._look_at_files))
                group.create_task(self._watch.run())
                if self._metrics is not None:
                    group.create_task(self._metrics.run())
                await self._read_clock()
                # Read it once more as soon as it makes sense: how fast it runs takes two readings.
                self._clock.doubt()
                group.create_task(self._every(KEEP_CLOCK_S, self._keep_clock))
                group.create_task(self._every(ACCOUNT_S, self._account))
                group.create_task(self._every(LOOK_AT_MAINTENANCE_S, self._look_at_maintenance))
                group.create_task(self._lander.run())
                group.create_task(self._feed.run())
                group.create_task(self._every(LOOK_AT_SUBSCRIPTIONS_S, self._follow_subscriptions))
                group.create_task(self._look_after_series(group))
        finally:
            self._ended.set()
            self._state = "stopped"
            with suppress(PipelineError, DatabaseError):
                await asyncio.shield(self._beat())

    async def _read_clock(self) -> None:
        # Without the exchange's time nothing is known to have closed.
        while True:
            try:
                await self._clock.now_ms()
                return
            except PipelineError as problem:
                self.counters.wrong("exchange away", str(problem))
                await asyncio.sleep(LOOK_AT_SUBSCRIPTIONS_S)

    # What the feed tells. Frames are many and most change nothing: those are dealt with first.

    def pushed(self, series: Series, rows: list[list[str]], frame_s: float) -> None:
        """Rows of a frame, in whatever order and state they came; `frame_s` is when, by the monotonic clock."""
        self.counters.count("frames")
        for row in rows:
            if len(row) == protocol.ROW_FIELDS and row[-1] == protocol.UNCONFIRMED:
                if row[0] != self._newest.get(series):
                    self._form(series, row[0])
            else:
                self._judge(series, row, frame_s)

    def forming(self, series: Series, opened: str, frame_s: float) -> None:
        """One unconfirmed row more of a candle."""
        self.counters.count("frames")
        if opened != self._newest.get(series):
            self._form(series, opened)

    def subscribed(self, series: Collection[Series]) -> None:
        """Received (again): what closed meanwhile is asked for soon, if no frame brings it."""
        now_ms = self._clock.carried_ms()
        for each in series:
            self._refused.pop(each, None)
            if each in self._progress:
                self._progress[each].hurry(now_ms)

    def lost(self, series: Collection[Series]) -> None:
        """No longer received; what that misses is noticed by the clock."""
        self.counters.wrong("connection lost", f"{len(series)} series are not received")

    def refused(self, series: Series, code: str, message: str) -> None:
        """The exchange refuses a series; the others go on."""
        self._refused[series] = f"{message} (code {code})"
        self.counters.wrong("series refused", f"{series}: {message} (code {code})")

    def noticed(self, kind: str, detail: str) -> None:
        """Something odd on a connection."""
        self.counters.wrong(kind, detail)

    def garbled(self, text: bytes, problem: str) -> None:
        """A frame that cannot be read is kept: what it was to bring is asked of REST when it is late."""
        if self.counters[Oddity.GARBLED] <= MOST_GARBLED:
            original = text[:MOST_GARBLED_BYTES].decode(errors="backslashreplace")
            self._lander.offer(Batch([], [Refused(None, None, None, f"unreadable frame: {problem}", original)]))

    def _form(self, series: Series, opened: str) -> None:
        progress = self._progress.get(series)
        if progress is None:
            return
        now_ms = self._clock.carried_ms()
        open_ms = open_time(opened)
        odd = "row off its boundary", f"{series}: open time {opened[:20]!r}"
        if open_ms is None or not series.timeframe.is_boundary(open_ms):
            self.counters.wrong(*odd)
        elif self._is_early(open_ms, now_ms):
            self._tell_early(*odd)
        elif open_ms < progress.newest_ms:
            # Out of order, or confirm "0" after "1": what is confirmed stays.
            self.counters.count("old unconfirmed rows")
        else:
            self._newest[series] = opened
            progress.saw(open_ms, now_ms)

    def _judge(self, series: Series, row: list[str], frame_s: float) -> None:
        page = Page([], [], [], 1)
        judge_row(row, series.symbol, series.timeframe, page)
        if page.refused:
            self.counters.wrong("row refused", f"{series}: {page.refused[0].reason}")
            self._lander.offer(Batch([], page.refused, received_s=frame_s))
        for candle in page.candles:
            self._take(series, candle, frame_s)

    def _take(self, series: Series, candle: Candle, frame_s: float) -> None:
        progress = self._progress.get(series)
        if progress is None:
            return
        now_ms = self._clock.carried_ms()
        if self._is_early(series.timeframe.close_of(candle.timestamp_ms), now_ms):
            self._tell_early("confirmed before its close", f"{series}: {iso(candle.timestamp_ms)}")
            return
        if candle == self._confirmed.get(series):
            self.counters.count("duplicate rows")
            return
        self._confirmed[series] = candle
        progress.saw(candle.timestamp_ms, now_ms)
        if self._lander.offer(Batch([candle], received_s=frame_s)):
            progress.queued(candle.timestamp_ms)
            self.counters.count("confirmed")
        else:
            self.counters.wrong("no room to wait", f"{series}: {iso(candle.timestamp_ms)} will be fetched again")

    def _is_early(self, moment_ms: int, now_ms: int) -> bool:
        if moment_ms <= now_ms + EARLY_MS * max(1.0, self._clock.speed):
            return False
        # Either the row is wrong or our clock is; REST knows which, and brings the candle in any case.
        self._clock.doubt()
        return True

    def _tell_early(self, kind: str, detail: str) -> None:
        # Of a stand-in whose time runs fast, the first reading alone leaves our clock behind.
        if self._clock.is_measured:
            self.counters.wrong(kind, detail)

    # What the lander tells.

    def _landed(self, batch: Batch, landed: Landed) -> None:
        now_ms = self._clock.carried_ms()
        for candle in batch.candles:
            series = Series(candle.symbol, parse_timeframe(candle.timeframe))
            progress = self._progress.get(series)
            if progress is not None:
                progress.has_landed(candle.timestamp_ms, now_ms)
        self.counters.count("inserted", landed.inserted)
        self.counters.count("corrected", landed.corrected)
        if landed.quarantined:
            self.counters.wrong("quarantined", batch.refused[0].reason, landed.quarantined)
        if batch.source is Source.WEBSOCKET:
            self.counters.highest("landing took ms", int((monotonic() - batch.received_s) * 1000))
            if self._metrics is not None:
                self._metrics.landed(batch)
        # An answer of REST's is in dispute where a frame landed after the request was sent: it is asked for anew.
        what = "frame differs from what is stored" if batch.source is Source.WEBSOCKET else "answer was overtaken"
        for symbol, name, open_ms in landed.disputed:
            self.counters.wrong(what, f"{symbol} {name} {iso(open_ms)}: REST decides")
            self._disputed[Series(symbol, parse_timeframe(name)), open_ms] = monotonic() + DISPUTE_AFTER_S

    # Catching up: whatever is missing comes from REST, the most stale series first.

    async def _look_after_series(self, group: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(LOOK_AT_SERIES_S)
            if self._lander.is_away:
                continue
            now_ms = self._clock.carried_ms()
            behind = [
                (progress.through_ms, series)
                for series, progress in self._progress.items()
                if progress.is_behind(now_ms) and series not in self._catching_up
            ]
            room = CATCH_UP_AT_ONCE - len(self._catching_up)
            for _, series in sorted(behind)[:room]:
                self._catching_up.add(series)
                group.create_task(self._catch_up(series))
            due = [key for key, due_s in self._disputed.items() if due_s <= monotonic()]
            for key in due[: max(0, room)]:
                del self._disputed[key]
                group.create_task(self._settle(*key))

    async def _catch_up(self, series: Series) -> None:
        progress = self._progress.get(series)
        try:
            if progress is not None:
                await self._fetch_missing(series, progress)
        except (PipelineError, DatabaseError) as problem:
            self.counters.wrong("catch-up failed", f"{series}: {problem}".partition("\n")[0])
            if progress is not None:
                progress.wait(self._clock.carried_ms())
        finally:
            self._catching_up.discard(series)

    async def _fetch_missing(self, series: Series, progress: SeriesProgress) -> None:
        now_ms = await self._clock.now_ms()
        missing = progress.missing(now_ms)
        if not missing:
            progress.expect(now_ms)
            return
        held = await asyncio.to_thread(self._held, series, missing[0], now_ms)
        for open_ms in held:
            progress.has_landed(open_ms, now_ms)
        missing = progress.missing(now_ms)
        if not missing:
            return
        span = Span(series.symbol, series.timeframe, missing[0], missing[-1] + 1)
        here = set(series.timeframe.opens(span.start_ms, span.end_ms)).difference(missing)
        for window in windows_of(span, sorted(here), now_ms)[:WINDOWS_AT_ONCE]:
            result = await fetch_window(self._client, series.symbol, window)
            self.counters.count("requests", result.requests)
            for index, page in enumerate(result.pages):
                refused = result.refused if index == 0 else []
                if not self._lander.offer(Batch(page.candles, refused, Source.REST, page.sent_at)):
                    return
                for candle in page.candles:
                    progress.queued(candle.timestamp_ms)
            for row in result.refused:
                if row.timestamp_ms is not None:
                    progress.give_up(row.timestamp_ms, now_ms)
            received = {candle.timestamp_ms for candle in result.candles}
            self.counters.count("caught up", len(received))
            absent = [open_ms for open_ms in missing if window.start_ms <= open_ms < window.end_ms]
            absent = [open_ms for open_ms in absent if open_ms not in received and open_ms in progress.missing(now_ms)]
            if absent:
                self._asked_in_vain(series, progress, absent, now_ms)
                return

    def _asked_in_vain(self, series: Series, progress: SeriesProgress, absent: list[int], now_ms: int) -> None:
        progress.asked_in_vain(now_ms)
        self._clock.doubt()
        if progress.tries >= GIVE_UP_TRIES:
            detail = f"{series}: {len(absent)} candles from {absent[0]} on are left to gap repair"
            self.counters.wrong("not served by REST", detail, len(absent))
            for open_ms in absent:
                progress.give_up(open_ms, now_ms)

    async def _settle(self, series: Series, open_ms: int) -> None:
        """Ask REST for a candle of which a frame said something else than what is stored."""
        try:
            now_ms = await self._clock.now_ms()
            span = Span(series.symbol, series.timeframe, open_ms, open_ms + 1)
            received = 0
            for window in windows_of(span, [], now_ms):
                result = await fetch_window(self._client, series.symbol, window)
                for index, page in enumerate(result.pages):
                    # What no market can have is an answer too: it is kept as evidence, and asked for no more.
                    refused = result.refused if index == 0 else []
                    received += len(page.candles) + len(refused)
                    if not self._lander.offer(Batch(page.candles, refused, Source.REST, page.sent_at)):
                        received = 0
            if received:
                return
        except (PipelineError, DatabaseError) as problem:
            self.counters.wrong("dispute not settled", f"{series}: {problem}".partition("\n")[0])
        self._disputed[series, open_ms] = monotonic() + DISPUTE_AGAIN_S

    def _held(self, series: Series, from_ms: int, until_ms: int) -> list[int]:
        with CandleStore.opened(self._database, self._files) as store:
            return store.opens(series.symbol, series.timeframe, from_ms, until_ms)

    # What runs beside it, each on a connection of its own.

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` again and again; a database that is away is counted, and asked again."""
        while True:
            try:
                await work()
            except AlreadyRunningError:
                raise
            except (PipelineError, DatabaseError, OSError) as problem:
                name = work.__name__.strip("_").replace("_", " ")
                self.counters.wrong(f"{name} failed", str(problem).partition("\n")[0])
            await asyncio.sleep(seconds)

    async def _follow_subscriptions(self) -> None:
        wanted, offsets = await asyncio.to_thread(self._read_subscriptions, frozenset(self._progress))
        if wanted == set(self._progress):
            return
        now_ms = await self._clock.now_ms()
        for series in wanted.difference(self._progress):
            offset = offsets.get(series)
            # A series that was never streamed begins with the current day; what is older is history's work.
            through_ms = series.timeframe.open_at(now_ms - now_ms % DAY_MS) if offset is None else offset
            progress = SeriesProgress(series.timeframe, through_ms)
            progress.expect(now_ms)
            self._progress[series] = progress
        for series in set(self._progress).difference(wanted):
            for known in (self._progress, self._newest, self._confirmed, self._refused, self._offsets):
                known.pop(series, None)
        self._feed.want(wanted)

    def _read_subscriptions(self, known: Collection[Series]) -> tuple[set[Series], dict[Series, int]]:
        with self._database.connect() as connection:
            wanted = {Series(each.symbol, each.timeframe) for each in subscriptions(connection)}
            new = wanted.difference(known)
            noted = stream_offsets(connection, [(series.symbol, series.timeframe.name) for series in new])
        return wanted, {
            series: noted[series.symbol, series.timeframe.name]
            for series in new
            if (series.symbol, series.timeframe.name) in noted
        }

    def figures(self) -> Figures:
        """What there is to tell of this moment."""
        now_ms = self._clock.carried_ms() if self._progress else 0
        heard_s = self._feed.last_frame_s
        return Figures(
            counts=self.counters.as_dict(),
            errors=self.counters.errors,
            lags_s={
                series: max(0, now_ms - series.timeframe.close_of(progress.through_ms)) / 1000
                for series, progress in self._progress.items()
            },
            received=self._feed.subscribed_series,
            refused=len(self._refused),
            connections=self._feed.connections,
            reconnects=self._feed.reconnects,
            waiting=self._lander.waiting,
            waiting_s=self._lander.lag_s,
            catching_up=len(self._catching_up),
            silent_s=None if heard_s is None else asyncio.get_running_loop().time() - heard_s,
            clock_ahead_s=self._clock.ahead_s,
        )

    async def _beat(self) -> None:
        moved = {
            series: progress.through_ms
            for series, progress in self._progress.items()
            if self._offsets.get(series) != progress.through_ms
        }
        counters: dict[str, Any] = {
            **self.counters.as_dict(),
            "series": len(self._progress),
            "subscribed": self._feed.subscribed_series,
            "connections": self._feed.connections,
            "reconnects": self._feed.reconnects,
            "errors": self.counters.errors,
            "waiting": self._lander.waiting,
            "waiting s": round(self._lander.lag_s, 1),
            "catching up": len(self._catching_up),
            "clock ahead s": None if self._clock.ahead_s is None else round(self._clock.ahead_s, 1),
        }
        refused = {str(series): why for series, why in self._refused.items()}
        if self._feed.connections and self._state == "starting":
            self._state = "streaming"
        now_ms = self._clock.carried_ms() if self._progress else None
        await asyncio.to_thread(self._write_beat, now_ms, counters, refused, moved)
        self._offsets |= moved

    def _write_beat(
        self,
        now_ms: int | None,
        counters: dict[str, Any],
        refused: dict[str, str],
        moved: dict[Series, int],
    ) -> None:
        with self._database.connect(durable=False) as connection:
            beat(connection, Heartbeat(self._name, self._state, now_ms, counters, refused, self._maintenance))
            save_offsets(
                connection,
                {(series.symbol, series.timeframe.name): through_ms for series, through_ms in moved.items()},
            )

    async def _keep_lock(self) -> None:
        if not await asyncio.to_thread(self._lock.take):
            raise AlreadyRunningError("another sidecar took over while the database was away")

    async def _keep_clock(self) -> None:
        await self._clock.now_ms()

    async def _look_at_maintenance(self) -> None:
        self._maintenance = [
            {
                "title": window.title,
                "state": window.state,
                "begin_ms": int(window.begin or 0),
                "end_ms": int(window.end or 0),
                "stops_candles": window.stops_candles,
            }
            for window in await self._client.maintenance()
        ]

    async def _account(self) -> None:
        if monotonic() >= self._account_from:
            await asyncio.to_thread(self._account_for_what_landed, self._clock.carried_ms())

    def _account_for_what_landed(self, now_ms: int) -> None:
        with self._database.connect() as connection:
            started = monotonic()
            try:
                coverage.count_moved(connection, self._files, now_ms, lambda took_s: not self._ended.is_set())
            finally:
                self._account_from = started + ACCOUNT_SHARE * (monotonic() - started)
                until = monotonic() + LAY_OUT_WITHIN_S
                # It rests as long as it works: years of a thousand series must not take a core.
                coverage.lay_out(
                    connection, self._files, now_ms, lambda took_s: not self._ended.wait(took_s) and monotonic() < until
                )
            until = monotonic() + AUDIT_WITHIN_S
            differing = audit(connection, lambda took_s: not self._ended.is_set() and monotonic() < until)
            if differing:
                self.counters.wrong("rows differ from the ledger", f"{differing} days are counted again", differing)

    async def _look_at_files(self) -> None:
        await asyncio.to_thread(self._look_at_some_files)

    def _look_at_some_files(self) -> None:
        with self._database.connect() as connection:
            self._looked_at = look_at_files(
                connection,
                self._files,
                self._looked_at,
                lambda took_s: not self._ended.is_set() and took_s < FILES_WITHIN_S,
            )

    async def _project(self) -> None:
        await asyncio.to_thread(self._project_what_is_due)

    def _project_what_is_due(self) -> None:
        with self._database.connect() as connection:
            due = projection.pending_months(connection, due_only=True)
            until = monotonic() + PROJECT_WITHIN_S
            problems: list[StorageError] = []
            while due and monotonic() < until:
                try:
                    projection.project(connection, self._files, [due.pop(0)])
                    self.counters.count("parquet files")
                except StorageError as problem:
                    # It is tried again each time; the others are written meanwhile.
                    problems.append(problem)
        if problems:
            raise problems[0]


def run(settings: Settings, *, standby: bool, say: Say) -> None:
    """Be the sidecar of the settings' store until SIGINT or SIGTERM; see `stream`."""

    async def until_signalled(database: Database) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stream(settings, database, standby=standby, stop=stop, say=say)

    with opened_database(settings, on_wait=say) as database:
        asyncio.run(until_signalled(database))


async def stream(settings: Settings, database: Database, *, standby: bool, stop: asyncio.Event, say: Say) -> None:
    """Be the sidecar of `database` until `stop` is set.

    Parameters
    ----------
    standby
        Wait for a running sidecar to end, instead of leaving.
    say
        Told what a person at the terminal wants to know.

    Raises
    ------
    AlreadyRunningError
        If another sidecar streams into this database, and `standby` is not asked for.
    PipelineError
        If the store cannot be opened.
    """
    name = f"{socket.gethostname()}:{os.getpid()}"
    with SidecarLock(database) as lock:
        if not await asyncio.to_thread(lock.take):
            if not standby:
                raise AlreadyRunningError("a sidecar streams into this database already; --standby waits for its end")
            say("another sidecar streams; standing by")
            while not await asyncio.to_thread(lock.take):
                if await _is_set_within(stop, STANDBY_S):
                    return
        await asyncio.to_thread(_prepare, settings, database)
        async with SharedBudget(database, settings.rest_rate) as budget:
            client = client_of(settings, budget)
            async with client:
                sidecar = Sidecar(settings, database, client, name, lock)
                say(f"streaming from {settings.ws_url}")
                await _run_until(stop, sidecar)


def _prepare(settings: Settings, database: Database) -> None:
    with CandleStore.opened(database, ParquetStore(settings.parquet_root)) as store:
        store.claim_for(settings.origin)
        seed_subscriptions(store.connection, settings.symbols, settings.timeframes, day_ms(settings.history_start))


async def _run_until(stop: asyncio.Event, sidecar: Sidecar) -> None:
    running = asyncio.create_task(sidecar.run())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
    for task in (running, stopped):
        task.cancel()
    try:
        await running
    except asyncio.CancelledError:
        pass
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
