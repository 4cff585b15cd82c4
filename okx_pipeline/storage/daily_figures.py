"""A UTC day in figures, for its report: the market, where its candles came from, what was corrected and judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection
from okx_pipeline.timeframes import DAY_MS, day_ms

_MARKET: Final[LiteralString] = """
SELECT wanted.symbol, wanted.timeframe, held.candles, held.opens[1], held.high, held.low, held.last, held.currency,
       held.quote, held.line
FROM unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe)
CROSS JOIN LATERAL (
    SELECT count(*) AS candles, array_agg(open_price ORDER BY timestamp_ms) AS opens, max(high_price) AS high,
           min(low_price) AS low, (array_agg(close_price ORDER BY timestamp_ms DESC))[1] AS last,
           sum(volume_currency) AS currency, sum(volume_quote) AS quote,
           array_agg(close_price::float8 ORDER BY timestamp_ms) AS line
    FROM trading.candlesticks AS candle
    WHERE candle.symbol = wanted.symbol AND candle.timeframe = wanted.timeframe
      AND candle.timestamp_ms >= %s AND candle.timestamp_ms < %s
) AS held
WHERE held.candles > 0
ORDER BY wanted.symbol
"""

_ARRIVAL: Final[LiteralString] = """
SELECT wanted.symbol, sum(held.streamed)::bigint, sum(held.fetched)::bigint
FROM unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe)
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE source = 'websocket') AS streamed, count(*) FILTER (WHERE source = 'rest') AS fetched
    FROM trading.candlesticks AS candle
    WHERE candle.symbol = wanted.symbol AND candle.timeframe = wanted.timeframe
      AND candle.timestamp_ms >= %s AND candle.timestamp_ms < %s
) AS held
GROUP BY wanted.symbol ORDER BY wanted.symbol
"""

_CORRECTIONS: Final[LiteralString] = """
SELECT old.symbol, old.timeframe, old.timestamp_ms, old.volume, held.volume, old.close_price, held.close_price,
       old.revised_by, old.revised_at
FROM trading.candlestick_revisions AS old
LEFT JOIN trading.candlesticks AS held USING (symbol, timeframe, timestamp_ms)
WHERE old.timestamp_ms >= %s AND old.timestamp_ms < %s
ORDER BY old.revised_at, old.symbol, old.timeframe, old.timestamp_ms
LIMIT 500
"""


_JUDGED: Final[LiteralString] = """
SELECT symbol, timeframe, judged_at >= counted_at
FROM trading.coverage JOIN unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe) USING (symbol, timeframe)
WHERE day = %s AND judged_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Market:
    """A symbol's day: prices, volume in base and quote coin (as the columns have it), and its closes, for a picture."""

    symbol: str
    timeframe: str
    candles: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume_currency: Decimal
    volume_quote: Decimal
    closes: list[float]

    @property
    def move_percent(self) -> float:
        """How much the last price is above the first, in percent of it."""
        return float((self.close / self.open - 1) * 100)

    @property
    def direction(self) -> str:
        """Whether the price is `rising`, `falling` or `flat` from the first to the last."""
        return "rising" if self.close > self.open else "falling" if self.close < self.open else "flat"


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where the values of a symbol's candles of the day come from."""

    symbol: str
    streamed: int
    fetched: int


@dataclass(frozen=True, slots=True)
class Correction:
    """A candle of the day whose value was changed, before and after; what is held now may have changed again."""

    symbol: str
    timeframe: str
    timestamp_ms: int
    old_volume: Decimal
    volume: Decimal | None
    old_close: Decimal
    close: Decimal | None
    revised_by: str
    revised_at: datetime


def markets(connection: Connection, day: date, series: Sequence[tuple[str, str]]) -> list[Market]:
    """How the market went on `day`, by symbol.

    Parameters
    ----------
    series
        A (symbol, timeframe) of each symbol, of candles not longer than a day.
    """
    return [Market(*row) for row in connection.execute(_MARKET, (*_columns(series), *_bounds(day)))]


def arrivals(connection: Connection, day: date, series: Sequence[tuple[str, str]]) -> list[Arrival]:
    """Where the candles of `series` that open on `day` come from, by symbol."""
    return [Arrival(*row) for row in connection.execute(_ARRIVAL, (*_columns(series), *_bounds(day)))]


def corrections(connection: Connection, day: date) -> list[Correction]:
    """The candles of `day` that were corrected, as they were and are; the first 500."""
    return [Correction(*row) for row in connection.execute(_CORRECTIONS, _bounds(day))]


def judged(connection: Connection, day: date, series: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bool]:
    """Which of `series` were judged on `day`, and whether they were judged as they are now."""
    found = connection.execute(_JUDGED, (*_columns(series), day))
    return {(symbol, timeframe): is_current for symbol, timeframe, is_current in found}


def _columns(series: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [symbol for symbol, _ in series], [timeframe for _, timeframe in series]


def _bounds(day: date) -> tuple[int, int]:
    return day_ms(day), day_ms(day) + DAY_MS
