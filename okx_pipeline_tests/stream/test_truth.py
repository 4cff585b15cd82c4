"""The stream's promise: whatever the exchange, the network and the machine do, the store ends with the truth."""

import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.landing import land
from okx_pipeline.timeframes import DAY_MS, day_ms
from okx_pipeline_tests.stream.stand import Stand, standing, wait_until

START = day_ms(date(2026, 8, 20))
SPEED = 60.0


@pytest.fixture
def stand(database: Database, tmp_path: Path) -> Iterator[Stand]:
    """An exchange half an hour into a day, a minute a second, and an empty store."""
    exchange = Exchange(open_market("synthetic", seed=3, symbols=6), ExchangeClock(START + 1_800_000, SPEED))
    with ReplayServer(exchange) as server:
        settings = read_settings(
            home=tmp_path / "home",
            database_url=database.url,
            rest_url=server.url,
            ws_url=server.url.replace("http", "ws") + "/ws/v5/business",
            symbols="BTC-USDT-SWAP,ETH-USDT-SWAP,BTC-USDT",
            timeframes="1m,5m",
        )
        with standing(server.url, settings, database, tmp_path) as stand:
            yield stand


@pytest.fixture
def streaming(stand: Stand) -> Stand:
    """The same with a sidecar that streams."""
    stand.start()
    wait_until(stand.streams, "the sidecar streams")
    return stand


def test_everything_that_closes_is_held_exactly_in_both_stores(streaming: Stand) -> None:
    streaming.lets_pass(8)
    streaming.agrees_from(START)
    streamed = streaming.count("SELECT count(*) FROM trading.candlesticks WHERE source = 'websocket'")
    assert streamed >= 3 * 8
    assert streaming.status()["endpoints"]["candles"]["refused"] == 0


def test_after_random_disconnects(streaming: Stand) -> None:
    randomly = random.Random(4)
    for _ in range(20):
        streaming.fault({"kind": "drop"} if randomly.random() < 0.5 else {"kind": "drop", "close": 4006})
        streaming.lets_pass(randomly.uniform(0.2, 1.5))
    streaming.agrees_from(START)


@pytest.mark.parametrize(
    "faults",
    [
        [{"kind": "withhold", "share": 0.2}],
        [{"kind": "duplicate", "share": 0.5}, {"kind": "reorder", "share": 0.3}],
        [{"kind": "garble", "share": 0.05}, {"kind": "off_boundary", "share": 0.05}],
        [{"kind": "late", "share": 0.3, "seconds": 3}, {"kind": "unconfirm", "share": 0.3}],
        [{"kind": "two_rows", "share": 0.5}],
    ],
    ids=lambda faults: " and ".join(fault["kind"] for fault in faults),
)
def test_after_frames_that_are(streaming: Stand, faults: list[dict[str, object]]) -> None:
    streaming.fault(*faults)
    streaming.lets_pass(6)
    streaming.heal()
    streaming.lets_pass(2)
    streaming.agrees_from(START)


def test_a_service_upgrade_leaves_no_gap_at_all(streaming: Stand) -> None:
    streaming.agrees_from(START)
    before = streaming.status()
    begun = streaming.now_ms()
    streaming.fault({"kind": "notice", "seconds": 4})
    closed = before["websocket"]["closes"].get("1001", 0)
    wait_until(lambda: streaming.status()["websocket"]["connected"] > before["websocket"]["connected"], "it reconnects")
    streaming.lets_pass(8)
    streaming.agrees_from(START)
    assert (
        streaming.count(f"SELECT count(*) FROM trading.candlesticks WHERE timestamp_ms > {begun} AND source = 'rest'")
        == 0
    ), "nothing had to be fetched"
    assert closed == 0


def test_after_being_killed_ten_times(stand: Stand) -> None:
    randomly = random.Random(5)
    for _ in range(10):
        process = stand.start()
        wait_until(stand.streams, "the sidecar streams")
        stand.lets_pass(randomly.uniform(0, 3))
        stand.kill(process)
    stand.start()
    stand.lets_pass(2)
    stand.agrees_from(START)


def test_after_rest_was_down_for_half_a_minute_of_the_wall(streaming: Stand) -> None:
    streaming.fault({"kind": "status", "requests": 100_000}, {"kind": "withhold", "share": 0.3})
    streaming.lets_pass(30)
    streaming.heal()
    streaming.agrees_from(START)


def test_on_a_machine_whose_clock_is_an_hour_off(stand: Stand) -> None:
    stand.start("hour-off")
    wait_until(stand.streams, "the sidecar streams")
    stand.fault({"kind": "withhold", "share": 0.2})
    stand.lets_pass(8)
    stand.heal()
    stand.agrees_from(START)


def test_two_at_once_without_the_lock_are_still_exact(stand: Stand) -> None:
    for _ in range(2):
        stand.start("no-lock")
    wait_until(stand.streams, "a sidecar streams")
    stand.fault({"kind": "duplicate", "share": 0.2}, {"kind": "withhold", "share": 0.2})
    stand.lets_pass(8)
    stand.heal()
    stand.agrees_from(START)


def test_a_second_one_leaves_at_once_and_a_standby_takes_over(streaming: Stand) -> None:
    first = streaming.sidecars[0]
    second = streaming.start()
    assert second.wait(timeout=60) == 75
    standby = streaming.start("standby")
    wait_until(lambda: "standing by" in streaming.log.read_text(), "it stands by")
    streaming.kill(first)
    wait_until(lambda: streaming.log.read_text().count("streaming from") == 2, "the standby takes over")
    assert standby.poll() is None
    streaming.lets_pass(2)
    streaming.agrees_from(START)


def test_a_frame_that_contradicts_what_is_stored_has_rest_asked_which_decides(streaming: Stand) -> None:
    future_ms = (streaming.now_ms() // 60_000 + 3) * 60_000
    wrong = Candle("BTC-USDT-SWAP", "1m", future_ms, "10", "11", "9", "10", "1", "1", "1")
    with streaming.database.connect() as connection:
        land(connection, [wrong], source=Source.WEBSOCKET)
    streaming.lets_pass(5)
    streaming.agrees_from(START)
    assert streaming.count("SELECT count(*) FROM trading.candlestick_revisions WHERE volume = 1") == 1


def test_beside_a_backfill_of_the_same_days(streaming: Stand) -> None:
    days = ["--start", "2026-08-19", "--end", "2026-08-21", "--refetch"]
    command = [sys.executable, "-P", "-m", "okx_pipeline", "backfill", *days]
    for _ in range(2):
        subprocess.run(command, env=streaming.settings.environment(), check=True, capture_output=True)
    streaming.agrees_from(START - DAY_MS)
    assert streaming.count("SELECT count(*) FROM trading.candlestick_revisions") == 0
