"""What every row stands on: a system of its own a try, and the rule that no row passes unjudged."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from okx_pipeline.storage.database import Database
from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.system import System, system


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The one that takes minutes begins first: begun last, it would be waited for alone."""
    items.sort(key=lambda item: "test_whole_system_faults" not in item.nodeid)


@pytest.fixture
def seed() -> int:
    """The try's chance; see `table`, which gives others where a row asks for more than one try."""
    return 1


@pytest.fixture(autouse=True)
def judged(request: pytest.FixtureRequest) -> Iterator[None]:
    """A row that passes without the checker having been asked has shown nothing."""
    yield
    marker = request.node.get_closest_marker("fault")
    if marker is None or not marker.kwargs.get("checked", True):
        return
    if getattr(request.node, "passed", False) and not table.is_recorded(request.node):
        pytest.fail("the checker was not asked; `system.recovers()` asks it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if call.when == "call":
        item.passed = report.outcome == "passed"  # type: ignore[attr-defined]
    return report


@pytest.fixture
def make_system(
    database: Database, tmp_path: Path, request: pytest.FixtureRequest, seed: int
) -> Iterator[Callable[..., System]]:
    """Makes a system with settings of its own, see `system.system`; another `database` may be given."""
    with ExitStack() as opened:

        def make(database: Database = database, **settings: Any) -> System:
            return opened.enter_context(system(database, tmp_path, request.node, seed, **settings))

        yield make


@pytest.fixture(name="system")
def _system(make_system: Callable[..., System]) -> System:
    """An exchange half an hour into a day, a minute a second; an empty store; nothing running."""
    return make_system()
