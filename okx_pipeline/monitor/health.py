"""How healthy everything is: what `status` and `monitor` call ill, and how much of what is subscribed is sound."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from okx_pipeline.errors import command
from okx_pipeline.quality.suites import Check
from okx_pipeline.storage.findings import ChangedDay, DamagedMonth, FailingCheck, Findings, MissingCandles
from okx_pipeline.storage.overview import SeriesLedger, StoreOverview
from okx_pipeline.storage.partitions import DetachedMonthError
from okx_pipeline.stream.health import StreamHealth

Finding = MissingCandles | FailingCheck | ChangedDay | DamagedMonth
Ledger = Mapping[tuple[str, str], SeriesLedger]


@dataclass(frozen=True, slots=True)
class Health:
    """How healthy everything is.

    Parameters
    ----------
    sound, wanted
        Of the series that are subscribed or held, those that are sound: neither late nor refused by OKX, and without a
        finding on any day. None is sound while a sidecar ought to send heartbeats and does not.
    reasons
        Why not all are, and whatever else ought to be known, the worst first.
    problem
        What is wrong; None while all is healthy.
    """

    sound: int
    wanted: int
    reasons: list[str]
    problem: str | None

    @property
    def percent(self) -> float:
        """Share of the subscribed series that is sound."""
        return 100.0 * self.sound / self.wanted if self.wanted else 100.0


def health_of(store: StoreOverview, held: Ledger, stream: StreamHealth, wanted: Collection[tuple[str, str]]) -> Health:
    """The health of everything, `wanted` being the subscribed series; what is held besides is wanted, too."""
    wanted = {*wanted, *held}
    refused = {} if stream.sidecar is None else stream.sidecar.refused
    unsound = {key for key in wanted if f"{key[0]} {key[1]}" in refused}
    unsound |= wanted.intersection(store.findings.series)
    streams = stream.sidecar is not None and stream.sidecar.state != "stopped"
    if streams and stream.maintenance is None:
        unsound |= {(each.symbol, each.timeframe) for each in stream.silent}
    if streams and not stream.is_alive:
        unsound = wanted
    reasons = [stream.problem, _refused(refused), *problems_of(store.findings)]
    if store.findings.accepted:
        reasons.append(f"{_number(store.findings.accepted, 'finding')} accepted; see: {command('accept --list')}")
    if not streams:
        reasons.append("no sidecar streams")
    if stream.maintenance is not None:
        reasons.append(f"OKX is at maintenance: {stream.maintenance}")
    if not wanted:
        reasons.append("nothing is subscribed")
    return Health(
        sound=len(wanted) - len(unsound),
        wanted=len(wanted),
        reasons=[reason for reason in reasons if reason is not None],
        problem=problem_of(store, stream),
    )


def problem_of(store: StoreOverview, stream: StreamHealth) -> str | None:
    """What is wrong, in one line; None while all is healthy."""
    return "; ".join([*filter(None, [stream.problem]), *problems_of(store.findings)]) or None


def problems_of(found: Findings) -> list[str]:
    """What the store knows to be wrong, a line a kind, each with what repairs the newest of it.

    A running backfill or a stopped stream is not unhealthy.
    """
    problems = []
    if found.detached:
        problems.append(str(DetachedMonthError(found.detached)))
    if found.files:
        first = found.files[0]
        problems.append(f"{_number(found.damaged, 'Parquet file')} damaged: {first.damage}{_repaired_by(first)}")
    if found.checks:
        newest = found.checks[0]
        problems.append(
            f"{_number(found.failing_checks, 'check')} failing on {_number(found.failing_days, 'series-day')}, "
            f"the newest {newest.check} of {_day(newest)}{_repaired_by(newest)}"
        )
    if found.missing:
        day = found.missing[0]
        problems.append(
            f"{_number(found.missing_candles, 'candle')} missing on {_number(found.missing_days, 'series-day')}, "
            f"the newest {day.missing:,} of {_day(day)}{_repaired_by(day)}"
        )
    if found.changed:
        touched = found.changed[0]
        problems.append(
            f"{_number(found.changed_days, 'series-day')} changed by hand, the newest {_day(touched)}"
            f"{_repaired_by(touched)}"
        )
    if found.incidents:
        count = len(found.incidents)
        problems.append(
            f"{_number(count, 'incident')} open{', the oldest' if count > 1 else ''}: {found.incidents[0].text}"
        )
    return problems


def told(found: Findings, pages_url: str) -> Iterator[str]:
    """Every finding as a line of its own, with its page and the command that repairs it."""
    yield from map(str, found.detached)
    for file in found.files:
        yield f"{file.symbol} {file.timeframe} {file.month:%Y-%m}: {file.damage}{_repaired_by(file)}"
    for check in found.checks:
        where = "" if check.store == "postgres" else " in Parquet"
        page = f"; page: {pages_url}/quality/{check.page}" if check.page else ""
        yield f"{_day(check)}: {check.check} fails{where} ({', '.join(check.failed)}){page}{_repaired_by(check)}"
    for day in found.missing:
        yield f"{_day(day)}: {_number(day.missing, 'candle')} missing{_repaired_by(day)}"
    for touched in found.changed:
        yield f"{_day(touched)}: values were changed by hand{_repaired_by(touched)}"
    for incident in found.incidents:
        yield f"incident: {incident.text}"


def repair_of(finding: Finding) -> str | None:
    """The command that repairs a finding; None where no command can."""
    if isinstance(finding, DamagedMonth):
        if finding.archived or "restore --month" in finding.damage:
            return None
        first, end = finding.month, (finding.month + timedelta(days=31)).replace(day=1)
        what = "validate"
    else:
        first, end = finding.day, finding.day + timedelta(days=1)
        what = "gaps --repair" if isinstance(finding, MissingCandles) else "backfill --refetch"
        if isinstance(finding, FailingCheck):
            is_file = finding.check == Check.STORE_PARITY or finding.store == "parquet"
            what = "gaps --repair" if finding.check == Check.COMPLETENESS else "validate" if is_file else what
    return command(f"{what} --symbols {finding.symbol} --timeframes {finding.timeframe} --start {first} --end {end}")


def _repaired_by(finding: Finding) -> str:
    repair = repair_of(finding)
    if repair is not None:
        return f"; repair: {repair}"
    if isinstance(finding, DamagedMonth) and finding.archived:
        return "; bring the file back from a backup"
    return ""


def _day(finding: MissingCandles | FailingCheck | ChangedDay) -> str:
    return f"{finding.symbol} {finding.timeframe} {finding.day}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _refused(refused: Mapping[str, str]) -> str | None:
    if not refused:
        return None
    first = min(refused)
    return f"OKX refuses {len(refused):,} series, {first}: {refused[first]}"
