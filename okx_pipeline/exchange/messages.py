"""OKX's REST bodies as typed messages: decoding a body into what the rest of the program speaks, and encoding one.

Numbers stay the text that OKX sent. What a row must be to be a candle is decided in `candles`; here a row only has to
be readable. Both directions live here, so that the stand-in exchange speaks in the same words.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from okx_pipeline.candles import Candle, Refused, canonical, impossibility
from okx_pipeline.exchange import protocol
from okx_pipeline.timeframes import Timeframe


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument and its rules as OKX lists them; numbers as text, empty where OKX has none."""

    symbol: str = msgspec.field(name="instId")
    instrument_type: str = msgspec.field(name="instType")
    family: str = msgspec.field(name="instFamily", default="")
    base_currency: str = msgspec.field(name="baseCcy", default="")
    quote_currency: str = msgspec.field(name="quoteCcy", default="")
    settle_currency: str = msgspec.field(name="settleCcy", default="")
    contract_type: str = msgspec.field(name="ctType", default="")
    contract_value: str = msgspec.field(name="ctVal", default="")
    contract_multiplier: str = msgspec.field(name="ctMult", default="")
    contract_currency: str = msgspec.field(name="ctValCcy", default="")
    tick_size: str = msgspec.field(name="tickSz", default="")
    lot_size: str = msgspec.field(name="lotSz", default="")
    minimum_size: str = msgspec.field(name="minSz", default="")
    listed: str = msgspec.field(name="listTime", default="")
    """Unix milliseconds as text."""
    expires: str = msgspec.field(name="expTime", default="")
    """Unix milliseconds as text; of a delisted instrument the day it went."""
    state: str = "live"


class Maintenance(msgspec.Struct, frozen=True, kw_only=True):
    """A maintenance window of OKX's system status; times are Unix milliseconds as text."""

    title: str
    state: str
    begin: str
    end: str = ""
    service_type: str = msgspec.field(name="serviceType", default="")


class ServerTime(msgspec.Struct, frozen=True):
    """OKX's clock: Unix milliseconds as text."""

    ts: str


class Envelope(msgspec.Struct, frozen=True):
    """What every body is wrapped in; the body of a 429 has no `data`."""

    code: str
    msg: str = ""
    data: msgspec.Raw = msgspec.Raw(b"[]")


_ENVELOPE: Final = msgspec.json.Decoder(Envelope)
_ROWS: Final = msgspec.json.Decoder(list[list[str]])
_LOOSE_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ROW: Final = msgspec.json.Decoder(list[str])
_JSON: Final = msgspec.json.Encoder()


class Page(msgspec.Struct, frozen=True):
    """A page of candle rows, each row judged by itself.

    Parameters
    ----------
    candles
        Confirmed candles in the order OKX sent them, newest first; numbers canonical.
    refused
        Confirmed rows that cannot be candles.
    opens
        Open times of every row with a readable one, confirmed or not, in the order sent: what paging goes by.
    rows
        Number of rows in the body, whatever they were.
    """

    candles: list[Candle]
    refused: list[Refused]
    opens: list[int]
    rows: int


def decode_envelope(body: bytes) -> Envelope:
    """The envelope of a REST body.

    Raises
    ------
    msgspec.DecodeError
        If the body is not an OKX envelope: cut off, HTML, anything else.
    """
    return _ENVELOPE.decode(body)


def decode_page(data: msgspec.Raw, symbol: str, timeframe: Timeframe) -> Page:
    """The rows of a candle page; one unreadable row never costs another.

    Raises
    ------
    msgspec.DecodeError
        If `data` is not a list.
    """
    raw: Sequence[Any]
    try:
        raw = _ROWS.decode(data)
    except msgspec.ValidationError:
        raw = _LOOSE_ROWS.decode(data)
    page = Page([], [], [], len(raw))
    for row in raw:
        judge_row(row, symbol, timeframe, page)
    return page


def judge_row(row: list[str] | msgspec.Raw, symbol: str, timeframe: Timeframe, page: Page) -> None:
    """Sort one row into `page`: a candle, refused, or, if OKX may still change it, neither."""
    if isinstance(row, msgspec.Raw):
        original = bytes(row).decode(errors="replace")
        try:
            row = _ROW.decode(row)
        except msgspec.DecodeError:
            page.refused.append(Refused(symbol, timeframe.name, None, "not a list of texts", original))
            return
    timestamp = row[0] if row else ""
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 15):
        page.refused.append(_refused(symbol, timeframe, None, f"open time {timestamp[:20]!r} is unreadable", row))
        return
    timestamp_ms = int(timestamp)
    page.opens.append(timestamp_ms)
    if len(row) < protocol.ROW_FIELDS:
        reason = f"{len(row)} fields instead of {protocol.ROW_FIELDS}"
        page.refused.append(_refused(symbol, timeframe, timestamp_ms, reason, row))
        return
    if row[protocol.ROW_FIELDS - 1] != protocol.CONFIRMED:
        return
    try:
        values = [canonical(text) for text in row[1:8]]
    except ValueError as problem:
        page.refused.append(_refused(symbol, timeframe, timestamp_ms, str(problem), row))
        return
    candle = Candle(symbol, timeframe.name, timestamp_ms, *values)
    impossible = impossibility(timeframe, candle)
    if impossible is not None:
        page.refused.append(_refused(symbol, timeframe, timestamp_ms, impossible, row))
        return
    page.candles.append(candle)


def _refused(symbol: str, timeframe: Timeframe, timestamp_ms: int | None, reason: str, row: list[str]) -> Refused:
    return Refused(symbol, timeframe.name, timestamp_ms, reason, _JSON.encode(row).decode())


def encode_success(data: Any) -> bytes:
    """A successful body around `data`: rows, `Instrument`s, `ServerTime`."""
    return _JSON.encode({"code": protocol.SUCCESS_CODE, "msg": "", "data": data})


def encode_failure(failure: protocol.Failure, parameter: str = "") -> bytes:
    """The body of a failure; a 429's has no data, as recorded."""
    message = failure.message.format(param0=parameter) if parameter else failure.message
    if failure.http_status == 429:
        return _JSON.encode({"msg": message, "code": failure.code})
    return _JSON.encode({"code": failure.code, "data": [], "msg": message})
