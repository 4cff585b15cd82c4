"""How PostgreSQL is reached: URLs, what can be wrong with them in one line, and poolers, all against real servers."""

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from okx_pipeline.errors import ExitStatus, PipelineError, UsageError
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.database import Connection, Database, StorageError, one, session_lock, snapshot, translated
from okx_pipeline.storage.migrations import known_migrations, pending_migrations
from okx_pipeline.storage.opening import opened_database
from okx_pipeline_tests.storage.password_server import PasswordServer, await_server, free_port, password_server

SECRET = "geheim-wort"  # noqa: S105 - to be looked for in messages


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PasswordServer]:
    """A server that asks for a password."""
    with password_server(tmp_path_factory.mktemp("guarded")) as server:
        yield server


def refusal(database: Database) -> PipelineError:
    """What a user is told who connects to `database`."""
    with pytest.raises(PipelineError) as caught:
        database.connect().close()
    told: BaseException | None = caught.value
    while told is not None:
        assert SECRET not in str(told)
        told = told.__cause__ or told.__context__
    assert "\n" not in str(caught.value)

    async def connect() -> None:
        await (await database.connect_async()).close()

    with pytest.raises(type(caught.value)):
        asyncio.run(connect())
    return caught.value


# What can be wrong


def test_a_wrong_password_is_wrong_usage(guarded: PasswordServer) -> None:
    problem = refusal(Database(guarded.url(password=SECRET)))
    assert problem.exit_status == ExitStatus.USAGE
    assert 'password authentication failed for user "owner"; check OKX_DATABASE_URL' in str(problem)
    assert f"owner@127.0.0.1:{guarded.port}/postgres" in str(problem)


def test_a_missing_password_is_wrong_usage(guarded: PasswordServer) -> None:
    problem = refusal(Database(f"postgresql://owner@127.0.0.1:{guarded.port}/postgres"))
    assert problem.exit_status == ExitStatus.USAGE
    assert "no password supplied" in str(problem)


def test_an_unknown_database_is_wrong_usage(guarded: PasswordServer) -> None:
    problem = refusal(Database(guarded.url(name="nowhere")))
    assert problem.exit_status == ExitStatus.USAGE
    assert 'database "nowhere" does not exist; check OKX_DATABASE_URL' in str(problem)


def test_an_unknown_user_of_the_embedded_server_is_wrong_usage(server: Database) -> None:
    problem = refusal(Database(server.url.replace("okx@", "somebody@")))
    assert problem.exit_status == ExitStatus.USAGE
    assert 'Peer authentication failed for user "somebody"' in str(problem)


def test_a_server_that_does_not_answer_is_a_failure() -> None:
    problem = refusal(Database(f"postgresql://okx:{SECRET}@127.0.0.1:{free_port()}/okx"))
    assert problem.exit_status == ExitStatus.FAILED
    assert "Connection refused" in str(problem)
    assert "is it running?" in str(problem)


