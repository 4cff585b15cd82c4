"""What outlives the process that started the embedded PostgreSQL: its postmaster, and the guard that stops it.

Run as a script without site-packages (``python -I -S``), so standard library only, and nothing of this package.
Starting the server and deciding when it is needed belong to ``embedded.py``, which uses the lock and the stop of here.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final

POLL_SECONDS: Final = 0.02
LOG_BYTES: Final = 10_000_000
_LOG_CHECK_SECONDS: Final = 60


def try_lock(path: str, mode: int = fcntl.LOCK_EX) -> int | None:
    """Take the file lock `path` if it is free; closing the descriptor that is returned gives it back."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return lock


def postmaster_file(data: str) -> list[str]:
    """Lines of ``postmaster.pid``: pid, data folder, start, port, socket folder, …, state; none if it is not there."""
    try:
        with open(os.path.join(data, "postmaster.pid"), "rb") as file:
            return [os.fsdecode(line).strip() for line in file.read().split(b"\n")]
    except FileNotFoundError:
        return []


def postmaster(data: str) -> int | None:
    """Pid of the postmaster that listens for the data folder `data`, None if none does.

    What ``postmaster.pid`` says may be stale and its pid by now anyone's, so the socket is asked: the kernel names the
    process that listens (Linux; elsewhere somebody listening is taken as proof that the file is true).
    """
    lines = postmaster_file(data)
    if len(lines) < 5 or not lines[4]:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.path.join(lines[4], f".s.PGSQL.{lines[3]}"))
        except BlockingIOError:
            return int(lines[0])  # its queue of new connections is full: it listens
        except OSError:
            return None
        if not hasattr(socket, "SO_PEERCRED"):
            return int(lines[0])
        pid: int = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid or None


def stop_server(folder: str, *, deadline: float = float("inf")) -> bool:
    """Shut the server of `folder` down, open transactions rolled back, and wait until none of its processes is left.

    The caller holds ``users.lock`` alone, so nobody starts it meanwhile.

    Returns
    -------
    bool
        False if `deadline` (of the monotonic clock) passed first.
    """
    told = None
    while (lock := try_lock(os.path.join(folder, "server.lock"))) is None:
        pid = postmaster(os.path.join(folder, "data"))
        if pid is not None and pid != told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            told = pid
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    os.close(lock)
    return True


def _guard(guard_lock: int, folder: str, log: str) -> None:
    _every_minute(lambda: _shorten(log))
    users = os.open(os.path.join(folder, "users.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(users, fcntl.LOCK_EX)  # until every user has left, however it left
    stop_server(folder)
    # In this order: a newcomer who finds the users' lock open must not take this guard for one that will wait for it.
    os.close(guard_lock)
    os.close(users)


def _every_minute(do: Callable[[], None]) -> None:
    signal.signal(signal.SIGALRM, lambda _signal, _frame: do())
    signal.setitimer(signal.ITIMER_REAL, 1, _LOG_CHECK_SECONDS)


def _shorten(log: str) -> None:
    """Keep one older log. The server holds the file open for appending, so it is emptied, not renamed."""
    try:
        if os.path.getsize(log) > LOG_BYTES:
            try:
                shutil.copyfile(log, f"{log}.1")
            finally:
                os.truncate(log, 0)
    except OSError as error:
        # Stopping the server matters more than its log; a full disk is where this happens.
        print(f"guard: {log} could not be shortened: {error}", file=sys.stderr)  # noqa: T201


def _detach() -> None:
    """Leave the caller's terminal, process group and process tree: no Ctrl-C and no end of it reaches what follows."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o077)


if __name__ == "__main__":
    _detach()
    if sys.argv[1] == "guard":
        _guard(int(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606
