"""The candle: exact numbers in one spelling, and what no market can have."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.candles import (
    FRACTION_DIGITS,
    INTEGER_DIGITS,
    Candle,
    canonical,
    impossibility,
    parse_symbol,
    sound_candle,
    symbols_like,
)
from okx_pipeline.errors import UsageError
from okx_pipeline.timeframes import parse_timeframe

numbers = st.decimals(min_value=0, max_value=Decimal(10**INTEGER_DIGITS) - 1, allow_nan=False, places=FRACTION_DIGITS)
MINUTE = parse_timeframe("1m")


@given(numbers, st.integers(0, 5))
def test_canonical_keeps_the_value_and_gives_equal_values_equal_text(number: Decimal, zeros: int) -> None:
    text = f"{number:f}"
    padded = text + "0" * zeros if "." in text else text
    assert Decimal(canonical(padded)) == number
    assert canonical(padded) == canonical(text) == canonical(canonical(text))
    assert not canonical(text).endswith(".")


@pytest.mark.parametrize(
    ("text", "plain"),
    [("889750.68514000", "889750.68514"), ("0.000", "0"), ("0", "0"), ("100", "100"), ("1E-8", "0.00000001"),
     ("1e3", "1000"), ("+5", "5"), ("-0", "0"), ("007", "7"), (".5", "0.5"), ("5.", "5")],
)  # fmt: skip
def test_spellings_of_a_value(text: str, plain: str) -> None:
    assert canonical(text) == plain


@pytest.mark.parametrize(
    "text",
    ["", " ", "NaN", "Infinity", "-1", "1,5", "0x10", "1_000", "٣", "1e400", "1E999999999", "1E-999999999",
     "9" * 21, "0." + "1" * 19, "1" * 10_000, "sNaN", "--1"],
)  # fmt: skip
def test_what_is_no_number_of_a_market_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a finite|is negative|does not fit"):
        canonical(text)


def candle(**changes: object) -> Candle:
    row = {
        "symbol": "BTC-USDT-SWAP", "timeframe": "1m", "timestamp_ms": 1785542400000, "open_price": "10",
        "high_price": "12", "low_price": "9", "close_price": "11", "volume": "0", "volume_currency": "0",
        "volume_quote": "0",
    }  # fmt: skip
    return Candle(**{**row, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"open_price": "9", "high_price": "9", "close_price": "9"}, None),
        ({"high_price": "10.5"}, "high_price 10.5 is below close_price 11"),
        ({"high_price": "8"}, "high_price 8 is below open_price 10"),
        ({"low_price": "10.000000000000000001"}, "low_price 10.000000000000000001 is above open_price 10"),
        ({"high_price": "11", "close_price": "11.000000000000000001"},
         "high_price 11 is below close_price 11.000000000000000001"),
        ({"low_price": "0"}, "a price is zero"),
        ({"timestamp_ms": -60_000}, "1969-12-31T23:59Z lies before 1970"),
        ({"timestamp_ms": 1785542400001}, "2026-08-01T00:00:00.001Z is not the open time of a 1m candle"),
    ],
)  # fmt: skip
def test_what_no_market_can_have_is_said_in_words(changes: dict[str, object], reason: str | None) -> None:
    assert impossibility(MINUTE, candle(**changes)) == reason


@given(st.lists(numbers.filter(bool), min_size=4, max_size=4))
def test_the_range_is_judged_exactly(prices: list[Decimal]) -> None:
    names = ("open_price", "high_price", "low_price", "close_price")
    row = candle(**{name: canonical(f"{price:f}") for name, price in zip(names, prices, strict=True)})
    opened, high, low, close = prices
    possible = low <= min(opened, close) and high >= max(opened, close, low)
    assert (impossibility(MINUTE, row) is None) == possible


@pytest.mark.parametrize("text", ["BTC-USDT-SWAP", "ETH-USDT", "BTC-USD_UM-261030", "1INCH-USDT"])
def test_symbols_are_understood(text: str) -> None:
    assert parse_symbol(f" {text} ") == text


@pytest.mark.parametrize(
    "text", ["", "BTC", "btc-usdt", "../../etc", "BTC/USDT", "BTC-USDT'; --", "BTC-", "BTC-ÜSDT", "A" * 99]
)
def test_what_cannot_be_a_symbol_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an OKX symbol"):
        parse_symbol(text)


near = st.sampled_from(
    ["0", "1", "9007199254740993", "9007199254740992", "9007199254740994", "0.1", "1.0", "1e1", "-1"]
)


@given(st.lists(near | numbers.map(str) | st.text(max_size=3), min_size=7, max_size=7), st.sampled_from([0, 60_000, 1]))
def test_what_is_plain_at_a_glance_is_what_takes_the_longer_look_too(texts: list[str], open_ms: int) -> None:
    glanced = sound_candle("BTC-USDT", MINUTE, open_ms, texts)
    if glanced is not None:
        assert glanced == Candle("BTC-USDT", "1m", open_ms, *map(canonical, texts))
        assert impossibility(MINUTE, glanced) is None


def test_an_ordinary_candle_is_plain_at_a_glance_and_two_numbers_of_one_double_are_not() -> None:
    assert sound_candle("BTC-USDT", MINUTE, 0, ["10.5", "12", "10.5", "12", "0", "0", "0"]) is not None
    low, high = "9007199254740993", "9007199254740992"
    assert sound_candle("BTC-USDT", MINUTE, 0, [low, high, low, low, "0", "0", "0"]) is None


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["BTC-USDT", "BTC-USDT-SWAP", "ETH-USD-SWAP"]),
        ("btc", ["BTC-USDT", "BTC-USDT-SWAP"]),
        ("USD-swap", ["ETH-USD-SWAP"]),
        ("*usdt", ["BTC-USDT"]),
        ("???-USD?", ["BTC-USDT"]),
        ("[eb]*swap", ["BTC-USDT-SWAP", "ETH-USD-SWAP"]),
        ("doge", []),
    ],
)
def test_symbols_are_found_by_a_part_or_by_wildcards(pattern: str, found: list[str]) -> None:
    assert symbols_like(pattern, ["BTC-USDT", "BTC-USDT-SWAP", "ETH-USD-SWAP"]) == found
