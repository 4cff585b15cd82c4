"""The store at a glance: what each series holds and what waits. Cheap whatever the store's size."""

from dataclasses import dataclass
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection, one
from okx_pipeline.timeframes import parse_timeframe

_SERIES: Final[LiteralString] = """
WITH series AS (
    SELECT symbol, timeframe FROM trading.subscriptions WHERE until_ms IS NULL
    UNION
    SELECT symbol, timeframe FROM trading.candle_months
)
SELECT series.symbol, series.timeframe, held.first_ms, held.last_ms, coalesce(files.rows, 0)::bigint,
       EXISTS (
           SELECT FROM trading.landing_marks AS mark
           WHERE mark.symbol = series.symbol AND mark.timeframe = series.timeframe AND mark.projected < mark.revision
       )
FROM series
CROSS JOIN LATERAL (
    SELECT min(timestamp_ms) AS first_ms, max(timestamp_ms) AS last_ms
    FROM trading.candlesticks AS held
    WHERE held.symbol = series.symbol AND held.timeframe = series.timeframe
) AS held
LEFT JOIN LATERAL (
    SELECT sum(rows) AS rows FROM trading.candle_months AS files
    WHERE files.symbol = series.symbol AND files.timeframe = series.timeframe
) AS files ON true
"""


@dataclass(frozen=True, slots=True)
class SeriesOverview:
    """A series: open time of its first and last candle in PostgreSQL, candles in Parquet, and whether more wait."""

    symbol: str
    timeframe: str
    first_ms: int | None
    last_ms: int | None
    projected_rows: int
    waiting: bool


@dataclass(frozen=True, slots=True)
class StoreOverview:
    """The whole store: its PostgreSQL version, size in bytes, origin of its prices, and what needs a look."""

    server_version: str
    size_bytes: int
    origin: str | None
    quarantined: int
    revisions: int
    series: list[SeriesOverview]


def overview(connection: Connection) -> StoreOverview:
    """The store at a glance, by symbol and length of candle."""
    series = [SeriesOverview(*row) for row in connection.execute(_SERIES)]
    series.sort(key=lambda each: (each.symbol, parse_timeframe(each.timeframe)))
    origin = connection.execute("SELECT value FROM trading.store_facts WHERE name = 'origin'").fetchone()
    return StoreOverview(
        server_version=str(one(connection, "SHOW server_version")),
        size_bytes=int(one(connection, "SELECT pg_database_size(current_database())")),
        origin=origin[0] if origin else None,
        quarantined=int(one(connection, "SELECT count(*) FROM trading.candlesticks_quarantine")),
        revisions=int(one(connection, "SELECT count(*) FROM trading.candlestick_revisions")),
        series=series,
    )
