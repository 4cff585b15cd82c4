"""The candle: its columns once, from which the SQL, Arrow and quality schemas follow, and what no market can have.

Numbers are decimal text from the exchange to the tables: an exact value that nothing has rounded. Nothing here knows
an exchange, a database or a file.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from okx_pipeline.errors import UsageError
from okx_pipeline.timeframes import Timeframe, iso

INTEGER_DIGITS: Final = 20
FRACTION_DIGITS: Final = 18
"""A number has at most this many digits before and after its point: what decimal128(38, 18) holds."""


class Source(StrEnum):
    """Where a stored value comes from."""

    WEBSOCKET = "websocket"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the store: `name` in PostgreSQL and Parquet, the SQL type, and what it means."""

    name: str
    sql: str
    meaning: str


KEY_COLUMNS: Final = (
    Column("symbol", "text", "Instrument, as the exchange names it"),
    Column("timeframe", "text", "Length of the candle"),
    Column("timestamp_ms", "bigint", "Open time, Unix milliseconds UTC"),
)
PRICE_COLUMNS: Final = (
    Column("open_price", "numeric", "First price of the period"),
    Column("high_price", "numeric", "Highest price of the period"),
    Column("low_price", "numeric", "Lowest price of the period"),
    Column("close_price", "numeric", "Last price of the period"),
)
VOLUME_COLUMNS: Final = (
    Column("volume", "numeric", "Volume in contracts for swaps and futures, in base coin for spot"),
    Column("volume_currency", "numeric", "Volume in base coin for swaps and futures, in quote coin for spot"),
    Column("volume_quote", "numeric", "Volume in quote coin"),
)
VALUE_COLUMNS: Final = PRICE_COLUMNS + VOLUME_COLUMNS
PROVENANCE_COLUMNS: Final = (
    Column("source", "text", "Where the value comes from: websocket or rest"),
    Column("received_at", "timestamptz", "When it first landed, by the database's clock"),
    Column("updated_at", "timestamptz", "When it last changed, by the database's clock"),
)
COLUMNS: Final = KEY_COLUMNS + VALUE_COLUMNS + PROVENANCE_COLUMNS


