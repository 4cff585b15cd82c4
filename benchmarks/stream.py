"""The sidecar under 5,000 series with a push each second: the processor it takes, and how late candles land.

The limit beside it is a client of the same WebSocket library that receives the same frames and forgets them.
"""

import subprocess
import sys

from benchmarks.figures import Figure
from benchmarks.streaming import PAUSE, names_of, sample, streaming, wait_until_caught_up

SYMBOLS = 385
TIMEFRAMES = "1m,3m,5m,15m,30m,1h,2h,4h,6h,12h,1d,1w,1mo"
MEASURED_S = 60


def run() -> list[Figure]:
    """Share of a core, frames a second, and the longest landing, over a minute's edge; then the client's share."""
    with streaming(SYMBOLS, TIMEFRAMES, 1.0) as (process, database, url):
        series = len(TIMEFRAMES.split(",")) * SYMBOLS
        wait_until_caught_up(database, series)
        before = sample(process, database)
        PAUSE.wait(MEASURED_S)
        after = sample(process, database)
        client = [sys.executable, "-m", "benchmarks.discarding_client", f"{url.replace('http', 'ws')}/ws/v5/business"]
        told = subprocess.run(
            [*client, "20", ",".join(names_of(url)), TIMEFRAMES], check=True, capture_output=True, text=True
        )
    received, client_s = map(float, told.stdout.split())
    elapsed_s = after.at_s - before.at_s
    frames = after.counters["frames"] - before.counters["frames"]
    ours_us, client_us = 1e6 * (after.processor_s - before.processor_s) / frames, 1e6 * client_s / received
    return [
        Figure("series", series),
        Figure("frames a second", frames / elapsed_s),
        Figure("share of a core", (after.processor_s - before.processor_s) / elapsed_s, at_most=0.5),
        Figure("microseconds of processor a frame", ours_us),
        Figure("the same of a client that discards frames", client_us),
        Figure("ours as a multiple of that", ours_us / client_us),
        Figure("longest from frame to commit, seconds", after.counters["landing took ms"] / 1000, at_most=1.0),
        Figure("growth of memory, MB", after.resident_mb - before.resident_mb),
        Figure("memory, MB", after.resident_mb),
    ]
