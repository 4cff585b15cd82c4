"""The gaps in PostgreSQL: runs of candles that were expected and not held, each open, repaired or proven absent.

What of a series is not held comes from those who have read its rows; here the gaps on record are cut and joined to fit
it, so that no moment is ever in two unresolved gaps and nothing found once is forgotten.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, LiteralString

from okx_pipeline.ranges import Range, candles_in, difference, intersection, union
from okx_pipeline.storage.database import Connection, lock_key, one
from okx_pipeline.timeframes import Timeframe, parse_timeframe

Status = Literal["open", "repaired", "absent"]
Reason = Literal["not_served", "before_first", "beyond_depth"]

_LOCK: Final = lock_key("ledger")

_GAPS: Final[LiteralString] = """
SELECT id, symbol, timeframe, first_ms, last_ms, status, reason, evidence, ask_again_ms, detected_at, resolved_at
FROM trading.candle_gaps
WHERE symbol = %s AND timeframe = %s AND first_ms < %s AND last_ms >= %s
  AND (status <> 'repaired' OR resolved_at >= %s)
ORDER BY first_ms, id
"""
_TO_ASK: Final[LiteralString] = """
SELECT id, symbol, timeframe, first_ms, last_ms, status, reason, evidence, ask_again_ms, detected_at, resolved_at
FROM trading.candle_gaps
WHERE ask_again_ms IS NOT NULL AND symbol = ANY(%s)
"""
_ABSENT: Final[LiteralString] = """
SELECT gap.symbol, gap.timeframe, gap.first_ms, gap.last_ms
FROM trading.candle_gaps AS gap
JOIN unnest(%s::text[], %s::text[]) AS series (symbol, timeframe) USING (symbol, timeframe)
WHERE gap.status = 'absent' AND gap.first_ms < %s AND gap.last_ms >= %s
ORDER BY 1, 2, 3
"""
_INSERT: Final[LiteralString] = """
INSERT INTO trading.candle_gaps (
    symbol, timeframe, first_ms, last_ms, candles, status, reason, evidence, ask_again_ms, detected_at, resolved_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, coalesce(%s, clock_timestamp()),
        coalesce(%s, CASE WHEN %s THEN clock_timestamp() END))
"""


@dataclass(frozen=True, slots=True)
class Gap:
    """A run of candles that were expected and not held.

    Parameters
    ----------
    id
        Its row; None for one that is not written yet.
    range
        Its candles.
    status, reason
        What became of it, and why it is absent where it is.
    evidence
        Answers of OKX that lack it, oldest first; see `quality.repair`.
    ask_again_ms
        When OKX is to be asked again, by its clock.
    """

    id: int | None
    symbol: str
    timeframe: Timeframe
    range: Range
    status: Status = "open"
    reason: Reason | None = None
    evidence: Sequence[dict[str, Any]] = ()
    ask_again_ms: int | None = None
    detected_at: datetime | None = None
    resolved_at: datetime | None = None

    @property
    def candles(self) -> int:
        """How many candles it is of."""
        return self.timeframe.count(*self.range)

    @property
    def first_ms(self) -> int:
        """Open time of its first candle."""
        return self.range.start_ms

    @property
    def last_ms(self) -> int:
        """Open time of its last candle."""
        return self.timeframe.step(self.range.end_ms, -1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be written of a part of a gap; see `Gap`."""

    range: Range
    status: Status
    reason: Reason | None
    evidence: Sequence[dict[str, Any]]
    ask_again_ms: int | None


@dataclass(frozen=True, slots=True)
class Change:
    """What of the gaps on record is to go, and what is to stand there instead."""

    remove: list[Gap]
    add: list[Gap]


def unresolved_gaps(connection: Connection, symbol: str, timeframe: Timeframe, within: Range) -> list[Gap]:
    """The open and absent gaps that reach into `within`, whole, ascending."""
    return gaps_of(connection, symbol, timeframe, within)


def gaps_of(
    connection: Connection, symbol: str, timeframe: Timeframe, within: Range, *, resolved_since: datetime | None = None
) -> list[Gap]:
    """The gaps that reach into `within`, ascending: unresolved ones, and those repaired since a moment."""
    found = connection.execute(_GAPS, (symbol, timeframe.name, within.end_ms, within.start_ms, resolved_since))
    return [_gap(row) for row in found]


def absent_ranges(
    connection: Connection, series: Collection[tuple[str, str]], within: Range
) -> dict[tuple[str, str], list[Range]]:
    """What is proven absent of each (symbol, timeframe) of `series`; ranges may reach beyond `within`."""
    absent: defaultdict[tuple[str, str], list[Range]] = defaultdict(list)
    parameters = ([each[0] for each in series], [each[1] for each in series], within.end_ms, within.start_ms)
    for symbol, name, first_ms, last_ms in connection.execute(_ABSENT, parameters):
        absent[symbol, name].append(Range(first_ms, parse_timeframe(name).close_of(last_ms)))
    return {key: union(ranges) for key, ranges in absent.items()}


def gaps_to_ask(connection: Connection, symbols: Sequence[str]) -> list[Gap]:
    """The gaps of `symbols` about which OKX is to be asked again some time."""
    return [_gap(row) for row in connection.execute(_TO_ASK, (list(symbols),))]


def series_with_gaps(connection: Connection) -> set[tuple[str, str]]:
    """The (symbol, timeframe) of every unresolved gap."""
    found = connection.execute("SELECT DISTINCT symbol, timeframe FROM trading.candle_gaps WHERE status <> 'repaired'")
    return {(symbol, timeframe) for symbol, timeframe in found}


