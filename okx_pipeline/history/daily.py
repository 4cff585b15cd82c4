"""Whole days of symbols, in every timeframe that is subscribed: what a materialization of candles lands."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from okx_pipeline.history.backfill import Backfill, Report
from okx_pipeline.history.plan import days_and_their_closes, without_days
from okx_pipeline.history.summary import DaySummary, summarize
from okx_pipeline.storage.coverage import day_coverage
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.subscriptions import subscriptions
from okx_pipeline.timeframes import Timeframe


@dataclass(frozen=True, slots=True)
class DaysLanded:
    """What was done, and every (day, symbol) as it is now."""

    report: Report
    summaries: dict[tuple[date, str], DaySummary]


async def land_days(
    backfill: Backfill, wanted: Mapping[str, Sequence[date]], *, only_unread: bool = False
) -> DaysLanded:
    """Read the days of `wanted` (by symbol) from OKX anew, held or not, so that every candle is confirmed by REST.

    Weeks and months are read on the day they close.

    Parameters
    ----------
    only_unread
        Leave out what REST was read for already, as the ledger says.

    Raises
    ------
    PipelineError
        See `Backfill.plan` and `Backfill.run`.
    """
    timeframes = {symbol: timeframes_of(backfill, symbol) for symbol in wanted}
    spans = [
        span
        for symbol, days in wanted.items()
        for timeframe in timeframes[symbol]
        for span in days_and_their_closes(symbol, timeframe, days)
    ]
    if only_unread:
        read = await asyncio.to_thread(_read_days, backfill, wanted, await backfill.clock.now_ms())
        spans = [piece for span in spans for piece in without_days(span, read)]
    plan = await backfill.plan(spans, only_missing=False)
    report = await backfill.run(plan)
    summaries = {}
    for symbol, days in wanted.items():
        life = await backfill.life_of(symbol)
        for day in days:
            summaries[day, symbol] = summarize(
                backfill.store, report, symbol, day, timeframes[symbol], life=life, now_ms=plan.now_ms
            )
    return DaysLanded(report, summaries)


def _read_days(backfill: Backfill, wanted: Mapping[str, Sequence[date]], now_ms: int) -> set[SeriesDay]:
    backfill.store.account(now_ms)
    return {
        SeriesDay(each.symbol, each.timeframe, each.day)
        for symbol, days in wanted.items()
        # The month that closes on a day opened 31 days before it at the earliest.
        for each in day_coverage(
            backfill.store.connection, symbol, min(days) - timedelta(days=31), max(days) + timedelta(days=1)
        )
        if each.read_at is not None and each.content_hash is not None
    }


def timeframes_of(backfill: Backfill, symbol: str) -> list[Timeframe]:
    """The timeframes subscribed for `symbol`; those of the settings where none is."""
    wanted = [each.timeframe for each in subscriptions(backfill.store.connection) if each.symbol == symbol]
    return wanted or list(backfill.settings.timeframes)
