"""Delivery: every sink is told what it does not know yet, within a bounded time, whoever else is telling it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from okx_pipeline.alerts.outbound import UndeliveredError
from okx_pipeline.alerts.sinks import Sink
from okx_pipeline.errors import PipelineError
from okx_pipeline.storage.alerts import claimed_sink, next_message, note_delivered, note_undelivered
from okx_pipeline.storage.database import AsyncConnection, Database, DatabaseError

MESSAGES_A_ROUND: Final = 20
"""Telegram takes 20 a minute in a group; further ones wait for the next round."""

ROUND_S: Final = 10.0
"""No message is begun later than this in a round; a sink has `outbound.WITHIN_S` to take one."""


@dataclass(slots=True)
class Delivered:
    """What came of a round: how many messages a sink has taken, and why it did not take the next one."""

    sink: str
    messages: int = 0
    problem: str | None = None

    def __str__(self) -> str:
        told = f"{self.sink} told {self.messages}"
        return told if self.problem is None else f"{told}, then: {self.problem}"


async def deliver(database: Database, sinks: Sequence[Sink]) -> list[Delivered]:
    """Tell every sink what is due, all at once; a sink that does not take a message is left alone for a while.

    A message counts as delivered when the sink has taken it and that is written down; one whose answer was lost, or
    whose sender was killed in between, is sent again, under the same incident's number.
    """
    async with asyncio.TaskGroup() as group:
        rounds = [group.create_task(_round(database, sink)) for sink in sinks]
    return [each.result() for each in rounds]


async def _round(database: Database, sink: Sink) -> Delivered:
    done = Delivered(sink.name)
    try:
        async with await database.connect_async() as connection, claimed_sink(connection, sink.name) as mine:
            if mine:
                await _tell(connection, sink, done)
            else:
                done.problem = "somebody else is telling it"
    except (PipelineError, DatabaseError) as problem:
        done.problem = str(problem).partition("\n")[0]
    return done


async def _tell(connection: AsyncConnection, sink: Sink, done: Delivered) -> None:
    deadline = monotonic() + ROUND_S
    while done.messages < MESSAGES_A_ROUND and monotonic() < deadline:
        message = await next_message(connection, sink.name)
        if message is None:
            return
        try:
            await sink.send(message)
        except UndeliveredError as problem:
            done.problem = str(problem)
            await note_undelivered(connection, sink.name, message, str(problem))
            return
        await note_delivered(connection, sink.name, message)
        done.messages += 1
