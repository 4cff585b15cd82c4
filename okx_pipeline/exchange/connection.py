"""One WebSocket to OKX, from its handshake to its end: what it is asked to carry, what it carries, whether it lives.

It speaks OKX's protocol and judges this one connection. Which series it is to carry, whether another takes its place
and when, is its keeper's decision (`lane`); what a row means is its listener's.
"""

import asyncio
import re
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.dialing import back_off
from okx_pipeline.exchange.frames import (
    ERROR,
    NOTICE,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Argument,
    Frame,
    Series,
    argument_of,
    decode_frame,
    encode_requests,
    known_opening,
    opening_of,
)
from okx_pipeline.exchange.listings import plain
from okx_pipeline.timeframes import GRACE_MS, HOUR_MS, MINUTE_MS

PING_AFTER_S: Final = 15.0
"""OKX is asked whether it is there once nothing came for this long; OKX itself closes after 30 s."""

PONG_WITHIN_S: Final = 10.0
"""With `PING_AFTER_S`, a dead connection is known within 25 s."""

ANSWER_WITHIN_S: Final = 10.0
"""A subscription is answered in a round trip; more than this is no answer."""

AFTER_ERROR_S: Final = 1.0
"""How long the answers to a request are waited for after an error that may be the last of them."""

TOGETHER_S: Final = 10.0
"""Refused series that are due again within this are asked for together."""

STALL_S: Final = 30.0
"""A connection on which no candle came for this long is suspect, if its series are many or came steadily before."""

MANY_SERIES: Final = 20
STALL_LOOK_S: Final = 5.0
STEADY_LOOKS: Final = 6
"""Candles in so many looks running, 30 s, are a steady flow."""

SILENCE_LOOK_S: Final = 30.0
MOST_SILENCES: Final = 6
"""The patience with a silent series doubles so often: a quiet market is no fault."""

SPARE_REQUESTS: Final = 80
"""A connection with no more requests than this left of an hour's is replaced: the next one begins a new count."""

MOST_SAID: Final = 300
"""Characters of what OKX says of an error that are handed on."""

_HOUR_S: Final = HOUR_MS / 1000
_PONG: Final = protocol.PONG.encode()
_PASSING_CODES: Final = frozenset({protocol.TOO_FREQUENT, "64007", *protocol.RETRYABLE_CODES})
"""Errors that are about the moment and not about a series; 64007 is OKX's internal error."""

_NAMED: Final = re.compile(r"channel:\s*([^\s,]+),\s*instId:\s*([^\s,]+)")
"""An error has no field that says which subscription failed; both wordings recorded (2025, 2026) name it like this."""


class Oddity(StrEnum):
    """What a feed notices and goes on after: to be counted."""

    NOT_OPENED = "connection not opened"
    ENDED = "connection ended"
    UPGRADE = "upgrade announced"
    NOTICE = "notice"
    GARBLED = "garbled frame"
    UNKNOWN_EVENT = "unknown event"
    UNEXPECTED = "frame of a series not subscribed"
    UNANSWERED = "subscription unanswered"
    TOO_FREQUENT = "asked too often"
    ERROR = "error"
    SILENT = "silent series"
    FEWER_CHANNELS = "fewer channels a connection"


class Listener(Protocol):
    """Who is told what a feed receives. Called in the event loop, one call at a time: none may wait, none may raise."""

    def pushed(self, series: Series, rows: list[list[str]], frame_s: float) -> None:
        """OKX pushed rows of a series, as it sent them (usually one); `frame_s` is when they came, loop time.

        Rows may come twice, and older ones after newer ones, while one connection takes over from another.
        """

    def forming(self, series: Series, opened: str, frame_s: float) -> None:
        """OKX pushed an unconfirmed row of the candle that opens at `opened`, after one that `pushed` was told of."""

    def subscribed(self, series: Collection[Series]) -> None:
        """These are received from now on (again): what was missed before must be fetched."""

    def lost(self, series: Collection[Series]) -> None:
        """These are no longer received: their connection is gone. Another is on its way."""

    def refused(self, series: Series, code: str, message: str) -> None:
        """OKX will not send this one, which is asked for again in some minutes; `code` is empty if OKX said nothing."""

    def noticed(self, kind: str, detail: str) -> None:
        """Something odd that was dealt with; `kind` is an `Oddity`."""

    def garbled(self, text: bytes, problem: str) -> None:
        """A frame cannot be read, which `noticed` is told of, too: here it is whole, and why."""


