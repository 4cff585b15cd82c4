"""The history stage as Dagster runs it."""

from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionResolvedStatus
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from okx_pipeline.definitions import defs
from okx_pipeline.defs.history.candles import candles
from okx_pipeline.defs.history.instruments import instruments
from okx_pipeline.defs.history.schedules import candles_daily, subscribed_symbols
from okx_pipeline.defs.partitions import days_by_symbol, key_of, symbols
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.ranges import Range
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.storage.coverage import day_coverage
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.storage.wanted import want, wanted_ranges
from okx_pipeline.timeframes import DAY_MS, day_ms, parse_timeframes

BTC, ETH, DOGE = "BTC-USDT-SWAP", "ETH-USDT-SWAP", "DOGE-USDT-SWAP"
DAY_ROWS = 96 + 24


def count(database: Database) -> int:
    with database.connect() as connection:
        return int(one(connection, "SELECT count(*) FROM trading.candlesticks"))


def metadata_by_partition(instance: dg.DagsterInstance) -> dict[str, dict[str, Any]]:
    records = instance.fetch_materializations(candles.key, limit=1000).records
    return {
        str(record.partition_key): {
            name: value.value for name, value in (record.asset_materialization or pytest.fail("none")).metadata.items()
        }
        for record in records
    }


def test_the_definitions_load_and_name_what_others_rely_on() -> None:
    repository = defs.get_repository_def()
    keys = {key.to_user_string() for key in repository.assets_defs_by_key}
    assert keys == {
        "okx/candle_gaps",
        "okx/candle_quality",
        "okx/candles",
        "okx/daily_report",
        "okx/data_docs",
        "okx/housekeeping",
        "okx/instruments",
        "okx/partitions",
        "okx/quality_report",
        "okx/reconciliation",
        "okx/streamed_candles",
    }
    assert candles.partitions_def is not None
    assert candles.partitions_def.partition_dimension_names == ["date", "symbol"]  # type: ignore[attr-defined]
    spec = candles.specs_by_key[candles.key]
    assert spec.owners
    assert spec.kinds == {"rest", "postgres", "parquet"}
    assert spec.group_name == "history"
    columns = [column.name for column in spec.metadata["dagster/column_schema"].columns]
    assert columns[:3] == ["symbol", "timeframe", "timestamp_ms"]


def test_a_day_materializes_in_a_plain_temporary_instance(
    instance: dg.DagsterInstance, pipeline: Pipeline, database: Database
) -> None:
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    key = key_of(date(2026, 8, 20), BTC)
    result = dg.materialize([candles], instance=instance, resources={"pipeline": pipeline}, partition_key=key)
    assert result.success
    assert count(database) == DAY_ROWS
    metadata = metadata_by_partition(instance)["2026-08-20|BTC-USDT-SWAP"]
    assert metadata["rows"] == metadata["new"] == metadata["dagster/partition_row_count"] == DAY_ROWS
    assert (metadata["corrected"], metadata["quarantined"], metadata["missing"]) == (0, 0, 0)
    assert metadata["requests"] == 2
    assert metadata["seconds"] > 0
    with database.connect() as connection:
        start_ms = day_ms(date(2026, 8, 20))
        assert [
            (each.timeframe.name, each.since_ms, each.until_ms, each.wanted_by) for each in wanted_ranges(connection)
        ] == [(name, start_ms, start_ms + DAY_MS, "backfill") for name in ("15m", "1h")]
        days = day_coverage(connection, BTC, date(2026, 8, 20), date(2026, 8, 21))
        assert [(day.timeframe, day.expected, day.read_at is not None) for day in days] == [
            ("15m", 96, True),
            ("1h", 24, True),
        ]
    assert metadata["first_candle"] == datetime(2026, 8, 20, tzinfo=UTC).timestamp()
    assert len(metadata["sparkline"]) == 48
    assert "most of the bar may\nstay grey" in str(candles.specs_by_key[candles.key].description)
    told = [metadata[f"ledger: {what}"] for what in ("candles wanted", "candles held", "candles missing")]
    ledger = "SELECT sum(expected)::int, sum(present)::int, sum(missing)::int FROM trading.coverage"
    with database.connect() as connection:
        assert [tuple(told)] == connection.execute(ledger).fetchall()
    assert told[1] == DAY_ROWS


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ((date(2026, 8, 10), BTC), (date(2026, 8, 14), BTC)),
        ((date(2026, 8, 14), BTC), (date(2026, 8, 14), ETH)),
        ((date(2026, 8, 10), BTC), (date(2026, 8, 12), ETH)),
    ],
    ids=["days of one symbol", "symbols of one day", "both"],
)
def test_a_run_over_a_range_of_keys_lands_each_and_says_so_for_each(
    instance: dg.DagsterInstance, pipeline: Pipeline, database: Database, start: Any, end: Any
) -> None:
    instance.add_dynamic_partitions("okx_symbols", [BTC, ETH])
    repository = dg.Definitions(
        assets=[candles, instruments], resources={"pipeline": pipeline}, executor=dg.in_process_executor
    )
    job = repository.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance,
        asset_selection=[candles.key],
        tags={
            "dagster/asset_partition_range_start": str(key_of(*start)),
            "dagster/asset_partition_range_end": str(key_of(*end)),
        },
    )
    assert result.success
    metadata = metadata_by_partition(instance)
    days, symbols = (end[0] - start[0]).days + 1, len({start[1], end[1]})
    assert len(metadata) == days * symbols
    assert {entry["rows"] for entry in metadata.values()} == {DAY_ROWS}
    assert count(database) == days * symbols * DAY_ROWS


