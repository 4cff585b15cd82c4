"""Errors that a user sees as one line, the exit status of each, and how a message names a command to type.

Adapters keep their own small trees below these (``exchange/errors.py``); nothing here knows an exchange or a database.
"""

import shlex
import shutil
import sys
from enum import IntEnum
from pathlib import Path
from typing import Final

PROGRAM: Final = "okx-pipeline"
"""The program's name in texts that are stored and read elsewhere: incidents, pages, metadata."""


def command(arguments: str) -> str:
    """The command line that a message tells the user to type: the program as the user started it, then `arguments`.

    ``.venv/bin/okx-pipeline gaps --repair`` where the user typed that path, ``python -m okx_pipeline gaps --repair``
    where they typed that, and `PROGRAM` alone where the shell finds it in `PATH` and in processes that are not this
    program, as Dagster's or a notebook.
    """
    return f"{_typed()} {arguments}"


def _typed() -> str:
    program = Path(sys.argv[0])
    if program.parts[-2:] == ("okx_pipeline", "__main__.py"):
        return f"{shlex.quote(sys.orig_argv[0])} -m okx_pipeline"
    if program.name != PROGRAM or sys.argv[0] == shutil.which(PROGRAM):
        return PROGRAM
    return shlex.quote(sys.argv[0])


class ExitStatus(IntEnum):
    """Exit statuses of every command."""

    DONE = 0
    FAILED = 1
    """The data has a problem, or the work failed."""
    USAGE = 2
    """Wrong usage or settings."""
    ALREADY_RUNNING = 75


class PipelineError(Exception):
    """The work failed for a reason its one-line message tells, with what to do about it."""

    exit_status = ExitStatus.FAILED


class UsageError(PipelineError, ValueError):
    """What was asked for, or a setting, cannot be; nothing was started."""

    exit_status = ExitStatus.USAGE


class AlreadyRunningError(PipelineError):
    """Another process does this job already."""

    exit_status = ExitStatus.ALREADY_RUNNING
