"""Every fault of the WebSocket, over real sockets; and that REST stays right whatever is pushed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from okx_pipeline.exchange.frames import Argument, Frame, decode_frame
from okx_pipeline.replay.bars import BARS
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.faults import Fault, decode_faults
from okx_pipeline.replay.pushes import SeriesPushes
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS
from okx_pipeline_tests.replay.stand import BTC, ETH, NOW_MS, Client, Json, Stand, Stopwatch, confirmed
from okx_pipeline_tests.replay.stand import standing as standing_anywhere

MINUTE = ("candle1m", BTC)


@contextmanager
def standing(market: SyntheticMarket, **switches: Any) -> Iterator[Stand]:
    """A stand-in with days to go before its clock meets the wall's."""
    with standing_anywhere(market, now_ms=NOW_MS - 10 * DAY_MS, **switches) as stand:
        yield stand


def minutes(stand: Stand, client: Client, count: int) -> list[list[str]]:
    """The rows pushed while so many candles close, one at a time."""
    rows: list[list[str]] = []
    for _ in range(count):
        stand.step(MINUTE_MS)
        rows += client.rows()
    return rows


def plain(stand: Stand, count: int) -> list[list[str]]:
    """What `minutes` would have been without a fault."""
    into_minute_ms = stand.exchange.clock.now_ms() % MINUTE_MS
    rows = []
    for closed, following in pairwise(stand.rest(limit=count + 1)):
        open_ms = int(following[0])
        formed = stand.exchange.market.forming(BTC, BARS["1m"], open_ms, open_ms + into_minute_ms)
        assert formed is not None
        rows += [closed, [*formed, "0"]]
    return rows


def closing(client: Client) -> ConnectionClosed:
    with pytest.raises(ConnectionClosed) as caught:
        client.until_closed()
    return caught.value


