"""What tests of every room stand on: one real PostgreSQL for the run, a fresh database a test, the recordings."""

import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.migrations import migrate

pytest_plugins = ["okx_pipeline_tests.faults.table"]

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "okx"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real OKX recordings, read where it is."""
    if not RECORDINGS.is_dir():
        message = f"the recordings are not at {RECORDINGS}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return RECORDINGS


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see no setting but their own: no OKX_* variable, no .env."""
    for name in list(os.environ):
        if name.startswith(("OKX_", "DAGSTER_")) or name in {"HTTPS_PROXY", "SSL_CERT_FILE"}:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_instance_of_another_test() -> None:
    """Of instances that did not end in the order in which they began, Dagster goes on asking one that is gone."""
    state = sys.modules.get("dagster._core.storage.defs_state.base")
    if state is not None:
        state._current_storage.set(None)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The run's PostgreSQL, its default database migrated so that it can be copied."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("home")) as embedded:
        database = Database(embedded.url)
        with database.connect() as connection:
            connection.execute("CREATE DATABASE template_migrated")
        migrate(Database(named(embedded.url, "template_migrated")))
        yield database


def named(url: str, name: str) -> str:
    """`url` with another database name."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def new_database(server: Database) -> Callable[[bool], Database]:
    """Makes databases: `new_database(True)` a migrated one, `new_database(False)` an empty one."""
    numbers = count(1)

    def make(migrated: bool) -> Database:
        name = f"test_{next(numbers)}"
        with server.connect() as connection:
            template = " TEMPLATE template_migrated" if migrated else ""
            connection.execute(f"CREATE DATABASE {name}{template}")
        return Database(named(server.url, name))

    return make


@pytest.fixture
def database(new_database: Callable[[bool], Database]) -> Database:
    """A fresh migrated database."""
    return new_database(True)


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """An autocommit connection to `database`."""
    with database.connect() as opened:
        yield opened


def rows(
    connection: psycopg.Connection[tuple[object, ...]], query: str, *parameters: object
) -> list[tuple[object, ...]]:
    """All rows of a query."""
    return connection.execute(query, parameters or None).fetchall()
