"""A look at the gaps of what is wanted, with or without mending them, and how it reads for people and programs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from okx_pipeline.errors import command
from okx_pipeline.history.backfill import Backfill, Progress
from okx_pipeline.quality.gaps import Expectations, Findings, SeriesRange, Wanted, detect
from okx_pipeline.quality.repair import repair
from okx_pipeline.ranges import intersection
from okx_pipeline.storage.database import translated
from okx_pipeline.storage.gaps import Gap, database_now, gaps_of
from okx_pipeline.timeframes import utc

LISTED: Final = 50
"""Gaps that a person is shown of each series; the document has all."""


@dataclass(frozen=True, slots=True)
class GapsReport:
    """What was found in every series looked at, and its gaps: open, absent, and those repaired meanwhile."""

    findings: list[Findings]
    gaps: list[Gap]

    @property
    def missing(self) -> int:
        """Candles that are missing and not explained."""
        return sum(each.missing_candles for each in self.findings)

    def document(self) -> dict[str, Any]:
        """The report as ``gaps --json`` prints it."""
        return {
            "checked": sum(each.checked for each in self.findings),
            "present": sum(each.present for each in self.findings),
            "quarantined": sum(each.quarantined for each in self.findings),
            "missing": self.missing,
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
        """The report as a person reads it: a line per series, and its gaps that are not settled below it."""
        lines = []
        for each in self.findings:
            name = f"{each.series.symbol:<20} {each.series.timeframe!s:>4}"
            lines.append(
                f"{name}  {each.checked:,} checked, {each.present:,} present, {each.missing_candles:,} missing, "
                f"{each.absent_candles:,} absent, {each.quarantined:,} in quarantine"
            )
            gaps = [
                gap
                for gap in self.gaps
                if (gap.symbol, gap.timeframe) == (each.series.symbol, each.series.timeframe) and gap.status == "open"
            ]
            lines += [f"    {_line(gap)}" for gap in gaps[:LISTED]]
            if len(gaps) > LISTED:
                lines.append(f"    and {len(gaps) - LISTED:,} more; --json lists them all")
        return lines or [f"nothing is subscribed; see: {command('subscribe --help')}"]


async def look_for_gaps(
    backfill: Backfill, wanted: Wanted, *, mend: bool = False, progress: Progress | None = None
) -> GapsReport:
    """Read the rows of what is wanted, put what is missing on record, and, to `mend`, fetch or settle it.

    Raises
    ------
    UsageError
        If a series is named that was never subscribed, and no start; if a symbol is named that OKX never listed.
    PipelineError
        See `detect` and `repair`.
    """
    store = backfill.store
    with translated(store.place):
        since = database_now(store.connection)
        # Only to mend does the exchange have to answer.
        now_ms = await (backfill.clock.now_ms() if mend else backfill.known_ms())
        expectations = await asyncio.to_thread(Expectations.read, store, now_ms)
        unlisted = set(wanted.symbols) - expectations.lives.keys()
        for symbol in unlisted:
            # Else a misspelt symbol would be put on record as one of which everything is missing.
            await backfill.life_of(symbol)
        if unlisted:
            expectations = await asyncio.to_thread(Expectations.read, store, now_ms)
        ranges = expectations.of(wanted)
        if mend:
            findings = (await repair(backfill, ranges, progress=progress)).after
        else:
            findings = [await asyncio.to_thread(detect, store, each, now_ms) for each in ranges]
        return GapsReport(findings, await asyncio.to_thread(_gaps, backfill, ranges, since))


def _gaps(backfill: Backfill, ranges: Sequence[SeriesRange], since: datetime) -> list[Gap]:
    """The gaps of `ranges`, cut to them, so that their candles are those that were counted."""
    connection = backfill.store.connection
    return [
        replace(gap, range=within)
        for each in ranges
        for gap in gaps_of(connection, each.symbol, each.timeframe, each.range, resolved_since=since)
        for within in intersection([gap.range], [each.range])
    ]


def _line(gap: Gap) -> str:
    asked = ""
    if gap.ask_again_ms is not None:
        asked = f", asked once; to be asked again after {utc(gap.ask_again_ms):%Y-%m-%d %H:%M} UTC"
    first, last = utc(gap.first_ms), utc(gap.last_ms)
    until = "" if first == last else f" to {last:%Y-%m-%d %H:%M}"
    return f"{gap.candles:,} from {first:%Y-%m-%d %H:%M}{until} UTC{asked}"
