"""A lane: room for so many series, and a connection kept open for them; two while one takes over from the other.

When to open, when to try again and when to take leave is decided here, and how every series stands is kept here, over
all lanes. Which series are in which lane is `feed`'s decision, what one connection asks and hears `connection`'s work.
"""

import asyncio
import math
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from okx_pipeline.exchange.connection import STALL_S, TOGETHER_S, Connection, Listener, Oddity
from okx_pipeline.exchange.dialing import Dialer, back_off, delay_after
from okx_pipeline.exchange.errors import ExchangeError
from okx_pipeline.exchange.frames import Series

LASTING_S: Final = 60.0
"""A connection that held for so long was good, and the next one need not wait long."""

MOST_STALLS: Final = 6
"""The patience with a lane on which no candle comes doubles so often: a quiet market is no fault."""

ASK_AGAIN_S: Final = 120.0
LONGEST_ASK_AGAIN_S: Final = 3600.0
"""A refused series is asked for again after the one, then after twice as long each time, up to the other."""

_chance: Final = random.SystemRandom()


@dataclass(slots=True)
class _Refusal:
    pause_s: float
    until_s: float


class Reception:
    """How every wanted series stands: received, refused, or neither; the listener is told of changes."""

    def __init__(self, listener: Listener) -> None:
        self.received: set[Series] = set()
        self._listener = listener
        self._refusals: dict[Series, _Refusal] = {}

    def keep(self, wanted: Collection[Series]) -> None:
        """Forget all series but these."""
        self.received.intersection_update(wanted)
        self._refusals = {series: refusal for series, refusal in self._refusals.items() if series in wanted}

    def joined(self, series: Series, *, anew: bool) -> None:
        """It is received, on one connection more; `anew` if some of it may have been missed all the same."""
        self._refusals.pop(series, None)
        if anew or series not in self.received:
            self.received.add(series)
            self._listener.subscribed([series])

    def lost(self, series: Iterable[Series]) -> None:
        """They are received on no connection any more."""
        gone = sorted(self.received.intersection(series))
        self.received.difference_update(gone)
        if gone:
            self._listener.lost(gone)

    def refused(self, series: Series, code: str, message: str, *, is_received: bool) -> None:
        """OKX refuses it; another connection may still receive it."""
        if not is_received:
            self.received.discard(series)
        now_s = asyncio.get_running_loop().time()
        before = self._refusals.get(series)
        pause_s = ASK_AGAIN_S if before is None else min(2 * before.pause_s, LONGEST_ASK_AGAIN_S)
        self._refusals[series] = _Refusal(pause_s, now_s + pause_s)
        self._listener.refused(series, code, message)

    def due_s(self, series: Series) -> float:
        """Since when it may be asked for, in loop time: not at once if it was refused."""
        refusal = self._refusals.get(series)
        return refusal.until_s if refusal is not None else 0.0


