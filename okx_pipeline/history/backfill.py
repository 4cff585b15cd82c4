"""The backfill: windows of history fetched side by side, landed as they come, projected into Parquet at the end.

The asset and the command both run this. What it asks for is decided in `plan`; a run that was killed anywhere left its
landed rows and its marks behind, so that the next one asks for what is missing and projects what was left.
"""

import asyncio
import shutil
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from time import monotonic
from typing import Any, Final, Literal, Protocol, TypeVar

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.errors import PipelineError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.budget import RequestBudget
from okx_pipeline.exchange.clock import ExchangeClock
from okx_pipeline.exchange.errors import RetryableError, UnknownSymbolError
from okx_pipeline.exchange.rest import TRIES, RestClient
from okx_pipeline.exchange.windows import Window, WindowResult, fetch_windows
from okx_pipeline.history.plan import Estimate, Life, Span, estimate, why_empty, windows_of, windows_over, within
from okx_pipeline.ranges import Range
from okx_pipeline.settings import Settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import Read
from okx_pipeline.storage.database import Database, translated
from okx_pipeline.storage.instruments import Snapshot, life_of, record_listing
from okx_pipeline.storage.landing import Landed, SeriesDay
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.partitions import DetachedMonth, DetachedMonthError, detached_months
from okx_pipeline.storage.projection import Projected
from okx_pipeline.storage.request_budget import SharedBudget
from okx_pipeline.storage.stream_status import sidecar_status
from okx_pipeline.storage.wanted import WantedBy, want
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_of, month_of, parse_timeframe

CONCURRENCY: Final = 24
"""Requests in flight per endpoint at the most; a full window of the budget, and a few that wait for it."""

CLOCK_TRIES: Final = 3
"""Tries at the exchange's time, which is asked first: an address where nobody answers is told of within seconds."""

NOTE_EVERY_S: Final = 5.0
"""How often the ledger is told which days have been read: what a run that is killed has read is not asked for again."""

SPARE_DISK_BYTES: Final = 512 * 1024 * 1024
"""Disk that a backfill leaves free."""

_MONTH: Final = parse_timeframe("1mo")

T = TypeVar("T")


Phase = Literal["fetching", "projecting", "counting"]
"""What a backfill does, in this order: candles from OKX, the months' Parquet files, the ledger."""


