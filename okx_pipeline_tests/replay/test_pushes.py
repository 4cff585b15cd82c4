"""What is pushed: the forming candle as it grows, every close once and in order, with the values that REST serves."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from okx_pipeline.exchange.frames import Argument
from okx_pipeline.replay.bars import BARS, Bar
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.market import Market
from okx_pipeline.replay.pushes import SeriesPushes
from okx_pipeline.replay.recordings import Recordings
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS
from okx_pipeline_tests.replay.stand import BTC, ETH, NOW_MS, confirmed, standing

MINUTE = BARS["1m"]
LEFT_MS = MINUTE.close_of(MINUTE.open_at(NOW_MS)) - NOW_MS
"""Until the minute closes."""


def test_the_forming_candle_comes_with_the_subscription_as_rest_serves_it(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.connect()
        client.ask("subscribe", ("candle1m", BTC), ("candle4H", ETH))
        frames = client.frames()
        assert [frame.get("event") for frame in frames] == ["subscribe", None, "subscribe", None]
        assert frames[1]["data"] == stand.rest(limit=1)
        assert frames[3]["data"] == stand.rest(ETH, "4H", limit=1)
        assert frames[1]["data"][0][8] == "0"


def test_a_candle_is_pushed_again_when_it_has_changed_and_only_then(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(("candle1m", BTC))
        for _ in range(3):
            stand.step()
        assert client.frames() == []
        for _ in range(3):
            stand.step(1_000)
            assert client.rows() == stand.rest(limit=1)


def test_for_load_every_series_can_be_pushed_each_time(synthetic: SyntheticMarket):
    with standing(synthetic, rules={"push_unchanged": True}) as stand:
        client = stand.subscribed(("candle1m", BTC))
        for _ in range(3):
            stand.step()
        assert client.rows() == stand.rest(limit=1) * 3


def test_a_close_is_pushed_confirmed_and_then_the_next_candle_forms(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(("candle1m", BTC))
        stand.step(LEFT_MS - 1)
        assert [row[8] for row in client.rows()] == ["0"]
        stand.step(1)
        assert client.rows() == stand.rest(limit=2)
        assert [row[8] for row in stand.rest(limit=2)] == ["1", "0"]


def test_stepping_through_an_hour_every_close_of_every_series_comes_once_and_as_rest_has_it(
    synthetic: SyntheticMarket,
):
    series = [(bar, symbol) for bar in ("1m", "3m", "15m", "1H", "1Dutc", "1D") for symbol in (BTC, "ETH-USDT")]
    midnight_ms = NOW_MS // DAY_MS * DAY_MS
    with standing(synthetic, now_ms=midnight_ms - 40 * MINUTE_MS - 7) as stand:
        client = stand.subscribed(*((f"candle{bar}", symbol) for bar, symbol in series))
        frames = []
        for _ in range(150):
            stand.step(37_000)
            frames += client.frames()
        for bar, symbol in series:
            about = {"channel": f"candle{bar}", "instId": symbol}
            rows = [row for frame in frames if frame["arg"] == about for row in frame["data"]]
            count = len(confirmed(rows))
            assert count > 0 or bar == "1D"
            assert confirmed(rows) == confirmed(stand.rest(symbol, bar))[-count or 300 :]
            assert [int(row[0]) for row in rows] == sorted(int(row[0]) for row in rows)


def pushed(exchange: Exchange, bar: Bar, steps: list[int], symbol: str = BTC) -> list[list[str]]:
    """The rows pushed of a series while the clock takes these steps."""
    series = SeriesPushes(exchange, Argument(f"candle{bar}", symbol), bar)
    current = series.current()
    frames = [] if current is None else [current]
    for step in steps:
        exchange.clock.set(exchange.clock.now_ms() + step)
        frames += series.advance()
    rows: list[list[str]] = [row for frame in frames for row in json.loads(frame.text)["data"]]
    assert sum(frame.confirmed for frame in frames) == len(confirmed(rows))
    return rows


def held_against_truth(market: Market, bar: Bar, now_ms: int, steps: list[int]) -> None:
    exchange = Exchange(market, ExchangeClock(now_ms, 0))
    rows = pushed(exchange, bar, steps)
    start_ms, end_ms = bar.open_at(now_ms), bar.open_at(exchange.clock.now_ms())
    assert confirmed(rows) == exchange.confirmed(BTC, bar, after_ms=end_ms, before_ms=start_ms - 1)[::-1]
    assert all(int(early[0]) < int(late[0]) or early[8] == "0" for early, late in pairwise(rows))
    assert all(int(early[0]) <= int(late[0]) for early, late in pairwise(rows))
    assert all(early != late for early, late in pairwise(rows))


short_steps = st.lists(st.integers(0, 90_000), max_size=25)
long_steps = st.lists(st.sampled_from([0, 1, MINUTE_MS, HOUR_MS, 7 * HOUR_MS, DAY_MS]), max_size=6)
bars = st.sampled_from(list(BARS.values()))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([MINUTE, BARS["3m"]]), st.integers(NOW_MS - DAY_MS, NOW_MS), short_steps)
def test_whatever_the_steps_every_close_is_pushed_once_and_in_order(
    synthetic: SyntheticMarket, bar: Bar, now_ms: int, steps: list[int]
):
    held_against_truth(synthetic, bar, now_ms, steps)


@settings(max_examples=60, deadline=None)
@given(bars.filter(lambda bar: bar.length_ms > HOUR_MS), st.integers(NOW_MS - 900 * DAY_MS, NOW_MS - 400 * DAY_MS))
def test_weeks_and_months_close_like_minutes(synthetic: SyntheticMarket, bar: Bar, now_ms: int):
    held_against_truth(synthetic, bar, now_ms, [DAY_MS, 40 * DAY_MS, 7 * DAY_MS, 1, 75 * DAY_MS])


@settings(max_examples=40, deadline=None)
@given(bars, st.integers(1_785_150_000_000, 1_787_300_000_000), long_steps)
def test_of_a_recording_its_rows_are_pushed_and_nothing_in_its_holes(
    recorded: Recordings, bar: Bar, now_ms: int, steps: list[int]
):
    held_against_truth(recorded, bar, now_ms, steps)


def test_who_comes_later_gets_what_closes_later_and_nobody_anything_twice(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        early = stand.subscribed(("candle1m", BTC))
        # Between two pushes: the clock moves, and nothing is pushed yet.
        stand.exchange.clock.set(NOW_MS + MINUTE_MS)
        late = stand.connect()
        late.ask("subscribe", ("candle1m", BTC))
        assert late.rows() == stand.rest(limit=1)
        stand.step()
        assert early.rows() == stand.rest(limit=2)
        assert late.rows() == []
        stand.step(2 * MINUTE_MS)
        assert early.rows() == late.rows() == stand.rest(limit=3)


def test_a_series_asked_for_again_after_a_pause_starts_with_what_forms_then(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(("candle1m", BTC))
        client.ask("unsubscribe", ("candle1m", BTC))
        stand.step(3 * MINUTE_MS)
        client.ask("subscribe", ("candle1m", BTC))
        assert client.rows() == stand.rest(limit=1)


def test_a_clock_that_is_put_back_pushes_from_there(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(("candle1m", BTC))
        stand.step(-DAY_MS)
        assert client.rows() == stand.rest(limit=1)
        stand.step(MINUTE_MS)
        assert client.rows() == stand.rest(limit=2)


def test_a_delay_of_rest_is_none_of_the_pushes(synthetic: SyntheticMarket):
    with standing(synthetic, confirm_delay_ms=5_000) as stand:
        client = stand.subscribed(("candle1m", BTC))
        stand.step(LEFT_MS + 1_000)
        (row,) = confirmed(client.rows())
        assert row[:8] == stand.rest(limit=2)[0][:8]
        assert stand.rest(limit=2)[0][8] == "0"
        stand.step(5_000)
        assert row == stand.rest(limit=2)[0]


def test_a_fast_clock_closes_a_minute_each_second_and_none_is_skipped(synthetic: SyntheticMarket):
    start_ms = NOW_MS - 10 * DAY_MS
    with standing(synthetic, now_ms=start_ms, speed=60, push_interval_s=0.1) as stand:
        client = stand.subscribed(("candle1m", BTC), ("candle3m", ETH))
        rows: dict[str, list[Any]] = {BTC: [], ETH: []}
        while len(confirmed(rows[BTC])) < 4 or not confirmed(rows[ETH]):
            frame = client.next()
            rows[frame["arg"]["instId"]] += frame["data"]
        for symbol, bar in ((BTC, "1m"), (ETH, "3m")):
            closed = confirmed(rows[symbol])
            served = confirmed(stand.rest(symbol, bar))
            assert closed == served[served.index(closed[0]) :][: len(closed)]


def test_at_a_speed_of_many_candles_a_push_all_of_them_come(synthetic: SyntheticMarket):
    with standing(synthetic, now_ms=NOW_MS - 300 * DAY_MS, speed=20_000, push_interval_s=0.2) as stand:
        client = stand.subscribed(("candle1m", BTC))
        rows: list[list[str]] = []
        while len(confirmed(rows)) < 300:
            rows += client.next()["data"]
        stand.exchange.clock.set(speed=0)
        rows += client.rows()
        opens = [int(row[0]) for row in confirmed(rows)]
        assert opens == list(range(opens[0], opens[-1] + 1, MINUTE_MS))
        assert [[int(row[0]), *row[1:8]] for row in confirmed(rows)] == stand.truth(opens[0], opens[-1] + 1)
