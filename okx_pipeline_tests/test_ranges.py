"""The algebra of ranges, against sets of open times."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.ranges import Range, candles_in, difference, intersection, runs, union
from okx_pipeline.timeframes import TIMEFRAMES, Timeframe, parse_timeframe

MINUTE = parse_timeframe("1m")

opens = st.sets(st.integers(0, 60).map(lambda minute: minute * 60_000))


def as_ranges(members: Iterable[int]) -> list[Range]:
    return runs(MINUTE, sorted(members))


def as_set(ranges: Iterable[Range]) -> set[int]:
    return {open_ms for each in ranges for open_ms in MINUTE.opens(*each)}


@given(opens, opens)
def test_ranges_are_joined_cut_and_subtracted_as_sets_are(left: set[int], right: set[int]) -> None:
    assert union(as_ranges(left), as_ranges(right)) == as_ranges(left | right)
    assert intersection(as_ranges(left), as_ranges(right)) == as_ranges(left & right)
    assert difference(as_ranges(left), as_ranges(right)) == as_ranges(left - right)


@given(opens)
def test_ranges_hold_every_candle_once(members: set[int]) -> None:
    ranges = as_ranges(members)
    assert as_set(ranges) == members
    assert candles_in(MINUTE, ranges) == len(members)
    assert all(before.end_ms < after.start_ms for before, after in pairwise(ranges))


@given(st.sampled_from(TIMEFRAMES), st.sets(st.integers(0, 40)))
def test_a_run_ends_where_a_candle_of_any_length_is_left_out(timeframe: Timeframe, members: set[int]) -> None:
    first_ms = timeframe.first_open(1_700_000_000_000)
    chosen = [timeframe.step(first_ms, each) for each in sorted(members)]
    found = runs(timeframe, chosen)
    assert [open_ms for each in found for open_ms in timeframe.opens(*each)] == chosen
    assert len(found) == sum(each - 1 not in members for each in members)
