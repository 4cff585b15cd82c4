"""What Dagster loads: the assets, schedules and sensors of `defs`, the executor and the resources; nothing else."""

import dagster as dg

from okx_pipeline.defs.alerts.sensors import alerts
from okx_pipeline.defs.history.candles import candles
from okx_pipeline.defs.history.instruments import instruments
from okx_pipeline.defs.history.schedules import (
    candles_daily,
    candles_job,
    instruments_daily,
    instruments_job,
    subscribed_symbols,
)
from okx_pipeline.defs.maintenance.housekeeping import housekeeping, housekeeping_daily, housekeeping_job
from okx_pipeline.defs.maintenance.months import partitions, partitions_daily, partitions_job
from okx_pipeline.defs.quality.candle_gaps import candle_gaps
from okx_pipeline.defs.quality.candle_quality import candle_checks, candle_quality
from okx_pipeline.defs.quality.data_docs import data_docs, quality_report
from okx_pipeline.defs.quality.ledger import (
    candle_gaps_job,
    candle_quality_job,
    ledger_work,
    pages_job,
    reconciliation_job,
)
from okx_pipeline.defs.quality.outcome_reports import check_outcomes, check_outcomes_job
from okx_pipeline.defs.quality.reconciliation import reconciliation
from okx_pipeline.defs.reports.daily_report import daily_report, daily_report_daily, daily_report_job
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.defs.stream.sensors import sidecar_landings
from okx_pipeline.defs.stream.streamed_candles import every_series_moves, streamed_candles

defs = dg.Definitions(
    assets=[
        instruments,
        candles,
        streamed_candles,
        candle_gaps,
        reconciliation,
        candle_quality,
        data_docs,
        quality_report,
        partitions,
        housekeeping,
        daily_report,
    ],
    asset_checks=[every_series_moves, candle_checks],
    jobs=[
        instruments_job,
        candles_job,
        candle_gaps_job,
        reconciliation_job,
        candle_quality_job,
        check_outcomes_job,
        pages_job,
        partitions_job,
        housekeeping_job,
        daily_report_job,
    ],
    schedules=[instruments_daily, candles_daily, partitions_daily, housekeeping_daily, daily_report_daily],
    sensors=[subscribed_symbols, ledger_work, check_outcomes, sidecar_landings, alerts],
    resources={"pipeline": Pipeline()},
    # Steps are few and wait for the network; a process for each would cost six seconds a run.
    executor=dg.in_process_executor,
)
