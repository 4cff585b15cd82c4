"""The sensor of alerts, as Dagster's daemon evaluates it, telling a webhook on loopback."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import dagster as dg
import pytest

from okx_pipeline.alerts import outbound
from okx_pipeline.definitions import defs
from okx_pipeline.defs.alerts.sensors import alerts
from okx_pipeline.defs.alerts.sources import FailedRuns
from okx_pipeline.defs.quality.candle_gaps import KEY as GAPS
from okx_pipeline.defs.quality.ledger import TAG
from okx_pipeline.defs.quality.outcomes import Outcome, report
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.storage.alert_sources import daemon_silent_s
from okx_pipeline.storage.alerts import open_incidents
from okx_pipeline.storage.damage import note_damage
from okx_pipeline.storage.database import Connection, DatabaseError
from okx_pipeline.storage.parquet import SeriesMonth
from okx_pipeline.storage.stream_status import Heartbeat, beat
from okx_pipeline_tests.alerts.sink_server import Answer, SinkServer, sink_server

BTC = "BTC-USDT-SWAP"
DAY = date(2026, 8, 20)
FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS

Tick = Callable[[], Any]
Run = Callable[..., dg.DagsterRun]


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[SinkServer]:
    monkeypatch.setattr(outbound, "WITHIN_S", 0.5)
    with sink_server() as server:
        yield server


@pytest.fixture
def cursor() -> list[str | None]:
    """The sensor's cursor, as the daemon keeps it."""
    return [None]


@pytest.fixture
def tick(instance: dg.DagsterInstance, pipeline: Pipeline, hook: SinkServer, cursor: list[str | None]) -> Tick:
    """Evaluates the sensor, told to tell the webhook."""
    own = {"alert_webhook_url": f"{hook.url}/hook", "alert_allow_http": True}
    told = Pipeline(overrides={**pipeline.overrides, **own})

    def evaluate() -> Any:
        context = dg.build_sensor_context(
            instance, cursor=cursor[0], resources={"pipeline": told}, repository_def=defs.get_repository_def()
        )
        result = alerts.evaluate_tick(context)
        cursor[0] = result.cursor
        return result

    return evaluate


@pytest.fixture
def run(instance: dg.DagsterInstance) -> Run:
    """`run(status, **tags)`: a run of okx_candles that ended so."""
    job = defs.resolve_job_def("okx_candles")

    def ended(status: dg.DagsterRunStatus, partition: str | None = None, **tags: str) -> dg.DagsterRun:
        tags = {name.replace("_", "/", 1): value for name, value in tags.items()}
        if partition:
            tags |= {"dagster/partition": partition, "dagster/partition/symbol": partition.partition("|")[2]}
        created = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
        if status is FAILURE:
            instance.report_run_failed(created)
        else:
            instance.report_engine_event("done", created)
            instance.handle_run_event(
                created.run_id,
                dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, job_name="okx_candles", message="done"),
            )
        found = instance.get_run_by_id(created.run_id)
        assert found is not None
        assert found.status is status
        return found

    return ended


def texts(hook: SinkServer) -> list[str]:
    return [request.json["text"].removeprefix("okx-pipeline ") for request in hook.requests]


def test_incidents_are_kept_where_nobody_is_to_be_told(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection
) -> None:
    month = SeriesMonth("BTC-USDT-SWAP", "1h", date(2026, 7, 1))
    connection.execute(
        "INSERT INTO trading.candle_months (symbol, timeframe, month, state, content_hash) "
        "VALUES (%s, %s, %s, 'archived', '')",
        month,
    )
    note_damage(connection, month, "it is gone")
    context = dg.build_sensor_context(
        instance, resources={"pipeline": pipeline}, repository_def=defs.get_repository_def()
    )
    result = alerts.evaluate_tick(context)
    assert str(result.skip_message).startswith("1 incidents open; nobody is told: set OKX_ALERT_WEBHOOK_URL")
    assert daemon_silent_s(connection) is not None
    assert [each.subject for each in open_incidents(connection, "damaged_archive")] == ["BTC-USDT-SWAP"]


def test_it_runs_by_default_every_minute_and_is_what_dagster_loads() -> None:
    sensor = defs.resolve_sensor_def("okx_alerts")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 60


