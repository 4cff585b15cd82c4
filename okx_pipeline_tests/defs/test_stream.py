"""The live stage as Dagster sees it: landings reported, the sidecar watched."""

from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from okx_pipeline.candles import Candle, Source
from okx_pipeline.defs.history.candles import candles as candles_of_history
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.defs.stream.sensors import REPORTS_A_TICK, sidecar_landings
from okx_pipeline.defs.stream.streamed_candles import KEY, every_series_moves
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.landings import database_now, streamed_days
from okx_pipeline.storage.stream_status import Heartbeat, beat, sidecar_asked_for_s
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import MINUTE_MS, day_ms, parse_timeframes

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
DAY = date(2026, 8, 20)
NOW_MS = day_ms(DAY) + 12 * 3_600_000

Tick = Callable[[], Any]


def candle(symbol: str, open_ms: int, timeframe: str = "1m") -> Candle:
    return Candle(symbol, timeframe, open_ms, "10", "11", "9", "10", "5", "0.05", "500")


@pytest.fixture
def tick(instance: dg.DagsterInstance, pipeline: Pipeline) -> Tick:
    """Runs the sidecar's sensor as the daemon would, keeping its cursor."""
    cursor: list[str | None] = [None]

    def run() -> Any:
        context = dg.build_sensor_context(instance, cursor=cursor[0], resources={"pipeline": pipeline})
        result = sidecar_landings(context)
        assert isinstance(result, dg.SensorResult)
        cursor[0] = result.cursor
        return result

    return run


def partitions(result: dg.SensorResult) -> list[str]:
    return [str(event.partition) for event in result.asset_events or []]


def test_the_first_landing_of_a_day_is_reported_at_once_with_totals(
    tick: Tick, instance: dg.DagsterInstance, connection: Connection
) -> None:
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    seed_subscriptions(connection, [BTC], parse_timeframes("1m,5m"), 0)
    assert partitions(tick()) == []
    land(connection, [candle(BTC, day_ms(DAY) + minute * MINUTE_MS) for minute in range(3)], source=Source.WEBSOCKET)
    land(connection, [candle(BTC, day_ms(DAY), "5m")], source=Source.WEBSOCKET)
    result = tick()
    assert partitions(result) == [f"{DAY}|{BTC}"]
    (event,) = result.asset_events
    assert event.asset_key == KEY
    metadata = {name: value.value for name, value in event.metadata.items()}
    assert (metadata["rows"], metadata["rows_1m"], metadata["rows_5m"]) == (4, 3, 1)
    assert metadata["last_candle"] == (day_ms(DAY) + 2 * MINUTE_MS) / 1000


