"""Gap detection: which candles of a series are expected and not held, read from the rows themselves.

Expected is what closed a minute ago or earlier by the exchange's clock, within what is wanted and while the instrument
was listed. Stretches of a hundred candles or so are counted first, in one pass over the key, and only one that is short
is looked into; so the time grows with the range, not with the table. Nothing here asks the exchange: that is `repair`'s
work.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final, Self

from okx_pipeline.errors import UsageError
from okx_pipeline.history.plan import days_and_their_closes
from okx_pipeline.ranges import Range, candles_in, difference, intersection, runs, union
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import DayCoverage, due, wanted_range
from okx_pipeline.storage.instruments import Life, lives
from okx_pipeline.storage.subscriptions import Subscription, every_subscription
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, parse_timeframe

STRETCH: Final = 128
"""Candles counted together: with a hole in every 2,000 candles, 6 % of the keys are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be looked at; where nothing is named, what is subscribed.

    Parameters
    ----------
    start, end
        UTC days [start, end). Without a start, since when each series is subscribed; without an end, until now.
    """

    symbols: Sequence[str] = ()
    timeframes: Sequence[Timeframe] = ()
    start: date | None = None
    end: date | None = None


@dataclass(frozen=True, slots=True)
class SeriesRange:
    """The candles of a series that are expected by now, and can be looked for."""

    symbol: str
    timeframe: Timeframe
    range: Range


@dataclass(frozen=True, slots=True)
class Findings:
    """What a look at a series' rows found.

    Parameters
    ----------
    checked
        Candles expected: present + quarantined + absent + missing.
    missing
        Candles of which nothing is known, as ranges.
    absent
        Those that OKX is proven not to serve.
    """

    series: SeriesRange
    checked: int
    quarantined: int
    missing: list[Range] = field(default_factory=list)
    absent: list[Range] = field(default_factory=list)

    @property
    def missing_candles(self) -> int:
        """How many candles are missing."""
        return candles_in(self.series.timeframe, self.missing)

    @property
    def absent_candles(self) -> int:
        """How many candles are proven absent."""
        return candles_in(self.series.timeframe, self.absent)

    @property
    def present(self) -> int:
        """How many candles are held."""
        return self.checked - self.quarantined - self.missing_candles - self.absent_candles


@dataclass(frozen=True, slots=True)
class Expectations:
    """Which candles ought to be there: what is subscribed, and when each instrument is or was listed."""

    subscriptions: Mapping[tuple[str, Timeframe], Subscription]
    lives: Mapping[str, Life]
    now_ms: int

    @classmethod
    def read(cls, store: CandleStore, now_ms: int) -> Self:
        """The expectations of a store at `now_ms`, the exchange's time."""
        subscribed = {(each.symbol, each.timeframe): each for each in every_subscription(store.connection)}
        return cls(subscribed, lives(store.connection), now_ms)

    def of(self, wanted: Wanted) -> list[SeriesRange]:
        """What is expected of every series that is wanted.

        A series that was never subscribed is looked at over the days named.

        Raises
        ------
        UsageError
            If such a series is named and no start.
        """
        found = []
        for symbol, timeframe in self._series(wanted):
            subscription = self.subscriptions.get((symbol, timeframe))
            start_ms = 0 if wanted.start is None else day_ms(wanted.start)
            end_ms = self.now_ms if wanted.end is None else day_ms(wanted.end)
            if wanted.start is not None and (subscription is None or start_ms < subscription.since_ms):
                subscription = None  # who names a day means it
            elif subscription is None:
                raise UsageError(f"{symbol} {timeframe} was never subscribed; say from when with --start")
            whole = wanted_range(timeframe, start_ms, max(start_ms, end_ms), subscription, self.lives.get(symbol))
            found.append(SeriesRange(symbol, timeframe, due(timeframe, whole, self.now_ms)))
        return found

    def on(self, symbol: str, timeframe: Timeframe, days: Iterable[date]) -> list[SeriesRange]:
        """What is expected of the candles that open on `days` or, if longer, close on them."""
        subscription = self.subscriptions.get((symbol, timeframe))
        found = []
        for span in days_and_their_closes(symbol, timeframe, days):
            whole = wanted_range(timeframe, span.start_ms, span.end_ms, subscription, self.lives.get(symbol))
            found.append(SeriesRange(symbol, timeframe, due(timeframe, whole, self.now_ms)))
        return found

    def of_day(self, symbol: str, timeframe: Timeframe, day: date) -> Range:
        """What is expected of a day once it is over; of a day that is not wanted, all of it."""
        start_ms, life = day_ms(day), self.lives.get(symbol)
        whole = wanted_range(timeframe, start_ms, start_ms + DAY_MS, self.subscriptions.get((symbol, timeframe)), life)
        if whole.start_ms < whole.end_ms:
            return whole
        return wanted_range(timeframe, start_ms, start_ms + DAY_MS, None, life)

    def _series(self, wanted: Wanted) -> list[tuple[str, Timeframe]]:
        live = {key for key, each in self.subscriptions.items() if each.until_ms is None}
        symbols = set(wanted.symbols) or {symbol for symbol, _ in live}
        return sorted(
            (symbol, timeframe)
            for symbol in symbols
            for timeframe in wanted.timeframes or self._timeframes(symbol, live)
        )

    def _timeframes(self, symbol: str, live: set[tuple[str, Timeframe]]) -> set[Timeframe]:
        """Those subscribed now; for a symbol of which none is, those that were."""
        found = {of for known, of in live if known == symbol}
        found = found or {of for known, of in self.subscriptions if known == symbol}
        if not found:
            raise UsageError(f"{symbol} was never subscribed; name what to look at with --timeframes and --start")
        return found


