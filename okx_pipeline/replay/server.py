"""The stand-in on a loopback port: OKX's REST and WebSocket paths, and a few of its own to watch and upset it.

===========================  =====================================================================================
GET /api/v5/...              the paths of `protocol.ENDPOINTS`, as OKX answers them
/ws/v5/business              WebSocket: candles as OKX pushes them (see `channels`); /ws/v5/... has none
GET /replay/status           {"source", "now_ms", "speed", "endpoints": {name: {"served", "refused", "faulted"}},
                             "websocket": {"connections", "connected", "refused", "subscriptions", "pushed",
                             "confirmed", "closes": {code: n}}}
GET /replay/requests         the candle requests answered with a page: [{"endpoint", "symbol", "bar", "after",
                             "before", "limit", "rows", "now_ms"}], oldest first; DELETE forgets them
GET /replay/faults           the faults still to come; POST adds one or a list (see `faults`), DELETE drops all
POST /replay/clock           {"now_ms", "speed"}, either or both: puts the exchange's clock, and pushes what then is to
                             be pushed; answers with both
GET /replay/truth            ?symbol=&timeframe=&start_ms=&end_ms=: what a perfect client would hold now, the confirmed
                             candles that open in [start_ms, end_ms): [[timestamp_ms, open_price, high_price,
                             low_price, close_price, volume, volume_currency, volume_quote]], oldest first
POST /replay/corrections     changes a confirmed candle from now on, silently unless told otherwise (see `corrections`)
===========================  =====================================================================================

What is wrong with a request to /replay is said in {"error"} with status 400. Answers are JSON, and compressed by a
fault alone.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import FrameType
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from okx_pipeline.errors import PipelineError, UsageError
from okx_pipeline.exchange.protocol import BUSINESS_PATH, ENDPOINTS, MOST_REQUEST_BYTES, Endpoint
from okx_pipeline.replay.channels import Channels
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.corrections import decode_correction
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.faults import decode_faults
from okx_pipeline.replay.sockets import TRANSPORT, HttpConnection, Socket, reset
from okx_pipeline.replay.sources import open_market
from okx_pipeline.timeframes import parse_timeframe

HOST: Final = "127.0.0.1"
MOST_BODY_BYTES: Final = 1024 * 1024
_START_TIMEOUT_S: Final = 30
_OTHER_PATHS: Final = f"{BUSINESS_PATH.rpartition('/')[0]}/{{name}}"


def serve(
    source: str,
    *,
    port: int,
    now_ms: int | None,
    speed: float,
    symbols: int,
    seed: int,
    fill: int | None = None,
    latency_s: float = 0.0,
    push_interval_s: float = 1.0,
    faults: Sequence[str] = (),
    on_ready: Callable[[str], None],
) -> None:
    """Serve a source until SIGINT or SIGTERM; `on_ready` is called with the base URL once it answers.

    Parameters
    ----------
    source
        A folder of recordings, or `synthetic`; see `sources`.
    port
        Port on 127.0.0.1; 0 for any free one.
    now_ms, speed
        Where the exchange's clock starts (None: where the market says), and how fast it runs.
    symbols, seed
        Of a synthetic market; the seed also of what faults do by chance.
    fill
        Seed of the candles that fill the holes of recordings; None leaves them open.
    latency_s
        How long every answer over HTTP is held back.
    push_interval_s
        How often candles are pushed.
    faults
        Faults to begin with, each as JSON (see `faults`).

    Raises
    ------
    UsageError
        If there is no such source, moment or fault, or the port is taken; if a synthetic market is to be filled.
    """
    market = open_market(source, seed=seed, symbols=symbols, fill=fill)
    wall_ms = int(time.time() * 1000)
    clock = ExchangeClock(market.start_ms(wall_ms) if now_ms is None else now_ms, speed)
    exchange = Exchange(market, clock, seed=seed)
    for text in faults:
        exchange.faults.add(decode_faults(text))
    channels = Channels(exchange, push_interval_s=push_interval_s)
    listener = _listen(port)
    app = create_app(exchange, channels, latency_s=latency_s)
    _Server(app, channels.run, lambda: on_ready(_url(listener))).run(sockets=[listener])


class ReplayServer:
    """The stand-in in a thread of this process, for as long as the context lasts.

    Parameters
    ----------
    exchange
        What answers. It may be looked at and changed while it serves.
    channels
        Its WebSocket side, if other than by default.
    port
        Port on 127.0.0.1; 0 for any free one.
    latency_s
        How long every answer over HTTP is held back.

    Attributes
    ----------
    url
        Base URL, without a slash at its end; known on entry.
    websocket_url
        URL of the WebSocket that has the candles; known on entry.
    """

    def __init__(
        self, exchange: Exchange, *, channels: Channels | None = None, port: int = 0, latency_s: float = 0.0
    ) -> None:
        self.exchange = exchange
        self.channels = Channels(exchange) if channels is None else channels
        self.url = ""
        self.websocket_url = ""
        self._port = port
        self._ready = threading.Event()
        app = create_app(exchange, self.channels, latency_s=latency_s)
        self._server = _Server(app, self.channels.run, self._ready.set)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "ReplayServer":
        listener = _listen(self._port)
        self.url = _url(listener)
        self.websocket_url = f"{self.url.replace('http', 'ws', 1)}{BUSINESS_PATH}"
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="replay", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S):
            raise PipelineError(f"the replay exchange did not start within {_START_TIMEOUT_S} s")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()


def create_app(exchange: Exchange, channels: Channels, *, latency_s: float = 0.0) -> Starlette:
    """The application: every path of the module's table. It pushes only while `channels.run` runs."""
    control = _Control(exchange, channels)
    routes: list[BaseRoute] = [Route(endpoint.path, _okx(exchange, endpoint, latency_s)) for endpoint in ENDPOINTS]
    routes += [
        Route("/replay/status", control.status),
        Route("/replay/requests", control.requests),
        Route("/replay/requests", control.forget_requests, methods=["DELETE"]),
        Route("/replay/faults", control.faults),
        Route("/replay/faults", control.add_faults, methods=["POST"]),
        Route("/replay/faults", control.drop_faults, methods=["DELETE"]),
        Route("/replay/clock", control.put_clock, methods=["POST"]),
        Route("/replay/truth", control.truth),
        Route("/replay/corrections", control.correct, methods=["POST"]),
        WebSocketRoute(BUSINESS_PATH, _channels(channels, candles=True)),
        WebSocketRoute(_OTHER_PATHS, _channels(channels, candles=False)),
    ]
    # A page of another site may have its name lead here.
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def _okx(exchange: Exchange, endpoint: Endpoint, latency_s: float) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        answer = exchange.answer(endpoint, request.query_params)
        if answer.reset:
            await _reset(request)
        if answer.delay_s + latency_s > 0:
            await asyncio.sleep(answer.delay_s + latency_s)
        headers = None if answer.encoding is None else {"Content-Encoding": answer.encoding}
        return Response(answer.body, answer.status, headers, answer.media_type)

    return handle


