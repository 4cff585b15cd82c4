"""Subscriptions in PostgreSQL: which series are wanted, and since when."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, LiteralString

from okx_pipeline.ranges import Range, difference, union
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.gaps import lock_ledger
from okx_pipeline.storage.wanted import FOR_EVER_MS, note_dropped, want
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, parse_timeframe

# What the ledger has not counted yet, or not as due yet, is held where there are rows.
_READ_OR_HELD: Final[LiteralString] = """
WITH ended AS (SELECT * FROM unnest(%s::text[], %s::text[]) AS ended (symbol, timeframe)), uncounted AS (
    SELECT symbol, timeframe, day FROM trading.coverage JOIN ended USING (symbol, timeframe) WHERE content_hash IS NULL
    UNION
    SELECT symbol, timeframe, day FROM trading.landing_marks JOIN ended USING (symbol, timeframe)
    WHERE counted < revision
    UNION
    SELECT symbol, timeframe, day FROM trading.unmarked_days JOIN ended USING (symbol, timeframe)
)
SELECT symbol, timeframe, day FROM trading.coverage JOIN ended USING (symbol, timeframe)
WHERE read_at IS NOT NULL OR present > 0
UNION
SELECT symbol, timeframe, day FROM uncounted WHERE EXISTS (
    SELECT FROM trading.candlesticks AS held
    WHERE held.symbol = uncounted.symbol AND held.timeframe = uncounted.timeframe
      AND held.timestamp_ms >= (uncounted.day - date '1970-01-01') * 86400000::bigint
      AND held.timestamp_ms < (uncounted.day - date '1970-01-01' + 1) * 86400000::bigint
)
"""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A series that is wanted: candles opening in [since_ms, until_ms), without an end where `until_ms` is None."""

    symbol: str
    timeframe: Timeframe
    since_ms: int
    until_ms: int | None


def seed_subscriptions(
    connection: Connection, symbols: Iterable[str], timeframes: Iterable[Timeframe], since_ms: int
) -> int:
    """Subscribe every symbol in every timeframe if nothing ever was; returns how many series that made."""
    series = [(symbol, timeframe.name) for symbol in symbols for timeframe in timeframes]
    return connection.execute(
        "INSERT INTO trading.subscriptions (symbol, timeframe, since_ms) "
        "SELECT symbol, timeframe, %s FROM unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe) "
        "WHERE NOT EXISTS (SELECT FROM trading.subscriptions) ON CONFLICT DO NOTHING",
        (since_ms, [symbol for symbol, _ in series], [timeframe for _, timeframe in series]),
    ).rowcount


def subscriptions(connection: Connection) -> list[Subscription]:
    """Everything wanted now, by symbol and length of candle."""
    found = connection.execute(
        "SELECT symbol, timeframe, since_ms, until_ms FROM trading.subscriptions WHERE until_ms IS NULL"
    ).fetchall()
    wanted = [Subscription(symbol, parse_timeframe(name), since, until) for symbol, name, since, until in found]
    return sorted(wanted, key=lambda each: (each.symbol, each.timeframe))


def subscribe(
    connection: Connection,
    symbols: Iterable[str],
    timeframes: Iterable[Timeframe],
    since_ms: int,
    *,
    named: bool = True,
) -> list[Subscription]:
    """Want every symbol in every timeframe from now on, and back to `since_ms`.

    Parameters
    ----------
    named
        Whether somebody has named `since_ms`. Then a series that is not wanted any more begins there, and one that is
        wanted only if that is earlier. Else it is for new series, and what once was wanted keeps its beginning.
    """
    series = [(symbol, timeframe.name) for symbol in symbols for timeframe in timeframes]
    found = connection.execute(
        "INSERT INTO trading.subscriptions AS known (symbol, timeframe, since_ms) "
        "SELECT symbol, timeframe, %s FROM unnest(%s::text[], %s::text[]) AS wanted (symbol, timeframe) "
        "ON CONFLICT (symbol, timeframe) DO UPDATE "
        "SET since_ms = CASE WHEN NOT %s THEN known.since_ms WHEN known.until_ms IS NOT NULL THEN excluded.since_ms "
        "ELSE least(known.since_ms, excluded.since_ms) END, until_ms = NULL "
        "RETURNING symbol, timeframe, since_ms, until_ms",
        (since_ms, [symbol for symbol, _ in series], [timeframe for _, timeframe in series], named),
    ).fetchall()
    return [Subscription(symbol, parse_timeframe(name), since, until) for symbol, name, since, until in found]


def unsubscribe(
    connection: Connection, symbols: Iterable[str], timeframes: Iterable[Timeframe], until_ms: int
) -> list[Subscription]:
    """Want the symbols no more from `until_ms` on, in these timeframes or, with none, in any.

    Rows stay. The days that were read from REST or hold candles become a wanted range; those of history that nobody has
    read yet are not fetched any more.
    """
    with connection.transaction():
        lock_ledger(connection)
        found = connection.execute(
            "UPDATE trading.subscriptions SET until_ms = %s "
            "WHERE symbol = ANY(%s) AND (timeframe = ANY(%s) OR cardinality(%s::text[]) = 0) AND until_ms IS NULL "
            "RETURNING symbol, timeframe, since_ms, until_ms",
            (until_ms, list(symbols), names := [timeframe.name for timeframe in timeframes], names),
        ).fetchall()
        ended = [Subscription(symbol, parse_timeframe(name), since, until) for symbol, name, since, until in found]
        keys = {(each.symbol, each.timeframe.name): each for each in ended}
        kept: defaultdict[tuple[str, str], list[Range]] = defaultdict(list)
        series = [symbol for symbol, _ in keys], [timeframe for _, timeframe in keys]
        for symbol, timeframe, day in connection.execute(_READ_OR_HELD, series):
            each = keys[symbol, timeframe]
            start_ms = day_ms(day)
            # A week or month stands in the day it opens on, and is one range with the next.
            end_ms = max(start_ms + DAY_MS, each.timeframe.close_of(each.timeframe.open_at(start_ms)))
            piece = Range(max(start_ms, each.since_ms), min(end_ms, until_ms))
            kept[symbol, timeframe] += [piece] if piece.start_ms < piece.end_ms else []
        want(connection, kept, "subscription")
        whole = {key: [Range(each.since_ms, FOR_EVER_MS)] for key, each in keys.items()}
        note_dropped(connection, {key: difference(ranges, union(kept[key])) for key, ranges in whole.items()})
    return ended
