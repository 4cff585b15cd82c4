"""Whether the stream is well: does the sidecar live, and does every subscribed series move. Health is the last durable
row, not a live process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from okx_pipeline.storage.activity import last_opens
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.stream_status import SidecarStatus, sidecar_status
from okx_pipeline.timeframes import GRACE_MS, parse_timeframe

DEAD_AFTER_S: Final = 20.0
"""A sidecar beats every 2 s; one that has not for this long is not there."""


@dataclass(frozen=True, slots=True)
class SilentSeries:
    """A subscribed series whose newest due candle is not held: open time of the last held, and how late that is."""

    symbol: str
    timeframe: str
    last_ms: int | None
    late_ms: int
    refused: str | None


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """The stream at a glance.

    Parameters
    ----------
    sidecar
        The sidecar that beat last; None if none ever did.
    now_ms
        The exchange's time, carried on from its last heartbeat; None if it has not told.
    silent
        Series that are late, the latest first.
    """

    sidecar: SidecarStatus | None
    now_ms: int | None
    silent: list[SilentSeries]

    @property
    def maintenance(self) -> str | None:
        """Title of the maintenance that OKX is at and that may stop candles; None if there is none."""
        if self.sidecar is None or self.now_ms is None:
            return None
        for window in self.sidecar.maintenance:
            # OKX's end is an estimate; an hour more before silence is held against anybody.
            if window["stops_candles"] and window["begin_ms"] <= self.now_ms < window["end_ms"] + 3_600_000:
                return str(window["title"])
        return None

    @property
    def is_alive(self) -> bool:
        """Whether a sidecar streams."""
        return self.sidecar is not None and self.sidecar.state != "stopped" and self.sidecar.age_s < DEAD_AFTER_S

    @property
    def problem(self) -> str | None:
        """What is wrong with the stream, in one line; None if nothing is, or if nobody is to stream now."""
        if self.sidecar is None or self.sidecar.state == "stopped":
            return None
        if not self.is_alive:
            return f"the sidecar {self.sidecar.sidecar} does not beat since {self.sidecar.age_s:,.0f} s"
        if self.silent and self.maintenance is None:
            worst = self.silent[0]
            return (
                f"{len(self.silent)} series are late, {worst.symbol} {worst.timeframe} by {worst.late_ms // 1000:,} s"
            )
        return None


def stream_health(connection: Connection) -> StreamHealth:
    """How the stream is, from what is written in the database."""
    sidecar = sidecar_status(connection)
    if sidecar is None or sidecar.exchange_ms is None:
        return StreamHealth(sidecar, None, [])
    return judge(sidecar, last_opens(connection))


def judge(sidecar: SidecarStatus, lasts: Mapping[tuple[str, str], int | None]) -> StreamHealth:
    """How the stream is, the subscribed series holding candles up to those that open at `lasts`."""
    assert sidecar.exchange_ms is not None
    now_ms = sidecar.exchange_ms + int(sidecar.age_s * 1000)
    silent = []
    for (symbol, name), last_ms in lasts.items():
        late = _lateness_ms(name, last_ms, now_ms)
        if late > 0:
            silent.append(SilentSeries(symbol, name, last_ms, late, sidecar.refused.get(f"{symbol} {name}")))
    return StreamHealth(sidecar, now_ms, sorted(silent, key=lambda each: (-each.late_ms, each.symbol)))


def _lateness_ms(name: str, last_ms: int | None, now_ms: int) -> int:
    """How long ago the first candle was due that is not held; 0 or less if none is."""
    timeframe = parse_timeframe(name)
    if last_ms is None:
        # Nothing held yet: late once a candle that opened today is due.
        first_ms = timeframe.first_open(now_ms - now_ms % 86_400_000)
        return now_ms - timeframe.close_of(first_ms) - 2 * GRACE_MS
    return now_ms - timeframe.due_of(timeframe.close_of(last_ms))
