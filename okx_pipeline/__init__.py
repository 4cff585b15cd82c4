"""OKX candles you can trust: exact, live and back to listing, in PostgreSQL and Parquet."""

from typing import Any

__all__ = ["load_candles"]


def __getattr__(name: str) -> Any:
    # Most commands never load a candle: what that needs is imported when it is asked for.
    if name == "load_candles":
        from okx_pipeline.loading import load_candles

        return load_candles
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
