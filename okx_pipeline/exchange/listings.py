"""What OKX writes that is no candle: its instruments, its maintenance, its words for people; the sound of it is taken.

It becomes part of tables, requests, paths and screens. What the entries of a list are is `messages`' matter.
"""

import re
from typing import Final

import msgspec

from okx_pipeline.candles import parse_symbol
from okx_pipeline.errors import UsageError
from okx_pipeline.exchange.messages import Instrument, Maintenance, ServerTime

LONGEST_TEXT: Final = 200

_INSTRUMENTS: Final = msgspec.json.Decoder(list[Instrument])
_WINDOWS: Final = msgspec.json.Decoder(list[Maintenance])
_TIME: Final = msgspec.json.Decoder(tuple[ServerTime])
_NUMBER: Final = re.compile(r"[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,2})?", re.ASCII)
_MOMENT: Final = re.compile(r"[0-9]{1,14}", re.ASCII)


def decode_instruments(data: msgspec.Raw) -> tuple[list[Instrument], int]:
    """The instruments of a listing that can be one, and how many of it cannot.

    What stands in a listing becomes part of tables, requests and paths: names are names of instruments, numbers are
    numbers, texts are plain.

    Raises
    ------
    msgspec.DecodeError
        If `data` is not a list of instruments, or none of them can be one.
    """
    listed = _INSTRUMENTS.decode(data)
    sound = [instrument for instrument in listed if _can_be(instrument)]
    if listed and not sound:
        raise msgspec.DecodeError("instruments of which none can be one")
    return sound, len(listed) - len(sound)


def decode_maintenance(data: msgspec.Raw) -> list[Maintenance]:
    """Announced maintenance; what has no readable time is left out.

    Raises
    ------
    msgspec.DecodeError
        If `data` is not a list of windows.
    """
    return [
        msgspec.structs.replace(window, title=plain(window.title, LONGEST_TEXT), state=plain(window.state, 20))
        for window in _WINDOWS.decode(data)
        if _MOMENT.fullmatch(window.begin) and (not window.end or _MOMENT.fullmatch(window.end))
    ]


def decode_time(data: msgspec.Raw) -> int:
    """OKX's clock, in Unix milliseconds.

    Raises
    ------
    msgspec.DecodeError
        If `data` says no time, or one that no calendar has.
    """
    (reading,) = _TIME.decode(data)
    if not _MOMENT.fullmatch(reading.ts):
        raise msgspec.DecodeError(f"the time {reading.ts[:20]!r}")
    return int(reading.ts)


def plain(text: str, most: int) -> str:
    """What OKX wrote for people, as one line of at most `most` characters that a terminal and a database can take.

    Whatever is not printable could command the one, and a NUL is refused by the other.
    """
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:most]


def _can_be(instrument: Instrument) -> bool:
    try:
        named = parse_symbol(instrument.symbol) == instrument.symbol
    except UsageError:
        named = False
    numbers = (
        instrument.contract_value,
        instrument.contract_multiplier,
        instrument.tick_size,
        instrument.lot_size,
        instrument.minimum_size,
    )
    return (
        named
        and all(not text or _NUMBER.fullmatch(text) for text in numbers)
        and all(not text or _MOMENT.fullmatch(text) for text in (instrument.listed, instrument.expires))
        and all(text.isprintable() and len(text) <= LONGEST_TEXT for text in msgspec.structs.astuple(instrument))
    )
