"""What a report says in words, the same on its page and in its Markdown: never better than what the store knows."""

from typing import TYPE_CHECKING, Final, NamedTuple

from okx_pipeline.storage.quality_results import Severity
from okx_pipeline.storage.stream_status import SidecarStatus
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS, utc

if TYPE_CHECKING:
    from okx_pipeline.reports.daily import DailyReport

LEVELS: Final = {Severity.CRITICAL: "error", Severity.WARNING: "warning", Severity.INFO: "info"}
"""How people read a severity."""

_COUNTED: Final = {
    "frames": "frames received over WebSocket",
    "confirmed": "confirmed candles received over WebSocket",
    "inserted": "candles landed",
    "corrected": "candles corrected",
    "duplicate rows": "confirmed candles received again, unchanged",
    "old unconfirmed rows": "unconfirmed rows received late and left out",
    "requests": "REST requests to catch up",
    "caught up": "candles fetched over REST to catch up",
    "landing took ms": "ms from a frame to its commit, at the longest",
    "parquet files": "Parquet files written",
    "alerts sent": "alerts sent",
    "pings": "pings sent to the dead man's switch",
}
"""What a sidecar counts that is as it should be, in words with their unit; anything else is a problem, by its name."""


class Said(NamedTuple):
    """A part of a headline: `good`, `warn`, `bad`, `unjudged` or plain, and the words."""

    tone: str
    words: str


def headline(report: "DailyReport") -> list[Said]:
    """What is there of the day and what the checks say, the worst of each."""
    due = "" if report.is_over else " of those due so far"
    said = [Said("", f"{report.present:,} of {report.expected:,} candles held{due}")]
    if not report.expected:
        said.append(Said("warn", "no candle of this day is due"))
    elif report.missing:
        said += _missing(report)
    else:
        said.append(Said("good", "none missing") if report.is_over else Said("", "none missing so far"))
    if report.absent:
        said.append(Said("", f"{report.absent:,} that OKX does not serve"))
    if report.quarantined:
        said.append(Said("warn", f"{report.quarantined:,} in quarantine"))
    said += _judged(report)
    said.append(Said("", _number(len(report.corrections), "correction")))
    return said


def unfinished(report: "DailyReport") -> list[str]:
    """Why the report is not the last word on the day, and how much of the day is there; nothing if it is."""
    said = []
    if not report.passed_ms:
        said.append(f"This day had not begun when the report was made ({_at(report)} by OKX's clock).")
    elif not report.is_over:
        hours, minutes = report.passed_ms // HOUR_MS, report.passed_ms % HOUR_MS // MINUTE_MS
        share = report.passed_ms / DAY_MS
        said.append(
            f"This day was still under way when the report was made: {hours} h {minutes} min of it had passed "
            f"({share:.0%}, {_at(report)} by OKX's clock), and {report.present:,} of the {report.whole_day:,} candles "
            "of a whole day are here."
        )
    else:
        open_ = [f"{each.symbol} {each.timeframe}" for each in report.coverage if each.content_hash is None]
        if open_:
            said.append(f"Not complete yet, as their last candle is not due or not counted: {_list(open_)}.")
    return said


def verdicts(report: "DailyReport") -> list[str]:
    """What the checks say, and what they say nothing of."""
    said = []
    if report.verdicts:
        passed = len(report.verdicts) - len(report.failed)
        kinds = [f"{passed:,} passed"]
        kinds += [_number(report.errors, "error")] if report.errors else []
        kinds += [_number(report.warnings, "warning")] if report.warnings else []
        said.append(f"{_number(len(report.verdicts), 'verdict')}: {', '.join(kinds)}.")
    if report.unjudged:
        why = "" if report.is_over else "; a day is judged once it is over"
        said.append(f"Not judged: {_list([' '.join(key) for key in report.unjudged])}{why}.")
    elif not report.verdicts:
        said.append("Not judged: nothing of this day is held or wanted.")
    if report.outdated:
        changed = _list([" ".join(key) for key in report.outdated])
        said.append(f"Changed since they were judged, and not judged again yet: {changed}.")
    if report.checks_unjudged:
        said.append(f"{_number(report.checks_unjudged, 'check')} not judged: they had nothing to look at.")
    return said


def counters(sidecar: SidecarStatus | None) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Counts of a sidecar since it started, as (number, words with their unit): those that are fine, and problems."""
    if sidecar is None:
        return [], []
    numbers = {name: number for name, number in sidecar.counters.items() if isinstance(number, int) and number}
    good = [(f"{numbers[name]:,}", words) for name, words in _COUNTED.items() if name in numbers]
    bad = [
        (f"{number:,}", f"{'time' if number == 1 else 'times'}: {name}")
        for name, number in sorted(numbers.items())
        if name not in _COUNTED
    ]
    return good, bad


def coins(symbol: str) -> tuple[str, str]:
    """The coins in which the volumes of a symbol are: `volume_currency`, and `volume_quote`."""
    base, _, rest = symbol.partition("-")
    quote, derived, _ = rest.partition("-")
    return base if derived else quote, quote


def _missing(report: "DailyReport") -> list[Said]:
    known = report.missing - report.fetching
    said = [Said("bad", f"{known:,} missing")] if known else []
    if report.fetching:
        said.append(Said("warn", f"{report.fetching:,} still to be fetched"))
    return said


def _judged(report: "DailyReport") -> list[Said]:
    said = []
    if report.errors:
        said.append(Said("bad", _number(report.errors, "error")))
    if report.warnings:
        said.append(Said("warn", _number(report.warnings, "warning")))
    if report.unjudged and report.verdicts:
        said.append(Said("unjudged", f"{len(report.unjudged):,} of {len(report.coverage):,} series not judged"))
    elif not report.verdicts:
        said.append(Said("unjudged", "not judged"))
    if report.outdated:
        said.append(Said("unjudged", f"{len(report.outdated):,} series not judged since they changed"))
    if report.verdicts and not report.failed:
        tone = "" if said else "good"
        said.append(Said(tone, f"{_number(len(report.verdicts), 'verdict')}, all passed"))
    return said


def _at(report: "DailyReport") -> str:
    return f"{utc(report.now_ms):%Y-%m-%d %H:%M} UTC"


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _list(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
