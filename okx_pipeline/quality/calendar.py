"""The ledger and the verdicts as pictures: days by series, days by check."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from html import escape
from itertools import groupby
from typing import Final

from okx_pipeline.storage.coverage import DayCoverage
from okx_pipeline.storage.quality_results import DayVerdicts
from okx_pipeline.timeframes import parse_timeframe

# Ninety days are 940 wide. Dagster shows a picture in a dialog of four fifths of the window, 984 inside at 1280, and
# the newest days are at the right, where a wider picture would be cut off.
_CELL: Final = 7
_GAP: Final = 2
_LABEL: Final = 130
_DATES: Final = 130
_HEAD: Final = 16
_LETTER: Final = 5.6
"""Width of a letter, at the most on average: DejaVu Sans at 9 px."""
_LINE: Final = 14

STATES: Final = {
    "complete": ("#2e9e5b", "complete"),
    "absent": ("#8aa4d6", "complete but for what OKX does not serve"),
    "quarantined": ("#e0a030", "some of it in quarantine"),
    "missing": ("#d64545", "something is missing"),
    "open": ("#c9cdd3", "under way, or still to be fetched"),
}
_COUNTED: Final = {
    "complete": "complete",
    "absent": "with candles that OKX does not serve",
    "quarantined": "with candles in quarantine",
    "missing": "with gaps",
    "open": "unfinished",
}
_UNJUDGED: Final = "not judged"


@dataclass(frozen=True, slots=True)
class Run:
    """Days in a row that are in one state.

    Parameters
    ----------
    offset, days
        Where it begins, in days from the first of the calendar, and how long it is.
    state
        One of `STATES`.
    title
        The days and the state in words.
    """

    offset: int
    days: int
    state: str
    title: str


@dataclass(frozen=True, slots=True)
class Strip:
    """The days of a series in a calendar; days of which nothing is expected are in no run."""

    symbol: str
    timeframe: str
    runs: list[Run]

    @property
    def summary(self) -> str:
        """How many days are in which state, in words."""
        counts = {state: sum(run.days for run in self.runs if run.state == state) for state in STATES}
        found = [f"{number} {_COUNTED[state]}" for state, number in counts.items() if number]
        return ", ".join(found) or "nothing expected"


def state_of(day: DayCoverage) -> str:
    """Which of `STATES` a day is in."""
    if day.missing:
        # History that is still to be fetched is no gap.
        return "missing" if day.read_at is not None else "open"
    if day.quarantined:
        return "quarantined"
    if day.content_hash is None:
        return "open"
    return "absent" if day.absent else "complete"


def strips(days: Iterable[DayCoverage], first: date, last: date) -> list[Strip]:
    """The days from `first` to `last` of each series, by symbol and length of candle."""
    return [
        Strip(*key, [_run(list(group), first) for _, group in groupby(enumerate(of_series), key=_in_a_row)])
        for key, of_series in _by_series(days, first, last).items()
    ]


def calendar_svg(days: Iterable[DayCoverage], first: date, last: date) -> str:
    """An SVG picture of the days from `first` to `last`, a row per series.

    A day without a row in the ledger is left white; weeks and months stand in the day they open on.
    """
    by_series = _by_series(days, first, last)
    columns = (last - first).days + 1
    step = _CELL + _GAP
    label = max([_LABEL, *(int(_LETTER * len(" ".join(key))) + _GAP for key in by_series)])
    width, foot = label + columns * step, _HEAD + len(by_series) * step + 12
    legend, height = _legend(STATES, foot, max(width, _LABEL + columns * step))
    parts = [_opening(width, height)]
    for offset in range(columns):
        date_of = first + timedelta(days=offset)
        if date_of.day == 1 or not offset:
            parts.append(f'<text x="{label + offset * step}" y="10">{date_of:%b %Y}</text>')
    for number, (key, of_series) in enumerate(by_series.items()):
        top = _HEAD + number * step
        parts.append(f'<text x="0" y="{top + _CELL - 1}">{escape(" ".join(key))}</text>')
        parts += [_cell(each, label + (each.day - first).days * step, top) for each in of_series]
    return "".join([*parts, *legend]) + "</svg>"


def verdicts_svg(days: Iterable[DayVerdicts], unjudged: Mapping[date, int]) -> str:
    """An SVG picture of verdicts, a row per check and a column per day: passed, warned of, failed.

    Parameters
    ----------
    unjudged
        Series that are not judged as they are now, by day; such days are marked in a row of their own.
    """
    judged = list(days)
    dates = sorted({each.day for each in judged} | {day for day, series in unjudged.items() if series})
    checks = sorted({each.check for each in judged})
    rows = [*checks, _UNJUDGED]
    step = _CELL + _GAP
    width = _LABEL + max(_DATES, len(dates) * step)
    meanings = {
        "complete": (STATES["complete"][0], "passed"),
        "quarantined": (STATES["quarantined"][0], "warning"),
        "missing": (STATES["missing"][0], "error"),
        "open": (STATES["open"][0], _UNJUDGED),
    }
    legend, height = _legend(meanings, _HEAD + len(rows) * step + 12, width)
    parts = [_opening(width, height)]
    if dates:
        parts.append(f'<text x="{_LABEL}" y="10">{dates[0]} to {dates[-1]}</text>')
    parts += [
        f'<text x="0" y="{_HEAD + row * step + _CELL - 1}">{escape(name)}</text>' for row, name in enumerate(rows)
    ]
    columns = {day: _LABEL + number * step for number, day in enumerate(dates)}
    for each in judged:
        state = "missing" if each.errors else "quarantined" if each.warnings else "complete"
        top = _HEAD + checks.index(each.check) * step
        title = escape(f"{each.day} {each.check}: {each.series} series, {each.warnings} warnings, {each.errors} errors")
        parts.append(_square(columns[each.day], top, STATES[state][0], title))
    for day, series in unjudged.items():
        if series:
            title = f"{day}: {series} series not judged"
            parts.append(_square(columns[day], _HEAD + len(checks) * step, STATES["open"][0], title))
    return "".join([*parts, *legend]) + "</svg>"


def _by_series(days: Iterable[DayCoverage], first: date, last: date) -> dict[tuple[str, str], list[DayCoverage]]:
    """The days of each series of which something is expected, in order."""
    found: dict[tuple[str, str], list[DayCoverage]] = {}
    for day in sorted(days, key=lambda each: each.day):
        if first <= day.day <= last and day.expected:
            found.setdefault((day.symbol, day.timeframe), []).append(day)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], parse_timeframe(item[0][1]))))


def _in_a_row(numbered: tuple[int, DayCoverage]) -> tuple[str, int]:
    """What days of one run have in common: their state, and that they follow one another; a gap has its own run."""
    number, day = numbered
    state = state_of(day)
    return state, -day.day.toordinal() if state == "missing" else day.day.toordinal() - number


def _run(numbered: list[tuple[int, DayCoverage]], first: date) -> Run:
    days = [day for _, day in numbered]
    state = state_of(days[0])
    when = f"{days[0].day}" if len(days) == 1 else f"{days[0].day} to {days[-1].day}"
    held, expected = sum(each.present for each in days), sum(each.expected for each in days)
    title = f"{when}: {held:,} of {expected:,} candles, {STATES[state][1]}"
    return Run((days[0].day - first).days, len(days), state, title)


def _legend(states: Mapping[str, tuple[str, str]], top: int, width: int) -> tuple[list[str], int]:
    """The legend from `top` on, in as many lines as it takes to stay within `width`; and where the picture ends."""
    parts = []
    left = _LABEL
    for colour, meaning in states.values():
        takes = int(_CELL + _GAP + 2 + _LETTER * len(meaning)) + 12
        if left > _LABEL and left + takes > width:
            left, top = _LABEL, top + _LINE
        parts.append(f'<rect x="{left}" y="{top - 8}" width="{_CELL}" height="{_CELL}" fill="{colour}"/>')
        parts.append(f'<text x="{left + _CELL + _GAP + 2}" y="{top}">{meaning}</text>')
        left += takes
    return parts, top + 10


def _opening(width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="9" fill="#777">'
    )


def _cell(day: DayCoverage, left: int, top: int) -> str:
    colour, meaning = STATES[state_of(day)]
    title = escape(f"{day.day} {day.symbol} {day.timeframe}: {day.present} of {day.expected}, {meaning}")
    return _square(left, top, colour, title)


def _square(left: int, top: int, colour: str, title: str) -> str:
    shape = f'x="{left}" y="{top}" width="{_CELL}" height="{_CELL}" rx="1" fill="{colour}"'
    return f"<rect {shape}><title>{title}</title></rect>"