class Candle(NamedTuple):
    """A confirmed candle, its numbers as canonical decimal text (see `canonical`); one row of a series."""

    symbol: str
    timeframe: str
    timestamp_ms: int
    open_price: str
    high_price: str
    low_price: str
    close_price: str
    volume: str
    volume_currency: str
    volume_quote: str

    @property
    def key(self) -> tuple[str, str, int]:
        """(symbol, timeframe, timestamp_ms): what there is at most one of."""
        return self[:3]

    @property
    def values(self) -> tuple[str, ...]:
        """The four prices and three volumes, in the order of `VALUE_COLUMNS`."""
        return self[3:]


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that the exchange confirmed but no market can have, or a frame that cannot be read.

    Parameters
    ----------
    symbol, timeframe
        The series it was received for; None of a frame that cannot be read.
    timestamp_ms
        Its open time, where it has a readable one.
    reason
        What is wrong with it, in words.
    original
        The row as JSON text, or the frame, character for character what the exchange sent.
    """

    symbol: str | None
    timeframe: str | None
    timestamp_ms: int | None
    reason: str
    original: str


_SYMBOL: Final = re.compile(r"[A-Z0-9]{1,20}(?:[-_][A-Z0-9]{1,20}){1,5}")


def parse_symbol(text: str) -> str:
    """The symbol a user wrote, if it can be one: it becomes part of requests, SQL values and file paths.

    Raises
    ------
    UsageError
        If it is not upper-case letters and digits in parts joined by '-', as in BTC-USDT-SWAP.
    """
    symbol = text.strip()
    if not _SYMBOL.fullmatch(symbol):
        raise UsageError(f"{symbol!r} is not an OKX symbol; symbols look like BTC-USDT-SWAP or ETH-USDT")
    return symbol


def parse_symbols(text: str) -> tuple[str, ...]:
    """The symbols of a comma-separated list, each once, in the order written."""
    return tuple(dict.fromkeys(parse_symbol(part) for part in text.split(",") if part.strip()))


def symbols_like(pattern: str, symbols: Iterable[str]) -> list[str]:
    """Those of `symbols` that hold `pattern`, or match all of it where it has wildcards, in any case of letters."""
    wanted = pattern.strip().upper()
    if not set(wanted) & set("*?["):
        wanted = f"*{wanted}*"
    return [symbol for symbol in symbols if fnmatchcase(symbol.upper(), wanted)]


_NUMBER: Final = rf"(?:0|[1-9]\d{{0,{INTEGER_DIGITS - 1}}})(?:\.\d{{0,{FRACTION_DIGITS - 1}}}[1-9])?"
_PLAIN: Final = re.compile(_NUMBER, re.ASCII)
_PLAIN_ROW: Final = re.compile("\n".join([_NUMBER] * len(VALUE_COLUMNS)), re.ASCII)
_LONGEST: Final = 64


def sound_candle(symbol: str, timeframe: Timeframe, timestamp_ms: int, texts: list[str]) -> Candle | None:
    """The candle of prices and volumes where a glance tells that `canonical` and `impossibility` find nothing amiss.

    None where it takes those two to tell: they take three times as long, and nearly every row is plain.
    """
    if not _PLAIN_ROW.fullmatch("\n".join(texts)) or not timeframe.is_boundary(timestamp_ms):
        return None
    open_text, high_text, low_text, close_text = texts[:4]
    open_price, high_price, low_price, close_price = map(float, texts[:4])
    # Two texts that are one double may be two numbers: only the same text is then plainly not above the other.
    if (
        (open_price < high_price or open_text == high_text)
        and (close_price < high_price or close_text == high_text)
        and (low_price < open_price or low_text == open_text)
        and (low_price < close_price or low_text == close_text)
        and low_price > 0
        and timestamp_ms >= 0
    ):
        return Candle._make((symbol, timeframe.name, timestamp_ms, *texts))
    return None


def canonical(text: str) -> str:
    """The one spelling of a non-negative decimal: no padding zeros, no exponent, no sign.

    Equal values have equal canonical text, so that values can be compared as text, exactly.

    Raises
    ------
    ValueError
        If `text` is not a finite non-negative decimal, or does not fit 20 digits before and 18 after the point.
    """
    if _PLAIN.fullmatch(text):
        return text
    try:
        number = Decimal(text) if len(text) <= _LONGEST and text.isascii() and "_" not in text else Decimal("NaN")
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise ValueError(f"{text[:_LONGEST]!r} is not a finite decimal number")
    if number.is_signed() and number:
        raise ValueError(f"{text!r} is negative")
    # Not abs(), which would round to the context's 28 digits.
    plain = f"{number.copy_abs():f}" if abs(number.adjusted()) <= _LONGEST else ""
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    plain = plain if number else "0"
    if not _PLAIN.fullmatch(plain):
        raise ValueError(f"{text!r} does not fit {INTEGER_DIGITS} digits before and {FRACTION_DIGITS} after the point")
    return plain


def impossibility(timeframe: Timeframe, candle: Candle) -> str | None:
    """What about the canonical `candle` no market can have, or None if nothing is."""
    if not timeframe.is_boundary(candle.timestamp_ms):
        return f"{iso(candle.timestamp_ms)} is not the open time of a {timeframe} candle"
    if candle.timestamp_ms < 0:
        return f"{iso(candle.timestamp_ms)} lies before 1970"
    open_price, high_price, low_price, close_price = candle[3:7]
    if "0" in (open_price, high_price, low_price, close_price):
        return "a price is zero"
    for column, price in (("open_price", open_price), ("close_price", close_price), ("low_price", low_price)):
        if _below(high_price, price):
            return f"high_price {high_price} is below {column} {price}"
    for column, price in (("open_price", open_price), ("close_price", close_price)):
        if _below(price, low_price):
            return f"low_price {low_price} is above {column} {price}"
    return None


def _below(left: str, right: str) -> bool:
    # Rounding to the nearest double keeps order, so only doubles that are equal leave the question open.
    left_float, right_float = float(left), float(right)
    if left_float != right_float:
        return left_float < right_float
    return left != right and Decimal(left) < Decimal(right)
