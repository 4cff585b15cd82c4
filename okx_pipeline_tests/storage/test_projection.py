"""The projection into Parquet: driven by marks, killed anywhere, raced by landings; months archived and restored."""

import dataclasses
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from okx_pipeline.candles import Refused, Source
from okx_pipeline.storage import parquet, projection
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.months import held_months
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore, SeriesMonth, day_hashes, month_hash
from okx_pipeline.storage.projection import archive_month, pending_months, project, project_month, restore_month
from okx_pipeline.timeframes import DAY_MS, day_ms, day_of, month_bounds
from okx_pipeline_tests.storage.processes import Doom, barrier, finish, killed, start
from okx_pipeline_tests.storage.small_disk import fill, small_disk
from okx_pipeline_tests.storage.test_landing import AUGUST, MINUTE, candle, now

MONTH = SeriesMonth("BTC-USDT-SWAP", "1m", date(2026, 8, 1))
NEXT_MONTH = MONTH._replace(month=date(2026, 9, 1))
IN_A_MONTH = 31 * 1440

ROWS = """
SELECT timestamp_ms, open_price, high_price, low_price, close_price, volume, volume_currency, volume_quote,
       source, received_at, updated_at
FROM trading.candlesticks
WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s ORDER BY timestamp_ms
"""


ANOTHER_ROW = """
INSERT INTO trading.candlesticks (symbol, timeframe, timestamp_ms, open_price, high_price, low_price, close_price,
                                  volume, volume_currency, volume_quote, source)
SELECT symbol, timeframe, max(timestamp_ms) + 60000, 1, 1, 1, 1, 1, 1, 1, 'rest'
FROM trading.candlesticks GROUP BY symbol, timeframe
"""


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def files(tmp_path: Path) -> ParquetStore:
    return ParquetStore(str(tmp_path / "parquet"))


@pytest.fixture
def store(connection: Connection, files: ParquetStore) -> CandleStore:
    return CandleStore(connection, files, "here")


def held(connection: Connection, month: SeriesMonth = MONTH) -> list[tuple[Any, ...]]:
    """What PostgreSQL holds of a month, every column."""
    return connection.execute(ROWS, (*month[:2], *month_bounds(month.month))).fetchall()


def in_file(files: ParquetStore, month: SeriesMonth = MONTH) -> list[tuple[Any, ...]]:
    """What the file of a month holds, every column but the one PostgreSQL lacks."""
    return [tuple(row.values()) for row in files.read(month).drop_columns(["open_time"]).to_pylist()]


def assert_equal(connection: Connection, files: ParquetStore, month: SeriesMonth = MONTH) -> None:
    rows = held(connection, month)
    assert in_file(files, month) == rows
    state = files.state(month)
    assert state is not None
    assert (state.rows, state.day_hashes) == (len(rows), day_hashes(files.read(month)))
    days = {day_of(row[0]) for row in rows}
    hashed = "SELECT trading.content_hash(%s, %s, %s, %s)"
    wanted = {day: one(connection, hashed, (*month[:2], day_ms(day), day_ms(day) + DAY_MS)) for day in days}
    assert (state.day_hashes, state.content_hash) == (wanted, month_hash(wanted))


def land_minutes(connection: Connection, *minutes: int, close: str = "63030") -> None:
    candles = [candle(minute, close) for minute in minutes]
    land(connection, candles, source=Source.REST, requested_at=now(connection))


def path_of(files: ParquetStore, month: SeriesMonth = MONTH) -> Path:
    return Path(files.place(month))


# Marks


def test_what_lands_waits_until_its_file_holds_exactly_that(connection: Connection, files: ParquetStore) -> None:
    assert pending_months(connection) == []
    land_minutes(connection, *range(100), IN_A_MONTH - 1, IN_A_MONTH)
    assert pending_months(connection) == [MONTH, NEXT_MONTH]
    results = project(connection, files, pending_months(connection))
    assert [(result.month, result.rows, result.written) for result in results] == [
        (MONTH, 101, True),
        (NEXT_MONTH, 1, True),
    ]
    assert pending_months(connection) == []
    assert_equal(connection, files)
    assert_equal(connection, files, NEXT_MONTH)
    noted = connection.execute("SELECT month, state, rows, content_hash FROM trading.candle_months ORDER BY month")
    hashes = [month_hash(day_hashes(files.read(month))) for month in (MONTH, NEXT_MONTH)]
    assert noted.fetchall() == [(MONTH.month, "live", 101, hashes[0]), (NEXT_MONTH.month, "live", 1, hashes[1])]


