"""Candles as exact integers: sums, parts, text."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from okx_pipeline.candles import canonical
from okx_pipeline.replay.market import Scales, aggregate, instrument, kind_of, partial, unit_text

numbers = st.integers(min_value=0, max_value=10**15)


@settings(deadline=None)
@given(st.lists(numbers, min_size=7, max_size=7), st.integers(0, 9), st.integers(0, 9))
def test_text_is_the_canonical_spelling_of_the_number_meant(values: list[int], price: int, volume: int):
    scales = Scales(price, volume, volume + 1, price + volume)
    columns = np.array([[value] for value in values])
    (row,) = scales.rows(np.array([60_000]), columns)
    places = [price] * 4 + [volume, volume + 1, price + volume]
    assert row[0] == "60000"
    assert row[1:] == [canonical(text) for text in row[1:]]
    expected = [Decimal(value).scaleb(-digits) for value, digits in zip(values, places, strict=True)]
    assert [Decimal(text) for text in row[1:]] == expected


@settings(deadline=None)
@given(st.data())
def test_bigger_candles_take_first_highest_lowest_last_and_sums(data: st.DataObject):
    count = data.draw(st.integers(1, 12))
    column = st.lists(st.integers(0, 1000), min_size=count, max_size=count)
    columns = np.array([data.draw(column) for _ in range(7)])
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1))) if count > 1 else set())
    starts = np.array([0, *cuts])
    got = aggregate(columns, starts)
    for place, (start, end) in enumerate(zip([0, *cuts], [*cuts, count], strict=True)):
        part = columns[:, start:end]
        expected = [part[0][0], max(part[1]), min(part[2]), part[3][-1], *(sum(part[i]) for i in (4, 5, 6))]
        assert got[:, place].tolist() == expected


candles = st.tuples(*[st.integers(100, 200)] * 4, st.integers(0, 5000)).map(
    lambda drawn: np.array(
        [[drawn[0]], [max(drawn[:4])], [min(drawn[:4])], [drawn[1]], [drawn[4]], [drawn[4] * 10], [drawn[4] * 150]]
    )
)


@settings(deadline=None)
@given(candles, st.integers(0, 60_000), st.integers(0, 60_000))
def test_a_candle_grows_from_its_open_to_itself_and_never_shrinks(candle: np.ndarray, one: int, other: int):
    early, late = (partial(candle, elapsed, 60_000)[:, 0] for elapsed in sorted((one, other)))
    assert early[0] == late[0] == candle[0][0]
    assert late[1] >= early[1]
    assert late[2] <= early[2]
    assert early[2] <= early[3] <= early[1]
    assert all(late[place] >= early[place] for place in (4, 5, 6))
    assert early[5] == early[4] * 10
    assert partial(candle, 60_000, 60_000).tolist() == candle.tolist()
    assert partial(candle, 0, 60_000)[:, 0].tolist() == [candle[0][0]] * 4 + [0, 0, 0]


@pytest.mark.parametrize(("close", "second_quarter"), [(15, [12, 12, 8, 8]), (10, [12, 20, 12, 20])])
def test_a_rising_candle_visits_its_low_first_and_a_falling_one_its_high(close: int, second_quarter: list[int]):
    candle = np.array([[12], [20], [8], [close], [400], [4], [60]])
    assert partial(candle, 20_000, 60_000)[:4, 0].tolist() == second_quarter


def test_what_a_symbol_is_shows_in_its_name():
    assert [kind_of(name) for name in ("BTC-USDT", "BTC-USDT-SWAP", "BTC-USD_UM-261030")] == ["SPOT", "SWAP", "FUTURES"]


@pytest.mark.parametrize(
    ("symbol", "settled", "kind"),
    [("BTC-USDT-SWAP", "USDT", "linear"), ("BTC-USD-SWAP", "BTC", "inverse"), ("BTC-USD_UM-261030", "USD", "linear")],
)
def test_contracts_settle_in_quote_coin_unless_inverse(symbol: str, settled: str, kind: str):
    rules = instrument(symbol, tick="0.1", lot="1", contract_value="0.01", listed_ms=5)
    assert (rules.settle_currency, rules.contract_type, rules.listed, rules.expires) == (settled, kind, "5", "")


def test_units_are_written_without_exponents():
    assert [unit_text(places) for places in (0, 1, 9)] == ["1", "0.1", "0.000000001"]
