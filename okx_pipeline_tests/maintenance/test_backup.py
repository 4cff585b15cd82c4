"""Backup and restore: what comes back into an empty database is what was there, hash for hash."""

import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from okx_pipeline.candles import Refused, Source
from okx_pipeline.errors import UsageError
from okx_pipeline.maintenance import backup
from okx_pipeline.maintenance.backup import back_up, restore
from okx_pipeline.maintenance.upkeep import look_after_months
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.dumps import Tools
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import pending_months, restore_month
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, parse_timeframe
from okx_pipeline_tests.maintenance.conftest import BTC, NOW_MS, SEASON, TIMEFRAMES, candles
from okx_pipeline_tests.storage.processes import Doom, killed, start

HOUR = parse_timeframe("1h")
JANUARY = SeriesMonth(BTC, "1h", date(2023, 1, 1))
LATER_MS = NOW_MS + 60 * DAY_MS


@pytest.fixture
def settings(database: Database, store: CandleStore, tmp_path: Path) -> Settings:
    return read_settings(home=tmp_path / "home", database_url=database.url, parquet_url=store.files.root)


@pytest.fixture
def lived_in(season: CandleStore, database: Database) -> CandleStore:
    """Four months: January's hours and all of February archived, a correction, a refused row."""
    look_after_months(season, {HOUR: 60}, LATER_MS, [JANUARY.month])
    look_after_months(season, dict.fromkeys(TIMEFRAMES, 60), LATER_MS, [date(2023, 2, 1)])
    at = one(season.connection, "SELECT clock_timestamp()")
    start_ms = SEASON[0] + 80 * DAY_MS
    corrected = [each._replace(close_price="11.5") for each in candles(HOUR, start_ms, start_ms + HOUR_MS)]
    refused = Refused(BTC, "1h", start_ms, "a price is zero", '["what", "OKX", "sent"]')
    season.land(corrected, [refused], source=Source.REST, requested_at=at)
    season.project([])
    season.account(NOW_MS)
    season.connection.execute("INSERT INTO trading.store_facts (name, value) VALUES ('origin', 'replay')")
    with database.connect() as dagster:
        dagster.execute("CREATE TABLE dagster.runs (run_id text)")
        dagster.execute("INSERT INTO dagster.runs VALUES ('a run')")
    return season


@pytest.fixture
def empty(new_database: Callable[[bool], Database]) -> Database:
    return new_database(False)


def elsewhere(settings: Settings, database: Database, tmp_path: Path) -> Settings:
    """The settings of a store that is not there yet."""
    return read_settings(home=settings.home, database_url=database.url, parquet_url=str(tmp_path / "restored"))


def tables(connection: Connection) -> dict[str, list[Any]]:
    """Every row of every table of ours, as text in order, but for what holds for one server or names a moment."""
    names = connection.execute(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('trading', 'dagster') "
        "AND tablename !~ 'yoyo|audit_requests' ORDER BY 1, 2"
    ).fetchall()
    without = {"candle_months": "projected_at, projection_ms, rebuilt_hash", "month_partitions": "attached"}
    found = {}
    for schema, name in names:
        columns = without.get(name)
        row = "to_jsonb(t)" if columns is None else f"to_jsonb(t) - '{{{columns.replace(' ', '')}}}'::text[]"
        found[name] = connection.execute(f"SELECT ({row})::text FROM {schema}.{name} AS t ORDER BY 1").fetchall()
    return found


def shapes(connection: Connection) -> list[Any]:
    """Constraints, indexes, triggers and functions of ours."""
    return connection.execute(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'trading'::regnamespace "
        "UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'trading' "
        "UNION ALL SELECT tgrelid::regclass::text, tgname || tgtype FROM pg_trigger WHERE NOT tgisinternal "
        "UNION ALL SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc "
        "WHERE pronamespace = 'trading'::regnamespace ORDER BY 1, 2"
    ).fetchall()


HASHES = """
SELECT symbol, timeframe, trading.content_hash(symbol, timeframe, 0, 4000000000000)
FROM (SELECT DISTINCT symbol, timeframe FROM trading.candlesticks) AS series ORDER BY 1, 2
"""


