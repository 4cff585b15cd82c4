"""Processes that die: killed at random moments and at the worst ones, starved, or ended in a commit."""

import pytest

from okx_pipeline_tests.faults.system import System


@pytest.mark.fault(1, "sidecar killed at a random moment", tries=40)
def test_a_sidecar_that_is_killed_at_random_moments_loses_nothing(system: System) -> None:
    for _ in range(5):
        process = system.sidecar()
        system.lets_pass(system.randomly.uniform(0.1, 2))
        system.end(process)
        system.holds_its_promises()
    system.streaming()
    system.recovers()