def test_a_correction_reaches_the_file(connection: Connection, files: ParquetStore) -> None:
    land_minutes(connection, *range(100))
    project(connection, files, [MONTH])
    land_minutes(connection, 50, close="63031")
    assert [result.written for result in project(connection, files, pending_months(connection))] == [True]
    assert_equal(connection, files)


def test_nothing_is_written_when_nothing_changed(connection: Connection, files: ParquetStore) -> None:
    land_minutes(connection, *range(100))
    project(connection, files, [MONTH])
    before = path_of(files).stat()
    land_minutes(connection, *range(100))
    assert pending_months(connection) == []
    refused = Refused("BTC-USDT-SWAP", "1m", AUGUST, "high_price 1 is below open_price 2", "[]")
    land(connection, [], [refused], source=Source.REST)
    assert pending_months(connection) == []
    assert [result.written for result in project(connection, files, [MONTH])] == [False]
    after = path_of(files).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    land_minutes(connection, 100)
    land(connection, [], [dataclasses.replace(refused, reason="another")], source=Source.REST)
    assert pending_months(connection) == [MONTH]


def test_a_month_of_refused_rows_alone_has_no_file_and_does_not_wait_for_ever(
    connection: Connection, files: ParquetStore
) -> None:
    land(connection, [], [Refused("BTC-USDT-SWAP", "1m", AUGUST, "a price is zero", "[]")], source=Source.REST)
    assert project(connection, files, pending_months(connection)) == []
    assert pending_months(connection) == []
    assert files.state(MONTH) is None


def test_candles_that_last_beyond_their_month_belong_to_the_one_they_open_in(
    connection: Connection, files: ParquetStore
) -> None:
    monday = AUGUST + 30 * 1440 * MINUTE
    rows = [candle()._replace(timeframe=name, timestamp_ms=at) for name, at in (("1w", monday), ("1mo", AUGUST))]
    land(connection, rows, source=Source.REST)
    projected = project(connection, files, pending_months(connection))
    assert [str(result.month) for result in projected] == ["BTC-USDT-SWAP 1mo 2026-08", "BTC-USDT-SWAP 1w 2026-08"]


class Interrupted(ParquetStore):
    """A store in whose `write` something else happens first."""

    def __init__(self, root: str, meanwhile: Callable[[], None]) -> None:
        super().__init__(root)
        self._meanwhile = meanwhile

    def write(self, *arguments: Any, **named: Any) -> None:
        self._meanwhile()
        super().write(*arguments, **named)


def test_what_lands_during_a_projection_waits_for_the_next(database: Database, tmp_path: Path) -> None:
    with database.connect() as connection, database.connect() as other:
        land_minutes(connection, *range(100))
        files = Interrupted(str(tmp_path / "parquet"), lambda: land_minutes(other, 50, 100, close="63031"))
        project(connection, files, [MONTH])
        assert files.read(MONTH).num_rows == 100
        assert pending_months(connection) == [MONTH]
        project(connection, ParquetStore(files.root), pending_months(connection))
        assert_equal(connection, files)
        assert pending_months(connection) == []


@pytest.mark.parametrize(
    ("rewrite_ms", "seconds_ago", "due"),
    [(100, 59, False), (100, 61, True), (10_000, 190, False), (10_000, 201, True), (None, 59, False), (None, 61, True)],
)
def test_a_month_is_rewritten_at_most_once_a_minute_and_a_twentieth_of_the_time(
    connection: Connection, files: ParquetStore, rewrite_ms: int | None, seconds_ago: int, due: bool
) -> None:
    land_minutes(connection, 0)
    assert pending_months(connection, due_only=True) == [MONTH]
    project(connection, files, [MONTH])
    land_minutes(connection, 1)
    assert pending_months(connection, due_only=True) == []
    assert pending_months(connection) == [MONTH]
    connection.execute(
        "UPDATE trading.candle_months SET projection_ms = %s, projected_at = clock_timestamp() - %s * interval '1 s'",
        (rewrite_ms, seconds_ago),
    )
    assert pending_months(connection, due_only=True) == ([MONTH] if due else [])