def test_a_day_is_read_in_the_timeframes_that_are_wanted_on_it(
    instance: dg.DagsterInstance, pipeline: Pipeline, database: Database
) -> None:
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    start_ms = day_ms(date(2026, 8, 20))
    with database.connect() as connection:
        seed_subscriptions(connection, [BTC], parse_timeframes("4h"), start_ms + DAY_MS)
        want(connection, {(BTC, "1h"): [Range(start_ms - DAY_MS, start_ms + DAY_MS)]}, "backfill")
    for day, rows in ((20, 24), (21, 6), (18, 6)):
        key = key_of(date(2026, 8, day), BTC)
        assert dg.materialize([candles], instance=instance, resources={"pipeline": pipeline}, partition_key=key).success
        assert metadata_by_partition(instance)[str(key)]["rows"] == rows
    # The last of them nobody wanted: it was read in what is subscribed, and is wanted in that from now on.
    with database.connect() as connection:
        assert [(each.timeframe.name, each.since_ms) for each in wanted_ranges(connection)] == [
            ("1h", start_ms - DAY_MS),
            ("4h", start_ms - 2 * DAY_MS),
        ]


def test_a_day_before_the_listing_materializes_with_no_rows_and_says_why(
    instance: dg.DagsterInstance, pipeline: Pipeline, exchange: Exchange
) -> None:
    listed = exchange.market.instruments(exchange.clock.now_ms())
    young = max(listed, key=lambda instrument: int(instrument.listed)).symbol
    instance.add_dynamic_partitions("okx_symbols", [young])
    key = key_of(date(2020, 1, 1), young)
    assert dg.materialize([candles], instance=instance, resources={"pipeline": pipeline}, partition_key=key).success
    metadata = metadata_by_partition(instance)[str(key)]
    assert metadata["rows"] == 0
    assert metadata["note"].startswith(f"{young} was listed on ")


def test_an_unknown_symbol_fails_in_one_line_and_is_not_tried_again(
    instance: dg.DagsterInstance, pipeline: Pipeline
) -> None:
    instance.add_dynamic_partitions("okx_symbols", ["NOPE-USDT-SWAP"])
    result = dg.materialize(
        [candles],
        instance=instance,
        resources={"pipeline": pipeline},
        partition_key=key_of(date(2026, 8, 20), "NOPE-USDT-SWAP"),
        raise_on_error=False,
    )
    (failure,) = result.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data is not None
    description = failure.step_failure_data.user_failure_data.description or ""
    assert "OKX lists no instrument NOPE-USDT-SWAP; check how it is spelled" in description


def test_a_run_that_is_terminated_ends_and_is_not_tried_again() -> None:
    with pytest.raises(dg.Failure) as failure, told_in_one_line():
        raise dg.DagsterExecutionInterruptedError
    assert not failure.value.allow_retries
    assert failure.value.description == "stopped; what has landed stays"


