"""A running stand-in and its clients: the real `websockets` and httpx over real sockets, the clocks moved by hand."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from okx_pipeline.replay.channels import Channels
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.market import Market
from okx_pipeline.replay.server import ReplayServer

NOW_MS = 1_795_199_000_123  # in the middle of a minute, an hour and a day
BTC = "BTC-USDT-SWAP"
ETH = "ETH-USDT-SWAP"
DEADLINE_S = 20
BY_HAND_S = 3600
"""A push interval so long that only putting the clock pushes."""

Json = dict[str, Any]


class Client:
    """A WebSocket connection to the stand-in."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def ask(self, op: str, *args: tuple[str, str], **fields: str) -> None:
        named = [{"channel": channel, "instId": symbol} for channel, symbol in args]
        self.connection.send(json.dumps({"op": op, "args": named, **fields}))

    def subscribe(self, *args: tuple[str, str], **fields: str) -> list[Json]:
        """Subscribe, and read the acknowledgements; the first pushes that come between them are left out."""
        self.ask("subscribe", *args, **fields)
        return [frame for frame in self.frames() if "event" in frame]

    def texts(self) -> list[str]:
        """Every frame sent up to now."""
        self.connection.send("ping")
        texts = []
        while (text := self.connection.recv(timeout=DEADLINE_S)) != "pong":
            assert isinstance(text, str)
            texts.append(text)
        return texts

    def frames(self) -> list[Json]:
        return [json.loads(text) for text in self.texts()]

    def rows(self, symbol: str = BTC, channel: str = "candle1m") -> list[list[str]]:
        """The rows of a series pushed up to now, each frame's newest last."""
        frames = [frame for frame in self.frames() if frame.get("arg") == {"channel": channel, "instId": symbol}]
        return [row for frame in frames for row in reversed(frame.get("data", []))]

    def until_closed(self) -> None:
        """Read whatever still comes."""
        while True:
            self.connection.recv(timeout=DEADLINE_S)

    def next(self) -> Json:
        frame: Json = json.loads(self.connection.recv(timeout=DEADLINE_S))
        return frame


class Stand:
    """A running stand-in."""

    def __init__(self, server: ReplayServer, http: httpx.Client, opened: ExitStack) -> None:
        self.server = server
        self.exchange = server.exchange
        self.http = http
        self._opened = opened

    def connect(self, path: str = "business", **options: Any) -> Client:
        url = f"{self.server.websocket_url.rpartition('/')[0]}/{path}"
        options = {"proxy": None, "open_timeout": DEADLINE_S, "ping_interval": None, "close_timeout": 5} | options
        return Client(self._opened.enter_context(connect(url, **options)))

    def subscribed(self, *args: tuple[str, str]) -> Client:
        """A connection that has subscribed to these and read everything so far."""
        client = self.connect()
        client.subscribe(*args)
        return client

    def step(self, ms: int = 0) -> None:
        """Move the exchange's clock, and push."""
        now_ms = self.exchange.clock.now_ms() + ms
        self.http.post("/replay/clock", json={"now_ms": now_ms}).raise_for_status()

    def fault(self, **fields: object) -> None:
        self.http.post("/replay/faults", json=fields).raise_for_status()

    def rest(self, symbol: str = BTC, bar: str = "1m", limit: int = 300) -> list[list[str]]:
        """The newest rows that REST serves, oldest first."""
        query = {"instId": symbol, "bar": bar, "limit": limit}
        rows: list[list[str]] = self.http.get("/api/v5/market/candles", params=query).raise_for_status().json()["data"]
        return rows[::-1]

    def truth(self, start_ms: int, end_ms: int, symbol: str = BTC, timeframe: str = "1m") -> list[list[Any]]:
        query = {"symbol": symbol, "timeframe": timeframe, "start_ms": start_ms, "end_ms": end_ms}
        rows: list[list[Any]] = self.http.get("/replay/truth", params=query).raise_for_status().json()
        return rows

    def await_figures(self, **expected: int) -> Json:
        """The figures, once they say this."""
        ends_s = time.monotonic() + DEADLINE_S
        while not expected.items() <= (figures := self.figures()).items():
            assert time.monotonic() < ends_s, figures
        return figures

    def figures(self) -> Json:
        figures: Json = self.http.get("/replay/status").json()["websocket"]
        return figures


@contextmanager
def standing(
    market: Market,
    *,
    now_ms: int = NOW_MS,
    speed: float = 0,
    push_interval_s: float = BY_HAND_S,
    rules: Json | None = None,
    **switches: Any,
) -> Iterator[Stand]:
    """A stand-in without limits unless told; `switches` are the exchange's, `rules` its channels'."""
    exchange = Exchange(market, ExchangeClock(now_ms, speed), **{"limits": False, **switches})
    channels = Channels(exchange, push_interval_s=push_interval_s, **(rules or {}))
    with (
        ReplayServer(exchange, channels=channels) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
        ExitStack() as opened,
    ):
        yield Stand(server, http, opened)


def confirmed(rows: list[list[str]]) -> list[list[str]]:
    """Those of the rows that are confirmed."""
    return [row for row in rows if row[8] == "1"]


class Stopwatch:
    """The wall's clock as a test moves it."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds
