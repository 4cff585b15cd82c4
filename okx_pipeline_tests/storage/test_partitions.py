"""Partitions swapped and dropped under everybody's feet: nothing is lost, nobody waits, readers see all of it."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.storage import partitions, projection
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore, SeriesMonth
from okx_pipeline.storage.partitions import (
    DetachedMonth,
    DetachedMonthError,
    InUseError,
    detached_months,
    leave_archived_out,
    name_of,
    partition_bytes,
    series_in,
    vacuum_month,
)
from okx_pipeline.storage.projection import archive_month, archive_whole
from okx_pipeline.timeframes import HOUR_MS, MINUTE_MS, month_bounds, parse_timeframe
from okx_pipeline_tests.storage.processes import Doom, killed, start

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
JUNE = date(2026, 6, 1)
START_MS, END_MS = month_bounds(JUNE)
MINUTES, HOURS = SeriesMonth(BTC, "1m", JUNE), SeriesMonth(BTC, "1h", JUNE)
EVERY = "SELECT * FROM trading.candlesticks ORDER BY symbol, timeframe, timestamp_ms"

# All that makes a partition what it is, but for its name.
SHAPE = """
SELECT replace(conname, %(name)s, ''), pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = %(table)s::regclass AND contype <> 'n'
UNION ALL SELECT replace(relname, %(name)s, ''), replace(pg_get_indexdef(oid), %(name)s, '')
FROM pg_class JOIN pg_index ON indexrelid = oid WHERE indrelid = %(table)s::regclass
UNION ALL SELECT tgname, tgenabled::text FROM pg_trigger WHERE tgrelid = %(table)s::regclass
UNION ALL SELECT attname, concat_ws(' ', attnotnull, format_type(atttypid, atttypmod), pg_get_expr(adbin, adrelid))
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = %(table)s::regclass AND attnum > 0
UNION ALL SELECT 'acl', relacl::text FROM pg_class WHERE oid = %(table)s::regclass
ORDER BY 1, 2
"""


def candle(open_ms: int, timeframe: str = "1m", symbol: str = BTC, close: str = "10") -> Candle:
    return Candle(symbol, timeframe, open_ms, "10", "11", "9", close, "5", "0.05", "500")


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def store(connection: Connection, tmp_path: Path) -> CandleStore:
    return CandleStore(connection, ParquetStore(str(tmp_path / "parquet")), "here")


@pytest.fixture
def filled(store: CandleStore) -> CandleStore:
    """A store with three series in June, projected."""
    batch = [candle(START_MS + number * MINUTE_MS) for number in range(2_000)]
    batch += [candle(START_MS + number * HOUR_MS, "1h", symbol) for number in range(48) for symbol in (BTC, ETH)]
    store.land(batch, source=Source.REST)
    store.project([])
    return store


def held(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(EVERY).fetchall()


def shape(connection: Connection, month: date) -> list[tuple[Any, ...]]:
    name = name_of(month)
    return connection.execute(SHAPE, {"table": f"trading.{name}", "name": name}).fetchall()


def states(connection: Connection) -> set[tuple[str, str, str]]:
    return set(connection.execute("SELECT symbol, timeframe, state FROM trading.candle_months"))


def test_the_rest_of_a_month_is_as_it_was_when_the_archived_series_has_left(filled: CandleStore) -> None:
    connection = filled.connection
    rest = [row for row in held(connection) if row[1] != "1m"]
    before = partition_bytes(connection)[JUNE]
    fresh = date(2030, 1, 1)
    one(connection, "SELECT trading.ensure_month(%s)", (fresh,))
    archive_month(connection, filled.files, MINUTES)
    assert partition_bytes(connection)[JUNE] >= before, "deleting alone gives no space back"
    assert leave_archived_out(connection, JUNE)
    assert partition_bytes(connection)[JUNE] < before / 2
    assert held(connection) == rest
    assert series_in(connection, JUNE) == {(BTC, "1h"), (ETH, "1h")}
    assert shape(connection, JUNE) == shape(connection, fresh)
    # It is a partition like any other: what lands in it lands, and what was changed is kept.
    changed = candle(START_MS, "1h", close="10.5")
    at = one(connection, "SELECT clock_timestamp()")
    assert filled.land([changed], source=Source.REST, requested_at=at).corrected == 1
    assert one(connection, "SELECT count(*) FROM trading.candlestick_revisions") == 1


def test_a_partition_left_empty_is_dropped_and_comes_back_when_something_lands(filled: CandleStore) -> None:
    connection = filled.connection
    before = held(connection)
    every = [MINUTES, HOURS, HOURS._replace(symbol=ETH)]
    assert archive_whole(connection, filled.files, every) == len(before)
    assert JUNE not in partition_bytes(connection)
    assert {state for _, _, state in states(connection)} == {"archived"}
    at = one(connection, "SELECT clock_timestamp()")
    landed = filled.land([candle(START_MS, "1h", close="10.5")], source=Source.REST, requested_at=at)
    assert (landed.inserted, landed.corrected) == (0, 1)
    assert len(held(connection)) == 48
    assert (BTC, "1h", "live") in states(connection)


@pytest.mark.parametrize("how", ["another series", "landed since", "damaged"])
def test_a_month_is_not_dropped_while_a_row_of_it_is_in_postgresql_alone(filled: CandleStore, how: str) -> None:
    connection = filled.connection
    months = [MINUTES, HOURS, HOURS._replace(symbol=ETH)]
    if how == "another series":
        months.pop()
    elif how == "landed since":
        land(connection, [candle(START_MS + 5_000 * MINUTE_MS)], source=Source.REST)
    else:
        Path(filled.files.place(HOURS)).write_bytes(b"")
    before = held(connection), states(connection)
    with pytest.raises((DamagedFileError, InUseError)):
        archive_whole(connection, filled.files, months)
    assert (held(connection), states(connection)) == before


def test_who_reads_all_the_time_is_not_waited_for_and_does_not_make_others_wait(
    filled: CandleStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "SWAP_WITHIN_S", 0.5)
    archive_month(filled.connection, filled.files, MINUTES)
    before = held(filled.connection)
    stop, slowest = threading.Event(), [0.0]

    def stream() -> None:
        with database.connect() as own:
            minute = 0
            while not stop.is_set():
                begun = time.monotonic()
                land(own, [candle(END_MS + minute * MINUTE_MS, symbol=ETH)], source=Source.WEBSOCKET)
                slowest[0] = max(slowest[0], time.monotonic() - begun)
                minute += 1

    with database.connect() as reader, reader.transaction(), ThreadPoolExecutor(1) as thread:
        one(reader, "SELECT count(*) FROM trading.candlesticks")
        streaming = thread.submit(stream)
        with pytest.raises(InUseError, match="read or written all the time"):
            leave_archived_out(filled.connection, JUNE)
        stop.set()
        streaming.result(30)
    assert slowest[0] < 1
    june = [row for row in held(filled.connection) if row[2] < END_MS]
    assert june == before
    assert leave_archived_out(filled.connection, JUNE)


@contextmanager
def swapping(database: Database, *months: SeriesMonth) -> Iterator[None]:
    """A swap that leaves `months` out and is not committed before the block ends."""
    with database.connect() as own, own.transaction():
        for month in months:
            projection._set_state(own, month, "archived")
        leave_archived_out(own, JUNE)
        yield


def await_waiting(connection: Connection) -> None:
    deadline = time.monotonic() + 30
    while not one(connection, "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'relation' AND NOT granted)"):
        assert time.monotonic() < deadline, "nobody waits"


@pytest.mark.parametrize("months", [(MINUTES,), (MINUTES, HOURS, HOURS._replace(symbol=ETH))], ids=["swap", "drop"])
def test_who_reads_while_a_partition_is_swapped_sees_every_candle(
    filled: CandleStore, database: Database, months: tuple[SeriesMonth, ...]
) -> None:
    reads = [(BTC, "1m", 2_000), (BTC, "1h", 48), (ETH, "1h", 48)]

    def read(symbol: str, name: str) -> int:
        with CandleStore.opened(database, filled.files) as own:
            return len(own.opens(symbol, parse_timeframe(name), START_MS, END_MS))

    with ThreadPoolExecutor(len(reads)) as threads:
        with swapping(database, *months):
            reading = [threads.submit(read, symbol, name) for symbol, name, _ in reads]
            await_waiting(filled.connection)
        assert [each.result(30) for each in reading] == [number for *_, number in reads]


def test_what_lands_while_its_partition_is_dropped_lands(filled: CandleStore, database: Database) -> None:
    late = [candle(START_MS + number * MINUTE_MS) for number in range(1_990, 2_010)]

    def land_late() -> tuple[int, int]:
        with CandleStore.opened(database, filled.files) as own:
            landed = own.land(late, source=Source.WEBSOCKET)
        return landed.inserted, landed.unchanged

    with ThreadPoolExecutor(1) as thread:
        with swapping(database, MINUTES, HOURS, HOURS._replace(symbol=ETH)):
            landing = thread.submit(land_late)
            await_waiting(filled.connection)
        assert landing.result(30) == (10, 10)
    assert len(held(filled.connection)) == 2_010


def test_who_waits_to_write_to_the_month_is_let_through(filled: CandleStore, database: Database) -> None:
    rows = len(held(filled.connection))
    build = "SELECT trading.build_month(%s)"

    def land_one() -> int:
        with database.connect() as own:
            return land(own, [candle(START_MS + 5_000 * MINUTE_MS)], source=Source.REST).inserted

    with ThreadPoolExecutor(1) as thread, database.connect() as watcher:

        class Waited(psycopg.Connection[tuple[Any, ...]]):
            """Once it has built the copy, somebody comes to write."""

            def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
                done = super().execute(query, *arguments, **named)
                if query == build:
                    landings.append(thread.submit(land_one))
                    await_waiting(watcher)
                return done

        landings: list[Any] = []
        with Waited.connect(database.url, autocommit=True) as own:
            archive_month(own, filled.files, MINUTES)
            with pytest.raises(InUseError):
                leave_archived_out(own, JUNE)
        with pytest.raises(Exception, match="archived months"):
            landings[0].result(30)
    assert len(held(filled.connection)) == rows - 2_000


def test_a_swap_needs_a_copy_built_in_its_own_transaction(filled: CandleStore) -> None:
    before = held(filled.connection)
    connection, swap = filled.connection, f"SELECT trading.swap_month('{JUNE}')"
    with pytest.raises(psycopg.errors.RaiseException, match="comes first, in the same transaction"):
        connection.execute(swap)
    with connection.transaction():
        connection.execute("SELECT trading.build_month(%s)", (JUNE,))
    with connection.transaction():
        connection.execute("LOCK TABLE trading.candlesticks_2026_06 IN SHARE ROW EXCLUSIVE MODE")
        with pytest.raises(psycopg.errors.RaiseException, match="comes first"), connection.transaction():
            connection.execute(swap)
    assert held(filled.connection) == before


DETACH = "ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_2026_06"


def attach_again(connection: Connection) -> None:
    for each in detached_months(connection):
        for statement in each.remedy.split("; "):
            connection.execute(statement)  # type: ignore[arg-type]
    assert detached_months(connection) == []


def test_a_detached_month_keeps_out_its_own_rows_alone_and_its_error_says_how_to_attach_it_again(
    filled: CandleStore,
) -> None:
    filled.connection.execute(DETACH)
    in_june, in_july = candle(END_MS - MINUTE_MS), candle(END_MS)
    with pytest.raises(DetachedMonthError, match=r"^the partition of 2026-06 is detached, .* ATTACH PARTITION") as told:
        filled.land([in_june, in_july], source=Source.WEBSOCKET)
    assert "\n" not in str(told.value)
    assert told.value.months == detached_months(filled.connection)
    assert told.value.divide([in_june, in_july]) == ([in_june], [in_july])
    assert filled.land([in_july], source=Source.WEBSOCKET).inserted == 1
    attach_again(filled.connection)
    assert filled.land([in_june], source=Source.WEBSOCKET).inserted == 1
    assert len(held(filled.connection)) == 2_098


def test_a_detach_that_was_interrupted_is_found_and_finished_before_the_month_is_attached_again(
    filled: CandleStore, database: Database
) -> None:
    with database.connect() as somebody, database.connect() as reader, reader.transaction():
        one(reader, "SELECT count(*) FROM trading.candlesticks")
        somebody.execute("SET statement_timeout = '100ms'")
        while not detached_months(filled.connection):
            with pytest.raises(psycopg.errors.QueryCanceled):
                somebody.execute(f"{DETACH} CONCURRENTLY")
    # Whether a session still lands in it until then depends on what it has cached.
    assert detached_months(filled.connection) == [DetachedMonth(JUNE, unfinished=True)]
    attach_again(filled.connection)
    assert len(held(filled.connection)) == 2_096


def test_of_several_detached_months_an_error_names_each(filled: CandleStore) -> None:
    filled.land([candle(END_MS)], source=Source.REST)
    for month in ("2026_06", "2026_07"):
        filled.connection.execute(f"ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_{month}")
    with pytest.raises(DetachedMonthError, match=r"^the partition of 2026-06 .* \(and so for 2026-07\)$"):
        filled.land([candle(START_MS), candle(END_MS)], source=Source.REST)
    # Rows that no market can have stand in a table of their own.
    refused = Refused(BTC, "1m", START_MS, "a price is zero", "[]")
    assert filled.land([], [refused], source=Source.REST).quarantined == 1
    attach_again(filled.connection)


def archive_and_die(url: str, root: str, owner: str, function: str, call: int, after: bool) -> None:
    with Database(url).connect() as connection:
        owners = {"partitions": partitions, "projection": projection}
        Doom(owners[owner], function, call=call, after=after)
        months = [MINUTES, HOURS, HOURS._replace(symbol=ETH)]
        archive_whole(connection, ParquetStore(root), months)


@pytest.mark.parametrize(
    ("owner", "function", "call", "after"),
    [
        ("projection", "lock_writers_out", 1, True),
        ("projection", "_held_hashes", 3, True),
        ("projection", "_set_state", 2, True),
        ("partitions", "lock_writers_out", 1, True),
        ("partitions", "try_lock_ledger", 1, True),
        ("partitions", "one", 1, True),
    ],
)
def test_dropping_a_month_killed_anywhere_has_not_begun(
    filled: CandleStore, database: Database, owner: str, function: str, call: int, after: bool
) -> None:
    before = held(filled.connection), states(filled.connection)
    killed(start(archive_and_die, database.url, filled.files.root, owner, function, call, after))
    assert (held(filled.connection), states(filled.connection)) == before
    assert archive_whole(filled.connection, filled.files, [MINUTES, HOURS, HOURS._replace(symbol=ETH)]) == 2_096


def test_a_vacuum_is_noted_and_leaves_every_row_frozen(filled: CandleStore) -> None:
    fingerprint = one(filled.connection, "SELECT trading.month_fingerprint(%s)", (JUNE,))
    assert vacuum_month(filled.connection, JUNE, fingerprint)
    assert one(filled.connection, "SELECT vacuumed_hash FROM trading.month_partitions") == fingerprint
    oldest, now = filled.connection.execute(
        "SELECT relfrozenxid::text::bigint, txid_snapshot_xmin(txid_current_snapshot()) & 4294967295 "
        "FROM pg_class WHERE oid = 'trading.candlesticks_2026_06'::regclass"
    ).fetchone() or (0, 0)
    assert now - oldest < 20
    # Another content, another fingerprint: what lands late opens the month again by itself.
    filled.land([candle(END_MS - MINUTE_MS)], source=Source.WEBSOCKET)
    filled.project([])
    assert one(filled.connection, "SELECT trading.month_fingerprint(%s)", (JUNE,)) != fingerprint


def test_a_vacuum_that_cannot_be_now_is_not_noted(filled: CandleStore, database: Database) -> None:
    with database.connect() as other, other.transaction():
        other.execute("LOCK TABLE trading.candlesticks_2026_06 IN SHARE MODE")
        assert not vacuum_month(filled.connection, JUNE, "of something")
    assert one(filled.connection, "SELECT count(*) FROM trading.month_partitions") == 0


def test_the_series_of_a_month_are_found_without_reading_its_rows(filled: CandleStore) -> None:
    assert series_in(filled.connection, JUNE) == {(BTC, "1m"), (BTC, "1h"), (ETH, "1h")}
