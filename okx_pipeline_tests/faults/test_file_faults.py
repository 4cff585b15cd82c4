"""Parquet files under faults: their writer killed anywhere, files cut off or changed behind the program's back."""

import random
from collections.abc import Callable
from datetime import date
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from okx_pipeline.alerts.sources import failed_quality_checks
from okx_pipeline.maintenance import upkeep
from okx_pipeline.maintenance.upkeep import look_after_months
from okx_pipeline.quality.data_docs import DataDocs
from okx_pipeline.quality.verdicts import judge_days
from okx_pipeline.settings import Settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import DAY_MS
from okx_pipeline_tests.faults.past import MakeSystem, a_past, day, fill, filled
from okx_pipeline_tests.faults.system import System
from okx_pipeline_tests.faults.table import is_full
from okx_pipeline_tests.storage.processes import Doom

DAYS = 75
"""From the end of August into November, the last one open: two months that are whole between two that are not."""

STEPS = [
    *[("okx_pipeline.storage.projection", name) for name in ("_marks", "_rows", "_note", "_settle")],
    ("okx_pipeline.storage.parquet", "_write_beside_and_rename"),
    ("pyarrow.parquet", "write_table"),
    ("os", "fsync"),
    ("pathlib:Path", "replace"),
]
"""What a projection does, one after the other, for every file."""

WORST = ("pyarrow.parquet:ParquetWriter", "close", False)
"""The rows are written, and the end of the file is not, without which nobody can read any of it."""


@pytest.fixture
def make_filled(make_system: MakeSystem) -> Callable[[int], System]:
    """Makes a system whose first days have landed and are in their files."""

    def make(days: int) -> System:
        system = a_past(make_system, DAYS)
        filled(system, 0, days)
        return system

    return make


def fill_and_die(
    settings: Settings, database: Database, start: date, end: date, owner: str, function: str, call: int, after: bool
) -> None:
    module, _, name = owner.partition(":")
    found = import_module(module)
    Doom(getattr(found, name) if name else found, function, call=call, after=after)
    fill(settings, database, start, end)


def files(system: System) -> list[Path]:
    """Every file below the root, whatever its name."""
    return sorted(path for path in Path(system.settings.parquet_root).rglob("*") if path.is_file())


def everybody_can_read(system: System) -> None:
    """As a user reads: the whole folder at once, and no candle twice."""
    table = pq.read_table(system.settings.parquet_root, columns=["timeframe", "symbol", "timestamp_ms"])
    assert table.group_by(table.column_names).aggregate([]).num_rows == table.num_rows > 0


@pytest.mark.fault(26, "Parquet's writer killed, files cut off, a pass run twice", tries=8)
def test_a_file_is_whole_for_readers_wherever_its_writer_is_killed_and_the_next_pass_completes_it(
    make_filled: Callable[[int], System],
) -> None:
    system = make_filled(20)
    reached = 20
    for number in range(5 if is_full() else 3):
        end = reached + system.randomly.randrange(3, 12)
        owner, function, after = (*system.randomly.choice(STEPS), system.randomly.random() < 0.5) if number else WORST
        call = system.randomly.randrange(1, 5)
        dies = (day(system, reached), day(system, end), owner, function, call, after)
        print(*dies)
        system.dies(system.process(fill_and_die, system.settings, system.database, *dies))
        system.holds_its_promises()
        everybody_can_read(system)
        reached = end
    filled(system, 0, DAYS + 1)
    system.recovers(20)
    assert {path.name for path in files(system)} == {"candles.parquet"}, "what was half-written is gone"
    before = [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in files(system)]
    again = filled(system, 0, DAYS + 1)
    assert again.projected
    assert not any(projected.written for projected in again.projected)
    assert [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in files(system)] == before


