"""Partitions of the candle assets: UTC day by symbol, so that a key reads ``2026-01-01|BTC-USDT-SWAP``."""

import warnings
from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from typing import Final

import dagster as dg

from okx_pipeline.candles import parse_symbol
from okx_pipeline.errors import UsageError
from okx_pipeline.settings import read_settings

DATE: Final = "date"
SYMBOL: Final = "symbol"

symbols = dg.DynamicPartitionsDefinition(name="okx_symbols")
days = dg.DailyPartitionsDefinition(start_date=read_settings().partition_start.isoformat(), timezone="UTC")
days_with_today = dg.DailyPartitionsDefinition(
    start_date=read_settings().partition_start.isoformat(), timezone="UTC", end_offset=1
)
day_by_symbol = dg.MultiPartitionsDefinition({DATE: days, SYMBOL: symbols})
day_by_symbol_with_today = dg.MultiPartitionsDefinition({DATE: days_with_today, SYMBOL: symbols})


def partitioned_check(
    name: str, asset: dg.AssetKey, description: str, partitions: dg.MultiPartitionsDefinition, *, blocking: bool = False
) -> dg.AssetCheckSpec:
    """A check whose outcome Dagster keeps and shows for each partition of its asset."""
    with warnings.catch_warnings():
        # Partitioned checks are a preview in Dagster 1.13, and it says so on every load.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, description=description, partitions_def=partitions, blocking=blocking
        )


def key_of(day: date, symbol: str) -> dg.MultiPartitionKey:
    """The key of a symbol's day."""
    return dg.MultiPartitionKey({DATE: day.isoformat(), SYMBOL: symbol})


def day_and_symbol(key: str) -> tuple[date, str]:
    """The day and symbol of a key, which is plain text in some kinds of run.

    Raises
    ------
    UsageError
        If the key has no valid day or symbol: people can add partitions by hand.
    """
    day, _, symbol = str(key).partition("|")
    try:
        return date.fromisoformat(day), parse_symbol(symbol)
    except ValueError:
        raise UsageError(f"partition {str(key)!r} names no day; it reads like 2026-01-01|BTC-USDT-SWAP") from None


def days_by_symbol(keys: Iterable[str]) -> dict[str, list[date]]:
    """The days of each symbol, ascending: a run may hold any mixture of keys, in any order."""
    grouped: defaultdict[str, list[date]] = defaultdict(list)
    for day, symbol in sorted(map(day_and_symbol, keys)):
        grouped[symbol].append(day)
    return dict(grouped)
