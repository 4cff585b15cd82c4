"""A real WebSocket server that speaks OKX's candle protocol and breaks it as it is told, and a listener that notes all.

Both ends run in one event loop, in simulated time unless a test says otherwise.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from okx_pipeline.exchange.feed import CandleFeed
from okx_pipeline.exchange.frames import (
    ERROR,
    NOTICE,
    SUBSCRIBE,
    Argument,
    Request,
    Series,
    argument_of,
    decode_request,
    encode_event,
    encode_push,
)
from okx_pipeline.exchange.protocol import CONFIRMED
from okx_pipeline.timeframes import TIMEFRAMES, parse_timeframe

ROW = ["1774964340000", "66898.7", "66902.1", "66884.6", "66894.5", "1330.07", "13.3007", "889750.68514000", "0"]
UNKNOWN = (
    "Wrong URL or channel:{channel},instId:{symbol} doesn't exist. "
    "Please use the correct URL, channel and parameters referring to API document."
)


def series(symbol: str = "BTC-USDT-SWAP", timeframe: str = "1m") -> Series:
    return Series(symbol, parse_timeframe(timeframe))


def many(number: int, timeframe: str = "1m") -> list[Series]:
    return [series(f"COIN{index}-USDT", timeframe) for index in range(number)]


def mixed(number: int) -> list[Series]:
    return [Series(f"COIN{index // 3}-USDT", TIMEFRAMES[index % 3]) for index in range(number)]


@dataclass(eq=False)
class Talk:
    """One connection, as the server sees it."""

    socket: ServerConnection
    opened_s: float
    requests: list[tuple[float, Request]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    subscribed: dict[Argument, None] = field(default_factory=dict)
    heard_s: list[float] = field(default_factory=list)
    pings: int = 0
    is_frozen: bool = False
    closed_s: float | None = None
    close_code: int | None = None

    @property
    def series(self) -> set[Series]:
        return {found for argument in self.subscribed if (found := argument.series) is not None}

    @property
    def is_open(self) -> bool:
        return self.closed_s is None

    def ops(self, about: Series | None = None) -> list[str]:
        return [request.op for _, request in self.requests if about is None or argument_of(about) in request.args]

    async def send(self, text: str | bytes) -> None:
        if not self.is_frozen:
            with suppress(ConnectionClosed):
                await self.socket.send(text, text=True)

    def freeze(self) -> None:
        """Stay open, but neither read nor write any more: what a half-open connection looks like."""
        self.is_frozen = True
        self.socket.transport.pause_reading()

    def cut(self) -> None:
        self.socket.transport.abort()


Answer = Callable[[Talk, Request, Argument], str | None]


def acknowledge(talk: Talk, request: Request, argument: Argument) -> str | None:
    """What OKX says to one argument of a request."""
    if request.op == SUBSCRIBE:
        talk.subscribed[argument] = None
    else:
        talk.subscribed.pop(argument, None)
    return encode_event(request.op, argument, id=request.id, connId="a4d3ae55")


def error(code: str, message: str, number: str = "") -> str:
    return encode_event(ERROR, code=code, msg=message, connId="a4d3ae55", id=number)


def unknown(argument: Argument, number: str = "") -> str:
    return error("60018", UNKNOWN.format(channel=argument.channel, symbol=argument.symbol), number)


class CandleServer:
    """OKX's end of the talk.

    Parameters
    ----------
    answer
        What one argument of a request is answered with, None being nothing.
    reject
        What a request is answered with as a whole, before any argument; None to go on.
    pong
        Whether pings are answered.
    door
        The HTTP status that new connections are turned away with; None to let them in.
    """

    def __init__(self) -> None:
        self.answer: Answer = acknowledge
        self.reject: Callable[[Talk, Request], str | None] = lambda talk, request: None
        self.pong = True
        self.door: HTTPStatus | None = None
        self.port = 0
        self.scheme = "ws"
        self.talks: list[Talk] = []
        self.knocks_s: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.happened = asyncio.Event()
        self.pushes: dict[Series, list[str]] = {}
        self._pushed = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/ws/v5/business"

    @property
    def open_talks(self) -> list[Talk]:
        return [talk for talk in self.talks if talk.is_open]

    @property
    def carried(self) -> list[Series]:
        """Series that are subscribed, once for every connection that has them."""
        return [series for talk in self.open_talks if not talk.is_frozen for series in talk.series]

    def requests(self) -> list[Request]:
        return [request for talk in self.talks for _, request in talk.requests]

    async def push(self, about: Series, *rows: list[str]) -> None:
        """Push rows, or a confirmed one that is like no other, to whoever subscribed the series."""
        if not rows:
            self._pushed += 1
            rows = ([*ROW[:5], str(self._pushed), *ROW[6:8], CONFIRMED],)
            self.pushes.setdefault(about, []).append(str(self._pushed))
        for talk in self.open_talks:
            if argument_of(about) in talk.subscribed:
                await talk.send(encode_push(about, list(rows)))

    async def push_all(self, but: Collection[Series] = ()) -> None:
        for about in sorted(set(self.carried).difference(but)):
            await self.push(about)

    async def trade(self, every_s: float = 1.0, but: Collection[Series] = ()) -> None:
        """A push of every subscribed series each second, for ever."""
        while True:
            await self.push_all(but)
            await asyncio.sleep(every_s)

    async def notice(self, talk: Talk) -> None:
        message = "The connection will soon be closed for a service upgrade. Please reconnect."
        await talk.send(encode_event(NOTICE, code="64008", msg=message, connId="a4d3ae55"))

    def door_keeper(self, socket: ServerConnection, request: HttpRequest) -> Response | None:
        self.knocks_s.append(asyncio.get_running_loop().time())
        self.headers.append({name.lower(): value for name, value in request.headers.raw_items()})
        self.happened.set()
        if self.door is None:
            return None
        response = socket.respond(self.door, "not now")
        response.headers["Location"] = "ws://127.0.0.1:1/elsewhere"
        return response

    async def talk(self, socket: ServerConnection) -> None:
        loop = asyncio.get_running_loop()
        talk = Talk(socket, loop.time())
        self.talks.append(talk)
        self.happened.set()
        try:
            while True:
                text = await socket.recv()
                talk.heard_s.append(loop.time())
                if text == "ping":
                    talk.pings += 1
                    if self.pong:
                        await talk.send("pong")
                else:
                    talk.sizes.append(len(text))
                    await self._heed(talk, decode_request(text))
                self.happened.set()
        except ConnectionClosed as end:
            talk.close_code = end.rcvd.code if end.rcvd is not None else None
        finally:
            talk.closed_s = loop.time()
            self.happened.set()

    async def _heed(self, talk: Talk, request: Request) -> None:
        talk.requests.append((asyncio.get_running_loop().time(), request))
        rejection = self.reject(talk, request)
        if rejection is not None:
            await talk.send(rejection)
            return
        for argument in request.args:
            answer = self.answer(talk, request, argument)
            if answer is not None:
                await talk.send(answer)


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[CandleServer]:
    """A server on loopback for as long as the context lasts."""
    server = CandleServer()
    options.setdefault("ping_interval", None)
    options.setdefault("close_timeout", 1)
    async with serve(
        server.talk, "127.0.0.1", options.pop("port", 0), ssl=tls, process_request=server.door_keeper, **options
    ) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        server.scheme = "wss" if tls else "ws"
        try:
            yield server
        finally:
            for talk in server.talks:
                if talk.is_frozen:
                    talk.cut()


class Notes:
    """A listener that notes all, and that nothing it is told contradicts what it was told before."""

    def __init__(self, happened: asyncio.Event) -> None:
        self.rows: dict[Series, list[list[str]]] = {}
        self.received: set[Series] = set()
        self.joined: list[Series] = []
        self.gone: list[Series] = []
        self.refusals: list[tuple[float, Series, str, str]] = []
        self.oddities: list[tuple[float, str, str]] = []
        self.frames = 0
        self.unread: list[bytes] = []
        self.repeated: list[tuple[Series, str]] = []
        self.frame_s = 0.0
        self._happened = happened

    def pushed(self, series: Series, rows: list[list[str]], frame_s: float) -> None:
        assert frame_s <= asyncio.get_running_loop().time()
        assert frame_s >= self.frame_s
        self.frame_s = frame_s
        self.frames += 1
        self.rows.setdefault(series, []).extend(rows)
        self._happened.set()

    def forming(self, series: Series, opened: str, frame_s: float) -> None:
        self.repeated.append((series, opened))
        self.pushed(series, [], frame_s)

    def subscribed(self, series: Collection[Series]) -> None:
        self.received.update(series)
        self.joined.extend(series)
        self._happened.set()

    def lost(self, series: Collection[Series]) -> None:
        assert self.received.issuperset(series), "what was not received cannot be lost"
        self.received.difference_update(series)
        self.gone.extend(series)
        self._happened.set()

    def refused(self, series: Series, code: str, message: str) -> None:
        assert "\n" not in message
        self.refusals.append((asyncio.get_running_loop().time(), series, code, message))
        self._happened.set()

    def noticed(self, kind: str, detail: str) -> None:
        assert "\n" not in detail
        assert len(detail) < 500
        self.oddities.append((asyncio.get_running_loop().time(), kind, detail))
        self._happened.set()

    def garbled(self, text: bytes, problem: str) -> None:
        assert problem
        self.unread.append(text)

    def of_kind(self, kind: str) -> list[str]:
        return [detail for _, each, detail in self.oddities if each == kind]

    def kinds(self) -> set[str]:
        return {kind for _, kind, _ in self.oddities}


@dataclass
class Scene:
    """A server, a feed that runs, and its listener."""

    server: CandleServer
    feed: CandleFeed
    notes: Notes
    running: asyncio.Task[None]

    async def until(self, condition: Callable[[], object], within_s: float = 60.0) -> None:
        """Wait until something is so; fail if it is not within some time."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    assert not self.running.done(), self.running
                    self.server.happened.clear()
                    try:
                        # What only the feed knows of is looked for now and then.
                        async with asyncio.timeout(10.0):
                            await self.server.happened.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            kinds = self.notes.oddities[-10:]
            raise AssertionError(f"not so within {within_s} s; received {len(self.notes.received)}, {kinds}") from None

    def want(self, wanted: Collection[Series]) -> None:
        self.notes.received.intersection_update(wanted)
        self.feed.want(wanted)

    async def until_received(self, wanted: Collection[Series], within_s: float = 60.0) -> None:
        expected = set(wanted)
        await self.until(
            lambda: self.notes.received == expected and expected == set(self.server.carried), within_s=within_s
        )

    async def until_closed(self, talks: Collection[Talk]) -> None:
        """Wait until the server has seen the end of these connections, the feed running or not."""
        async with asyncio.timeout(60):
            while any(talk.is_open for talk in talks):
                self.server.happened.clear()
                await self.server.happened.wait()


@asynccontextmanager
async def feeding(
    wanted: Collection[Series],
    *,
    tls: ssl.SSLContext | None = None,
    script: Callable[[CandleServer], None] = lambda server: None,
    serve_options: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Scene]:
    """A feed of `wanted`, made with `options`, that runs against a server set up by `script`; cancelled in the end."""
    async with serving(tls, **(serve_options or {})) as server:
        script(server)
        notes = Notes(server.happened)
        feed = CandleFeed(options.pop("url", server.url), notes, **options)
        feed.want(wanted)
        running = asyncio.create_task(feed.run())
        try:
            yield Scene(server, feed, notes, running)
        finally:
            running.cancel()
            (ended,) = await asyncio.gather(running, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended
