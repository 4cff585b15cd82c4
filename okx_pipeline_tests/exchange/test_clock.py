"""The exchange's clock, carried on by what time passes here, whatever the time is thought to be here."""

import asyncio
from collections.abc import Callable

import pytest

from okx_pipeline.exchange.budget import LocalBudget
from okx_pipeline.exchange.clock import MAX_AGE_S, ExchangeClock
from okx_pipeline.exchange.errors import BusyError
from okx_pipeline.exchange.messages import encode_failure, encode_success
from okx_pipeline.exchange.protocol import UNAVAILABLE
from okx_pipeline.exchange.rest import RestClient
from okx_pipeline_tests.exchange.scripted_server import Answer, Server, serving
from okx_pipeline_tests.exchange.simulated_time import run

SERVER_MS = 1_790_000_000_000
DOWN = Answer(encode_failure(UNAVAILABLE), 503)


def saying(ms: int) -> Answer:
    return Answer(encode_success([{"ts": str(ms)}]))


class Machine:
    """This machine's two clocks: `passed_s` goes on with both, `set_s` with the wall's alone."""

    def __init__(self) -> None:
        self.passed_s = 5_000.0
        self.set_s = 0.0

    def monotonic(self) -> float:
        return self.passed_s

    def time(self) -> float:
        return 1_000_000_000 + self.passed_s + self.set_s


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    for room in ("clock", "rest"):
        monkeypatch.setattr(f"okx_pipeline.exchange.{room}.time", machine)
    return machine


def with_clock(use: Callable[[ExchangeClock, Server], object], *answers: Answer) -> None:
    async def main() -> None:
        async with serving(*answers) as server, RestClient(server.url, budget=LocalBudget(), tries=2) as client:
            await use(ExchangeClock(client), server)  # type: ignore[misc]

    run(main(), sockets=True)


def test_time_is_the_exchanges_and_goes_on_with_this_machines_whose_own_time_is_years_off(machine: Machine) -> None:
    async def use(clock: ExchangeClock, server: Server) -> None:
        assert await clock.now_ms() == SERVER_MS
        machine.passed_s += 12.345
        assert await clock.now_ms() == SERVER_MS + 12_345
        assert clock.carried_ms() == SERVER_MS + 12_345
        assert clock.ahead_s == pytest.approx(machine.time() - SERVER_MS / 1000 - 12.345)
        assert len(server.requests) == 1

    with_clock(use, saying(SERVER_MS), saying(0))


def test_reading_is_that_of_the_middle_of_the_round_trip(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[float] = []

    def tick() -> float:
        ticks.append(5_000.0 + 0.25 * len(ticks) ** 2)
        return ticks[-1]

    monkeypatch.setattr(machine, "monotonic", tick)

    async def main() -> None:
        async with serving(saying(SERVER_MS)) as server, RestClient(server.url, budget=LocalBudget()) as client:
            reading = await client.server_time()
            sent_s, answered_s = ticks[-2:]
            assert reading.round_trip_s == answered_s - sent_s
            assert reading.local_s == (sent_s + answered_s) / 2

    run(main(), sockets=True)


def test_reading_is_renewed_when_it_is_old_and_not_before(machine: Machine) -> None:
    async def use(clock: ExchangeClock, server: Server) -> None:
        await clock.now_ms()
        machine.passed_s += MAX_AGE_S - 1
        await clock.now_ms()
        assert len(server.requests) == 1
        machine.passed_s += 2
        # The quartz here went too fast by seven seconds.
        assert await clock.now_ms() == SERVER_MS + 294_000
        assert len(server.requests) == 2

    with_clock(use, saying(SERVER_MS), saying(SERVER_MS + 294_000))


def test_all_who_ask_at_once_share_one_reading(machine: Machine) -> None:
    async def use(clock: ExchangeClock, server: Server) -> None:
        assert await asyncio.gather(*(clock.now_ms() for _ in range(20))) == [SERVER_MS] * 20
        assert len(server.requests) == 1

    with_clock(use, saying(SERVER_MS))


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_machine_that_slept_or_was_set_reads_the_exchanges_clock_anew(machine: Machine, jump_s: int) -> None:
    async def use(clock: ExchangeClock, server: Server) -> None:
        await clock.now_ms()
        machine.set_s += jump_s
        assert await clock.now_ms() == SERVER_MS + 3_600_000
        await clock.now_ms()
        assert len(server.requests) == 2

    with_clock(use, saying(SERVER_MS), saying(SERVER_MS + 3_600_000))


def test_old_reading_is_carried_on_while_the_exchange_does_not_answer(machine: Machine) -> None:
    async def use(clock: ExchangeClock, server: Server) -> None:
        await clock.now_ms()
        machine.passed_s += MAX_AGE_S + 1
        assert await clock.now_ms() == SERVER_MS + 301_000
        asked = len(server.requests)
        machine.passed_s += 10
        assert await clock.now_ms() == SERVER_MS + 311_000
        assert len(server.requests) == asked, "not tried again at once"

    with_clock(use, saying(SERVER_MS), DOWN)


def test_time_is_not_guessed_after_a_sleep_or_before_a_first_reading(machine: Machine) -> None:
    async def use(clock: ExchangeClock, server: Server) -> None:
        with pytest.raises(BusyError):
            await clock.now_ms()
        with pytest.raises(RuntimeError, match="not been read"):
            clock.carried_ms()
        server.answers = [saying(SERVER_MS), DOWN]
        await clock.now_ms()
        machine.set_s += 3600
        with pytest.raises(BusyError):
            await clock.now_ms()

    with_clock(use, DOWN)


def test_a_doubted_reading_is_renewed_soon_and_tells_an_exchange_that_runs_faster(machine: Machine) -> None:
    async def use(clock: ExchangeClock, server: Server) -> None:
        await clock.now_ms()
        clock.doubt()
        assert await clock.now_ms() == SERVER_MS, "read a moment ago"
        assert not clock.is_measured
        machine.passed_s += 10
        assert await clock.now_ms() == SERVER_MS + 600_000
        assert clock.speed == pytest.approx(60)
        assert clock.is_measured
        machine.passed_s += 1
        assert clock.carried_ms() == SERVER_MS + 660_000
        machine.passed_s += 9
        assert await clock.now_ms() == SERVER_MS + 610_000, "it runs as fast as this machine again"
        assert clock.speed == 1.0

    with_clock(use, saying(SERVER_MS), saying(SERVER_MS + 600_000), saying(SERVER_MS + 610_000))
