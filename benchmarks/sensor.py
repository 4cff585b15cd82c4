"""A tick of the sidecar's sensor with 1,000 symbols that landed since the last one: Dagster gives a tick 60 s, we 2."""

import tempfile
from datetime import date
from pathlib import Path
from time import perf_counter

import dagster as dg

from benchmarks.figures import Figure
from okx_pipeline.candles import Candle, Source
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.defs.stream.sensors import sidecar_landings
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.stream_status import Heartbeat, beat
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import day_ms, parse_timeframes

SYMBOLS = [f"SYN{number:04d}-USDT-SWAP" for number in range(1000)]
TIMEFRAMES = parse_timeframes("1m,5m,15m,1h,4h")
DAY = day_ms(date(2026, 8, 20))


def run() -> list[Figure]:
    """Seconds of the longest of six ticks and of the last, after everything was new."""
    with tempfile.TemporaryDirectory() as home, dg.instance_for_test() as instance:
        settings = read_settings(home=Path(home))
        with opened_database(settings) as database, database.connect() as connection:
            instance.add_dynamic_partitions("okx_symbols", SYMBOLS)
            seed_subscriptions(connection, SYMBOLS, TIMEFRAMES, 0)
            for timeframe in TIMEFRAMES:
                candles = [
                    Candle(symbol, timeframe.name, open_ms, "10", "11", "9", "10", "5", "0.05", "500")
                    for symbol in SYMBOLS
                    for open_ms in timeframe.opens(DAY, DAY + 3_600_000)
                ]
                land(connection, candles, source=Source.WEBSOCKET)
            beat(connection, Heartbeat("host:1", "streaming", DAY + 3_600_000))
            pipeline = Pipeline(overrides={"home": home})
            cursor, ticks, reported = None, [], 0
            for _ in range(6):
                started = perf_counter()
                context = dg.build_sensor_context(instance, cursor=cursor, resources={"pipeline": pipeline})
                result = sidecar_landings(context)
                ticks.append(perf_counter() - started)
                assert isinstance(result, dg.SensorResult)
                cursor = result.cursor
                reported += len(result.asset_events)
    # What landed within a minute before a look is reported twice, and says the same.
    if reported < len(SYMBOLS):
        raise AssertionError(f"{reported} days were reported of {len(SYMBOLS)} symbols")
    return [
        Figure("longest tick with 1,000 symbols to report, seconds", max(ticks), at_most=2.0),
        Figure("the last of six ticks, seconds", ticks[-1], at_most=2.0),
    ]
