"""The Parquet files of the store, one a series-month: layout, schema, hashes, and how one is written and read.

A reader never sees a half-written file: in a folder a file is written beside the old one, synced and renamed over it;
on S3 an object appears whole. `projection` decides when a file is written, and from what.

The metadata of a file says what it holds: ``okx_pipeline.day_sha256`` is a JSON object with the hash of every UTC day
that has rows, equal to ``trading.content_hash`` of that day in PostgreSQL; ``okx_pipeline.content_sha256`` is the hash
of the month, computed from those.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from okx_pipeline.candles import FRACTION_DIGITS, INTEGER_DIGITS, VALUE_COLUMNS, parse_symbol
from okx_pipeline.errors import UsageError
from okx_pipeline.storage.database import StorageError
from okx_pipeline.timeframes import DAY_MS, day_of, parse_timeframe

NUMBER: Final = pa.decimal128(INTEGER_DIGITS + FRACTION_DIGITS, FRACTION_DIGITS)
MOMENT: Final = pa.timestamp("us", tz="UTC")
ARROW_SCHEMA: Final = pa.schema(
    [
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("open_time", pa.timestamp("ms", tz="UTC"), nullable=False),
        *(pa.field(column.name, NUMBER, nullable=False) for column in VALUE_COLUMNS),
        pa.field("source", pa.string(), nullable=False),
        pa.field("received_at", MOMENT, nullable=False),
        pa.field("updated_at", MOMENT, nullable=False),
    ]
)
"""Columns of a file; symbol, timeframe and month stand in its path."""

MONTH_HASH_KEY: Final = b"okx_pipeline.content_sha256"
DAY_HASHES_KEY: Final = b"okx_pipeline.day_sha256"
FOLDER: Final = "candlesticks"
FILE: Final = "candles.parquet"
_TEMPORARY: Final = f".{FILE}*.tmp"  # readers of a folder skip names that begin with a dot
_ROWS_A_GROUP: Final = 122_880
_KEY: Final = "timestamp_ms"
_KEY_ALONE: Final = pa.schema([ARROW_SCHEMA.field(_KEY)])
_DAY_HASHES: Final = msgspec.json.Decoder(dict[date, str])


class SeriesMonth(NamedTuple):
    """A series in a month, by the month's first day: what a file holds."""

    symbol: str
    timeframe: str
    month: date

    @property
    def path(self) -> str:
        """Path of its file below the root of the store.

        Raises
        ------
        UsageError
            If symbol or timeframe cannot be one: a path of them could lead out of the store.
        """
        return f"{_folder(self.symbol, self.timeframe)}/month={self.month:%Y-%m}/{FILE}"

    def __str__(self) -> str:
        return f"{self.symbol} {self.timeframe} {self.month:%Y-%m}"


@dataclass(frozen=True, slots=True)
class FileState:
    """What a file says of itself: how many rows it has, the hash of the month, and that of every day with rows."""

    rows: int
    content_hash: str
    day_hashes: dict[date, str]


class DamagedFileError(StorageError):
    """A Parquet file is missing, cut off, fails a page's checksum, or does not hold the rows that it should."""


