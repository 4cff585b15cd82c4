"""Landing history: fresh rows, and the same rows again, in durable transactions of 10,000 rows.

Ours is `landing.land`, from candles to committed rows, marks included. The peers are SQLAlchemy with psycopg 3, which
upserts into the same table, and cryptofeed's PostgreSQL backend in batches of 1,000 into a table of its own that is
not partitioned; their rows are made beforehand. The limit is COPY of text, made beforehand, into the same partitioned
table. cryptofeed has no part in the second contest: it gives a batch up at the first row that is there.
"""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptofeed.backends.postgres import CandlesPostgres
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.dialects.postgresql import insert

from benchmarks.contest import Contender, Contest, elapsed
from benchmarks.figures import Figure
from benchmarks.market import candles
from okx_pipeline.candles import VALUE_COLUMNS, Candle, Source
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.landing import ensure_months, land
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.timeframes import day_ms

ROWS = 100_000
MANY_ROWS = 500_000
MINUTES = 25_000
MONTH = date(2026, 8, 1)
BATCH = 10_000
PEER_BATCH = 1_000
ROUNDS = 3

VALUES = [column.name for column in VALUE_COLUMNS]
_COPY = (
    "COPY public.copied (symbol, timeframe, timestamp_ms, open_price, high_price, low_price, close_price, "
    "volume, volume_currency, volume_quote, source) FROM STDIN"
)
_WRITTEN = "SELECT count(*) FROM trading.candlesticks WHERE xmin::text::bigint >= %s"
_TABLES = """
CREATE TABLE public.copied (LIKE trading.candlesticks INCLUDING ALL) PARTITION BY RANGE (timestamp_ms);
CREATE TABLE public.copied_2026_08 PARTITION OF public.copied FOR VALUES FROM (1785542400000) TO (1788220800000);
CREATE TABLE public.cryptofeed (
    exchange text, symbol text, "interval" text, start timestamp, stop timestamp, timestamp text, receipt text,
    open numeric, high numeric, low numeric, close numeric, volume numeric, PRIMARY KEY (symbol, "interval", start)
)
"""


def run(rows: int = ROWS) -> list[Figure]:
    """How many times as fast as the peers and the limit, fresh and again."""
    symbols = [f"SYN{number:02d}-USDT-SWAP" for number in range(max(1, rows // MINUTES))]
    landed = list(candles(day_ms(MONTH), min(rows, MINUTES), symbols))
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(home=Path(home))
        with opened_database(settings) as database, database.connect() as connection:
            ensure_months(connection, [MONTH])
            connection.execute(_TABLES)
            with _sqlalchemy(database) as engine:
                return _measured(connection, database, engine, landed)


def _measured(connection: Connection, database: Database, engine: sa.Engine, rows: list[Candle]) -> list[Figure]:
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    lines = ["".join("\t".join(map(str, row)) + "\trest\n" for row in batch) for batch in batches]
    mappings = [[_mapping(row) for row in batch] for batch in batches]
    updates = [_update(row) for row in rows]

    def fresh(work: Contender) -> Contender:
        def once() -> float:
            connection.execute("TRUNCATE trading.candlesticks, trading.landing_marks, public.cryptofeed, public.copied")
            return work()

        return once

    def ours() -> None:
        for batch in batches:
            land(connection, batch, source=Source.REST, requested_at=datetime.now(UTC))

    def copied() -> None:
        for text in lines:
            with connection.transaction(), connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                copy.write(text)

    def upserted() -> None:
        for batch in mappings:
            with engine.begin() as begun:
                begun.execute(_UPSERT, batch)

    first = Contest(
        {
            "fresh rows: ours": fresh(lambda: elapsed(ours)),
            "SQLAlchemy": fresh(lambda: elapsed(upserted)),
            "cryptofeed": fresh(lambda: asyncio.run(_cryptofeed(database, updates))),
            "COPY": fresh(lambda: elapsed(copied)),
        },
        ROUNDS,
    )
    fresh(lambda: elapsed(ours))()
    begun_at = one(connection, "SELECT pg_current_xact_id()::text::bigint")

    def copied_anew() -> float:
        connection.execute("TRUNCATE public.copied")
        return elapsed(copied)

    again = Contest(
        {
            "same rows again: ours": lambda: elapsed(ours),
            "SQLAlchemy": lambda: elapsed(upserted),
            "COPY of fresh ones": copied_anew,
        },
        ROUNDS,
    )
    written = one(connection, _WRITTEN, (begun_at,))
    return [
        *first.times(),
        first.speed("fresh rows: ours", "SQLAlchemy", at_least=4.0),
        first.speed("fresh rows: ours", "cryptofeed", at_least=4.0),
        first.speed("fresh rows: ours", "COPY", at_least=0.7),
        *again.times(),
        again.speed("same rows again: ours", "SQLAlchemy", at_least=2.5),
        again.speed("same rows again: ours", "COPY of fresh ones", at_least=0.4),
        Figure("rows written by landing the same again", written, at_most=0),
    ]


_TABLE = sa.table(
    "candlesticks",
    *(sa.column(name) for name in ("symbol", "timeframe", "timestamp_ms", *VALUES, "source")),
    schema="trading",
)
_INSERT = insert(_TABLE)
_UPSERT = _INSERT.on_conflict_do_update(
    index_elements=["symbol", "timeframe", "timestamp_ms"],
    set_={name: _INSERT.excluded[name] for name in VALUES},
    where=sa.tuple_(*(_TABLE.c[name] for name in VALUES)).is_distinct_from(
        sa.tuple_(*(_INSERT.excluded[name] for name in VALUES))
    ),
)


def _mapping(row: Candle) -> dict[str, Any]:
    values = {name: Decimal(text) for name, text in zip(VALUES, row.values, strict=True)}
    return {
        "symbol": row.symbol,
        "timeframe": row.timeframe,
        "timestamp_ms": row.timestamp_ms,
        **values,
        "source": "rest",
    }


@contextmanager
def _sqlalchemy(database: Database) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database.url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        yield engine
    finally:
        engine.dispose()


def _update(row: Candle) -> tuple[str, str, float, float, dict[str, Any]]:
    start = row.timestamp_ms / 1000
    candle = {
        "start": start,
        "stop": start + 60,
        "interval": "1m",
        "open": row.open_price,
        "high": row.high_price,
        "low": row.low_price,
        "close": row.close_price,
        "volume": row.volume,
    }
    return "OKX", row.symbol, start, start, candle


async def _cryptofeed(database: Database, updates: Sequence[tuple[Any, ...]]) -> float:
    names = ("exchange", "symbol", "interval", "start", "stop", "timestamp", "receipt")
    columns = {name: name for name in (*names, "open", "high", "low", "close", "volume")}
    where = conninfo_to_dict(database.url)
    backend = CandlesPostgres(
        host=where.get("host"), port=where.get("port"), user=where.get("user"), db=where.get("dbname"),
        pw=where.get("password"), table="public.cryptofeed", custom_columns={**columns, "interval": '"interval"'},
    )  # fmt: skip
    # It changes what it is given.
    batches = [
        [(*update[:4], dict(update[4])) for update in updates[start : start + PEER_BATCH]]
        for start in range(0, len(updates), PEER_BATCH)
    ]
    await backend._connect()
    loop = asyncio.get_running_loop()
    started = loop.time()
    for batch in batches:
        await backend.write_batch(batch)
    seconds = loop.time() - started
    await backend.conn.close()
    return seconds
