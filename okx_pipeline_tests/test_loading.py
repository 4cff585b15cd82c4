"""Candles for analysis: the same rows from either store, exact or fast, as frame or table, and as files."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv, feather
from pyarrow import parquet as pq

import okx_pipeline
from okx_pipeline.candles import VALUE_COLUMNS, Candle, Source
from okx_pipeline.errors import PipelineError, UsageError
from okx_pipeline.exporting import export
from okx_pipeline.loading import StoreName, load_candles, moment_ms
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.parquet import ARROW_SCHEMA, MOMENT, NUMBER, ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms, parse_timeframe

SYMBOL = "BTC-USDT-SWAP"
HOUR = parse_timeframe("1h")
START_MS = day_ms(date(2026, 7, 30))
OPENS = [START_MS + hour * HOUR_MS for hour in range(96)]
SMALL = "0.000000012345678901"
LARGE = "12345678901234567890.5"


def candle(number: int) -> Candle:
    price = f"{60_000 + number}.1"
    return Candle(SYMBOL, "1h", OPENS[number], price, "70000", SMALL, price, LARGE, "0", f"0.{25387 + number}")


@pytest.fixture
def settings(database: Database, tmp_path: Path) -> Settings:
    """A store of four days across the end of a month, the first month archived."""
    made = read_settings(home=tmp_path / "home", database_url=database.url)
    with CandleStore.opened(database, ParquetStore(made.parquet_root)) as store:
        later = datetime.now(tz=UTC) + timedelta(minutes=1)
        store.land([candle(number) for number in range(96)], source=Source.REST, requested_at=later)
        store.project([])
        archive_month(store.connection, store.files, SeriesMonth(SYMBOL, "1h", date(2026, 7, 1)))
    return made


@pytest.mark.parametrize("store", ["parquet", "postgres"])
@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        (None, None, slice(0, 96)),
        ("2026-07-31", "2026-08-02", slice(24, 72)),
        ("2026-07-31T22:30Z", datetime(2026, 8, 1, 2, tzinfo=UTC), slice(47, 50)),
        (START_MS, START_MS, slice(0, 0)),
        (date(2026, 9, 1), None, slice(0, 0)),
    ],
)
def test_a_range_is_the_same_exact_rows_from_either_store(
    settings: Settings, store: str, start: object, end: object, rows: slice
) -> None:
    table = load_candles(SYMBOL, "1H", start, end, store=store, kind="arrow", settings=settings)  # type: ignore[call-overload]
    assert table["timestamp_ms"].to_pylist() == OPENS[rows]
    wanted = [candle(number) for number in range(96)][rows]
    for name, place in (("open", 3), ("low", 5), ("volume", 7), ("volume_quote", 9)):
        assert table[name].to_pylist() == [Decimal(row[place]) for row in wanted]


def test_a_frame_is_indexed_by_open_time_in_utc(settings: Settings) -> None:
    frame = load_candles(SYMBOL, "1h", settings=settings)
    assert list(frame.columns) == ["open", "high", "low", "close", "volume", "volume_currency", "volume_quote"]
    assert frame.index.name == "open_time"
    assert frame.index[0] == pd.Timestamp("2026-07-30", tz="UTC")
    assert frame["volume"].iloc[0] == Decimal(LARGE)


def test_floats_are_floats_and_resample(settings: Settings) -> None:
    frame = load_candles(SYMBOL, "1h", numbers="float", settings=settings)
    assert {str(kind) for kind in frame.dtypes} == {"float64"}
    assert frame["close"].resample("1D").last().tolist() == [60_023.1, 60_047.1, 60_071.1, 60_095.1]


def test_floats_are_the_ones_nearest_to_the_decimals(settings: Settings) -> None:
    exact = load_candles(SYMBOL, "1h", settings=settings)
    fast = load_candles(SYMBOL, "1h", numbers="float", settings=settings)
    for name in exact:
        assert fast[name].tolist() == [float(str(number)) for number in exact[name]]


def test_the_package_offers_it_by_name_and_imports_nothing_for_it() -> None:
    assert okx_pipeline.load_candles is load_candles
    code = "import sys, okx_pipeline; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"pandas", "pyarrow", "psycopg", "pydantic"}.intersection(loaded)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("btc", "1h"), "not an OKX symbol"),
        ((SYMBOL, "1D"), "Hong Kong"),
        ((SYMBOL, "1h", "yesterday"), "start 'yesterday' is no moment"),
        ((SYMBOL, "1h", None, "2026-08-01T00:00"), "has no time zone"),
        ((SYMBOL, "1h", "2026-08-02", "2026-08-01"), "is not before end"),
    ],
)
def test_what_cannot_be_is_refused_in_words(settings: Settings, arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_candles(*arguments, settings=settings)  # type: ignore[call-overload]


def test_a_moment_is_exact_to_the_millisecond() -> None:
    assert moment_ms("start", "2026-08-01T00:00:00.123+02:00") == day_ms(date(2026, 8, 1)) - 2 * HOUR_MS + 123
    assert moment_ms("start", date(1970, 1, 2)) == DAY_MS


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            1_785_542_400,
            "start 1785542400 is 1970-01-21T15:59:02.400Z in milliseconds and 2026-08-01T00:00Z in seconds; "
            "write 1785542400000, or 2026-08-01T00:00Z as text",
        ),
        (1_785_542_400.5, "2026-08-01T00:00Z in seconds; write 1785542400000"),
        (
            1_785_542_400_000_000,
            "start 1785542400000000 is past the year 9999 in milliseconds and 2026-08-01T00:00Z in microseconds; "
            "write 1785542400000, or 2026-08-01T00:00Z as text",
        ),
        (pd.Timestamp("2026-08-01", tz="UTC").value, "2026-08-01T00:00Z in nanoseconds; write 1785542400000"),
        (2**63 - 1, "2262-04-11T23:47:16.854Z in nanoseconds"),
        (10**30, "start 1000000000000000000000000000000 is past the year 9999; write milliseconds, as 1785542400000"),
    ],
)
def test_a_number_of_another_unit_is_refused_with_both_readings(number: float, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        moment_ms("start", number)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^end "):
        load_candles(SYMBOL, "1h", "2026-07-01", number, settings=Settings(home=Path("/nonexistent")))  # type: ignore[call-overload]


def test_the_first_and_the_last_moment_there_are_may_be_written_as_numbers() -> None:
    assert [moment_ms("start", ms) for ms in (0, OPENS[0], 253_402_300_800_000)] == [0, OPENS[0], 253_402_300_800_000]


Export = Callable[[str], int]
VALUES = [column.name for column in VALUE_COLUMNS]
PEAKS = """
import resource, sys
from pathlib import Path
from okx_pipeline.exporting import export
from okx_pipeline.settings import read_settings
from okx_pipeline.timeframes import parse_timeframe
settings = read_settings(home=Path(sys.argv[1]), parquet_url=sys.argv[1] + "/parquet")
peaks = []
for end_ms in (1740787200000, None):
    series = [("BTC-USDT-SWAP", parse_timeframe("1m"))]
    rows = export(settings, series, sys.argv[2], start_ms=None, end_ms=end_ms, store="parquet")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(rows, *peaks)
