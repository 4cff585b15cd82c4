"""Months looked after: ahead by the clock, settled once, archived and brought back with nothing lost on the way."""

from collections.abc import Collection
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from okx_pipeline.candles import Source
from okx_pipeline.errors import AlreadyRunningError
from okx_pipeline.maintenance import upkeep
from okx_pipeline.maintenance.upkeep import MonthDone, Retention, Upkeep, following, look_after_months
from okx_pipeline.quality.gaps import Expectations, Wanted, look
from okx_pipeline.storage import partitions, projection
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import day_coverage, series_coverage
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.months import series_months
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.partitions import detached_months, partition_bytes
from okx_pipeline.storage.projection import restore_month
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms, month_bounds, month_of, parse_timeframe
from okx_pipeline_tests.maintenance.conftest import BTC, NOW_MS, TIMEFRAMES, YEAR, candles
from okx_pipeline_tests.storage.processes import Doom, killed, start

HOUR = parse_timeframe("1h")
HOURS_ONLY: Retention = {HOUR: 90}
EVERYTHING: Retention = dict.fromkeys(TIMEFRAMES, 60)
LATER_MS = NOW_MS + 60 * DAY_MS


def months(first: date, number: int) -> list[date]:
    found = [first]
    while len(found) < number:
        found.append(following(found[-1]))
    return found


def look_after(
    store: CandleStore, retention: Retention, now_ms: int, months: Collection[date] | None = None
) -> list[MonthDone]:
    return look_after_months(store, retention, now_ms, months).done


def archived(connection: Connection) -> set[SeriesMonth]:
    return {state.key for state in series_months(connection) if state.archived}


def everything(store: CandleStore) -> list[Any]:
    """What anybody can see of the year, wherever it is kept: open times, counts, the ledger, and what is missing."""
    seen: list[Any] = []
    for timeframe in TIMEFRAMES:
        seen.append(store.opens(BTC, timeframe, *YEAR))
    expectations = Expectations.read(store, NOW_MS)
    for series in expectations.of(Wanted(symbols=[BTC])):
        findings = look(store, series)
        assert findings.missing == []
        seen.append((findings.checked, findings.present))
    seen.append(series_coverage(store.connection))
    seen.append(day_coverage(store.connection, BTC, date(2023, 1, 1), date(2024, 1, 1)))
    return seen


# Ahead


def test_no_landing_is_refused_over_a_year_boundary_a_leap_day_and_two_missed_months(store: CandleStore) -> None:
    first, last = date(2023, 12, 20), date(2024, 8, 2)
    days = [first + timedelta(days=number) for number in range((last - first).days)]
    # Every day around the turns of months, fewer between them; nobody maintains in April and May.
    days = [day for day in days if day.day > 27 or day.day < 3 or day.day % 7 == 0]
    landed = []
    for day in days:
        now_ms = day_ms(day) + DAY_MS + HOUR_MS
        landed += candles(HOUR, now_ms - DAY_MS, now_ms)
        store.land(landed[-24:], source=Source.WEBSOCKET)
        if day.month not in {4, 5}:
            look_after(store, {}, now_ms)
            assert set(months(month_of(now_ms), 4)) <= partition_bytes(store.connection).keys()
    assert sorted(partition_bytes(store.connection)) == months(date(2023, 12, 1), 12)
    assert store.opens(BTC, HOUR, day_ms(first), day_ms(last) + DAY_MS) == sorted(
        {each.timestamp_ms for each in landed}
    )
    assert {date(2023, 12, 31), date(2024, 2, 29), date(2024, 4, 30)} <= set(days)


