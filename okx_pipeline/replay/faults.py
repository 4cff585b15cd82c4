"""Faults on demand: how an endpoint, a connection or a series shall misbehave.

A fault is made where it shows: of a page in `exchange`, of an answer in `server`, of a connection in `channels`, of a
push in `pushes`. Here is only which, and whose turn it is. As JSON, to `POST /replay/faults`, one or a list of them:

    {"kind": "status", "endpoint": "history-candles", "requests": 3, "status": 503}
    {"kind": "withhold", "symbol": "BTC-USDT-SWAP", "timeframe": "1m", "share": 0.1}

Of REST. `endpoint` is a name of `protocol.ENDPOINTS`, any if left out; `requests` is how many requests it strikes (1),
after letting `skip` (0) pass. The kinds, and what they read:

===========  ==========================================================================================
status       an HTTP error with the body OKX has for it; `status` (503)
code         HTTP 200 around a code that is not success; `code` (50011)
too_many     429, as if the limit were used up
slow         the right answer, `seconds` (1) late
truncated    the right answer, cut off in the middle, its length told as if that were all
html         HTTP 200 and a web page
bomb         the right answer, compressed, with `megabytes` (64) of blanks after it
reset        the connection is reset before any answer
page_limit   a page holds at most `rows` (100), whatever was asked for
short        the right page without its oldest rows: only `rows` (1) are left
empty        a page without rows, though there are some
yesterday    the page that the same request got a day ago, when all its times were a day earlier
===========  ==========================================================================================

Of the WebSocket connections there are, once and now:

===========  ==========================================================================================
drop         every one is reset; with `close` (none), closed with that code instead
half_open    none is read from or written to any more, and none closed
notice       every one is told of a service upgrade, and closed with `close` (1001) `seconds` (60) later
===========  ==========================================================================================

Of the WebSocket for `seconds` (1) from now, by the wall's clock:

===========  ==========================================================================================
refuse       every handshake is answered with HTTP `status` (503)
stall        nothing is pushed, though pings are answered; what would have been pushed is lost
===========  ==========================================================================================

Of subscriptions and pushes, until dropped or until it has struck `requests` times, after letting `skip` (0) pass; each
time with the probability `share` (1). These and `stall` can be limited to a `symbol`, to a `timeframe` (our name), or
to both:

============  =========================================================================================
no_channel    a subscription is refused as if the channel were not there
invalid       a request to subscribe is refused as a whole, without a word of which channel it is about
mute          a subscription is acknowledged, and nothing ever pushed for it
duplicate     a frame comes twice
reorder       a frame comes up to `frames` (3) frames of its series later than it should
garble        a frame is cut off, a web page, of other types, of 8 or 10 columns, has NaN, infinity, an empty text, a
              number of a billion digits or a confirm of its own, or some of its bytes (never a number's) are others
withhold      a confirmation never comes; the next candle's frames do
late          a confirmation comes `seconds` (1) late by the wall's clock, among the next candle's frames
unconfirm     after a confirmation the same candle comes again as not confirmed
two_rows      a confirmation comes in one frame with the next candle, newest first
off_boundary  a confirmation names a moment at which no candle opens: one second late
lie           a confirmation has another volume than REST
contradict    after a confirmation the same candle comes confirmed again, with another volume; `seconds` (0) later by
              the wall's clock
============  =========================================================================================
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import msgspec
import numpy as np
from websockets.exceptions import ProtocolError
from websockets.frames import Close

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange.protocol import ENDPOINTS, NOTICE_S
from okx_pipeline.timeframes import parse_timeframe

RequestKind = Literal[
    "status",
    "code",
    "too_many",
    "slow",
    "truncated",
    "html",
    "bomb",
    "reset",
    "page_limit",
    "short",
    "empty",
    "yesterday",
]
AtOnceKind = Literal["drop", "half_open", "notice"]
TimedKind = Literal["refuse", "stall"]
PushKind = Literal[
    "no_channel",
    "invalid",
    "mute",
    "duplicate",
    "reorder",
    "garble",
    "withhold",
    "late",
    "unconfirm",
    "two_rows",
    "off_boundary",
    "lie",
    "contradict",
]
Kind = RequestKind | AtOnceKind | TimedKind | PushKind

_OF_REQUESTS: Final = frozenset(get_args(RequestKind))
_AT_ONCE: Final = frozenset(get_args(AtOnceKind))
_TIMED: Final = frozenset(get_args(TimedKind))


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A way to misbehave; see the module for the kinds, and for what is meant where nothing is given."""

    kind: Kind
    endpoint: str | None = None
    symbol: str | None = None
    timeframe: str | None = None
    share: float = 1.0
    requests: int | None = None
    skip: int = 0
    status: int = 503
    code: str = "50011"
    close: int | None = None
    seconds: float | None = None
    rows: int | None = None
    frames: int = 3
    megabytes: int = 64

    @property
    def duration_s(self) -> float:
        """How long it lasts, or how late it makes things."""
        default_s = NOTICE_S if self.kind == "notice" else 1.0
        return default_s if self.seconds is None else self.seconds


