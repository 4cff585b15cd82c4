"""The stage that proves, as Dagster runs it: gaps mended, days read once more, and runs requested from the ledger."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from okx_pipeline.candles import Candle, Source
from okx_pipeline.definitions import defs
from okx_pipeline.defs.history.candles import ONLY_UNREAD, candles
from okx_pipeline.defs.partitions import day_by_symbol
from okx_pipeline.defs.quality import candle_quality, ledger
from okx_pipeline.defs.quality.candle_gaps import candle_gaps
from okx_pipeline.defs.quality.ledger import REST_AFTER_FAILURE, TAG, ledger_work, rest_after
from okx_pipeline.defs.quality.outcome_reports import check_outcomes
from okx_pipeline.defs.quality.reconciliation import reconciliation
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.defs.stream.streamed_candles import KEY as STREAMED
from okx_pipeline.quality.suites import Check
from okx_pipeline.replay.corrections import Correction, Corrections
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.storage.coverage import Read, count, note_judged, note_reads
from okx_pipeline.storage.database import Connection, one
from okx_pipeline.storage.gaps import database_now
from okx_pipeline.storage.landing import SeriesDay, land
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.quality_results import Severity, Store, Verdict, record
from okx_pipeline.storage.stream_status import Heartbeat, beat
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import DAY_MS, day_ms, parse_timeframe, parse_timeframes

BTC = "BTC-USDT-SWAP"
DAY = date(2026, 8, 20)
NOW_MS = day_ms(DAY) + 12 * 3_600_000

Tick = Callable[[], Any]


@pytest.fixture
def files(tmp_path: Path) -> ParquetStore:
    return ParquetStore(str(tmp_path / "parquet"))


@pytest.fixture
def tick(instance: dg.DagsterInstance, pipeline: Pipeline) -> Tick:
    """Evaluates the ledger's sensor as the daemon would."""

    def evaluate() -> Any:
        context = dg.build_sensor_context(
            instance, resources={"pipeline": pipeline}, repository_def=defs.get_repository_def()
        )
        return ledger_work.evaluate_tick(context).run_requests or []

    return evaluate


def days_of(request: Any) -> tuple[str, str, str]:
    """What a request is for: kind, first and last day."""
    first, last = (request.tags[f"dagster/asset_partition_range_{end}"].split("|")[0] for end in ("start", "end"))
    return request.tags[TAG].split()[0], first, last


def candle(open_ms: int, volume: str = "5") -> Candle:
    return Candle(BTC, "1d", open_ms, "10", "11", "9", "10", volume, "0.05", "500")


def kinds(requests: list[Any]) -> set[str]:
    return {days_of(request)[0] for request in requests}


def read(connection: Connection, files: ParquetStore, days: list[date], served: int = 1, at_ms: int = NOW_MS) -> None:
    """As a run does that has read `days` from REST."""
    if served:
        land(connection, [candle(day_ms(day)) for day in days], source=Source.REST)
    count(connection, files, NOW_MS)
    note_reads(connection, {SeriesDay(BTC, "1d", day): Read(1, served, False, at_ms) for day in days})


@pytest.fixture
def subscribed(instance: dg.DagsterInstance, connection: Connection, files: ParquetStore) -> date:
    """A symbol subscribed in 1d since 150 days ago, of which nothing is held; returns yesterday."""
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    seed_subscriptions(connection, [BTC], [parse_timeframe("1d")], day_ms(DAY) - 150 * DAY_MS)
    beat(connection, Heartbeat("host:1", "streaming", NOW_MS))
    count(connection, files, NOW_MS)
    return DAY - timedelta(days=1)