def test_everything_comes_back_into_an_empty_database_hash_for_hash(
    lived_in: CandleStore, settings: Settings, database: Database, empty: Database, tmp_path: Path
) -> None:
    made = back_up(settings, database, tmp_path / "store.backup")
    assert (made.months, made.archived) == (4 * len(TIMEFRAMES), 1 + len(TIMEFRAMES))
    assert (tmp_path / "store.backup").stat().st_mode & 0o777 == 0o600
    target = elsewhere(settings, empty, tmp_path)
    restored = restore(target, empty, tmp_path / "store.backup")
    assert (restored.months, restored.archived) == (made.months, made.archived)
    files = ParquetStore(target.parquet_root)
    with empty.connect() as connection:
        assert connection.execute(HASHES).fetchall() == lived_in.connection.execute(HASHES).fetchall()
        assert len(connection.execute(HASHES).fetchall()) == len(TIMEFRAMES)
        assert tables(connection) == tables(lived_in.connection)
        assert shapes(connection) == shapes(lived_in.connection)
        assert pending_months(connection) == []
        # Nobody has seen the new tables yet, and the whole store is held against its ledger.
        assert one(connection, "SELECT count(*) FROM trading.month_partitions WHERE attached IS NOT NULL") == 0
        assert one(connection, "SELECT count(*) FROM trading.audit_requests") == 1
        for timeframe in TIMEFRAMES:
            for month in range(1, 5):
                key = SeriesMonth(BTC, timeframe.name, date(2023, month, 1))
                assert files.read(key) == lived_in.files.read(key)
        # And it goes on from there.
        back = CandleStore(connection, files, "here")
        assert back.opens(BTC, HOUR, *SEASON) == lived_in.opens(BTC, HOUR, *SEASON)
        assert restore_month(connection, files, JANUARY) == 31 * 24
        assert back.land(candles(HOUR, SEASON[1], SEASON[1] + HOUR_MS), source=Source.WEBSOCKET).inserted == 1
        assert one(connection, "SELECT has_table_privilege('okx_reader', 'trading.candlesticks', 'SELECT')")


def test_what_lands_while_it_is_made_is_in_it_whole_or_not_at_all(
    lived_in: CandleStore, settings: Settings, database: Database, empty: Database, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = tables(lived_in.connection)
    dump = Tools.dump

    def dump_while_more_lands(tools: Tools, *arguments: Any) -> None:
        lived_in.land(candles(HOUR, SEASON[1], SEASON[1] + 5 * HOUR_MS), source=Source.WEBSOCKET)
        lived_in.land(candles(HOUR, SEASON[0] + 400 * DAY_MS, SEASON[0] + 500 * DAY_MS), source=Source.REST)
        # The months wait for the backup: a dump would see neither the old nor the new partition.
        with database.connect() as own:
            done = look_after_months(
                CandleStore(own, lived_in.files, "here"), dict.fromkeys(TIMEFRAMES, 60), LATER_MS, [date(2023, 3, 1)]
            )
        assert "read or written all the time" in str(done.done[0].problems)
        dump(tools, *arguments)

    monkeypatch.setattr(Tools, "dump", dump_while_more_lands)
    monkeypatch.setattr("okx_pipeline.storage.partitions.SWAP_WITHIN_S", 0.05)
    back_up(settings, database, tmp_path / "store.backup")
    restore(elsewhere(settings, empty, tmp_path), empty, tmp_path / "store.backup")
    with empty.connect() as connection:
        assert tables(connection) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "not a backup", "another zip"])
