"""What the sidecar counts, and the log lines about it: one a kind and minute, however often a thing happens."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final

from okx_pipeline.exchange.frames import Series

log = logging.getLogger(__name__)

LOG_EVERY_S: Final = 60.0


class Counters:
    """Counts by kind since the start."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._logged_count: dict[str, int] = {}

    def count(self, kind: str, number: int = 1) -> None:
        """Count something that is as it should be."""
        self._counts[kind] += number

    def highest(self, kind: str, number: int) -> None:
        """Keep the highest number seen."""
        self._counts[kind] = max(self._counts[kind], number)

    def wrong(self, kind: str, detail: str, number: int = 1) -> None:
        """Count something that ought not to be, and say so once a minute with how often it was since."""
        self._counts[kind] += number
        now = monotonic()
        if now - self._logged_at.get(kind, -LOG_EVERY_S) >= LOG_EVERY_S:
            since = self._counts[kind] - self._logged_count.get(kind, 0)
            log.warning("%s (%d since last said): %s", kind, since, detail, extra={"kind": kind, "since": since})
            self._logged_at[kind], self._logged_count[kind] = now, self._counts[kind]

    def __getitem__(self, kind: str) -> int:
        return self._counts[kind]

    @property
    def errors(self) -> dict[str, int]:
        """How often each thing happened that ought not to be."""
        return {kind: self._counts[kind] for kind in self._logged_at}

    def as_dict(self) -> dict[str, int]:
        """All counts by kind."""
        return dict(self._counts)


@dataclass(frozen=True, slots=True)
class Figures:
    """The sidecar at a moment.

    Parameters
    ----------
    counts, errors
        What it counted; and of that, what ought not to be.
    lags_s
        Of each wanted series, how long ago the first candle closed that has not landed; 0 where none has closed.
    received, refused
        Series that OKX sends, and that it refuses.
    waiting, waiting_s
        Candles that wait to be landed, and how long the first of them has.
    silent_s
        Seconds since anything came on a connection; None while there is none.
    clock_ahead_s
        How far this machine's clock is ahead of the exchange's; None while that is not known.
    """

    counts: Mapping[str, int]
    errors: Mapping[str, int]
    lags_s: Mapping[Series, float]
    received: int
    refused: int
    connections: int
    reconnects: int
    waiting: int
    waiting_s: float
    catching_up: int
    silent_s: float | None
    clock_ahead_s: float | None = None
