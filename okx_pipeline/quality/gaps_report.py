"""A look at the gaps of what is wanted, with or without a repair, and how it reads for people and programs."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from okx_pipeline.history.backfill import Backfill, Progress
from okx_pipeline.history.plan import Span
from okx_pipeline.quality.gaps import Expectations, Findings, SeriesRange, Wanted, detect
from okx_pipeline.quality.repair import repair
from okx_pipeline.ranges import Range, candles_in, difference, intersection, union
from okx_pipeline.storage.coverage import being_fetched
from okx_pipeline.storage.database import translated
from okx_pipeline.storage.findings import accepted_days
from okx_pipeline.storage.gaps import Gap, database_now, gaps_of
from okx_pipeline.storage.parquet import DamagedFileError
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_ms, parse_timeframe, utc

_SELDOM: Final = ("being fetched", "accepted")
"""Figures that are shown only where they are not zero."""

LISTED: Final = 50
"""Gaps that a person is shown of each series; the document has all."""


@dataclass(frozen=True, slots=True)
class GapsReport:
    """What was found in every series looked at, and its gaps: open, absent, and those repaired meanwhile.

    Parameters
    ----------
    findings
        One for each range of a series that was looked at, in the order of the series.
    fetching
        What is being fetched, by (symbol, timeframe): missing candles on wanted days that nobody has read from REST
        yet. On the day under way, those that the sidecar has not dealt with. What OKX did not serve when it was asked
        is not among them.
    """

    findings: list[Findings]
    gaps: list[Gap]
    fetching: Mapping[tuple[str, Timeframe], Sequence[Range]] = field(default_factory=dict)
    accepted: Mapping[tuple[str, Timeframe], Sequence[Range]] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Candles that are missing and not explained, being fetched or not."""
        return sum(each.missing_candles for each in self.findings)

    @property
    def being_fetched(self) -> int:
        """Of them, those that are being fetched."""
        return sum(self._fetching_of(each) for each in self.findings)

    @property
    def accepted_candles(self) -> int:
        """Candles missing on days whose findings somebody accepted, and that nobody is fetching."""
        return sum(map(self._accepted_of, self.findings))

    def document(self) -> dict[str, Any]:
        """The report as ``gaps --json`` prints it."""
        return {
            "checked": sum(each.checked for each in self.findings),
            "present": sum(each.present for each in self.findings),
            "quarantined": sum(each.quarantined for each in self.findings),
            "missing": self.missing,
            "fetching": self.being_fetched,
            "accepted": self.accepted_candles,
            "absent": sum(each.absent_candles for each in self.findings),
            "gaps": [
                {
                    "symbol": gap.symbol,
                    "timeframe": gap.timeframe.name,
                    "first_ms": gap.first_ms,
                    "last_ms": gap.last_ms,
                    "candles": gap.candles,
                    "status": gap.status,
                    "reason": gap.reason,
                }
                for gap in self.gaps
            ],
        }

    def lines(self) -> list[str]:
        """The report as a person reads it: a line per series, and below it its gaps that nobody is fetching."""
        by_series: defaultdict[tuple[str, Timeframe], list[Findings]] = defaultdict(list)
        for each in self.findings:
            by_series[each.series.symbol, each.series.timeframe].append(each)
        lines = []
        for (symbol, timeframe), found in by_series.items():
            fetching, accepted = sum(map(self._fetching_of, found)), sum(map(self._accepted_of, found))
            figures = {
                "checked": sum(each.checked for each in found),
                "present": sum(each.present for each in found),
                "missing": sum(each.missing_candles for each in found) - fetching - accepted,
                "being fetched": fetching,
                "accepted": accepted,
                "absent": sum(each.absent_candles for each in found),
                "in quarantine": sum(each.quarantined for each in found),
            }
            shown = {what: candles for what, candles in figures.items() if candles or what not in _SELDOM}
            told = (f"{candles:,} {what}" for what, candles in shown.items())
            lines.append(f"{symbol:<20} {timeframe!s:>4}  {', '.join(told)}")
            on_its_way = self.fetching.get((symbol, timeframe), ())
            gaps = [
                gap
                for gap in self.gaps
                if (gap.symbol, gap.timeframe, gap.status) == (symbol, timeframe, "open")
                if candles_in(timeframe, difference([gap.range], on_its_way))
            ]
            lines += [f"    {_line(gap)}" for gap in gaps[:LISTED]]
            if len(gaps) > LISTED:
                lines.append(f"    and {len(gaps) - LISTED:,} more; --json lists them all")
        return lines or ["nothing that is wanted is due yet"]

    def _accepted_of(self, found: Findings) -> int:
        key = (found.series.symbol, found.series.timeframe)
        accepted = difference(self.accepted.get(key, ()), self.fetching.get(key, ()))
        return candles_in(found.series.timeframe, intersection(found.missing, accepted))

    def _fetching_of(self, found: Findings) -> int:
        on_its_way = self.fetching.get((found.series.symbol, found.series.timeframe), ())
        return (
            candles_in(found.series.timeframe, intersection(found.missing, on_its_way))
            if found.series.kind == "wanted"
            else 0
        )


