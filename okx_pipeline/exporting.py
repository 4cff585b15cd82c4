"""Candles of a range as a file for other programs: CSV, Parquet or Feather, exact, in constant memory."""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

import pyarrow as pa
from pyarrow import csv
from pyarrow import parquet as pq

from okx_pipeline.candles import VALUE_COLUMNS
from okx_pipeline.errors import UsageError
from okx_pipeline.loading import END_OF_TIME_MS, NAMES, StoreName, for_people, instead_of_damaged
from okx_pipeline.ranges import Range
from okx_pipeline.settings import Settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import StorageError
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore, canonical_texts
from okx_pipeline.storage.reading import SCHEMA, pieces_of_files, pieces_of_store
from okx_pipeline.timeframes import Timeframe

log = logging.getLogger(__name__)

STDOUT: Final = "-"
ROWS_AT_ONCE: Final = 65_536
"""Rows that are gathered before they are written, which makes a row group of a Parquet file."""

_SERIES: Final = (pa.field("symbol", pa.string()), pa.field("timeframe", pa.string()))
_EXACT: Final = pa.schema([*_SERIES, *for_people(SCHEMA.empty_table()).schema])
_TEXTS: Final = pa.schema(
    [field if field.type in (pa.string(), pa.int64()) else pa.field(field.name, pa.string()) for field in _EXACT]
)


class Writer(Protocol):
    """What writes the pieces of a file one after the other."""

    def write_table(self, table: pa.Table) -> None: ...


class Format(NamedTuple):
    """How a file is written: what opens it on a sink, and what makes its columns of exact ones."""

    opened: Callable[[IO[bytes]], AbstractContextManager[Writer]]
    columns: Callable[[pa.Table], pa.Table]


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
    series
        Written one after the other by symbol and length of candle, each in order of time.
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
        If the store is out of reach, a file of it damaged, or the file cannot be written.
    """
    form = _format(path)
    within = Range(0 if start_ms is None else start_ms, END_OF_TIME_MS if end_ms is None else end_ms)
    rows = 0
    with _sink(path) as sink, _reader(settings, store) as read, form.opened(sink) as writer:
        for piece in _gathered(_named(read(*each, within), *each) for each in sorted(set(series))):
            writer.write_table(form.columns(piece))
            rows += piece.num_rows
    return rows


Read = Callable[[str, Timeframe, Range], Iterator[pa.Table]]


@contextmanager
def _reader(settings: Settings, store: StoreName) -> Iterator[Read]:
    """What reads a range of a series piece by piece."""
    files = ParquetStore(settings.parquet_root)
    if store == "parquet":

        def read(symbol: str, timeframe: Timeframe, within: Range) -> Iterator[pa.Table]:
            def instead(wanted: Range, damage: DamagedFileError) -> pa.Table:
                return instead_of_damaged(settings, symbol, timeframe, wanted, damage, log.warning)

            return pieces_of_files(files, symbol, timeframe, within, instead)

        yield read
        return
    with opened_database(settings) as database, CandleStore.opened(database, files) as opened:
        yield lambda *what: pieces_of_store(opened, *what)


def _named(pieces: Iterator[pa.Table], symbol: str, timeframe: Timeframe) -> Iterator[pa.Table]:
    for piece in pieces:
        names = [pa.array([name] * piece.num_rows, pa.string()) for name in (symbol, timeframe.name)]
        yield pa.table([*names, *piece.columns], schema=_EXACT)


def _gathered(series: Iterator[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """The pieces of all series in tables of `ROWS_AT_ONCE` or a piece more."""
    waiting: list[pa.Table] = []
    for pieces in series:
        for piece in pieces:
            waiting.append(piece)
            if sum(each.num_rows for each in waiting) >= ROWS_AT_ONCE:
                yield pa.concat_tables(waiting)
                waiting.clear()
    if waiting:
        yield pa.concat_tables(waiting)


def _format(path: str) -> Format:
    formats = {
        ".csv": Format(_csv, _as_texts),
        ".parquet": Format(_parquet, _same),
        ".feather": Format(_feather, _same),
    }
    ending = ".csv" if path == STDOUT else Path(path).suffix.lower()
    if ending not in formats:
        raise UsageError(f"{path!r} names no format by its ending; it is one of {', '.join(formats)}, or - for stdout")
    return formats[ending]


def _csv(sink: IO[bytes]) -> AbstractContextManager[Writer]:
    options = csv.WriteOptions(quoting_header="none", quoting_style="none")
    writer: AbstractContextManager[Writer] = csv.CSVWriter(sink, _TEXTS, write_options=options)
    return writer


def _parquet(sink: IO[bytes]) -> AbstractContextManager[Writer]:
    writer: AbstractContextManager[Writer] = pq.ParquetWriter(
        sink, _EXACT, compression="zstd", write_page_checksum=True
    )
    return writer


def _feather(sink: IO[bytes]) -> AbstractContextManager[Writer]:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    writer: AbstractContextManager[Writer] = pa.ipc.new_file(sink, _EXACT, options=options)
    return writer


def _as_texts(table: pa.Table) -> pa.Table:
    # As text without padding zeros: equal values are equal text, everywhere.
    columns: dict[str, Any] = {name: table[name] for name in table.schema.names}
    columns["open_time"] = table["open_time"].cast(pa.timestamp("ms")).cast(pa.string())
    for column in VALUE_COLUMNS:
        name = NAMES[column.name]
        columns[name] = pa.array(canonical_texts(table[name]), pa.string())
    return pa.table(columns, schema=_TEXTS)


def _same(table: pa.Table) -> pa.Table:
    return table


@contextmanager
def _sink(path: str) -> Iterator[IO[bytes]]:
    """What is written to `path`, in whose place it is put once it is whole."""
    if path == STDOUT:
        yield sys.stdout.buffer
        return
    target = Path(path).expanduser()
    beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with _made(beside) as sink:
            yield sink
        beside.replace(target)
    except BaseException as problem:
        beside.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            raise StorageError(f"cannot write {target}: {problem.strerror or problem}") from problem
        raise


def _made(path: Path) -> IO[bytes]:
    # Nobody else's file and no link of theirs is written through; the user's umask says who may read it.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb")
