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

_OPEN_GAPS: Final[LiteralString] = """
SELECT count(*), coalesce(sum(candles), 0)::bigint FROM trading.candle_gaps WHERE status = 'open'
"""

# A series that the ledger was not laid out for yet has no days there.
_HISTORY_READ: Final[LiteralString] = """
SELECT NOT EXISTS (
    SELECT FROM trading.subscriptions AS wanted
    WHERE wanted.until_ms IS NULL AND NOT EXISTS (
        SELECT FROM trading.coverage_extents AS extent
        WHERE extent.symbol = wanted.symbol AND extent.timeframe = wanted.timeframe
    )
) AND NOT EXISTS (
    SELECT FROM trading.coverage
    JOIN trading.coverage_extents AS extent USING (symbol, timeframe)
    WHERE (coverage.missing > 0 OR coverage.read_at IS NULL)
      AND coverage.read_at IS NULL AND coverage.content_hash IS NOT NULL AND extent.until_ms IS NULL
      AND coverage.day >= date '1970-01-01' + (extent.since_ms / 86400000)::int
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
    """Gaps that are open, and the candles in them."""

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
    """How much is known to be missing."""
    rows: Sequence[tuple[int, int]] = connection.execute(_OPEN_GAPS).fetchall()
    return OpenGaps(*rows[0])


def history_is_read(connection: Connection) -> bool:
    """Whether REST was read for every closed day that is subscribed."""
    return bool(one(connection, _HISTORY_READ))


def budget_use(connection: Connection) -> dict[str, int]:
    """Requests by endpoint's name that count against OKX's limit at the moment."""
    return {endpoint: int(used) for endpoint, used in connection.execute(_BUDGET)}
