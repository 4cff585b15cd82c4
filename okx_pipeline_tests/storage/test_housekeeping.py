"""Cutting back what grows: what is still needed stays, and Dagster shows what it showed."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import pytest

from okx_pipeline.candles import Source
from okx_pipeline.storage import housekeeping
from okx_pipeline.storage.coverage import count, day_coverage
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.housekeeping import prune_dagster_events, prune_marks, prune_sidecars, prune_verdicts
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.projection import pending_months, project
from okx_pipeline.storage.sizes import growth_a_day, measure, note_sizes, noted_growth_a_day
from okx_pipeline.storage.stream_status import Heartbeat, beat
from okx_pipeline.timeframes import DAY_MS
from okx_pipeline_tests.storage.test_landing import AUGUST, candle

NOW_MS = AUGUST + 5 * DAY_MS


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "PIECE", 2)


def marks(connection: Connection) -> list[date]:
    return [row[0] for row in connection.execute("SELECT day FROM trading.landing_marks ORDER BY day")]


def days(*numbers: int) -> list[date]:
    return [date(2026, 8, 1 + number) for number in numbers]


def test_marks_that_everybody_has_dealt_with_go_and_what_lands_then_is_seen_all_the_same(
    connection: Connection, tmp_path: Path
) -> None:
    files = ParquetStore(str(tmp_path / "parquet"))
    land(connection, [candle(number * 1440) for number in range(5)], source=Source.REST)
    project(connection, files, pending_months(connection))
    count(connection, files, NOW_MS)
    connection.execute(
        "UPDATE trading.landing_marks SET landed_at = now() - interval '91 days' WHERE day < '2026-08-05'"
    )
    # One waits for Parquet, one for the ledger, one is young.
    connection.execute("UPDATE trading.landing_marks SET projected = 0 WHERE day = '2026-08-02'")
    connection.execute("UPDATE trading.landing_marks SET counted = 0 WHERE day = '2026-08-03'")
    assert prune_marks(connection, 90) == 2
    assert marks(connection) == days(1, 2, 4)
    land(connection, [candle(1), candle(3 * 1440 + 1)], source=Source.REST)
    project(connection, files, pending_months(connection))
    count(connection, files, NOW_MS)
    present = [(row.day, row.present) for row in day_coverage(connection, "BTC-USDT-SWAP", *days(0, 5))]
    assert present == list(zip(days(0, 1, 2, 3, 4), [2, 1, 1, 2, 1], strict=True))


def test_a_mark_that_is_being_written_is_left_alone_and_waited_for_by_nobody(
    connection: Connection, database: Database
) -> None:
    land(connection, [candle(number * 1440) for number in range(3)], source=Source.REST)
    connection.execute("UPDATE trading.landing_marks SET projected = 1, counted = 1, landed_at = '2020-01-01'")
    with database.connect() as other, other.transaction():
        other.execute("UPDATE trading.landing_marks SET revision = revision + 1 WHERE day = '2026-08-02'")
        assert prune_marks(connection, 90) == 2
    assert marks(connection) == days(1)


VERDICT = """
INSERT INTO trading.quality_results (
    symbol, timeframe, day, check_name, store, passed, severity, failed, rows, validated_at)
VALUES ('BTC-USDT-SWAP', '1m', %s, 'schema', 'postgres', %s, %s, %s, 0, now() - %s * interval '1 day')
"""


def test_verdicts_that_found_nothing_go_and_those_that_found_something_stay(connection: Connection) -> None:
    for day, severity, age in ((1, None, 500), (2, "warning", 500), (3, "info", 500), (4, None, 300), (5, None, 500)):
        passed, failed = severity in (None, "info"), [] if severity is None else ["something"]
        connection.execute(VERDICT, (date(2026, 8, day), passed, severity, failed, age))
    assert prune_verdicts(connection, 400) == 2
    left = connection.execute("SELECT extract(day FROM day)::int FROM trading.quality_results ORDER BY 1").fetchall()
    assert left == [(2,), (3,), (4,)]


def test_sidecars_of_long_ago_are_forgotten(connection: Connection) -> None:
    for name in ("old", "new"):
        beat(connection, Heartbeat(name, "streaming"))
    connection.execute(
        "UPDATE trading.stream_status SET heartbeat_at = now() - interval '8 days' WHERE sidecar = 'old'"
    )
    assert prune_sidecars(connection, 7) == 1
    assert one(connection, "SELECT sidecar FROM trading.stream_status") == "new"


# Dagster's own


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["one", "two", "bad"]))
def candles(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    context.log.info("something of the moment")
    if context.partition_key == "bad":
        raise ValueError("as it happens")
    return dg.MaterializeResult(metadata={"rows": 5})


@dg.asset_check(asset=candles)
def are_fine() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@pytest.fixture
def instance(database: Database) -> Iterator[dg.DagsterInstance]:
    """Dagster on the test's database."""
    storage = {"postgres": {"postgres_url": database.dagster_url()}}
    with dg.instance_for_test(overrides={"storage": storage}) as temporary:
        yield temporary


