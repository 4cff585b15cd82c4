"""What landed lately, by day and symbol: what a sensor reports, and what history still lacks."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection
from okx_pipeline.timeframes import Timeframe

_NOW: Final[LiteralString] = "SELECT clock_timestamp()"

# A (day, symbol) has its own moment in every quarter of an hour, by a hash of its name, so that nothing need be
# remembered of when each was reported: it is due if that moment passed since the last look, and something landed since
# the moment before it. A margin covers transactions that were still open then; a repeated report says the same.
_DUE: Final[LiteralString] = """
WITH marked AS (
    SELECT symbol, day, max(landed_at) AS landed_at, min(first_landed_at) AS first_landed_at
    FROM trading.landing_marks
    WHERE landed_at > %(since)s - %(every_s)s * interval '1 second' - interval '1 minute'
    GROUP BY symbol, day
), timed AS (
    SELECT *, %(now)s - ((extract(epoch FROM %(now)s)::numeric
        - (hashtext(symbol || day::text) & 65535)) %% %(every_s)s) * interval '1 second' AS moment
    FROM marked
)
SELECT symbol, day, landed_at FROM timed
WHERE first_landed_at > %(since)s - interval '1 minute' AND first_landed_at <= %(now)s
   OR (moment > %(since)s AND landed_at > moment - %(every_s)s * interval '1 second' - interval '1 minute')
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

_PER_DAY: Final[LiteralString] = """
SELECT timestamp_ms / 86400000 * 86400000, count(*)
FROM trading.candlesticks
WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class LandedDay:
    """A symbol's day in which something landed, last at `landed_at`."""

    symbol: str
    day: date
    landed_at: datetime


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


def landed_days(connection: Connection, since: datetime, now: datetime, every_s: int) -> list[LandedDay]:
    """The days whose landings are due to be reported between `since` and `now`.

    A day is due soon after its first landing, and then once every `every_s` seconds while landings go on.
    """
    found = connection.execute(_DUE, {"since": since, "now": now, "every_s": every_s})
    return [LandedDay(*row) for row in found]


def totals_of_days(
    connection: Connection, wanted: Iterable[tuple[str, date, str]]
) -> dict[tuple[str, date], dict[str, Totals]]:
    """What is held of each (symbol, day, timeframe) of `wanted`: by symbol and day, then by timeframe."""
    columns = list(zip(*wanted, strict=True)) or [(), (), ()]
    totals: defaultdict[tuple[str, date], dict[str, Totals]] = defaultdict(dict)
    for symbol, day, timeframe, *numbers in connection.execute(_TOTALS, [list(column) for column in columns]):
        totals[symbol, day][timeframe] = Totals(*numbers)
    return dict(totals)


def rows_per_day(
    connection: Connection, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int
) -> dict[int, int]:
    """How many candles are held of each UTC day (by its first millisecond) in [start_ms, end_ms)."""
    return dict(connection.execute(_PER_DAY, (symbol, timeframe.name, start_ms, end_ms)).fetchall())
