"""What goes on right now, in queries that cost little whatever the store's size: for those who look again and again.

How the whole store is stands in `overview`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection, one

# Months are looked at from the latest on, and none before the one that has a candle.
_LAST: Final[LiteralString] = """
SELECT wanted.symbol, wanted.timeframe, (
    SELECT max(timestamp_ms) FROM trading.candlesticks AS held
    WHERE held.symbol = wanted.symbol AND held.timeframe = wanted.timeframe)
FROM trading.subscriptions AS wanted WHERE wanted.until_ms IS NULL
"""

_OPEN_DAY: Final[LiteralString] = """
SELECT symbol, timeframe, expected, present, missing FROM trading.coverage
WHERE content_hash IS NULL AND day = %s
"""

_LANDED: Final[LiteralString] = """
SELECT wanted.symbol, wanted.timeframe, lately.landed
FROM unnest(%(symbols)s::text[], %(timeframes)s::text[]) AS wanted (symbol, timeframe)
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE received_at > clock_timestamp() - %(within_s)s * interval '1 second') AS landed
    FROM (
        SELECT received_at FROM trading.candlesticks AS held
        WHERE held.symbol = wanted.symbol AND held.timeframe = wanted.timeframe
        ORDER BY timestamp_ms DESC LIMIT %(most)s
    ) AS newest
) AS lately
"""

# By the days on which candles are missing that nobody fetches: few, while the gaps of history on its way may be many. A
# candle of the day under way is on its way while the sidecar has not dealt with it.
_OPEN_GAPS: Final[LiteralString] = """
WITH found AS (
    SELECT gap.id, gap.candles, sum(day.missing) AS missing
    FROM trading.coverage AS day
    LEFT JOIN trading.stream_offsets AS stream USING (symbol, timeframe)
    JOIN trading.candle_gaps AS gap ON gap.symbol = day.symbol AND gap.timeframe = day.timeframe
        AND gap.status = 'open'
        AND gap.first_ms < ((day.day - date '1970-01-01') + 1) * 86400000::bigint
        AND gap.last_ms >= (day.day - date '1970-01-01') * 86400000::bigint
    WHERE day.missing > 0 AND (day.read_at IS NOT NULL OR day.content_hash IS NULL)
      AND (day.read_at IS NOT NULL OR gap.first_ms < stream.through_ms)
    GROUP BY gap.id
)
SELECT count(*), coalesce(sum(least(candles, missing)), 0)::bigint FROM found
"""

# A series that the ledger was not laid out for yet has no days there.
_HISTORY_READ: Final[LiteralString] = """
SELECT NOT EXISTS (
    SELECT symbol, timeframe FROM trading.subscriptions WHERE until_ms IS NULL
    UNION ALL
    SELECT symbol, timeframe FROM trading.wanted_ranges
    EXCEPT
    SELECT symbol, timeframe FROM trading.coverage_extents WHERE cardinality(wanted_ms) > 0
) AND NOT EXISTS (
    SELECT FROM trading.coverage
    WHERE (missing > 0 OR read_at IS NULL) AND read_at IS NULL AND content_hash IS NOT NULL AND wanted
)
"""

_BUDGET: Final[LiteralString] = """
SELECT endpoint, count(*) FILTER (WHERE free_at > clock_timestamp() OR claimed_until > clock_timestamp())
FROM trading.request_slots GROUP BY endpoint ORDER BY endpoint
"""


@dataclass(frozen=True, slots=True)
class OpenDay:
    """What the ledger says of a series' day under way: candles that are due by now, held, and of unknown fate."""

    expected: int
    present: int
    missing: int


@dataclass(frozen=True, slots=True)
class OpenGaps:
    """Gaps that are open and not being fetched, and the candles in them on days that REST was read for."""

    gaps: int
    candles: int


def last_opens(connection: Connection) -> dict[tuple[str, str], int | None]:
    """Open time of the last candle held of every subscribed series; None where nothing is held."""
    return {(symbol, timeframe): last_ms for symbol, timeframe, last_ms in connection.execute(_LAST)}


def open_days(connection: Connection, day: date) -> dict[tuple[str, str], OpenDay]:
    """What the ledger says of `day`, while it is not over, by (symbol, timeframe)."""
    return {(symbol, timeframe): OpenDay(*rest) for symbol, timeframe, *rest in connection.execute(_OPEN_DAY, (day,))}


def landed_within(
    connection: Connection, series: Collection[tuple[str, str]], seconds: float, *, most: int
) -> dict[tuple[str, str], int]:
    """How many of the newest `most` candles of each of `series` first landed within the last `seconds`."""
    parameters = {
        "symbols": [symbol for symbol, _ in series],
        "timeframes": [timeframe for _, timeframe in series],
        "within_s": seconds,
        "most": most,
    }
    return {(symbol, timeframe): landed for symbol, timeframe, landed in connection.execute(_LANDED, parameters)}


def open_gaps(connection: Connection) -> OpenGaps:
    """How much is known to be missing and not on its way: gaps of days that nobody has read from REST yet are."""
    rows: Sequence[tuple[int, int]] = connection.execute(_OPEN_GAPS).fetchall()
    return OpenGaps(*rows[0])


def history_is_read(connection: Connection) -> bool:
    """Whether REST was read for every closed day that is wanted."""
    return bool(one(connection, _HISTORY_READ))


def budget_use(connection: Connection) -> dict[str, int]:
    """Requests by endpoint's name that count against OKX's limit at the moment."""
    return {endpoint: int(used) for endpoint, used in connection.execute(_BUDGET)}