@given(st.integers(1, 899), st.text("ABCDEFGHIJ", min_size=1, max_size=8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_day_that_goes_on_landing_is_reported_once_in_every_quarter_of_an_hour(
    connection: Connection, step_s: int, name: str
) -> None:
    connection.execute("TRUNCATE trading.landing_marks")
    now = database_now(connection)
    connection.execute(
        "INSERT INTO trading.landing_marks (symbol, timeframe, day, streamed_at, first_streamed_at) "
        "VALUES (%s, '1m', %s, %s, %s)",
        (f"{name}-USDT", DAY, now + timedelta(hours=2), now - timedelta(hours=2)),
    )
    looks = [now + timedelta(seconds=second) for second in range(0, 3601, step_s)]
    reports = sum(len(streamed_days(connection, since, until, 900)) for since, until in pairwise(looks))
    looked_s = (looks[-1] - looks[0]).total_seconds()
    assert looked_s // 900 <= reports <= looked_s // 900 + 1


def test_what_is_too_much_for_a_tick_waits_for_the_next(
    tick: Tick, instance: dg.DagsterInstance, connection: Connection
) -> None:
    symbols = [f"SYN{number:04d}-USDT-SWAP" for number in range(REPORTS_A_TICK + 7)]
    instance.add_dynamic_partitions("okx_symbols", symbols)
    seed_subscriptions(connection, symbols, parse_timeframes("1m"), 0)
    land(connection, [candle(symbol, day_ms(DAY)) for symbol in symbols], source=Source.WEBSOCKET)
    first, second = tick(), tick()
    assert len(partitions(first)) == REPORTS_A_TICK
    assert "7 wait" in str(first.skip_reason)
    assert set(partitions(first)) | set(partitions(second)) == {f"{DAY}|{symbol}" for symbol in symbols}


def test_history_that_lands_is_not_reported_as_streamed_and_a_corrected_day_is_reported_as_history(
    tick: Tick, instance: dg.DagsterInstance, connection: Connection
) -> None:
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    seed_subscriptions(connection, [BTC], parse_timeframes("1m"), 0)
    land(connection, [candle(BTC, day_ms(DAY))], source=Source.REST)
    assert partitions(tick()) == []
    wrong = candle(BTC, day_ms(DAY))._replace(volume="6")
    land(connection, [wrong], source=Source.REST, requested_at=database_now(connection))
    (event,) = tick().asset_events
    assert (event.asset_key, event.partition) == (candles_of_history.key, f"{DAY}|{BTC}")


def test_a_silent_sidecar_is_asked_for_and_a_living_one_is_left_alone(tick: Tick, connection: Connection) -> None:
    assert "asked for one" in str(tick().skip_reason)
    asked = sidecar_asked_for_s(connection)
    assert asked is not None
    connection.execute("DELETE FROM trading.store_facts WHERE name = 'sidecar_asked_for_at'")
    beat(connection, Heartbeat("host:1", "streaming", NOW_MS))
    assert "sidecar streaming" in str(tick().skip_reason)
    assert sidecar_asked_for_s(connection) is None
    connection.execute("UPDATE trading.stream_status SET heartbeat_at = clock_timestamp() - interval '1 minute'")
    assert "does not beat" in str(tick().skip_reason)
    assert sidecar_asked_for_s(connection) is not None


def test_the_check_names_every_silent_symbol(pipeline: Pipeline, connection: Connection) -> None:
    seed_subscriptions(connection, [BTC, ETH], parse_timeframes("1m"), 0)
    beat(connection, Heartbeat("host:1", "streaming", NOW_MS, {}, {f"{ETH} 1m": "no such channel"}))
    land(connection, [candle(BTC, NOW_MS - 2 * MINUTE_MS)], source=Source.WEBSOCKET)
    result = every_series_moves(pipeline)
    assert isinstance(result, dg.AssetCheckResult)
    assert not result.passed
    records = result.metadata["silent"].records
    assert [(record.data["symbol"], record.data["refused"]) for record in records] == [(ETH, "no such channel")]
    land(connection, [candle(ETH, NOW_MS - 2 * MINUTE_MS)], source=Source.WEBSOCKET)
    assert every_series_moves(pipeline).passed  # type: ignore[union-attr]


def test_maintenance_of_the_exchange_holds_the_verdict_on_silence(pipeline: Pipeline, connection: Connection) -> None:
    seed_subscriptions(connection, [BTC], parse_timeframes("1m"), 0)
    window = {"title": "upgrade", "state": "ongoing", "begin_ms": NOW_MS - 1, "end_ms": NOW_MS + 60_000}
    beat(connection, Heartbeat("host:1", "streaming", NOW_MS, maintenance=[{**window, "stops_candles": False}]))
    assert not every_series_moves(pipeline).passed  # type: ignore[union-attr]
    beat(connection, Heartbeat("host:1", "streaming", NOW_MS, maintenance=[{**window, "stops_candles": True}]))
    result = every_series_moves(pipeline)
    assert result.passed  # type: ignore[union-attr]
    assert "OKX is at maintenance: upgrade" in str(result.description)  # type: ignore[union-attr]
