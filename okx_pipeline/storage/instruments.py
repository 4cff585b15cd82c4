"""Instruments in PostgreSQL: versions of their rules as OKX listed them, never deleted, and what is held of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, LiteralString

from psycopg import sql

from okx_pipeline.exchange.messages import Instrument
from okx_pipeline.storage.database import Connection, one
from okx_pipeline.timeframes import Timeframe, parse_timeframe

_RULES: Final = (
    "instrument_type",
    "family",
    "base_currency",
    "quote_currency",
    "settle_currency",
    "contract_type",
    "contract_value",
    "contract_multiplier",
    "contract_currency",
    "tick_size",
    "lot_size",
    "minimum_size",
    "listed_ms",
    "expires_ms",
    "state",
)
_COLUMNS: Final = sql.SQL(", ").join(map(sql.Identifier, ("symbol", *_RULES)))
_STAGED: Final = sql.SQL(", ").join(sql.Identifier("listed", name) for name in _RULES)
_KNOWN: Final = sql.SQL(", ").join(sql.Identifier("known", name) for name in _RULES)
_COPY: Final = sql.SQL("COPY pg_temp.listing ({}) FROM STDIN").format(_COLUMNS)
# Versions bear the statement's time, which comes after the wait for another listing; the transaction's may come before.
_ADD: Final = sql.SQL(
    """
INSERT INTO trading.instruments (valid_from, {columns})
SELECT statement_timestamp(), {listed_columns}
FROM (SELECT {columns} FROM pg_temp.listing) AS listed
LEFT JOIN trading.current_instruments AS known USING (symbol)
WHERE ({known}) IS DISTINCT FROM ({listed})
"""
).format(
    columns=_COLUMNS,
    listed_columns=sql.SQL("listed.symbol, {}").format(_STAGED),
    known=_KNOWN,
    listed=_STAGED,
)
_DELIST: Final = sql.SQL(
    """
INSERT INTO trading.instruments (valid_from, {columns})
SELECT statement_timestamp(), {known_columns}, 'delisted'
FROM trading.current_instruments AS known
WHERE known.state <> 'delisted' AND NOT EXISTS (SELECT FROM pg_temp.listing WHERE listing.symbol = known.symbol)
"""
).format(
    columns=_COLUMNS,
    known_columns=sql.SQL(", ").join(sql.Identifier("known", name) for name in ("symbol", *_RULES[:-1])),
)

# The version in force is the latest.
_LIVES: Final[LiteralString] = """
SELECT symbol, min(listed_ms), (array_agg(expires_ms ORDER BY valid_from DESC))[1],
       (array_agg(state ORDER BY valid_from DESC))[1]
FROM trading.instruments WHERE true
"""

# The first and last candle of 5,000 series in 80 partitions take a quarter of a second. An archived month has its rows
# in files alone, and the ledger knows their days.
_SYMBOLS: Final[LiteralString] = """
WITH series AS (
    SELECT symbol, timeframe FROM trading.subscriptions WHERE until_ms IS NULL
    UNION SELECT symbol, timeframe FROM trading.wanted_ranges
    UNION SELECT symbol, timeframe FROM trading.candle_months
), archived AS (
    SELECT symbol, timeframe, min(month) AS first_month, max(month) AS last_month
    FROM trading.candle_months WHERE state = 'archived' GROUP BY symbol, timeframe
), held AS (
    SELECT series.symbol, series.timeframe,
           least(live.first_ms, trading.ms(days.first_day::timestamp AT TIME ZONE 'UTC')) AS first_ms,
           greatest(live.last_ms, trading.ms(days.last_day::timestamp AT TIME ZONE 'UTC')) AS last_ms
    FROM series
    CROSS JOIN LATERAL (
        SELECT min(timestamp_ms) AS first_ms, max(timestamp_ms) AS last_ms
        FROM trading.candlesticks AS candle
        WHERE candle.symbol = series.symbol AND candle.timeframe = series.timeframe
    ) AS live
    LEFT JOIN archived ON archived.symbol = series.symbol AND archived.timeframe = series.timeframe
    LEFT JOIN LATERAL (
        SELECT min(day) AS first_day, max(day) AS last_day FROM trading.coverage AS counted
        WHERE counted.symbol = archived.symbol AND counted.timeframe = archived.timeframe AND present > 0
          AND day >= archived.first_month AND day < archived.last_month + interval '1 month'
    ) AS days ON true
), by_symbol AS (
    SELECT held.symbol, array_agg(held.timeframe) FILTER (WHERE wanted.symbol IS NOT NULL) AS subscribed,
           array_agg(held.timeframe) FILTER (WHERE first_ms IS NOT NULL) AS held,
           min(first_ms) AS first_ms, max(last_ms) AS last_ms
    FROM held
    LEFT JOIN trading.subscriptions AS wanted
        ON wanted.symbol = held.symbol AND wanted.timeframe = held.timeframe AND wanted.until_ms IS NULL
    GROUP BY held.symbol
)
SELECT symbol, listed.instrument_type, listed.state, listed.listed_ms, listed.expires_ms,
       coalesce(subscribed, '{}'), coalesce(held, '{}'), first_ms, last_ms
