"""The request budget of everyone who uses the same database: its slots are rows, its clock is the database's.

When a slot is free again and which slots rest is decided in `exchange.budget`; here is only where that is kept.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, LiteralString, Self

from okx_pipeline.errors import PipelineError
from okx_pipeline.exchange.budget import REST_S, Permit, faster, pause_s, slot_count, slots_to_rest
from okx_pipeline.exchange.protocol import Endpoint
from okx_pipeline.storage.database import AsyncConnection, Database, translated

CLAIM_S: Final = 60
"""How long a slot stays claimed by a process that died; longer than any request takes."""

LOOK_AGAIN_S: Final = 0.05
"""How often to look for a free slot while all of them carry requests, of other processes perhaps."""

_MAKE: Final[LiteralString] = """
INSERT INTO trading.request_slots (endpoint, slot)
SELECT %s, slot FROM generate_series(0, %s - 1) AS slot ON CONFLICT DO NOTHING
"""

# Whoever was killed with a claim may have sent the request up to now; beside the end of its claim, its session tells.
_FREE_OF_THE_DEAD: Final[LiteralString] = """
UPDATE trading.request_slots
SET claimed_until = '-infinity', free_at = greatest(free_at, clock_timestamp() + %s * interval '1 second')
WHERE endpoint = %s AND claimed_until > clock_timestamp()
  AND NOT EXISTS (SELECT FROM pg_stat_activity AS session WHERE session.pid = request_slots.claimed_by)
"""

_CLAIM: Final[LiteralString] = """
WITH free AS (
    SELECT slot FROM trading.request_slots
    WHERE endpoint = %(endpoint)s AND slot < %(slots)s
      AND free_at <= clock_timestamp() AND claimed_until <= clock_timestamp()
    ORDER BY free_at LIMIT 1
    FOR UPDATE SKIP LOCKED
)
UPDATE trading.request_slots AS mine
SET claimed_until = clock_timestamp() + %(claim_s)s * interval '1 second', claimed_by = pg_backend_pid()
FROM free
WHERE mine.endpoint = %(endpoint)s AND mine.slot = free.slot
RETURNING mine.slot, clock_timestamp()
"""

# A slot that was never used is free since ever, a time that servers before PostgreSQL 17 cannot subtract from.
_NEXT: Final[LiteralString] = """
SELECT extract(epoch FROM min(greatest(free_at, clock_timestamp())) - clock_timestamp())::float8
FROM trading.request_slots
WHERE endpoint = %s AND slot < %s AND claimed_until <= clock_timestamp()
"""

# The later of the two: the slot may have been sent to rest while it carried the request.
_RELEASE: Final[LiteralString] = """
UPDATE trading.request_slots
SET claimed_until = '-infinity', free_at = greatest(free_at, clock_timestamp() + %s * interval '1 second')
WHERE endpoint = %s AND slot = %s
"""

_GIVE_BACK: Final[LiteralString] = """
UPDATE trading.request_slots SET claimed_until = '-infinity' WHERE endpoint = %s AND slot = %s
"""

_WORKING: Final[LiteralString] = """
SELECT slot FROM trading.request_slots
WHERE endpoint = %(endpoint)s AND slot < %(slots)s AND rested_at <= clock_timestamp() - %(rest_s)s * interval '1 second'
  AND NOT EXISTS (
      SELECT FROM trading.request_slots AS other
      WHERE other.endpoint = %(endpoint)s AND other.rested_at > clock_timestamp() - %(period_s)s * interval '1 second'
  )
