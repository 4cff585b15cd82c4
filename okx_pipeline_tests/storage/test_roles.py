"""The roles, with real logins: who may look, who may land, who may maintain, and what nobody of them may."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.errors import UsageError
from okx_pipeline.maintenance.housekeeping import keep_house
from okx_pipeline.maintenance.upkeep import look_after_months
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.migrations import known_migrations, migrate
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.partitions import may_vacuum, vacuum_month
from okx_pipeline.storage.stream_status import Heartbeat, SidecarLock, beat, save_offsets
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import HOUR_MS, day_ms, month_bounds, parse_timeframe
from okx_pipeline_tests.storage.password_server import PasswordServer, password_server

BTC = "BTC-USDT-SWAP"
HOUR = parse_timeframe("1h")
JUNE = date(2026, 6, 1)
START_MS, END_MS = month_bounds(JUNE)
NOW_MS = day_ms(date(2026, 12, 1))

LOGINS = {"anna": "okx_reader", "otto": "okx_writer", "mia": "okx_maintainer"}


def candle(open_ms: int, close: str = "10") -> Candle:
    return Candle(BTC, "1h", open_ms, "10", "11", "9", close, "5", "0.05", "500")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PasswordServer]:
    """A server on which an owner who is no superuser has migrated, and a person is a member of each role."""
    with password_server(tmp_path_factory.mktemp("guarded")) as server:
        with psycopg.connect(server.url(), autocommit=True) as administrator:
            administrator.execute("CREATE ROLE holder LOGIN CREATEROLE PASSWORD 'holder'")
            administrator.execute("CREATE DATABASE okx OWNER holder")
        migrate(Database(server.url("holder", "holder", "okx")))
        with psycopg.connect(server.url(), autocommit=True) as administrator:
            for login, role in LOGINS.items():
                administrator.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{login}' IN ROLE {role}")
            administrator.execute("CREATE ROLE bob LOGIN PASSWORD 'bob' IN ROLE okx_writer, okx_maintainer")
            administrator.execute("ALTER ROLE okx_reader LOGIN PASSWORD 'okx_reader'")
        yield server


Login = Callable[[str], Database]


@pytest.fixture
def login(guarded: PasswordServer) -> Login:
    return lambda name: Database(guarded.url(name, name, "okx"))


@pytest.fixture
def written(login: Login, tmp_path: Path) -> ParquetStore:
    """A month that the writer has landed and projected."""
    files = ParquetStore(str(tmp_path / "parquet"))
    with login("holder").connect() as connection:
        for table in ("candlesticks", "candle_months", "landing_marks", "coverage", "month_partitions"):
            connection.execute(f"DELETE FROM trading.{table}")
    with CandleStore.opened(login("otto"), files) as store:
        subscribe(store.connection, [BTC], [HOUR], START_MS)
        store.connection.execute("UPDATE trading.subscriptions SET until_ms = %s", (END_MS,))
        store.land([candle(open_ms) for open_ms in HOUR.opens(START_MS, END_MS)], source=Source.REST)
        store.project([])
    return files


def denied(connection: Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


EVERYBODYS = [
    "TRUNCATE trading.candlesticks",
    "TRUNCATE trading.candlesticks_2026_06",
    "DROP TABLE trading.candlesticks",
    "DROP TABLE trading.candlesticks_2026_06",
    "DROP SCHEMA trading CASCADE",
    "ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_2026_06",
    "ALTER TABLE trading.candlesticks DISABLE TRIGGER keep_revision",
    "CREATE TABLE trading.mine (number int)",
    "CREATE TABLE public.mine (number int)",
    "UPDATE trading.candlestick_revisions SET source = 'rest'",
    "DELETE FROM trading.candlestick_revisions",
    "DELETE FROM trading.candlesticks_quarantine",
    "DELETE FROM trading._yoyo_migration",
    "COPY trading.candlesticks TO PROGRAM 'cat'",
    "COPY trading.candlesticks FROM '/etc/passwd'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT lo_import('/etc/passwd')",
    "ALTER SYSTEM SET log_statement = 'all'",
    "ALTER ROLE holder PASSWORD 'other'",
    "SET ROLE holder",
    "CREATE SCHEMA more",
    "CREATE DATABASE more",
    "CREATE FUNCTION trading.content_hash() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TABLE dagster.mine (number int)",
    "SELECT trading.grant_roles()",
    "CREATE ROLE more",
    "GRANT okx_maintainer TO anna",
]
WRITING = [
    "INSERT INTO trading.subscriptions (symbol, timeframe, since_ms) VALUES ('A-B', '1h', 0)",
    "UPDATE trading.candlesticks SET close_price = close_price",
    "UPDATE trading.candlesticks_2026_06 SET close_price = close_price",
    "SELECT trading.ensure_month('2030-01-01')",
]
DELETING = [
    "DELETE FROM trading.candlesticks",
    "DELETE FROM trading.candlesticks_2026_06",
    "DELETE FROM trading.candle_months",
    "DELETE FROM trading.instruments",
    "SELECT trading.build_month('2026-06-01')",
    "SELECT trading.swap_month('2026-06-01')",
]


def test_a_reader_looks_and_nothing_else(written: ParquetStore, login: Login) -> None:
    with login("anna").connect() as connection:
        for relation in ("candlesticks", "candlesticks_2026_06", "candles", "coverage", "candle_gaps"):
            one(connection, f"SELECT count(*) FROM trading.{relation}")
        assert one(connection, "SELECT trading.content_hash(%s, '1h', %s, %s)", (BTC, START_MS, END_MS))
        for statement in (*EVERYBODYS, *WRITING, *DELETING):
            denied(connection, statement)


def test_a_login_of_no_group_sees_nothing(guarded: PasswordServer, login: Login) -> None:
    with psycopg.connect(guarded.url(), autocommit=True) as administrator:
        administrator.execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    with login("stranger").connect() as connection:
        looks = (
            "SELECT FROM trading.candles",
            "SELECT FROM trading.candlesticks_2026_06",
            "SELECT FROM trading.alerts",
        )
        for statement in (*looks, *EVERYBODYS, *WRITING, *DELETING):
            denied(connection, statement)


def test_what_runs_with_the_owners_rights_looks_names_up_in_no_place_of_others(login: Login) -> None:
    with login("holder").connect() as connection:
        found = connection.execute(
            "SELECT proname, array_to_string(proconfig, ' '), has_function_privilege('public', oid, 'EXECUTE') "
            "FROM pg_proc WHERE pronamespace = 'trading'::regnamespace AND prosecdef"
        ).fetchall()
    assert {name for name, _, _ in found} >= {"ensure_month", "build_month", "swap_month"}
    assert {configured for _, configured, _ in found} == {"search_path=pg_catalog, pg_temp"}
    triggers = {name for name, _, anybodys in found if anybodys}
    assert triggers == {"keep_revision", "mark_changed", "ask_for_audit"}, "but for a trigger's"


@pytest.mark.parametrize("name", ["anna", "okx_reader", "otto", "mia"])
def test_no_revision_is_made_of_a_table_of_ones_own(written: ParquetStore, login: Login, name: str) -> None:
    with login(name).connect() as connection:
        # A reader's session is read-only by default, which is an offer and not a lock.
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("CREATE TEMPORARY TABLE mine AS SELECT * FROM trading.candlesticks LIMIT 1")
        connection.execute(
            "CREATE TRIGGER mine AFTER UPDATE ON mine FOR EACH ROW EXECUTE FUNCTION trading.keep_revision()"
        )
        denied(connection, "UPDATE mine SET close_price = close_price + 1")


@pytest.mark.parametrize("function", ["mark_changed", "ask_for_audit"])
def test_no_mark_is_left_through_a_table_of_ones_own(written: ParquetStore, login: Login, function: str) -> None:
    with login("otto").connect() as connection:
        connection.execute("CREATE TEMPORARY TABLE candlesticks_2026_06 (LIKE trading.candlesticks)")
        connection.execute(
            "CREATE TRIGGER mine AFTER INSERT ON pg_temp.candlesticks_2026_06 REFERENCING NEW TABLE AS changed "
            f"FOR EACH STATEMENT EXECUTE FUNCTION trading.{function}()"
        )
        denied(connection, "INSERT INTO pg_temp.candlesticks_2026_06 SELECT * FROM trading.candlesticks LIMIT 1")


def test_what_a_writer_changes_by_hand_leaves_marks_as_its_landings_do(written: ParquetStore, login: Login) -> None:
    with login("otto").connect() as connection:
        connection.execute("UPDATE trading.candlesticks SET close_price = 10.5 WHERE timestamp_ms = %s", (START_MS,))
        left = "SELECT day FROM trading.unmarked_days"
        assert connection.execute(left).fetchall() == [(JUNE,)]


def test_the_readers_own_login_is_read_only_and_bounded_in_time(written: ParquetStore, login: Login) -> None:
    with CandleStore.opened(login("okx_reader"), written) as store:
        assert len(store.opens(BTC, HOUR, START_MS, END_MS)) == 30 * 24
    with login("okx_reader").connect() as connection:
        assert one(connection, "SHOW default_transaction_read_only") == "on"
        assert one(connection, "SHOW statement_timeout") == "5min"
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TEMPORARY TABLE mine (number int)")


def test_a_writer_lands_and_accounts_and_deletes_no_candle(written: ParquetStore, login: Login) -> None:
    with CandleStore.opened(login("otto"), written) as store:
        at = datetime.now(tz=UTC) + timedelta(minutes=1)
        refused = Refused(BTC, "1h", START_MS, "a price is zero", "[]")
        landed = store.land([candle(START_MS, "10.5")], [refused], source=Source.REST, requested_at=at)
        assert (landed.corrected, landed.quarantined) == (1, 1)
        store.land([candle(END_MS + 40 * 24 * HOUR_MS)], source=Source.WEBSOCKET)
        store.project([])
        store.account(NOW_MS)
        beat(store.connection, Heartbeat("here", "starting"))
        save_offsets(store.connection, {(BTC, "1h"): START_MS})
        with SidecarLock(login("otto")) as lock:
            assert lock.take()
        for statement in (*EVERYBODYS, *DELETING):
            denied(store.connection, statement)


def test_a_maintainer_archives_and_houses_and_cannot_grant(
    written: ParquetStore, login: Login, tmp_path: Path, guarded: PasswordServer
) -> None:
    with CandleStore.opened(login("mia"), written) as store:
        rows = one(store.connection, "SELECT count(*) FROM trading.candlesticks")
        [settled] = [done for done in look_after_months(store, {}, NOW_MS).done if done.rebuilt]
        assert settled.vacuumed, "MAINTAIN is granted with version 17 and later"
        done = {each.month: each for each in look_after_months(store, {HOUR: 60}, NOW_MS).done}
        assert done[JUNE].dropped
        assert sum(done[JUNE].archived.values()) == rows
        settings = read_settings(home=tmp_path / "home", database_url=guarded.url("mia", "mia", "okx"))
        keep_house(settings, login("mia"), datetime.now(tz=UTC))
        store.connection.execute("SELECT trading.ensure_month(%s)", (JUNE,))
        for statement in EVERYBODYS:
            denied(store.connection, statement)
        # Without the right to grant, PostgreSQL warns and grants nothing.
        for privilege in ("SELECT", "INSERT", "DELETE"):
            store.connection.execute(f"GRANT {privilege} ON trading.candlesticks TO PUBLIC")
            stranger = "SELECT has_table_privilege('public', 'trading.candlesticks', %s)"
            assert not one(store.connection, stranger, (privilege,))


def test_one_login_that_writes_and_maintains_runs_everything_without_owning_it(
    written: ParquetStore, login: Login
) -> None:
    assert migrate(login("bob")) == []
    with CandleStore.opened(login("bob"), written) as store:
        assert look_after_months(store, {HOUR: 60}, NOW_MS).done
        at = datetime.now(tz=UTC) + timedelta(minutes=1)
        assert store.land([candle(START_MS, "10.5")], source=Source.REST, requested_at=at).corrected == 1
        assert one(store.connection, "SELECT count(*) FROM trading.candlesticks") == 30 * 24
        owner = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname LIKE 'candlesticks_2026%%'"
        assert store.connection.execute(owner).fetchall() == [("holder",)]


def test_who_may_not_vacuum_leaves_it_to_autovacuum(written: ParquetStore, login: Login) -> None:
    may = {}
    for name in ("holder", "mia", "otto"):
        with login(name).connect() as connection:
            may[name] = may_vacuum(connection)
            assert vacuum_month(connection, JUNE, "of now") == may[name]
    assert may == {"holder": True, "mia": True, "otto": False}


def test_whoever_may_not_make_roles_migrates_all_the_same_and_grants_them_when_they_are_there(
    guarded: PasswordServer,
) -> None:
    with psycopg.connect(guarded.url(), autocommit=True) as administrator:
        administrator.execute("CREATE ROLE tenant LOGIN PASSWORD 'tenant'")
        administrator.execute("CREATE DATABASE tenants OWNER tenant")
        names = ("okx_reader", "okx_writer", "okx_maintainer")
        for name in names:
            administrator.execute(f"ALTER ROLE {name} RENAME TO {name}_away")
        tenants = Database(guarded.url("tenant", "tenant", "tenants"))
        try:
            assert migrate(tenants) == known_migrations()
            with tenants.connect() as connection:
                assert one(connection, "SELECT trading.grant_roles()") == []
        finally:
            for name in names:
                administrator.execute(f"ALTER ROLE {name}_away RENAME TO {name}")
        with tenants.connect() as connection:
            assert one(connection, "SELECT trading.grant_roles()") == list(names)
        with Database(guarded.url("anna", "anna", "tenants")).connect() as connection:
            assert one(connection, "SELECT count(*) FROM trading.candlesticks") == 0


def test_what_a_role_may_not_do_is_told_in_a_line(written: ParquetStore, login: Login) -> None:
    with (
        CandleStore.opened(login("anna"), written) as store,
        pytest.raises(UsageError, match="does not allow it: permission denied"),
    ):
        store.land([candle(START_MS)], source=Source.REST)
