"""What a user can be told in one line, with the exit status it ends in.

Adapters keep their own small trees below these (``exchange/errors.py``); nothing here knows an exchange or a database.
"""

from enum import IntEnum


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
