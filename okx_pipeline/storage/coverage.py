"""The coverage ledger: what is expected of every series on every UTC day, and what became of it.

It has a row exactly for a series-day that is wanted or holds candles. A day is counted anew, always from its rows,
when something landed in it, when a candle of it came due, and when what is wanted of it changed. A wanted day expects
what is wanted while the instrument was listed; a day that is held and that nobody wants expects what it holds. Whoever
counts holds one lock, so that an older count never overwrites a newer one.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from time import monotonic
from typing import Final, LiteralString, NamedTuple

from okx_pipeline.ranges import Range, difference, runs, union
from okx_pipeline.storage.damage import note_damage
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.gaps import absent_ranges, cut_gaps, fit_gaps, lock_ledger, series_with_gaps
from okx_pipeline.storage.instruments import Life, lives
from okx_pipeline.storage.landing import SeriesDay, mark_landings, mark_uncounted
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore, SeriesMonth
from okx_pipeline.storage.wanted import NOTHING, Series, Wants, wants, wants_of
from okx_pipeline.timeframes import DAY_MS, GRACE_MS, Timeframe, day_ms, day_of, parse_timeframe, utc

DAYS_AT_ONCE: Final = 1_000
"""Series-days a transaction counts: enough that statements do not matter, few enough that nobody waits for the lock."""

MOST_REPAIRS: Final = 5
"""Repairs of a day that are tried; then its error stands until somebody does something about it."""

_BEHIND: Final[LiteralString] = "SELECT symbol, timeframe, day FROM trading.landing_marks WHERE counted < revision"
_OPEN: Final[LiteralString] = "SELECT symbol, timeframe, day FROM trading.coverage WHERE content_hash IS NULL"

_REVISIONS: Final[LiteralString] = """
SELECT mark.symbol, mark.timeframe, mark.day, mark.revision
FROM trading.landing_marks AS mark
JOIN unnest(%s::text[], %s::text[], %s::date[]) AS wanted (symbol, timeframe, day) USING (symbol, timeframe, day)
"""

# The bound of the month's partition is named beside the day's, or each look would be at every partition.
_HELD: Final[LiteralString] = """
SELECT held.rows, corrected.candles
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) WITH ORDINALITY
    AS wanted (symbol, timeframe, from_ms, until_ms, number)
CROSS JOIN LATERAL (
    SELECT count(*) AS rows FROM trading.candlesticks AS held
    WHERE held.symbol = wanted.symbol AND held.timeframe = wanted.timeframe
      AND held.timestamp_ms >= wanted.from_ms AND held.timestamp_ms < wanted.until_ms
) AS held
CROSS JOIN LATERAL (
    SELECT count(DISTINCT revision.timestamp_ms) AS candles FROM trading.candlestick_revisions AS revision
    WHERE revision.symbol = wanted.symbol AND revision.timeframe = wanted.timeframe
      AND revision.timestamp_ms >= wanted.from_ms AND revision.timestamp_ms < wanted.until_ms
) AS corrected
ORDER BY wanted.number
"""

_OPENS: Final[LiteralString] = """
SELECT wanted.number::int - 1, held.timestamp_ms
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) WITH ORDINALITY
    AS wanted (symbol, timeframe, from_ms, until_ms, number)
CROSS JOIN LATERAL (
    SELECT timestamp_ms FROM trading.candlesticks AS held
    WHERE held.symbol = wanted.symbol AND held.timeframe = wanted.timeframe
      AND held.timestamp_ms >= wanted.from_ms AND held.timestamp_ms < wanted.until_ms
) AS held
"""

_QUARANTINED: Final[LiteralString] = """
SELECT wanted.number::int - 1, refused.timestamp_ms
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) WITH ORDINALITY
    AS wanted (symbol, timeframe, from_ms, until_ms, number)
CROSS JOIN LATERAL (
    SELECT DISTINCT timestamp_ms FROM trading.candlesticks_quarantine AS refused
    WHERE refused.symbol = wanted.symbol AND refused.timeframe = wanted.timeframe
      AND refused.timestamp_ms >= wanted.from_ms AND refused.timestamp_ms < wanted.until_ms
) AS refused
"""

_HASHES: Final[LiteralString] = """
SELECT trading.content_hash(wanted.symbol, wanted.timeframe, wanted.from_ms, wanted.until_ms)
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) WITH ORDINALITY
    AS wanted (symbol, timeframe, from_ms, until_ms, number)
ORDER BY wanted.number
"""

_ARCHIVED: Final[LiteralString] = """
SELECT month.symbol, month.timeframe, month.month, month.damage
FROM trading.candle_months AS month
JOIN unnest(%s::text[], %s::text[], %s::date[]) AS counted (symbol, timeframe, month) USING (symbol, timeframe, month)
WHERE month.state = 'archived'
"""

_WRITE: Final[LiteralString] = """
INSERT INTO trading.coverage AS known (
    symbol, timeframe, day, expected, present, absent, quarantined, missing, corrected, content_hash, wanted)
