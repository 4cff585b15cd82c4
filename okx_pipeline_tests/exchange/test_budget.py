"""The request budget: OKX never counts more than it allows, and hardly less; in simulated time."""

import asyncio
import random
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from okx_pipeline.exchange.budget import REST_S, LocalBudget, pause_s, slot_count, slots_to_rest
from okx_pipeline.exchange.protocol import CANDLES, ENDPOINTS, HISTORY_CANDLES, INSTRUMENTS, STATUS, TIME, Endpoint
from okx_pipeline_tests.exchange.simulated_time import run

ROUNDING_S = 1e-9


class Network:
    """Ways out and back of random length, and what OKX counts at the end of the way out.

    `base_s` is the shortest round trip there is, any share of it the way out. Jitter makes each way up to twice as
    long, which is as much as the rule allows for; `slow` and `lost` are the shares of requests that take seconds or are
    given up.
    """

    def __init__(self, seed: int, base_s: float, jitter: float = 0, slow: float = 0, lost: float = 0) -> None:
        self._random = random.Random(seed)
        self._out_s = base_s * self._random.random()
        self._back_s = base_s - self._out_s
        self._jitter, self._slow, self._lost = jitter, slow, lost
        self._sent = 0
        self.arrivals: list[float] = []

    async def ask(self, budget: LocalBudget, endpoint: Endpoint, *, throttled: bool = False) -> None:
        time = asyncio.get_running_loop().time
        async with budget.request(endpoint) as permit:
            self._sent += 1
            sent_at = time()
            if self._sent > 1 and self._random.random() < self._lost:
                await asyncio.sleep(self._random.random())
                late_s = time() + self._random.random() * endpoint.period_s
                self.arrivals.append(max(sent_at + self._out_s, late_s))
                return
            await asyncio.sleep(self._way(self._out_s))
            self.arrivals.append(time())
            await asyncio.sleep(self._way(self._back_s))
            permit.round_trip_s = time() - sent_at
            permit.throttled = throttled

    def _way(self, shortest_s: float) -> float:
        slow_s = 5 * self._random.random() if self._sent > 1 and self._random.random() < self._slow else 0
        return shortest_s * (1 + self._jitter * self._random.random()) + slow_s


async def ask_often(network: Network, budget: LocalBudget, endpoint: Endpoint, requests: int, workers: int) -> None:
    left = iter(range(requests))

    async def work() -> None:
        for _ in left:
            await network.ask(budget, endpoint)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())


def assert_never_more_than(limit: int, period_s: float, arrivals: list[float]) -> None:
    ordered = sorted(arrivals)
    for first, beyond in zip(ordered, ordered[limit:], strict=False):
        assert beyond - first >= period_s - ROUNDING_S, f"{limit + 1} requests in {beyond - first} s"


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    endpoint=st.sampled_from(ENDPOINTS),
    rate=st.none() | st.integers(1, 60),
    workers=st.integers(1, 60),
    base_s=st.sampled_from([0.0, 0.002, 0.06, 0.4, 1.5, 6.0]),
    jitter=st.floats(0, 1),
    slow=st.sampled_from([0, 0.1, 0.5]),
    lost=st.sampled_from([0, 0.1, 0.5]),
)
@example(seed=1, endpoint=HISTORY_CANDLES, rate=None, workers=60, base_s=0.4, jitter=1.0, slow=0, lost=0)
@example(seed=2, endpoint=HISTORY_CANDLES, rate=None, workers=60, base_s=0.06, jitter=0.0, slow=0, lost=0.5)
def test_no_window_of_a_period_ever_holds_more_requests_than_allowed(
    seed: int,
    endpoint: Endpoint,
    rate: int | None,
    workers: int,
    base_s: float,
    jitter: float,
    slow: float,
    lost: float,
) -> None:
    network = Network(seed, base_s, jitter, slow, lost)
    run(ask_often(network, LocalBudget(rate), endpoint, 5 * endpoint.requests, workers))
    assert len(network.arrivals) == 5 * endpoint.requests
    assert_never_more_than(slot_count(endpoint, rate), endpoint.period_s, network.arrivals)


@pytest.mark.parametrize("endpoint", [CANDLES, HISTORY_CANDLES])
def test_with_a_steady_round_trip_of_60_ms_97_percent_of_the_limit_are_used(endpoint: Endpoint) -> None:
    periods = 20
    network = Network(0, base_s=0.06)
    run(ask_often(network, LocalBudget(), endpoint, periods * endpoint.requests, workers=60))
    # Round after round all slots are used once, so that the last round begins this long after the first at best.
    at_best_s = (periods - 1) * endpoint.period_s
    assert at_best_s / (max(network.arrivals) - min(network.arrivals)) > 0.97


