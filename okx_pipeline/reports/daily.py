"""The report of a UTC day: coverage, quality, corrections, stream and market, as one page and as Markdown.

The page is self-contained: no script, nothing loaded, pictures drawn in it. What is said stands in `wording`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from okx_pipeline.quality.calendar import STATES, strips
from okx_pipeline.quality.suites import Check
from okx_pipeline.reports import wording
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import DayCoverage, day_coverage
from okx_pipeline.storage.daily_figures import Arrival, Correction, Market, arrivals, corrections, judged, markets
from okx_pipeline.storage.database import StorageError, translated
from okx_pipeline.storage.quality_results import Store, Verdict, latest
from okx_pipeline.storage.stream_status import SidecarStatus, sidecar_status
from okx_pipeline.timeframes import DAY_MS, GRACE_MS, day_ms, parse_timeframe, utc

CALENDAR_DAYS: Final = 60
LINE_WIDTH: Final = 240
LINE_HEIGHT: Final = 40


@dataclass(frozen=True, slots=True)
class DailyReport:
    """A day as its report tells it.

    Parameters
    ----------
    coverage
        The ledger's rows of the day, series whose first candle is not due yet included.
    calendar
        Those of the `CALENDAR_DAYS` days up to it.
    verdicts
        The latest on the day.
    judged
        Series that were judged, and whether they were judged as they are now.
    sidecar
        The sidecar that streams, or streamed last, when the report is made.
    made_at, now_ms
        When the report was made, by this machine's clock and the exchange's.
    """

    day: date
    coverage: list[DayCoverage]
    calendar: list[DayCoverage]
    verdicts: list[Verdict]
    judged: dict[tuple[str, str], bool]
    corrections: list[Correction]
    arrivals: list[Arrival]
    markets: list[Market]
    sidecar: SidecarStatus | None
    made_at: datetime
    now_ms: int

    @property
    def expected(self) -> int:
        """Candles expected, over all series: those that are due."""
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
    def fetching(self) -> int:
        """Missing candles of series that REST was not read for yet; a part of `missing`."""
        return sum(each.missing for each in self.coverage if each.read_at is None)

    @property
    def absent(self) -> int:
        """Candles that OKX does not serve."""
        return sum(each.absent for each in self.coverage)

    @property
    def quarantined(self) -> int:
        """Candles refused."""
        return sum(each.quarantined for each in self.coverage)

    @property
    def whole_day(self) -> int:
        """Candles of the series of the day once all of them are due."""
        start_ms = day_ms(self.day)
        return sum(
            max(each.expected, parse_timeframe(each.timeframe).count(start_ms, start_ms + DAY_MS))
            for each in self.coverage
        )

    @property
    def passed_ms(self) -> int:
        """How much of the day had passed by the exchange's clock."""
        return max(0, min(DAY_MS, self.now_ms - day_ms(self.day)))

    @property
    def is_over(self) -> bool:
        """Whether all candles that close within the day were due."""
        return self.now_ms >= day_ms(self.day) + DAY_MS + GRACE_MS

    @property
    def failed(self) -> list[Verdict]:
        """Verdicts that did not pass, errors first."""
        return sorted((each for each in self.verdicts if not each.passed), key=lambda each: not each.is_error)

    @property
    def errors(self) -> int:
        """Verdicts at the level of an error."""
        return sum(each.is_error for each in self.verdicts)

    @property
    def warnings(self) -> int:
        """Verdicts at the level of a warning."""
        return len(self.failed) - self.errors

    @property
    def unjudged(self) -> list[tuple[str, str]]:
        """Series of the day without any verdict."""
        known = {(each.symbol, each.timeframe) for each in self.verdicts}
        return [(each.symbol, each.timeframe) for each in self.coverage if (each.symbol, each.timeframe) not in known]

    @property
    def outdated(self) -> list[tuple[str, str]]:
        """Series that have changed since they were judged."""
        return [key for key, is_current in self.judged.items() if not is_current]

    @property
    def checks_unjudged(self) -> int:
        """Checks without a verdict on series that have others: they had nothing to look at."""
        series = {(each.symbol, each.timeframe, each.store) for each in self.verdicts}
        return len(series) * len(Check) - len(self.verdicts)