def test_without_a_fault_a_close_and_the_next_candle_come_each_minute(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        assert minutes(stand, client, 4) == plain(stand, 4)


def test_all_connections_can_be_dropped_without_a_word(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        clients = [stand.subscribed(MINUTE), stand.connect()]
        stand.fault(kind="drop")
        for client in clients:
            problem = closing(client)
            assert isinstance(problem, ConnectionClosedError)
            assert (problem.rcvd, problem.sent) == (None, None)
        assert stand.await_figures(connections=0)["closes"] == {"1006": 2}
        assert stand.http.get("/replay/faults").json() == []
        assert stand.subscribed(MINUTE).texts() == []


@pytest.mark.parametrize("code", [4006, 4008, 1012])
def test_all_connections_can_be_closed_with_a_code(synthetic: SyntheticMarket, code: int):
    with standing(synthetic) as stand:
        clients = [stand.subscribed(MINUTE), stand.connect()]
        stand.fault(kind="drop", close=code)
        for client in clients:
            received = closing(client).rcvd
            assert received is not None
            assert received.code == code
        assert stand.await_figures(connections=0)["closes"] == {str(code): 2}


def test_a_fault_added_from_python_strikes_with_the_next_push(synthetic: SyntheticMarket):
    with standing(synthetic, push_interval_s=0.01) as stand:
        client = stand.connect()
        stand.exchange.faults.add([Fault(kind="drop", close=4006)])
        received = closing(client).rcvd
        assert received is not None
        assert received.code == 4006


def test_new_connections_can_be_refused_for_a_while(synthetic: SyntheticMarket):
    wall = Stopwatch()
    with standing(synthetic, monotonic=wall) as stand:
        early = stand.subscribed(MINUTE)
        stand.fault(kind="refuse", seconds=60, status=502)
        for seconds in (0, 59):
            wall.seconds += seconds
            with pytest.raises(InvalidStatus) as caught:
                stand.connect()
            assert caught.value.response.status_code == 502
        assert minutes(stand, early, 1) == plain(stand, 1)
        wall.seconds += 1
        assert stand.connect().texts() == []
        assert stand.figures()["refused"] == 2


def test_a_stall_pushes_nothing_answers_pings_and_loses_what_closed_meanwhile(synthetic: SyntheticMarket):
    wall = Stopwatch()
    with standing(synthetic, monotonic=wall) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="stall", seconds=100)
        for _ in range(4):
            wall.seconds += 24
            assert minutes(stand, client, 1) == []
        newcomer = stand.connect()
        newcomer.ask("subscribe", MINUTE)
        assert [frame["event"] for frame in newcomer.frames()] == ["subscribe"]
        wall.seconds += 4
        assert minutes(stand, client, 2) == plain(stand, 2)
        assert len(newcomer.rows()) == 4


def test_a_stall_can_be_of_a_symbol_or_a_timeframe_only(synthetic: SyntheticMarket):
    asked = [("candle1m", BTC), ("candle5m", BTC), ("candle1m", ETH), ("candle1H", ETH)]
    for where, silent in (
        ({"symbol": BTC}, asked[:2]),
        ({"timeframe": "1H"}, asked[3:]),
        ({"symbol": BTC, "timeframe": "1m"}, asked[:1]),
    ):
        with standing(synthetic) as stand:
            client = stand.subscribed(*asked)
            stand.fault(kind="stall", seconds=1000, **where)
            stand.step(10_000)
            pushed = [(frame["arg"]["channel"], frame["arg"]["instId"]) for frame in client.frames()]
            assert pushed == [series for series in asked if series not in silent]


def test_half_open_connections_answer_nothing_and_stay_open(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="half_open")
        pong = client.connection.ping()
        client.connection.send("ping")
        stand.step(MINUTE_MS)
        with pytest.raises(TimeoutError):
            client.connection.recv(timeout=0.2)
        assert not pong.is_set()
        assert stand.figures()["connections"] == 1
        other = stand.subscribed(MINUTE)
        assert minutes(stand, other, 1) == plain(stand, 1)
        stand.fault(kind="drop")
        assert closing(client).rcvd is None


def test_a_notice_comes_as_documented_and_the_connection_goes_later_while_a_new_one_stays(
    synthetic: SyntheticMarket,
):
    with standing(synthetic) as stand:
        client = stand.connect()
        (reply,) = client.subscribe(MINUTE)
        stand.fault(kind="notice", seconds=0.3)
        notice = client.next()
        assert notice == {
            "event": "notice",
            "code": "64008",
            "msg": "The connection will soon be closed for a service upgrade. Please reconnect.",
            "connId": reply["connId"],
        }
        other = stand.subscribed(MINUTE)
        stand.step(MINUTE_MS)
        assert client.rows() == other.rows() == plain(stand, 1)
        received = closing(client).rcvd
        assert received is not None
        assert received.code == 1001
        assert minutes(stand, other, 1) == plain(stand, 1)


def test_a_notice_gives_60_s_unless_told_otherwise():
    assert Fault(kind="notice").duration_s == 60
    assert Fault(kind="late").duration_s == 1
    assert Fault(kind="notice", seconds=0).duration_s == 0


def test_a_subscription_can_be_refused_as_if_the_channel_were_not_there(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        stand.fault(kind="no_channel", symbol=BTC, requests=1)
        client = stand.connect()
        client.ask("subscribe", MINUTE, ("candle1m", ETH))
        error, reply, push = client.frames()
        assert (error["event"], error["code"]) == ("error", "60018")
        assert f"channel:candle1m,instId:{BTC} doesn't exist" in error["msg"]
        assert reply["arg"] == push["arg"] == {"channel": "candle1m", "instId": ETH}
        assert client.subscribe(MINUTE)[0]["event"] == "subscribe"


def test_a_subscription_can_be_acknowledged_and_never_pushed(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="mute", symbol=BTC)
        client.ask("subscribe", MINUTE, ("candle1m", ETH))
        assert [frame.get("event") for frame in client.frames()] == ["subscribe", "subscribe", None]
        for _ in range(3):
            stand.step(MINUTE_MS)
        assert {frame["arg"]["instId"] for frame in client.frames()} == {ETH}
        assert stand.figures()["subscriptions"] == 2
        stand.http.delete("/replay/faults")
        client.ask("unsubscribe", MINUTE)
        client.subscribe(MINUTE)
        assert minutes(stand, client, 1) == plain(stand, 1)


def test_a_frame_can_come_twice(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="duplicate", requests=3)
        rows = minutes(stand, client, 3)
        right = plain(stand, 3)
        assert rows == [row for row in right[:3] for _ in range(2)] + right[3:]


def test_a_frame_can_come_some_frames_late(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="reorder", frames=1, requests=1)
        rows = minutes(stand, client, 2)
        first, second, *rest = plain(stand, 2)
        assert rows == [second, first, *rest]


def test_a_frame_comes_from_one_to_so_many_frames_late_and_no_more(synthetic: SyntheticMarket):
    seen = set()
    for seed in range(30):
        exchange = Exchange(synthetic, ExchangeClock(NOW_MS - DAY_MS, 0), seed=seed)
        exchange.faults.add([Fault(kind="reorder", frames=3, requests=1)])
        series = SeriesPushes(exchange, Argument(*MINUTE), BARS["1m"])
        opens = []
        for _ in range(6):
            exchange.clock.set(exchange.clock.now_ms() + 5_000)
            opens += [rows_of(frame.text)[0][5] for frame in series.advance()]
        seen.add(opens.index(min(opens, key=Decimal)))
    assert seen == {1, 2, 3}


def test_reordering_loses_and_doubles_nothing_and_nothing_comes_too_late(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="reorder", frames=4, share=0.5)
        rows = minutes(stand, client, 60)
        stand.http.delete("/replay/faults")
        rows += minutes(stand, client, 4)
        right = plain(stand, 64)
        assert sorted(rows) == sorted(right)
        assert rows != right
        lateness = [rows.index(row) - place for place, row in enumerate(right)]
        assert 2 <= max(lateness) <= 8


def damage(text: str) -> str:
    """What is wrong with a frame, in a word."""
    try:
        frame: Frame = decode_frame(text)
    except msgspec.ValidationError:
        return "types"
    except msgspec.DecodeError:
        return "html" if text.startswith("<") else "bytes" if text.endswith("}") else "cut off"
    if frame.arg != Argument("candle1m", BTC) or not frame.data:
        return "bytes"
    for row in frame.data:
        if len(row) != 9:
            return f"{len(row)} columns"
        if row[8] not in ("0", "1"):
            return f"confirm {row[8]}"
        for number in row[1:8]:
            try:
                if not Decimal(number).is_finite() or Decimal(number).adjusted() > 10**8:
                    return number
            except InvalidOperation:
                return number
    return "nothing"


def test_frames_can_be_garbled_in_every_way(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="garble", share=0.5)
        texts = []
        for _ in range(100):
            stand.step(MINUTE_MS)
            texts += client.texts()
        found = [damage(text) for text in texts]
        assert len(texts) == 200
        ways = {
            "types",
            "html",
            "cut off",
            "8 columns",
            "10 columns",
            "NaN",
            "-Infinity",
            "",
            "1e999999999",
            "confirm 2",
        }
        assert ways | {"nothing", "bytes"} <= set(found)
        assert 70 < found.count("nothing") < 130
        whole = [row for text, what in zip(texts, found, strict=True) if what == "nothing" for row in rows_of(text)]
        assert confirmed(whole)
        assert all(row in stand.rest() for row in confirmed(whole))


def rows_of(text: str) -> list[list[str]]:
    rows: list[list[str]] = json.loads(text)["data"]
    return rows


def test_a_confirmation_can_be_withheld(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="withhold", skip=1, requests=2)
        rows = minutes(stand, client, 4)
        right = plain(stand, 4)
        assert rows == [row for place, row in enumerate(right) if place not in (2, 4)]
        assert [row[8] for row in rows] == ["1", "0", "0", "0", "1", "0"]


def test_a_confirmation_can_come_late_among_the_next_candles_frames(synthetic: SyntheticMarket):
    wall = Stopwatch()
    with standing(synthetic, monotonic=wall) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="late", seconds=5, requests=1)
        rows = minutes(stand, client, 1)
        wall.seconds += 4.9
        stand.step(1_000)
        rows += client.rows()
        wall.seconds += 0.1
        stand.step(1_000)
        rows += client.rows()
        closed, *formed = stand.rest(limit=2)
        assert [row[8] for row in rows] == ["0", "0", "1", "0"]
        assert rows[2] == closed
        assert rows[3:] == formed
        assert minutes(stand, client, 1) == plain(stand, 1)


def test_a_late_confirmation_comes_even_if_nothing_else_changes(synthetic: SyntheticMarket):
    wall = Stopwatch()
    with standing(synthetic, monotonic=wall) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="late", seconds=5, requests=1)
        minutes(stand, client, 1)
        wall.seconds += 5
        stand.step()
        assert client.rows() == confirmed(stand.rest(limit=2))


