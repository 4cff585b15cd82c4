"""The figures for Prometheus: what a scraper reads of a real sidecar, and that the stream never minds."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from time import monotonic, sleep

import httpx
import psutil
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from okx_pipeline.candles import Candle
from okx_pipeline.exchange.frames import Series
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Database
from okx_pipeline.stream import metrics
from okx_pipeline.stream.counters import Counters, Figures
from okx_pipeline.stream.lander import Batch
from okx_pipeline.stream.metrics import Metrics
from okx_pipeline.timeframes import day_ms, parse_timeframe
from okx_pipeline_tests.e2e.system import free_port
from okx_pipeline_tests.stream.stand import Stand, standing, wait_until

START = day_ms(date(2026, 8, 20))
BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
Families = dict[str, Metric]


@pytest.fixture
def stand(database: Database, tmp_path: Path) -> Iterator[Stand]:
    """An exchange a minute a second, and a sidecar that is to tell its figures."""
    exchange = Exchange(open_market("synthetic", seed=3, symbols=6), ExchangeClock(START + 1_800_000, 60.0))
    with ReplayServer(exchange) as server:
        settings = read_settings(
            home=tmp_path / "home",
            database_url=database.url,
            rest_url=server.url,
            ws_url=server.url.replace("http", "ws") + "/ws/v5/business",
            symbols=f"{BTC},{ETH}",
            timeframes="1m,5m",
            metrics_port=free_port(),
        )
        with standing(server.url, settings, database, tmp_path) as stand:
            yield stand


def ask(port: int | None, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", headers=headers, trust_env=False, timeout=30)


def scrape(port: int | None) -> Families:
    answer = ask(port)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in prometheus(answer.text)}


def answers(port: int | None) -> bool:
    try:
        return ask(port).is_success
    except httpx.TransportError:
        return False


def value(families: Families, name: str, **labels: str) -> float:
    family = families[name.removesuffix("_total").removesuffix("_count")]
    return next(each.value for each in family.samples if each.name == name and each.labels == labels)


def test_a_scraper_reads_what_a_sidecar_does(stand: Stand) -> None:
    stand.start()
    port = stand.settings.metrics_port
    wait_until(stand.streams, "the sidecar streams")
    wait_until(lambda: "okx_request_budget_used" in scrape(port), "the store has been looked at")
    before = scrape(port)
    stand.lets_pass(5)
    wait_until(
        lambda: value(scrape(port), "okx_frames_total") > value(before, "okx_frames_total"), "frames are counted"
    )
    now = scrape(port)
    confirmed = value(now, "okx_candles_confirmed_total")
    assert value(before, "okx_candle_durable_seconds_count") < value(now, "okx_candle_durable_seconds_count")
    assert 0 <= confirmed - value(now, "okx_candle_durable_seconds_count") <= value(now, "okx_queue_candles") + 4
    assert value(now, "okx_candles_inserted_total") >= 2 * 5
    lags = {
        (each.labels["symbol"], each.labels["timeframe"]): each.value for each in now["okx_series_lag_seconds"].samples
    }
    assert lags.keys() == {(symbol, timeframe) for symbol in (BTC, ETH) for timeframe in ("1m", "5m")}
    assert max(lags.values()) == value(now, "okx_lag_seconds_max")
    for state, number in (("wanted", 4), ("received", 4), ("refused", 0)):
        assert value(now, "okx_series", state=state) == number
    assert value(now, "okx_connections") == 1
    assert value(now, "okx_clock_ahead_seconds") > 0
    assert value(now, "okx_request_budget_limit", endpoint="candles") == 40
    assert value(now, "okx_open_gaps") == 0
    assert {each.labels["of"] for each in now["okx_missing_candles"].samples} == {"gaps", "history"}


def test_reconnects_errors_and_lags_show(stand: Stand) -> None:
    stand.start()
    port = stand.settings.metrics_port
    wait_until(stand.streams, "the sidecar streams")
    assert value(scrape(port), "okx_reconnects_total") == 0
    stand.fault({"kind": "drop"})
    wait_until(lambda: value(scrape(port), "okx_reconnects_total") >= 1, "the reconnect is counted")
    errors = {each.labels["kind"] for each in scrape(port)["okx_errors"].samples}
    assert {"connection ended", "connection lost"} <= errors
    wait_until(lambda: value(scrape(port), "okx_connections") == 1, "it is connected again")
    stand.fault({"kind": "stall", "symbol": ETH, "seconds": 60}, {"kind": "status", "requests": 1000})

    def lag(symbol: str) -> float:
        return value(scrape(port), "okx_series_lag_seconds", symbol=symbol, timeframe="1m")

    wait_until(lambda: lag(ETH) > 300, "the lag of what does not come grows")
    assert lag(BTC) < 300
    stand.heal()
    wait_until(lambda: lag(ETH) < 120, "it is caught up")


def test_it_listens_on_the_loopback_alone_and_answers_by_no_other_name(stand: Stand) -> None:
    process = stand.start()
    port = stand.settings.metrics_port
    wait_until(lambda: answers(port), "it answers")
    listening = [each.laddr for each in psutil.Process(process.pid).net_connections("inet") if each.status == "LISTEN"]
    assert [(each.ip, each.port) for each in listening] == [("127.0.0.1", port)]
    assert ask(port, Host=f"localhost:{port}").status_code == 200
    assert ask(port, Host="evil.example.com").status_code == 400
    text = ask(port, Accept="application/openmetrics-text; version=1.0.0").text
    assert "okx_frames" in {family.name for family in open_metrics(text)}


def test_a_port_that_is_taken_costs_the_figures_and_not_the_stream(stand: Stand) -> None:
    port = stand.settings.metrics_port
    with closing(socket.create_server(("127.0.0.1", port or 0))):
        stand.start()
        wait_until(stand.streams, "the sidecar streams")
        wait_until(lambda: f"port {port} cannot be used" in stand.log.read_text(), "it says so")
    wait_until(lambda: answers(port), "it serves once it can")


def test_without_a_port_nothing_listens(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.settings = stand.settings.model_copy(update={"metrics_port": None})
    process = stand.start()
    wait_until(stand.streams, "the sidecar streams")
    assert [each for each in psutil.Process(process.pid).net_connections("inet") if each.status == "LISTEN"] == []


def test_whoever_connects_and_says_nothing_or_reads_nothing_is_in_nobodys_way(stand: Stand) -> None:
    stand.start()
    port = stand.settings.metrics_port
    wait_until(lambda: answers(port), "it answers")
    silent = [socket.create_connection(("127.0.0.1", port or 0)) for _ in range(20)]
    for each in silent[::2]:
        each.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
    before = stand.count("SELECT count(*) FROM trading.candlesticks")
    assert scrape(port)
    wait_until(lambda: stand.count("SELECT count(*) FROM trading.candlesticks") > before + 4, "candles land")
    for each in silent:
        each.close()
    stand.stop()
    assert stand.sidecars[0].returncode == 0


# With figures of our own.


def figures(lags_s: dict[Series, float] | None = None) -> Figures:
    nothing: dict[str, int] = {}
    return Figures(nothing, nothing, lags_s or {}, 0, 0, 0, 0, 0, 0.0, 0, None)


def serving(
    database: Database, take: Callable[[], Figures], use: Callable[[Metrics, int, Counters], Awaitable[None]]
) -> Counters:
    """Let `use` have what serves `take()`, on a port."""
    port, counters = free_port(), Counters()
    told = Metrics(port, take, database, counters)

    async def run() -> None:
        running = asyncio.create_task(told.run())
        deadline = monotonic() + 60
        while not await asyncio.to_thread(answers, port):
            assert monotonic() < deadline
        await use(told, port, counters)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    return counters


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 60
    while not await asyncio.to_thread(condition):
        assert monotonic() < deadline
        await asyncio.sleep(0.01)


def test_the_latency_is_of_each_candles_own_frame(database: Database) -> None:
    one = Candle(BTC, "1m", START, "1", "1", "1", "1", "1", "1", "1")
    batch = Batch([one] * 6, received_s=monotonic() - 100, joined=[(monotonic() - 20, 2), (monotonic() - 0.4, 3)])

    async def use(told: Metrics, port: int, counters: Counters) -> None:
        told.landed(batch)
        await eventually(lambda: value(scrape(port), "okx_candle_durable_seconds_count") == 6)
        families = await asyncio.to_thread(scrape, port)
        buckets = {
            each.labels["le"]: each.value
            for each in families["okx_candle_durable_seconds"].samples
            if each.name.endswith("_bucket")
        }
        assert (buckets["0.3"], buckets["10.0"], buckets["30.0"], buckets["60.0"], buckets["300.0"]) == (0, 3, 5, 5, 6)

    serving(database, figures, use)


def test_series_are_told_up_to_a_bound_and_the_longest_lag_of_all(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 10)
    lags = {Series(f"S{number:02}-USDT", parse_timeframe("1m")): float(number) for number in range(15)}

    async def use(told: Metrics, port: int, counters: Counters) -> None:
        families = await asyncio.to_thread(scrape, port)
        told_of = [each.labels["symbol"] for each in families["okx_series_lag_seconds"].samples]
        assert told_of == [f"S{number:02}-USDT" for number in range(10)]
        assert value(families, "okx_lag_seconds_max") == 14
        assert value(families, "okx_series", state="wanted") == 15

    serving(database, lambda: figures(lags), use)


def test_what_a_database_that_is_away_said_before_is_told_no_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(metrics, "SAME_FOR_S", 0.0)

    async def use(told: Metrics, port: int, counters: Counters) -> None:
        await eventually(lambda: "okx_open_gaps" in scrape(port))
        told._database = Database("postgresql://nobody@127.0.0.1:1/none")
        await eventually(lambda: "okx_open_gaps" not in scrape(port))
        told._database = database
        await eventually(lambda: "okx_open_gaps" in scrape(port))

    assert serving(database, figures, use).errors["metrics failed"] >= 1


def test_a_stream_that_is_too_busy_to_tell_is_not_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr(metrics, "SAME_FOR_S", 0.0)

    async def use(told: Metrics, port: int, counters: Counters) -> None:
        asked = asyncio.create_task(asyncio.to_thread(ask, port))
        await asyncio.sleep(0)
        # The event loop stands still, as in a stream that is too busy.
        deadline = monotonic() + 2
        while monotonic() < deadline:
            sleep(0.1)
        assert (await asked).status_code == 503
        assert (await asyncio.to_thread(ask, port)).status_code == 200

    serving(database, figures, use)
