"""Frames that come late, out of order, damaged, or with what is not true; and a close that never comes."""

from decimal import Decimal

import httpx
import pytest

from okx_pipeline.timeframes import HOUR_MS, MINUTE_MS
from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.system import START, System
from okx_pipeline_tests.stream.stand import wait_until

BTC = "BTC-USDT-SWAP"


def put_clock(system: System, **clock: float) -> None:
    """Put the exchange's clock, and have pushed what then is to be pushed."""
    httpx.post(f"{system.url}/replay/clock", json=clock, trust_env=False, timeout=30).raise_for_status()


def knows_the_time(system: System) -> bool:
    """Whether the sidecar's clock stands where that of an exchange stands that stands still."""
    found = system.rows("SELECT exchange_ms FROM trading.stream_status ORDER BY heartbeat_at DESC LIMIT 1")
    return bool(found) and found[0][0] is not None and abs(found[0][0] - system.now_ms()) < MINUTE_MS


@pytest.mark.fault(15, "frames out of order and late", tries=8)
def test_frames_out_of_order_and_minutes_late_change_nothing(system: System) -> None:
    system.streaming()
    system.fault(
        {"kind": "reorder", "share": 0.4, "frames": 5},
        {"kind": "late", "share": 0.4, "seconds": system.randomly.uniform(0.5, 3)},
        {"kind": "duplicate", "share": 0.3},
    )
    system.lets_pass(8 if table.is_full() else 4)
    system.holds_its_promises()
    system.heal()
    assert system.recovers().explained == 0
    assert system.count("SELECT count(*) FROM trading.candlestick_revisions") == 0


@pytest.mark.fault(15, "frames hours late", tries=4)
def test_frames_hours_late_are_taken_as_what_they_are_and_a_late_correction_becomes_a_revision(system: System) -> None:
    system.streaming()
    system.fault({"kind": "late", "seconds": 2, "requests": 4})
    wait_until(lambda: not system.exchange.faults, "confirmations are held back")
    put_clock(system, now_ms=system.now_ms() + 3 * HOUR_MS)
    confirmed = system.counter("confirmed")
    system.lets_pass(2)
    assert system.recovers().explained == 0
    wait_until(lambda: system.counter("confirmed") > confirmed, "frames are believed again")
    assert system.count("SELECT count(*) FROM trading.candlestick_revisions") == 0

    open_ms = START + system.randomly.randint(0, 120) * MINUTE_MS
    before = system.rows(
        "SELECT volume FROM trading.candlesticks WHERE timeframe = '1m' AND symbol = %s AND timestamp_ms = %s",
        BTC,
        open_ms,
    )
    key = {"symbol": BTC, "timeframe": "1m", "timestamp_ms": open_ms}
    correction = {**key, "volume": f"{before[0][0] + 1}", "pushed": True}
    httpx.post(f"{system.url}/replay/corrections", json=correction, trust_env=False).raise_for_status()
    assert system.recovers().explained == 0
    revised = system.rows("SELECT symbol, timeframe, timestamp_ms, volume FROM trading.candlestick_revisions")
    assert revised == [(BTC, "1m", open_ms, before[0][0])]


@pytest.mark.fault(17, "damaged frames", tries=15)
def test_damaged_frames_cost_nothing_and_what_is_refused_is_kept_as_it_came(system: System) -> None:
    system.streaming()
    system.fault({"kind": "garble", "share": 0.4}, {"kind": "off_boundary", "share": 0.1})
    system.lets_pass(12 if table.is_full() else 5)
    system.holds_its_promises()
    wait_until(lambda: system.counter("garbled frame"), "damage is counted")
    system.heal()
    assert system.recovers().explained == 0
    assert system.counter("connection lost") == 0
    refused = system.rows("SELECT reason, original FROM trading.candlesticks_quarantine WHERE symbol IS NOT NULL")
    wait_until(lambda: system.counter("row refused") >= len(refused), "what is refused is counted")
    assert all(reason and original.startswith("[") for reason, original in refused)
    unread = system.count("SELECT count(DISTINCT original) FROM trading.candlesticks_quarantine WHERE symbol IS NULL")
    assert unread > 0
    # A heartbeat brings the counters, the frames are kept at once.
    wait_until(lambda: system.counter("garbled frame") >= unread, "every frame that is kept is counted")


@pytest.mark.fault(18, "confirmations that are not true", tries=10)
def test_the_first_confirmation_stands_against_frames_that_contradict_it_until_rest_decides(system: System) -> None:
    system.streaming()
    system.fault(
        # In the batch of what it contradicts, and in a later one.
        {"kind": "contradict", "requests": 3},
        {"kind": "contradict", "share": 0.4, "seconds": 0.5},
        {"kind": "unconfirm", "share": 0.4},
        {"kind": "withhold", "share": 0.2},
    )
    system.lets_pass(8 if table.is_full() else 4)
    system.holds_its_promises()
    system.heal()
    assert system.recovers().explained == 0
    wait_until(lambda: system.counter("frame differs from what is stored"), "the contradiction is counted")
    assert system.count("SELECT count(*) FROM trading.candlestick_revisions") == 0


@pytest.mark.fault(18, "confirmations that are not true", tries=10)
def test_what_the_stream_alone_said_wrong_is_corrected_by_the_next_reading_of_rest_and_leaves_a_revision(
    system: System,
) -> None:
    process = system.streaming()
    system.fault({"kind": "lie", "share": 0.6})

    def lies() -> set[tuple[str, str, int]]:
        held: dict[tuple[str, str, int], Decimal] = {}
        for symbol, timeframe in system.series():
            truth = {
                open_ms: Decimal(volume) for open_ms, *_, volume, _, _ in system.truth(symbol, timeframe, START, 10**14)
            }
            rows = system.rows(
                "SELECT timestamp_ms, volume FROM trading.candlesticks WHERE symbol = %s AND timeframe = %s",
                symbol,
                timeframe,
            )
            held |= {(symbol, timeframe, at_ms): volume for at_ms, volume in rows if volume != truth[at_ms]}
        return set(held)

    wait_until(lambda: len(lies()) >= 3, "some lies are believed")
    system.heal()
    system.end(process)
    believed = lies()
    assert system.command("backfill", "--start", "2026-08-20", "--end", "2026-08-21", "--refetch") == 0, system.told()
    # What closes from here on is the stream's again.
    system.sidecar()
    assert system.recovers().explained == 0
    revised = system.rows("SELECT symbol, timeframe, timestamp_ms FROM trading.candlestick_revisions")
    assert sorted(revised) == sorted(believed)


@pytest.mark.fault(19, "exchange stalls within a candle", tries=6)
def test_what_a_stalled_exchange_said_of_half_a_candle_is_never_stored_as_its_close(system: System) -> None:
    system.streaming()
    for part in system.randomly.sample([0.1, 0.25, 0.5, 0.75, 0.98], 5 if table.is_full() else 2):
        stalled_ms = (system.now_ms() // MINUTE_MS + 2) * MINUTE_MS + int(part * MINUTE_MS)
        put_clock(system, now_ms=stalled_ms, speed=0)
        wait_until(lambda: knows_the_time(system), "the sidecar has seen half a candle")
        system.holds_its_promises()
        # It goes on within the next candle, and never says how the last one closed.
        system.fault({"kind": "withhold", "requests": 4})
        put_clock(system, now_ms=stalled_ms + MINUTE_MS + system.randomly.randint(0, 20_000), speed=60)
        assert system.recovers().explained == 0
        system.heal()
