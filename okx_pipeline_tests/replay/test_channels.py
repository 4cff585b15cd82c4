"""Connections to the stand-in's WebSocket: replies as recorded, limits as published, and why it hangs up."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange import frames as dictionary
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.frames import Series
from okx_pipeline.replay import channels
from okx_pipeline.replay.channels import Channels
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import DAY_MS, TIMEFRAMES
from okx_pipeline_tests.replay.stand import BTC, DEADLINE_S, ETH, Client, Json, Stand, Stopwatch, standing


@pytest.fixture(scope="module")
def shared(synthetic: SyntheticMarket) -> Iterator[Stand]:
    """A stand-in whose clock nobody moves."""
    with standing(synthetic) as stand:
        yield stand


@pytest.fixture
def client(shared: Stand) -> Iterator[Client]:
    connected = shared.connect()
    yield connected
    connected.connection.close()


def recorded(recordings: Path, what: str) -> Any:
    frames = json.loads((recordings / "frames.json").read_text())["frames"]
    return next(frame for frame in frames if frame["what"].startswith(what))


def closed_with(client: Client) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as caught:
        client.until_closed()
    received = caught.value.rcvd
    assert received is not None
    return received.code, received.reason


def test_every_argument_is_acknowledged_as_recorded(client: Client, recordings: Path):
    sample = recorded(recordings, "ws subscribe reply")["frame"]
    one, other = client.subscribe(("candle1m", BTC), ("candle1Dutc", "ETH-USDT"), id="1512")
    assert one == sample | {"arg": {"channel": "candle1m", "instId": BTC}, "connId": one["connId"]}
    assert other == one | {"arg": {"channel": "candle1Dutc", "instId": "ETH-USDT"}}
    assert re.fullmatch("[0-9a-f]{8}", one["connId"])
    (without_id,) = client.subscribe(("candle1m", BTC))
    assert without_id.keys() == recorded(recordings, "ws subscribe ack 2026")["frame"].keys()
    assert without_id["connId"] == one["connId"]


def test_two_connections_have_two_names(shared: Stand):
    names = {shared.connect().subscribe(("candle1m", BTC))[0]["connId"] for _ in range(3)}
    assert len(names) == 3


def test_unsubscribing_is_acknowledged_as_recorded_and_ends_the_pushes(synthetic: SyntheticMarket, recordings: Path):
    with standing(synthetic) as stand:
        client = stand.subscribed(("candle1m", BTC), ("candle1m", ETH))
        client.ask("unsubscribe", ("candle1m", BTC))
        (reply,) = client.frames()
        sample = recorded(recordings, "ws unsubscribe reply")["frame"]
        assert reply == sample | {"arg": {"channel": "candle1m", "instId": BTC}, "connId": reply["connId"]}
        stand.step(5_000)
        assert [frame["arg"]["instId"] for frame in client.frames()] == [ETH]
        assert stand.figures()["subscriptions"] == 1


def test_a_push_has_the_shape_of_those_recorded(client: Client, recordings: Path):
    client.ask("subscribe", ("candle1m", BTC))
    _, push = client.frames()
    for what in ("ws push SWAP 1m", "ws push SPOT 1m", "ws push SWAP 1H for", "ws push"):
        sample = recorded(recordings, what)["frame"]
        assert (push.keys(), push["arg"].keys()) == (sample.keys(), sample["arg"].keys())
        assert [[type(text) for text in row] for row in push["data"]] == [[str] * len(sample["data"][0])]


def test_every_bar_of_okx_has_its_channel_those_of_hong_kong_too(client: Client):
    codes = ["1m", "3m", "5m", "15m", "30m", "1H", "2H", "4H", *("6H", "12H", "1D", "1W", "1M")]
    codes += [f"{code}utc" for code in codes[8:]]
    replies = client.subscribe(*((f"candle{code}", BTC) for code in codes))
    assert [reply["event"] for reply in replies] == ["subscribe"] * len(codes)


@pytest.mark.parametrize(
    ("channel", "symbol"),
    [
        ("candle8H", BTC),
        ("candle1h", BTC),
        ("1m", BTC),
        ("tickers", BTC),
        ("", ""),
        ("candle1m", "NOPE-USDT-SWAP"),
        ("candle1m", "OLD-USDT-SWAP"),
        ("candle1m", "{0}"),
    ],
)
def test_a_wrong_channel_or_instrument_is_named_in_the_recorded_error_and_costs_no_other(
    client: Client, recordings: Path, channel: str, symbol: str
):
    sample = recorded(recordings, "ws candle channel asked on /public")["frame"]
    for op in ("subscribe", "unsubscribe"):
        client.ask(op, (channel, symbol), ("candle1m", BTC), id="7")
        error, reply, *_ = client.frames()
        text = sample["msg"].replace("candle1m", channel, 1).replace("BTC-USDT", symbol, 1)
        assert error == sample | {"msg": text, "id": "7", "connId": reply["connId"]}
        assert reply["event"] == op


@pytest.mark.parametrize("path", ["public", "private"])
def test_candles_are_not_on_the_other_paths(shared: Stand, recordings: Path, path: str):
    client = shared.connect(path)
    client.ask("subscribe", ("candle1m", "BTC-USDT"))
    (error,) = client.frames()
    sample = recorded(recordings, "ws candle channel asked on /public")["frame"]
    assert error == sample | {"connId": error["connId"]}


def test_what_is_no_websocket_path_takes_no_websocket(shared: Stand):
    with pytest.raises(InvalidStatus) as caught:
        shared.connect("business/../../../elsewhere")
    assert caught.value.response.status_code == 403


def test_the_documented_wrong_request_gets_the_documented_error(client: Client, recordings: Path):
    sample = recorded(recordings, "ws error")["frame"]
    request = sample["msg"].removeprefix("Invalid request: ")
    client.connection.send(request)
    (error,) = client.frames()
    assert error == {key: value for key, value in sample.items() if key != "id"} | {"connId": error["connId"]}
    client.connection.send('{"id": "1512", ' + request[1:])
    assert client.next()["id"] == "1512"


@pytest.mark.parametrize(
    "request_",
    [
        "",
        "hello",
        "PING",
        "{",
        "[]",
        '{"op":"subscribe"}',
        '{"op":"subscribe","args":[]}',
        '{"op":"subscribe","args":{"channel":"candle1m"}}',
        '{"op":"subscribe","args":["candle1m"]}',
        '{"op":"login","args":[{"channel":"candle1m"}]}',
        '{"op":"subscribe","args":[{"channel":1,"instId":"BTC-USDT"}]}',
        '{"op":"subscribe","id":5,"args":[{"channel":"candle1m","instId":"BTC-USDT"}]}',
        '{"deep":' + "[" * 5_000 + "]" * 5_000 + "}",
        b'{"op":"\xff"}',
    ],
)
def test_what_is_no_request_is_sent_back_in_an_error_and_the_connection_lives(client: Client, request_: str | bytes):
    client.connection.send(request_)
    error = client.next()
    text = request_ if isinstance(request_, str) else request_.decode(errors="replace")
    assert error == {
        "event": "error",
        "code": "60012",
        "msg": f"Invalid request: {text}",
        "connId": error["connId"],
    }
    assert client.frames() == []


def test_a_request_in_bytes_is_read_like_one_in_text(client: Client):
    client.connection.send(b'{"op":"subscribe","args":[{"channel":"candle1m","instId":"BTC-USDT"}]}')
    assert client.next()["event"] == "subscribe"


def test_a_request_may_have_64_kb_and_not_a_byte_more(shared: Stand):
    for size, code in ((65_536, None), (65_537, 1009), (300_000, 1009)):
        client = shared.connect(compression=None)
        client.connection.send("x" * size)
        if code is None:
            assert client.next()["code"] == "60012"
        else:
            assert closed_with(client)[0] == code
    assert shared.figures()["closes"]["1009"] >= 2


def test_what_our_own_dictionary_asks_is_understood(client: Client, synthetic: SyntheticMarket):
    wanted = [Series(rules.symbol, frame) for rules in synthetic.instruments(10**13) for frame in TIMEFRAMES]
    for request in dictionary.encode_requests(dictionary.SUBSCRIBE, wanted):
        client.connection.send(request)
    replies = [dictionary.decode_frame(text) for text in client.texts()]
    acknowledged = [reply.arg.series for reply in replies if reply.arg is not None and reply.event == "subscribe"]
    assert acknowledged == wanted
    assert [reply.arg.series for reply in replies if reply.arg is not None and reply.data is not None] == wanted


def test_a_ping_in_text_gets_a_pong_in_text(client: Client):
    for _ in range(3):
        client.connection.send("ping")
        assert client.connection.recv(timeout=DEADLINE_S) == "pong"


def test_compression_is_offered_and_can_be_declined(shared: Stand):
    for compression in ("deflate", None):
        client = shared.connect(compression=compression)
        offered = client.connection.response
        assert offered is not None
        assert ("permessage-deflate" in offered.headers.get("Sec-WebSocket-Extensions", "")) == bool(compression)
        assert client.subscribe(("candle1m", BTC))[0]["event"] == "subscribe"


def test_of_the_connections_of_a_second_the_fourth_is_refused(synthetic: SyntheticMarket):
    wall = Stopwatch()
    with standing(synthetic, limits=True, monotonic=wall) as stand:
        for refused in (1, 2):
            for _ in range(3):
                assert stand.connect().texts() == []
            with pytest.raises(InvalidStatus) as caught:
                stand.connect()
            assert caught.value.response.status_code == 429
            assert stand.figures()["refused"] == refused
            wall.seconds += 1
        assert stand.figures()["connected"] == 6


def test_requests_beyond_480_an_hour_are_refused_on_that_connection_and_pings_are_none(synthetic: SyntheticMarket):
    wall = Stopwatch()
    with standing(synthetic, limits=True, monotonic=wall) as stand:
        client = stand.subscribed(("candle1m", BTC))
        for _ in range(480):
            client.ask("unsubscribe", ("candle1m", BTC), id="9")
        frames = client.frames()
        assert [frame["event"] for frame in frames] == ["unsubscribe"] * 479 + ["error"]
        error: Json = frames[-1]
        assert error == {
            "id": "9",
            "event": "error",
            "code": "60014",
            "msg": "Requests too frequent",
            "connId": error["connId"],
        }
        assert stand.connect().subscribe(("candle1m", BTC))[0]["event"] == "subscribe"
        wall.seconds += 3600
        assert client.subscribe(("candle1m", BTC))[0]["event"] == "subscribe"


def test_a_channel_beyond_the_cap_closes_the_connection(synthetic: SyntheticMarket):
    with standing(synthetic, rules={"most_channels": 2}) as stand:
        client = stand.subscribed(("candle1m", BTC), ("candle5m", BTC))
        assert client.subscribe(("candle1m", BTC))[0]["event"] == "subscribe"
        client.ask("unsubscribe", ("candle5m", BTC))
        client.ask("subscribe", ("candle1H", BTC), ("candle2H", BTC))
        assert [client.next()["event"] for _ in range(2)] == ["unsubscribe", "subscribe"]
        assert closed_with(client)[0] == 4008
        assert stand.figures() == stand.figures() | {"connections": 0, "subscriptions": 0, "closes": {"4008": 1}}


@pytest.mark.parametrize("subscribed", [False, True])
def test_a_connection_that_is_sent_nothing_for_30_s_is_closed_as_recorded(
    synthetic: SyntheticMarket, recordings: Path, subscribed: bool
):
    wall = Stopwatch()
    sample = recorded(recordings, "ws close frame on idle")["close"]
    with standing(synthetic, monotonic=wall) as stand:
        client = stand.subscribed(("candle1m", BTC)) if subscribed else stand.connect()
        for seconds in (20, 20):
            wall.seconds += seconds
            stand.step()
            assert client.texts() == []
        wall.seconds += 29.9
        stand.step()
        assert client.connection.ping().wait(DEADLINE_S)
        wall.seconds += 0.1
        stand.step()
        assert closed_with(client) == (sample["code"], sample["reason"])


def test_a_connection_that_is_pushed_to_lives_without_pings(synthetic: SyntheticMarket):
    wall = Stopwatch()
    with standing(synthetic, monotonic=wall) as stand:
        client = stand.subscribed(("candle1m", BTC))
        for _ in range(3):
            wall.seconds += 29
            stand.step(2_000)
        assert len(client.rows()) == 3


def test_the_idle_are_cut_by_the_walls_clock_without_anybody_asking(synthetic: SyntheticMarket):
    with standing(synthetic, push_interval_s=0.01, rules={"idle_s": 0.05}) as stand:
        assert closed_with(stand.connect())[0] == 4004


def test_a_peer_that_does_not_read_is_closed_when_it_owes_too_much(
    synthetic: SyntheticMarket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(channels, "_MOST_UNSENT_BYTES", 65_536)
    with standing(synthetic, now_ms=1_795_199_000_123 - 60 * DAY_MS) as stand:
        client = stand.connect(max_queue=1, compression=None)
        client.ask("subscribe", ("candle1m", BTC))
        stand.http.timeout = DEADLINE_S
        stand.await_figures(subscriptions=1)
        stand.step(45 * DAY_MS)
        assert closed_with(client)[0] == protocol.CLOSE_BUFFER_FULL


def test_the_status_says_who_is_connected_what_was_pushed_and_how_connections_ended(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        one, other = stand.subscribed(("candle1m", BTC), ("candle5m", BTC)), stand.subscribed(("candle1m", BTC))
        stand.step(60_000)
        one.texts()
        other.texts()
        pushed = 3 + 2 * 2 + 1
        expected = {"connections": 2, "connected": 2, "refused": 0, "subscriptions": 3, "pushed": pushed}
        assert stand.figures() == expected | {"confirmed": 2, "closes": {}}
        one.connection.close(1001)
        other.connection.socket.close()
        assert stand.await_figures(connections=0) == expected | {
            "connections": 0,
            "subscriptions": 0,
            "confirmed": 2,
            "closes": {"1001": 1, "1006": 1},
        }


def test_ending_the_server_tells_its_clients(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(("candle1m", BTC))
        stand.server._server.should_exit = True
        with pytest.raises(ConnectionClosedError) as caught:
            client.connection.recv(timeout=DEADLINE_S)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012


@pytest.mark.parametrize("interval_s", [0, -1, float("inf"), float("nan")])
def test_an_interval_that_is_no_time_is_refused(synthetic: SyntheticMarket, interval_s: float):
    with pytest.raises(UsageError, match="cannot be pushed every"):
        Channels(Exchange(synthetic, ExchangeClock(0, 0)), push_interval_s=interval_s)