def test_a_socket_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    problem = refusal(Database(f"postgresql://okx:{SECRET}@/okx?host={quote(str(tmp_path), safe='')}"))
    assert problem.exit_status == ExitStatus.FAILED
    assert f"database okx on the socket in {tmp_path}" in str(problem)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://okx:{SECRET}%zz@localhost/okx",
        f"postgresql://okx:{SECRET}@{SECRET}@localhost/okx",
        f"postgresql://okx:{SECRET}/{SECRET}@localhost/okx",
        f"postgresql://okx:{SECRET}:{SECRET}@[::1/okx",
        f"postgresql://okx:{SECRET}@localhost:{SECRET}/okx",
        f"postgresql://okx:{SECRET}@localhost/okx?no_such_thing=1",
        f"{SECRET} is not a URL",
        "",
    ],
)
def test_an_unreadable_url_is_wrong_usage_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="OKX_DATABASE_URL cannot be read as a URL") as caught:
        Database(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_what_a_user_may_not_do_is_wrong_usage(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("DO $$ BEGIN CREATE ROLE stranger NOLOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
        connection.execute("SET ROLE stranger")
        denied = "does not allow it: permission denied for schema trading"
        with pytest.raises(UsageError, match=denied), translated(database.place):
            connection.execute("SELECT FROM trading.candlesticks")


def test_a_connection_that_is_lost_on_the_way_is_a_failure(database: Database) -> None:
    with database.connect() as doomed, database.connect() as killer:
        killer.execute("SELECT pg_terminate_backend(%s)", (doomed.info.backend_pid,))
        with pytest.raises(StorageError, match=r"cannot reach PostgreSQL .*is it running\?"), translated("here"):
            doomed.execute("SELECT 1")


def test_a_statement_that_the_server_gives_up_is_a_failure_and_not_called_out_of_reach(connection: Connection) -> None:
    connection.execute("SET statement_timeout = '1ms'")
    given_up = r"PostgreSQL \(here\) failed: canceling statement due to statement timeout"
    with pytest.raises(StorageError, match=given_up), translated("here"):
        connection.execute("SELECT count(*) FROM generate_series(1, 100000000)")


# URLs


@given(password=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), spaces=st.booleans())
def test_every_percent_encoded_password_and_path_reaches_libpq_and_dagster(password: str, spaces: bool) -> None:
    folder = "/a folder/with % and +" if spaces else "/folder"
    url = f"postgresql://user:{quote(password, safe='')}@/okx?host={quote(folder, safe='')}&port=1"
    database = Database(url)
    own = make_url(database.dagster_url())
    assert (own.password, own.query["host"]) == (password, folder)
    assert conninfo_to_dict(url)["password"] == password
    assert database.place == f"database okx on the socket in {folder}"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://me:x@db.example.org:6432/okx", "me@db.example.org:6432/okx"),
        ("postgres://me:x@db.example.org/okx?sslmode=require", "me@db.example.org/okx"),
        ("postgresql://db.example.org/okx?user=me&password=x", "me@db.example.org/okx"),
        (
            "postgresql://me@/okx?host=%2Fvar%2Frun%2Fpostgres%20ql",
            "database okx on the socket in /var/run/postgres ql",
        ),
        ("postgresql://me@[::1]:1/okx", "me@::1:1/okx"),
        ("postgresql:///okx", "database okx on the local socket"),
    ],
)
def test_a_place_reads_well_and_never_shows_a_password(url: str, place: str) -> None:
    database = Database(url)
    assert database.place == place
    assert repr(database) == f"Database({place})"


@pytest.mark.parametrize("over_socket", [False, True])
def test_a_password_of_special_characters_reaches_every_driver(guarded: PasswordServer, over_socket: bool) -> None:
    password = "p@ss:w/rd?#%20 &=+ä'\""  # noqa: S105 - of a role made here
    owner = psycopg.connect(guarded.url(), autocommit=True)
    name = f"special_{over_socket}".lower()
    with owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), password))
        owner.execute(f"CREATE DATABASE {name} OWNER {name}")
    owner.close()
    url = (guarded.socket_url if over_socket else guarded.url)(name, password, name)
    with opened_database(
        read_settings(database_url=f"{url}{'&' if over_socket else '?'}options=-cwork_mem%3D5MB")
    ) as database:
        with database.connect() as connection:
            assert pending_migrations(connection) == []
            assert one(connection, "SHOW work_mem") == "5MB"
            assert one(connection, "SELECT current_user") == name
        engine = create_engine(database.dagster_url())
        with engine.connect() as dagsters:
            shown = dagsters.execute(text("SELECT current_setting('work_mem'), current_schema()")).one()
        engine.dispose()
    assert tuple(shown) == ("5MB", "dagster")


# Connections


def test_a_connection_speaks_utc_and_commits_durably_unless_told_otherwise(database: Database) -> None:
    ask = (
        "SELECT current_setting('timezone'), current_setting('synchronous_commit'), current_setting('application_name')"
    )
    with database.connect() as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Hong_Kong'")
    with database.connect() as connection:
        assert connection.execute(ask).fetchone() == ("UTC", "on", "okx-pipeline")
    with database.connect(durable=False, autocommit=False) as connection:
        assert connection.execute(ask).fetchone() == ("UTC", "off", "okx-pipeline")
        connection.rollback()
        assert connection.execute(ask).fetchone() == ("UTC", "off", "okx-pipeline")


