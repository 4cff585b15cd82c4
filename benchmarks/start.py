"""How long it takes to start: `--help`, loading the code location, and `up` until it says that all is ready.

Beside loading stands `import dagster` alone, each in a process of its own, as users and Dagster start them; what is
counted is their processor time, as they wait for nothing. `up` starts once, in an empty folder with the synthetic
market, so that making the database is part of it, and is timed by the wall.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.contest import Contest, elapsed, spent
from benchmarks.figures import Figure

ROUNDS = 5
PROGRAM = str(Path(sys.executable).with_name("okx-pipeline"))
_LOAD = "from okx_pipeline.definitions import defs; defs.get_repository_def()"


def run() -> list[Figure]:
    """Seconds of each, and of loading beyond importing Dagster."""
    contest = Contest(
        {
            "okx-pipeline --help": lambda: _seconds(PROGRAM, "--help"),
            "loading the code location": lambda: _seconds(sys.executable, "-c", _LOAD),
            "import dagster": lambda: _seconds(sys.executable, "-c", "import dagster"),
        },
        ROUNDS,
    )
    helped, loaded, imported = contest.seconds.values()
    beyond = [ours - theirs for ours, theirs in zip(loaded, imported, strict=True)]
    return [
        Figure.of("okx-pipeline --help, seconds", helped, at_most=0.3),
        *contest.times()[1:],
        Figure.of("loading the code location beyond import dagster, seconds", beyond, at_most=1.0),
        Figure("up until it is ready, seconds", _ready_s(), at_most=15.0),
    ]


def _seconds(*command: str) -> float:
    return spent(lambda: subprocess.run(command, check=True, capture_output=True))


def _ready_s() -> float:
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OKX_")}
        command = [PROGRAM, "up", "--port", "0", "--replay", "synthetic"]
        with subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "OKX_HOME": f"{folder}/home"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines: list[str] = []

            def wait() -> None:
                for line in process.stdout or ():
                    lines.append(line)
                    if line.startswith("ready"):
                        return
                raise RuntimeError(f"up ended before it was ready: {''.join(lines)}")

            try:
                return elapsed(wait)
            finally:
                process.send_signal(signal.SIGINT)
                process.stdout.read()
