"""The request budget: when a request may be sent so that OKX never counts too many.

The rule. An endpoint takes N requests in any P seconds, counted when they arrive at OKX, which we cannot see: a request
sent at s and answered at c arrived at some a in between. There are N slots. Each carries one request at a time, and its
next one is sent no sooner than::

    s_next >= c + P - credit,    credit = half of the fastest round trip seen

Then the arrivals of one slot lie P seconds apart, and any window of P seconds holds N of them or fewer: a_next >=
s_next + the way out, a <= c - the way back, so a_next - a >= P as long as a way out and a way back together take the
credit at least. The whole of the fastest round trip would be a lower bound only once it is the fastest possible: one
request's quick way out and another's quick way back can be shorter than every round trip yet seen, half of it they
are not unless the path suddenly becomes twice as fast. What the rule costs is the other half of a round trip a period:
1.5 % at 60 ms.

A request without an answer may arrive long after we gave up on it, so its slot rests a period more. When OKX says that
it was asked too often all the same (others behind our address count too), a quarter of the slots rest for a minute.

The arithmetic are plain functions; `LocalBudget` keeps the slots of one process in memory. A budget that several
processes share keeps them elsewhere, by the same functions. Nothing here knows HTTP.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

from okx_pipeline.exchange.protocol import Endpoint

RATE_PERIOD_S: Final = 2
"""A lowered rate is given in requests per this many seconds, the period of most of OKX's limits."""

REST_S: Final = 60
"""How long slots rest after OKX said that it was asked too often."""


@dataclass(slots=True)
class Permit:
    """Leave to send one request now; whoever sends it notes on it how that went.

    Parameters
    ----------
    endpoint
        What it may be sent to.
    sent_at
        The moment of the permit by the budget's clock: never later than the request is sent.
    round_trip_s
        To be set once response headers are there: seconds from sending the request, on an open connection, to them.
        None means that no answer came.
    throttled
        To be set if OKX answered that it is asked too often.
    """

    endpoint: Endpoint
    sent_at: datetime
    round_trip_s: float | None = None
    throttled: bool = False


class RequestBudget(Protocol):
    """Gives permits, first come, first served."""

    def request(self, endpoint: Endpoint) -> AbstractAsyncContextManager[Permit]:
        """Wait until a request may be sent; leaving the context says that it is over, answered or not."""
        ...


def slot_count(endpoint: Endpoint, rate: float | None) -> int:
    """How many slots an endpoint has: OKX's limit, or fewer if `rate` (requests per 2 s) is lower; at least one."""
    if rate is None:
        return endpoint.requests
    return max(1, min(endpoint.requests, int(rate * endpoint.period_s / RATE_PERIOD_S)))


def faster(fastest_s: float | None, round_trip_s: float) -> float:
    """The fastest round trip seen, one more having been seen."""
    return round_trip_s if fastest_s is None else min(fastest_s, round_trip_s)


def credit_s(fastest_s: float | None) -> float:
    """What may be taken off the period after an answer, `fastest_s` being the fastest round trip seen so far."""
    return 0.0 if fastest_s is None else fastest_s / 2


def pause_s(endpoint: Endpoint, *, answered: bool, fastest_s: float | None) -> float:
    """Seconds from the end of a slot's request to the sending of its next one."""
    if not answered:
        return 2 * endpoint.period_s
    return max(0.0, endpoint.period_s - credit_s(fastest_s))


def slots_to_rest(working: int) -> int:
    """How many of the `working` slots rest once OKX says that it is asked too often: a quarter, never the last."""
    return min(max(1, working // 4), working - 1)


@dataclass(slots=True)
class _Slot:
    busy: bool = False
    ended_at: float | None = None
    answered: bool = True
    rests_until: float = 0.0


@dataclass(slots=True)
class _Line:
    """Those who wait for one endpoint, and its slots. `turn` is held by the one at the head."""

    slots: list[_Slot]
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    rested_at: float | None = None


class LocalBudget:
    """A budget in memory: of this process alone, in one event loop, and forgotten with it.

    Parameters
    ----------
    rate
        Requests per 2 s if fewer are wanted than OKX allows; of endpoints with another period, as many in proportion.
    """

    def __init__(self, rate: float | None = None) -> None:
        self._rate = rate
        self._fastest_s: float | None = None
        self._lines: dict[Endpoint, _Line] = {}

    @asynccontextmanager
    async def request(self, endpoint: Endpoint) -> AsyncIterator[Permit]:
        """Wait until a request may be sent; leaving the context says that it is over, answered or not."""
        if endpoint not in self._lines:
            self._lines[endpoint] = _Line([_Slot() for _ in range(slot_count(endpoint, self._rate))])
        line = self._lines[endpoint]
        slot = await self._free_slot(endpoint, line)
        permit = Permit(endpoint, datetime.now(UTC))
        try:
            yield permit
        finally:
            self._end(line, slot, permit)

    async def _free_slot(self, endpoint: Endpoint, line: _Line) -> _Slot:
        loop = asyncio.get_running_loop()
        async with line.turn:
            while True:
                line.changed.clear()
                idle = [
                    (self._free_at(endpoint, slot), number) for number, slot in enumerate(line.slots) if not slot.busy
                ]
                free_at, number = min(idle, default=(None, 0))
                if free_at is not None and free_at <= loop.time():
                    line.slots[number].busy = True
                    return line.slots[number]
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(free_at):
                        await line.changed.wait()

    def _free_at(self, endpoint: Endpoint, slot: _Slot) -> float:
        if slot.ended_at is None:
            return slot.rests_until
        pause = pause_s(endpoint, answered=slot.answered, fastest_s=self._fastest_s)
        return max(slot.ended_at + pause, slot.rests_until)

    def _end(self, line: _Line, slot: _Slot, permit: Permit) -> None:
        now = asyncio.get_running_loop().time()
        slot.busy, slot.ended_at, slot.answered = False, now, permit.round_trip_s is not None
        if permit.round_trip_s is not None:
            self._fastest_s = faster(self._fastest_s, permit.round_trip_s)
        if permit.throttled and (line.rested_at is None or now - line.rested_at >= permit.endpoint.period_s):
            line.rested_at = now
            working = [slot for slot in line.slots if slot.rests_until <= now]
            for resting in working[: slots_to_rest(len(working))]:
                resting.rests_until = now + REST_S
        line.changed.set()
