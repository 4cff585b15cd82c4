"""The main job, whole, on real candles: what OKX has is what PostgreSQL and Parquet have, row for row, exact."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from okx_pipeline.history.backfill import Backfill, Report
from okx_pipeline.history.plan import days_of_range
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.timeframes import day_ms, parse_timeframe

Row = tuple[int, ...]
NAMES = ("open", "high", "low", "close", "vol", "vol_ccy")
STORED = ("open_price", "high_price", "low_price", "close_price", "volume", "volume_currency")
AFTER_EVERYTHING = day_ms(date(2026, 8, 22)) + 7_200_000


@pytest.fixture(scope="module")
def okx(recordings: Path) -> Iterator[str]:
    """The replay exchange on the recordings, two hours into 22 August 2026."""
    market = open_market(str(recordings / "candles"))
    with ReplayServer(Exchange(market, ExchangeClock(AFTER_EVERYTHING, 0.0))) as server:
        yield server.url


def recorded(recordings: Path, symbol: str, bar: str, period: str, start: date, end: date) -> list[tuple[object, ...]]:
    """The recorder's confirmed rows of [start, end): open time, four prices, two volumes as decimals."""
    table = pq.read_table(recordings / "candles" / f"{symbol}_{bar}_{period}.parquet")
    rows = {
        row["ts"]: (row["ts"], *(Decimal(row[name]) for name in NAMES))
        for row in table.to_pylist()
        if row["confirm"] in ("1", 1, True) and day_ms(start) <= row["ts"] < day_ms(end)
    }
    return [rows[open_ms] for open_ms in sorted(rows)]


def backfill(settings: Settings, database: Database, symbols: list[str], names: list[str], *days: date) -> Report:
    async def run() -> Report:
        async with Backfill.opened(settings, database) as filling:
            spans = [days_of_range(symbol, parse_timeframe(name), *days) for symbol in symbols for name in names]
            return await filling.run(await filling.plan(spans, only_missing=True))

    return asyncio.run(run())


def in_postgresql(database: Database, symbol: str, timeframe: str) -> list[tuple[object, ...]]:
    with database.connect() as connection:
        return connection.execute(
            f"SELECT timestamp_ms, {', '.join(STORED)} FROM trading.candlesticks "
            "WHERE symbol = %s AND timeframe = %s ORDER BY timestamp_ms",
            (symbol, timeframe),
        ).fetchall()


def in_parquet(settings: Settings, symbol: str, timeframe: str, month: date) -> list[tuple[object, ...]]:
    table = ParquetStore(settings.parquet_root).read(SeriesMonth(symbol, timeframe, month))
    return [tuple(row.values()) for row in table.select(["timestamp_ms", *STORED]).to_pylist()]


def test_three_weeks_of_two_swaps_are_the_same_in_postgresql_parquet_and_the_recording(
    okx: str, recordings: Path, database: Database, settings_for: Callable[[str], Settings]
) -> None:
    settings = settings_for(okx)
    start, end = date(2026, 8, 1), date(2026, 8, 22)
    bars = {"5m": "5m", "15m": "15m", "1h": "1H", "4h": "4H"}
    symbols = ["BTC-USDT-SWAP", "ETH-USDT-SWAP"]
    report = backfill(settings, database, symbols, list(bars), start, end)
    assert report.total("inserted") == 2 * 21 * (288 + 96 + 24 + 6)
    for symbol in symbols:
        for timeframe, bar in bars.items():
            truth = recorded(recordings, symbol, bar, "2026-08", start, end)
            assert len(truth) == parse_timeframe(timeframe).count(day_ms(start), day_ms(end))
            assert in_postgresql(database, symbol, timeframe) == truth
            assert in_parquet(settings, symbol, timeframe, start) == truth


def test_an_outage_is_kept_as_the_flat_rows_that_okx_has(
    okx: str, recordings: Path, database: Database, settings_for: Callable[[str], Settings]
) -> None:
    settings = settings_for(okx)
    start, end = date(2022, 12, 18), date(2022, 12, 19)
    backfill(settings, database, ["BTC-USDT-SWAP"], ["5m"], start, end)
    truth = recorded(recordings, "BTC-USDT-SWAP", "5m", "2022-05_2022-12", start, end)
    assert in_postgresql(database, "BTC-USDT-SWAP", "5m") == truth
    assert in_parquet(settings, "BTC-USDT-SWAP", "5m", date(2022, 12, 1)) == truth
    flat = [row for row in truth if row[5] == 0]
    assert len(flat) == 122
    assert {price for row in flat[-5:] for price in row[1:5]} == {Decimal("16729.9")}