def test_the_month_whose_file_is_oldest_has_its_turn_first(connection: Connection, files: ParquetStore) -> None:
    candles = [candle(symbol=f"{name}-USDT") for name in "ABC"]
    land(connection, candles, source=Source.REST)
    project(connection, files, pending_months(connection)[:2])
    for name, minutes_ago in (("A", 10), ("B", 20)):
        connection.execute(
            "UPDATE trading.candle_months SET projected_at = clock_timestamp() - %s * interval '1 minute' "
            "WHERE symbol = %s",
            (minutes_ago, f"{name}-USDT"),
        )
    later = [candle(1, symbol=each.symbol) for each in candles]
    land(connection, later, source=Source.REST)
    assert [month.symbol for month in pending_months(connection, due_only=True)] == ["C-USDT", "B-USDT", "A-USDT"]
    assert [month.symbol for month in pending_months(connection)] == ["A-USDT", "B-USDT", "C-USDT"]


# Damage


@pytest.mark.parametrize("damage", ["cut", "missing", "empty", "flipped", "changed", "another"])
def test_a_damaged_file_is_rebuilt_from_postgresql_and_said_to_be(
    connection: Connection, files: ParquetStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    land_minutes(connection, *range(100))
    assert [result.damage for result in project(connection, files, [MONTH])] == [None]
    path = path_of(files)
    if damage == "missing":
        path.unlink()
    elif damage == "another":
        pq.write_table(files.read(MONTH).replace_schema_metadata(None), path)
    elif damage == "flipped":
        body = bytearray(path.read_bytes())
        body[300] ^= 1
        path.write_bytes(body)
    elif damage == "changed":
        # What it says of itself is as it was.
        pq.write_table(pq.ParquetFile(path).read().slice(1), path)
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"")
    with caplog.at_level(logging.WARNING):
        (result,) = project(connection, files, [MONTH])
    assert result.written
    assert str(result.damage).startswith(f"{path}: ")
    assert [record.message for record in caplog.records] == [f"rebuilding from PostgreSQL: {result.damage}"]
    assert_equal(connection, files)


