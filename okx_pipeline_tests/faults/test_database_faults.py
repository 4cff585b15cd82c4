"""PostgreSQL that dies, is away, refuses, runs full or is slow; and candles that contend for the same rows in it."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from itertools import count
from pathlib import Path

import psutil
import psycopg
import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.embedded_guard import postmaster
from okx_pipeline.storage.landing import SeriesDay, land
from okx_pipeline.storage.migrations import migrate
from okx_pipeline_tests.conftest import named
from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.system import START, System, dying_at
from okx_pipeline_tests.storage.small_disk import fill, small_disk
from okx_pipeline_tests.stream.stand import wait_until

MakeSystem = Callable[..., System]
YESTERDAY = ("backfill", "--start", "2026-08-19", "--end", "2026-08-20")
TODAY = ("backfill", "--start", "2026-08-20", "--end", "2026-08-21", "--refetch")


@dataclass
class Server:
    """A PostgreSQL that a test may stop, kill and start again."""

    embedded: EmbeddedPostgres
    home: Path
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        found = postmaster(str(self.home / "postgres" / "data"))
        assert found is not None
        return found

    def stop(self, number: int = signal.SIGQUIT) -> None:
        """Stop at once, as `pg_ctl stop --mode immediate` does; with SIGKILL, not even that."""
        pid = self.pid
        os.kill(pid, number)
        wait_until(lambda: not psutil.pid_exists(pid) or is_dead(pid), "the server ends", 30)

    def database(self) -> Database:
        """A fresh migrated database."""
        name = f"fresh_{next(self.numbers)}"
        with Database(self.embedded.url).connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template_migrated")
        return Database(named(self.embedded.url, name))


def is_dead(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("own")
    with EmbeddedPostgres(home) as embedded:
        with Database(embedded.url).connect() as connection:
            connection.execute("CREATE DATABASE template_migrated")
        migrate(Database(named(embedded.url, "template_migrated")))
        yield Server(embedded, home)


@pytest.fixture
def server_to_break(own_server: Server) -> Iterator[Server]:
    """The module's own server, running again afterwards."""
    yield own_server
    own_server.embedded.start()


# Away


@pytest.mark.fault(3, "PostgreSQL stopped at once or killed, under load", tries=5)
def test_a_server_that_goes_down_under_load_leaves_no_part_of_a_batch(
    make_system: MakeSystem, server_to_break: Server
) -> None:
    system = make_system(database=server_to_break.database())
    sidecar = system.streaming()
    numbers = (signal.SIGQUIT, signal.SIGKILL)
    for number in numbers if table.is_full() else numbers[:1]:
        load = system.begin(*(TODAY if number == signal.SIGQUIT else YESTERDAY))
        system.lets_pass(system.randomly.uniform(0.1, 2))
        server_to_break.stop(number)
        system.lets_pass(system.randomly.uniform(0, 1))
        server_to_break.embedded.start()
        load.join(60)
        assert load.exitcode in (0, 1), system.told()
        system.holds_its_promises()
    system.recovers()
    assert sidecar.exitcode is None


@pytest.mark.fault(3, "PostgreSQL stopped at once in the midst of a copy", tries=3)
def test_a_server_that_goes_down_in_the_midst_of_a_copy_leaves_no_part_of_it(
    make_system: MakeSystem, server_to_break: Server
) -> None:
    system = make_system(database=server_to_break.database(), history_start="2026-08-19")
    for point in ("in a copy", "before commit") if table.is_full() else ("in a copy",):
        stops_it = dying_at(point, system.randomly.randint(1, 3), number=signal.SIGQUIT, pid=server_to_break.pid)
        assert system.command(*YESTERDAY, variations=[stops_it]) == 1, "it says that it failed"
        server_to_break.embedded.start()
        system.holds_its_promises()
    stops_it = dying_at("in a copy", 2, number=signal.SIGQUIT, pid=server_to_break.pid)
    sidecar = system.sidecar(stops_it)
    wait_until(lambda: "database away" in system.told(), "it finds the database away")
    server_to_break.embedded.start()
    assert system.command(*YESTERDAY) == 0
    assert system.recovers().explained == 0
    assert sidecar.exitcode is None


