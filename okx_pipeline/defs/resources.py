"""What assets, schedules and sensors are given: the pipeline's settings, and the way in to its store and exchange."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import dagster as dg

from okx_pipeline.errors import PipelineError, UsageError
from okx_pipeline.history.backfill import Backfill
from okx_pipeline.quality.data_docs import DataDocs
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.partitions import DetachedMonthError


class Pipeline(dg.ConfigurableResource[Any]):
    """The pipeline as its settings describe it.

    Parameters
    ----------
    overrides
        Settings by field name that stand above the environment's.
    """

    overrides: dict[str, Any] = {}

    def settings(self) -> Settings:
        """The settings in force."""
        return read_settings(**self.overrides)

    @contextmanager
    def database(self) -> Iterator[Database]:
        """The database, schema up to date."""
        with opened_database(self.settings()) as database:
            yield database

    @asynccontextmanager
    async def backfill(self) -> AsyncIterator[Backfill]:
        """A backfill on its own connections to the exchange and the store."""
        with self.database() as database:
            async with Backfill.opened(self.settings(), database) as backfill:
                yield backfill

    @contextmanager
    def store(self) -> Iterator[CandleStore]:
        """The store of candles, schema up to date."""
        with (
            self.database() as database,
            CandleStore.opened(database, ParquetStore(self.settings().parquet_root)) as store,
        ):
            yield store

    def docs(self) -> DataDocs:
        """The Data Docs."""
        return DataDocs(self.settings().quality_folder)


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Fail a step with the line a user can act on; what would fail again in the same way is not retried."""
    try:
        yield
    except dg.DagsterExecutionInterruptedError as interrupt:
        # Dagster would take the interrupt for a failure that the retry policy tries again, and never end the run.
        raise dg.Failure("stopped; what has landed stays", allow_retries=False) from interrupt
    except PipelineError as problem:
        hopeless = isinstance(problem, UsageError | DetachedMonthError)
        raise dg.Failure(str(problem), allow_retries=not hopeless) from problem