def test_a_detached_month_is_told_and_left_as_it_is(store: CandleStore) -> None:
    first, now_ms = date(2024, 1, 10), day_ms(date(2024, 9, 2))
    store.land(candles(HOUR, day_ms(first), day_ms(first) + DAY_MS), source=Source.REST)
    look_after(store, {}, now_ms)
    store.connection.execute("ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_2024_01")
    looked_after = look_after_months(store, EVERYTHING, now_ms)
    [done] = looked_after.done
    assert (done.month, list(done.told())) == (first.replace(day=1), [])
    assert done.problems == [str(each) for each in detached_months(store.connection)]
    assert looked_after.lacking == [first.replace(day=1)]
    store.connection.execute(detached_months(store.connection)[0].remedy)  # type: ignore[arg-type]
    assert len(store.opens(BTC, HOUR, day_ms(first), day_ms(first) + DAY_MS)) == 24
    assert look_after_months(store, {}, now_ms).lacking == []


def test_a_month_that_lacks_its_partition_between_the_first_candle_and_now_gets_one(store: CandleStore) -> None:
    first, now_ms = day_ms(date(2024, 1, 10)), day_ms(date(2024, 9, 2))
    store.land(candles(HOUR, first, first + DAY_MS), source=Source.REST)
    store.land(candles(HOUR, now_ms - DAY_MS, now_ms), source=Source.REST)
    upkeep = Upkeep(store, {}, now_ms)
    lacking = [plan.month for plan in upkeep.plan() if plan.make]
    assert lacking == months(date(2024, 2, 1), 7) + months(date(2024, 10, 1), 3)
    done = look_after(store, {}, now_ms)
    assert [each.month for each in done if each.made] == lacking
    assert look_after(store, {}, now_ms) == []


def test_a_month_that_was_archived_whole_is_not_given_a_partition_again(year: CandleStore) -> None:
    look_after(year, EVERYTHING, LATER_MS)
    assert min(partition_bytes(year.connection)) == date(2024, 1, 1)
    assert not any(done.made for done in look_after(year, EVERYTHING, LATER_MS))


def test_only_one_looks_after_the_months_at_a_time(store: CandleStore, database: Database) -> None:
    with (
        CandleStore.opened(database, store.files) as other,
        Upkeep(other, {}, NOW_MS).alone(),
        pytest.raises(AlreadyRunningError),
    ):
        look_after(store, {}, NOW_MS)
    look_after(store, {}, NOW_MS)


# Behind


def settle(store: CandleStore) -> None:
    """As days that REST has confirmed and the checks have judged."""
    store.connection.execute(
        "UPDATE trading.coverage SET read_at = now(), verified_at = now(), judged_at = clock_timestamp() "
        "WHERE content_hash IS NOT NULL"
    )


def test_a_whole_month_is_rebuilt_and_vacuumed_once_and_again_when_it_was_corrected(year: CandleStore) -> None:
    now_ms = day_ms(date(2024, 1, 9))
    first = {done.month: done for done in look_after(year, {}, now_ms)}
    november, december = date(2023, 11, 1), date(2023, 12, 1)
    # Of the last two months nobody knows yet whether they will change.
    assert first[date(2023, 10, 1)].vacuumed
    assert first[date(2023, 10, 1)].rebuilt == len(TIMEFRAMES)
    assert {november, december}.isdisjoint(first)
    settle(year)
    second = {done.month: done for done in look_after(year, {}, now_ms)}
    assert {month: (done.rebuilt, done.vacuumed) for month, done in second.items()} == {
        november: (len(TIMEFRAMES), True),
        december: (len(TIMEFRAMES), True),
    }
    assert look_after(year, {}, now_ms) == []
    before = everything(year)
    at = one(year.connection, "SELECT clock_timestamp()")
    corrected = [each._replace(close_price="11.5") for each in candles(HOUR, *month_bounds(november))[:1]]
    year.land(corrected, source=Source.REST, requested_at=at)
    assert look_after(year, {}, now_ms) == [], "the day is to be judged again first"
    settle(year)
    [again] = look_after(year, {}, now_ms)
    assert (again.month, again.rebuilt, again.vacuumed) == (november, 1, True)
    assert len(everything(year)) == len(before)


