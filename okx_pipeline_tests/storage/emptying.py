"""A database emptied for the next test: to make one takes longer than most tests do."""

from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.landing import LEAVES_MARKS

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'trading' AND tablename !~ 'yoyo|candlesticks_[0-9]'"


def empty(connection: Connection) -> None:
    """Delete every row, so that the database is as a new one but for the partitions that exist already."""
    with connection.transaction():
        connection.execute(LEAVES_MARKS)
        for (name,) in connection.execute(_TABLES).fetchall():
            connection.execute(f"DELETE FROM trading.{name}")
        connection.execute("INSERT INTO trading.audit DEFAULT VALUES")
