"""The whole system as `up` runs it, Dagster's processes killed and doubled halfway: the ledger knows what is left."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms, day_of, parse_timeframe
from okx_pipeline_tests.e2e.system import System, Up
from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.checker import Checker, Findings
from okx_pipeline_tests.faults.test_orchestration_faults import FAULT

pytestmark = [pytest.mark.e2e, pytest.mark.long]

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
HISTORY = "history-candles"
ASKING = {Kind.HISTORY, Kind.REPAIR, Kind.RECONCILIATION}
"""Work that asks OKX."""
TIMEFRAMES = [parse_timeframe(name) for name in ("1m", "5m")]
OF_BAR = {timeframe.bar: timeframe for timeframe in TIMEFRAMES}
TODAY = date(2026, 8, 22)
SINCE = TODAY - timedelta(days=30)
READ_SINCE = TODAY - timedelta(days=10)
"""The days since then were read before, as a user's command does."""

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
def server(exchange: Exchange) -> Iterator[ReplayServer]:
    with ReplayServer(exchange) as server:
        yield server


@pytest.fixture
def system(server: ReplayServer, tmp_path: Path) -> System:
    settings = {
        "OKX_REST_URL": server.url,
        "OKX_WS_URL": server.websocket_url,
        "OKX_SYMBOLS": BTC,
        "OKX_TIMEFRAMES": ",".join(timeframe.name for timeframe in TIMEFRAMES),
        "OKX_HISTORY_START": SINCE.isoformat(),
    }
    return System(tmp_path / "home", tmp_path, **settings)


@pytest.mark.fault(28, FAULT)
def test_a_backfill_whose_dagster_is_killed_and_doubled_finishes_by_itself_and_asks_for_nothing_in_vain(
    system: System, exchange: Exchange, server: ReplayServer, request: pytest.FixtureRequest
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
        # On a slow machine the ledger was told of some of the older ones before all fell silent.
        assert {key.day for key in read} >= set(days(READ_SINCE, TODAY))
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

        with second_daemon(running):
            assert system.run("subscribe", ETH, "--timeframes", "5m", "--since", str(READ_SINCE)).returncode == 0
            await_while_it_changes(store, lambda: landed(store, READ_SINCE, TODAY, ETH))
            kill_code_servers(running)
            await_while_it_changes(store, lambda: days_read(store, ETH) >= set(days(READ_SINCE, TODAY)))
        series = [(BTC, timeframe.name) for timeframe in TIMEFRAMES]
        parquet = Path(read_settings(home=system.home).parquet_root)
        found = [
            closed_days_of(Checker(server.url, embedded.url, parquet, series, day_ms(SINCE))),
            closed_days_of(Checker(server.url, embedded.url, parquet, [(ETH, "5m")], day_ms(READ_SINCE))),
        ]
    for findings in found:
        table.record(request.node, findings)
        assert findings.is_sound, str(findings)


def closed_days_of(checker: Checker) -> Findings:
    """What the checker finds when every closed day is to be held; while the stream goes on, the last one is open."""
    served = {
        series: {open_ms: values for open_ms, values in candles.items() if open_ms < day_ms(TODAY)}
        for series, candles in checker.served().items()
    }
    return checker.check(served)


@contextmanager
def second_daemon(running: Up) -> Iterator[None]:
    """Another daemon of the same Dagster, as a mistake in a deployment would start it."""
    daemon = running.child("okx_pipeline.defs.daemon")
    assert daemon is not None
    with (running.system.folder / "daemon.out").open("wb") as out:
        process = subprocess.Popen(
            daemon.cmdline(), cwd=daemon.cwd(), env=daemon.environ(), stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def kill_code_servers(running: Up) -> None:
    """Kill what serves the definitions to the daemon, and the workers below it; the daemon lives."""
    daemon = running.child("okx_pipeline.defs.daemon")
    assert daemon is not None
    family = daemon.children(recursive=True)
    assert family
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family)


def days(start: date, end: date) -> list[date]:
    return [start + timedelta(days=number) for number in range((end - start).days)]


def days_wanted() -> list[SeriesDay]:
    """Every closed day of every series."""
    return [SeriesDay(BTC, timeframe.name, day) for timeframe in TIMEFRAMES for day in days(SINCE, TODAY)]


def landed(store: Connection, start: date, end: date, symbol: str = BTC) -> int:
    """Candles held of the days [start, end)."""
    query = "SELECT count(*) FROM trading.candlesticks WHERE symbol = %s AND timestamp_ms >= %s AND timestamp_ms < %s"
    return int(one(store, query, (symbol, day_ms(start), day_ms(end))))


def days_read(store: Connection, symbol: str) -> set[date]:
    """The days that REST was read for, of a symbol with one timeframe."""
    return {key.day for key in read_days(store) if key.symbol == symbol}


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
        seen = (landed(store, SINCE, TODAY), landed(store, SINCE, TODAY, ETH), len(read_days(store)))
        if seen != known:
            deadline, known = time.monotonic() + STUCK_AFTER_S, seen
        assert time.monotonic() < deadline, f"nothing has changed for {STUCK_AFTER_S} s at {seen}"
        time.sleep(0.1)


def kill_dagster(running: Up) -> str:
    """Kill the daemon, the code servers below it, and the workers of their runs; returns the run that was under way."""
    daemon = running.child("okx_pipeline.defs.daemon")
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
