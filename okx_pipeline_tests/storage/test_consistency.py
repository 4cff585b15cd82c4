"""Candles held against shorter ones: which windows are judged, what is found, and what it costs, on real PostgreSQL."""

import threading
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from okx_pipeline.candles import Candle, Source, canonical
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.consistency import Comparison, Mismatch, MismatchClass, compare_and_record
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, Timeframe, day_ms, parse_timeframe

BTC = "BTC-USDT-SWAP"
JANUARY = day_ms(date(2026, 1, 1))
COMPARED = ("open_price", "high_price", "low_price", "close_price", "volume", "volume_currency")
M1, M5, H1 = map(parse_timeframe, ("1m", "5m", "1h"))


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


def text(number: Decimal) -> str:
    return canonical(f"{number:f}")


def random_candle(random: Random, timeframe: Timeframe, open_ms: int, symbol: str) -> Candle:
    """A candle whose highest price is above its lowest, its volumes of uneven scale."""
    prices = sorted(Decimal(number).scaleb(-1) for number in random.sample(range(10_000, 99_999), 3))
    low, _, high = map(text, prices)
    first, last = (text(random.choice(prices)) for _ in range(2))
    volume, currency, quote = (text(Decimal(random.randrange(10**6)).scaleb(-random.randrange(19))) for _ in range(3))
    return Candle(symbol, timeframe.name, open_ms, first, high, low, last, volume, currency, quote)


def random_candles(seed: int, timeframe: Timeframe, start_ms: int, end_ms: int, symbol: str = BTC) -> list[Candle]:
    random = Random(seed)
    return [random_candle(random, timeframe, open_ms, symbol) for open_ms in timeframe.opens(start_ms, end_ms)]


def added_up(timeframe: Timeframe, open_ms: int, short: Iterable[Candle]) -> Candle:
    """The candle of `timeframe` that the candles of its time make."""
    parts = [each for each in short if open_ms <= each.timestamp_ms < timeframe.close_of(open_ms)]
    return parts[0]._replace(
        timeframe=timeframe.name,
        high_price=max((part.high_price for part in parts), key=Decimal),
        low_price=min((part.low_price for part in parts), key=Decimal),
        close_price=parts[-1].close_price,
        volume=text(sum((Decimal(part.volume) for part in parts), Decimal(0))),
        volume_currency=text(sum((Decimal(part.volume_currency) for part in parts), Decimal(0))),
    )


def altered(candle: Candle, column: str) -> Candle:
    """`candle` with another value in one column, still one that a market can have."""
    value, low, high = (Decimal(getattr(candle, name)) for name in (column, "low_price", "high_price"))
    if column in ("open_price", "close_price"):
        changed = low if value == high else high
    else:
        changed = value / 2 if column == "low_price" else value + Decimal("0.000000000000000001")
    row = {**candle._asdict(), column: text(changed)}
    return Candle(**row)


def compare(
    connection: Connection, long: Timeframe, short: Timeframe, start_ms: int, end_ms: int, *, confirmed: bool = False
) -> Comparison:
    return compare_and_record(connection, BTC, long, short, start_ms, end_ms, confirmed_by_rest=confirmed)


def recorded(connection: Connection) -> list[tuple[object, ...]]:
    return connection.execute(
        "SELECT xmin::text, ctid::text, * FROM trading.timeframe_mismatches "
        "ORDER BY symbol, timeframe, timestamp_ms, against, column_name"
    ).fetchall()


