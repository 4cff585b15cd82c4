"""Parts of `up`, each with its real neighbours and without the rest: the lock of a database, the time of a replay."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path

import httpx
import pytest

from okx_pipeline import up
from okx_pipeline.candles import Candle, Source
from okx_pipeline.errors import AlreadyRunningError, UsageError
from okx_pipeline.logs import LogFile
from okx_pipeline.monitor.terminal import Board
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.process_lock import ProcessLock
from okx_pipeline.storage.stream_status import Heartbeat, beat, last_exchange_ms
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms, parse_timeframe, utc
from okx_pipeline_tests.e2e.system import free_port, wait_for

BTC = "BTC-USDT-SWAP"
NOON_MS = day_ms(date(2026, 8, 22)) + 12 * HOUR_MS
REPLAY = ["-P", "-m", "okx_pipeline", "replay", "synthetic", "--symbols", "1"]


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[up.Child]:
    """A sidecar that is not started."""
    with closing(LogFile(tmp_path / "sidecar.log")) as log:
        yield up.Child("sidecar", [], {}, 0, log, str)


# One `up` to a database


def test_a_second_up_on_a_database_learns_who_has_it(database: Database) -> None:
    with ProcessLock(database, "up") as first:
        assert first.take()
        with (
            pytest.raises(
                AlreadyRunningError, match=rf"^up is already running on .*/socket.* \(process {os.getpid()} on "
            ),
            up._only_one_on(database, pytest.fail),
        ):
            pass
    said: list[str] = []
    with up._only_one_on(database, said.append) as lock:
        assert lock.take()
    assert said == []


def test_an_up_waits_while_a_killed_one_leaves_the_database(database: Database) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    said: list[str] = []
    with ProcessLock(database, "up") as left:
        assert left.take()
        assert left._connection is not None
        name = f"okx-pipeline up {dead.pid}@{socket.gethostname()}"
        left._connection.execute("SELECT set_config('application_name', %s, false)", (name,))

        def leave(line: str) -> None:
            said.append(line)
            left.__exit__()

        with up._only_one_on(database, leave):
            assert said == ["waiting for the processes of a killed up to end"]


def test_an_up_that_lost_its_lock_to_another_stops_and_otherwise_goes_on(database: Database, sidecar: up.Child) -> None:
    def look() -> None:
        up._look_at_database(database, lock, sidecar, pytest.fail, None)

    with up._only_one_on(database, pytest.fail) as lock, ProcessLock(database, "up") as another:
        lose_lock(database)
        look()
        assert not another.take()
        lose_lock(database)
        assert another.take()
        with pytest.raises(
            AlreadyRunningError, match=r"^stopped, as another up is running now on .*; stop it, or"
        ) as told:
            up._keep_running([], threading.Event(), pytest.fail, Board(), look)
        assert "\n" not in str(told.value)


def test_an_up_whose_database_is_away_goes_on(sidecar: up.Child) -> None:
    away = Database("postgresql://okx@127.0.0.1:9/okx")
    with ProcessLock(away, "up") as lock:
        up._look_at_database(away, lock, sidecar, pytest.fail, None)


def lose_lock(database: Database) -> None:
    """End the session that holds a lock of the database, as a restart of the server does."""
    with database.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE locktype = 'advisory' AND datname = current_database()"
        )


# The time of a replay


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[up.Child]:
    """A replay exchange whose time stands still."""
    folder = tmp_path_factory.mktemp("replay")
    command = [sys.executable, *REPLAY, "--speed", "0", "--port", str(free_port()), "--now", utc(NOON_MS).isoformat()]
    with closing(LogFile(folder / "replay.log")) as log:
        child = up.Child("replay", command, dict(os.environ), 0, log, str)
        child.start()
        wait_for(lambda: answers(child), "replay exchange")
        yield child
        assert child.process is not None
        child.process.kill()
        child.process.wait()
        assert child.copying is not None
        child.copying.join()


@pytest.fixture
def replay(started: up.Child) -> up.Child:
    """That replay exchange, at noon."""
    noon = {"now_ms": NOON_MS}
    httpx.post(f"{url_of(started)}/replay/clock", json=noon, trust_env=False).raise_for_status()
    return started


def url_of(child: up.Child) -> str:
    return f"http://127.0.0.1:{child.command[child.command.index('--port') + 1]}"


def answers(child: up.Child) -> bool:
    return up._answers(f"{url_of(child)}/replay/status")


def time_of(child: up.Child) -> int:
    return int(httpx.get(f"{url_of(child)}/replay/status", trust_env=False).json()["now_ms"])


def go_on(child: up.Child, database: Database, asked_ms: int | None = None) -> list[str]:
    """Let the replay go on from what the database knows; returns what is said."""
    said: list[str] = []
    settings = read_settings(rest_url=url_of(child), ws_url=url_of(child).replace("http", "ws"))
    up._continue_replay(settings, database, child, asked_ms, said.append)
    return said


def test_a_replay_goes_on_where_its_home_stopped_and_so_it_does_when_it_dies(
    replay: up.Child, database: Database, connection: Connection
) -> None:
    assert last_exchange_ms(connection) is None
    assert go_on(replay, database, NOON_MS) == []
    assert time_of(replay) == NOON_MS, "a new home begins where it is told to"
    beat(connection, Heartbeat("here:1", "stopped", NOON_MS + 90_500))
    beat(connection, Heartbeat("here:2", "starting"))
    assert go_on(replay, database) == ["the replay goes on from 2026-08-22T12:01:30.500Z, where it stopped"]
    assert time_of(replay) == NOON_MS + 90_500
    assert go_on(replay, database) == []

    beat(connection, Heartbeat("here:2", "streaming", NOON_MS + HOUR_MS))
    assert replay.process is not None
    died = replay.process
    died.kill()
    died.wait()
    stop, said = threading.Event(), []

    def look() -> None:
        if replay.process is not died and answers(replay):
            stop.set()

    up._keep_running([replay], stop, said.append, Board(), look)
    assert len(said) == 1
    assert said[0].startswith(f"the replay ended with status {-signal.SIGKILL}; starting it again in 1 s")
    assert NOON_MS + HOUR_MS <= time_of(replay) <= NOON_MS + HOUR_MS + 1000


def test_a_candle_that_landed_after_the_last_heartbeat_has_closed_when_the_replay_goes_on(
    replay: up.Child, database: Database, connection: Connection, tmp_path: Path
) -> None:
    subscribe(connection, [BTC], [parse_timeframe("1h")], day_ms(date(2026, 8, 22)))
    beat(connection, Heartbeat("here:1", "streaming", NOON_MS + 1000))
    candle = Candle(BTC, "1h", NOON_MS, "10", "11", "9", "10", "1", "1", "1")
    with CandleStore.opened(database, ParquetStore(str(tmp_path / "parquet"))) as store:
        store.land([candle], source=Source.WEBSOCKET)
    go_on(replay, database)
    assert time_of(replay) == NOON_MS + HOUR_MS


def test_a_moment_before_what_the_home_has_seen_is_refused(
    replay: up.Child, database: Database, connection: Connection
) -> None:
    beat(connection, Heartbeat("here:1", "stopped", NOON_MS + DAY_MS))
    with pytest.raises(UsageError) as told:
        go_on(replay, database, NOON_MS)
    assert str(told.value) == (
        "--now 2026-08-22T12:00Z lies before 2026-08-23T12:00Z, where the replay of this home stopped; "
        "leave --now out to go on from there, or set OKX_HOME to a new home"
    )
