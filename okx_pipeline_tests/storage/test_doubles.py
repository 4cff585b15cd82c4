"""Doubles of decimals: each is the nearest one, whatever its size, and the one that other programs have."""

from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.doubles import doubles
from okx_pipeline.storage.parquet import NUMBER

EXACTLY = Context(prec=40)
UNITS = 10**38 - 1


def decimals(*units: int) -> pa.Array:
    """Decimals of so many 10^-18."""
    return pa.array([Decimal(each).scaleb(-18, EXACTLY) for each in units], NUMBER)


def beside(mantissa: int, exponent: int, units: int) -> int:
    """A decimal at most `units` and one beside `mantissa` halves of 2^`exponent`: a double, or a tie of two."""
    return int(Fraction(mantissa, 2) * Fraction(2) ** exponent * 10**18) + units


anything = st.integers(0, 127).flatmap(lambda bits: st.integers(0, min(2**bits, UNITS)))
as_written = st.builds(lambda digits, places: digits * 10 ** (18 - places), st.integers(0, 10**12), st.integers(0, 18))
mantissas = st.one_of(st.integers(2**53, 2**54), st.sampled_from([2**53, 2**53 + 1, 2**54 - 1]))
ties = st.builds(beside, mantissas, st.integers(-112, 11), st.integers(-2, 2)).filter(lambda each: 0 <= each <= UNITS)


@given(st.lists(st.one_of(anything, as_written, ties), min_size=1))
def test_every_decimal_becomes_the_double_nearest_to_it(units: list[int]) -> None:
    numbers = decimals(*units)
    assert doubles(numbers).tolist() == [float(str(number)) for number in numbers.to_pylist()]


def test_nothing_is_lost_in_slices_chunks_and_blocks_and_a_null_is_not_a_number() -> None:
    units = [number * 253_870_000_000_001 for number in range(40_000)]
    wanted = [each.as_py() for each in decimals(*units)]
    whole = pa.chunked_array([decimals(*units[:7]), decimals(*units[7:])])
    assert doubles(whole).tolist() == list(map(float, wanted))
    assert doubles(whole.slice(5, 20_000)).tolist() == list(map(float, wanted[5:20_005]))
    assert doubles(decimals(*units).slice(39_999)).tolist() == [float(wanted[-1])]
    assert doubles(pa.array([], NUMBER)).tolist() == []
    assert doubles(pa.chunked_array([], NUMBER)).tolist() == []
    found = doubles(pa.array([Decimal(1), None, Decimal("-0.25387")], NUMBER))
    assert np.isnan(found).tolist() == [False, True, False]
    assert found[2] == -0.25387


def test_the_doubles_are_those_of_postgresql_and_of_duckdb(connection: Connection) -> None:
    with localcontext(EXACTLY) as exactly:
        exactly.rounding = ROUND_FLOOR
        prices = [Decimal(number) / 99_991 for number in range(1, 60_000, 7)]
        prices = [price.quantize(Decimal(1).scaleb(-(index % 18) - 1)) for index, price in enumerate(prices)]
    ours = doubles(pa.array(prices, NUMBER)).tolist()
    [theirs] = connection.execute(
        "SELECT array_agg(text::numeric::float8 ORDER BY number) FROM unnest(%s::text[]) "
        "WITH ORDINALITY AS given (text, number)",
        ([f"{price:f}" for price in prices],),
    ).fetchone() or [None]
    assert ours == theirs
    given = duckdb.from_arrow(pa.table({"price": pa.array(prices, NUMBER)}))
    assert ours == [price for (price,) in given.project("price::DOUBLE").fetchall()]
