"""Validating a day: everything held of it is judged in one batch, and each check gives its verdict on each series.

A check that had nothing to look at gives none: it is not judged.

What is demanded stands in `suites`, how it is measured in `measures`, how it is judged in `expectations`, and where the
pages go in `data_docs`.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from okx_pipeline.quality.consistency import pairs
from okx_pipeline.quality.data_docs import DataDocs
from okx_pipeline.quality.expectations import Judged, judge, whole_result
from okx_pipeline.quality.measures import candle_frame, in_key_order, notes, series_frame, unjudged
from okx_pipeline.quality.suites import CANDLE_RULES, SERIES_RULES, Check, Rule
from okx_pipeline.storage.coverage import day_coverage
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.quality_results import Severity, Store, Unjudged, Verdict, record
from okx_pipeline.storage.quality_rows import (
    DayMismatch,
    DayRows,
    Expected,
    InstrumentRules,
    Parity,
    SeriesKey,
    read_expected,
    read_mismatches,
    read_parity,
    read_rows,
    read_rules,
)
from okx_pipeline.timeframes import DAY_MS, parse_timeframe, utc

SAMPLES: Final = 3
"""Failing rows of an expectation that a verdict, or a page for each series, shows."""

ROWS_SHOWN: Final = 30
"""Failing rows of an expectation that a page shows over all series."""

_WORST_FIRST: Final = tuple(Severity)
_OF_SERIES: Final = frozenset(rule.name for rule in SERIES_RULES)


@dataclass(frozen=True, slots=True)
class Validation:
    """What became of validating a day.

    Parameters
    ----------
    day, store, series
        What was judged.
    read_at
        When its rows were read, by the database's clock.
    verdicts
        One of every check on every series that it could look at, in their order; without a page.
    unjudged
        The checks that had nothing to look at.
    result
        Great Expectations' own result over all of them, as JSON has it.
    """

    day: date
    store: Store
    series: tuple[SeriesKey, ...]
    read_at: datetime
    verdicts: tuple[Verdict, ...]
    unjudged: tuple[Unjudged, ...]
    result: dict[str, Any]


def validate(
    connection: Connection,
    files: ParquetStore,
    series: Sequence[SeriesKey],
    day: date,
    *,
    store: Store = Store.POSTGRES,
    docs: DataDocs | None = None,
    unreadable: Collection[SeriesKey] = (),
) -> list[Verdict]:
    """Validate what is held of `series` on `day`, write the verdicts down and keep the result for its page.

    Returns a verdict of every check on every series that it could look at; none where no series is named.

    Parameters
    ----------
    connection
        An autocommit connection.
    files
        The Parquet files that are the projection of this database.
    store
        Whose rows are judged; those of archived months are read from Parquet either way.
    docs
        Where the result is kept.
    unreadable
        Series whose Parquet file cannot be read, though its footer may: nobody knows whether the stores agree.

    Raises
    ------
    psycopg.Error
        If the database fails; nothing was written down.
    StorageError
        If the Parquet store or the folder of the Data Docs is out of reach.
    """
    if not series:
        return []
    # Before the rows, or what landed in between would be expected and not there.
    expected = read_expected(connection, series, day)
    rows = read_rows(connection, files, series, day, store)
    mismatches = list(read_mismatches(connection, rows.series, day))
    parity = read_parity(connection, files, rows.series, day)
    validation = validate_day(
        rows,
        expected=expected,
        rules=read_rules(connection, sorted({symbol for symbol, _ in rows.series}), day),
        mismatches=mismatches,
        parity={key: found for key, found in parity.items() if key not in unreadable},
        compared=_compared(connection, rows) | {(each.symbol, each.timeframe) for each in mismatches},
    )
    verdicts = list(validation.verdicts)
    if docs is not None:
        page = docs.store(validation.result, day=day, store=store, series=rows.series, read_at=rows.read_at)
        verdicts = [replace(each, docs_page=f"{page}#{each.check}") for each in verdicts]
    record(connection, verdicts, validation.unjudged)
    return verdicts


def validate_day(
    rows: DayRows,
    *,
    expected: Mapping[SeriesKey, Expected],
    rules: Mapping[str, InstrumentRules],
    mismatches: Iterable[DayMismatch],
    parity: Mapping[SeriesKey, Parity],
    compared: Collection[SeriesKey],
) -> Validation:
    """Judge `rows`, everything that is held of a day.

    Parameters
    ----------
    rows
        The rows, as they are.
    expected
        What the ledger says of each series.
    rules
        The instruments' rules by symbol.
    mismatches
        Where candles of the day differ from what shorter ones give.
    parity
        The hashes of each series in both stores; a series without is not compared.
    compared
        Series that were compared with other timeframes; `mismatches` are between them.
    """
    candles = in_key_order(rows)
    frame = candle_frame(rows, candles, rules)
    facts = series_frame(rows, candles, expected, mismatches, parity)
    about_candles = judge(frame, _applying(CANDLE_RULES, rows))
    about_series = judge(facts, _applying(SERIES_RULES, rows))
    judged = [*about_candles, *about_series]
    describe = _Describer(rows, candles, frame, facts)
    lacking = unjudged(rows, frame, facts, parity, compared)
    found = _verdicts(rows, candles, judged, describe, notes(rows, rules, frame))
    # What failed was looked at, whatever else could not be; an info is no failure.
    verdicts = tuple(
        each for each in found if not each.passed or ((each.symbol, each.timeframe), Check(each.check)) not in lacking
    )
    judged_keys = {((each.symbol, each.timeframe), each.check) for each in verdicts}
    left = tuple(
        Unjudged(*key, rows.day, check.value, rows.store, lacking[key, check], rows.read_at)
        for key in rows.series
        for check in Check
        if (key, check) not in judged_keys
    )
    meta = {
        "day": rows.day.isoformat(),
        "store": rows.store.value,
        "rows": candles.num_rows,
        "failing": [
            {
                "symbol": each.symbol,
                "timeframe": each.timeframe,
                "check": each.check,
                "severity": each.severity,
                "failed": list(each.failed),
            }
            for each in verdicts
            if each.failed
        ],
        "unjudged": [
            {"symbol": each.symbol, "timeframe": each.timeframe, "check": each.check, "reason": each.reason}
            for each in left
        ],
    }
    result = whole_result(judged, describe.shown, meta)
    return Validation(rows.day, rows.store, rows.series, rows.read_at, verdicts, left, result)


def _compared(connection: Connection, rows: DayRows) -> set[SeriesKey]:
    """The series of `rows` that have a shorter or longer one to be compared with, among those held on the day."""
    numbers = set(rows.candles["series"].unique().to_pylist())
    held: defaultdict[str, set[str]] = defaultdict(set)
    for number, (symbol, timeframe) in enumerate(rows.series):
        if number in numbers:
            held[symbol].add(timeframe)
    for symbol in sorted({symbol for symbol, _ in rows.series}):
        ledger = day_coverage(connection, symbol, rows.day, rows.day + timedelta(days=1))
        held[symbol] |= {each.timeframe for each in ledger if each.present}
    found = set()
    for symbol, names in held.items():
        within_day = [each for each in map(parse_timeframe, names) if each.length_ms <= DAY_MS]
        found |= {(symbol, each.name) for pair in pairs(within_day) for each in pair}
    return found


def _applying(rules: Sequence[Rule], rows: DayRows) -> list[Rule]:
    return [rule for rule in rules if rows.in_files or not rule.of_files]


class _Describer:
    """Tells of a row that a rule does not hold for: which it is, and what of it matters to the rule, exactly."""

    def __init__(self, rows: DayRows, candles: pa.Table, frame: Any, facts: Any) -> None:
        self._series = rows.series
        self._candles = candles
        self._frame = frame
        self._facts = facts
        self._numbers = candles["series"].to_numpy()

    def series_of(self, rule: Rule, failing: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The numbers of the series that the rows belong to."""
        return failing if rule.name in _OF_SERIES else self._numbers[failing].astype(np.int64)

    def shown(self, judged: Judged) -> list[dict[str, Any]]:
        """The first failing rows of every series, with their series, as far as a page goes."""
        owners = self.series_of(judged.rule, judged.failing)
        told: list[dict[str, Any]] = []
        for number in np.unique(owners).tolist():
            symbol, timeframe = self._series[number]
            for row in judged.failing[owners == number][:SAMPLES].tolist():
                if len(told) == ROWS_SHOWN:
                    return told
                told.append({"symbol": symbol, "timeframe": timeframe, **self.matter_of(judged.rule, row)})
        return told

    def matter_of(self, rule: Rule, row: int) -> dict[str, Any]:
        """What matters of a row."""
        if rule.name in _OF_SERIES:
            return {rule.column: _plain(self._facts[rule.column][row])}
        open_ms = self._candles["timestamp_ms"][row].as_py()
        told = {"timestamp_ms": open_ms, "open_time": _moment(open_ms)}
        told |= {name: _plain(self._candles[name][row].as_py()) for name in rule.shows}
        if rule.column not in told:
            told[rule.column] = _plain(self._frame[rule.column][row])
        return told


