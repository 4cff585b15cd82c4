"""The synthetic market: a function of seed, symbol and time, whose bigger bars are the sums of its minutes."""

import time
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from okx_pipeline.candles import Candle, canonical, impossibility
from okx_pipeline.errors import UsageError
from okx_pipeline.replay.bars import BARS, Bar
from okx_pipeline.replay.market import Row
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS, TIMEFRAMES

NOW_MS = 1_795_200_000_000  # 2026-11-20T18:40Z
MINUTE = BARS["1m"]
SYMBOLS = [rules.symbol for rules in SyntheticMarket(7, 9).instruments(NOW_MS)] + ["OLD-USDT-SWAP"]


def page(market: SyntheticMarket, symbol: str, bar: Bar, after_ms: int, limit: int, before_ms: int = -1) -> list[Row]:
    return market.closed(symbol, bar, after_ms=after_ms, before_ms=before_ms, limit=limit)


def brute(minutes: list[Row], open_ms: int) -> Row:
    values = [[Decimal(text) for text in row[1:]] for row in reversed(minutes)]
    sums = [sum((row[place] for row in values), Decimal(0)) for place in (4, 5, 6)]
    merged = [values[0][0], max(row[1] for row in values), min(row[2] for row in values), values[-1][3], *sums]
    return [str(open_ms), *(canonical(f"{value:f}") for value in merged)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SYMBOLS), st.sampled_from([bar for bar in BARS.values() if bar.length_ms <= DAY_MS]), st.data())
def test_every_bar_is_the_exact_sum_of_its_minutes(
    synthetic: SyntheticMarket, symbol: str, bar: Bar, data: st.DataObject
):
    moment = data.draw(st.integers(1_577_000_000_000, NOW_MS))
    opened = bar.open_at(moment)
    closed = bar.close_of(opened)
    rows = page(synthetic, symbol, bar, closed, 1, opened - 1)
    minutes = page(synthetic, symbol, MINUTE, closed, 1440, opened - 1)
    assert rows == ([brute(minutes, opened)] if minutes else [])


@pytest.mark.parametrize("code", ["1W", "1Wutc", "1M", "1Mutc"])
def test_weeks_and_months_are_the_sums_of_their_days(synthetic: SyntheticMarket, code: str):
    (row,) = page(synthetic, "ETH-USDT", BARS[code], BARS[code].open_at(NOW_MS), 1)
    day = BARS["1Dutc" if code.endswith("utc") else "1D"]
    days = page(synthetic, "ETH-USDT", day, BARS[code].close_of(int(row[0])), 40, int(row[0]) - 1)
    assert row == brute(days, int(row[0]))


def test_two_markets_of_one_seed_are_equal_in_whatever_order_they_are_asked():
    one, other = SyntheticMarket(3, 7), SyntheticMarket(3, 7)
    asked = [
        (symbol, bar, after)
        for symbol in ("BTC-USDT-SWAP", "SYN0002-USDT-SWAP")
        for bar in (BARS["5m"], BARS["1Dutc"], BARS["1Mutc"])
        for after in (1_600_000_000_000, NOW_MS)
    ]
    first = [page(one, *query, 50) for query in asked]
    assert [page(other, *query, 50) for query in reversed(asked)][::-1] == first
    assert page(SyntheticMarket(4, 7), *asked[0], 50) != first[0]
    assert page(SyntheticMarket(3, 200), *asked[0], 50) == first[0]


@pytest.mark.parametrize("timeframe", TIMEFRAMES, ids=str)
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_no_candle_is_one_that_no_market_can_have(synthetic: SyntheticMarket, symbol: str, timeframe):
    for row in page(synthetic, symbol, BARS[timeframe.bar], NOW_MS, 300):
        candle = Candle(symbol, timeframe.name, int(row[0]), *row[1:])
        assert impossibility(timeframe, candle) is None
        assert candle.values == tuple(canonical(text) for text in candle.values)


def test_minutes_without_a_trade_are_flat_at_the_close_before_and_only_thin_symbols_have_many(
    synthetic: SyntheticMarket,
):
    shares = {}
    for symbol in ("BTC-USDT-SWAP", "SYN0004-USDT-SWAP"):
        rows = page(synthetic, symbol, MINUTE, NOW_MS, 3000)
        quiet = [(row, earlier) for row, earlier in pairwise(rows) if row[5] == "0"]
        assert all(row[1:] == [earlier[4]] * 4 + ["0"] * 3 for row, earlier in quiet)
        shares[symbol] = len(quiet) / len(rows)
    assert shares["BTC-USDT-SWAP"] == 0
    assert 0.3 < shares["SYN0004-USDT-SWAP"] < 0.5


def test_most_minutes_open_at_the_close_before_but_not_all(synthetic: SyntheticMarket):
    rows = page(synthetic, "BTC-USDT-SWAP", MINUTE, NOW_MS, 5000)
    same = sum(row[1] == earlier[4] for row, earlier in pairwise(rows))
    assert 0.5 < same / 5000 < 0.9


