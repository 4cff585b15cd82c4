"""What grows beside the candles, cut back: done a piece at a time, so that nobody waits for it.

Not here: candles and their months. How long a thing is kept is decided elsewhere.
"""

from collections.abc import Sequence
from typing import Any, Final, LiteralString

from okx_pipeline.storage.database import DAGSTER_SCHEMA, Connection, one
from okx_pipeline.storage.gaps import lock_ledger

PIECE: Final = 5_000

# Of a day that nothing waits for any more a mark says nothing; a later landing leaves a new one. What is locked is left
# alone, as landings lock marks in another order.
_MARKS: Final[LiteralString] = """
WITH old AS (
    SELECT symbol, timeframe, day FROM trading.landing_marks
    WHERE projected >= revision AND counted >= revision AND changed_at IS NULL
      AND landed_at < clock_timestamp() - %s * interval '1 day'
    LIMIT %s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM trading.landing_marks AS mark USING old
WHERE mark.symbol = old.symbol AND mark.timeframe = old.timeframe AND mark.day = old.day
"""

_VERDICTS: Final[LiteralString] = """
WITH old AS (
    SELECT symbol, timeframe, day, check_name, store FROM trading.quality_results
    WHERE severity IS NULL AND validated_at < clock_timestamp() - %s * interval '1 day'
    LIMIT %s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM trading.quality_results AS verdict USING old
WHERE verdict.symbol = old.symbol AND verdict.timeframe = old.timeframe AND verdict.day = old.day
  AND verdict.check_name = old.check_name AND verdict.store = old.store
"""

_SIDECARS: Final[LiteralString] = """
DELETE FROM trading.stream_status WHERE heartbeat_at < clock_timestamp() - %s * interval '1 day'
"""

# Timestamps are UTC without saying so. What is kept: all that says what became of an asset, a check or a run.
_EVENTS: Final[LiteralString] = """
WITH old AS (
    SELECT id FROM dagster.event_logs
    WHERE id > %s AND timestamp < (clock_timestamp() AT TIME ZONE 'UTC') - %s * interval '1 day'
      AND (dagster_event_type IS NULL OR NOT dagster_event_type = ANY(%s))
    ORDER BY id LIMIT %s
), gone AS (
    DELETE FROM dagster.event_logs USING old WHERE event_logs.id = old.id RETURNING event_logs.id
)
SELECT count(*), max(id) FROM gone
"""

_MAY_REMOVE_EVENTS: Final[LiteralString] = """
SELECT EXISTS (
    SELECT FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %s AND relname = 'event_logs'
      AND has_schema_privilege(nspname, 'USAGE') AND has_table_privilege(pg_class.oid, 'DELETE')
)
"""

EVENTS_KEPT: Final = (
    *("ASSET_MATERIALIZATION", "ASSET_MATERIALIZATION_PLANNED", "ASSET_FAILED_TO_MATERIALIZE", "ASSET_OBSERVATION"),
    *("ASSET_CHECK_EVALUATION", "ASSET_CHECK_EVALUATION_PLANNED", "ASSET_HEALTH_CHANGED", "ASSET_WIPED"),
    *("FRESHNESS_STATE_EVALUATION", "FRESHNESS_STATE_CHANGE"),
    *("PIPELINE_START", "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED", "STEP_FAILURE"),
)
"""Types of Dagster's events that stay for good: partitions, checks and runs are shown by them."""


def prune_marks(connection: Connection, keep_days: int) -> int:
    """Remove the marks of landings that everybody has dealt with for so long; returns how many."""
    gone = 0
    while True:
        with connection.transaction():
            # Who counts notes which revision it has seen: it must not be that of a mark made anew meanwhile.
            lock_ledger(connection)
            removed = connection.execute(_MARKS, (keep_days, PIECE)).rowcount
        gone += removed
        if removed < PIECE:
            return gone


def prune_verdicts(connection: Connection, keep_days: int) -> int:
    """Remove verdicts that found nothing so long ago; those that found something stay. Returns how many."""
    return _in_pieces(connection, _VERDICTS, (keep_days, PIECE))


def prune_sidecars(connection: Connection, keep_days: int) -> int:
    """Remove sidecars that have not beaten for so long; returns how many."""
    return connection.execute(_SIDECARS, (keep_days,)).rowcount


def prune_dagster_events(connection: Connection, keep_days: int) -> int | None:
    """Remove what Dagster logged so long ago but for `EVENTS_KEPT`; returns how many events.

    Returns
    -------
    int or None
        None where Dagster keeps its events elsewhere, or the user may not remove them.
    """
    if not one(connection, _MAY_REMOVE_EVENTS, (DAGSTER_SCHEMA,)):
        return None
    gone, last = 0, 0
    while True:
        found = connection.execute(_EVENTS, (last, keep_days, list(EVENTS_KEPT), PIECE)).fetchone()
        assert found is not None
        removed, newest = int(found[0]), found[1]
        gone += removed
        if removed < PIECE:
            return gone
        last = newest


def _in_pieces(connection: Connection, statement: LiteralString, parameters: Sequence[Any]) -> int:
    gone = 0
    while removed := connection.execute(statement, parameters).rowcount:
        gone += removed
    return gone
