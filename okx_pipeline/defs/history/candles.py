"""The asset of candles: days of symbols from OKX's REST API into PostgreSQL and Parquet."""

import asyncio
from collections.abc import Mapping
from datetime import date
from typing import Any

import dagster as dg

from okx_pipeline.candles import COLUMNS, KEY_COLUMNS
from okx_pipeline.defs.partitions import day_and_symbol, day_by_symbol, days_by_symbol, key_of
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.history.daily import DaysLanded, land_days
from okx_pipeline.history.summary import DaySummary
from okx_pipeline.timeframes import utc

DAYS_A_RUN = 100
"""Partitions a run of a backfill holds: whole ranges need fewer requests than days, and a failed run repeats little."""

ONLY_UNREAD = "okx/only_unread"
"""Tag of a run that leaves out what REST was read for already, as the ledger says."""

COLUMN_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn(
            column.name,
            column.sql,
            description=column.meaning,
            constraints=dg.TableColumnConstraints(nullable=False, other=["key"] if column in KEY_COLUMNS else []),
        )
        for column in COLUMNS
    ],
    constraints=dg.TableConstraints(["PRIMARY KEY (symbol, timeframe, timestamp_ms)"]),
)


@dg.asset(
    key=["okx", "candles"],
    partitions_def=day_by_symbol,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=DAYS_A_RUN),
    deps=[["okx", "instruments"]],
    group_name="history",
    kinds={"rest", "postgres", "parquet"},
    owners=["team:market-data"],
    retry_policy=dg.RetryPolicy(max_retries=3, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
    pool="okx_rest",
    metadata={"dagster/column_schema": COLUMN_SCHEMA, "dagster/table_name": "trading.candlesticks"},
)
def candles(context: dg.AssetExecutionContext, pipeline: Pipeline) -> None:
    """One row per confirmed candle of a symbol's day, in every timeframe wanted on it, exactly as OKX serves it."""

    async def land(wanted: Mapping[str, list[date]]) -> DaysLanded:
        async with pipeline.backfill() as backfill:
            return await land_days(backfill, wanted, only_unread=ONLY_UNREAD in context.run.tags)

    with told_in_one_line():
        landed = asyncio.run(land(days_by_symbol(context.partition_keys)))
    for key in context.partition_keys:
        day, symbol = day_and_symbol(key)
        context.add_asset_metadata(_metadata(landed, landed.summaries[day, symbol]), partition_key=key_of(day, symbol))


def _metadata(landed: DaysLanded, day: DaySummary) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": day.rows,
        "rows": day.rows,
        "new": day.inserted,
        "corrected": day.corrected,
        "quarantined": day.quarantined,
        "missing": day.missing,
        "requests": day.requests,
        "seconds": round(landed.report.seconds, 2),
    }
    if day.first_ms is not None and day.last_ms is not None:
        metadata["first_candle"] = dg.MetadataValue.timestamp(utc(day.first_ms))
        metadata["last_candle"] = dg.MetadataValue.timestamp(utc(day.last_ms))
        metadata["sparkline"] = day.sparkline
    if day.note is not None:
        metadata["note"] = day.note
    return metadata
