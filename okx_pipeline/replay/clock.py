"""The exchange's clock: starts in the past, runs faster than the wall, and keeps real time once it has caught up."""

import time
from collections.abc import Callable

from okx_pipeline.errors import UsageError
from okx_pipeline.timeframes import iso


class ExchangeClock:
    """Time at the exchange in Unix milliseconds; never ahead of the wall's.

    Parameters
    ----------
    now_ms
        Where it starts.
    speed
        How many seconds pass here while one passes on the wall; 0 stands still.
    wall, monotonic
        The wall's clock in Unix seconds, and one that is never set.

    Raises
    ------
    UsageError
        If it should start in the future, or run backwards.
    """

    def __init__(
        self,
        now_ms: int,
        speed: float = 1.0,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self.set(now_ms, speed)

    @property
    def speed(self) -> float:
        """How many times faster than the wall's it was told to run."""
        return self._speed

    def now_ms(self) -> int:
        """The moment it is."""
        elapsed_s = self._monotonic() - self._since
        return min(self._start_ms + int(elapsed_s * self._speed * 1000), self._wall_ms())

    def set(self, now_ms: int | None = None, speed: float | None = None) -> None:
        """Put it to another moment, give it another speed, or both; what is not given stays as it is."""
        if speed is not None and not 0 <= speed < float("inf"):
            raise UsageError(f"the exchange's clock cannot run at speed {speed}; give a number from 0 up")
        if now_ms is not None and not 0 <= now_ms <= self._wall_ms():
            where = "before 1970" if now_ms < 0 else "in the future"
            raise UsageError(f"the exchange's clock cannot stand at {iso(now_ms)}: that lies {where}")
        start_ms = self.now_ms() if now_ms is None else now_ms
        self._speed: float = self._speed if speed is None else speed
        self._start_ms = start_ms
        self._since = self._monotonic()

    def _wall_ms(self) -> int:
        return int(self._wall() * 1000)
