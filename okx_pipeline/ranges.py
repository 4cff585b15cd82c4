"""Ranges of open times, and the arithmetic of them: what gaps are made of.

A range is [start_ms, end_ms): from the open of its first candle to the close of its last. Lists of ranges are ascending
and their members neither overlap nor touch. Nothing here knows a row or a database.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from okx_pipeline.timeframes import Timeframe


class Range(NamedTuple):
    """Candles that open in [start_ms, end_ms)."""

    start_ms: int
    end_ms: int


def runs(timeframe: Timeframe, opens: Iterable[int]) -> list[Range]:
    """Ascending open times of one series as ranges of candles that follow each other."""
    found: list[Range] = []
    length_ms = None if timeframe.is_month else timeframe.length_ms
    start_ms = end_ms = None
    for open_ms in opens:
        if open_ms != end_ms:
            if start_ms is not None and end_ms is not None:
                found.append(Range(start_ms, end_ms))
            start_ms = open_ms
        end_ms = open_ms + length_ms if length_ms is not None else timeframe.close_of(open_ms)
    if start_ms is not None and end_ms is not None:
        found.append(Range(start_ms, end_ms))
    return found


def union(*lists: Iterable[Range]) -> list[Range]:
    """Everything that lies in any of the lists, which need not be in order."""
    joined: list[Range] = []
    for each in sorted(member for members in lists for member in members):
        if joined and each.start_ms <= joined[-1].end_ms:
            joined[-1] = Range(joined[-1].start_ms, max(joined[-1].end_ms, each.end_ms))
        elif each.start_ms < each.end_ms:
            joined.append(each)
    return joined


def intersection(left: Sequence[Range], right: Sequence[Range]) -> list[Range]:
    """What lies in both lists."""
    common = []
    at_left = at_right = 0
    while at_left < len(left) and at_right < len(right):
        start_ms = max(left[at_left].start_ms, right[at_right].start_ms)
        end_ms = min(left[at_left].end_ms, right[at_right].end_ms)
        if start_ms < end_ms:
            common.append(Range(start_ms, end_ms))
        if left[at_left].end_ms < right[at_right].end_ms:
            at_left += 1
        else:
            at_right += 1
    return common


def difference(left: Sequence[Range], right: Sequence[Range]) -> list[Range]:
    """What lies in `left` and not in `right`."""
    rest = []
    at_right = 0
    for start_ms, end_ms in left:
        while at_right < len(right) and right[at_right].end_ms <= start_ms:
            at_right += 1
        index = at_right
        while index < len(right) and right[index].start_ms < end_ms:
            if start_ms < right[index].start_ms:
                rest.append(Range(start_ms, right[index].start_ms))
            start_ms = max(start_ms, right[index].end_ms)
            index += 1
        if start_ms < end_ms:
            rest.append(Range(start_ms, end_ms))
    return rest


def candles_in(timeframe: Timeframe, ranges: Iterable[Range]) -> int:
    """How many candles open in the ranges."""
    return sum(timeframe.count(*each) for each in ranges)