class Keeper(Protocol):
    """Who keeps a connection: what it asks of, and tells, the one that opened it."""

    series: set[Series]
    """What the connection is to carry."""

    def due_s(self, series: Series) -> float:
        """Since when one of them may be asked for, in loop time: not at once if OKX has refused it."""

    def joined(self, series: Series, *, anew: bool) -> None:
        """OKX sends this one from now on; `anew` if some of it may have been missed on this same connection."""

    def refused(self, series: Series, code: str, message: str) -> None:
        """OKX does not send this one."""

    def settled(self, connection: "Connection") -> None:
        """All that is due has been asked for and answered."""

    def wants_another(self, connection: "Connection") -> None:
        """The connection works but ought to be replaced by another."""


@dataclass(slots=True)
class _Subscription:
    series: Series
    heard_s: float
    """When its last frame came, or when it was subscribed."""
    carried: bool = False
    unanswered: int = 0
    silences: int = 0
    suspect: bool = False
    """Whether it is to be unsubscribed, and then subscribed anew."""
    anew: bool = False
    """Whether it was."""
    opening: bytes = b""
    """What pushes of the candle that is forming begin with."""
    opened: str = ""
    """When that candle opens, in OKX's words."""

    @property
    def patience_s(self) -> float:
        """A candle channel sends something at the open of every candle at least, a minute's grace given."""
        return (max(self.series.timeframe.length_ms, MINUTE_MS) + GRACE_MS) / 1000 * float(1 << self.silences)


