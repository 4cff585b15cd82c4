"""How time grows with what is held: measured at 0.1, 1 and 10 million rows (large: 100), and the exponent of it.

An exponent of 1 is time in proportion to the rows held. The scan for gaps goes through all rows and may grow with them;
what is about a day, and landing 25,000 fresh rows, must not grow at all.
"""

import math
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median

from benchmarks.contest import elapsed
from benchmarks.figures import Figure
from benchmarks.gap_scan import MINUTE, START_MS, SYMBOLS, fill, scan
from benchmarks.market import candles
from okx_pipeline.candles import Source
from okx_pipeline.quality.gaps import SeriesRange, look
from okx_pipeline.ranges import Range
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import day_coverage, recount
from okx_pipeline.storage.landing import SeriesDay, land
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.reading import read_store
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS, day_of

SIZES = (100_000, 1_000_000, 10_000_000)
MANY_SIZES = (*SIZES, 100_000_000)
LANDED = 25_000
ROUNDS = 5
MOST = 1.1
FLAT = 0.25
"""Depth of a key's tree and warmth of a cache may tell a little."""


def run(sizes: tuple[int, ...] = SIZES) -> list[Figure]:
    """Seconds at each size and the exponent, of each kind of work."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(home=Path(home))
        files = ParquetStore(settings.parquet_root)
        with opened_database(settings) as database, CandleStore.opened(database, files) as store:
            from_ms = START_MS
            for size in sizes:
                end_ms = START_MS + size // len(SYMBOLS) * MINUTE_MS
                held = fill(store.connection, end_ms, from_ms)
                _count_days(store, from_ms, end_ms)
                from_ms = end_ms
                for what, work in _work(store, size, end_ms, held).items():
                    seconds.setdefault(what, []).append(median(elapsed(work) for _ in range(ROUNDS)))
    figures = []
    for what, taken in seconds.items():
        for size, value in zip(sizes, taken, strict=True):
            figures.append(Figure(f"{what}, seconds at {size:,} rows", value))
        exponent = math.log(taken[-1] / taken[0]) / math.log(sizes[-1] / sizes[0])
        at_most = MOST if what == _SCAN else FLAT
        figures.append(Figure(f"{what}, exponent", exponent, at_most=at_most))
    return figures


_SCAN = "gap scan of all"


def _work(store: CandleStore, size: int, end_ms: int, held: int) -> dict[str, Callable[[], object]]:
    last = day_of(end_ms - 2 * DAY_MS)
    within = Range(end_ms - 2 * DAY_MS, end_ms - DAY_MS)
    fresh = iter([list(candles(START_MS, LANDED, [f"NEW{number}-{size}-USDT"])) for number in range(ROUNDS)])
    return {
        _SCAN: lambda: scan(store, Range(START_MS, end_ms), held),
        "gap scan of one day": lambda: look(store, SeriesRange(SYMBOLS[7], MINUTE, within)),
        "reading one day": lambda: read_store(store, SYMBOLS[7], MINUTE, within),
        "reading the ledger of one day": lambda: day_coverage(
            store.connection, SYMBOLS[7], last, last + timedelta(days=1)
        ),
        f"landing {LANDED:,} fresh rows": lambda: land(store.connection, next(fresh), source=Source.REST),
    }


def _count_days(store: CandleStore, from_ms: int, end_ms: int) -> None:
    days = {day_of(ms) for ms in range(from_ms, end_ms, DAY_MS)}
    recount(store.connection, store.files, end_ms, [SeriesDay(symbol, "1m", day) for symbol in SYMBOLS for day in days])
