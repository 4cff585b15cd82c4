"""The schema's migrations: numbered plain SQL files, applied in order, once, whoever comes first.

The files are in `sql/`; this decides only when they run. Two at once wait for each other on an advisory lock, which
a killed process cannot leave behind, as the migration library's own lock row would be.
"""

import warnings
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg
from sqlalchemy.engine import make_url
from yoyo import get_backend, read_migrations

import okx_pipeline
from okx_pipeline.errors import UsageError
from okx_pipeline.storage.database import DAGSTER_SCHEMA, SCHEMA, Connection, Database, one, session_lock, translated

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


def migrate(database: Database) -> list[str]:
    """Bring the schema up to date, safely by several at once; returns the migrations applied now, in order."""
    with database.connect() as connection:
        if not pending_migrations(connection):
            return []
        with session_lock(connection, "migrate"):
            pending = pending_migrations(connection)
            if pending:
                with translated(database.place):
                    _apply(connection, database)
    return pending


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
            backend.apply_migrations(backend.to_apply(read_migrations(str(packaged("sql")))))
        except psycopg.Error:
            backend.rollback()
            raise
        finally:
            backend.connection.close()


def _library_url(url: str) -> str:
    """The migration library's spelling of a libpq URL: driver in the scheme, everything else in the query."""
    parsed = make_url(url)
    query = {key: value for key, value in parsed.query.items() if isinstance(value, str)}
    query["schema"] = SCHEMA
    if not parsed.host and "host" in query:
        host = ""
    else:
        host = f"{parsed.host or ''}{f':{parsed.port}' if parsed.port else ''}"
    user = quote(parsed.username or "", safe="")
    password = f":{quote(str(parsed.password), safe='')}" if parsed.password is not None else ""
    arguments = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
    return f"postgresql+psycopg://{user}{password}@{host}/{quote(parsed.database or '', safe='')}?{arguments}"
