"""The schema's migrations: numbered plain SQL files, applied in order, once, whoever comes first.

The files are in `sql/`; this decides only when they run. Two at once wait for each other on an advisory lock, which
a killed process cannot leave behind, as the migration library's own lock row would be.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from random import random
from time import monotonic, sleep
from typing import Any, Final
from urllib.parse import quote, urlencode

from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from yoyo import get_backend, read_migrations

import okx_pipeline
from okx_pipeline.errors import UsageError
from okx_pipeline.storage.database import (
    DAGSTER_SCHEMA,
    SCHEMA,
    Connection,
    Database,
    StorageError,
    one,
    session_lock,
    translated,
)

OLDEST_SERVER: Final = 150_000
"""The first version of PostgreSQL, as it numbers itself, that takes every statement of ours."""

LOCK_TIMEOUT_MS: Final = 500
"""Who wants a table that a migration waits for waits as long as it does."""

LOCKS_WITHIN_S: Final = 120.0

_PACKAGE: Final = Path(okx_pipeline.__file__).parent


def packaged(name: str) -> Path:
    """A file or folder that stands at the top of the repository and inside an installed package."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name


def known_migrations() -> list[str]:
    """Names of the migrations this program has, in order."""
    return sorted(path.stem for path in packaged("sql").glob("*.sql"))


def pending_migrations(connection: Connection) -> list[str]:
    """Names of the migrations the database lacks, in order.

    Raises
    ------
    UsageError
        If the database has one that this program does not know: it was made by a newer version.
    """
    applied: set[str] = set()
    if one(connection, "SELECT to_regclass(%s) IS NOT NULL", (f"{SCHEMA}._yoyo_migration",)):
        applied = {row[0] for row in connection.execute("SELECT migration_id FROM trading._yoyo_migration")}
    known = known_migrations()
    unknown = applied.difference(known)
    if unknown:
        raise UsageError(
            f"the database has migration {max(unknown)!r}, which this version does not know; use the newer version"
        )
    return [name for name in known if name not in applied]


def migrate(database: Database, *, on_step: Callable[[str], None] | None = None) -> list[str]:
    """Bring the schema up to date, safely by several at once; returns the migrations applied now, in order.

    Parameters
    ----------
    on_step
        Called before migrations are applied, with how many there are.

    Raises
    ------
    UsageError
        If the server is too old, the user may not, or the schema is somebody else's.
    StorageError
        If the database cannot be reached or is full, or somebody uses a table for minutes on end; migrations that were
        applied stay, the one at hand left nothing.
    """
    with translated(database.place), database.connect() as connection:
        if not pending_migrations(connection):
            return []
        if connection.info.server_version < OLDEST_SERVER:
            raise UsageError(
                f"PostgreSQL {OLDEST_SERVER // 10_000} or newer is needed; {database.place} is "
                f"{connection.info.server_version // 10_000}"
            )
        with session_lock(connection, "migrate"):
            pending = pending_migrations(connection)
            if pending:
                if on_step is not None:
                    on_step(f"bringing the schema up to date ({len(pending)} migrations)")
                _apply(connection, database)
    return pending


def has_dagster_tables(connection: Connection) -> bool:
    """Whether Dagster has made its tables."""
    return bool(one(connection, "SELECT to_regclass(%s) IS NOT NULL", (f"{DAGSTER_SCHEMA}.alembic_version",)))


def _apply(connection: Connection, database: Database) -> None:
    for schema in (SCHEMA, DAGSTER_SCHEMA):
        # Without the look, a user without the right to create schemas could not use ones made for them.
        if not one(connection, "SELECT to_regnamespace(%s) IS NOT NULL", (schema,)):
            connection.execute(f"CREATE SCHEMA {schema}")  # a constant of ours
    with warnings.catch_warnings():
        # The library speaks of nested transactions where it sees its own.
        warnings.simplefilter("ignore", UserWarning)
        backend = get_backend(_library_url(database.url))
        try:
            # We hold the lock: a row in the library's own was left by a process that was killed.
            backend.break_lock()
            for migration in backend.to_apply(read_migrations(str(packaged("sql")))):
                _apply_one(backend, migration)
        except (errors.DuplicateTable, errors.DuplicateFunction, errors.DuplicateObject) as problem:
            raise UsageError(
                f"schema {SCHEMA!r} of {database.place} is in use for something else: {problem.diag.message_primary}; "
                "give a database of its own"
            ) from problem
        finally:
            backend.connection.close()


def _apply_one(backend: Any, migration: Any) -> None:
    """Apply a migration whole; while others use the tables it tries again, so that nobody waits behind it for long."""
    until = monotonic() + LOCKS_WITHIN_S
    while True:
        try:
            # Left to itself the library commits the steps before it notes that they are done: a process killed in
            # between leaves a schema to which no migration can be applied any more.
            with backend.transaction():
                backend.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                migration.process_steps(backend, "apply")
                backend.mark_one(migration, log=False)
        except errors.LockNotAvailable as problem:
            if monotonic() > until:
                raise StorageError(
                    f"migration {migration.id!r} waits for tables that somebody uses for {LOCKS_WITHIN_S:.0f} s "
                    "on end; end long queries and run the same again"
                ) from problem
            sleep(0.1 + 0.4 * random())  # noqa: S311 - so that it falls out of step with whoever is in the way
        else:
            return


def _library_url(url: str) -> str:
    """The migration library's spelling of a libpq URL: the driver in the scheme, everything else in the query."""
    return f"postgresql+psycopg:///?{urlencode({**conninfo_to_dict(url), 'schema': SCHEMA}, quote_via=quote)}"
