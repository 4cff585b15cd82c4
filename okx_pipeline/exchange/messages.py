"""OKX's REST bodies as typed messages: decoding a body into what the rest of the program speaks, and encoding one.

Numbers stay the text that OKX sent. What a row must be to be a candle is decided in `candles`; here a row only has to
be readable. Both directions live here, so that the stand-in exchange speaks in the same words.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from okx_pipeline.candles import Candle, Refused, canonical, impossibility, sound_candle
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

    @property
    def stops_candles(self) -> bool:
        """Whether candles may stop while it lasts: 0 is the WebSocket, 5 trading, 99 what OKX calls others."""
        return self.service_type in {"0", "5", "99"} and self.state not in {"completed", "canceled"}


class ServerTime(msgspec.Struct, frozen=True):
    """OKX's clock: Unix milliseconds as text."""

    ts: str


class Envelope(msgspec.Struct, frozen=True):
    """What every body is wrapped in; the body of a 429 has no `data`, which is then empty text, not an empty list."""

    code: str
    msg: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")


_ENVELOPE: Final = msgspec.json.Decoder(Envelope)
_ROWS: Final = msgspec.json.Decoder(list[list[str]])
_LOOSE_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ROW: Final = msgspec.json.Decoder(list[str])
_TEXT: Final = msgspec.json.Decoder(str)
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
    try:
        return _ENVELOPE.decode(body)
    except (UnicodeDecodeError, RecursionError) as problem:
        raise msgspec.DecodeError(str(problem)) from problem


def decode_page(data: msgspec.Raw, symbol: str, timeframe: Timeframe) -> Page:
    """The rows of a candle page; one unreadable row never costs another.

    Raises
    ------
    msgspec.DecodeError
        If `data` is not a list.
    """
    raw: Sequence[Any]
    try:
        try:
            raw = _ROWS.decode(data)
        except (msgspec.ValidationError, UnicodeDecodeError):
            raw = _LOOSE_ROWS.decode(data)
    except RecursionError as problem:
        raise msgspec.DecodeError(str(problem)) from problem
    page = Page([], [], [], len(raw))
    for row in raw:
        judge_row(row, symbol, timeframe, page)
    return page


def judge_row(row: list[str] | msgspec.Raw, symbol: str, timeframe: Timeframe, page: Page) -> None:
    """Sort one row into `page`: a candle, refused, or, if OKX may still change it, neither."""
    original = unreadable = ""
    if isinstance(row, msgspec.Raw):
        raw = row
        original = bytes(raw).decode(errors="replace")
        try:
            row = _ROW.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            row, unreadable = _texts(raw), "not a list of texts"

    timestamp_ms = open_time(row[0]) if row else None
    if timestamp_ms is not None:
        page.opens.append(timestamp_ms)
    confirm = row[protocol.ROW_FIELDS - 1] if len(row) >= protocol.ROW_FIELDS else ""
    if confirm == protocol.UNCONFIRMED:
        return

    judged = unreadable or _candle(row, timestamp_ms, confirm, symbol, timeframe)
    if isinstance(judged, Candle):
        page.candles.append(judged)
    else:
        original = original or _JSON.encode(row).decode()
        page.refused.append(Refused(symbol, timeframe.name, timestamp_ms, judged, original))


def _candle(row: list[str], timestamp_ms: int | None, confirm: str, symbol: str, timeframe: Timeframe) -> Candle | str:
    """The candle in `row`, or why there is none."""
    if timestamp_ms is None:
        return f"open time {''.join(row[:1])[:20]!r} is unreadable"
    # A field more could stand before the last one: what is then read as confirmed is not known to be.
    if len(row) != protocol.ROW_FIELDS:
        return f"{len(row)} fields instead of {protocol.ROW_FIELDS}"
    if confirm != protocol.CONFIRMED:
        return f"confirm is {confirm[:20]!r}"
    if sound := sound_candle(symbol, timeframe, timestamp_ms, row[1:8]):
        return sound
    try:
        values = [canonical(text) for text in row[1:8]]
    except ValueError as problem:
        return str(problem)
    candle = Candle(symbol, timeframe.name, timestamp_ms, *values)
    return impossibility(timeframe, candle) or candle


def open_time(text: str) -> int | None:
    """The open time of a row in Unix milliseconds; None for what is none, or of no calendar: 14 digits end in 5138."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 14 else None


def _texts(row: msgspec.Raw) -> list[str]:
    """The fields of a row that is no list of texts, each one empty that is no text."""
    try:
        fields = _LOOSE_ROWS.decode(row)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [_text(field) for field in fields]


def _text(field: msgspec.Raw) -> str:
    try:
        return _TEXT.decode(field)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def encode_success(data: Any) -> bytes:
    """A successful body around `data`: rows, `Instrument`s, `ServerTime`."""
    return _JSON.encode({"code": protocol.SUCCESS_CODE, "msg": "", "data": data})


def encode_failure(failure: protocol.Failure, parameter: str = "") -> bytes:
    """The body of a failure; a 429's has no data, as recorded."""
    message = failure.message.format(param0=parameter) if parameter else failure.message
    if failure.http_status == 429:
        return _JSON.encode({"msg": message, "code": failure.code})
    return _JSON.encode({"code": failure.code, "data": [], "msg": message})
