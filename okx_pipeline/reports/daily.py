"""The report of a UTC day: coverage, quality, corrections, stream and market, as one page and as Markdown.

The page is self-contained: no script, nothing loaded, pictures drawn in it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from okx_pipeline.quality.calendar import calendar_svg
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import DayCoverage, day_coverage
from okx_pipeline.storage.daily_figures import Arrival, Correction, Market, arrivals, corrections, markets
from okx_pipeline.storage.database import StorageError, translated
from okx_pipeline.storage.quality_results import Verdict, latest
from okx_pipeline.storage.stream_status import SidecarStatus, sidecar_status
from okx_pipeline.timeframes import parse_timeframe, utc

CALENDAR_DAYS: Final = 60
LINE_WIDTH: Final = 240
LINE_HEIGHT: Final = 40


@dataclass(frozen=True, slots=True)
class DailyReport:
    """A day as its report tells it."""

    day: date
    coverage: list[DayCoverage]
    calendar: list[DayCoverage]
    verdicts: list[Verdict]
    corrections: list[Correction]
    arrivals: list[Arrival]
    markets: list[Market]
    sidecar: SidecarStatus | None
    made_at: datetime

    @property
    def expected(self) -> int:
        """Candles expected, over all series."""
        return sum(each.expected for each in self.coverage)

    @property
    def present(self) -> int:
        """Candles held."""
        return sum(each.present for each in self.coverage)

    @property
    def missing(self) -> int:
        """Candles missing."""
        return sum(each.missing for each in self.coverage)

    @property
    def absent(self) -> int:
        """Candles that OKX does not serve."""
        return sum(each.absent for each in self.coverage)

    @property
    def failed(self) -> list[Verdict]:
        """Verdicts that did not pass, errors first."""
        return sorted((each for each in self.verdicts if not each.passed), key=lambda each: not each.is_error)

    @property
    def errors(self) -> int:
        """Checks that failed at the level of an error."""
        return sum(each.is_error for each in self.verdicts)


def read_report(store: CandleStore, day: date, symbols: Sequence[str]) -> DailyReport:
    """Everything the report of `day` tells, of `symbols`.

    Raises
    ------
    StorageError
        If the database is out of reach.
    """
    first = day - timedelta(days=CALENDAR_DAYS - 1)
    with translated(store.place):
        connection = store.connection
        rows = [each for symbol in symbols for each in day_coverage(connection, symbol, first, day + timedelta(days=1))]
        coverage = [each for each in rows if each.day == day and each.expected]
        coverage.sort(key=lambda each: (each.symbol, parse_timeframe(each.timeframe)))
        series = [(each.symbol, each.timeframe) for each in coverage]
        shortest: dict[str, str] = {}
        for symbol, timeframe in series:
            shortest.setdefault(symbol, timeframe)
        return DailyReport(
            day=day,
            coverage=coverage,
            calendar=rows,
            verdicts=latest(connection, start=day, end=day + timedelta(days=1)),
            corrections=corrections(connection, day),
            arrivals=arrivals(connection, day, series),
            markets=markets(connection, day, list(shortest.items())),
            sidecar=sidecar_status(connection),
            made_at=datetime.now(tz=UTC),
        )


def page_of(report: DailyReport) -> str:
    """The report as one page of HTML that loads nothing."""
    first = report.day - timedelta(days=CALENDAR_DAYS - 1)
    return _rendered(
        "day.html.j2",
        report=report,
        calendar=calendar_svg(report.calendar, first, report.day),
        line=line_svg,
        moment=utc,
    )


def markdown_of(report: DailyReport) -> str:
    """The report as Markdown."""
    return _rendered("day.md.j2", report=report, moment=utc)


def write_report(folder: Path, report: DailyReport) -> Path:
    """Write the page and the Markdown of a report into `folder`, in place of those that are there; returns the page.

    Raises
    ------
    StorageError
        If the folder cannot be written to.
    """
    page = folder / f"{report.day}.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in ((page, page_of(report)), (page.with_suffix(".md"), markdown_of(report))):
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        days = sorted((each.stem for each in folder.glob("????-??-??.html")), reverse=True)
        beside = folder / f".index.html.{os.getpid()}"
        beside.write_text(_rendered("index.html.j2", days=days), encoding="utf-8")
        beside.replace(folder / "index.html")
    except OSError as problem:
        raise StorageError(f"the reports in {folder} cannot be written: {problem.strerror or problem}") from problem
    return page


def line_svg(prices: Sequence[float]) -> str:
    """Prices as a line, from the lowest to the highest of them; an SVG of fixed size."""
    low, high = min(prices), max(prices)
    across, up = max(1, len(prices) - 1), (high - low) or 1.0
    points = " ".join(
        f"{index * LINE_WIDTH / across:.1f},{(LINE_HEIGHT - 2) * (1 - (price - low) / up) + 1:.1f}"
        for index, price in enumerate(prices)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LINE_WIDTH}" height="{LINE_HEIGHT}" role="img">'
        f'<polyline points="{points}" fill="none" stroke="#2e9e5b" stroke-width="1.5"/></svg>'
    )


def _rendered(template: str, **values: Any) -> str:
    return str(_templates().get_template(template).render(**values))


@cache
def _templates() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
