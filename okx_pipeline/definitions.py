"""What Dagster loads: the assets, schedules and sensors of `defs`, the executor and the resources; nothing else."""

import dagster as dg

from okx_pipeline.defs.history.candles import candles
from okx_pipeline.defs.history.instruments import instruments
from okx_pipeline.defs.history.schedules import (
    candles_daily,
    candles_job,
    instruments_daily,
    instruments_job,
    subscribed_symbols,
)
from okx_pipeline.defs.resources import Pipeline

defs = dg.Definitions(
    assets=[instruments, candles],
    jobs=[instruments_job, candles_job],
    schedules=[instruments_daily, candles_daily],
    sensors=[subscribed_symbols],
    resources={"pipeline": Pipeline()},
    # Steps are few and wait for the network; a process for each would cost six seconds a run.
    executor=dg.in_process_executor,
)
