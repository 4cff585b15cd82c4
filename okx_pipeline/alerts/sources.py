"""Sources that need nothing but the store: gaps, quarantined rows, verdicts, detached partitions, damaged archives."""

from collections import defaultdict
from typing import Final

from okx_pipeline.storage.alert_sources import failed_checks, gaps_open_for, quarantined_within
from okx_pipeline.storage.alerts import Incident
from okx_pipeline.storage.damage import DamagedFile, damaged_files
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.partitions import detached_months
from okx_pipeline.timeframes import parse_timeframe

QUIET_HOURS: Final = 24
"""An incident of quarantined rows is resolved when there were no more for so long."""


def open_gaps(connection: Connection, hours: int) -> list[Incident]:
    """Gaps that have been open for `hours`: an incident a symbol."""
    return [
        Incident(
            each.symbol,
            f"{each.symbol}: {_number(each.candles, 'candle')} in {_number(each.gaps, 'gap')} "
            f"({_listed(each.timeframes)}) missing for more than {_number(hours, 'hour')}",
            each.symbol,
        )
        for each in gaps_open_for(connection, hours)
    ]


def quarantined_rows(connection: Connection) -> list[Incident]:
    """Rows quarantined of late: an incident a symbol, and one of unreadable frames, until a day has brought no more."""
    incidents = []
    for each in quarantined_within(connection, QUIET_HOURS):
        what = f"{each.symbol}: {_number(each.rows, 'row')} ({_listed(each.timeframes)})"
        text = f"{what if each.symbol else _number(each.rows, 'frame')} quarantined within {QUIET_HOURS} hours: "
        incidents.append(Incident(each.symbol or "", text + each.reason, each.symbol, "warning"))
    return incidents


def detached_partitions(connection: Connection) -> list[Incident]:
    """Partitions that somebody has detached: an incident per month, with the SQL that attaches it again."""
    return [Incident(f"{each.month:%Y-%m}", str(each)) for each in detached_months(connection)]


def damaged_archives(connection: Connection) -> list[Incident]:
    """Archived months whose file is damaged: an incident per symbol. A live month is written again from PostgreSQL."""
    by_symbol: defaultdict[str, list[DamagedFile]] = defaultdict(list)
    for each in damaged_files(connection):
        if each.archived:
            by_symbol[each.key.symbol].append(each)
    return [
        Incident(
            symbol,
            f"{symbol}: the files of {_number(len(damaged), 'archived month')} are damaged, so that nobody has their "
            f"candles; bring them back from a backup, first {damaged[0].damage}",
            symbol,
        )
        for symbol, damaged in by_symbol.items()
    ]


def failed_quality_checks(connection: Connection) -> list[Incident]:
    """Checks whose verdict on a day is an error: an incident a check and symbol."""
    return [
        Incident(
            f"{each.check}/{each.symbol}",
            f"{each.symbol}: check {each.check} fails on {_number(each.days, 'day')} ({_listed(each.timeframes)}), "
            f"the newest {each.newest}",
            each.symbol,
        )
        for each in failed_checks(connection)
    ]


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _listed(timeframes: list[str]) -> str:
    return ", ".join(sorted(timeframes, key=parse_timeframe))
