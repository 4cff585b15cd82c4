"""Incidents that only Dagster's side can see: failed runs, failed checks, and a stream that has stopped."""

from datetime import datetime, timedelta
from typing import Final

import dagster as dg

from okx_pipeline.alerts.sources import failed_quality_checks
from okx_pipeline.defs.quality.ledger import TAG as WORK
from okx_pipeline.defs.quality.outcomes import failing_partitions
from okx_pipeline.storage.alert_sources import judged_checks
from okx_pipeline.storage.alerts import Incident, open_incidents
from okx_pipeline.storage.database import Connection
from okx_pipeline.stream.health import stream_health

FAILED_RUN: Final = "failed_run"

RUNS_A_TICK: Final = 1_000
LATE_WRITES: Final = timedelta(minutes=1)
"""Runs are read again from so long before the last one read: one may be written later than its time says."""

PATIENCE_S: Final = 60.0
"""A series may be late for some seconds after each restart."""


class FailedRuns:
    """Runs that failed, until one for the same job and partitions (or for the same work of the ledger) succeeds.

    What has ended since the last look is read from the instance; what failed before stands in the table.

    Parameters
    ----------
    instance
        The Dagster instance.
    since
        Up to when its runs have been read.
    """

    def __init__(self, instance: dg.DagsterInstance, since: datetime) -> None:
        self._instance = instance
        self.since = since

    def look(self, connection: Connection) -> list[Incident]:
        """All failures that nothing has made up for. Read twice, the same runs give the same."""
        ended = self._instance.get_run_records(
            dg.RunsFilter(
                statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS],
                updated_after=self.since - LATE_WRITES,
            ),
            limit=RUNS_A_TICK,
            order_by="update_timestamp",
            ascending=True,
        )
        failed = {each.subject: each for each in open_incidents(connection, FAILED_RUN)}
        for run in (record.dagster_run for record in ended):
            failed.pop(_subject(run), None)
            if run.is_failure and run.tags.get("dagster/will_retry") != "true":
                failed[_subject(run)] = _incident(run)
        if ended:
            self.since = max(self.since, ended[-1].update_timestamp)
        return list(failed.values())


def _subject(run: dg.DagsterRun) -> str:
    """What a run was for, by which a later one is known to be for the same."""
    # A run of the ledger's is for whatever is left of the work; its days are others the next time.
    assets = ",".join(sorted(key.to_user_string() for key in run.asset_selection or ()))
    return " ".join(part for part in (run.job_name, assets, run.tags.get(WORK) or _partitions(run)) if part)


def _partitions(run: dg.DagsterRun) -> str:
    ends = [run.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end")]
    return run.tags.get("dagster/partition") or " to ".join(end for end in ends if end)


def _incident(run: dg.DagsterRun) -> Incident:
    what = " ".join(part for part in (run.tags.get(WORK), _partitions(run)) if part)
    text = f"run {run.run_id[:8]} of {run.job_name} failed{f': {what}' if what else ''}"
    return Incident(_subject(run), text, _symbol(run))


def _symbol(run: dg.DagsterRun) -> str | None:
    first = run.tags.get("dagster/asset_partition_range_start", "")
    return run.tags.get("dagster/partition/symbol") or first.partition("|")[2] or None


def failed_checks(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, connection: Connection
) -> list[Incident]:
    """Checks that fail at the level of an error.

    A check of candles fails by its verdicts, another partitioned one while any partition fails, the rest as they last
    ran.
    """
    judged, graph = judged_checks(connection), repository.asset_graph
    checks = [key for key in graph.asset_check_keys if key.name not in judged]
    partitioned = [key for key in checks if graph.get(key).partitions_def is not None]
    incidents = []
    for key in partitioned:
        if failing := failing_partitions(instance, key):
            name = f"{key.asset_key.to_user_string()}/{key.name}"
            days = f"{len(failing)} {'day' if len(failing) == 1 else 'days'}"
            incidents.append(Incident(name, f"check {name} fails on {days}, the newest {failing[-1]}"))
    others = [key for key in checks if key not in partitioned]
    for key, summary in instance.event_log_storage.get_asset_check_summary_records(others).items():
        record = summary.last_completed_check_execution_record
        evaluation = None if record is None else record.evaluation
        if evaluation and not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR:
            name = f"{key.asset_key.to_user_string()}/{key.name}"
            why = f": {evaluation.description}" if evaluation.description else ""
            incidents.append(Incident(name, f"check {name} fails{why}"))
    return [*failed_quality_checks(connection), *incidents]


def stale_stream(connection: Connection) -> list[Incident]:
    """The stream, while the sidecar does not beat or series are late."""
    problem = stream_health(connection).problem
    return [] if problem is None else [Incident("", problem, patience_s=PATIENCE_S)]
