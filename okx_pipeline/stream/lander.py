"""Landing as a stream needs it: batched by time and size, patient while the database is away, bounded in memory.

Frames never wait for it. Candles that do not fit are dropped here and fetched again later: the exchange is the log.
Candles of a month whose partition is detached wait apart, so that all others land.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from time import monotonic
from typing import Final

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.errors import PipelineError
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database, DatabaseError, RefusedRowError
from okx_pipeline.storage.landing import Landed
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore
from okx_pipeline.storage.partitions import DetachedMonthError, detached_months
from okx_pipeline.stream.counters import Counters
from okx_pipeline.timeframes import month_of

FLUSH_AFTER_S: Final = 0.1
"""How long a confirmed candle waits for others that close with it."""

BATCH: Final = 2_000
CAPACITY: Final = 100_000
"""Candles that wait at the most, some 50 MB; a thousand series of one minute fill it in 100 minutes.

Half as many more may wait for their month to be attached.
"""

LONGEST_PAUSE_S: Final = 5.0
LAST_S: Final = 5.0
"""How long it goes on landing when it is told to end; a statement that takes longer is cancelled."""

ATTACHED_AGAIN_S: Final = 5.0
"""How often the lander looks whether a detached month is attached again."""

_OF_SOME_ROWS: Final = (*RefusedRowError, DamagedFileError)
"""Why a single row cannot land: the tables refuse it, or its month is archived in a file that is damaged."""


@dataclass(slots=True)
class Batch:
    """Candles that land together; from the WebSocket, `requested_at` is None.

    Parameters
    ----------
    received_s
        When the first of them was received, by the monotonic clock.
    joined
        When those that joined later were received, and how many each time.
    """

    candles: list[Candle]
    refused: list[Refused] = field(default_factory=list)
    source: Source = Source.WEBSOCKET
    requested_at: datetime | None = None
    received_s: float = field(default_factory=monotonic)
    joined: list[tuple[float, int]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many there are of both kinds."""
        return len(self.candles) + len(self.refused)

    def arrivals(self) -> Iterator[tuple[float, int]]:
        """When candles were received, and how many each time."""
        yield self.received_s, len(self.candles) - sum(number for _, number in self.joined)
        yield from self.joined


