"""An exchange that is there and does wrong: refuses, forgets to send, cuts its pages short, answers nonsense."""

from collections.abc import Callable
from typing import Any

import pytest

from okx_pipeline.alerts.incidents import Source, look
from okx_pipeline.defs.alerts.sources import stale_stream
from okx_pipeline.stream.health import stream_health
from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.system import System
from okx_pipeline_tests.faults.variations import impatient
from okx_pipeline_tests.stream.stand import wait_until

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
FOR_LONG = 1_000_000
"""Requests or seconds: as long as the test takes."""


def told_refused(system: System) -> list[str]:
    """The series that the sidecar says are refused."""
    found = system.rows("SELECT refused FROM trading.stream_status ORDER BY heartbeat_at DESC LIMIT 1")
    return sorted(found[0][0]) if found else []


@pytest.mark.fault(10, "subscription refused or forgotten", tries=4)
@pytest.mark.parametrize("kind", ["no_channel", "invalid"])
def test_a_refused_series_is_told_by_name_and_costs_neither_itself_nor_the_others_a_candle(
    system: System, kind: str
) -> None:
    symbol, timeframe = system.randomly.choice(system.series())
    system.fault({"kind": kind, "symbol": symbol, "timeframe": timeframe})
    system.sidecar(impatient)
    wait_until(lambda: told_refused(system) == [f"{symbol} {timeframe}"], "the refused series is told, and no other")
    assert system.command("status", "--json") in (0, 1)
    assert f'"refused": {{"{symbol} {timeframe}": ' in system.log.read_text()
    system.lets_pass(1)
    assert system.recovers().explained == 0
    assert system.status()["websocket"]["subscriptions"] == len(system.series()) - 1


@pytest.mark.fault(10, "subscription refused or forgotten", tries=4)
def test_a_channel_that_is_acknowledged_and_never_sent_is_noticed_and_its_candles_are_there(system: System) -> None:
    system.fault({"kind": "mute", "symbol": BTC, "timeframe": "1m"})
    system.sidecar(impatient)
    wait_until(lambda: system.counter("silent series"), "the silent series is noticed", 60)
    assert system.recovers().explained == 0
    system.heal()
    subscribed_anew = system.status()["websocket"]["confirmed"]
    wait_until(lambda: system.status()["websocket"]["confirmed"] > subscribed_anew, "candles come")
    assert system.recovers().explained == 0


@pytest.mark.fault(11, "no data while pings are answered", tries=4)
def test_a_stream_that_says_nothing_is_noticed_by_the_clock_of_the_candles_and_alarms_while_nothing_comes(
    system: System,
) -> None:
    system.streaming()
    system.fault({"kind": "stall", "seconds": FOR_LONG})
    system.lets_pass(1)
    # Still stalled: REST has what the stream does not bring.
    assert system.recovers().explained == 0
    system.fault({"kind": "status", "endpoint": "candles", "requests": FOR_LONG})
    wait_until(lambda: problem(system), "it is noticed that nothing comes")
    assert system.command("status") == 1
    with system.database.connect() as connection:
        (incident,) = look(connection, [Source("stale_stream", stale_stream)], ["sink"])
    assert "late" in incident.text
    assert system.rows("SELECT what FROM trading.alerts WHERE resolved_at IS NULL") == [("stale_stream",)]
    system.heal()
    assert system.recovers().explained == 0
    wait_until(lambda: not problem(system), "it is well again")
    with system.database.connect() as connection:
        assert look(connection, [Source("stale_stream", stale_stream)], ["sink"]) == []


def problem(system: System) -> str | None:
    """What is wrong with the stream."""
    with system.database.connect() as connection:
        return stream_health(connection).problem


@pytest.fixture
def a_day(make_system: Callable[..., System]) -> System:
    """A system late in its first day, its exchange standing still; nothing landed."""
    return make_system(minutes=23 * 60 + 57, speed=0.0)


def backfilled(system: System) -> None:
    assert system.command("backfill", "--start", "2026-08-20", "--end", "2026-08-21") == 0, system.told()


