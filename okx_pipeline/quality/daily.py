"""Whole days of symbols looked through for gaps and repaired: what a materialization of candle gaps does."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from okx_pipeline.history.backfill import Backfill
from okx_pipeline.history.daily import timeframes_on, want_days
from okx_pipeline.quality.gaps import Expectations, agrees
from okx_pipeline.quality.repair import Repair, repair
from okx_pipeline.ranges import Range, candles_in, intersection
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import DayCoverage, day_coverage
from okx_pipeline.storage.database import translated
from okx_pipeline.storage.gaps import gaps_to_ask
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms


@dataclass(frozen=True, slots=True)
class DayMended:
    """A symbol's day after its gaps were looked for and mended.

    Parameters
    ----------
    coverage
        The ledger's rows of the day, a timeframe each.
    waiting
        Missing candles that OKX did not serve and is to be asked for again later.
    disagreeing
        Timeframes of which the ledger says something else than the rows.
    """

    coverage: list[DayCoverage]
    waiting: int
    disagreeing: list[str]


@dataclass(frozen=True, slots=True)
class DaysMended:
    """What was done, and every (day, symbol) as it is now."""

    repair: Repair
    days: dict[tuple[date, str], DayMended]


async def mend_days(backfill: Backfill, wanted: Mapping[str, Sequence[date]]) -> DaysMended:
    """Look for gaps in the days of `wanted` (by symbol) and repair them; weeks and months on the day they close.

    Raises
    ------
    PipelineError
        See `repair`.
    """
    store = backfill.store
    by_timeframe = await want_days(backfill, wanted)
    expectations = await asyncio.to_thread(Expectations.read, store, await backfill.clock.now_ms())
    ranges = [
        each
        for symbol, of_symbol in by_timeframe.items()
        for timeframe, days in of_symbol.items()
        for each in expectations.on(symbol, timeframe, days)
    ]
    repaired = await repair(backfill, ranges)
    now_ms = await backfill.clock.now_ms()
    await asyncio.to_thread(store.account, now_ms)
    days_mended = {}
    for symbol, dates in wanted.items():
        for day in dates:
            timeframes = timeframes_on(by_timeframe[symbol], day)
            days_mended[day, symbol] = await asyncio.to_thread(_mended, store, symbol, day, timeframes, now_ms)
    return DaysMended(repaired, days_mended)


def _mended(store: CandleStore, symbol: str, day: date, timeframes: Sequence[Timeframe], now_ms: int) -> DayMended:
    names = {timeframe.name for timeframe in timeframes}
    with translated(store.place):
        rows = [
            each
            for each in day_coverage(store.connection, symbol, day, day + timedelta(days=1))
            if each.timeframe in names
        ]
        asking = [gap for gap in gaps_to_ask(store.connection, [symbol]) if gap.status == "open"]
        expectations = Expectations.read(store, now_ms)
        disagreeing = [each.timeframe for each in rows if not agrees(store, expectations, each)]
    this_day = Range(day_ms(day), day_ms(day) + DAY_MS)
    waiting = sum(candles_in(gap.timeframe, intersection([gap.range], [this_day])) for gap in asking)
    return DayMended(rows, waiting, disagreeing)
