"""A plugin for a run of the tests, which fails it where a secret of any test shows in what was printed or logged.

Secrets that tests make up for this purpose have the same letters in them, whatever their spelling. For the whole suite:
``PYTEST_ADDOPTS="-p okx_pipeline_tests.security.leaks" make test``; continuous integration runs it so.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

SIGN = "ntinel"
_shown: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Look at what a test that passed has printed and logged; that of others shows values on purpose."""
    if report.passed and any(SIGN in text for _, text in report.sections):
        _shown.add(report.nodeid)


@pytest.fixture(autouse=True)
def _logs_are_read(tmp_path: Path) -> Iterator[None]:
    """Look at the log files that a test leaves in its folder."""
    yield
    for log in tmp_path.rglob("*.log"):
        assert SIGN not in log.read_text(errors="replace"), f"a secret is in {log}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests."""
    for test in sorted(_shown):
        terminalreporter.write_line(f"SECRET SHOWN by {test}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run."""
    if _shown:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
