"""Which market a source names: a folder of recordings, or the word `synthetic`."""

from pathlib import Path
from typing import Final

from okx_pipeline.errors import UsageError
from okx_pipeline.replay.market import Market
from okx_pipeline.replay.recordings import Recordings
from okx_pipeline.replay.synthetic import SyntheticMarket

SYNTHETIC: Final = "synthetic"


def open_market(source: str, *, seed: int = 7, symbols: int = 20, fill: int | None = None) -> Market:
    """The market of a source.

    Parameters
    ----------
    source
        A folder of recordings, or `synthetic`.
    seed, symbols
        Of a synthetic market.
    fill
        Of recordings: seed of the candles that are made up where the recorder was down; None leaves holes.

    Raises
    ------
    UsageError
        If the folder is missing, holds no recordings or an unreadable one; if a synthetic market is to be filled.
    """
    if source != SYNTHETIC:
        return Recordings(Path(source), fill_seed=fill)
    if fill is not None:
        raise UsageError("a synthetic market has no holes; --fill is for a folder of recordings")
    return SyntheticMarket(seed, symbols)
