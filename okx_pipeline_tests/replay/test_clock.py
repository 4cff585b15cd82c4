"""The exchange's clock against a wall that the test moves."""

import pytest

from okx_pipeline.errors import UsageError
from okx_pipeline.replay.clock import ExchangeClock


class Wall:
    """A wall clock and a stopwatch that go when told."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0
        self.stopwatch = 50.0

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds
        self.stopwatch += seconds

    def clock(self, now_s: float, speed: float) -> ExchangeClock:
        return ExchangeClock(int(now_s * 1000), speed, wall=lambda: self.seconds, monotonic=lambda: self.stopwatch)


def test_it_runs_faster_than_the_wall_until_it_has_caught_up_and_then_with_it():
    wall = Wall()
    clock = wall.clock(1_000_000 - 90, 10)
    assert clock.now_ms() == 999_910_000
    wall.pass_(5)
    assert clock.now_ms() == 999_960_000
    wall.pass_(5)
    assert clock.now_ms() == 1_000_010_000
    wall.pass_(7)
    assert clock.now_ms() == 1_000_017_000


def test_it_stands_still_at_speed_zero():
    wall = Wall()
    clock = wall.clock(900_000, 0)
    wall.pass_(3600)
    assert clock.now_ms() == 900_000_000


def test_it_can_be_put_elsewhere_and_given_another_speed_while_it_runs():
    wall = Wall()
    clock = wall.clock(900_000, 2)
    wall.pass_(10)
    clock.set(speed=0.5)
    assert clock.now_ms() == 900_020_000
    wall.pass_(10)
    assert clock.now_ms() == 900_025_000
    clock.set(now_ms=500_000_000)
    wall.pass_(2)
    assert (clock.now_ms(), clock.speed) == (500_001_000, 0.5)


def test_it_is_never_ahead_of_a_wall_that_was_set_back():
    wall = Wall()
    clock = wall.clock(1_000_000, 1)
    wall.seconds -= 100
    assert clock.now_ms() == 999_900_000


@pytest.mark.parametrize(("now_s", "speed"), [(1_000_001, 1), (-1, 1), (5, -1), (5, float("inf")), (5, float("nan"))])
def test_the_future_and_running_backwards_are_refused(now_s: float, speed: float):
    with pytest.raises(UsageError, match="clock cannot"):
        Wall().clock(now_s, speed)


def test_a_refused_change_changes_nothing():
    wall = Wall()
    clock = wall.clock(900_000, 3)
    with pytest.raises(UsageError):
        clock.set(now_ms=2_000_000_000, speed=5)
    wall.pass_(1)
    assert (clock.now_ms(), clock.speed) == (900_003_000, 3)
