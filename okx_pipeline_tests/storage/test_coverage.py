"""The coverage ledger: what it says of a day is what the rows say, whatever happened before."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from okx_pipeline.alerts.sources import damaged_archives
from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.errors import UsageError
from okx_pipeline.ranges import Range, runs
from okx_pipeline.storage import coverage, gaps
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import (
    DayCoverage,
    Read,
    count,
    count_moved,
    day_coverage,
    days_to_reconcile,
    is_verified,
    lay_out,
    note_reads,
    series_coverage,
    unfinished_days,
    unjudged_days,
)
from okx_pipeline.storage.damage import look_at_files
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.gaps import Verdict, series_with_gaps
from okx_pipeline.storage.landing import STRAIGHT_FROM, SeriesDay
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month
from okx_pipeline.storage.subscriptions import subscribe, unsubscribe
from okx_pipeline.storage.wanted import FOR_EVER_MS, NOTHING, forget, want, wanted_ranges, wants
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe, day_ms, parse_timeframe

SYMBOL = "BTC-USDT-SWAP"
HOUR = parse_timeframe("1h")
MINUTE = parse_timeframe("1m")
DAY = parse_timeframe("1d")
WEEK = parse_timeframe("1w")
MONTH = parse_timeframe("1mo")
FIRST = date(2026, 8, 3)
"""A Monday."""
START_MS = day_ms(FIRST)
NOON_OF_THIRD_MS = START_MS + 2 * DAY_MS + 12 * HOUR_MS + MINUTE_MS


@pytest.fixture
def store(emptied_database: Database, tmp_path: Path) -> Iterator[CandleStore]:
    with CandleStore.opened(emptied_database, ParquetStore(str(tmp_path / "parquet"))) as opened:
        yield opened


def candle(open_ms: int, timeframe: Timeframe = HOUR, volume: str = "5") -> Candle:
    return Candle(SYMBOL, timeframe.name, open_ms, "10", "12", "9", "11", volume, "0.05", "0.55")


def refused(open_ms: int) -> Refused:
    return Refused(SYMBOL, HOUR.name, open_ms, "a price is zero", f'["{open_ms}","0"]')


def land(store: CandleStore, opens: list[int], timeframe: Timeframe = HOUR, volume: str = "5") -> None:
    at = datetime.now(tz=UTC) + timedelta(minutes=1)
    store.land([candle(each, timeframe, volume) for each in opens], source=Source.REST, requested_at=at)


def ledger(store: CandleStore, days: int = 40) -> list[DayCoverage]:
    return day_coverage(store.connection, SYMBOL, FIRST - timedelta(days), FIRST + timedelta(days))


def numbers(each: DayCoverage) -> tuple[int, int, int, int, int]:
    return each.expected, each.present, each.absent, each.quarantined, each.missing


def subscribed(store: CandleStore, *timeframes: Timeframe) -> None:
    subscribe(store.connection, [SYMBOL], timeframes or [HOUR], START_MS)


def test_a_day_wanted_and_not_held_at_all_is_missing_whole(store: CandleStore) -> None:
    subscribed(store)
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert [(each.day, numbers(each)) for each in ledger(store)] == [
        (FIRST, (24, 0, 0, 0, 24)),
        (FIRST + timedelta(1), (24, 0, 0, 0, 24)),
        (FIRST + timedelta(2), (12, 0, 0, 0, 12)),
    ]


def test_what_a_stream_landed_is_counted_though_nobody_has_made_its_marks(store: CandleStore) -> None:
    opens = [START_MS + number * MINUTE_MS for number in range(STRAIGHT_FROM)]
    store.land([candle(each, MINUTE) for each in opens], source=Source.WEBSOCKET)
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert [each.present for each in ledger(store)] == [STRAIGHT_FROM]


def test_what_lands_while_its_day_is_counted_is_held_or_missing_and_counted_anew(
    store: CandleStore, emptied_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribed(store)
    land(store, [START_MS + 2 * HOUR_MS])

    def landing_meanwhile(connection: Connection) -> set[tuple[str, str]]:
        with CandleStore.opened(emptied_database, store.files) as another:
            land(another, [START_MS, START_MS + HOUR_MS])
        return series_with_gaps(connection)

    monkeypatch.setattr(coverage, "series_with_gaps", landing_meanwhile)
    count(store.connection, store.files, START_MS + DAY_MS + MINUTE_MS)
    assert sum(numbers(ledger(store)[0])[1:]) == 24
    monkeypatch.undo()
    count(store.connection, store.files, START_MS + DAY_MS + MINUTE_MS)
    assert numbers(ledger(store)[0]) == (24, 3, 0, 0, 21)


def test_a_count_that_is_ended_leaves_the_rest_to_the_next(store: CandleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "DAYS_AT_ONCE", 2)
    land(store, [START_MS + number * DAY_MS for number in range(3)])
    asked: list[float] = []

    def once(took_s: float) -> bool:
        asked.append(took_s)
        return False

    assert count_moved(store.connection, store.files, NOON_OF_THIRD_MS, once) == 2
    assert len(asked) == 1
    assert asked[0] > 0
    assert count_moved(store.connection, store.files, NOON_OF_THIRD_MS) == 1
    assert [each.present for each in ledger(store)] == [1, 1, 1]


def test_the_ledger_is_laid_out_series_by_series_and_goes_on_where_it_was_ended(
    store: CandleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "DAYS_AT_ONCE", 2)
    subscribed(store, HOUR, MINUTE, DAY)
    laid = []
    while days := lay_out(store.connection, store.files, NOON_OF_THIRD_MS, lambda took_s: False):
        laid.append(days)
    assert laid == [3, 3, 3]
    assert len(ledger(store)) == 9


def test_the_damaged_file_of_an_archived_month_keeps_its_own_days_alone_from_being_counted(
    store: CandleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = SeriesMonth(SYMBOL, "1h", date(2026, 8, 1))
    land(store, [START_MS])
    store.project([])
    archive_month(store.connection, store.files, month)
    path = Path(store.files.place(month))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    subscribed(store, HOUR, MINUTE)
    land(store, [START_MS], MINUTE)
    for _ in range(2):
        with pytest.raises(DamagedFileError, match=f"^{path}: "):
            store.account(NOON_OF_THIRD_MS, {})
        assert [(each.timeframe, each.present) for each in ledger(store)] == [("1m", 1), ("1m", 0), ("1m", 0)]
    path.write_bytes(whole)
    store.account(NOON_OF_THIRD_MS, {})
    assert [each.present for each in ledger(store) if each.timeframe == "1h"] == [1, 0, 0]


class Watched(ParquetStore):
    """A store that counts how often a file is opened."""

    opens_of_files = 0

    @contextmanager
    def opened(self, month: SeriesMonth) -> Iterator[Any]:
        self.opens_of_files += 1
        with super().opened(month) as source:
            yield source


@pytest.mark.parametrize("harm", ["cut off", "a folder in its place"])
def test_a_series_with_a_damaged_month_is_laid_out_once_and_counted_when_the_file_is_back(
    store: CandleStore, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(coverage, "DAYS_AT_ONCE", 2)
    connection, files = store.connection, Watched(store.files.root)
    land(store, [START_MS])
    store.project([])
    archive_month(connection, files, SeriesMonth(SYMBOL, "1h", date(2026, 8, 1)))
    path = Path(files.place(SeriesMonth(SYMBOL, "1h", date(2026, 8, 1))))
    whole = path.read_bytes()
    path.unlink()
    if harm == "cut off":
        path.write_bytes(whole[:-9])
    else:
        path.mkdir()
    # What was there of the month before somebody wanted more of it.
    subscribed(store, HOUR, MINUTE)

    def lay() -> int:
        return lay_out(connection, files, NOON_OF_THIRD_MS, lambda took_s: False)

    with pytest.raises(DamagedFileError, match=f"^{path}: "):
        lay()
    [incident] = damaged_archives(connection)
    assert incident.subject == SYMBOL
    assert str(path) in incident.text
    opens_of_files = files.opens_of_files
    assert [lay(), lay(), lay()] == [3, 0, 0], "the series after it has its turn, and it has none again"
    assert count_moved(connection, files, NOON_OF_THIRD_MS) == 1, "the day of minutes that is open"
    assert files.opens_of_files == opens_of_files
    assert damaged_archives(connection) == [incident]
    if path.is_dir():
        path.rmdir()
    path.write_bytes(whole)
    look_at_files(connection, files, None, lambda took_s: True)
    assert damaged_archives(connection) == []
    assert count_moved(connection, files, NOON_OF_THIRD_MS) == 4
    assert [each.present for each in ledger(store) if each.timeframe == "1h"] == [1, 0, 0]


def test_a_candle_is_expected_a_minute_after_it_closes(store: CandleStore) -> None:
    subscribed(store)
    count(store.connection, store.files, NOON_OF_THIRD_MS - 1)
    assert ledger(store)[-1].expected == 11
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert ledger(store)[-1].expected == 12


def test_only_a_closed_day_has_a_hash_and_it_is_that_of_its_rows(store: CandleStore, connection: Connection) -> None:
    subscribed(store)
    land(store, list(HOUR.opens(START_MS, NOON_OF_THIRD_MS - HOUR_MS)))
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    first, second, third = ledger(store)
    assert first.is_whole
    assert second.is_whole
    assert third.content_hash is None
    assert not third.is_whole
    hashed = store.connection.execute(
        "SELECT trading.content_hash(%s, '1h', %s, %s)", (SYMBOL, START_MS, START_MS + DAY_MS)
    ).fetchone()
    assert hashed == (first.content_hash,)
    store.project([])
    state = store.files.state(SeriesMonth(SYMBOL, "1h", date(2026, 8, 1)))
    assert state is not None
    assert state.day_hashes[FIRST] == first.content_hash


def test_a_day_whose_wanted_half_is_empty_has_the_hash_of_its_other_half(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS + DAY_MS // 2)
    land(store, [START_MS])
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    first, second, _ = ledger(store)
    assert numbers(first) == (12, 0, 0, 0, 12)
    hashes = [
        store.connection.execute("SELECT trading.content_hash(%s, '1h', %s, %s)", (SYMBOL, *within)).fetchone()
        for within in [(START_MS, START_MS + DAY_MS), (START_MS + DAY_MS, START_MS + 2 * DAY_MS)]
    ]
    assert hashes == [(first.content_hash,), (second.content_hash,)]


def test_weeks_and_months_stand_in_the_day_they_open_on(store: CandleStore) -> None:
    subscribed(store, WEEK, MONTH, DAY)
    land(store, [START_MS], WEEK)
    count(store.connection, store.files, day_ms(date(2026, 9, 1)) + MINUTE_MS)
    rows = ledger(store)
    weeks = [each for each in rows if each.timeframe == "1w"]
    assert [(each.day, numbers(each)) for each in weeks] == [
        (FIRST, (1, 1, 0, 0, 0)),
        (FIRST + timedelta(7), (1, 0, 0, 0, 1)),
        (FIRST + timedelta(14), (1, 0, 0, 0, 1)),
        (FIRST + timedelta(21), (1, 0, 0, 0, 1)),
        (FIRST + timedelta(28), (0, 0, 0, 0, 0)),
    ]
    months = [(each.day, numbers(each)) for each in rows if each.timeframe == "1mo"]
    assert months == [(date(2026, 9, 1), (0, 0, 0, 0, 0))]


def wanted_days(store: CandleStore, first: int, days: int, timeframe: Timeframe = HOUR) -> None:
    """Want `days` days, of which the first is `first` days after FIRST."""
    start_ms = START_MS + first * DAY_MS
    key = (SYMBOL, timeframe.name)
    want(store.connection, {key: [Range(start_ms, start_ms + days * DAY_MS)]}, "backfill")


def test_a_day_that_is_held_and_that_nobody_wants_expects_what_it_holds_and_is_checked_and_not_fetched(
    store: CandleStore,
) -> None:
    subscribed(store)
    before_ms = START_MS - 5 * DAY_MS
    land(store, [before_ms])
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    first = ledger(store)[0]
    assert (numbers(first), first.wanted) == ((1, 1, 0, 0, 0), False)
    assert first.content_hash is not None
    assert unjudged_days(store.connection, [SYMBOL]) == [SeriesDay(SYMBOL, "1h", first.day)]
    unfinished = unfinished_days(store.connection, [SYMBOL])
    assert sorted((each.key.day, each.closed, each.read) for each in unfinished) == [
        (FIRST, True, False),
        (FIRST + timedelta(1), True, False),
        (FIRST + timedelta(2), False, False),
    ]
    [summed] = series_coverage(store.connection)
    assert (summed.first, summed.expected, summed.missing) == (first.day, 61, 60)


def test_a_wanted_range_is_expected_and_missing_like_what_is_subscribed(store: CandleStore) -> None:
    wanted_days(store, 0, 2)
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert [(each.day, numbers(each), each.wanted) for each in ledger(store)] == [
        (FIRST, (24, 0, 0, 0, 24), True),
        (FIRST + timedelta(1), (24, 0, 0, 0, 24), True),
    ]
    assert len(unfinished_days(store.connection, [SYMBOL])) == 2


def test_what_is_wanted_of_today_and_later_comes_due_day_by_day(store: CandleStore) -> None:
    wanted_days(store, 2, 3)
    for now_ms, expected in ((NOON_OF_THIRD_MS, [12]), (NOON_OF_THIRD_MS + DAY_MS, [24, 12])):
        count(store.connection, store.files, now_ms)
        assert [each.expected for each in ledger(store)] == expected


def test_rows_that_cannot_be_of_the_instrument_are_held_and_counted(store: CandleStore) -> None:
    subscribed(store)
    store.connection.execute(
        "INSERT INTO trading.instruments (symbol, valid_from, instrument_type, listed_ms, state) "
        "VALUES (%s, now(), 'SWAP', %s, 'live')",
        (SYMBOL, START_MS + DAY_MS),
    )
    land(store, [START_MS])
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert [(each.expected, each.present, each.wanted) for each in ledger(store)] == [
        (1, 1, False),
        (24, 0, True),
        (12, 0, True),
    ]


def test_only_the_days_that_something_changes_for_are_counted_anew(store: CandleStore) -> None:
    subscribed(store)
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    wanted_days(store, -3, 2)
    assert lay_out(store.connection, store.files, NOON_OF_THIRD_MS) == 2
    forget(store.connection, SYMBOL, [], Range(START_MS - 2 * DAY_MS, START_MS))
    assert lay_out(store.connection, store.files, NOON_OF_THIRD_MS) == 1
    assert [each.day for each in ledger(store)][:2] == [FIRST - timedelta(3), FIRST]
    assert lay_out(store.connection, store.files, NOON_OF_THIRD_MS) == 0


def test_what_is_wanted_may_change_and_the_ledger_follows(store: CandleStore) -> None:
    subscribed(store)
    land(store, [START_MS + DAY_MS])
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    subscribe(store.connection, [SYMBOL], [HOUR], START_MS - DAY_MS)
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert ledger(store)[0].day == FIRST - timedelta(1)
    note_reads(store.connection, {SeriesDay(SYMBOL, "1h", FIRST - timedelta(1)): Read(24, 0, False, NOON_OF_THIRD_MS)})
    # Of what ends, what was read or is held stays wanted, up to the moment it ended.
    unsubscribe(store.connection, [SYMBOL], [], START_MS + DAY_MS + 2 * HOUR_MS)
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert [(each.day, each.expected, each.missing) for each in ledger(store)] == [
        (FIRST - timedelta(1), 24, 24),
        (FIRST + timedelta(1), 2, 1),
    ]
    forget(store.connection, SYMBOL, [], Range(0, NOON_OF_THIRD_MS))
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert [(each.day, numbers(each)) for each in ledger(store)] == [(FIRST + timedelta(1), (1, 1, 0, 0, 0))]


def test_an_archived_months_candles_count_as_present(store: CandleStore) -> None:
    subscribed(store)
    land(store, list(HOUR.opens(START_MS, START_MS + 2 * DAY_MS - HOUR_MS)))
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    before = ledger(store)
    store.project([])
    archive_month(store.connection, store.files, SeriesMonth(SYMBOL, "1h", date(2026, 8, 1)))
    # Every day anew, from the file.
    store.connection.execute("DELETE FROM trading.coverage_extents")
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert ledger(store) == before


def test_a_day_is_verified_only_where_rest_served_exactly_what_is_held(store: CandleStore) -> None:
    subscribed(store)
    land(store, list(HOUR.opens(START_MS, START_MS + 2 * DAY_MS)))
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    first, second = (SeriesDay(SYMBOL, "1h", FIRST + timedelta(each)) for each in range(2))
    at_ms = NOON_OF_THIRD_MS
    note_reads(store.connection, {first: Read(24, 24, False, at_ms), second: Read(24, 23, False, at_ms)})
    rows = ledger(store)
    assert [each.verified_at is not None for each in rows] == [True, False, False]
    assert [each.read_at is not None for each in rows] == [True, True, False]
    note_reads(store.connection, {second: Read(23, 23, False, at_ms)})
    assert not ledger(store)[1].verified_at
    note_reads(store.connection, {second: Read(24, 24, True, at_ms)})
    assert not ledger(store)[1].verified_at


def test_a_day_that_changes_is_verified_no_more(store: CandleStore) -> None:
    subscribed(store)
    opens = list(HOUR.opens(START_MS, START_MS + DAY_MS))
    land(store, opens)
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    key = SeriesDay(SYMBOL, "1h", FIRST)
    note_reads(store.connection, {key: Read(24, 24, False, NOON_OF_THIRD_MS)})
    rows = ledger(store)[:1]
    assert is_verified(store.connection, rows)
    # By hand, which leaves no mark; then by a landing.
    store.connection.execute("UPDATE trading.candlesticks SET volume = 7 WHERE timestamp_ms = %s", (opens[0],))
    assert not is_verified(store.connection, rows)
    land(store, opens[1:2], volume="6")
    count(store.connection, store.files, NOON_OF_THIRD_MS)
    assert ledger(store)[0].verified_at is None
    assert not is_verified(store.connection, ledger(store)[:1])


def test_a_day_is_to_be_read_once_more_when_eight_days_have_passed(store: CandleStore) -> None:
    subscribed(store)
    land(store, list(HOUR.opens(START_MS, START_MS + 2 * DAY_MS)))
    now_ms = START_MS + 10 * DAY_MS
    count(store.connection, store.files, now_ms)
    first = SeriesDay(SYMBOL, "1h", FIRST)
    due_ms = START_MS + 9 * DAY_MS
    assert days_to_reconcile(store.connection, [SYMBOL], due_ms) == []  # not read a first time yet
    note_reads(store.connection, {first: Read(24, 24, False, due_ms - 1)})
    assert days_to_reconcile(store.connection, [SYMBOL], due_ms - 1) == []
    assert days_to_reconcile(store.connection, [SYMBOL], due_ms) == [first]
    note_reads(store.connection, {first: Read(24, 24, False, due_ms)})
    assert days_to_reconcile(store.connection, [SYMBOL], due_ms) == []


def test_a_month_is_read_once_more_eight_days_after_it_ended(store: CandleStore) -> None:
    subscribed(store, MONTH)
    opens_ms = day_ms(date(2026, 9, 1))
    land(store, [opens_ms], MONTH)
    due_ms = day_ms(date(2026, 10, 9))
    count(store.connection, store.files, due_ms)
    key = SeriesDay(SYMBOL, "1mo", date(2026, 9, 1))
    note_reads(store.connection, {key: Read(1, 1, False, day_ms(date(2026, 10, 1)) + HOUR_MS)})
    assert days_to_reconcile(store.connection, [SYMBOL], due_ms - 1) == []
    assert days_to_reconcile(store.connection, [SYMBOL], due_ms) == [key]


# Hours of four days: one before the subscription, and three of which the last is half over.
hours = st.integers(-24, 70).map(lambda hour: START_MS + hour * HOUR_MS)
day_ranges = st.tuples(st.integers(-1, 2), st.integers(1, 3)).map(list)
steps: st.SearchStrategy[tuple[str, list[int], str | None]] = st.one_of(
    st.tuples(st.just("land"), st.lists(hours, min_size=1, max_size=30), st.sampled_from(["5", "6"])),
    st.tuples(st.just("quarantine"), st.lists(hours, min_size=1, max_size=3), st.none()),
    st.tuples(st.just("absent"), st.lists(hours, min_size=1, max_size=3), st.none()),
    st.tuples(st.just("detect"), st.just([]), st.none()),
    st.tuples(st.just("count"), st.just([]), st.none()),
    st.tuples(st.sampled_from(["want", "forget"]), day_ranges, st.none()),
    st.tuples(st.sampled_from(["subscribe", "unsubscribe"]), st.just([]), st.none()),
)


class _Model:
    """What a store ought to say, in sets of open times."""

    def __init__(self, store: CandleStore) -> None:
        self.store = store
        self.due = set(HOUR.opens(START_MS - DAY_MS, NOON_OF_THIRD_MS - MINUTE_MS))
        self.held: set[int] = set()
        self.refusals: set[int] = set()
        self.absences: set[int] = set()
        self.ranges: set[int] = set()
        self.is_subscribed = False

    @property
    def wanted(self) -> set[int]:
        live = HOUR.opens(START_MS, START_MS + 9 * DAY_MS) if self.is_subscribed else ()
        return self.ranges | set(live)

    def count(self) -> None:
        count(self.store.connection, self.store.files, NOON_OF_THIRD_MS)

    def detect(self) -> None:
        pieces = (
            wants(self.store.connection).get((SYMBOL, "1h"), NOTHING).within(Range(0, NOON_OF_THIRD_MS - MINUTE_MS))
        )
        for piece in pieces:
            lacking = sorted(set(HOUR.opens(*piece)) & self.due - self.held - self.refusals)
            self.store.record_gaps(SYMBOL, HOUR, piece, runs(HOUR, lacking), NOON_OF_THIRD_MS)

    def take(self, step: str, numbers: list[int], volume: str | None) -> None:
        store, connection = self.store, self.store.connection
        if step == "land":
            land(store, numbers, volume=volume or "5")
            self.held.update(numbers)
        elif step == "quarantine":
            store.land([], [refused(each) for each in numbers], source=Source.REST)
            self.refusals.update(numbers)
        elif step == "absent":
            self.detect()
            for each in numbers:
                for gap in gaps.unresolved_gaps(connection, SYMBOL, HOUR, Range(each, each + HOUR_MS)):
                    verdict = Verdict(Range(each, each + HOUR_MS), "absent", "not_served", [{"asked_ms": 1}], None)
                    store.settle_gap(gap, [verdict], NOON_OF_THIRD_MS)
                    self.absences.add(each)
        elif step == "detect":
            self.detect()
        elif step == "count":
            self.count()
        elif step == "subscribe":
            subscribed(store)
            self.is_subscribed = True
        elif step == "unsubscribe" and self.is_subscribed:
            unsubscribe(connection, [SYMBOL], [], START_MS + 3 * DAY_MS)
            days = {each // DAY_MS for each in self.held if each >= START_MS}
            self.ranges.update(each for each in self.wanted if each // DAY_MS in days)
            self.is_subscribed = False
        elif step == "want":
            wanted_days(store, *numbers)
            live = set(self.wanted) - self.ranges
            self.ranges.update(set(self._days(*numbers)) - live)
        elif step == "forget" and not (self.is_subscribed and sum(numbers) > 0):
            within = Range(START_MS + numbers[0] * DAY_MS, START_MS + sum(numbers) * DAY_MS)
            forget(connection, SYMBOL, [], within)
            self.ranges.difference_update(self._days(*numbers))

    def _days(self, first: int, days: int) -> Iterator[int]:
        return HOUR.opens(START_MS + first * DAY_MS, START_MS + (first + days) * DAY_MS)

    def rows(self) -> dict[date, tuple[int, int, int, int, int]]:
        rows = {}
        for number in range(-1, 3):
            day = set(self._days(number, 1))
            wanted, held = day & self.wanted, day & self.held
            expected = wanted & self.due
            lacks = expected - held
            if wanted:
                rows[FIRST + timedelta(number)] = (
                    len(expected),
                    len(expected & held),
                    len(lacks & self.absences - self.refusals),
                    len(lacks & self.refusals),
                    len(lacks - self.refusals - self.absences),
                )
            elif held:
                rows[FIRST + timedelta(number)] = (len(held), len(held), 0, 0, 0)
        return rows


@given(st.lists(steps, max_size=10))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_sequence_the_ledger_is_what_a_recount_gives(
    store: CandleStore, done: list[tuple[str, list[int], str | None]]
) -> None:
    connection = store.connection
    for table in (
        *("candlesticks", "coverage", "coverage_extents", "candle_gaps", "landing_marks", "candlesticks_quarantine"),
        *("candlestick_revisions", "subscriptions", "wanted_ranges"),
    ):
        connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier("trading", table)))
    model = _Model(store)
    model.take("subscribe", [], None)
    for step in done:
        model.take(*step)
    model.count()

    # Gaps are of wanted candles that are not held, each in one of them at most.
    whole = Range(START_MS - DAY_MS, START_MS + 9 * DAY_MS)
    on_record = gaps.unresolved_gaps(connection, SYMBOL, HOUR, whole)
    covered = [open_ms for gap in on_record for open_ms in HOUR.opens(*gap.range)]
    assert len(covered) == len(set(covered))
    assert set(covered) <= (model.wanted & model.due) - model.held - model.refusals
    absent = {each for gap in on_record if gap.status == "absent" for each in HOUR.opens(*gap.range)}
    assert absent <= model.absences
    if not any(step in ("forget", "unsubscribe") for step, _, _ in done):
        assert absent == (model.absences & model.wanted) - model.held - model.refusals
    model.absences = absent
    rows = ledger(store)
    assert {row.day: numbers(row) for row in rows} == model.rows()
    assert connection.execute("SELECT count(*) FROM trading.landing_marks WHERE counted < revision").fetchone() == (0,)
    connection.execute("DELETE FROM trading.coverage")
    connection.execute("DELETE FROM trading.coverage_extents")
    connection.execute("UPDATE trading.landing_marks SET counted = 0")
    model.count()
    assert ledger(store) == rows


def test_ranges_that_touch_join_and_stay_wanted_by_whoever_asked_first(connection: Connection) -> None:
    key = (SYMBOL, "1h")
    day = [START_MS + number * DAY_MS for number in range(9)]
    want(connection, {key: [Range(day[0], day[1]), Range(day[2], day[3])]}, "backfill")
    [joined] = want(connection, {key: [Range(day[1], day[2])]}, "person")
    assert (joined.since_ms, joined.until_ms, joined.wanted_by) == (day[0], day[3], "backfill")
    assert want(connection, {key: [Range(day[0], day[3])]}, "person") == []
    subscribe(connection, [SYMBOL], [HOUR], day[6])
    want(connection, {key: [Range(day[5], day[8])], (SYMBOL, "1d"): [Range(day[6], day[7])]}, "person")
    assert [(each.timeframe.name, each.since_ms, each.until_ms) for each in wanted_ranges(connection)] == [
        ("1d", day[6], day[7]),
        ("1h", day[0], day[3]),
        ("1h", day[5], day[6]),
    ]
    with pytest.raises(
        UsageError, match=f"^{SYMBOL} is subscribed in 1h since 2026-08-09; name what lies before with --end"
    ):
        forget(connection, SYMBOL, [], Range(0, day[8]))
    gone = forget(connection, SYMBOL, [HOUR], Range(day[1], day[2]))
    assert gone == {HOUR: [Range(day[1], day[2])]}
    assert wants(connection)[key].ranges == (
        Range(day[0], day[1]),
        Range(day[2], day[3]),
        Range(day[5], FOR_EVER_MS),
    )
