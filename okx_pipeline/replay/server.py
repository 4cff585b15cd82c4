"""The stand-in on a loopback port: OKX's REST paths, and beside them a few of its own to watch and upset it.

===========================  =====================================================================================
GET /api/v5/...              the paths of `protocol.ENDPOINTS`, as OKX answers them
GET /replay/status           {"source", "now_ms", "speed", "endpoints": {name: {"served", "refused", "faulted"}}}
GET /replay/requests         the candle requests answered with a page: [{"endpoint", "symbol", "bar", "after",
                             "before", "limit", "rows", "now_ms"}], oldest first; DELETE forgets them
GET /replay/faults           the faults still to come; POST adds one or a list (see `faults`), DELETE drops all
POST /replay/clock           {"now_ms", "speed"}, either or both: puts the exchange's clock; answers with both
===========================  =====================================================================================

What is wrong with a request to /replay is said in {"error"} with status 400. Answers are JSON, never compressed.
"""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from okx_pipeline.errors import PipelineError, UsageError
from okx_pipeline.exchange.protocol import ENDPOINTS, Endpoint
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.faults import decode_faults
from okx_pipeline.replay.sources import open_market

HOST: Final = "127.0.0.1"
_START_TIMEOUT_S: Final = 30
_TRANSPORT: Final = "replay.transport"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def serve(
    source: str,
    *,
    port: int,
    now_ms: int | None,
    speed: float,
    symbols: int,
    seed: int,
    latency_s: float = 0.0,
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
        Of a synthetic market.
    latency_s
        How long every answer is held back.

    Raises
    ------
    UsageError
        If there is no such source or moment, or the port is taken.
    """
    market = open_market(source, seed=seed, symbols=symbols)
    wall_ms = int(time.time() * 1000)
    clock = ExchangeClock(market.start_ms(wall_ms) if now_ms is None else now_ms, speed)
    listener = _listen(port)
    server = _Server(create_app(Exchange(market, clock), latency_s=latency_s), lambda: on_ready(_url(listener)))
    server.run(sockets=[listener])


class ReplayServer:
    """The stand-in in a thread of this process, for as long as the context lasts.

    Parameters
    ----------
    exchange
        What answers. It may be looked at and changed while it serves.
    port
        Port on 127.0.0.1; 0 for any free one.
    latency_s
        How long every answer is held back.

    Attributes
    ----------
    url
        Base URL, without a slash at its end; known on entry.
    """

    def __init__(self, exchange: Exchange, *, port: int = 0, latency_s: float = 0.0) -> None:
        self.exchange = exchange
        self.url = ""
        self._port = port
        self._ready = threading.Event()
        self._server = _Server(create_app(exchange, latency_s=latency_s), self._ready.set)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "ReplayServer":
        listener = _listen(self._port)
        self.url = _url(listener)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="replay", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S):
            raise PipelineError(f"the replay exchange did not start within {_START_TIMEOUT_S} s")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()


def create_app(exchange: Exchange, *, latency_s: float = 0.0) -> Starlette:
    """The application: every path of the module's table."""
    control = _Control(exchange)
    routes: list[BaseRoute] = [Route(endpoint.path, _okx(exchange, endpoint, latency_s)) for endpoint in ENDPOINTS]
    routes += [
        Route("/replay/status", control.status),
        Route("/replay/requests", control.requests),
        Route("/replay/requests", control.forget_requests, methods=["DELETE"]),
        Route("/replay/faults", control.faults),
        Route("/replay/faults", control.add_faults, methods=["POST"]),
        Route("/replay/faults", control.drop_faults, methods=["DELETE"]),
        Route("/replay/clock", control.put_clock, methods=["POST"]),
    ]
    return Starlette(routes=routes)


def _okx(exchange: Exchange, endpoint: Endpoint, latency_s: float) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        answer = exchange.answer(endpoint, request.query_params)
        if answer.reset:
            await _reset(request)
        if answer.delay_s + latency_s > 0:
            await asyncio.sleep(answer.delay_s + latency_s)
        return Response(answer.body, answer.status, media_type=answer.media_type)

    return handle


async def _reset(request: Request) -> None:
    """Drop the connection the hard way: the peer reads a reset, not an end."""
    transport: asyncio.Transport = request.scope[_TRANSPORT]
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _ClockChange(msgspec.Struct, forbid_unknown_fields=True):
    now_ms: int | None = None
    speed: float | None = None


class _Control:
    """The paths under /replay."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def status(self, request: Request) -> Response:
        exchange = self._exchange
        return _json(
            {
                "source": exchange.market.description,
                "now_ms": exchange.clock.now_ms(),
                "speed": exchange.clock.speed,
                "endpoints": exchange.tallies,
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
            self._exchange.faults.add(decode_faults(await request.body()))
        except UsageError as problem:
            return _wrong(problem)
        return _json(self._exchange.faults.pending)

    async def drop_faults(self, request: Request) -> Response:
        self._exchange.faults.clear()
        return _json([])

    async def put_clock(self, request: Request) -> Response:
        clock = self._exchange.clock
        try:
            change = msgspec.json.decode(await request.body(), type=_ClockChange)
            clock.set(change.now_ms, change.speed)
        except (UsageError, msgspec.DecodeError) as problem:
            return _wrong(problem)
        return _json({"now_ms": clock.now_ms(), "speed": clock.speed})


def _json(data: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def _wrong(problem: Exception) -> Response:
    return _json({"error": str(problem)}, 400)


class _Connection(HttpToolsProtocol):
    """An HTTP connection whose requests can get at its transport, which ASGI does not hand out."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[_TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]


class _Server(uvicorn.Server):
    """Says when it answers, and ends by returning when a signal asks for it."""

    def __init__(self, app: Starlette, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

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
