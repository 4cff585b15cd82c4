"""Instruments in PostgreSQL: versions of their rules as OKX listed them, never deleted, and when each was listed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from psycopg import sql

from okx_pipeline.exchange.messages import Instrument
from okx_pipeline.storage.database import Connection

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


def life_of(connection: Connection, symbol: str) -> Life | None:
    """When `symbol` trades, by the latest version of it; None for one never listed."""
    found = connection.execute(
        "SELECT listed_ms, expires_ms, state FROM trading.current_instruments WHERE symbol = %s", (symbol,)
    ).fetchone()
    return Life(*found) if found else None


def lives(connection: Connection) -> dict[str, Life]:
    """When each symbol that was ever listed trades, by the latest version of it."""
    found = connection.execute("SELECT symbol, listed_ms, expires_ms, state FROM trading.current_instruments")
    return {symbol: Life(listed_ms, expires_ms, state) for symbol, listed_ms, expires_ms, state in found}


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
