"""Decimals as doubles, each the one nearest to the decimal, as ``float("0.25387")`` and ``::float8`` give it.

Arrow's own cast multiplies by a power of ten and misses by one bit or two for half of all prices below 1; it also takes
five times as long.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from okx_pipeline.candles import FRACTION_DIGITS

Doubles = npt.NDArray[np.float64]

Words = npt.NDArray[np.uint64]

# A value is an integer over 10^18 = 5^18 * 2^18.
_ONE: Final = 10.0**FRACTION_DIGITS
_FIVES: Final = np.uint64(5**FRACTION_DIGITS)
_TWO_64: Final = 2.0**64
_MANTISSA_BITS: Final = np.uint64(52)
_MANTISSA: Final = np.uint64(2**52 - 1)
_LEADING_BIT: Final = np.uint64(2**52)
_NOTHING: Final = np.uint64(0)
_SHIFT_OF_ZERO: Final = 1023 + 52 - FRACTION_DIGITS

_LARGEST: Final = 2.0**53
_NEAR_A_TIE: Final = 1e-9
_AT_ONCE: Final = 16_384
"""Values that are worked on at once, so that what is in between stays in the processor's cache: twice as fast."""


def doubles(numbers: Any) -> Doubles:
    """The nearest double to each of `numbers`, an Arrow array of decimal128(38, 18); NaN where one is null.

    Ties go to the even one.
    """
    chunk = numbers.combine_chunks() if isinstance(numbers, pa.ChunkedArray) else numbers
    words = np.frombuffer(chunk.buffers()[1] or b"", dtype="<u8").reshape(-1, 2)
    words = words[chunk.offset : chunk.offset + len(chunk)]
    found: Doubles = np.empty(len(chunk))
    doubtful = np.empty(len(chunk), dtype=np.bool_)
    for start in range(0, len(chunk), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        found[block], doubtful[block] = _nearest(words[block, 0], words[block, 1])
    for row in np.flatnonzero(doubtful).tolist():
        known = chunk[row].as_py()
        found[row] = np.nan if known is None else float(known)
    if chunk.null_count:
        found[chunk.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return found


def _nearest(low: Words, high: Words) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """The nearest doubles to integers of 128 bits over 10^18, and where they may not be.

    A first guess is at most a few units in the last place off. How many is what its remainder tells, which is small
    enough to be exact modulo 2^64.
    """
    guess = (high * _TWO_64 + low) / _ONE
    bits = guess.view(np.uint64)
    raised = bits >> _MANTISSA_BITS
    # The guess is a mantissa times 2^-shift / 2^18, and one more in the mantissa is 5^18 more in the remainder.
    divisor: Doubles | float
    shift = _SHIFT_OF_ZERO - raised.view(np.int64)
    mantissa = (bits & _MANTISSA) | _LEADING_BIT
    if shift.min(initial=0) < 0:
        down = np.maximum(-shift, 0)
        product, divisor = (mantissa * _FIVES) << down.view(np.uint64), np.ldexp(float(_FIVES), down)
    else:
        product, divisor = mantissa * _FIVES, float(_FIVES)
    value = np.where(shift < 64, low << np.clip(shift, 0, 63).view(np.uint64), _NOTHING)
    off = (value - product).view(np.int64) / divisor
    steps = np.rint(off)
    left = np.abs(off - steps)
    nearest = bits + steps.astype(np.int64).view(np.uint64)
    # Next to a power of two the steps have another width, near a tie the quotient may be a bit off.
    doubtful = (raised != nearest >> _MANTISSA_BITS) | (((nearest & _MANTISSA) == _NOTHING) & (left != 0))
    doubtful |= (np.abs(left - 0.5) < _NEAR_A_TIE) | (guess >= _LARGEST)
    zero = guess == 0
    return np.where(zero, 0.0, nearest.view(np.float64)), doubtful & ~zero
