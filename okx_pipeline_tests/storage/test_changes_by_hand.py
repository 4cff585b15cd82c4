"""Changes that no landing made: a statement by hand leaves the marks that a landing leaves, or the audit finds it."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.storage.audit import audit
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import count_moved, day_coverage
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.landing import SeriesDay, mark_landings
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.partitions import leave_archived_out
from okx_pipeline.storage.projection import archive_month, restore_month
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms, parse_timeframe

SYMBOL, OTHER = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
HOUR = parse_timeframe("1h")
FIRST = date(2026, 8, 30)
DAYS = [FIRST + timedelta(number) for number in range(4)]
"""Two days of a month and two of the next."""
NOW_MS = day_ms(DAYS[-1]) + 2 * DAY_MS
AUGUST = "trading.candlesticks_2026_08"


@pytest.fixture
def store(emptied_database: Database, tmp_path: Path) -> Iterator[CandleStore]:
    """Four whole days of two series, counted and projected: nothing waits."""
    with CandleStore.opened(emptied_database, ParquetStore(str(tmp_path / "parquet"))) as opened:
        subscribe(opened.connection, [SYMBOL, OTHER], [HOUR], day_ms(FIRST))
        opens = [day_ms(FIRST) + number * HOUR_MS for number in range(96)]
        opened.land([candle(symbol, open_ms) for symbol in (SYMBOL, OTHER) for open_ms in opens], source=Source.REST)
        opened.account(NOW_MS)
        opened.project([])
        assert marked(opened) == set()
        yield opened


def candle(symbol: str, open_ms: int, volume: str = "5") -> Candle:
    return Candle(symbol, HOUR.name, open_ms, "10", "12", "9", "11", volume, "0.05", "0.55")


def marked(store: CandleStore) -> set[SeriesDay]:
    """The days that wait to be counted and to be projected."""
    mark_landings(store.connection)
    found = store.connection.execute(
        "SELECT symbol, timeframe, day FROM trading.landing_marks WHERE counted < revision AND projected < revision"
    )
    return {SeriesDay(*row) for row in found}


def missing(store: CandleStore, symbol: str = SYMBOL) -> list[int]:
    rows = day_coverage(store.connection, symbol, FIRST, FIRST + timedelta(days=5))
    return [row.missing for row in rows if row.content_hash is not None][:4]


def of(symbol: str, *days: date) -> set[SeriesDay]:
    return {SeriesDay(symbol, HOUR.name, day) for day in days}


ONE = f"symbol = '{SYMBOL}' AND timestamp_ms = {day_ms(FIRST) + HOUR_MS}"
ACROSS = f"symbol = '{SYMBOL}' AND timestamp_ms BETWEEN {day_ms(DAYS[1])} AND {day_ms(DAYS[2])}"
NUMBERS = "open_price, high_price, low_price, close_price, volume, volume_currency, volume_quote, source"
INSERTED = (
    f"INSERT INTO {{}} (symbol, timeframe, timestamp_ms, {NUMBERS}) "
    f"SELECT symbol, timeframe, timestamp_ms + {40 * DAY_MS}, {NUMBERS} FROM trading.candlesticks WHERE {ONE}"
)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"DELETE FROM trading.candlesticks WHERE {ONE}", of(SYMBOL, FIRST)),
        (f"DELETE FROM {AUGUST} WHERE {ONE}", of(SYMBOL, FIRST)),
        (f"DELETE FROM trading.candlesticks WHERE {ACROSS}", of(SYMBOL, *DAYS[1:3])),
        (f"UPDATE trading.candlesticks SET volume = 6 WHERE {ONE}", of(SYMBOL, FIRST)),
        (f"UPDATE {AUGUST} SET volume = 6 WHERE {ONE}", of(SYMBOL, FIRST)),
        (f"UPDATE trading.candlesticks SET symbol = 'NEW-USDT' WHERE {ONE}", of(SYMBOL, FIRST) | of("NEW-USDT", FIRST)),
        ("TRUNCATE trading.candlesticks_2026_08", of(SYMBOL, *DAYS[:2]) | of(OTHER, *DAYS[:2])),
        ("TRUNCATE trading.candlesticks", of(SYMBOL, *DAYS) | of(OTHER, *DAYS)),
        (f"DELETE FROM trading.candlesticks WHERE {ONE} AND volume = 7", set()),
        (f"UPDATE trading.candlesticks SET volume = 6 WHERE {ONE} AND volume = 7", set()),
    ],
)
def test_a_statement_by_hand_marks_the_days_it_changes(
    store: CandleStore, statement: str, expected: set[SeriesDay]
) -> None:
    store.connection.execute(statement)
    assert marked(store) == expected


def test_a_row_inserted_into_a_partition_marks_its_day(store: CandleStore) -> None:
    store.connection.execute("SELECT trading.ensure_month('2026-10-01')")
    store.connection.execute(INSERTED.format("trading.candlesticks_2026_10"))
    assert marked(store) == of(SYMBOL, FIRST + timedelta(days=40))
    store.connection.execute("TRUNCATE trading.candlesticks_2026_10")


def test_deleted_rows_are_missing_after_the_next_count_and_gone_from_the_file_after_the_next_projection(
    store: CandleStore,
) -> None:
    store.connection.execute(f"DELETE FROM trading.candlesticks WHERE {ACROSS}")
    count_moved(store.connection, store.files, NOW_MS)
    assert missing(store) == [0, 24, 1, 0]
    assert missing(store, OTHER) == [0, 0, 0, 0]
    store.project([])
    assert marked(store) == set()
    assert store.files.read(SeriesMonth(SYMBOL, "1h", date(2026, 8, 1))).num_rows == 24


def test_what_landings_archiving_restoring_and_swapping_do_leaves_their_own_marks_alone(store: CandleStore) -> None:
    month = SeriesMonth(SYMBOL, "1h", date(2026, 8, 1))
    archive_month(store.connection, store.files, month)
    assert marked(store) == set()
    leave_archived_out(store.connection, month.month)
    count_moved(store.connection, store.files, NOW_MS)
    assert restore_month(store.connection, store.files, month) == 48
    count_moved(store.connection, store.files, NOW_MS)
    assert marked(store) == set()
    assert one(store.connection, "SELECT count(*) FROM trading.audit_requests") == 0
    revision = "SELECT max(revision) FROM trading.landing_marks"
    assert one(store.connection, revision) == 1
    store.land([candle(SYMBOL, day_ms(FIRST), volume="8")], source=Source.REST, requested_at=None)
    assert one(store.connection, revision) == 1


def test_a_swapped_partition_marks_changes_by_hand_as_the_one_before_did(store: CandleStore) -> None:
    archive_month(store.connection, store.files, SeriesMonth(OTHER, "1h", date(2026, 8, 1)))
    assert leave_archived_out(store.connection, date(2026, 8, 1))
    for statement in (f"UPDATE {AUGUST} SET volume = 6 WHERE {ONE}", f"DELETE FROM {AUGUST} WHERE {ONE}"):
        store.connection.execute("UPDATE trading.landing_marks SET counted = revision, projected = revision")
        store.connection.execute(statement)
        assert marked(store) == of(SYMBOL, FIRST)
    store.connection.execute(f"TRUNCATE {AUGUST}")
    assert marked(store) == of(SYMBOL, *DAYS[:2])


@pytest.mark.parametrize("how", ["detached and attached again", "dropped"])
def test_a_partition_that_is_taken_away_is_noticed_by_the_next_count_and_so_is_its_return(
    store: CandleStore, how: str
) -> None:
    count_moved(store.connection, store.files, NOW_MS)
    store.connection.execute(f"ALTER TABLE trading.candlesticks DETACH PARTITION {AUGUST}")
    if how == "dropped":
        store.connection.execute(f"DROP TABLE {AUGUST}")
    count_moved(store.connection, store.files, NOW_MS)
    assert missing(store) == missing(store, OTHER) == [24, 24, 0, 0]
    if how == "dropped":
        return
    until = day_ms(date(2026, 9, 1))
    store.connection.execute(
        f"ALTER TABLE trading.candlesticks ATTACH PARTITION {AUGUST} "
        f"FOR VALUES FROM ({day_ms(date(2026, 8, 1))}) TO ({until})"
    )
    count_moved(store.connection, store.files, NOW_MS)
    assert missing(store) == missing(store, OTHER) == [0, 0, 0, 0]


def test_a_partition_made_by_hand_is_watched_from_the_next_count_on(store: CandleStore) -> None:
    store.connection.execute(
        "CREATE TABLE trading.candlesticks_2031_01 PARTITION OF trading.candlesticks "
        f"FOR VALUES FROM ({day_ms(date(2031, 1, 1))}) TO ({day_ms(date(2031, 2, 1))})"
    )
    count_moved(store.connection, store.files, NOW_MS)
    watches = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'trading.candlesticks_2031_01'::regclass"
    assert {name for (name,) in store.connection.execute(watches)} >= {
        f"mark_{what}ed" for what in ("insert", "updat", "delet", "truncat")
    }
    store.connection.execute("DROP TABLE trading.candlesticks_2031_01")


# The audit


def without_marks(store: CandleStore, statement: str) -> None:
    """Run `statement` as somebody would who has disabled the triggers."""
    with store.connection.transaction():
        store.connection.execute("SET LOCAL session_replication_role = replica")
        store.connection.execute(statement)
    assert marked(store) == set()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"DELETE FROM trading.candlesticks WHERE {ONE}", of(SYMBOL, FIRST)),
        (f"UPDATE trading.candlesticks SET volume = 6 WHERE {ACROSS}", of(SYMBOL, *DAYS[1:3])),
        (f"DELETE FROM trading.candlesticks WHERE symbol = '{OTHER}'", of(OTHER, *DAYS)),
        (f"UPDATE trading.candlesticks SET symbol = 'NEW-USDT' WHERE {ONE}", of(SYMBOL, FIRST) | of("NEW-USDT", FIRST)),
    ],
)
def test_a_whole_pass_marks_every_day_whose_rows_are_not_those_that_were_counted(
    store: CandleStore, statement: str, expected: set[SeriesDay]
) -> None:
    assert audit(store.connection, whole=True) == 0
    without_marks(store, statement)
    assert audit(store.connection, whole=True) == len(expected)
    assert marked(store) == expected
    count_moved(store.connection, store.files, NOW_MS)
    assert audit(store.connection, whole=True) == 0


def test_a_row_inserted_through_the_parent_asks_for_a_pass_that_finds_it(store: CandleStore) -> None:
    audit(store.connection)
    store.connection.execute("SELECT trading.ensure_month('2026-10-01')")
    store.connection.execute("SET application_name = 'psql'")
    store.connection.execute(INSERTED.format("trading.candlesticks"))
    assert audit(store.connection) == 1
    assert marked(store) == of(SYMBOL, FIRST + timedelta(days=40))
    assert audit(store.connection) == 0
    store.connection.execute("TRUNCATE trading.candlesticks_2026_10")


def test_a_pass_goes_on_where_it_was_ended_and_takes_its_time(store: CandleStore) -> None:
    audit(store.connection)
    without_marks(store, f"DELETE FROM trading.candlesticks WHERE symbol = '{OTHER}'")
    store.connection.execute("INSERT INTO trading.audit_requests DEFAULT VALUES")
    found = [audit(store.connection, lambda took_s: False) for _ in range(4)]
    assert found == [0, 0, 2, 2]
    # Nobody asks any more, so that of four months none is due before some days have passed.
    place = "SELECT audited, symbol, month FROM trading.audit"
    for _ in range(3):
        audit(store.connection)
    assert store.connection.execute(place).fetchall() == [(1, SYMBOL, date(2026, 8, 1))]
    store.connection.execute("UPDATE trading.audit SET began_at = began_at - interval '11 days', expected = 4")
    audit(store.connection)
    assert store.connection.execute(place).fetchall() == [(3, OTHER, date(2026, 8, 1))]


def test_an_archived_month_is_no_difference(store: CandleStore) -> None:
    month = SeriesMonth(SYMBOL, "1h", date(2026, 8, 1))
    archive_month(store.connection, store.files, month)
    assert audit(store.connection, whole=True) == 0
