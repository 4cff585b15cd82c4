"""OKX's bars: boundaries on UTC and in Hong Kong."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from okx_pipeline.replay.bars import BARS, Bar
from okx_pipeline.timeframes import MINUTE_MS

moments = st.integers(min_value=0, max_value=4_000_000_000_000)
bars = st.sampled_from(list(BARS.values()))


def test_every_bar_that_okx_opens_in_hong_kong_has_its_utc_one():
    longer = ["6H", "12H", "1D", "1W", "1M"]
    assert list(BARS)[:8] == ["1m", "3m", "5m", "15m", "30m", "1H", "2H", "4H"]
    assert sorted(list(BARS)[8:]) == sorted([*longer, *(f"{code}utc" for code in longer)])


@pytest.mark.parametrize("code", ["1D", "1W", "1M"])
def test_days_weeks_and_months_open_at_midnight_in_hong_kong(code: str):
    hong_kong = timezone(timedelta(hours=8))
    moment = datetime(2026, 8, 20, 3, 17, tzinfo=hong_kong)
    opened = datetime.fromtimestamp(BARS[code].open_at(int(moment.timestamp() * 1000)) / 1000, tz=hong_kong)
    expected = {"1D": (8, 20), "1W": (8, 17), "1M": (8, 1)}[code]
    assert (opened.month, opened.day, opened.hour, opened.minute) == (*expected, 0, 0)
    assert opened.isoweekday() == 1 or code != "1W"


@settings(deadline=None)
@given(bars, st.lists(moments, min_size=1, max_size=5))
def test_many_moments_at_once_give_what_each_gives_alone(bar: Bar, some: list[int]):
    opens = bar.opens_at(np.array(some))
    assert opens.tolist() == [bar.open_at(moment) for moment in some]
    assert bar.closes_of(opens).tolist() == [bar.close_of(open_ms) for open_ms in opens.tolist()]


@settings(deadline=None)
@given(bars, moments, st.integers(min_value=-50, max_value=50))
def test_stepping_is_closing_again_and_again(bar: Bar, moment: int, candles: int):
    start = bar.open_at(moment)
    stepped = bar.step(start, candles)
    low, high = sorted((start, stepped))
    count = 0
    while low < high:
        low = bar.close_of(low)
        count += 1
    assert (low, count) == (high, abs(candles))


@settings(deadline=None)
@given(bars, bars, moments)
def test_a_bar_that_divides_another_has_a_candle_open_and_close_with_it(part: Bar, bar: Bar, moment: int):
    opened = bar.open_at(moment)
    fits = part.open_at(opened) == opened and part.open_at(bar.close_of(opened)) == bar.close_of(opened)
    assert fits or not part.divides(bar)
    assert BARS["1m"].divides(bar)
    assert part.length_ms <= bar.length_ms or not part.divides(bar)


def test_four_hours_divide_the_hong_kong_day_but_not_its_quarters():
    assert BARS["4H"].divides(BARS["1D"])
    assert BARS["4H"].divides(BARS["1Mutc"])
    assert not BARS["4H"].divides(BARS["6H"])
    assert not BARS["1D"].divides(BARS["1Wutc"])
    assert BARS["1D"].divides(BARS["1W"])
    assert not BARS["1W"].divides(BARS["1M"])
    assert BARS["1m"].length_ms == MINUTE_MS