ORDER BY slot
"""

_REST: Final[LiteralString] = """
UPDATE trading.request_slots
SET rested_at = clock_timestamp(), free_at = clock_timestamp() + %s * interval '1 second'
WHERE endpoint = %s AND slot = ANY(%s)
"""


class SharedBudget:
    """A `RequestBudget` kept in PostgreSQL; use it as an asynchronous context manager, in one event loop.

    Parameters
    ----------
    database
        Whoever uses the same one shares the budget.
    rate
        Requests per 2 s if fewer are wanted than OKX allows.
    """

    def __init__(self, database: Database, rate: float | None = None) -> None:
        self._database = database
        self._rate = rate
        self._fastest_s: float | None = None
        self._made: set[Endpoint] = set()
        # One turn an endpoint keeps those who wait in order; the connection is used by one at a time.
        self._turns: defaultdict[Endpoint, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._using = asyncio.Lock()
        self._connection: AsyncConnection | None = None

    async def __aenter__(self) -> Self:
        self._connection = await self._database.connect_async(durable=False)
        return self

    async def __aexit__(self, *exception: object) -> None:
        async with self._using:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None

    @asynccontextmanager
    async def request(self, endpoint: Endpoint) -> AsyncIterator[Permit]:
        """Wait until a request may be sent; leaving the context says that it is over, answered or not.

        Raises
        ------
        StorageError
            If the database is out of reach.
        """
        with _cancellation_first():
            async with self._turns[endpoint]:
                slot, permit = await self._claim(endpoint)
            try:
                yield permit
            finally:
                # Shielded, or a cancelled request would leave its slot claimed for a minute.
                await asyncio.shield(self._release(slot, permit))

    async def _claim(self, endpoint: Endpoint) -> tuple[int, Permit]:
        slots = slot_count(endpoint, self._rate)
        if endpoint not in self._made:
            await self._execute(_MAKE, (endpoint.name, slots))
            await self._execute(_FREE_OF_THE_DEAD, (endpoint.period_s, endpoint.name))
            self._made.add(endpoint)
        parameters = {"endpoint": endpoint.name, "slots": slots, "claim_s": CLAIM_S}
        while True:
            for slot, now in await self._claim_whole(endpoint, parameters):
                return slot, Permit(endpoint, now)
            ((wait_s,),) = await self._execute(_NEXT, (endpoint.name, slots))
            # A slot that is released meanwhile is free later than this: it has its whole pause before it.
            await asyncio.sleep(LOOK_AGAIN_S if wait_s is None else max(0.0, wait_s))

    async def _claim_whole(self, endpoint: Endpoint, parameters: dict[str, object]) -> list[tuple[Any, ...]]:
        """Claim a slot if one is free. Stopped halfway, what may have been claimed by then is given back."""
        claiming = asyncio.ensure_future(self._execute(_CLAIM, parameters))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            for slot, _ in await claiming:
                await self._execute(_GIVE_BACK, (endpoint.name, slot))
            raise

    async def _release(self, slot: int, permit: Permit) -> None:
        endpoint = permit.endpoint
        if permit.round_trip_s is not None:
            self._fastest_s = faster(self._fastest_s, permit.round_trip_s)
        pause = pause_s(endpoint, answered=permit.round_trip_s is not None, fastest_s=self._fastest_s)
        await self._execute(_RELEASE, (pause, endpoint.name, slot))
        if permit.throttled:
            parameters = {
                "endpoint": endpoint.name,
                "slots": slot_count(endpoint, self._rate),
                "rest_s": REST_S,
                "period_s": endpoint.period_s,
            }
            working = [row[0] for row in await self._execute(_WORKING, parameters)]
            if working:
                resting = working[: slots_to_rest(len(working))]
                await self._execute(_REST, (REST_S, endpoint.name, resting))

    async def _execute(self, query: LiteralString, parameters: Any) -> list[tuple[Any, ...]]:
        async with self._using:
            assert self._connection is not None, "use the budget as a context manager"
            if self._connection.closed:
                # The server went away since; whoever outlives that asks again on a new connection.
                self._connection = await self._database.connect_async(durable=False)
            with translated(self._database.place):
                cursor = await self._connection.execute(query, parameters)
                return await cursor.fetchall() if cursor.description else []


@contextmanager
def _cancellation_first() -> Iterator[None]:
    """Whoever is cancelled ends, though giving its slot back failed: one who tries again would go on for ever."""
    try:
        yield
    except PipelineError as problem:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from problem
        raise
