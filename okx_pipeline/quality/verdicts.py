"""Whole days of symbols judged: what a materialization of candle quality does, and the command that validates.

Timeframes are compared first. Where REST has served exactly what is held of a day, a mismatch is the exchange's own;
otherwise it is an error until the day has been read once more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from okx_pipeline.quality.consistency import check
from okx_pipeline.quality.copies import is_repairable, repair_copies
from okx_pipeline.quality.data_docs import Built, DataDocs
from okx_pipeline.quality.suites import Check
from okx_pipeline.quality.validation import validate
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import (
    DayCoverage,
    day_coverage,
    is_verified,
    note_judged,
    series_coverage,
    unjudged_days,
)
from okx_pipeline.storage.database import translated
from okx_pipeline.storage.findings import accepted_days
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.quality_results import (
    DayVerdicts,
    QualitySummary,
    Store,
    Verdict,
    forget_pages,
    latest,
    newest_day,
    summary,
    unjudged_by_day,
    verdicts_by_day,
)
from okx_pipeline.storage.quality_rows import SeriesKey
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, parse_timeframe


@dataclass(frozen=True, slots=True)
class DayJudged:
    """The verdicts on a day: every check on every series that holds candles of it or ought to.

    A check that had nothing to look at on a series has no verdict; `not_judged` counts them.
    """

    day: date
    verdicts: list[Verdict]
    not_judged: int = 0


def days_to_judge(
    store: CandleStore,
    *,
    symbols: Sequence[str] = (),
    timeframes: Sequence[Timeframe] = (),
    start: date | None = None,
    end: date | None = None,
) -> dict[str, list[date]]:
    """The closed days of the ledger in [start, end), by symbol; filters may be empty, then of all wanted or held."""
    with translated(store.place):
        summed = series_coverage(store.connection, symbols=symbols, timeframes=timeframes, start=start, end=end)
        names = {each.timeframe.name for each in summed}
        found: dict[str, list[date]] = {}
        for symbol in sorted({each.symbol for each in summed}):
            ranges = [each for each in summed if each.symbol == symbol]
            first, last = min(each.first for each in ranges), max(each.last for each in ranges)
            rows = day_coverage(store.connection, symbol, first, last + timedelta(days=1))
            found[symbol] = sorted({row.day for row in rows if row.content_hash is not None and row.timeframe in names})
    return found


def judge_days(
    store: CandleStore,
    docs: DataDocs,
    wanted: Mapping[str, Sequence[date]],
    *,
    timeframes: Sequence[Timeframe] = (),
    only_changed: bool = False,
) -> Iterator[DayJudged]:
    """Judge the days of `wanted` (by symbol), all series of a day at once, in both stores; a day after the other.

    Days that lack candles and that REST was not read for yet are left out.

    Parameters
    ----------
    timeframes
        Those to be judged; all that the ledger knows of, where empty.
    only_changed
        Leave out what was judged as it is now.

    Raises
    ------
    StorageError
        If a store or the folder of the Data Docs is out of reach; what was judged before stays.
    """
    names = {timeframe.name for timeframe in timeframes}
    with translated(store.place):
        changed = set(unjudged_days(store.connection, sorted(wanted))) if only_changed else None
    by_day: dict[date, list[str]] = {}
    for symbol, days in sorted(wanted.items()):
        for day in days:
            by_day.setdefault(day, []).append(symbol)
    for day in sorted(by_day):
        with translated(store.place):
            rows = [
                row
                for symbol in by_day[day]
                for row in day_coverage(store.connection, symbol, day, day + timedelta(days=1))
                if row.content_hash is not None and row.expected and (not names or row.timeframe in names)
                # History that is still to be read is on its way: that it is not here yet is no fault of it.
                if row.read_at is not None or not row.missing
                if changed is None or SeriesDay(symbol, row.timeframe, day) in changed
            ]
            verdicts = _judge(store, docs, day, rows) if rows else []
            yield DayJudged(day, verdicts, len(rows) * len(Check) * len(Store) - len(verdicts))


def judge_all(
    store: CandleStore, docs: DataDocs, wanted: Mapping[str, Sequence[date]], *, only_changed: bool
) -> list[Verdict]:
    """Check the days of `wanted`, see `judge_days`; returns the latest verdicts on them, reached now or before."""
    for _ in judge_days(store, docs, wanted, only_changed=only_changed):
        pass
    return verdicts_on(store, wanted)


def verdicts_on(store: CandleStore, wanted: Mapping[str, Sequence[date]]) -> list[Verdict]:
    """The latest verdicts on the days of `wanted`, by symbol."""
    with translated(store.place):
        return [
            verdict
            for symbol, days in wanted.items()
            for verdict in latest(
                store.connection, symbols=[symbol], start=min(days), end=max(days) + timedelta(days=1)
            )
            if verdict.day in days
        ]


def unchecked_days(store: CandleStore, symbols: Sequence[str]) -> set[tuple[date, str]]:
    """The days of `symbols` of which some series has changed since its last verdict, or has none yet."""
    with translated(store.place):
        return {(each.day, each.symbol) for each in unjudged_days(store.connection, symbols)}


def standing_failures(store: CandleStore) -> list[Verdict]:
    """The verdicts of all days that fail now."""
    with translated(store.place):
        return latest(store.connection, failed_only=True)


def last_verdicts(store: CandleStore) -> list[Verdict]:
    """The verdicts on the newest day that was judged."""
    with translated(store.place):
        day = newest_day(store.connection)
        return [] if day is None else latest(store.connection, start=day, end=day + timedelta(days=1))


@dataclass(frozen=True, slots=True)
class RecentVerdicts:
    """How the newest days fared, and what stands of all days.

    Parameters
    ----------
    days
        By day and check, of the newest days.
    unjudged
        Series that are not judged as they are now, by day, of the same days and later ones.
    standing
        Of all days, however old; None if nothing was ever judged.
    """

    days: list[DayVerdicts]
    unjudged: dict[date, int]
    standing: QualitySummary | None

    @property
    def outcome(self) -> str:
        """What stands in a few words; what was not judged has not passed."""
        if self.standing is None:
            return "not judged"
        found = {"errors": self.standing.with_errors, "warnings": self.standing.with_warnings}
        told = [f"series-days with {what}: {number:,}" for what, number in found.items() if number]
        told = told or ["all verdicts passed"]
        lacking = self.standing.unjudged
        return ", ".join([*told, *([f"series-days not judged: {lacking:,}"] if lacking else [])])


def recent_verdicts(store: CandleStore, most_days: int) -> RecentVerdicts:
    """How the newest day that was judged and those before it fared, `most_days` in all, and what stands of all days."""
    with translated(store.place):
        connection = store.connection
        day = newest_day(connection)
        if day is None:
            return RecentVerdicts([], {}, None)
        first = day - timedelta(days=most_days - 1)
        days = verdicts_by_day(connection, first, day + timedelta(days=1))
        return RecentVerdicts(days, unjudged_by_day(connection, first, date.max), summary(connection))


def build_pages(store: CandleStore, docs: DataDocs, keep_days: int, now: datetime) -> tuple[Built, int]:
    """Prune the Data Docs and build what is left; returns what was built, and how many pages were pruned.

    Raises
    ------
    StorageError
        If the folder cannot be written or the database is out of reach.
    """
    pruned = docs.prune(keep_days, now)
    with translated(store.place):
        forget_pages(store.connection, pruned)
    return docs.build(), len(pruned)


def _judge(store: CandleStore, docs: DataDocs, day: date, rows: Sequence[DayCoverage]) -> list[Verdict]:
    for symbol in sorted({row.symbol for row in rows}):
        _compare(store, symbol, day)
    series = [(row.symbol, row.timeframe) for row in rows]
    verdicts = _validated(store, docs, day, series)
    repaired = repair_copies(store, day, verdicts)
    if repaired:
        verdicts = [each for each in verdicts if (each.symbol, each.timeframe) not in repaired]
        verdicts += _validated(store, docs, day, sorted(repaired))
    accepted = accepted_days(store.connection, [SeriesDay(*key, day) for key in series])
    verdicts = [replace(each, accepted=accepted.get(SeriesDay(each.symbol, each.timeframe, day))) for each in verdicts]
    at = min(verdict.validated_at for verdict in verdicts)
    in_vain = {SeriesDay(each.symbol, each.timeframe, day) for each in verdicts if is_repairable(each)}
    note_judged(store.connection, (SeriesDay(*key, day) for key in series), at, in_vain)
    return verdicts


def _validated(store: CandleStore, docs: DataDocs, day: date, series: Sequence[SeriesKey]) -> list[Verdict]:
    """The verdicts on both stores; those on PostgreSQL's rows first."""
    # The files are read first: of a file that cannot be read nobody knows whether it holds what PostgreSQL holds.
    of_files = validate(store.connection, store.files, series, day, store=Store.PARQUET, docs=docs)
    unreadable = {(each.symbol, each.timeframe) for each in of_files if "file_can_be_read" in each.failed}
    return validate(store.connection, store.files, series, day, docs=docs, unreadable=unreadable) + of_files


def _compare(store: CandleStore, symbol: str, day: date) -> None:
    rows = day_coverage(store.connection, symbol, day, day + timedelta(days=1))
    timeframes = [parse_timeframe(row.timeframe) for row in rows]
    within_day = [timeframe for timeframe in timeframes if timeframe.length_ms <= DAY_MS]
    verified = is_verified(store.connection, rows)
    check(store.connection, symbol, within_day, day_ms(day), day_ms(day) + DAY_MS, confirmed_by_rest=verified)
