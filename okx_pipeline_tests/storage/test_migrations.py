"""Migrations: from nothing and from earlier, by several processes at once, killed anywhere, never of a newer schema."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yoyo import connections
from yoyo.backends import DatabaseBackend

from okx_pipeline.candles import Source
from okx_pipeline.errors import UsageError
from okx_pipeline.storage import migrations
from okx_pipeline.storage.coverage import day_coverage, lay_out
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.migrations import known_migrations, migrate, packaged, pending_migrations
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.wanted import wanted_ranges
from okx_pipeline.timeframes import DAY_MS, day_ms, day_of
from okx_pipeline_tests.storage.processes import Doom, barrier, finish, kill, killed, queue, start
from okx_pipeline_tests.storage.test_landing import candle


@pytest.fixture
def empty(new_database: Callable[[bool], Database]) -> Database:
    """A database with nothing in it."""
    return new_database(False)


def schema(database: Database) -> list[tuple[Any, ...]]:
    """What is in our schemas: relations, and functions with their bodies."""
    with database.connect() as connection:
        return connection.execute(
            "SELECT pg_describe_object('pg_class'::regclass, oid, 0), relkind::text FROM pg_class "
            "WHERE relnamespace::regnamespace::text IN ('trading', 'dagster') "
            "UNION ALL SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc "
            "WHERE pronamespace = 'trading'::regnamespace ORDER BY 1, 2"
        ).fetchall()


def applied(connection: Connection) -> list[str]:
    query = "SELECT migration_id FROM trading._yoyo_migration ORDER BY applied_at_utc, migration_id"
    return [row[0] for row in connection.execute(query)]


def with_only(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> None:
    """Let the program have only the migrations `names`, as an earlier version had."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.sql").write_text((packaged("sql") / f"{name}.sql").read_text())
    monkeypatch.setattr(migrations, "packaged", lambda _name: folder)


def test_an_empty_database_gets_every_migration_in_order_and_then_no_more(empty: Database) -> None:
    assert migrate(empty) == known_migrations()
    assert known_migrations()[:2] == ["0001.candlesticks", "0002.collection"]
    before = schema(empty)
    with empty.connect() as connection:
        assert applied(connection) == known_migrations()
        assert pending_migrations(connection) == []
    assert migrate(empty) == []
    assert schema(empty) == before


def test_the_library_keeps_its_books_in_our_schema_and_leaves_public_alone(empty: Database) -> None:
    migrate(empty)
    with empty.connect() as connection:
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchall()
        assert names == []
        assert one(connection, "SELECT to_regnamespace('dagster') IS NOT NULL")


def test_a_search_path_of_the_users_own_changes_nothing(empty: Database) -> None:
    with empty.connect() as connection:
        connection.execute("CREATE SCHEMA mine")
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET search_path = mine")
    assert migrate(empty) == known_migrations()
    with empty.connect() as connection:
        assert one(connection, "SELECT count(*) FROM pg_class WHERE relnamespace = 'mine'::regnamespace") == 0
        assert land(connection, [candle()], source=Source.REST).inserted == 1


def migrate_together(url: str, gate: Any, results: Any) -> None:
    database = Database(url)
    gate.wait(30)
    results.put(migrate(database))


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_at_once_apply_each_migration_once(empty: Database, processes: int) -> None:
    gate, results = barrier(processes), queue()
    finish(*[start(migrate_together, empty.url, gate, results) for _ in range(processes)])
    outcomes = [results.get(timeout=30) for _ in range(processes)]
    assert sorted(outcomes) == [[]] * (processes - 1) + [known_migrations()]
    with empty.connect() as connection:
        assert applied(connection) == known_migrations()


