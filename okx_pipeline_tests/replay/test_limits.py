"""The request limits: so many in any stretch of time, and not one fewer."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from okx_pipeline.replay.limits import SlidingWindow


@settings(deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 900), max_size=60))
def test_no_window_ever_holds_more_than_the_limit_and_none_is_refused_below_it(requests: int, waits: list[int]):
    now = 0
    window = SlidingWindow(requests, 2000, monotonic=lambda: now)
    admitted: list[int] = []
    for wait in waits:
        now += wait
        within = sum(1 for moment in admitted if now - moment < 2000)
        assert window.admit() == (within < requests)
        if within < requests:
            admitted.append(now)
    assert all(late - early >= 2000 for early, late in zip(admitted, admitted[requests:], strict=False))
    assert all(early <= late for early, late in pairwise(admitted))
