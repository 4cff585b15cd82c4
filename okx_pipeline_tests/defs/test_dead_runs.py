"""Runs whose worker is gone are cancelled, and no others."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from okx_pipeline.definitions import defs
from okx_pipeline.defs.dead_runs import CODE_SERVER, end_dead_runs, lives

HERE = {"host": "localhost", "socket": "a code server of this machine"}
ELSEWHERE = {"host": "okx-code", "port": 4000}


@pytest.fixture
def worker() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that works until it is killed."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def started(instance: dg.DagsterInstance, worker: int | None, code_server: Mapping[str, object]) -> dg.DagsterRun:
    """A run under way, as the default launcher leaves it."""
    run = instance.create_run_for_job(
        defs.resolve_job_def("okx_candles"),
        tags={CODE_SERVER: json.dumps(code_server)},
        status=dg.DagsterRunStatus.STARTED,
    )
    if worker is not None:
        instance.report_engine_event("Started process for run", run, EngineEventData.in_process(worker))
    return run


def status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def test_a_run_is_cancelled_when_its_worker_is_gone_and_not_before(
    instance: dg.DagsterInstance, worker: "subprocess.Popen[bytes]"
) -> None:
    run = started(instance, worker.pid, HERE)
    assert end_dead_runs(instance) == []
    worker.kill()
    # Dead it is as soon as nothing runs any more, though nobody has taken note of its end.
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert end_dead_runs(instance) == [run.run_id]
    assert status(instance, run) is dg.DagsterRunStatus.CANCELED
    assert end_dead_runs(instance) == []


def test_a_run_of_which_nothing_can_be_known_here_is_left_alone(
    instance: dg.DagsterInstance, worker: "subprocess.Popen[bytes]"
) -> None:
    worker.kill()
    worker.wait()
    runs = [started(instance, worker.pid, ELSEWHERE), started(instance, None, HERE)]
    assert end_dead_runs(instance) == []
    assert {status(instance, run) for run in runs} == {dg.DagsterRunStatus.STARTED}


def test_another_process_with_the_number_of_the_worker_is_not_the_worker(worker: "subprocess.Popen[bytes]") -> None:
    assert lives(worker.pid, time.time())
    assert not lives(worker.pid, time.time() - 3_600)
