"""A year of candles to look after."""

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.subscriptions import subscribe, unsubscribe
from okx_pipeline.timeframes import Timeframe, day_ms, parse_timeframes

BTC = "BTC-USDT-SWAP"
TIMEFRAMES = parse_timeframes("1h,4h,1d,1w")
YEAR = (day_ms(date(2023, 1, 1)), day_ms(date(2024, 1, 1)))
SEASON = (YEAR[0], day_ms(date(2023, 5, 1)))
NOW_MS = day_ms(date(2024, 3, 10))
"""Behind the last gap that is to be looked for: long enough after the year for its last week to be closed."""


def candles(timeframe: Timeframe, start_ms: int, end_ms: int, symbol: str = BTC) -> list[Candle]:
    return [
        Candle(symbol, timeframe.name, open_ms, "10", "12", "9", str(10 + number % 2), "5", "0.05", "0.55")
        for number, open_ms in enumerate(timeframe.opens(start_ms, end_ms))
    ]


@pytest.fixture
def database(new_database: Callable[[bool], Database]) -> Database:
    return new_database(True)


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[CandleStore]:
    with CandleStore.opened(database, ParquetStore(str(tmp_path / "parquet"))) as opened:
        yield opened


@pytest.fixture
def year(store: CandleStore) -> CandleStore:
    """A store with every candle of a year, and nothing wanted after it."""
    return filled(store, *YEAR)


@pytest.fixture
def season(store: CandleStore) -> CandleStore:
    """The same of four months."""
    return filled(store, *SEASON)


def filled(store: CandleStore, start_ms: int, end_ms: int) -> CandleStore:
    subscribe(store.connection, [BTC], TIMEFRAMES, start_ms)
    for timeframe in TIMEFRAMES:
        store.land(candles(timeframe, start_ms, end_ms), source=Source.REST)
    store.project([])
    unsubscribe(store.connection, [BTC], [], end_ms)
    store.account(NOW_MS)
    return store