def test_permits_are_given_in_the_order_they_were_asked_for() -> None:
    async def main() -> None:
        budget, served = LocalBudget(rate=2), list[int]()

        async def ask(number: int) -> None:
            async with budget.request(HISTORY_CANDLES):
                served.append(number)
                await asyncio.sleep(0.05 * (7 - number % 7))

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(ask(number))
        assert served == list(range(20))

    run(main())


def test_endpoints_do_not_wait_for_one_another() -> None:
    async def main() -> None:
        budget = LocalBudget()
        async with budget.request(STATUS):
            waiting = asyncio.ensure_future(budget.request(STATUS).__aenter__())
            for endpoint in (CANDLES, HISTORY_CANDLES, INSTRUMENTS, TIME):
                async with budget.request(endpoint):
                    assert asyncio.get_running_loop().time() == 0
            waiting.cancel()

    run(main())


def test_permit_bears_the_time_at_which_it_was_given() -> None:
    async def main() -> None:
        before = datetime.now(UTC)
        async with LocalBudget().request(TIME) as permit:
            assert before <= permit.sent_at <= datetime.now(UTC)

    run(main())


def test_one_who_stops_waiting_or_is_stopped_while_asking_takes_no_slot_along() -> None:
    async def main() -> None:
        budget, network = LocalBudget(), Network(0, 0.06)
        tasks = [asyncio.ensure_future(network.ask(budget, STATUS)) for _ in range(5)]
        await asyncio.sleep(0.01)
        for task in tasks[:4]:
            task.cancel()
        await tasks[4]
        # The first was on its way when it was stopped: it may have arrived, hence two periods.
        assert asyncio.get_running_loop().time() == pytest.approx(0.01 + 2 * STATUS.period_s + 0.06)

    run(main())


def arrivals_in(arrivals: list[float], start_s: float, end_s: float) -> int:
    return sum(start_s <= arrival < end_s for arrival in arrivals)


def test_being_throttled_rests_a_quarter_of_the_slots_for_a_minute_however_many_say_so_at_once() -> None:
    async def main() -> None:
        budget, network = LocalBudget(), Network(0, 0.06)
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(network.ask(budget, HISTORY_CANDLES, throttled=True))
        network.arrivals.clear()
        await ask_often(network, budget, HISTORY_CANDLES, 1000, workers=30)
        assert arrivals_in(network.arrivals, 0, 2.5) == 15
        assert arrivals_in(network.arrivals, 0, REST_S) == pytest.approx(15 * REST_S / 2, rel=0.05)
        assert arrivals_in(network.arrivals, REST_S + 1, REST_S + 21) == pytest.approx(200, rel=0.1)

    run(main())


def test_being_throttled_again_and_again_rests_more_but_never_the_last_slot() -> None:
    async def main() -> None:
        budget, network = LocalBudget(), Network(0, 0.06)
        started = asyncio.get_running_loop().time()
        left = iter(range(150))

        async def work() -> None:
            for _ in left:
                await network.ask(budget, HISTORY_CANDLES, throttled=True)

        async with asyncio.TaskGroup() as group:
            for _ in range(30):
                group.create_task(work())
        assert 1 <= arrivals_in(network.arrivals, started + 40, started + 50) <= 10
        assert len(network.arrivals) == 150

    run(main())


@pytest.mark.parametrize(
    ("endpoint", "rate", "slots"),
    [
        (CANDLES, None, 40),
        (CANDLES, 100, 40),
        (CANDLES, 10, 10),
        (HISTORY_CANDLES, 10, 10),
        (STATUS, 1, 1),
        (STATUS, None, 1),
        (TIME, 0.1, 1),
        (HISTORY_CANDLES, 10.9, 10),
    ],
)
def test_rate_only_ever_lowers_the_number_of_slots(endpoint: Endpoint, rate: float | None, slots: int) -> None:
    assert slot_count(endpoint, rate) == slots


@pytest.mark.parametrize(("working", "resting"), [(40, 10), (20, 5), (7, 1), (3, 1), (2, 1), (1, 0)])
def test_a_quarter_rests_and_at_least_one_and_never_the_last(working: int, resting: int) -> None:
    assert slots_to_rest(working) == resting


def test_pause_is_the_period_less_half_the_fastest_round_trip_and_two_periods_without_an_answer() -> None:
    assert pause_s(CANDLES, answered=True, fastest_s=None) == 2
    assert pause_s(CANDLES, answered=True, fastest_s=0.06) == pytest.approx(1.97)
    assert pause_s(CANDLES, answered=True, fastest_s=9) == 0
    assert pause_s(CANDLES, answered=False, fastest_s=0.06) == 4
