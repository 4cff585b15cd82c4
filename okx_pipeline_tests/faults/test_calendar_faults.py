"""Calendars under faults: bars of another midnight, turns of months and leap years, days on which nothing can be."""

import random
from datetime import UTC, date, datetime, timedelta

import msgspec
import psycopg
import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.errors import PipelineError
from okx_pipeline.history.backfill import Backfill
from okx_pipeline.quality.daily import mend_days
from okx_pipeline.quality.repair import AGAIN_YOUNG_MS
from okx_pipeline.replay.bars import BARS
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS, day_ms, parse_timeframe
from okx_pipeline_tests.faults.past import MINUTES_INTO_DAY, MakeSystem, a_past, day, filled, with_backfill
from okx_pipeline_tests.faults.system import System

BTC, YOUNG, GONE = "BTC-USDT-SWAP", "SYN0001-USDT-SWAP", "OLD-USDT-SWAP"
BOTH_CALENDARS = {"1d": "1D", "1w": "1W", "1mo": "1M", "6h": "6H", "12h": "12H"}
"""OKX's bars that open at Hong Kong midnight, by ours of the same length."""


def expected_by_the_calendar(name: str, first: date, now: datetime) -> dict[date, int]:
    """Candles that open on each day and closed a minute ago or earlier, by nothing but the calendar."""
    due = {}
    for number in range((now.date() - first).days + 1):
        opens_on = first + timedelta(days=number)
        midnight = datetime(opens_on.year, opens_on.month, opens_on.day, tzinfo=UTC)
        if name == "1w":
            closes = [midnight + timedelta(days=7)] if opens_on.isoweekday() == 1 else []
        elif name == "1mo":
            closes = [(midnight + timedelta(days=31)).replace(day=1)] if opens_on.day == 1 else []
        else:
            hours = {"1h": 1, "4h": 4, "6h": 6, "12h": 12, "1d": 24}[name]
            closes = [midnight + timedelta(hours=hour) for hour in range(hours, 25, hours)]
        due[opens_on] = sum(moment + timedelta(minutes=1) <= now for moment in closes)
    return {opens_on: number for opens_on, number in due.items() if number}


def expected_by_the_ledger(system: System, symbol: str, name: str) -> dict[date, int]:
    query = (
        "SELECT day, expected FROM trading.coverage WHERE symbol = %s AND timeframe = %s AND expected > 0 ORDER BY day"
    )
    return {found: int(expected) for found, expected in system.rows(query, symbol, name)}


def now_at(system: System) -> datetime:
    return datetime.fromtimestamp(system.now_ms() / 1000, UTC)