@pytest.mark.fault(22, "short, empty and lowered pages", tries=15)
def test_pages_of_whatever_length_leave_no_hole(a_day: System) -> None:
    randomly = a_day.randomly
    faults: list[dict[str, object]] = []
    for _ in range(randomly.randint(2, 5)):
        lowered = {"kind": "page_limit", "rows": randomly.choice([1, 7, 99, 100]), "requests": randomly.randint(1, 8)}
        short = {"kind": "short", "rows": randomly.randint(1, 299), "requests": randomly.randint(1, 8)}
        faults += randomly.sample([lowered, short], 2)
    # One alone: that a page is empty is believed when it is said twice.
    faults.insert(randomly.randint(0, len(faults)), {"kind": "empty", "skip": randomly.randint(0, 3)})
    for fault in faults:
        a_day.fault({"endpoint": randomly.choice(["candles", "history-candles"]), **fault})
    a_day.fault({"kind": "page_limit", "rows": 100, "requests": FOR_LONG})
    backfilled(a_day)
    assert a_day.recovers().explained == 0
    asked = [(each.symbol, each.bar, each.after) for each in a_day.exchange.requests]
    assert len(asked) > len(a_day.series()) * 3
    a_day.heal()
    a_day.exchange.requests.clear()
    backfilled(a_day)
    assert not a_day.exchange.requests, "nothing is left to be asked for"


NONSENSE: list[dict[str, Any]] = [
    {"kind": "yesterday"},
    {"kind": "html"},
    {"kind": "truncated"},
    {"kind": "reset"},
    {"kind": "bomb"},
    {"kind": "too_many"},
    *[{"kind": "status", "status": status} for status in (500, 502, 503, 504)],
    *[{"kind": "code", "code": code} for code in ("50001", "50011", "50013", "50026", "50040", "1")],
]


@pytest.mark.fault(30, "wrong answers of REST", tries=6)
def test_answers_that_are_none_are_asked_for_again_and_nothing_of_them_is_stored(system: System) -> None:
    randomly = system.randomly
    system.sidecar(impatient)
    wait_until(system.streams, "the sidecar streams")
    # Nothing is confirmed by a frame: all has to come from REST.
    system.fault({"kind": "withhold"})
    nonsense = [*NONSENSE, {"kind": "slow", "seconds": 2}]
    for fault in randomly.sample(nonsense, len(nonsense) if table.is_full() else 7):
        endpoint = randomly.choice(["candles", "candles", "time"])
        system.fault(
            {"endpoint": endpoint, "requests": randomly.randint(1, 2), "skip": randomly.randint(0, 1), **fault}
        )
    system.lets_pass(4)
    system.holds_its_promises()
    wait_until(lambda: not [each for each in system.exchange.faults.pending if each.kind != "withhold"], "all struck")
    system.heal()
    assert system.recovers().explained == 0


@pytest.mark.fault(30, "wrong answers of REST", tries=6)
def test_a_backfill_ends_with_everything_or_says_that_it_did_not(a_day: System) -> None:
    randomly = a_day.randomly
    for fault in randomly.sample(NONSENSE, 6):
        a_day.fault(
            {**fault, "endpoint": randomly.choice(["candles", "history-candles"]), "skip": randomly.randint(0, 2)}
        )
    status = a_day.command("backfill", "--start", "2026-08-20", "--end", "2026-08-21")
    a_day.holds_its_promises()
    held = a_day.count("SELECT count(*) FROM trading.candlesticks")
    served = sum(len(candles) for candles in a_day.checker.served().values())
    # A page of yesterday, the times of all else being right, is taken for one of an exchange that has nothing newer.
    assert (status == 0 and "were not served by OKX" not in a_day.told()) == (held == served), a_day.told()
    assert a_day.count("SELECT count(*) FROM trading.candle_gaps WHERE status = 'absent'") == 0
    a_day.heal()
    backfilled(a_day)
    assert a_day.recovers().explained == 0
