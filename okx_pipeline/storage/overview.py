"""The store at a glance: what each series holds, lacks and waits for. Cheap whatever the store's size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection, one
from okx_pipeline.storage.findings import Findings, findings
from okx_pipeline.storage.quality_results import QualitySummary, summary
from okx_pipeline.storage.sizes import noted_growth_a_day
from okx_pipeline.timeframes import DAY_MS, parse_timeframe, utc

_SERIES: Final[LiteralString] = """
WITH series AS (
    SELECT symbol, timeframe FROM trading.subscriptions WHERE until_ms IS NULL
    UNION
    SELECT symbol, timeframe FROM trading.wanted_ranges
    UNION
    SELECT symbol, timeframe FROM trading.candle_months
)
SELECT series.symbol, series.timeframe, held.first_ms, held.last_ms, coalesce(files.rows, 0)::bigint,
       EXISTS (
           SELECT FROM trading.landing_marks AS mark
           WHERE mark.symbol = series.symbol AND mark.timeframe = series.timeframe AND mark.projected < mark.revision
       ) OR EXISTS (
           SELECT FROM trading.unmarked_days AS landed
           WHERE landed.symbol = series.symbol AND landed.timeframe = series.timeframe
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

# When a day was read is the exchange's time, when its numbers changed the database's. What is missing is overdue where
# neither is of the last day: until then whoever mends may still be at it.
_LEDGER: Final[LiteralString] = """
SELECT symbol, timeframe, sum(expected)::bigint, sum(present)::bigint, sum(absent)::bigint, sum(quarantined)::bigint,
       sum(missing)::bigint,
       coalesce(sum(missing) FILTER (WHERE read_at IS NULL), 0)::bigint,
       coalesce(sum(missing) FILTER (
           WHERE read_at < coalesce(%s::timestamptz, 'infinity') AND counted_at < clock_timestamp() - interval '1 day'
       ), 0)::bigint
FROM trading.coverage
GROUP BY symbol, timeframe
"""

_UNKNOWN: Final[LiteralString] = """
SELECT symbol FROM unnest(%s::text[]) WITH ORDINALITY AS named (symbol, number)
WHERE NOT EXISTS (SELECT FROM trading.subscriptions AS known WHERE known.symbol = named.symbol)
  AND NOT EXISTS (SELECT FROM trading.wanted_ranges AS known WHERE known.symbol = named.symbol)
  AND NOT EXISTS (SELECT FROM trading.coverage AS known WHERE known.symbol = named.symbol)
  AND NOT EXISTS (SELECT FROM trading.candle_months AS known WHERE known.symbol = named.symbol)
  AND NOT EXISTS (SELECT FROM trading.candlesticks AS known WHERE known.symbol = named.symbol)
ORDER BY number
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
class SeriesLedger:
    """What the ledger says of a series, in candles of all its days that are wanted or held.

    Parameters
    ----------
    missing
        Expected, and not known to be present, absent or in quarantine.
    fetching
        Of them, those on days that REST was not read for yet: history on its way, and today.
    overdue
        Of the others, those of which nothing new is known for a day.
    """

    symbol: str
    timeframe: str
    expected: int
    present: int
    absent: int
    quarantined: int
    missing: int
    fetching: int
    overdue: int

    @property
    def percent(self) -> float:
        """Share of the expected candles that is held."""
        return 100.0 * self.present / self.expected if self.expected else 100.0

    @property
    def in_gaps(self) -> int:
        """Candles missing on days that REST was read for."""
        return self.missing - self.fetching


@dataclass(frozen=True, slots=True)
class StoreOverview:
    """The whole store: PostgreSQL's version, its size and growth a day in bytes, whose prices, and what is wrong."""

    server_version: str
    size_bytes: int
    growth_bytes_a_day: int | None
    origin: str | None
    quarantined: int
    revisions: int
    quality: QualitySummary | None
    series: list[SeriesOverview]
    findings: Findings = field(default_factory=Findings)


def overview(connection: Connection) -> StoreOverview:
    """The store at a glance, by symbol and length of candle."""
    series = [SeriesOverview(*row) for row in connection.execute(_SERIES)]
    series.sort(key=lambda each: (each.symbol, parse_timeframe(each.timeframe)))
    origin = connection.execute("SELECT value FROM trading.store_facts WHERE name = 'origin'").fetchone()
    return StoreOverview(
        server_version=str(one(connection, "SHOW server_version")),
        size_bytes=int(one(connection, "SELECT pg_database_size(current_database())")),
        growth_bytes_a_day=noted_growth_a_day(connection),
        origin=origin[0] if origin else None,
        quarantined=int(one(connection, "SELECT count(*) FROM trading.candlesticks_quarantine")),
        revisions=int(one(connection, "SELECT count(*) FROM trading.candlestick_revisions")),
        quality=summary(connection),
        series=series,
        findings=findings(connection),
    )


def unknown_symbols(connection: Connection, symbols: Sequence[str]) -> list[str]:
    """Those of `symbols` that never were subscribed and of which nothing is wanted or held."""
    return [symbol for (symbol,) in connection.execute(_UNKNOWN, (list(symbols),))]


def ledger(connection: Connection, now_ms: int | None) -> dict[tuple[str, str], SeriesLedger]:
    """What the ledger says, by (symbol, timeframe) of everything that is wanted or held.

    Parameters
    ----------
    now_ms
        The exchange's time; None if nobody knows it.
    """
    read_before = None if now_ms is None else utc(now_ms - DAY_MS)
    return {(row[0], row[1]): SeriesLedger(*row) for row in connection.execute(_LEDGER, (read_before,))}
