"""Draws that are always the same: well-mixed bits for a number under a seed and a name, on any machine, in any order.

For candles that are made up, which have to be the same on every page and after every restart.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


def key_of(seed: int, name: str) -> int:
    """63 bits that tell this seed and name from all others."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def mix(key: int, numbers: Any) -> Words:
    """64 well-mixed bits for every number under this key: the finisher of SplitMix64 (Steele, Lea, Flood 2014)."""
    words: Words = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def byte_of(words: Words, place: int) -> Integers:
    """The byte of every word at a place, 0 being the lowest: 0 to 255."""
    return (words >> np.uint64(8 * place) & np.uint64(255)).astype(np.int64)