@pytest.mark.long
@pytest.mark.fault(3, "the embedded PostgreSQL killed", tries=2)
def test_an_embedded_server_that_was_killed_is_brought_back_by_the_sidecar_itself(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with EmbeddedPostgres(home) as embedded:
        migrate(Database(embedded.url))
        system = make_system(database=Database(embedded.url), home=home, database_url=None)
        system.streaming()
        for _ in range(3 if table.is_full() else 1):
            pid = Server(embedded, home).pid
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(is_another, home, pid), "it is brought back")
            system.lets_pass(system.randomly.uniform(0, 2))
        system.recovers()
        system.end_all()


def is_another(home: Path, pid: int) -> bool:
    """Whether another postmaster than `pid` listens."""
    return postmaster(str(home / "postgres" / "data")) not in (None, pid)


@dataclass(frozen=True)
class SmallBuffer:
    """Few candles wait for the database."""

    candles: int

    def __call__(self) -> None:
        from okx_pipeline.stream.lander import Lander

        Lander.__init__.__kwdefaults__["capacity"] = self.candles  # type: ignore[index]


@pytest.mark.fault(4, "PostgreSQL away for longer than ten minutes", tries=2)
@pytest.mark.parametrize("capacity", [10, pytest.param(100_000, marks=pytest.mark.long)], ids=["dropped", "kept"])
def test_a_long_absence_of_the_server_costs_no_candle_and_no_memory(
    make_system: MakeSystem, server_to_break: Server, capacity: int
) -> None:
    system = make_system(database=server_to_break.database(), speed=180)
    sidecar = system.sidecar(SmallBuffer(capacity))
    wait_until(system.streams, "the sidecar streams", 30)
    process = psutil.Process(sidecar.pid)
    before = process.memory_info().rss
    server_to_break.stop()
    system.lets_pass(system.randomly.uniform(11, 16))
    assert process.memory_info().rss - before < 50_000_000
    assert ("no room to wait" in system.told()) == (capacity == 10)
    # Whoever asks is told, also while nothing can be written down.
    assert system.command("status", "--json") == 1
    assert "cannot reach PostgreSQL" in system.told()
    server_to_break.embedded.start()
    assert system.recovers().explained == 0
    assert sidecar.exitcode is None
    wait_until(
        lambda: system.rows("SELECT FROM trading.stream_status WHERE counters ? 'database away'"), "it is on record"
    )


# Refusing


@pytest.mark.fault(5, "sessions killed again and again (57P01)", tries=5)
def test_sessions_that_are_killed_again_and_again_lose_nothing(system: System) -> None:
    sidecar = system.streaming()
    load = system.begin(*TODAY)
    killed = 0
    for _ in range(20):
        killed += kill_sessions(system)
        system.lets_pass(system.randomly.uniform(0.02, 0.2))
    assert killed > 5
    load.join(60)
    assert load.exitcode in (0, 1), system.told()
    system.recovers()
    assert sidecar.exitcode is None, system.told()


def kill_sessions(system: System) -> int:
    """End every session in the system's database but the one that asks; returns how many there were."""
    return len(
        system.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    )


@pytest.mark.fault(5, "lock time-outs and deadlocks", tries=6)
def test_lock_time_outs_and_deadlocks_cost_a_try_and_no_candle(system: System) -> None:
    system.streaming()
    wait_until(lambda: meets_a_stranger(system), "a landing is in a deadlock")
    set_for_new_sessions(system, "lock_timeout = '50ms'")
    kill_sessions(system)
    with stranger(system):
        wait_until(lambda: "lock timeout" in system.told(), "a landing gives up waiting")
    system.recovers()


def set_for_new_sessions(system: System, what: str) -> None:
    with system.database.connect() as connection:
        connection.execute(f"ALTER DATABASE {one(connection, 'SELECT current_database()')} SET {what}")


