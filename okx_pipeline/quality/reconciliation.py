"""Reconciliation: days that were confirmed are read from OKX once more, and their timeframes held against each other.

OKX revises confirmed candles days later (volume only, three to seven days, in 7 of 73,656 seen), and a frame of its
WebSocket can differ from REST. Differences are corrected where they land, and leave revisions. Where timeframes do not
add up although REST has just served every one of them, the mismatch is the exchange's own.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from okx_pipeline.history.backfill import Backfill
from okx_pipeline.history.daily import DaysLanded, land_days, timeframes_on
from okx_pipeline.quality.consistency import check
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.consistency import Mismatch
from okx_pipeline.storage.coverage import day_coverage
from okx_pipeline.storage.database import translated
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, day_of


@dataclass(frozen=True, slots=True)
class DayReconciled:
    """A symbol's day after it was read once more.

    Parameters
    ----------
    corrected
        Candles whose value was changed now.
    unverified
        Timeframes of which REST did not serve exactly what is held.
    windows, mismatches
        Candles that were held against shorter ones, and where they differ.
    """

    corrected: int
    unverified: list[str]
    windows: int
    mismatches: list[Mismatch]


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a reconciliation did: the landing's report, and every (day, symbol) as it is now."""

    landed: DaysLanded
    days: dict[tuple[date, str], DayReconciled]


async def reconcile_days(backfill: Backfill, wanted: Mapping[str, Sequence[date]]) -> Reconciled:
    """Read the days of `wanted` (by symbol) from OKX again, correct what differs, and see whether timeframes add up.

    Raises
    ------
    PipelineError
        See `land_days`.
    """
    landed = await land_days(backfill, wanted)
    days = {}
    for symbol, dates in wanted.items():
        for day in dates:
            timeframes = timeframes_on(landed.timeframes[symbol], day)
            days[day, symbol] = await asyncio.to_thread(
                _reconciled, backfill.store, symbol, day, timeframes, landed.summaries[day, symbol].corrected
            )
    return Reconciled(landed, days)


def _reconciled(
    store: CandleStore, symbol: str, day: date, timeframes: Sequence[Timeframe], corrected: int
) -> DayReconciled:
    start_ms, end_ms = day_ms(day), day_ms(day) + DAY_MS
    within_day = [each for each in timeframes if each.length_ms <= DAY_MS]
    names = {each.name for each in timeframes}
    with translated(store.place):
        rows = day_coverage(store.connection, symbol, day, day + timedelta(days=1))
        unverified = {
            each.timeframe
            for each in rows
            if each.timeframe in names and each.present and each.verified_at != each.read_at
        }
        report = check(store.connection, symbol, within_day, start_ms, end_ms, confirmed_by_rest=not unverified)
        windows, mismatches = report.windows, [*report.mismatches]
        for long in timeframes:
            open_ms = long.open_at(start_ms)
            if long.length_ms > DAY_MS and long.close_of(open_ms) == end_ms:
                confirmed = _all_verified(store, symbol, day_of(open_ms), day)
                report = check(
                    store.connection, symbol, [*within_day, long], open_ms, open_ms + 1, confirmed_by_rest=confirmed
                )
                windows += report.windows
                mismatches += [each for each in report.mismatches if each not in mismatches]
    return DayReconciled(corrected, sorted(unverified), windows, mismatches)


def _all_verified(store: CandleStore, symbol: str, first: date, last: date) -> bool:
    rows = day_coverage(store.connection, symbol, first, last + timedelta(days=1))
    return all(each.verified_at is not None for each in rows)
