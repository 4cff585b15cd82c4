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
from okx_pipeline.storage.coverage import series_coverage
from okx_pipeline.storage.database import Connection
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
    """One row per confirmed candle of a symbol's day, in every timeframe wanted on it, exactly as OKX serves it.

    There is a partition for every symbol and every day since OKX_PARTITION_START, wanted or not, so most of the bar may
    stay grey. The metadata says what is wanted, held and missing, as the ledger has it.
    """

    async def land(wanted: Mapping[str, list[date]]) -> DaysLanded:
        async with pipeline.backfill() as backfill:
            return await land_days(backfill, wanted, only_unread=ONLY_UNREAD in context.run.tags)

    with told_in_one_line():
        landed = asyncio.run(land(days_by_symbol(context.partition_keys)))
        with pipeline.database() as database, database.connect() as connection:
            ledger = ledger_metadata(connection)
    for key in context.partition_keys:
        day, symbol = day_and_symbol(key)
        metadata = _metadata(landed, landed.summaries[day, symbol]) | ledger
        context.add_asset_metadata(metadata, partition_key=key_of(day, symbol))


def ledger_metadata(connection: Connection) -> dict[str, Any]:
    """The candles that the ledger expects, holds and misses of everything that is wanted, and since when."""
    series = series_coverage(connection)
    metadata: dict[str, Any] = {
        "ledger: candles wanted": sum(each.expected for each in series),
        "ledger: candles held": sum(each.present for each in series),
        "ledger: candles missing": sum(each.missing for each in series),
    }
    if series:
        metadata["ledger: first day wanted"] = min(each.first for each in series).isoformat()
    return metadata


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
