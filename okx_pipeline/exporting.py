"""Candles of a range as a file for other programs: CSV, Parquet or Feather, exact."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
from pyarrow import csv, feather
from pyarrow import parquet as pq

from okx_pipeline.candles import VALUE_COLUMNS
from okx_pipeline.errors import UsageError
from okx_pipeline.loading import NAMES, StoreName, load_candles
from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import StorageError
from okx_pipeline.storage.parquet import canonical_texts
from okx_pipeline.timeframes import Timeframe

STDOUT: Final = "-"


def export(
    settings: Settings,
    series: Sequence[tuple[str, Timeframe]],
    path: str,
    *,
    start_ms: int | None,
    end_ms: int | None,
    store: StoreName,
) -> int:
    """Write the candles of `series` that open in [start_ms, end_ms) to the file at `path`; returns how many.

    Parameters
    ----------
    path
        Its ending names the format: ``.csv``, ``.parquet`` or ``.feather``; ``-`` is CSV on stdout. A file that is
        there is replaced, whole or not at all.
    store
        ``parquet`` or ``postgres``; see `loading.load_candles`.

    Raises
    ------
    UsageError
        If the ending names no format.
    StorageError
        If the store is out of reach, or the file cannot be written.
    """
    write = _writer(path)
    tables = []
    for symbol, timeframe in series:
        table = load_candles(symbol, timeframe, start_ms, end_ms, store=store, kind="arrow", settings=settings)
        for name, value in (("timeframe", timeframe.name), ("symbol", symbol)):
            table = table.add_column(0, name, pa.array([value] * table.num_rows, pa.string()))
        tables.append(table)
    whole = pa.concat_tables(tables)
    if path == STDOUT:
        write(whole, sys.stdout.buffer)
    else:
        _replace(Path(path).expanduser(), whole, write)
    return int(whole.num_rows)


def _writer(path: str) -> Callable[[pa.Table, IO[bytes]], None]:
    writers = {".csv": _write_csv, ".parquet": _write_parquet, ".feather": _write_feather}
    ending = ".csv" if path == STDOUT else Path(path).suffix.lower()
    if ending not in writers:
        raise UsageError(f"{path!r} names no format by its ending; it is one of {', '.join(writers)}, or - for stdout")
    return writers[ending]


def _write_csv(table: pa.Table, sink: IO[bytes]) -> None:
    # As text without padding zeros: equal values are equal text, everywhere.
    for column in VALUE_COLUMNS:
        name = NAMES[column.name]
        texts = pa.array(canonical_texts(table[name]), pa.string())
        table = table.set_column(table.schema.get_field_index(name), name, texts)
    moments = table["open_time"].cast(pa.timestamp("ms")).cast(pa.string())
    table = table.set_column(table.schema.get_field_index("open_time"), "open_time", moments)
    csv.write_csv(table, sink, csv.WriteOptions(quoting_header="none", quoting_style="none"))


def _write_parquet(table: pa.Table, sink: IO[bytes]) -> None:
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)


def _write_feather(table: pa.Table, sink: IO[bytes]) -> None:
    feather.write_feather(table, sink, compression="zstd")


def _replace(path: Path, table: pa.Table, write: Callable[[pa.Table, Any], None]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with beside.open("wb") as sink:
                write(table, sink)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as problem:
        raise StorageError(f"cannot write {path}: {problem.strerror or problem}") from problem
