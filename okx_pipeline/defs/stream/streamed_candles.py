"""The external asset of streamed candles, and the check that names silent symbols."""

from datetime import timedelta

import dagster as dg

from okx_pipeline.defs.history.candles import COLUMN_SCHEMA
from okx_pipeline.defs.partitions import day_by_symbol_with_today
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.stream.health import SilentSeries, StreamHealth, stream_health
from okx_pipeline.timeframes import utc

KEY = dg.AssetKey(["okx", "streamed_candles"])

streamed_candles = dg.AssetSpec(
    KEY,
    description="One row per confirmed candle of a symbol's day as it lands live; today included.",
    partitions_def=day_by_symbol_with_today,
    group_name="stream",
    kinds={"websocket", "postgres", "parquet"},
    owners=["team:market-data"],
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2), warn_window=timedelta(hours=1)),
    metadata={"dagster/column_schema": COLUMN_SCHEMA, "dagster/table_name": "trading.candlesticks"},
)


@dg.asset_check(
    asset=KEY, name="every_series_moves", description="No subscribed series is late by the exchange's clock."
)
def every_series_moves(pipeline: Pipeline) -> dg.AssetCheckResult:
    """Fails while the sidecar is silent or a series is late, naming each."""
    with pipeline.database() as database, database.connect() as connection:
        health = stream_health(connection)
    return dg.AssetCheckResult(
        passed=health.is_alive and (not health.silent or health.maintenance is not None),
        severity=dg.AssetCheckSeverity.ERROR,
        description=_verdict(health),
        metadata={
            "late_series": len(health.silent),
            **({"silent": dg.MetadataValue.table(list(map(_record, health.silent[:100])))} if health.silent else {}),
        },
    )


def _verdict(health: StreamHealth) -> str:
    if not health.is_alive:
        return "the sidecar does not beat"
    late = f"{len(health.silent)} series are late" if health.silent else "every series moves"
    return late if health.maintenance is None else f"{late}; OKX is at maintenance: {health.maintenance}"


def _record(series: SilentSeries) -> dg.TableRecord:
    last = "nothing held" if series.last_ms is None else f"{utc(series.last_ms):%Y-%m-%d %H:%M}"
    return dg.TableRecord(
        {
            "symbol": series.symbol,
            "timeframe": series.timeframe,
            "last_candle": last,
            "late_s": series.late_ms // 1000,
            "refused": series.refused or "",
        }
    )
