"""Gap detection: which candles of a series are expected and not held, read from the rows themselves.

Expected is what closed a minute ago or earlier by the exchange's clock, within what is wanted and while the instrument
was listed. Stretches of a hundred candles or so are counted first, in one pass over the key, and only a short one is
looked into; so the time grows with the range, not with the table. Nothing here asks the exchange: that is `repair`'s
work.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Final, Literal, Self

from okx_pipeline.errors import UsageError
from okx_pipeline.history.plan import days_and_their_closes
from okx_pipeline.ranges import Range, candles_in, difference, intersection, runs, union
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import DayCoverage, due, possible, unwanted
from okx_pipeline.storage.instruments import Life, lives
from okx_pipeline.storage.wanted import NOTHING, Wants, nothing_in_scope, series_in_scope, wants
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, parse_timeframe

STRETCH: Final = 128
"""Candles counted together: with a hole in every 2,000 candles, 6 % of the keys are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks to look at; where nothing is named, everything that is subscribed or wanted.

    Parameters
    ----------
    start, end
        UTC days [start, end). Without a start, all that is wanted of each series; without an end, until now.
    """

    symbols: Sequence[str] = ()
    timeframes: Sequence[Timeframe] = ()
    start: date | None = None
    end: date | None = None


@dataclass(frozen=True, slots=True)
class SeriesRange:
    """The candles of a series that are expected by now, and can be looked for.

    Parameters
    ----------
    kind
        ``wanted``: the ledger expects them. ``named``: nobody wants them, and somebody named their days; what is
        missing of them is not put on record. ``held``: nobody wants them, and those that are held are expected.
    """

    symbol: str
    timeframe: Timeframe
    range: Range
    kind: Literal["wanted", "named", "held"] = "wanted"


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
    """Which candles ought to be there: what is wanted, and when each instrument is or was listed.

    Parameters
    ----------
    wanted
        What is wanted of every series.
    in_scope
        Every series that is wanted or held.
    held
        The days of each series that are held and that nobody wants.
    """

    wanted: Mapping[tuple[str, Timeframe], Wants]
    in_scope: Sequence[tuple[str, Timeframe]]
    held: Mapping[tuple[str, Timeframe], Sequence[Range]]
    lives: Mapping[str, Life]
    now_ms: int

    @classmethod
    def read(cls, store: CandleStore, now_ms: int) -> Self:
        """The expectations of a store at `now_ms`, the exchange's time."""
        wanted = {
            (symbol, parse_timeframe(timeframe)): each for (symbol, timeframe), each in wants(store.connection).items()
        }
        held = {(symbol, parse_timeframe(name)): days for (symbol, name), days in unwanted(store.connection).items()}
        return cls(wanted, series_in_scope(store.connection), held, lives(store.connection), now_ms)

    def of(self, wanted: Wanted) -> list[SeriesRange]:
        """What is expected of every series that somebody asks for, in the order of the series.

        Where symbols and a start are named, the days between are looked at whether anybody wants them or not.

        Raises
        ------
        UsageError
            If nothing that is asked for is subscribed, wanted or held. Where something is and nothing of it is due yet,
            the list is empty.
        """
        start_ms = 0 if wanted.start is None else day_ms(wanted.start)
        end_ms = self.now_ms if wanted.end is None else day_ms(wanted.end)
        within = Range(start_ms, max(start_ms, end_ms))
        anyway = bool(wanted.symbols) and wanted.start is not None
        is_empty, found = True, []
        for symbol, timeframe in self._series(wanted):
            key, life = (symbol, timeframe), self.lives.get(symbol)
            pieces = self.wanted.get(key, NOTHING).within(within)
            looked = [SeriesRange(*key, possible(timeframe, piece, life)) for piece in pieces]
            if anyway:
                rest = difference([within], pieces)
                looked += [SeriesRange(*key, possible(timeframe, piece, life), "named") for piece in rest]
            else:
                looked += [SeriesRange(*key, piece, "held") for piece in intersection(self.held.get(key, ()), [within])]
            is_empty = is_empty and not looked
            by_now = (replace(each, range=due(timeframe, each.range, self.now_ms)) for each in looked)
            found += sorted((each for each in by_now if timeframe.count(*each.range)), key=lambda each: each.range)
        if is_empty:
            raise nothing_in_scope()
        return found

    def on(self, symbol: str, timeframe: Timeframe, days: Iterable[date]) -> list[SeriesRange]:
        """What is expected of the candles that open on `days` or, if longer, close on them."""
        found = []
        for span in days_and_their_closes(symbol, timeframe, days):
            for piece in self.wanted.get((symbol, timeframe), NOTHING).within(Range(span.start_ms, span.end_ms)):
                whole = due(timeframe, possible(timeframe, piece, self.lives.get(symbol)), self.now_ms)
                if whole.start_ms < whole.end_ms:
                    found.append(SeriesRange(symbol, timeframe, whole))
        return found

    def of_day(self, symbol: str, timeframe: Timeframe, day: date) -> Range | None:
        """What is expected of a day once it is over; None if nobody wants it."""
        piece = self.wanted.get((symbol, timeframe), NOTHING).of_day(day_ms(day))
        whole = possible(timeframe, piece, self.lives.get(symbol)) if piece is not None else None
        return whole if whole is not None and whole.start_ms < whole.end_ms else None

    def _series(self, wanted: Wanted) -> list[tuple[str, Timeframe]]:
        known = [
            (symbol, timeframe)
            for symbol, timeframe in self.in_scope
            if (not wanted.symbols or symbol in wanted.symbols)
            and (not wanted.timeframes or timeframe in wanted.timeframes)
        ]
        named = wanted.timeframes if wanted.symbols and wanted.start is not None else ()
        series = sorted({*known, *((symbol, timeframe) for symbol in wanted.symbols for timeframe in named)})
        lacking = [symbol for symbol in wanted.symbols if symbol not in {symbol for symbol, _ in series}]
        if lacking:
            what = f"nothing of {', '.join(lacking)} is subscribed, wanted or held"
            raise UsageError(f"{what}; name --timeframes and --start to look at it all the same")
        return series


def look(store: CandleStore, series: SeriesRange) -> Findings:
    """What of a series is held, read from its rows, and what is known of the rest. Changes nothing.

    Raises
    ------
    StorageError
        If the database is out of reach, or the file of an archived month cannot be read.
    """
    symbol, timeframe, within = series.symbol, series.timeframe, series.range
    if series.kind == "held":
        return Findings(series, len(store.opens(symbol, timeframe, *within)), 0)
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
    """Look at a series and, if it is wanted, put the outcome on record: gaps, and the ledger of their days.

    Raises
    ------
    StorageError
        See `look`.
    """
    findings = look(store, series)
    if series.kind != "wanted":
        return findings
    lacking = union(findings.missing, findings.absent)
    store.record_gaps(series.symbol, series.timeframe, series.range, lacking, now_ms)
    return findings


def agrees(store: CandleStore, expectations: Expectations, row: DayCoverage) -> bool:
    """Whether a row of the ledger says what the rows of its day say, counted here in another way than the ledger does.

    A day under way is held against the candles that were due when it was counted: its first so many. A day that nobody
    wants expects what it holds.
    """
    timeframe = parse_timeframe(row.timeframe)
    whole = expectations.of_day(row.symbol, timeframe, row.day)
    if whole is None:
        start_ms = day_ms(row.day)
        held = len(store.opens(row.symbol, timeframe, start_ms, start_ms + DAY_MS))
        return (row.wanted, row.expected, row.present) == (False, held, held)
    expected = list(timeframe.opens(*whole))[: row.expected]
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
