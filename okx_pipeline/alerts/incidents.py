"""Looking: what the sources find to be wrong now becomes incidents that open and are resolved."""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from okx_pipeline.errors import PipelineError
from okx_pipeline.storage.alerts import Incident, looking, open_incidents, see
from okx_pipeline.storage.database import Connection

log = logging.getLogger(__name__)

UNSEEN: Final = "unseen"
"""Subject of the incident that a source cannot be looked at."""

PATIENCE_S: Final = 60.0
"""How long that lasts before somebody is told."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where incidents of one kind are found.

    Parameters
    ----------
    what
        The kind, as a word: ``open_gaps``.
    look
        Gives all incidents of the kind that are true now. What it gave before and gives no more is resolved.
    """

    what: str
    look: Callable[[Connection], list[Incident]]


def look(connection: Connection, sources: Iterable[Source], sinks: Collection[str]) -> list[Incident]:
    """Look at every source, and write down what is open and what is resolved.

    A source that fails keeps its incidents as they were, and is one itself until it can be looked at again.

    Parameters
    ----------
    connection
        An autocommit connection.
    sinks
        Names of those who are to be told.

    Returns
    -------
    list of Incident
        All that is open of these kinds.

    Raises
    ------
    psycopg.Error
        If nothing can be written down.
    """
    found = []
    for source in sources:
        with looking(connection, source.what):
            incidents = _look_at(source, connection)
            see(connection, source.what, incidents, sinks)
        found += incidents
    return found


def _look_at(source: Source, connection: Connection) -> list[Incident]:
    try:
        with connection.transaction():
            return source.look(connection)
    except Exception as problem:
        # Whatever it is, the other sources are looked at, and somebody is told.
        log.exception("cannot look for incidents of the kind %s", source.what)
        why = str(problem) if isinstance(problem, PipelineError) else type(problem).__name__
    known = [each for each in open_incidents(connection, source.what) if each.subject != UNSEEN]
    return [*known, Incident(UNSEEN, f"{source.what} cannot be looked at: {why}", patience_s=PATIENCE_S)]
