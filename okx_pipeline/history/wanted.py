"""What of the wanted history the store lacks: read from the rows themselves, never remembered."""

from collections.abc import Iterable
from datetime import date, timedelta

from okx_pipeline.history.plan import Life, Span, within
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.landings import rows_per_day
from okx_pipeline.storage.subscriptions import Subscription
from okx_pipeline.timeframes import DAY_MS, day_of


def lacking_days(connection: Connection, wanted: Iterable[Subscription], life: Life, now_ms: int) -> list[date]:
    """The closed UTC days, newest first, on which a symbol lacks a candle that was wanted and could be.

    A week or month that is lacking is a matter of the day on which it closes.

    Parameters
    ----------
    wanted
        The subscriptions of one symbol.
    """
    today_ms = now_ms - now_ms % DAY_MS
    lacking: set[date] = set()
    for each in wanted:
        end_ms = today_ms if each.until_ms is None else min(today_ms, each.until_ms)
        span = within(Span(each.symbol, each.timeframe, each.since_ms, end_ms), life, today_ms)
        held = rows_per_day(connection, each.symbol, each.timeframe, span.start_ms, span.end_ms)
        if each.timeframe.length_ms <= DAY_MS:
            for day in _days(span):
                start_ms = max(span.start_ms, day)
                expected = each.timeframe.count(start_ms, min(span.end_ms, day + DAY_MS))
                if held.get(day, 0) < expected:
                    lacking.add(day_of(day))
        else:
            lacking.update(
                day_of(each.timeframe.close_of(open_ms) - 1)
                for open_ms in each.timeframe.opens(span.start_ms, span.end_ms)
                if not held.get(open_ms, 0)
            )
    return sorted(lacking, reverse=True)


def newest_run(days: list[date], most: int) -> tuple[date, date] | None:
    """First and last of the newest days in a row among `days` (newest first), at most `most` of them."""
    if not days:
        return None
    first = days[0]
    for day in days[1:most]:
        if day != first - timedelta(days=1):
            break
        first = day
    return first, days[0]


def _days(span: Span) -> range:
    return range(span.start_ms - span.start_ms % DAY_MS, span.end_ms, DAY_MS)
