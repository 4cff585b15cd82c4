"""The upkeep of months: partitions made ahead, whole months settled for good, expired ones archived.

What is to be done is decided here, from the ledger, the settings and the exchange's clock; how it is done stands in the
storage room. Every step is whole or not at all and is found again by the next run, so a run may be killed anywhere.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from time import monotonic
from typing import Any, Final
from zlib import crc32

from okx_pipeline.errors import AlreadyRunningError, command
from okx_pipeline.exchange.errors import RetryableError
from okx_pipeline.history.backfill import Backfill
from okx_pipeline.storage.audit import audit
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.damage import check_archived, damaged_files, look_at_files
from okx_pipeline.storage.database import session_lock_if_free, translated
from okx_pipeline.storage.landing import ensure_months
from okx_pipeline.storage.months import SeriesMonthState, held_months, partition_states, series_months
from okx_pipeline.storage.parquet import DamagedFileError, SeriesMonth
from okx_pipeline.storage.partitions import (
    InUseError,
    detached_months,
    leave_archived_out,
    may_vacuum,
    partition_bytes,
    vacuum_month,
)
from okx_pipeline.storage.projection import archive_month, archive_whole, rebuild_month, restore_month
from okx_pipeline.timeframes import DAY_MS, Timeframe, month_bounds, month_of

log = logging.getLogger(__name__)

AHEAD: Final = 3
"""Months after the current one that have a partition already."""

SETTLED_AFTER_DAYS: Final = 45
"""A whole month that is this old is settled though REST did not serve all of it or nobody judged it: nothing is read
again by itself any more."""

READ_BACK_DAYS: Final = 28
"""Every file is read back once in so many days, some of them each day: a disk does not tell what it has lost."""

AUDIT_WITHIN_S: Final = 60.0
"""So long a run audits what is due, for a store in which no sidecar does."""

RESTORED_STAYS_DAYS: Final = 7
"""What was brought back is left alone for so long."""

_SERIES_NAMED: Final = 3

Retention = Mapping[Timeframe, int]
"""Days that PostgreSQL keeps candles of a length."""


@dataclass(slots=True)
class MonthPlan:
    """What is to be done in a month.

    Parameters
    ----------
    make
        Whether it lacks a partition.
    rebuild
        Files to be rebuilt for good.
    archive
        Series whose rows are to leave PostgreSQL, and how many each.
    whole
        Whether nothing is left then, so that the partition goes.
    leave_out
        Whether the partition still has the space of rows that have left.
    vacuum
        Whether the partition is to be vacuumed and frozen.
    kept
        Series that have expired and stay, and why.
    """

    month: date
    make: bool = False
    rebuild: list[SeriesMonth] = field(default_factory=list)
    archive: dict[SeriesMonth, int] = field(default_factory=dict)
    whole: bool = False
    leave_out: bool = False
    vacuum: bool = False
    kept: dict[SeriesMonth, str] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.make or self.rebuild or self.archive or self.leave_out or self.vacuum)

    def told(self) -> Iterator[str]:
        """What is to be done, in words."""
        if self.make:
            yield "make the partition"
        if self.rebuild:
            yield f"rebuild {_counted(len(self.rebuild), 'file')} for good"
        if self.archive:
            yield f"archive {_candles(self.archive)}"
        if self.whole:
            yield "drop the partition"
        elif self.archive or self.leave_out:
            yield "give the space back"
        if self.vacuum:
            yield "vacuum and freeze"

    def document(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "month": f"{self.month:%Y-%m}",
            "make": self.make,
            "rebuild": [_named(key) for key in self.rebuild],
            "archive": [{**_named(key), "rows": rows} for key, rows in self.archive.items()],
            "drop": self.whole,
            "give_space_back": not self.whole and (bool(self.archive) or self.leave_out),
            "vacuum": self.vacuum,
        }


@dataclass(slots=True)
class MonthDone:
    """What was done in a month; `problems` are told, and tried again by the next run."""

    month: date
    made: bool = False
    rebuilt: int = 0
    archived: dict[SeriesMonth, int] = field(default_factory=dict)
    dropped: bool = False
    swapped: bool = False
    vacuumed: bool = False
    problems: list[str] = field(default_factory=list)

    def told(self) -> Iterator[str]:
        """What was done, in words; `problems` are apart."""
        if self.made:
            yield "partition made"
        if self.rebuilt:
            yield f"{_counted(self.rebuilt, 'file')} rebuilt for good"
        if self.archived:
            yield f"{_candles(self.archived)} archived"
        if self.dropped:
            yield "partition dropped"
        if self.swapped:
            yield "space given back"
        if self.vacuumed:
            yield "vacuumed and frozen"

    def document(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "month": f"{self.month:%Y-%m}",
            "made": self.made,
            "rebuilt": self.rebuilt,
            "archived": [{**_named(key), "rows": rows} for key, rows in self.archived.items()],
            "dropped": self.dropped,
            "space_given_back": self.swapped,
            "vacuumed": self.vacuumed,
            "problems": self.problems,
        }


class Upkeep:
    """The upkeep of one store at one moment.

    Parameters
    ----------
    retention
        What is not named is kept for ever.
    now_ms
        The exchange's time.
    """

    def __init__(self, store: CandleStore, retention: Retention, now_ms: int) -> None:
        self._store = store
        self._connection = store.connection
        self._days = {timeframe.name: days for timeframe, days in retention.items()}
        self._now_ms = now_ms

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one who looks after the months while the block runs.

        Raises
        ------
        AlreadyRunningError
            If somebody else is at it.
        """
        with translated(self._store.place), session_lock_if_free(self._connection, "maintenance") as free:
            if not free:
                raise AlreadyRunningError("maintenance is under way already")
            yield

    def months(self) -> list[date]:
        """Every month from the first candle to `AHEAD` months from now, ascending."""
        held = {each.key.month for each in series_months(self._connection)}
        current = month_of(self._now_ms)
        last = current
        for _ in range(AHEAD):
            last = following(last)
        found = [min({current, *held, *partition_bytes(self._connection)})]
        while found[-1] < last:
            found.append(following(found[-1]))
        return found

    def prepare(self, *, account: bool = True) -> None:
        """Bring the files and the ledger up to date, which decide what can be settled and what can go."""
        until = monotonic() + AUDIT_WITHIN_S
        audit(self._connection, lambda took_s: monotonic() < until)
        self._store.project(self._to_read_back())
        if account:
            self._store.account(self._now_ms)

    def _to_read_back(self) -> Iterator[SeriesMonth]:
        """The live months whose turn it is; a projection makes a file that does not hold its rows anew."""
        today = self._now_ms // DAY_MS
        for state in series_months(self._connection):
            if not state.archived and _is_its_turn(state.key, today):
                yield state.key

    def damaged(self) -> dict[SeriesMonth, str]:
        """Archived months whose file is damaged, and how; the files whose turn it is are read whole."""
        today = self._now_ms // DAY_MS
        place, look = None, True
        while look:
            place = look_at_files(self._connection, self._store.files, place, lambda took_s: True)
            look = place is not None
        for month in held_months(self._connection):
            if month.archived and _is_its_turn(month.key, today):
                check_archived(self._connection, self._store.files, month.key)
        return {each.key: each.damage for each in damaged_files(self._connection) if each.archived}

    def plan(self, months: Collection[date] | None = None) -> list[MonthPlan]:
        """What is to be done in `months`, or in every month; those with nothing to do included."""
        by_month: defaultdict[date, list[SeriesMonthState]] = defaultdict(list)
        for state in series_months(self._connection):
            by_month[state.key.month].append(state)
        partitions, done = partition_bytes(self._connection), partition_states(self._connection)
        detached = {each.month for each in detached_months(self._connection)}
        vacuums = may_vacuum(self._connection)
        plans = []
        for month in self.months():
            if months is not None and month not in months:
                continue
            if month in detached:
                # Nothing of it can be read, so nothing else is decided.
                plans.append(MonthPlan(month, make=True))
                continue
            states = by_month[month]
            plan = MonthPlan(month)
            self._plan_archiving(plan, states)
            gone = bool(states) and all(state.archived for state in states)
            plan.make = month not in partitions and not gone
            plan.whole = plan.whole and month in partitions
            settled = [state for state in states if not state.archived and self._is_settled(state)]
            last_chance = [state for state in states if state.key in plan.archive and state not in settled]
            plan.rebuild = [state.key for state in (*settled, *last_chance) if not state.rebuilt]
            if month in partitions and month in done:
                left = [state.archived_at for state in states if state.archived and state.archived_at]
                swapped = done[month].swapped_at
                plan.leave_out = bool(left) and (swapped is None or swapped < max(left))
                live = [state for state in states if not state.archived]
                changes = bool(plan.archive) or plan.leave_out
                plan.vacuum = bool(live) and len(settled) == len(live) and (changes or not done[month].vacuumed)
                plan.vacuum = plan.vacuum and vacuums and not plan.whole
            plans.append(plan)
        return plans

    def carry_out(self, plan: MonthPlan) -> MonthDone:
        """Do what is planned for a month, or as much of it as can be done now.

        Raises
        ------
        StorageError
            If the database or the Parquet store is out of reach, or full.
        """
        done = MonthDone(plan.month)
        with translated(self._store.place):
            done.problems += [str(each) for each in detached_months(self._connection) if each.month == plan.month]
            if done.problems:
                return done
            if plan.make:
                ensure_months(self._connection, [plan.month])
                done.made = True
            for key in plan.rebuild:
                done.rebuilt += rebuild_month(self._connection, self._store.files, key)
            self._archive(plan, done)
            # Whatever has happened meanwhile, by what is the case now.
            if plan.archive or plan.leave_out:
                self._leave_out(plan.month, done)
            if plan.vacuum:
                self._vacuum(plan.month, done)
        return done

    def _plan_archiving(self, plan: MonthPlan, states: Iterable[SeriesMonthState]) -> None:
        live = [state for state in states if not state.archived]
        for state in live:
            if self._has_expired(state.key):
                reason = self._why_kept(state)
                if reason is None:
                    plan.archive[state.key] = state.rows
                else:
                    plan.kept[state.key] = reason
        plan.whole = bool(live) and len(plan.archive) == len(live)

    def _has_expired(self, key: SeriesMonth) -> bool:
        days = self._days.get(key.timeframe)
        return days is not None and month_bounds(key.month)[1] + days * DAY_MS <= self._now_ms

    def _why_kept(self, state: SeriesMonthState) -> str | None:
        if state.missing:
            return f"{state.missing:,} candles are missing; see: {command('gaps')}"
        if not state.closed:
            return "the ledger has not counted all of it"
        if state.waiting:
            return "landings wait to be projected"
        if state.restored_at is not None:
            until = state.restored_at + timedelta(days=RESTORED_STAYS_DAYS)
            if datetime.now(tz=UTC) < until:
                return f"it was brought back, and stays until {until:%Y-%m-%d}"
        return None

    def _is_settled(self, state: SeriesMonthState) -> bool:
        """Whether nothing of the month is expected to change any more."""
        if state.missing or not state.closed or state.waiting:
            return False
        return state.confirmed or month_bounds(state.key.month)[1] + SETTLED_AFTER_DAYS * DAY_MS <= self._now_ms

    def _archive(self, plan: MonthPlan, done: MonthDone) -> None:
        if plan.whole:
            try:
                archive_whole(self._connection, self._store.files, list(plan.archive))
            except (DamagedFileError, InUseError) as problem:
                # One by one, then: what is wrong with one is no matter of the others, and a DELETE disturbs no reader.
                log.info("%s", problem)
            else:
                done.archived = dict(plan.archive)
                done.dropped = True
                return
        for key in plan.archive:
            try:
                done.archived[key] = archive_month(self._connection, self._store.files, key)
            except (DamagedFileError, InUseError) as problem:
                done.problems.append(str(problem))

    def _leave_out(self, month: date, done: MonthDone) -> None:
        if month not in partition_bytes(self._connection):
            return
        try:
            done.dropped = not leave_archived_out(self._connection, month)
            done.swapped = not done.dropped
        except InUseError as problem:
            done.problems.append(str(problem))

    def _vacuum(self, month: date, done: MonthDone) -> None:
        state = partition_states(self._connection).get(month)
        if state is None or month not in partition_bytes(self._connection):
            return
        done.vacuumed = vacuum_month(self._connection, month, state.fingerprint)


