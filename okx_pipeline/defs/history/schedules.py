"""When history runs by itself: after UTC midnight, and whenever a symbol is subscribed that has no partitions yet."""

from collections.abc import Iterator
from datetime import UTC, timedelta

import dagster as dg

from okx_pipeline.defs.history.candles import candles
from okx_pipeline.defs.history.instruments import instruments
from okx_pipeline.defs.partitions import key_of, symbols
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.storage.subscriptions import subscriptions

# Landing does not wait for the checks: what landed is judged by a run of its own.
candles_job = dg.define_asset_job("okx_candles", selection=dg.AssetSelection.assets(candles).without_checks())
instruments_job = dg.define_asset_job("okx_instruments", selection=[instruments])

instruments_daily = dg.ScheduleDefinition(
    name="okx_instruments_daily",
    job=instruments_job,
    cron_schedule="1 0 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


@dg.schedule(
    name="okx_candles_daily",
    job=candles_job,
    cron_schedule="5 0 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def candles_daily(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Yesterday of every symbol, and the weeks and months that closed with it; every candle is then confirmed twice."""
    day = context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)
    known = context.instance.get_dynamic_partitions(str(symbols.name))
    if not known:
        yield dg.SkipReason("no symbol is subscribed yet")
        return
    for symbol in known:
        key = key_of(day, symbol)
        yield dg.RunRequest(run_key=f"{key}", partition_key=key)


@dg.sensor(
    name="okx_subscribed_symbols",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def subscribed_symbols(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult:
    """Adds a symbol partition when a symbol is subscribed. None is ever deleted: its history would go out of sight."""
    with pipeline.database() as database, database.connect() as connection:
        wanted = dict.fromkeys(each.symbol for each in subscriptions(connection))
    known = set(context.instance.get_dynamic_partitions(str(symbols.name)))
    new = [symbol for symbol in wanted if symbol not in known]
    return dg.SensorResult(
        dynamic_partitions_requests=[symbols.build_add_request(new)] if new else [],
        skip_reason=f"new symbols: {', '.join(new)}" if new else f"{len(known)} symbols, none new",
    )
