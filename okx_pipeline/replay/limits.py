"""The request limits that OKX publishes, kept exactly: so many requests in any stretch of so many seconds."""

import time
from collections import deque
from collections.abc import Callable


class SlidingWindow:
    """Admits `requests` in any `period_s` seconds, and not one more; what is refused does not count.

    Runs on the wall's clock, whatever the exchange's says: a budget is about the load on a machine.
    """

    def __init__(self, requests: int, period_s: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._monotonic = monotonic
        self._admitted: deque[float] = deque(maxlen=requests)

    def admit(self) -> bool:
        """Whether a request may be served now; it counts if so."""
        now = self._monotonic()
        full = len(self._admitted) == self._admitted.maxlen
        if full and now - self._admitted[0] < self._period_s:
            return False
        self._admitted.append(now)
        return True
