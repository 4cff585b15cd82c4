"""Faults in any order: an exchange, the sidecar's own decisions, other writers and a store, one step at a time.

The sidecar is the real one but for what waits: no socket, no thread, no clock of its own. What must hold is said here
once, for whichever store it runs on:

- G1: after recovery every closed candle is held, or quarantined, or the ledger has a gap of it.
- G2: a key is held once.
- G3: what is held is what the exchange said, to the last digit, confirmed and closed.
- G4: a value changes only through a revision, and only by what REST was asked for later; never by arriving later.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from okx_pipeline.candles import Source
from okx_pipeline.exchange.clock import ExchangeClock
from okx_pipeline.exchange.errors import UnreachableError
from okx_pipeline.exchange.frames import Series, decode_frame, encode_push
from okx_pipeline.exchange.messages import decode_envelope, decode_page, encode_success
from okx_pipeline.exchange.protocol import Endpoint
from okx_pipeline.exchange.rest import ServedPage
from okx_pipeline.exchange.windows import fetch_window
from okx_pipeline.history.plan import windows_over
from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.landing import Key, Landed
from okx_pipeline.storage.parquet import SeriesMonth
from okx_pipeline.storage.stream_status import SidecarLock
from okx_pipeline.stream.lander import Batch, Lander
from okx_pipeline.stream.sidecar import EARLY_MS, Sidecar
from okx_pipeline.timeframes import GRACE_MS, HOUR_MS, SECOND_MS, Timeframe, day_ms, parse_timeframe
from okx_pipeline_tests.faults.store_model import Held, Revision, Store, expected

START: Final = day_ms(date(2026, 1, 30))
"""Two days before a month ends, so that a few candles reach the next."""

SERIES: Final = (Series("BTC-USDT-SWAP", parse_timeframe("12h")), Series("ETH-USDT", parse_timeframe("1d")))
WANTED: Final = dict.fromkeys(SERIES, START)
MONTHS: Final = (date(2026, 1, 1), date(2026, 2, 1))

Row = list[str]
"""A candle as the exchange writes it."""


def row_of(open_ms: int, close: str, number: int, *, possible: bool = True, confirm: str = "1") -> Row:
    """A candle; `number` makes its volumes those of no other, `possible` whether a market can have it."""
    return [str(open_ms), "2", "3" if possible else "0.5", "1", close, str(number), f"{number}.5", "0.10", confirm]


def padded(row: Row) -> Row:
    """The same numbers as the WebSocket spells them."""
    return [row[0], *(text + ("0" if "." in text else ".00") for text in row[1:8]), row[8]]


@dataclass
class Market:
    """What the exchange knows: every candle that has closed, with all values it ever had; REST serves the last."""

    now_ms: int = START
    values: dict[Key, list[Row]] = field(default_factory=dict)
    hidden: set[Key] = field(default_factory=set)
    said: dict[Key, list[Row]] = field(default_factory=dict)
    """What frames said otherwise."""
    rows: int = 0

    def next_row(self, open_ms: int, close: str, **how: Any) -> Row:
        """A row that is no other."""
        self.rows += 1
        return row_of(open_ms, close, self.rows, **how)

    def served(self, series: Series) -> list[Row]:
        """What REST serves of a series, newest first, the candle that is forming included."""
        name = (series.symbol, series.timeframe.name)
        forming = row_of(series.timeframe.open_at(self.now_ms), "1", 0, confirm="0")
        closed = [each[-1] for key, each in self.values.items() if key[:2] == name and key not in self.hidden]
        return [forming, *sorted(closed, key=lambda row: -int(row[0]))]


class Clock(ExchangeClock):
    """The exchange's time, known to everybody exactly."""

    def __init__(self, market: Market, client: Any) -> None:
        super().__init__(client)
        self._market = market

    async def now_ms(self) -> int:
        return self._market.now_ms

    def carried_ms(self) -> int:
        return self._market.now_ms


class Client:
    """REST without a network: bodies as OKX writes them, read by what reads OKX's."""

    def __init__(self, market: Market, now: Callable[[], datetime]) -> None:
        self._market = market
        self._now = now
        self.failures = 0
        self.page_rows = 3

    async def candles_page(
        self, endpoint: Endpoint, symbol: str, timeframe: Timeframe, after_ms: int, limit: int | None = None
    ) -> ServedPage:
        if self.failures:
            self.failures -= 1
            raise UnreachableError("the exchange does not answer")
        sent_at = self._now()
        rows = [row for row in self._market.served(Series(symbol, timeframe)) if int(row[0]) < after_ms]
        body = encode_success(rows[: limit or self.page_rows])
        return ServedPage(decode_page(decode_envelope(body).data, symbol, timeframe), sent_at)