@pytest.mark.fault(21, "Hong Kong bars for UTC ones, weeks and months", tries=12)
def test_candles_of_the_hong_kong_day_are_never_kept_as_those_of_the_utc_day(
    make_system: MakeSystem, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    # Of the first try, and of others by chance, over the leap day; all of them over the turns of months and weeks.
    first = date(2024, 1, 15) if seed == 1 else date(2020, 3, 1) + timedelta(days=chance.randrange(2_000))
    days = chance.randrange(70, 110)
    system = a_past(make_system, days, ",".join(BOTH_CALENDARS), since_ms=day_ms(first))
    ours, theirs = chance.choice(sorted(BOTH_CALENDARS.items()))
    with monkeypatch.context() as exchange_is_mistaken:
        exchange_is_mistaken.setitem(BARS, parse_timeframe(ours).bar, BARS[theirs])
        try:
            filled(system, 0, days // 2)
        except PipelineError as problem:
            print(f"{ours} served as {theirs}: {problem}")
    assert system.rows("SELECT * FROM trading.candlesticks WHERE timeframe = %s", ours) == []
    filled(system, 0, days + 1)
    assert system.recovers(20).explained == 0
    for symbol, name in system.series():
        wanted = expected_by_the_calendar(name, first, now_at(system))
        assert expected_by_the_ledger(system, symbol, name) == wanted, (symbol, name, first)


@pytest.mark.fault(21, "Hong Kong bars for UTC ones, weeks and months", checked=False)
def test_the_tables_themselves_refuse_a_candle_that_opens_at_no_utc_boundary(system: System) -> None:
    end_ms = day_ms(date(2026, 8, 1))
    with CandleStore.opened(system.database, ParquetStore(system.settings.parquet_root)) as store:
        for ours, theirs in BOTH_CALENDARS.items():
            [row] = system.exchange.confirmed(BTC, BARS[theirs], after_ms=end_ms, before_ms=0, limit=1)
            with pytest.raises((psycopg.IntegrityError, PipelineError)):
                store.land([Candle(BTC, ours, int(row[0]), *row[1:8])], source=Source.REST)
    assert system.rows("SELECT * FROM trading.candlesticks") == []


# Days on which nothing can be


def repaired(system: System, *days: int) -> None:
    """What a run does about gaps on these days, asking twice what is to be asked twice."""

    async def mend(backfill: Backfill) -> None:
        await mend_days(backfill, {symbol: [day(system, each) for each in days] for symbol in system.settings.symbols})

    with_backfill(system.settings, system.database, mend)


@pytest.mark.fault(29, "days still open, to come, before the listing, after the expiry", tries=6)
def test_what_is_expected_of_an_open_day_a_future_day_and_before_the_listing_is_what_can_be(
    make_system: MakeSystem, seed: int
) -> None:
    # Listed on 2026-10-20 at 10:00; asked for from two days before that until some days from "now".
    chance, first = random.Random(seed), date(2026, 10, 18)
    days = chance.randrange(3, 7)
    system = a_past(make_system, days, "1h,1d", since_ms=day_ms(first), symbols=f"{BTC},{YOUNG}")
    ahead = chance.randrange(2, 5)
    for _ in range(2):
        filled(system, 0, days + ahead)
        repaired(system, *range(days + 1))
        assert system.recovers(20).explained == 0
        for name in ("1h", "1d"):
            wanted = expected_by_the_calendar(name, first, now_at(system))
            assert expected_by_the_ledger(system, BTC, name) == wanted
            listed = {each: number for each, number in wanted.items() if each >= date(2026, 10, 20)}
            if name == "1h" and date(2026, 10, 20) in listed:
                # Fourteen hours are left of that day; "now" may stand before they are over.
                ends = datetime(2026, 10, 20, 11, 1, tzinfo=UTC)
                listed[date(2026, 10, 20)] = sum(ends + timedelta(hours=hour) <= now_at(system) for hour in range(14))
            assert expected_by_the_ledger(system, YOUNG, name) == {
                each: number for each, number in listed.items() if number
            }
        assert system.rows("SELECT * FROM trading.candle_gaps") == []
        # The day that was open is over, and one that was to come is open.
        system.exchange.clock.set(system.now_ms() + DAY_MS + chance.randrange(20) * HOUR_MS)


@pytest.mark.fault(29, "days still open, to come, before the listing, after the expiry", tries=6)
def test_a_listing_that_is_earlier_than_the_first_candle_is_an_explained_gap(
    make_system: MakeSystem, seed: int
) -> None:
    # OKX says that it was listed on 2019-11-12; its first candle opens on 2019-12-16 at 04:00.
    chance, first = random.Random(seed), date(2019, 12, 10)
    back = chance.randrange(4)
    system = a_past(make_system, 8, "1h,4h", since_ms=day_ms(first), symbols=BTC)
    filled(system, back, 9)
    repaired(system, *range(9))
    system.recovers(20)
    gaps = system.rows("SELECT timeframe, reason, status, candles FROM trading.candle_gaps ORDER BY 1")
    assert gaps == [("1h", "before_first", "absent", 6 * 24 + 4), ("4h", "before_first", "absent", 6 * 6 + 1)]
    absent = system.rows("SELECT timeframe, sum(absent), sum(missing) FROM trading.coverage GROUP BY 1 ORDER BY 1")
    assert absent == [("1h", 6 * 24 + 4, 0), ("4h", 6 * 6 + 1, 0)]


@pytest.mark.fault(29, "days still open, to come, before the listing, after the expiry", tries=6)
@pytest.mark.parametrize("told", [True, False], ids=["expiry known", "expiry never told"])
def test_an_instrument_that_went_is_whole_to_its_end_and_nothing_is_wanted_of_it_after_that(
    make_system: MakeSystem, seed: int, told: bool
) -> None:
    # It goes on 2024-06-28 at 08:00.
    chance, first = random.Random(seed), date(2024, 6, 20)
    before = chance.randrange(2, 8)
    system = a_past(make_system, before, "1h,1d", since_ms=day_ms(first), symbols=GONE)
    if not told:
        listed = system.exchange.market._symbols[GONE]  # type: ignore[attr-defined]
        listed.rules = msgspec.structs.replace(listed.rules, expires="")
    filled(system, 0, before + 1)
    system.recovers(20)
    system.exchange.clock.set(day_ms(first) + chance.randrange(9, 16) * DAY_MS + MINUTES_INTO_DAY * 60_000)

    async def look_at_the_listing(backfill: Backfill) -> None:
        await backfill.record_listing()

    with_backfill(system.settings, system.database, look_at_the_listing)
    filled(system, 0, 20)
    # A candle that is younger than a day may still come: asked for once more when a quarter of an hour has passed.
    for wait_ms in (0, AGAIN_YOUNG_MS + MINUTE_MS):
        system.exchange.clock.set(system.now_ms() + wait_ms)
        repaired(system, *range(20))
    system.recovers(20)
    held = system.rows("SELECT timeframe, count(*) FROM trading.candlesticks GROUP BY 1 ORDER BY 1")
    assert held == [("1d", 9), ("1h", 8 * 24 + 8)]
    expected = system.rows(
        "SELECT timeframe, sum(present), sum(missing) FROM trading.coverage GROUP BY 1 ORDER BY 1",
    )
    assert expected == [("1d", 9, 0), ("1h", 8 * 24 + 8, 0)]
    reasons = {reason for (reason,) in system.rows("SELECT reason FROM trading.candle_gaps")}
    assert reasons == (set() if told else {"not_served"})
