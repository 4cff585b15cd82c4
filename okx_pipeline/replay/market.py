"""What a market is to the stand-in: candles as exact integers, the arithmetic on them, and the text they become.

Seven columns (open, high, low, close, volume, volume in currency, volume in quote coin), each an integer counted in
units of its own decimal place, so that sums and extremes are exact and fast and the text says what was meant. Where
candles come from is decided in `recordings` and `synthetic`; what of them may be seen when, in `exchange`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from okx_pipeline.exchange.messages import Instrument
from okx_pipeline.exchange.protocol import INSTRUMENT_TYPES
from okx_pipeline.replay.bars import Bar, Times

Columns = npt.NDArray[Any]
"""Shape (7, candles): int64, or Python integers where a sum could pass 64 bits."""

Row = list[str]
"""Open time and the seven values as text: a row as OKX serves it, but for its last field."""

COLUMN_COUNT: Final = 7
SPOT, SWAP, FUTURES = INSTRUMENT_TYPES


@dataclass(frozen=True, slots=True)
class Series:
    """Candles of one symbol and bar: `opens` ascending, shape (n,), `columns` (7, n)."""

    opens: Times
    columns: Columns


@dataclass(frozen=True, slots=True)
class Scales:
    """Digits after the point of each of the seven columns."""

    price: int
    volume: int
    currency: int
    quote: int

    def rows(self, opens: Times, columns: Columns) -> list[Row]:
        """The candles as text, newest first; `opens` ascending, shape (candles,)."""
        digits = (self.price,) * 4 + (self.volume, self.currency, self.quote)
        texts = [[str(open_ms) for open_ms in reversed(opens.tolist())]]
        for column, places in zip(columns, digits, strict=True):
            texts.append(_texts(column.tolist()[::-1], places))
        return [list(row) for row in zip(*texts, strict=True)]


def _texts(numbers: Sequence[int], places: int) -> list[str]:
    if not places:
        return [str(number) for number in numbers]
    unit = 10**places
    texts = []
    for number in numbers:
        whole, fraction = divmod(number, unit)
        texts.append(f"{whole}.{fraction:0{places}d}".rstrip("0") if fraction else str(whole))
    return texts


def aggregate(columns: Columns, starts: npt.NDArray[np.int64]) -> Columns:
    """Bigger candles out of smaller ones, any number of columns of which all after the fourth are sums.

    `starts` are the positions at which a bigger candle begins, ascending; each reaches to the next.
    """
    if not len(starts):
        return columns[:, :0]
    ends = np.append(starts[1:], columns.shape[1]) - 1
    return np.vstack(
        [
            columns[0][starts],
            np.maximum.reduceat(columns[1], starts),
            np.minimum.reduceat(columns[2], starts),
            columns[3][ends],
            *(np.add.reduceat(column, starts) for column in columns[4:]),
        ]
    )


def partial(candle: Columns, elapsed_ms: int, length_ms: int) -> Columns:
    """How the candle (shape (columns, 1)) looked `elapsed_ms` after its open: an invented path through its own prices.

    It stands at the open, then at the nearer extreme, then at the farther one, then at the close, a quarter each; the
    volume grows in step with time. The volumes keep their proportions.
    """
    if elapsed_ms >= length_ms:
        return candle
    open_price, high, low, close, volume, *others = (int(column[0]) for column in candle)
    extremes = (low, high) if close >= open_price else (high, low)
    seen = (open_price, *extremes, close)[: 1 + 4 * max(elapsed_ms, 0) // length_ms]
    traded = volume * max(elapsed_ms, 0) // length_ms
    shares = [other * traded // volume if volume else 0 for other in others]
    now = [open_price, max(seen), min(seen), seen[-1], traded, *shares]
    return np.array([[number] for number in now], dtype=candle.dtype)


class Market(Protocol):
    """Candles of some instruments, all of them at once: it knows no clock, but for when its own begins."""

    @property
    def description(self) -> str:
        """What it is, in a few words, for people."""

    def start_ms(self, wall_ms: int) -> int:
        """The moment at which the exchange's clock begins if nobody says another; the wall's is `wall_ms`."""

    def instruments(self, now_ms: int) -> list[Instrument]:
        """The instruments that trade at `now_ms`."""

    def knows(self, symbol: str, now_ms: int) -> bool:
        """Whether there are candles of `symbol` by `now_ms`; of one that has expired there still are."""

    def closed(self, symbol: str, bar: Bar, *, after_ms: int, before_ms: int, limit: int) -> list[Row]:
        """The newest `limit` whole candles that open in (before_ms, after_ms), newest first."""

    def oldest_of_newest(self, symbol: str, bar: Bar, *, end_ms: int, count: int) -> int:
        """Open time of the oldest among the newest `count` candles that open before `end_ms`."""

    def forming(self, symbol: str, bar: Bar, open_ms: int, now_ms: int) -> Row | None:
        """The candle that opens at `open_ms` as it looks at `now_ms`; None where nothing is known of it."""


def instrument(
    symbol: str, *, tick: str, lot: str, contract_value: str, listed_ms: int, expires_ms: int | None = None
) -> Instrument:
    """An instrument as OKX would list it; the rest of its rules follows from its name."""
    base, quote, *rest = symbol.split("-")
    rules = {
        "symbol": symbol,
        "instrument_type": kind_of(symbol),
        "tick_size": tick,
        "lot_size": lot,
        "minimum_size": lot,
        "listed": str(listed_ms),
        "expires": "" if expires_ms is None else str(expires_ms),
    }
    if not rest:
        return Instrument(**rules, base_currency=base, quote_currency=quote)
    linear = quote != "USD"
    return Instrument(
        **rules,
        family=f"{base}-{quote}",
        settle_currency=quote.partition("_")[0] if linear else base,
        contract_type="linear" if linear else "inverse",
        contract_value=contract_value,
        contract_multiplier="1",
        contract_currency=base if linear else quote,
    )


def kind_of(symbol: str) -> str:
    """OKX's instrument type, which its names tell: BTC-USDT, BTC-USDT-SWAP, BTC-USD_UM-261030."""
    parts = symbol.split("-")
    if len(parts) == 2:
        return SPOT
    return SWAP if parts[-1] == SWAP else FUTURES


def unit_text(places: int) -> str:
    """The smallest number with that many digits after the point: 2 gives 0.01."""
    return f"{Decimal(1).scaleb(-places):f}"