class Lander:
    """Lands what it is offered, in the order offered, on a connection of its own.

    Parameters
    ----------
    on_landed
        Told, in the event loop, what became of a batch.
    """

    def __init__(
        self,
        database: Database,
        files: ParquetStore,
        counters: Counters,
        on_landed: Callable[[Batch, Landed], None],
        *,
        capacity: int = CAPACITY,
    ) -> None:
        self._database = database
        self._files = files
        self._counters = counters
        self._on_landed = on_landed
        self._capacity = capacity
        self._waiting: deque[Batch] = deque()
        self._size = 0
        self._held_back: deque[Batch] = deque()
        self._size_held_back = 0
        self._look_s = 0.0
        self._arrived = asyncio.Event()
        self._store: CandleStore | None = None
        self._opened = ExitStack()
        self._landing: asyncio.Future[Landed] | None = None
        # Whoever streamed before may have ended without.
        self._is_marked = False
        self._arrived.set()
        self.is_away = False

    @property
    def waiting(self) -> int:
        """Candles that wait to be landed, or for their month to be attached."""
        return self._size + self._size_held_back

    @property
    def lag_s(self) -> float:
        """How long the oldest of them has waited."""
        oldest = [batches[0].received_s for batches in (self._waiting, self._held_back) if batches]
        return monotonic() - min(oldest) if oldest else 0.0

    def offer(self, batch: Batch) -> bool:
        """Take a batch to be landed; False if there is no room, and then it is forgotten."""
        if self._size and self._size + batch.rows > self._capacity:
            return False
        self._append(batch)
        return True

    def _append(self, batch: Batch) -> None:
        self._size += batch.rows
        last = self._waiting[-1] if self._waiting else None
        merges = last is not None and last.source is batch.source is Source.WEBSOCKET
        if last is not None and merges and len(last.candles) + batch.rows <= BATCH:
            last.candles += batch.candles
            last.refused += batch.refused
            last.joined.append((batch.received_s, len(batch.candles)))
        else:
            self._waiting.append(batch)
        self._arrived.set()

    async def run(self) -> None:
        """Land for ever; on cancellation, what waits is landed first if the database lets it.

        Marks are made when nothing waits any more: candles go first.
        """
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(ATTACHED_AGAIN_S if self._held_back else None):
                        await self._arrived.wait()
                self._arrived.clear()
                await asyncio.sleep(FLUSH_AFTER_S)
                await self._release()
                await self._drain()
        finally:
            if not self.is_away:
                await asyncio.shield(self._last_drain())
            await asyncio.shield(self._end_landing())
            await asyncio.to_thread(self._close)

    async def _drain(self) -> None:
        pause_s = 0.1
        while self._waiting or not self._is_marked:
            # Taken off before it lands, so that nothing is added to a batch that is being landed.
            batch = self._waiting.popleft() if self._waiting else Batch([])
            try:
                await self._land_or_mark(batch)
            except (PipelineError, DatabaseError) as problem:
                self._put_back(batch)
                self.is_away = True
                self._counters.wrong("database away", str(problem).partition("\n")[0])
                await asyncio.to_thread(self._close)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                await self._revive()
            except asyncio.CancelledError:
                self._put_back(batch)
                raise
            else:
                pause_s = 0.1
                self.is_away = False

    async def _land_or_mark(self, batch: Batch) -> None:
        """Land a batch, or set apart those of its rows that cannot land; an empty one is the turn to make marks."""
        try:
            landed = await self._landed(batch)
        except DetachedMonthError as problem:
            self._hold_back(batch, problem)
            return
        except _OF_SOME_ROWS as problem:
            if not batch.rows:
                raise
            self._divide(batch, problem)
            return
        self._is_marked = not batch.rows
        if batch.rows:
            self._size -= batch.rows
            self._on_landed(batch, landed)

    def _put_back(self, batch: Batch) -> None:
        # The turn to make marks comes round again by itself, after what has come meanwhile.
        if batch.rows:
            self._waiting.appendleft(batch)

    def _hold_back(self, batch: Batch, problem: DetachedMonthError) -> None:
        """Have the candles of detached months wait apart; the oldest are left to gap repair when there are too many."""
        candles, others = problem.divide(batch.candles)
        self._counters.wrong("month detached", str(problem), len(candles))
        if others or batch.refused:
            self._waiting.appendleft(replace(batch, candles=others, joined=[]))
        self._held_back.append(replace(batch, candles=candles, refused=[], joined=[]))
        self._size -= len(candles)
        self._size_held_back += len(candles)
        while self._size_held_back > self._capacity // 2:
            oldest = self._held_back.popleft()
            self._size_held_back -= oldest.rows
            self._counters.wrong("left to gap repair", "too many candles wait for a month to be attached", oldest.rows)
            # As an answer of REST: whoever measures how fast frames land is not to count these.
            self._on_landed(replace(oldest, source=Source.REST), Landed())

    async def _release(self) -> None:
        """Queue the candles again whose month is attached by now."""
        if not self._held_back or monotonic() < self._look_s:
            return
        self._look_s = monotonic() + ATTACHED_AGAIN_S
        try:
            detached = await asyncio.to_thread(self._detached_months)
        except (PipelineError, DatabaseError) as problem:
            self._counters.wrong("database away", str(problem).partition("\n")[0])
            return
        for _ in range(len(self._held_back)):
            batch = self._held_back.popleft()
            if {month_of(candle.timestamp_ms) for candle in batch.candles} <= detached:
                self._held_back.append(batch)
            else:
                self._size_held_back -= batch.rows
                self._append(batch)

    def _detached_months(self) -> set[date]:
        with self._database.connect() as connection:
            return {each.month for each in detached_months(connection)}

    def _divide(self, batch: Batch, problem: Exception) -> None:
        """Land the other rows without one that cannot land; the ledger shows that it is missing."""
        candles, refused = batch.candles, batch.refused
        if batch.rows <= 1:
            self._counters.wrong("refused by the tables", str(problem).partition("\n")[0])
            self._size -= batch.rows
            self._on_landed(batch, Landed())
            return
        parts: list[tuple[list[Candle], list[Refused]]]
        if candles and refused:
            parts = [([], refused), (candles, [])]
        else:
            parts = [
                (candles[len(candles) // 2 :], refused[len(refused) // 2 :]),
                (candles[: len(candles) // 2], refused[: len(refused) // 2]),
            ]
        for part in parts:
            self._waiting.appendleft(Batch(*part, batch.source, batch.requested_at, batch.received_s))

    async def _last_drain(self) -> None:
        try:
            async with asyncio.timeout(LAST_S):
                # What was being landed is on its way yet, and waits here too: to land it again changes nothing.
                if self._landing is not None:
                    await asyncio.wait({self._landing})
                while (self._waiting or not self._is_marked) and not self.is_away:
                    await self._land_or_mark(self._waiting.popleft() if self._waiting else Batch([]))
        except (PipelineError, DatabaseError, TimeoutError) as problem:
            self._counters.wrong("not landed at the end", str(problem).partition("\n")[0])

    async def _landed(self, batch: Batch) -> Landed:
        self._landing = asyncio.ensure_future(asyncio.to_thread(self._land, batch))
        landed = await asyncio.shield(self._landing)
        self._landing = None
        return landed

    async def _end_landing(self) -> None:
        """Whoever was cancelled while a batch landed has left it in its thread, and the connection with it."""
        if self._landing is None:
            return
        if not self._landing.done() and self._store is not None:
            with suppress(DatabaseError):
                await asyncio.to_thread(self._store.connection.cancel_safe, timeout=LAST_S)
        await asyncio.wait({self._landing})
        # Of no interest any more: what has not landed is asked for again by whoever streams next.
        self._landing.exception()

    async def _revive(self) -> None:
        try:
            await asyncio.to_thread(self._database.revive)
        except PipelineError as problem:
            self._counters.wrong("database away", str(problem))

    def _land(self, batch: Batch) -> Landed:
        if self._store is None:
            self._store = self._opened.enter_context(CandleStore.opened(self._database, self._files))
        if not batch.rows:
            self._store.mark_landings()
            return Landed()
        return self._store.land(batch.candles, batch.refused, source=batch.source, requested_at=batch.requested_at)

    def _close(self) -> None:
        self._store = None
        self._opened.close()