def test_dagster_shows_the_same_partitions_checks_and_runs_when_its_old_events_are_gone(
    instance: dg.DagsterInstance, connection: Connection
) -> None:
    for key in ("one", "bad", "two"):
        dg.materialize([candles, are_fine], instance=instance, partition_key=key, raise_on_error=False)

    def shown() -> list[object]:
        records = instance.fetch_materializations(candles.key, limit=10).records
        runs = instance.get_run_records()
        return [
            sorted(instance.get_materialized_partitions(candles.key)),
            [(record.partition_key, record.event_log_entry.asset_materialization) for record in records],
            [(run.dagster_run.run_id, run.dagster_run.status, run.start_time, run.end_time) for run in runs],
            instance.event_log_storage.get_asset_check_execution_history(next(iter(are_fine.check_keys)), limit=10),
            instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations(
                candles.key
            ),
            [instance.get_run_stats(run.dagster_run.run_id).steps_failed for run in runs],
        ]

    before, events = shown(), one(connection, "SELECT count(*) FROM dagster.event_logs")
    assert prune_dagster_events(connection, 30) == 0
    connection.execute("UPDATE dagster.event_logs SET timestamp = timestamp - interval '31 days'")
    gone = prune_dagster_events(connection, 30)
    assert gone is not None
    assert gone > events / 2
    assert one(connection, "SELECT count(*) FROM dagster.event_logs") == events - gone
    assert shown() == before
    dg.materialize([candles], instance=instance, partition_key="one")
    assert sorted(instance.get_materialized_partitions(candles.key)) == ["one", "two"]


def test_where_dagster_keeps_its_events_elsewhere_there_is_nothing_to_prune(connection: Connection) -> None:
    assert prune_dagster_events(connection, 30) is None


# Sizes


def test_growth_is_told_against_the_oldest_note_of_the_last_month(connection: Connection, tmp_path: Path) -> None:
    now = measure(connection, parquet_bytes=None, data_docs_bytes=700, logs_bytes=70)
    assert now.database_bytes > 1_000_000
    assert growth_a_day(connection, now) is None
    note_sizes(connection, now, 800)
    assert growth_a_day(connection, now) is None, "today is no earlier day"
    connection.execute("UPDATE trading.store_sizes SET day = day - 7, candles = candles - 700, data_docs_bytes = 0")
    note_sizes(connection, now, 800)
    growth = growth_a_day(connection, now)
    assert growth is not None
    assert noted_growth_a_day(connection) == 0
    connection.execute("UPDATE trading.store_sizes SET database_bytes = database_bytes - 7000 WHERE candles < 0")
    assert noted_growth_a_day(connection) == 1000
    assert (growth.candles, growth.data_docs_bytes, growth.logs_bytes, growth.parquet_bytes) == (100, 100, 0, None)
    note_sizes(connection, now, 3)
    assert one(connection, "SELECT count(*) FROM trading.store_sizes") == 1


def test_candles_are_counted_wherever_they_are_and_partitions_weighed(connection: Connection, tmp_path: Path) -> None:
    files = ParquetStore(str(tmp_path / "parquet"))
    before = measure(connection, parquet_bytes=0, data_docs_bytes=0, logs_bytes=0)
    land(connection, [candle(number) for number in range(1_000)], source=Source.REST)
    project(connection, files, pending_months(connection))
    after = measure(connection, parquet_bytes=0, data_docs_bytes=0, logs_bytes=0)
    assert after.candles - before.candles == 1_000
    assert after.candles_bytes - before.candles_bytes > 100 * 1_000
