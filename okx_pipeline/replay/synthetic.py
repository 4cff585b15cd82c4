"""A made-up market of any number of instruments, every candle of which follows from the seed, its symbol and its time.

Random access: a day's price level comes from a walk over days (one number a day), its 1,440 minutes from two of a few
dozen stored shapes (one of prices, one of trading) bent to lead from that level to the next day's. Every bigger bar is
the exact sum of those minutes. All of it is integer arithmetic, in ticks and lots, so that no machine's rounding shows.

Simpler than life: instruments are listed and expire on a full hour, and rules never change.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange.messages import Instrument
from okx_pipeline.replay.bars import HOUR, MINUTE, Bar, Times
from okx_pipeline.replay.draws import Integers, byte_of, key_of, mix
from okx_pipeline.replay.market import SPOT, Columns, Row, Scales, aggregate, instrument, kind_of, partial
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS

_DAY_MINUTES: Final = DAY_MS // MINUTE_MS
_CHUNK_DAYS: Final = 32
_SHAPES: Final = 64
_SHAPE_DAY_DEVIATION: Final = 12_000
"""Standard deviation of where a price shape ends, in its own units; roughly, measured."""

_DAILY_VOLATILITY_PPM: Final = 25_000
_REVERSION: Final = 256
"""A level drifts back to where it belongs by one part in this many a day: over seven years it stays believable."""


@dataclass(frozen=True, slots=True)
class Listing:
    """An instrument of the synthetic market.

    Parameters
    ----------
    symbol
        Its symbol, which tells its type.
    tick, lot, contract_value
        Its rules, as decimal text; spot has no contract value.
    price
        The price around which it moves, as decimal text.
    busy
        How much is traded in it; 1 is about 1,000 lots in a minute with trades.
    quiet
        Of 256 minutes, how many go by without a trade.
    first_ms
        When its first candle opens, on a full hour.
    listed_ms
        When the exchange says it was listed; None for the first candle's open.
    expired_ms
        When it went, on a full hour; None if it trades.
    """

    symbol: str
    tick: str
    lot: str
    contract_value: str
    price: str
    busy: int
    quiet: int
    first_ms: int
    listed_ms: int | None = None
    expired_ms: int | None = None


# The first candle of OKX's own BTC-USDT-SWAP opens 2019-12-16T04:00Z though its list time says 2019-11-12.
_BTC_LISTED_MS: Final = 1_573_557_408_000
_BTC_FIRST_MS: Final = 1_576_468_800_000
_2021_MS: Final = 1_609_459_200_000
_RECENT_MS: Final = 1_792_490_400_000  # 2026-10-20T10:00Z
_THIS_YEAR_MS: Final = 1_770_796_800_000  # 2026-02-11T08:00Z

_NAMED: Final = (
    Listing("BTC-USDT-SWAP", "0.1", "0.01", "0.01", "60000", 80, 0, _BTC_FIRST_MS, _BTC_LISTED_MS),
    Listing("ETH-USDT-SWAP", "0.01", "0.01", "0.1", "2500", 60, 0, _BTC_FIRST_MS, _BTC_LISTED_MS),
    Listing("BTC-USDT", "0.1", "0.00001", "", "60000", 300, 1, _BTC_FIRST_MS),
    Listing("ETH-USDT", "0.01", "0.0001", "", "2500", 300, 4, _BTC_FIRST_MS),
    Listing("SOL-USDT", "0.01", "0.001", "", "140", 100, 20, _2021_MS),
)
_DELISTED: Final = Listing(
    "OLD-USDT-SWAP", "0.0001", "1", "10", "1.8", 2, 60, 1_583_049_600_000, expired_ms=1_719_561_600_000
)
# (tick, lot, contract value, price, busy, quiet) of the nameless ones, in turn.
_KINDS: Final = (
    ("0.001", "0.1", "1", "14", 6, 25),
    ("0.0001", "1", "10", "0.9", 4, 50),
    ("0.00001", "0.1", "1000", "0.12", 8, 12),
    ("0.05", "0.1", "0.1", "320", 2, 100),
    ("0.000000001", "1", "1000000", "0.0000112", 3, 40),
    ("0.0005", "0.1", "1", "3.6", 1, 180),
)


def listings(seed: int, symbols: int) -> list[Listing]:
    """The first `symbols` instruments that trade, and the one that has gone.

    Some named swaps and spot pairs come first, then SYN0001-USDT-SWAP and so on, the first of those listed lately.
    """
    nameless = _nameless(seed)
    return [*_NAMED[:symbols], *islice(nameless, max(0, symbols - len(_NAMED))), _DELISTED]


def _nameless(seed: int) -> Iterator[Listing]:
    number = 0
    while True:
        number += 1
        symbol = f"SYN{number:04}-USDT-SWAP"
        kind = _KINDS[(number - 1) % len(_KINDS)]
        span_hours = (_THIS_YEAR_MS - _BTC_FIRST_MS) // HOUR_MS
        first_ms = _BTC_FIRST_MS + key_of(seed, f"{symbol} listed") % span_hours * HOUR_MS
        first_ms = {1: _RECENT_MS, 2: _THIS_YEAR_MS}.get(number, first_ms)
        yield Listing(symbol, *kind, first_ms=first_ms)


class SyntheticMarket:
    """`symbols` instruments and one that was delisted; the same for the same seed, at any time, in any order of asking.

    Raises
    ------
    UsageError
        If no instrument is asked for.
    """

    def __init__(self, seed: int = 7, symbols: int = 20) -> None:
        if symbols < 1:
            raise UsageError(f"a synthetic market of {symbols} symbols has nothing to serve; give 1 or more")
        # At most 18 MB and 38 MB, whatever the number of symbols; both are quickly made again.
        blocks = Blocks(lru_cache(maxsize=256)(_minutes_of_day), lru_cache(maxsize=1024)(_hours_of_chunk))
        shapes = Shapes(seed)
        self._seed = seed
        self._symbols = {
            listing.symbol: SyntheticSymbol(seed, listing, shapes, blocks) for listing in listings(seed, symbols)
        }

    @property
    def description(self) -> str:
        """The seed and how many symbols."""
        return f"synthetic market of {len(self._symbols) - 1} symbols and a delisted one, seed {self._seed}"

    def start_ms(self, wall_ms: int) -> int:
        """A day before the wall's time."""
        return wall_ms - DAY_MS

    def instruments(self, now_ms: int) -> list[Instrument]:
        """The instruments that trade at `now_ms`."""
        return [symbol.rules for symbol in self._symbols.values() if symbol.trades_at(now_ms)]

    def knows(self, symbol: str, now_ms: int) -> bool:
        """Whether there are candles of `symbol` by `now_ms`."""
        return symbol in self._symbols and self._symbols[symbol].first_ms <= now_ms

    def closed(self, symbol: str, bar: Bar, *, after_ms: int, before_ms: int, limit: int) -> list[Row]:
        """The newest `limit` candles that open in (before_ms, after_ms), newest first."""
        source = self._symbols[symbol]
        end_ms = min(after_ms, source.end_ms or after_ms)
        if limit < 1 or end_ms <= source.first_ms or before_ms >= end_ms:
            return []
        newest = bar.open_at(end_ms - 1)
        oldest = max(bar.step(newest, 1 - limit), bar.open_at(source.first_ms), bar.step(bar.open_at(before_ms), 1))
        if oldest > newest:
            return []
        opens = bar.every_open(oldest, newest)
        return source.scales.rows(opens, source.candles(bar, opens))

    def oldest_of_newest(self, symbol: str, bar: Bar, *, end_ms: int, count: int) -> int:
        """Open time of the oldest among the newest `count` candles that open before `end_ms`."""
        source = self._symbols[symbol]
        end_ms = min(end_ms, source.end_ms or end_ms)
        return max(bar.step(bar.open_at(end_ms - 1), 1 - count), bar.open_at(source.first_ms)) if count else end_ms

    def forming(self, symbol: str, bar: Bar, open_ms: int, now_ms: int) -> Row | None:
        """The candle that opens at `open_ms` as it looks at `now_ms`; None outside the instrument's life."""
        source = self._symbols[symbol]
        columns = source.forming(bar, open_ms, now_ms)
        return None if columns is None else source.scales.rows(np.array([open_ms], dtype=np.int64), columns)[0]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The minutes of a symbol's day, and the hours of `_CHUNK_DAYS` days from the one given on: made or remembered."""

    minutes_of_day: "Callable[[SyntheticSymbol, int], Columns]"
    hours_of_chunk: "Callable[[SyntheticSymbol, int], Columns]"


