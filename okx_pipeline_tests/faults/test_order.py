"""What has to come before what: such a fault shows once a year from the outside, and each time in here."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.landing import STRAIGHT_FROM, land
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth, day_hashes
from okx_pipeline.storage.partitions import detached_months
from okx_pipeline.storage.projection import archive_month, pending_months, project, project_month, rebuild_month
from okx_pipeline.stream import lander as lander_module
from okx_pipeline.stream.counters import Counters
from okx_pipeline.stream.lander import Batch, Lander
from okx_pipeline_tests.storage.deadlocks import deadlocks, report

AUGUST = 1785542400000
MONTH = SeriesMonth("BTC-USDT-SWAP", "1m", date(2026, 8, 1))
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() "
    "AND pid <> pg_backend_pid()"
)


def candle(minute: int) -> Candle:
    return Candle("BTC-USDT-SWAP", "1m", AUGUST + minute * 60_000, "2", "3", "1", "2", "10", "0.1", "20.5")


@pytest.fixture
def files(tmp_path: Path) -> ParquetStore:
    return ParquetStore(str(tmp_path / "made" / "parquet"))


def until(condition: Callable[[], object], what: str) -> None:
    pause = threading.Event()
    deadline = monotonic() + 60
    while not condition():
        assert monotonic() < deadline, f"it never came true that {what}"
        pause.wait(0.01)


# On the disk before it is relied on


def test_a_file_is_on_the_disk_whole_before_it_gets_its_name_and_its_folders_are_after(
    connection: Connection, files: ParquetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is renamed before it is synced is empty after a power cut, under the name of the one it replaced."""
    events: list[tuple[str, str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("synced", os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))

    def recorded_replace(path: Path, target: Path) -> Path:
        events.append(("renamed", str(path), path.stat().st_size))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    for minutes in (range(100), range(200)):
        events.clear()
        new = [folder for folder in Path(files.place(MONTH)).parents if not folder.exists()]
        land(connection, [candle(minute) for minute in minutes], source=Source.REST)
        project(connection, files, [MONTH])
        final = Path(files.place(MONTH))
        [renamed] = [index for index, event in enumerate(events) if event[0] == "renamed"]
        beside = events[renamed][1]
        assert Path(beside).parent == final.parent
        assert events[renamed] == ("renamed", beside, final.stat().st_size)
        assert ("synced", beside, final.stat().st_size) in events[:renamed]
        synced_after = {Path(path) for what, path, _ in events[renamed:] if what == "synced"}
        assert synced_after >= {final.parent, *(folder.parent for folder in new)}


# Committed before it is acknowledged


async def until_acknowledged(seen: list[Any], batches: int) -> None:
    async with asyncio.timeout(60):
        while len(seen) < batches:
            await asyncio.sleep(0.01)


def test_a_batch_is_acknowledged_once_others_can_see_it_and_landed_again_where_it_was_not(
    database: Database, files: ParquetStore
) -> None:
    """Offset, ledger and metrics follow the acknowledgement: what it tells of must be there for good."""
    seen: list[tuple[int, int]] = []

    def acknowledged(batch: Batch, _: object) -> None:
        with database.connect() as another:
            seen.append((len(batch.candles), one(another, "SELECT count(*) FROM trading.candlesticks")))

    async def main() -> None:
        lander = Lander(database, files, Counters(), acknowledged)
        running = asyncio.create_task(lander.run())
        lander.offer(Batch([candle(0), candle(1)]))
        await until_acknowledged(seen, 1)
        with database.connect() as killer:
            killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        lander.offer(Batch([candle(2)]))
        await until_acknowledged(seen, 2)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert seen == [(2, 2), (1, 3)]


def test_the_marks_that_a_killed_stream_left_unmade_are_made_by_the_next(
    database: Database, connection: Connection, files: ParquetStore
) -> None:
    land(connection, [candle(minute) for minute in range(STRAIGHT_FROM)], source=Source.WEBSOCKET)

    async def main() -> None:
        running = asyncio.create_task(Lander(database, files, Counters(), lambda _, __: None).run())
        async with asyncio.timeout(60):
            while not one(connection, "SELECT count(*) FROM trading.landing_marks"):
                await asyncio.sleep(0.01)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(main())


def test_candles_land_while_marks_cannot_be_made(
    database: Database, connection: Connection, files: ParquetStore
) -> None:
    seen: list[tuple[int, int]] = []
    connection.execute("ALTER TABLE trading.unmarked_landings RENAME TO elsewhere")

    async def main() -> None:
        counters = Counters()
        lander = Lander(database, files, counters, lambda batch, _: seen.append((batch.rows, batch.rows)))
        running = asyncio.create_task(lander.run())
        for minute in range(3):
            lander.offer(Batch([candle(minute)]))
            await until_acknowledged(seen, minute + 1)
            failures = counters["database away"]
            async with asyncio.timeout(60):
                while counters["database away"] == failures:
                    await asyncio.sleep(0.01)
        assert lander.waiting == lander.lag_s == 0
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    try:
        asyncio.run(main())
    finally:
        connection.execute("ALTER TABLE trading.elsewhere RENAME TO unmarked_landings")
    assert one(connection, "SELECT count(*) FROM trading.candlesticks") == 3


def landed_all(database: Database, files: ParquetStore, offered: list[Batch], batches: int) -> list[tuple[int, int]]:
    """The candles and refused rows of every batch that was acknowledged, of those offered at once."""
    seen: list[tuple[int, int]] = []

    async def main() -> None:
        lander = Lander(
            database, files, Counters(), lambda batch, _: seen.append((len(batch.candles), len(batch.refused)))
        )
        for batch in offered:
            lander.offer(batch)
        running = asyncio.create_task(lander.run())
        await until_acknowledged(seen, batches)
        assert lander.waiting == lander.lag_s == 0
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(main())
    return seen


def test_what_the_tables_refuse_costs_no_other_row_and_is_waited_for_no_longer(
    database: Database, connection: Connection, files: ParquetStore
) -> None:
    bad = candle(1)._replace(high_price="0.5")
    refused = [Refused("BTC-USDT-SWAP", "1m", AUGUST, "a price is zero", f"[{number}]") for number in range(2)]
    seen = landed_all(database, files, [Batch([candle(0), bad, candle(2)], refused)], 4)
    assert sum(candles for candles, _ in seen) == 3
    assert sum(rows for _, rows in seen) == 2
    assert one(connection, "SELECT count(*) FROM trading.candlesticks") == 2
    assert one(connection, "SELECT count(*) FROM trading.candlesticks_quarantine") == 2


def test_a_candle_of_an_archived_month_whose_file_is_damaged_keeps_no_other_from_landing(
    database: Database, connection: Connection, files: ParquetStore
) -> None:
    land(connection, [candle(0)], source=Source.REST)
    project(connection, files, [MONTH])
    archive_month(connection, files, MONTH)
    Path(files.place(MONTH)).unlink()
    september = 31 * 1440
    landed_all(database, files, [Batch([candle(1), candle(september)]), Batch([candle(september + 1)])], 2)
    assert one(connection, "SELECT count(*) FROM trading.candlesticks") == 2


@pytest.fixture
def september_detached(connection: Connection) -> str:
    """September's partition is detached; the statement that attaches it again."""
    connection.execute("SELECT trading.ensure_month('2026-09-01')")
    connection.execute("ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_2026_09")
    return detached_months(connection)[0].remedy


def test_candles_of_a_detached_month_wait_until_it_is_attached_while_all_others_land(
    database: Database,
    connection: Connection,
    files: ParquetStore,
    september_detached: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lander_module, "ATTACHED_AGAIN_S", 0.0)
    september = [candle(31 * 1440 + minute) for minute in range(3)]
    refused = Refused("BTC-USDT-SWAP", "1m", AUGUST, "a price is zero", "[]")
    counters, acknowledged = Counters(), list[int]()

    async def main() -> None:
        lander = Lander(
            database, files, counters, lambda batch, _: acknowledged.extend(each[2] for each in batch.candles)
        )
        lander.offer(Batch([candle(0), september[0]], [refused]))
        lander.offer(Batch([september[1], candle(1)], [], Source.REST))
        running = asyncio.create_task(lander.run())
        await until_acknowledged(acknowledged, 2)
        lander.offer(Batch([september[2], candle(2)]))
        await until_acknowledged(acknowledged, 3)
        assert sorted(acknowledged) == [candle(minute).timestamp_ms for minute in range(3)]
        assert (lander.waiting, lander.is_away) == (3, False)
        assert lander.lag_s > 0
        connection.execute(september_detached)  # type: ignore[arg-type]
        await until_acknowledged(acknowledged, 6)
        assert lander.waiting == lander.lag_s == 0
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert counters.errors == {"month detached": 3}
    assert one(connection, "SELECT count(*) FROM trading.candlesticks") == 6
    assert one(connection, "SELECT count(*) FROM trading.candlesticks_quarantine") == 1


def test_candles_that_wait_for_their_month_are_bounded_and_keep_no_room_from_others(
    database: Database, connection: Connection, files: ParquetStore, september_detached: str
) -> None:
    september = [candle(31 * 1440 + minute) for minute in range(5)]
    counters, acknowledged = Counters(), list[int]()

    async def main() -> None:
        lander = Lander(
            database,
            files,
            counters,
            lambda batch, _: acknowledged.extend(each[2] for each in batch.candles),
            capacity=4,
        )
        running = asyncio.create_task(lander.run())
        for number, each in enumerate(september):
            lander.offer(Batch([each], [], Source.REST))
            async with asyncio.timeout(60):
                while counters["month detached"] <= number:
                    await asyncio.sleep(0.01)
        # Two wait. The oldest three were given up: the ledger tells that they are missing, and they are fetched again.
        assert acknowledged == [each.timestamp_ms for each in september[:3]]
        assert lander.waiting == 2
        assert lander.offer(Batch([candle(minute) for minute in range(4)]))
        await until_acknowledged(acknowledged, 7)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert counters["left to gap repair"] == 3
    assert one(connection, "SELECT count(*) FROM trading.candlesticks") == 4


# One order of keys, whoever writes


def test_writers_of_the_same_keys_wait_for_each_other_and_never_in_a_circle(database: Database) -> None:
    """Somebody holds the middle key; a writer that came from the other end would hold the last and want the first.

    A landing that meets a deadlock begins anew, so only PostgreSQL's own count tells whether there was one.
    """

    def write(minutes: list[int]) -> int:
        with database.connect() as connection:
            inserted = land(connection, [candle(minute) for minute in minutes], source=Source.REST).inserted
            report(connection)
            return inserted

    with database.connect() as holder, database.connect() as watcher, ThreadPoolExecutor(2) as threads:
        land(holder, [candle(10)], source=Source.REST)
        writers: list[Future[int]] = []
        with holder.transaction(force_rollback=True):
            land(holder, [candle(2)], source=Source.REST)
            for minutes in ([1, 2, 3], [3, 2, 1]):
                writers.append(threads.submit(write, minutes))
                until(lambda: one(watcher, WAITING) == len(writers), "the writer waits")
        assert sum(writer.result(timeout=60) for writer in writers) == 3
        assert deadlocks(watcher) == 0


# One projector of a file at a time


class Pause:
    """Where one thread waits until it may go on; all others pass."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.may_go_on = threading.Event()
        self.thread: int | None = None

    def __call__(self) -> None:
        if threading.get_ident() == self.thread:
            self.is_reached.set()
            assert self.may_go_on.wait(60)


class Held(ParquetStore):
    """A store that pauses, with the rows in its hands, before it writes them."""

    def __init__(self, root: str, pause: Pause) -> None:
        super().__init__(root)
        self._pause = pause

    def write(self, *arguments: Any, **named: Any) -> None:
        self._pause()
        super().write(*arguments, **named)


def rows_in_file(files: ParquetStore) -> list[int]:
    """The minutes in the file of the month, which says of itself exactly what it holds."""
    table = files.read(MONTH)
    state = files.state(MONTH)
    assert state is not None
    assert state.day_hashes == day_hashes(table)
    return [(open_ms - AUGUST) // 60_000 for open_ms in table["timestamp_ms"].to_pylist()]


def test_a_projector_that_was_slow_never_puts_an_older_month_over_a_newer_one(
    database: Database, files: ParquetStore
) -> None:
    pause = Pause()

    def run(store: ParquetStore) -> None:
        pause.thread = pause.thread or threading.get_ident()
        with database.connect() as connection:
            project(connection, store, [MONTH])

    with database.connect() as connection, ThreadPoolExecutor(2) as threads:
        land(connection, [candle(0)], source=Source.REST)
        first = threads.submit(run, Held(files.root, pause))
        assert pause.is_reached.wait(60)
        land(connection, [candle(1)], source=Source.REST)
        second = threads.submit(run, files)
        until(lambda: second.done() or one(connection, WAITING), "the second one waits or is done")
        pause.may_go_on.set()
        first.result(timeout=60)
        second.result(timeout=60)
        project(connection, files, pending_months(connection))
        assert rows_in_file(files) == [0, 1]


@pytest.mark.parametrize("work", [project_month, rebuild_month])
@pytest.mark.parametrize("point", ["it has read", "it has written", "it renames"])
def test_a_projector_that_lost_its_connection_never_puts_an_older_month_over_a_newer_one(
    database: Database, files: ParquetStore, monkeypatch: pytest.MonkeyPatch, point: str, work: Callable[..., Any]
) -> None:
    """The lock is lost with the connection: another projector writes the newer file while this one is paused."""
    pause, pids = Pause(), []
    fsync, replace = os.fsync, Path.replace

    def paused_fsync(descriptor: int) -> None:
        fsync(descriptor)
        pause()

    def paused_replace(path: Path, target: Path) -> Path:
        pause()
        return replace(path, target)

    if point == "it has written":
        monkeypatch.setattr(os, "fsync", paused_fsync)
    elif point == "it renames":
        monkeypatch.setattr(Path, "replace", paused_replace)
    store = Held(files.root, pause) if point == "it has read" else files

    def run() -> None:
        pause.thread = threading.get_ident()
        with database.connect() as connection:
            pids.append(connection.info.backend_pid)
            work(connection, store, MONTH)

    with database.connect() as connection, ThreadPoolExecutor(1) as thread:
        land(connection, [candle(0)], source=Source.REST)
        if work is rebuild_month:
            project(connection, files, [MONTH])
        slow = thread.submit(run)
        assert pause.is_reached.wait(60)
        connection.execute("SELECT pg_terminate_backend(%s, 60000)", pids)
        land(connection, [candle(1)], source=Source.REST)
        assert [projected.written for projected in project(connection, files, [MONTH])] == [True]
        pause.may_go_on.set()
        with pytest.raises((psycopg.OperationalError, StorageError)):
            slow.result(timeout=60)
        assert rows_in_file(files) == [0, 1]
        assert pending_months(connection) == []
    assert [path.name for path in Path(files.place(MONTH)).parent.iterdir()] == ["candles.parquet"]


def test_two_writers_of_a_month_never_write_into_the_same_temporary_file(
    connection: Connection, files: ParquetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(connection, [candle(0)], source=Source.REST)
    project(connection, files, [MONTH])
    rows, final = files.read(MONTH), Path(files.place(MONTH))
    written: list[str] = []
    replace = Path.replace

    def recorded_replace(path: Path, target: Path) -> Path:
        written.append(path.name)
        if len(written) == 1:
            files.write(MONTH, rows, day_hashes(rows))
        return replace(path, target)

    # A link that somebody has planted is not written through.
    final.with_name(".candles.parquet.tmp").symlink_to(final.with_name("elsewhere"))
    monkeypatch.setattr(Path, "replace", recorded_replace)
    with pytest.raises(StorageError, match="cannot write"):
        files.write(MONTH, rows, day_hashes(rows))
    assert len(set(written)) == 2
    assert [path.name for path in final.parent.iterdir()] == ["candles.parquet"]
    assert rows_in_file(files) == [0]


def test_of_two_landings_that_wait_for_each_other_both_land(database: Database, connection: Connection) -> None:
    """A candle of one day and a refused row of another, and the other way round: each holds what the other wants."""
    days = (0, 1440)

    def write(own: int, other: int) -> tuple[int, int]:
        with database.connect() as own_connection:
            own_connection.execute("SET deadlock_timeout = '10ms'")
            refused = Refused("BTC-USDT-SWAP", "1m", candle(other).timestamp_ms, "a price is zero", "[]")
            landed = land(own_connection, [candle(own)], [refused], source=Source.REST)
            report(own_connection)
            return landed.inserted, landed.quarantined

    land(connection, [candle(minute + 1) for minute in days], source=Source.REST)
    with ThreadPoolExecutor(2) as writers:
        with database.connect() as holder, holder.transaction():
            holder.execute("SELECT FROM trading.landing_marks FOR UPDATE")
            writing = [writers.submit(write, *pair) for pair in (days, days[::-1])]
            until(lambda: one(connection, WAITING) == 2, "both wait")
        assert [each.result(timeout=60) for each in writing] == [(1, 1), (1, 1)]
    assert deadlocks(connection) == 1
    assert one(connection, "SELECT count(*) FROM trading.candlesticks") == 4
