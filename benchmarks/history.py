"""What every run measured, so that a regression shows: a line of JSON a benchmark in `history.jsonl`."""

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Figure

FILE = Path(__file__).with_name("history.jsonl")


class History:
    """The runs so far, and this one.

    Parameters
    ----------
    runs
        Lines of the file, oldest first.
    """

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self._before = {
            (run["benchmark"], figure["what"]): figure["value"] for run in runs for figure in run["figures"]
        }
        self.machine = _machine()

    @classmethod
    def read(cls) -> "History":
        """What the file holds."""
        lines = FILE.read_text().splitlines() if FILE.exists() else []
        return cls([json.loads(line) for line in lines])

    def note(self, benchmark: str, figures: list[Figure]) -> None:
        """Append what was measured now."""
        run = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "machine": self.machine,
            "benchmark": benchmark,
            "figures": [
                {name: value for name, value in asdict(figure).items() if value is not None} for figure in figures
            ],
        }
        with FILE.open("a") as file:
            file.write(json.dumps(run) + "\n")

    def change(self, benchmark: str, figure: Figure) -> str:
        """What the figure was in the run before, in words; empty where it was not measured."""
        before = self._before.get((benchmark, figure.what))
        return "" if before is None else f"  (was {before:.4g})"


def _machine() -> str:
    cores = os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, load {load:.1f}"
    )


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=FILE.parent, capture_output=True, text=True, check=False
    )
    return told.stdout.strip()
