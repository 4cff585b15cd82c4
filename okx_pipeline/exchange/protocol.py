"""OKX's names and published limits: the dictionary between its protocol and ours.

Whoever must speak OKX's words, the stand-in exchange included, takes them from here and from `messages`; no OKX field
name stands anywhere else. Source: OKX's API documentation (docs-v5), as of August to November 2026.
"""

from dataclasses import dataclass
from typing import Final

from okx_pipeline.timeframes import Timeframe

DEFAULT_REST_URL: Final = "https://openapi.okx.com"
DEFAULT_WEBSOCKET_URL: Final = "wss://ws.okx.com/ws/v5/business"
DEMO_HEADER: Final = ("x-simulated-trading", "1")
"""Sent with every REST request to OKX's demo environment."""

PAGE_LIMIT: Final = 300
"""Most rows a candle page holds; more may be asked for and is served as this many."""

RECENT_DEPTH: Final = 1_440
"""How many of the latest candles `candles` serves; older ones only `history-candles` has."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A REST endpoint and its published limit: `requests` in any `period_s` seconds, per address."""

    name: str
    path: str
    requests: int
    period_s: float


CANDLES: Final = Endpoint("candles", "/api/v5/market/candles", 40, 2)
HISTORY_CANDLES: Final = Endpoint("history-candles", "/api/v5/market/history-candles", 20, 2)
INSTRUMENTS: Final = Endpoint("instruments", "/api/v5/public/instruments", 20, 2)
TIME: Final = Endpoint("time", "/api/v5/public/time", 10, 2)
STATUS: Final = Endpoint("status", "/api/v5/system/status", 1, 5)
ENDPOINTS: Final = (CANDLES, HISTORY_CANDLES, INSTRUMENTS, TIME, STATUS)

# Request parameters. AFTER and BEFORE mean the opposite of what they say: `after=T` gives records EARLIER than T,
# `before=T` NEWER than T, both exclusive, and pages count from the newest end, so `before` cannot page forward.
SYMBOL: Final = "instId"
BAR: Final = "bar"
AFTER: Final = "after"
BEFORE: Final = "before"
LIMIT: Final = "limit"
INSTRUMENT_TYPE: Final = "instType"

INSTRUMENT_TYPES: Final = ("SPOT", "SWAP", "FUTURES")
"""The kinds of instrument whose candles are collected."""

CONFIRMED: Final = "1"
"""Value of a row's last field when OKX will not change the candle any more (so it says; volumes were seen to move)."""

ROW_FIELDS: Final = 9
"""[ts, open, high, low, close, vol, volCcy, volCcyQuote, confirm], all text, newest row first."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error OKX answers with: its code, the HTTP status it comes with and its text."""

    code: str
    http_status: int
    message: str


TOO_MANY_REQUESTS: Final = Failure("50011", 429, "Too Many Requests")
RATE_LIMIT_REACHED: Final = Failure(
    "50011", 200, "Rate limit reached. Please refer to API documentation and throttle requests accordingly."
)
SYSTEMS_BUSY: Final = Failure("50013", 429, "Systems are busy. Please try again later.")
UNAVAILABLE: Final = Failure("50001", 503, "Service temporarily unavailable. Please try again later.")
ENDPOINT_TIMEOUT: Final = Failure(
    "50004",
    400,
    "API endpoint request timeout. (does not mean that the request was successful or failed, "
    "please check the request result).",
)
SYSTEM_ERROR: Final = Failure("50026", 500, "System error. Try again later")
PARAMETER_EMPTY: Final = Failure("50014", 400, "Parameter {param0} can not be empty.")
PARAMETER_ERROR: Final = Failure("51000", 400, "Parameter {param0} error")
UNKNOWN_INSTRUMENT: Final = Failure("51001", 200, "Instrument ID, Instrument ID code, or Spread ID doesn't exist.")

SUCCESS_CODE: Final = "0"
RETRYABLE_CODES: Final = frozenset({"50001", "50004", "50011", "50013", "50026", "50040"})
"""Codes that ask for the same request again later; sub-codes (``50004_1101``) count as their code."""


def channel(timeframe: Timeframe) -> str:
    """The WebSocket channel of a timeframe's candles."""
    return f"candle{timeframe.bar}"


# ---- Needed by the stand-in exchange only, which must say what the program never asks for. ----

UNCONFIRMED: Final = "0"
"""Value of a row's last field while the candle is forming."""

UNDERLYING: Final = "uly"
"""Field of an instrument that repeats its family; readers that predate families go by it."""

OTHER_INSTRUMENT_TYPES: Final = ("OPTION", "MARGIN")
"""Kinds of instrument that OKX has and nobody here collects."""