SELECT * FROM unnest(%s::text[], %s::text[], %s::date[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[],
                     %s::int[], %s::text[], %s::boolean[])
ON CONFLICT (symbol, timeframe, day) DO UPDATE SET
    expected = excluded.expected, present = excluded.present, absent = excluded.absent,
    quarantined = excluded.quarantined, missing = excluded.missing, corrected = excluded.corrected,
    content_hash = excluded.content_hash, wanted = excluded.wanted, counted_at = excluded.counted_at,
    verified_at = CASE WHEN known.content_hash = excluded.content_hash THEN known.verified_at END
WHERE (known.expected, known.present, known.absent, known.quarantined, known.missing, known.corrected,
       known.content_hash, known.wanted)
      IS DISTINCT FROM
      (excluded.expected, excluded.present, excluded.absent, excluded.quarantined, excluded.missing,
       excluded.corrected, excluded.content_hash, excluded.wanted)
"""

# Locked in the order in which landings lock them.
_SETTLE: Final[LiteralString] = """
WITH seen AS (
    SELECT mark.symbol, mark.timeframe, mark.day, seen.revision
    FROM trading.landing_marks AS mark
    JOIN unnest(%s::text[], %s::text[], %s::date[], %s::bigint[]) AS seen (symbol, timeframe, day, revision)
        USING (symbol, timeframe, day)
    WHERE mark.counted < seen.revision
    ORDER BY mark.symbol, mark.timeframe, mark.day
    FOR NO KEY UPDATE OF mark
)
UPDATE trading.landing_marks AS mark SET counted = seen.revision
FROM seen
WHERE mark.symbol = seen.symbol AND mark.timeframe = seen.timeframe AND mark.day = seen.day
"""

_EXTENTS: Final[LiteralString] = """
SELECT symbol, timeframe, wanted_ms, dropped_ms, listed_ms, expires_ms, laid_ms FROM trading.coverage_extents
"""

# What was dropped while the days were counted stays, for the next count.
_NOTE_LAID: Final[LiteralString] = """
INSERT INTO trading.coverage_extents AS known (symbol, timeframe, wanted_ms, listed_ms, expires_ms, laid_ms)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (symbol, timeframe) DO UPDATE SET
    wanted_ms = excluded.wanted_ms, listed_ms = excluded.listed_ms, expires_ms = excluded.expires_ms,
    laid_ms = excluded.laid_ms,
    dropped_ms = CASE WHEN known.dropped_ms = %s::bigint[] THEN '{}' ELSE known.dropped_ms END
"""

_LEDGER_DAYS: Final[LiteralString] = """
SELECT symbol, timeframe, array_agg(day)
FROM trading.coverage JOIN unnest(%s::text[], %s::text[]) AS series (symbol, timeframe) USING (symbol, timeframe)
GROUP BY symbol, timeframe
"""

_REMOVE: Final[LiteralString] = """
DELETE FROM trading.coverage AS known
USING unnest(%s::text[], %s::text[], %s::date[]) AS gone (symbol, timeframe, day)
WHERE known.symbol = gone.symbol AND known.timeframe = gone.timeframe AND known.day = gone.day
"""

_NOTE_READ: Final[LiteralString] = """
UPDATE trading.coverage AS known SET
    read_at = read.at,
    verified_at = CASE WHEN known.present = read.served AND NOT read.disputed THEN read.at ELSE known.verified_at END
FROM unnest(%s::text[], %s::text[], %s::date[], %s::int[], %s::int[], %s::boolean[], %s::timestamptz[])
    AS read (symbol, timeframe, day, asked, served, disputed, at)
WHERE known.symbol = read.symbol AND known.timeframe = read.timeframe AND known.day = read.day
  AND known.content_hash IS NOT NULL AND read.asked >= known.expected
"""

_SUMMED: Final[LiteralString] = """
SELECT symbol, timeframe, min(day), max(day), sum(expected)::bigint, sum(present)::bigint, sum(absent)::bigint,
       sum(quarantined)::bigint, sum(missing)::bigint, sum(corrected)::bigint,
       count(*) FILTER (WHERE missing = 0 AND content_hash IS NOT NULL), count(*), min(verified_at)
FROM trading.coverage
WHERE (%(symbols)s::text[] IS NULL OR symbol = ANY(%(symbols)s))
  AND (%(timeframes)s::text[] IS NULL OR timeframe = ANY(%(timeframes)s))
  AND day >= coalesce(%(start)s::date, '-infinity') AND day < coalesce(%(end)s::date, 'infinity')
  AND expected > 0
GROUP BY symbol, timeframe
"""

_DAYS: Final[LiteralString] = """
SELECT symbol, timeframe, day, expected, present, absent, quarantined, missing, corrected, read_at, verified_at,
       content_hash, wanted
FROM trading.coverage
WHERE symbol = %s AND day >= %s AND day < %s
ORDER BY day, timeframe
"""

_UNFINISHED: Final[LiteralString] = """
SELECT coverage.symbol, coverage.timeframe, coverage.day, coverage.missing, coverage.read_at IS NOT NULL,
       coverage.content_hash IS NOT NULL, coalesce(stream.through_ms, 0)
FROM trading.coverage
LEFT JOIN trading.stream_offsets AS stream USING (symbol, timeframe)
WHERE (coverage.missing > 0 OR coverage.read_at IS NULL) AND coverage.symbol = ANY(%s)
  AND (coverage.missing > 0 OR coverage.content_hash IS NOT NULL) AND coverage.wanted
"""

_WITH_GAPS: Final[LiteralString] = """
SELECT symbol FROM trading.coverage
WHERE missing > 0 AND read_at IS NOT NULL AND symbol = ANY(%s)
GROUP BY symbol ORDER BY max(counted_at) DESC LIMIT %s
"""

# Days whose values were changed by hand are read again at once, the others eight days after they closed.
_TO_RECONCILE: Final[LiteralString] = """
SELECT symbol, timeframe, day FROM trading.coverage
WHERE (read_at AT TIME ZONE 'UTC') < trading.reconcile_at(timeframe, day)
  AND trading.reconcile_at(timeframe, day) <= %(now)s::timestamptz AT TIME ZONE 'UTC'
  AND symbol = ANY(%(symbols)s) AND missing = 0 AND present > 0 AND content_hash IS NOT NULL AND wanted
UNION
SELECT symbol, timeframe, day FROM trading.landing_marks AS mark JOIN trading.coverage USING (symbol, timeframe, day)
WHERE mark.changed_at IS NOT NULL AND symbol = ANY(%(symbols)s)
  AND read_at IS NOT NULL AND missing = 0 AND present > 0 AND content_hash IS NOT NULL AND wanted
"""

_FORGET_CHANGES: Final[LiteralString] = """
UPDATE trading.landing_marks AS mark SET changed_at = NULL
FROM unnest(%s::text[], %s::text[], %s::date[], %s::int[]) AS read (symbol, timeframe, day, asked)
JOIN trading.coverage AS known USING (symbol, timeframe, day)
WHERE mark.symbol = read.symbol AND mark.timeframe = read.timeframe AND mark.day = read.day
  AND mark.changed_at < %s AND known.content_hash IS NOT NULL AND read.asked >= known.expected
"""


# A day with missing candles is checked when those are repaired or proven absent, or a day later in any case. A day that
# was repaired in vain is checked again after 10, 20, 40 and 80 minutes, and repaired each time. A day that nobody wants
# is never read, and checked as it is.
_UNJUDGED: Final[LiteralString] = """
SELECT symbol, timeframe, day FROM (
    SELECT symbol, timeframe, day, wanted, read_at, present, missing, counted_at FROM trading.coverage
    WHERE content_hash IS NOT NULL AND (judged_at IS NULL OR judged_at < counted_at) AND symbol = ANY(%(symbols)s)
    UNION
    SELECT symbol, timeframe, day, wanted, read_at, present, missing, counted_at FROM trading.coverage
    WHERE repairs > 0 AND content_hash IS NOT NULL AND symbol = ANY(%(symbols)s) AND repairs < %(repairs)s
      AND judged_at < clock_timestamp() - interval '5 minutes' * 2 ^ repairs
) AS known
WHERE (read_at IS NOT NULL OR NOT wanted) AND present > 0
  AND (missing = 0 OR counted_at < clock_timestamp() - interval '1 day')
  AND (NOT %(failing)s OR EXISTS (
      SELECT FROM trading.quality_results AS verdict
      WHERE verdict.symbol = known.symbol AND verdict.timeframe = known.timeframe AND verdict.day = known.day
        AND verdict.severity = 'critical'
  ))
"""

# Which candles of a day under way the sidecar has dealt with is known by open time.
_FETCHING: Final[LiteralString] = """
SELECT day.symbol, day.timeframe, day.day, CASE WHEN content_hash IS NULL THEN coalesce(stream.through_ms, 0) ELSE 0 END
FROM trading.coverage AS day
JOIN unnest(%s::text[], %s::text[]) AS series (symbol, timeframe) USING (symbol, timeframe)
LEFT JOIN trading.stream_offsets AS stream USING (symbol, timeframe)
WHERE day.read_at IS NULL AND day.missing > 0
ORDER BY day.symbol, day.timeframe, day.day
"""

_UNWANTED: Final[LiteralString] = """
SELECT symbol, timeframe, array_agg(day) FROM trading.coverage WHERE NOT wanted GROUP BY symbol, timeframe
"""

_NOTE_JUDGED: Final[LiteralString] = """
UPDATE trading.coverage AS known SET
    judged_at = %s, repairs = CASE WHEN judged.in_vain THEN least(known.repairs, 32000) + 1 ELSE 0 END
FROM unnest(%s::text[], %s::text[], %s::date[], %s::boolean[]) AS judged (symbol, timeframe, day, in_vain)
WHERE known.symbol = judged.symbol AND known.timeframe = judged.timeframe AND known.day = judged.day
  AND known.content_hash IS NOT NULL
"""

_JUDGE_AGAIN: Final[LiteralString] = """
UPDATE trading.coverage AS known SET judged_at = NULL
WHERE symbol = %s AND timeframe = %s AND day >= %s AND day < (%s + interval '1 month')::date AND EXISTS (
    SELECT FROM trading.quality_results AS verdict
    WHERE verdict.symbol = known.symbol AND verdict.timeframe = known.timeframe AND verdict.day = known.day
      AND verdict.severity = 'critical'
)
"""


@dataclass(frozen=True, slots=True)
class DayCoverage:
    """A row of the ledger; see the table's comments."""

    symbol: str
    timeframe: str
    day: date
    expected: int
    present: int
    absent: int
    quarantined: int
    missing: int
    corrected: int
    read_at: datetime | None
    verified_at: datetime | None
    content_hash: str | None
    wanted: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether the day is over and nothing of it is missing."""
        return self.content_hash is not None and not self.missing


@dataclass(frozen=True, slots=True)
class SeriesCoverage:
    """The ledger of a series over a range of days, summed; `whole` of its `days` are closed and miss nothing."""

    symbol: str
    timeframe: Timeframe
    first: date
    last: date
    expected: int
    present: int
    absent: int
    quarantined: int
    missing: int
    corrected: int
    whole: int
    days: int
    verified_at: datetime | None

    @property
    def percent(self) -> float:
        """Share of the expected candles that is held."""
        return 100.0 * self.present / self.expected if self.expected else 100.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A series-day that is not proven whole.

    Parameters
    ----------
    missing
        Candles of which nothing is known.
    read
        Whether REST was read for the whole day.
    closed
        Whether all its candles are due.
    streamed_ms
        Up to where the sidecar has dealt with the series, by open time; 0 if it never did.
    """

    key: SeriesDay
    missing: int
    read: bool
    closed: bool
    streamed_ms: int


@dataclass(frozen=True, slots=True)
class Read:
    """What REST was asked of a series-day and answered: candles, whether any was in dispute, and when it was asked."""

    asked: int
    served: int
    disputed: bool
    at_ms: int


@dataclass(frozen=True, slots=True)
class _Day:
    """A series-day to be counted.

    Parameters
    ----------
    due
        Its candles that are expected by now; all that can open on it where nobody wants it.
    closed
        Whether all of them are due.
    wanted
        Whether somebody wants it; else it expects what it holds.
    """

    key: SeriesDay
    timeframe: Timeframe
    due: Range
    closed: bool
    wanted: bool

    @property
    def expected(self) -> int:
        """Candles expected of a wanted day."""
        return self.timeframe.count(*self.due)

    @property
    def is_whole(self) -> bool:
        """Whether all that could open on the day is due."""
        start_ms = day_ms(self.key.day)
        return self.due.start_ms == start_ms and self.due.end_ms >= start_ms + DAY_MS


@dataclass(slots=True)
class _Count:
    present: int = 0
    absent: int = 0
    quarantined: int = 0
    missing: int = 0
    corrected: int = 0
    content_hash: str | None = None


@dataclass(frozen=True, slots=True)
class _Archive:
    """What the file of an archived month holds: open times, and the hash of each day that has rows."""

    opens: Collection[int]
    day_hashes: Mapping[date, str]


GoesOn = Callable[[float], bool]


def count(connection: Connection, files: ParquetStore, now_ms: int) -> int:
    """Bring the ledger up to date; returns how many series-days were counted.

    Parameters
    ----------
    files
        Where the rows of archived months are.
    now_ms
        The exchange's time.

    Raises
    ------
    psycopg.Error
        If the database fails. What was counted by then stays.
    DamagedFileError
        If the file of an archived month cannot be read; all other days are counted.
    """
    try:
        counted = count_moved(connection, files, now_ms, reads_damaged=True)
    finally:
        laid = lay_out(connection, files, now_ms, reads_damaged=True)
    return counted + laid


def count_moved(
    connection: Connection,
    files: ParquetStore,
    now_ms: int,
    goes_on: GoesOn = lambda took_s: True,
    *,
    reads_damaged: bool = False,
) -> int:
    """Count the days in which something landed, and those that are not over; returns how many. As `count` raises.

    Parameters
    ----------
    goes_on
        Asked after every `DAYS_AT_ONCE` days, with the seconds that they took; a no leaves the rest to the next count.
    reads_damaged
        Whether a file of an archived month whose damage is noted is read again; else its days wait, and nothing is
        raised for it.
    """
    connection.execute("SELECT trading.compare_partitions()")
    mark_landings(connection)
    days: set[SeriesDay] = {SeriesDay(*row) for row in connection.execute(_BEHIND)}
    days.update(SeriesDay(*row) for row in connection.execute(_OPEN))
    counting = _Counting(connection, files, now_ms, reads_damaged=reads_damaged)
    for took_s in counting.count(sorted(days)):
        if not goes_on(took_s):
            break
    return counting.done()


def lay_out(
    connection: Connection,
    files: ParquetStore,
    now_ms: int,
    goes_on: GoesOn = lambda took_s: True,
    *,
    reads_damaged: bool = False,
) -> int:
    """Count the days that the ledger has no row of yet, or was laid out otherwise; returns how many. As `count` raises.

    Parameters
    ----------
    goes_on
        Asked after some series, with the seconds that they took: it may wait, and may leave the others to another time.
    reads_damaged
        As in `count_moved`.
    """
    counting = _Counting(connection, files, now_ms, reads_damaged=reads_damaged)
    laid: list[_Unlaid] = []
    days: list[SeriesDay] = []
    for series, changed in _unlaid(connection, counting.wanted, counting.life_of, now_ms):
        laid.append(series)
        days += changed
        if len(days) >= DAYS_AT_ONCE:
            took_s = counting.lay(laid, days)
            laid, days = [], []
            if not goes_on(took_s):
                return counting.done()
    counting.lay(laid, days)
    return counting.done()


def recount(connection: Connection, files: ParquetStore, now_ms: int, days: Iterable[SeriesDay]) -> None:
    """Count `days` anew, whether a mark asks for it or not. As `count` raises."""
    counting = _Counting(connection, files, now_ms, reads_damaged=True)
    for _ in counting.count(sorted(set(days))):
        pass
    counting.done()


def note_reads(connection: Connection, reads: Mapping[SeriesDay, Read], began_at: datetime | None = None) -> None:
    """Note which days REST was asked for whole; one is verified if REST served exactly what is held.

    To be called after the days have been counted. Days that are still open cannot be read whole.

    Parameters
    ----------
    began_at
        When the reading began, by the database's clock. What was changed by hand before is put right by now.
    """
    if not reads:
        return
    keys = sorted(reads)
    with connection.transaction():
        lock_ledger(connection)
        connection.execute(
            _NOTE_READ,
            (
                *_columns(keys),
                [reads[key].asked for key in keys],
                [reads[key].served for key in keys],
                [reads[key].disputed for key in keys],
                [utc(reads[key].at_ms) for key in keys],
            ),
        )
        if began_at is not None:
            asked = [reads[key].asked for key in keys]
            connection.execute(_FORGET_CHANGES, (*_columns(keys), asked, began_at))


def series_coverage(
    connection: Connection,
    *,
    symbols: Sequence[str] = (),
    timeframes: Sequence[Timeframe] = (),
    start: date | None = None,
    end: date | None = None,
) -> list[SeriesCoverage]:
    """The ledger summed by series over the days [start, end), by symbol and length of candle; filters may be empty."""
    parameters = {
        "symbols": list(symbols) or None,
        "timeframes": [timeframe.name for timeframe in timeframes] or None,
        "start": start,
        "end": end,
    }
    found = connection.execute(_SUMMED, parameters)
    summed = [SeriesCoverage(symbol, parse_timeframe(name), *rest) for symbol, name, *rest in found]
    return sorted(summed, key=lambda each: (each.symbol, each.timeframe))


def day_coverage(connection: Connection, symbol: str, start: date, end: date) -> list[DayCoverage]:
    """The rows of the ledger of a symbol for the days [start, end), by day."""
    return [DayCoverage(*row) for row in connection.execute(_DAYS, (symbol, start, end))]


def is_verified(connection: Connection, rows: Iterable[DayCoverage]) -> bool:
    """Whether REST has served exactly what is held now of everything in `rows`, days of PostgreSQL's months."""
    held = [row for row in rows if row.present]
    if any(row.verified_at is None for row in held):
        return False
    keys = [SeriesDay(row.symbol, row.timeframe, row.day) for row in held]
    starts = [day_ms(key.day) for key in keys]
    parameters = (*_columns(keys)[:2], starts, [start_ms + DAY_MS for start_ms in starts])
    found = [content_hash for (content_hash,) in connection.execute(_HASHES, parameters)]
    return found == [row.content_hash for row in held]


def unfinished_days(connection: Connection, symbols: Sequence[str]) -> list[Unfinished]:
    """The wanted days of `symbols` on which candles are missing, or that are over and that REST was never read for."""
    return [
        Unfinished(SeriesDay(symbol, timeframe, day), *rest)
        for symbol, timeframe, day, *rest in connection.execute(_UNFINISHED, (list(symbols),))
    ]


def symbols_with_gaps(connection: Connection, symbols: Sequence[str], most: int) -> list[str]:
    """Those of `symbols` that lack candles on days that REST was read for, `most` of them, the latest found first."""
    return [symbol for (symbol,) in connection.execute(_WITH_GAPS, (list(symbols), most))]


def unjudged_days(connection: Connection, symbols: Sequence[str], *, failing: bool = False) -> list[SeriesDay]:
    """The closed days that REST was read for and that the quality checks have not judged as they are now.

    Parameters
    ----------
    failing
        Only days whose standing verdict is an error: something has changed there, or is to be repaired again.
    """
    parameters = {"symbols": list(symbols), "failing": failing, "repairs": MOST_REPAIRS}
    return [SeriesDay(*row) for row in connection.execute(_UNJUDGED, parameters)]


def being_fetched(connection: Connection, series: Collection[tuple[str, str]]) -> dict[tuple[str, str], list[Range]]:
    """Where candles of (symbol, timeframe) in `series` are missing because nobody has read their day from REST yet.

    A day under way is read once it is over; until then that goes for the candles that the sidecar has not dealt with.
    """
    found: defaultdict[tuple[str, str], list[Range]] = defaultdict(list)
    for symbol, timeframe, day, through_ms in connection.execute(_FETCHING, _pairs(series)):
        start_ms = day_ms(day)
        if through_ms < start_ms + DAY_MS:
            found[symbol, timeframe].append(Range(max(start_ms, through_ms), start_ms + DAY_MS))
    return {key: union(ranges) for key, ranges in found.items()}


def unwanted(connection: Connection) -> dict[Series, list[Range]]:
    """The UTC days of each (symbol, timeframe) that are held and that nobody wants."""
    return {
        (symbol, timeframe): union(Range(day_ms(day), day_ms(day) + DAY_MS) for day in days)
        for symbol, timeframe, days in connection.execute(_UNWANTED)
    }


def note_judged(
    connection: Connection, days: Iterable[SeriesDay], at: datetime, in_vain: Collection[SeriesDay]
) -> None:
    """Note that the quality checks judged `days` as they were at `at`, by the database's clock.

    Parameters
    ----------
    in_vain
        Those whose repair left an error that another repair may end.
    """
    keys = sorted(days)
    with connection.transaction():
        lock_ledger(connection)
        connection.execute(_NOTE_JUDGED, (at, *_columns(keys), [key in in_vain for key in keys]))


def judge_again(connection: Connection, month: SeriesMonth) -> None:
    """Have the days of `month` judged again whose standing verdict is an error: its file was written again."""
    with connection.transaction():
        lock_ledger(connection)
        connection.execute(_JUDGE_AGAIN, (*month, month.month))


def days_to_reconcile(connection: Connection, symbols: Sequence[str], now_ms: int) -> list[SeriesDay]:
    """The whole days that REST was read for and is to be read for once more by `now_ms`, the exchange's time."""
    return [
        SeriesDay(*row) for row in connection.execute(_TO_RECONCILE, {"now": utc(now_ms), "symbols": list(symbols)})
    ]


def due(timeframe: Timeframe, wanted: Range, now_ms: int) -> Range:
    """What of `wanted` ought to be held at `now_ms`, the exchange's time: all that closed a minute ago or earlier."""
    closed_ms = timeframe.closed_before(now_ms, grace_ms=GRACE_MS)
    return Range(wanted.start_ms, max(wanted.start_ms, min(wanted.end_ms, closed_ms)))


def possible(timeframe: Timeframe, within: Range, life: Life | None) -> Range:
    """The candles that open in `within` and can be: from the listing of the instrument to its expiry."""
    start_ms, end_ms = within
    if life is not None and life.listed_ms is not None:
        start_ms = max(start_ms, timeframe.open_at(life.listed_ms))
    if life is not None and life.expires_ms is not None:
        end_ms = min(end_ms, life.expires_ms)
    start_ms = timeframe.first_open(start_ms)
    return Range(start_ms, max(start_ms, timeframe.first_open(end_ms)))


def days_in(timeframe: Timeframe, within: Range) -> Iterator[date]:
    """The UTC days in which a candle of `within` opens."""
    if timeframe.length_ms >= DAY_MS:
        return map(day_of, timeframe.opens(*within))
    first_ms = within.start_ms - within.start_ms % DAY_MS
    return map(day_of, range(first_ms, within.end_ms, DAY_MS)) if within.start_ms < within.end_ms else iter(())


@dataclass(frozen=True, slots=True)
class _Extent:
    """What the days of a series in the ledger were laid out for: see the table `coverage_extents`."""

    wanted_ms: list[int]
    dropped_ms: list[int]
    listed_ms: int | None
    expires_ms: int | None
    laid_ms: int


class _Unlaid(NamedTuple):
    """A series whose days are to be laid out, and what of it was noted as dropped when its days were chosen."""

    key: Series
    dropped_ms: list[int]


def _unlaid(
    connection: Connection, wanted: Mapping[Series, Wants], life_of: Mapping[str, Life], now_ms: int
) -> Iterator[tuple[_Unlaid, list[SeriesDay]]]:
    """The series whose wanted candles, or listing, are not those that the ledger was laid out for, or not up to today.

    With each the days for which that changes what is expected.
    """
    known = {(row[0], row[1]): _Extent(*row[2:]) for row in connection.execute(_EXTENTS)}
    tomorrow_ms = now_ms - now_ms % DAY_MS + DAY_MS
    unknown = [key for key in wanted if key not in known]
    held = {(symbol, timeframe): days for symbol, timeframe, days in connection.execute(_LEDGER_DAYS, _pairs(unknown))}
    for key in sorted(wanted.keys() | known.keys()):
        new, life = wanted.get(key, NOTHING), life_of.get(key[0])
        old = known.get(key)
        if old is not None and old.laid_ms >= tomorrow_ms and old == _extent(new, life, old.laid_ms):
            continue
        if old is not None and not (old.wanted_ms or old.dropped_ms or new.ranges):
            continue
        timeframe = parse_timeframe(key[1])
        after = _expected_in(timeframe, new, life, tomorrow_ms)
        before, dropped = list[Range](), list[Range]()
        if old is not None:
            old_life = Life(old.listed_ms, old.expires_ms, "")
            before = _expected_in(timeframe, wants_of(old.wanted_ms), old_life, old.laid_ms)
            dropped = wants_of(old.dropped_ms).within(Range(0, tomorrow_ms))
        changed = union(difference(before, after), difference(after, before), dropped)
        days = {day for piece in changed for day in days_in(timeframe, piece)}
        yield (
            _Unlaid(key, old.dropped_ms if old else []),
            [SeriesDay(key[0], key[1], day) for day in days.union(held.get(key, ()))],
        )


def _expected_in(timeframe: Timeframe, wanted: Wants, life: Life | None, end_ms: int) -> list[Range]:
    pieces = (possible(timeframe, piece, life) for piece in wanted.within(Range(0, end_ms)))
    return [piece for piece in pieces if piece.start_ms < piece.end_ms]


def _extent(wanted: Wants, life: Life | None, laid_ms: int) -> _Extent:
    return _Extent(wanted.bounds(), [], life.listed_ms if life else None, life.expires_ms if life else None, laid_ms)


def _note_laid(
    connection: Connection,
    laid: Iterable[_Unlaid],
    wanted: Mapping[Series, Wants],
    life_of: Mapping[str, Life],
    now_ms: int,
) -> None:
    tomorrow_ms = now_ms - now_ms % DAY_MS + DAY_MS
    rows = []
    for key, dropped_ms in sorted(laid):
        each = _extent(wanted.get(key, NOTHING), life_of.get(key[0]), tomorrow_ms)
        rows.append((*key, each.wanted_ms, each.listed_ms, each.expires_ms, each.laid_ms, dropped_ms))
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(_NOTE_LAID, rows)


class _Counting:
    """Days counted at one moment, by what is wanted then.

    The days of an archived month are not counted while its file is damaged; all others are. The damage is noted, and
    `done` raises for it.

    Parameters
    ----------
    reads_damaged
        Whether a file whose damage is noted is read all the same.
    """

    def __init__(
        self, connection: Connection, files: ParquetStore, now_ms: int, *, reads_damaged: bool = False
    ) -> None:
        self._connection = connection
        self._files = files
        self._now_ms = now_ms
        self._reads_damaged = reads_damaged
        self._counted = 0
        self._unread: set[SeriesMonth] = set()
        self._damaged: dict[SeriesMonth, DamagedFileError] = {}
        self.wanted = wants(connection)
        self.life_of = lives(connection)

    def count(self, days: Sequence[SeriesDay]) -> Iterator[float]:
        """Count `days`, ascending, in transactions of `DAYS_AT_ONCE`; after each, the seconds it took."""
        for start in range(0, len(days), DAYS_AT_ONCE):
            started = monotonic()
            self._count_chunk(days[start : start + DAYS_AT_ONCE])
            yield monotonic() - started

    def lay(self, series: Iterable["_Unlaid"], days: Iterable[SeriesDay]) -> float:
        """Count `days`, all that the ledger lacks of `series`, and note that it has them; returns the seconds it took.

        Days whose file is damaged get a mark instead, by which they are counted once the file is brought back.
        """
        ascending = sorted(days)
        took_s = sum(self.count(ascending))
        mark_uncounted(self._connection, [day for day in ascending if _month_of(day) in self._unread])
        _note_laid(self._connection, series, self.wanted, self.life_of, self._now_ms)
        return took_s

    def done(self) -> int:
        """How many days were counted.

        Raises
        ------
        DamagedFileError
            If some could not be, as their month's file cannot be read.
        """
        for problem in self._damaged.values():
            raise problem
        return self._counted

    def _count_chunk(self, chunk: Sequence[SeriesDay]) -> None:
        connection = self._connection
        with connection.transaction():
            lock_ledger(connection)
            # Under the lock, or a count could go by what was wanted before an ending that another count has followed.
            wanted = wants(connection, {key[:2] for key in chunk})
            archives = self._read_archives(chunk)
            keys = [key for key in chunk if _month_of(key) not in self._unread]
            days = (_day(key, wanted.get(key[:2]), self.life_of.get(key.symbol), self._now_ms) for key in keys)
            _count_days(connection, keys, [day for day in days if day is not None], archives)
        self._counted += len(keys)

    def _read_archives(self, keys: Sequence[SeriesDay]) -> dict[SeriesMonth, _Archive]:
        """What the files of the archived months of `keys` hold; the damage of one that cannot be read is noted."""
        archives: dict[SeriesMonth, _Archive] = {}
        for month, damage in _archived(self._connection, keys).items():
            if damage is not None and not self._reads_damaged:
                self._unread.add(month)
                continue
            try:
                state = self._files.state(month)
                archives[month] = _Archive(self._files.opens(month), state.day_hashes if state is not None else {})
            except DamagedFileError as problem:
                note_damage(self._connection, month, str(problem))
                self._damaged[month] = problem
                self._unread.add(month)
        return archives


def _day(key: SeriesDay, wanted: Wants | None, life: Life | None, now_ms: int) -> _Day | None:
    """What is to be counted of the day; None where no candle of the series opens on it."""
    timeframe = parse_timeframe(key.timeframe)
    start_ms = day_ms(key.day)
    piece = wanted.of_day(start_ms) if wanted is not None else None
    whole = possible(timeframe, piece, life) if piece is not None else Range(0, 0)
    if whole.start_ms < whole.end_ms:
        expected = due(timeframe, whole, now_ms)
        return _Day(key, timeframe, expected, expected.end_ms == whole.end_ms, wanted=True)
    whole = possible(timeframe, Range(start_ms, start_ms + DAY_MS), None)
    closed = due(timeframe, whole, now_ms).end_ms == whole.end_ms
    return _Day(key, timeframe, whole, closed, wanted=False) if whole.start_ms < whole.end_ms else None


def _count_days(
    connection: Connection,
    keys: Sequence[SeriesDay],
    days: Sequence[_Day],
    archives: Mapping[SeriesMonth, _Archive],
) -> None:
    """Write the rows of `days`, those of `keys` that may have one, and remove those of all others."""
    # Before the rows: what lands in between is counted, or its mark is ahead of what is settled here.
    revisions = _revisions(connection, keys)
    held = connection.execute(_HELD, _bounds(days)).fetchall()
    opens: dict[int, set[int]] = {}
    counted: list[_Day] = []
    counts: list[_Count] = []
    for day, (rows, corrected) in zip(days, held, strict=True):
        tally = _Count(present=rows, corrected=corrected)
        archive = archives.get(_month_of(day.key))
        in_file = None
        if archive is not None:
            in_file = {each for each in archive.opens if day.due.start_ms <= each < day.due.end_ms}
            tally.present = len(in_file)
        if not day.wanted and not tally.present:
            continue
        if in_file is not None:
            opens[len(counted)] = in_file
        counted.append(day)
        counts.append(tally)
    with_gaps = series_with_gaps(connection)
    for index, lacking in _account(connection, counted, counts, opens, with_gaps).items():
        day = counted[index]
        fit_gaps(connection, day.key.symbol, day.timeframe, day.due, lacking, add_new=False)
    wanted = {day.key for day in counted if day.wanted}
    for key in keys:
        if key not in wanted and key[:2] in with_gaps:
            start_ms = day_ms(key.day)
            cut_gaps(connection, key.symbol, parse_timeframe(key.timeframe), Range(start_ms, start_ms + DAY_MS))
    _hash(connection, counted, counts, archives)
    _write(connection, counted, counts)
    known = {day.key for day in counted}
    gone = [key for key in keys if key not in known]
    if gone:
        connection.execute(_REMOVE, _columns(gone))
    _settle(connection, revisions)


def _write(connection: Connection, days: Sequence[_Day], counts: Sequence[_Count]) -> None:
    columns = [(count.present, count.absent, count.quarantined, count.missing, count.corrected) for count in counts]
    connection.execute(
        _WRITE,
        (
            *_columns([day.key for day in days]),
            [day.expected if day.wanted else count.present for day, count in zip(days, counts, strict=True)],
            *([list(column) for column in zip(*columns, strict=True)] or [[], [], [], [], []]),
            [count.content_hash for count in counts],
            [day.wanted for day in days],
        ),
    )


def _account(
    connection: Connection,
    days: Sequence[_Day],
    counts: Sequence[_Count],
    opens: dict[int, set[int]],
    with_gaps: Collection[Series],
) -> dict[int, list[Range]]:
    """Divide what is not held of wanted days into absent, quarantined and missing.

    Returns what lacks of each of them whose series is one of `with_gaps`.
    """
    short = [index for index, day in enumerate(days) if day.wanted and counts[index].present < day.expected]
    look = [index for index in short if index not in opens and counts[index].present]
    chosen = [days[index] for index in look]
    opens |= {index: set() for index in short if index not in opens}
    for number, open_ms in connection.execute(_OPENS, _bounds(chosen)):
        opens[look[number]].add(open_ms)
    # More may have landed since the rows were counted: what is held and what is lacking come of one look.
    for index in look:
        counts[index].present = len(opens[index])
    refused: defaultdict[int, set[int]] = defaultdict(set)
    for number, open_ms in connection.execute(_QUARANTINED, _bounds([days[index] for index in short])):
        refused[short[number]].add(open_ms)
    series = {days[index].key[:2] for index in short}.intersection(with_gaps)
    absent = {}
    if series:
        around = Range(min(days[index].due.start_ms for index in short), max(days[index].due.end_ms for index in short))
        absent = absent_ranges(connection, series, around)
    lacking: dict[int, list[Range]] = {
        index: [] for index, day in enumerate(days) if day.wanted and day.key[:2] in with_gaps and day.expected
    }
    for index in short:
        day, tally = days[index], counts[index]
        if opens[index] or refused[index]:
            rest = [each for each in day.timeframe.opens(*day.due) if each not in opens[index]]
            free = [each for each in rest if each not in refused[index]] if refused[index] else rest
            tally.quarantined = len(rest) - len(free)
            found = runs(day.timeframe, free)
        else:
            found = [day.due]
        missing = difference(found, absent.get(day.key[:2], []))
        tally.missing = sum(day.timeframe.count(*each) for each in missing)
        tally.absent = day.expected - tally.present - tally.quarantined - tally.missing
        if index in lacking:
            lacking[index] = found
    return lacking


def _hash(
    connection: Connection,
    days: Sequence[_Day],
    counts: Sequence[_Count],
    archives: Mapping[SeriesMonth, _Archive],
) -> None:
    live = []
    for index, day in enumerate(days):
        if not day.closed:
            continue
        archive = archives.get(_month_of(day.key))
        if archive is not None:
            counts[index].content_hash = archive.day_hashes.get(day.key.day, _EMPTY_HASH)
        elif not counts[index].present and day.is_whole:
            counts[index].content_hash = _EMPTY_HASH
        else:
            live.append(index)
    whole = ([each.key.symbol for each in _at(days, live)], [each.key.timeframe for each in _at(days, live)])
    starts = [day_ms(each.key.day) for each in _at(days, live)]
    found = connection.execute(_HASHES, (*whole, starts, [start_ms + DAY_MS for start_ms in starts]))
    for index, (content_hash,) in zip(live, found, strict=True):
        counts[index].content_hash = content_hash


_EMPTY_HASH: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""sha256 of nothing: a day without a row."""


def _at(days: Sequence[_Day], indices: Iterable[int]) -> list[_Day]:
    return [days[index] for index in indices]


def _month_of(key: SeriesDay) -> SeriesMonth:
    return SeriesMonth(key.symbol, key.timeframe, key.day.replace(day=1))


def _revisions(connection: Connection, keys: Sequence[SeriesDay]) -> dict[SeriesDay, int]:
    found = connection.execute(_REVISIONS, _columns(keys))
    return {SeriesDay(symbol, timeframe, day): revision for symbol, timeframe, day, revision in found}


def _archived(connection: Connection, keys: Sequence[SeriesDay]) -> dict[SeriesMonth, str | None]:
    """The archived months of `keys`, and the damage to their files that is noted."""
    months = sorted({key._replace(day=key.day.replace(day=1)) for key in keys})
    return {SeriesMonth(*row[:3]): row[3] for row in connection.execute(_ARCHIVED, _columns(months)).fetchall()}


def _settle(connection: Connection, revisions: Mapping[SeriesDay, int]) -> None:
    if revisions:
        connection.execute(_SETTLE, (*_columns(list(revisions)), list(revisions.values())))


def _bounds(days: Sequence[_Day]) -> tuple[list[str], list[str], list[int], list[int]]:
    return (
        [day.key.symbol for day in days],
        [day.key.timeframe for day in days],
        [day.due.start_ms for day in days],
        [day.due.end_ms for day in days],
    )


def _pairs(series: Collection[Series]) -> tuple[list[str], list[str]]:
    return [symbol for symbol, _ in series], [timeframe for _, timeframe in series]


def _columns(keys: Sequence[SeriesDay]) -> tuple[list[str], list[str], list[date]]:
    return [key.symbol for key in keys], [key.timeframe for key in keys], [key.day for key in keys]
