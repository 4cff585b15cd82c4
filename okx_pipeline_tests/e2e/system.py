"""The whole system as a user starts it: `up` in a home of its own, watched from outside."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

PROGRAM = str(Path(sys.executable).with_name("okx-pipeline"))
WITHIN_S = 300
"""How long anything may take on a busy machine."""


class System:
    """A home, and the commands that are run in it.

    Parameters
    ----------
    home
        OKX_HOME.
    folder
        The working directory of the commands.
    settings
        Further OKX_* variables.
    """

    def __init__(self, home: Path, folder: Path, **settings: str) -> None:
        self.home = home
        self.folder = folder
        self.port = free_port()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "OKX_HOME": str(home),
            **settings,
        }

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN_S,
        )

    @contextmanager
    def up(self, *arguments: str) -> Iterator["Up"]:
        """`up`, ready; whatever it left is killed at the end."""
        with (self.folder / "up.out").open("w") as out:
            process = subprocess.Popen(
                [PROGRAM, "up", "--port", str(self.port), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        running = Up(self, process)
        try:
            running.await_line("ready; Ctrl-C")
            yield running
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(WITHIN_S)
            for left in self.processes():
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            process.wait()

    def processes(self) -> list[psutil.Process]:
        """Every process that works for the home, whoever's child it is now; the ones that have ended are not."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            # The PostgreSQL server and its guard have an environment of their own, and the home in their arguments.
            mine = process.environ().get("OKX_HOME") == str(self.home) or str(self.home) in " ".join(process.cmdline())
            return mine and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False


class Up:
    """A running `up`."""

    def __init__(self, system: System, process: "subprocess.Popen[bytes]") -> None:
        self.system = system
        self.process = process

    @property
    def output(self) -> str:
        """What it has said."""
        return (self.system.folder / "up.out").read_text()

    def await_line(self, text: str) -> str:
        """Wait until it says a line that contains `text`, and return that line."""

        def said() -> str | None:
            line = next((line for line in self.output.splitlines() if text in line), None)
            assert line is not None or self.process.poll() is None, self.output
            return line

        return wait_for(said, f"{text!r} in its output")

    def child(self, name: str) -> psutil.Process | None:
        """Its child with `name` in its command line."""
        children = psutil.Process(self.process.pid).children()
        return next((child for child in children if name in " ".join(child.cmdline())), None)

    def stop(self, number: signal.Signals) -> int:
        """Send it a signal and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(WITHIN_S)

    def graphql(self, query: str, **variables: object) -> dict[str, Any]:
        """Ask Dagster's webserver."""
        url = f"http://127.0.0.1:{self.system.port}/graphql"
        answer = httpx.post(url, json={"query": query, "variables": variables}, timeout=60, trust_env=False)
        body: Mapping[str, Any] = answer.raise_for_status().json()
        assert "errors" not in body, body["errors"]
        data: dict[str, Any] = body["data"]
        return data


def wait_for(look: Callable[[], Any], what: str) -> Any:
    """Look until there is something, and return it."""
    deadline = time.monotonic() + WITHIN_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {WITHIN_S} s"
        time.sleep(0.05)
    return found


def free_port() -> int:
    """A port of the loopback that nobody uses at the moment, nor the next one.

    Out of those that the system hands out by itself: one of them may be somebody else's a moment later.
    """
    while True:
        port = random.randrange(12_000, 30_000, 2)
        with suppress(OSError), socket.socket() as probe, socket.socket() as next_one:
            probe.bind(("127.0.0.1", port))
            next_one.bind(("127.0.0.1", port + 1))
            return port
