"""Timeframes held against each other: a candle has to be what the shorter ones of its time add up to.

Which are held against which, and the whole check of a symbol. How they are compared and what is written down of it
stands in `storage.consistency`; reading both anew over REST where they differ is the caller's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from okx_pipeline.storage.consistency import Mismatch, compare_and_record
from okx_pipeline.storage.database import Connection
from okx_pipeline.timeframes import DAY_MS, Timeframe


@dataclass(frozen=True, slots=True)
class ConsistencyReport:
    """What a check found.

    Parameters
    ----------
    windows
        Candles that were held against shorter ones, over all pairs; those of which one was not there do not count.
    mismatches
        Where they differ: by pair as in `pairs`, then by open time.
    """

    windows: int
    mismatches: list[Mismatch]


def pairs(timeframes: Iterable[Timeframe]) -> list[tuple[Timeframe, Timeframe]]:
    """Each of `timeframes` with the longest shorter one that divides it, where there is one; shortest first.

    Weeks and months are made of whole days only, so what divides the day divides them.
    """
    ascending = sorted(set(timeframes))
    found = []
    for long in ascending:
        dividing = [short for short in ascending if short < long and not min(long.length_ms, DAY_MS) % short.length_ms]
        if dividing:
            found.append((long, dividing[-1]))
    return found


def check(
    connection: Connection,
    symbol: str,
    timeframes: Iterable[Timeframe],
    start_ms: int,
    end_ms: int,
    *,
    confirmed_by_rest: bool,
) -> ConsistencyReport:
    """Hold the candles of `symbol` that open in [start_ms, end_ms) against shorter ones, and write down the outcome.

    In one transaction. A mismatch is open until REST has confirmed it, then the exchange's own for as long as both
    values stay; it is resolved once they agree. Running it again changes nothing.

    Parameters
    ----------
    connection
        An autocommit connection.
    timeframes
        Those to hold against each other, see `pairs`.
    confirmed_by_rest
        Whether every candle of `timeframes` in the range, up to the close of the last that opens in it, has just been
        read over REST and landed.

    Raises
    ------
    psycopg.Error
        If the database fails; nothing was written down.
    """
    with connection.transaction():
        compared = [
            compare_and_record(connection, symbol, long, short, start_ms, end_ms, confirmed_by_rest=confirmed_by_rest)
            for long, short in pairs(timeframes)
        ]
    return ConsistencyReport(
        sum(each.windows for each in compared), [mismatch for each in compared for mismatch in each.mismatches]
    )
