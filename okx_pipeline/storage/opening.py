"""Opening the store that the settings name: the embedded server or a database of the user's own, schema up to date."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.migrations import migrate


@contextmanager
def opened_database(
    settings: Settings,
    *,
    on_step: Callable[[str], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
    migrated: bool = True,
) -> Iterator[Database]:
    """The database of the settings while the block runs; the embedded server is started and stopped for it.

    Parameters
    ----------
    on_step
        Called with each step as it begins: one line of text.
    on_wait
        Called with the reason when the embedded server keeps us waiting for a few seconds.
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
        with EmbeddedPostgres(settings.root, on_step=on_step, on_wait=on_wait) as embedded:
            yield _ready(Database(embedded.url, revive=embedded.start), migrated, on_step)
    else:
        database = Database(settings.database_url.get_secret_value())
        if on_step is not None:
            on_step(f"connecting to PostgreSQL ({database.place})")
        database.refuse_pooler()
        yield _ready(database, migrated, on_step)


def _ready(database: Database, migrated: bool, on_step: Callable[[str], None] | None) -> Database:
    if migrated:
        migrate(database, on_step=on_step)
    return database
