"""OKX's semantics over a market: what each endpoint answers, at the exchange's time, within its published limits.

Nothing here knows HTTP beyond a status and a body, nor where candles come from; what is pushed, and when, is decided in
`pushes`. Where OKX's behaviour is not known for certain, it is a switch of `Exchange` or said at the place.
"""

import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.messages import ServerTime, encode_failure, encode_success
from okx_pipeline.exchange.protocol import Endpoint, Failure
from okx_pipeline.replay.bars import BARS, Bar
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.corrections import Correction, Corrections
from okx_pipeline.replay.faults import Fault, Faults
from okx_pipeline.replay.limits import SlidingWindow
from okx_pipeline.replay.market import Market, Row
from okx_pipeline.timeframes import DAY_MS, Timeframe, iso, parse_timeframe

_DEFAULT_BAR: Final = "1m"
_DEFAULT_LIMIT: Final = 100
_LOWERED_LIMIT: Final = 100
_REQUESTS_KEPT: Final = 100_000
_LONGEST_NUMBER: Final = 15
WEB_PAGE: Final = b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be sent: after `delay_s`, unless the connection is to be reset instead."""

    status: int
    body: bytes
    media_type: str = "application/json"
    encoding: str | None = None
    delay_s: float = 0.0
    reset: bool = False


class CandleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A candle request that was answered with a page: what was asked, at which exchange time, and how much came."""

    endpoint: str
    symbol: str
    bar: str
    after: int | None
    before: int | None
    limit: int
    rows: int
    now_ms: int