def test_unread_history_is_requested_newest_first_until_the_ledger_lacks_nothing(
    tick: Tick, subscribed: date, connection: Connection, files: ParquetStore
) -> None:
    [request] = tick()
    assert days_of(request) == ("history", str(subscribed - timedelta(days=99)), str(subscribed))
    assert request.tags[ONLY_UNREAD]
    days = [subscribed - timedelta(days=number) for number in range(150)]
    read(connection, files, [day for day in days[:100] if day != days[40]])
    assert days_of(tick()[0]) == ("history", str(days[40]), str(days[40]))
    read(connection, files, [days[40]])
    assert days_of(tick()[0]) == ("history", str(days[149]), str(days[100]))
    read(connection, files, days[100:])
    assert kinds(tick()) == {"verdict"}


def test_days_without_a_partition_are_not_requested(
    tick: Tick, subscribed: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OKX_PARTITION_START", str(subscribed - timedelta(days=5)))
    assert list(map(days_of, tick())) == [("history", str(subscribed - timedelta(days=5)), str(subscribed))]
    monkeypatch.setenv("OKX_PARTITION_START", str(subscribed + timedelta(days=1)))
    assert tick() == []


def test_what_okx_did_not_serve_is_requested_as_repair_and_no_more_as_history(
    tick: Tick, subscribed: date, connection: Connection, files: ParquetStore
) -> None:
    days = [subscribed - timedelta(days=number) for number in range(150)]
    read(connection, files, days[1:])
    read(connection, files, days[:1], served=0)
    assert [each for each in map(days_of, tick()) if each[0] != "verdict"] == [
        ("repair", str(subscribed), str(subscribed))
    ]


def test_a_run_is_requested_once_while_it_is_under_way_and_again_when_it_was_cancelled(
    tick: Tick, subscribed: date, instance: dg.DagsterInstance
) -> None:
    [first] = tick()
    [same] = tick()
    assert same.run_key == first.run_key
    job = defs.resolve_job_def("okx_candles")
    run = instance.create_run_for_job(job, tags=first.tags, status=dg.DagsterRunStatus.NOT_STARTED)
    assert tick() == []
    instance.report_run_canceled(run)
    [again] = tick()
    assert days_of(again) == days_of(first)
    assert again.run_key != first.run_key


def test_a_run_that_failed_is_not_requested_again_at_once(
    tick: Tick, subscribed: date, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    [request] = tick()
    run = instance.create_run_for_job(
        defs.resolve_job_def("okx_candles"), tags=request.tags, status=dg.DagsterRunStatus.STARTED
    )
    instance.report_run_failed(run)
    assert tick() == []
    monkeypatch.setattr("okx_pipeline.defs.quality.ledger.REST_AFTER_FAILURE", -REST_AFTER_FAILURE)
    assert len(tick()) == 1


def test_the_oftener_a_run_has_failed_in_a_row_the_longer_its_work_rests(
    tick: Tick, subscribed: date, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [rest_after(failures).seconds // 60 for failures in range(1, 7)] == [1, 2, 4, 8, 16, 16]
    told: list[int] = []

    def no_rest(failures: int) -> timedelta:
        told.append(failures)
        return timedelta(0)

    monkeypatch.setattr(ledger, "rest_after", no_rest)
    [request] = tick()
    job = defs.resolve_job_def("okx_candles")
    for end in (instance.report_run_failed, instance.report_run_failed, instance.report_run_canceled):
        end(instance.create_run_for_job(job, tags=request.tags, status=dg.DagsterRunStatus.STARTED))
        assert len(tick()) == 1
    assert told == [1, 2]


def test_a_day_is_requested_once_more_eight_days_after_it_ended(
    tick: Tick, subscribed: date, connection: Connection, files: ParquetStore
) -> None:
    days = [subscribed - timedelta(days=number) for number in range(150)]
    read(connection, files, days)
    old = DAY - timedelta(days=9)
    connection.execute("UPDATE trading.coverage SET read_at = (day + 1)::timestamp AT TIME ZONE 'UTC' + interval '1 h'")
    read(connection, files, [day for day in days if day < old])
    assert days_of(tick()[0]) == ("reconciliation", str(old), str(old))


def test_days_are_judged_when_they_are_read_and_again_when_they_change(
    tick: Tick, subscribed: date, connection: Connection, files: ParquetStore
) -> None:
    days = [subscribed - timedelta(days=number) for number in range(150)]
    read(connection, files, days)
    assert list(map(days_of, tick())) == [("verdict", str(days[99]), str(days[0]))]
    judged = [SeriesDay(BTC, "1d", day) for day in days]
    note_judged(connection, judged, database_now(connection), set())
    assert tick() == []
    late = datetime.now(tz=UTC) + timedelta(minutes=1)
    land(connection, [candle(day_ms(days[3]), "6")], source=Source.REST, requested_at=late)
    count(connection, files, NOW_MS)
    assert list(map(days_of, tick())) == [("verdict", str(days[3]), str(days[3]))]


def test_a_day_of_which_something_is_missing_is_not_judged_before_that_is_settled(
    tick: Tick, subscribed: date, connection: Connection, files: ParquetStore
) -> None:
    connection.execute("UPDATE trading.subscriptions SET timeframe = '12h'")
    connection.execute("DELETE FROM trading.coverage")
    opens = day_ms(subscribed)
    land(connection, [candle(opens)._replace(timeframe="12h")], source=Source.REST)
    count(connection, files, NOW_MS)
    note_reads(connection, {SeriesDay(BTC, "12h", subscribed): Read(2, 1, False, NOW_MS)})
    assert "verdict" not in [days_of(request)[0] for request in tick()]
    land(connection, [candle(opens + 12 * 3_600_000)._replace(timeframe="12h")], source=Source.REST)
    count(connection, files, NOW_MS)
    assert "verdict" in [days_of(request)[0] for request in tick()]


def run(
    asset: dg.AssetsDefinition, instance: dg.DagsterInstance, pipeline: Pipeline, day: date
) -> dg.ExecuteInProcessResult:
    key = f"{day}|{BTC}"
    result = dg.materialize([asset], instance=instance, resources={"pipeline": pipeline}, partition_key=key)
    assert result.success
    return result


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {each.check_name: each.passed for each in result.get_asset_check_evaluations()}


@pytest.fixture
def served(instance: dg.DagsterInstance, connection: Connection, exchange: Exchange) -> Iterator[None]:
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    seed_subscriptions(connection, [BTC], parse_timeframes("15m,1h"), day_ms(DAY))
    yield
    exchange.corrections = Corrections()


def test_gaps_of_a_day_are_mended_and_the_ledger_shown(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, served: None
) -> None:
    run(candles, instance, pipeline, DAY)
    hole = day_ms(DAY) + 3 * 3_600_000
    connection.execute("DELETE FROM trading.candlesticks WHERE timestamp_ms = %s", (hole,))
    result = run(candle_gaps, instance, pipeline, DAY)
    assert one(connection, "SELECT count(*) FROM trading.candlesticks") == 96 + 24
    assert checks(result) == {"nothing_is_missing": True, "ledger_matches_rows": True}
    [event] = result.asset_materializations_for_node("okx__candle_gaps")
    metadata = {name: value.value for name, value in event.metadata.items()}
    assert (metadata["expected"], metadata["present"], metadata["missing"]) == (120, 120, 0)
    statuses = connection.execute("SELECT timeframe, status FROM trading.candle_gaps ORDER BY 1").fetchall()
    assert statuses == [("15m", "repaired"), ("1h", "repaired")]
    assert str(metadata[f"calendar {BTC}"]).startswith("![coverage](data:image/svg+xml;base64,")


def test_a_revised_candle_is_corrected_when_its_day_is_read_once_more(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, exchange: Exchange, served: None
) -> None:
    run(candles, instance, pipeline, DAY)
    opens = day_ms(DAY) + 5 * 3_600_000
    stored = "SELECT volume FROM trading.candlesticks WHERE timeframe = '1h' AND timestamp_ms = %s"
    old = one(connection, stored, (opens,))
    exchange.correct(Correction(symbol=BTC, timeframe="1h", timestamp_ms=opens, volume=str(old + 1)))
    result = run(reconciliation, instance, pipeline, DAY)
    assert one(connection, stored, (opens,)) == old + 1
    assert checks(result)["rest_serves_what_is_held"]
    found = connection.execute("SELECT timeframe, column_name, class FROM trading.timeframe_mismatches").fetchall()
    assert found == [("1h", "volume", "exchange")]
    # The hour no longer is the sum of its quarters, and OKX itself says so.
    assert checks(result)["timeframes_add_up"]
    assert one(connection, "SELECT count(*) FROM trading.candlestick_revisions") == 1
    assert one(connection, "SELECT bool_and(verified_at IS NOT NULL) FROM trading.coverage WHERE day = %s", (DAY,))


def span(first: date, last: date) -> dict[str, str]:
    """Tags of a run over days in a row, as the ledger's sensor and a backfill in the UI set them."""
    return {f"dagster/asset_partition_range_{end}": f"{day}|{BTC}" for end, day in (("start", first), ("end", last))}


def single(day: date) -> dict[str, str]:
    """Tags of a run of one partition."""
    dimensions = {"dagster/partition/date": f"{day}", "dagster/partition/symbol": BTC}
    return {"dagster/partition": f"{day}|{BTC}", **dimensions}


def judge(
    instance: dg.DagsterInstance, pipeline: Pipeline, day: date, last: date | None = None
) -> dg.ExecuteInProcessResult:
    """A run of the job that checks days, as the sensor requests it."""
    result = defs.resolve_job_def("okx_candle_quality").execute_in_process(
        instance=instance, resources={"pipeline": pipeline}, tags=span(day, last or day)
    )
    assert result.success
    return result


def evaluations(instance: dg.DagsterInstance, day: date) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    """What Dagster holds of a day, by asset and check; nothing where the check is older than the materialization."""
    found = {}
    for asset in (candles.key, STREAMED):
        for check in Check:
            key, partition = dg.AssetCheckKey(asset, check.value), f"{day}|{BTC}"
            infos = instance.event_log_storage.get_asset_check_partition_info([key], partition_keys=[partition])
            if infos and infos[0].is_current:
                [record] = instance.event_log_storage.get_asset_check_execution_history(
                    key, limit=1, partition_filter=PartitionKeyFilter(key=partition)
                )
                assert record.evaluation is not None
                found[asset.path[-1], check.value] = record.evaluation
    return found


def failing(instance: dg.DagsterInstance, day: date) -> set[str]:
    """The checks that fail on a day of the candles."""
    found = evaluations(instance, day)
    return {name for (asset, name), each in found.items() if asset == "candles" and not each.passed}


def planned(instance: dg.DagsterInstance) -> list[object]:
    """The rows of checks that a run planned and did not carry out."""
    graph = defs.get_repository_def().asset_graph
    records = [
        record
        for key in graph.asset_check_keys
        for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=1_000)
    ]
    return [record for record in records if record.status is AssetCheckExecutionRecordStatus.PLANNED]


def corrupt(connection: Connection, day: date) -> None:
    """Write a row that no market can have, in 1h."""
    connection.execute("ALTER TABLE trading.candlesticks DROP CONSTRAINT candlesticks_range")
    connection.execute(
        "UPDATE trading.candlesticks SET high_price = low_price WHERE timeframe = '1h' AND timestamp_ms = %s",
        (day_ms(day),),
    )


@pytest.fixture
def say(instance: dg.DagsterInstance, connection: Connection) -> Callable[..., None]:
    """Writes down verdicts on a day: all checks pass but those that are named."""
    instance.add_dynamic_partitions("okx_symbols", [BTC])

    def write(day: date, failed: str = "", severity: Severity = Severity.CRITICAL) -> None:
        at = database_now(connection)
        verdicts = [
            Verdict(
                *(BTC, "1h", day, check.value, Store.POSTGRES),
                severity=severity if check.value == failed else None,
                failed=("something",) if check.value == failed else (),
                observed={},
                rows=24,
                validated_at=at,
            )
            for check in Check
        ]
        record(connection, verdicts)

    return write


@pytest.fixture
def report(instance: dg.DagsterInstance, pipeline: Pipeline) -> Callable[..., None]:
    """Reports what was not yet, of some days, in a run of its own."""

    def run_job(*days: date) -> None:
        config = {"ops": {"report_check_outcomes": {"config": {"keys": [f"{day}|{BTC}" for day in days]}}}}
        job = defs.resolve_job_def("okx_check_outcomes")
        assert job.execute_in_process(instance=instance, resources={"pipeline": pipeline}, run_config=config).success

    return run_job


def materialize_streamed(instance: dg.DagsterInstance, day: date) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(STREAMED, partition=f"{day}|{BTC}"))


def test_a_clean_day_passes_every_check_on_the_candles_and_the_streamed_day(
    instance: dg.DagsterInstance, pipeline: Pipeline, served: None
) -> None:
    run(candles, instance, pipeline, DAY)
    materialize_streamed(instance, DAY)
    judge(instance, pipeline, DAY)
    found = evaluations(instance, DAY)
    assert {name for _, name in found} == {check.value for check in Check}
    assert {asset for asset, _ in found} == {"candles", "streamed_candles"}
    assert {each.passed for each in found.values()} == {True}
    assert not planned(instance)
    assert not judge(instance, pipeline, DAY).get_asset_check_evaluations(), "Dagster shows it already"
    page = found["candles", "schema"].metadata["page"].value
    assert str(page).startswith("http://127.0.0.1:3001/quality/validations/2026-08-20/")
    site = pipeline.docs().site
    assert (site / str(page).partition("/quality/")[2].partition("#")[0]).is_file()


def test_a_corrupted_row_fails_the_check_that_names_it(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, served: None
) -> None:
    run(candles, instance, pipeline, DAY)
    corrupt(connection, DAY)
    judge(instance, pipeline, DAY)
    assert "ohlc_sanity" in failing(instance, DAY)
    found = evaluations(instance, DAY)["candles", "ohlc_sanity"]
    assert found.severity is dg.AssetCheckSeverity.ERROR
    record = found.metadata["failing"].records[0].data
    assert (record["symbol"], record["timeframe"], record["severity"]) == (BTC, "1h", "critical")
    assert "high_at_least_open (1)" in record["failed"]


def test_a_failed_day_stays_failed_while_other_days_pass_until_it_passes_itself(
    instance: dg.DagsterInstance, say: Callable[..., None], report: Callable[..., None]
) -> None:
    days = [DAY - timedelta(days=number) for number in (2, 1, 0)]
    say(days[0], "ohlc_sanity")
    for day in days[1:]:
        say(day)
    report(*days[:2])
    report(days[2])
    assert [failing(instance, day) for day in days] == [{"ohlc_sanity"}, set(), set()]
    # Every change is stored, and so is one of the severity alone.
    for failed in ("", "ohlc_sanity", ""):
        say(days[0], failed)
        report(days[0])
        assert failing(instance, days[0]) == ({failed} - {""})
    say(days[0], "ohlc_sanity", Severity.WARNING)
    report(days[0])
    assert evaluations(instance, days[0])["candles", "ohlc_sanity"].severity is dg.AssetCheckSeverity.WARN
    say(days[0], "ohlc_sanity")
    report(days[0])
    assert evaluations(instance, days[0])["candles", "ohlc_sanity"].severity is dg.AssetCheckSeverity.ERROR
    assert not planned(instance)


def test_a_backfill_in_the_ui_checks_each_day_and_leaves_no_planned_row(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, served: None
) -> None:
    connection.execute("UPDATE trading.subscriptions SET since_ms = since_ms - %s", (DAY_MS,))
    job = defs.get_repository_def().get_implicit_global_asset_job_def()
    days = {DAY - timedelta(days=1), DAY}
    for asset in (candles, candle_gaps, reconciliation):
        result = job.get_subset(asset_selection={asset.key}).execute_in_process(
            instance=instance, resources={"pipeline": pipeline}, tags=span(min(days), max(days))
        )
        assert result.success
        found = result.get_asset_check_evaluations()
        assert {each.partition for each in found} == {f"{day}|{BTC}" for day in days}
        assert {each.passed for each in found} == {True}
        names = {
            key.name for key in defs.get_repository_def().asset_graph.asset_check_keys if key.asset_key == asset.key
        }
        assert len(found) == len(days) * len(names)
        for name in names:
            key = dg.AssetCheckKey(asset.key, name)
            shown = instance.event_log_storage.get_asset_check_partition_info([key])
            assert [each.is_current for each in shown] == [True, True]
    assert not planned(instance)


@pytest.mark.parametrize("is_range", [False, True], ids=["a day", "a range"])
def test_a_day_that_fails_schema_or_ohlc_sanity_stops_what_is_downstream_in_the_same_run(
    instance: dg.DagsterInstance, pipeline: Pipeline, say: Callable[..., None], is_range: bool
) -> None:
    @dg.asset(deps=[candles], partitions_def=day_by_symbol)
    def downstream() -> None:
        """Depends on the candles, as an asset of a user's does."""

    say(DAY, "ohlc_sanity")
    together = dg.Definitions.merge(defs, dg.Definitions(assets=[downstream]))
    job = together.get_repository_def().get_implicit_global_asset_job_def()
    checks_of_candles = {dg.AssetCheckKey(candles.key, check.value) for check in Check}
    tags = span(DAY, DAY) if is_range else single(DAY)
    for failed in ("ohlc_sanity", "volumes"):
        say(DAY, failed)
        result = job.get_subset(
            asset_selection={downstream.key}, asset_check_selection=checks_of_candles
        ).execute_in_process(instance=instance, resources={"pipeline": pipeline}, tags=tags, raise_on_error=False)
        assert failing(instance, DAY) == {failed}
        assert bool(result.asset_materializations_for_node("downstream")) == (failed == "volumes")
    assert not planned(instance)


def test_a_day_without_candles_is_not_checked_and_has_not_passed(
    instance: dg.DagsterInstance, pipeline: Pipeline, served: None
) -> None:
    job = defs.get_repository_def().get_implicit_global_asset_job_def()
    subset = job.get_subset(
        asset_selection=set(), asset_check_selection={dg.AssetCheckKey(candles.key, check.value) for check in Check}
    )
    for tags in (single(DAY), span(DAY, DAY), {}):
        result = subset.execute_in_process(instance=instance, resources={"pipeline": pipeline}, tags=tags)
        found = result.get_asset_check_evaluations()
        assert len(found) == len(Check)
        assert {each.passed for each in found} == {False}
        assert {each.severity for each in found} == {dg.AssetCheckSeverity.WARN}
        assert {str(each.description).partition(":")[0] for each in found} == {"not judged"}
    assert not judge(instance, pipeline, DAY).get_asset_check_evaluations()


def test_without_a_partition_a_check_fails_while_any_day_does(
    instance: dg.DagsterInstance, pipeline: Pipeline, say: Callable[..., None]
) -> None:
    say(DAY - timedelta(days=1), "ohlc_sanity")
    say(DAY)
    keys = {dg.AssetCheckKey(candles.key, name) for name in ("schema", "ohlc_sanity")}
    job = defs.get_repository_def().get_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection=keys)
    result = subset.execute_in_process(instance=instance, resources={"pipeline": pipeline}, raise_on_error=False)
    assert checks(result) == {"schema": True, "ohlc_sanity": False}


@pytest.fixture
def outcomes_tick(instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection) -> Tick:
    """Evaluates the sensor of outcomes as the daemon would, runs what it requests, and keeps its cursor."""
    cursor: list[str | None] = [None]

    def evaluate() -> Any:
        context = dg.build_sensor_context(
            instance, cursor=cursor[0], resources={"pipeline": pipeline}, repository_def=defs.get_repository_def()
        )
        tick = check_outcomes.evaluate_tick(context)
        cursor[0] = tick.cursor
        for request in tick.run_requests or []:
            result = defs.resolve_job_def("okx_check_outcomes").execute_in_process(
                instance=instance, resources={"pipeline": pipeline}, run_config=request.run_config, tags=request.tags
            )
            assert result.success
        return tick.run_requests

    return evaluate


def test_what_no_run_has_reported_is_reported_failures_first_and_again_when_a_day_is_materialized_again(
    instance: dg.DagsterInstance,
    connection: Connection,
    say: Callable[..., None],
    outcomes_tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say(DAY, "ohlc_sanity")
    assert not outcomes_tick(), "a verdict is read two minutes after it was reached"
    connection.execute("UPDATE trading.quality_results SET validated_at = validated_at - interval '3 minutes'")
    monkeypatch.setattr(candle_quality, "OUTCOMES_A_RUN", 5)
    assert outcomes_tick()
    assert failing(instance, DAY) == {"ohlc_sanity"}
    assert len(evaluations(instance, DAY)) == 5
    assert outcomes_tick()
    assert len(evaluations(instance, DAY)) == len(Check)
    assert not outcomes_tick()
    instance.report_runless_asset_event(dg.AssetMaterialization(candles.key, partition=f"{DAY}|{BTC}"))
    assert not evaluations(instance, DAY)
    assert outcomes_tick()
    assert outcomes_tick()
    assert failing(instance, DAY) == {"ohlc_sanity"}
    assert len(evaluations(instance, DAY)) == len(Check)
    assert not outcomes_tick()


def test_a_first_pass_of_long_ago_is_not_reported_and_one_after_a_failure_is(
    instance: dg.DagsterInstance,
    say: Callable[..., None],
    report: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candle_quality, "DAYS_SHOWN", 30)
    for failed, shown in (("", 0), ("ohlc_sanity", 1), ("", 1)):
        say(DAY, failed)
        report(DAY)
        assert len(evaluations(instance, DAY)) == shown
    assert not failing(instance, DAY)


def test_the_pages_are_built_and_the_report_shows_how_the_days_fared_and_which_were_not_judged(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, served: None
) -> None:
    def built_pages() -> dg.ExecuteInProcessResult:
        job = defs.resolve_job_def("okx_data_docs")
        return job.execute_in_process(instance=instance, resources={"pipeline": pipeline})

    run(candles, instance, pipeline, DAY)
    [before] = built_pages().asset_materializations_for_node("okx__quality_report")
    said = {name: value.value for name, value in before.metadata.items() if name in {"outcome", "errors", "warnings"}}
    assert said == dict.fromkeys(("outcome", "errors", "warnings"), "not judged")
    judge(instance, pipeline, DAY)
    result = built_pages()
    assert result.success
    [built] = result.asset_materializations_for_node("okx__data_docs")
    assert built.metadata["pages"].value == 2
    assert (pipeline.docs().site / "index.html").is_file()
    [report] = result.asset_materializations_for_node("okx__quality_report")
    # However long ago the newest day judged is.
    assert f"{DAY}" in {row.data["day"] for row in report.metadata["by day"].records}
    assert report.metadata["outcome"].value == "all verdicts passed"
    assert report.metadata["errors"].value == 0
    connection.execute("UPDATE trading.coverage SET judged_at = NULL WHERE timeframe = '1h'")
    connection.execute(
        "UPDATE trading.quality_results SET passed = false, severity = 'critical', failed = '{no_candle_missing}' "
        "WHERE timeframe = '15m' AND check_name = 'completeness'"
    )
    [report] = built_pages().asset_materializations_for_node("okx__quality_report")
    assert report.metadata["outcome"].value == "series-days with errors: 1, series-days not judged: 1"