def test_a_confirmed_candle_can_come_again_unconfirmed(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="unconfirm", requests=1)
        rows = minutes(stand, client, 2)
        closed, *rest = plain(stand, 2)
        assert rows == [closed, [*closed[:8], "0"], *rest]


def test_a_confirmation_can_share_its_frame_with_the_next_candle_newest_first(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="two_rows", requests=3)
        stand.step(MINUTE_MS)
        (frame,) = client.frames()
        assert frame["data"] == stand.rest(limit=2)[::-1]
        stand.step(2 * MINUTE_MS)
        (frame,) = client.frames()
        assert frame["data"] == stand.rest(limit=3)[::-1]
        assert minutes(stand, client, 1) == plain(stand, 1)


def test_a_row_can_name_a_moment_at_which_no_candle_opens(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="off_boundary", requests=1)
        rows = minutes(stand, client, 2)
        closed, *rest = plain(stand, 2)
        assert rows == [[str(int(closed[0]) + 1000), *closed[1:]], *rest]


def test_a_confirmation_can_lie_while_rest_is_right(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="lie", requests=1)
        rows = minutes(stand, client, 2)
        closed, *rest = plain(stand, 2)
        assert rows[1:] == rest
        assert rows[0][:5] + rows[0][6:] == closed[:5] + closed[6:]
        assert Decimal(rows[0][5]) == 2 * Decimal(closed[5]) + 1
        assert stand.truth(int(closed[0]), int(closed[0]) + 1) == [[int(closed[0]), *closed[1:8]]]