class Progress(Protocol):
    """Called as a backfill goes on, from one thread at a time.

    `done` of `total` are windows while fetching and files while projecting. The ledger is one step. `rows` are candles
    received, `requests` those sent.
    """

    def __call__(self, phase: Phase, *, done: int, total: int, rows: int, requests: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backfill will ask for, newest first, the months whose files it sees to, why some spans ask for nothing."""

    windows: list[tuple[str, Window]]
    months: set[SeriesMonth]
    estimate: Estimate
    notes: dict[Span, str]
    now_ms: int


@dataclass(slots=True)
class DayReport:
    """What a run did for a series on a day; `asked` and `served` are candles."""

    asked: int = 0
    served: int = 0
    inserted: int = 0
    corrected: int = 0
    quarantined: int = 0
    disputed: int = 0
    requests: int = 0


@dataclass(slots=True)
class Report:
    """What a run did.

    Parameters
    ----------
    days
        By series and UTC day, for every day that a request of the run served.
    windows_done, requests, rows
        Windows landed, requests sent and confirmed candles received.
    seconds
        How long it took, projection included.
    notes
        Why spans asked for nothing.
    began_at
        When it began, by the database's clock.
    projected
        The Parquet files that were looked at, written or not.
    detached
        Months whose candles could not land, as their partition is detached.
    """

    days: defaultdict[SeriesDay, DayReport] = field(default_factory=lambda: defaultdict(DayReport))
    windows_done: int = 0
    requests: int = 0
    rows: int = 0
    seconds: float = 0.0
    notes: dict[Span, str] = field(default_factory=dict)
    began_at: datetime | None = None
    projected: list[Projected] = field(default_factory=list)
    detached: set[DetachedMonth] = field(default_factory=set)

    def is_detached(self, day: date) -> bool:
        """Whether the candles of a day could not land, as the partition of its month is detached."""
        return any(each.month == day.replace(day=1) for each in self.detached)

    def reads(self, at_ms: int) -> dict[SeriesDay, Read]:
        """What REST was asked of each day and answered, for the ledger; asked at or after `at_ms`."""
        return {
            day: Read(done.asked, done.served, bool(done.disputed), at_ms)
            for day, done in self.days.items()
            if done.asked
        }

    @property
    def written(self) -> list[Projected]:
        """The files written because the run landed candles of their month, or because they were damaged."""
        return [file for file in self.projected if file.written and (file.damage or self._changed(file.month))]

    @property
    def caught_up(self) -> list[Projected]:
        """The files written only because others had landed candles: the stream, another run, one that was killed."""
        return [file for file in self.projected if file.written and not (file.damage or self._changed(file.month))]

    def _changed(self, month: SeriesMonth) -> bool:
        return any(
            done.inserted or done.corrected
            for day, done in self.days.items()
            if SeriesMonth(day.symbol, day.timeframe, day.day.replace(day=1)) == month
        )

    def total(self, attribute: str) -> int:
        """Sum of a `DayReport` attribute over all days."""
        return sum(getattr(day, attribute) for day in self.days.values())


def client_of(settings: Settings, budget: RequestBudget, *, tries: int = TRIES) -> RestClient:
    """A client of the exchange that the settings name, on `budget`."""
    return RestClient(
        settings.rest_url,
        budget=budget,
        demo=settings.demo_trading,
        proxy=settings.proxy.get_secret_value() if settings.proxy else None,
        ca_file=settings.ca_file,
        tries=tries,
    )


class Backfill:
    """One connection to the exchange and one to the store; make one with `opened`.

    Parameters
    ----------
    settings
        Where the exchange is, the request rate, and the Parquet store.
    """

    def __init__(self, settings: Settings, client: RestClient, clock: ExchangeClock, store: CandleStore) -> None:
        self.settings = settings
        self.client = client
        self.clock = clock
        self.store = store
        self._landing = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, database: Database) -> AsyncIterator["Backfill"]:
        """A backfill on connections of its own, on the budget shared by all who use `database`.

        Raises
        ------
        UsageError
            If the store holds another market than the settings lead to.
        """
        files = ParquetStore(settings.parquet_root)
        async with SharedBudget(database, settings.rest_rate) as budget:
            client, clock_client = (client_of(settings, budget, tries=tries) for tries in (TRIES, CLOCK_TRIES))
            async with client, clock_client:
                with CandleStore.opened(database, files) as store:
                    store.claim_for(settings.origin)
                    yield cls(settings, client, ExchangeClock(clock_client), store)

    async def known_ms(self) -> int:
        """The exchange's time; where OKX cannot be asked, the last that the sidecar wrote down, which may be old.

        Raises
        ------
        ExchangeError
            If OKX cannot be asked and no sidecar ever was.
        """
        try:
            return await self.clock.now_ms()
        except RetryableError:
            status = sidecar_status(self.store.connection)
            if status is None or status.exchange_ms is None:
                raise
            return status.exchange_ms

    async def record_listing(self) -> Snapshot:
        """Ask OKX for every instrument it lists and keep what changed."""
        listings = [await self.client.instruments(kind) for kind in protocol.INSTRUMENT_TYPES]
        listing = [instrument for listed in listings for instrument in listed]
        return await asyncio.to_thread(record_listing, self.store.connection, listing)

    async def life_of(self, symbol: str) -> Life:
        """When `symbol` trades; OKX's listing is asked for where it is not known here yet.

        Raises
        ------
        UnknownSymbolError
            If OKX never listed it.
        """
        known = life_of(self.store.connection, symbol)
        if known is None:
            await self.record_listing()
            known = life_of(self.store.connection, symbol)
        if known is None:
            raise UnknownSymbolError(f"OKX lists no instrument {symbol}; check how it is spelled")
        return Life(known.listed_ms, known.expires_ms)

    async def want(self, spans: Iterable[Span], by: WantedBy) -> None:
        """Make the UTC days of `spans` wanted, except where a subscription wants them: the ledger expects them then."""
        ranges: defaultdict[tuple[str, str], list[Range]] = defaultdict(list)
        for span in spans:
            days = Range(span.start_ms - span.start_ms % DAY_MS, span.end_ms + -span.end_ms % DAY_MS)
            ranges[span.symbol, span.timeframe.name].append(days)
        with translated(self.store.place):
            await asyncio.to_thread(want, self.store.connection, ranges, by)

    async def plan(self, spans: Iterable[Span], *, only_missing: bool) -> Plan:
        """The windows that `spans` need, newest first; with `only_missing`, only for candles that are not there.

        Raises
        ------
        UnknownSymbolError
            If a symbol was never listed.
        ExchangeError
            If OKX cannot be asked for its time or its listing.
        """
        now_ms = await self.clock.now_ms()
        lives: dict[str, Life] = {}
        windows: list[tuple[str, Window]] = []
        months: set[SeriesMonth] = set()
        notes: dict[Span, str] = {}
        for span in spans:
            if span.symbol not in lives:
                lives[span.symbol] = await self.life_of(span.symbol)
            life = lives[span.symbol]
            note = why_empty(span, life, now_ms)
            if note is not None:
                notes[span] = note
                continue
            clipped = within(span, life, now_ms)
            have = self._have(clipped) if only_missing else []
            windows += [(span.symbol, window) for window in windows_of(clipped, have, now_ms)]
            months |= _months(clipped)
        return self._planned(windows, months, notes, now_ms)

    async def plan_ranges(self, wanted: Mapping[tuple[str, Timeframe], Sequence[Range]]) -> Plan:
        """The windows that bring exactly the candles of `wanted`, by symbol and timeframe, newest first.

        Raises
        ------
        ExchangeError
            If OKX cannot be asked for its time.
        """
        now_ms = await self.clock.now_ms()
        windows: list[tuple[str, Window]] = []
        months: set[SeriesMonth] = set()
        for (symbol, timeframe), ranges in wanted.items():
            opens = (open_ms for each in ranges for open_ms in timeframe.opens(*each))
            windows += [(symbol, window) for window in windows_over(timeframe, opens, now_ms)]
            for each in ranges:
                months |= _months(Span(symbol, timeframe, *each))
        return self._planned(windows, months, {}, now_ms)

    def _planned(
        self, windows: list[tuple[str, Window]], months: set[SeriesMonth], notes: dict[Span, str], now_ms: int
    ) -> Plan:
        windows.sort(key=lambda each: -each[1].end_ms)
        cost = estimate((window for _, window in windows), self.settings.rest_rate)
        return Plan(windows, months, cost, notes, now_ms)

    def check_disk(self, plan: Plan) -> None:
        """Refuse a plan that the disk of OKX_HOME has no room for.

        Raises
        ------
        PipelineError
            Saying how much is needed and how much is there.
        """
        if self.settings.database_url is not None:
            return  # what is free over there cannot be seen from here
        folder = next(path for path in (self.settings.root, *self.settings.root.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        needed = plan.estimate.disk_bytes + SPARE_DISK_BYTES
        if free < needed:
            raise PipelineError(
                f"this backfill needs about {needed // 1_000_000} MB and {folder} has {free // 1_000_000} MB free; "
                "free some space or ask for fewer days"
            )

    async def run(self, plan: Plan, *, progress: Progress | None = None) -> Report:
        """Fetch and land everything in `plan`, then bring the Parquet files of its months and the ledger up to date.

        Raises
        ------
        ExchangeError
            If OKX cannot be asked to the last try. What came before has landed and is projected.
        DetachedMonthError
            If months of the plan have a detached partition. All other months have landed and are projected.
        StorageError
            If the database or the disk refuses. What landed before stays.
        """
        report = await self.run_attached(plan, progress=progress)
        if report.detached:
            raise DetachedMonthError(report.detached)
        return report

    async def run_attached(self, plan: Plan, *, progress: Progress | None = None) -> Report:
        """As `run`, but months whose partition is detached are only noted in the report."""
        started = monotonic()
        report = Report(notes=dict(plan.notes), began_at=await asyncio.to_thread(self.store.database_now))
        wanted = await asyncio.to_thread(self._that_can_land, plan, report)

        def tell(phase: Phase, done: int, total: int) -> None:
            if progress is not None:
                progress(phase, done=done, total=total, rows=report.rows, requests=report.requests)

        try:
            if plan.windows:
                tell("fetching", 0, len(plan.windows))
            # Each endpoint has a budget of its own, and neither waits for the other's.
            async with asyncio.TaskGroup() as group:
                for endpoint in (protocol.CANDLES, protocol.HISTORY_CANDLES):
                    windows = [each for each in wanted if each[1].endpoint == endpoint]
                    if windows:
                        group.create_task(self._fetch(windows, report, plan, tell))
        except BaseExceptionGroup as problems:
            raise problems.exceptions[0] from None
        finally:
            try:
                project = partial(tell, "projecting")
                report.projected = await asyncio.to_thread(self.store.project, sorted(plan.months), project)
            finally:
                tell("counting", 0, 1)
                await asyncio.to_thread(
                    self.store.account, self.clock.carried_ms(), report.reads(plan.now_ms), report.began_at
                )
                tell("counting", 1, 1)
                report.seconds = monotonic() - started
        return report

    async def _fetch(
        self, windows: Sequence[tuple[str, Window]], report: Report, plan: Plan, tell: Callable[[Phase, int, int], None]
    ) -> None:
        noted_s = monotonic()
        async with fetch_windows(self.client, windows, concurrency=CONCURRENCY) as results:
            async for result in results:
                await self._land(result, report)
                tell("fetching", report.windows_done, len(plan.windows))
                if monotonic() - noted_s > NOTE_EVERY_S:
                    async with self._landing:
                        reads = report.reads(plan.now_ms)
                        await _to_its_end(
                            asyncio.to_thread(self.store.account, self.clock.carried_ms(), reads, report.began_at)
                        )
                    noted_s = monotonic()

    async def _land(self, result: WindowResult, report: Report) -> None:
        name = result.window.timeframe.name
        async with self._landing:
            for index, page in enumerate(result.pages):
                refused = result.refused if index == 0 else []
                landed = await self._land_page(page.candles, refused, page.sent_at, report)
                for day, change in landed.changes.items():
                    report.days[day].inserted += change.inserted
                    report.days[day].corrected += change.corrected
                for symbol, timeframe, open_ms in landed.disputed:
                    report.days[SeriesDay(symbol, timeframe, day_of(open_ms))].disputed += 1
        quarantined = Counter(day_of(row.timestamp_ms) for row in result.refused if row.timestamp_ms is not None)
        for utc_day, rows in quarantined.items():
            report.days[SeriesDay(result.symbol, name, utc_day)].quarantined += rows
        # Days that could not land were not read: they are asked for again once their month is attached.
        for utc_day, candles in _candles_by_day(result.window).items():
            if report.is_detached(utc_day):
                continue
            done = report.days[SeriesDay(result.symbol, name, utc_day)]
            done.asked += candles
            done.requests += result.requests
        for utc_day, candles in Counter(day_of(candle.timestamp_ms) for candle in result.candles).items():
            if not report.is_detached(utc_day):
                report.days[SeriesDay(result.symbol, name, utc_day)].served += candles
        report.requests += result.requests
        report.rows += len(result.candles)
        report.windows_done += 1

    async def _land_page(
        self, candles: Sequence[Candle], refused: Sequence[Refused], sent_at: datetime, report: Report
    ) -> Landed:
        """Land what can land; months whose partition is detached are noted in the report."""
        land = partial(self.store.land, source=Source.REST, requested_at=sent_at)
        while True:
            try:
                return await _to_its_end(asyncio.to_thread(land, candles, refused))
            except DetachedMonthError as problem:
                report.detached.update(problem.months)
                _, candles = problem.divide(candles)

    def _that_can_land(self, plan: Plan, report: Report) -> list[tuple[str, Window]]:
        """The windows of `plan` of which a candle can land; months whose partition is detached are noted."""
        with translated(self.store.place):
            detached = {each.month: each for each in detached_months(self.store.connection)}
        if not detached:
            return plan.windows
        windows = []
        for symbol, window in plan.windows:
            opens = window.timeframe.opens(window.start_ms, window.end_ms)
            months = {month_of(open_ms) for open_ms in opens}
            report.detached.update(detached[month] for month in months & detached.keys())
            if months - detached.keys():
                windows.append((symbol, window))
        return windows

    def _have(self, span: Span) -> list[int]:
        return self.store.opens(span.symbol, span.timeframe, span.start_ms, span.end_ms)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; if cancelled meanwhile, only once it has ended: its thread goes on and holds the connection."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _months(span: Span) -> set[SeriesMonth]:
    opens = _MONTH.opens(_MONTH.open_at(span.start_ms), span.end_ms)
    return {SeriesMonth(span.symbol, span.timeframe.name, day_of(open_ms)) for open_ms in opens}


def _candles_by_day(window: Window) -> Counter[date]:
    return Counter(day_of(open_ms) for open_ms in window.timeframe.opens(window.start_ms, window.end_ms))
