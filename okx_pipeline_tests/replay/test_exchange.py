"""What the stand-in answers, held against what is known of OKX: paging, confirmation, errors, limits."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.protocol import CANDLES, HISTORY_CANDLES, INSTRUMENTS, STATUS, TIME, Endpoint
from okx_pipeline.replay.bars import BARS, Bar
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange, PageQuery
from okx_pipeline.replay.market import Market
from okx_pipeline.replay.recordings import Recordings
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS

NOW_MS = 1_795_199_000_123  # in the middle of a minute, an hour and a day
BTC = "BTC-USDT-SWAP"
MINUTE = BARS["1m"]


def at(market: Market, now_ms: int = NOW_MS, **switches: Any) -> Exchange:
    """An exchange whose time stands still; without limits unless told."""
    return Exchange(market, ExchangeClock(now_ms, 0), **{"limits": False, **switches})


def ask(exchange: Exchange, endpoint: Endpoint, **query: object) -> tuple[int, Any]:
    answer = exchange.answer(endpoint, {name: str(value) for name, value in query.items()})
    return answer.status, json.loads(answer.body)


def rows(exchange: Exchange, endpoint: Endpoint, **query: object) -> list[list[str]]:
    status, body = ask(exchange, endpoint, **{"instId": BTC, **query})
    assert (status, body["code"], body["msg"]) == (200, "0", "")
    return body["data"]


def opens(exchange: Exchange, endpoint: Endpoint, **query: object) -> list[int]:
    return [int(row[0]) for row in rows(exchange, endpoint, **query)]


def test_a_page_is_newest_first_with_the_forming_candle_at_its_head(synthetic: SyntheticMarket):
    page = rows(at(synthetic), CANDLES)
    assert len(page) == 100
    assert [int(row[0]) for row in page] == [MINUTE.open_at(NOW_MS) - place * MINUTE_MS for place in range(100)]
    assert [row[8] for row in page] == ["0"] + ["1"] * 99
    assert {len(row) for row in page} == {protocol.ROW_FIELDS}
    assert all(isinstance(text, str) for row in page for text in row)


def test_history_serves_confirmed_candles_only_unless_told_otherwise(synthetic: SyntheticMarket):
    assert rows(at(synthetic), HISTORY_CANDLES, limit=3) == rows(at(synthetic), CANDLES, limit=4)[1:]
    forming = at(synthetic, history_has_forming=True)
    assert rows(forming, HISTORY_CANDLES, limit=3) == rows(at(synthetic), CANDLES, limit=3)


def test_a_candle_is_confirmed_at_its_close_and_not_before(synthetic: SyntheticMarket):
    close_ms = MINUTE.close_of(MINUTE.open_at(NOW_MS))
    before, after = (rows(at(synthetic, now), CANDLES, limit=2) for now in (close_ms - 1, close_ms))
    assert before[0][8] == "0"
    assert after[1][0] == before[0][0]
    assert after[1][8] == "1"
    assert after[0][:7] == [str(close_ms)] + [after[0][1]] * 4 + ["0", "0"]
    assert after[0][8] == "0"


def test_confirmation_can_come_late_with_values_that_are_final_already(synthetic: SyntheticMarket):
    close_ms = MINUTE.close_of(MINUTE.open_at(NOW_MS))
    late = at(synthetic, close_ms + 1500, confirm_delay_ms=2000)
    prompt = at(synthetic, close_ms + 1500)
    assert [row[8] for row in rows(late, CANDLES, limit=4)] == ["0", "0", "1", "1"]
    assert [row[:8] for row in rows(late, CANDLES)] == [row[:8] for row in rows(prompt, CANDLES)]
    assert opens(late, HISTORY_CANDLES, limit=1) == [close_ms - 2 * MINUTE_MS]
    assert [row[8] for row in rows(at(synthetic, close_ms + 2000, confirm_delay_ms=2000), CANDLES, limit=2)] == [
        "0",
        "1",
    ]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(BARS.values())), st.integers(1, 40), st.booleans())
def test_paging_with_after_from_the_newest_returns_every_candle_once(
    synthetic: SyntheticMarket, bar: Bar, limit: int, recent: bool
):
    exchange = at(synthetic, history_has_forming=True)
    endpoint = CANDLES if recent else HISTORY_CANDLES
    seen: list[list[str]] = []
    after: dict[str, object] = {}
    for _ in range(12):
        page = rows(exchange, endpoint, bar=bar.code, limit=limit, **after)
        if not page:
            break
        seen += page
        after = {"after": page[-1][0]}
    expected = exchange.page(BTC, bar, PageQuery(limit=12 * limit), recent_only=recent)
    assert seen == expected[: len(seen)]
    assert len(seen) == min(12 * limit, len(expected))
    times = [int(row[0]) for row in seen]
    assert all(bar.step(late, -1) == early for late, early in pairwise(times))


def test_paging_reaches_the_listing_and_then_an_empty_page(synthetic: SyntheticMarket):
    exchange = at(synthetic)
    listed = next(item for item in synthetic.instruments(NOW_MS) if item.symbol == "SYN0001-USDT-SWAP").listed
    query = {"instId": "SYN0001-USDT-SWAP", "bar": "1H", "limit": 300}
    oldest = NOW_MS
    while page := opens(exchange, HISTORY_CANDLES, after=oldest, **query):
        oldest = page[-1]
    assert oldest == int(listed)


def test_paging_over_the_holes_of_a_recording_returns_every_row_once(recorded: Recordings):
    exchange = at(recorded, recorded.start_ms(NOW_MS))
    seen: list[int] = []
    after = exchange.clock.now_ms()
    while page := opens(exchange, HISTORY_CANDLES, bar="3m", after=after, limit=300):
        seen += page
        after = page[-1]
    assert seen == sorted(recorded.series(BTC, BARS["3m"]).opens.tolist(), reverse=True)


moments = st.integers(NOW_MS - 3 * DAY_MS, NOW_MS + HOUR_MS)


@settings(max_examples=100, deadline=None)
@given(moments, moments, st.integers(1, 400))
def test_both_bounds_exclude_themselves_and_pages_count_from_the_newest_end(
    synthetic: SyntheticMarket, one: int, other: int, limit: int
):
    before, after = sorted((one, other))
    after += before == after
    page = opens(at(synthetic), CANDLES, before=before, after=after, limit=limit)
    newest = min(MINUTE.open_at(after - 1), MINUTE.open_at(NOW_MS))
    oldest = max(MINUTE.open_at(before) + MINUTE_MS, MINUTE.open_at(NOW_MS) - 1439 * MINUTE_MS)
    assert page == list(range(newest, oldest - 1, -MINUTE_MS))[: min(limit, 300)]


def test_before_alone_gives_the_newest_rows_not_the_ones_next_to_it(synthetic: SyntheticMarket):
    exchange = at(synthetic)
    before = MINUTE.open_at(NOW_MS) - 500 * MINUTE_MS
    assert rows(exchange, CANDLES, before=before, limit=300) == rows(exchange, CANDLES, limit=300)
    near = MINUTE.open_at(NOW_MS) - 2 * MINUTE_MS
    assert opens(exchange, CANDLES, before=near, limit=300) == [near + 2 * MINUTE_MS, near + MINUTE_MS]


def test_a_before_that_leaves_nothing_older_than_after_is_ignored(synthetic: SyntheticMarket):
    exchange = at(synthetic)
    after = MINUTE.open_at(NOW_MS) - 50 * MINUTE_MS
    assert rows(exchange, CANDLES, after=after, before=after) == rows(exchange, CANDLES, after=after)
    assert rows(exchange, CANDLES, after=after, before=NOW_MS) == rows(exchange, CANDLES, after=after)


def test_an_after_before_the_first_candle_gives_an_empty_page(synthetic: SyntheticMarket):
    assert rows(at(synthetic), HISTORY_CANDLES, after=1_000_000_000_000) == []
    assert rows(at(synthetic), HISTORY_CANDLES, after=0, bar="1Mutc") == []


def test_an_after_in_the_future_gives_the_newest_rows(synthetic: SyntheticMarket):
    assert rows(at(synthetic), CANDLES, after=999_999_999_999_999) == rows(at(synthetic), CANDLES)


def test_more_than_300_rows_are_served_as_300(synthetic: SyntheticMarket):
    for endpoint in (CANDLES, HISTORY_CANDLES):
        assert len(rows(at(synthetic), endpoint, limit=5000)) == 300
        assert len(rows(at(synthetic), endpoint)) == 100


@pytest.mark.parametrize("code", ["1m", "4H", "1Dutc", "1W"])
def test_candles_serves_the_latest_1440_rows_and_history_everything(synthetic: SyntheticMarket, code: str):
    bar = BARS[code]
    exchange = at(synthetic)
    border = bar.step(bar.open_at(NOW_MS), -1440)
    assert opens(exchange, CANDLES, bar=code, after=bar.step(border, 1)) == []
    first = 1_576_468_800_000
    expected = [bar.step(border, 1)] if bar.step(border, 1) >= first else []
    assert opens(exchange, CANDLES, bar=code, after=bar.step(border, 2)) == expected
    if border > first:
        assert opens(exchange, HISTORY_CANDLES, bar=code, after=bar.step(border, 1), limit=1) == [border]


def test_what_has_expired_still_has_its_candles_and_its_latest_rows(synthetic: SyntheticMarket):
    page = rows(at(synthetic), CANDLES, instId="OLD-USDT-SWAP", limit=2)
    assert [(int(row[0]), row[8]) for row in page] == [
        (1_719_561_600_000 - MINUTE_MS, "1"),
        (1_719_561_600_000 - 2 * MINUTE_MS, "1"),
    ]


def test_the_same_bar_on_another_boundary_has_other_candles(recorded: Recordings):
    exchange = at(recorded, recorded.start_ms(NOW_MS))
    hong_kong = rows(exchange, CANDLES, bar="1D", limit=3)
    utc = rows(exchange, CANDLES, bar="1Dutc", limit=3)
    assert {int(row[0]) % DAY_MS for row in hong_kong} == {16 * HOUR_MS}
    assert {int(row[0]) % DAY_MS for row in utc} == {0}
    assert [row[8] for row in hong_kong] == [row[8] for row in utc] == ["0", "1", "1"]


def recorded_body(recordings: Path, what: str) -> Any:
    frames = json.loads((recordings / "frames.json").read_text())["frames"]
    return next(frame["frame"] for frame in frames if frame["what"].startswith(what))


def test_an_unknown_instrument_is_refused_as_recorded(synthetic: SyntheticMarket, recordings: Path):
    expected = recorded_body(recordings, "REST unknown instrument")
    for symbol in ("NOPE-USDT-SWAP", "SYN9999-USDT-SWAP"):
        assert ask(at(synthetic), CANDLES, instId=symbol) == (200, expected)
    early = at(synthetic, 1_700_000_000_000)
    assert ask(early, CANDLES, instId="SYN0001-USDT-SWAP") == (200, expected)
    assert ask(early, INSTRUMENTS, instType="SWAP", instId="SYN0001-USDT-SWAP") == (200, expected)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"bar": "1h"}, "bar"),
        ({"bar": "8H"}, "bar"),
        ({"after": "yesterday"}, "after"),
        ({"after": "-5"}, "after"),
        ({"before": "1.5"}, "before"),
        ({"limit": "many"}, "limit"),
        ({"limit": "0"}, "limit"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(
    synthetic: SyntheticMarket, recordings: Path, query: dict[str, str], parameter: str
):
    expected = recorded_body(recordings, "REST parameter error")
    expected = expected | {"msg": expected["msg"].replace("instFamily", parameter)}
    assert ask(at(synthetic), HISTORY_CANDLES, instId=BTC, **query) == (400, expected)


def test_a_missing_parameter_is_refused_by_name(synthetic: SyntheticMarket):
    expected = {"code": "50014", "data": [], "msg": "Parameter {} can not be empty."}
    exchange = at(synthetic)
    assert ask(exchange, CANDLES) == (400, expected | {"msg": "Parameter instId can not be empty."})
    assert ask(exchange, INSTRUMENTS) == (400, expected | {"msg": "Parameter instType can not be empty."})
    assert ask(exchange, INSTRUMENTS, instType="BOND")[1]["msg"] == "Parameter instType error"


def test_the_limit_refuses_with_the_recorded_body_and_admits_again_when_its_window_has_passed(
    synthetic: SyntheticMarket, recordings: Path
):
    now = 100.0
    exchange = at(synthetic, limits=True, monotonic=lambda: now)
    for endpoint in (CANDLES, HISTORY_CANDLES, TIME, STATUS):
        for moment in (now, now + endpoint.period_s):
            now = moment
            answers = [ask(exchange, endpoint, instId=BTC) for _ in range(endpoint.requests + 3)]
            assert [status for status, _ in answers] == [200] * endpoint.requests + [429] * 3
            assert answers[-1][1] == recorded_body(recordings, "REST rate limit body")
            now += endpoint.period_s - 0.001
            assert ask(exchange, endpoint, instId=BTC)[0] == 429
            now += 0.001
        tally = exchange.tallies[endpoint.name]
        assert (tally.served, tally.refused) == (2 * endpoint.requests, 8)


def test_instruments_have_a_limit_of_their_own_for_each_type(synthetic: SyntheticMarket):
    exchange = at(synthetic, limits=True, monotonic=lambda: 5.0)
    for kind in ("SPOT", "SWAP"):
        statuses = [ask(exchange, INSTRUMENTS, instType=kind)[0] for _ in range(21)]
        assert statuses == [200] * 20 + [429]


def test_instruments_are_listed_by_type_with_okx_fields(synthetic: SyntheticMarket, recordings: Path):
    exchange = at(synthetic)
    _, body = ask(exchange, INSTRUMENTS, instType="SWAP")
    btc = next(item for item in body["data"] if item["instId"] == BTC)
    genuine = recorded_body(recordings, "instruments record")
    assert btc == {name: genuine[name] for name in btc}
    assert {item["instType"] for item in body["data"]} == {"SWAP"}
    assert [item["instId"] for item in ask(exchange, INSTRUMENTS, instType="SPOT")[1]["data"]] == [
        "BTC-USDT",
        "ETH-USDT",
        "SOL-USDT",
    ]
    assert len(ask(exchange, INSTRUMENTS, instType="SWAP", instId=BTC)[1]["data"]) == 1
    for kind in ("FUTURES", "OPTION", "MARGIN"):
        assert ask(exchange, INSTRUMENTS, instType=kind) == (200, {"code": "0", "data": [], "msg": ""})


def test_the_time_is_the_exchanges_and_no_maintenance_is_announced(synthetic: SyntheticMarket):
    exchange = at(synthetic)
    assert ask(exchange, TIME) == (200, {"code": "0", "data": [{"ts": str(NOW_MS)}], "msg": ""})
    assert ask(exchange, STATUS) == (200, {"code": "0", "data": [], "msg": ""})


def test_what_was_asked_is_remembered(synthetic: SyntheticMarket):
    exchange = at(synthetic)
    rows(exchange, HISTORY_CANDLES, bar="4H", after=NOW_MS, limit=400)
    ask(exchange, CANDLES, instId="NOPE")
    rows(exchange, CANDLES, before=5)
    first, second = exchange.requests
    assert (first.endpoint, first.symbol, first.bar, first.after, first.before) == (
        "history-candles",
        BTC,
        "4H",
        NOW_MS,
        None,
    )
    assert (first.limit, first.rows, first.now_ms) == (400, 300, NOW_MS)
    assert (second.endpoint, second.bar, second.after, second.before, second.limit) == ("candles", "1m", None, 5, 100)
