"""ccxt, an independent reader of OKX's protocol, reads the stand-in as OKX."""

from collections.abc import Iterator

import ccxt
import pytest

from okx_pipeline.replay.bars import BARS
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange, PageQuery
from okx_pipeline.replay.recordings import Recordings
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS

NOW_MS = 1_795_199_000_123


def reader(url: str, now_ms: int) -> ccxt.okx:
    """ccxt's OKX, at the stand-in and on its clock: it chooses between the two candle endpoints by the time it is."""
    client = ccxt.okx({"enableRateLimit": False})
    client.urls["api"] = {"rest": url}
    client.session.trust_env = False
    client.milliseconds = lambda: now_ms
    return client


@pytest.fixture(scope="module")
def exchange(synthetic: SyntheticMarket) -> Exchange:
    return Exchange(synthetic, ExchangeClock(NOW_MS, 0), limits=False)


@pytest.fixture(scope="module")
def okx(exchange: Exchange) -> Iterator[ccxt.okx]:
    with ReplayServer(exchange) as server:
        client = reader(server.url, NOW_MS)
        yield client
        client.session.close()


def served(exchange: Exchange, symbol: str, bar: str, count: int, volume: int, **bounds: int) -> list[list[float]]:
    """The rows as ccxt tells them: oldest first, floats, one volume (of derivatives, the one in coin)."""
    rows = exchange.page(symbol, BARS[bar], PageQuery(limit=count, **bounds))
    return [[int(row[0]), *(float(text) for text in (*row[1:5], row[volume]))] for row in reversed(rows)]


def test_its_markets_are_the_instruments(okx: ccxt.okx, synthetic: SyntheticMarket):
    markets = okx.load_markets()
    assert {market["id"] for market in markets.values()} == {item.symbol for item in synthetic.instruments(NOW_MS)}
    swap, spot = markets["BTC/USDT:USDT"], markets["BTC/USDT"]
    assert (swap["id"], swap["swap"], swap["linear"], swap["contractSize"]) == ("BTC-USDT-SWAP", True, True, 0.01)
    assert (swap["precision"]["price"], swap["created"], swap["active"]) == (0.1, 1_573_557_408_000, True)
    assert (spot["spot"], spot["precision"]["amount"]) == (True, 0.00001)


def test_it_tells_the_exchanges_time(okx: ccxt.okx):
    assert okx.fetch_time() == NOW_MS
    assert okx.fetch_status()["status"] == "ok"


@pytest.mark.parametrize(
    ("timeframe", "bar"), [("1m", "1m"), ("4h", "4H"), ("6h", "6Hutc"), ("1d", "1Dutc"), ("1w", "1Wutc")]
)
@pytest.mark.parametrize(("name", "symbol"), [("BTC/USDT:USDT", "BTC-USDT-SWAP"), ("ETH/USDT", "ETH-USDT")])
def test_its_candles_are_the_markets(
    okx: ccxt.okx, exchange: Exchange, timeframe: str, bar: str, name: str, symbol: str
):
    volume = 6 if symbol.endswith("SWAP") else 5
    assert okx.fetch_ohlcv(name, timeframe, limit=250) == served(exchange, symbol, bar, 250, volume)


def test_its_paging_reads_more_than_a_page_of_both_endpoints(okx: ccxt.okx, exchange: Exchange):
    exchange.requests.clear()
    since = NOW_MS // MINUTE_MS * MINUTE_MS - 2_000 * MINUTE_MS
    read: list[list[float]] = []
    while len(read) < 2_001:
        read += okx.fetch_ohlcv("BTC/USDT:USDT", "1m", since=int(read[-1][0]) + MINUTE_MS if read else since, limit=300)
    assert read == served(exchange, "BTC-USDT-SWAP", "1m", 2_001, 6)
    assert {request.endpoint for request in exchange.requests} == {"candles", "history-candles"}


def test_its_paginator_reads_years_of_days(okx: ccxt.okx, exchange: Exchange):
    since = NOW_MS // DAY_MS * DAY_MS - 900 * DAY_MS
    read = okx.fetch_ohlcv("ETH/USDT:USDT", "1d", since=since, limit=900, params={"paginate": True})
    assert read == served(exchange, "ETH-USDT-SWAP", "1Dutc", 900, 6, after_ms=since + 900 * DAY_MS)


def test_it_takes_the_errors_for_what_they_are(okx: ccxt.okx, exchange: Exchange):
    with pytest.raises(ccxt.BadSymbol):
        okx.publicGetMarketCandles({"instId": "NOPE-USDT"})
    with pytest.raises(ccxt.BadRequest):
        okx.publicGetMarketCandles({"instId": "BTC-USDT-SWAP", "bar": "1h"})
    with ReplayServer(Exchange(exchange.market, exchange.clock)) as limited:
        client = reader(limited.url, NOW_MS)
        for _ in range(10):
            client.fetch_time()
        with pytest.raises(ccxt.RateLimitExceeded):
            client.fetch_time()
        client.session.close()


def test_it_reads_the_recordings(recorded: Recordings):
    now_ms = recorded.start_ms(NOW_MS)
    exchange = Exchange(recorded, ExchangeClock(now_ms, 0), limits=False)
    with ReplayServer(exchange) as server:
        client = reader(server.url, now_ms)
        assert set(client.load_markets()) == {"BTC/USDT:USDT", "ETH/USDT:USDT"}
        since = 1_667_260_800_000  # 2022-11-01
        read: list[list[float]] = []
        while not read or read[-1][0] < since + 3 * DAY_MS:
            start = int(read[-1][0]) + 5 * MINUTE_MS if read else since
            read += client.fetch_ohlcv("BTC/USDT:USDT", "5m", since=start, limit=300)
        assert read == served(exchange, "BTC-USDT-SWAP", "5m", len(read), 6, after_ms=int(read[-1][0]) + HOUR_MS // 12)
        client.session.close()
