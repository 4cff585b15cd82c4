"""Deleting what was forgotten: of days that nobody wants, and of those alone, nothing is left."""

from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import Source
from okx_pipeline.errors import UsageError
from okx_pipeline.ranges import Range
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import day_coverage
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.forgetting import delete_unwanted, refuse_archived
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month
from okx_pipeline.storage.wanted import FOR_EVER_MS, forget, want
from okx_pipeline.timeframes import DAY_MS, parse_timeframe
from okx_pipeline_tests.storage.test_landing import AUGUST, MINUTE, candle

BTC = "BTC-USDT-SWAP"
MINUTES = parse_timeframe("1m")
NOW_MS = AUGUST + 40 * DAY_MS
EVERYTHING = Range(0, FOR_EVER_MS)
A_DAY = 1_440
MONTHS = [SeriesMonth(BTC, "1m", date(2026, month, 1)) for month in (8, 9)]


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def store(connection: Connection, tmp_path: Path) -> CandleStore:
    """The first two days of August and the first of September, three candles each; a gap and a verdict in each."""
    store = CandleStore(connection, ParquetStore(str(tmp_path / "parquet")), "here")
    want(connection, {(BTC, "1m"): [Range(AUGUST, AUGUST + 32 * DAY_MS)]}, "backfill")
    for day in (0, 1, 31):
        store.land([candle(day * A_DAY + minute) for minute in (0, 1, 3)], source=Source.REST)
        start_ms = AUGUST + day * DAY_MS
        hole = Range(start_ms + 2 * MINUTE, start_ms + 3 * MINUTE)
        store.record_gaps(BTC, MINUTES, Range(start_ms, start_ms + 4 * MINUTE), [hole], NOW_MS)
        connection.execute(
            "INSERT INTO trading.quality_results "
            "(symbol, timeframe, day, check_name, store, passed, rows, validated_at) "
            "VALUES (%s, '1m', date '2026-08-01' + %s, 'schema', 'postgres', true, 3, now())",
            (BTC, day),
        )
    store.project([])
    store.account(NOW_MS)
    return store


def delete(store: CandleStore, within: Range) -> int:
    return delete_unwanted(store.connection, store.files, BTC, [], within, NOW_MS)


def left(store: CandleStore, table: str) -> int:
    return int(one(store.connection, f"SELECT count(*) FROM trading.{table}"))


def test_only_what_nobody_wants_is_deleted(store: CandleStore) -> None:
    assert delete(store, EVERYTHING) == 0
    forget(store.connection, BTC, [], Range(AUGUST, AUGUST + DAY_MS))
    assert delete(store, EVERYTHING) == 3
    assert store.files.read(MONTHS[0])["timestamp_ms"].to_pylist() == [
        AUGUST + DAY_MS + minute * MINUTE for minute in (0, 1, 3)
    ]
    assert (left(store, "candle_gaps"), left(store, "quality_results")) == (2, 2)
    assert day_coverage(store.connection, BTC, date(2026, 8, 1), date(2026, 8, 2)) == []
    assert left(store, "coverage") == 31


def test_a_month_of_which_nothing_is_left_has_no_file_and_is_on_no_record(store: CandleStore) -> None:
    forget(store.connection, BTC, [], Range(0, AUGUST + 31 * DAY_MS))
    assert delete(store, EVERYTHING) == 6
    assert store.files.months(BTC, "1m") == MONTHS[1:]
    assert [month for (month,) in store.connection.execute("SELECT month FROM trading.candle_months")] == [
        date(2026, 9, 1)
    ]
    forget(store.connection, BTC, [], EVERYTHING)
    assert delete(store, EVERYTHING) == 3
    for table in ("candlesticks", "coverage", "candle_gaps", "quality_results", "candle_months"):
        assert left(store, table) == 0
    assert store.files.months(BTC, "1m") == []


def test_a_deletion_that_was_cut_off_after_the_rows_is_ended_by_the_next(
    store: CandleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(store.connection, BTC, [], EVERYTHING)

    def fails(month: SeriesMonth) -> None:
        raise StorageError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(store.files, "remove", fails)
        with pytest.raises(StorageError, match="the disk is gone"):
            delete(store, EVERYTHING)
    assert (left(store, "candlesticks"), len(store.files.months(BTC, "1m"))) == (0, 2)
    assert delete(store, EVERYTHING) == 0
    assert (left(store, "candle_months"), store.files.months(BTC, "1m")) == (0, [])


def test_rows_of_an_archived_month_are_refused(store: CandleStore) -> None:
    archive_month(store.connection, store.files, MONTHS[0])
    told = (
        f"^{BTC} 1m 2026-08 is archived, with its rows in Parquet alone; bring it back first: .*restore --month 2026-08"
    )
    with pytest.raises(UsageError, match=told):
        refuse_archived(store.connection, BTC, [], EVERYTHING)
    refuse_archived(store.connection, BTC, [], Range(AUGUST + 3 * DAY_MS, FOR_EVER_MS))
    refuse_archived(store.connection, BTC, [parse_timeframe("1h")], EVERYTHING)