def meets_a_stranger(system: System) -> bool:
    """Have a landing wait for marks and hold candles, while a stranger does the reverse; whether PostgreSQL saw it.

    It looks once, a second after somebody has begun to wait, which on a busy machine may be too early.
    """
    waiting = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    # What makes marks holds no candles.
    landing = "query LIKE '%pg_temp.landing%' OR query LIKE '%INSERT INTO trading.unmarked_landings%'"
    with system.database.connect() as looking, stranger(system) as connection:
        connection.execute("SET lock_timeout = '3s'")
        wait_until(lambda: one(looking, f"SELECT count(*) {waiting}"), "somebody waits for the stranger")
        if not one(looking, f"SELECT bool_or({landing}) {waiting}"):
            return False
        with suppress(psycopg.errors.LockNotAvailable):
            connection.execute("LOCK TABLE trading.candlesticks IN SHARE MODE")
        return bool(one(looking, "SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = current_database()"))


@contextmanager
def stranger(system: System) -> Iterator[Connection]:
    """Another user of the database, who locks the marks and is patient, and changes nothing."""
    with system.database.connect(autocommit=False) as connection:
        connection.execute("SET deadlock_timeout = '60s'")
        connection.execute("LOCK TABLE trading.unmarked_landings, trading.landing_marks IN SHARE MODE")
        yield connection
        connection.rollback()


@pytest.mark.fault(5, "transactions that cannot be serialized", tries=4)
def test_writers_that_cannot_be_serialized_end_with_the_truth(system: System) -> None:
    set_for_new_sessions(system, "default_transaction_isolation = 'serializable'")
    for _ in range(2):
        system.sidecar(without_the_lock)
    wait_until(system.streams, "a sidecar streams", 30)
    system.fault({"kind": "duplicate", "share": 0.3}, {"kind": "withhold", "share": 0.3})
    system.lets_pass(3)
    wait_until(lambda: "could not serialize" in system.told(), "a landing cannot be serialized")
    system.heal()
    system.recovers()


def without_the_lock() -> None:
    """A variation: the lock of the one sidecar is taken by everybody."""
    from okx_pipeline.storage.stream_status import SidecarLock

    SidecarLock.take = lambda self: True  # type: ignore[method-assign]


# Full