def test_a_damaged_backup_restores_nothing_and_says_so(
    lived_in: CandleStore, settings: Settings, database: Database, empty: Database, tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "store.backup"
    back_up(settings, database, file)
    whole = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        dump = archive.getinfo(backup.DUMP)
    if damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        whole[dump.header_offset + dump.file_size // 2] ^= 1
        file.write_bytes(whole)
    elif damage == "not a backup":
        file.write_text("something else")
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("other", "thing")
    with pytest.raises((StorageError, UsageError)) as told:
        restore(elsewhere(settings, empty, tmp_path), empty, file)
    assert str(file) in str(told.value) or "pg_restore failed" in str(told.value)
    assert "\n" not in str(told.value)
    with empty.connect() as connection:
        assert one(connection, "SELECT to_regnamespace('trading') IS NULL")


def test_nothing_is_ever_written_over(
    lived_in: CandleStore, settings: Settings, database: Database, empty: Database, tmp_path: Path
) -> None:
    file = tmp_path / "store.backup"
    back_up(settings, database, file)
    with pytest.raises(UsageError, match="exists already"):
        back_up(settings, database, file)
    with pytest.raises(UsageError, match="the database is not empty"):
        restore(settings, database, file)
    other = ParquetStore(str(tmp_path / "restored"))
    later = lived_in.files.read(JANUARY).slice(1)
    other.write(JANUARY, later, {})
    with pytest.raises(UsageError, match="holds something else than the backup, and 0 more do"):
        restore(elsewhere(settings, empty, tmp_path), empty, file)
    assert other.read(JANUARY) == later
    with pytest.raises(UsageError, match="there is no folder"):
        back_up(settings, database, tmp_path / "nowhere" / "store.backup")
    with pytest.raises(UsageError, match=r"there is no .*gone"):
        restore(elsewhere(settings, empty, tmp_path), empty, tmp_path / "gone")


def test_beside_the_files_it_was_made_from_a_restore_writes_none_anew(
    lived_in: CandleStore, settings: Settings, database: Database, empty: Database, tmp_path: Path
) -> None:
    back_up(settings, database, tmp_path / "store.backup")
    files = sorted(Path(settings.parquet_root).rglob("*.parquet"))
    live = [path for path in files if "month=2023-03" in str(path)]
    before = [path.stat().st_mtime_ns for path in live]
    restore(read_settings(home=settings.home, database_url=empty.url, parquet_url=settings.parquet_root), empty,
            tmp_path / "store.backup")  # fmt: skip
    assert [path.stat().st_mtime_ns for path in live] == before
    assert sorted(Path(settings.parquet_root).rglob("*.parquet")) == files


def test_an_archived_file_that_is_damaged_is_not_backed_up_as_if_it_were_whole(
    lived_in: CandleStore, settings: Settings, database: Database, tmp_path: Path
) -> None:
    path = Path(lived_in.files.place(JANUARY))
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(StorageError, match="month=2023-01"):
        back_up(settings, database, tmp_path / "store.backup")
    assert [each.name for each in tmp_path.glob("store*")] == []


def test_a_backup_of_a_newer_version_is_refused(
    lived_in: CandleStore, settings: Settings, database: Database, empty: Database, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as newer:
        newer.setattr(backup, "known_migrations", lambda: ["9999.from_the_future"])
        back_up(settings, database, tmp_path / "store.backup")
    with pytest.raises(UsageError, match=r"migration '9999\.from_the_future'"):
        restore(elsewhere(settings, empty, tmp_path), empty, tmp_path / "store.backup")


def restore_and_die(url: str, home: str, root: str, file: str, function: str, after: bool) -> None:
    Doom(backup, function, after=after)
    settings = read_settings(home=Path(home), database_url=url, parquet_url=root)
    restore(settings, Database(url), Path(file))


@pytest.mark.parametrize(("function", "after"), [("_check", True), ("migrate", False), ("forget_files", True)])
def test_a_restore_that_is_killed_has_not_begun_or_ends_by_itself(
    lived_in: CandleStore, settings: Settings, database: Database, empty: Database, tmp_path: Path,
    function: str, after: bool,
) -> None:  # fmt: skip
    file = tmp_path / "store.backup"
    back_up(settings, database, file)
    root = str(tmp_path / "restored")
    killed(start(restore_and_die, empty.url, str(settings.home), root, str(file), function, after))
    target = elsewhere(settings, empty, tmp_path)
    with empty.connect() as connection:
        if one(connection, "SELECT to_regnamespace('trading') IS NULL"):
            assert function == "_check"
            restore(target, empty, file)
        files = ParquetStore(root)
        if function == "forget_files":
            assert len(pending_months(connection)) == 4 * len(TIMEFRAMES) - 1 - len(TIMEFRAMES)
            CandleStore(connection, files, "here").project([])
            assert files.read(JANUARY._replace(month=date(2023, 3, 1))).num_rows == 31 * 24
        assert connection.execute(HASHES).fetchall() == lived_in.connection.execute(HASHES).fetchall()


def test_a_user_who_may_make_no_schemas_restores_into_ones_made_for_him(
    lived_in: CandleStore, settings: Settings, database: Database, empty: Database, tmp_path: Path
) -> None:
    back_up(settings, database, tmp_path / "store.backup")
    with empty.connect() as connection:
        connection.execute("DO $$ BEGIN CREATE ROLE restorer NOLOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
        for schema in ("trading", "dagster"):
            connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION restorer")
    his = Database(f"{empty.url}&options=-crole%3Drestorer")
    restore(elsewhere(settings, his, tmp_path), his, tmp_path / "store.backup")
    with empty.connect() as connection:
        assert connection.execute(HASHES).fetchall() == lived_in.connection.execute(HASHES).fetchall()
        owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'trading.candlesticks'::regclass"
        assert one(connection, owner) == "restorer"


def test_without_tools_that_are_new_enough_it_says_what_is_needed(
    lived_in: CandleStore, settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("okx_pipeline.storage.dumps._folders", lambda _environment: [])
    with pytest.raises(UsageError, match=r"pg_dump and pg_restore of PostgreSQL \d+ or newer are needed"):
        back_up(settings, database, tmp_path / "store.backup")