def test_a_file_rebuilt_for_good_holds_the_same_and_takes_less(year: CandleStore) -> None:
    month = SeriesMonth(BTC, "1h", date(2023, 5, 1))
    before, size = year.files.read(month), Path(year.files.place(month)).stat().st_size
    look_after(year, {}, NOW_MS, [month.month])
    assert year.files.read(month) == before
    assert Path(year.files.place(month)).stat().st_size < size


def test_a_month_that_misses_candles_is_neither_settled_nor_archived_and_says_why(year: CandleStore) -> None:
    month = date(2023, 5, 1)
    gone = month_bounds(month)[0] + 5 * HOUR_MS
    year.connection.execute("DELETE FROM trading.candlesticks WHERE timeframe = '1h' AND timestamp_ms = %s", (gone,))
    year.connection.execute(
        "UPDATE trading.landing_marks SET revision = revision + 1 WHERE timeframe = '1h' AND day = %s", (month,)
    )
    done = {each.month: each for each in look_after(year, HOURS_ONLY, LATER_MS)}
    assert SeriesMonth(BTC, "1h", month) not in archived(year.connection)
    assert not done[month].vacuumed
    assert len(archived(year.connection)) == 11
    plan = Upkeep(year, HOURS_ONLY, LATER_MS).plan([month])[0]
    assert plan.kept == {SeriesMonth(BTC, "1h", month): "1 candles are missing; see: okx-pipeline gaps"}
    assert plan.is_idle


# Retention


@pytest.mark.parametrize("retention", [HOURS_ONLY, EVERYTHING], ids=["one timeframe", "all"])
def test_archiving_a_year_by_month_changes_nothing_that_anybody_sees(year: CandleStore, retention: Retention) -> None:
    before, rows = everything(year), one(year.connection, "SELECT count(*) FROM trading.candlesticks")
    done = look_after(year, retention, LATER_MS)
    left = {timeframe for timeframe in TIMEFRAMES if timeframe not in retention}
    gone = sum(sum(each.archived.values()) for each in done)
    assert gone == sum(len(list(each.opens(*YEAR))) for each in retention)
    assert one(year.connection, "SELECT count(*) FROM trading.candlesticks") == rows - gone
    assert all(each.dropped != bool(left) for each in done if each.archived)
    assert everything(year) == before
    assert [problem for each in done for problem in each.problems] == []
    assert look_after(year, retention, LATER_MS) == []
    # Counted anew from the files, it is the same.
    year.connection.execute("UPDATE trading.landing_marks SET counted = 0")
    year.account(NOW_MS)
    assert everything(year) == before


def test_a_month_goes_when_its_last_candle_is_older_than_its_retention_and_not_before(year: CandleStore) -> None:
    end_ms = month_bounds(date(2023, 3, 1))[1]
    for now_ms, gone in ((end_ms + 90 * DAY_MS - 1, 2), (end_ms + 90 * DAY_MS, 3)):
        plans = Upkeep(year, HOURS_ONLY, now_ms).plan()
        assert [plan.month for plan in plans if plan.archive] == months(date(2023, 1, 1), gone)
        assert {key.timeframe for plan in plans for key in plan.archive} == {"1h"}
        assert not any(plan.whole for plan in plans)


def test_what_was_brought_back_stays_for_a_week(year: CandleStore) -> None:
    look_after(year, EVERYTHING, LATER_MS)
    key = SeriesMonth(BTC, "1h", date(2023, 6, 1))
    assert restore_month(year.connection, year.files, key) == 30 * 24
    look_after(year, EVERYTHING, LATER_MS)
    assert key not in archived(year.connection)
    assert "brought back" in Upkeep(year, EVERYTHING, LATER_MS).plan([key.month])[0].kept[key]
    year.connection.execute("UPDATE trading.candle_months SET restored_at = restored_at - interval '7 days'")
    [done] = [each for each in look_after(year, EVERYTHING, LATER_MS) if each.archived]
    assert done.archived == {key: 30 * 24}
    assert done.dropped