@pytest.mark.fault(6, "disk full under PostgreSQL, journal and all", tries=3)
def test_a_full_disk_under_the_server_stops_what_cannot_be_kept_and_no_more(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", megabytes=120) as disk, EmbeddedPostgres(disk / "pg") as embedded:
        migrate(Database(embedded.url))
        system = make_system(database=Database(embedded.url))
        sidecar = system.streaming()
        filler = fill(disk, leave_bytes=system.randomly.randint(0, 100_000))
        with pytest.raises((StorageError, psycopg.Error)):
            use_up(Database(embedded.url))
        wait_until(lambda: "database away" in system.told(), "landing is refused")
        filler.unlink()
        embedded.start()
        system.holds_its_promises()
        assert system.recovers().explained == 0
        assert sidecar.exitcode is None
        system.end_all()


def use_up(database: Database) -> None:
    """Be another writer, which takes what space is left."""
    with database.connect() as connection:
        connection.execute("CREATE TABLE more AS SELECT 1 AS one")
        while True:
            connection.execute("INSERT INTO more SELECT generate_series(1, 50000)")


@pytest.mark.fault(6, "disk full under Parquet", tries=4)
def test_a_full_disk_under_the_files_leaves_whole_files_and_honest_notes(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        system = make_system(parquet_url=str(disk))
        system.streaming()
        system.settle()
        filler = fill(disk, leave_bytes=system.randomly.randint(0, 20_000))
        system.lets_pass(2)
        with pytest.raises(StorageError, match="No space left"):
            settle_again_and_again(system)
        system.holds_its_promises()
        assert system.count("SELECT count(*) FROM trading.landing_marks WHERE projected < revision") > 0
        filler.unlink()
        assert system.recovers().explained == 0
        system.end_all()


def settle_again_and_again(system: System) -> None:
    for _ in range(20):
        system.lets_pass(1.1)
        system.settle()


# Slow


def slow_landing() -> None:
    """A variation: the transaction of a landing takes as much longer as the table `latency` says."""
    from okx_pipeline.storage import landing

    real = landing._refuse_archived

    def slow(connection: Connection, days: Iterable[SeriesDay], months: Collection[date]) -> None:
        connection.execute("SELECT pg_sleep(seconds) FROM latency")
        real(connection, days, months)

    landing._refuse_archived = slow


def make_slow(database: Database, seconds: float) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS latency AS SELECT 0.0::float8 AS seconds")
        connection.execute("UPDATE latency SET seconds = %s", (seconds,))


@pytest.mark.fault(12, "slow consumer: landing takes 2 s, frames come ten times as fast", tries=4)
def test_a_slow_database_makes_candles_late_but_loses_none(make_system: MakeSystem) -> None:
    system = make_system(speed=600)
    make_slow(system.database, 2)
    system.sidecar(slow_landing, SmallBuffer(20))
    wait_until(system.streams, "the sidecar streams", 60)
    wait_until(lambda: "no room to wait" in system.told(), "more comes than goes")
    assert system.counter("waiting") <= 20
    system.holds_its_promises()
    make_slow(system.database, 0)
    system.exchange.clock.set(speed=60)
    system.recovers()


@pytest.mark.fault(32, "SIGTERM in a commit that takes seconds", tries=4)
def test_a_sidecar_that_is_told_to_end_in_a_slow_commit_waits_for_it_and_ends_well(system: System) -> None:
    make_slow(system.database, 1)
    sidecar = system.sidecar(slow_landing)
    wait_until(lambda: sleeping(system), "a landing takes its time")
    system.end(sidecar, signal.SIGTERM)
    assert sidecar.exitcode == 0, system.told()
    assert system.count("SELECT count(*) FROM trading.candlesticks") > 0, "it has landed all the same"
    system.holds_its_promises()
    make_slow(system.database, 1_000)
    sidecar = system.sidecar(slow_landing, hasty)
    wait_until(lambda: sleeping(system), "a landing takes for ever")
    system.end(sidecar, signal.SIGTERM)
    assert sidecar.exitcode == 0, system.told()
    assert "not landed at the end" in system.told()
    system.holds_its_promises()
    system.streaming()
    system.recovers()


def sleeping(system: System) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    return system.count(query) > 0


def hasty() -> None:
    """A variation: nothing is waited for at the end for longer than a moment."""
    from okx_pipeline.stream import lander

    lander.LAST_S = 0.2  # type: ignore[misc]


# Contended


@pytest.mark.fault(13, "duplicated and republished frames", tries=4)
def test_one_duplicate_never_costs_the_other_rows_of_its_batch(system: System) -> None:
    system.streaming()
    system.fault({"kind": "duplicate", "share": 0.5})
    for _ in range(3):
        system.lets_pass(1)
        system.fault({"kind": "drop"})  # what was published is published again to the new connection
    system.lets_pass(1)
    truth = system.truth("BTC-USDT-SWAP", "1m", START, START + 100 * 60_000)
    batch = [Candle("BTC-USDT-SWAP", "1m", *row) for row in truth]
    system.randomly.shuffle(batch)
    with system.database.connect() as connection:
        landed = land(connection, [*batch, batch[0]], source=Source.WEBSOCKET)
        assert landed.disputed == []
        assert one(connection, "SELECT count(*) FROM trading.candlestick_revisions") == 0
    system.recovers()
    wait_until(lambda: system.counter("duplicate rows") > 0, "duplicates are counted")


@pytest.mark.fault(14, "one key twice in a batch, with different values", tries=4)
def test_a_key_twice_with_different_values_ends_as_rest_says_and_is_on_record(system: System) -> None:
    system.streaming()
    system.fault({"kind": "contradict", "share": 0.7})
    future_ms = (system.now_ms() // 60_000 + 3) * 60_000
    lies = [Candle("BTC-USDT-SWAP", "1m", future_ms, "10", "11", "9", "10", volume, "1", "1") for volume in ("1", "2")]
    system.randomly.shuffle(lies)
    with system.database.connect() as connection:
        landed = land(connection, lies, source=Source.WEBSOCKET)
        assert landed.disputed == [lies[0].key]
        assert land(connection, lies[::-1], source=Source.WEBSOCKET).disputed == [lies[0].key]
        assert [row[0] for row in values_at(connection, future_ms)] == [lies[0].volume], "the first frame is kept"
    system.lets_pass(5)
    system.heal()
    system.lets_pass(1)
    system.recovers()
    kept = system.rows("SELECT volume::text FROM trading.candlestick_revisions WHERE timestamp_ms = %s", future_ms)
    assert kept == [(lies[0].volume,)]
    assert system.counter("frame differs from what is stored") > 0


def values_at(connection: Connection, open_ms: int) -> list[tuple[str]]:
    query = "SELECT volume::text FROM trading.candlesticks WHERE timestamp_ms = %s"
    return connection.execute(query, (open_ms,)).fetchall()


@pytest.mark.fault(16, "several rows in one frame", tries=4)
def test_several_rows_in_a_frame_each_keep_their_own_time(system: System) -> None:
    system.streaming()
    system.fault({"kind": "two_rows", "share": 0.8})
    system.lets_pass(4)
    system.heal()
    assert system.recovers().explained == 0
    assert system.count("SELECT count(*) FROM trading.candlesticks WHERE source = 'websocket'") > 0


@pytest.mark.fault(23, "backfill and stream of the same days at once", tries=6)
def test_a_backfill_beside_the_stream_of_the_same_days_changes_nothing(make_system: MakeSystem) -> None:
    system = make_system(history_start="2026-08-19")
    system.streaming()
    begun = [system.begin(*days) for days in (TODAY, ("backfill", "--start", "2026-08-19", "--end", "2026-08-21"))]
    system.fault({"kind": "withhold", "share": 0.2})
    for command in begun:
        command.join(60)
        assert command.exitcode == 0, system.told()
    assert system.recovers().explained == 0
    assert system.count("SELECT count(*) FROM trading.candlestick_revisions") == 0


@pytest.mark.fault(23, "REST and WebSocket on the same key at once, at a barrier", tries=1)
def test_two_writers_at_a_barrier_end_by_the_rule_whoever_comes_first(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    """The frame is first or REST is: what REST said last stays, and what it replaced is kept."""
    rounds = 1_000 if table.is_full() else 60
    truth = system.truth("BTC-USDT-SWAP", "1m", START, START + 30 * 60_000)
    barrier = threading.Barrier(2)
    outcomes: set[str] = set()
    with ThreadPoolExecutor(1) as pool, system.database.connect() as rest, system.database.connect() as stream:
        for number in range(rounds):
            rest.execute("DELETE FROM trading.candlesticks")
            rest.execute("DELETE FROM trading.candlestick_revisions")
            randomly = random.Random(number)
            right = [Candle("BTC-USDT-SWAP", "1m", *row) for row in randomly.sample(truth, 8)]
            wrong = [candle._replace(volume="7") for candle in right]
            requested_at = one(rest, "SELECT clock_timestamp()")
            assert isinstance(requested_at, datetime)
            randomly.shuffle(wrong)

            def frames(batch: list[Candle], pause_s: float) -> None:
                barrier.wait(60)
                time.sleep(pause_s)
                land(stream, batch, source=Source.WEBSOCKET)

            pause_s = randomly.choice((0, 0, randomly.uniform(0, 0.004)))
            writing = pool.submit(frames, wrong, pause_s)
            barrier.wait(60)
            land(rest, right, source=Source.REST, requested_at=requested_at)
            writing.result(60)
            stored: dict[int, str] = dict(
                rest.execute("SELECT timestamp_ms, source FROM trading.candlesticks").fetchall()
            )
            assert sorted(stored) == sorted(candle.timestamp_ms for candle in right)
            outcomes |= set(stored.values())
            # What the frame brought after the request was sent is not known to be older: REST is asked once more.
            land(rest, right, source=Source.REST, requested_at=one(rest, "SELECT clock_timestamp()"))
            replaced = one(rest, "SELECT count(*) FROM trading.candlestick_revisions WHERE volume = 7")
            assert replaced == list(stored.values()).count("websocket")
            assert one(rest, "SELECT count(*) FROM trading.candlesticks WHERE volume = 7") == 0
    assert outcomes == {"rest", "websocket"}, "each came first at times"
    record_property("rounds", rounds)
    system.streaming()
    system.recovers()
