"""The sensor that requests what the ledger lacks: history to read, gaps to repair, days to read again or to check."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice, takewhile
from typing import Final

import dagster as dg

from okx_pipeline.defs.dead_runs import end_dead_runs
from okx_pipeline.defs.history.candles import DAYS_A_RUN, ONLY_UNREAD
from okx_pipeline.defs.history.schedules import candles_job
from okx_pipeline.defs.partitions import key_of, symbols
from okx_pipeline.defs.quality.candle_gaps import candle_gaps
from okx_pipeline.defs.quality.candle_quality import ONLY_CHANGED, candle_quality
from okx_pipeline.defs.quality.data_docs import data_docs, quality_report
from okx_pipeline.defs.quality.reconciliation import reconciliation
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.quality.work import Kind, Work, work_left
from okx_pipeline.storage.coverage import symbols_with_gaps
from okx_pipeline.storage.quality_results import last_judged_at
from okx_pipeline.storage.wanted import symbols_in_scope
from okx_pipeline.stream.health import stream_health

TAG: Final = "okx/work"
SYMBOLS_A_TICK: Final = 20
REST_AFTER_FAILURE: Final = timedelta(minutes=1)
MOST_FAILURES: Final = 5
"""How many failures in a row are counted: at last, what fails is tried again every quarter of an hour."""
BUILD_EVERY: Final = timedelta(minutes=5)

UNDER_WAY: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

candle_gaps_job = dg.define_asset_job("okx_candle_gaps", selection=[candle_gaps])
reconciliation_job = dg.define_asset_job("okx_reconciliation", selection=[reconciliation])
# Without the checks: the asset reports their outcomes itself.
candle_quality_job = dg.define_asset_job("okx_candle_quality", selection=[candle_quality])
pages_job = dg.define_asset_job("okx_data_docs", selection=[data_docs, quality_report])
JOBS: Final = {
    Kind.HISTORY: candles_job,
    Kind.REPAIR: candle_gaps_job,
    Kind.RECONCILIATION: reconciliation_job,
    Kind.VERDICT: candle_quality_job,
}
TAGS: Final = {Kind.HISTORY: {ONLY_UNREAD: "true"}, Kind.VERDICT: {ONLY_CHANGED: "true"}}


@dg.sensor(
    name="okx_ledger",
    jobs=[*JOBS.values(), pages_job],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests runs for days that the ledger says are not whole or to be read once more, newest first.",
)
def ledger_work(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult | dg.SkipReason:
    """What is left is read from the ledger; a run that was killed or cancelled is simply requested again."""
    for run_id in end_dead_runs(context.instance):
        context.log.warning(f"the worker of run {run_id} is gone; the run is cancelled")
    known = set(context.instance.get_dynamic_partitions(str(symbols.name)))
    with pipeline.database() as database, database.connect() as connection:
        now_ms = stream_health(connection).now_ms
        if now_ms is None:
            return dg.SkipReason("the exchange's time is not known before the sidecar streams")
        in_scope = [symbol for symbol in symbols_in_scope(connection) if symbol in known]
        # Gaps do not wait for their symbol's turn, which may take a quarter of an hour in a large market.
        gaps = symbols_with_gaps(connection, in_scope, SYMBOLS_A_TICK // 2)
        in_turn = _next(in_scope, context.cursor)[: SYMBOLS_A_TICK - len(gaps)]
        chosen = list(dict.fromkeys([*gaps, *in_turn]))
        # Partitions go by this machine's days.
        days = {"first": pipeline.settings().partition_start, "today": datetime.now(tz=UTC).date()}
        work = work_left(connection, chosen, now_ms, DAYS_A_RUN, **days, every=in_scope)
        judged_at = last_judged_at(connection)
    requests = [_request(context.instance, each) for each in work if each.kind is not Kind.VERDICT]
    requests.append(_request_verdict(context.instance, [each for each in work if each.kind is Kind.VERDICT]))
    requests.append(_request_pages(context.instance, judged_at))
    wanted_now = [request for request in requests if request is not None]
    return dg.SensorResult(
        run_requests=wanted_now,
        cursor=in_turn[-1] if in_turn else None,
        skip_reason=None if wanted_now else f"nothing to request for {len(chosen)} symbols; {len(work)} runs under way",
    )


def _next(in_scope: list[str], cursor: str | None) -> list[str]:
    """The next symbols in turn, after those of the last tick."""
    later = [symbol for symbol in in_scope if symbol > (cursor or "")]
    earlier = [symbol for symbol in in_scope if symbol <= (cursor or "")]
    return list(islice([*later, *earlier], SYMBOLS_A_TICK))


def _request(instance: dg.DagsterInstance, work: Work) -> dg.RunRequest | None:
    """A run for `work`, unless one of its kind is under way for the symbol or has just failed."""
    return _run(instance, work.kind, work.symbol, (work.first, work.symbol), (work.last, work.symbol))


def _request_verdict(instance: dg.DagsterInstance, work: Sequence[Work]) -> dg.RunRequest | None:
    """A run that judges the newest days, of every symbol at once: what a day takes hardly grows with its series."""
    if not work:
        return None
    newest = max(work, key=lambda each: (each.last, each.first))
    together = {each.symbol for each in work if (each.first, each.last) == (newest.first, newest.last)}
    in_order = [symbol for symbol in instance.get_dynamic_partitions(str(symbols.name)) if symbol in together]
    return _run(instance, Kind.VERDICT, "all", (newest.first, in_order[0]), (newest.last, in_order[-1]))


def _request_pages(instance: dg.DagsterInstance, judged_at: datetime | None) -> dg.RunRequest | None:
    """A run that builds the pages, if something was judged since they were built last."""
    if judged_at is None:
        return None
    last = instance.get_latest_materialization_event(data_docs.key)
    built = datetime.fromtimestamp(last.timestamp, tz=UTC) if last is not None else None
    if built is not None and (built > judged_at or datetime.now(tz=UTC) < built + BUILD_EVERY):
        return None
    after = next_after(instance, "pages")
    if after is None:
        return None
    return dg.RunRequest(job_name=pages_job.name, run_key=f"pages {after}", tags={TAG: "pages"})


def _run(
    instance: dg.DagsterInstance, kind: Kind, what: str, first: tuple[date, str], last: tuple[date, str]
) -> dg.RunRequest | None:
    name = f"{kind} {what}"
    after = next_after(instance, name)
    if after is None:
        return None
    return dg.RunRequest(
        job_name=JOBS[kind].name,
        run_key=f"{name} {key_of(*first)} {key_of(*last)} {after}",
        tags={
            TAG: name,
            **TAGS.get(kind, {}),
            "dagster/asset_partition_range_start": str(key_of(*first)),
            "dagster/asset_partition_range_end": str(key_of(*last)),
        },
    )


def next_after(instance: dg.DagsterInstance, name: str) -> str | None:
    """What the run key of the next run tagged `name` ends with; None while one is under way or has just failed.

    Twice the same key after the same run is a tick that was repeated; after another one it is work that was left.
    """
    records = instance.get_run_records(dg.RunsFilter(tags={TAG: name}), limit=MOST_FAILURES)
    if not records:
        return "first"
    last = records[0]
    if last.dagster_run.status in UNDER_WAY:
        return None
    failures = sum(1 for _ in takewhile(lambda each: each.dagster_run.status is dg.DagsterRunStatus.FAILURE, records))
    if failures and last.end_time is not None:
        ended = datetime.fromtimestamp(last.end_time, tz=UTC)
        if datetime.now(tz=UTC) < ended + rest_after(failures):
            return None
    return f"after {last.dagster_run.run_id}"


def rest_after(failures: int) -> timedelta:
    """How long work rests after so many failures in a row. One says little: a run that is stopped fails, too."""
    return REST_AFTER_FAILURE * (1 << min(failures, MOST_FAILURES) - 1)
