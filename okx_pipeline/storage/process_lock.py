"""A lock in the database that one process holds for as long as it runs.

Locks that last for one piece of work are `session_lock` in `database`.
"""

import os
import re
import socket
from dataclasses import dataclass
from typing import Final, LiteralString, Self

import psycopg

from okx_pipeline.storage.database import Connection, Database, lock_key, one, translated

# PostgreSQL shows a key of 64 bits as two halves.
_HOLDER: Final[LiteralString] = """
SELECT session.application_name FROM pg_locks AS held JOIN pg_stat_activity AS session USING (pid)
WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (held.classid::bigint << 32) | held.objid::bigint = %s
"""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock, by its number on a host; both are unknown if a pooler renames its sessions."""

    process: int | None
    host: str | None

    def __str__(self) -> str:
        return "an unknown process" if self.process is None else f"process {self.process} on {self.host}"

    @property
    def has_ended(self) -> bool:
        """Whether it was a process of this host and no longer runs; its session then ends within moments."""
        return self.process is not None and self.host == socket.gethostname() and not _runs(self.process)


class ProcessLock:
    """The lock `name` of a database, on a connection of its own; it is free again as soon as the process has ended.

    A restart of the database loses the lock. Whoever needs it calls `take` again and again, which takes it anew.

    Parameters
    ----------
    name
        What only one process may do.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._key = lock_key(name)
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def take(self) -> bool:
        """Take the lock if it is free; True also if it is still ours, or ours again after a lost connection.

        Raises
        ------
        StorageError
            If the database cannot be reached.
        """
        if self._connection is not None:
            try:
                self._connection.execute("SELECT")
                return True
            except psycopg.Error:
                self._connection.close()
                self._connection = None
        with translated(self._database.place):
            connection = self._database.connect(watched=True)
            try:
                # PostgreSQL keeps 63 bytes of a name.
                name = f"okx-pipeline {self._name} {os.getpid()}@{socket.gethostname()}"
                connection.execute("SELECT set_config('application_name', %s, false)", (name,))
                if one(connection, "SELECT pg_try_advisory_lock(%s)", (self._key,)):
                    self._connection = connection
            finally:
                if self._connection is None:
                    connection.close()
        return self._connection is not None

    def holder(self) -> Holder | None:
        """Who holds the lock; None if nobody does.

        Raises
        ------
        StorageError
            If the database cannot be reached.
        """
        with translated(self._database.place), self._database.connect() as connection:
            found = connection.execute(_HOLDER, (self._key,)).fetchone()
        if found is None:
            return None
        named = re.fullmatch(r"okx-pipeline \S+ (\d+)@(.*)", found[0] or "")
        return Holder(int(named[1]), named[2]) if named else Holder(None, None)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
