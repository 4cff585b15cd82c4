"""Candle lengths: names, boundaries and counting, by the laws of the calendar."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.errors import UsageError
from okx_pipeline.timeframes import (
    DAY_MS,
    TIMEFRAMES,
    Timeframe,
    day_ms,
    day_of,
    iso,
    month_bounds,
    month_of,
    parse_timeframe,
    parse_timeframes,
    utc,
)

timeframes = st.sampled_from(TIMEFRAMES)
moments = st.integers(0, day_ms(date(2100, 1, 1)))


@given(timeframes, moments)
def test_every_moment_lies_in_exactly_one_candle(timeframe: Timeframe, ms: int) -> None:
    open_ms = timeframe.open_at(ms)
    assert open_ms <= ms < timeframe.close_of(open_ms)
    assert timeframe.is_boundary(open_ms)
    assert timeframe.open_at(timeframe.close_of(open_ms)) == timeframe.close_of(open_ms)
    assert timeframe.open_at(timeframe.close_of(open_ms) - 1) == open_ms


@given(timeframes, moments, st.integers(0, 60))
def test_counting_steps_and_listing_agree(timeframe: Timeframe, ms: int, candles: int) -> None:
    start = timeframe.first_open(ms)
    end = timeframe.step(start, candles)
    opens = list(timeframe.opens(ms, end))
    assert len(opens) == timeframe.count(ms, end) == candles
    assert opens == [timeframe.step(start, index) for index in range(candles)]
    assert timeframe.step(end, -candles) == start


@given(timeframes, moments, st.integers(0, 100 * DAY_MS), st.integers(0, 100 * DAY_MS))
def test_counting_is_additive(timeframe: Timeframe, start: int, first: int, second: int) -> None:
    middle, end = start + first, start + first + second
    assert timeframe.count(start, middle) + timeframe.count(middle, end) == timeframe.count(start, end)


@given(moments)
def test_days_weeks_and_months_open_when_the_calendar_says(ms: int) -> None:
    moment = utc(ms)
    assert utc(parse_timeframe("1d").open_at(ms)) == moment.replace(hour=0, minute=0, second=0, microsecond=0)
    week = utc(parse_timeframe("1w").open_at(ms))
    assert (week.weekday(), week.time()) == (0, datetime.min.time())
    assert timedelta() <= moment - week < timedelta(days=7)
    month = utc(parse_timeframe("1mo").open_at(ms))
    assert (month.year, month.month, month.day) == (moment.year, moment.month, 1)


@given(moments)
def test_days_and_months_of_a_moment(ms: int) -> None:
    assert day_of(ms) == datetime.fromtimestamp(ms // 1000, tz=UTC).date()
    lower, upper = month_bounds(month_of(ms))
    assert lower <= ms < upper
    assert month_bounds(day_of(upper))[0] == upper


@given(timeframes, moments)
def test_what_has_closed_is_everything_before_the_forming_candle(timeframe: Timeframe, now: int) -> None:
    bound = timeframe.closed_before(now)
    assert timeframe.close_of(bound) > now
    assert bound <= now


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("1H", "1h"), ("4H", "4h"), ("6Hutc", "6h"), ("1Dutc", "1d"), ("1Wutc", "1w"), ("1Mutc", "1mo"), ("1M", "1mo")],
)
def test_okx_spellings_are_understood(spelling: str, name: str) -> None:
    assert parse_timeframe(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "utc_bar"), [("6H", "6Hutc"), ("12H", "12Hutc"), ("1D", "1Dutc"), ("1W", "1Wutc")]
)
def test_hong_kong_bars_are_refused_and_the_utc_one_is_named(spelling: str, utc_bar: str) -> None:
    with pytest.raises(UsageError, match=f"Hong Kong.*{utc_bar}"):
        parse_timeframe(spelling)


@pytest.mark.parametrize("spelling", ["3M", "2D", "1s", "1y", "60", ""])
def test_a_length_that_is_not_kept_is_refused(spelling: str) -> None:
    with pytest.raises(UsageError, match="it is one of 1m, 3m"):
        parse_timeframe(spelling)


def test_the_minute_and_the_month_are_not_taken_for_each_other() -> None:
    assert parse_timeframe("1m").length_ms == 60_000
    assert parse_timeframe("1M").is_month


def test_a_list_is_sorted_and_each_is_named_once() -> None:
    assert [str(timeframe) for timeframe in parse_timeframes("1d,5m, 1H,5m")] == ["5m", "1h", "1d"]


@pytest.mark.parametrize(
    ("ms", "written"),
    [
        (1787356800000, "2026-08-22T00:00Z"),
        (1787356860000, "2026-08-22T00:01Z"),
        (1787356861000, "2026-08-22T00:01:01Z"),
        (1787356861007, "2026-08-22T00:01:01.007Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (10**18, "1000000000000000000 ms"),
    ],
)
def test_a_moment_is_written_as_users_write_it(ms: int, written: str) -> None:
    assert iso(ms) == written
