"""The sensor that requests what the ledger lacks: history to read, gaps to mend, days to read once more."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

import dagster as dg

from okx_pipeline.defs.history.candles import DAYS_A_RUN, ONLY_UNREAD
from okx_pipeline.defs.history.schedules import candles_job
from okx_pipeline.defs.partitions import key_of, symbols
from okx_pipeline.defs.quality.candle_gaps import candle_gaps
from okx_pipeline.defs.quality.reconciliation import reconciliation
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.quality.work import Kind, Work, work_left
from okx_pipeline.storage.subscriptions import subscriptions
from okx_pipeline.stream.health import stream_health

TAG: Final = "okx/work"
SYMBOLS_A_TICK: Final = 20
REST_AFTER_FAILURE: Final = timedelta(minutes=10)

UNDER_WAY: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

candle_gaps_job = dg.define_asset_job("okx_candle_gaps", selection=[candle_gaps])
reconciliation_job = dg.define_asset_job("okx_reconciliation", selection=[reconciliation])
JOBS: Final = {Kind.HISTORY: candles_job, Kind.REPAIR: candle_gaps_job, Kind.RECONCILIATION: reconciliation_job}


@dg.sensor(
    name="okx_ledger",
    jobs=list(JOBS.values()),
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests runs for days that the ledger says are not whole or to be read once more, newest first.",
)
def ledger_work(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult | dg.SkipReason:
    """What is left is read from the ledger; a run that was killed or cancelled is simply requested again."""
    known = set(context.instance.get_dynamic_partitions(str(symbols.name)))
    with pipeline.database() as database, database.connect() as connection:
        now_ms = stream_health(connection).now_ms
        if now_ms is None:
            return dg.SkipReason("the exchange's time is not known before the sidecar streams")
        wanted = sorted({each.symbol for each in subscriptions(connection)} & known)
        chosen = _next(wanted, context.cursor)
        work = work_left(connection, chosen, now_ms, DAYS_A_RUN)
    requests = [request for each in work if (request := _request(context.instance, each)) is not None]
    return dg.SensorResult(
        run_requests=requests,
        cursor=chosen[-1] if chosen else None,
        skip_reason=None if requests else f"nothing to request for {len(chosen)} symbols; {len(work)} runs under way",
    )


def _next(wanted: list[str], cursor: str | None) -> list[str]:
    """The next symbols in turn, after those of the last tick."""
    later = [symbol for symbol in wanted if symbol > (cursor or "")]
    earlier = [symbol for symbol in wanted if symbol <= (cursor or "")]
    return list(islice([*later, *earlier], SYMBOLS_A_TICK))


def _request(instance: dg.DagsterInstance, work: Work) -> dg.RunRequest | None:
    """A run for `work`, unless one of its kind is under way for the symbol or has just failed."""
    name = f"{work.kind} {work.symbol}"
    records = instance.get_run_records(dg.RunsFilter(tags={TAG: name}), limit=1)
    if records:
        last = records[0]
        ended = datetime.fromtimestamp(last.end_time, tz=UTC) if last.end_time else None
        if last.dagster_run.status in UNDER_WAY:
            return None
        failed = last.dagster_run.status is dg.DagsterRunStatus.FAILURE
        if failed and ended is not None and datetime.now(tz=UTC) < ended + REST_AFTER_FAILURE:
            return None
    return dg.RunRequest(
        job_name=JOBS[work.kind].name,
        # Twice the same after the same run is a tick that was repeated; after another one it is work that was left.
        run_key=f"{name} {work.first} {work.last} after {records[0].dagster_run.run_id if records else 'none'}",
        tags={
            TAG: name,
            **({ONLY_UNREAD: "true"} if work.kind is Kind.HISTORY else {}),
            "dagster/asset_partition_range_start": str(key_of(work.first, work.symbol)),
            "dagster/asset_partition_range_end": str(key_of(work.last, work.symbol)),
        },
    )
