"""Gap detection: what is missing is what set arithmetic says, read from the rows wherever they are."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from okx_pipeline.candles import Candle, Source
from okx_pipeline.errors import UsageError
from okx_pipeline.quality.gaps import Expectations, SeriesRange, Wanted, agrees, detect, look
from okx_pipeline.ranges import Range, runs
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import count, day_coverage
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.gaps import unresolved_gaps
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month
from okx_pipeline.storage.subscriptions import subscribe, unsubscribe
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS, TIMEFRAMES, Timeframe, day_ms, parse_timeframe

SYMBOL = "BTC-USDT-SWAP"
HOUR = parse_timeframe("1h")
FIRST = date(2026, 8, 30)
START_MS = day_ms(FIRST)
END_MS = START_MS + 4 * DAY_MS
"""Across the end of a month."""


@pytest.fixture(scope="module")
def store(new_database: Callable[[bool], Database], tmp_path_factory: pytest.TempPathFactory) -> Iterator[CandleStore]:
    database = new_database(True)
    with CandleStore.opened(database, ParquetStore(str(tmp_path_factory.mktemp("parquet")))) as opened:
        yield opened


@pytest.fixture(autouse=True)
def emptied(store: CandleStore) -> None:
    empty(store)


def empty(store: CandleStore) -> None:
    for table in (
        *("coverage", "coverage_extents", "candle_gaps", "landing_marks", "candlesticks", "candle_months"),
        *("subscriptions", "wanted_ranges"),
    ):
        store.connection.execute(f"DELETE FROM trading.{table}")


def land(store: CandleStore, opens: list[int], timeframe: Timeframe = HOUR) -> None:
    candles = [Candle(SYMBOL, timeframe.name, each, "10", "12", "9", "11", "5", "0.05", "0.55") for each in opens]
    at = datetime.now(tz=UTC) + timedelta(minutes=1)
    store.land(candles, source=Source.REST, requested_at=at)


@given(st.sets(st.integers(0, 95)), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_missing_is_what_set_arithmetic_says_archived_months_included(
    store: CandleStore, hours: set[int], archived: bool
) -> None:
    empty(store)
    held = {START_MS + hour * HOUR_MS for hour in hours}
    land(store, sorted(held))
    first_month = SeriesMonth(SYMBOL, "1h", date(2026, 8, 1))
    if archived and any(each < day_ms(date(2026, 9, 1)) for each in held):
        store.project([])
        archive_month(store.connection, store.files, first_month)
    found = look(store, SeriesRange(SYMBOL, HOUR, Range(START_MS, END_MS)))
    missing = sorted(set(HOUR.opens(START_MS, END_MS)) - held)
    assert found.missing == runs(HOUR, missing)
    assert (found.checked, found.present, found.missing_candles) == (96, len(held), len(missing))


@pytest.mark.parametrize("timeframe", TIMEFRAMES, ids=str)
def test_one_hole_is_found_in_a_series_of_any_length(store: CandleStore, timeframe: Timeframe) -> None:
    subscribe(store.connection, [SYMBOL], [timeframe], START_MS)
    first_ms = timeframe.first_open(START_MS)
    opens = [timeframe.step(first_ms, number) for number in range(12)]
    land(store, [each for each in opens if each != opens[7]], timeframe)
    within = Range(first_ms, timeframe.step(first_ms, 12))
    found = detect(store, SeriesRange(SYMBOL, timeframe, within), within.end_ms + DAY_MS)
    assert found.missing == [Range(opens[7], opens[8])]
    [gap] = unresolved_gaps(store.connection, SYMBOL, timeframe, within)
    assert (gap.first_ms, gap.last_ms, gap.candles, gap.status) == (opens[7], opens[7], 1, "open")


def test_a_gap_found_again_is_one_gap_and_one_that_filled_in_part_is_cut(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS)
    series = SeriesRange(SYMBOL, HOUR, Range(START_MS, END_MS))
    for _ in range(2):
        detect(store, series, END_MS + DAY_MS)
    assert [gap.range for gap in unresolved_gaps(store.connection, SYMBOL, HOUR, series.range)] == [series.range]
    land(store, list(HOUR.opens(START_MS + DAY_MS, START_MS + 2 * DAY_MS)))
    detect(store, series, END_MS + DAY_MS)
    left = [gap.range for gap in unresolved_gaps(store.connection, SYMBOL, HOUR, series.range)]
    assert left == [Range(START_MS, START_MS + DAY_MS), Range(START_MS + 2 * DAY_MS, END_MS)]
    found = store.connection.execute("SELECT candles FROM trading.candle_gaps WHERE status = 'repaired'").fetchall()
    assert found == [(24,)]


def test_a_gap_closes_by_itself_when_its_candles_land(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS)
    detect(store, SeriesRange(SYMBOL, HOUR, Range(START_MS, END_MS)), END_MS + DAY_MS)
    land(store, list(HOUR.opens(START_MS, END_MS)))
    count(store.connection, store.files, END_MS + MINUTE_MS)
    assert unresolved_gaps(store.connection, SYMBOL, HOUR, Range(START_MS, END_MS)) == []


def test_a_gap_that_grows_before_okx_was_asked_stays_one(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS)
    for hours in (5, 6, 9):
        within = Range(START_MS, START_MS + hours * HOUR_MS)
        detect(store, SeriesRange(SYMBOL, HOUR, within), END_MS)
    found = unresolved_gaps(store.connection, SYMBOL, HOUR, Range(START_MS, END_MS))
    assert [gap.candles for gap in found] == [9]


def test_rows_deleted_by_hand_are_found_and_the_ledger_told(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS)
    land(store, list(HOUR.opens(START_MS, END_MS)))
    now_ms = END_MS + MINUTE_MS
    count(store.connection, store.files, now_ms)
    store.connection.execute("DELETE FROM trading.candlesticks WHERE timestamp_ms = %s", (START_MS + HOUR_MS,))
    expectations = Expectations.read(store, now_ms)
    rows = day_coverage(store.connection, SYMBOL, FIRST, FIRST + timedelta(days=4))
    assert [agrees(store, expectations, row) for row in rows] == [False, True, True, True]
    [series] = expectations.of(Wanted())
    assert detect(store, series, now_ms).missing_candles == 1
    rows = day_coverage(store.connection, SYMBOL, FIRST, FIRST + timedelta(days=4))
    assert [row.missing for row in rows] == [1, 0, 0, 0]
    assert all(agrees(store, expectations, row) for row in rows)


def test_a_day_under_way_agrees_with_its_rows_while_more_land(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS)
    land(store, list(HOUR.opens(START_MS, START_MS + 5 * HOUR_MS)))
    now_ms = START_MS + 5 * HOUR_MS + MINUTE_MS
    count(store.connection, store.files, now_ms)
    land(store, [START_MS + 5 * HOUR_MS])
    [row] = day_coverage(store.connection, SYMBOL, FIRST, FIRST + timedelta(days=1))
    assert agrees(store, Expectations.read(store, now_ms + 2 * HOUR_MS), row)


def test_what_is_wanted_follows_subscription_listing_expiry_and_the_clock(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS)
    everything = Wanted()

    def expected(now_ms: int, wanted: Wanted = everything) -> list[Range]:
        return [each.range for each in Expectations.read(store, now_ms).of(wanted)]

    assert expected(START_MS + 3 * HOUR_MS + MINUTE_MS - 1) == [Range(START_MS, START_MS + 2 * HOUR_MS)]
    assert expected(START_MS + 3 * HOUR_MS + MINUTE_MS) == [Range(START_MS, START_MS + 3 * HOUR_MS)]
    store.connection.execute(
        "INSERT INTO trading.instruments (symbol, valid_from, instrument_type, listed_ms, expires_ms, state) "
        "VALUES (%s, now(), 'SWAP', %s, %s, 'live')",
        (SYMBOL, START_MS + HOUR_MS + 5 * MINUTE_MS, START_MS + 7 * HOUR_MS),
    )
    assert expected(END_MS) == [Range(START_MS + HOUR_MS, START_MS + 7 * HOUR_MS)]
    land(store, [START_MS + 2 * HOUR_MS])
    unsubscribe(store.connection, [SYMBOL], [], START_MS + 4 * HOUR_MS)
    for wanted in (everything, Wanted(symbols=[SYMBOL])):
        assert expected(END_MS, wanted) == [Range(START_MS + HOUR_MS, START_MS + 4 * HOUR_MS)]
    # Whoever names days means them, wanted or not.
    day = Wanted([SYMBOL], [HOUR], FIRST - timedelta(days=1), FIRST + timedelta(days=1))
    store.connection.execute("DELETE FROM trading.instruments")
    assert [(each.kind, each.range) for each in Expectations.read(store, END_MS).of(day)] == [
        ("named", Range(START_MS - DAY_MS, START_MS)),
        ("wanted", Range(START_MS, START_MS + 4 * HOUR_MS)),
        ("named", Range(START_MS + 4 * HOUR_MS, START_MS + DAY_MS)),
    ]


def test_what_is_missing_of_days_that_nobody_wants_is_found_and_put_on_no_record(store: CandleStore) -> None:
    land(store, [START_MS])
    [series] = Expectations.read(store, END_MS).of(Wanted([SYMBOL], [HOUR], FIRST, FIRST + timedelta(days=1)))
    assert detect(store, series, END_MS).missing_candles == 23
    assert unresolved_gaps(store.connection, SYMBOL, HOUR, series.range) == []


def test_what_is_held_and_not_wanted_is_looked_at_and_complete(store: CandleStore) -> None:
    land(store, [START_MS, START_MS + 5 * HOUR_MS])
    count(store.connection, store.files, END_MS)
    expectations = Expectations.read(store, END_MS)
    [series] = expectations.of(Wanted())
    found = detect(store, series, END_MS)
    assert (series.kind, found.checked, found.present, found.missing) == ("held", 2, 2, [])
    [row] = day_coverage(store.connection, SYMBOL, FIRST, FIRST + timedelta(days=1))
    assert agrees(store, expectations, row)
    land(store, [START_MS + HOUR_MS])
    assert not agrees(store, expectations, row)


@pytest.mark.parametrize("wanted", [Wanted(), Wanted(start=FIRST), Wanted(["ETH-USDT"]), Wanted(["ETH-USDT"], [HOUR])])
def test_a_look_at_what_is_neither_wanted_nor_held_is_refused(store: CandleStore, wanted: Wanted) -> None:
    with pytest.raises(UsageError, match="is subscribed, wanted or held"):
        Expectations.read(store, END_MS).of(wanted)


def test_what_is_wanted_and_not_due_yet_is_an_empty_look(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS)
    assert Expectations.read(store, START_MS + MINUTE_MS).of(Wanted()) == []


def test_one_day_of_one_series_is_read_by_the_key_in_one_partition(database: Database) -> None:
    with database.connect() as connection:
        for month in range(1, 25):
            one(
                connection,
                "SELECT trading.ensure_month(%s)",
                (date(2024 + (month - 1) // 12, (month - 1) % 12 + 1, 1),),
            )
        plan = connection.execute(
            "EXPLAIN SELECT timestamp_ms / 86400000 * 86400000, count(*) FROM trading.candlesticks "
            f"WHERE symbol = '{SYMBOL}' AND timeframe = '1m' AND timestamp_ms >= {day_ms(date(2025, 3, 1))} "
            f"AND timestamp_ms < {day_ms(date(2025, 3, 2))} GROUP BY 1"
        ).fetchall()
    text = "\n".join(line for (line,) in plan)
    assert "candlesticks_2025_03" in text
    assert "candlesticks_2025_02" not in text
    assert "Index Cond" in text