def look(store: CandleStore, series: SeriesRange) -> Findings:
    """What of a series is held, read from its rows, and what is known of the rest. Changes nothing.

    Raises
    ------
    StorageError
        If the database is out of reach, or the file of an archived month cannot be read.
    """
    symbol, timeframe, within = series.symbol, series.timeframe, series.range
    short = short_ranges(timeframe, within, store.rows_per_stretch(symbol, timeframe, STRETCH, *within))
    held = store.opens_in(symbol, timeframe, short)
    rest = [open_ms for piece in short for open_ms in timeframe.opens(*piece) if open_ms not in held]
    refused = store.quarantined(symbol, timeframe, *within).intersection(rest) if rest else set()
    lacking = runs(timeframe, (open_ms for open_ms in rest if open_ms not in refused))
    absent = store.absent(symbol, timeframe, within)
    return Findings(
        series,
        timeframe.count(*within),
        len(refused),
        missing=difference(lacking, absent),
        absent=intersection(lacking, absent),
    )


def short_ranges(timeframe: Timeframe, within: Range, rows: Mapping[int, int]) -> list[Range]:
    """The stretches of `within` that hold fewer candles than open in them, joined.

    Parameters
    ----------
    rows
        Candles held by stretch of `STRETCH` lengths of the timeframe, counted from 1970. The key being unique and on a
        boundary, a stretch with as many rows as candles open in it has every one.
    """
    stretch_ms = STRETCH * timeframe.length_ms
    short = []
    for number in range(within.start_ms // stretch_ms, -(-within.end_ms // stretch_ms)):
        held = rows.get(number, 0)
        if held == STRETCH:
            continue
        start_ms = max(number * stretch_ms, within.start_ms)
        part = Range(start_ms, min((number + 1) * stretch_ms, within.end_ms))
        if held < timeframe.count(*part):
            short.append(part)
    return union(short)


def detect(store: CandleStore, series: SeriesRange, now_ms: int) -> Findings:
    """Look at a series and put the outcome on record: new gaps, those that are repaired, and the ledger of their days.

    Raises
    ------
    StorageError
        See `look`.
    """
    findings = look(store, series)
    lacking = union(findings.missing, findings.absent)
    store.record_gaps(series.symbol, series.timeframe, series.range, lacking, now_ms)
    return findings


def agrees(store: CandleStore, expectations: Expectations, row: DayCoverage) -> bool:
    """Whether a row of the ledger says what the rows of its day say, counted here in another way than the ledger does.

    A day under way is held against the candles that were due when it was counted: its first so many.
    """
    timeframe = parse_timeframe(row.timeframe)
    expected = list(timeframe.opens(*expectations.of_day(row.symbol, timeframe, row.day)))[: row.expected]
    if not expected:
        return not row.expected
    seen = Range(expected[0], timeframe.close_of(expected[-1]))
    findings = look(store, SeriesRange(row.symbol, timeframe, seen))
    return (findings.present, findings.absent_candles, findings.quarantined, findings.missing_candles) == (
        row.present,
        row.absent,
        row.quarantined,
        row.missing,
    )
