"""The stand-in over real sockets: faults, its own paths, and how it starts and ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange.protocol import BUSINESS_PATH, CANDLES, HISTORY_CANDLES, TIME
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import MOST_BODY_BYTES, ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS

NOW_MS = 1_795_199_000_123
BTC = {"instId": "BTC-USDT-SWAP"}


@pytest.fixture(scope="module")
def server(synthetic: SyntheticMarket) -> Iterator[ReplayServer]:
    with ReplayServer(Exchange(synthetic, ExchangeClock(NOW_MS, 0), limits=False)) as running:
        yield running


@pytest.fixture
def client(server: ReplayServer) -> Iterator[httpx.Client]:
    server.exchange.clock.set(NOW_MS, 0)
    with httpx.Client(base_url=server.url, trust_env=False) as opened:
        yield opened
        opened.delete("/replay/faults")
        opened.delete("/replay/requests")


def fault(client: httpx.Client, **fields: object) -> None:
    client.post("/replay/faults", json=fields).raise_for_status()


def rows(client: httpx.Client, **query: object) -> list[list[str]]:
    return client.get(HISTORY_CANDLES.path, params={**BTC, **query}).raise_for_status().json()["data"]


def test_pages_come_as_json_over_one_connection_kept_alive(client: httpx.Client):
    answer = client.get(CANDLES.path, params=BTC)
    assert answer.headers["content-type"] == "application/json"
    assert "content-encoding" not in answer.headers
    assert len(answer.json()["data"]) == 100
    assert client.get(TIME.path).json()["data"] == [{"ts": str(NOW_MS)}]


def test_an_unknown_path_is_not_found(client: httpx.Client):
    assert client.get("/api/v5/market/tickers").status_code == 404
    assert client.post(CANDLES.path).status_code == 405


@pytest.mark.parametrize(("status", "code"), [(500, "50026"), (502, "50026"), (503, "50001")])
def test_an_endpoint_fails_as_often_as_it_was_told_and_then_recovers(client: httpx.Client, status: int, code: str):
    fault(client, kind="status", status=status, requests=2, endpoint="history-candles")
    assert client.get(TIME.path).status_code == 200
    answers = [client.get(HISTORY_CANDLES.path, params=BTC) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, status, 200]
    assert answers[0].json()["code"] == code


def test_a_code_can_come_with_status_200(client: httpx.Client):
    fault(client, kind="code", code="50040")
    body = client.get(HISTORY_CANDLES.path, params=BTC).raise_for_status().json()
    assert (body["code"], body["data"]) == ("50040", [])


def test_a_burst_of_429_has_no_data(client: httpx.Client):
    fault(client, kind="too_many", requests=3)
    answers = [client.get(TIME.path) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 429, 429, 200]
    assert answers[0].json() == {"msg": "Too Many Requests", "code": "50011"}


def test_a_slow_answer_is_right_but_late(client: httpx.Client):
    right = rows(client, limit=3)
    fault(client, kind="slow", seconds=5)
    with pytest.raises(httpx.ReadTimeout):
        client.get(HISTORY_CANDLES.path, params=BTC, timeout=0.05)
    fault(client, kind="slow", seconds=0.05)
    assert rows(client, limit=3) == right


def test_a_truncated_body_cannot_be_read(client: httpx.Client):
    fault(client, kind="truncated")
    answer = client.get(HISTORY_CANDLES.path, params=BTC).raise_for_status()
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_a_web_page_can_come_instead(client: httpx.Client):
    fault(client, kind="html")
    answer = client.get(HISTORY_CANDLES.path, params=BTC)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text.startswith("<!DOCTYPE html>")


def test_an_answer_can_be_small_on_the_wire_and_huge_when_unpacked(client: httpx.Client):
    right = rows(client, limit=3)
    fault(client, kind="bomb", megabytes=3)
    answer = client.get(HISTORY_CANDLES.path, params=BTC | {"limit": "3"})
    assert answer.json()["data"] == right
    assert len(answer.content) > 3 * 1024**2
    assert answer.num_bytes_downloaded < 10_000


def test_a_connection_can_be_reset_and_the_next_one_works(client: httpx.Client):
    fault(client, kind="reset")
    with pytest.raises(httpx.ReadError):
        client.get(HISTORY_CANDLES.path, params=BTC)
    assert len(rows(client)) == 100


def test_pages_can_be_lowered_shortened_emptied_and_stale(client: httpx.Client):
    right = rows(client, limit=300)
    fault(client, kind="page_limit")
    assert rows(client, limit=300) == right[:100]
    fault(client, kind="short", rows=7)
    assert rows(client, limit=300) == right[:7]
    fault(client, kind="empty")
    assert rows(client, limit=300) == []
    fault(client, kind="yesterday")
    stale = rows(client, limit=300)
    assert [int(row[0]) for row in stale] == [int(row[0]) - DAY_MS for row in right]
    assert rows(client, limit=300) == right


def test_a_fault_can_wait_and_several_can_stand_in_line(client: httpx.Client):
    client.post("/replay/faults", json=[{"kind": "empty", "skip": 1}, {"kind": "html", "endpoint": "time"}])
    assert len(rows(client)) == 100
    assert [item["kind"] for item in client.get("/replay/faults").json()] == ["empty", "html"]
    assert rows(client) == []
    assert client.get(TIME.path).text.startswith("<!DOCTYPE")
    assert client.get("/replay/faults").json() == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{}",
        b'{"kind": "flood"}',
        b'{"kind": "html", "endpoint": "trades"}',
        b'{"kind": "status", "status": 200}',
        b'{"kind": "bomb", "megabytes": 100000}',
        b'{"kind": "\xff"}',
        b"[" * 100_000,
        b'{"kind": "html", "endpoint": ' + b"[" * 100_000,
    ],
)
def test_a_fault_that_is_none_is_refused(client: httpx.Client, body: bytes):
    answer = client.post("/replay/faults", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert client.get("/replay/faults").json() == []


def test_a_body_that_is_too_long_is_refused(client: httpx.Client):
    for path in ("faults", "clock", "corrections"):
        answer = client.post(f"/replay/{path}", content=b" " * (MOST_BODY_BYTES + 1))
        assert answer.status_code == 400
        assert "longer than" in answer.json()["error"]


def test_it_answers_by_no_other_name(client: httpx.Client):
    assert client.get("/replay/status", headers={"Host": "localhost:1"}).status_code == 200
    assert client.get("/replay/status", headers={"Host": "rebound.example.com"}).status_code == 400


def test_what_was_asked_can_be_read_back_and_forgotten(client: httpx.Client):
    rows(client, bar="1Dutc", after=NOW_MS, limit=20)
    (request,) = client.get("/replay/requests").json()
    assert request == {
        "endpoint": "history-candles",
        "symbol": "BTC-USDT-SWAP",
        "bar": "1Dutc",
        "after": NOW_MS,
        "before": None,
        "limit": 20,
        "rows": 20,
        "now_ms": NOW_MS,
    }
    assert client.delete("/replay/requests").json() == []
    assert client.get("/replay/requests").json() == []


def test_the_status_counts_what_was_served_refused_and_spoiled(synthetic: SyntheticMarket):
    exchange = Exchange(synthetic, ExchangeClock(NOW_MS, 0))
    with ReplayServer(exchange) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        fault(client, kind="html", endpoint="time")
        statuses = {client.get("/api/v5/system/status").status_code for _ in range(2)}
        client.get(TIME.path)
        status = client.get("/replay/status").json()
    assert statuses == {200, 429}
    assert status["source"] == "synthetic market of 9 symbols and a delisted one, seed 7"
    assert (status["now_ms"], status["speed"]) == (NOW_MS, 0)
    assert status["endpoints"]["status"] == {"served": 1, "refused": 1, "faulted": 0}
    assert status["endpoints"]["time"] == {"served": 1, "refused": 0, "faulted": 1}


def test_the_clock_can_be_put(client: httpx.Client):
    assert client.post("/replay/clock", json={"now_ms": NOW_MS + MINUTE_MS}).json() == {
        "now_ms": NOW_MS + MINUTE_MS,
        "speed": 0,
    }
    assert client.get(TIME.path).json()["data"] == [{"ts": str(NOW_MS + MINUTE_MS)}]
    for wrong in ({"now_ms": 10**15}, {"speed": -1}, {"time": 5}):
        assert client.post("/replay/clock", json=wrong).status_code == 400
    assert client.get(TIME.path).json()["data"] == [{"ts": str(NOW_MS + MINUTE_MS)}]


def test_every_answer_can_be_held_back(synthetic: SyntheticMarket):
    exchange = Exchange(synthetic, ExchangeClock(NOW_MS, 0))
    with ReplayServer(exchange, latency_s=5) as server, pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{server.url}{TIME.path}", timeout=0.05, trust_env=False)


def test_it_listens_on_loopback_only_and_frees_its_port(synthetic: SyntheticMarket):
    exchange = Exchange(synthetic, ExchangeClock(NOW_MS, 0))
    with ReplayServer(exchange) as server:
        assert server.url.startswith("http://127.0.0.1:")
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(UsageError, match="choose another port"), ReplayServer(exchange, port=port):
            pass
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


SERVE = """
import sys
from okx_pipeline.errors import PipelineError
from okx_pipeline.replay.server import serve
try:
    serve(sys.argv[1], port=int(sys.argv[2]), now_ms=int(sys.argv[3]), speed=0, symbols=3, seed=1,
          push_interval_s=0.01, faults=sys.argv[4:], on_ready=lambda url: print(url, flush=True))
