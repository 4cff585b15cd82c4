"""The sidecar under 5,000 series with a push each second: the processor it takes, and how late candles land."""

from benchmarks.figures import Figure
from benchmarks.streaming import PAUSE, sample, streaming, wait_until_caught_up

SYMBOLS = 385
TIMEFRAMES = "1m,3m,5m,15m,30m,1h,2h,4h,6h,12h,1d,1w,1mo"
MEASURED_S = 60


def run() -> list[Figure]:
    """Share of a core, frames a second, and the longest landing in a minute that closes at the measure's beginning."""
    with streaming(SYMBOLS, TIMEFRAMES, 1.0) as (process, database, _):
        series = len(TIMEFRAMES.split(",")) * SYMBOLS
        wait_until_caught_up(database, series)
        before = sample(process, database)
        PAUSE.wait(MEASURED_S)
        after = sample(process, database)
    elapsed_s = after.at_s - before.at_s
    frames = after.counters["frames"] - before.counters["frames"]
    return [
        Figure("series", series),
        Figure("frames a second", frames / elapsed_s),
        Figure("share of a core", (after.processor_s - before.processor_s) / elapsed_s, at_most=0.5),
        Figure("microseconds of processor a frame", 1e6 * (after.processor_s - before.processor_s) / frames),
        Figure("longest from frame to commit, seconds", after.counters["landing took ms"] / 1000, at_most=1.0),
        Figure("growth of memory, MB", after.resident_mb - before.resident_mb),
        Figure("memory, MB", after.resident_mb),
    ]