PAIRS = [("15m", "5m"), ("1h", "15m"), ("1d", "12h"), ("1w", "1d"), ("1mo", "1d"), ("1mo", "12h")]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pair=st.sampled_from(PAIRS),
    seed=st.integers(0, 2**32),
    windows=st.integers(1, 4),
    column=st.sampled_from([None, *COMPARED, "volume_quote"]),
    place=st.integers(0, 3),
    lost_short=st.sets(st.integers(0, 130), max_size=2),
    lost_long=st.sets(st.integers(0, 3), max_size=1),
)
def test_a_single_altered_value_in_a_whole_window_is_found_as_itself_and_nothing_else(
    connection: Connection,
    pair: tuple[str, str],
    seed: int,
    windows: int,
    column: str | None,
    place: int,
    lost_short: set[int],
    lost_long: set[int],
) -> None:
    connection.execute("TRUNCATE trading.candlesticks, trading.landing_marks, trading.timeframe_mismatches")
    long, short = map(parse_timeframe, pair)
    start_ms = long.first_open(JANUARY)
    end_ms = long.step(start_ms, windows)
    short_candles = random_candles(seed, short, start_ms, end_ms)
    long_candles = [added_up(long, open_ms, short_candles) for open_ms in long.opens(start_ms, end_ms)]
    truth = long_candles[place % windows]
    if column is not None:
        long_candles[place % windows] = altered(truth, column)
    lost = {short_candles[number % len(short_candles)] for number in lost_short}
    lost |= {long_candles[number % windows] for number in lost_long}
    gone = {long.open_at(candle.timestamp_ms) for candle in lost}
    land(connection, set(short_candles + long_candles) - lost, source=Source.REST)

    found = compare(connection, long, short, start_ms, end_ms)

    assert found.windows == windows - len(gone)
    expected = []
    if column in COMPARED and truth.timestamp_ms not in gone:
        values = (getattr(long_candles[place % windows], column), getattr(truth, column))
        expected = [Mismatch(long, truth.timestamp_ms, short, column, *values, MismatchClass.OPEN)]
    assert found.mismatches == expected
    assert [row[4:9] for row in recorded(connection)] == [
        (each.timestamp_ms, each.against.name, each.column, Decimal(each.value), Decimal(each.summed))
        for each in expected
    ]


def land_hours(connection: Connection, *, wrong: Iterable[int] = (), seed: int = 1, days: int = 1) -> list[Candle]:
    """Land January's first days in 5m and 1h, with one contract too many in the `wrong` hours; the hours as landed."""
    short = random_candles(seed, M5, JANUARY, JANUARY + days * DAY_MS)
    hours = [added_up(H1, open_ms, short) for open_ms in H1.opens(JANUARY, JANUARY + days * DAY_MS)]
    for hour in wrong:
        hours[hour] = altered(hours[hour], "volume")
    land(connection, short + hours, source=Source.REST, requested_at=datetime(9999, 1, 1, tzinfo=UTC))
    return hours


def test_only_candles_that_open_in_the_range_are_judged(connection: Connection) -> None:
    land_hours(connection, wrong=[3, 4, 7])
    found = compare(connection, H1, M5, JANUARY + 4 * HOUR_MS - 1, JANUARY + 6 * HOUR_MS + 1)
    assert found.windows == 3
    assert [each.timestamp_ms for each in found.mismatches] == [JANUARY + 4 * HOUR_MS]
    assert compare(connection, H1, M5, JANUARY + 1, JANUARY + HOUR_MS) == Comparison(0, [])


def test_another_symbol_and_another_timeframe_are_not_taken_for_the_series(connection: Connection) -> None:
    short = random_candles(1, M5, JANUARY, JANUARY + HOUR_MS)
    hour = added_up(H1, JANUARY, short)
    strange = random_candles(2, M5, JANUARY, JANUARY + HOUR_MS, "ETH-USDT-SWAP")
    land(connection, [*short, hour, *strange, hour._replace(timeframe="30m")], source=Source.REST)
    assert compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS) == Comparison(1, [])


def test_a_sum_is_told_and_kept_without_padding_zeros(connection: Connection) -> None:
    short = [each._replace(volume="0.5") for each in random_candles(1, M5, JANUARY, JANUARY + HOUR_MS)]
    land(connection, [*short, added_up(H1, JANUARY, short)._replace(volume="7")], source=Source.REST)
    (found,) = compare(connection, H1, M5, JANUARY, JANUARY + HOUR_MS).mismatches
    assert (found.value, found.summed) == ("7", "6")
    kept = connection.execute("SELECT value::text, summed::text FROM trading.timeframe_mismatches").fetchall()
    assert kept == [("7", "6")]


