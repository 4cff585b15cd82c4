"""Whole days of symbols, in every timeframe that is subscribed: what a materialization of candles lands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from okx_pipeline.history.backfill import Backfill, Report
from okx_pipeline.history.plan import days_and_their_closes
from okx_pipeline.history.summary import DaySummary, summarize
from okx_pipeline.storage.subscriptions import subscriptions
from okx_pipeline.timeframes import Timeframe


@dataclass(frozen=True, slots=True)
class DaysLanded:
    """What was done, and every (day, symbol) as it is now."""

    report: Report
    summaries: dict[tuple[date, str], DaySummary]


async def land_days(backfill: Backfill, wanted: Mapping[str, Sequence[date]]) -> DaysLanded:
    """Read the days of `wanted` (by symbol) from OKX anew, held or not, so that every candle is confirmed by REST.

    Weeks and months are read on the day they close.

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


def timeframes_of(backfill: Backfill, symbol: str) -> list[Timeframe]:
    """The timeframes subscribed for `symbol`; those of the settings where none is."""
    wanted = [each.timeframe for each in subscriptions(backfill.store.connection) if each.symbol == symbol]
    return wanted or list(backfill.settings.timeframes)
