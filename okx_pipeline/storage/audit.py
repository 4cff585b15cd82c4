"""The audit: every closed series-day held against its rows in turn, for whatever no mark tells of.

Triggers mark changes by hand at once. They cannot see a restored backup, a disabled trigger or a row that was inserted
through the parent table. So each month of each series is hashed again and compared with the ledger, a pass over all of
them in `PASS_DAYS`; a day that differs gets a mark, and counting, projection and checks follow it from there.
"""

from collections.abc import Callable
from time import monotonic
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection, one

PASS_DAYS: Final = 20
"""A pass takes so long, which leaves ten days for a program that is switched off now and then: each series-day is
audited at least once in 30 days."""

_BEGIN: Final[LiteralString] = """
UPDATE trading.audit SET
    began_at = clock_timestamp(), is_asked = %(is_asked)s, audited = 0, symbol = '', timeframe = '', month = NULL,
    expected = (SELECT count(*) FROM trading.candle_months)
"""

_REQUESTS: Final[LiteralString] = "DELETE FROM trading.audit_requests"

# How many series-months are due by now: all of them where somebody asked.
_DUE: Final[LiteralString] = """
SELECT CASE WHEN is_asked THEN NULL ELSE
           1 + (expected * least(1, extract(epoch FROM clock_timestamp() - began_at) / (%s * 86400.0)))::bigint
       END,
       audited, symbol, timeframe, month, EXISTS (SELECT FROM trading.audit_requests)
FROM trading.audit
"""

# The next month of the series audited last that it has rows or a ledger of.
_NEXT_MONTH: Final[LiteralString] = """
SELECT least(
    (SELECT date_trunc('month', min(day))::date FROM trading.coverage
     WHERE symbol = %(symbol)s AND timeframe = %(timeframe)s AND day >= (%(month)s::date + interval '1 month')::date),
    (SELECT date_trunc('month', date '1970-01-01' + (min(timestamp_ms) / 86400000)::integer)::date
     FROM trading.candlesticks
     WHERE symbol = %(symbol)s AND timeframe = %(timeframe)s
       AND timestamp_ms >= ((%(month)s::date + interval '1 month')::date - date '1970-01-01') * 86400000::bigint)
)
"""

_NEXT_SERIES: Final[LiteralString] = """
SELECT symbol, timeframe FROM (
    (SELECT symbol, timeframe FROM trading.coverage
     WHERE (symbol, timeframe) > (%(symbol)s, %(timeframe)s) ORDER BY symbol, timeframe LIMIT 1)
    UNION
    (SELECT symbol, timeframe FROM trading.candlesticks
     WHERE (symbol, timeframe) > (%(symbol)s, %(timeframe)s) ORDER BY symbol, timeframe LIMIT 1)
) AS following
ORDER BY symbol, timeframe LIMIT 1
"""

_FIRST_MONTH: Final[LiteralString] = """
SELECT least(
    (SELECT date_trunc('month', min(day))::date FROM trading.coverage
     WHERE symbol = %(symbol)s AND timeframe = %(timeframe)s),
    (SELECT date_trunc('month', date '1970-01-01' + (min(timestamp_ms) / 86400000)::integer)::date
     FROM trading.candlesticks WHERE symbol = %(symbol)s AND timeframe = %(timeframe)s)
)
"""

# A day that is open, or has a mark that is not counted yet, is counted soon in any case.
_AUDIT: Final[LiteralString] = """
WITH days AS (
    SELECT day::date AS day, (day::date - date '1970-01-01') * 86400000::bigint AS start_ms
    FROM generate_series(%(month)s::date, (%(month)s::date + interval '1 month - 1 day')::date, interval '1 day') AS day
), held AS (
    SELECT day, trading.content_hash(%(symbol)s, %(timeframe)s, start_ms, start_ms + 86400000) AS content_hash FROM days
), differing AS (
    SELECT held.day
    FROM held
    LEFT JOIN trading.coverage AS known
        ON known.symbol = %(symbol)s AND known.timeframe = %(timeframe)s AND known.day = held.day
    WHERE CASE WHEN known.symbol IS NULL THEN held.content_hash <> encode(sha256(''), 'hex')
               ELSE known.content_hash <> held.content_hash END
      AND NOT EXISTS (
          SELECT FROM trading.candle_months AS month
          WHERE month.symbol = %(symbol)s AND month.timeframe = %(timeframe)s AND month.month = %(month)s
            AND month.state = 'archived'
      ) AND NOT EXISTS (
          SELECT FROM trading.landing_marks AS mark
          WHERE mark.symbol = %(symbol)s AND mark.timeframe = %(timeframe)s AND mark.day = held.day
            AND mark.counted < mark.revision
      ) AND NOT EXISTS (
          SELECT FROM trading.unmarked_days AS landed
          WHERE landed.symbol = %(symbol)s AND landed.timeframe = %(timeframe)s AND landed.day = held.day
      )
)
INSERT INTO trading.unmarked_landings (symbols, timeframes, days, origin)
SELECT array_agg(%(symbol)s::text), array_agg(%(timeframe)s::text), array_agg(day), 'values'
FROM differing HAVING count(*) > 0
RETURNING cardinality(days)
"""

_ADVANCE: Final[LiteralString] = """
UPDATE trading.audit SET symbol = %(symbol)s, timeframe = %(timeframe)s, month = %(month)s, audited = audited + 1
"""

_END: Final[LiteralString] = "UPDATE trading.audit SET ended_at = clock_timestamp()"


def audit(
    connection: Connection, goes_on: Callable[[float], bool] = lambda took_s: True, *, whole: bool = False
) -> int:
    """Audit the series-months that are due by now; returns how many days differ from the ledger and have a mark now.

    Parameters
    ----------
    connection
        An autocommit connection.
    goes_on
        Asked after every series-month, with the seconds that it took; a no leaves the rest to the next call.
    whole
        Begin a pass now, and go on to its end.

    Raises
    ------
    psycopg.Error
        If the database fails. What was audited by then stays.
    """
    differing = 0
    found = connection.execute(_DUE, (PASS_DAYS,)).fetchone()
    assert found is not None
    due, audited, symbol, timeframe, month, is_requested = found
    if whole or (is_requested and due is not None):
        with connection.transaction():
            connection.execute(_REQUESTS)
            connection.execute(_BEGIN, {"is_asked": True})
        due, audited, symbol, timeframe, month = None, 0, "", "", None
    place = {"symbol": symbol, "timeframe": timeframe, "month": month}
    while due is None or audited < due:
        began_s = monotonic()
        following = _following(connection, place)
        if following is None:
            connection.execute(_END)
            connection.execute(_BEGIN, {"is_asked": False})
            break
        place = following
        found = connection.execute(_AUDIT, place).fetchone()
        differing += int(found[0]) if found else 0
        connection.execute(_ADVANCE, place)
        audited += 1
        if not goes_on(monotonic() - began_s):
            break
    return differing


def _following(connection: Connection, place: dict[str, object]) -> dict[str, object] | None:
    """The series-month after `place`; None after the last."""
    if place["symbol"]:
        month = one(connection, _NEXT_MONTH, place)
        if month is not None:
            return {**place, "month": month}
    series = connection.execute(_NEXT_SERIES, place).fetchone()
    if series is None:
        return None
    following = {"symbol": series[0], "timeframe": series[1]}
    return {**following, "month": one(connection, _FIRST_MONTH, following)}