async def look_for_gaps(
    backfill: Backfill, wanted: Wanted, *, mend: bool = False, progress: Progress | None = None
) -> GapsReport:
    """Read the rows of what is wanted, put what is missing on record, and, to `mend`, fetch or settle it.

    Whoever names symbols and a start to `mend` makes those days wanted.

    Raises
    ------
    UsageError
        If nothing that is asked for is subscribed, wanted or held; if a symbol is named that OKX never listed.
    PipelineError
        See `detect` and `repair`.
    """
    store = backfill.store
    with translated(store.place):
        since = database_now(store.connection)
        # Only to repair does the exchange have to answer.
        now_ms = await (backfill.clock.now_ms() if mend else backfill.known_ms())
        expectations = await asyncio.to_thread(Expectations.read, store, now_ms)
        unlisted = set(wanted.symbols) - expectations.lives.keys()
        for symbol in unlisted:
            # Else a misspelt symbol would be put on record as one of which everything is missing.
            await backfill.life_of(symbol)
        if unlisted:
            expectations = await asyncio.to_thread(Expectations.read, store, now_ms)
        ranges = expectations.of(wanted)
        beyond = [Span(each.symbol, each.timeframe, *each.range) for each in ranges if each.kind == "named"]
        if mend and beyond:
            await backfill.want(beyond, "person")
            expectations = await asyncio.to_thread(Expectations.read, store, now_ms)
            ranges = expectations.of(wanted)
        # What is being fetched is known from the ledger. Whoever looks at a series with a damaged file is told below.
        with suppress(DamagedFileError):
            await asyncio.to_thread(store.account, now_ms)
        if mend:
            findings = (await repair(backfill, ranges, progress=progress)).after
        else:
            findings = [await asyncio.to_thread(detect, store, each, now_ms) for each in ranges]
        gaps = await asyncio.to_thread(_gaps, backfill, findings, since)
        fetching = await asyncio.to_thread(_fetching, backfill, ranges, gaps)
        return GapsReport(findings, gaps, fetching, await asyncio.to_thread(_accepted, backfill))


def _gaps(backfill: Backfill, findings: Sequence[Findings], since: datetime) -> list[Gap]:
    """The gaps of what was looked at, cut to it, so that their candles are those that were counted."""
    connection = backfill.store.connection
    gaps = []
    for found in findings:
        each = found.series
        if each.kind == "wanted":
            known = gaps_of(connection, each.symbol, each.timeframe, each.range, resolved_since=since)
        else:
            # The missing candles of days that nobody wants are on no record.
            known = [Gap(None, each.symbol, each.timeframe, piece) for piece in found.missing]
        gaps += [replace(gap, range=within) for gap in known for within in intersection([gap.range], [each.range])]
    return gaps


def _fetching(
    backfill: Backfill, ranges: Sequence[SeriesRange], gaps: Sequence[Gap]
) -> dict[tuple[str, Timeframe], list[Range]]:
    keys = {(each.symbol, each.timeframe.name) for each in ranges}
    found = {}
    for (symbol, name), on_its_way in being_fetched(backfill.store.connection, keys).items():
        asked = (gap.range for gap in gaps if (gap.symbol, gap.timeframe.name) == (symbol, name) if gap.ask_again_ms)
        found[symbol, parse_timeframe(name)] = difference(on_its_way, union(asked))
    return found


def _accepted(backfill: Backfill) -> dict[tuple[str, Timeframe], list[Range]]:
    accepted: defaultdict[tuple[str, Timeframe], list[Range]] = defaultdict(list)
    for key in accepted_days(backfill.store.connection):
        start_ms = day_ms(key.day)
        accepted[key.symbol, parse_timeframe(key.timeframe)].append(Range(start_ms, start_ms + DAY_MS))
    return {key: union(ranges) for key, ranges in accepted.items()}


def _line(gap: Gap) -> str:
    asked = ""
    if gap.ask_again_ms is not None:
        asked = f", asked once; to be asked again after {utc(gap.ask_again_ms):%Y-%m-%d %H:%M} UTC"
    first, last = utc(gap.first_ms), utc(gap.last_ms)
    until = "" if first == last else f" to {last:%Y-%m-%d %H:%M}"
    return f"{gap.candles:,} from {first:%Y-%m-%d %H:%M}{until} UTC{asked}"
