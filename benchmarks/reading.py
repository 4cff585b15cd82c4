"""Reading a year of 1m for analysis: exact as Arrow, and doubles as a pandas frame.

Ours is `load_candles` from the Parquet files. The peer asks PostgreSQL with pandas' `read_sql` over SQLAlchemy for the
same columns as doubles. The limit is pyarrow reading these columns of the same files, for pandas made doubles and a
frame, and nothing else.
"""

import tempfile
from datetime import date
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from benchmarks.contest import Contest, elapsed
from benchmarks.figures import Figure
from benchmarks.market import SYMBOL, candles
from okx_pipeline.candles import VALUE_COLUMNS, Source
from okx_pipeline.loading import load_candles
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.projection import pending_months, project
from okx_pipeline.timeframes import day_ms

YEAR = (date(2025, 1, 1), date(2026, 1, 1))
MINUTES = 365 * 1_440
ROUNDS = 5

_VALUES = [column.name for column in VALUE_COLUMNS]
_COLUMNS = ["timestamp_ms", "open_time", *_VALUES]
_QUERY = sa.text(
    f"SELECT timestamp_ms, {', '.join(f'{name}::float8' for name in _VALUES)} FROM trading.candlesticks "
    "WHERE symbol = :symbol AND timeframe = '1m' AND timestamp_ms >= :start AND timestamp_ms < :end "
    "ORDER BY timestamp_ms"
)


def run() -> list[Figure]:
    """How many times as fast as the peer and the limit."""
    start_ms, end_ms = map(day_ms, YEAR)
    bounds = {"symbol": SYMBOL, "start": start_ms, "end": end_ms}
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(home=Path(home))
        files = ParquetStore(settings.parquet_root)
        with opened_database(settings) as database, database.connect() as connection:
            land(connection, candles(start_ms, MINUTES, [SYMBOL]), source=Source.REST)
            project(connection, files, pending_months(connection))
            connection.execute("VACUUM (ANALYZE) trading.candlesticks")
            engine = sa.create_engine(database.url.replace("postgresql://", "postgresql+psycopg://", 1))
            paths = [files.place(month) for month in files.months(SYMBOL, "1m")]

            def arrow() -> object:
                return load_candles(SYMBOL, "1m", *YEAR, kind="arrow", settings=settings)

            def frame() -> object:
                return load_candles(SYMBOL, "1m", *YEAR, numbers="float", settings=settings)

            def peer() -> object:
                with engine.connect() as opened:
                    return pd.read_sql(_QUERY, opened, params=bounds)

            contest = Contest(
                {
                    "exact, Arrow: ours": lambda: elapsed(arrow),
                    "pyarrow": lambda: elapsed(lambda: _read(paths)),
                    "doubles, pandas: ours": lambda: elapsed(frame),
                    "pyarrow and pandas": lambda: elapsed(lambda: _framed(_read(paths))),
                    "read_sql": lambda: elapsed(peer),
                },
                ROUNDS,
            )
            engine.dispose()
    return [
        *contest.times(),
        contest.speed("exact, Arrow: ours", "read_sql", at_least=5.0),
        contest.speed("doubles, pandas: ours", "read_sql", at_least=5.0),
        contest.speed("exact, Arrow: ours", "pyarrow", at_least=0.75),
        contest.speed("doubles, pandas: ours", "pyarrow and pandas", at_least=0.75),
    ]


def _read(paths: list[str]) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(path).read(_COLUMNS) for path in paths])


def _framed(table: pa.Table) -> pd.DataFrame:
    columns = {name: table[name].cast(pa.float64()) if name in _VALUES else table[name] for name in _COLUMNS}
    return pa.table(columns).to_pandas()