except PipelineError as problem:
    sys.exit(str(problem))
print("ended in order")
"""


@contextmanager
def start(*arguments: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serving_ends_in_order_when_a_signal_asks_for_it(number: signal.Signals):
    with start("synthetic", 0, NOW_MS) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{url}{TIME.path}").json()["data"] == [{"ts": str(NOW_MS)}]
            assert "3 symbols" in client.get(f"{url}/replay/status").json()["source"]
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "ended in order\n", "")


def test_serving_pushes_misbehaves_as_told_and_ends_in_order_with_clients_connected():
    fault = '{"kind": "no_channel", "requests": 1}'
    request = '{"op": "subscribe", "args": [{"channel": "candle1m", "instId": "BTC-USDT-SWAP"}]}'
    with start("synthetic", 0, NOW_MS, fault) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().replace("http", "ws") + BUSINESS_PATH
        with connect(url, proxy=None) as connection:
            for expected in ('"60018"', '"event":"subscribe"', '"data":[['):
                if "data" not in expected:
                    connection.send(request)
                assert expected in str(connection.recv(timeout=20))
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
            with pytest.raises(ConnectionClosedError, match="1012"):
                connection.recv(timeout=20)
    assert (process.returncode, out, err) == (0, "ended in order\n", "")


@pytest.mark.parametrize(
    ("source", "now_ms", "faults", "message"),
    [
        ("/no/such/folder", NOW_MS, [], "no folder /no/such/folder"),
        ("synthetic", 10**15, [], "in the future"),
        ("synthetic", NOW_MS, ['{"kind": "flood"}'], "not a fault"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(source: str, now_ms: int, faults: list[str], message: str):
    with start(source, 0, now_ms, *faults) as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, len(err.splitlines())) == (1, "", 1)
    assert message in err


def test_a_source_is_a_folder_or_the_word_synthetic(recordings: Path):
    assert open_market("synthetic", symbols=4).description.startswith("synthetic market of 4")
    folder = recordings / "candles"
    assert open_market(str(folder)).description.startswith(f"recordings in {folder}: BTC-USDT-SWAP 2022-05-01")
