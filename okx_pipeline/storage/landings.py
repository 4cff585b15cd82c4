"""What landed lately, by day and symbol: what a sensor reports."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection

_NOW: Final[LiteralString] = "SELECT clock_timestamp()"

# A (day, symbol) has its own moment in every quarter of an hour, by a hash of its name, so that nothing need be
# remembered of when each was reported: it is due if that moment passed since the last look, and something landed since
# the moment before it. A margin covers transactions that were still open then; a repeated report says the same.
_DUE: Final[LiteralString] = """
WITH marked AS (
    SELECT symbol, day, max(streamed_at) AS streamed_at, min(first_streamed_at) AS first_streamed_at
    FROM trading.landing_marks
    WHERE streamed_at > %(since)s - %(every_s)s * interval '1 second' - interval '1 minute'
    GROUP BY symbol, day
), timed AS (
    SELECT *, %(now)s - ((extract(epoch FROM %(now)s)::numeric
        - (hashtext(symbol || day::text) & 65535)) %% %(every_s)s) * interval '1 second' AS moment
    FROM marked
)
SELECT symbol, day FROM timed
WHERE first_streamed_at > %(since)s - interval '1 minute' AND first_streamed_at <= %(now)s
   OR (moment > %(since)s AND streamed_at > moment - %(every_s)s * interval '1 second' - interval '1 minute')
ORDER BY day, symbol
"""

_CORRECTED: Final[LiteralString] = """
SELECT DISTINCT symbol, day FROM trading.landing_marks
WHERE corrected_at > %s - interval '1 minute' AND corrected_at <= %s
ORDER BY day, symbol
"""

_TOTALS: Final[LiteralString] = """
SELECT wanted.symbol, wanted.day, wanted.timeframe, held.rows, held.first_ms, held.last_ms
FROM unnest(%s::text[], %s::date[], %s::text[]) AS wanted (symbol, day, timeframe)
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, min(timestamp_ms) AS first_ms, max(timestamp_ms) AS last_ms
    FROM trading.candlesticks AS held
    WHERE held.symbol = wanted.symbol AND held.timeframe = wanted.timeframe
      AND held.timestamp_ms >= (wanted.day - date '1970-01-01') * 86400000::bigint
      AND held.timestamp_ms < (wanted.day - date '1970-01-01' + 1) * 86400000::bigint
) AS held
"""


@dataclass(frozen=True, slots=True)
class Totals:
    """What is held of a series on a day: rows, and open time of the first and last."""

    rows: int
    first_ms: int | None
    last_ms: int | None


def database_now(connection: Connection) -> datetime:
    """The database's clock."""
    found = connection.execute(_NOW).fetchone()
    assert found is not None
    return found[0]  # type: ignore[no-any-return]


def streamed_days(connection: Connection, since: datetime, now: datetime, every_s: int) -> list[tuple[str, date]]:
    """The (symbol, day) whose streamed landings are due to be reported between `since` and `now`.

    A day is due soon after its first landing, and then once every `every_s` seconds while landings go on.
    """
    found = connection.execute(_DUE, {"since": since, "now": now, "every_s": every_s})
    return [(symbol, day) for symbol, day in found]


def corrected_days(connection: Connection, since: datetime, now: datetime) -> list[tuple[str, date]]:
    """The (symbol, day) in which a stored value was changed between `since` and `now`."""
    return [(symbol, day) for symbol, day in connection.execute(_CORRECTED, (since, now))]


def totals_of_days(
    connection: Connection, wanted: Iterable[tuple[str, date, str]]
) -> dict[tuple[str, date], dict[str, Totals]]:
    """What is held of each (symbol, day, timeframe) of `wanted`: by symbol and day, then by timeframe."""
    columns = list(zip(*wanted, strict=True)) or [(), (), ()]
    totals: defaultdict[tuple[str, date], dict[str, Totals]] = defaultdict(dict)
    for symbol, day, timeframe, *numbers in connection.execute(_TOTALS, [list(column) for column in columns]):
        totals[symbol, day][timeframe] = Totals(*numbers)
    return dict(totals)
