"""When history runs by itself: after UTC midnight, and whenever a symbol is wanted that has no partitions yet."""

from collections.abc import Iterator
from datetime import UTC, timedelta

import dagster as dg

from okx_pipeline.defs.history.candles import candles
from okx_pipeline.defs.history.instruments import instruments
from okx_pipeline.defs.partitions import key_of, symbols
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.history.daily import symbols_wanted_on
from okx_pipeline.storage.wanted import symbols_in_scope

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
def candles_daily(context: dg.ScheduleEvaluationContext, pipeline: Pipeline) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Yesterday of every symbol wanted then, and the weeks and months that closed; REST then confirms every candle."""
    day = context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)
    with pipeline.database() as database, database.connect() as connection:
        wanted = symbols_wanted_on(connection, day)
    chosen = [symbol for symbol in context.instance.get_dynamic_partitions(str(symbols.name)) if symbol in wanted]
    if not chosen:
        yield dg.SkipReason(f"nothing of {day} is wanted")
        return
    for symbol in chosen:
        key = key_of(day, symbol)
        yield dg.RunRequest(run_key=f"{key}", partition_key=key)


@dg.sensor(
    name="okx_subscribed_symbols",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def subscribed_symbols(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult:
    """Adds a partition for each symbol that is subscribed, wanted or held. It deletes none: that would hide history."""
    with pipeline.database() as database, database.connect() as connection:
        in_scope = symbols_in_scope(connection)
    known = set(context.instance.get_dynamic_partitions(str(symbols.name)))
    new = [symbol for symbol in in_scope if symbol not in known]
    return dg.SensorResult(
        dynamic_partitions_requests=[symbols.build_add_request(new)] if new else [],
        skip_reason=f"new symbols: {', '.join(new)}" if new else f"{len(known)} symbols, none new",
    )
