"""What work the ledger says is left: history to read, gaps to repair, days to read once more, days to check.

Decided from the ledger alone: a run that was killed, cancelled or forgotten left its days unfinished, and they are
found again. What OKX was asked for and did not serve is not asked for again before it is time to, so every run makes
progress.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import Final

from okx_pipeline.ranges import Range, candles_in, intersection
from okx_pipeline.storage.coverage import Unfinished, days_in, days_to_reconcile, unfinished_days, unjudged_days
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.gaps import Gap, gaps_to_ask
from okx_pipeline.storage.instruments import lives
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.partitions import detached_months
from okx_pipeline.timeframes import DAY_MS, GRACE_MS, HOUR_MS, day_ms, day_of, month_of, parse_timeframe

DAILY_RUN_MS: Final = HOUR_MS
"""How long after its end a whole day is left to the schedule that reads it again."""


class Kind(StrEnum):
    """What is to be done."""

    HISTORY = "history"
    REPAIR = "repair"
    RECONCILIATION = "reconciliation"
    VERDICT = "verdict"


@dataclass(frozen=True, slots=True)
class Work:
    """Days in a row of a symbol that need a run of one kind; a week or month is a matter of the day it closes on."""

    kind: Kind
    symbol: str
    first: date
    last: date


def work_left(
    connection: Connection,
    symbols: Sequence[str],
    now_ms: int,
    most_days: int,
    *,
    first: date = date.min,
    today: date = date.max,
    every: Sequence[str] = (),
) -> list[Work]:
    """The newest work of each kind that `symbols` need, at most `most_days` in a row each.

    Days that nobody wants are checked and never fetched. Nothing is fetched either for a month whose partition is
    detached: nothing can land in it.

    Parameters
    ----------
    now_ms
        The exchange's time.
    first, today
        Days for which there can be runs: from `first` on, and before `today`; gaps may be repaired today, too.
    every
        Every symbol that there can be runs for. Days that were repaired after their last verdict, an error, are checked
        first, whichever symbol they are of.
    """
    life_of = lives(connection)
    delisted = {symbol for symbol in symbols if symbol in life_of and life_of[symbol].state == "delisted"}
    detached = {each.month for each in detached_months(connection)}
    asking = [gap for gap in gaps_to_ask(connection, symbols) if month_of(gap.range.start_ms) not in detached]
    days: defaultdict[tuple[Kind, str], set[date]] = defaultdict(set)
    for each in unfinished_days(connection, symbols):
        if each.key.day.replace(day=1) in detached:
            continue
        kind = _kind(each, asking, now_ms, knows_okx=each.key.symbol not in delisted)
        if kind is not None:
            days[kind, each.key.symbol].add(_run_day(each.key))
    for gap in asking:
        if gap.ask_again_ms is not None and gap.ask_again_ms <= now_ms:
            keys = (SeriesDay(gap.symbol, gap.timeframe.name, day) for day in days_in(gap.timeframe, gap.range))
            days[Kind.REPAIR, gap.symbol].update(map(_run_day, keys))
    for key in days_to_reconcile(connection, sorted(set(symbols) - delisted), now_ms):
        if key.day.replace(day=1) not in detached:
            days[Kind.RECONCILIATION, key.symbol].add(_run_day(key))
    # What a repair touched comes first, whoever's turn it is: its standing verdict is an error that may be over.
    for key in unjudged_days(connection, every or symbols, failing=True) or unjudged_days(connection, symbols):
        # Candles are checked on the day they open.
        days[Kind.VERDICT, key.symbol].add(key.day)
    work = []
    for (kind, symbol), found in sorted(days.items()):
        possible = {day for day in found if first <= day and (day < today or (day == today and kind is Kind.REPAIR))}
        if possible:
            work.append(Work(kind, symbol, *newest_run(possible, most_days)))
    return work


def newest_run(days: Iterable[date], most: int) -> tuple[date, date]:
    """First and last of the newest days in a row, at most `most` of them."""
    newest_first = sorted(set(days), reverse=True)
    first = newest_first[0]
    for day in newest_first[1:most]:
        if day != first - timedelta(days=1):
            break
        first = day
    return first, newest_first[0]


def _kind(each: Unfinished, asking: Sequence[Gap], now_ms: int, *, knows_okx: bool) -> Kind | None:
    timeframe = parse_timeframe(each.key.timeframe)
    start_ms = day_ms(each.key.day)
    if each.closed and not each.read and knows_okx:
        settled_ms = timeframe.close_of(start_ms) if timeframe.length_ms > DAY_MS else start_ms + DAY_MS
        return Kind.HISTORY if each.missing or now_ms >= settled_ms + DAILY_RUN_MS else None
    if not each.missing:
        return None
    # The sidecar is still at it while it has not come to where the clock is.
    if not each.closed and each.streamed_ms < timeframe.closed_before(now_ms, grace_ms=GRACE_MS):
        return None
    day = Range(start_ms, start_ms + DAY_MS)
    waiting = sum(
        candles_in(timeframe, intersection([gap.range], [day]))
        for gap in asking
        if (gap.symbol, gap.timeframe.name) == each.key[:2] and gap.status == "open"
        if gap.ask_again_ms is not None and gap.ask_again_ms > now_ms
    )
    return Kind.REPAIR if each.missing > waiting else None


def _run_day(key: SeriesDay) -> date:
    """The day whose run deals with a series-day: the one on which its last candle closes."""
    timeframe = parse_timeframe(key.timeframe)
    if timeframe.length_ms <= DAY_MS:
        return key.day
    return day_of(timeframe.close_of(day_ms(key.day)) - 1)
