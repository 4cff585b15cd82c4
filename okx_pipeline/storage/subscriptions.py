"""Subscriptions in PostgreSQL: which series are wanted, and since when."""

from collections.abc import Iterable
from dataclasses import dataclass

from okx_pipeline.storage.database import Connection
from okx_pipeline.timeframes import Timeframe, parse_timeframe


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


def every_subscription(connection: Connection) -> list[Subscription]:
    """Everything that is or once was wanted, in no order."""
    found = connection.execute("SELECT symbol, timeframe, since_ms, until_ms FROM trading.subscriptions")
    return [Subscription(symbol, parse_timeframe(name), since, until) for symbol, name, since, until in found]


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
    """Want the symbols no more from `until_ms` on, in these timeframes or, with none, in any. What is held stays."""
    found = connection.execute(
        "UPDATE trading.subscriptions SET until_ms = %s "
        "WHERE symbol = ANY(%s) AND (timeframe = ANY(%s) OR cardinality(%s::text[]) = 0) AND until_ms IS NULL "
        "RETURNING symbol, timeframe, since_ms, until_ms",
        (until_ms, list(symbols), names := [timeframe.name for timeframe in timeframes], names),
    ).fetchall()
    return [Subscription(symbol, parse_timeframe(name), since, until) for symbol, name, since, until in found]
