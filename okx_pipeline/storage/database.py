"""How PostgreSQL is reached: connections, their errors in one line, and the check for a pooler.

Every connection of our own is a psycopg 3 one from here. What is asked of the database stands in the other files of
this room; how the embedded server runs stands in `embedded`.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from okx_pipeline.errors import PipelineError, UsageError

SCHEMA: Final = "trading"
DAGSTER_SCHEMA: Final = "dagster"
CONNECT_TIMEOUT_S: Final = 10

Connection = psycopg.Connection[TupleRow]
AsyncConnection = psycopg.AsyncConnection[TupleRow]

# By a statement, not as options of the connection: those would replace the URL's own, and PgBouncer refuses them.
_DURABLE: Final = (
    "SET timezone = 'UTC'; "
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
_NOT_DURABLE: Final = "SET timezone = 'UTC'; SET synchronous_commit = off"


# Left to itself, a server keeps the session of a machine that lost power, and its locks, for two hours.
_WATCHED: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_WATCHED_BY_THE_SERVER: Final = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 3; SET tcp_keepalives_count = 3"
)

DatabaseError = psycopg.Error
"""Whatever goes wrong at the database, for those who keep going all the same."""

RefusedRowError = (psycopg.IntegrityError, psycopg.DataError)
"""The tables refuse a row: trying again would not help."""


SHARED_MEMORY: Final = "shared memory segment"
"""What PostgreSQL could not make, in its words, where not a disk is full but /dev/shm, which holds those on Linux."""


class StorageError(PipelineError):
    """PostgreSQL or a Parquet store refused, in one line."""


class Database:
    """A PostgreSQL database by its URL, which may hold a password and is therefore never printed.

    Parameters
    ----------
    url
        A ``postgresql://`` URL of a direct connection.
    revive
        Starts the server again if it is ours and has crashed.

    Raises
    ------
    UsageError
        If the URL cannot be read.
    """

    def __init__(self, url: str, *, revive: Callable[[], object] | None = None) -> None:
        try:
            self._parameters = {name: str(value) for name, value in conninfo_to_dict(url).items()}
            parsed = make_url(url)
        except (psycopg.ProgrammingError, ArgumentError, ValueError):
            readable = False
        else:
            # An unescaped @ or / of a password ends up in the host, from where a message would show it.
            password = parsed.password or parsed.query.get("password", "")
            readable = self._parameters.get("password", "") == password and "@" not in (parsed.host or "")
        if not readable:
            # The libraries' messages would repeat the URL.
            raise UsageError(
                "OKX_DATABASE_URL cannot be read as a URL; is every special character of the password percent-encoded?"
            )
        self.url = url
        self._revive = revive

    def revive(self) -> None:
        """Start the server again if it is ours to start and does not run; else do nothing.

        Raises
        ------
        PipelineError
            If it cannot be started.
        """
        if self._revive is not None:
            self._revive()

    def __repr__(self) -> str:
        return f"Database({self.place})"

    @property
    def place(self) -> str:
        """Where it is, for messages: user, host and database, never a password."""
        user, host = self._parameters.get("user", ""), self._parameters.get("host", "")
        name, port = self._parameters.get("dbname", user), self._parameters.get("port")
        if not host:
            return f"database {name} on the local socket"
        if host.startswith(("/", "@")):
            return f"database {name} on the socket in {host}"
        return f"{user}@{host}{f':{port}' if port else ''}/{name}"

    def connect(self, *, autocommit: bool = True, durable: bool = True, watched: bool = False) -> Connection:
        """A new connection; statements stand alone unless a `connection.transaction()` holds them together.

        Parameters
        ----------
        durable
            False for bookkeeping that may be lost in a crash of the server; candles are always landed durably.
        watched
            True for a connection that waits for long and holds a lock: over TCP, both sides notice within half a minute
            that the other is gone.

        Raises
        ------
        UsageError
            If the URL, user, password or database is wrong.
        StorageError
            If the server cannot be reached.
        """
        with translated(self.place):
            connection = psycopg.connect(
                make_conninfo(self.url, **_WATCHED) if watched else self.url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT_S,
                application_name="okx-pipeline",
            )
            try:
                connection.execute(_DURABLE if durable else _NOT_DURABLE)
                if watched:
                    connection.execute(_WATCHED_BY_THE_SERVER)
                connection.autocommit = autocommit
            except BaseException:
                connection.close()
                raise
        return connection

    async def connect_async(self, *, durable: bool = True) -> AsyncConnection:
        """As `connect`, for use in an event loop; autocommit."""
        with translated(self.place):
            connection = await psycopg.AsyncConnection.connect(
                self.url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="okx-pipeline"
            )
            try:
                await connection.execute(_DURABLE if durable else _NOT_DURABLE)
            except BaseException:
                await connection.close()
                raise
        return connection

    def refuse_pooler(self) -> None:
        """Raise `UsageError` if a pooler hands each transaction another session: session locks would not hold."""
        with translated(self.place), self.connect() as first:
            if first.info.backend_pid == _session(first):
                return
            if self._keeps_its_session(first):
                return
        raise UsageError(
            f"OKX_DATABASE_URL leads to a pooler in transaction mode ({self.place}), where locks do not hold; "
            "give the URL of a direct connection"
        )

    def _keeps_its_session(self, first: Connection) -> bool:
        # A pooler with several idle servers takes turns; one with a single one gives it to whoever comes next.
        before = {_session(first) for _ in range(4)}
        if len(before) > 1:
            return False
        try:
            with self.connect() as second, second.transaction():
                return _session(second) not in before and _session(first) in before
        except errors.ProtocolViolation:
            return False  # statement mode, which has no transactions at all

    def dagster_url(self) -> str:
        """The URL for Dagster's own storage: the driver spelled out, its tables in their own schema."""
        options = f"{self._parameters.get('options', '')} -csearch_path={DAGSTER_SCHEMA}".strip()
        url = make_url(self.url).set(drivername="postgresql+psycopg2").update_query_dict({"options": options})
        return url.render_as_string(hide_password=False)


