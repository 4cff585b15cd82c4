"""A database for a whole file of tests, emptied for each: to make one takes longer than most tests do."""

from collections.abc import Callable

import pytest

from okx_pipeline.storage.database import Database
from okx_pipeline_tests.storage.emptying import empty


@pytest.fixture(scope="module")
def module_database(new_database: Callable[[bool], Database]) -> Database:
    """A migrated database of the file's own."""
    return new_database(True)


@pytest.fixture
def emptied_database(module_database: Database) -> Database:
    """That database without a row, as a new one is but for the partitions that are there already."""
    with module_database.connect() as connection:
        empty(connection)
    return module_database