def test_a_stricter_durability_of_the_server_is_left_alone(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET synchronous_commit = 'remote_apply'")
    with database.connect() as connection:
        assert one(connection, "SHOW synchronous_commit") == "remote_apply"


def test_a_snapshot_sees_one_state_and_leaves_the_connection_as_it_was(database: Database) -> None:
    with database.connect() as reader, database.connect() as writer:
        with snapshot(reader):
            before = one(reader, "SELECT count(*) FROM trading.store_facts")
            writer.execute("INSERT INTO trading.store_facts VALUES ('a', 'b')")
            assert one(reader, "SELECT count(*) FROM trading.store_facts") == before
        assert one(reader, "SELECT count(*) FROM trading.store_facts") == before + 1
        with reader.transaction():
            assert one(reader, "SHOW transaction_isolation") == "read committed"


def test_a_session_lock_lets_one_in_at_a_time_and_ends_with_its_block(database: Database) -> None:
    inside = threading.Semaphore(0)
    order: list[str] = []

    def second() -> None:
        with database.connect() as connection, session_lock(connection, "door", "1"):
            order.append("second")
        inside.release()

    with database.connect() as connection, database.connect() as watcher:
        with session_lock(connection, "door", "1"), session_lock(connection, "another", "1"):
            thread = threading.Thread(target=second)
            thread.start()
            waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
            while not one(watcher, waits):
                pass
            order.append("first")
        assert inside.acquire(timeout=30)
        thread.join()
        assert order == ["first", "second"]
        assert one(watcher, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def test_a_lost_connection_is_told_as_such_from_inside_a_session_lock(database: Database) -> None:
    with database.connect() as doomed, database.connect() as killer:
        with pytest.raises(psycopg.OperationalError), session_lock(doomed, "door"):
            doomed.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert one(killer, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


# Poolers


@pytest.fixture
def pooler(guarded: PasswordServer, tmp_path: Path) -> Iterator[Callable[..., Database]]:
    """`pooler(mode, **settings)`: a PgBouncer before the server."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    running: list[subprocess.Popen[bytes]] = []

    def start(mode: str, **settings: object) -> Database:
        port = free_port()
        own = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any"}
        lines = [f"{name} = {value}" for name, value in {**own, "pool_mode": mode, **settings}.items()]
        user = "user=owner password='owner''s own'"
        target = f"* = host=127.0.0.1 port={guarded.port} {user}"
        configuration = tmp_path / "pgbouncer.ini"
        configuration.write_text("\n".join(["[databases]", target, "[pgbouncer]", *lines, ""]))
        command = [*guarded.prefix, program, "-q", str(configuration)]
        running.append(subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        database = Database(f"postgresql://owner@127.0.0.1:{port}/postgres")
        await_server(database.url, running[-1])
        return database

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("servers", "takes_turns"), [(0, 0), (5, 0), (2, 1), (3, 1), (9, 1)])
def test_a_pooler_in_transaction_mode_is_refused(
    pooler: Callable[..., Database], servers: int, takes_turns: int
) -> None:
    database = pooler("transaction", default_pool_size=10, server_round_robin=takes_turns)
    with ExitStack() as others:
        # Idle servers that it may hand out instead of the one just used.
        for _ in range(servers):
            others.enter_context(others.enter_context(database.connect()).transaction())
    with pytest.raises(UsageError, match=r"pooler in transaction mode .*give the URL of a direct connection"):
        database.refuse_pooler()


def test_a_pooler_in_statement_mode_is_refused(pooler: Callable[..., Database]) -> None:
    with pytest.raises(UsageError, match="give the URL of a direct connection"):
        pooler("statement").refuse_pooler()


def test_a_pooler_in_session_mode_is_accepted_and_works(pooler: Callable[..., Database]) -> None:
    database = pooler("session", default_pool_size=5, min_pool_size=3)
    database.refuse_pooler()
    with opened_database(read_settings(database_url=database.url)) as opened, opened.connect() as connection:
        assert pending_migrations(connection) == []
        assert one(connection, "SHOW timezone") == "UTC"


def test_a_direct_connection_is_accepted(server: Database) -> None:
    server.refuse_pooler()


# Opening


def test_the_store_of_the_settings_is_opened_with_its_schema(tmp_path: Path) -> None:
    with (
        opened_database(Settings(home=tmp_path / "home"), migrated=False) as database,
        database.connect() as connection,
    ):
        assert pending_migrations(connection) == known_migrations()
        with opened_database(Settings(home=tmp_path / "home")):
            assert pending_migrations(connection) == []
    assert refusal(database).exit_status == ExitStatus.FAILED
