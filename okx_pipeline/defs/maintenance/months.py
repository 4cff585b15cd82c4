"""The asset of monthly partitions, and the schedule that looks after those that need it."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.maintenance.upkeep import AHEAD, LookedAfter, MonthDone, Upkeep, maintain
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.months import MonthSummary, month_summaries
from okx_pipeline.stream.health import stream_health
from okx_pipeline.timeframes import month_of

KEY: Final = dg.AssetKey(["okx", "partitions"])
FORMAT: Final = "%Y-%m"
LISTED: Final = 100

months = dg.MonthlyPartitionsDefinition(
    start_date=read_settings().partition_start.strftime(FORMAT), fmt=FORMAT, timezone="UTC", end_offset=1 + AHEAD
)


@dg.asset(
    key=KEY,
    partitions_def=months,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="maintenance",
    kinds={"postgres", "parquet"},
    owners=["team:market-data"],
    retry_policy=dg.RetryPolicy(max_retries=3, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
    check_specs=[
        dg.AssetCheckSpec("no_month_is_missing", asset=KEY, description="Every month of candles has its partition."),
        dg.AssetCheckSpec("retention_is_kept", asset=KEY, description="What has expired has left PostgreSQL."),
        dg.AssetCheckSpec("archives_are_there", asset=KEY, description="Every archived month has its Parquet file."),
    ],
    metadata={"dagster/table_name": "trading.candlesticks"},
)
def partitions(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster takes a subscripted one for a tuple
    """One row per month: its partition, made ahead, vacuumed when the month is whole, and let go of when it expires."""
    wanted = [datetime.strptime(str(key), FORMAT).replace(tzinfo=UTC).date() for key in context.partition_keys]

    async def look_after() -> tuple[LookedAfter, dict[date, MonthSummary]]:
        async with pipeline.backfill() as backfill:
            looked_after = await maintain(backfill, wanted)
            return looked_after, month_summaries(backfill.store.connection)

    with told_in_one_line():
        looked_after, summaries = asyncio.run(look_after())
    done = {each.month: each for each in looked_after.done}
    for month in wanted:
        metadata = _metadata(summaries.get(month), done.get(month))
        context.add_asset_metadata(metadata, partition_key=month.strftime(FORMAT))
    return dg.MaterializeResult(check_results=_checks(looked_after))


partitions_job = dg.define_asset_job("okx_partitions", selection=[partitions])


@dg.schedule(
    name="okx_partitions_daily",
    job=partitions_job,
    cron_schedule="40 1 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def partitions_daily(context: dg.ScheduleEvaluationContext, pipeline: Pipeline) -> Iterator[dg.RunRequest]:
    """The months from the first one that needs something to those made ahead; a quiet day has the last four."""
    with pipeline.store() as store:
        now_ms = stream_health(store.connection).now_ms
        now_ms = int(datetime.now(tz=UTC).timestamp() * 1000) if now_ms is None else now_ms
        plans = Upkeep(store, dict(pipeline.settings().retention), now_ms).plan()
    busy = [plan.month for plan in plans if not plan.is_idle]
    first_partition = read_settings().partition_start.replace(day=1)
    first = max(first_partition, min([month_of(now_ms), *busy]))
    yield dg.RunRequest(
        run_key=f"{context.scheduled_execution_time:%Y-%m-%d}",
        tags={
            "dagster/asset_partition_range_start": first.strftime(FORMAT),
            "dagster/asset_partition_range_end": plans[-1].month.strftime(FORMAT),
        },
    )


def _metadata(summary: MonthSummary | None, done: MonthDone | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"partition": "none" if summary is None or summary.bytes is None else "there"}
    if summary is not None:
        metadata |= {
            "dagster/partition_row_count": summary.rows + summary.archived_rows,
            "rows": summary.rows,
            "archived_rows": summary.archived_rows,
            "series": summary.series,
            "bytes": summary.bytes or 0,
        }
    if done is not None:
        metadata |= {
            "done": ", ".join(done.told()) or "nothing could be done now",
            "problems": "; ".join(done.problems[:LISTED]),
        }
    return metadata


def _checks(looked_after: LookedAfter) -> list[dg.AssetCheckResult]:
    lacking, kept, damaged = looked_after.lacking, looked_after.kept, list(looked_after.damaged.values())
    return [
        dg.AssetCheckResult(
            check_name="no_month_is_missing",
            passed=not lacking,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"no partition: {', '.join(f'{month:%Y-%m}' for month in lacking[:LISTED])}"
            if lacking
            else "every month has its partition",
        ),
        dg.AssetCheckResult(
            check_name="archives_are_there",
            passed=not damaged,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"{len(damaged)} files: {'; '.join(damaged[:LISTED])}" if damaged else "every file is there",
        ),
        dg.AssetCheckResult(
            check_name="retention_is_kept",
            passed=not kept,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(kept)} months of series have expired and stay" if kept else "nothing expired is left",
            metadata={
                "kept": dg.MetadataValue.table(
                    [dg.TableRecord({"month": str(key), "why": why}) for key, why in list(kept.items())[:LISTED]],
                    dg.TableSchema([dg.TableColumn("month"), dg.TableColumn("why")]),
                )
            },
        ),
    ]
