"""OKX's WebSocket frames, both directions: what a client asks, what OKX pushes, replies and complains.

Unconfirmed updates are 99 % of the traffic, so that a frame is decoded once, typed, its numbers left as text, and most
that say again that a candle is forming not at all; what rows mean is decided by `messages.judge_row`. Connections are
`feed`'s work.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from okx_pipeline.exchange import protocol
from okx_pipeline.timeframes import Timeframe

T = TypeVar("T")


class Series(NamedTuple):
    """A symbol in a timeframe: what one subscription is about."""

    symbol: str
    timeframe: Timeframe

    def __str__(self) -> str:
        return f"{self.symbol} {self.timeframe}"


# A frame lives for microseconds and holds no cycle: left to reference counting alone it costs a third less.
class Argument(msgspec.Struct, frozen=True, gc=False):
    """What a frame is about: OKX's channel and instrument."""

    channel: str = ""
    symbol: str = msgspec.field(name="instId", default="")

    @property
    def series(self) -> Series | None:
        """The series it names; None if that is no candle channel of ours."""
        timeframe = protocol.TIMEFRAMES_BY_CHANNEL.get(self.channel)
        return Series(self.symbol, timeframe) if timeframe is not None else None


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Any frame OKX sends. A push has `data` and no `event`; replies, errors and notices have an `event`."""

    arg: Argument | None = None
    data: list[list[str]] | None = None
    event: str = ""
    code: str = ""
    msg: str = ""
    id: str = ""
    connection_id: str = msgspec.field(name="connId", default="")


class Request(msgspec.Struct, frozen=True):
    """What a client sends: `op` is subscribe or unsubscribe."""

    op: str
    args: list[Argument]
    id: str = ""


class _Identified(msgspec.Struct, frozen=True):
    id: str = ""


SUBSCRIBE: Final = "subscribe"
UNSUBSCRIBE: Final = "unsubscribe"
ERROR: Final = "error"
NOTICE: Final = "notice"

_FRAME: Final = msgspec.json.Decoder(Frame)
_REQUEST: Final = msgspec.json.Decoder(Request)
_IDENTIFIED: Final = msgspec.json.Decoder(_Identified)
_JSON: Final = msgspec.json.Encoder()
_REQUEST_ROOM: Final = protocol.MOST_REQUEST_BYTES - 1024

_ROWS: Final = b'[["'
_OPENED: Final = len('[["1787184000000"')
_FORMING: Final = f'","{protocol.UNCONFIRMED}"]]}}'.encode()
_QUOTES: Final = 2 * (protocol.ROW_FIELDS - 1)


def decode_frame(text: str | bytes) -> Frame:
    """What OKX sent.

    Raises
    ------
    msgspec.DecodeError
        If it is no frame of OKX's: cut off, not JSON, fields of other types.
    """
    try:
        return _FRAME.decode(text)
    except (UnicodeDecodeError, RecursionError) as problem:
        raise msgspec.DecodeError(str(problem)) from problem


def known_opening(text: bytes, known: Mapping[bytes, T]) -> T | None:
    """What is `known` of the opening of a push if none of its rows is confirmed; None where a glance cannot tell.

    The opening is all up to the first row's open time, see `opening_of`. Eight strings follow it, the last of them the
    one that says "unconfirmed": a row of nine strings that says otherwise is not among them.
    """
    end = text.find(_ROWS) + _OPENED
    found = known.get(text[:end])
    return found if found is not None and text.endswith(_FORMING) and text.count(b'"', end) == _QUOTES else None


def opening_of(text: bytes, frame: Frame) -> bytes | None:
    """The opening of a push of a single unconfirmed row, decoded as `frame`: of any other that begins so, `frame` tells
    what it is about and when its candle opens. None if it is no such push.
    """
    end = text.find(_ROWS) + _OPENED
    rows = frame.data or []
    if [len(row) for row in rows] != [protocol.ROW_FIELDS] or not text[:end].endswith(f'[["{rows[0][0]}"'.encode()):
        return None
    # Eight strings are left, the row's own: whatever else the frame says was said before.
    return text[:end] if text.endswith(_FORMING) and text.count(b'"', end) == _QUOTES else None


def decode_request(text: str | bytes) -> Request:
    """What a client asks.

    Raises
    ------
    msgspec.DecodeError
        If it is no request.
    """
    try:
        return _REQUEST.decode(text)
    except (UnicodeDecodeError, RecursionError) as problem:
        raise msgspec.DecodeError(str(problem)) from problem


def request_id(text: str | bytes) -> str:
    """The id of what may be no request otherwise; empty if it has none."""
    try:
        return _IDENTIFIED.decode(text).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def encode_requests(op: str, wanted: Iterable[Series], first_id: int = 1) -> Iterator[str]:
    """Requests that subscribe (or unsubscribe) everything in `wanted`, as few as OKX's 64 KB a request allow."""
    arguments: list[Argument] = []
    size = 0
    number = first_id
    for series in wanted:
        argument = argument_of(series)
        length = len(_JSON.encode(argument)) + 1
        if arguments and size + length > _REQUEST_ROOM:
            yield _JSON.encode(Request(op, arguments, str(number))).decode()
            arguments, size, number = [], 0, number + 1
        arguments.append(argument)
        size += length
    if arguments:
        yield _JSON.encode(Request(op, arguments, str(number))).decode()


def argument_of(series: Series) -> Argument:
    """How OKX names a series."""
    return Argument(protocol.channel(series.timeframe), series.symbol)


def encode_push(about: Series | Argument, rows: list[list[str]]) -> str:
    """A push of candle rows, as OKX sends it."""
    argument = argument_of(about) if isinstance(about, Series) else about
    return _JSON.encode({"arg": argument, "data": rows}).decode()


def encode_event(event: str, argument: Argument | None = None, **fields: Any) -> str:
    """A reply, error or notice, as OKX sends it; `fields` in OKX's words, empty ones left out."""
    about = {} if argument is None else {"arg": argument}
    return _JSON.encode({"event": event, **about, **{name: value for name, value in fields.items() if value}}).decode()
