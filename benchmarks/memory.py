"""Memory over ten minutes of replay with 500 series at 10 x speed: it must not grow with time.

Beside the sidecar stands nothing: what counts is that the second half needs no more than the first.
"""

from benchmarks.figures import Figure
from benchmarks.streaming import PAUSE, candles_of_the_websocket, sample, streaming, wait_until_caught_up

SYMBOLS = 100
TIMEFRAMES = "1m,3m,5m,15m,1h"
MINUTES = 10


def run() -> list[Figure]:
    """Memory at the beginning and end, growth in the second half, and what landed."""
    with streaming(SYMBOLS, TIMEFRAMES, 10.0) as (process, database, _):
        wait_until_caught_up(database, SYMBOLS * len(TIMEFRAMES.split(",")))
        samples = [sample(process, database)]
        for _ in range(MINUTES):
            PAUSE.wait(60)
            samples.append(sample(process, database))
            print(f"  {samples[-1].resident_mb:.0f} MB, {samples[-1].counters['frames']:.0f} frames", flush=True)
        landed = candles_of_the_websocket(database)
    middle, last = samples[MINUTES // 2], samples[-1]
    return [
        Figure("memory at the beginning, MB", samples[0].resident_mb),
        Figure("memory at the end, MB", last.resident_mb),
        Figure("growth in the second half, share", last.resident_mb / middle.resident_mb - 1, at_most=0.05),
        Figure("candles landed from frames", landed),
        Figure("longest from frame to commit, seconds", last.counters["landing took ms"] / 1000, at_most=1.0),
    ]