def read_report(store: CandleStore, day: date, symbols: Sequence[str]) -> DailyReport:
    """Everything the report of `day` tells, of `symbols`.

    Raises
    ------
    StorageError
        If the database is out of reach.
    """
    first = day - timedelta(days=CALENDAR_DAYS - 1)
    made_at = datetime.now(tz=UTC)
    with translated(store.place):
        connection = store.connection
        rows = [each for symbol in symbols for each in day_coverage(connection, symbol, first, day + timedelta(days=1))]
        coverage = [each for each in rows if each.day == day]
        coverage.sort(key=lambda each: (each.symbol, parse_timeframe(each.timeframe)))
        series = [(each.symbol, each.timeframe) for each in coverage]
        shortest: dict[str, str] = {}
        for symbol, timeframe in series:
            shortest.setdefault(symbol, timeframe)
        sidecar = sidecar_status(connection)
        return DailyReport(
            day=day,
            coverage=coverage,
            calendar=rows,
            verdicts=latest(connection, start=day, end=day + timedelta(days=1)),
            judged=judged(connection, day, series),
            corrections=corrections(connection, day),
            arrivals=arrivals(connection, day, series),
            markets=markets(connection, day, list(shortest.items())),
            sidecar=sidecar,
            made_at=made_at,
            now_ms=_now_ms(sidecar, made_at),
        )


def page_of(report: DailyReport) -> str:
    """The report as one page of HTML that loads nothing."""
    first = report.day - timedelta(days=CALENDAR_DAYS - 1)
    return _rendered(
        "day.html.j2",
        report=report,
        first=first,
        strips=strips(report.calendar, first, report.day),
        columns=CALENDAR_DAYS,
        states=STATES,
        line=line_svg,
        **_words(report),
    )


def markdown_of(report: DailyReport) -> str:
    """The report as Markdown."""
    return _rendered("day.md.j2", report=report, **_words(report))


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
            _replace(path, text)
        days = sorted((each.stem for each in folder.glob("????-??-??.html")), reverse=True)
        _replace(
            folder / "index.html", _rendered("index.html.j2", days=[{"day": day, "month": day[:7]} for day in days])
        )
    except OSError as problem:
        raise StorageError(f"the reports in {folder} cannot be written: {problem.strerror or problem}") from problem
    return page


def line_svg(market: Market) -> str:
    """The closes of a day as a line, from the lowest to the highest of them; an SVG of fixed size."""
    low, high = min(market.closes), max(market.closes)
    across, up = max(1, len(market.closes) - 1), (high - low) or 1.0
    points = " ".join(
        f"{index * LINE_WIDTH / across:.1f},{(LINE_HEIGHT - 2) * (1 - (price - low) / up) + 1:.1f}"
        for index, price in enumerate(market.closes)
    )
    return (
        f'<svg class="line {market.direction}" width="{LINE_WIDTH}" height="{LINE_HEIGHT}" role="img" '
        f'viewBox="0 0 {LINE_WIDTH} {LINE_HEIGHT}"><title>{market.direction}</title>'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def _now_ms(sidecar: SidecarStatus | None, made_at: datetime) -> int:
    """The exchange's time, carried on from the sidecar's last heartbeat; this machine's where it is not known."""
    if sidecar is None or sidecar.exchange_ms is None:
        return int(made_at.timestamp() * 1000)
    return sidecar.exchange_ms + int(sidecar.age_s * 1000)


def _words(report: DailyReport) -> dict[str, Any]:
    return {
        "headline": wording.headline(report),
        "unfinished": wording.unfinished(report),
        "verdicts": wording.verdicts(report),
        "counted": wording.counters(report.sidecar),
        "coins": wording.coins,
        "level": wording.LEVELS,
        "store_name": {Store.POSTGRES: "PostgreSQL", Store.PARQUET: "Parquet"},
        "moment": utc,
        "day_candles": lambda market: parse_timeframe(market.timeframe).count(
            day_ms(report.day), day_ms(report.day) + DAY_MS
        ),
    }


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


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
