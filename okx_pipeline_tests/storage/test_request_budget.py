"""The shared request budget: several real processes against a server that counts as OKX does, in real time."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest

from okx_pipeline.exchange.budget import REST_S
from okx_pipeline.exchange.protocol import Endpoint
from okx_pipeline.storage import request_budget
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.request_budget import SharedBudget
from okx_pipeline_tests.storage.processes import barrier, finish, kill, start

QUICK = Endpoint("quick", "/quick", 10, 0.5)
EIGHT = Endpoint("eight", "/eight", 8, 0.1)
PATIENT = Endpoint("patient", "/patient", 8, 5.0)

RESTING = f"free_at > clock_timestamp() + interval '{REST_S - 10} s'"
CLAIMED = "claimed_until > clock_timestamp()"


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


def slots(connection: Connection, condition: str) -> int:
    return int(one(connection, f"SELECT count(*) FROM trading.request_slots WHERE {condition}"))


async def until(connection: Connection, condition: str, number: int) -> None:
    """Wait until that many slots meet `condition`."""
    deadline = time.monotonic() + 30
    while slots(connection, condition) != number:
        assert time.monotonic() < deadline, condition
        await asyncio.sleep(0.005)


async def ask(budget: SharedBudget, endpoint: Endpoint, *, throttled: bool = False) -> None:
    """A request that is answered at once."""
    async with budget.request(endpoint) as permit:
        permit.round_trip_s, permit.throttled = 0.001, throttled


# Several processes


@contextmanager
def counting_server(seed: int) -> Iterator[tuple[int, list[float]]]:
    """A server that notes when each request arrives, after a way out and before a way back of 5 to 10 ms each."""
    arrivals: list[float] = []
    dice = random.Random(seed)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            await asyncio.sleep(0.005 * (1 + dice.random()))
            arrivals.append(time.monotonic())
            await asyncio.sleep(0.005 * (1 + dice.random()))
            writer.write(b"answer\n")
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1], arrivals
    finally:

        async def close() -> None:
            server.close()
            await server.wait_closed()

        asyncio.run_coroutine_threadsafe(close(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def ask_often(url: str, port: int, requests: int, workers: int, gate: Any) -> None:
    async def main() -> None:
        left = iter(range(requests))

        async def work(budget: SharedBudget) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in left:
                async with budget.request(QUICK) as permit:
                    sent_at = time.monotonic()
                    writer.write(b"request\n")
                    assert await reader.readline() == b"answer\n"
                    permit.round_trip_s = time.monotonic() - sent_at
            writer.close()
            await writer.wait_closed()

        async with SharedBudget(Database(url)) as budget:
            gate.wait(30)
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work(budget))

    asyncio.run(main())


def test_processes_together_never_ask_more_than_allowed_and_hardly_less(database: Database) -> None:
    processes, periods = 4, 8
    requests = periods * QUICK.requests
    with counting_server(seed=3) as (port, arrivals):
        gate = barrier(processes)
        arguments = (database.url, port, requests // processes, 6, gate)
        finish(*[start(ask_often, *arguments) for _ in range(processes)])
    arrivals.sort()
    assert len(arrivals) == requests
    for first, beyond in zip(arrivals, arrivals[QUICK.requests :], strict=False):
        assert beyond - first >= QUICK.period_s, f"{QUICK.requests + 1} requests in {beyond - first} s"
    at_best_s = (periods - 1) * QUICK.period_s
    used = at_best_s / (arrivals[-1] - arrivals[0])
    print(f"used {used:.1%} of the budget")
    assert used > 0.8


def claim_everything(url: str, claim_s: float) -> None:
    vars(request_budget)["CLAIM_S"] = claim_s

    async def main() -> None:
        async with SharedBudget(Database(url)) as budget, asyncio.TaskGroup() as group:
            for _ in range(EIGHT.requests):
                group.create_task(hold(budget))

    async def hold(budget: SharedBudget) -> None:
        async with budget.request(EIGHT):
            await asyncio.sleep(3600)

    asyncio.run(main())


def test_what_a_killed_process_claimed_is_free_a_period_after_its_session_is_seen_to_be_gone(
    database: Database, connection: Connection
) -> None:
    async def main() -> None:
        process = start(claim_everything, database.url, 3600)
        await until(connection, CLAIMED, EIGHT.requests)
        (holder,) = {row[0] for row in connection.execute("SELECT claimed_by FROM trading.request_slots")}
        assert kill(process)
        await until(
            connection, f"claimed_by = {holder} AND EXISTS (SELECT FROM pg_stat_activity WHERE pid = {holder})", 0
        )
        asked = one(connection, "SELECT clock_timestamp()")
        async with SharedBudget(database) as budget, budget.request(EIGHT) as permit:
            assert (permit.sent_at - asked).total_seconds() >= EIGHT.period_s

    asyncio.run(main())


def test_a_claim_whose_session_still_lives_ends_by_itself(database: Database, connection: Connection) -> None:
    async def main() -> None:
        process = start(claim_everything, database.url, 1.5)
        await until(connection, CLAIMED, EIGHT.requests)
        ends = one(connection, "SELECT min(claimed_until) FROM trading.request_slots")
        async with SharedBudget(database) as budget, budget.request(EIGHT) as permit:
            assert permit.sent_at >= ends
        assert kill(process)

    asyncio.run(main())


def test_the_budget_outlives_a_lost_connection(database: Database, connection: Connection) -> None:
    async def main() -> None:
        async with SharedBudget(database) as budget:
            async with budget.request(EIGHT):
                pass
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            with pytest.raises(StorageError):
                async with budget.request(EIGHT):
                    pass
            async with budget.request(EIGHT) as permit:
                assert permit.endpoint == EIGHT

    asyncio.run(main())


# Asked too often


def test_after_a_429_a_quarter_of_the_slots_rest_once_a_period_and_never_the_last(
    database: Database, connection: Connection
) -> None:
    a_period_later = (
        f"UPDATE trading.request_slots SET rested_at = rested_at - interval '{PATIENT.period_s} s', "
        f"free_at = CASE WHEN {RESTING} THEN free_at ELSE '-infinity' END"
    )

    async def main() -> None:
        async with SharedBudget(database) as budget, SharedBudget(database) as another:
            await ask(budget, PATIENT)
            assert slots(connection, RESTING) == 0
            await asyncio.gather(*(ask(each, PATIENT, throttled=True) for each in (budget, another, budget)))
            assert slots(connection, RESTING) == 2
            for resting in (3, 4, 5, 6, 7, 7, 7):  # a quarter of the six that work is one, and so on
                connection.execute(a_period_later)
                await ask(budget, PATIENT, throttled=True)
                assert slots(connection, RESTING) == resting
            connection.execute("UPDATE trading.request_slots SET rested_at = '-infinity', free_at = '-infinity'")
            await ask(another, PATIENT, throttled=True)
            assert slots(connection, RESTING) == 2

    asyncio.run(main())


def test_a_slot_that_rests_while_it_carries_a_request_rests_on_when_that_is_answered(
    database: Database, connection: Connection
) -> None:
    async def main() -> None:
        async with SharedBudget(database) as budget:
            async with budget.request(PATIENT) as permit:
                await ask(budget, PATIENT, throttled=True)
                assert slots(connection, f"{CLAIMED} AND {RESTING}") == 1
                permit.round_trip_s = 0.001
            assert slots(connection, RESTING) == 2
            assert slots(connection, CLAIMED) == 0

    asyncio.run(main())


# Within a process


@pytest.mark.parametrize(("rate", "expected"), [(None, 8), (80, 4), (1_000, 8), (1, 1)])
def test_a_lower_rate_has_fewer_slots(
    database: Database, connection: Connection, rate: int | None, expected: int
) -> None:
    async def main() -> None:
        under_way = 0
        full = asyncio.Event()

        async def ask_slowly(budget: SharedBudget) -> None:
            nonlocal under_way
            async with budget.request(EIGHT) as permit:
                under_way += 1
                assert under_way <= expected
                if under_way == expected:
                    full.set()
                await full.wait()
                permit.round_trip_s = 0.001
            under_way -= 1

        async with SharedBudget(database, rate) as budget, asyncio.TaskGroup() as group:
            for _ in range(expected + 2):
                group.create_task(ask_slowly(budget))

    asyncio.run(main())
    assert slots(connection, "true") == expected


def test_permits_are_given_in_the_order_they_were_asked_for(database: Database) -> None:
    async def main() -> None:
        served: list[int] = []
        async with SharedBudget(database, rate=40) as budget:

            async def ask_in_turn(number: int) -> None:
                async with budget.request(EIGHT) as permit:
                    served.append(number)
                    await asyncio.sleep(0.01 * (number % 3))
                    permit.round_trip_s = 0.001

            async with asyncio.TaskGroup() as group:
                for number in range(12):
                    group.create_task(ask_in_turn(number))
        assert served == list(range(12))

    asyncio.run(main())


def test_endpoints_do_not_wait_for_one_another(database: Database) -> None:
    single = Endpoint("single", "/single", 1, 60.0)

    async def main() -> None:
        async with SharedBudget(database) as budget, budget.request(single):
            waiting = asyncio.ensure_future(ask(budget, single))
            await ask(budget, QUICK)
            waiting.cancel()

    asyncio.run(main())


def test_one_who_is_stopped_while_asking_gives_his_slot_back(database: Database, connection: Connection) -> None:
    async def main() -> None:
        async with SharedBudget(database) as budget:
            has_the_permit = asyncio.Event()

            async def ask_for_ever() -> None:
                async with budget.request(EIGHT):
                    has_the_permit.set()
                    await asyncio.sleep(3600)

            asking = asyncio.ensure_future(ask_for_ever())
            await has_the_permit.wait()
            stopped = one(connection, "SELECT clock_timestamp()")
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert slots(connection, CLAIMED) == 0
            # It may have arrived all the same, hence two periods.
            assert slots(connection, f"free_at >= timestamptz '{stopped}' + interval '{2 * EIGHT.period_s} s'") == 1

    asyncio.run(main())


def test_one_who_is_stopped_at_any_moment_takes_no_slot_along(database: Database, connection: Connection) -> None:
    async def main() -> None:
        async with SharedBudget(database) as budget:
            await ask(budget, QUICK)
            ended: list[bool] = []
            # Later by a step each time, until one is over before it is stopped; on a busy machine that takes more.
            while not ended or (ended[-1] and len(ended) < 2000):
                steps = len(ended)
                asking = asyncio.ensure_future(ask(budget, QUICK))
                for _ in range(steps):
                    await asyncio.sleep(0)
                    time.sleep(0.0005)  # whatever was sent is answered before the next step
                asking.cancel()
                await asyncio.wait([asking])
                ended.append(asking.cancelled())
                await until(connection, CLAIMED, 0)
                connection.execute("UPDATE trading.request_slots SET free_at = '-infinity'")
            assert ended[0]
            assert not ended[-1], "no step was reached at which the request is over"
            await ask(budget, QUICK)

    asyncio.run(main())


def test_a_database_that_goes_away_is_one_line(database: Database, connection: Connection) -> None:
    async def main() -> None:
        async with SharedBudget(database) as budget:
            await ask(budget, QUICK)
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            with pytest.raises(StorageError, match="cannot reach PostgreSQL") as told:
                await ask(budget, QUICK)
            assert "\n" not in str(told.value)

    asyncio.run(main())


def test_one_who_is_stopped_while_the_database_goes_away_is_stopped(database: Database, connection: Connection) -> None:
    async def work() -> None:
        async with SharedBudget(database) as budget:

            async def ask_for_ever() -> None:
                while True:
                    try:
                        async with budget.request(QUICK):
                            asking.set()
                            await asyncio.Event().wait()
                    except StorageError:
                        await asyncio.sleep(0.01)

            asking = asyncio.Event()
            task = asyncio.create_task(ask_for_ever())
            await asking.wait()
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=20)
            assert done, "it asks on"
            assert task.cancelled()

    asyncio.run(work())


def test_the_clock_of_a_permit_is_the_databases(database: Database, connection: Connection) -> None:
    async def main() -> None:
        before = one(connection, "SELECT clock_timestamp()")
        async with SharedBudget(database) as budget, budget.request(QUICK) as permit:
            assert before <= permit.sent_at <= one(connection, "SELECT clock_timestamp()")
            assert permit.sent_at.tzinfo is not None

    asyncio.run(main())
