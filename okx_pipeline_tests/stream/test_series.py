"""The bookkeeping of a series: whatever happens in whatever order, nothing is missed and nothing asked for twice."""

from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.stream.series import CONFIRM_GRACE_MS, NEWER_FRAME_GRACE_MS, SeriesProgress
from okx_pipeline.timeframes import parse_timeframe

MINUTE = parse_timeframe("1m")
START = 1785542400000
LENGTH = MINUTE.length_ms


def at(minutes: float) -> int:
    return START + int(minutes * LENGTH)


def test_a_candle_that_is_confirmed_in_time_is_never_asked_for() -> None:
    series = SeriesProgress(MINUTE, START)
    series.expect(at(0))
    series.saw(START, at(0.1))
    assert not series.is_behind(at(1))
    series.queued(START)
    series.has_landed(START, at(1.01))
    assert series.through_ms == at(1)
    assert not series.is_behind(at(2))


def test_a_candle_that_is_never_confirmed_is_asked_for_after_its_grace() -> None:
    series = SeriesProgress(MINUTE, START)
    series.expect(at(0))
    series.saw(START, at(0.5))
    close = at(1)
    assert not series.is_behind(close + CONFIRM_GRACE_MS - 1)
    assert series.is_behind(close + CONFIRM_GRACE_MS)
    assert series.missing(close + CONFIRM_GRACE_MS) == [START]


def test_a_newer_frame_shortens_the_wait_for_the_confirmation_before_it() -> None:
    series = SeriesProgress(MINUTE, START)
    series.expect(at(0))
    series.saw(at(1), at(1) + 100)
    assert not series.is_behind(at(1) + 99 + NEWER_FRAME_GRACE_MS)
    assert series.is_behind(at(1) + 100 + NEWER_FRAME_GRACE_MS)


def test_a_candle_on_its_way_is_not_asked_for_and_one_that_was_dropped_is() -> None:
    series = SeriesProgress(MINUTE, START)
    series.expect(at(0))
    series.queued(START)
    assert not series.is_behind(at(5))
    assert series.missing(at(3)) == [at(1), at(2)]
    series.dropped(START)
    assert series.is_behind(at(5))
    assert series.missing(at(3)) == [START, at(1), at(2)]


def test_asking_in_vain_waits_longer_each_time_and_a_landing_ends_that() -> None:
    series = SeriesProgress(MINUTE, START)
    waits = []
    for _ in range(12):
        series.asked_in_vain(at(5))
        waits.append(series.due_ms - at(5))
    assert waits == sorted(waits)
    assert waits[0] == 2_000
    assert waits[-1] == 300_000
    series.has_landed(START, at(5))
    assert series.tries == 0


@given(
    st.permutations(range(12)),
    st.lists(st.sampled_from(["land", "queue", "drop", "give up"]), min_size=12, max_size=12),
    st.integers(0, 14),
)
def test_what_is_missing_is_what_closed_and_neither_landed_nor_waits(
    order: list[int], events: list[str], closed: int
) -> None:
    series = SeriesProgress(MINUTE, START)
    done: set[int] = set()
    waiting: set[int] = set()
    for minute, event in zip(order, events, strict=True):
        open_ms = at(minute)
        series.queued(open_ms)
        waiting.add(open_ms)
        if event == "drop":
            series.dropped(open_ms)
            waiting.discard(open_ms)
        elif event in ("land", "give up"):
            getattr(series, "has_landed" if event == "land" else "give_up")(open_ms, at(12))
            waiting.discard(open_ms)
            done.add(open_ms)
    expected = [at(minute) for minute in range(closed) if at(minute) not in done | waiting]
    assert series.missing(at(closed)) == expected
    assert all(open_ms in done for open_ms in range(START, series.through_ms, LENGTH))
    assert series.through_ms not in done