class AtOnce(ThreadPoolExecutor):
    """Does in the caller's thread, at once, what is given to threads."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except Exception as problem:  # noqa: BLE001 - whatever it is belongs to who asked
            done.set_exception(problem)
        return done


@cache
def _settings() -> Settings:
    return Settings(ws_url="ws://127.0.0.1:1/", rest_url="http://127.0.0.1:1")


class Program(Sidecar):
    """The sidecar's decisions: what frames mean, what is behind, what is asked of REST, what has landed."""

    def __init__(self, store: Store, market: Market, client: Client) -> None:
        nowhere = Database("postgresql://nobody@127.0.0.1:1/nothing")
        super().__init__(_settings(), nowhere, client, "sequence:1", SidecarLock(nowhere))  # type: ignore[arg-type]
        self.store = store
        self._clock = Clock(market, client)
        # A few candles, so that the buffer is full now and then.
        self._lander = Lander(nowhere, self._files, self.counters, self._landed, capacity=6)

    def _read_subscriptions(self, known: Collection[Series]) -> tuple[set[Series], dict[Series, int]]:
        return set(SERIES), self.store.offsets(set(SERIES).difference(known))

    def _write_beat(self, now_ms: int | None, counters: Any, refused: Any, moved: dict[Series, int]) -> None:
        self.store.save_offsets(moved)

    def _held(self, series: Series, from_ms: int, until_ms: int) -> list[int]:
        return self.store.opens(series.symbol, series.timeframe, from_ms, until_ms)

    async def start(self) -> None:
        """Find out what is wanted, and how far it has come."""
        await self._follow_subscriptions()

    async def beat(self) -> None:
        """Note how far everything has come."""
        await self._beat()

    def starts_from(self) -> dict[Series, int]:
        """From which candle on this run looks after each series."""
        return {series: progress.through_ms for series, progress in self._progress.items()}

    def waits(self) -> bool:
        """Whether anything waits to be landed."""
        return bool(self._lander._waiting)

    def take_batch(self) -> Batch | None:
        """The batch whose turn it is."""
        return self._lander._waiting.popleft() if self._lander._waiting else None

    def put_back(self, batch: Batch) -> None:
        """A batch that was not acknowledged is landed again."""
        self._lander._waiting.appendleft(batch)

    def has_landed(self, batch: Batch, landed: Landed) -> None:
        """A batch was acknowledged."""
        self._lander._size -= len(batch.candles) + len(batch.refused)
        self._landed(batch, landed)

    def database_is(self, *, away: bool) -> None:
        """As the lander notes it."""
        self._lander.is_away = away

    def behind(self) -> list[Series]:
        """Series of which REST is to be asked now."""
        if self._lander.is_away:
            return []
        now_ms = self._clock.carried_ms()
        return [series for series, progress in self._progress.items() if progress.is_behind(now_ms)]

    async def catch_up(self, series: Series) -> None:
        """Ask REST for what is missing of a series."""
        await self._catch_up(series)

    def is_disputed(self) -> bool:
        """Whether REST is to be asked about anything."""
        return bool(self._disputed)

    async def settle_disputes(self) -> None:
        """Ask REST about every candle of which somebody said something else than what is stored."""
        keys = list(self._disputed)
        self._disputed.clear()
        for key in keys:
            await self._settle(*key)


