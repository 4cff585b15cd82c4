"""Markets for the tests of the stand-in exchange."""

import time
from pathlib import Path

import pytest

from okx_pipeline.replay.recordings import Recordings
from okx_pipeline.replay.synthetic import SyntheticMarket


@pytest.fixture(scope="session")
def recorded(recordings: Path) -> Recordings:
    """The market of the real recordings."""
    return Recordings(recordings / "candles")


@pytest.fixture(scope="session")
def synthetic() -> SyntheticMarket:
    """A market of nine synthetic symbols and the delisted one."""
    return SyntheticMarket(seed=7, symbols=9)


@pytest.fixture(scope="session")
def wall_ms() -> int:
    """Now."""
    return int(time.time() * 1000)
