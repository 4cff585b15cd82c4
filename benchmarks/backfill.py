"""A backfill of 60 days x 5 timeframes x 1 symbol against the replay exchange, which keeps OKX's limits.

The peer, ccxt with its own rate limiter and eight requests at once, pages through 200 pages of 1m on an exchange of its
own. The limit beside it: the least time in which an exchange that takes N requests in any P seconds can be asked M
questions is (ceil(M / N) - 1) * P, from the first to the last arrival. The share is that time over the one it took.
"""

import asyncio
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import ccxt.async_support as ccxt
import httpx

from benchmarks.figures import Figure
from okx_pipeline.exchange.protocol import ENDPOINTS
from okx_pipeline.history.backfill import Backfill, Report
from okx_pipeline.history.plan import days_of_range
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.timeframes import MINUTE_MS, day_ms, parse_timeframes

SYMBOL = "BTC-USDT-SWAP"
DAYS = (date(2025, 3, 1), date(2025, 4, 30))
LATENCY_S = 0.06
PAGE, PAGES, AT_ONCE = 300, 200, 8


def run() -> list[Figure]:
    """The shares of the request budget that were used, and the refusals, of every endpoint that mattered."""
    with tempfile.TemporaryDirectory() as home, exchange() as url:
        settings = read_settings(home=Path(home), rest_url=url, ws_url=url)
        report = asyncio.run(fill(settings))
        arrivals = httpx.get(f"{url}/replay/requests", trust_env=False).json()
        tallies = httpx.get(f"{url}/replay/status", trust_env=False).json()["endpoints"]
    with exchange() as url:
        asyncio.run(page_with_ccxt(url))
        theirs = httpx.get(f"{url}/replay/requests", trust_env=False).json()
    refused = sum(tally["refused"] for tally in tallies.values())
    figures = [Figure("requests refused with 429", refused, at_most=0)]
    for endpoint in ENDPOINTS:
        for who, requests, at_least in (("ours", arrivals, 0.97), ("ccxt", theirs, None)):
            times = [each["now_ms"] / 1000 for each in requests if each["endpoint"] == endpoint.name]
            least_s = endpoint_s(len(times), endpoint.name)
            if least_s > 0:
                share = least_s / (max(times) - min(times))
                what = f"{who}: share of the {endpoint.name} budget over {len(times)} requests"
                figures.append(Figure(what, share, at_least=at_least))
    whole_s = sum(endpoint_s(len_, name) for name, len_ in Counter(each["endpoint"] for each in arrivals).items())
    figures.append(Figure("candles landed", report.total("inserted")))
    figures.append(Figure("seconds in all, landing and Parquet included", report.seconds))
    figures.append(Figure("seconds that the budget alone takes", whole_s))
    return figures


def endpoint_s(requests: int, name: str) -> float:
    """The least seconds that `requests` take on the endpoint called `name`."""
    (endpoint,) = (each for each in ENDPOINTS if each.name == name)
    return (math.ceil(requests / endpoint.requests) - 1) * endpoint.period_s


async def fill(settings: Settings) -> Report:
    """The backfill, on an embedded PostgreSQL of its own."""
    with opened_database(settings) as database:
        async with Backfill.opened(settings, database) as filling:
            timeframes = parse_timeframes("5m,15m,1h,4h,1d")
            spans = [days_of_range(SYMBOL, timeframe, *DAYS) for timeframe in timeframes]
            return await filling.run(await filling.plan(spans, only_missing=True))


@contextmanager
def exchange() -> Iterator[str]:
    """The replay exchange in a process of its own, 60 ms away."""
    command = [sys.executable, "-m", "okx_pipeline", "replay", "synthetic", "--port", "0", "--latency", str(LATENCY_S)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OKX_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().rpartition("=")[2].strip()
        finally:
            process.terminate()


async def page_with_ccxt(url: str) -> None:
    """Two hundred pages of 1m, eight at once, as fast as ccxt's limiter lets them."""
    client = ccxt.okx()
    client.urls["api"] = {"rest": url}
    try:
        await client.load_markets()
        starts = iter(range(day_ms(DAYS[0]), day_ms(DAYS[0]) + PAGES * PAGE * MINUTE_MS, PAGE * MINUTE_MS))

        async def work() -> None:
            for start_ms in starts:
                until_ms = start_ms + PAGE * MINUTE_MS
                page = await client.fetch_ohlcv("BTC/USDT:USDT", "1m", start_ms, PAGE, {"until": until_ms})
                if len(page) < PAGE - 1:
                    raise AssertionError(f"ccxt got {len(page)} candles of a page of {PAGE}")

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    finally:
        await client.close()
