"""What a backfill asks for."""

from datetime import date
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.exchange.protocol import CANDLES, HISTORY_CANDLES, PAGE_LIMIT
from okx_pipeline.history.plan import (
    Life,
    Span,
    days_and_their_closes,
    days_of_range,
    estimate,
    why_empty,
    windows_of,
    within,
)
from okx_pipeline.timeframes import DAY_MS, TIMEFRAMES, day_ms, day_of, parse_timeframe

NOW = day_ms(date(2026, 8, 22)) + 3_600_000
BTC = "BTC-USDT-SWAP"
FIVE = parse_timeframe("5m")
WEEK = parse_timeframe("1w")
MONTH = parse_timeframe("1mo")

spans = st.builds(
    lambda timeframe, start, length: Span(BTC, timeframe, start, start + length),
    st.sampled_from(TIMEFRAMES),
    st.integers(NOW - 400 * DAY_MS, NOW),
    st.integers(0, 20 * DAY_MS),
)


@given(spans, st.randoms(use_true_random=False))
def test_the_windows_cover_every_missing_candle_once_and_ask_for_no_more_pages_than_needed(
    span: Span, random: object
) -> None:
    span = within(span, Life(), NOW)
    opens = list(span.timeframe.opens(span.start_ms, span.end_ms))
    have = [open_ms for open_ms in opens if random.random() < 0.5]  # type: ignore[attr-defined]
    missing = sorted(set(opens).difference(have))
    windows = windows_of(span, have, NOW)
    covered = [open_ms for window in windows for open_ms in span.timeframe.opens(window.start_ms, window.end_ms)]
    assert len(covered) == len(set(covered))
    assert set(missing) <= set(covered) <= set(opens)
    assert all(1 <= window.candles <= PAGE_LIMIT for window in windows)
    assert all(window.start_ms in missing for window in windows)
    # Greedy is the least: each window begins at a candle that no window before it could have held.
    for earlier, later in pairwise(windows):
        assert later.start_ms >= span.timeframe.step(earlier.start_ms, PAGE_LIMIT)


def test_nothing_is_asked_for_when_everything_is_there() -> None:
    span = days_of_range(BTC, FIVE, date(2026, 8, 1), date(2026, 8, 2))
    assert windows_of(span, list(FIVE.opens(span.start_ms, span.end_ms)), NOW) == []


def test_recent_candles_are_asked_of_one_endpoint_and_old_ones_of_the_other() -> None:
    span = days_of_range(BTC, FIVE, date(2026, 8, 1), date(2026, 8, 22))
    windows = windows_of(span, [], NOW)
    assert windows[0].endpoint == HISTORY_CANDLES
    assert windows[-1].endpoint == CANDLES


def test_a_span_is_cut_to_the_life_of_its_instrument_and_to_closed_candles() -> None:
    listed = day_ms(date(2026, 8, 10)) + 11 * 3_600_000 + 123
    expires = day_ms(date(2026, 8, 20)) + 8 * 3_600_000
    life = Life(listed, expires)
    span = within(days_of_range(BTC, parse_timeframe("1d"), date(2026, 8, 1), date(2026, 8, 31)), life, NOW)
    opens = [day_of(open_ms) for open_ms in span.timeframe.opens(span.start_ms, span.end_ms)]
    assert opens == [date(2026, 8, day) for day in range(10, 21)]
    today = within(days_of_range(BTC, FIVE, date(2026, 8, 22), date(2026, 8, 23)), Life(), NOW)
    assert list(FIVE.opens(today.start_ms, today.end_ms))[-1] == NOW - FIVE.length_ms


def test_it_says_why_there_can_be_nothing() -> None:
    day = days_of_range(BTC, FIVE, date(2026, 8, 1), date(2026, 8, 2))
    assert why_empty(day, Life(), NOW) is None
    assert (
        why_empty(day, Life(listed_ms=day_ms(date(2026, 8, 5))), NOW)
        == "BTC-USDT-SWAP was listed on 2026-08-05 00:00 UTC"
    )
    assert (
        why_empty(day, Life(expires_ms=day_ms(date(2026, 7, 5))), NOW)
        == "BTC-USDT-SWAP expired on 2026-07-05 00:00 UTC"
    )
    tomorrow = days_of_range(BTC, FIVE, date(2026, 8, 23), date(2026, 8, 24))
    assert why_empty(tomorrow, Life(), NOW) == "no 5m candle that opens there has closed yet"


def test_a_week_is_read_on_the_day_it_closes_and_a_month_on_its_last_day() -> None:
    (sunday,) = days_and_their_closes(BTC, WEEK, [date(2026, 8, 16)])
    assert [day_of(open_ms) for open_ms in WEEK.opens(sunday.start_ms, sunday.end_ms)] == [date(2026, 8, 10)]
    (last,) = days_and_their_closes(BTC, MONTH, [date(2026, 7, 31)])
    assert [day_of(open_ms) for open_ms in MONTH.opens(last.start_ms, last.end_ms)] == [date(2026, 7, 1)]


def test_days_in_a_row_are_one_span_and_others_are_spans_of_their_own() -> None:
    days = [date(2026, 8, day) for day in (3, 1, 2, 7, 8, 20)]
    found = days_and_their_closes(BTC, FIVE, days)
    assert [(day_of(span.start_ms), day_of(span.end_ms)) for span in found] == [
        (date(2026, 8, 1), date(2026, 8, 4)),
        (date(2026, 8, 7), date(2026, 8, 9)),
        (date(2026, 8, 20), date(2026, 8, 21)),
    ]


def test_the_estimate_counts_requests_by_the_budget_of_their_endpoint() -> None:
    span = days_of_range(BTC, FIVE, date(2026, 1, 1), date(2026, 3, 2))
    cost = estimate(windows_of(span, [], NOW))
    assert (cost.requests, cost.candles) == (58, 60 * 288)
    assert cost.seconds == 5.8
    assert estimate(windows_of(span, [], NOW), rate=2).seconds == 58
