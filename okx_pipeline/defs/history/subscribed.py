"""The sensor that fetches the history subscriptions want, newest first, until the store lacks nothing of it."""

from typing import Final

import dagster as dg

from okx_pipeline.defs.history.candles import DAYS_A_RUN
from okx_pipeline.defs.history.schedules import candles_job
from okx_pipeline.defs.partitions import key_of, symbols
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.history.plan import Life
from okx_pipeline.history.wanted import lacking_days, newest_run
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.instruments import life_of
from okx_pipeline.storage.subscriptions import Subscription, subscriptions
from okx_pipeline.stream.health import stream_health

TAG: Final = "okx/history"
UNDER_WAY: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dg.sensor(
    name="okx_subscribed_history",
    job=candles_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests the days of wanted history that the store lacks, one symbol a tick, newest first.",
)
def subscribed_history(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult | dg.SkipReason:
    """What is left is read from the store; a run that was killed or cancelled is simply requested again."""
    known = set(context.instance.get_dynamic_partitions(str(symbols.name)))
    under_way = {
        run.tags.get(TAG, "")
        for run in context.instance.get_runs(dg.RunsFilter(tags={}, statuses=UNDER_WAY), limit=500)
    }
    with pipeline.database() as database, database.connect() as connection:
        wanted = [each for each in subscriptions(connection) if each.symbol in known]
        symbol = _next_symbol(context.cursor, sorted({each.symbol for each in wanted} - under_way))
        if symbol is None:
            return dg.SkipReason("no symbol whose history is not being fetched already")
        now_ms = stream_health(connection).now_ms
        if now_ms is None:
            return dg.SkipReason("the exchange's time is not known before the sidecar streams")
        run = _run_request(connection, symbol, [each for each in wanted if each.symbol == symbol], now_ms)
    return dg.SensorResult(
        run_requests=[run] if run else [], cursor=symbol, skip_reason=None if run else f"{symbol} lacks nothing"
    )


def _next_symbol(cursor: str | None, candidates: list[str]) -> str | None:
    later = [symbol for symbol in candidates if symbol > (cursor or "")]
    return next(iter(later or candidates), None)


def _run_request(connection: Connection, symbol: str, wanted: list[Subscription], now_ms: int) -> dg.RunRequest | None:
    known = life_of(connection, symbol)
    life = Life(known.listed_ms, known.expires_ms) if known else Life()
    newest = newest_run(lacking_days(connection, wanted, life, now_ms), DAYS_A_RUN)
    if newest is None:
        return None
    first, last = newest
    return dg.RunRequest(
        # What OKX does not serve is asked for again tomorrow, not every minute.
        run_key=f"{symbol} {first} {last} {now_ms // 86_400_000}",
        tags={
            TAG: symbol,
            "dagster/asset_partition_range_start": str(key_of(first, symbol)),
            "dagster/asset_partition_range_end": str(key_of(last, symbol)),
        },
    )
