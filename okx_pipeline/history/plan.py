"""What a backfill asks for: ranges of series, cut to when an instrument traded, as windows of what is missing.

Pure arithmetic on open times. What the windows bring and where it goes is `backfill`'s work.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import Final

from okx_pipeline.exchange.protocol import CANDLES, HISTORY_CANDLES, PAGE_LIMIT
from okx_pipeline.exchange.windows import Window, plan
from okx_pipeline.ranges import Range
from okx_pipeline.storage.coverage import days_in
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, utc

BYTES_PER_CANDLE: Final = 300
"""Disk a candle takes for good: 226 bytes in PostgreSQL (row and key) and 54 in Parquet, measured on 100,000 of 1m."""

JOURNAL_BYTES_PER_CANDLE: Final = 260
MOST_JOURNAL_BYTES: Final = 2_000_000_000
"""What PostgreSQL's journal takes on top meanwhile, and where it begins anew (its max_wal_size)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Candles of a series that open in [start_ms, end_ms)."""

    symbol: str
    timeframe: Timeframe
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Life:
    """When an instrument trades, as far as known: from `listed_ms` until `expires_ms`."""

    listed_ms: int | None = None
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan costs: requests to OKX, candles at most, seconds at least (by the request budget), bytes of disk."""

    requests: int
    candles: int
    seconds: float
    disk_bytes: int


def days_of_range(symbol: str, timeframe: Timeframe, start: date, end: date) -> Span:
    """The candles that open on the UTC days [start, end)."""
    return Span(symbol, timeframe, day_ms(start), day_ms(end))


def days_and_their_closes(symbol: str, timeframe: Timeframe, days: Iterable[date]) -> list[Span]:
    """The candles that open on `days`, and the longer ones that close on them: a week's on its last day.

    Days in a row make one span.
    """
    spans = []
    for first, last in _runs(sorted(set(days))):
        start_ms, end_ms = day_ms(first), day_ms(last) + DAY_MS
        opened_before_ms = timeframe.open_at(start_ms)
        if timeframe.close_of(opened_before_ms) <= end_ms:
            start_ms = opened_before_ms
        spans.append(Span(symbol, timeframe, start_ms, end_ms))
    return spans


def without_days(span: Span, days: Collection[SeriesDay]) -> list[Span]:
    """`span` without the candles that open on `days` of its series."""
    kept: list[Span] = []
    for day in days_in(span.timeframe, Range(span.start_ms, span.end_ms)):
        if SeriesDay(span.symbol, span.timeframe.name, day) in days:
            continue
        start_ms, end_ms = max(span.start_ms, day_ms(day)), min(span.end_ms, day_ms(day) + DAY_MS)
        if kept and kept[-1].end_ms == start_ms:
            start_ms = kept.pop().start_ms
        kept.append(Span(span.symbol, span.timeframe, start_ms, end_ms))
    return kept


def within(span: Span, life: Life, now_ms: int) -> Span:
    """`span` without what cannot be: candles before the listing, after the expiry, and not closed at `now_ms`."""
    start_ms = span.timeframe.first_open(span.start_ms)
    end_ms = min(span.end_ms, span.timeframe.closed_before(now_ms))
    if life.listed_ms is not None:
        start_ms = max(start_ms, span.timeframe.open_at(life.listed_ms))
    if life.expires_ms is not None:
        end_ms = min(end_ms, life.expires_ms)
    return Span(span.symbol, span.timeframe, start_ms, max(start_ms, end_ms))


def why_empty(span: Span, life: Life, now_ms: int) -> str | None:
    """Why nothing of `span` can be, in words; None if something can."""
    clipped = within(span, life, now_ms)
    if clipped.timeframe.count(clipped.start_ms, clipped.end_ms):
        return None
    if life.listed_ms is not None and span.end_ms <= span.timeframe.open_at(life.listed_ms):
        return f"{span.symbol} was listed on {utc(life.listed_ms):%Y-%m-%d %H:%M} UTC"
    if life.expires_ms is not None and span.start_ms >= life.expires_ms:
        return f"{span.symbol} expired on {utc(life.expires_ms):%Y-%m-%d %H:%M} UTC"
    return f"no {span.timeframe} candle that opens there has closed yet"


def windows_of(span: Span, have: Sequence[int], now_ms: int) -> list[Window]:
    """The fewest windows that cover the candles of `span` (see `within`) that are not among `have`, ascending."""
    held = set(have)
    opens = span.timeframe.opens(span.start_ms, span.end_ms)
    return windows_over(span.timeframe, (open_ms for open_ms in opens if open_ms not in held), now_ms)


def windows_over(timeframe: Timeframe, missing: Iterable[int], now_ms: int) -> list[Window]:
    """The fewest windows that cover the ascending open times `missing`."""
    remaining = iter(missing)
    windows: list[Window] = []
    first = last = next(remaining, None)
    while first is not None and last is not None:
        limit_ms = timeframe.step(first, PAGE_LIMIT)
        beyond = None
        for open_ms in remaining:
            if open_ms >= limit_ms:
                beyond = open_ms
                break
            last = open_ms
        windows += plan(timeframe, first, timeframe.close_of(last), now_ms)
        first = last = beyond
    return windows


def estimate(windows: Iterable[Window], rate: float | None = None) -> Estimate:
    """What fetching `windows` costs, with `rate` requests per 2 s where fewer than OKX's limit are wanted."""
    requests = dict.fromkeys((CANDLES, HISTORY_CANDLES), 0)
    candles = 0
    for window in windows:
        requests[window.endpoint] += 1
        candles += window.candles
    seconds = 0.0
    for endpoint, number in requests.items():
        per_second = endpoint.requests / endpoint.period_s
        seconds = max(seconds, number / (per_second if rate is None else min(per_second, rate / 2)))
    journal = min(candles * JOURNAL_BYTES_PER_CANDLE, MOST_JOURNAL_BYTES)
    return Estimate(sum(requests.values()), candles, seconds, candles * BYTES_PER_CANDLE + journal)


def _runs(days: list[date]) -> Iterator[tuple[date, date]]:
    numbered = enumerate(days)
    for _, run in groupby(numbered, key=lambda each: each[1] - timedelta(days=each[0])):
        members = [day for _, day in run]
        yield members[0], members[-1]