@dataclass(slots=True)
class Witness:
    """Holds every landing against G2 to G4, by what was held before and after it alone.

    It knows neither the model nor the SQL: only what the exchange said, and when REST was asked.
    """

    market: Market
    seen: dict[Key, Held] = field(default_factory=dict)
    revisions: int = 0

    def look(self, store: Store, batch: Batch | None = None) -> None:
        """Look at what is held now; what changed since the last look, `batch` must account for."""
        held, revisions = store.held(), store.revisions()
        offered = {row.key: row for row in batch.candles} if batch is not None else {}
        new = list(revisions[self.revisions :])
        assert held.keys() >= self.seen.keys(), f"lost: {sorted(self.seen.keys() - held.keys())}"
        for key, row in held.items():
            before = self.seen.get(key)
            if before is None or before.values != row.values:
                assert batch is not None, f"{key} changed although nothing landed"
                assert row.source is batch.source
                self._exact(key, row)
            if before is not None and before.values != row.values:
                assert batch is not None
                assert batch.source is Source.REST, f"{key}: a frame changed {before} to {row}"
                assert batch.requested_at is not None
                assert batch.requested_at > before.updated_at, f"{key}: an older answer changed {before} to {row}"
                new.remove(Revision(key, before.values, before.source, row.source))
        assert not new, f"revisions of nothing that changed: {new}"
        if batch is not None and batch.source is Source.REST and batch.requested_at is not None:
            for key, candle in offered.items():
                before = self.seen.get(key)
                if before is None or before.updated_at < batch.requested_at:
                    assert held[key].values == candle.values, f"{key}: REST was asked later and does not count"
        for key in offered:
            assert key in held, f"{key} was acknowledged and is not held"
        self.seen, self.revisions = held, len(revisions)

    def _exact(self, key: Key, row: Held) -> None:
        timeframe = parse_timeframe(key[1])
        assert timeframe.close_of(key[2]) <= self.market.now_ms + EARLY_MS, f"{key} is held and has not closed"
        known = self.market.values.get(key, [])
        if row.source is Source.WEBSOCKET:
            known = known + self.market.said.get(key, [])
        numbers = [[Decimal(text) for text in each[1:8]] for each in known]
        assert [Decimal(text) for text in row.values] in numbers, f"{key}: the exchange never said {row}"
        assert row.values[1] != "0.5", f"{key}: no market can have {row}"
        assert all("." not in text or text[-1] not in "0." for text in row.values), f"{key}: padding zeros in {row}"


closes = st.sampled_from(["1", "1.5", "2", "3"])
which = st.sampled_from(["12h", "1d"])
SERIES_OF: Final = {series.timeframe.name: series for series in SERIES}
some = st.integers(0, 50)


