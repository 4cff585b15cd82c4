"""Opening the store that the settings name: the embedded server or a database of the user's own, schema up to date."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.migrations import migrate


@contextmanager
def opened_database(
    settings: Settings, *, on_wait: Callable[[str], None] | None = None, migrated: bool = True
) -> Iterator[Database]:
    """The database of the settings while the block runs; the embedded server is started and stopped for it.

    Parameters
    ----------
    on_wait
        Told, once, when starting takes long enough to wonder.
    migrated
        Whether to bring the schema up to date first.

    Raises
    ------
    UsageError
        If the URL leads nowhere, to a wrong user or to a pooler in transaction mode.
    StorageError
        If the database cannot be reached or started.
    """
    if settings.database_url is None:
        with EmbeddedPostgres(settings.root, on_wait=on_wait) as embedded:
            yield _ready(Database(embedded.url, revive=embedded.start), migrated)
    else:
        database = Database(settings.database_url.get_secret_value())
        database.refuse_pooler()
        yield _ready(database, migrated)


def _ready(database: Database, migrated: bool) -> Database:
    if migrated:
        migrate(database)
    return database