class Connection:
    """An open WebSocket, to be run once.

    Parameters
    ----------
    socket
        The WebSocket; it is closed when `run` returns, but not when that is cancelled: see `close`.
    keeper, listener
        Who decides, and who is told.
    stall_s
        See `STALL_S`.
    renew_after_s
        Age at which it asks for another to take its place.
    """

    def __init__(
        self, socket: ClientConnection, keeper: Keeper, listener: Listener, *, stall_s: float, renew_after_s: float
    ) -> None:
        self._socket = socket
        self._keeper = keeper
        self._listener = listener
        self._stall_s = stall_s
        self._renew_after_s = renew_after_s
        self._time = asyncio.get_running_loop().time
        self._subscriptions: dict[Argument, _Subscription] = {}
        self._by_opening: dict[bytes, _Subscription] = {}
        self._changed = asyncio.Event()
        self._sent_s: deque[float] = deque(maxlen=protocol.REQUESTS_AN_HOUR)
        self._throttled = back_off()
        # The round of requests that OKX has not answered in full: there is one at a time.
        self._op = ""
        self._asked: dict[Argument, Series] = {}
        self._ids: set[str] = set()
        self._answer: asyncio.Future[Frame | None] | None = None
        self._last_id = 0
        self.opened_s = self.heard_s = self._candle_s = self._time()
        self.is_leaving = False
        """Whether another is taking its place: it then asks for nothing more."""
        self.has_taken_leave = False
        """Whether it is being closed because it is not needed any more."""
        self.has_stalled = False
        self.ending = ""
        """Why it ended, in words."""
        self.close_code: int | None = None
        """What OKX closed it with, if it did."""

    def carries(self, series: Series) -> bool:
        """Whether OKX sends `series` here."""
        subscription = self._subscriptions.get(argument_of(series))
        return subscription is not None and subscription.carried

    @property
    def is_empty(self) -> bool:
        """Whether OKX sends nothing here."""
        return not any(subscription.carried for subscription in self._subscriptions.values())

    def look_again(self) -> None:
        """The keeper's series, or what of them is due, changed."""
        self._changed.set()

    def end(self, why: str) -> None:
        """Break it off: nobody on the other side is worth taking leave of."""
        self.ending = self.ending or why
        self._socket.transport.abort()

    async def close(self) -> None:
        """Take leave. Frames that are still on their way are received, as long as `run` runs."""
        await self._socket.close()

    async def run(self) -> None:
        """Ask for what the keeper wants and hand on what comes, until the connection ends."""
        tasks = (self._ask, self._keep_alive, self._look_for_stall, self._look_for_silence, self._grow_old)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(task()) for task in tasks]
            try:
                await self._receive()
            except ConnectionClosed as problem:
                self._note_end(problem)
            for task in running:
                task.cancel()

    def _note_end(self, problem: ConnectionClosed) -> None:
        if problem.rcvd is not None:
            self.close_code = problem.rcvd.code
            ending = f"OKX closed it with {problem.rcvd.code} {problem.rcvd.reason[:100]!r}"
        elif problem.sent is not None:
            ending = f"we closed it with {problem.sent.code} {problem.sent.reason[:100]!r}"
        else:
            ending = "cut off"
        self.ending = self.ending or ending

    # Receiving.

    async def _receive(self) -> None:
        recv, time, subscriptions = self._socket.recv, self._time, self._subscriptions
        by_opening, pushed, forming = self._by_opening, self._listener.pushed, self._listener.forming
        while True:
            text = await recv(decode=False)
            now_s = self.heard_s = time()
            known = known_opening(text, by_opening)
            if known is not None and known.carried:
                known.heard_s = self._candle_s = now_s
                known.silences = 0
                forming(known.series, known.opened, now_s)
                continue
            try:
                frame = decode_frame(text)
            except msgspec.DecodeError as problem:
                if text != _PONG:
                    self._listener.noticed(Oddity.GARBLED, f"{_shown(text)}: {problem}")
                    self._listener.garbled(text, str(problem))
                continue
            argument = frame.arg
            if not frame.data or frame.event or argument is None:
                self._heed(frame, text)
                continue
            subscription = subscriptions.get(argument)
            if subscription is None or not subscription.carried:
                subscription = self._expect(argument)
                if subscription is None:
                    self._listener.noticed(Oddity.UNEXPECTED, f"{argument.channel!r} {argument.symbol!r}"[:100])
                    continue
            subscription.heard_s = self._candle_s = now_s
            subscription.silences = 0
            pushed(subscription.series, frame.data, now_s)
            opening = opening_of(text, frame)
            if opening is not None:
                by_opening.pop(subscription.opening, None)
                by_opening[opening] = subscription
                subscription.opening, subscription.opened = opening, frame.data[0][0]

    def _expect(self, argument: Argument) -> _Subscription | None:
        """What a push of a series is about that was asked for, but not acknowledged yet: it says as much.

        None if it was not, or is not wanted any more.
        """
        subscription = self._subscriptions.get(argument)
        if subscription is None or subscription.series not in self._keeper.series:
            return None
        self._acknowledged(argument, subscription.series)
        return subscription

    def _heed(self, frame: Frame, text: str | bytes) -> None:
        if frame.event == SUBSCRIBE and frame.arg is not None:
            series = frame.arg.series
            if series is not None and series in self._keeper.series:
                self._acknowledged(frame.arg, series)
            elif self._op == SUBSCRIBE:
                self._strike(frame.arg)
        elif frame.event == UNSUBSCRIBE and frame.arg is not None:
            if self._op == UNSUBSCRIBE:
                self._strike(frame.arg)
        elif frame.event == ERROR:
            self._complain(frame)
        elif frame.event == NOTICE and frame.code == protocol.NOTICE_UPGRADE:
            self._listener.noticed(Oddity.UPGRADE, _shown(text))
            self._keeper.wants_another(self)
        elif frame.event == NOTICE:
            self._listener.noticed(Oddity.NOTICE, _shown(text))
        else:
            self._listener.noticed(Oddity.UNKNOWN_EVENT, _shown(text))

    def _acknowledged(self, argument: Argument, series: Series) -> None:
        if self._op == SUBSCRIBE:
            self._strike(argument)
        elif argument in self._asked:
            # Sent before OKX heard that it is to be unsubscribed.
            return
        subscription = self._subscriptions.setdefault(argument, _Subscription(series, 0.0))
        if not subscription.carried:
            anew, subscription.anew = subscription.anew, False
            subscription.carried, subscription.unanswered = True, 0
            subscription.heard_s = self._candle_s = self._time()
            self._keeper.joined(series, anew=anew)

    def _complain(self, frame: Frame) -> None:
        """Find out what an error is about: one series, the round of requests, or neither."""
        named = _NAMED.search(frame.msg)
        argument = frame.arg or (Argument(*named.groups()) if named else None)
        detail = _said(frame)
        series = self._asked.get(argument) if argument is not None else None
        if self._answer is None or not self._asked or (frame.id and frame.id not in self._ids):
            self._listener.noticed(Oddity.ERROR, detail)
        elif frame.code in _PASSING_CODES or series is None:
            if not self._answer.done():
                self._answer.set_result(frame)
        else:
            self._strike(argument_of(series))
            if self._op == SUBSCRIBE:
                self._refuse(series, frame.code, frame.msg)
            else:
                # What OKX does not know is not subscribed: so much the better.
                self._listener.noticed(Oddity.ERROR, detail)

    def _strike(self, argument: Argument) -> None:
        """OKX has answered for this one."""
        self._asked.pop(argument, None)
        if not self._asked and self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def _refuse(self, series: Series, code: str, message: str) -> None:
        self._drop(argument_of(series))
        self._keeper.refused(series, plain(code, 20), plain(message, MOST_SAID))

    def _drop(self, argument: Argument) -> None:
        subscription = self._subscriptions.pop(argument, None)
        if subscription is not None:
            self._by_opening.pop(subscription.opening, None)

    # Asking. One round at a time, so that an error that says nothing of its cause can only be about that one.

    async def _ask(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                self._changed.clear()
                if self.is_leaving:
                    await self._changed.wait()
                elif leaving := self._to_unsubscribe():
                    await self._unsubscribe(leaving)
                elif joining := self._to_subscribe():
                    await self._subscribe(joining)
                else:
                    self._keeper.settled(self)
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(self._next_due_s()):
                            await self._changed.wait()

    def _to_unsubscribe(self) -> list[Series]:
        wanted = self._keeper.series
        return [each.series for each in self._subscriptions.values() if each.series not in wanted or each.suspect]

    def _to_subscribe(self) -> list[Series]:
        soon_s = self._time() + TOGETHER_S
        return sorted(series for series in self._missing() if self._keeper.due_s(series) <= soon_s)

    def _next_due_s(self) -> float | None:
        return min((self._keeper.due_s(series) for series in self._missing()), default=None)

    def _missing(self) -> list[Series]:
        return [series for series in self._keeper.series if not self.carries(series)]

    async def _unsubscribe(self, leaving: Sequence[Series]) -> None:
        subscriptions = [self._subscriptions[argument_of(series)] for series in leaving]
        for subscription in subscriptions:
            subscription.carried = False
        error = await self._round(UNSUBSCRIBE, leaving)
        if error is not None and error.code in _PASSING_CODES:
            await self._pause(error)
            return
        if self._asked:
            # OKX may go on sending them, and there is no other way to be rid of that.
            said = _said(error) if error is not None else "nothing"
            self._listener.noticed(Oddity.UNANSWERED, f"unsubscribing {_named(self._asked.values())}: {said}")
            self._keeper.wants_another(self)
        for subscription in subscriptions:
            if subscription.suspect:
                subscription.suspect, subscription.anew = False, True
            else:
                self._drop(argument_of(subscription.series))

    async def _subscribe(self, joining: Sequence[Series]) -> None:
        """Ask for some series; if OKX refuses several without saying which, ask for each half of what is left."""
        for series in joining:
            self._subscriptions.setdefault(argument_of(series), _Subscription(series, 0.0))
        error = await self._round(SUBSCRIBE, joining)
        unanswered = list(self._asked.values())
        if not unanswered:
            return
        if error is None:
            self._miss_answers(unanswered)
        elif error.code in _PASSING_CODES:
            await self._pause(error)
        elif len(unanswered) == 1:
            self._refuse(unanswered[0], error.code, error.msg)
        else:
            half = len(unanswered) // 2
            for part in (unanswered[:half], unanswered[half:]):
                await self._subscribe(part)

    def _miss_answers(self, unanswered: Sequence[Series]) -> None:
        self._listener.noticed(Oddity.UNANSWERED, f"{_named(unanswered)}, within {ANSWER_WITHIN_S:g} s")
        if self.is_empty:
            self.end(f"OKX answered no subscription within {ANSWER_WITHIN_S:g} s")
            return
        for series in unanswered:
            subscription = self._subscriptions[argument_of(series)]
            subscription.unanswered += 1
            if subscription.unanswered == 2:
                self._refuse(series, "", f"OKX did not answer the subscription within {ANSWER_WITHIN_S:g} s, twice")

    async def _round(self, op: str, about: Sequence[Series]) -> Frame | None:
        """Send requests and wait until OKX has answered for every series; those it has not are left in `_asked`.

        Returns
        -------
        Frame or None
            An error that is about the request and names no series.
        """
        requests = list(encode_requests(op, about, self._last_id + 1))
        await self._wait_for_allowance(len(requests))
        self._ids = {str(self._last_id + number) for number in range(1, len(requests) + 1)}
        self._last_id += len(requests)
        self._op = op
        self._asked = {argument_of(series): series for series in about}
        self._answer = asyncio.get_running_loop().create_future()
        error = None
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                for request in requests:
                    self._sent_s.append(self._time())
                    await self._socket.send(request)
                error = await self._answer
        if error is not None:
            # It may be one of many answers, the others being on their way.
            await asyncio.sleep(AFTER_ERROR_S)
        return error

    async def _wait_for_allowance(self, requests: int) -> None:
        """Keep to the requests an hour that OKX allows; ask to be replaced before they are used up."""
        since_s = self._time() - _HOUR_S
        recent = [sent_s for sent_s in self._sent_s if sent_s > since_s]
        spare = protocol.REQUESTS_AN_HOUR - len(recent) - requests
        if spare < SPARE_REQUESTS:
            self._keeper.wants_another(self)
        if spare < 0:
            await asyncio.sleep(recent[-spare - 1] - since_s)

    async def _pause(self, error: Frame) -> None:
        self._listener.noticed(Oddity.TOO_FREQUENT, _said(error))
        await asyncio.sleep(next(self._throttled))

    # Watching.

    async def _keep_alive(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                asked_s = self._time()
                ask_at_s = self.heard_s + PING_AFTER_S
                if asked_s < ask_at_s:
                    await asyncio.sleep(ask_at_s - asked_s)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(PONG_WITHIN_S):
                        await self._socket.send(protocol.PING)
                await asyncio.sleep(asked_s + PONG_WITHIN_S - self._time())
                if self.heard_s < asked_s:
                    self.end(f"nothing came for {PING_AFTER_S:g} s, and no answer to a ping within {PONG_WITHIN_S:g} s")
                    return

    async def _look_for_stall(self) -> None:
        """No candle although pings are answered: the other side has forgotten us."""
        steady = 0
        while True:
            looked_s = self._time()
            await asyncio.sleep(STALL_LOOK_S)
            carried = sum(subscription.carried for subscription in self._subscriptions.values())
            idle_s = self._time() - self._candle_s
            if self._candle_s >= looked_s:
                steady = min(steady + 1, STEADY_LOOKS)
            elif steady < STEADY_LOOKS:
                steady = 0
            if idle_s > self._stall_s and carried and (carried >= MANY_SERIES or steady == STEADY_LOOKS):
                self.has_stalled = True
                self.end(f"no candle came for {idle_s:.0f} s, of any of {carried} series, though the connection lives")
                return

    async def _look_for_silence(self) -> None:
        """No candle of one series: it may have been forgotten. All that are found at a time cost two requests."""
        while True:
            await asyncio.sleep(SILENCE_LOOK_S)
            now_s = self._time()
            for subscription in self._subscriptions.values():
                silent_s = now_s - subscription.heard_s
                if subscription.carried and not subscription.suspect and silent_s > subscription.patience_s:
                    self._listener.noticed(Oddity.SILENT, f"{subscription.series} for {silent_s:.0f} s")
                    subscription.silences = min(subscription.silences + 1, MOST_SILENCES)
                    subscription.suspect = True
                    self._changed.set()

    async def _grow_old(self) -> None:
        await asyncio.sleep(self._renew_after_s)
        self._keeper.wants_another(self)


def _shown(text: str | bytes) -> str:
    """The beginning of what was received, in one printable line."""
    return repr(text[:150])


def _said(error: Frame) -> str:
    return plain(f"{error.code} {error.msg}", MOST_SAID)


def _named(series: Collection[Series]) -> str:
    first = next(iter(series))
    return f"{first} and {len(series) - 1} others" if len(series) > 1 else str(first)
