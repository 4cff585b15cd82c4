"""How healthy everything is: what `status` and `monitor` call ill, and how much of what is subscribed is sound."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from okx_pipeline.errors import command
from okx_pipeline.storage.overview import SeriesLedger, StoreOverview
from okx_pipeline.stream.health import StreamHealth

Ledger = Mapping[tuple[str, str], SeriesLedger]


@dataclass(frozen=True, slots=True)
class Health:
    """How healthy everything is.

    Parameters
    ----------
    sound, wanted
        Of the subscribed series, those that are sound: neither late nor refused by OKX, and with no candle missing on a
        day that REST was read for. None while a sidecar ought to beat and does not.
    reasons
        Why not all are, and whatever else ought to be known, the worst first.
    problem
        What is wrong; None while all is healthy. A candle that was found missing within the last day is being mended:
        its series is not sound, and that is no illness yet.
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
    """The health of everything, `wanted` being the subscribed series."""
    refused = {} if stream.sidecar is None else stream.sidecar.refused
    unsound = {key for key in wanted if f"{key[0]} {key[1]}" in refused}
    with_gaps = {key for key in wanted if key in held and held[key].in_gaps}
    unsound |= with_gaps
    streams = stream.sidecar is not None and stream.sidecar.state != "stopped"
    if streams and stream.maintenance is None:
        unsound |= {(each.symbol, each.timeframe) for each in stream.silent}
    if streams and not stream.is_alive:
        unsound = set(wanted)
    reasons = [stream.problem, _refused(refused), overdue(held), _in_gaps(held, with_gaps), failing(store)]
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
        problem=problem_of(store, held, stream),
    )


def problem_of(store: StoreOverview, held: Ledger, stream: StreamHealth) -> str | None:
    """What is wrong, in one line; None while all is healthy."""
    return stream.problem or overdue(held) or failing(store)


def overdue(held: Ledger) -> str | None:
    """What is wrong if candles are missing though there was time to mend them. History on its way is no illness."""
    missing = sum(each.overdue for each in held.values())
    if not missing:
        return None
    worst = max(held.values(), key=lambda each: each.overdue)
    return (
        f"{missing:,} candles are missing for more than a day, {worst.overdue:,} of them of {worst.symbol} "
        f"{worst.timeframe}; repair them with: {command('gaps --repair')}"
    )


def failing(store: StoreOverview) -> str | None:
    """What is wrong if the checks failed on a day of the last week that was judged."""
    if store.quality is None or not store.quality.with_errors:
        return None
    return (
        f"the checks fail on {store.quality.with_errors:,} series-days of the week to {store.quality.day}; "
        f"see: {command('validate')}"
    )


def _refused(refused: Mapping[str, str]) -> str | None:
    if not refused:
        return None
    first = min(refused)
    return f"OKX refuses {len(refused):,} series, {first}: {refused[first]}"


def _in_gaps(held: Ledger, with_gaps: Collection[tuple[str, str]]) -> str | None:
    mending = sum(held[key].in_gaps - held[key].overdue for key in with_gaps)
    return f"{mending:,} candles of {len(with_gaps):,} series are missing, and being mended" if mending else None
