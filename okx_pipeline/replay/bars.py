"""OKX's bars: every candle length it serves, on UTC and on Hong Kong boundaries, with the arithmetic of both.

`timeframes` knows only what is collected, which all opens on UTC boundaries; the exchange also has bars that open at
Hong Kong midnight, and a recording of OKX's `1D` is one of those. Left out, because nobody here asks for them: 1s, and
the bars of two days, three days and three months. OKX does not state where a week opens; here it is Monday.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from okx_pipeline.timeframes import DAY_MS, HOUR_MS, TIMEFRAMES, Timeframe

Times = npt.NDArray[np.int64]

_HONG_KONG_MS: Final = 8 * HOUR_MS
_UTC_SUFFIX: Final = "utc"
_MONTH_UNIT: Final = "datetime64[M]"
_MS_UNIT: Final = "datetime64[ms]"


@dataclass(frozen=True, slots=True, order=True)
class Bar:
    """A candle length of OKX.

    Parameters
    ----------
    timeframe
        The length.
    ahead_ms
        How far the clock on whose boundaries it opens is ahead of UTC.
    code
        OKX's code of it.
    """

    timeframe: Timeframe
    ahead_ms: int
    code: str

    def __str__(self) -> str:
        return self.code

    @property
    def length_ms(self) -> int:
        """Length in milliseconds; of a month, that of the shortest one."""
        return self.timeframe.length_ms

    def open_at(self, ms: int) -> int:
        """Open time of the candle in which the moment `ms` lies."""
        return self.timeframe.open_at(ms + self.ahead_ms) - self.ahead_ms

    def close_of(self, open_ms: int) -> int:
        """Close time of the candle that opens at `open_ms`."""
        return self.timeframe.close_of(open_ms + self.ahead_ms) - self.ahead_ms

    def step(self, open_ms: int, candles: int) -> int:
        """Open time of the candle `candles` after (before, if negative) the one that opens at `open_ms`."""
        return self.timeframe.step(open_ms + self.ahead_ms, candles) - self.ahead_ms

    def every_open(self, oldest: int, newest: int) -> Times:
        """Open times from `oldest` to `newest`, which are two of them, ascending."""
        if not self.timeframe.is_month:
            return np.arange(oldest, newest + 1, self.length_ms)
        opens = [oldest]
        while opens[-1] < newest:
            opens.append(self.close_of(opens[-1]))
        return np.array(opens, dtype=np.int64)

    def opens_at(self, moments: Times) -> Times:
        """`open_at` of every moment."""
        local = moments + self.ahead_ms
        if self.timeframe.is_month:
            opens: Any = local.astype(_MS_UNIT).astype(_MONTH_UNIT).astype(_MS_UNIT).astype(np.int64)
        else:
            opens = local - (local - self.timeframe.open_at(0)) % self.length_ms
        return np.asarray(opens - self.ahead_ms, dtype=np.int64)

    def closes_of(self, opens: Times) -> Times:
        """`close_of` of every open time."""
        if not self.timeframe.is_month:
            return opens + self.length_ms
        months: Any = (opens + self.ahead_ms).astype(_MS_UNIT).astype(_MONTH_UNIT) + 1
        return np.asarray(months.astype(_MS_UNIT).astype(np.int64) - self.ahead_ms, dtype=np.int64)

    def divides(self, target: "Bar") -> bool:
        """Whether every candle of `target` is made of whole candles of this bar."""
        span = DAY_MS if target.length_ms > DAY_MS else target.length_ms
        return (
            self.length_ms <= DAY_MS
            and span % self.length_ms == 0
            and (target.ahead_ms - self.ahead_ms) % self.length_ms == 0
        )


def _bars() -> dict[str, Bar]:
    found = {}
    for timeframe in TIMEFRAMES:
        found[timeframe.bar] = Bar(timeframe, 0, timeframe.bar)
        if timeframe.bar.endswith(_UTC_SUFFIX):
            code = timeframe.bar.removesuffix(_UTC_SUFFIX)
            found[code] = Bar(timeframe, _HONG_KONG_MS, code)
    return found


BARS: Final = _bars()
"""Every bar that is served, by OKX's code for it."""

MINUTE: Final = BARS["1m"]
HOUR: Final = BARS["1H"]
