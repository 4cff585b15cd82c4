"""PostgreSQL's own count of deadlocks: a landing that met one begins anew, and its result does not tell."""

from okx_pipeline.storage.database import Connection, one


def report(connection: Connection) -> None:
    """Have the session hand over its statistics now; it would do so when it ends, or a second later."""
    connection.execute("SELECT pg_stat_force_next_flush()")


def deadlocks(connection: Connection) -> int:
    """How many deadlocks the sessions of this database have met that reported, or have ended."""
    return int(one(connection, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