class Lane:
    """Room for some series.

    Parameters
    ----------
    series
        What it is to carry; may be changed at any time, see `look_again`.
    dialer
        Opens its connections.
    listener, reception
        Told what comes, and how the series stand.
    renew_after_s
        Age at which a connection is replaced, give or take a quarter so that not all are at once.
    on_end
        Called when a connection has ended against our will, its series lost.
    """

    def __init__(
        self,
        series: set[Series],
        dialer: Dialer,
        listener: Listener,
        reception: Reception,
        *,
        renew_after_s: float,
        on_end: Callable[["Lane", Connection], None],
    ) -> None:
        self.series = series
        self.connections: list[Connection] = []
        """Those that are open, oldest first."""
        self._dialer = dialer
        self._listener = listener
        self._reception = reception
        self._renew_after_s = renew_after_s
        self._on_end = on_end
        self._group = asyncio.TaskGroup()
        self._changed = asyncio.Event()
        self._renews = False
        self._delays = back_off()
        self._delay_s = 0.0
        self._stalls = 0

    async def run(self) -> None:
        """Keep a connection open as long as there is something to carry; on cancellation, close what is open."""
        try:
            async with self._group:
                while True:
                    await self._until_one_is_needed()
                    await asyncio.sleep(self._delay_s)
                    if self._needs_one():
                        await self._open()
        finally:
            for connection in self.connections:
                await connection.close()

    def look_again(self) -> None:
        """What it is to carry has changed."""
        self._changed.set()
        for connection in self.connections:
            connection.look_again()

    @property
    def _staying(self) -> list[Connection]:
        return [connection for connection in self.connections if not connection.has_taken_leave]

    def _needs_one(self) -> bool:
        soon_s = asyncio.get_running_loop().time() + TOGETHER_S
        return self._renews or (not self._staying and self._next_due_s() <= soon_s)

    def _next_due_s(self) -> float:
        return min(map(self.due_s, self.series), default=math.inf)

    async def _until_one_is_needed(self) -> None:
        while not self._needs_one():
            self._changed.clear()
            try:
                async with asyncio.timeout_at(None if self._staying else self._next_due_s()):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _open(self) -> None:
        try:
            socket = await self._dialer.open()
        except ExchangeError as problem:
            self._delay_s = delay_after(problem, self._delays)
            self._listener.noticed(Oddity.NOT_OPENED, str(problem))
            return
        # The oldest carries the series; any between has not come so far, or the oldest would be gone.
        self._take_leave_of(self._staying[1:])
        for older in self.connections:
            older.is_leaving = True
        connection = Connection(
            socket,
            self,
            self._listener,
            stall_s=STALL_S * 2**self._stalls,
            renew_after_s=self._renew_after_s * _chance.uniform(0.75, 1.25),
        )
        self.connections.append(connection)
        self._renews = False
        self._group.create_task(self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        await connection.run()
        self.connections.remove(connection)
        self._changed.set()
        self._reception.lost(series for series in self.series if not self._is_carried(series))
        if connection.has_taken_leave:
            return
        self._listener.noticed(Oddity.ENDED, connection.ending)
        self._back_off(connection)
        self._fall_back()
        self._on_end(self, connection)

    def _is_carried(self, series: Series) -> bool:
        return any(connection.carries(series) for connection in self.connections)

    def _fall_back(self) -> None:
        """If the newest is gone, those that it was to replace carry on, and are still to be replaced."""
        staying = self._staying
        if staying and staying[-1].is_leaving:
            staying[-1].is_leaving = False
            self._renews = True
            self.look_again()

    def _back_off(self, connection: Connection) -> None:
        """Wait before the next one: longer than last time, unless this one was good."""
        lasted = asyncio.get_running_loop().time() - connection.opened_s >= LASTING_S
        if connection.has_stalled:
            self._stalls = min(self._stalls + 1, MOST_STALLS)
        elif lasted:
            self._stalls = 0
        if lasted:
            self._delays = back_off()
        self._delay_s = next(self._delays)

    def _take_leave_of(self, connections: Iterable[Connection]) -> None:
        for connection in connections:
            connection.has_taken_leave = True
            self._group.create_task(connection.close())

    # What its connections ask and tell.

    def due_s(self, series: Series) -> float:
        """Since when a series may be asked for, in loop time."""
        return self._reception.due_s(series)

    def joined(self, series: Series, *, anew: bool) -> None:
        """OKX sends a series."""
        self._reception.joined(series, anew=anew)

    def refused(self, series: Series, code: str, message: str) -> None:
        """OKX does not send a series."""
        if series in self.series:
            self._reception.refused(series, code, message, is_received=self._is_carried(series))

    def settled(self, connection: Connection) -> None:
        """A connection has all that it can have: those before it may go; or it itself, if that is nothing."""
        others = [other for other in self._staying if other is not connection]
        if not connection.is_empty:
            self._take_leave_of(others)
            return
        # Left open, OKX would close it in 30 s.
        self._take_leave_of([connection])
        self._back_off(connection)
        self._fall_back()

    def wants_another(self, connection: Connection) -> None:
        """A connection ought to be replaced; it carries on until the next one has what it has."""
        if connection in self._staying[-1:] and not self._renews:
            self._renews = True
            self._back_off(connection)
            self._changed.set()