def test_a_failed_run_is_told_once_until_one_for_the_same_job_and_partition_succeeds(
    tick: Tick, run: Run, hook: SinkServer
) -> None:
    tick()
    failed = run(FAILURE, f"2026-08-20|{BTC}")
    for _ in range(3):
        tick()
    assert texts(hook) == [f"critical: run {failed.run_id[:8]} of okx_candles failed: 2026-08-20|{BTC}"]
    assert hook.requests[0].json["symbol"] == BTC
    run(SUCCESS, f"2026-08-19|{BTC}")
    run(FAILURE, f"2026-08-20|{BTC}")
    tick()
    assert len(hook.requests) == 1, "another partition, and the same one again"
    run(SUCCESS, f"2026-08-20|{BTC}")
    tick()
    assert hook.told[1:] == [("resolved", hook.told[0][1])]


def test_the_ledgers_work_is_made_up_for_by_whatever_is_left_of_it(
    tick: Tick, run: Run, hook: SinkServer, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    ends = "dagster_asset_partition_range_start", "dagster_asset_partition_range_end"
    work = f"history {BTC}"
    tick()
    run(FAILURE, **{ends[0]: f"2026-01-01|{BTC}", ends[1]: f"2026-04-10|{BTC}", TAG.replace("/", "_"): work})
    tick()
    assert texts(hook)[0].endswith(f"failed: {work} 2026-01-01|{BTC} to 2026-04-10|{BTC}")
    assert hook.requests[0].json["symbol"] == BTC
    run(SUCCESS, **{ends[0]: f"2026-01-01|{BTC}", ends[1]: f"2026-02-11|{BTC}", TAG.replace("/", "_"): work})
    tick()
    assert [state for state, _ in hook.told] == ["open", "resolved"]


def test_a_run_that_dagster_tries_again_by_itself_is_no_incident_yet(tick: Tick, run: Run, hook: SinkServer) -> None:
    tick()
    run(FAILURE, f"2026-08-20|{BTC}", dagster_will_retry="true")
    tick()
    assert hook.requests == []
    run(FAILURE, f"2026-08-20|{BTC}", dagster_will_retry="false")
    tick()
    assert len(hook.requests) == 1


def test_what_failed_before_the_first_tick_is_history(
    tick: Tick, run: Run, hook: SinkServer, cursor: list[Any]
) -> None:
    run(FAILURE, f"2026-08-20|{BTC}")
    cursor[0] = "2999-01-01T00:00:00+00:00"
    tick()
    assert hook.requests == []


def test_a_tick_that_was_lost_or_repeated_tells_nothing_twice(
    tick: Tick, run: Run, hook: SinkServer, cursor: list[Any]
) -> None:
    tick()
    before = cursor[0]
    run(FAILURE, f"2026-08-20|{BTC}")
    tick()
    assert cursor[0] > before
    cursor[0] = before
    tick()
    run(SUCCESS, f"2026-08-20|{BTC}")
    tick()
    cursor[0] = before
    tick()
    assert [state for state, _ in hook.told] == ["open", "resolved"]


def test_a_look_that_could_not_be_written_down_is_looked_at_again(
    tick: Tick, run: Run, hook: SinkServer, connection: Connection, cursor: list[Any]
) -> None:
    tick()
    before = cursor[0]
    run(FAILURE, f"2026-08-20|{BTC}")
    connection.execute("ALTER TABLE trading.alerts ADD CONSTRAINT none CHECK (what <> 'failed_run')")
    with pytest.raises(DatabaseError):
        tick()
    assert cursor[0] == before
    connection.execute("ALTER TABLE trading.alerts DROP CONSTRAINT none")
    tick()
    assert [state for state, _ in hook.told] == ["open"]


def test_a_check_is_told_while_it_fails_as_an_error_on_any_day_and_a_warning_is_not(
    tick: Tick, instance: dg.DagsterInstance, hook: SinkServer
) -> None:
    def judge(name: str, day: int, passed: bool, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR) -> None:
        key = (dg.AssetCheckKey(GAPS, name), f"2026-08-{day}|{BTC}")

        @dg.op
        def check(context: dg.OpExecutionContext) -> None:
            report(context, {key: Outcome(passed, severity, "12 candles")})

        @dg.job
        def checking() -> None:
            check()

        checking.execute_in_process(instance=instance)

    judge("nothing_is_missing", 20, False, dg.AssetCheckSeverity.WARN)
    judge("ledger_matches_rows", 20, False)
    judge("ledger_matches_rows", 21, True)
    tick()
    name = "critical: check okx/candle_gaps/ledger_matches_rows"
    assert texts(hook) == [f"{name} fails on 1 day, the newest 2026-08-20|{BTC}"]
    judge("ledger_matches_rows", 20, True)
    tick()
    assert [state for state, _ in hook.told] == ["open", "resolved"]


def test_checks_with_verdicts_by_the_day_are_told_by_the_day(
    tick: Tick, instance: dg.DagsterInstance, hook: SinkServer, connection: Connection
) -> None:
    connection.execute(
        "INSERT INTO trading.quality_results (symbol, timeframe, day, check_name, store, passed, severity, failed, "
        "rows, validated_at) VALUES (%s, '5m', %s, 'ledger_matches_rows', 'postgres', false, 'critical', '{rule}', 1, "
        "clock_timestamp())",
        (BTC, DAY),
    )
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(asset_key=GAPS, check_name="ledger_matches_rows", passed=False, metadata={})
    )
    tick()
    assert [key for _, key in hook.told] == [f"failed_check:ledger_matches_rows/{BTC}"]
    connection.execute("DELETE FROM trading.quality_results")
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(asset_key=GAPS, check_name="ledger_matches_rows", passed=True, metadata={})
    )
    tick()
    assert [state for state, _ in hook.told] == ["open", "resolved"]


