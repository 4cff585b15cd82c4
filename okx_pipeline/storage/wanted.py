"""What is wanted of every series: the live subscriptions, and ranges that a backfill or a person asked for beyond them.

The coverage ledger expects the candles of these and no others. A subscription that ended wants nothing by itself:
unsubscribing turns its days that were read from REST or hold candles into a range.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, Literal, LiteralString

from okx_pipeline.errors import UsageError, command
from okx_pipeline.ranges import Range, difference, intersection, union
from okx_pipeline.storage.database import Connection, one
from okx_pipeline.storage.gaps import lock_ledger
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, parse_timeframe, utc

WantedBy = Literal["backfill", "person", "subscription", "migration"]
Series = tuple[str, str]
"""Symbol and name of the timeframe."""

FOR_EVER_MS: Final = 2**63 - 1
"""Where the range of a live subscription ends."""

_WANTED: Final[LiteralString] = """
SELECT symbol, timeframe, since_ms, %(for_ever)s::bigint FROM trading.subscriptions WHERE until_ms IS NULL
UNION ALL
SELECT symbol, timeframe, since_ms, until_ms FROM trading.wanted_ranges
"""
_WANTED_OF: Final[LiteralString] = """
WITH series AS (SELECT * FROM unnest(%(symbols)s::text[], %(timeframes)s::text[]) AS series (symbol, timeframe))
SELECT symbol, timeframe, since_ms, %(for_ever)s::bigint
FROM trading.subscriptions JOIN series USING (symbol, timeframe) WHERE until_ms IS NULL
UNION ALL
SELECT symbol, timeframe, since_ms, until_ms FROM trading.wanted_ranges JOIN series USING (symbol, timeframe)
"""
_LIVE: Final[LiteralString] = """
SELECT symbol, timeframe, since_ms FROM trading.subscriptions
JOIN unnest(%s::text[], %s::text[]) AS series (symbol, timeframe) USING (symbol, timeframe) WHERE until_ms IS NULL
"""
_RANGES: Final[LiteralString] = """
SELECT symbol, timeframe, since_ms, until_ms, wanted_by, wanted_at FROM trading.wanted_ranges
WHERE %(symbols)s::text[] IS NULL OR symbol = ANY(%(symbols)s) ORDER BY symbol, timeframe, since_ms
"""
_REMOVE: Final[LiteralString] = """
DELETE FROM trading.wanted_ranges AS known
USING unnest(%s::text[], %s::text[], %s::bigint[]) AS gone (symbol, timeframe, since_ms)
WHERE known.symbol = gone.symbol AND known.timeframe = gone.timeframe AND known.since_ms = gone.since_ms
"""
_ADD: Final[LiteralString] = """
INSERT INTO trading.wanted_ranges (symbol, timeframe, since_ms, until_ms, wanted_by, wanted_at)
VALUES (%s, %s, %s, %s, %s, coalesce(%s, clock_timestamp()))
"""

_HELD: Final[LiteralString] = """
SELECT EXISTS (
    SELECT FROM trading.coverage
    WHERE (%(symbols)s::text[] IS NULL OR symbol = ANY(%(symbols)s))
      AND (%(timeframes)s::text[] IS NULL OR timeframe = ANY(%(timeframes)s))
      AND day >= coalesce(%(start)s::date, '-infinity') AND day < coalesce(%(end)s::date, 'infinity')
)
"""

# A series that was never laid out may have gaps on record all the same.
_NOTE_DROPPED: Final[LiteralString] = """
INSERT INTO trading.coverage_extents AS known (dropped_ms, symbol, timeframe, laid_ms) VALUES (%s::bigint[], %s, %s, 0)
ON CONFLICT (symbol, timeframe) DO UPDATE SET dropped_ms = known.dropped_ms || excluded.dropped_ms
"""

# The symbols of the ledger are found by skipping from one to the next along its key.
_IN_SCOPE: Final[LiteralString] = """
WITH RECURSIVE held AS (
    (SELECT symbol FROM trading.coverage ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT min(symbol) FROM trading.coverage WHERE symbol > held.symbol) FROM held WHERE symbol IS NOT NULL
)
SELECT symbol FROM held WHERE symbol IS NOT NULL
UNION SELECT symbol FROM trading.subscriptions WHERE until_ms IS NULL
UNION SELECT symbol FROM trading.wanted_ranges
ORDER BY symbol
"""
_SERIES_IN_SCOPE: Final[LiteralString] = """
WITH RECURSIVE held AS (
    (SELECT symbol, timeframe FROM trading.coverage ORDER BY symbol, timeframe LIMIT 1)
    UNION ALL
    SELECT next.* FROM held CROSS JOIN LATERAL (
        SELECT symbol, timeframe FROM trading.coverage
        WHERE (symbol, timeframe) > (held.symbol, held.timeframe) ORDER BY symbol, timeframe LIMIT 1
    ) AS next
)
SELECT symbol, timeframe FROM held
UNION SELECT symbol, timeframe FROM trading.subscriptions WHERE until_ms IS NULL
UNION SELECT symbol, timeframe FROM trading.wanted_ranges
"""


@dataclass(frozen=True, slots=True)
class Wants:
    """What is wanted of a series: candles that open in one of `ranges`, which are ascending and do not touch."""

    ranges: tuple[Range, ...]

    def within(self, within: Range) -> list[Range]:
        """What of `within` is wanted."""
        return intersection(self.ranges, [within])

    def of_day(self, start_ms: int) -> Range | None:
        """What is wanted of the UTC day that begins at `start_ms`, as one range; None if nothing is."""
        pieces = self.within(Range(start_ms, start_ms + DAY_MS))
        return Range(pieces[0].start_ms, pieces[-1].end_ms) if pieces else None

    def bounds(self) -> list[int]:
        """The ranges as one list: the start and end of each."""
        return [bound for each in self.ranges for bound in each]


NOTHING: Final = Wants(())


@dataclass(frozen=True, slots=True)
class WantedRange:
    """A row of the table: candles of a series that open in [since_ms, until_ms), by whom and since when wanted."""

    symbol: str
    timeframe: Timeframe
    since_ms: int
    until_ms: int
    wanted_by: WantedBy
    wanted_at: datetime


def wants(connection: Connection, series: Collection[Series] | None = None) -> dict[Series, Wants]:
    """What is wanted, by (symbol, timeframe); of `series` alone, where given."""
    parameters: dict[str, object] = {"for_ever": FOR_EVER_MS}
    if series is not None:
        parameters |= {"symbols": [each[0] for each in series], "timeframes": [each[1] for each in series]}
    found: defaultdict[Series, list[Range]] = defaultdict(list)
    query = _WANTED if series is None else _WANTED_OF
    for symbol, timeframe, since_ms, until_ms in connection.execute(query, parameters):
        found[symbol, timeframe].append(Range(since_ms, until_ms))
    return {key: Wants(tuple(union(ranges))) for key, ranges in found.items()}


def wants_of(bounds: Sequence[int]) -> Wants:
    """The inverse of `Wants.bounds`."""
    return Wants(tuple(union(map(Range, bounds[::2], bounds[1::2]))))


def symbols_in_scope(connection: Connection) -> list[str]:
    """Every symbol of which anything is subscribed, wanted or held, in order."""
    return [symbol for (symbol,) in connection.execute(_IN_SCOPE)]


def series_in_scope(connection: Connection) -> list[tuple[str, Timeframe]]:
    """Every series that is subscribed, wanted or held, by symbol and length of candle."""
    return sorted((symbol, parse_timeframe(name)) for symbol, name in connection.execute(_SERIES_IN_SCOPE))


def is_in_scope(
    connection: Connection,
    symbols: Sequence[str] = (),
    timeframes: Collection[Timeframe] = (),
    start: date | None = None,
    end: date | None = None,
) -> bool:
    """Whether anything of the UTC days [start, end) is subscribed, wanted or held; filters may be empty."""
    names = [timeframe.name for timeframe in timeframes]
    within = Range(0 if start is None else day_ms(start), FOR_EVER_MS if end is None else day_ms(end))
    wanted = any(
        each.within(within)
        for (symbol, timeframe), each in wants(connection).items()
        if (not symbols or symbol in symbols) and (not names or timeframe in names)
    )
    parameters = {"symbols": list(symbols) or None, "timeframes": names or None, "start": start, "end": end}
    return wanted or bool(one(connection, _HELD, parameters))


def nothing_in_scope() -> UsageError:
    """The error for a command that would answer about nothing: that would pass for a good answer."""
    see = f"{command('subscribe --help')}, {command('backfill --help')}"
    return UsageError(f"there is nothing that is subscribed, wanted or held; see: {see}")


def wanted_ranges(connection: Connection, symbols: Sequence[str] = ()) -> list[WantedRange]:
    """The ranges wanted beyond the subscriptions, of `symbols` or of all, by series and start."""
    found = connection.execute(_RANGES, {"symbols": list(symbols) or None})
    return [
        WantedRange(symbol, parse_timeframe(name), since_ms, until_ms, wanted_by, wanted_at)
        for symbol, name, since_ms, until_ms, wanted_by, wanted_at in found
    ]


def want(connection: Connection, ranges: Mapping[Series, Iterable[Range]], by: WantedBy) -> list[WantedRange]:
    """Make candles wanted, except what a live subscription wants; returns the ranges that are new or grew.

    A range that touches others of its series joins them, and stays wanted by whoever asked first.

    Parameters
    ----------
    ranges
        By (symbol, timeframe), in whole UTC days where they come from a person or a backfill.
    """
    with connection.transaction():
        lock_ledger(connection)
        live = {
            (symbol, timeframe): [Range(since_ms, FOR_EVER_MS)]
            for symbol, timeframe, since_ms in connection.execute(_LIVE, _columns(ranges))
        }
        beyond = {key: difference(union(found), live.get(key, [])) for key, found in ranges.items()}
        known: defaultdict[Series, list[WantedRange]] = defaultdict(list)
        for each in wanted_ranges(connection, sorted({symbol for symbol, _ in beyond})):
            known[each.symbol, each.timeframe.name].append(each)
        remove: list[WantedRange] = []
        add: list[tuple[str, str, int, int, WantedBy, datetime | None]] = []
        for key, pieces in sorted(beyond.items()):
            before = {Range(each.since_ms, each.until_ms): each for each in known[key]}
            for joined in union(before, pieces):
                if joined in before:
                    continue
                parts = [each for kept, each in before.items() if joined.start_ms <= kept.start_ms < joined.end_ms]
                remove += parts
                first = min(parts, key=lambda each: each.wanted_at, default=None)
                add.append((*key, *joined, first.wanted_by if first else by, first.wanted_at if first else None))
        _replace(connection, remove, add)
        new = {(*row[:3],) for row in add}
        changed = wanted_ranges(connection, sorted({row[0] for row in add})) if add else []
    return [each for each in changed if (each.symbol, each.timeframe.name, each.since_ms) in new]


def forget(
    connection: Connection, symbol: str, timeframes: Collection[Timeframe], within: Range
) -> dict[Timeframe, list[Range]]:
    """End what is wanted of a symbol in `within`; returns what was wanted there, by timeframe. Rows stay.

    Parameters
    ----------
    timeframes
        All of them where empty.

    Raises
    ------
    UsageError
        If a live subscription wants some of it; nothing has changed.
    """
    names = {each.name for each in timeframes}
    with connection.transaction():
        lock_ledger(connection)
        _refuse_subscribed(connection, symbol, names, within)
        remove, add = [], []
        forgotten: defaultdict[Timeframe, list[Range]] = defaultdict(list)
        for each in wanted_ranges(connection, [symbol]):
            whole = Range(each.since_ms, each.until_ms)
            gone = intersection([whole], [within])
            if not gone or (names and each.timeframe.name not in names):
                continue
            remove.append(each)
            add += [
                (symbol, each.timeframe.name, *rest, each.wanted_by, each.wanted_at)
                for rest in difference([whole], [within])
            ]
            forgotten[each.timeframe] += gone
        _replace(connection, remove, add)
        note_dropped(connection, {(symbol, timeframe.name): gone for timeframe, gone in forgotten.items()})
    return dict(sorted(forgotten.items()))


def note_dropped(connection: Connection, dropped: Mapping[Series, Iterable[Range]]) -> None:
    """Have the ledger count days again of which nobody wants anything any more, even if somebody does by then."""
    with connection.cursor() as cursor:
        rows = [([bound for each in ranges for bound in each], *key) for key, ranges in sorted(dropped.items())]
        cursor.executemany(_NOTE_DROPPED, rows)


def _refuse_subscribed(connection: Connection, symbol: str, names: Collection[str], within: Range) -> None:
    found = connection.execute(
        "SELECT timeframe, since_ms FROM trading.subscriptions "
        "WHERE symbol = %s AND until_ms IS NULL AND since_ms < %s",
        (symbol, within.end_ms),
    )
    live = sorted((parse_timeframe(name), since_ms) for name, since_ms in found if not names or name in names)
    if not live:
        return
    listed = ",".join(timeframe.name for timeframe, _ in live)
    since = min(since_ms for _, since_ms in live)
    raise UsageError(
        f"{symbol} is subscribed in {listed} since {utc(since):%Y-%m-%d}; name what lies before with "
        f"--end {utc(since):%Y-%m-%d}, or unsubscribe first: {command(f'unsubscribe {symbol} --timeframes {listed}')}"
    )


def _replace(
    connection: Connection,
    remove: Sequence[WantedRange],
    add: Sequence[tuple[str, str, int, int, WantedBy, datetime | None]],
) -> None:
    if remove:
        keys = [(each.symbol, each.timeframe.name) for each in remove]
        connection.execute(_REMOVE, (*_columns(keys), [each.since_ms for each in remove]))
    if add:
        with connection.cursor() as cursor:
            cursor.executemany(_ADD, add)


def _columns(series: Iterable[Series]) -> tuple[list[str], list[str]]:
    keys = list(series)
    return [symbol for symbol, _ in keys], [timeframe for _, timeframe in keys]
