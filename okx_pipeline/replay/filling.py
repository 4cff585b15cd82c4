"""Made-up candles for the holes of a recording.

Each follows from the seed, its symbol, bar and open time, and from what was recorded before its hole: it goes on from
the candle before it, stays within 0.15 % of the hole's first price (or two ticks, where that is less), and has the
volume of a candle recorded shortly before. Nothing recorded is changed here; which of several candles is served is
decided in `recordings`.
"""

from typing import Final

import numpy as np

from okx_pipeline.replay.bars import Bar
from okx_pipeline.replay.draws import byte_of, mix
from okx_pipeline.replay.market import Columns, Series

_SWING: Final = 1024
"""A close lies within one part in this many of the hole's first price."""


def fill(series: Series, bar: Bar, *, key: int, spot: bool) -> Series:
    """The series with a candle wherever it lacks one between its first and its last.

    Parameters
    ----------
    series
        Recorded candles, at least one.
    bar
        Their bar.
    key
        What all chance comes from: `draws.key_of` a seed and the series' name.
    spot
        Whether volume in currency is in quote coin.
    """
    opens, columns = series.opens, series.columns
    every = bar.every_open(int(opens[0]), int(opens[-1]))
    missing = every[~np.isin(every, opens, assume_unique=True)]
    before = np.searchsorted(opens, missing) - 1
    draws = mix(key, missing)

    level = columns[3][before]
    swing = np.maximum(level // _SWING, 1)
    close = np.maximum(level + swing * (byte_of(draws, 0) - 128) // 128, 1)
    opened = level.copy()
    goes_on = before[1:] == before[:-1]
    opened[1:][goes_on] = close[:-1][goes_on]
    high = np.maximum(opened, close) + swing * byte_of(draws, 1) // 512
    low = np.maximum(np.minimum(opened, close) - swing * byte_of(draws, 2) // 512, 1)
    volume, currency = _traded(columns, before, byte_of(draws, 3))
    made = np.array([opened, high, low, close, volume, currency, currency], dtype=columns.dtype)
    if not spot:
        made[6] = made[5] * made[3]

    order = np.argsort(np.concatenate([opens, missing]))
    return Series(every, np.concatenate([columns, made], axis=1)[:, order])


def _traded(columns: Columns, before: Columns, chance: Columns) -> Columns:
    """Volume and volume in currency of one of the 256 candles with trades up to `before`, by chance; shape (2, n)."""
    traded = np.flatnonzero((columns[4] > 0) & (columns[5] > 0))
    if not len(traded):
        return np.ones((2, len(before)), dtype=columns.dtype)
    newest = np.maximum(np.searchsorted(traded, before, side="right") - 1, 0)
    return columns[4:6, traded[newest - chance % (newest + 1)]]
