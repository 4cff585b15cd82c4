"""OKX's WebSocket channels: who is connected and what each has subscribed to, replies, limits, and why OKX hangs up.

What is pushed of a series is decided in `pushes`, how bytes reach a peer in `sockets`. Not known of OKX, and decided
here: a ping keeps even a connection without a subscription alive; a subscription that was there already is acknowledged
and pushed again; every message but a ping counts as a request; a refused handshake has no body.
"""

import asyncio
import secrets
from collections.abc import Iterable
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.websockets import WebSocket

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.frames import (
    ERROR,
    NOTICE,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Argument,
    Series,
    argument_of,
    decode_request,
    encode_event,
    request_id,
)
from okx_pipeline.replay.bars import BARS, Bar
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.faults import Fault
from okx_pipeline.replay.limits import SlidingWindow
from okx_pipeline.replay.pushes import Frame, SeriesPushes
from okx_pipeline.replay.sockets import SOCKET, Socket
from okx_pipeline.timeframes import Timeframe

_CHANNELS: Final = {f"{protocol.CHANNEL_PREFIX}{code}": bar for code, bar in BARS.items()}
_TOO_MANY_CONNECTIONS: Final = 429
_GOING_AWAY: Final = 1001
_HOUR_S: Final = 3600
_BATCH: Final = 250
"""Series pushed before others may have a turn: about 15 ms."""

_MOST_UNSENT_BYTES: Final = 16 * 1024 * 1024
"""What a peer that does not read may owe before OKX hangs up; how much it is there is not known."""


class Figures(msgspec.Struct):
    """Connections now and ever, handshakes refused, subscriptions now, frames pushed, confirmed rows in them, and how
    many connections ended with which code (1006: without one)."""

    connections: int = 0
    connected: int = 0
    refused: int = 0
    subscriptions: int = 0
    pushed: int = 0
    confirmed: int = 0
    closes: dict[int, int] = msgspec.field(default_factory=dict)


class Connection:
    """A connection, what it has subscribed to (None: acknowledged, and never pushed), and what it is owed."""

    def __init__(self, socket: Socket, requests: SlidingWindow, *, candles: bool, now_s: float) -> None:
        self.socket = socket
        self.id = secrets.token_hex(4)
        self.requests = requests
        self.candles = candles
        self.subscribed: dict[Argument, SeriesPushes | None] = {}
        self.owed: list[str] = []
        self.sent_s = now_s