def test_a_correction_of_an_archived_candle_brings_its_month_back_and_reaches_the_file(year: CandleStore) -> None:
    look_after(year, EVERYTHING, LATER_MS)
    before = everything(year)
    [late] = candles(HOUR, YEAR[0], YEAR[0] + HOUR_MS)
    at = one(year.connection, "SELECT clock_timestamp()")
    assert year.land([late._replace(close_price="11.5")], source=Source.REST, requested_at=at).corrected == 1
    assert partition_bytes(year.connection).keys() >= {date(2023, 1, 1)}
    year.project([])
    assert str(year.files.read(SeriesMonth(BTC, "1h", date(2023, 1, 1)))["close_price"][0].as_py()).startswith("11.5")
    assert everything(year)[:8] == before[:8]
    year.connection.execute("UPDATE trading.candle_months SET restored_at = restored_at - interval '7 days'")
    [done] = [each for each in look_after(year, EVERYTHING, LATER_MS) if each.archived]
    assert done.dropped
    year.connection.execute("UPDATE trading.landing_marks SET counted = 0")
    year.account(NOW_MS)
    [corrected] = [
        row for row in day_coverage(year.connection, BTC, date(2023, 1, 1), date(2023, 1, 2)) if row.corrected
    ]
    assert (corrected.timeframe, corrected.present, corrected.missing) == ("1h", 24, 0)


def maintain_and_die(url: str, root: str, owner: str, function: str, call: int, after: bool) -> None:
    owners = {"partitions": partitions, "projection": projection, "upkeep": upkeep, "files": ParquetStore}
    Doom(owners[owner], function, call=call, after=after)
    with CandleStore.opened(Database(url), ParquetStore(root)) as store:
        look_after(store, {**EVERYTHING, parse_timeframe("1d"): 365 * 9}, LATER_MS)


POINTS = [
    ("upkeep", "rebuild_month", 3),
    ("projection", "_rows", 2),
    ("files", "write", 4),
    *[("projection", name, call) for name in ("lock_writers_out", "_held_hashes", "_set_state") for call in (1, 2)],
    *[("upkeep", name, call) for name in ("archive_month", "leave_archived_out", "vacuum_month") for call in (1, 2)],
    *[("partitions", name, call) for name in ("lock_writers_out", "try_lock_ledger", "one") for call in (1, 2)],
]


def test_a_run_killed_anywhere_loses_nothing_and_the_next_one_finishes(year: CandleStore, database: Database) -> None:
    """Kill after kill on the same store: whatever state one leaves is where the next begins."""
    before = everything(year)
    for number, (owner, function, call) in enumerate(POINTS):
        print(owner, function, call)
        killed(start(maintain_and_die, database.url, year.files.root, owner, function, call, number % 2 == 1))
        assert everything(year) == before
    look_after(year, {**EVERYTHING, parse_timeframe("1d"): 365 * 9}, LATER_MS)
    assert everything(year) == before
    assert len(archived(year.connection)) == 12 * (len(TIMEFRAMES) - 1)
    assert {row[0] for row in year.connection.execute("SELECT DISTINCT timeframe FROM trading.candlesticks")} == {"1d"}


def test_while_somebody_reads_on_and_on_rows_still_leave_and_their_space_follows_later(
    year: CandleStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "SWAP_WITHIN_S", 0.05)
    before, january = everything(year), date(2023, 1, 1)
    with database.connect() as reader, reader.transaction():
        one(reader, "SELECT count(*) FROM trading.candlesticks")
        [done] = look_after(year, EVERYTHING, LATER_MS, [january])
        assert len(done.archived) == len(TIMEFRAMES)
        assert not done.dropped
        assert "read or written all the time" in done.problems[0]
        assert january in partition_bytes(year.connection)
    [done] = look_after(year, EVERYTHING, LATER_MS, [january])
    assert done.dropped
    assert january not in partition_bytes(year.connection)
    assert everything(year) == before