def test_nothing_held_is_nothing_judged(connection: Connection) -> None:
    assert compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS) == Comparison(0, [])


@pytest.mark.parametrize("archived", [H1, M5], ids=str)
def test_windows_of_an_archived_month_are_not_judged_and_what_was_found_in_them_stays(
    connection: Connection, tmp_path: Path, archived: Timeframe
) -> None:
    store = CandleStore(connection, ParquetStore(str(tmp_path)), "here")
    land_hours(connection, wrong=[5])
    assert compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS).windows == 24
    before = recorded(connection)
    store.project([])
    archive_month(connection, store.files, SeriesMonth(BTC, archived.name, date(2026, 1, 1)))
    assert compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS) == Comparison(0, [])
    assert recorded(connection) == before


def test_running_it_again_writes_no_row(connection: Connection) -> None:
    land_hours(connection, wrong=[2, 3])
    for confirmed in (False, True, False):
        first = compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS, confirmed=confirmed)
        written = recorded(connection)
        assert len(written) == len(first.mismatches) == 2
        assert compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS, confirmed=confirmed) == first
        assert recorded(connection) == written
    land_hours(connection)
    compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS)
    written = recorded(connection)
    compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS)
    assert recorded(connection) == written


def test_a_check_waits_for_another_of_the_symbol_and_judges_by_what_that_wrote(
    connection: Connection, database: Database
) -> None:
    land_hours(connection, wrong=[2])
    outcomes: list[Comparison] = []

    def check() -> None:
        with database.connect() as other:
            outcomes.append(compare(other, H1, M5, JANUARY, JANUARY + DAY_MS))

    thread = threading.Thread(target=check)
    with connection.transaction():
        compare(connection, H1, M5, JANUARY, JANUARY + DAY_MS, confirmed=True)
        thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with database.connect() as watching:
            while thread.is_alive() and watching.execute(waiting).fetchone() != (1,):
                thread.join(0.01)
        assert thread.is_alive()
    thread.join(30)
    assert [each.class_ for each in outcomes[0].mismatches] == [MismatchClass.EXCHANGE]


def rows_read(connection: Connection) -> tuple[int, int]:
    """Candles that this session has read so far by passing over whole tables, and by the key."""
    found = connection.execute(
        "SELECT sum(seq_tup_read)::bigint, sum(idx_tup_fetch)::bigint FROM pg_stat_xact_user_tables "
        "WHERE schemaname = 'trading' AND relname ~ '^candlesticks_[0-9]'"
    ).fetchone()
    assert found is not None
    return found[0], found[1]


@pytest.mark.parametrize("statistics", [False, True], ids=["just landed", "analyzed"])
def test_each_candle_of_the_range_is_read_once_by_the_key_and_no_other(
    connection: Connection, statistics: bool
) -> None:
    for number, symbol in enumerate((BTC, "ETH-USDT-SWAP", "SOL-USDT-SWAP")):
        land(connection, random_candles(number, M1, JANUARY, JANUARY + 2 * DAY_MS, symbol), source=Source.REST)
    land(connection, random_candles(9, M5, JANUARY, JANUARY + 2 * DAY_MS), source=Source.REST)
    if statistics:
        connection.execute("ANALYZE trading.candlesticks")
    hours = 6
    with connection.transaction():
        before = rows_read(connection)
        found = compare(connection, M5, M1, JANUARY + DAY_MS, JANUARY + DAY_MS + hours * HOUR_MS)
        after = rows_read(connection)
    assert found.windows == hours * 12
    assert (after[0] - before[0], after[1] - before[1]) == (0, hours * 60 + hours * 12)
