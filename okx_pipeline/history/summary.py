"""A day of a symbol in a few figures, after a run has landed it: what the UI and reports show of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from okx_pipeline.history.backfill import DayReport, Report
from okx_pipeline.history.plan import Life, days_of_range, why_empty, within
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms

SPARKLINE_WIDTH: Final = 48
_BARS: Final = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class DaySummary:
    """A symbol's UTC day, all its timeframes together.

    Parameters
    ----------
    rows
        Candles the store holds that open on the day.
    missing
        Candles that have closed and are not held.
    inserted, corrected, quarantined, requests
        What the run did for the day; a request may serve several days and counts for each.
    first_ms, last_ms
        Open time of the first and last candle held.
    sparkline
        The day's closing prices, drawn in characters.
    note
        Why there is nothing, where there can be nothing.
    """

    rows: int
    missing: int
    inserted: int
    corrected: int
    quarantined: int
    requests: int
    first_ms: int | None
    last_ms: int | None
    sparkline: str
    note: str | None


def summarize(
    store: CandleStore,
    report: Report,
    symbol: str,
    day: date,
    timeframes: Sequence[Timeframe],
    *,
    life: Life,
    now_ms: int,
) -> DaySummary:
    """The summary of `day`, counted from the store's rows and what `report` says the run did."""
    rows = missing = 0
    opens: list[int] = []
    notes: list[str] = []
    for timeframe in timeframes:
        span = days_of_range(symbol, timeframe, day, day + timedelta(days=1))
        note = why_empty(span, life, now_ms)
        if note is not None:
            notes.append(note)
        held = store.opens(symbol, timeframe, span.start_ms, span.end_ms)
        wanted = within(span, life, now_ms)
        rows += len(held)
        missing += len(set(timeframe.opens(wanted.start_ms, wanted.end_ms)).difference(held))
        opens += held
    done = [report.days.get(SeriesDay(symbol, timeframe.name, day)) or DayReport() for timeframe in timeframes]
    closes = store.closes(symbol, min(timeframes), day_ms(day), day_ms(day) + DAY_MS)
    return DaySummary(
        rows=rows,
        missing=missing,
        inserted=sum(each.inserted for each in done),
        corrected=sum(each.corrected for each in done),
        quarantined=sum(each.quarantined for each in done),
        requests=sum(each.requests for each in done),
        first_ms=min(opens, default=None),
        last_ms=max(opens, default=None),
        sparkline=sparkline(closes),
        note=notes[0] if notes and not rows else None,
    )


def sparkline(prices: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """`prices` as a line of at most `width` characters, from the lowest to the highest of them."""
    if not prices:
        return ""
    width = min(width, len(prices))
    sampled = [prices[(index + 1) * len(prices) // width - 1] for index in range(width)]
    low, high = min(sampled), max(sampled)
    if high == low:
        return _BARS[0] * width
    return "".join(_BARS[round((price - low) / (high - low) * (len(_BARS) - 1))] for price in sampled)
