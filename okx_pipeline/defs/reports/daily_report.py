"""The asset of daily reports, and the schedule that makes yesterday's."""

from collections.abc import Iterator
from datetime import UTC, date, timedelta

import dagster as dg

from okx_pipeline.defs.partitions import days
from okx_pipeline.defs.quality.candle_quality import candle_quality
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.reports.daily import markdown_of, read_report, write_report
from okx_pipeline.storage.wanted import symbols_in_scope


@dg.asset(
    key=["okx", "daily_report"],
    partitions_def=days,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=30),
    deps=[candle_quality],
    group_name="reports",
    kinds={"html", "markdown"},
    owners=["team:market-data"],
)
def daily_report(context: dg.AssetExecutionContext, pipeline: Pipeline) -> None:
    """One page per UTC day: coverage, quality, corrections, stream and market."""
    settings = pipeline.settings()
    with told_in_one_line(), pipeline.store() as store:
        symbols = symbols_in_scope(store.connection)
        for day in sorted(map(date.fromisoformat, context.partition_keys)):
            report = read_report(store, day, symbols)
            page = write_report(settings.reports_folder, report)
            metadata = {
                "report": dg.MetadataValue.md(markdown_of(report)),
                "page": dg.MetadataValue.url(f"{settings.pages_url}/reports/{page.name}"),
                "expected": report.expected,
                "present": report.present,
                "missing": report.missing,
                "errors": report.errors if report.verdicts else "not judged",
                "series not judged": len(report.unjudged),
                "day is over": report.is_over,
                "corrections": len(report.corrections),
            }
            context.add_asset_metadata(metadata, partition_key=f"{day}")


daily_report_job = dg.define_asset_job("okx_daily_report", selection=[daily_report])


@dg.schedule(
    name="okx_daily_report",
    job=daily_report_job,
    cron_schedule="0 1 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def daily_report_daily(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    """Request the report of yesterday, an hour after its end: by then its candles are read and judged."""
    day = context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)
    yield dg.RunRequest(run_key=f"{day}", partition_key=f"{day}")