def _is_its_turn(key: SeriesMonth, today: int) -> bool:
    """Whether the file is read back today, the number of the UTC day since 1970."""
    return (crc32(str(key).encode()) + today) % READ_BACK_DAYS == 0


@dataclass(frozen=True, slots=True)
class LookedAfter:
    """What was done, a month at a time where anything was, and what is left to be done now.

    Parameters
    ----------
    damaged
        Archived months whose file does not say that it holds what was archived in it, and what is wrong with it.
    """

    done: list[MonthDone]
    left: list[MonthPlan]
    damaged: dict[SeriesMonth, str]

    @property
    def lacking(self) -> list[date]:
        """Months that ought to have a partition and have none."""
        return [plan.month for plan in self.left if plan.make]

    @property
    def kept(self) -> dict[SeriesMonth, str]:
        """What has expired and stays in PostgreSQL, and why."""
        return {key: reason for plan in self.left for key, reason in plan.kept.items()}


def look_after_months(
    store: CandleStore,
    retention: Retention,
    now_ms: int,
    months: Collection[date] | None = None,
    *,
    account: bool = True,
) -> LookedAfter:
    """Do what is to be done in `months`, or in every month.

    Parameters
    ----------
    account
        Whether `now_ms` is the exchange's time, by which the ledger can be brought up to date first.

    Raises
    ------
    AlreadyRunningError
        If somebody else is at it.
    StorageError
        If the database or the Parquet store is out of reach, or full. What was done stays done.
    """
    upkeep = Upkeep(store, retention, now_ms)
    with upkeep.alone():
        upkeep.prepare(account=account)
        done = [upkeep.carry_out(plan) for plan in upkeep.plan(months) if not plan.is_idle]
        return LookedAfter(done, upkeep.plan(), upkeep.damaged())


