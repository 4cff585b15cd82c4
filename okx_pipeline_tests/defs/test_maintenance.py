"""The stage of maintenance as Dagster runs it: months by partition, a daily schedule, sizes as metadata."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.definitions import defs
from okx_pipeline.defs.maintenance.months import partitions, partitions_daily
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.maintenance.upkeep import following
from okx_pipeline.ranges import Range
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.months import series_months
from okx_pipeline.storage.partitions import partition_bytes
from okx_pipeline.storage.stream_status import Heartbeat, beat
from okx_pipeline.storage.wanted import want
from okx_pipeline.timeframes import HOUR_MS, month_bounds, month_of, parse_timeframe

BTC = "BTC-USDT-SWAP"
HOUR = parse_timeframe("1h")
NOW = date(2026, 8, 1)
"""The exchange's month in these tests."""


def following_months(first: date, number: int) -> list[date]:
    found = [first]
    while len(found) < number:
        found.append(following(found[-1]))
    return found


@pytest.fixture
def keeping(pipeline: Pipeline) -> Pipeline:
    """The pipeline where PostgreSQL keeps hours for a year."""
    return Pipeline(overrides={**pipeline.overrides, "retention": "1h=1y"})


def land_month(pipeline: Pipeline, month: date) -> None:
    with pipeline.store() as store:
        opens = HOUR.opens(*month_bounds(month))
        candles = [Candle(BTC, "1h", open_ms, "10", "11", "9", "10", "5", "0.05", "500") for open_ms in opens]
        store.land(candles, source=Source.REST)
        store.project([])


def run(
    instance: dg.DagsterInstance, pipeline: Pipeline, first: date, last: date
) -> tuple[dg.ExecuteInProcessResult, dict[str, dict[str, Any]]]:
    """Materialize a range of months; its result, and the metadata by partition."""
    job = defs.resolve_job_def("okx_partitions")
    tags = {
        "dagster/asset_partition_range_start": f"{first:%Y-%m}",
        "dagster/asset_partition_range_end": f"{last:%Y-%m}",
    }
    result = job.execute_in_process(instance=instance, resources={"pipeline": pipeline}, tags=tags)
    records = instance.fetch_materializations(partitions.key, limit=100).records
    return result, {
        str(record.partition_key): {name: value.value for name, value in found.metadata.items()}
        for record in reversed(records)
        if (found := record.asset_materialization) is not None
    }


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def test_the_next_months_are_made_by_the_exchanges_clock(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection
) -> None:
    ahead = following_months(NOW, 4)
    result, metadata = run(instance, pipeline, ahead[0], ahead[-1])
    assert sorted(partition_bytes(connection)) == ahead
    assert checks(result) == {"no_month_is_missing": True, "archives_are_there": True, "retention_is_kept": True}
    assert set(metadata) == {f"{month:%Y-%m}" for month in ahead}
    assert metadata["2026-11"]["done"] == "partition made"


def test_a_run_of_one_month_tells_of_others_that_lack_their_partition(
    instance: dg.DagsterInstance, pipeline: Pipeline
) -> None:
    result, _ = run(instance, pipeline, NOW, NOW)
    assert checks(result) == {"no_month_is_missing": False, "archives_are_there": True, "retention_is_kept": True}
    [missing] = [each for each in result.get_asset_check_evaluations() if not each.passed]
    assert missing.description == "no partition: 2026-09, 2026-10, 2026-11"


def test_an_expired_month_is_archived_and_its_partition_says_so(
    instance: dg.DagsterInstance, keeping: Pipeline, connection: Connection
) -> None:
    old, young = date(2025, 7, 1), date(2025, 8, 1)
    for month in (old, young):
        land_month(keeping, month)
    last = following_months(NOW, 4)[-1]
    result, metadata = run(instance, keeping, old, last)
    assert checks(result) == {"no_month_is_missing": True, "archives_are_there": True, "retention_is_kept": True}
    assert {state.key.month: state.archived for state in series_months(connection)} == {old: True, young: False}
    archived = metadata["2025-07"]
    assert (archived["partition"], archived["rows"], archived["archived_rows"]) == ("none", 0, 744)
    assert archived["dagster/partition_row_count"] == 744
    assert "744 candles of BTC-USDT-SWAP 1h archived, partition dropped" in archived["done"]
    assert (metadata["2025-08"]["partition"], metadata["2025-08"]["rows"]) == ("there", 744)
    assert metadata["2025-08"]["bytes"] > 744 * 100