class Channels:
    """The WebSocket side of an exchange.

    Parameters
    ----------
    exchange
        Whose candles, clock and faults, and whether limits are kept.
    push_interval_s
        How often series are pushed, by the wall's clock.
    push_unchanged
        Whether a series is pushed even if nothing about it has changed: a load to test with.
    idle_s
        A connection that was sent nothing for this long is closed.
    most_channels
        A connection that subscribes to more is closed; none by default, since OKX does not publish its number.

    Attributes
    ----------
    figures
        What has happened so far.

    Raises
    ------
    UsageError
        If the interval is no time at all.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        push_interval_s: float = 1.0,
        push_unchanged: bool = False,
        idle_s: float = protocol.IDLE_S,
        most_channels: int | None = None,
    ) -> None:
        if not 0 < push_interval_s < float("inf"):
            raise UsageError(f"candles cannot be pushed every {push_interval_s} s; give a number above 0")
        self.figures = Figures()
        self._exchange = exchange
        self._push_interval_s = push_interval_s
        self._push_unchanged = push_unchanged
        self._idle_s = idle_s
        self._most_channels = most_channels
        self._connections: set[Connection] = set()
        self._series: dict[Argument, SeriesPushes] = {}
        self._listeners: dict[Argument, set[Connection]] = {}
        self._handshakes: dict[str, SlidingWindow] = {}

    async def run(self) -> None:
        """Push, and hang up on the idle, until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            await self.push()
            due_s = max(due_s + self._push_interval_s, loop.time())
            await asyncio.sleep(due_s - loop.time())

    async def push(self) -> None:
        """Push now whatever there is to push of every series."""
        self.strike()
        for number, argument in enumerate(list(self._series), start=1):
            self._advance(argument)
            if number % _BATCH == 0:
                self._flush(self._connections)
                await asyncio.sleep(0)
        self._flush(self._connections)
        now_s = self._exchange.monotonic()
        for connection in self._connections:
            if now_s - connection.sent_s >= self._idle_s:
                connection.socket.hang_up(protocol.CLOSE_IDLE, protocol.CLOSE_IDLE_TEXT)

    def strike(self) -> None:
        """Do to the connections there are what faults have in store for them."""
        for fault in self._exchange.faults.take_at_once():
            for connection in self._connections:
                self._upset(connection, fault)

    def push_again(self, symbol: str, timeframe: Timeframe, open_ms: int) -> None:
        """Push a candle that closed before, as REST has it now, to those who have subscribed to its series."""
        argument = argument_of(Series(symbol, timeframe))
        if argument in self._series:
            self._owe(self._listeners[argument], self._series[argument].again(open_ms))
            self._flush(self._listeners[argument])

    async def serve(self, websocket: WebSocket, *, candles: bool) -> None:
        """A connection from its handshake to its end; candles have their channels on one path only."""
        status = self._refusal("" if websocket.client is None else websocket.client.host)
        if status is not None:
            self.figures.refused += 1
            await websocket.send_denial_response(Response(status_code=status))
            return
        socket: Socket = websocket.scope[SOCKET]
        await websocket.accept()
        monotonic = self._exchange.monotonic
        requests = SlidingWindow(protocol.REQUESTS_AN_HOUR, _HOUR_S, monotonic=monotonic)
        connection = Connection(socket, requests, candles=candles, now_s=monotonic())
        self._connections.add(connection)
        self.figures.connected += 1
        self._count()
        try:
            while (message := await websocket.receive())["type"] == "websocket.receive":
                self._answer(connection, message.get("text") or message.get("bytes") or "")
                self._flush([connection])
        finally:
            self._connections.remove(connection)
            for argument in list(connection.subscribed):
                self._unsubscribe(connection, argument)
            self._count()
            self.figures.closes[socket.ended_with] = self.figures.closes.get(socket.ended_with, 0) + 1

    def _refusal(self, address: str) -> int | None:
        """The HTTP status with which a handshake is refused, if it is."""
        if refuse := self._exchange.faults.strike("refuse"):
            return refuse.status
        if address not in self._handshakes:
            self._handshakes[address] = SlidingWindow(
                protocol.CONNECTIONS_A_SECOND, 1, monotonic=self._exchange.monotonic
            )
        admitted = not self._exchange.limited or self._handshakes[address].admit()
        return None if admitted else _TOO_MANY_CONNECTIONS

    def _answer(self, connection: Connection, message: str | bytes) -> None:
        if message == protocol.PING:
            connection.owed.append(protocol.PONG)
            return
        if self._exchange.limited and not connection.requests.admit():
            self._complain(connection, request_id(message), protocol.TOO_FREQUENT, protocol.TOO_FREQUENT_TEXT)
            return
        try:
            request = decode_request(message)
        except msgspec.DecodeError:
            request = None
        if request is None or request.op not in (SUBSCRIBE, UNSUBSCRIBE) or not request.args:
            original = message if isinstance(message, str) else message.decode(errors="replace")
            text = protocol.INVALID_REQUEST_TEXT.format(request=original)
            self._complain(connection, request_id(message), protocol.INVALID_REQUEST, text)
            return
        if request.op == SUBSCRIBE and any(self._is_invalid(argument) for argument in request.args):
            self._complain(
                connection, request.id, protocol.INVALID_REQUEST, protocol.INVALID_REQUEST_TEXT.format(request="")
            )
            return
        trading = {rules.symbol for rules in self._exchange.market.instruments(self._exchange.clock.now_ms())}
        for argument in request.args:
            bar = _CHANNELS.get(argument.channel)
            if bar is None or not connection.candles or argument.symbol not in trading:
                self._no_channel(connection, argument, request.id)
            elif request.op == UNSUBSCRIBE:
                self._unsubscribe(connection, argument)
                self._acknowledge(connection, UNSUBSCRIBE, argument, request.id)
            else:
                self._subscribe(connection, argument, bar, request.id)
        self._count()

    def _is_invalid(self, argument: Argument) -> bool:
        bar = _CHANNELS.get(argument.channel)
        return bar is not None and bool(self._exchange.faults.strike("invalid", argument.symbol, bar.timeframe.name))

    def _subscribe(self, connection: Connection, argument: Argument, bar: Bar, echo: str) -> None:
        faults, timeframe = self._exchange.faults, bar.timeframe.name
        if faults.strike("no_channel", argument.symbol, timeframe):
            self._no_channel(connection, argument, echo)
            return
        full = self._most_channels is not None and len(connection.subscribed) >= self._most_channels
        if full and argument not in connection.subscribed:
            self._flush([connection])
            connection.socket.hang_up(protocol.CLOSE_CHANNEL_LIMIT)
            return
        self._acknowledge(connection, SUBSCRIBE, argument, echo)
        if faults.strike("mute", argument.symbol, timeframe):
            self._unsubscribe(connection, argument)
            connection.subscribed[argument] = None
            return
        if argument in self._series:
            # Who listens already gets what they are owed before somebody new shares in it.
            self._advance(argument)
        else:
            self._series[argument] = SeriesPushes(self._exchange, argument, bar, unchanged=self._push_unchanged)
        series = self._series[argument]
        connection.subscribed[argument] = series
        self._listeners.setdefault(argument, set()).add(connection)
        current = series.current()
        if current is not None:
            self._owe([connection], [current])

    def _unsubscribe(self, connection: Connection, argument: Argument) -> None:
        if connection.subscribed.pop(argument, None) is not None:
            listeners = self._listeners[argument]
            listeners.remove(connection)
            if not listeners:
                del self._listeners[argument], self._series[argument]

    def _advance(self, argument: Argument) -> None:
        # A series can lose its last listener while others have a turn.
        if argument in self._series:
            self._owe(self._listeners[argument], self._series[argument].advance())

    def _owe(self, connections: Iterable[Connection], frames: list[Frame]) -> None:
        if not frames:
            return
        texts = [frame.text for frame in frames]
        confirmed = sum(frame.confirmed for frame in frames)
        for connection in connections:
            connection.owed += texts
            self.figures.pushed += len(texts)
            self.figures.confirmed += confirmed

    def _flush(self, connections: Iterable[Connection]) -> None:
        for connection in connections:
            if connection.owed:
                if connection.socket.send_texts(connection.owed):
                    connection.sent_s = self._exchange.monotonic()
                connection.owed.clear()
                if connection.socket.unsent_bytes > _MOST_UNSENT_BYTES:
                    connection.socket.hang_up(protocol.CLOSE_BUFFER_FULL)

    def _acknowledge(self, connection: Connection, event: str, argument: Argument, echo: str) -> None:
        connection.owed.append(encode_event(event, argument, id=echo, connId=connection.id))

    def _no_channel(self, connection: Connection, argument: Argument, echo: str) -> None:
        text = protocol.WRONG_CHANNEL_TEXT.format(channel=argument.channel, symbol=argument.symbol)
        self._complain(connection, echo, protocol.WRONG_CHANNEL, text)

    def _complain(self, connection: Connection, echo: str, code: str, text: str) -> None:
        connection.owed.append(encode_event(ERROR, id=echo, code=code, msg=text, connId=connection.id))

    def _upset(self, connection: Connection, fault: Fault) -> None:
        if fault.kind == "half_open":
            connection.socket.frozen = True
        elif fault.kind == "notice":
            notice = encode_event(NOTICE, code=protocol.NOTICE_UPGRADE, msg=protocol.NOTICE_TEXT, connId=connection.id)
            connection.owed.append(notice)
            self._flush([connection])
            loop = asyncio.get_running_loop()
            loop.call_later(fault.duration_s, connection.socket.hang_up, fault.close or _GOING_AWAY)
        elif fault.close is None:
            connection.socket.reset()
        else:
            connection.socket.hang_up(fault.close)

    def _count(self) -> None:
        self.figures.connections = len(self._connections)
        self.figures.subscriptions = sum(len(connection.subscribed) for connection in self._connections)