class ParquetStore:
    """The files below a root, which is a folder or an ``s3://`` URL.

    Parameters
    ----------
    root
        An absolute folder, or ``s3://bucket/prefix``; options of pyarrow's S3 file system may follow as a query, for
        example ``?endpoint_override=localhost:9000&scheme=http``. Credentials come from the usual AWS places.

    Raises
    ------
    UsageError
        If the URL cannot be read or names no bucket.
    StorageError
        If the object store has to be asked for the bucket's region and cannot be reached.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._local = None if root.startswith("s3://") else Path(root)
        if self._local is None:
            try:
                self._remote, self._prefix = fs.FileSystem.from_uri(root)
            except pa.ArrowInvalid as problem:
                # Before an @ stand credentials, which the library's message would repeat.
                why = "" if "@" in root else f": {_first_line(problem)}"
                raise UsageError(f"OKX_PARQUET_URL cannot be read as s3://bucket/prefix?options{why}") from None
            except OSError as problem:
                raise StorageError(f"OKX_PARQUET_URL: {_first_line(problem)}") from problem
            if not self._prefix:
                raise UsageError("OKX_PARQUET_URL names no bucket; write s3://bucket/prefix")

    @property
    def is_local(self) -> bool:
        """Whether the files are in a folder, where looking at one costs nothing."""
        return self._local is not None

    def place(self, month: SeriesMonth) -> str:
        """Where the file of `month` is: an absolute path or an s3:// URL without options."""
        if self._local is not None:
            return str(self._local / month.path)
        return f"s3://{self._prefix}/{month.path}"

    def state(self, month: SeriesMonth) -> FileState | None:
        """What the file says of itself; None where there is none.

        Raises
        ------
        DamagedFileError
            If its footer cannot be read: it was cut off, or is no Parquet file of ours; or its hashes contradict
            one another.
        StorageError
            If the folder cannot be read or the object store is out of reach.
        """
        try:
            with self.opened(month) as source:
                metadata = pq.read_metadata(source)
                keys = metadata.metadata or {}
                if not {MONTH_HASH_KEY, DAY_HASHES_KEY} <= keys.keys():
                    raise DamagedFileError(f"{self.place(month)}: it carries no content hash")
                hashes = _DAY_HASHES.decode(keys[DAY_HASHES_KEY])
        except FileNotFoundError:
            return None
        state = FileState(metadata.num_rows, keys[MONTH_HASH_KEY].decode(errors="replace"), hashes)
        if month_hash(hashes) != state.content_hash:
            raise DamagedFileError(f"{self.place(month)}: its hashes contradict one another")
        return state

    def read(self, month: SeriesMonth) -> pa.Table:
        """The rows of a file in key order, every page's checksum verified.

        Raises
        ------
        DamagedFileError
            If there is none, a page or the footer is damaged, or a row is out of order.
        StorageError
            If the folder cannot be read or the object store is out of reach.
        """
        return self.columns(month, ARROW_SCHEMA)

    def opens(self, month: SeriesMonth) -> list[int]:
        """The open times of a file's rows, ascending: that column alone is read, its pages' checksums verified.

        Raises
        ------
        DamagedFileError, StorageError
            As `read` does.
        """
        opens: list[int] = self.columns(month, _KEY_ALONE)[_KEY].to_pylist()
        return opens

    def write(
        self,
        month: SeriesMonth,
        table: pa.Table,
        hashes: Mapping[date, str],
        *,
        for_good: bool = False,
        confirm: Callable[[], object] = lambda: None,
    ) -> None:
        """Replace the file of `month` by one that holds `table`, durably.

        Parameters
        ----------
        month
            Which file.
        table
            Its rows in key order, as `ARROW_SCHEMA` has them.
        hashes
            The hash of every day that has rows.
        for_good
            Whether the file is unlikely to be written again, so that it pays to spend time on making it small.
        confirm
            Called when everything is written and nothing is replaced yet; if it raises, the old file stays. In a folder
            the rename follows at once. On S3 the upload follows, which nothing can take back: for as long as it takes,
            another writer may come in between.

        Raises
        ------
        StorageError
            If the disk is full, the folder not writable, the object store out of reach, or another writer has begun to
            write the same file; the old file is untouched.
        """
        by_day = msgspec.json.encode(dict(sorted(hashes.items())))
        table = table.replace_schema_metadata({MONTH_HASH_KEY: month_hash(hashes).encode(), DAY_HASHES_KEY: by_day})
        self._put(month, lambda sink: _encode(table, sink, for_good=for_good), confirm)

    def read_bytes(self, month: SeriesMonth) -> bytes:
        """A file as it is.

        Raises
        ------
        DamagedFileError
            If there is none.
        StorageError
            If it cannot be read.
        """
        try:
            with self.opened(month) as source:
                return bytes(source.read())
        except FileNotFoundError as problem:
            raise DamagedFileError(f"{self.place(month)}: there is no such file") from problem

    def write_bytes(self, month: SeriesMonth, body: bytes) -> None:
        """Write a file as it is, in place of the one that is there, durably.

        Raises
        ------
        StorageError
            As `write` does.
        """
        self._put(month, lambda sink: sink.write(body), lambda: None)

    def remove(self, month: SeriesMonth) -> None:
        """Remove a file; one that is not there is left at that.

        Raises
        ------
        StorageError
            If it cannot be removed: no permission, or the object store is out of reach.
        """
        try:
            if self._local is not None:
                (self._local / month.path).unlink(missing_ok=True)
            elif self._remote.get_file_info(f"{self._prefix}/{month.path}").type is not fs.FileType.NotFound:
                self._remote.delete_file(f"{self._prefix}/{month.path}")
        except OSError as problem:
            raise StorageError(f"cannot remove {self.place(month)}: {_first_line(problem)}") from problem

    def months(self, symbol: str, timeframe: str) -> list[SeriesMonth]:
        """The months of a series that there are files of, ascending.

        Raises
        ------
        StorageError
            If the folder cannot be read or the object store is out of reach.
        """
        folder = _folder(symbol, timeframe)
        try:
            if self._local is not None:
                names = [path.parent.name for path in (self._local / folder).glob(f"month=*/{FILE}")]
            else:
                selector = fs.FileSelector(f"{self._prefix}/{folder}", allow_not_found=True, recursive=True)
                found = self._remote.get_file_info(selector)
                names = [info.path.split("/")[-2] for info in found if info.path.endswith(f"/{FILE}")]
        except OSError as problem:
            raise StorageError(f"cannot read {self.root.partition('?')[0]}: {_first_line(problem)}") from problem
        firsts = sorted(date.fromisoformat(f"{name.removeprefix('month=')}-01") for name in names)
        return [SeriesMonth(symbol, timeframe, first) for first in firsts]

    def columns(self, month: SeriesMonth, schema: pa.Schema) -> pa.Table:
        """The columns of `schema` alone, of which the key has to be one; else as `read`."""
        try:
            with self.opened(month) as source:
                table = pq.ParquetFile(source, page_checksum_verification=True).read(schema.names).cast(schema)
        except FileNotFoundError as problem:
            raise DamagedFileError(f"{self.place(month)}: there is no such file") from problem
        opens = table[_KEY].to_numpy()
        if not np.all(opens[1:] > opens[:-1]):
            raise DamagedFileError(f"{self.place(month)}: its rows are out of order or doubled")
        return table

    @contextmanager
    def opened(self, month: SeriesMonth) -> Iterator[Any]:
        """The file of `month`, open to be read.

        Raises
        ------
        FileNotFoundError
            If there is none.
        DamagedFileError
            If what is read of it in the block is damaged, or it is there and cannot be opened.
        StorageError
            If the folder cannot be read or the object store is out of reach.
        """
        try:
            if self._local is not None:
                source: Any = pa.OSFile(str(self._local / month.path))
            else:
                source = self._remote.open_input_file(f"{self._prefix}/{month.path}")
        except FileNotFoundError:
            raise
        except OSError as problem:
            if self._local is not None and os.path.exists(self._local / month.path):
                # Only this file is at fault, and no other is to wait for it.
                raise DamagedFileError(f"{self.place(month)}: it cannot be read: {_first_line(problem)}") from problem
            raise StorageError(f"cannot read {self.place(month)}: {_first_line(problem)}") from problem
        with source:
            try:
                yield source
            except (pa.ArrowException, OSError, ValueError) as problem:
                raise DamagedFileError(f"{self.place(month)}: {_first_line(problem)}") from problem

    def _put(self, month: SeriesMonth, write: Callable[[Any], object], confirm: Callable[[], object]) -> None:
        try:
            if self._local is not None:
                _write_beside_and_rename(self._local / month.path, write, confirm)
            else:
                # In memory first: closing a stream that failed halfway would complete the object as it is.
                buffer = io.BytesIO()
                write(buffer)
                confirm()
                with self._remote.open_output_stream(f"{self._prefix}/{month.path}") as sink:
                    sink.write(buffer.getvalue())
        except OSError as problem:
            raise StorageError(
                f"cannot write {self.place(month)}: {_first_line(problem)}; PostgreSQL has the rows: "
                "fix that and run the same again"
            ) from problem


