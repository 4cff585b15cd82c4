"""OKX's names and published limits: the dictionary between its protocol and ours.

Whoever must speak OKX's words, the stand-in exchange included, takes them from here and from `messages`; no OKX field
name stands anywhere else. Source: OKX's API documentation (docs-v5), as of August to November 2026.
"""

from dataclasses import dataclass
from typing import Final

from okx_pipeline.timeframes import TIMEFRAMES, Timeframe

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

UNCONFIRMED: Final = "0"
"""Value of a row's last field while the candle is forming."""

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


CHANNEL_PREFIX: Final = "candle"


def channel(timeframe: Timeframe) -> str:
    """The WebSocket channel of a timeframe's candles."""
    return f"{CHANNEL_PREFIX}{timeframe.bar}"


TIMEFRAMES_BY_CHANNEL: Final = {channel(timeframe): timeframe for timeframe in TIMEFRAMES}
"""Timeframes by their channel."""


# The WebSocket. Candles live on the path /business and nowhere else; port 8443 is closed since October 2026.
BUSINESS_PATH: Final = "/ws/v5/business"
PING: Final = "ping"
"""Text a client sends when nothing came for a while; the answer is the text `PONG`. Neither is JSON."""
PONG: Final = "pong"
IDLE_S: Final = 30
"""OKX closes a connection that has no subscription, or on which nothing was pushed, for this long."""
MOST_REQUEST_BYTES: Final = 64 * 1024
"""Longest request; one may name many channels."""
CONNECTIONS_A_SECOND: Final = 3
"""Connections that one address may open in a second."""
REQUESTS_AN_HOUR: Final = 480
"""Subscribe and unsubscribe requests a connection takes in an hour."""

CLOSE_IDLE: Final = 4004
CLOSE_TOO_MANY_CHANNELS: Final = frozenset({4008, 4009})
NOTICE_UPGRADE: Final = "64008"
"""Code of the notice that the connection will be closed in 60 s."""
WRONG_CHANNEL: Final = "60018"
"""Code of the error for a channel or an instrument that is not there (or not on this path)."""
INVALID_REQUEST: Final = "60012"
MIGRATED: Final = "64001"
TOO_FREQUENT: Final = "60014"

# What only the stand-in exchange says, since the program never asks for it.
UNDERLYING: Final = "uly"
"""Field of an instrument that repeats its family; readers that predate families go by it."""
OTHER_INSTRUMENT_TYPES: Final = ("OPTION", "MARGIN")
"""Kinds of instrument that OKX has and nobody here collects."""

WRONG_CHANNEL_TEXT: Final = (
    "Subscribe failed, wrong URL or channel:{channel},instId:{symbol} doesn't exist. "
    "Please use the correct URL, channel and parameters referring to API document."
)
INVALID_REQUEST_TEXT: Final = "Invalid request: {request}"
TOO_FREQUENT_TEXT: Final = "Requests too frequent"
NOTICE_TEXT: Final = "The connection will soon be closed for a service upgrade. Please reconnect."
NOTICE_S: Final = 60
"""How long after the notice OKX closes the connection."""
CLOSE_IDLE_TEXT: Final = "No data received in 30s."
CLOSE_BUFFER_FULL: Final = 4005
CLOSE_CHANNEL_LIMIT: Final = 4008