def test_volumes_mean_what_okx_means_by_them(synthetic: SyntheticMarket):
    rules = {item.symbol: item for item in synthetic.instruments(NOW_MS)}
    for symbol in SYMBOLS[:-1]:
        for row in page(synthetic, symbol, BARS["5m"], NOW_MS, 100):
            low, high = Decimal(row[3]), Decimal(row[2])
            volume, currency, quote = (Decimal(text) for text in row[5:])
            assert volume % Decimal(rules[symbol].lot_size) == 0
            assert all(Decimal(text) % Decimal(rules[symbol].tick_size) == 0 for text in row[1:5])
            if rules[symbol].instrument_type == "SPOT":
                assert currency == quote
                assert low * volume <= quote <= high * volume
            else:
                assert currency == volume * Decimal(rules[symbol].contract_value)
                assert low * currency <= quote <= high * currency


def test_candles_begin_with_the_listing_and_end_with_the_expiry(synthetic: SyntheticMarket):
    recent = next(item for item in synthetic.instruments(NOW_MS) if item.symbol == "SYN0001-USDT-SWAP")
    rows = page(synthetic, recent.symbol, BARS["1H"], NOW_MS, 10_000)
    assert rows[-1][0] == recent.listed
    assert not synthetic.knows(recent.symbol, int(recent.listed) - 1)
    assert recent.symbol not in [item.symbol for item in synthetic.instruments(int(recent.listed) - 1)]

    expired_ms = 1_719_561_600_000
    assert int(page(synthetic, "OLD-USDT-SWAP", MINUTE, NOW_MS, 1)[0][0]) == expired_ms - MINUTE_MS
    assert synthetic.knows("OLD-USDT-SWAP", NOW_MS)
    assert "OLD-USDT-SWAP" not in [item.symbol for item in synthetic.instruments(NOW_MS)]
    assert "OLD-USDT-SWAP" in [item.symbol for item in synthetic.instruments(expired_ms - 1)]
    assert synthetic.forming("OLD-USDT-SWAP", MINUTE, expired_ms, expired_ms + 5) is None


def test_bitcoin_is_there_since_2019_with_its_first_candle_after_its_list_time(synthetic: SyntheticMarket):
    oldest = page(synthetic, "BTC-USDT-SWAP", BARS["4H"], NOW_MS, 20_000)[-1]
    assert datetime.fromtimestamp(int(oldest[0]) / 1000, tz=UTC) == datetime(2019, 12, 16, 4, tzinfo=UTC)


def test_the_first_candle_of_a_bar_holds_what_there_is_of_it(synthetic: SyntheticMarket):
    weeks = page(synthetic, "BTC-USDT-SWAP", BARS["1Mutc"], NOW_MS, 500)
    first_ms = 1_576_468_800_000
    days = page(synthetic, "BTC-USDT-SWAP", BARS["1H"], BARS["1Mutc"].close_of(int(weeks[-1][0])), 1000)
    assert int(weeks[-1][0]) < first_ms == int(days[-1][0])
    assert weeks[-1] == brute(days, int(weeks[-1][0]))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SYMBOLS[:-1]), st.sampled_from(list(BARS.values())), st.integers(1_793_000_000_000, NOW_MS))
def test_a_forming_candle_becomes_the_closed_one(synthetic: SyntheticMarket, symbol: str, bar: Bar, now_ms: int):
    opened = bar.open_at(now_ms)
    formed = synthetic.forming(symbol, bar, opened, now_ms)
    assert formed is not None
    (whole,) = page(synthetic, symbol, bar, bar.close_of(opened), 1)
    assert synthetic.forming(symbol, bar, opened, bar.close_of(opened)) == whole
    assert formed[:2] == whole[:2]
    assert all(Decimal(formed[place]) <= Decimal(whole[place]) for place in (2, 5, 6, 7))
    assert Decimal(formed[3]) >= Decimal(whole[3])


def test_a_page_of_300_days_costs_little_even_the_first_time():
    SyntheticMarket(1, 1).closed("BTC-USDT-SWAP", BARS["1Dutc"], after_ms=NOW_MS, before_ms=-1, limit=300)
    market = SyntheticMarket(11, 1)
    started, reference = time.perf_counter(), sum(range(5_000_000))
    unit_s = time.perf_counter() - started
    started = time.perf_counter()
    rows = page(market, "BTC-USDT-SWAP", BARS["1Dutc"], NOW_MS, 300)
    # Adding five million integers takes this kind of machine about 0.1 s, whatever its mood today.
    assert time.perf_counter() - started < unit_s
    assert (len(rows), reference) == (300, 12_499_997_500_000)


def test_symbols_beyond_the_named_are_numbered_and_none_is_refused():
    assert [item.symbol for item in SyntheticMarket(7, 1).instruments(NOW_MS)] == ["BTC-USDT-SWAP"]
    many = SyntheticMarket(7, 120).instruments(NOW_MS)
    assert len({item.symbol for item in many}) == 120
    assert many[-1].symbol == "SYN0115-USDT-SWAP"
    assert {item.instrument_type for item in many} == {"SPOT", "SWAP"}
    assert len({item.tick_size for item in many}) > 5
    with pytest.raises(UsageError, match="1 or more"):
        SyntheticMarket(7, 0)
