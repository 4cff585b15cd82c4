"""The store as the rooms above see it, archived months included; and disks that run full while candles land."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.errors import UsageError
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.migrations import migrate
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month, restore_month
from okx_pipeline.timeframes import parse_timeframe
from okx_pipeline_tests.storage.small_disk import fill, small_disk
from okx_pipeline_tests.storage.test_landing import AUGUST, MINUTE, candle

MONTH = SeriesMonth("BTC-USDT-SWAP", "1m", date(2026, 8, 1))
MINUTES = parse_timeframe("1m")
SEPTEMBER = AUGUST + 31 * 1440 * MINUTE


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def store(connection: Connection, tmp_path: Path) -> CandleStore:
    return CandleStore(connection, ParquetStore(str(tmp_path / "parquet")), "here")


def minutes(*numbers: int) -> list[Candle]:
    return [candle(number) for number in numbers]


def archive(store: CandleStore) -> None:
    store.project([])
    archive_month(store.connection, store.files, MONTH)


@pytest.mark.parametrize("archived", [False, True])
def test_open_times_are_those_of_the_series_in_the_range_wherever_they_are_kept(
    store: CandleStore, archived: bool
) -> None:
    batch = minutes(-1, 0, 5, 44_639, 44_640)
    store.land([*batch, candle(7, symbol="ETH-USDT"), batch[1]._replace(timeframe="3m")], source=Source.REST)
    if archived:
        archive(store)
    ask = ("BTC-USDT-SWAP", MINUTES)
    assert store.opens(*ask, 0, 2 * SEPTEMBER) == [row.timestamp_ms for row in batch]
    assert store.opens(*ask, AUGUST, SEPTEMBER) == [row.timestamp_ms for row in batch[1:4]]
    assert store.opens(*ask, AUGUST + 1, SEPTEMBER - MINUTE) == [batch[2].timestamp_ms]
    assert store.opens(*ask, AUGUST, AUGUST) == []
    assert store.opens("ETH-USDT-SWAP", MINUTES, 0, SEPTEMBER) == []


def test_open_times_are_neither_doubled_nor_lost_while_a_month_is_archived_and_brought_back(
    store: CandleStore, database: Database
) -> None:
    store.land(minutes(*range(50)), source=Source.REST)
    archive(store)

    def back_and_forth() -> None:
        with database.connect() as connection:
            for _ in range(25):
                restore_month(connection, store.files, MONTH)
                archive_month(connection, store.files, MONTH)

    asked = 0
    with ThreadPoolExecutor(1) as thread:
        moving = thread.submit(back_and_forth)
        while not moving.done():
            assert len(store.opens("BTC-USDT-SWAP", MINUTES, AUGUST, SEPTEMBER)) == 50
            asked += 1
        moving.result()
    assert asked > 25


def test_open_times_of_an_archived_month_without_its_file_are_not_made_up(store: CandleStore) -> None:
    store.land(minutes(1), source=Source.REST)
    archive(store)
    Path(store.files.place(MONTH)).unlink()
    with pytest.raises(DamagedFileError, match="there is no such file"):
        store.opens("BTC-USDT-SWAP", MINUTES, AUGUST, SEPTEMBER)


def test_closes_are_floats_in_order_of_time(store: CandleStore) -> None:
    store.land([candle(1, "63030.5"), candle(0, "63031"), candle(2)], source=Source.REST)
    assert store.closes("BTC-USDT-SWAP", MINUTES, AUGUST, AUGUST + 2 * MINUTE) == [63031.0, 63030.5]


def test_a_projection_of_some_months_takes_along_whatever_else_waits(store: CandleStore) -> None:
    store.land(minutes(0, 44_640), source=Source.REST)
    projected = store.project([MONTH])
    assert [(result.month.month, result.written) for result in projected] == [
        (date(2026, 8, 1), True),
        (date(2026, 9, 1), True),
    ]
    assert [(result.month, result.written) for result in store.project([MONTH])] == [(MONTH, False)]


def test_a_store_holds_the_market_that_claimed_it_first(store: CandleStore) -> None:
    store.claim_for("replay")
    store.claim_for("replay")
    with pytest.raises(UsageError, match="holds prices of OKX's replay, and the settings lead to its market") as told:
        store.claim_for("market")
    assert "\n" not in str(told.value)
    for setting in ("OKX_REST_URL", "OKX_WS_URL", "OKX_DEMO_TRADING", "OKX_HOME"):
        assert setting in str(told.value)
    store.claim_for("replay")


def test_of_two_markets_that_claim_a_store_at_once_one_gets_it(database: Database, tmp_path: Path) -> None:
    gate = threading.Barrier(2)
    outcomes: list[str] = []

    def claim(origin: str) -> None:
        with CandleStore.opened(database, ParquetStore(str(tmp_path))) as store:
            gate.wait(30)
            try:
                store.claim_for(origin)
                outcomes.append("claimed")
            except UsageError:
                outcomes.append("refused")

    threads = [threading.Thread(target=claim, args=(origin,)) for origin in ("demo", "market")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["claimed", "refused"]


@pytest.mark.parametrize("action", ["land", "opens", "closes", "project", "claim_for"])
def test_a_connection_that_is_lost_is_one_line_whatever_is_asked(store: CandleStore, action: str) -> None:
    asks: dict[str, Callable[[], object]] = {
        "land": lambda: store.land(minutes(1), source=Source.REST),
        "opens": lambda: store.opens("BTC-USDT-SWAP", MINUTES, 0, 1),
        "closes": lambda: store.closes("BTC-USDT-SWAP", MINUTES, 0, 1),
        "project": lambda: store.project([]),
        "claim_for": lambda: store.claim_for("market"),
    }
    with pytest.raises(Exception, match="terminating connection"):
        store.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(StorageError, match=r"cannot reach PostgreSQL \(here\)") as told:
        asks[action]()
    assert "\n" not in str(told.value)


# Full disks


def land_until_full(store: CandleStore) -> tuple[list[Candle], StorageError]:
    """Land batch after batch; the one for which there was no space, and what was said."""
    for first in range(0, 10_000_000, 5_000):
        batch = minutes(*range(first, first + 5_000))
        try:
            store.land(batch, source=Source.REST)
        except StorageError as problem:
            return batch, problem
    raise AssertionError("the disk is too large")


def count(connection: Connection) -> int:
    return int(one(connection, "SELECT count(*) FROM trading.candlesticks"))


@contextmanager
def database_on(disk: Path, server: Database) -> Iterator[Database]:
    """A migrated database of `server` whose tables lie on `disk`; its journal does not."""
    with server.connect() as connection:
        data = Path(one(connection, "SHOW data_directory")).stat()
        tables = disk / "tables"
        tables.mkdir()
        tables.chmod(0o700)
        os.chown(tables, data.st_uid, data.st_gid)
        connection.execute(f"CREATE TABLESPACE small LOCATION '{tables}'")
        connection.execute("CREATE DATABASE small TEMPLATE template_migrated TABLESPACE small")
        try:
            yield Database(server.url.replace("/okx?", "/small?"))
        finally:
            connection.execute("DROP DATABASE small WITH (FORCE)")
            connection.execute("DROP TABLESPACE small")


def test_no_space_for_the_tables_is_one_line_and_the_batch_lands_once_there_is(
    server: Database, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", megabytes=24) as disk, database_on(disk, server) as database:
        filler = fill(disk, leave_bytes=3_000_000)
        with CandleStore.opened(database, ParquetStore(str(tmp_path / "parquet"))) as store:
            batch, problem = land_until_full(store)
            assert "has no disk space left: could not" in str(problem)
            assert "what has landed is safe: free some space and run the same again" in str(problem)
            assert "\n" not in str(problem)
            landed = batch[0].timestamp_ms - AUGUST
            assert count(store.connection) * MINUTE == landed
            filler.unlink()
            assert store.land(batch, source=Source.REST).inserted == 5_000
            assert (count(store.connection) - 5_000) * MINUTE == landed
            assert one(store.connection, "SELECT sum(projected) FROM trading.landing_marks") == 0


def test_no_space_for_anything_is_one_line_and_the_batch_lands_once_there_is(tmp_path: Path) -> None:
    """The journal is on the full disk too: the server goes down rather than promise what it cannot keep."""
    files = ParquetStore(str(tmp_path / "parquet"))
    with small_disk(tmp_path / "disk", megabytes=120) as disk, EmbeddedPostgres(disk / "home") as embedded:
        database = Database(embedded.url)
        migrate(database)
        filler = fill(disk, leave_bytes=8_000_000)
        with CandleStore.opened(database, files) as store:
            batch, problem = land_until_full(store)
        assert "has no disk space left: could not" in str(problem)
        assert "\n" not in str(problem)
        filler.unlink()
        embedded.start()
        with CandleStore.opened(database, files) as store:
            landed = batch[0].timestamp_ms - AUGUST
            assert count(store.connection) * MINUTE in (landed, landed + 5_000 * MINUTE)
            store.land(batch, source=Source.REST)
            assert count(store.connection) * MINUTE == landed + 5_000 * MINUTE
