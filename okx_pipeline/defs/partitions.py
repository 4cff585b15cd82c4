"""Partitions of the candle assets: UTC day by symbol, so that a key reads ``2026-01-01|BTC-USDT-SWAP``."""

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


def key_of(day: date, symbol: str) -> dg.MultiPartitionKey:
    """The key of a symbol's day."""
    return dg.MultiPartitionKey({DATE: day.isoformat(), SYMBOL: symbol})


def day_and_symbol(key: str) -> tuple[date, str]:
    """What a key stands for. Under some ways of running a key is plain text.

    Raises
    ------
    UsageError
        If it is none: partitions of symbols can be added by hand.
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