_NAMES: Final = frozenset(endpoint.name for endpoint in ENDPOINTS)
_FAULTS: Final = msgspec.json.Decoder(Fault | list[Fault])


def decode_faults(body: bytes | str) -> list[Fault]:
    """The faults of a request's body.

    Raises
    ------
    UsageError
        If it is no fault and no list of them.
    """
    try:
        decoded = _FAULTS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"not a fault: {problem}") from problem
    faults = decoded if isinstance(decoded, list) else [decoded]
    for fault in faults:
        if fault.endpoint is not None and fault.endpoint not in _NAMES:
            raise UsageError(f"there is no endpoint {fault.endpoint!r}; it is one of {', '.join(sorted(_NAMES))}")
        if not 400 <= fault.status <= 599:
            raise UsageError(f"{fault.status} is not the status of an HTTP error")
        if not 0 < fault.share <= 1:
            raise UsageError(f"a fault cannot have a share of {fault.share}; give a number above 0, up to 1")
        if fault.frames < 1:
            raise UsageError(f"a frame cannot come {fault.frames} frames later; give 1 or more")
        if not 1 <= fault.megabytes <= 1024:
            raise UsageError(f"a body cannot have {fault.megabytes} megabytes of blanks; give from 1 to 1024")
        if fault.close is not None:
            _check_close(fault.close)
        if fault.timeframe is not None:
            fault.timeframe = parse_timeframe(fault.timeframe).name
    return faults


def _check_close(code: int) -> None:
    try:
        Close(code, "").check()
    except ProtocolError as problem:
        raise UsageError(f"{code} is not a code that a WebSocket can be closed with") from problem


@dataclass(slots=True)
class _Pending:
    """A fault still to come; `left` strikes of it (None: any number), until `ends_s` on the wall's clock."""

    fault: Fault
    left: int | None
    ends_s: float | None


class Faults:
    """The faults still to come, in the order given: of each endpoint one strikes at a time, of a push one of each kind.

    Parameters
    ----------
    seed
        Of the choices made by chance.
    monotonic
        The wall's clock, on which some faults end.

    Attributes
    ----------
    chance
        What choices are made with.
    """

    def __init__(self, seed: int = 7, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.chance = np.random.default_rng(seed)
        self._monotonic = monotonic
        self._pending: list[_Pending] = []

    @property
    def pending(self) -> list[Fault]:
        """What is still to come; `requests` and `skip` say how much of it."""
        return [msgspec.structs.replace(waiting.fault, requests=waiting.left) for waiting in self._pending]

    def __bool__(self) -> bool:
        """Whether any is still to come."""
        return bool(self._pending)

    def add(self, faults: Iterable[Fault]) -> None:
        """Append copies of these."""
        for fault in faults:
            left = 1 if fault.requests is None and fault.kind in _OF_REQUESTS | _AT_ONCE else fault.requests
            ends_s = self._monotonic() + fault.duration_s if fault.kind in _TIMED else None
            self._pending.append(_Pending(msgspec.structs.replace(fault), left, ends_s))

    def clear(self) -> None:
        """Behave well from now on."""
        self._pending.clear()

    def take(self, endpoint: str) -> Fault | None:
        """The fault that strikes this request, if one does."""
        for waiting in self._pending:
            fault = waiting.fault
            if fault.kind in _OF_REQUESTS and fault.endpoint in (None, endpoint):
                return self._spent(waiting)
        return None

    def take_at_once(self) -> list[Fault]:
        """The faults that strike every connection now, which then are over."""
        struck = [waiting for waiting in self._pending if waiting.fault.kind in _AT_ONCE]
        return [fault for waiting in struck if (fault := self._spent(waiting)) is not None]

    def strike(self, kind: TimedKind | PushKind, symbol: str = "", timeframe: str = "") -> Fault | None:
        """The fault of this kind that strikes this subscription or push of a series, if one does."""
        for waiting in self._pending.copy():
            fault = waiting.fault
            if fault.kind != kind or fault.symbol not in (None, symbol) or fault.timeframe not in (None, timeframe):
                continue
            if waiting.ends_s is not None and self._monotonic() >= waiting.ends_s:
                self._pending.remove(waiting)
            elif fault.share == 1 or self.chance.random() < fault.share:
                return self._spent(waiting)
        return None

    def _spent(self, waiting: _Pending) -> Fault | None:
        """The fault, one strike poorer, or None if it lets this one pass."""
        if waiting.fault.skip > 0:
            waiting.fault.skip -= 1
            return None
        if waiting.left is not None:
            waiting.left -= 1
            if waiting.left < 1:
                self._pending.remove(waiting)
        return waiting.fault