def bring_back(
    store: CandleStore, month: date, symbols: Collection[str] = (), timeframes: Collection[Timeframe] = ()
) -> dict[SeriesMonth, int]:
    """Bring the archived series of a month back into PostgreSQL, some or all; returns how many candles of each.

    Raises
    ------
    DamagedFileError
        If a file does not hold what was archived in it; what came back before stays.
    """
    names = {timeframe.name for timeframe in timeframes}
    with translated(store.place):
        return {
            state.key: restore_month(store.connection, store.files, state.key)
            for state in series_months(store.connection, month)
            if state.archived or state.damage is not None
            if not symbols or state.key.symbol in symbols
            if not names or state.key.timeframe in names
        }


async def maintain(backfill: Backfill, months: Collection[date] | None = None) -> LookedAfter:
    """`look_after_months` of a backfill's store, by the settings and the exchange's clock."""
    retention, store = dict(backfill.settings.retention), backfill.store
    now_ms, known = await _exchange_ms(backfill)
    return await asyncio.to_thread(look_after_months, store, retention, now_ms, months, account=known)


async def plan_months(backfill: Backfill) -> list[MonthPlan]:
    """What `maintain` would do now; changes nothing."""
    now_ms, _ = await _exchange_ms(backfill)
    upkeep = Upkeep(backfill.store, dict(backfill.settings.retention), now_ms)
    with translated(backfill.store.place):
        return await asyncio.to_thread(upkeep.plan)


async def _exchange_ms(backfill: Backfill) -> tuple[int, bool]:
    """The exchange's time; the wall's, and False, where OKX cannot be asked and no sidecar ever could."""
    try:
        return await backfill.known_ms(), True
    except RetryableError:
        return int(datetime.now(tz=UTC).timestamp() * 1000), False


def kept_document(kept: Mapping[SeriesMonth, str]) -> list[dict[str, str]]:
    """What has expired and stays, and why, as JSON has it."""
    return [{"month": f"{key.month:%Y-%m}", **_named(key), "reason": reason} for key, reason in kept.items()]


def _named(key: SeriesMonth) -> dict[str, str]:
    return {"symbol": key.symbol, "timeframe": key.timeframe}


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _candles(rows: Mapping[SeriesMonth, int]) -> str:
    named = ", ".join(f"{key.symbol} {key.timeframe}" for key in sorted(rows)[:_SERIES_NAMED])
    more = f" and {len(rows) - _SERIES_NAMED} more series" if len(rows) > _SERIES_NAMED else ""
    return f"{_counted(sum(rows.values()), 'candle')} of {named}{more}"


def following(month: date) -> date:
    """The month after `month`, by their first days."""
    return (month + timedelta(days=32)).replace(day=1)