def test_the_listing_is_kept_as_versions(
    instance: dg.DagsterInstance, pipeline: Pipeline, exchange: Exchange, database: Database
) -> None:
    for _ in range(2):
        assert dg.materialize([instruments], instance=instance, resources={"pipeline": pipeline}).success
    record = instance.get_latest_materialization_event(instruments.key)
    assert record is not None
    assert record.asset_materialization is not None
    listed = len(exchange.market.instruments(exchange.clock.now_ms()))
    metadata = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    assert metadata == {"listed": listed, "new_versions": 0, "delisted": 0}
    with database.connect() as connection:
        assert one(connection, "SELECT count(*) FROM trading.instruments") == listed


def test_after_midnight_yesterday_of_every_symbol_that_was_wanted_then_is_requested(
    instance: dg.DagsterInstance, pipeline: Pipeline, database: Database
) -> None:
    instance.add_dynamic_partitions("okx_symbols", [BTC, ETH, DOGE])
    midnight = datetime(2026, 8, 22, 0, 5, tzinfo=UTC)
    context = dg.build_schedule_context(
        instance,
        scheduled_execution_time=midnight,
        repository_def=defs.get_repository_def(),
        resources={"pipeline": pipeline},
    )
    assert candles_daily.evaluate_tick(context).skip_message == "nothing of 2026-08-21 is wanted"
    yesterday = Range(day_ms(date(2026, 8, 21)), day_ms(date(2026, 8, 22)))
    with database.connect() as connection:
        seed_subscriptions(connection, [BTC], parse_timeframes("1h"), 0)
        want(connection, {(ETH, "1h"): [yesterday], (DOGE, "1h"): [Range(0, yesterday.start_ms)]}, "backfill")
    data = candles_daily.evaluate_tick(context)
    assert data.run_requests is not None
    keys = [request.partition_key for request in data.run_requests]
    assert keys == [f"2026-08-21|{BTC}", f"2026-08-21|{ETH}"]
    assert len({request.run_key for request in data.run_requests}) == 2


def test_a_symbol_that_is_subscribed_or_wanted_gets_its_partition_once(
    instance: dg.DagsterInstance, pipeline: Pipeline, database: Database
) -> None:
    with database.connect() as connection:
        seed_subscriptions(connection, [ETH], parse_timeframes("5m,1h"), 0)
        want(connection, {(BTC, "1h"): [Range(0, DAY_MS)]}, "backfill")
    instance.add_dynamic_partitions("okx_symbols", [ETH, DOGE])

    def tick() -> Any:
        return subscribed_symbols(dg.build_sensor_context(instance, resources={"pipeline": pipeline}))

    (request,) = tick().dynamic_partitions_requests
    assert request.partition_keys == [BTC]
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    assert tick().dynamic_partitions_requests == []


def test_any_mixture_of_keys_is_grouped_by_symbol() -> None:
    keys = [str(key_of(date(2026, 8, day), symbol)) for day in (3, 1) for symbol in (ETH, BTC)]
    assert days_by_symbol(keys) == {symbol: [date(2026, 8, 1), date(2026, 8, 3)] for symbol in (BTC, ETH)}


def test_a_first_day_that_is_moved_back_leaves_the_states_that_dagster_recorded(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    key, check = candles.key, dg.AssetCheckKey(candles.key, "schema")
    landed, failed, earlier = (f"{day}|{BTC}" for day in ("2026-08-20", "2026-08-21", "2026-02-01"))

    def states(first: str) -> tuple[set[str], set[str]]:
        """The partitions that are materialized and those that fail, as the UI reads them."""
        days = dg.DailyPartitionsDefinition(first, timezone="UTC")
        partitions = dg.MultiPartitionsDefinition({"date": days, "symbol": symbols})
        with dg.partition_loading_context(dynamic_partitions_store=instance):
            cached = get_and_update_asset_status_cache_value(instance, key, partitions)
            assert cached is not None
            checked = instance.event_log_storage.get_asset_check_state([(check, partitions)])[check]
            failing = checked.subsets[AssetCheckExecutionResolvedStatus.FAILED]
            return (
                set(cached.deserialize_materialized_partition_subsets(partitions).get_partition_keys()),
                set(failing.subset_value.get_partition_keys()),
            )

    instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=landed))
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(asset_key=key, check_name="schema", passed=False, metadata={}, partition=failed)
    )
    assert states("2026-06-01") == ({landed}, {failed})
    assert states("2026-01-01") == ({landed}, {failed})
    instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=earlier))
    assert states("2026-01-01") == ({landed, earlier}, {failed})
