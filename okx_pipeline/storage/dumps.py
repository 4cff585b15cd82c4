"""PostgreSQL's own tools: a dump of everything of ours in a database, and the way back into an empty one.

What stands in a backup beside the dump is not known here.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from okx_pipeline.errors import UsageError
from okx_pipeline.storage.database import DAGSTER_SCHEMA, SCHEMA, Connection, Database, StorageError, one, snapshot
from okx_pipeline.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError

SCHEMAS: Final = (SCHEMA, DAGSTER_SCHEMA)
_CHUNK: Final = 1 << 20
_SETS_TRANSACTION_TIMEOUT: Final = 17
"""From this version on pg_restore begins with a setting that older servers do not know."""

_RELATIONS: Final = (
    "SELECT count(*) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = %s"
)


class Tools:
    """pg_dump and pg_restore as they fit a database: of the server's own version, or else the next newer one there is.

    Parameters
    ----------
    environment
        This process's variables; on PATH the tools are looked for, beside those of the embedded server.
    at_least
        A version that they have to have, whatever the server's.

    Raises
    ------
    UsageError
        If there are none that are new enough.
    """

    def __init__(self, database: Database, environment: Mapping[str, str], *, at_least: int = 0) -> None:
        with database.connect() as connection:
            self.server_version = connection.info.server_version // 10_000
            password = connection.info.password
        needed = max(self.server_version, at_least)
        found = {version: folder for folder in _folders(environment) if (version := _version(folder)) >= needed}
        if not found:
            raise UsageError(f"pg_dump and pg_restore of PostgreSQL {needed} or newer are needed; put them on the PATH")
        self.version = min(found)
        self._folder = found[self.version]
        # Everybody on this machine can read the arguments of a process, only its account the environment.
        self._environment = {**environment, "PGPASSWORD": password}
        where = {name: value for name, value in conninfo_to_dict(database.url).items() if name != "password"}
        self._where = make_conninfo("", **where)

    def dump(self, snapshot_id: str, sink: IO[bytes]) -> None:
        """Write a dump of our schemas, as they are in a snapshot, in pg_dump's custom format.

        Raises
        ------
        StorageError
            If it fails, in its own words.
        """
        what = [option for schema in SCHEMAS for option in ("-n", schema)]
        # Owners and grants are of this server's roles; the fastest compression, as gzip is the only one everywhere.
        how = ["-Fc", "-Z1", "--no-owner", "--no-privileges", f"--snapshot={snapshot_id}", "-d", self._where]
        with self._running("pg_dump", *what, *how, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            shutil.copyfileobj(process.stdout, sink, _CHUNK)

    def check_can_restore(self, connection: Connection) -> None:
        """Raise `UsageError` if the database is not empty, or older than the tools can serve."""
        if self.server_version < _SETS_TRANSACTION_TIMEOUT <= self.version:
            raise UsageError(
                f"to restore into PostgreSQL {self.server_version}, pg_restore of version {self.server_version} to "
                f"{_SETS_TRANSACTION_TIMEOUT - 1} is needed; put it on the PATH"
            )
        if any(one(connection, _RELATIONS, (schema,)) for schema in SCHEMAS):
            raise UsageError("the database is not empty; restore into a new one, or with a new OKX_HOME")

    def restore(self, connection: Connection, opened: Callable[[], IO[bytes]]) -> None:
        """Bring a dump into an empty database, whole or not at all.

        Parameters
        ----------
        connection
            To the same database.
        opened
            Opens the dump from its beginning; may raise while it is read, and then nothing was restored.

        Raises
        ------
        StorageError
            If it fails, in pg_restore's own words.
        """
        with tempfile.NamedTemporaryFile("w") as chosen:
            chosen.write(self._to_restore(connection, opened))
            chosen.flush()
            how = ["--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error", "-d", self._where]
            with (
                self._running("pg_restore", "-L", chosen.name, *how, stdin=subprocess.PIPE) as process,
                opened() as dump,
            ):
                assert process.stdin is not None
                with suppress(BrokenPipeError):  # it says itself why it reads no more
                    shutil.copyfileobj(dump, process.stdin, _CHUNK)

    def _to_restore(self, connection: Connection, opened: Callable[[], IO[bytes]]) -> str:
        """The dump's list of contents without schemas that are there already, made for a user who may not make any."""
        with (
            self._running("pg_restore", "-l", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
            opened() as dump,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # the list stands at the beginning; it reads no further
                shutil.copyfileobj(dump, process.stdin, _CHUNK)
                process.stdin.close()
            contents = process.stdout.read().decode()
        there = [schema for schema in SCHEMAS if one(connection, "SELECT to_regnamespace(%s) IS NOT NULL", (schema,))]
        made = re.compile(rf" SCHEMA - ({'|'.join(there)}) ") if there else None
        return "".join(line for line in contents.splitlines(keepends=True) if made is None or not made.search(line))

    @contextmanager
    def _running(
        self, program: str, *arguments: str, stdin: int | None = None, stdout: int | None = None
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """One of the tools; killed if the block raises, and its complaint raised if it ends with one."""
        command = [str(self._folder / program), *arguments]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, env=self._environment, stdin=stdin, stdout=stdout, stderr=said)
            with process:
                try:
                    yield process
                except BaseException:
                    process.kill()
                    raise
                finally:
                    if process.stdin is not None:
                        with suppress(BrokenPipeError):
                            process.stdin.close()
            if process.returncode:
                said.seek(0)
                lines = said.read().decode(errors="replace").split("\n")
                raise StorageError(f"{program} failed: {lines[0].removeprefix(f'{program}: ') or 'it did not say why'}")


@contextmanager
def exported_snapshot(connection: Connection) -> Iterator[str]:
    """A snapshot for the tools while the block runs; what is read inside on `connection` is of the same state.

    No partition is swapped meanwhile: a dump would find neither the old rows nor the new.
    """
    with snapshot(connection):
        yield str(one(connection, "SELECT pg_export_snapshot()"))


def settle(connection: Connection) -> None:
    """Do what a dump leaves out, after the schema was brought up to date: grants to our roles, and statistics.

    Tables have other numbers now, and nobody has seen which months are attached.
    """
    connection.execute("SELECT trading.grant_roles()")
    connection.execute("UPDATE trading.month_partitions SET attached = NULL")
    connection.execute("INSERT INTO trading.audit_requests DEFAULT VALUES")
    connection.execute("ANALYZE")


def _folders(environment: Mapping[str, str]) -> list[Path]:
    """Folders that have the tools: that of the PATH, and the embedded server's."""
    folders = []
    if on_path := shutil.which("pg_dump", path=environment.get("PATH")):
        folders.append(Path(on_path).parent)
    with suppress(EmbeddedPostgresError):  # not installed for this machine
        folders.append(EmbeddedPostgres(Path()).bin)
    return folders


def _version(folder: Path) -> int:
    """The version of the tools in a folder; 0 where there is none to be had."""
    ended = subprocess.run([str(folder / "pg_restore"), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\) (\d+)", ended.stdout)
    return int(found[1]) if found else 0
