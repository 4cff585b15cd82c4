"""What is measured of candles: exactly what has to be exact, and against the day before what is a matter of degree."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.quality.measures import ENOUGH_CANDLES, _Exact, _excess, candle_frame, in_key_order
from okx_pipeline.storage.parquet import NUMBER
from okx_pipeline.storage.quality_results import Store
from okx_pipeline.storage.quality_rows import CANDLES, EARLIER, DayRows, Flaws, InstrumentRules, SeriesKey
from okx_pipeline.timeframes import DAY_MS, day_ms, parse_timeframe

DAY = date(2026, 8, 2)
START = day_ms(DAY)
MINUTE = 60_000
numbers = st.decimals(-(10**19), 10**19, places=18, allow_nan=False, allow_infinity=False)
maybe = st.none() | numbers


def candle(number: int, at: int, **changed: Any) -> dict[str, Any]:
    row = {
        "series": number,
        "timestamp_ms": at,
        "open_time_ms": None,
        "open_price": "100",
        "high_price": "100.1",
        "low_price": "99.9",
        "close_price": "100",
        "volume": "4",
        "volume_currency": "0.04",
        "volume_quote": "4",
        "source": "rest",
        "received_at": True,
        "updated_at": True,
    }
    return {**row, **changed}


def still(number: int, at: int) -> dict[str, Any]:
    """A candle in which nothing was traded."""
    prices = dict.fromkeys(("open_price", "high_price", "low_price", "close_price"), "100")
    return candle(number, at, **prices, volume="0", volume_currency="0", volume_quote="0")


def rows_of(*series: SeriesKey, here: list[dict[str, Any]], before: list[dict[str, Any]] | None = None) -> DayRows:
    def column(field: pa.Field, rows: list[dict[str, Any]]) -> pa.Array:
        values = [row[field.name] for row in rows]
        if field.type == NUMBER:
            return pa.array([value and Decimal(value) for value in values], NUMBER)
        return pa.array([float(value) if field.type == pa.float64() else value for value in values], field.type)

    def table(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
        return pa.table([column(field, rows) for field in schema], schema=schema)

    return DayRows(
        series,
        DAY,
        Store.POSTGRES,
        table(CANDLES, here),
        table(EARLIER, before or []),
        {key: Flaws() for key in series},
        frozenset(),
        datetime(2026, 11, 20, tzinfo=UTC),
    )


def measured(rows: DayRows, column: str, **rules: InstrumentRules) -> list[Any]:
    known = {name.replace("_", "-"): each for name, each in rules.items()}
    return candle_frame(rows, in_key_order(rows), known)[column].tolist()  # type: ignore[no-any-return]


# Exact


@given(st.lists(st.tuples(maybe, maybe), min_size=1), st.integers(0, 3))
def test_decimals_are_compared_exactly(pairs: list[tuple[Decimal | None, Decimal | None]], skipped: int) -> None:
    left, right = (
        _Exact(pa.chunked_array([pa.array(each, NUMBER)]).slice(skipped)) for each in zip(*pairs, strict=True)
    )
    kept = pairs[skipped:]
    both = [None not in pair for pair in kept]
    assert left.above(right).tolist() == [there and a > b for there, (a, b) in zip(both, kept, strict=True)]  # type: ignore[operator]
    assert left.differs(right).tolist() == [there and a != b for there, (a, b) in zip(both, kept, strict=True)]
    assert left.is_zero().tolist() == [a is not None and a == 0 for a, _ in kept]


@given(numbers, numbers)
def test_what_is_above_by_the_least_is_above_by_more_than_nothing(left: Decimal, right: Decimal) -> None:
    (found,) = _excess(_Exact(pa.array([left], NUMBER)), _Exact(pa.array([right], NUMBER))).tolist()
    assert (found > 0) == (left > right)
    assert found >= 0


@pytest.mark.parametrize(
    ("price", "tick", "off"),
    [("63019.6", "0.1", 0), ("63019.65", "0.1", 0.05), ("0.00001235", "0.0000005", 1.5e-7), ("7", "2.5", 0.5)],
)
def test_a_price_is_held_against_the_tick_exactly(price: str, tick: str, off: float) -> None:
    rules = InstrumentRules(True, False, None, Decimal(tick))
    prices = dict.fromkeys(("open_price", "high_price", "low_price", "close_price"), price)
    rows = rows_of(("A-B", "1m"), here=[candle(0, START, **prices)])
    assert measured(rows, "price_off_tick", A_B=rules) == pytest.approx([off])
    assert np.isnan(measured(rows, "price_off_later_tick", A_B=rules)).all()
    later = InstrumentRules(False, False, None, Decimal(tick))
    assert measured(rows, "price_off_later_tick", A_B=later) == pytest.approx([off])
    assert np.isnan(measured(rows, "price_off_tick", A_B=later)).all()


def test_each_instrument_is_held_against_its_own_rules_and_one_without_against_none() -> None:
    rows = rows_of(
        ("A-B", "1m"),
        ("C-D", "1m"),
        ("E-F", "1m"),
        here=[candle(number, START, volume="12345678901234567890", volume_currency="3") for number in range(3)],
    )
    rules = {
        "A_B": InstrumentRules(True, False, Decimal("0.000000000001"), None),
        "C_D": InstrumentRules(True, True, None, Decimal("0.07")),
    }
    errors = measured(rows, "contract_value_error", **rules)
    assert errors[0] == 3 - 12345678.90123456789
    assert np.isnan(errors[1:]).all()
    assert [value == value for value in measured(rows, "price_off_tick", **rules)] == [False, True, False]
    assert measured(rows, "spot_volume_difference", **rules)[1] == -1
    assert np.isnan(measured(rows, "later_contract_value_error", **rules)).all()


@pytest.mark.parametrize(
    ("timeframe", "at", "off"),
    [
        ("1m", START + 59_999, 59_999),
        ("4h", START + 4 * 3_600_000, 0),
        ("1w", day_ms(date(2026, 8, 3)), 0),
        ("1w", day_ms(date(2026, 8, 4)), DAY_MS),
        ("1mo", day_ms(date(2026, 8, 1)), 0),
        ("1mo", day_ms(date(2026, 8, 31)), 30 * DAY_MS),
    ],
)
def test_open_times_are_held_against_the_calendar(timeframe: str, at: int, off: int) -> None:
    assert measured(rows_of(("A-B", timeframe), here=[candle(0, at)]), "ms_off_boundary") == [off]
    assert parse_timeframe(timeframe).is_boundary(at) == (off == 0)


# Against the day before


def silences(timeframe: str, pattern: str, before: str = "") -> list[float]:
    """How long the silence lasts that each candle is part of; x was traded in, . was not, and a blank is a hole."""
    length = parse_timeframe(timeframe).length_ms

    def made(text: str, start: int) -> list[dict[str, Any]]:
        return [
            candle(0, start + number * length) if mark == "x" else still(0, start + number * length)
            for number, mark in enumerate(text)
            if mark != " "
        ]

    rows = rows_of(("A-B", timeframe), here=made(pattern, START), before=made(before, START - len(before) * length))
    return measured(rows, "silent_minutes")


def test_a_silence_lasts_as_long_as_its_candles_together() -> None:
    assert silences("5m", "x" * 50 + "..." + "x" * 50) == [0] * 50 + [15] * 3 + [0] * 50
    assert silences("1m", "x" * 50 + "." + "x" * 50) == [0] * 50 + [1] + [0] * 50
    assert silences("4h", "xxx.xx") == [0, 0, 0, 240, 0, 0]


def test_a_silence_goes_on_over_midnight_and_ends_at_a_hole() -> None:
    assert silences("5m", ".." + "x" * 50, before="x" * 50 + "..") == [20, 20] + [0] * 50
    assert silences("5m", "x" * 50 + ".. .." + "x" * 50) == [0] * 50 + [10] * 4 + [0] * 50


def test_a_market_that_often_stands_still_has_no_outages() -> None:
    assert np.isnan(np.array(silences("5m", "x.x.x.....x.x.x."))[[1, 3, 5, 6, 7, 8, 9]]).all()
    assert silences("5m", "x" * 19 + "." + "x" * 19 + "...")[-3:] == [15] * 3


def test_a_market_that_never_trades_has_no_outages() -> None:
    assert np.isnan(silences("5m", "." * 288, before="." * 288)).all()


def test_series_do_not_mix() -> None:
    here = [candle(0, START + number * MINUTE) for number in range(100)]
    here += [still(1, START + number * MINUTE) for number in range(100, 102)]
    here += [candle(1, START + number * MINUTE) for number in range(100)]
    rows = rows_of(("A-B", "1m"), ("C-D", "1m"), here=here)
    assert measured(rows, "silent_minutes") == [0] * 200 + [2] * 2


def test_a_move_is_measured_by_what_is_usual_of_its_series_since_the_day_before() -> None:
    before = [candle(0, START - (50 - number) * MINUTE) for number in range(50)]
    here = [candle(0, START + number * MINUTE) for number in range(50)]
    here[20] = candle(0, START + 20 * MINUTE, high_price="110")
    moves = measured(rows_of(("A-B", "1m"), here=here, before=before), "times_usual_move")
    assert np.argmax(moves) == 20
    assert moves[20] == pytest.approx(np.log(110 / 99.9) / np.log(100.1 / 99.9))
    assert moves[0] == pytest.approx(1)


def test_a_candle_far_from_the_one_before_moves_as_far_as_that() -> None:
    away = dict.fromkeys(("open_price", "high_price", "low_price", "close_price"), "1000")
    here = [candle(0, START + number * MINUTE) for number in range(60)]
    here[30] = candle(0, START + 30 * MINUTE, **away)
    moves = measured(rows_of(("A-B", "1m"), here=here), "times_usual_move")
    assert min(moves[30], moves[31]) > 500
    # Behind a hole there is no candle to be far from.
    alone = measured(rows_of(("A-B", "1m"), here=[*here[:29], here[30], *here[32:]]), "times_usual_move")
    assert max(alone) == pytest.approx(1)


def test_a_market_that_hardly_moves_may_begin_to() -> None:
    here = [still(0, START + number * MINUTE) for number in range(59)]
    here.append(candle(0, START + 59 * MINUTE, high_price="100.9", low_price="100"))
    assert max(measured(rows_of(("A-B", "1m"), here=here), "times_usual_move")) < 10


def test_too_few_candles_do_not_tell_what_is_usual() -> None:
    here = [candle(0, START + number * MINUTE) for number in range(ENOUGH_CANDLES)]
    assert np.isfinite(measured(rows_of(("A-B", "1m"), here=here), "times_usual_move")).all()
    assert np.isnan(measured(rows_of(("A-B", "1m"), here=here[1:]), "times_usual_move")).all()


def test_a_price_that_is_none_spoils_no_other_measure() -> None:
    here = [candle(0, START + number * MINUTE) for number in range(60)]
    here[10] = candle(0, START + 10 * MINUTE, high_price=None)
    here[20] = candle(0, START + 20 * MINUTE, low_price="0")
    rows = rows_of(("A-B", "1m"), here=here)
    moves = np.array(measured(rows, "times_usual_move"))
    assert np.isnan(moves[[20]]).all()
    assert np.nanmax(moves) == pytest.approx(1)
    assert [row for row, value in enumerate(measured(rows, "high_below_open")) if value != value] == [10]