class SyntheticSymbol:
    """The candles of one instrument."""

    def __init__(self, seed: int, listing: Listing, shapes: "Shapes", blocks: Blocks) -> None:
        self.first_ms = listing.first_ms
        self.end_ms = listing.expired_ms
        self.rules = instrument(
            listing.symbol,
            tick=listing.tick,
            lot=listing.lot,
            contract_value=listing.contract_value,
            listed_ms=listing.first_ms if listing.listed_ms is None else listing.listed_ms,
            expires_ms=listing.expired_ms,
        )
        self._listing = listing
        self._shapes = shapes
        self._blocks = blocks
        tick, tick_places = _units(listing.tick)
        lot, lot_places = _units(listing.lot)
        contract, contract_places = _units(listing.contract_value or "1")
        coins, coin_places = lot * contract, lot_places + contract_places
        if kind_of(listing.symbol) == SPOT:
            # Spot's volume in currency is in quote coin.
            self._sums = ((0, lot), (1, coins * tick), (1, coins * tick))
            self.scales = Scales(tick_places, lot_places, coin_places + tick_places, coin_places + tick_places)
        else:
            self._sums = ((0, lot), (0, coins), (1, coins * tick))
            self.scales = Scales(tick_places, lot_places, coin_places, coin_places + tick_places)
        self._tick = tick
        self._first_day = listing.first_ms // DAY_MS
        self._key = key_of(seed, listing.symbol)
        self._anchor = int(Decimal(listing.price) / Decimal(listing.tick))
        self._levels: list[int] = [self._anchor]

    def trades_at(self, now_ms: int) -> bool:
        """Whether the exchange lists it at `now_ms`."""
        return self.first_ms <= now_ms and (self.end_ms is None or now_ms < self.end_ms)

    def candles(self, bar: Bar, opens: Times) -> Columns:
        """The whole candles that open at `opens`, ascending and without a hole; shape (7, candles)."""
        end_ms = bar.close_of(int(opens[-1]))
        unit = HOUR if HOUR.divides(bar) else MINUTE
        parts, start_ms = self._parts(unit, int(opens[0]), end_ms)
        starts = np.maximum(opens - start_ms, 0) // unit.length_ms
        return self._in_units(parts if bar == unit else aggregate(parts, starts))

    def forming(self, bar: Bar, open_ms: int, now_ms: int) -> Columns | None:
        """The candle so far: its hours, its minutes, and a part of the minute under way."""
        until_ms = min(now_ms, bar.close_of(open_ms))
        minute_ms = MINUTE.open_at(until_ms)
        hour_ms = max(HOUR.open_at(minute_ms), open_ms)
        hours, _ = self._parts(HOUR, open_ms, hour_ms) if HOUR.divides(bar) else self._parts(MINUTE, open_ms, hour_ms)
        minutes, _ = self._parts(MINUTE, hour_ms, minute_ms)
        under_way, _ = self._parts(MINUTE, minute_ms, minute_ms + MINUTE_MS)
        if until_ms == bar.close_of(open_ms):
            under_way = under_way[:, :0]
        elif under_way.shape[1]:
            under_way = partial(under_way, until_ms - minute_ms, MINUTE_MS)
        parts = np.concatenate([hours, minutes, under_way], axis=1)
        return self._in_units(aggregate(parts, np.zeros(1, dtype=np.int64))) if parts.shape[1] else None

    def _in_units(self, parts: Columns) -> Columns:
        """Ticks, lots and their product as the seven columns of a candle."""
        prices = [column * self._tick for column in parts[:4]]
        return np.vstack([*prices, *(parts[4 + sums] * factor for sums, factor in self._sums)])

    def _parts(self, unit: Bar, from_ms: int, until_ms: int) -> tuple[Columns, int]:
        """The minutes or hours of [from_ms, until_ms) in the instrument's life, and when the first of them opens."""
        start_ms = max(from_ms, self.first_ms)
        end_ms = until_ms if self.end_ms is None else min(until_ms, self.end_ms)
        if start_ms >= end_ms:
            return np.empty((6, 0), dtype=np.int64), start_ms
        first = start_ms // unit.length_ms
        count = end_ms // unit.length_ms - first
        per_day = DAY_MS // unit.length_ms
        block_days = 1 if unit == MINUTE else _CHUNK_DAYS
        block = per_day * block_days
        make = self._blocks.minutes_of_day if unit == MINUTE else self._blocks.hours_of_chunk
        blocks = [make(self, number * block_days) for number in range(first // block, (first + count - 1) // block + 1)]
        offset = first % block
        return np.concatenate(blocks, axis=1)[:, offset : offset + count], start_ms

    def minutes(self, first_day: int, days: int) -> Columns:
        """Minutes of whole days: open, high, low, close in ticks, lots, lots x close; shape (6, minutes).

        Days before the listing are made like any other, of its first level, and never looked at.
        """
        levels = self._levels_of(first_day, days + 1)
        level, following = levels[:-1, None], levels[1:, None]
        draws = mix(self._key, np.arange(first_day, first_day + days))
        shapes = self._shapes
        walk_at = (draws >> np.uint64(8)).astype(np.int64) % _SHAPES
        trade_at = (draws >> np.uint64(16)).astype(np.int64) % _SHAPES
        mirrored = 1 - 2 * (draws >> np.uint64(24) & np.uint64(1)).astype(np.int64)[:, None]
        appetite = 128 + (draws >> np.uint64(32) & np.uint64(255)).astype(np.int64)[:, None]

        quiet, last_trade = shapes.trading(self._listing.quiet)
        quiet, last_trade = quiet[trade_at], last_trade[trade_at]
        swing = level * self._volatility(first_day, days)[:, None] * 65_536 // (_SHAPE_DAY_DEVIATION * 1_000_000)
        ends = shapes.walks[walk_at, -1][:, None] * mirrored * swing >> 16
        slope = ((following - level - ends) << 20) // _DAY_MINUTES
        wandered = shapes.walks[walk_at[:, None], last_trade] * (mirrored * swing) >> 16
        close = level + wandered + (slope * (last_trade + 1) >> 20)
        previous = np.concatenate([level, close[:, :-1]], axis=1)
        opened = previous + np.where(quiet, 0, shapes.gaps[trade_at])
        high = np.maximum(opened, close) + np.where(quiet, 0, shapes.upper_wicks[trade_at] * swing >> 16)
        low = np.minimum(opened, close) - np.where(quiet, 0, shapes.lower_wicks[trade_at] * swing >> 16)
        lots = np.where(quiet, 0, (shapes.volumes[trade_at] * (appetite * self._listing.busy) >> 8) + 1)
        return np.vstack([column.reshape(-1) for column in (opened, high, low, close, lots, lots * close)])

    def _volatility(self, first_day: int, days: int) -> Integers:
        """Daily volatility in parts per million: months are calmer or wilder, by up to a factor of two."""
        months = mix(self._key ^ 1, np.arange(first_day, first_day + days) // 30)
        return _DAILY_VOLATILITY_PPM * (8 + (months >> np.uint64(40)).astype(np.int64) % 24) // 16

    def _levels_of(self, first_day: int, days: int) -> Integers:
        """The price with which each day begins, in ticks; days before the listing have its first one."""
        wanted = first_day + days - self._first_day
        if wanted > len(self._levels):
            self._extend(wanted + 366)
        positions = np.maximum(np.arange(first_day, first_day + days) - self._first_day, 0)
        return np.array([self._levels[position] for position in positions.tolist()], dtype=np.int64)

    def _extend(self, count: int) -> None:
        first = self._first_day + len(self._levels)
        days = count - len(self._levels)
        draws = mix(self._key ^ 2, np.arange(first, first + days))
        # The sum of four 16-bit numbers is bell-shaped: mean 131,070, deviation 37,837.
        bells = sum((draws >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64) for shift in (0, 16, 32, 48))
        steps = ((bells - 131_070) * self._volatility(first, days)).tolist()
        level = self._levels[-1]
        for step in steps:
            level += level * step // (37_837 * 1_000_000) + (self._anchor - level) // _REVERSION
            level = max(level, self._anchor // 8)
            self._levels.append(level)


def _minutes_of_day(symbol: SyntheticSymbol, day: int) -> Columns:
    return symbol.minutes(day, 1)


def _hours_of_chunk(symbol: SyntheticSymbol, first_day: int) -> Columns:
    minutes = symbol.minutes(first_day, _CHUNK_DAYS)
    return aggregate(minutes, np.arange(0, minutes.shape[1], HOUR_MS // MINUTE_MS))


class Shapes:
    """Days that never were: price paths and trading patterns, minute by minute, that all instruments share.

    Attributes
    ----------
    walks
        How far the close has wandered from the day's first price; shape (shapes, minutes), as all of them.
    gaps
        Ticks between a minute's open and the close before it, mostly 0; none before the day's first minute.
    upper_wicks, lower_wicks
        How far high and low reach beyond open and close, in units of the walks.
    volumes
        Lots.
    """

    def __init__(self, seed: int) -> None:
        minutes = np.arange(_SHAPES * _DAY_MINUTES)
        shape = (_SHAPES, _DAY_MINUTES)
        bells = sum(byte_of(mix(key_of(seed, "walks"), minutes), place) for place in range(4)) - 510
        # Some hours are up to three times as lively as others.
        lively = 1 + byte_of(mix(key_of(seed, "hours"), minutes // (HOUR_MS // MINUTE_MS)), 0) % 3
        self.walks = np.cumsum((bells * lively).reshape(shape), axis=1)
        trades = mix(key_of(seed, "trades"), minutes)
        self.upper_wicks = (byte_of(trades, 0) * byte_of(trades, 1) * lively >> 8).reshape(shape)
        self.lower_wicks = (byte_of(trades, 2) * byte_of(trades, 3) * lively >> 8).reshape(shape)
        draw = byte_of(trades, 4).reshape(shape)
        self.gaps = np.where(draw < 140, 0, draw % 5 - 2)
        self.gaps[:, 0] = 0
        sizes = mix(key_of(seed, "volumes"), minutes)
        rare = 1 + byte_of(sizes, 2) // 32
        self.volumes = ((byte_of(sizes, 0) + 1) * (byte_of(sizes, 1) + 1) * rare * lively >> 7).reshape(shape)
        self._silence = byte_of(sizes, 3).reshape(shape)
        self.trading = lru_cache(maxsize=None)(self._trading)

    def _trading(self, quiet: int) -> tuple[npt.NDArray[np.bool_], Integers]:
        """Which minutes go by without a trade, and for every minute the last one, up to it, that had one.

        The first minute of a day always has one: so a day needs nothing of the day before but its last price.
        """
        silent = self._silence < quiet
        silent[:, 0] = False
        last_trade = np.maximum.accumulate(np.where(silent, 0, np.arange(_DAY_MINUTES)), axis=1)
        return silent, last_trade


def _units(text: str) -> tuple[int, int]:
    """A decimal as an integer and how many digits of it stand after the point: 0.05 is (5, 2)."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction), len(fraction)
