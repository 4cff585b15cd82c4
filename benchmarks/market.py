"""Candles for the benchmarks to work on: the minutes of the replay exchange's synthetic market, one series or many."""

from collections.abc import Iterator

from okx_pipeline.candles import Candle, canonical
from okx_pipeline.exchange.protocol import CONFIRMED
from okx_pipeline.replay.bars import BARS
from okx_pipeline.replay.market import Row
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import MINUTE_MS, parse_timeframe

SYMBOL = "BTC-USDT-SWAP"
MINUTE = parse_timeframe("1m")


def rows(start_ms: int, count: int, symbol: str = SYMBOL) -> list[Row]:
    """The rows of `count` minutes from `start_ms` as OKX sends them, newest first."""
    market = SyntheticMarket()
    end_ms = start_ms + count * MINUTE_MS
    closed = market.closed(symbol, BARS["1m"], after_ms=end_ms, before_ms=start_ms - 1, limit=count)
    return [[*row, CONFIRMED] for row in closed]


def candles(start_ms: int, count: int, symbols: list[str]) -> Iterator[Candle]:
    """The same as candles, ascending, `count` of each of `symbols`; all of them have BTC-USDT-SWAP's numbers."""
    numbers = [(int(row[0]), tuple(canonical(text) for text in row[1:8])) for row in reversed(rows(start_ms, count))]
    for symbol in symbols:
        for open_ms, values in numbers:
            yield Candle(symbol, MINUTE.name, open_ms, *values)
