"""Damaged files: what is found by a look, noted, written again from PostgreSQL, and what stays noted."""

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.damage import check_archived, damaged_files, look_at_files, note_damage
from okx_pipeline.storage.database import Database, one, session_lock
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month, pending_months, restore_month
from okx_pipeline.timeframes import HOUR_MS, day_ms, parse_timeframe

SYMBOL = "BTC-USDT-SWAP"
HOUR = parse_timeframe("1h")
MONTHS = [SeriesMonth(SYMBOL, "1h", date(2026, 7, 1)), SeriesMonth(SYMBOL, "1h", date(2026, 8, 1))]


def rows(month: SeriesMonth) -> list[Candle]:
    first = day_ms(month.month)
    opens = range(first, first + 40 * HOUR_MS, HOUR_MS)
    return [Candle(SYMBOL, "1h", each, "10", "12", "9", "11", "5", "0.05", "0.55") for each in opens]


@pytest.fixture
def store(emptied_database: Database, tmp_path: Path) -> Iterator[CandleStore]:
    """Two months, both projected."""
    with CandleStore.opened(emptied_database, ParquetStore(str(tmp_path / "parquet"))) as opened:
        opened.land([each for month in MONTHS for each in rows(month)], source=Source.REST)
        opened.project([])
        yield opened


def look(store: CandleStore) -> list[SeriesMonth]:
    """Look at every file; the months that are noted as damaged."""
    assert look_at_files(store.connection, store.files, None, lambda took_s: True) is None
    return [each.key for each in damaged_files(store.connection)]


def remove(path: Path) -> None:
    path.unlink()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte_of_the_rows(path: Path) -> None:
    body = bytearray(path.read_bytes())
    for place in range(200, 400):
        body[place] ^= 0x40
    path.write_bytes(body)


def replace_by_another(path: Path) -> None:
    path.write_bytes((path.parent.parent / "month=2026-07" / path.name).read_bytes())


@pytest.mark.parametrize("harm", [remove, cut_off, replace_by_another])
def test_the_damaged_file_of_a_live_month_is_noted_by_a_look_and_written_again_by_the_next_projection(
    store: CandleStore, harm: Callable[[Path], None]
) -> None:
    assert look(store) == []
    before = store.files.read(MONTHS[1])
    harm(Path(store.files.place(MONTHS[1])))
    assert look(store) == [MONTHS[1]]
    assert pending_months(store.connection) == [MONTHS[1]]
    [projected] = store.project([])
    assert projected.written
    assert projected.damage is not None
    assert store.files.read(MONTHS[1]).equals(before)
    assert damaged_files(store.connection) == []
    assert pending_months(store.connection) == []


def test_a_file_that_is_noted_as_damaged_is_written_again_though_it_holds_the_same_rows(store: CandleStore) -> None:
    path = Path(store.files.place(MONTHS[1]))
    table = pq.read_table(path)
    pq.write_table(table.append_column("extra", table["timestamp_ms"]), path)
    note_damage(store.connection, MONTHS[1], "it has a column too many")
    store.project([])
    assert "extra" not in pq.read_schema(path).names


def test_the_damage_of_an_archived_month_stays_noted_until_its_file_is_back(store: CandleStore) -> None:
    archive_month(store.connection, store.files, MONTHS[0])
    path = Path(store.files.place(MONTHS[0]))
    whole = path.read_bytes()
    cut_off(path)
    for _ in range(2):
        assert look(store) == [MONTHS[0]]
        assert pending_months(store.connection) == []
        [found] = damaged_files(store.connection)
        assert found.archived
        assert str(path) in found.damage
    path.write_bytes(whole)
    assert look(store) == []
    assert restore_month(store.connection, store.files, MONTHS[0]) == 40


def test_a_byte_of_an_archived_file_that_has_flipped_is_found_when_the_file_is_read(store: CandleStore) -> None:
    archive_month(store.connection, store.files, MONTHS[0])
    path = Path(store.files.place(MONTHS[0]))
    whole = path.read_bytes()
    flip_a_byte_of_the_rows(path)
    assert look(store) == []
    assert check_archived(store.connection, store.files, MONTHS[0]) is not None
    assert [each.key for each in damaged_files(store.connection)] == [MONTHS[0]]
    path.write_bytes(whole)
    assert check_archived(store.connection, store.files, MONTHS[0]) is None
    assert damaged_files(store.connection) == []


def test_a_look_ends_when_it_is_told_to_and_the_next_goes_on_from_there(store: CandleStore) -> None:
    for month in MONTHS:
        remove(Path(store.files.place(month)))
    place = look_at_files(store.connection, store.files, None, lambda took_s: False)
    assert place == MONTHS[0]
    assert [each.key for each in damaged_files(store.connection)] == MONTHS[:1]
    assert look_at_files(store.connection, store.files, place, lambda took_s: True) is None
    assert [each.key for each in damaged_files(store.connection)] == MONTHS


def test_a_file_that_is_being_written_is_not_taken_for_damaged(store: CandleStore, emptied_database: Database) -> None:
    remove(Path(store.files.place(MONTHS[1])))
    with emptied_database.connect() as projector, session_lock(projector, "parquet", *map(str, MONTHS[1])):
        assert look(store) == []
    assert look(store) == [MONTHS[1]]


def test_the_file_of_a_month_that_was_emptied_is_kept_and_brings_its_rows_back(store: CandleStore) -> None:
    before = store.files.read(MONTHS[1])
    held = "SELECT trading.content_hash(symbol, timeframe, 0, 4000000000000) FROM trading.candlesticks LIMIT 1"
    hashed = one(store.connection, held)
    store.connection.execute("TRUNCATE trading.candlesticks_2026_08")
    # The ledger knows of no day here, but the landing's marks do.
    store.project([])
    [found] = damaged_files(store.connection)
    assert found.key == MONTHS[1]
    assert "holds none of its 40 rows" in found.damage
    assert "restore --month 2026-08 --symbols BTC-USDT-SWAP --timeframes 1h" in found.damage
    assert store.files.read(MONTHS[1]).equals(before)
    assert look(store) == [MONTHS[1]]
    assert pending_months(store.connection) == []
    assert restore_month(store.connection, store.files, MONTHS[1]) == 40
    assert one(store.connection, held) == hashed
    store.project([])
    assert damaged_files(store.connection) == []
    assert restore_month(store.connection, store.files, MONTHS[1]) == 0
