"""The pages of the Data Docs: one per validation, an index, and one per month of days.

Drawn from stored results by templates of ours. A page loads nothing: its style and its one script stand in it, and its
own policy allows no others. Where pages are kept is `data_docs`'s business.
"""

import base64
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from okx_pipeline.quality.suites import MEANING, Check
from okx_pipeline.storage.database import StorageError
from okx_pipeline.storage.quality_results import Severity, Store

INDEX: Final = "index.html"
NAMES: Final = {Store.POSTGRES: "PostgreSQL", Store.PARQUET: "Parquet"}
TITLES: Final = {check: check.replace("_", " ").capitalize().replace("Ohlc", "OHLC") for check in Check}
LEVELS: Final = {Severity.CRITICAL: "error", Severity.WARNING: "warning", Severity.INFO: "info"}
"""How people read a severity."""

FAILED_DAYS: Final = 20
"""Days with errors that the index shows, the newest; their months have the others."""
NEWEST_DAYS: Final = 31
"""Days that the index shows beside those, the newest."""
OPEN_ROWS: Final = 20
"""Validations that are in sight before a day is opened."""
_SYMBOLS_NAMED: Final = 2
_RULES_NAMED: Final = 6


class _Failing(msgspec.Struct):
    symbol: str
    timeframe: str
    check: Check
    severity: Severity
    failed: list[str]


class _Unjudged(msgspec.Struct):
    symbol: str
    timeframe: str
    check: Check
    reason: str


class _Meta(msgspec.Struct):
    """What a stored result says of the validation besides the library's own."""

    day: date
    store: Store
    series: list[tuple[str, str]]
    rows: int
    read_at: datetime
    great_expectations_version: str
    failing: list[_Failing] = []
    unjudged: list[_Unjudged] = []


class _About(msgspec.Struct):
    rule: str
    check: Check


class _Expectation(msgspec.Struct):
    type: str
    severity: Severity
    description: str
    meta: _About


class _Outcome(msgspec.Struct):
    element_count: int = 0
    unexpected_count: int = 0
    missing_count: int = 0
    unexpected_rows: list[dict[str, Any]] = []


class _Result(msgspec.Struct):
    success: bool
    expectation_config: _Expectation
    result: _Outcome

    @property
    def judged(self) -> int:
        """Values that were looked at."""
        return self.result.element_count - self.result.missing_count


class Stored(msgspec.Struct):
    """A stored result, as far as pages show it; the library's own JSON has more."""

    meta: _Meta
    results: list[_Result]

    def failed(self, severity: Severity | None = None) -> list[_Result]:
        """The expectations that failed, of one severity or all."""
        failed = [each for each in self.results if not each.success]
        return [each for each in failed if severity in (None, each.expectation_config.severity)]

    def of(self, check: Check) -> list[_Result]:
        """The expectations of a check, failed ones first."""
        return sorted(
            (each for each in self.results if each.expectation_config.meta.check is check),
            key=lambda each: (each.success, list(Severity).index(each.expectation_config.severity)),
        )


_DECODER: Final = msgspec.json.Decoder(Stored)


@dataclass(frozen=True, slots=True)
class Line:
    """A validation as the index lists it.

    Parameters
    ----------
    page
        Path of its page below the site.
    series
        The series validated.
    errors, warnings, unjudged
        Symbols with a check that failed at that level, and those with a check that was not judged.
    counts
        Failed expectations by severity.
    failed
        Their names, worst first.
    """

    page: str
    day: date
    store: Store
    read_at: datetime
    rows: int
    series: frozenset[tuple[str, str]]
    errors: frozenset[str]
    warnings: frozenset[str]
    unjudged: frozenset[str]
    counts: Mapping[Severity, int]
    failed: tuple[str, ...]

    @property
    def symbols(self) -> list[str]:
        """The symbols validated."""
        return sorted({symbol for symbol, _ in self.series})

    @property
    def name(self) -> str:
        """Symbols and store, for a link."""
        return f"{named(self.symbols)} in {NAMES[self.store]}"

    @property
    def rank(self) -> int:
        """How bad its outcome is: 0 with errors, 1 with warnings, 2 otherwise."""
        return 0 if self.errors else 1 if self.warnings else 2


@dataclass(slots=True)
class Day:
    """The validations of a day: those that count, worst first, and those that newer ones have replaced."""

    day: date
    current: list[Line]
    replaced: list[Line] = field(default_factory=list)
    is_open: bool = False

    @property
    def rank(self) -> int:
        """That of the worst validation that counts."""
        return min(line.rank for line in self.current)

    @property
    def name(self) -> str:
        """The symbols validated, and how often."""
        number = len(self.current)
        symbols = sorted({symbol for line in self.current for symbol in line.symbols})
        return f"{number} validation{'' if number == 1 else 's'} of {named(symbols)}"

    @property
    def counts(self) -> dict[Severity, int]:
        """Failed expectations of the validations that count, by severity."""
        return {severity: sum(line.counts[severity] for line in self.current) for severity in Severity}

    @property
    def is_judged(self) -> bool:
        """Whether every check of every validation that counts was judged."""
        return not any(line.unjudged for line in self.current)


@dataclass(frozen=True, slots=True)
class Month:
    """The days of a month, the newest first."""

    name: str
    days: list[Day]

    @property
    def page(self) -> str:
        """Path of its page below the site."""
        return f"months/{self.name}.html"

    @property
    def validations(self) -> int:
        """How many there are, replaced ones included."""
        return sum(len(day.current) + len(day.replaced) for day in self.days)

    def symbols(self, kind: Literal["symbols", "errors", "warnings", "unjudged"]) -> set[str]:
        """The symbols of validations that count: all of them, or those with such an outcome."""
        return {symbol for day in self.days for line in day.current for symbol in getattr(line, kind)}

    def with_rank(self, rank: int) -> int:
        """How many days are as bad as that."""
        return sum(day.rank == rank for day in self.days)