def _session(connection: Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Turn what a user can cause at the database into one line; anything else passes through."""
    try:
        yield
    except errors.DiskFull as problem:
        if SHARED_MEMORY in str(problem):
            raise StorageError(
                f"PostgreSQL ({place}) has no space left in /dev/shm of its machine: {_line(problem)}; "
                "free some there, or give a container more of it, and run the same again"
            ) from problem
        raise StorageError(
            f"PostgreSQL ({place}) has no disk space left: {_line(problem)}; what has landed is safe: "
            "free some space and run the same again"
        ) from problem
    except errors.InsufficientPrivilege as problem:
        raise UsageError(f"PostgreSQL ({place}) does not allow it: {_line(problem)}") from problem
    except psycopg.OperationalError as problem:
        line, state = _line(problem), problem.sqlstate
        if state is None and any(said in line for said in _REFUSALS):
            raise UsageError(f"PostgreSQL ({place}) refused: {line}; check OKX_DATABASE_URL") from problem
        if os.strerror(errno.ENOSPC) in line:
            raise StorageError(f"PostgreSQL ({place}) has no disk space left: {line}; free some first") from problem
        if state is None or state.startswith(_CONNECTION_LOST):
            raise StorageError(f"cannot reach PostgreSQL ({place}): {line}; is it running?") from problem
        raise StorageError(f"PostgreSQL ({place}) failed: {line}; run the same again") from problem


_REFUSALS: Final = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")
"""Of a connection that was refused there is the server's text alone, no code."""

_CONNECTION_LOST: Final = ("08", "57P")


def _line(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "FATAL" in line or "failed" in line), lines[0] if lines else "")


@contextmanager
def snapshot(connection: Connection) -> Iterator[None]:
    """One state of the database for everything that is read inside. Autocommit connections only.

    No month's partition is swapped meanwhile. What a statement sees is fixed before it waits for a table, and one that
    saw the state before a swap would find neither the old rows nor the new; to lock a table fixes nothing yet.
    """
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            connection.execute("LOCK TABLE ONLY trading.candlesticks IN ACCESS SHARE MODE")
            yield
    finally:
        connection.isolation_level = None


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


@contextmanager
def session_lock_if_free(connection: Connection, *parts: str) -> Iterator[bool]:
    """Hold the session lock of `parts` as `session_lock` does, unless somebody has it; yields whether."""
    key = lock_key(*parts)
    free = bool(one(connection, "SELECT pg_try_advisory_lock(%s)", (key,)))
    try:
        yield free
    finally:
        if free and not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (key,))


def one(connection: Connection, query: Any, parameters: Any = None) -> Any:
    """The single value of a query that returns one row of one column."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]
