"""Repair of what the checks found wrong with the store's own copies: a Parquet file, or the ledger's numbers.

PostgreSQL's rows are the truth of both. A file is written again from them, and a day that the ledger counts otherwise
than the rows are is counted again; what is missing then is the gap repair's work. Values that OKX served are no copies:
only OKX can correct them.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Final

from okx_pipeline.quality.suites import RULES, Check
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import judge_again
from okx_pipeline.storage.damage import write_again
from okx_pipeline.storage.database import StorageError
from okx_pipeline.storage.landing import SeriesDay, leave_marks
from okx_pipeline.storage.parquet import SeriesMonth
from okx_pipeline.storage.quality_results import Store, Verdict
from okx_pipeline.storage.quality_rows import SeriesKey

log = logging.getLogger(__name__)

REPAIRABLE: Final = frozenset({Check.COMPLETENESS, Check.STORE_PARITY})


def is_repairable(verdict: Verdict) -> bool:
    """Whether a verdict is an error that a repair can end: of a count, of a file, or of rows that are missing."""
    return verdict.is_error and (verdict.check in REPAIRABLE or verdict.store is Store.PARQUET)


def repair_copies(store: CandleStore, day: date, verdicts: Sequence[Verdict]) -> set[SeriesKey]:
    """Repair the copies that `verdicts` on `day` find wrong; returns the series whose file was written again.

    A file that cannot be written stays as it is, and so does the verdict.

    Raises
    ------
    psycopg.Error
        If the database fails.
    """
    incomplete = {SeriesDay(each.symbol, each.timeframe, day) for each in verdicts if _is_incomplete(each)}
    leave_marks(store.connection, sorted(incomplete))
    written = set()
    for key, why in sorted(_wrong_files(verdicts).items()):
        month = SeriesMonth(*key, day.replace(day=1))
        try:
            if write_again(store.connection, store.files, month, why):
                written.add(key)
                judge_again(store.connection, month)
        except StorageError as problem:
            log.warning("the file of %s cannot be written again: %s", month, problem)
    return written


def _is_incomplete(verdict: Verdict) -> bool:
    return verdict.is_error and verdict.check == Check.COMPLETENESS and verdict.store is Store.POSTGRES


def _wrong_files(verdicts: Iterable[Verdict]) -> dict[SeriesKey, str]:
    """The series whose file is worse than PostgreSQL's rows, and what is wrong with it."""
    wrong: dict[SeriesKey, str] = {}
    sound_rows = {
        (each.symbol, each.timeframe, each.check) for each in verdicts if each.store is Store.POSTGRES and each.passed
    }
    for each in verdicts:
        if not each.is_error:
            continue
        only_the_file = each.store is Store.PARQUET and (each.symbol, each.timeframe, each.check) in sound_rows
        # Rows of an archived month are the file's, whichever store is asked for.
        only_the_file |= any(RULES[name].of_files for name in each.failed)
        if each.check == Check.STORE_PARITY or only_the_file:
            wrong.setdefault((each.symbol, each.timeframe), f"{each.check} fails: {', '.join(each.failed)}")
    return wrong