def decoded(body: bytes, page: str) -> Stored:
    """The stored result of `page`.

    Raises
    ------
    StorageError
        If it cannot be read.
    """
    try:
        return _DECODER.decode(body)
    except msgspec.DecodeError as problem:
        raise StorageError(f"the stored result of {page} cannot be read: {problem}; remove it") from problem


def line_of(stored: Stored, page: str) -> Line:
    """A validation for the index."""
    meta = stored.meta
    errors = frozenset(each.symbol for each in meta.failing if each.severity is Severity.CRITICAL)
    warnings = frozenset(each.symbol for each in meta.failing if each.severity is Severity.WARNING)
    failed = {severity: stored.failed(severity) for severity in Severity}
    return Line(
        page,
        meta.day,
        meta.store,
        meta.read_at,
        meta.rows,
        frozenset(meta.series),
        errors,
        warnings,
        frozenset(each.symbol for each in meta.unjudged),
        {severity: len(found) for severity, found in failed.items()},
        tuple(each.expectation_config.meta.rule for found in failed.values() for each in found),
    )


def validation_page(stored: Stored) -> bytes:
    """The page of a validation."""
    meta = stored.meta
    unjudged = {check: [each for each in meta.unjudged if each.check is check] for check in Check}
    symbols = sorted({symbol for symbol, _ in meta.series})
    return _rendered(
        "page.html.j2",
        root="../../",
        stored=stored,
        name=f"Candles of {named(symbols)} on {meta.day} in {NAMES[meta.store]}",
        checks=[(check, TITLES[check], MEANING[check], stored.of(check), unjudged[check]) for check in Check],
        month=f"{meta.day:%Y-%m}",
        titles=TITLES,
    )


def index_pages(lines: Iterable[Line]) -> dict[str, bytes]:
    """The index and the pages of the months, by their path below the site."""
    lines = list(lines)
    days = _days(lines)
    months = [Month(name, list(group)) for name, group in groupby(days, key=lambda each: f"{each.day:%Y-%m}")]
    symbols = sorted({symbol for line in lines for symbol in line.symbols})
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    about = {"symbols": symbols, "numbers": _Numbers(numbers), "stores": NAMES, "rules_named": _RULES_NAMED}
    failed = [day for day in days if day.rank == 0]
    shown = _opened(failed[:FAILED_DAYS])
    newest = _opened([day for day in days if day.rank][:NEWEST_DAYS], sum(len(day.current) for day in shown))
    pages = {
        INDEX: _rendered(
            "index.html.j2",
            root="",
            validations=len(lines),
            months=months,
            failed=failed,
            shown=shown,
            newest=newest,
            **about,
        )
    }
    for month in months:
        worst_first = _opened(sorted(month.days, key=lambda each: each.rank > 0))
        pages[month.page] = _rendered("month.html.j2", root="../", month=month, days=worst_first, **about)
    return pages


def named(symbols: Sequence[str]) -> str:
    """Symbols in a few words."""
    more = len(symbols) - _SYMBOLS_NAMED
    if more <= 0:
        return " and ".join(symbols)
    return f"{', '.join(symbols[:_SYMBOLS_NAMED])} and {more} more"


def _days(lines: Iterable[Line]) -> list[Day]:
    """The days, the newest first; a validation counts until all its series are validated again in the same store."""
    newest = sorted(lines, key=lambda each: (each.day, each.read_at, each.page), reverse=True)
    found = []
    for day, group in groupby(newest, key=lambda each: each.day):
        seen: dict[Store, set[tuple[str, str]]] = {store: set() for store in Store}
        of_day = Day(day, [])
        for line in group:
            counts = not line.series <= seen[line.store]
            (of_day.current if counts else of_day.replaced).append(line)
            seen[line.store] |= line.series
        of_day.current.sort(key=lambda each: each.rank)
        found.append(of_day)
    return found


def _opened(days: list[Day], rows: int = 0) -> list[Day]:
    """The same, the first of them open: as many as leave the page short, after `rows` above them."""
    for day in days:
        rows += len(day.current)
        day.is_open = rows <= OPEN_ROWS
    return days


class _Numbers:
    """Symbols as the numbers by which the script of a page knows them."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers

    def __call__(self, symbols: Collection[str]) -> str:
        if symbols and len(symbols) == len(self._numbers):
            return "*"
        return " ".join(str(number) for number in sorted(self._numbers[symbol] for symbol in symbols))


def _levels(counts: Mapping[Severity, int]) -> Iterator[tuple[str, str]]:
    """The level and the words of what failed, worst first: ("error", "2 errors")."""
    for severity, level in LEVELS.items():
        number = counts[severity]
        if number:
            yield level, f"{number} {level}{'' if number == 1 else 's'}"


def _counted(results: Iterable[_Result]) -> dict[Severity, int]:
    """Expectations by severity."""
    found = [each.expectation_config.severity for each in results]
    return {severity: found.count(severity) for severity in Severity}


def _rendered(template: str, **values: Any) -> bytes:
    environment, script, policy = _templates()
    page = environment.get_template(template).render(
        **values, script=script, policy=policy, levels=_levels, counted=_counted, LEVELS=LEVELS
    )
    return str(page).encode()


@cache
def _templates() -> tuple[Any, str, str]:
    """The templates, the script of the pages that list, and the policy that allows it and nothing else."""
    import jinja2
    import markupsafe

    folder = Path(__file__).parent / "pages"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (folder / "filter.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return environment, markupsafe.Markup(script), markupsafe.Markup(policy)  # noqa: S704  # both are ours