def test_a_full_disk_stops_the_projection_alone_and_the_next_pass_completes_it(
    connection: Connection, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        files = ParquetStore(str(disk / "parquet"))
        land_minutes(connection, *range(100))
        project(connection, files, [MONTH])
        before = in_file(files)
        filler = fill(disk)
        land_minutes(connection, *range(100, 3_000))
        with pytest.raises(StorageError, match="No space left on device"):
            project(connection, files, pending_months(connection))
        assert in_file(files) == before
        assert len(held(connection)) == 3_000
        assert pending_months(connection) == [MONTH]
        filler.unlink()
        project(connection, files, pending_months(connection))
        assert_equal(connection, files)


def test_a_file_that_cannot_be_written_keeps_no_other_from_being_written(
    connection: Connection, files: ParquetStore
) -> None:
    path_of(files).mkdir(parents=True)
    land_minutes(connection, *range(100), IN_A_MONTH)
    with pytest.raises(StorageError, match=f"{path_of(files)}"):
        project(connection, files, pending_months(connection))
    assert pending_months(connection) == [MONTH]
    assert_equal(connection, files, NEXT_MONTH)


# Killed, and raced


def project_pending(url: str, root: str) -> None:
    with Database(url).connect() as connection:
        project(connection, ParquetStore(root), pending_months(connection))


def project_and_die(url: str, root: str, owner: str, function: str, call: int, after: bool) -> None:
    owners = {"parquet": parquet, "projection": projection, "os": os, "pq": pq, "Path": Path}
    Doom(owners[owner], function, call=call, after=after)
    project_pending(url, root)


POINTS = [
    *[("projection", name, call) for name in ("_marks", "_rows", "_note", "_settle") for call in (1, 2)],
    *[("pq", "write_table", call) for call in (1, 2)],
    *[("os", "fsync", call) for call in (1, 2, 3)],
    *[("Path", "replace", call) for call in (1, 2)],
]


def assert_readers_see_whole_files(connection: Connection, files: ParquetStore) -> None:
    """Nothing of a killed writer is to be seen, and what is marked as projected is in the file."""
    if path_of(files).exists():
        keys = ["symbol", "timeframe", "timestamp_ms"]
        frame = pd.read_parquet(files.root)
        assert not frame.duplicated(keys).any()
    waiting = pending_months(connection)
    for month in (MONTH, NEXT_MONTH):
        if month not in waiting:
            assert_equal(connection, files, month)
        elif files.state(month) is not None:
            assert {row[0] for row in in_file(files, month)} <= {row[0] for row in held(connection, month)}


def test_a_pass_killed_at_any_step_is_completed_by_the_next(
    database: Database, connection: Connection, files: ParquetStore
) -> None:
    for round_, (owner, function, call) in enumerate(POINTS):
        minutes = range(round_ * 10, round_ * 10 + 10)
        land_minutes(connection, *minutes, *(IN_A_MONTH + minute for minute in minutes))
        killed(start(project_and_die, database.url, files.root, owner, function, call, round_ % 2 == 1))
        assert_readers_see_whole_files(connection, files)
        if round_ % 3 == 2:
            project(connection, files, pending_months(connection))
            assert pending_months(connection) == []
            assert_equal(connection, files)
            assert_equal(connection, files, NEXT_MONTH)
    project(connection, files, pending_months(connection))
    assert_readers_see_whole_files(connection, files)
    assert pending_months(connection) == []
    assert [path.name for path in Path(files.root).rglob("*") if path.is_file()] == ["candles.parquet"] * 2


def project_often(url: str, root: str, gate: Any, passes: int) -> None:
    with Database(url).connect() as connection:
        gate.wait(30)
        for _ in range(passes):
            project(connection, ParquetStore(root), [MONTH, *pending_months(connection)])


def test_two_projectors_and_a_landing_at_once_end_with_everything_in_the_file(
    database: Database, connection: Connection, files: ParquetStore
) -> None:
    gate = barrier(3)
    projectors = [start(project_often, database.url, files.root, gate, 30) for _ in range(2)]
    gate.wait(30)
    for minute in range(0, 300, 10):
        land_minutes(connection, *range(minute, minute + 10))
        assert_readers_see_whole_files_of(files)
    finish(*projectors)
    project(connection, files, pending_months(connection))
    assert_equal(connection, files)
    assert len(held(connection)) == 300


def assert_readers_see_whole_files_of(files: ParquetStore) -> None:
    state = files.state(MONTH)
    if state is not None:
        assert files.read(MONTH).num_rows >= state.rows


# Archived months


def archived(connection: Connection, month: SeriesMonth = MONTH) -> bool:
    query = "SELECT state FROM trading.candle_months WHERE symbol = %s AND timeframe = %s AND month = %s"
    return bool(one(connection, query, month) == "archived")


def archive(connection: Connection, files: ParquetStore) -> int:
    project(connection, files, [MONTH])
    return archive_month(connection, files, MONTH)


def test_an_archived_month_is_in_its_file_alone_and_comes_back_as_it_was(
    connection: Connection, files: ParquetStore
) -> None:
    land_minutes(connection, *range(100), IN_A_MONTH)
    land_minutes(connection, 50, close="63031")
    text = "SELECT c::text FROM trading.candlesticks AS c ORDER BY timestamp_ms"
    before = connection.execute(text).fetchall()
    rows = held(connection)
    assert archive(connection, files) == 100
    assert archived(connection)
    assert held(connection) == []
    assert len(held(connection, NEXT_MONTH)) == 1
    assert in_file(files) == rows
    assert archive_month(connection, files, MONTH) == 0
    assert restore_month(connection, files, MONTH) == 100
    assert not archived(connection)
    assert connection.execute(text).fetchall() == before
    assert restore_month(connection, files, MONTH) == 0
    assert archive(connection, files) == 100


def test_an_archived_month_is_never_projected(connection: Connection, files: ParquetStore) -> None:
    land_minutes(connection, *range(100))
    archive(connection, files)
    before = path_of(files).read_bytes()
    refused = Refused("BTC-USDT-SWAP", "1m", AUGUST, "a price is zero", "[]")
    land(connection, [], [refused], source=Source.REST)
    assert pending_months(connection) == pending_months(connection, due_only=True) == []
    assert project_month(connection, files, MONTH) is None
    assert path_of(files).read_bytes() == before
    # Nor does it wait for that: whoever backs it up compares the file with what is noted.
    assert [(month.archived, month.content_hash is None) for month in held_months(connection)] == [(True, False)]


@pytest.mark.parametrize("difference", ["landed since", "never projected", "missing", "cut", "flipped", "foreign"])
def test_a_month_whose_file_does_not_hold_it_all_is_not_archived(
    connection: Connection, files: ParquetStore, difference: str
) -> None:
    land_minutes(connection, *range(100))
    if difference != "never projected":
        project(connection, files, [MONTH])
    path = path_of(files)
    if difference == "landed since":
        land_minutes(connection, 100)
    elif difference == "missing":
        path.unlink()
    elif difference == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif difference == "flipped":
        whole = bytearray(path.read_bytes())
        whole[300] ^= 1
        path.write_bytes(whole)
    elif difference == "foreign":
        # The same rows, in a file that was not made from this database.
        connection.execute("DELETE FROM trading.candle_months")
    before = held(connection)
    with pytest.raises(DamagedFileError, match=f"^{path}: ") as told:
        archive_month(connection, files, MONTH)
    assert "\n" not in str(told.value)
    assert held(connection) == before
    assert one(connection, "SELECT count(*) FROM trading.candle_months WHERE state = 'archived'") == 0


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_landing_into_an_archived_month_whose_file_is_damaged_is_refused_whole(
    connection: Connection, store: CandleStore, damage: str
) -> None:
    land_minutes(connection, *range(100))
    archive(connection, store.files)
    path = path_of(store.files)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        fewer = store.files.read(MONTH).slice(1)
        store.files.write(MONTH, fewer, day_hashes(fewer))
    with pytest.raises(DamagedFileError, match=f"^{path}: ") as told:
        store.land([candle(100), candle(IN_A_MONTH)], source=Source.REST)
    assert "\n" not in str(told.value)
    assert held(connection) == held(connection, NEXT_MONTH) == []
    assert archived(connection)


def archive_and_die(url: str, root: str, function: str, after: bool) -> None:
    with Database(url).connect() as connection:
        Doom(projection, function, after=after)
        archive_month(connection, ParquetStore(root), MONTH)


def restore_and_die(url: str, root: str, function: str, after: bool) -> None:
    with Database(url).connect() as connection:
        Doom(projection, function, after=after)
        restore_month(connection, ParquetStore(root), MONTH)


def test_archiving_or_restoring_killed_halfway_has_not_begun(
    database: Database, connection: Connection, files: ParquetStore
) -> None:
    land_minutes(connection, *range(1_000))
    project(connection, files, [MONTH])
    rows = held(connection)
    for function, after in (("day_hashes", True), ("_held_hashes", True), ("_set_state", True)):
        killed(start(archive_and_die, database.url, files.root, function, after))
        assert held(connection) == rows
        assert not archived(connection)
    assert archive_month(connection, files, MONTH) == 1_000
    for function, after in (("with_months", False), ("_copy_back", True), ("_set_state", True)):
        killed(start(restore_and_die, database.url, files.root, function, after))
        assert held(connection) == []
        assert archived(connection)
    assert restore_month(connection, files, MONTH) == 1_000
    assert held(connection) == rows


def test_a_month_archived_again_and_again_ends_as_one_that_never_was(
    database: Database, store: CandleStore, new_database: Callable[[bool], Database], tmp_path: Path
) -> None:
    """The same batches into two stores, in one of which the month is archived in between, at random."""
    dice = random.Random(5)
    values = (
        "SELECT c.timestamp_ms, c::text FROM (SELECT timestamp_ms, open_price, close_price, volume, source "
        "FROM trading.candlesticks) AS c ORDER BY 1",
        "SELECT timestamp_ms, close_price::text, source, revised_by FROM trading.candlestick_revisions ORDER BY id",
        "SELECT day, revision FROM trading.landing_marks ORDER BY day",
    )
    with CandleStore.opened(new_database(True), ParquetStore(str(tmp_path / "other"))) as other:
        restored = 0
        for _ in range(40):
            minutes = [dice.randrange(-40, 400) for _ in range(dice.choice([1, 5, 120]))]
            batch = [candle(minute, dice.choice(["63030", "63031"])) for minute in minutes]
            source = dice.choice(list(Source))
            outcomes = []
            for each in (store, other):
                asked = now(each.connection) if source is Source.REST else None
                landed = each.land(batch, source=source, requested_at=asked)
                outcomes.append((landed.changes, landed.unchanged, landed.disputed))
            assert outcomes[0] == outcomes[1]
            if dice.random() < 0.5:
                archive(store.connection, store.files)
                restored += 1
        restore_month(store.connection, store.files, MONTH)
        for query in values:
            assert store.connection.execute(query).fetchall() == other.connection.execute(query).fetchall()
        assert restored > 10
        store.project([])
        other.project([])
        assert day_hashes(store.files.read(MONTH)) == day_hashes(other.files.read(MONTH))


def await_waiting(connection: Connection) -> None:
    """Wait until somebody waits for the lock of a table."""
    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'relation' AND NOT granted)"
    deadline = time.monotonic() + 30
    while not one(connection, waits):
        assert time.monotonic() < deadline, "nobody waits"


