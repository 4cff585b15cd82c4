"""What the sidecar counts, and the log lines about it: one a kind and minute, however often a thing happens."""

import logging
from collections import Counter
from time import monotonic
from typing import Final

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
            log.warning("%s (%d since last said): %s", kind, since, detail)
            self._logged_at[kind], self._logged_count[kind] = now, self._counts[kind]

    def __getitem__(self, kind: str) -> int:
        return self._counts[kind]

    def as_dict(self) -> dict[str, int]:
        """All counts by kind."""
        return dict(self._counts)
