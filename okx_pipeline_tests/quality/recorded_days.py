"""The recordings as rows of a store, every whole day a series of its own, so that one batch judges them all."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa

from okx_pipeline.replay.bars import BARS
from okx_pipeline.replay.market import Scales
from okx_pipeline.replay.recordings import Recordings
from okx_pipeline.storage.parquet import NUMBER
from okx_pipeline.storage.quality_results import Store
from okx_pipeline.storage.quality_rows import (
    CANDLES,
    EARLIER,
    VALUES,
    DayRows,
    Expected,
    Flaws,
    InstrumentRules,
    SeriesKey,
)
from okx_pipeline.timeframes import DAY_MS, day_of, parse_timeframe

SYMBOLS = ("BTC-USDT-SWAP", "ETH-USDT-SWAP")
RECORDED = ("1m", "5m", "15m", "30m", "1h", "4h")


@dataclass
class RecordedDays:
    """All days, with what the ledger and the listing would say of them; the key of each is "SYMBOL YYYY-MM-DD"."""

    rows: DayRows
    expected: dict[SeriesKey, Expected]
    rules: dict[str, InstrumentRules]


def read(folder: Path) -> RecordedDays:
    """Every day that lies whole in a recording, holes taken for proven."""
    market = Recordings(folder)
    days = RecordedDays.__new__(RecordedDays)
    keys: list[SeriesKey] = []
    candles, earlier = [], []
    days.expected, days.rules = {}, {}
    for symbol in SYMBOLS:
        recorded = market._symbols[symbol]
        rules = recorded.rules
        for name in RECORDED:
            timeframe = parse_timeframe(name)
            series = recorded.recorded[BARS[timeframe.bar]]
            table = as_table(series.opens, series.columns, recorded.scales)
            for first in whole_days(series.opens, timeframe.length_ms):
                key = (f"{symbol} {day_of(first)}", name)
                here, before = np.searchsorted(series.opens, [first, first - DAY_MS])
                end = np.searchsorted(series.opens, first + DAY_MS)
                candles.append(numbered(table.slice(here, end - here), len(keys)))
                earlier.append(numbered(table.slice(before, here - before), len(keys)))
                expected = DAY_MS // timeframe.length_ms
                days.expected[key] = Expected(expected, absent=expected - int(end - here))
                days.rules[key[0]] = InstrumentRules(
                    True, False, Decimal(rules.contract_value), Decimal(rules.tick_size)
                )
                keys.append(key)
    whole = pa.concat_tables(candles)
    filled = {
        "source": pa.array(["rest"] * whole.num_rows),
        "received_at": pa.array([True] * whole.num_rows),
        "updated_at": pa.array([True] * whole.num_rows),
        "open_time_ms": pa.nulls(whole.num_rows, pa.int64()),
    }
    for name, column in filled.items():
        whole = whole.append_column(name, column)
    before = pa.concat_tables(earlier)
    days.rows = DayRows(
        tuple(keys),
        date(2026, 8, 1),
        Store.POSTGRES,
        whole.select(CANDLES.names).cast(CANDLES),
        pa.table({field.name: before[field.name].cast(field.type) for field in EARLIER}),
        {key: Flaws() for key in keys},
        frozenset(),
        datetime(2026, 11, 20, tzinfo=UTC),
    )
    return days


def as_table(opens: np.ndarray, columns: np.ndarray, scales: Scales) -> pa.Table:
    rows = scales.rows(opens, columns)[::-1]  # an answer of the exchange has the newest first
    texts = list(zip(*rows, strict=True))
    values = {name: pa.array(texts[1 + index]).cast(NUMBER) for index, name in enumerate(VALUES)}
    return pa.table({"timestamp_ms": pa.array(opens), **values})


def whole_days(opens: np.ndarray, length_ms: int) -> Iterator[int]:
    """The first millisecond of every day between the first and the last recorded candle that has its last candle."""
    first = -(-int(opens[0]) // DAY_MS) * DAY_MS
    for start in range(first, int(opens[-1]) + length_ms - DAY_MS + 1, DAY_MS):
        at = np.searchsorted(opens, start)
        if at < len(opens) and opens[at] < start + DAY_MS:
            yield start


def numbered(table: pa.Table, number: int) -> pa.Table:
    return table.append_column("series", pa.array(np.full(table.num_rows, number, dtype=np.int32)))
