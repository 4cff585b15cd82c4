"""Months of history, landed by the program's own backfill from an exchange that stands still: faults of what is old."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import TypeVar

from okx_pipeline.history.backfill import Backfill, Report
from okx_pipeline.history.plan import days_of_range
from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import day_of
from okx_pipeline_tests.faults.system import System

T = TypeVar("T")
MakeSystem = Callable[..., System]

MINUTES_INTO_DAY = 90
"""Where in its last day the exchange stands."""


def a_past(make_system: MakeSystem, days: int, timeframes: str = "1h,4h", **settings: object) -> System:
    """A system whose exchange stands still so many days later; everything is subscribed, nothing landed."""
    system = make_system(speed=0.0, minutes=days * 1_440 + MINUTES_INTO_DAY, timeframes=timeframes, **settings)
    with system.database.connect() as connection:
        subscribe(connection, system.settings.symbols, system.settings.timeframes, system.since_ms)
    return system


def day(system: System, number: int) -> date:
    """The day so many days after the one from which on everything is wanted."""
    return day_of(system.since_ms) + timedelta(days=number)


def with_backfill(settings: Settings, database: Database, work: Callable[[Backfill], Awaitable[T]]) -> T:
    """What `work` returns, given a backfill on connections of its own."""

    async def run() -> T:
        async with Backfill.opened(settings, database) as backfill:
            return await work(backfill)

    return asyncio.run(run())


def fill(settings: Settings, database: Database, start: date, end: date, *, refetch: bool = False) -> Report:
    """Land the days [start, end) of every series of the settings, as the command does."""

    async def work(backfill: Backfill) -> Report:
        spans = [
            days_of_range(symbol, timeframe, start, end)
            for symbol in settings.symbols
            for timeframe in settings.timeframes
        ]
        return await backfill.run(await backfill.plan(spans, only_missing=not refetch))

    return with_backfill(settings, database, work)


def filled(system: System, first: int, end: int, *, refetch: bool = False) -> Report:
    """`fill` by numbers of days, see `day`."""
    return fill(system.settings, system.database, day(system, first), day(system, end), refetch=refetch)
