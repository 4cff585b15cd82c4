"""Real processes for tests: forked from a warm one, so that starting one takes milliseconds, and killed at will."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from okx_pipeline.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
# What the modules of tests import, so that one is imported quickly.
_CONTEXT.set_forkserver_preload(
    [
        "okx_pipeline.cli",
        "okx_pipeline.maintenance.upkeep",
        "okx_pipeline.monitor.terminal",
        "okx_pipeline.quality.gaps_report",
        "okx_pipeline.quality.verdicts",
        "okx_pipeline.stream.sidecar",
        "okx_pipeline.storage.opening",
        "okx_pipeline_tests.faults.system",
        "okx_pipeline_tests.storage.test_landing",
        "pandas",
    ]
)


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run `work`, a function of a module, in a process of its own."""
    process = _CONTEXT.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def run_command(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], within_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run a command of the program to its end, as a process with `environment` and nothing else of this machine's."""
    with tempfile.TemporaryDirectory() as said:
        process = start(_command, list(arguments), folder, dict(environment), said)
        process.join(within_s)
        status = process.exitcode
        if kill(process) or status is None:
            raise subprocess.TimeoutExpired(list(arguments), within_s)
        stdout, stderr = (Path(said, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(list(arguments), status, stdout, stderr)


def _command(arguments: Sequence[str], folder: Path, environment: Mapping[str, str], said: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((os.devnull, f"{said}/stdout", f"{said}/stderr")):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    # What the interpreter does when it begins, which it did long ago.
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["okx-pipeline", *arguments]
    main()


def barrier(parties: int) -> Any:
    """Where that many processes wait for one another."""
    return _CONTEXT.Barrier(parties)


def queue() -> Any:
    """What processes put, `get(timeout=...)` takes."""
    return _CONTEXT.Queue()


def finish(*processes: BaseProcess) -> None:
    """Wait for `processes`; each must end well."""
    for process in processes:
        process.join(60)
        assert process.exitcode == 0, f"{process.name} ended with {process.exitcode}"
        process.close()


def kill(process: BaseProcess, after_s: float = 0.0) -> bool:
    """Kill `process` `after_s` from now; whether it was still running."""
    process.join(after_s)
    running = process.exitcode is None
    process.kill()
    process.join()
    process.close()
    return running


class Doom:
    """Where a process is to kill itself, as by kill -9: at the `call`-th call of `function` of `owner`.

    Parameters
    ----------
    owner
        A module or class; callers must find the function there when they call it.
    after
        Whether it is killed once the call has returned, or before it is made.
    """

    def __init__(self, owner: object, function: str, *, call: int = 1, after: bool = False) -> None:
        self._original = getattr(owner, function)
        self._left = call
        self._after = after
        setattr(owner, function, self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            self.strike()
        returned = self._original(*arguments, **named)
        if self._left == 0 and self._after:
            self.strike()
        return returned

    def __get__(self, instance: object, owner: object = None) -> Any:
        if instance is None:
            return self
        return lambda *arguments, **named: self(instance, *arguments, **named)

    @staticmethod
    def strike() -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed(process: BaseProcess) -> None:
    """Wait for `process`, which must have been killed."""
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode}"
    process.close()
