"""How big everything is in PostgreSQL and beside it, noted once a day, so that growth can be told."""

from dataclasses import dataclass
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection

_MEASURE: Final[LiteralString] = """
SELECT (SELECT coalesce(sum(rows), 0)::bigint FROM trading.candle_months),
       (SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint
        FROM pg_inherits WHERE inhparent = 'trading.candlesticks'::regclass),
       (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint
        FROM pg_class WHERE relnamespace = to_regnamespace('dagster') AND relkind = 'r'),
       pg_database_size(current_database())
"""

_NOTE: Final[LiteralString] = """
INSERT INTO trading.store_sizes (
    day, candles, candles_bytes, dagster_bytes, database_bytes, parquet_bytes, data_docs_bytes, logs_bytes)
VALUES ((clock_timestamp() AT TIME ZONE 'UTC')::date, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (day) DO UPDATE SET candles = excluded.candles, candles_bytes = excluded.candles_bytes,
    dagster_bytes = excluded.dagster_bytes, database_bytes = excluded.database_bytes,
    parquet_bytes = excluded.parquet_bytes, data_docs_bytes = excluded.data_docs_bytes, logs_bytes = excluded.logs_bytes
"""

# Against the oldest note of the last thirty days.
_EARLIER: Final[LiteralString] = """
SELECT candles, candles_bytes, dagster_bytes, database_bytes, parquet_bytes, data_docs_bytes, logs_bytes,
       (clock_timestamp() AT TIME ZONE 'UTC')::date - day
FROM trading.store_sizes
WHERE day >= (clock_timestamp() AT TIME ZONE 'UTC')::date - 30 AND day < (clock_timestamp() AT TIME ZONE 'UTC')::date
ORDER BY day LIMIT 1
"""

_GROWTH: Final[LiteralString] = """
SELECT ((last.database_bytes - first.database_bytes) / (last.day - first.day))::bigint
FROM (SELECT day, database_bytes FROM trading.store_sizes ORDER BY day DESC LIMIT 1) AS last
CROSS JOIN LATERAL (
    SELECT day, database_bytes FROM trading.store_sizes
    WHERE day >= last.day - 30 AND day < last.day ORDER BY day LIMIT 1
) AS first
"""

_FORGET: Final[LiteralString] = """
DELETE FROM trading.store_sizes WHERE day < (clock_timestamp() AT TIME ZONE 'UTC')::date - %s
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How big everything is, in bytes; see the table `store_sizes`."""

    candles: int
    candles_bytes: int
    dagster_bytes: int
    database_bytes: int
    parquet_bytes: int | None
    data_docs_bytes: int
    logs_bytes: int


def measure(connection: Connection, *, parquet_bytes: int | None, data_docs_bytes: int, logs_bytes: int) -> Sizes:
    """The sizes now; what lies in files is given."""
    found = connection.execute(_MEASURE).fetchone()
    assert found is not None
    candles, in_tables, in_dagster, in_database = found
    return Sizes(candles, in_tables, in_dagster, in_database, parquet_bytes, data_docs_bytes, logs_bytes)


def note_sizes(connection: Connection, sizes: Sizes, keep_days: int) -> None:
    """Note the sizes as those of today, and forget those of days too long ago."""
    parts = (sizes.candles, sizes.candles_bytes, sizes.dagster_bytes, sizes.database_bytes, sizes.parquet_bytes)
    connection.execute(_NOTE, (*parts, sizes.data_docs_bytes, sizes.logs_bytes))
    connection.execute(_FORGET, (keep_days,))


def growth_a_day(connection: Connection, sizes: Sizes) -> Sizes | None:
    """What was added to each a day over the last thirty days, or as many as are noted; None if today is the first."""
    found = connection.execute(_EARLIER).fetchone()
    if found is None:
        return None
    *earlier, days = found
    now = (sizes.candles, sizes.candles_bytes, sizes.dagster_bytes, sizes.database_bytes)
    candles, in_tables, in_dagster, in_database = ((a - b) // days for a, b in zip(now, earlier[:4], strict=True))
    in_parquet = None
    if sizes.parquet_bytes is not None and earlier[4] is not None:
        in_parquet = (sizes.parquet_bytes - earlier[4]) // days
    docs, logs = (sizes.data_docs_bytes - earlier[5]) // days, (sizes.logs_bytes - earlier[6]) // days
    return Sizes(candles, in_tables, in_dagster, in_database, in_parquet, docs, logs)


def noted_growth_a_day(connection: Connection) -> int | None:
    """Bytes that were added to the database a day, between the notes of the last thirty days; None if there is one."""
    found = connection.execute(_GROWTH).fetchone()
    return None if found is None else int(found[0])
