"""Projecting a month of 1m into Parquet: the file written, durable, with page checksums.

Ours is `ParquetStore.write` of the exact decimals. The peer is pyarrow writing the same values as doubles, and the
limit pyarrow writing the same table, both with the same compression and synced, without checksums or a name to keep.
The whole projection, read from PostgreSQL and hashed besides, is shown as well.
"""

import os
import tempfile
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contest import Contest, elapsed
from benchmarks.figures import Figure
from benchmarks.market import SYMBOL, candles
from okx_pipeline.candles import VALUE_COLUMNS, Source
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth, day_hashes
from okx_pipeline.storage.projection import project
from okx_pipeline.timeframes import day_ms

MONTH = date(2026, 8, 1)
MINUTES = 31 * 1_440
ROUNDS = 9


def run() -> list[Figure]:
    """How many times as fast as the limit and the peer."""
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(home=Path(home))
        files = ParquetStore(settings.parquet_root)
        month = SeriesMonth(SYMBOL, "1m", MONTH)
        with opened_database(settings) as database, database.connect() as connection:
            land(connection, candles(day_ms(MONTH), MINUTES, [SYMBOL]), source=Source.REST)
            whole_s = elapsed(lambda: project(connection, files, [month]))
        table = files.read(month).replace_schema_metadata(None)
        hashes = day_hashes(table)
        numbers = {column.name for column in VALUE_COLUMNS}
        doubles = pa.table(
            {name: table[name].cast(pa.float64()) if name in numbers else table[name] for name in table.schema.names}
        )
        beside = Path(home) / "beside.parquet"
        contest = Contest(
            {
                "ours": lambda: elapsed(lambda: files.write(month, table, hashes)),
                "pyarrow, doubles": lambda: elapsed(lambda: _write(doubles, beside)),
                "pyarrow, the same table": lambda: elapsed(lambda: _write(table, beside)),
            },
            ROUNDS,
        )
    return [
        *contest.times(),
        contest.speed("ours", "pyarrow, doubles"),
        contest.speed("ours", "pyarrow, the same table", at_least=0.8),
        Figure("the whole projection, seconds", whole_s),
    ]


def _write(table: pa.Table, path: Path) -> None:
    with path.open("wb") as sink:
        pq.write_table(table, sink, compression="zstd")
        sink.flush()
        os.fsync(sink.fileno())
