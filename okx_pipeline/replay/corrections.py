"""Late corrections: values that the exchange changes of candles it confirmed long before.

OKX does: 7 of 73,656 rows that were seen confirmed at least twice had another volume 3 to 7 days later, and nothing
announced it. As JSON, to `POST /replay/corrections`, our names for everything, only what changes given; `pushed` sends
the corrected candle to whoever has subscribed to its series, which OKX was not seen to do:

    {"symbol": "BTC-USDT-SWAP", "timeframe": "1h", "timestamp_ms": 1785578400000, "volume": "12345.67"}

A correction says nothing about the bars above and below: OKX's did not agree with one another afterwards either.
"""

from typing import Final

import msgspec

from okx_pipeline.candles import VALUE_COLUMNS, canonical
from okx_pipeline.errors import UsageError
from okx_pipeline.replay.bars import Bar
from okx_pipeline.replay.market import Row
from okx_pipeline.timeframes import parse_timeframe


class Correction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A candle, and the values it has from now on; those left out stay as they are."""

    symbol: str
    timeframe: str
    timestamp_ms: int
    open_price: str | None = None
    high_price: str | None = None
    low_price: str | None = None
    close_price: str | None = None
    volume: str | None = None
    volume_currency: str | None = None
    volume_quote: str | None = None
    pushed: bool = False


_CORRECTION: Final = msgspec.json.Decoder(Correction)
_PLACES: Final = tuple((place, column.name) for place, column in enumerate(VALUE_COLUMNS, start=1))
"""Where in a row each value stands."""


def decode_correction(body: bytes) -> Correction:
    """The correction in a request's body, its timeframe in our spelling and its numbers canonical.

    Raises
    ------
    UsageError
        If it is none.
    """
    try:
        decoded = _CORRECTION.decode(body)
        texts = {name: text for _, name in _PLACES if (text := getattr(decoded, name)) is not None}
        changes = {name: canonical(text) for name, text in texts.items()}
    except (msgspec.DecodeError, ValueError) as problem:
        raise UsageError(f"not a correction: {problem}") from problem
    return msgspec.structs.replace(decoded, timeframe=parse_timeframe(decoded.timeframe).name, **changes)


class Corrections:
    """All corrections so far; of two for one value the later counts."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, str], dict[str, dict[int, str]]] = {}

    def add(self, correction: Correction) -> None:
        """Correct that candle from now on."""
        timeframe = parse_timeframe(correction.timeframe)
        candles = self._changes.setdefault((correction.symbol, timeframe.bar), {})
        changes = candles.setdefault(str(correction.timestamp_ms), {})
        texts = ((place, getattr(correction, name)) for place, name in _PLACES)
        changes |= {place: text for place, text in texts if text is not None}

    def applied(self, symbol: str, bar: Bar, rows: list[Row]) -> list[Row]:
        """The confirmed rows of a series, corrected."""
        candles = self._changes.get((symbol, bar.code))
        if candles is None:
            return rows
        return [
            [changes.get(place, text) for place, text in enumerate(row)] if (changes := candles.get(row[0])) else row
            for row in rows
        ]