def _folder(symbol: str, timeframe: str) -> str:
    return f"{FOLDER}/timeframe={parse_timeframe(timeframe).name}/symbol={parse_symbol(symbol)}"


def _write_beside_and_rename(path: Path, write: Callable[[Any], object], confirm: Callable[[], object]) -> None:
    """Write a file beside `path`, sync it, and rename it over `path` if `confirm` does not raise.

    Whoever comes here removes the unfinished files of others. So a writer that has lost its lock cannot rename an older
    file over a newer one, wherever it was stopped: if it began before the new owner of the lock came here, its file is
    gone and its rename fails; if it began later, the lock was lost by then, and `confirm` raises.
    """
    unsynced = [path.parent, *_made(path.parent)]
    for unfinished in path.parent.glob(_TEMPORARY):
        unfinished.unlink(missing_ok=True)
    beside = path.with_name(_TEMPORARY.replace("*", f".{token_hex(8)}"))
    try:
        with beside.open("xb") as sink:
            write(sink)
            sink.flush()
            os.fsync(sink.fileno())
        confirm()
        beside.replace(path)
    except BaseException:
        # On a full disk it would take the space that everything else waits for.
        beside.unlink(missing_ok=True)
        raise
    for folder in unsynced:
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _made(folder: Path) -> list[Path]:
    """Make `folder`; returns the folders that have a new one in them, which is not there for good until synced."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return [each.parent for each in missing]


def _encode(table: pa.Table, sink: Any, *, for_good: bool) -> None:
    # Delta-encoding the times of a BTC-USDT-SWAP month of 1m takes 1 kB instead of 72 and shrinks the file by 13 %, in
    # 60 ms instead of 15.
    times = [field.name for field in table.schema if not pa.types.is_decimal(field.type) and field.name != "source"]
    smaller = {"compression_level": 9, "column_encoding": dict.fromkeys(times, "DELTA_BINARY_PACKED")}
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=_ROWS_A_GROUP,
        # A flipped byte is read without an error otherwise.
        write_page_checksum=True,
        sorting_columns=[pq.SortingColumn(0)],
        use_dictionary=["source"],
        **(smaller if for_good else {}),
    )


def day_hashes(table: pa.Table) -> dict[date, str]:
    """Of every UTC day with rows in `table`, in key order, the sha256 over its canonical rows.

    What ``trading.content_hash`` is for the day in PostgreSQL.
    """
    columns: list[Iterable[str]] = [map(str, table[_KEY].to_pylist())]
    columns += [canonical_texts(table[column.name]) for column in VALUE_COLUMNS]
    lines = (",".join(row) + "\n" for row in zip(*columns, strict=True))
    days, counts = np.unique(table[_KEY].to_numpy() // DAY_MS, return_counts=True)
    return {
        day_of(day * DAY_MS): hashlib.sha256("".join(islice(lines, rows)).encode()).hexdigest()
        for day, rows in zip(days.tolist(), counts.tolist(), strict=True)
    }


def month_hash(hashes: Mapping[date, str]) -> str:
    """The hash of a month by those of its days: the sha256 over the lines "YYYY-MM-DD hash" of days with rows."""
    lines = "".join(f"{day} {hashes[day]}\n" for day in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def canonical_texts(numbers: pa.ChunkedArray) -> list[str]:
    """Decimals as canonical text: no padding zeros, no exponent."""
    texts = pc.cast(numbers, pa.string())
    plain = pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".")
    return [
        text if not scientific else (f"{number:f}".rstrip("0").rstrip(".") if number else "0")
        for text, scientific, number in _with_numbers(plain, texts, numbers)
    ]


def _with_numbers(plain: Any, texts: Any, numbers: Any) -> Iterable[tuple[str, bool, Any]]:
    # Arrow writes small numbers, and zero, with an exponent.
    scientific = pc.match_substring(texts, "E").to_pylist()
    if not any(scientific):
        return ((text, False, None) for text in plain.to_pylist())
    values = (number.as_py() if small else None for number, small in zip(numbers, scientific, strict=True))
    return zip(plain.to_pylist(), scientific, values, strict=True)


def _first_line(problem: Exception) -> str:
    return str(problem).partition("\n")[0]