def cut(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def flip(path: Path, chance: random.Random) -> None:
    """One bit of a page, where nothing but the page's checksum tells."""
    group = pq.read_metadata(path).row_group(0)
    column = group.column(chance.randrange(group.num_columns))
    # Pages lie one after the other, each behind a header in which not every bit matters.
    end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    body = bytearray(path.read_bytes())
    body[end - chance.randrange(1, 9)] ^= 1 << chance.randrange(8)
    path.write_bytes(body)


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def another(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.choice([b"", b"PAR1" + chance.randbytes(500) + b"PAR1", chance.randbytes(2_000)]))


@pytest.mark.fault(26, "Parquet's writer killed, files cut off, a pass run twice", tries=10)
def test_damaged_files_are_made_anew_when_their_months_are_next_looked_at(
    make_filled: Callable[[int], System],
) -> None:
    system = make_filled(DAYS + 1)
    for harm, path in zip([cut, flip, remove, another], system.randomly.sample(files(system), 4), strict=True):
        harm(path, system.randomly)
    report = filled(system, 0, DAYS + 1)
    assert sum(projected.written for projected in report.projected) == 4
    assert all(projected.damage for projected in report.projected if projected.written)
    system.recovers(20)


def rows_left_out(table: pa.Table, at: int, chance: random.Random) -> pa.Table:
    return pa.concat_tables([table.slice(0, at), table.slice(at + chance.randrange(1, 50))])


def a_row_doubled(table: pa.Table, at: int, chance: random.Random) -> pa.Table:
    return pa.concat_tables([table.slice(0, at + 1), table.slice(at)])


def a_value_changed(table: pa.Table, at: int, chance: random.Random) -> pa.Table:
    index = table.schema.get_field_index("close_price")
    values = table["close_price"].to_pylist()
    values[at] += chance.choice([1, -1])
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def errors_of(system: System, judged: date) -> set[str]:
    """The checks that fail at the level of an error on a day."""
    with CandleStore.opened(system.database, ParquetStore(system.settings.parquet_root)) as store:
        wanted = {symbol: [judged] for symbol in system.settings.symbols}
        [found] = judge_days(store, DataDocs(system.settings.quality_folder), wanted)
    return {verdict.check for verdict in found.verdicts if not verdict.passed and verdict.is_error}


@pytest.mark.fault(27, "Parquet and PostgreSQL differ", tries=10)
def test_a_file_that_was_changed_behind_the_programs_back_is_found_and_made_anew_from_postgresql(
    make_filled: Callable[[int], System], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "READ_BACK_DAYS", 4)
    system = make_filled(DAYS + 1)
    long_ones = [path for path in files(system) if pq.read_metadata(path).num_rows > 60]
    path = system.randomly.choice([path for path in long_ones if "month=2026-08" not in str(path)])
    change = system.randomly.choice([rows_left_out, a_row_doubled, a_value_changed])
    table = pq.ParquetFile(path).read()
    at = system.randomly.randrange(table.num_rows - 20)
    judged = table["open_time"][at].as_py().date()
    # Read, changed and written back, with what it says of itself as it was.
    pq.write_table(change(table, at, system.randomly), path, write_page_checksum=True)
    print(f"{change.__name__} on {judged} in {path}")
    assert not system.checker.claims().is_sound
    with monkeypatch.context() as unrepaired:
        unrepaired.setattr("okx_pipeline.quality.verdicts.repair_copies", lambda *_: set())
        assert errors_of(system, judged)
    with system.database.connect() as connection:
        assert {each.symbol for each in failed_quality_checks(connection)} == {path.parts[-3].removeprefix("symbol=")}
    if system.randomly.random() < 0.5:
        # The check that finds it has it written again.
        assert errors_of(system, judged) == set()
        system.recovers(20)
        return
    # Nobody asks for the month any more: its turn comes within as many days as there are turns.
    with CandleStore.opened(system.database, ParquetStore(system.settings.parquet_root)) as store:
        for days in range(upkeep.READ_BACK_DAYS):
            look_after_months(store, {}, system.now_ms() + days * DAY_MS, account=False)
    system.recovers(20)
    assert errors_of(system, judged) == set()