def _moment(ms: int) -> str | None:
    # What is off its boundary may be off the calendar too.
    try:
        return utc(ms).isoformat(timespec="milliseconds" if ms % 1000 else "seconds")
    except OverflowError:
        return None


def _plain(value: Any) -> Any:
    """A value as JSON has it: decimals as text without padding, measures to six digits, nothing as null."""
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if value is None or isinstance(value, str):
        return value
    number = float(f"{float(value):.6g}")
    return None if math.isnan(number) else int(number) if number.is_integer() else number


def _verdicts(
    rows: DayRows,
    candles: pa.Table,
    judged: Sequence[Judged],
    describe: _Describer,
    told: Mapping[tuple[SeriesKey, Check], Sequence[str]],
) -> Iterator[Verdict]:
    """A verdict of every check on every series, whether it could look at anything or not."""
    counts = np.bincount(candles["series"].to_numpy(), minlength=len(rows.series)).tolist()
    failing: defaultdict[tuple[int, Check], list[tuple[Rule, npt.NDArray[np.int64]]]] = defaultdict(list)
    for each in sorted(judged, key=lambda each: _WORST_FIRST.index(each.rule.severity)):
        owners = describe.series_of(each.rule, each.failing)
        for number in np.unique(owners).tolist():
            failing[number, each.rule.check].append((each.rule, each.failing[owners == number]))
    for number, key in enumerate(rows.series):
        for check in Check:
            failed = failing.get((number, check), [])
            observed: dict[str, Any] = {}
            if failed:
                observed["unexpected"] = {rule.name: len(found) for rule, found in failed}
                observed["samples"] = {
                    rule.name: [describe.matter_of(rule, row) for row in found[:SAMPLES].tolist()]
                    for rule, found in failed
                }
            if told.get((key, check)):
                observed["notes"] = list(told[key, check])
            yield Verdict(
                symbol=key[0],
                timeframe=key[1],
                day=rows.day,
                check=check.value,
                store=rows.store,
                severity=failed[0][0].severity if failed else None,
                failed=tuple(rule.name for rule, _ in failed),
                observed=observed,
                rows=counts[number],
                validated_at=rows.read_at,
            )
