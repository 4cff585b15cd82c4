"""Faults in any order, thousands of times: on a model of the store, and on PostgreSQL, which must agree with it."""

import logging
import os
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from okx_pipeline.exchange import dialing, network
from okx_pipeline.quality import repair
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import utc
from okx_pipeline_tests.faults.state_machine import START, Sequences
from okx_pipeline_tests.faults.store_model import MirroredStore, ModelStore, Store
from okx_pipeline_tests.storage.emptying import empty

FULL = os.environ.get("FAULTS") == "full"

SHRINKS = os.environ.get("FAULTS") != "mutations"
"""Whether the shortest sequence that fails is looked for, which takes a while; a mutation has only to be noticed."""


@pytest.fixture(autouse=True)
def quick_and_quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar tells of every fault; of a sequence that fails, its steps are what is to be read."""
    caplog.set_level(logging.CRITICAL)
    # To read the system's certificates takes longer than a sequence does, and nobody dials here.
    monkeypatch.setattr(dialing, "trust", cache(network.trust))
    monkeypatch.setattr(repair, "AGAIN_OLD_S", 0.0)


def run(make: Callable[[], Store], sequences: int, steps: int) -> None:
    """The same sequences each time, unless all are asked for: then others each time."""
    run_state_machine_as_test(
        lambda: Sequences(make()),  # type: ignore[arg-type]
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not FULL,
            phases=[Phase.generate, *([Phase.reuse, Phase.shrink] if SHRINKS else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )


def model() -> ModelStore:
    ticks = count(START)
    return ModelStore(lambda: utc(next(ticks)))


def test_any_sequence_of_faults_ends_with_the_truth_by_the_rules() -> None:
    run(model, sequences=2_000 if FULL else 200, steps=50)


def test_rest_that_was_asked_while_a_frame_waited_is_asked_again_and_decides() -> None:
    sequence = Sequences(model())
    for _ in range(3):
        sequence.a_candle_closes(what="plain", close="1")
        sequence.a_frame_that_never_comes(pick=0)
    sequence.a_frame_that_says_something_else(pick=1, close="2", twice=False, lands=False)
    sequence.time_passes(seconds=15)
    sequence.catch_up(failures=0, rows=300)
    sequence.what_waits_lands()
    assert sequence.disputed
    sequence.teardown()


@pytest.fixture(scope="module")
def module_database(new_database: Callable[[bool], Database]) -> Database:
    return new_database(True)


def test_any_sequence_of_faults_ends_with_the_truth_in_postgresql_as_by_the_rules(
    module_database: Database, tmp_path: Path
) -> None:
    numbers = count()
    stores: list[MirroredStore] = []

    def make() -> Store:
        for store in stores:
            store.connection.close()
        with module_database.connect() as connection:
            empty(connection)
        stores[:] = [MirroredStore(module_database, ParquetStore(str(tmp_path / str(next(numbers)))))]
        return stores[0]

    try:
        run(make, sequences=150 if FULL else 20, steps=50)
    finally:
        stores[0].connection.close()
