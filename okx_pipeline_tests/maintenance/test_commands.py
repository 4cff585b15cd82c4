"""maintain, backup and restore as a user runs them."""

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import Source
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import day_ms, month_bounds, parse_timeframe
from okx_pipeline_tests.maintenance.conftest import BTC, candles
from okx_pipeline_tests.test_cli import Program, done, figures, refused

HOUR = parse_timeframe("1h")
OLD, YOUNG = date(2026, 4, 1), date(2026, 7, 1)
NOW_MS = day_ms(date(2026, 8, 22))


@pytest.fixture
def program(tmp_path: Path, database: Database) -> Iterator[Program]:
    """The program on a store of two months, of which the older has expired."""
    exchange = Exchange(open_market("synthetic", seed=11, symbols=8), ExchangeClock(NOW_MS, 0.0), limits=False)
    with ReplayServer(exchange) as server:
        made = Program(tmp_path, OKX_DATABASE_URL=database.url, OKX_REST_URL=server.url, OKX_RETENTION="1h=90d")
        with CandleStore.opened(database, ParquetStore(str(made.home / "parquet"))) as store:
            store.claim_for("replay")
            for month in (OLD, YOUNG):
                store.land(candles(HOUR, *month_bounds(month)), source=Source.REST)
            store.project([])
            store.account(NOW_MS)
        yield made


def held(database: Database) -> int:
    with database.connect() as connection:
        return int(one(connection, "SELECT count(*) FROM trading.candlesticks"))


def test_a_dry_run_says_what_would_go_and_changes_nothing(program: Program, database: Database) -> None:
    said = done(program("maintain", "--dry-run")).stdout.splitlines()
    assert said[0] == (f"2026-04  rebuild 1 file for good, archive 720 candles of {BTC} 1h, drop the partition")
    assert said[1] == "2026-05  make the partition"
    document = figures(program("maintain", "--dry-run", "--json"))
    assert document["months"][0]["archive"] == [{"symbol": BTC, "timeframe": "1h", "rows": 720}]
    assert document["months"][0]["drop"]
    assert held(database) == 720 + 744


def test_maintaining_does_what_the_dry_run_said_and_then_there_is_nothing_to_do(
    program: Program, database: Database
) -> None:
    document = figures(program("maintain", "--json"))
    assert document["months"][0]["archived"] == [{"symbol": BTC, "timeframe": "1h", "rows": 720}]
    assert document["months"][0]["dropped"]
    assert document["sizes"]["candles"] == 720 + 744
    assert document["growth"] is None
    assert held(database) == 744
    assert done(program("maintain")).stdout == "there is nothing to do\n"


def test_a_month_comes_back_on_demand_and_stays_for_a_while(program: Program, database: Database) -> None:
    done(program("maintain"))
    assert done(program("restore", "--month", "2026-04", "--symbols", "ETH-USDT")).stdout == (
        "nothing of 2026-04 is archived\n"
    )
    said = done(program("restore", "--month", "2026-04")).stdout
    assert said == f"720 candles of {BTC} 1h are back\nthey stay for 7 days; OKX_RETENTION decides from then on\n"
    assert held(database) == 720 + 744
    assert f"2026-04  {BTC} 1h has expired and stays: it was brought back" in done(program("maintain")).stdout


def test_a_store_is_backed_up_and_restored_elsewhere(
    program: Program, database: Database, new_database: Callable[[bool], Database], tmp_path: Path
) -> None:
    done(program("maintain"))
    assert done(program("backup", "store.backup")).stdout.startswith("2 months of series, 1 of them archived, in ")
    refused(program("backup", "store.backup"), 2, "store.backup", "exists already")
    refused(program("restore", "store.backup"), 2, "the database is not empty")
    empty = new_database(False)
    there = {"OKX_DATABASE_URL": empty.url, "OKX_HOME": str(tmp_path / "elsewhere")}
    said = done(program("restore", "store.backup", **there)).stdout
    assert said == "2 months of series restored, 1 of them archived\n"
    assert held(empty) == 744
    assert figures(program("coverage", "--symbols", BTC, "--start", "2026-04-01", "--json", **there)) == figures(
        program("coverage", "--symbols", BTC, "--start", "2026-04-01", "--json")
    )
    done(program("restore", "--month", "2026-04", **there))
    assert held(empty) == 720 + 744


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("restore",), ["a backup, or an archived month as --month 2024-01"]),
        (("restore", "x", "--month", "2024-01"), ["a backup, or an archived month"]),
        (("restore", "x", "--timeframes", "1h"), ["go with --month; a backup is restored whole"]),
        (("restore", "--month", "January"), ["'January' is not a month; write it as 2024-01"]),
        (("restore", "nowhere.backup"), ["there is no", "nowhere.backup"]),
        (("backup", "nowhere/store.backup"), ["there is no folder", "nowhere"]),
    ],
)
def test_wrong_usage_is_told_in_a_line(program: Program, arguments: tuple[str, ...], words: list[str]) -> None:
    refused(program(*arguments), 2, *words)
