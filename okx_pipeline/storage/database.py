"""How PostgreSQL is reached: connections, their errors in one line, and the check for a pooler.

Every connection of our own is a psycopg 3 one from here. What is asked of the database stands in the other files of
this room; how the embedded server runs stands in `embedded`.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
from psycopg import errors, sql
from psycopg.rows import TupleRow
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from okx_pipeline.errors import PipelineError, UsageError

SCHEMA: Final = "trading"
DAGSTER_SCHEMA: Final = "dagster"
CONNECT_TIMEOUT_S: Final = 10

Connection = psycopg.Connection[TupleRow]
AsyncConnection = psycopg.AsyncConnection[TupleRow]


class StorageError(PipelineError):
    """PostgreSQL or a Parquet store refused, in one line."""


class Database:
    """A PostgreSQL database by its URL, which may hold a password and is therefore never printed.

    Parameters
    ----------
    url
        A ``postgresql://`` URL of a direct connection.

    Raises
    ------
    UsageError
        If the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            make_url(url)
        except (ArgumentError, ValueError):
            # The library's message would repeat the URL.
            raise UsageError(
                "OKX_DATABASE_URL cannot be read as a URL; is every special character of the password percent-encoded?"
            ) from None
        self.url = url

    def __repr__(self) -> str:
        return f"Database({self.place})"

    @property
    def place(self) -> str:
        """Where it is, for messages: user, host and database, never a password."""
        parsed = make_url(self.url)
        host = parsed.host or parsed.query.get("host", "local socket")
        return f"{parsed.username or ''}@{host}{f':{parsed.port}' if parsed.port else ''}/{parsed.database or ''}"

    def connect(self, *, autocommit: bool = True, durable: bool = True) -> Connection:
        """A new connection; statements stand alone unless a `connection.transaction()` holds them together.

        Parameters
        ----------
        durable
            False for bookkeeping that may be lost in a crash of the server; candles are always landed durably.

        Raises
        ------
        UsageError
            If the URL, user, password or database is wrong.
        StorageError
            If the server cannot be reached.
        """
        with translated(self.place):
            return psycopg.connect(
                self.url,
                autocommit=autocommit,
                connect_timeout=CONNECT_TIMEOUT_S,
                application_name="okx-pipeline",
                options=_options(durable),
            )

    async def connect_async(self, *, durable: bool = True) -> AsyncConnection:
        """As `connect`, for use in an event loop; autocommit."""
        with translated(self.place):
            return await psycopg.AsyncConnection.connect(
                self.url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT_S,
                application_name="okx-pipeline",
                options=_options(durable),
            )

    def refuse_pooler(self) -> None:
        """Raise `UsageError` if a pooler hands each transaction another session: session locks would not hold."""
        with self.connect() as first:
            if first.info.backend_pid == _session(first):
                return
            before = _session(first)
            with self.connect() as second, second.transaction():
                _session(second)
                if _session(first) == before and _session(second) != before:
                    return
        raise UsageError(
            f"OKX_DATABASE_URL leads to a pooler in transaction mode ({self.place}), where locks do not hold; "
            "give the URL of a direct connection"
        )

    def dagster_url(self) -> str:
        """The URL for Dagster's own storage: the driver spelled out, its tables in their own schema."""
        url = make_url(self.url).set(drivername="postgresql+psycopg2")
        return url.update_query_dict({"options": f"-csearch_path={DAGSTER_SCHEMA}"}).render_as_string(
            hide_password=False
        )


def _options(durable: bool) -> str:
    return "-c timezone=UTC" if durable else "-c timezone=UTC -c synchronous_commit=off"


def _session(connection: Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Turn what a user can cause at the database into one line; anything else passes through."""
    try:
        yield
    except (errors.InvalidPassword, errors.InvalidAuthorizationSpecification) as problem:
        raise UsageError(
            f"PostgreSQL at {place} refused the user or password: {_line(problem)}; check OKX_DATABASE_URL"
        ) from problem
    except errors.DiskFull as problem:
        raise StorageError(
            f"PostgreSQL at {place} has no disk space left: {_line(problem)}; what has landed is safe: "
            "free some space and run the same again"
        ) from problem
    except errors.InsufficientPrivilege as problem:
        raise UsageError(f"PostgreSQL at {place} does not allow it: {_line(problem)}") from problem
    except errors.InvalidCatalogName as problem:
        raise UsageError(
            f"PostgreSQL at {place} has no such database: {_line(problem)}; check OKX_DATABASE_URL"
        ) from problem
    except psycopg.OperationalError as problem:
        line = _line(problem)
        if (
            "password authentication failed" in line
            or "no password supplied" in line
            or "authentication failed" in line
        ):
            raise UsageError(
                f"PostgreSQL at {place} refused the user or password: {line}; check OKX_DATABASE_URL"
            ) from problem
        if "does not exist" in line and ("database" in line or "role" in line):
            raise UsageError(f"PostgreSQL at {place}: {line}; check OKX_DATABASE_URL") from problem
        raise StorageError(f"PostgreSQL at {place} is out of reach: {line}; is it running?") from problem


def _line(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "FATAL" in line or "failed" in line), lines[-1] if lines else "")


def lock_key(*parts: str) -> int:
    """The advisory lock that stands for `parts`: 64 bits, signed, the same in every process."""
    digest = hashlib.blake2b("\x1f".join(("okx-pipeline", *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@contextmanager
def session_lock(connection: Connection, *parts: str) -> Iterator[None]:
    """Hold the session lock of `parts` while the block runs, waiting for it first. Autocommit connections only."""
    key = lock_key(*parts)
    connection.execute("SELECT pg_advisory_lock(%s)", (key,))
    try:
        yield
    finally:
        # A broken connection has let the lock go already.
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (key,))


def host_of(url: str) -> str:
    """Host and port of a URL, for messages."""
    parts = urlsplit(url)
    return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def identifiers(*names: str) -> sql.Composed:
    """`names` as a comma-separated list of SQL identifiers."""
    return sql.SQL(", ").join(map(sql.Identifier, names))


def one(connection: Connection, query: Any, parameters: Any = None) -> Any:
    """The single value of a query that returns one row of one column."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]
