"""The lock that a process holds for as long as it runs, on a real server."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from okx_pipeline.storage.database import Database, StorageError, one
from okx_pipeline.storage.process_lock import Holder, ProcessLock
from okx_pipeline_tests.e2e.system import wait_for
from okx_pipeline_tests.storage.password_server import PasswordServer, password_server

HOLD = """
import sys
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.process_lock import ProcessLock
with ProcessLock(Database(sys.argv[1]), "door") as lock:
    print(lock.take(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(database: Database) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, database.url]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def session_of(database: Database) -> int | None:
    """The server's process for the session that holds the only advisory lock of the database."""
    with database.connect() as connection:
        found = connection.execute(
            "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE locktype = 'advisory' AND datname = current_database()"
        ).fetchone()
    return None if found is None else int(found[0])


def lose(database: Database) -> None:
    """End the session that holds the lock, as a restart of the server does."""
    with database.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 30000)", (session_of(database),))


def test_one_process_holds_it_and_the_others_learn_which(database: Database, other: "subprocess.Popen[str]") -> None:
    with ProcessLock(database, "door") as lock, ProcessLock(database, "another door") as unrelated:
        assert not lock.take()
        assert lock.holder() == Holder(other.pid, socket.gethostname())
        assert str(lock.holder()) == f"process {other.pid} on {socket.gethostname()}"
        assert unrelated.holder() is None
        assert unrelated.take()
        assert unrelated.take()


def test_a_killed_process_frees_it_and_counts_as_ended(database: Database, other: "subprocess.Popen[str]") -> None:
    with ProcessLock(database, "door") as lock:
        holder = lock.holder()
        assert holder is not None
        assert not holder.has_ended
        other.kill()
        other.wait()
        assert holder.has_ended
        wait_for(lock.take, "free lock")
    assert not Holder(other.pid, "elsewhere").has_ended, "nobody here knows the processes of another host"
    assert not Holder(None, None).has_ended


def test_a_lost_lock_is_taken_again_unless_another_process_was_quicker(database: Database) -> None:
    with ProcessLock(database, "door") as lock, ProcessLock(database, "door") as rival:
        assert lock.take()
        lose(database)
        assert lock.take()
        assert lock.holder() == Holder(os.getpid(), socket.gethostname())
        assert not rival.take()
        lose(database)
        assert rival.take()
        assert not lock.take()
    assert lock.holder() is None


def test_both_sides_soon_notice_that_the_other_is_gone_and_an_absence_is_one_line(tmp_path: Path) -> None:
    with password_server(tmp_path) as server:
        database = Database(server.url())
        with ProcessLock(database, "door") as lock:
            assert lock.take()
            connection = lock._connection
            assert connection is not None
            assert one(connection, "SHOW tcp_keepalives_idle") == "10"
            with socket.socket(fileno=os.dup(connection.fileno())) as ours:
                assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
            stop(server)
            with pytest.raises(StorageError, match="cannot reach PostgreSQL"):
                lock.take()
            with pytest.raises(StorageError, match="cannot reach PostgreSQL"):
                lock.holder()


def stop(server: PasswordServer) -> None:
    """Let the server end at once, whoever is connected."""
    with Database(server.url()).connect() as connection:
        [(data,)] = connection.execute("SHOW data_directory").fetchall()
    postmaster = int((Path(data) / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, 3)
    wait_for(lambda: not (Path(data) / "postmaster.pid").exists(), "end of the server")
