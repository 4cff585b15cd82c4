"""Whole days of symbols, in every timeframe that is wanted of them: what a materialization of candles lands."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from okx_pipeline.history.backfill import Backfill, Report
from okx_pipeline.history.plan import days_and_their_closes, why_empty, without_days
from okx_pipeline.history.summary import DaySummary, summarize
from okx_pipeline.ranges import Range
from okx_pipeline.storage.coverage import day_coverage
from okx_pipeline.storage.database import Connection, translated
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.subscriptions import subscriptions
from okx_pipeline.storage.wanted import Wants, wants
from okx_pipeline.timeframes import Timeframe, parse_timeframe

DaysOf = Mapping[Timeframe, Sequence[date]]
"""The days of each timeframe, ascending."""


@dataclass(frozen=True, slots=True)
class DaysLanded:
    """What was done, every (day, symbol) as it is now, and which days of each symbol were read in which timeframes."""

    report: Report
    summaries: dict[tuple[date, str], DaySummary]
    timeframes: dict[str, DaysOf]


async def land_days(
    backfill: Backfill, wanted: Mapping[str, Sequence[date]], *, only_unread: bool = False
) -> DaysLanded:
    """Read the days of `wanted` (by symbol) from OKX anew, held or not, so that every candle is confirmed by REST.

    Weeks and months are read on the day they close. Which timeframes are read of a day says `want_days`.

    Parameters
    ----------
    only_unread
        Leave out what REST was read for already, as the ledger says.

    Raises
    ------
    PipelineError
        See `Backfill.plan` and `Backfill.run`.
    """
    by_timeframe = await want_days(backfill, wanted)
    spans = [
        span
        for symbol, of_symbol in by_timeframe.items()
        for timeframe, days in of_symbol.items()
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
            timeframes = timeframes_on(by_timeframe[symbol], day)
            summaries[day, symbol] = summarize(
                backfill.store, report, symbol, day, timeframes, life=life, now_ms=plan.now_ms
            )
    return DaysLanded(report, summaries, by_timeframe)


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


async def want_days(backfill: Backfill, days: Mapping[str, Sequence[date]]) -> dict[str, DaysOf]:
    """Which of `days` (by symbol) are to be read in which timeframes; what nobody wants of them is wanted from now on.

    A day is read in the timeframes that are wanted on it. One that nobody wants is read in those that it is held in,
    else in those that are subscribed of the symbol, else in those of the settings.

    Raises
    ------
    UnknownSymbolError
        If a symbol was never listed.
    """
    for symbol in days:
        await backfill.life_of(symbol)
    with translated(backfill.store.place):
        found, unwanted = await asyncio.to_thread(_timeframes_of_days, backfill, days)
    spans = [
        span
        for symbol, of_symbol in unwanted.items()
        for timeframe, its_days in of_symbol.items()
        for span in days_and_their_closes(symbol, timeframe, its_days)
    ]
    # Days on which there was no instrument stay unwanted: the ledger could expect nothing of them.
    now_ms = await backfill.clock.now_ms()
    lives = {symbol: await backfill.life_of(symbol) for symbol in unwanted}
    await backfill.want((span for span in spans if why_empty(span, lives[span.symbol], now_ms) is None), "backfill")
    return found


def symbols_wanted_on(connection: Connection, day: date) -> set[str]:
    """The symbols of which something that opens on `day` is wanted, or a longer candle that closes on it."""
    found = wants(connection).items()
    return {symbol for (symbol, name), each in found if _is_wanted(parse_timeframe(name), each, day)}


def timeframes_on(by_timeframe: DaysOf, day: date) -> list[Timeframe]:
    """The timeframes that are read of `day`, shortest first."""
    return sorted(timeframe for timeframe, days in by_timeframe.items() if day in days)


def _timeframes_of_days(
    backfill: Backfill, days: Mapping[str, Sequence[date]]
) -> tuple[dict[str, DaysOf], dict[str, DaysOf]]:
    """The days of each symbol and timeframe, and those of them that nobody wants."""
    connection = backfill.store.connection
    wanted: defaultdict[str, dict[Timeframe, Wants]] = defaultdict(dict)
    for (symbol, name), each in wants(connection).items():
        wanted[symbol][parse_timeframe(name)] = each
    subscribed = subscriptions(connection)
    found: dict[str, DaysOf] = {}
    unwanted: dict[str, DaysOf] = {}
    for symbol, its_days in days.items():
        default = [each.timeframe for each in subscribed if each.symbol == symbol] or [*backfill.settings.timeframes]
        held = _held(connection, symbol, its_days)
        of_symbol: defaultdict[Timeframe, list[date]] = defaultdict(list)
        beyond: defaultdict[Timeframe, list[date]] = defaultdict(list)
        for day in its_days:
            on_day = [timeframe for timeframe, each in wanted[symbol].items() if _is_wanted(timeframe, each, day)]
            for timeframe in on_day or held.get(day, default):
                of_symbol[timeframe].append(day)
                if not on_day:
                    beyond[timeframe].append(day)
        found[symbol], unwanted[symbol] = of_symbol, beyond
    return found, unwanted


def _is_wanted(timeframe: Timeframe, wanted: Wants, day: date) -> bool:
    """Whether anything of the day is wanted, or the longer candle that closes on it."""
    spans = days_and_their_closes("", timeframe, [day])
    return any(wanted.within(Range(span.start_ms, span.end_ms)) for span in spans)


def _held(connection: Connection, symbol: str, days: Sequence[date]) -> dict[date, list[Timeframe]]:
    held: defaultdict[date, list[Timeframe]] = defaultdict(list)
    for row in day_coverage(connection, symbol, min(days), max(days) + timedelta(days=1)):
        if row.present:
            held[row.day].append(parse_timeframe(row.timeframe))
    return held