"""
"""Exports two months, then a year, and prints the rows and the peak of memory after each in kB."""


@pytest.fixture
def exported(settings: Settings) -> Export:
    def to(path: str) -> int:
        series = [(SYMBOL, HOUR), ("ETH-USDT-SWAP", HOUR)]
        return export(settings, series, path, start_ms=OPENS[40], end_ms=OPENS[60], store="parquet")

    return to


def test_a_file_of_any_kind_holds_the_range_exactly(exported: Export, tmp_path: Path) -> None:
    for ending in ("csv", "parquet", "feather"):
        assert exported(str(tmp_path / f"candles.{ending}")) == 20
    lines = (tmp_path / "candles.csv").read_text().splitlines()
    assert lines[0] == (
        "symbol,timeframe,timestamp_ms,open_time,open,high,low,close,volume,volume_currency,volume_quote"
    )
    assert lines[1] == (
        f"{SYMBOL},1h,{OPENS[40]},2026-07-31 16:00:00.000,60040.1,70000,{SMALL},60040.1,{LARGE},0,0.25427"
    )
    tables = [pq.read_table(tmp_path / "candles.parquet"), feather.read_table(tmp_path / "candles.feather")]
    for table in tables:
        assert table["symbol"].to_pylist() == [SYMBOL] * 20
        assert table["low"].to_pylist() == [Decimal(SMALL)] * 20
        assert isinstance(table.schema.field("open_time").type, pa.TimestampType)


@pytest.mark.parametrize("store", ["parquet", "postgres"])
def test_a_file_holds_its_series_by_key_though_each_is_read_and_written_in_pieces(
    settings: Settings, tmp_path: Path, store: StoreName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("okx_pipeline.exporting.ROWS_AT_ONCE", 30)
    monkeypatch.setattr("okx_pipeline.storage.reading.CANDLES_AT_ONCE", 7)
    assert settings.database_url is not None
    database = Database(settings.database_url.get_secret_value())
    with CandleStore.opened(database, ParquetStore(settings.parquet_root)) as opened:
        others = [candle(number)._replace(symbol="ADA-USDT", timeframe="1h") for number in range(50, 55)]
        opened.land(others, source=Source.REST)
        opened.project([])
    wanted = [("ADA-USDT", ms) for ms in OPENS[50:55]] + [(SYMBOL, ms) for ms in OPENS[:90]]
    for ending in ("csv", "parquet", "feather"):
        path = tmp_path / f"candles.{ending}"
        series = [(SYMBOL, HOUR), ("ADA-USDT", HOUR), ("NONE-USDT", HOUR), (SYMBOL, HOUR)]
        assert export(settings, series, str(path), start_ms=None, end_ms=OPENS[90], store=store) == 95
        table = {"csv": csv.read_csv, "parquet": pq.read_table, "feather": feather.read_table}[ending](path)
        keys = zip(table["symbol"].to_pylist(), table["timestamp_ms"].to_pylist(), strict=True)
        assert list(keys) == wanted
    assert pq.ParquetFile(tmp_path / "candles.parquet").num_row_groups < 5


@pytest.mark.parametrize("ending", ["csv", "parquet", "feather"])
def test_an_export_of_a_year_takes_no_more_memory_than_one_of_two_months(tmp_path: Path, ending: str) -> None:
    files = ParquetStore(str(tmp_path / "parquet"))
    opens = np.arange(40_000) * 60_000 + day_ms(date(2025, 1, 1))
    columns: dict[str, Any] = {"timestamp_ms": opens, "open_time": pa.array(opens, pa.timestamp("ms", tz="UTC"))}
    columns |= {name: pa.array(opens // 60_000).cast(pa.decimal128(20, 0)).cast(NUMBER) for name in VALUES}
    columns["source"] = ["rest"] * len(opens)
    columns |= dict.fromkeys(("received_at", "updated_at"), pa.array(opens * 1_000, MOMENT))
    table = pa.table([columns[name] for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA)
    files.write(SeriesMonth(SYMBOL, "1m", date(2025, 1, 1)), table, {})
    # Every month with the rows of the first: how many there are is what counts.
    for month in (SeriesMonth(SYMBOL, "1m", date(2025, number, 1)) for number in range(2, 13)):
        Path(files.place(month)).parent.mkdir()
        os.link(files.place(SeriesMonth(SYMBOL, "1m", date(2025, 1, 1))), files.place(month))
    ended = subprocess.run(
        [sys.executable, "-c", PEAKS, str(tmp_path), f"{tmp_path}/candles.{ending}"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    rows, of_two_months, of_a_year = map(int, ended.stdout.split())
    assert rows == 12 * len(opens)
    # The allocator's own; all of them at once take 80 MB more, as CSV twice that.
    assert of_a_year - of_two_months < 50_000


def test_csv_may_go_to_stdout(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    assert exported("-") == 20
    assert written.getvalue().count(b"\n") == 21


def test_a_failed_export_leaves_the_old_file_and_nothing_beside(
    exported: Export, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match="names no format"):
        exported(str(tmp_path / "candles.xlsx"))
    with pytest.raises(PipelineError, match="cannot write"):
        exported(str(tmp_path / "nowhere" / "candles.csv"))
    # PostgreSQL has the rows of August as well, those of July are in their file alone.
    july, august = (
        ParquetStore(settings.parquet_root).place(SeriesMonth(SYMBOL, "1h", date(2026, month, 1))) for month in (7, 8)
    )
    os.truncate(august, 1_000)
    assert exported(str(tmp_path / "candles.csv")) == 20
    [warning] = caplog.messages
    assert warning.startswith(f"{august}: ")
    assert "the candles were read from PostgreSQL" in warning
    os.truncate(july, 1_000)
    (tmp_path / "candles.csv").write_text("what was there")
    with pytest.raises(PipelineError, match=re.escape(july)):
        exported(str(tmp_path / "candles.csv"))
    assert (tmp_path / "candles.csv").read_text() == "what was there"
    assert [path.name for path in tmp_path.glob("*candles*")] == ["candles.csv"]
