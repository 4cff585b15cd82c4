"""Which market a source names: a folder of recordings, or the word `synthetic`."""

from pathlib import Path
from typing import Final

from okx_pipeline.replay.market import Market
from okx_pipeline.replay.recordings import Recordings
from okx_pipeline.replay.synthetic import SyntheticMarket

SYNTHETIC: Final = "synthetic"


def open_market(source: str, *, seed: int = 7, symbols: int = 20) -> Market:
    """The market of a source; `seed` and `symbols` are read for a synthetic one only.

    Raises
    ------
    UsageError
        If the folder is missing, holds no recordings, or one that cannot be read.
    """
    return SyntheticMarket(seed, symbols) if source == SYNTHETIC else Recordings(Path(source))