class Tally(msgspec.Struct):
    """Requests of an endpoint: within the limit and beyond it; and how many of those served a fault struck."""

    served: int = 0
    refused: int = 0
    faulted: int = 0


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which rows are wanted: those that open in (before_ms, after_ms), counted from the newest end."""

    after_ms: int | None = None
    before_ms: int | None = None
    limit: int = _DEFAULT_LIMIT

    def bounds(self, end_ms: int) -> tuple[int, int]:
        """(before, after), both exclusive; `end_ms` where there is no `after`.

        A `before` that is not older than `after` leaves nothing between them: OKX was seen to ignore it then.
        """
        after_ms = end_ms if self.after_ms is None else min(self.after_ms, end_ms)
        if self.before_ms is None or (self.after_ms is not None and self.before_ms >= self.after_ms):
            return -1, after_ms
        return self.before_ms, after_ms


class Exchange:
    """A stand-in for OKX: its public REST interface, and the candles that are pushed.

    Parameters
    ----------
    market
        The candles.
    clock
        The exchange's time: no candle is seen before it opens, none confirmed before it closes.
    limits
        Whether the published request limits are kept. One budget an endpoint: all callers are one address.
    history_has_forming
        Whether history-candles also serves the candle that is still forming: not known of OKX.
    confirm_delay_ms
        How long after its close a candle is still served unconfirmed; OKX was seen to take up to 2 s. Pushes do not
        wait for it.
    seed
        Of every choice that a fault makes by chance.
    monotonic
        The wall's clock, on which the limits run.

    Attributes
    ----------
    market, clock, monotonic
        As given.
    limited
        Whether limits are kept.
    faults
        How it shall misbehave next.
    corrections
        What it has changed of candles confirmed long before.
    tallies
        Requests by endpoint name.
    requests
        The newest 100,000 candle requests, oldest first.
    relisted
        By symbol, the later time at which OKX lists it again under its old name. What it traded before is still served.
    """

    def __init__(
        self,
        market: Market,
        clock: ExchangeClock,
        *,
        limits: bool = True,
        history_has_forming: bool = False,
        confirm_delay_ms: int = 0,
        seed: int = 7,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.market = market
        self.clock = clock
        self.monotonic = monotonic
        self.limited = limits
        self.faults = Faults(seed, monotonic=monotonic)
        self.corrections = Corrections()
        self.tallies = {endpoint.name: Tally() for endpoint in protocol.ENDPOINTS}
        self.requests: deque[CandleRequest] = deque(maxlen=_REQUESTS_KEPT)
        self.relisted: dict[str, int] = {}
        self._history_has_forming = history_has_forming
        self._confirm_delay_ms = confirm_delay_ms
        self._windows: dict[tuple[str, str], SlidingWindow] = {}

    def answer(self, endpoint: Endpoint, query: Mapping[str, str]) -> Answer:
        """The answer to a request; it counts against the limit and may be struck by a fault."""
        tally = self.tallies[endpoint.name]
        if self.limited and not self._window(endpoint, query).admit():
            tally.refused += 1
            return _failure(protocol.TOO_MANY_REQUESTS)
        tally.served += 1
        fault = self.faults.take(endpoint.name)
        if fault is None:
            return self._serve(endpoint, query, None)
        tally.faulted += 1
        return _instead(fault) or _damaged(self._serve(endpoint, query, fault), fault)

    def page(
        self,
        symbol: str,
        bar: Bar,
        query: PageQuery,
        *,
        recent_only: bool = False,
        forming: bool = True,
        now_ms: int | None = None,
    ) -> list[Row]:
        """The rows of 9 texts that are seen now, newest first; at most `query.limit`.

        Parameters
        ----------
        symbol, bar
            A series of the market.
        query
            Which of its rows.
        recent_only
            Only among the latest 1,440, those not confirmed counted.
        forming
            Whether rows that are not confirmed are served at all.
        now_ms
            Another moment than now to look from.
        """
        now_ms = self.clock.now_ms() if now_ms is None else now_ms
        unconfirmed_ms = bar.open_at(now_ms - self._confirm_delay_ms)
        before_ms, after_ms = query.bounds(now_ms + 1)
        fresh = self._unconfirmed(symbol, bar, unconfirmed_ms, now_ms) if forming else []
        if recent_only:
            kept = protocol.RECENT_DEPTH - len(fresh)
            oldest_ms = self.market.oldest_of_newest(symbol, bar, end_ms=unconfirmed_ms, count=kept)
            before_ms = max(before_ms, oldest_ms - 1)
        rows = [[*row, protocol.UNCONFIRMED] for row in fresh if before_ms < int(row[0]) < after_ms][: query.limit]
        return rows + self.confirmed(
            symbol,
            bar,
            after_ms=min(after_ms, unconfirmed_ms),
            before_ms=before_ms,
            limit=query.limit - len(rows),
        )

    def confirmed(self, symbol: str, bar: Bar, *, after_ms: int, before_ms: int, limit: int | None = None) -> list[Row]:
        """The newest `limit` whole candles that open in (before_ms, after_ms) as rows of 9 texts, newest first."""
        most = (after_ms - before_ms) // bar.length_ms + 1
        closed = self.market.closed(
            symbol, bar, after_ms=after_ms, before_ms=before_ms, limit=most if limit is None else limit
        )
        return [[*row, protocol.CONFIRMED] for row in self.corrections.applied(symbol, bar, closed)]

    def truth(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> list[Row]:
        """What a perfect client would hold now: every confirmed row that opens in [start_ms, end_ms), oldest first.

        Raises
        ------
        UsageError
            If there are no candles of `symbol`.
        """
        now_ms = self.clock.now_ms()
        if not self.market.knows(symbol, now_ms):
            raise UsageError(f"there are no candles of {symbol!r}")
        bar = BARS[timeframe.bar]
        unconfirmed_ms = bar.open_at(now_ms - self._confirm_delay_ms)
        rows = self.confirmed(symbol, bar, after_ms=min(end_ms, unconfirmed_ms), before_ms=max(start_ms, 0) - 1)
        return rows[::-1]

    def correct(self, correction: Correction) -> None:
        """Serve a confirmed candle with other values from now on.

        Raises
        ------
        UsageError
            If there is no such candle, or it is not confirmed yet.
        """
        timeframe = parse_timeframe(correction.timeframe)
        at_ms = correction.timestamp_ms
        if not self.truth(correction.symbol, timeframe, at_ms, at_ms + 1):
            raise UsageError(f"{correction.symbol} has no confirmed {timeframe} candle that opens at {iso(at_ms)}")
        self.corrections.add(correction)

    def _unconfirmed(self, symbol: str, bar: Bar, from_ms: int, now_ms: int) -> list[Row]:
        rows = []
        open_ms = bar.open_at(now_ms)
        while open_ms >= from_ms:
            row = self.market.forming(symbol, bar, open_ms, now_ms)
            rows += [] if row is None else [row]
            open_ms = bar.step(open_ms, -1)
        return rows

    def _window(self, endpoint: Endpoint, query: Mapping[str, str]) -> SlidingWindow:
        # OKX counts instruments by address and instrument type, everything else by address.
        kind = query.get(protocol.INSTRUMENT_TYPE, "") if endpoint == protocol.INSTRUMENTS else ""
        key = (endpoint.name, kind if kind in protocol.INSTRUMENT_TYPES else "")
        if key not in self._windows:
            self._windows[key] = SlidingWindow(endpoint.requests, endpoint.period_s, monotonic=self.monotonic)
        return self._windows[key]

    def _serve(self, endpoint: Endpoint, query: Mapping[str, str], fault: Fault | None) -> Answer:
        try:
            if endpoint in (protocol.CANDLES, protocol.HISTORY_CANDLES):
                return _success(self._candles(endpoint, query, fault))
            if endpoint == protocol.INSTRUMENTS:
                return _success(self._instruments(query))
            return _success([ServerTime(str(self.clock.now_ms()))] if endpoint == protocol.TIME else [])
        except _RefusedError as refusal:
            return _failure(refusal.failure, refusal.parameter)

    def _candles(self, endpoint: Endpoint, query: Mapping[str, str], fault: Fault | None) -> list[Row]:
        symbol = query.get(protocol.SYMBOL)
        if not symbol:
            raise _RefusedError(protocol.PARAMETER_EMPTY, protocol.SYMBOL)
        bar = BARS.get(query.get(protocol.BAR) or _DEFAULT_BAR)
        if bar is None:
            raise _RefusedError(protocol.PARAMETER_ERROR, protocol.BAR)
        after = _number(query, protocol.AFTER)
        before = _number(query, protocol.BEFORE)
        limit = _number(query, protocol.LIMIT)
        if limit == 0:
            raise _RefusedError(protocol.PARAMETER_ERROR, protocol.LIMIT)
        if not self.market.knows(symbol, self.clock.now_ms()):
            raise _RefusedError(protocol.UNKNOWN_INSTRUMENT)
        wanted = PageQuery(after, before, min(_DEFAULT_LIMIT if limit is None else limit, protocol.PAGE_LIMIT))
        recent_only = endpoint == protocol.CANDLES
        now_ms = self.clock.now_ms()
        rows = self.page(
            symbol,
            bar,
            wanted if fault is None else _misread(wanted, fault),
            recent_only=recent_only,
            forming=recent_only or self._history_has_forming,
            now_ms=now_ms - DAY_MS if fault is not None and fault.kind == "yesterday" else now_ms,
        )
        if fault is not None and fault.kind == "short":
            rows = rows[: 1 if fault.rows is None else fault.rows]
        self.requests.append(
            CandleRequest(
                endpoint=endpoint.name,
                symbol=symbol,
                bar=bar.code,
                after=after,
                before=before,
                limit=_DEFAULT_LIMIT if limit is None else limit,
                rows=len(rows),
                now_ms=now_ms,
            )
        )
        return rows

    def _instruments(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        kind = query.get(protocol.INSTRUMENT_TYPE)
        if not kind:
            raise _RefusedError(protocol.PARAMETER_EMPTY, protocol.INSTRUMENT_TYPE)
        if kind in protocol.OTHER_INSTRUMENT_TYPES:
            return []
        if kind not in protocol.INSTRUMENT_TYPES:
            raise _RefusedError(protocol.PARAMETER_ERROR, protocol.INSTRUMENT_TYPE)
        trading = [
            msgspec.structs.replace(rules, listed=str(self.relisted.get(rules.symbol, rules.listed)))
            for rules in self.market.instruments(self.clock.now_ms())
        ]
        symbol = query.get(protocol.SYMBOL)
        wanted = [rules for rules in trading if rules.instrument_type == kind and symbol in (None, rules.symbol)]
        if symbol is not None and not wanted:
            raise _RefusedError(protocol.UNKNOWN_INSTRUMENT)
        return [{**msgspec.to_builtins(rules), protocol.UNDERLYING: rules.family} for rules in wanted]


class _RefusedError(Exception):
    """A request that OKX would answer with an error."""

    def __init__(self, failure: Failure, parameter: str = "") -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.parameter = parameter


def _number(query: Mapping[str, str], parameter: str) -> int | None:
    text = query.get(parameter)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        raise _RefusedError(protocol.PARAMETER_ERROR, parameter)
    return int(text)


def _success(data: object) -> Answer:
    return Answer(200, encode_success(data))


def _failure(failure: Failure, parameter: str = "") -> Answer:
    return Answer(failure.http_status, encode_failure(failure, parameter))


def _instead(fault: Fault) -> Answer | None:
    """What is answered in place of the right answer, of the faults that do not need to know it."""
    match fault.kind:
        case "status":
            known = protocol.UNAVAILABLE if fault.status == 503 else protocol.SYSTEM_ERROR
            return _failure(Failure(known.code, fault.status, known.message))
        case "code":
            return _failure(Failure(fault.code, 200, protocol.RATE_LIMIT_REACHED.message))
        case "too_many":
            return _failure(protocol.TOO_MANY_REQUESTS)
        case "html":
            return Answer(200, WEB_PAGE, media_type="text/html")
        case "reset":
            return Answer(200, b"", reset=True)
        case _:
            return None


def _misread(wanted: PageQuery, fault: Fault) -> PageQuery:
    """The page that is served instead of the one wanted."""
    match fault.kind:
        case "empty":
            return replace(wanted, limit=0)
        case "page_limit":
            return replace(wanted, limit=min(wanted.limit, _LOWERED_LIMIT if fault.rows is None else fault.rows))
        case "yesterday":
            after_ms, before_ms = (None if ms is None else ms - DAY_MS for ms in (wanted.after_ms, wanted.before_ms))
            return PageQuery(after_ms, before_ms, wanted.limit)
        case _:
            return wanted


def _damaged(answer: Answer, fault: Fault) -> Answer:
    """The right answer, with what the fault does to any answer."""
    if fault.kind == "truncated":
        return Answer(answer.status, answer.body[: len(answer.body) // 2], answer.media_type)
    if fault.kind == "bomb":
        return Answer(answer.status, _compressed(answer.body, fault.megabytes), answer.media_type, encoding="gzip")
    if fault.kind == "slow":
        return Answer(answer.status, answer.body, answer.media_type, delay_s=fault.duration_s)
    return answer


def _compressed(body: bytes, megabytes: int) -> bytes:
    """The body and so many megabytes of blanks, which JSON allows after it, by gzip: a thousandth of their size."""
    packing = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    blanks = b" " * 1024**2
    packed = [packing.compress(body), *(packing.compress(blanks) for _ in range(megabytes)), packing.flush()]
    return b"".join(packed)