def test_rows_of_an_earlier_version_are_unchanged(
    empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = "SELECT c::text, ctid, xmin::text FROM trading.candlesticks AS c ORDER BY timestamp_ms"
    with monkeypatch.context() as earlier:
        with_only(earlier, tmp_path / "sql", "0001.candlesticks")
        assert migrate(empty) == ["0001.candlesticks"]
        with empty.connect() as connection:
            land(connection, [candle(minute) for minute in range(500)], source=Source.REST)
            before = connection.execute(rows).fetchall()
    with empty.connect() as connection:
        assert pending_migrations(connection) == known_migrations()[1:]
        assert migrate(empty) == known_migrations()[1:]
        assert connection.execute(rows).fetchall() == before
        assert len(before) == 500


def test_what_an_earlier_version_holds_beyond_its_subscriptions_is_wanted_after_the_upgrade(
    empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    earlier_ones = [name for name in known_migrations() if name < "0015"]
    noon_ms = day_ms(date(2026, 8, 12)) + DAY_MS // 2
    with monkeypatch.context() as earlier:
        with_only(earlier, tmp_path / "sql", *earlier_ones)
        migrate(empty)
        with empty.connect() as connection:
            for symbol, timeframe, since, until_ms in (
                ("LIVE-USDT", "1h", date(2026, 8, 10), None),
                ("ENDED-USDT", "1h", date(2026, 8, 10), noon_ms),
            ):
                connection.execute(
                    "INSERT INTO trading.subscriptions (symbol, timeframe, since_ms, until_ms) VALUES (%s, %s, %s, %s)",
                    (symbol, timeframe, day_ms(since), until_ms),
                )
                connection.execute(
                    "INSERT INTO trading.coverage_extents (symbol, timeframe, since_ms, until_ms, laid_ms) "
                    "VALUES (%s, %s, %s, %s, %s)",
                    (symbol, timeframe, day_ms(since), until_ms, day_ms(date(2026, 8, 14))),
                )
            days: list[tuple[str, str, int, int, bool]] = [
                *(
                    ("LIVE-USDT", "1h", day, 24 if day in (3, 4, 7, 11) else 0, False)
                    for day in (3, 4, 5, 7, 10, 11, 12)
                ),
                ("LIVE-USDT", "1h", 8, 0, True),
                *(("ENDED-USDT", "1h", day, day % 2 * 24 or 12, False) for day in (9, 11, 12)),
                ("ENDED-USDT", "1h", 10, 0, False),
                *(("NEVER-USDT", "1w", day, 1, False) for day in (3, 10, 24)),
            ]
            for symbol, timeframe, day, present, is_read in days:
                connection.execute(
                    "INSERT INTO trading.coverage (symbol, timeframe, day, expected, present, absent, quarantined, "
                    "missing, read_at, content_hash) "
                    "VALUES (%s, %s, %s, 24, %s, 0, 0, %s, CASE WHEN %s THEN now() END, '')",
                    (symbol, timeframe, date(2026, 8, day), present, 24 - present, is_read),
                )
    migrate(empty)
    with empty.connect() as connection:
        found = [
            (each.symbol, day_of(each.since_ms), each.until_ms, each.wanted_by) for each in wanted_ranges(connection)
        ]
        assert found == [
            ("ENDED-USDT", date(2026, 8, 9), day_ms(date(2026, 8, 10)), "migration"),
            ("ENDED-USDT", date(2026, 8, 11), noon_ms, "migration"),
            ("LIVE-USDT", date(2026, 8, 3), day_ms(date(2026, 8, 5)), "migration"),
            ("LIVE-USDT", date(2026, 8, 7), day_ms(date(2026, 8, 9)), "migration"),
            ("NEVER-USDT", date(2026, 8, 3), day_ms(date(2026, 8, 17)), "migration"),
            ("NEVER-USDT", date(2026, 8, 24), day_ms(date(2026, 8, 31)), "migration"),
        ]
        gone = connection.execute(
            "SELECT day FROM trading.coverage WHERE symbol = 'LIVE-USDT' AND day < '2026-08-10' ORDER BY day"
        ).fetchall()
        assert gone == [(date(2026, 8, day),) for day in (3, 4, 7, 8)], (
            "a day that is neither wanted nor held has no row"
        )
        # What the ledger was laid out for is known, so an upgrade counts only what changes.
        files = ParquetStore(str(tmp_path / "parquet"))
        assert lay_out(connection, files, day_ms(date(2026, 8, 13))) == 4 + 2 + 3
        ended = day_coverage(connection, "ENDED-USDT", date(2026, 8, 9), date(2026, 8, 14))
        assert [(each.day.day, each.wanted) for each in ended] == [(9, True), (11, True), (12, True)]


def test_a_database_of_a_newer_version_is_refused_in_one_line(empty: Database) -> None:
    migrate(empty)
    with empty.connect() as connection:
        connection.execute("INSERT INTO trading._yoyo_migration VALUES ('x', '9999.from_the_future', localtimestamp)")
    with pytest.raises(
        UsageError, match=r"migration '9999\.from_the_future', which this version does not know"
    ) as told:
        migrate(empty)
    assert "\n" not in str(told.value)


def test_a_server_that_is_too_old_is_refused_before_anything_is_made(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "OLDEST_SERVER", 990_000)
    with pytest.raises(UsageError, match=r"PostgreSQL 99 or newer is needed; database .* is \d\d$"):
        migrate(empty)
    with empty.connect() as connection:
        assert one(connection, "SELECT to_regnamespace('trading') IS NULL")


def test_a_schema_that_somebody_else_uses_is_refused_and_left_as_it_is(empty: Database) -> None:
    with empty.connect() as connection:
        connection.execute("CREATE SCHEMA trading")
        connection.execute("CREATE TABLE trading.landing_marks (mine int)")
        with pytest.raises(UsageError, match=r"schema 'trading' .*relation \"landing_marks\" already exists"):
            migrate(empty)
        assert one(connection, "SELECT to_regclass('trading.candlesticks') IS NULL")
        assert one(connection, "SELECT count(*) FROM trading.landing_marks") == 0


def test_a_user_who_may_not_make_schemas_can_use_ones_made_for_him(empty: Database) -> None:
    with empty.connect() as connection:
        connection.execute("DO $$ BEGIN CREATE ROLE tenant NOLOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
        as_tenant = Database(f"{empty.url}&options=-crole%3Dtenant")
        with pytest.raises(UsageError, match="does not allow it: permission denied for database"):
            migrate(as_tenant)
        connection.execute("CREATE SCHEMA trading AUTHORIZATION tenant")
        connection.execute("CREATE SCHEMA dagster AUTHORIZATION tenant")
        assert migrate(as_tenant) == known_migrations()


# While others use the tables


def test_a_migration_that_has_to_wait_for_a_reader_holds_up_no_landing(
    empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = known_migrations()
    with monkeypatch.context() as earlier:
        with_only(earlier, tmp_path / "sql", *[name for name in before if name < "0008"])
        migrate(empty)
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
    with empty.connect() as reader, empty.connect() as lander, ThreadPoolExecutor(1) as thread:
        lander.execute("SET statement_timeout = '30s'")
        with reader.transaction():
            one(reader, "SELECT count(*) FROM trading.candle_months")
            migrating = thread.submit(migrate, empty)
            seen = landed = 0
            # It waits, gives way and waits again; every batch lands all the same.
            while seen < 3 or landed < 20:
                seen += one(lander, waits)
                landed += land(lander, [candle(landed)], source=Source.WEBSOCKET).inserted
                assert not migrating.done()
        assert migrating.result(60) == [name for name in before if name >= "0008"]
        assert one(lander, "SELECT count(*) FROM trading.candlesticks") == landed


def test_a_table_that_is_used_without_end_is_told_in_a_line_and_left_as_it_was(
    empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as earlier:
        with_only(earlier, tmp_path / "sql", *[name for name in known_migrations() if name < "0008"])
        migrate(empty)
    monkeypatch.setattr(migrations, "LOCKS_WITHIN_S", 0.0)
    with empty.connect() as reader:
        with reader.transaction():
            one(reader, "SELECT count(*) FROM trading.candle_months")
            with pytest.raises(StorageError, match=r"migration '0008\.maintenance' waits for tables"):
                migrate(empty)
        assert applied(reader)[-1] < "0008"
    assert migrate(empty)


# Killed halfway


def migrate_and_die(url: str, function: str, call: int, after: bool) -> None:
    Doom(DatabaseBackend, function, call=call, after=after)
    migrate(Database(url))


@pytest.mark.parametrize(
    ("function", "call", "after"),
    [
        ("create_lock_table", 1, True),
        ("_insert_lock_row", 1, True),  # the library's own lock, which nobody gives back
        ("_delete_lock_row", 1, True),
        ("mark_one", 1, False),
        ("mark_one", 1, True),
        ("mark_one", 2, False),
        ("commit", 4, False),
        *[("execute", call, False) for call in range(2, 30, 4)],
    ],
)
def test_a_process_killed_anywhere_leaves_nothing_that_stops_the_next(
    empty: Database, function: str, call: int, after: bool
) -> None:
    killed(start(migrate_and_die, empty.url, function, call, after))
    with empty.connect() as connection:
        begun = applied(connection) if one(connection, "SELECT to_regclass('trading._yoyo_migration')") else []
    assert migrate(empty) == known_migrations()[len(begun) :]
    with empty.connect() as connection:
        assert applied(connection) == known_migrations()
        assert land(connection, [candle()], source=Source.REST).inserted == 1
    assert migrate(empty) == []


def migrate_slowly(url: str, gate: Any) -> None:
    original = DatabaseBackend.mark_one

    def mark_one(self: DatabaseBackend, *arguments: Any, **named: Any) -> None:
        gate.wait(30)
        gate.wait(30)
        original(self, *arguments, **named)

    DatabaseBackend.mark_one = mark_one
    migrate(Database(url))


def test_who_waits_for_a_process_that_is_killed_goes_on_in_its_place(empty: Database) -> None:
    gate, one_alone, results = barrier(2), barrier(1), queue()
    doomed = start(migrate_slowly, empty.url, gate)
    gate.wait(30)
    waiting = start(migrate_together, empty.url, one_alone, results)
    with empty.connect() as connection:
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
        while not one(connection, waits):
            pass
    assert kill(doomed)
    assert results.get(timeout=30) == known_migrations()
    finish(waiting)


# URLs


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
    st.sampled_from(["/run/postgres ql", "/a+b/c%d", "db.example.org", ""]),
)
def test_the_library_is_told_exactly_what_libpq_reads(password: str, host: str) -> None:
    secret = quote(password, safe="")
    url = f"postgresql://me:{secret}@/okx?host={quote(host, safe='')}&port=6432&sslmode=require"
    for spelled in (url, f"postgres://me:{secret}@db.example.org:6432/okx"):
        parsed = connections.parse_uri(migrations._library_url(spelled))
        told = {**parsed.args, **({} if parsed.hostname is None else {"host": parsed.hostname})}
        read = {name: value for name, value in psycopg.conninfo.conninfo_to_dict(spelled).items() if value != ""}
        assert told == {**read, "schema": "trading"}
        assert parsed.username is parsed.password is parsed.port is None
