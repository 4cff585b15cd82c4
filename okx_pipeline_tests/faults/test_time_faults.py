"""Clocks that are wrong: this machine's, its time zone's, the exchange's own. Candles go by the exchange's alone."""

import time

import httpx
import pytest

from okx_pipeline.timeframes import MINUTE_MS
from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.system import System
from okx_pipeline_tests.faults.variations import ClockOff, TimeZone
from okx_pipeline_tests.stream.stand import wait_until

TEN_MINUTES_S = 600.0
SUMMER_BEGINS = "<OWN>0<SUM>,J232/0:34,J300"
SUMMER_ENDS = "<OWN>0<SUM>,J100,J232/1:34"
"""The clocks are put forward, or back, some minutes after the exchange's clock begins: day 232 is 20 August."""


def clock_ahead_s(system: System) -> float | None:
    """How far ahead of the exchange's the sidecar says that its machine's clock is."""
    found = system.rows("SELECT counters ->> 'clock ahead s' FROM trading.stream_status")
    return float(found[0][0]) if found and found[0][0] is not None else None


@pytest.mark.fault(20, "wall clock ten minutes off, or set", tries=5)
def test_a_wall_clock_that_is_off_or_set_while_it_runs_is_told_and_changes_nothing(system: System) -> None:
    off_s = system.randomly.choice([1, -1]) * TEN_MINUTES_S
    system.sidecar(ClockOff(off_s, after_s=system.randomly.choice([0, 2])))
    wait_until(system.streams, "the sidecar streams")
    system.fault({"kind": "withhold", "share": 0.3}, {"kind": "stall", "symbol": "ETH-USDT-SWAP", "seconds": 2})

    def is_told() -> bool:
        ahead_s = clock_ahead_s(system)
        really_s = time.time() - system.now_ms() / 1000
        # The exchange's minutes are seconds here: a heartbeat old is two minutes off.
        return ahead_s is not None and abs(ahead_s - really_s - off_s) < TEN_MINUTES_S / 2

    wait_until(is_told, "the sidecar tells how far the clock is off")
    system.lets_pass(8 if table.is_full() else 2)
    system.holds_its_promises()
    system.heal()
    assert system.recovers().explained == 0


@pytest.mark.fault(20, "summer time and leap seconds", tries=4)
def test_a_change_to_summer_time_and_seconds_that_come_twice_change_nothing(system: System) -> None:
    system.sidecar(TimeZone(system.randomly.choice([SUMMER_BEGINS, SUMMER_ENDS])))
    wait_until(system.streams, "the sidecar streams")
    for _ in range(6 if table.is_full() else 2):
        boundary_ms = (system.now_ms() // MINUTE_MS + 1) * MINUTE_MS
        for now_ms in (boundary_ms + 300, boundary_ms - 700):
            answer = httpx.post(f"{system.url}/replay/clock", json={"now_ms": now_ms}, trust_env=False)
            answer.raise_for_status()
        system.lets_pass(1.5)
        system.holds_its_promises()
    assert system.recovers().explained == 0
