"""Contenders side by side: the same work by ours, a peer and a limit, round after round, each round in another order.

What is compared is the time of one round with that of the others in the same round: a machine that is slow for a while
is slow for all of them.
"""

from collections.abc import Callable, Mapping
from resource import RUSAGE_CHILDREN, getrusage
from time import perf_counter, process_time

from benchmarks.figures import Figure

Contender = Callable[[], float]
"""Does the work once and returns the seconds that it took; what it prepares before is not counted."""


class Contest:
    """The seconds of every contender in every round.

    Parameters
    ----------
    contenders
        By name, in the order in which they are shown.
    rounds
        How often each does its work.
    """

    def __init__(self, contenders: Mapping[str, Contender], rounds: int) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in contenders}
        names = list(contenders)
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                self.seconds[name].append(contenders[name]())

    def times(self) -> list[Figure]:
        """Seconds of each contender."""
        return [Figure.of(f"{name}, seconds", seconds) for name, seconds in self.seconds.items()]

    def speed(self, ours: str, other: str, *, at_least: float | None = None) -> Figure:
        """How many times as fast as `other` `ours` is."""
        pairs = zip(self.seconds[ours], self.seconds[other], strict=True)
        return Figure.of(f"{ours}, times as fast as {other}", [their / our for our, their in pairs], at_least=at_least)

    def cost(self, ours: str, other: str, *, at_most: float | None = None) -> Figure:
        """The time of `ours` as a multiple of that of `other`."""
        pairs = zip(self.seconds[ours], self.seconds[other], strict=True)
        return Figure.of(f"{ours}, times the time of {other}", [our / their for our, their in pairs], at_most=at_most)


def elapsed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes by the wall."""
    started = perf_counter()
    work()
    return perf_counter() - started


def computed(work: Callable[[], object]) -> float:
    """Seconds of processor time that `work` takes of this process: for work that waits for nothing."""
    started = process_time()
    work()
    return process_time() - started


def spent(work: Callable[[], object]) -> float:
    """Seconds of processor time of the processes that `work` runs to their end."""
    before = getrusage(RUSAGE_CHILDREN)
    work()
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
