"""Repair of the store's own copies: what the checks find wrong with a file or a count is repaired and checked again."""

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import Source
from okx_pipeline.quality.data_docs import DataDocs
from okx_pipeline.quality.verdicts import judge_days
from okx_pipeline.ranges import Range
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import MOST_REPAIRS, Read, unjudged_days
from okx_pipeline.storage.damage import damaged_files
from okx_pipeline.storage.database import Connection, one
from okx_pipeline.storage.findings import findings
from okx_pipeline.storage.landing import SeriesDay, land
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month
from okx_pipeline.storage.quality_results import Verdict, latest
from okx_pipeline.storage.wanted import want
from okx_pipeline.timeframes import DAY_MS, day_ms
from okx_pipeline_tests.quality.sound_store import DAY, EVE, NOW_MS, candles, fill
from okx_pipeline_tests.storage.small_disk import fill as fill_disk
from okx_pipeline_tests.storage.small_disk import small_disk
from okx_pipeline_tests.storage.test_damage import cut_off, flip_a_byte_of_the_rows

SYMBOL = "CLEAN-USDT-SWAP"
KEY = (SYMBOL, "15m")
MONTH = SeriesMonth(*KEY, date(2026, 8, 1))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "parquet", 1) as mounted:
        yield mounted


@pytest.fixture
def store(connection: Connection, disk: Path) -> CandleStore:
    """Two sound days of a backfilled series, both judged and read from REST, the files on a disk of their own."""
    store = CandleStore(connection, ParquetStore(str(disk)), "here")
    want(connection, {KEY: [Range(day_ms(EVE), day_ms(DAY) + DAY_MS)]}, "backfill")
    fill(connection, store.files, [KEY])
    store.account(NOW_MS, {SeriesDay(*KEY, day): Read(96, 96, False, NOW_MS) for day in (EVE, DAY)})
    judge(store, EVE, DAY)
    assert findings(connection).checks == []
    return store


def judge(store: CandleStore, *days: date) -> list[Verdict]:
    docs = DataDocs(Path(store.files.root).parent / "docs")
    for _ in judge_days(store, docs, {SYMBOL: list(days)}):
        pass
    return latest(store.connection)


def failing(store: CandleStore) -> set[tuple[date, str, str]]:
    return {(each.day, each.check, each.store) for each in latest(store.connection) if each.is_error}


@pytest.mark.parametrize("harm", [Path.unlink, cut_off, flip_a_byte_of_the_rows])
def test_a_damaged_file_is_written_again_by_the_check_that_finds_it_and_the_day_passes(
    store: CandleStore, harm: Callable[[Path], None]
) -> None:
    before = store.files.read(MONTH)
    harm(Path(store.files.place(MONTH)))
    judge(store, DAY)
    assert failing(store) == set()
    assert store.files.read(MONTH).equals(before)
    assert damaged_files(store.connection) == []


def test_days_that_failed_for_want_of_the_file_are_checked_again_once_it_is_written(
    store: CandleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(Path(store.files.place(MONTH)))
    with monkeypatch.context() as unrepaired:
        unrepaired.setattr("okx_pipeline.quality.verdicts.repair_copies", lambda *_: set())
        judge(store, EVE, DAY)
    assert {day for day, _, _ in failing(store)} == {EVE, DAY}
    judge(store, DAY)
    assert {day for day, _, _ in failing(store)} == {EVE}
    assert unjudged_days(store.connection, [SYMBOL], failing=True) == [SeriesDay(*KEY, EVE)]
    judge(store, EVE)
    assert failing(store) == set()


def test_a_file_that_cannot_be_written_keeps_its_error_and_is_tried_some_times_more_at_growing_distances(
    store: CandleStore, disk: Path
) -> None:
    cut_off(Path(store.files.place(MONTH)))
    filler = fill_disk(disk)
    for tries in range(1, MOST_REPAIRS + 1):
        judge(store, DAY)
        assert {day for day, _, _ in failing(store)} == {DAY}
        assert one(store.connection, "SELECT max(repairs) FROM trading.coverage") == tries
        assert unjudged_days(store.connection, [SYMBOL]) == []
        store.connection.execute(
            "UPDATE trading.coverage SET counted_at = counted_at - interval '1 day', "
            "judged_at = judged_at - %s * interval '1 minute' WHERE repairs > 0",
            (5 * 2**tries + 1,),
        )
        again = [SeriesDay(*KEY, DAY)] if tries < MOST_REPAIRS else []
        assert unjudged_days(store.connection, [SYMBOL]) == again
    # It is given up, and stays to be seen.
    found = findings(store.connection)
    assert ({each.day for each in found.checks}, found.damaged) == ({DAY}, 1)
    filler.unlink()
    judge(store, DAY)
    assert failing(store) == set()
    assert one(store.connection, "SELECT max(repairs) FROM trading.coverage") == 0


def test_the_damaged_file_of_an_archived_month_is_noted_and_nothing_is_written_over_it(store: CandleStore) -> None:
    archive_month(store.connection, store.files, MONTH)
    path = Path(store.files.place(MONTH))
    flip_a_byte_of_the_rows(path)
    body = path.read_bytes()
    judge(store, DAY)
    assert {day for day, _, _ in failing(store)} == {DAY}
    assert path.read_bytes() == body
    [found] = damaged_files(store.connection)
    assert (found.key, found.archived) == (MONTH, True)


def test_rows_that_the_ledger_takes_for_present_are_counted_again_and_then_missing(store: CandleStore) -> None:
    with store.connection.transaction():
        store.connection.execute("SET LOCAL session_replication_role = replica")
        store.connection.execute("DELETE FROM trading.candlesticks WHERE timestamp_ms = %s", (day_ms(DAY),))
    judge(store, DAY)
    assert (DAY, "completeness", "postgres") in failing(store)
    store.account(NOW_MS)
    assert [each.missing for each in findings(store.connection).missing] == [1]
    # As the gap repair does; what it touched is checked before anything else.
    land(store.connection, candles(*KEY, DAY)[:1], source=Source.REST)
    store.account(NOW_MS)
    store.project([])
    assert unjudged_days(store.connection, [SYMBOL], failing=True) == [SeriesDay(*KEY, DAY)]
    judge(store, DAY)
    assert failing(store) == set()
    found = findings(store.connection)
    assert (found.missing, found.checks, found.files) == ([], [], [])
