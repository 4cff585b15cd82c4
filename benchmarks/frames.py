"""A WebSocket frame of a candle, from its text to a validated confirmed row.

One frame in sixty is a confirmation, as of 1m series that are pushed every second; then confirmations alone. Ours is
what the feed and the sidecar do with a frame: pass over one that only says again that a candle is forming; decode the
others, look their series up, judge what is confirmed. The peer is cryptofeed's own message handler with a callback that
takes the candle as a dictionary, as its backends do. The limit decodes the text into a typed structure, and nothing
else.
"""

import asyncio
from collections import defaultdict
from typing import Any

import msgspec
from cryptofeed.defines import CANDLES
from cryptofeed.exchanges import OKX
from cryptofeed.symbols import Symbols

from benchmarks.contest import Contest, computed
from benchmarks.figures import Figure
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.frames import Series, argument_of, decode_frame, encode_push, known_opening, opening_of
from okx_pipeline.exchange.messages import Page, judge_row
from okx_pipeline.timeframes import MINUTE_MS, parse_timeframe

FRAMES = 60_000
FRAMES_A_CANDLE = 60
ROUNDS = 7
SERIES = Series("BTC-USDT-SWAP", parse_timeframe("1m"))
START_MS = 1_787_184_000_000


class _Argument(msgspec.Struct):
    channel: str
    symbol: str = msgspec.field(name="instId")


class _Row(msgspec.Struct, array_like=True):
    opens: str
    open_price: str
    high_price: str
    low_price: str
    close_price: str
    volume: str
    volume_currency: str
    volume_quote: str
    confirm: str


class _Push(msgspec.Struct):
    arg: _Argument
    data: list[_Row]


def run() -> list[Figure]:
    """How many times as fast as the peer and the limit, for a stream as it is and for confirmations alone."""
    mixed = _contest(FRAMES_A_CANDLE)
    alone = _contest(1)
    return [
        *mixed.times(),
        mixed.speed("ours", "cryptofeed", at_least=5.0),
        mixed.speed("ours", "a bare typed decode", at_least=0.7),
        alone.speed("ours, of confirmations alone", "cryptofeed"),
    ]


def _contest(frames_a_candle: int) -> Contest:
    frames = [_frame(number, frames_a_candle) for number in range(FRAMES)]
    confirmed = FRAMES // frames_a_candle
    name = "ours" if frames_a_candle > 1 else "ours, of confirmations alone"
    peer = _Peer()
    contenders = {
        name: lambda: computed(lambda: _check(_ours(frames), confirmed)),
        "cryptofeed": lambda: computed(lambda: _check(peer.take(frames), FRAMES)),
        "a bare typed decode": lambda: computed(lambda: _decode(frames)),
    }
    return Contest(contenders, ROUNDS)


def _frame(number: int, frames_a_candle: int) -> bytes:
    candle, part = divmod(number, frames_a_candle)
    confirm = protocol.CONFIRMED if part == frames_a_candle - 1 else protocol.UNCONFIRMED
    price = 60_000 + candle % 997 + part / 100
    prices = [f"{price:.1f}", f"{price + 12.3:.1f}", f"{price - 9.1:.1f}", f"{price + 4.7:.1f}"]
    row = [str(START_MS + candle * MINUTE_MS), *prices, f"{100 + part}.31", f"{part}.1031", "183022.718264", confirm]
    return encode_push(SERIES, [row]).encode()


def _ours(frames: list[bytes]) -> int:
    subscriptions = {argument_of(SERIES): SERIES}
    openings: dict[bytes, Series] = {}
    confirmed = 0
    for text in frames:
        if known_opening(text, openings) is not None:
            continue
        frame = decode_frame(text)
        if not frame.data or frame.event or frame.arg is None:
            continue
        series = subscriptions.get(frame.arg)
        if series is None:
            continue
        for row in frame.data:
            if len(row) != protocol.ROW_FIELDS or row[-1] != protocol.UNCONFIRMED:
                page = Page([], [], [], 1)
                judge_row(row, series.symbol, series.timeframe, page)
                confirmed += len(page.candles)
        opening = opening_of(text, frame)
        if opening is not None:
            openings = {opening: series}
    return confirmed


def _decode(frames: list[bytes]) -> None:
    decode = msgspec.json.Decoder(_Push).decode
    for text in frames:
        decode(text)


class _Peer:
    """cryptofeed's OKX, given the one symbol that it would ask the exchange for."""

    def __init__(self) -> None:
        self.taken = 0
        Symbols.set(OKX.id, {"BTC-USDT-PERP": SERIES.symbol}, defaultdict(dict))
        self._okx = OKX(
            symbols=["BTC-USDT-PERP"], channels=[CANDLES], candle_interval="1m", callbacks={CANDLES: self._candle}
        )

    async def _candle(self, candle: Any, received_s: float) -> None:
        candle.to_dict(numeric_type=str)
        self.taken += 1

    def take(self, frames: list[bytes]) -> int:
        """Handle all frames; returns how many candles came out."""
        self.taken = 0
        texts = [text.decode() for text in frames]

        async def handle() -> None:
            for text in texts:
                await self._okx.message_handler(text, None, 0.0)

        asyncio.run(handle())
        return self.taken


def _check(taken: int, expected: int) -> None:
    if taken != expected:
        raise AssertionError(f"{taken} candles came out of the frames instead of {expected}")
