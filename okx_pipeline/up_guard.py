"""What outlives a killed `up`: the guard, which ends every process that `up` left.

`up` starts its children in the guard's process group, and whatever they start in turn is in it, too. Which processes
there are and when they are needed is decided in `up`, which ends the group by the function of here as well.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, sleep
from typing import Final

import psutil

STOP_WITHIN_S: Final = 8
"""How long a process may take to end; then it is killed, which costs nothing that has landed. Docker waits 10 s."""

_LOOK_EVERY_S: Final = 0.1


def end_group(group: int) -> None:
    """End every process of the process group `group` except its leader; returns when none is left.

    Each is asked to by SIGTERM, and killed if that does not end it within `STOP_WITHIN_S`. So are those that are
    started meanwhile.
    """
    deadline = monotonic() + STOP_WITHIN_S
    asked = set()
    while (members := list(_members(group))) and monotonic() < deadline + STOP_WITHIN_S:
        for process in members:
            with suppress(psutil.NoSuchProcess):
                if monotonic() > deadline:
                    process.kill()
                elif process not in asked:
                    process.terminate()
                    asked.add(process)
        sleep(_LOOK_EVERY_S)


def _members(group: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            # A process that has ended stays a zombie until its parent, which may not care, looks after it.
            if process.pid != group and os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                yield process


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Ends when `up` closes its side of the pipe, or has ended, however it did.
    sys.stdin.buffer.read()
    end_group(os.getpgrp())
