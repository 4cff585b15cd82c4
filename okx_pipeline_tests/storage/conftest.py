"""A database for a whole file of tests, emptied for each: to make one takes longer than most tests do."""

from collections.abc import Callable

import pytest

from okx_pipeline.storage.database import Database
from okx_pipeline.storage.landing import LEAVES_MARKS


@pytest.fixture(scope="module")
def module_database(new_database: Callable[[bool], Database]) -> Database:
    """A migrated database of the file's own."""
    return new_database(True)


@pytest.fixture
def emptied_database(module_database: Database) -> Database:
    """That database without a row, as a new one is but for the partitions that are there already."""
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'trading' AND tablename !~ 'yoyo|candlesticks_[0-9]'"
    with module_database.connect() as connection, connection.transaction():
        connection.execute(LEAVES_MARKS)
        for (name,) in connection.execute(tables).fetchall():
            connection.execute(f"DELETE FROM trading.{name}")
        connection.execute("INSERT INTO trading.audit DEFAULT VALUES")
    return module_database
