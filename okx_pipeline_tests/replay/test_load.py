"""What a heavy load of pushes costs: five thousand series each second, measured and told, with no bound on it here."""

import asyncio
import subprocess
import sys
import time
from collections import Counter

import psutil
import websockets

from okx_pipeline.exchange.frames import SUBSCRIBE, Series, decode_frame, encode_requests
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import TIMEFRAMES
from okx_pipeline_tests.replay.stand import DEADLINE_S, NOW_MS

SERVE = """
import sys
from okx_pipeline.replay.channels import Channels
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.synthetic import SyntheticMarket
exchange = Exchange(SyntheticMarket(7, 500), ExchangeClock(int(sys.argv[1])))
with ReplayServer(exchange, channels=Channels(exchange, push_unchanged=True)) as server:
    print(server.websocket_url, flush=True)
    sys.stdin.read()
"""
ROUNDS = 3


async def load(url: str, server: psutil.Process) -> tuple[Counter[str], float, float]:
    """Frames of each series in some rounds, with the server's processor time and the wall's over them."""
    symbols = [rules.symbol for rules in SyntheticMarket(7, 500).instruments(NOW_MS)]
    series = [Series(symbol, timeframe) for symbol in symbols for timeframe in TIMEFRAMES[:10]]
    async with websockets.connect(url, proxy=None, max_queue=None) as connection:

        async def pushes(count: int) -> list[str]:
            texts: list[str] = []
            while len(texts) < count:
                text = str(await connection.recv())
                texts += [text] if '"data"' in text else []
            return texts

        for request in encode_requests(SUBSCRIBE, series):
            await connection.send(request)
        # Once with the subscription, and a round to settle.
        await pushes(2 * len(series))
        started_s, used_s = time.monotonic(), sum(server.cpu_times()[:2])
        texts = await pushes(ROUNDS * len(series))
        wall_s, processor_s = time.monotonic() - started_s, sum(server.cpu_times()[:2]) - used_s
    return Counter(str(decode_frame(text).arg) for text in texts), processor_s, wall_s


def test_five_thousand_series_are_pushed_each_second_and_each_gets_its_turn() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(NOW_MS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        frames, processor_s, wall_s = asyncio.run(
            asyncio.wait_for(load(url, psutil.Process(process.pid)), 3 * DEADLINE_S)
        )
        process.communicate(timeout=DEADLINE_S)
    rate = frames.total() / wall_s
    print(f"{len(frames):,} series, {rate:,.0f} frames/s at {processor_s / wall_s:.0%} of one processor")
    assert len(frames) == 5_000
    # A subscription may have come while a round was under way.
    assert max(frames.values()) - min(frames.values()) <= 2