def test_an_archived_month_whose_file_is_gone_is_told_by_a_check(
    instance: dg.DagsterInstance, keeping: Pipeline
) -> None:
    old = date(2025, 7, 1)
    land_month(keeping, old)
    run(instance, keeping, old, old)
    for path in Path(keeping.settings().parquet_root).rglob(f"month={old:%Y-%m}/candles.parquet"):
        path.unlink()
    result, _ = run(instance, keeping, old, old)
    [gone] = [each for each in result.get_asset_check_evaluations() if each.check_name == "archives_are_there"]
    assert not gone.passed
    assert gone.severity is dg.AssetCheckSeverity.ERROR
    assert str(gone.description).startswith("1 files: ")
    assert str(gone.description).endswith("candles.parquet: it is gone")


def test_what_has_expired_and_cannot_go_is_told_by_a_check(
    instance: dg.DagsterInstance, keeping: Pipeline, connection: Connection
) -> None:
    old = date(2025, 7, 1)
    land_month(keeping, old)
    with keeping.store() as store:
        want(store.connection, {(BTC, "1h"): [Range(*month_bounds(old))]}, "backfill")
        gone = month_bounds(old)[0] + 5 * HOUR_MS
        store.connection.execute("DELETE FROM trading.candlesticks WHERE timestamp_ms = %s", (gone,))
        store.connection.execute("UPDATE trading.landing_marks SET revision = revision + 1 WHERE day = '2025-07-01'")
    result, _ = run(instance, keeping, old, old)
    [kept] = [each for each in result.get_asset_check_evaluations() if each.check_name == "retention_is_kept"]
    assert not kept.passed
    assert kept.description == "1 months of series have expired and stay"


def requested(instance: dg.DagsterInstance, pipeline: Pipeline, at: datetime) -> tuple[str, str]:
    """First and last month of the run that the schedule requests."""
    context = dg.build_schedule_context(
        instance,
        resources={"pipeline": pipeline},
        scheduled_execution_time=at,
        repository_def=defs.get_repository_def(),
    )
    [request] = partitions_daily.evaluate_tick(context).run_requests or []
    return tuple(request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))  # type: ignore[return-value]


def test_the_schedule_requests_the_months_from_the_first_that_needs_something(
    instance: dg.DagsterInstance, keeping: Pipeline, connection: Connection, exchange: Exchange
) -> None:
    beat(connection, Heartbeat("here", "streaming", exchange_ms=exchange.clock.now_ms()))
    at = datetime(2026, 8, 22, 1, 40, tzinfo=UTC)
    assert requested(instance, keeping, at) == ("2026-08", "2026-11")
    old = date(2025, 7, 1)
    land_month(keeping, old)
    assert requested(instance, keeping, at) == ("2025-08", "2026-11"), "what was not projected and counted can wait"
    run(instance, keeping, old, following_months(NOW, 4)[-1])
    assert requested(instance, keeping, at) == ("2026-08", "2026-11")


def test_a_clock_set_over_the_turn_of_a_year_after_two_missed_months_finds_every_month_made(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, exchange: Exchange
) -> None:
    before = exchange.clock.now_ms()
    try:
        for now in (datetime(2023, 10, 31, 23, 59, tzinfo=UTC), datetime(2024, 1, 1, 0, 0, 1, tzinfo=UTC)):
            exchange.clock.set(int(now.timestamp() * 1000))
            first = month_of(exchange.clock.now_ms())
            result, _ = run(instance, pipeline, first, following_months(first, 4)[-1])
            assert checks(result)["no_month_is_missing"]
    finally:
        exchange.clock.set(before)
    assert sorted(partition_bytes(connection)) == following_months(date(2023, 10, 1), 7)


def test_housekeeping_tells_how_big_everything_is_and_from_the_second_day_what_is_added(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection
) -> None:
    land_month(pipeline, date(2026, 7, 1))
    job = defs.resolve_job_def("okx_housekeeping")
    for day in range(2):
        result = job.execute_in_process(instance=instance, resources={"pipeline": pipeline})
        [event] = result.asset_materializations_for_node("okx__housekeeping")
        metadata: dict[str, Any] = {name: value.value for name, value in event.metadata.items()}
        assert metadata["candles"] == 744
        assert metadata["parquet_bytes"] > 10_000
        assert ("candles_a_day" in metadata) == bool(day)
        connection.execute("UPDATE trading.store_sizes SET day = day - 1")