def test_archiving_waits_for_a_landing_that_is_under_way_and_then_refuses(
    database: Database, connection: Connection, files: ParquetStore
) -> None:
    land_minutes(connection, *range(100))
    project(connection, files, [MONTH])

    def archive_it() -> int:
        with database.connect() as own:
            return archive_month(own, files, MONTH)

    with database.connect() as lander, ThreadPoolExecutor(1) as thread:
        with lander.transaction():
            lander.execute(ANOTHER_ROW)
            archiving = thread.submit(archive_it)
            await_waiting(connection)
        with pytest.raises(DamagedFileError, match="project the month again"):
            archiving.result(60)
    assert len(held(connection)) == 101
    assert not archived(connection)


def test_a_landing_waits_for_an_archiving_that_is_under_way_and_then_restores(
    database: Database, connection: Connection, files: ParquetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_minutes(connection, *range(100))
    project(connection, files, [MONTH])
    set_state = projection._set_state

    def land_it() -> int:
        with CandleStore.opened(database, files) as own:
            return own.land([candle(99), candle(100)], source=Source.REST).inserted

    with database.connect() as watcher, ThreadPoolExecutor(1) as thread:
        landing: list[Future[int]] = []

        def set_state_once_somebody_waits(*arguments: Any) -> None:
            set_state(*arguments)
            if arguments[2] == "archived":
                landing.append(thread.submit(land_it))
                await_waiting(watcher)

        monkeypatch.setattr(projection, "_set_state", set_state_once_somebody_waits)
        assert archive_month(connection, files, MONTH) == 100
        assert landing[0].result(60) == 1
    assert len(held(connection)) == 101
    assert not archived(connection)
    assert pending_months(connection) == [MONTH]


def test_archiving_that_races_with_landing_never_loses_a_row(database: Database, files: ParquetStore) -> None:
    rounds = 25
    gate = threading.Barrier(3)
    problems: list[BaseException] = []
    archivings = 0

    def land_all(first: int) -> None:
        with CandleStore.opened(database, files) as store:
            for round_ in range(rounds):
                gate.wait(60)
                batch = [candle(minute) for minute in range(round_ * 20 + first, round_ * 20 + first + 10)]
                again = [candle(minute) for minute in range(0, round_ * 20, 7)]
                store.land([*batch, *again], source=Source.REST)

    def archive_all() -> None:
        nonlocal archivings
        with database.connect() as connection:
            for _ in range(rounds):
                gate.wait(60)
                for _ in range(3):
                    project(connection, files, [MONTH])
                    with suppress(DamagedFileError):  # something has landed since
                        archivings += archive_month(connection, files, MONTH) > 0

    def run(work: Callable[..., None], *arguments: int) -> None:
        try:
            work(*arguments)
        except BaseException as problem:  # noqa: BLE001 - told by the test below
            problems.append(problem)
            gate.abort()

    threads = [threading.Thread(target=run, args=each) for each in ((land_all, 0), (land_all, 10), (archive_all,))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert archivings > 3
    with database.connect() as connection:
        restore_month(connection, files, MONTH)
        assert [row[0] for row in held(connection)] == [AUGUST + minute * MINUTE for minute in range(rounds * 20)]
        project(connection, files, [MONTH])
        assert_equal(connection, files)