def database_now(connection: Connection) -> datetime:
    """The database's clock, by which gaps are detected and resolved."""
    return one(connection, "SELECT clock_timestamp()")  # type: ignore[no-any-return]


def fitted(
    symbol: str, timeframe: Timeframe, known: Sequence[Gap], within: Range, lacking: Sequence[Range], *, add_new: bool
) -> Change:
    """How the gaps on record change when all of `within` has been looked at.

    Parameters
    ----------
    known
        Every unresolved gap that reaches into `within`.
    lacking
        What of `within` is expected and not held; absent or not is not known to who looked.
    add_new
        Whether what is lacking and on no record becomes an open gap.

    Returns
    -------
    Change
        Pieces of known gaps that are held now are repaired, the rest of them stays what it was. What is new and follows
        a gap about which OKX was not asked yet joins it.
    """
    remove, add = [], []
    new = difference(lacking, union(gap.range for gap in known)) if add_new else []
    for gap in known:
        outside = difference([gap.range], [within])
        still = union(outside, intersection([gap.range], lacking))
        if gap.status == "open" and not gap.evidence:
            grown = [each for each in new if any(_touch(each, piece) for piece in still)]
            new = [each for each in new if each not in grown]
            still = union(still, grown)
        if still == [gap.range]:
            continue
        remove.append(gap)
        add += [replace(gap, id=None, range=piece) for piece in still]
        repaired = replace(gap, id=None, status="repaired", reason=None, ask_again_ms=None, resolved_at=None)
        add += [replace(repaired, range=piece) for piece in difference([gap.range], still)]
    add += [Gap(None, symbol, timeframe, piece) for piece in new]
    return Change(remove, add)


def apply(connection: Connection, change: Change) -> None:
    """Write a change, in the caller's transaction."""
    if change.remove:
        connection.execute("DELETE FROM trading.candle_gaps WHERE id = ANY(%s)", ([gap.id for gap in change.remove],))
    if change.add:
        with connection.cursor() as cursor:
            cursor.executemany(_INSERT, [_row(gap) for gap in change.add])


def lock_ledger(connection: Connection) -> None:
    """Be the only one to change gaps and coverage until the transaction ends: each is decided by the other."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))


def try_lock_ledger(connection: Connection) -> bool:
    """Lock the ledger as `lock_ledger` does, unless somebody has it; returns whether."""
    return bool(one(connection, "SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)))


def fit_gaps(
    connection: Connection,
    symbol: str,
    timeframe: Timeframe,
    within: Range,
    lacking: Sequence[Range],
    *,
    add_new: bool,
) -> Change:
    """Bring the gaps on record up to what was found in `within` (see `fitted`); the caller holds the ledger's lock."""
    # A candle more on either side: what begins or ends next to the range joins what is in it.
    around = Range(timeframe.step(within.start_ms, -1), timeframe.step(within.end_ms, 1))
    known = unresolved_gaps(connection, symbol, timeframe, around)
    change = fitted(symbol, timeframe, known, within, lacking, add_new=add_new)
    apply(connection, change)
    return change


def cut_gaps(connection: Connection, symbol: str, timeframe: Timeframe, within: Range) -> None:
    """Take unresolved gaps off the record in `within`, which nobody wants; the caller holds the ledger's lock."""
    within = Range(timeframe.first_open(within.start_ms), timeframe.first_open(within.end_ms))
    for known in unresolved_gaps(connection, symbol, timeframe, within):
        rest = difference([known.range], [within])
        apply(connection, Change([known], [replace(known, id=None, range=piece) for piece in rest]))


def settle(connection: Connection, gap: Gap, verdicts: Sequence[Verdict]) -> dict[Reason | None, int]:
    """Write down what OKX answered about a gap where it is still unresolved; returns the candles concerned, by reason.

    The caller holds the ledger's lock. What has been repaired meanwhile stays repaired.
    """
    concerned: Counter[Reason | None] = Counter()
    for verdict in verdicts:
        for known in unresolved_gaps(connection, gap.symbol, gap.timeframe, verdict.range):
            pieces = intersection([known.range], [verdict.range])
            judged = replace(
                known,
                id=None,
                status=verdict.status,
                reason=verdict.reason,
                evidence=verdict.evidence,
                ask_again_ms=verdict.ask_again_ms,
            )
            add = [replace(known, id=None, range=rest) for rest in difference([known.range], pieces)]
            add += [replace(judged, range=piece) for piece in pieces]
            apply(connection, Change([known], add))
            concerned[verdict.reason] += candles_in(gap.timeframe, pieces)
    return dict(concerned)


def _touch(left: Range, right: Range) -> bool:
    return left.start_ms == right.end_ms or left.end_ms == right.start_ms


def _gap(row: Sequence[Any]) -> Gap:
    identity, symbol, name, first_ms, last_ms, status, reason, evidence, ask_again_ms, detected_at, resolved_at = row
    timeframe = parse_timeframe(name)
    return Gap(
        identity,
        symbol,
        timeframe,
        Range(first_ms, timeframe.close_of(last_ms)),
        status,
        reason,
        evidence,
        ask_again_ms,
        detected_at,
        resolved_at,
    )


def _row(gap: Gap) -> tuple[Any, ...]:
    return (
        gap.symbol,
        gap.timeframe.name,
        gap.first_ms,
        gap.last_ms,
        gap.candles,
        gap.status,
        gap.reason,
        json.dumps(list(gap.evidence)),
        gap.ask_again_ms,
        gap.detected_at,
        gap.resolved_at,
        gap.status != "open",
    )
