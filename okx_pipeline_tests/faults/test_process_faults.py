"""Processes that die: killed at random moments and at the worst ones, starved, or ended in a commit."""

import resource
import signal
from multiprocessing.process import BaseProcess

import psutil
import pytest

from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.system import System, dying_at
from okx_pipeline_tests.stream.stand import wait_until

BEFORE_COMMIT = ("received", "before copy", "in a copy", "after copy", "before commit")
AFTER_COMMIT = ("after commit", "before marks", "before offset", "before count", "before file", "after file")


def limit(process: BaseProcess, what: int, most: int) -> None:
    """Let a running process have no more of a resource."""
    assert process.pid is not None
    _, hard = resource.getrlimit(what)
    resource.prlimit(process.pid, what, (most, hard))


@pytest.mark.fault(1, "sidecar killed at a random moment", tries=12)
def test_a_sidecar_that_is_killed_at_random_moments_loses_nothing(system: System) -> None:
    for _ in range(5 if table.is_full() else 2):
        process = system.sidecar()
        system.lets_pass(system.randomly.uniform(0, 2))
        system.end(process)
        system.holds_its_promises()
    system.streaming()
    system.recovers()


@pytest.mark.fault(1, "sidecar killed between receipt and commit", tries=6)
def test_a_sidecar_that_dies_with_candles_in_its_hands_gets_them_again(system: System) -> None:
    for point in BEFORE_COMMIT:
        system.dies(system.sidecar(dying_at(point, system.randomly.randint(1, 4))))
        system.holds_its_promises()
    system.streaming()
    assert system.recovers().explained == 0


@pytest.mark.fault(2, "sidecar killed after the commit, before it is noted", tries=6)
def test_a_sidecar_that_dies_before_it_has_noted_a_commit_lands_nothing_twice(system: System) -> None:
    for point in AFTER_COMMIT:
        # The passes over ledger and files come seldom; their first time has to do.
        call = 1 if point in ("before count", "before file", "after file") else system.randomly.randint(1, 4)
        system.dies(system.sidecar(dying_at(point, call)))
        system.holds_its_promises()
    system.streaming()
    assert system.recovers().explained == 0
    assert system.count("SELECT count(*) FROM trading.candlestick_revisions") == 0


@pytest.mark.fault(32, "SIGTERM in a commit", tries=10)
def test_a_sidecar_that_is_told_to_end_in_a_commit_finishes_it_and_ends_well(system: System) -> None:
    point = system.randomly.choice(BEFORE_COMMIT[1:] + AFTER_COMMIT[:1])
    process = system.sidecar(dying_at(point, system.randomly.randint(1, 6), number=signal.SIGTERM))
    process.join(60)
    assert process.exitcode == 0, system.told()
    assert system.rows("SELECT state FROM trading.stream_status") == [("stopped",)]
    system.holds_its_promises()
    system.streaming()
    system.recovers()


@pytest.mark.fault(32, "no memory left", tries=4)
def test_a_sidecar_without_memory_ends_or_goes_on_and_the_next_one_loses_nothing(system: System) -> None:
    for _ in range(3 if table.is_full() else 1):
        process = system.streaming()
        used = psutil.Process(process.pid).memory_info().vms
        limit(process, resource.RLIMIT_AS, used + system.randomly.choice((0, 200_000, 2_000_000, 20_000_000)))
        system.fault({"kind": "drop"})  # to connect again takes memory
        system.lets_pass(system.randomly.uniform(0.5, 2))
        system.end(process)
        system.holds_its_promises()
    system.streaming()
    system.recovers()


@pytest.mark.fault(32, "no file descriptors left", tries=4)
def test_a_sidecar_without_file_descriptors_goes_on_once_there_are_some(system: System) -> None:
    process = system.streaming()
    limit(process, resource.RLIMIT_NOFILE, system.randomly.randint(3, 12))
    # Whatever it opens anew fails: its connections to the exchange and to the database.
    system.fault({"kind": "drop"})
    system.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    system.lets_pass(3)
    assert process.exitcode is None, system.told()
    assert "Too many open files" in system.told()
    limit(process, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    wait_until(lambda: system.counter("connections") > 0, "it is connected again")
    system.recovers()
    assert process.exitcode is None, system.told()


@pytest.mark.fault(1, "sidecar killed beside one that stands by", tries=4)
def test_a_second_one_leaves_at_once_and_a_standby_takes_over_where_the_first_is_killed(system: System) -> None:
    first = system.streaming()
    second = system.sidecar()
    second.join(60)
    assert second.exitcode == 75
    standby = system.sidecar(standby=True)
    wait_until(lambda: "standing by" in system.told(), "it stands by")
    system.end(first)
    wait_until(lambda: system.told().count("streaming from") == 2, "the standby takes over")
    system.lets_pass(system.randomly.uniform(0.5, 2))
    system.recovers()
    assert standby.exitcode is None
