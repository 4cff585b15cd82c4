"""The suite as pytest sees it: how often each fault is tried, with which seeds, and the table at the end.

A test says which row of the matrix it is with `@pytest.mark.fault(NUMBER, "name", tries=N)`. One that takes `seed` is
run `N` times where `FAULTS=full`, with the seeds from `FAULT_SEEDS_FROM` (1) on, once otherwise, and with `FAULT_SEED`
alone where that is set. What the checker found travels in `user_properties`, which works across the processes of
pytest-xdist.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from okx_pipeline_tests.faults.checker import KINDS, Findings

PLACE = Path(__file__).parents[2] / ".artifacts" / "faults" / "table.md"
IS_FULL = os.environ.get("FAULTS") == "full"
_ROW, _FOUND = "fault", "findings"


def is_full() -> bool:
    """Whether every fault is tried as often as it asks for, rather than once."""
    return IS_FULL


def record(item: pytest.Item, findings: Findings) -> None:
    """Note what the checker found in a test."""
    item.user_properties.append((_FOUND, findings.counts))


def is_recorded(item: pytest.Item) -> bool:
    """Whether the checker was asked in a test."""
    return any(name == _FOUND for name, _ in item.user_properties)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("fault")
    if marker is None or "seed" not in metafunc.fixturenames:
        return
    tries = int(marker.kwargs.get("tries", 1))
    only = os.environ.get("FAULT_SEED")
    first = int(os.environ.get("FAULT_SEEDS_FROM", "1"))
    seeds = [int(only)] if only else range(first, first + (tries if IS_FULL else 1))
    metafunc.parametrize("seed", seeds, ids=[f"seed{seed}" for seed in seeds])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("fault")
    if marker is not None:
        number, name = marker.args
        item.user_properties.append((_ROW, [number, name]))


@dataclass
class _Line:
    """A row of the table: one fault, over all its tests and tries."""

    number: int
    name: str
    tries: int = 0
    failed: int = 0
    skipped: int = 0
    found: list[int] = field(default_factory=lambda: [0] * len(KINDS))
    checked: bool = False

    def cells(self) -> list[str]:
        found = [str(number) if self.checked else "–" for number in self.found]
        what = "failed" if self.failed else "skipped here" if not self.tries else "held"
        return [str(self.number), self.name, str(self.tries), *found, what]


def lines(reports: Iterable[Any]) -> list[list[str]]:
    """The cells of the table, by number of the fault, from pytest's reports."""
    table: dict[tuple[int, str], _Line] = {}
    for report in reports:
        known = [value for name, value in report.user_properties if name == _ROW]
        if not known or (report.when != "call" and report.outcome == "passed"):
            continue
        number, name = known[0]
        line = table.setdefault((number, name), _Line(number, name))
        line.skipped += report.outcome == "skipped"
        line.failed += report.outcome == "failed"
        line.tries += report.when == "call" and report.outcome != "skipped"
        # The last word: a test may look more than once.
        for found in [value for name, value in report.user_properties if name == _FOUND][-1:]:
            if report.when == "call":
                line.checked = True
                line.found = [sum(pair) for pair in zip(line.found, found, strict=True)]
    return [line.cells() for _, line in sorted(table.items())]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        each for group in terminalreporter.stats.values() for each in group if isinstance(each, pytest.TestReport)
    ]
    cells = lines(reports)
    if not cells:
        return
    heading = ["#", "fault", "tries", *KINDS, ""]
    rows = [heading, *cells]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    terminalreporter.section("faults")
    for row in rows:
        terminalreporter.write_line(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    table = [heading, ["---"] * len(heading), *cells]
    PLACE.write_text("".join(f"| {' | '.join(row)} |\n" for row in table))