async def _reset(request: Request) -> None:
    reset(request.scope[TRANSPORT])
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _channels(channels: Channels, *, candles: bool) -> Callable[[WebSocket], Awaitable[None]]:
    async def handle(websocket: WebSocket) -> None:
        await channels.serve(websocket, candles=candles)

    return handle


class _ClockChange(msgspec.Struct, forbid_unknown_fields=True):
    now_ms: int | None = None
    speed: float | None = None


class _TruthQuery(msgspec.Struct, forbid_unknown_fields=True):
    symbol: str
    timeframe: str
    start_ms: int
    end_ms: int


class _Control:
    """The paths under /replay."""

    def __init__(self, exchange: Exchange, channels: Channels) -> None:
        self._exchange = exchange
        self._channels = channels

    async def status(self, request: Request) -> Response:
        exchange = self._exchange
        return _json(
            {
                "source": exchange.market.description,
                "now_ms": exchange.clock.now_ms(),
                "speed": exchange.clock.speed,
                "endpoints": exchange.tallies,
                "websocket": self._channels.figures,
            }
        )

    async def requests(self, request: Request) -> Response:
        return _json(list(self._exchange.requests))

    async def forget_requests(self, request: Request) -> Response:
        self._exchange.requests.clear()
        return _json([])

    async def faults(self, request: Request) -> Response:
        return _json(self._exchange.faults.pending)

    async def add_faults(self, request: Request) -> Response:
        try:
            self._exchange.faults.add(decode_faults(await _body(request)))
        except UsageError as problem:
            return _wrong(problem)
        self._channels.strike()
        return _json(self._exchange.faults.pending)

    async def drop_faults(self, request: Request) -> Response:
        self._exchange.faults.clear()
        return _json([])

    async def put_clock(self, request: Request) -> Response:
        clock = self._exchange.clock
        try:
            change = msgspec.json.decode(await _body(request), type=_ClockChange)
            clock.set(change.now_ms, change.speed)
        except (UsageError, msgspec.DecodeError, UnicodeDecodeError) as problem:
            return _wrong(problem)
        await self._channels.push()
        return _json({"now_ms": clock.now_ms(), "speed": clock.speed})

    async def truth(self, request: Request) -> Response:
        try:
            asked = msgspec.convert(dict(request.query_params), _TruthQuery, strict=False)
            rows = self._exchange.truth(asked.symbol, parse_timeframe(asked.timeframe), asked.start_ms, asked.end_ms)
        except (UsageError, msgspec.ValidationError) as problem:
            return _wrong(problem)
        return _json([[int(row[0]), *row[1:-1]] for row in rows])

    async def correct(self, request: Request) -> Response:
        try:
            correction = decode_correction(await _body(request))
            self._exchange.correct(correction)
        except UsageError as problem:
            return _wrong(problem)
        if correction.pushed:
            self._channels.push_again(correction.symbol, parse_timeframe(correction.timeframe), correction.timestamp_ms)
        return _json(correction)


async def _body(request: Request) -> bytes:
    """The body of a request to /replay.

    Raises
    ------
    UsageError
        If it is longer than any of them has to be; the rest of it is not read.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY_BYTES:
            raise UsageError(f"the body is longer than {MOST_BODY_BYTES} bytes")
    return bytes(body)


def _json(data: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def _wrong(problem: Exception) -> Response:
    return _json({"error": str(problem)}, 400)


class _Server(uvicorn.Server):
    """Says when it answers, pushes while it serves, and ends by returning when a signal asks for it."""

    def __init__(
        self, app: Starlette, push: Callable[[], Coroutine[Any, Any, None]], on_ready: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpConnection,
                ws=Socket,
                ws_max_size=MOST_REQUEST_BYTES,
                ws_ping_interval=None,  # OKX does not send pings.
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._push = push
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def main_loop(self) -> None:
        # In a group: if pushing fails, so does the server, and loudly.
        async with asyncio.TaskGroup() as tasks:
            pushing = tasks.create_task(self._push())
            await super().main_loop()
            pushing.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Its own would raise the signal again after an orderly end, and the command would die of it.
        self.force_exit = self.should_exit
        self.should_exit = True


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as problem:
        listener.close()
        raise UsageError(f"cannot listen on {HOST}:{port}: {problem.strerror}; choose another port") from problem
    return listener


def _url(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}"
