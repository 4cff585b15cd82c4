"""A backfill whose daemon, code server and run worker are killed halfway: the ledger knows what is left."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from okx_pipeline.history.plan import windows_over
from okx_pipeline.quality.work import Kind, work_left
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.faults import Fault
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, Timeframe, day_ms, day_of, parse_timeframe
from okx_pipeline_tests.e2e.system import System, Up

pytestmark = pytest.mark.e2e

BTC = "BTC-USDT-SWAP"
HISTORY = "history-candles"
ASKING = {Kind.HISTORY, Kind.REPAIR, Kind.RECONCILIATION}
"""Work that asks OKX."""
TIMEFRAMES = [parse_timeframe(name) for name in ("1m", "5m")]
OF_BAR = {timeframe.bar: timeframe for timeframe in TIMEFRAMES}
TODAY = date(2026, 8, 22)
SINCE = TODAY - timedelta(days=30)
READ_SINCE = TODAY - timedelta(days=10)
"""The days since then were read before, as a user's command does."""

VALUES = ("open_price", "high_price", "low_price", "close_price", "volume", "volume_currency", "volume_quote")
HALFWAY = 50
"""Pages of old history that are served before OKX falls silent; the twenty days that are left take 116."""

STUCK_AFTER_S = 300
"""How long nothing may change on a busy machine, where a daemon takes a minute to start."""

RUNS = "{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }"


@pytest.fixture
def exchange() -> Exchange:
    """A made-up market at noon, with OKX's limits."""
    market = open_market("synthetic", seed=11, symbols=4)
    return Exchange(market, ExchangeClock(day_ms(TODAY) + 12 * HOUR_MS, 1.0))


@pytest.fixture
def system(exchange: Exchange, tmp_path: Path) -> Iterator[System]:
    with ReplayServer(exchange) as server:
        settings = {
            "OKX_REST_URL": server.url,
            "OKX_WS_URL": server.websocket_url,
            "OKX_SYMBOLS": BTC,
            "OKX_TIMEFRAMES": ",".join(OF_BAR),
            "OKX_HISTORY_START": SINCE.isoformat(),
        }
        yield System(tmp_path / "home", tmp_path, **settings)


def test_a_killed_backfill_finishes_by_itself_and_asks_only_for_what_the_ledger_lacks(
    system: System, exchange: Exchange
) -> None:
    command = ("backfill", "--start", str(READ_SINCE), "--end", str(TODAY), "--symbols", BTC)
    assert system.run(*command).returncode == 0
    exchange.faults.add([Fault(kind="slow", endpoint=HISTORY, skip=HALFWAY, requests=100_000, seconds=600)])
    with (
        EmbeddedPostgres(system.home) as embedded,
        system.up() as running,
        Database(embedded.url).connect() as store,
    ):
        history = exchange.tallies[HISTORY]
        await_while_it_changes(store, lambda: history.faulted and landed(store, SINCE, READ_SINCE))
        killed = kill_dagster(running)
        assert run_status(running, killed) == "STARTED"
        read = read_days(store)
        assert {key.day for key in read} == set(days(READ_SINCE, TODAY))
        unread = [key for key in days_wanted() if key not in read]
        assert 0 < landed(store, SINCE, READ_SINCE) < 20 * (1_440 + 288)

        exchange.requests.clear()
        exchange.faults.clear()
        await_while_it_changes(store, lambda: all_whole(store))
        asked = [each for each in exchange.requests if each.after is not None and each.after <= day_ms(TODAY)]
        now_ms = exchange.clock.now_ms()

        newest_asked = {SeriesDay(each.symbol, OF_BAR[each.bar].name, day_of((each.after or 0) - 1)) for each in asked}
        assert newest_asked <= set(unread)
        assert len(asked) <= windows_of(unread, now_ms)
        assert not {each.kind for each in work_left(store, [BTC], now_ms, 100)} & ASKING
        assert run_status(running, killed) == "CANCELED"
        for timeframe in TIMEFRAMES:
            truth = exchange.truth(BTC, timeframe, day_ms(SINCE), day_ms(TODAY))
            assert in_postgresql(store, timeframe) == [(int(row[0]), *row[1:8]) for row in truth]
    settings = read_settings(home=system.home)
    for timeframe in TIMEFRAMES:
        truth = exchange.truth(BTC, timeframe, day_ms(SINCE), day_ms(TODAY))
        assert in_parquet(ParquetStore(settings.parquet_root), timeframe) == [int(row[0]) for row in truth]