def test_a_confirmation_can_be_contradicted(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="contradict", requests=1)
        rows = minutes(stand, client, 2)
        closed, *rest = plain(stand, 2)
        assert [rows[0], *rows[2:]] == [closed, *rest]
        contradiction = [*closed[:5], f"{2 * Decimal(closed[5]) + 1:f}", *closed[6:]]
        assert rows[1] == contradiction


def test_a_contradiction_can_come_later(synthetic: SyntheticMarket):
    wall = Stopwatch()
    with standing(synthetic, monotonic=wall) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="contradict", requests=1, seconds=5)
        rows = minutes(stand, client, 1)
        assert rows == plain(stand, 1)
        wall.seconds += 5
        stand.step()
        (late,) = client.rows()
        assert (late[0], late[8], late != rows[0]) == (rows[0][0], "1", True)


def test_a_request_can_be_refused_as_a_whole_without_a_word_of_why(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        stand.fault(kind="invalid", symbol=BTC, requests=1)
        client = stand.connect()
        client.ask("subscribe", ("candle1m", ETH), MINUTE, id="7")
        (error,) = client.frames()
        assert (error["event"], error["code"], error["id"]) == ("error", "60012", "7")
        assert BTC not in error["msg"]
        assert stand.figures()["subscriptions"] == 0
        assert len(client.subscribe(("candle1m", ETH), MINUTE)) == 2


def test_faults_of_several_kinds_strike_together_and_of_one_series_only(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE, ("candle1m", ETH))
        stand.fault(kind="lie", symbol=ETH)
        stand.fault(kind="duplicate", symbol=ETH, timeframe="1m")
        stand.step(MINUTE_MS)
        frames: list[Json] = client.frames()
        rows = {symbol: [f["data"][0] for f in frames if f["arg"]["instId"] == symbol] for symbol in (BTC, ETH)}
        assert rows[BTC] == plain(stand, 1)
        assert rows[ETH][0] == rows[ETH][1] != stand.rest(ETH, limit=2)[0]
        assert len(rows[ETH]) == 4


@pytest.mark.parametrize("seed", [1, 2])
def test_what_chance_strikes_follows_from_the_seed(synthetic: SyntheticMarket, seed: int):
    def texts(seed: int) -> list[str]:
        exchange = Exchange(synthetic, ExchangeClock(NOW_MS - DAY_MS, 0), seed=seed)
        exchange.faults.add(Fault(kind=kind, share=0.3) for kind in ("withhold", "garble", "reorder", "duplicate"))
        series = SeriesPushes(exchange, Argument(*MINUTE), BARS["1m"])
        pushed = []
        for _ in range(40):
            exchange.clock.set(exchange.clock.now_ms() + MINUTE_MS)
            pushed += [frame.text for frame in series.advance()]
        return pushed

    assert texts(seed) == texts(seed)
    assert texts(seed) != texts(3)


def test_what_is_still_to_come_can_be_read_and_dropped(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="withhold", requests=3, symbol=BTC, timeframe="1m")
        stand.fault(kind="garble", share=1e-9)
        minutes(stand, client, 1)
        pending = stand.http.get("/replay/faults").json()
        assert [(fault["kind"], fault["requests"]) for fault in pending] == [("withhold", 2), ("garble", None)]
        stand.http.delete("/replay/faults")
        assert minutes(stand, client, 2) == plain(stand, 2)


def test_rest_is_not_struck_by_faults_of_the_websocket_nor_the_other_way_round(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(MINUTE)
        stand.fault(kind="garble", requests=1)
        stand.fault(kind="html", requests=1, endpoint="time")
        assert len(stand.rest()) == 300
        assert stand.http.get("/api/v5/public/time").text.startswith("<!DOCTYPE")
        stand.step(MINUTE_MS)
        assert [damage(text) != "nothing" for text in client.texts()] == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "garble", "share": 0}',
        '{"kind": "garble", "share": 1.5}',
        '{"kind": "drop", "close": 1006}',
        '{"kind": "drop", "close": 5000}',
        '{"kind": "stall", "timeframe": "1D"}',
        '{"kind": "reorder", "frames": 0}',
        '{"kind": "withold"}',
    ],
)
def test_a_fault_that_is_none_is_refused(synthetic: SyntheticMarket, text: str):
    with standing(synthetic) as stand:
        assert stand.http.post("/replay/faults", content=text).status_code == 400


def test_a_timeframe_may_be_spelled_as_okx_does():
    assert decode_faults('{"kind": "stall", "timeframe": "1Dutc"}')[0].timeframe == "1d"
