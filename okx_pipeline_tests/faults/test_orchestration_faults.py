"""Dagster under faults: run workers killed, runs doubled; what the ledger lacks is requested again, and no more."""

import json
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from okx_pipeline.definitions import defs
from okx_pipeline.defs.dead_runs import CODE_SERVER
from okx_pipeline.defs.history.candles import candles
from okx_pipeline.defs.quality.ledger import TAG, ledger_work
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.stream_status import Heartbeat, beat
from okx_pipeline_tests.faults.past import MakeSystem, a_past, filled
from okx_pipeline_tests.faults.system import System
from okx_pipeline_tests.faults.table import is_full
from okx_pipeline_tests.storage.processes import Doom, barrier

FAULT = "daemon, code server or run worker killed, a run doubled"
DAYS = 8

STEPS = [
    ("okx_pipeline.storage.candle_store:CandleStore", "land"),
    ("okx_pipeline.storage.candle_store:CandleStore", "project"),
    ("okx_pipeline.storage.candle_store:CandleStore", "account"),
    ("okx_pipeline.storage.coverage", "note_reads"),
    ("okx_pipeline.defs.history.candles", "_metadata"),
]
"""What a run does; the first and the last of it many times over."""

Step = tuple[str, str, int, bool]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    folder = tmp_path / "dagster"
    folder.mkdir()
    with dg.instance_for_test(temp_dir=str(folder)) as temporary:
        yield temporary


@pytest.fixture
def planned(make_system: MakeSystem, instance: dg.DagsterInstance) -> System:
    """A system with some days of history to be read, as the ledger says, and nobody who reads them yet."""
    system = a_past(make_system, DAYS, "5m,1h")
    instance.add_dynamic_partitions("okx_symbols", list(system.settings.symbols))
    with CandleStore.opened(system.database, ParquetStore(system.settings.parquet_root)) as store:
        beat(store.connection, Heartbeat("host:1", "streaming", system.now_ms()))
        store.account(system.now_ms())
    return system


def overrides_of(system: System) -> dict[str, Any]:
    """The settings as a resource is given them."""
    settings = system.settings
    return {
        "home": str(settings.home),
        "database_url": system.database.url,
        "rest_url": settings.rest_url,
        "ws_url": settings.ws_url,
    }


def requested(instance: dg.DagsterInstance, system: System) -> list[dg.RunRequest]:
    """What the ledger's sensor asks for: reading and mending, not judging."""
    context = dg.build_sensor_context(
        instance,
        resources={"pipeline": Pipeline(overrides=overrides_of(system))},
        repository_def=defs.get_repository_def(),
    )
    found = ledger_work.evaluate_tick(context).run_requests or []
    return [request for request in found if request.tags[TAG].partition(" ")[0] in {"history", "repair"}]


def run(instance: dg.DagsterInstance, overrides: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
    """A run over a range of keys, in this process; whether it succeeded."""
    assets = dg.Definitions(
        assets=[candles],
        resources={"pipeline": Pipeline(overrides=dict(overrides))},
        executor=dg.in_process_executor,
    )
    job = assets.resolve_implicit_global_asset_job_def()
    done = job.execute_in_process(instance=instance, asset_selection=[candles.key], tags=tags, raise_on_error=False)
    return bool(done.success)


def work(home: str, overrides: Mapping[str, Any], tags: Mapping[str, str], dies: Step | None, gate: Any) -> None:
    """A run's worker, which may be doomed, or begin together with another."""
    os.environ["DAGSTER_HOME"] = home
    if dies is not None:
        owner, function, call, after = dies
        module, _, name = owner.partition(":")
        found = import_module(module)
        Doom(getattr(found, name) if name else found, function, call=call, after=after)
    with dg.DagsterInstance.get() as instance:
        if gate is not None:
            gate.wait(60)
        assert run(instance, overrides, tags)


def run_all_that_is_left(instance: dg.DagsterInstance, system: System) -> int:
    """Run what the sensor requests until it requests nothing; returns how many runs that took."""
    runs = 0
    while requests := requested(instance, system):
        for request in requests:
            assert run(instance, overrides_of(system), request.tags)
            runs += 1
        assert runs < 20, "the same is requested over and over"
    return runs


@pytest.mark.fault(28, FAULT, tries=8)
def test_what_a_killed_worker_has_not_read_is_requested_again_and_nothing_is_called_whole_without_proof(
    planned: System, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for _ in range(3 if is_full() else 1):
        requests = requested(instance, planned)
        if not requests:
            break
        request = planned.randomly.choice(requests)
        owner, function = planned.randomly.choice(STEPS)
        call = planned.randomly.randrange(1, 6 if function in {"land", "_metadata"} else 2)
        dies = (owner, function, call, planned.randomly.random() < 0.5)
        print(request.run_key, dies)
        tags = {**request.tags, CODE_SERVER: json.dumps({"host": "localhost", "socket": "a code server"})}
        worker = planned.process(work, str(tmp_path / "dagster"), overrides_of(planned), tags, dies, None)
        planned.dies(worker)
        planned.holds_its_promises()
        [dead] = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        # As the code server does that starts a worker, and that was killed with it.
        instance.report_engine_event("Started process for run", dead, EngineEventData.in_process(worker.pid or 0))
        again = [each for each in requested(instance, planned) if each.tags[TAG] == request.tags[TAG]]
        assert all(each.run_key != request.run_key for each in again)
        found = instance.get_run_by_id(dead.run_id)
        assert found is not None
        assert found.status is dg.DagsterRunStatus.CANCELED
    assert run_all_that_is_left(instance, planned) <= 3 * len(planned.settings.symbols)
    # The day under way is the sidecar's.
    filled(planned, DAYS, DAYS + 1)
    assert planned.recovers(20).explained == 0


@pytest.mark.fault(28, FAULT, tries=5)
def test_the_same_partitions_run_twice_at_once_land_once(
    planned: System, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    request = planned.randomly.choice(requested(instance, planned))
    gate = barrier(2)
    workers = [
        planned.process(work, str(tmp_path / "dagster"), overrides_of(planned), request.tags, None, gate)
        for _ in range(2)
    ]
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0, planned.told()
    planned.holds_its_promises()
    assert planned.rows("SELECT * FROM trading.candlestick_revisions") == []
    run_all_that_is_left(instance, planned)
    filled(planned, DAYS, DAYS + 1)
    assert planned.recovers(20).explained == 0