def test_a_stale_stream_is_told_when_it_has_lasted(tick: Tick, hook: SinkServer, connection: Connection) -> None:
    beat(connection, Heartbeat("host:1", "streaming", 0))
    connection.execute("UPDATE trading.stream_status SET heartbeat_at = clock_timestamp() - interval '5 minutes'")
    tick()
    assert hook.requests == []
    connection.execute("UPDATE trading.alerts SET announce_at = clock_timestamp()")
    tick()
    assert texts(hook)[0].startswith("critical: the sidecar host:1 does not beat since 3")
    beat(connection, Heartbeat("host:1", "stopped", 0))
    tick()
    assert [state for state, _ in hook.told] == ["open", "resolved"]


def test_gaps_are_told_by_the_setting_and_quarantined_rows_as_a_warning(
    tick: Tick, hook: SinkServer, connection: Connection
) -> None:
    connection.execute(
        "INSERT INTO trading.candle_gaps (symbol, timeframe, first_ms, last_ms, candles, status, detected_at) "
        "VALUES (%s, '5m', 0, 0, 1, 'open', clock_timestamp() - interval '7 hours')",
        (BTC,),
    )
    connection.execute(
        "INSERT INTO trading.candlesticks_quarantine (symbol, timeframe, timestamp_ms, reason, original, source) "
        "VALUES (%s, '5m', 0, 'its high is below its low', '[]', 'rest')",
        (BTC,),
    )
    tick()
    assert sorted(text.split(":")[0] for text in texts(hook)) == ["critical", "warning"]


def test_every_tick_says_that_the_daemon_is_there(tick: Tick, connection: Connection) -> None:
    tick()
    silent_s = daemon_silent_s(connection)
    assert silent_s is not None
    assert silent_s < 60


def test_a_sink_that_is_down_does_not_fail_a_tick_and_is_told_at_a_later_one(
    tick: Tick, run: Run, hook: SinkServer, connection: Connection
) -> None:
    tick()
    hook.answer = Answer(silent=True)
    run(FAILURE, f"2026-08-20|{BTC}")
    result = tick()
    assert "1 incidents open; webhook told 0, then: no answer within 0.5 s" in str(result.skip_message)
    hook.answer = Answer()
    connection.execute("UPDATE trading.alert_deliveries SET try_again_at = '-infinity'")
    assert "webhook told 1" in str(tick().skip_message)


def test_runs_that_were_read_do_not_come_back(run: Run, instance: dg.DagsterInstance, connection: Connection) -> None:
    failed = run(FAILURE, f"2026-08-20|{BTC}")
    record = instance.get_run_record_by_id(failed.run_id)
    assert record is not None
    runs = FailedRuns(instance, record.update_timestamp)
    assert len(runs.look(connection)) == 1, "one of the last minute may have been written late"
    assert runs.since == record.update_timestamp
    assert open_incidents(connection, "failed_run") == []
