"""The ledger and the verdicts as pictures: days by series, days by check."""

from collections.abc import Iterable
from datetime import date, timedelta
from html import escape
from typing import Final

from okx_pipeline.storage.coverage import DayCoverage
from okx_pipeline.storage.quality_results import DayVerdicts
from okx_pipeline.timeframes import parse_timeframe

# Ninety days are 940 wide: Dagster shows a picture in a dialog of four fifths of the window, 984 inside at 1280, and
# what does not fit is out of sight to the right, where the newest days are.
_CELL: Final = 7
_GAP: Final = 2
_LABEL: Final = 130
_DATES: Final = 130
_HEAD: Final = 16
_FOOT: Final = 22

STATES: Final = {
    "complete": ("#2e9e5b", "complete"),
    "absent": ("#8aa4d6", "complete but for what OKX does not serve"),
    "quarantined": ("#e0a030", "some of it in quarantine"),
    "missing": ("#d64545", "something is missing"),
    "open": ("#c9cdd3", "under way, or still to be read"),
}


def state_of(day: DayCoverage) -> str:
    """Which of `STATES` a day is in."""
    if day.missing:
        # History that is still to be read is on its way.
        return "missing" if day.read_at is not None else "open"
    if day.quarantined:
        return "quarantined"
    if day.content_hash is None:
        return "open"
    return "absent" if day.absent else "complete"


def calendar_svg(days: Iterable[DayCoverage], first: date, last: date) -> str:
    """An SVG picture of the days from `first` to `last`, a row per series.

    A day without a row in the ledger is left white; weeks and months stand in the day they open on.
    """
    by_series: dict[tuple[str, str], list[DayCoverage]] = {}
    for day in days:
        if first <= day.day <= last and day.expected:
            by_series.setdefault((day.symbol, day.timeframe), []).append(day)
    series = sorted(by_series, key=lambda each: (each[0], parse_timeframe(each[1])))
    columns = (last - first).days + 1
    step = _CELL + _GAP
    width, height = _LABEL + columns * step, _HEAD + len(series) * step + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="9" fill="#666">'
    ]
    for offset in range(columns):
        date_of = first + timedelta(days=offset)
        if date_of.day == 1 or not offset:
            parts.append(f'<text x="{_LABEL + offset * step}" y="10">{date_of:%b %Y}</text>')
    for number, key in enumerate(series):
        top = _HEAD + number * step
        parts.append(f'<text x="0" y="{top + _CELL - 1}">{escape(" ".join(key))}</text>')
        parts += [_cell(each, _LABEL + (each.day - first).days * step, top) for each in by_series[key]]
    left, foot = _LABEL, _HEAD + len(series) * step + 12
    for colour, meaning in STATES.values():
        parts.append(f'<rect x="{left}" y="{foot - 8}" width="{_CELL}" height="{_CELL}" fill="{colour}"/>')
        parts.append(f'<text x="{left + step + 2}" y="{foot}">{meaning}</text>')
        left += step + 12 + 5 * len(meaning)
    return "".join(parts) + "</svg>"


def verdicts_svg(days: Iterable[DayVerdicts]) -> str:
    """An SVG picture of verdicts, a row per check and a column per day judged: passed, warned of, failed."""
    judged = list(days)
    dates = sorted({each.day for each in judged})
    checks = sorted({each.check for each in judged})
    step = _CELL + _GAP
    width, height = _LABEL + max(_DATES, len(dates) * step), _HEAD + len(checks) * step
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="9" fill="#666">'
    ]
    if dates:
        parts.append(f'<text x="{_LABEL}" y="10">{dates[0]} to {dates[-1]}</text>')
    parts += [
        f'<text x="0" y="{_HEAD + row * step + _CELL - 1}">{escape(check)}</text>' for row, check in enumerate(checks)
    ]
    for each in judged:
        state = "missing" if each.errors else "quarantined" if each.warnings else "complete"
        left, top = _LABEL + dates.index(each.day) * step, _HEAD + checks.index(each.check) * step
        title = escape(f"{each.day} {each.check}: {each.series} series, {each.warnings} warned, {each.errors} failed")
        parts.append(_square(left, top, STATES[state][0], title))
    return "".join(parts) + "</svg>"


def _cell(day: DayCoverage, left: int, top: int) -> str:
    colour, meaning = STATES[state_of(day)]
    title = escape(f"{day.day} {day.symbol} {day.timeframe}: {day.present} of {day.expected}, {meaning}")
    return _square(left, top, colour, title)


def _square(left: int, top: int, colour: str, title: str) -> str:
    shape = f'x="{left}" y="{top}" width="{_CELL}" height="{_CELL}" rx="1" fill="{colour}"'
    return f"<rect {shape}><title>{title}</title></rect>"
