"""Candle lengths: their names here, OKX's code for them, and when a candle opens, closes and is due.

All times are Unix milliseconds UTC; every candle opens on a UTC boundary. Nothing here knows an instrument or a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from okx_pipeline.errors import UsageError

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
WEEK_MS: Final = 7 * DAY_MS

GRACE_MS: Final = 60 * SECOND_MS
"""A candle is due this long after it closes: OKX may confirm it some seconds late."""

_FIRST_MONDAY_MS: Final = 4 * DAY_MS
"""1970-01-05, the first Monday of Unix time; weeks open on Mondays."""


@dataclass(frozen=True, slots=True, order=True)
class Timeframe:
    """A candle length.

    Parameters
    ----------
    length_ms
        Length in milliseconds; of a month, that of the shortest one, which orders it among the others.
    name
        Our name of it, used in commands, tables, paths and partitions.
    bar
        OKX's code, used in requests and channels only.
    """

    length_ms: int
    name: str
    bar: str

    def __str__(self) -> str:
        return self.name

    @property
    def is_month(self) -> bool:
        """Whether its candles are calendar months, the only ones of unequal length."""
        return self.name == "1mo"

    def open_at(self, ms: int) -> int:
        """Open time of the candle in which the moment `ms` lies."""
        if self.is_month:
            moment = datetime.fromtimestamp(ms // 1000, tz=UTC)
            return day_ms(date(moment.year, moment.month, 1))
        anchor = _FIRST_MONDAY_MS if self.length_ms == WEEK_MS else 0
        return ms - (ms - anchor) % self.length_ms

    def close_of(self, open_ms: int) -> int:
        """Close time of the candle that opens at `open_ms`, which is the open time of the next one."""
        if self.is_month:
            moment = datetime.fromtimestamp(open_ms // 1000, tz=UTC)
            return day_ms(_next_month(date(moment.year, moment.month, 1)))
        return open_ms + self.length_ms

    def due_of(self, open_ms: int) -> int:
        """When the candle that opens at `open_ms` ought to be in the store."""
        return self.close_of(open_ms) + GRACE_MS

    def is_boundary(self, ms: int) -> bool:
        """Whether a candle opens at exactly `ms`."""
        return self.open_at(ms) == ms

    def first_open(self, from_ms: int) -> int:
        """The first open time at or after `from_ms`."""
        open_ms = self.open_at(from_ms)
        return open_ms if open_ms == from_ms else self.close_of(open_ms)

    def step(self, open_ms: int, candles: int) -> int:
        """Open time of the candle `candles` after (before, if negative) the one that opens at `open_ms`."""
        if not self.is_month:
            return open_ms + candles * self.length_ms
        moment = datetime.fromtimestamp(open_ms // 1000, tz=UTC)
        years, month = divmod(moment.year * 12 + moment.month - 1 + candles, 12)
        return day_ms(date(years, month + 1, 1))

    def opens(self, start_ms: int, end_ms: int) -> Iterator[int]:
        """Every open time in [start_ms, end_ms), ascending."""
        if not self.is_month:
            return iter(range(self.first_open(start_ms), end_ms, self.length_ms))
        return self._month_opens(start_ms, end_ms)

    def _month_opens(self, start_ms: int, end_ms: int) -> Iterator[int]:
        open_ms = self.first_open(start_ms)
        while open_ms < end_ms:
            yield open_ms
            open_ms = self.close_of(open_ms)

    def count(self, start_ms: int, end_ms: int) -> int:
        """How many candles open in [start_ms, end_ms)."""
        first = self.first_open(start_ms)
        if first >= end_ms:
            return 0
        if self.is_month:
            return sum(1 for _ in self._month_opens(first, end_ms))
        return (end_ms - first + self.length_ms - 1) // self.length_ms

    def closed_before(self, now_ms: int, *, grace_ms: int = 0) -> int:
        """Exclusive upper bound of the open times whose candle has closed `grace_ms` before `now_ms`."""
        return self.open_at(now_ms - grace_ms)


TIMEFRAMES: Final[tuple[Timeframe, ...]] = (
    Timeframe(MINUTE_MS, "1m", "1m"),
    Timeframe(3 * MINUTE_MS, "3m", "3m"),
    Timeframe(5 * MINUTE_MS, "5m", "5m"),
    Timeframe(15 * MINUTE_MS, "15m", "15m"),
    Timeframe(30 * MINUTE_MS, "30m", "30m"),
    Timeframe(HOUR_MS, "1h", "1H"),
    Timeframe(2 * HOUR_MS, "2h", "2H"),
    Timeframe(4 * HOUR_MS, "4h", "4H"),
    Timeframe(6 * HOUR_MS, "6h", "6Hutc"),
    Timeframe(12 * HOUR_MS, "12h", "12Hutc"),
    Timeframe(DAY_MS, "1d", "1Dutc"),
    Timeframe(WEEK_MS, "1w", "1Wutc"),
    Timeframe(28 * DAY_MS, "1mo", "1Mutc"),
)
"""Every length that is collected, shortest first."""

_BY_SPELLING: Final = {
    **{timeframe.name: timeframe for timeframe in TIMEFRAMES},
    **{timeframe.bar: timeframe for timeframe in TIMEFRAMES},
    "1M": TIMEFRAMES[-1],
}
_HONG_KONG: Final = {"6H": "6h", "12H": "12h", "1D": "1d", "1W": "1w"}


def parse_timeframe(text: str) -> Timeframe:
    """The timeframe a user wrote, in our spelling or OKX's.

    Raises
    ------
    UsageError
        For an unknown one, and for OKX's bars that open at Hong Kong midnight: naming the one that opens at UTC.
    """
    spelling = text.strip()
    found = _BY_SPELLING.get(spelling)
    if found is not None:
        return found
    if spelling in _HONG_KONG:
        name = _HONG_KONG[spelling]
        raise UsageError(
            f"timeframe {spelling!r} is OKX's candle that opens at Hong Kong midnight (16:00 UTC), which is not kept; "
            f"write {name!r} (OKX {_BY_SPELLING[name].bar}) for the one that opens at UTC midnight"
        )
    known = ", ".join(timeframe.name for timeframe in TIMEFRAMES)
    raise UsageError(f"unknown timeframe {spelling!r}; it is one of {known}")


def parse_timeframes(text: str) -> tuple[Timeframe, ...]:
    """The timeframes of a comma-separated list, shortest first, each once."""
    return tuple(sorted({parse_timeframe(part) for part in text.split(",") if part.strip()}))


def day_ms(day: date) -> int:
    """Unix milliseconds of the UTC midnight with which `day` begins."""
    return (day.toordinal() - _EPOCH_ORDINAL) * DAY_MS


def day_of(ms: int) -> date:
    """The UTC day in which the moment `ms` lies."""
    return date.fromordinal(ms // DAY_MS + _EPOCH_ORDINAL)


def month_of(ms: int) -> date:
    """The first day of the UTC month in which the moment `ms` lies."""
    return day_of(ms).replace(day=1)


def month_bounds(month: date) -> tuple[int, int]:
    """The month of which `month` is a day, as [start, end) in milliseconds."""
    first = month.replace(day=1)
    return day_ms(first), day_ms(_next_month(first))


def utc(ms: int) -> datetime:
    """The moment `ms` as an aware UTC datetime, exact to the millisecond."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def iso(ms: int) -> str:
    """The moment `ms` as a user writes it, ``2026-08-22T00:00Z``; with seconds and milliseconds where it has some.

    A number that no calendar has stays a number.
    """
    try:
        moment = utc(ms).replace(tzinfo=None)
    except OverflowError:
        return f"{ms:d} ms"
    exactness = "milliseconds" if ms % SECOND_MS else "seconds" if ms % MINUTE_MS else "minutes"
    return f"{moment.isoformat(timespec=exactness)}Z"


def _next_month(first: date) -> date:
    return first.replace(year=first.year + 1, month=1) if first.month == 12 else first.replace(month=first.month + 1)


_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
