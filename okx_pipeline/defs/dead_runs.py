"""Runs whose worker died with its code server: nobody is left to say so, and they would stay STARTED for a day.

Dagster's run monitoring asks the launcher whether a worker lives, and its default launcher cannot tell; a code server
reports the death of its own workers, and no other's. Meanwhile such a run keeps its slot of the pool, and work from
being requested again. What is requested instead is the ledger's sensor's matter.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import dagster as dg
import psutil

CODE_SERVER: Final = ".dagster/grpc_info"
"""Tag of a run with where the code server is that started its worker; {"socket"} if on this machine."""

CLOCK_SLACK_S: Final = 60.0
"""How much later a process may seem to have started than it did: its start is reckoned from the boot of the machine."""


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Cancel the runs of this machine whose worker is gone, and give back their slots; returns their ids."""
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        if not _is_dead(instance, run):
            continue
        now = instance.get_run_by_id(run.run_id)
        # It may have ended in order meanwhile.
        if now is not None and now.status is dg.DagsterRunStatus.STARTED:
            instance.report_run_canceled(now, "Its worker is gone, and so is the code server that would have said so.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            ended.append(run.run_id)
    return ended


def lives(pid: int, seen_s: float) -> bool:
    """Whether the process that was seen as `pid` at `seen_s` (Unix time) lives; another with its number is not it."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return bool(process.create_time() <= seen_s + CLOCK_SLACK_S and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is_dead(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    if "socket" not in json.loads(run.tags.get(CODE_SERVER, "{}")):
        return False  # elsewhere, perhaps: its processes cannot be seen from here
    workers = list(_workers(instance, run.run_id))
    return bool(workers) and not any(lives(pid, seen_s) for pid, seen_s in workers)


def _workers(instance: dg.DagsterInstance, run_id: str) -> Iterator[tuple[int, float]]:
    """Process ids of the run's workers and when they wrote them down."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event is not None else None
        if pid is not None:
            yield int(str(pid.value)), entry.timestamp
