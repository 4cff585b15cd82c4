"""The exchange's clock: what has closed and what is due is decided by OKX's time, not by this machine's.

The wall clock here may be wrong by hours and may jump; all that is taken from this machine is how much time has passed.
An exchange whose time runs at another speed (a stand-in that replays the past) is noticed from two readings.
"""

import asyncio
import logging
import time
from typing import Final

from okx_pipeline.exchange.errors import RetryableError
from okx_pipeline.exchange.rest import RestClient, TimeReading

MAX_AGE_S: Final = 300.0
"""How long a reading is good for; a bad quartz (100 parts in a million) is 30 ms off by then."""

UNSTEADY_AGE_S: Final = 2.0
"""The same while the exchange's time runs at another speed than ours."""

DOUBT_AGE_S: Final = 1.0
"""A doubted reading is not asked for anew more often than this."""

STEADY: Final = 0.2
"""A speed within this much of 1 is taken for 1: two readings some seconds apart are not measured better."""

_JUMP_S: Final = 1.0
"""The wall clock and the monotonic one disagreeing by more than this shows a machine that slept, or a clock set."""

_log = logging.getLogger(__name__)


class ExchangeClock:
    """OKX's time, read from OKX now and then and carried on by this machine's monotonic clock in between."""

    def __init__(self, client: RestClient) -> None:
        self._client = client
        self._reading: TimeReading | None = None
        self._speed = 1.0
        self.is_measured = False
        """Whether two readings have shown how fast the exchange's time runs."""
        self._wall_at_reading_s = 0.0
        self._asked_s = 0.0
        self._doubted = False
        self._asking = asyncio.Lock()

    async def now_ms(self) -> int:
        """The exchange's time, Unix milliseconds; right to within half a round trip to it.

        An old reading is carried on for as long as OKX cannot be reached, unless this machine slept meanwhile.

        Raises
        ------
        ExchangeError
            If there is no reading to carry on and OKX does not give one.
        """
        if self._due():
            async with self._asking:
                if self._due():
                    await self._read()
        return self.carried_ms()

    def carried_ms(self) -> int:
        """The exchange's time as carried on from the last reading, however old: for those who cannot wait.

        Raises
        ------
        RuntimeError
            If `now_ms` was never asked before.
        """
        if self._reading is None:
            raise RuntimeError("the exchange's clock has not been read yet; await now_ms() first")
        passed_s = time.monotonic() - self._reading.local_s
        return self._reading.server_ms + round(passed_s * self.speed * 1000)

    @property
    def speed(self) -> float:
        """How fast the exchange's time runs against ours: 1 but for a stand-in; taken for 1 until it is measured."""
        return self._speed

    @property
    def ahead_s(self) -> float | None:
        """How far this machine's wall clock is ahead of the exchange's (behind if negative); None before a reading.

        Nothing is decided by it; it is told because what else runs here may rely on the machine's clock.
        """
        return None if self._reading is None else time.time() - self.carried_ms() / 1000

    def doubt(self) -> None:
        """Something the exchange said cannot be at the time carried on: read the clock anew when next asked."""
        self._doubted = True

    def _due(self) -> bool:
        if self._reading is None or self._jumped():
            return True
        age_s = time.monotonic() - self._asked_s
        most_s = MAX_AGE_S if self._speed == 1.0 else UNSTEADY_AGE_S
        return age_s > most_s or (self._doubted and age_s > DOUBT_AGE_S)

    def _jumped(self) -> bool:
        # The monotonic clock of Linux and macOS stands still while the machine sleeps; the wall clock does not.
        assert self._reading is not None
        passed_s = time.monotonic() - self._reading.local_s
        return abs(time.time() - self._wall_at_reading_s - passed_s) > _JUMP_S

    async def _read(self) -> None:
        self._asked_s = time.monotonic()
        self._doubted = False
        try:
            reading = await self._client.server_time()
        except RetryableError as problem:
            if self._reading is None or self._jumped():
                raise
            _log.warning("the exchange's clock is carried on from an old reading: %s", problem)
            return
        if self._reading is not None and not self._jumped():
            passed_s = reading.local_s - self._reading.local_s
            if passed_s > DOUBT_AGE_S / 2:
                speed = max(0.0, (reading.server_ms - self._reading.server_ms) / passed_s / 1000)
                self._speed = 1.0 if abs(speed - 1) < STEADY else speed
                self.is_measured = True
        self._reading = reading
        self._wall_at_reading_s = time.time() - (time.monotonic() - reading.local_s)
