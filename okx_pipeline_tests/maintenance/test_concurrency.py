"""Maintenance, streaming and backfill at once: nobody is in anybody's way, and nothing is lost.

Twenty seconds of it; MAINTENANCE_SECONDS=300 makes it five minutes.
"""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from time import monotonic
from urllib.parse import quote

import pytest

from okx_pipeline.history.backfill import Backfill
from okx_pipeline.history.plan import days_of_range
from okx_pipeline.maintenance import upkeep
from okx_pipeline.maintenance.upkeep import look_after_months
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import HOUR_MS, MINUTE_MS, Timeframe, day_ms, parse_timeframe
from okx_pipeline_tests.stream.stand import Stand, standing, wait_until

SECONDS = float(os.environ.get("MAINTENANCE_SECONDS", "20"))
SPEED = 60.0
START_MS = day_ms(date(2026, 9, 1)) - 12 * MINUTE_MS
"""A month ends twelve seconds on."""

PAST = (date(2026, 1, 1), date(2026, 6, 1))
SYMBOLS = ("BTC-USDT-SWAP", "ETH-USDT-SWAP", "BTC-USDT")
HOUR, DAY = parse_timeframe("1h"), parse_timeframe("1d")


@pytest.fixture
def database(new_database: Callable[[bool], Database]) -> Database:
    return new_database(True)


@pytest.fixture
def stand(database: Database, tmp_path: Path) -> Iterator[Stand]:
    """An exchange a minute a second, soon to turn a month; the server logs when the sidecar waits for a second."""
    exchange = Exchange(open_market("synthetic", seed=3, symbols=6), ExchangeClock(START_MS, SPEED), limits=False)
    with ReplayServer(exchange) as server:
        settings = read_settings(
            home=tmp_path / "home",
            database_url=f"{database.url}&options={quote('-c log_lock_waits=on -c deadlock_timeout=1s', safe='')}",
            rest_url=server.url,
            ws_url=server.websocket_url,
            symbols=",".join(SYMBOLS),
            timeframes="1m,5m",
            rest_rate=1_000,
        )
        with standing(server.url, settings, database, tmp_path) as stand:
            yield stand


def fill(
    settings: Settings, database: Database, *timeframes: Timeframe, days: tuple[date, date], all_of_it: bool
) -> None:
    async def work() -> None:
        async with Backfill.opened(settings, database) as filling:
            spans = [days_of_range(symbol, each, *days) for symbol in SYMBOLS for each in timeframes]
            await filling.run(await filling.plan(spans, only_missing=not all_of_it))

    asyncio.run(work())


def content(store: CandleStore) -> list[str]:
    """The past of every series, wherever its rows are."""
    found = []
    for symbol in SYMBOLS:
        for timeframe in (HOUR, DAY):
            opens = store.opens(symbol, timeframe, day_ms(PAST[0]), day_ms(PAST[1]))
            found.append(f"{symbol} {timeframe} {len(opens)} {hash(tuple(opens))}")
    ledger = (
        "SELECT symbol, timeframe, day, content_hash, missing FROM trading.coverage "
        "WHERE day < %s AND timeframe IN ('1h', '1d') ORDER BY 1, 2, 3"
    )
    return [*found, *map(str, store.connection.execute(ledger, (PAST[1],)))]


def waits_logged(database: Database, since: int) -> list[str]:
    """What the server logged since then of sessions that waited for a lock for a second, or met in a deadlock."""
    with database.connect() as connection:
        log = Path(one(connection, "SHOW data_directory")).parents[1] / "logs" / "postgres.log"
    with log.open("rb") as lines:
        lines.seek(since)
        return [line for line in lines.read().decode().splitlines() if re.search(r"still waiting for|deadlock", line)]


def log_size(database: Database) -> int:
    with database.connect() as connection:
        return (Path(one(connection, "SHOW data_directory")).parents[1] / "logs" / "postgres.log").stat().st_size


def test_maintenance_streaming_and_backfill_at_once_lose_nothing_and_hold_nobody_up(
    stand: Stand, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "RESTORED_STAYS_DAYS", 0)
    own = stand.settings.model_copy(update={"database_url": read_settings(database_url=database.url).database_url})
    fill(own, database, HOUR, DAY, days=PAST, all_of_it=False)
    files = ParquetStore(own.parquet_root)
    with CandleStore.opened(database, files) as store:
        store.account(START_MS)
        before = content(store)
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        met_before, logged_before = one(store.connection, deadlocks), log_size(database)
    stand.start()
    wait_until(stand.streams, "the sidecar streams")
    until = monotonic() + SECONDS
    did: Counter[str] = Counter()

    def over_and_over(name: str, work: Callable[[], None]) -> None:
        while monotonic() < until:
            work()
            did[name] += 1

    def maintain() -> None:
        retention = {HOUR: 60, DAY: 60} if did["maintenance"] % 2 else {HOUR: 60}
        with CandleStore.opened(database, files) as store:
            for done in look_after_months(store, retention, stand.now_ms()).done:
                did["archived"] += len(done.archived)
                did["dropped"] += done.dropped
                did["swapped"] += done.swapped
                did["vacuumed"] += done.vacuumed
                did["in use"] += len(done.problems)

    def backfill() -> None:
        month = 1 + did["backfill"] % 5
        fill(own, database, HOUR, DAY, days=(date(2026, month, 1), date(2026, month + 1, 1)), all_of_it=True)

    def backfill_the_present() -> None:
        fill(own, database, parse_timeframe("1m"), days=(date(2026, 8, 31), date(2026, 9, 1)), all_of_it=True)

    works = {"maintenance": maintain, "backfill": backfill, "present": backfill_the_present}
    with ThreadPoolExecutor(len(works)) as threads:
        working = [threads.submit(over_and_over, name, work) for name, work in works.items()]
    for each in working:
        each.result()
    print(dict(did))
    assert did["archived"] > 10
    assert did["dropped"] + did["swapped"] > 2
    assert did["backfill"] >= 1
    # What streamed is what the exchange served, over the turn of the month.
    end_ms = stand.now_ms()
    for symbol, name in stand.series():
        bound = parse_timeframe(name).closed_before(end_ms)

        def agree(symbol: str = symbol, name: str = name, bound: int = bound) -> bool:
            with database.connect() as connection:
                return stand.held(connection, symbol, name, START_MS, bound) == stand.truth(
                    symbol, name, START_MS, bound
                )

        wait_until(agree, f"{symbol} {name} is what the exchange served")
    assert end_ms > START_MS + 12 * MINUTE_MS
    stand.stop()
    with CandleStore.opened(database, files) as store:
        store.project([])
        store.account(START_MS + HOUR_MS)
        assert content(store) == before
        assert one(store.connection, deadlocks) == met_before
    assert waits_logged(database, logged_before) == []
