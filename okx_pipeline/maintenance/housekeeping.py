"""Housekeeping: everything that grows beside the candles is cut back, and how big all of it is is noted.

Pages of the Data Docs and incidents are cut back by those who write them. Parquet files are never removed.
"""

import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database, StorageError, translated
from okx_pipeline.storage.housekeeping import prune_dagster_events, prune_marks, prune_sidecars, prune_verdicts
from okx_pipeline.storage.sizes import Sizes, growth_a_day, measure, note_sizes

MARKS_DAYS: Final = 90
VERDICTS_DAYS: Final = 400
SIDECARS_DAYS: Final = 7
EVENTS_DAYS: Final = 30
RUN_LOGS_DAYS: Final = 30
SIZES_DAYS: Final = 800
LOG_BYTES: Final = 10_000_000
"""A log that is longer is emptied; one older is kept."""


@dataclass(frozen=True, slots=True)
class Housekept:
    """What was removed, by what it was, how big everything is now, and what is added a day."""

    removed: dict[str, int]
    sizes: Sizes
    growth: Sizes | None


def keep_house(settings: Settings, database: Database, now: datetime) -> Housekept:
    """Cut back what grows, and note the sizes.

    Raises
    ------
    StorageError
        If the database is out of reach, or a folder of logs cannot be written to.
    """
    # Durability costs a wait for each piece, and what is lost of this in a crash is done again tomorrow.
    with translated(database.place), database.connect(durable=False) as connection:
        removed = {
            "landing marks": prune_marks(connection, MARKS_DAYS),
            "verdicts": prune_verdicts(connection, VERDICTS_DAYS),
            "sidecars": prune_sidecars(connection, SIDECARS_DAYS),
            "Dagster's events": prune_dagster_events(connection, EVENTS_DAYS) or 0,
            "logs of runs": _prune_run_logs(settings.root / "dagster" / "storage", now),
            "logs": _shorten_logs(settings.root / "logs"),
        }
        sizes = measure_all(settings, database)
        growth = growth_a_day(connection, sizes)
        note_sizes(connection, sizes, SIZES_DAYS)
    return Housekept({what: number for what, number in removed.items() if number}, sizes, growth)


def measure_all(settings: Settings, database: Database) -> Sizes:
    """How big everything is now.

    Raises
    ------
    StorageError
        If the database is out of reach.
    """
    with translated(database.place), database.connect() as connection:
        return measure(
            connection,
            parquet_bytes=None if "://" in settings.parquet_root else _bytes_in(Path(settings.parquet_root)),
            data_docs_bytes=_bytes_in(settings.quality_folder),
            logs_bytes=_bytes_in(settings.root / "logs"),
        )


def _bytes_in(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue  # replaced or removed since it was listed
    return total


def _prune_run_logs(storage: Path, now: datetime) -> int:
    """Remove what runs of long ago wrote to their terminals; Dagster keeps it for ever."""
    before, gone = (now - timedelta(days=RUN_LOGS_DAYS)).timestamp(), 0
    try:
        for folder in storage.glob("*/compute_logs"):
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder)
                gone += 1
                if not any(folder.parent.iterdir()):
                    folder.parent.rmdir()
    except OSError as problem:
        raise StorageError(f"the logs of runs in {storage} cannot be removed: {problem}") from problem
    return gone


def _shorten_logs(folder: Path) -> int:
    """Empty long logs, keeping one older. Whoever writes one holds it open for appending, so it is not renamed."""
    shortened = 0
    try:
        for log in folder.glob("*.log"):
            if log.stat().st_size > LOG_BYTES:
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
                os.truncate(log, 0)
                shortened += 1
    except OSError as problem:
        raise StorageError(f"the logs in {folder} cannot be shortened: {problem}") from problem
    return shortened