FROM trading.current_instruments AS listed FULL JOIN by_symbol USING (symbol)
"""


@dataclass(frozen=True, slots=True)
class ListedSymbol:
    """A symbol that OKX lists or listed, or of which something is subscribed or held.

    Parameters
    ----------
    type, state
        As OKX says, `state` also ``delisted``; None for a symbol that no recorded listing names.
    listed_ms, expires_ms
        When it trades, where known.
    subscribed, held
        Timeframes that are subscribed, and those of which candles are held, by length.
    first_ms, last_ms
        Open times of the first and last candle held, of all its series; of one in an archived month, the day it opens.
    """

    symbol: str
    type: str | None
    state: str | None
    listed_ms: int | None
    expires_ms: int | None
    subscribed: Sequence[Timeframe]
    held: Sequence[Timeframe]
    first_ms: int | None
    last_ms: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a listing changed: instruments it names, versions added for new or changed ones, and instruments gone."""

    listed: int
    added: int
    delisted: int


@dataclass(frozen=True, slots=True)
class Life:
    """When an instrument trades: from `listed_ms` until `expires_ms`, where known; `state` as OKX says, or delisted."""

    listed_ms: int | None
    expires_ms: int | None
    state: str


def record_listing(connection: Connection, listing: Iterable[Instrument]) -> Snapshot:
    """Add a version for every instrument that is new or whose rules changed, and one for each that OKX lists no more.

    Parameters
    ----------
    listing
        Everything OKX lists, of all the kinds that are collected: what is missing here counts as delisted.
    """
    rows = [_row(instrument) for instrument in {each.symbol: each for each in listing}.values()]
    with connection.transaction():
        connection.execute("CREATE TEMPORARY TABLE listing (LIKE trading.instruments) ON COMMIT DROP")
        connection.execute("ALTER TABLE pg_temp.listing ALTER valid_from DROP NOT NULL")
        with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
            for row in rows:
                copy.write_row(row)
        # One listing at a time, or two could each add the same version.
        connection.execute("LOCK TABLE trading.instruments IN SHARE ROW EXCLUSIVE MODE")
        added = connection.execute(_ADD).rowcount
        delisted = connection.execute(_DELIST).rowcount
    return Snapshot(len(rows), added, delisted)


def symbols(connection: Connection) -> list[ListedSymbol]:
    """Every symbol of the latest listing recorded, of earlier ones, and of what is subscribed or held, by name."""
    found = [
        ListedSymbol(symbol, kind, state, listed_ms, expires_ms, _by_length(subscribed), _by_length(held), *ends)
        for symbol, kind, state, listed_ms, expires_ms, subscribed, held, *ends in connection.execute(_SYMBOLS)
    ]
    return sorted(found, key=attrgetter("symbol"))


def is_listing_recorded(connection: Connection) -> bool:
    """Whether a listing was ever recorded."""
    return bool(one(connection, "SELECT EXISTS (SELECT FROM trading.instruments)"))


def life_of(connection: Connection, symbol: str) -> Life | None:
    """When `symbol` trades or traded; None for one never listed. See `lives`."""
    found = connection.execute(f"{_LIVES} AND symbol = %s GROUP BY symbol", (symbol,)).fetchone()
    return Life(*found[1:]) if found else None


def lives(connection: Connection) -> dict[str, Life]:
    """When each symbol that was ever listed trades or traded.

    From the first listing of any version on: a symbol that is listed again under its old name keeps its first life, and
    the time in between is what OKX is proven not to serve.
    """
    found = connection.execute(f"{_LIVES} GROUP BY symbol")
    return {symbol: Life(listed_ms, expires_ms, state) for symbol, listed_ms, expires_ms, state in found}


def _by_length(names: Iterable[str]) -> list[Timeframe]:
    return sorted(map(parse_timeframe, names))


def _row(instrument: Instrument) -> tuple[Any, ...]:
    return (
        instrument.symbol,
        instrument.instrument_type,
        instrument.family or None,
        instrument.base_currency or None,
        instrument.quote_currency or None,
        instrument.settle_currency or None,
        instrument.contract_type or None,
        instrument.contract_value or None,
        instrument.contract_multiplier or None,
        instrument.contract_currency or None,
        instrument.tick_size or None,
        instrument.lot_size or None,
        instrument.minimum_size or None,
        int(instrument.listed) if instrument.listed else None,
        int(instrument.expires) if instrument.expires else None,
        instrument.state,
    )