def days(start: date, end: date) -> list[date]:
    return [start + timedelta(days=number) for number in range((end - start).days)]


def days_wanted() -> list[SeriesDay]:
    """Every closed day of every series."""
    return [SeriesDay(BTC, timeframe.name, day) for timeframe in TIMEFRAMES for day in days(SINCE, TODAY)]


def landed(store: Connection, start: date, end: date) -> int:
    """Candles held of the days [start, end)."""
    query = "SELECT count(*) FROM trading.candlesticks WHERE timestamp_ms >= %s AND timestamp_ms < %s"
    return int(one(store, query, (day_ms(start), day_ms(end))))


def read_days(store: Connection) -> set[SeriesDay]:
    """The series-days that REST was read for, as the ledger says."""
    return {
        SeriesDay(*row)
        for row in store.execute("SELECT symbol, timeframe, day FROM trading.coverage WHERE read_at IS NOT NULL")
    }


def all_whole(store: Connection) -> bool:
    """Whether the ledger says that every day wanted is over, read, and misses nothing."""
    found = store.execute(
        "SELECT symbol, timeframe, day FROM trading.coverage "
        "WHERE missing = 0 AND content_hash IS NOT NULL AND read_at IS NOT NULL AND present = expected"
    )
    return set(days_wanted()) <= {SeriesDay(*row) for row in found}


def await_while_it_changes(store: Connection, look: Callable[[], object]) -> None:
    """Wait until `look` finds something, however long that takes as long as history lands or is read."""
    deadline, known = 0.0, None
    while not look():
        seen = (landed(store, SINCE, TODAY), len(read_days(store)))
        if seen != known:
            deadline, known = time.monotonic() + STUCK_AFTER_S, seen
        assert time.monotonic() < deadline, f"nothing has changed for {STUCK_AFTER_S} s at {seen}"
        time.sleep(0.1)


def kill_dagster(running: Up) -> str:
    """Kill the daemon, the code servers below it, and the workers of their runs; returns the run that was under way."""
    daemon = running.child("dagster._daemon")
    assert daemon is not None
    history = {"key": "okx/work", "value": f"history {BTC}"}
    [run] = [run for run in runs(running) if history in run["tags"]]
    # Parents before children: a code server that outlived its worker would report the run as failed.
    family = [daemon, *daemon.children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family)
    return str(run["runId"])


def runs(running: Up) -> list[dict[str, Any]]:
    """Every run that the webserver knows."""
    found: list[dict[str, Any]] = running.graphql(RUNS)["runsOrError"]["results"]
    return found


def run_status(running: Up, run: str) -> str:
    """What Dagster thinks of a run."""
    return str(next(each["status"] for each in runs(running) if each["runId"] == run))


def windows_of(keys: Sequence[SeriesDay], now_ms: int) -> int:
    """How many pages hold the candles of these days."""
    windows = 0
    for timeframe in TIMEFRAMES:
        starts = sorted(day_ms(key.day) for key in keys if key.timeframe == timeframe.name)
        opens = (open_ms for start_ms in starts for open_ms in timeframe.opens(start_ms, start_ms + DAY_MS))
        windows += len(windows_over(timeframe, opens, now_ms))
    return windows


def in_postgresql(store: Connection, timeframe: Timeframe) -> list[tuple[object, ...]]:
    """The rows of the closed days, numbers as text; one of a key that came twice would be one too many."""
    texts = ", ".join(f"{name}::text" for name in VALUES)
    return store.execute(
        f"SELECT timestamp_ms, {texts} FROM trading.candlesticks WHERE symbol = %s AND timeframe = %s "
        "AND timestamp_ms >= %s AND timestamp_ms < %s ORDER BY timestamp_ms",
        (BTC, timeframe.name, day_ms(SINCE), day_ms(TODAY)),
    ).fetchall()


def in_parquet(files: ParquetStore, timeframe: Timeframe) -> list[int]:
    """The open times of the closed days."""
    months = [SeriesMonth(BTC, timeframe.name, date(2026, month, 1)) for month in (7, 8)]
    opens = [open_ms for month in months for open_ms in files.opens(month)]
    return [open_ms for open_ms in opens if day_ms(SINCE) <= open_ms < day_ms(TODAY)]