class Sequences(RuleBasedStateMachine):
    """Any order of what can happen; made with the store that it happens to."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(AtOnce(1))
        self.market = Market()
        self.client = Client(self.market, store.now)
        self.witness = Witness(self.market)
        self.outbox: dict[Series, list[Row]] = {series: [] for series in SERIES}
        self.answers: list[Batch] = []
        self.connected = True
        self.database_away = False
        self.since: dict[Series, int] = {}
        self.disputed: dict[Key, int] = {}
        """Which of a candle's values was the last when somebody was found to contradict what is held."""
        self._start()

    def run_async(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    def _start(self) -> None:
        self.program = Program(self.store, self.market, self.client)
        self.program.database_is(away=self.database_away)
        self.disputed.clear()
        self.run_async(self.program.start())
        self.since = self.program.starts_from()
        self.reconnect()

    # Time, and what the exchange says

    @initialize(candles=st.integers(2, 8))
    def some_candles_have_closed(self, candles: int) -> None:
        """So that there is something for everything to happen to, on both sides of the month's end."""
        for _ in range(candles):
            self.a_candle_closes(what="plain", close="1")

    @rule(what=st.sampled_from(["plain", "plain", "plain", "never served", "impossible"]), close=closes)
    def a_candle_closes(self, what: str, close: str) -> None:
        now_ms = min(series.timeframe.close_of(series.timeframe.open_at(self.market.now_ms)) for series in SERIES)
        self.market.now_ms = now_ms
        for series in SERIES:
            open_ms = series.timeframe.step(series.timeframe.open_at(now_ms), -1)
            key = (series.symbol, series.timeframe.name, open_ms)
            if series.timeframe.close_of(open_ms) != now_ms:
                continue
            row = self.market.next_row(open_ms, close, possible=what != "impossible")
            self.market.values[key] = [row]
            if what == "never served":
                self.market.hidden.add(key)
            elif self.connected:
                self.outbox[series].append(row)

    @rule(seconds=st.sampled_from([1, 3, 15, 90, 600]))
    def time_passes(self, seconds: int) -> None:
        latest = min(series.timeframe.close_of(series.timeframe.open_at(self.market.now_ms)) for series in SERIES)
        self.market.now_ms = min(self.market.now_ms + seconds * SECOND_MS, latest - 1)

    @rule(pick=some, close=closes, possible=st.sampled_from([True, True, True, False]))
    @precondition(lambda self: self.market.values)
    def the_exchange_corrects_a_candle(self, pick: int, close: str, possible: bool) -> None:
        key = sorted(self.market.values)[pick % len(self.market.values)]
        self.market.values[key].append(self.market.next_row(key[2], close, possible=possible))

    @rule()
    @precondition(lambda self: self.market.hidden)
    def the_exchange_serves_what_it_did_not(self) -> None:
        self.market.hidden.remove(min(self.market.hidden))

    # Frames

    def push(self, series: Series, rows: list[Row]) -> None:
        frame = decode_frame(encode_push(series, rows))
        assert frame.arg is not None
        assert frame.arg.series == series
        assert frame.data is not None
        self.program.pushed(series, frame.data, 0.0)

    def waiting(self, pick: int) -> tuple[Series, Row]:
        """One of the frames that are on their way."""
        every = [(series, row) for series in SERIES for row in self.outbox[series]]
        return every[pick % len(every)]

    @rule(pick=some, spelling=st.sampled_from([padded, list]), keep=st.booleans(), lands=st.booleans())
    @precondition(lambda self: any(self.outbox.values()))
    def a_frame(self, pick: int, spelling: Callable[[Row], Row], keep: bool, lands: bool) -> None:
        """In or out of order; kept, it comes again."""
        series, row = self.waiting(pick)
        if not keep:
            self.outbox[series].remove(row)
        self.push(series, [spelling(row)])
        if lands:
            self.what_waits_lands()

    @rule(timeframe=which, lands=st.booleans())
    @precondition(lambda self: any(self.outbox.values()))
    def all_that_waits_in_one_frame(self, timeframe: str, lands: bool) -> None:
        series = SERIES_OF[timeframe]
        rows, self.outbox[series] = self.outbox[series], []
        if rows:
            self.push(series, [*rows, padded(rows[0])])
        if lands:
            self.what_waits_lands()

    @rule(pick=some)
    @precondition(lambda self: any(self.outbox.values()))
    def a_frame_that_never_comes(self, pick: int) -> None:
        series, row = self.waiting(pick)
        self.outbox[series].remove(row)

    @rule(pick=some, close=closes, twice=st.booleans(), lands=st.booleans())
    @precondition(lambda self: self.connected)
    def a_frame_that_says_something_else(self, pick: int, close: str, twice: bool, lands: bool) -> None:
        key = sorted(self.market.values)[pick % len(self.market.values)]
        rows = [self.market.next_row(key[2], close) for _ in range(1 + twice)]
        self.market.said.setdefault(key, []).extend(rows)
        self.push(SERIES_OF[key[1]], rows)
        if lands:
            self.what_waits_lands()

    @rule(timeframe=which, close=closes, seconds=st.sampled_from([3, 1]))
    def a_frame_confirmed_before_its_close(self, timeframe: str, close: str, seconds: int) -> None:
        series = SERIES_OF[timeframe]
        open_ms = series.timeframe.open_at(self.market.now_ms)
        if series.timeframe.close_of(open_ms) > self.market.now_ms + EARLY_MS:
            self.push(series, [self.market.next_row(open_ms, close)])

    @rule(timeframe=which, back=st.integers(0, 2), close=closes)
    def a_frame_that_is_not_confirmed(self, timeframe: str, back: int, close: str) -> None:
        series = SERIES_OF[timeframe]
        open_ms = series.timeframe.step(series.timeframe.open_at(self.market.now_ms), -back)
        self.push(series, [self.market.next_row(open_ms, close, confirm="0")])

    @rule(timeframe=which, change=st.sampled_from(["high", "boundary", "number", "fields", "confirm"]))
    def a_frame_that_no_market_can_have(self, timeframe: str, change: str) -> None:
        series = SERIES_OF[timeframe]
        # Not of a day before the first that is wanted, all of which would count as wanted then.
        open_ms = max(START, series.timeframe.step(series.timeframe.open_at(self.market.now_ms), -1))
        row = self.market.next_row(open_ms, "1")
        if change == "high":
            row[2] = "0.5"
        elif change == "boundary":
            row[0] = str(open_ms + HOUR_MS)
        elif change == "number":
            row[5] = "NaN"
        elif change == "fields":
            row.insert(7, "1")
        else:
            row[8] = "2"
        self.push(series, [row])

    @rule()
    def the_connection_is_lost(self) -> None:
        self.connected = False
        for series in SERIES:
            self.outbox[series].clear()
        self.program.lost(SERIES)

    @rule()
    def reconnect(self) -> None:
        self.connected = True
        self.program.subscribed(SERIES)

    # Landing, and what may come between

    def land(self, batch: Batch) -> Landed:
        landed = self.store.land(batch.candles, batch.refused, source=batch.source, requested_at=batch.requested_at)
        self.witness.look(self.store, batch)
        return landed

    def acknowledge(self, batch: Batch) -> None:
        landed = self.land(batch)
        self.program.has_landed(batch, landed)
        for key in landed.disputed:
            self.disputed[key] = len(self.market.values.get(key, [])) - 1

    @rule()
    @precondition(lambda self: self.program.waits())
    def what_waits_lands(self) -> None:
        while not self.database_away and (batch := self.program.take_batch()) is not None:
            self.acknowledge(batch)

    @rule()
    @precondition(lambda self: self.program.waits())
    def a_batch_lands(self) -> None:
        batch = None if self.database_away else self.program.take_batch()
        if batch is not None:
            self.acknowledge(batch)

    @rule()
    @precondition(lambda self: self.program.waits())
    def a_batch_lands_and_nobody_hears_of_it(self) -> None:
        batch = None if self.database_away else self.program.take_batch()
        if batch is not None:
            self.land(batch)
            self.program.put_back(batch)

    @rule(point=st.sampled_from(["before", "amid", "after"]))
    def crash(self, point: str) -> None:
        """Killed before, amid or after the commit of a batch; what waited in memory is gone."""
        batch = None if self.database_away else self.program.take_batch()
        if batch is not None and point == "after":
            self.land(batch)
        elif batch is not None and point == "amid":
            how = {"source": batch.source, "requested_at": batch.requested_at}
            self.store.land_and_die(batch.candles, batch.refused, **how)
            self.witness.look(self.store)
        self._start()

    @rule()
    @precondition(lambda self: not self.database_away)
    def the_database_goes_away(self) -> None:
        self.database_away = True
        self.program.database_is(away=True)

    @rule()
    @precondition(lambda self: self.database_away)
    def the_database_is_back(self) -> None:
        if self.database_away:
            self.database_away = False
            self.store.reopen()
            self.program.database_is(away=False)

    @rule()
    def heartbeat(self) -> None:
        if not self.database_away:
            self.run_async(self.program.beat())

    # REST

    @rule(failures=st.sampled_from([0, 0, 1, 2]), rows=st.sampled_from([1, 2, 300]))
    @precondition(lambda self: self.program.behind())
    def catch_up(self, failures: int, rows: int) -> None:
        self.client.failures, self.client.page_rows = failures, rows
        for series in self.program.behind():
            self.run_async(self.program.catch_up(series))
        self.client.failures = 0

    @rule(failures=st.sampled_from([0, 0, 1]))
    @precondition(lambda self: self.program.is_disputed())
    def disputes_are_settled(self, failures: int) -> None:
        self.client.failures = failures
        self.run_async(self.program.settle_disputes())
        self.client.failures = 0

    async def _ask(self, series: Series) -> list[Batch]:
        now_ms = self.market.now_ms
        found = []
        for window in windows_over(series.timeframe, series.timeframe.opens(START, now_ms), now_ms):
            result = await fetch_window(self.client, series.symbol, window)  # type: ignore[arg-type]
            for index, page in enumerate(result.pages):
                refused = result.refused if index == 0 else []
                found.append(Batch(page.candles, refused, Source.REST, page.sent_at))
        return found

    @rule(timeframe=which)
    def a_backfill_asks(self, timeframe: str) -> None:
        series = SERIES_OF[timeframe]
        self.answers += self.loop.run_until_complete(self._ask(series))

    @rule(pick=some)
    @precondition(lambda self: self.answers)
    def a_backfill_lands_what_it_was_answered(self, pick: int) -> None:
        if self.answers and not self.database_away:
            self.land(self.answers.pop(pick % len(self.answers)))

    # Maintenance

    @rule()
    def project(self) -> None:
        if not self.database_away:
            self.store.project()

    @rule(
        month=st.sampled_from(MONTHS),
        timeframes=st.sampled_from([("12h",), ("1d",), ("12h", "1d")]),
        swap=st.booleans(),
    )
    @precondition(lambda self: self.witness.seen and not self.database_away)
    def archive(self, month: date, timeframes: tuple[str, ...], swap: bool) -> None:
        for series in (SERIES_OF[each] for each in timeframes):
            self.store.archive(SeriesMonth(series.symbol, series.timeframe.name, month))
        if swap:
            self.store.maintain(month)
        self.witness.look(self.store)

    @rule(timeframe=which, month=st.sampled_from(MONTHS))
    @precondition(lambda self: self.witness.seen and not self.database_away)
    def bring_back(self, timeframe: str, month: date) -> None:
        series = SERIES_OF[timeframe]
        self.store.bring_back(SeriesMonth(series.symbol, series.timeframe.name, month))
        self.witness.look(self.store)

    @rule()
    def account(self) -> None:
        if not self.database_away:
            self._explained()

    # What must hold

    def _explained(self) -> None:
        """Every candle that is due is held, or quarantined, or in a gap of the ledger; and no other is."""
        ledger = self.store.ledger(WANTED, self.market.now_ms)
        self.witness.look(self.store)
        held, refused = self.store.held(), self.store.refused()
        for series, opens in expected(WANTED, self.market.now_ms).items():
            keys = {(series.symbol, series.timeframe.name, open_ms) for open_ms in opens}
            lacking = sorted(key[2] for key in keys if key not in held and key not in refused)
            assert ledger.gaps[series] == lacking, f"{series}: gaps {ledger.gaps[series]}, lacking {lacking}"
            counted = [day for key, day in ledger.days.items() if key[0] == series.symbol]
            assert sum(day[0] for day in counted) == len(keys)
            assert sum(day[1] for day in counted) == sum(key in held for key in keys)
            assert sum(day[3] for day in counted) == len(lacking)

    def teardown(self) -> None:
        try:
            self._recover()
        finally:
            self.loop.close()

    def _recover(self) -> None:
        self.the_database_is_back()
        self.reconnect()
        self.market.now_ms += GRACE_MS
        self.client.failures, self.client.page_rows = 0, 300
        for _ in range(60):
            self.what_waits_lands()
            self.run_async(self.program.settle_disputes())
            for series in self.program.behind():
                self.run_async(self.program.catch_up(series))
            self.what_waits_lands()
            self.market.now_ms += 60 * SECOND_MS
        self._is_complete(self.since, "the sidecar has caught up")
        self._is_decided()
        self._explained()
        for timeframe in SERIES_OF:
            self.a_backfill_asks(timeframe)
        # Whatever was asked for before comes late: it must not undo what was asked for later.
        for batch in reversed(self.answers):
            self.land(batch)
        self._is_complete(WANTED, "history has been read")
        self._is_the_truth()
        self.store.project()
        self._explained()
        self._is_proven()

    def _is_proven(self) -> None:
        """What the exchange does not serve is proven absent, or still to be asked for; what it serves is neither."""
        clock = Clock(self.market, self.client)
        for _ in range(2):
            self.market.now_ms += 16 * 60 * SECOND_MS
            work = self.store.proves(_settings(), self.client, clock, WANTED)
            absent = self.loop.run_until_complete(work)
            if absent is not None:
                held, refused = self.store.held(), self.store.refused()
                assert absent <= self.market.hidden, f"served and called absent: {sorted(absent - self.market.hidden)}"
                assert not absent & held.keys()
                assert not absent & refused

    def _is_complete(self, since: dict[Series, int], when: str) -> None:
        held, refused = self.store.held(), self.store.refused()
        for series, opens in expected(since, self.market.now_ms).items():
            for open_ms in opens:
                key = (series.symbol, series.timeframe.name, open_ms)
                known = key in held or key in refused or key in self.market.hidden
                assert known, f"{key} is neither held nor explained when {when}"

    def _is_decided(self) -> None:
        """Where two have said different things REST was asked since, and what it said is held."""
        for key, first in self.disputed.items():
            served = self.market.values[key][first:]
            said = [self._numbers(row[1:8]) for row in served if row[2] != "0.5"]
            # What no market can have decides nothing; that REST said it is on record.
            undecided = key in self.market.hidden or (served[-1][2] == "0.5" and key in self.store.refused())
            assert undecided or self._numbers(self.witness.seen[key].values) in said, (
                f"{key} is disputed, and what is held is not what REST serves: {self.witness.seen[key]}"
            )

    def _is_the_truth(self) -> None:
        held = self.store.held()
        for key, versions in self.market.values.items():
            row = versions[-1]
            if key not in self.market.hidden and row[2] != "0.5":
                assert self._numbers(held[key].values) == self._numbers(row[1:8]), f"{key}: {row}"

    @staticmethod
    def _numbers(texts: Iterable[str]) -> list[Decimal]:
        return [Decimal(text) for text in texts]
