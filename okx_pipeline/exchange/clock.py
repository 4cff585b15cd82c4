"""The exchange's clock: what has closed and what is due is decided by OKX's time, not by this machine's.

The wall clock here may be wrong by hours and may jump; all that is taken from this machine is how much time has passed.
"""

import asyncio
import logging
import time
from typing import Final

from okx_pipeline.exchange.errors import RetryableError
from okx_pipeline.exchange.rest import RestClient, TimeReading

MAX_AGE_S: Final = 300.0
"""How long a reading is good for; a bad quartz (100 parts in a million) is 30 ms off by then."""

_JUMP_S: Final = 1.0
"""The wall clock and the monotonic one disagreeing by more than this shows a machine that slept, or a clock set."""

_log = logging.getLogger(__name__)


class ExchangeClock:
    """OKX's time, read from OKX now and then and carried on by this machine's monotonic clock in between."""

    def __init__(self, client: RestClient) -> None:
        self._client = client
        self._reading: TimeReading | None = None
        self._wall_at_reading_s = 0.0
        self._asked_s = 0.0
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
        return self._reading.server_ms + round((time.monotonic() - self._reading.local_s) * 1000)

    def _due(self) -> bool:
        return self._reading is None or self._jumped() or time.monotonic() - self._asked_s > MAX_AGE_S

    def _jumped(self) -> bool:
        # The monotonic clock of Linux and macOS stands still while the machine sleeps; the wall clock does not.
        assert self._reading is not None
        passed_s = time.monotonic() - self._reading.local_s
        return abs(time.time() - self._wall_at_reading_s - passed_s) > _JUMP_S

    async def _read(self) -> None:
        self._asked_s = time.monotonic()
        try:
            reading = await self._client.server_time()
        except RetryableError as problem:
            if self._reading is None or self._jumped():
                raise
            _log.warning("the exchange's clock is carried on from an old reading: %s", problem)
            return
        self._reading = reading
        self._wall_at_reading_s = time.time() - (time.monotonic() - reading.local_s)
