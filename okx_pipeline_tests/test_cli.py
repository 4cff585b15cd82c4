"""The commands as a user runs them: a process, its exit status, and what it says where."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from okx_pipeline.cli import app, main
from okx_pipeline.errors import PipelineError
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.faults import Fault
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.migrations import known_migrations
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.stream_status import Heartbeat, beat
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import day_ms, parse_timeframes
from okx_pipeline.up import migrate_dagster
from okx_pipeline_tests.conftest import named
from okx_pipeline_tests.storage.password_server import password_server
from okx_pipeline_tests.storage.processes import run_command

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
NOW = day_ms(date(2026, 8, 22)) + 3_600_000
BTC = "BTC-USDT-SWAP"
DAYS = ("--start", "2026-08-10", "--end", "2026-08-12")
HOURLY = ("backfill", *DAYS, "--symbols", BTC, "--timeframes", "1h")
AUGUST = SeriesMonth(BTC, "1h", date(2026, 8, 1))
ROWS = 2 * 24
NOBODY = "http://127.0.0.1:9"
NOWHERE = "postgresql://okx@127.0.0.1:9/okx"
WITHIN_S = 120
SENTINEL = "s3ntinel-of-a-secret"
NEED_A_STORE = (
    *("status", "monitor", "gaps", "coverage", "validate", "maintain", "subscriptions", f"unsubscribe {BTC}"),
    *("psql -c select", "backup store.backup", "restore --month 2026-07", "export -"),
    f"export - --symbols {BTC} --timeframes 1h",
)
TIME_LEFT = re.compile(r"\d:\d\d:\d\d")


class Program:
    """The program, run in a folder of its own with settings of its own and nothing else of this machine's."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "OKX_HOME": str(self.home),
            "OKX_SYMBOLS": BTC,
            "OKX_TIMEFRAMES": "1h",
            **settings,
        }

    def start(self, *arguments: str, **how: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "okx_pipeline", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **streams)

    def __call__(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return run_command(arguments, self.folder, {**self.environment, **settings}, WITHIN_S)


@pytest.fixture
def bare(tmp_path: Path) -> Program:
    """The program without a database or an exchange."""
    return Program(tmp_path, OKX_DATABASE_URL=NOWHERE, OKX_REST_URL=NOBODY)


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(open_market("synthetic", seed=11, symbols=8), ExchangeClock(NOW, 0.0), limits=False)


@pytest.fixture
def url(exchange: Exchange) -> Iterator[str]:
    with ReplayServer(exchange) as server:
        yield server.url


@pytest.fixture
def program(tmp_path: Path, database: Database, url: str) -> Program:
    """The program on a database and an exchange of the test's."""
    return Program(tmp_path, OKX_DATABASE_URL=database.url, OKX_REST_URL=url)


def refused(ended: "subprocess.CompletedProcess[str]", status: int, *words: str) -> None:
    """Assert that a command ended with `status` and one line on stderr that has `words`, and said nothing else.

    `up` prints the steps that it has begun before.
    """
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == "" or "up" in ended.args
    assert re.fullmatch(r"error: [^\n]+\n", ended.stderr), ended.stderr
    for word in words:
        assert word in ended.stderr


def done(ended: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    assert ended.returncode == 0, ended.stderr
    return ended


def figures(ended: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The JSON document that is everything a command wrote to stdout."""
    document: dict[str, Any] = json.loads(done(ended).stdout)
    return document


def count(database: Database) -> int:
    with database.connect() as connection:
        return int(one(connection, "SELECT count(*) FROM trading.candlesticks"))


def parquet(program: Program) -> ParquetStore:
    return ParquetStore(str(program.home / "parquet"))


# Usage and settings


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_and_shows_no_value_for_a_flag(bare: Program, name: str) -> None:
    shown = done(bare(name, "--help", COLUMNS="160"))
    assert shown.stderr == ""
    assert "bool" not in shown.stdout
    for parameter in COMMANDS[name].params:
        assert parameter.opts[-1].upper() in shown.stdout.upper()


def test_the_version_names_the_package_its_schema_and_the_python_that_runs_it(bare: Program) -> None:
    told = done(bare("--version"))
    newest = known_migrations()[-1].partition(".")[0]
    python = ".".join(map(str, sys.version_info[:3]))
    assert (told.stdout, told.stderr) == (
        f"okx-pipeline {version('okx-pipeline')}, schema {newest}, Python {python}\n",
        "",
    )


def test_help_names_every_command(bare: Program) -> None:
    shown = done(bare("--help", COLUMNS="160"))
    assert shown.stderr == ""
    assert "bool" not in shown.stdout
    assert {"up", "backfill", "gaps", "coverage", "migrate", "status", "replay", "psql"} <= COMMANDS.keys()
    for name in COMMANDS:
        assert f"│ {name} " in shown.stdout


def test_without_a_command_it_shows_its_help(bare: Program) -> None:
    assert done(bare()).stdout == done(bare("--help")).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("status --nonsense", "No such option: --nonsense"),
        ("status more", "unexpected extra argument"),
        ("backfill --end 2026-08-02", "Missing option '--start'"),
        ("backfill --start 2026-08-01", "Missing option '--end'"),
        ("backfill --start", "'--start' requires an argument"),
        ("backfill --start 1.8.2026 --end 2026-08-02", "--start '1.8.2026' is not a day; write it as 2026-08-01"),
        ("backfill --start 2026-08-01 --end soon", "--end 'soon' is not a day"),
        ("backfill --start 2026-08-02 --end 2026-08-02", "--start 2026-08-02 is not before --end 2026-08-02"),
        ("backfill --start 2026-08-02 --end 2126-08-02", "--end 2126-08-02 reaches into the future"),
        ("backfill --start 2026-08-01 --end 2026-08-02 --timeframes 7m", "unknown timeframe '7m'; it is one of 1m"),
        ("backfill --start 2026-08-01 --end 2026-08-02 --timeframes 1h,1D", "write '1d' (OKX 1Dutc)"),
        ("backfill --start 2026-08-01 --end 2026-08-02 --timeframes ,", "--timeframes names no timeframe"),
        ("backfill --start 2026-08-01 --end 2026-08-02 --symbols ,", "--symbols names no symbol"),
        ("gaps --start soon", "--start 'soon' is not a day"),
        ("gaps --start 2126-08-02", "--start 2126-08-02 lies in the future; the last start there can be is 20"),
        ("gaps --timeframes 7m", "unknown timeframe '7m'; it is one of 1m"),
        ("coverage --start 2026-08-02 --end 2026-08-01", "--start 2026-08-02 is not before --end 2026-08-01"),
        ("coverage --symbols ,", "--symbols names no symbol"),
        ("up --port 70000", "'--port': Input should be less than or equal to 65535"),
        ("up --port x", "'--port': Input should be a valid integer"),
        ("up --now 2026-08-22T00:00Z", "--now and --speed are the stand-in's; give --replay with them"),
        ("replay", "Missing argument 'SOURCE'"),
        ("replay nowhere", "there is no folder nowhere"),
        ("replay synthetic --now noon", "--now 'noon' is not a moment; write it as 2026-08-22T00:00Z"),
        (
            "replay synthetic --now 2126-08-22T00:00Z",
            "clock cannot stand at 2126-08-22T00:00Z: that lies in the future",
        ),
        ("replay synthetic --speed -1", "'--speed': Input should be greater than or equal to 0"),
    ],
)
def test_wrong_usage_is_one_line(bare: Program, arguments: str, words: str) -> None:
    refused(bare(*arguments.split()), 2, words)


def test_tomorrow_is_the_last_end_there_can_be(bare: Program) -> None:
    today = datetime.now(tz=UTC).date()
    backfill = ("backfill", "--start", str(today), "--end")
    refused(bare(*backfill, str(today + timedelta(days=2))), 2, f"the last end there can be is {today:%Y}")
    refused(bare(*backfill, str(today + timedelta(days=1))), 1, "cannot reach PostgreSQL")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"OKX_TIMEFRAMES": "1D"}, "OKX_TIMEFRAMES: timeframe '1D' is OKX's candle that opens at Hong Kong midnight"),
        ({"OKX_SYMBOLS": "a b"}, "OKX_SYMBOLS: "),
        ({"OKX_HISTORY_START": "soon"}, "OKX_HISTORY_START: "),
        ({"OKX_REST_RATE": "0"}, "OKX_REST_RATE: "),
        ({"OKX_REST_URL": "okx.com"}, "OKX_REST_URL: 'okx.com' is not a URL"),
        ({"OKX_PARQUET_URL": "ftp://files"}, "OKX_PARQUET_URL: 'ftp://files' is neither a folder nor an s3:// URL"),
        ({"OKX_DATABASE_URL": f"mysql://u:{SENTINEL}@h/d"}, "OKX_DATABASE_URL: it is not a PostgreSQL URL"),
        ({"OKX_DATABASE_URL": f"postgresql://u:{SENTINEL}@x@h/d"}, "OKX_DATABASE_URL cannot be read as a URL"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(bare: Program, settings: dict[str, str], words: str) -> None:
    ended = bare(*HOURLY, **settings)
    refused(ended, 2, words)
    assert SENTINEL not in ended.stderr
    assert not bare.home.exists()


def test_a_file_of_settings_that_is_no_text_is_one_line(bare: Program) -> None:
    (bare.folder / ".env").write_bytes(b"OKX_SYMBOLS=\xff\xfe\n")
    refused(bare("status"), 2, "cannot read the file .env")


@pytest.mark.parametrize("command", ["up", "migrate", "psql", "status"])
def test_a_home_that_cannot_be_written_is_one_line(bare: Program, command: str) -> None:
    bare.home.write_text("a file, not a folder")
    ended = bare(command, OKX_DATABASE_URL="")
    refused(ended, ended.returncode, str(bare.home))
    assert ended.returncode in {1, 2}


# What is out of reach


def test_an_exchange_out_of_reach_is_one_line(program: Program) -> None:
    refused(program(*HOURLY, OKX_REST_URL=NOBODY), 1, "cannot reach OKX at 127.0.0.1:9: connection refused")


def test_an_exchange_that_stutters_at_first_is_asked_again(program: Program, exchange: Exchange) -> None:
    exchange.faults.add([Fault(kind="reset", endpoint="time", requests=2)])
    assert figures(program(*HOURLY, "--json"))["new"] == ROWS


def test_a_database_out_of_reach_is_one_line(program: Program) -> None:
    nobody = f"postgresql://okx:{SENTINEL}@127.0.0.1:9/okx"
    for command in ("status", "migrate", "psql"):
        ended = program(command, OKX_DATABASE_URL=nobody)
        refused(ended, 1, "cannot reach PostgreSQL (okx@127.0.0.1:9/okx)", "Connection refused; is it running?")
        assert SENTINEL not in ended.stderr


def test_a_database_of_ones_own_needs_no_terminal_of_ones_own(program: Program) -> None:
    assert done(program("psql", "-At", "-c", "select 1", PATH="/nowhere")).stdout == "1\n"


def test_a_database_that_is_not_there_is_one_line(program: Program, database: Database) -> None:
    ended = program("status", OKX_DATABASE_URL=named(database.url, "no_such_database"))
    refused(ended, 2, 'database "no_such_database" does not exist; check OKX_DATABASE_URL')


def test_a_database_that_goes_away_meanwhile_is_one_line(
    program: Program, exchange: Exchange, database: Database, server: Database
) -> None:
    exchange.faults.add([Fault(kind="slow", requests=1000, seconds=0.3)])
    with program.start(*HOURLY, "--refetch") as process:
        assert process.stderr is not None
        assert "requests" in process.stderr.readline()
        with server.connect() as connection:
            name = database.url.partition("?")[0].rpartition("/")[2]
            ended = one(
                connection,
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s",
                (name,),
            )
        rest = process.communicate(timeout=60)
    assert ended >= 2
    refused(subprocess.CompletedProcess("", process.returncode, *rest), 1, "PostgreSQL (")


def test_passwords_are_never_shown(tmp_path: Path, url: str) -> None:
    with password_server(tmp_path) as server:
        refused(
            wrong := Program(tmp_path, OKX_DATABASE_URL=server.url(password=SENTINEL))("status"),
            2,
            "password authentication failed",
        )
        with Database(server.url()).connect() as connection:
            connection.execute(f"CREATE ROLE sentinel LOGIN SUPERUSER PASSWORD '{SENTINEL}'")
        program = Program(tmp_path, OKX_DATABASE_URL=server.url(user="sentinel", password=SENTINEL), OKX_REST_URL=url)
        everything = [
            wrong,
            done(program("migrate")),
            done(program(*HOURLY)),
            done(program("status")),
            done(program("status", "--json")),
            done(program("psql", "-c", "\\conninfo")),
            program("psql", "-c", "nonsense"),
            program(*HOURLY, "--refetch", OKX_REST_URL=NOBODY),
            program(*HOURLY, "--refetch", HTTPS_PROXY=f"http://user:{SENTINEL}@127.0.0.1:9"),
            program(*HOURLY, HTTPS_PROXY=f"gopher://user:{SENTINEL}@127.0.0.1:9"),
        ]
        # What a process is started with, everybody on the machine can read.
        with program.start("psql", stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\\echo ready\n\\! ps -eo args\n\\echo end\n")
            process.stdin.close()
            assert process.stdout.readline() == "ready\n"
            arguments = process.stdout.read()
    assert "sentinel@" in everything[3].stdout
    assert " -d " in arguments
    assert SENTINEL not in arguments
    for ended in everything:
        assert SENTINEL not in ended.stdout + ended.stderr


# Commands


def test_a_backfill_says_what_it_will_cost_and_what_it_did(program: Program, database: Database) -> None:
    ended = done(program(*HOURLY))
    assert ended.stderr == "48 candles to fetch: 1 requests, at least 0 s, about 0.0 MB of disk\n"
    assert re.fullmatch(
        r"48 new candles, 0 corrected, 0 quarantined; 1 requests, 1 Parquet files written, [\d.]+ s\n", ended.stdout
    )
    assert count(database) == ROWS


def test_a_backfill_run_again_asks_for_nothing(program: Program, exchange: Exchange) -> None:
    done(program(*HOURLY))
    exchange.requests.clear()
    again = program(*HOURLY, "--json")
    assert again.stderr == "nothing to fetch\n"
    nothing = {"requests": 0, "received": 0, "new": 0, "corrected": 0, "quarantined": 0, "not_served": 0}
    nothing |= {"files": 0, "files_caught_up": 0}
    assert figures(again) == {**nothing, "seconds": figures(again)["seconds"]}
    assert not exchange.requests


def test_a_backfill_asks_anew_if_it_is_told_to(program: Program, database: Database) -> None:
    done(program(*HOURLY))
    with database.connect() as connection:
        connection.execute("UPDATE trading.candlesticks SET close_price = low_price WHERE close_price <> low_price")
    again = figures(program(*HOURLY, "--refetch", "--json"))
    assert (again["requests"], again["received"], again["new"]) == (1, ROWS, 0)
    assert again["corrected"] > 0


def test_a_backfill_takes_what_is_subscribed_where_nothing_is_named(program: Program, database: Database) -> None:
    assert figures(program("backfill", *DAYS, "--json", OKX_TIMEFRAMES="4h"))["new"] == 2 * 6


def test_a_backfill_of_an_unknown_symbol_is_one_line(program: Program) -> None:
    unknown = ("backfill", *DAYS, "--symbols", "NOPE-USDT-SWAP", "--timeframes", "1h")
    refused(program(*unknown), 2, "OKX lists no instrument NOPE-USDT-SWAP; check how it is spelled")


def test_a_backfill_of_days_before_the_listing_says_so(program: Program) -> None:
    ended = done(program("backfill", "--start", "2010-01-01", "--end", "2010-01-02", "--symbols", BTC, "--json"))
    assert figures(ended)["requests"] == 0
    assert f"{BTC} was listed on " in ended.stderr


def test_a_backfill_mends_a_file_that_is_damaged_though_it_has_nothing_to_fetch(
    program: Program, database: Database, exchange: Exchange
) -> None:
    done(program(*HOURLY))
    whole = parquet(program).read(AUGUST)
    path = Path(parquet(program).place(AUGUST))
    os.truncate(path, path.stat().st_size // 2)
    exchange.requests.clear()
    ended = program(*HOURLY, "--json")
    assert figures(ended)["files"] == 1
    assert not exchange.requests
    warning, nothing = sorted(ended.stderr.splitlines())
    assert nothing == "nothing to fetch"
    assert warning.startswith(f"WARNING rebuilding from PostgreSQL: {path}: ")
    assert parquet(program).read(AUGUST).equals(whole)


def test_a_backfill_shows_its_progress_where_a_terminal_watches(program: Program, exchange: Exchange) -> None:
    exchange.faults.add([Fault(kind="slow", requests=1000, seconds=0.2)])
    command = ("backfill", "--start", "2026-08-01", "--end", "2026-08-04", "--timeframes", "1m", "--symbols", BTC)
    told, shown = watch(program, *command)
    assert "4,320 new candles" in told
    assert "4,320 candles to fetch: 15 requests, at least " in shown
    assert re.search(r"[1-9][\d,]* candles/s, \d+\.\d requests/s", shown)
    assert TIME_LEFT.search(shown)
    # Each phase has a bar of its own, so that none stands at its end while the next one works.
    fetching, files, ledger = (shown.rindex(f"{phase} ") for phase in ("fetching", "Parquet files", "ledger"))
    assert fetching < files < ledger
    assert shown[fetching:].count("100 %") == 3
    unwatched = done(program(*command, "--refetch"))
    assert unwatched.stderr.count("\n") == 1


def watch(program: Program, *arguments: str) -> tuple[str, str]:
    """What a command that succeeds says on stdout, and what it shows on the terminal that is its stderr."""
    watched, terminal = pty.openpty()
    program.environment |= {"TERM": "xterm", "COLUMNS": "120"}
    with program.start(*arguments, stderr=terminal) as process:
        os.close(terminal)
        shown = b"".join(iter(lambda: _read(watched), b"")).decode()
        assert process.wait(WITHIN_S) == 0, shown
        assert process.stdout is not None
        told = process.stdout.read()
    os.close(watched)
    return told, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""  # what Linux says of a terminal that everybody has left


def test_ctrl_c_stops_a_backfill_in_one_line_and_what_has_landed_stays(
    program: Program, exchange: Exchange, database: Database
) -> None:
    exchange.faults.add([Fault(kind="slow", requests=1000, seconds=0.2)])
    command = ("backfill", "--start", "2026-08-01", "--end", "2026-08-04", "--timeframes", "1m", "--symbols", BTC)
    with program.start(*command) as process:
        with database.connect() as connection, connection.transaction():
            # Every landing waits here, in the middle of its transaction.
            connection.execute("LOCK TABLE trading.landing_marks IN ACCESS EXCLUSIVE MODE")
            while not one(connection, "SELECT count(*) FROM pg_locks WHERE NOT granted") and process.poll() is None:
                pass
            process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[1:] == ["stopped; what has landed stays, and the same command goes on from there"]
    landed = count(database)
    assert 0 < landed < 3 * 1440
    assert parquet(program).read(SeriesMonth(BTC, "1m", date(2026, 8, 1))).num_rows == landed
    exchange.faults.clear()
    assert figures(program(*command, "--json"))["new"] == 3 * 1440 - landed


def test_the_schema_is_brought_up_to_date_once(
    tmp_path: Path, url: str, new_database: Callable[[bool], Database]
) -> None:
    database = new_database(False)
    program = Program(tmp_path, OKX_DATABASE_URL=database.url, OKX_REST_URL=url)
    missing = program("status", "--json")
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["healthy"] is False
    lacks = f"the schema lacks {', '.join(known_migrations())}; run: okx-pipeline migrate"
    assert json.loads(missing.stdout)["problem"] == lacks
    refused(program("status"), 1, lacks)
    assert figures(program("migrate", "--json")) == {"applied": known_migrations()}
    assert figures(program("migrate", "--json")) == {"applied": []}
    assert done(program("migrate")).stdout == "the schema is up to date\n"
    dagsters = program("migrate", "--dagster", "--json")
    assert figures(dagsters) == {"applied": []}
    assert dagsters.stderr == "Dagster's tables are up to date\n"
    with database.connect() as connection:
        assert one(connection, "SELECT count(*) FROM dagster.alembic_version") == 1


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Traceback …\nsqlalchemy.exc.ProgrammingError: (psycopg2.errors.X) x\n\n[SQL: x]\n(Background on x)\n",
            "sqlalchemy.exc.ProgrammingError: (psycopg2.errors.X) x",
        ),
        (f"cannot reach postgresql+psycopg2://okx:{SENTINEL}@h/d\n", "cannot reach postgresql+psycopg2://okx:***@h/d"),
        ("", "it said nothing"),
    ],
)
def test_why_dagsters_tables_could_not_be_brought_up_to_date_is_one_line(
    database: Database, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    ended = subprocess.CompletedProcess("", 1, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    settings = read_settings(database_url=f"postgresql://okx:{SENTINEL}@h/d")
    with pytest.raises(PipelineError, match=f"^Dagster's tables could not be brought up to date: {re.escape(told)}$"):
        migrate_dagster(settings, database)


def test_the_status_shows_what_each_series_holds(program: Program, database: Database) -> None:
    empty = program("status", "--json")
    assert (document(empty, 2)["healthy"], document(empty, 2)["series"]) == (False, [])
    assert NOTHING in empty.stderr
    done(program(*HOURLY))
    status = figures(program("status", "--json"))
    assert status["healthy"] is True
    assert status["parquet"] == str(program.home / "parquet")
    (series,) = status["series"]
    first_ms = day_ms(date(2026, 8, 10))
    assert series == {
        "symbol": BTC,
        "timeframe": "1h",
        "first_ms": first_ms,
        "last_ms": first_ms + (ROWS - 1) * 3_600_000,
        "projected_rows": ROWS,
        "waiting": False,
        **dict.fromkeys(("expected", "present"), ROWS),
        **dict.fromkeys(("absent", "quarantined", "missing", "fetching", "overdue", "in_gaps"), 0),
        "percent": 100.0,
    }
    told = f"{BTC}          1h  2026-08-10 00:00 to 2026-08-11 23:00 UTC, 100 % of 48 expected, 48 in Parquet\n"
    assert told in program("status").stdout


def test_output_that_nobody_reads_is_no_traceback(program: Program, database: Database) -> None:
    want(database, FIRST_MS, BTC)
    readable, writable = os.pipe()
    os.close(readable)
    with program.start("status", "--json", stdout=writable) as process:
        os.close(writable)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (1, "")


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def allocate(*_: object, **__: object) -> None:
        pa.allocate_buffer(2**62)

    monkeypatch.setattr("okx_pipeline.cli.app", allocate)
    monkeypatch.setattr(os, "umask", lambda mask: mask)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (
        1,
        "error: there is not enough memory for that; name fewer days or series\n",
    )


def test_the_stand_in_says_where_it_serves_and_ends_in_order(bare: Program) -> None:
    with bare.start("replay", "synthetic", "--port", "0", "--symbols", "2", "--now", "2026-08-22T00:00Z") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"serving synthetic at (http://127\.0\.0\.1:\d+); OKX_REST_URL=\1\n", line)
        assert found is not None, line
        now_ms = httpx.get(f"{found[1]}/replay/status", trust_env=False).json()["now_ms"]
        assert 0 <= now_ms - day_ms(date(2026, 8, 22)) < 60_000
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("command", [("up",), ("replay", "synthetic"), ("pages",)], ids=" ".join)
def test_a_port_that_is_taken_is_one_line(bare: Program, command: tuple[str, ...]) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(bare(*command, "--port", str(port)), 2, str(port), "choose another")


def test_up_says_its_first_step_before_it_imports_what_takes_seconds(bare: Program) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        command = [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "okx_pipeline",
            "up",
            "--port",
            str(taken.getsockname()[1]),
        ]
        ended = subprocess.run(
            command,
            cwd=bare.folder,
            env=bare.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    before, first, after = ended.stdout.partition(f"loading the program, for the home {bare.home}\n")
    assert first
    slow = [rf"\| +{name}\n" for name in ("sqlalchemy", "httpx", "pyarrow", "rich.live", "okx_pipeline.up")]
    assert [name for name in slow if re.search(name, before)] == []
    assert [name for name in slow if not re.search(name, after)] == []


def test_up_with_a_stand_in_that_cannot_start_is_one_line(bare: Program) -> None:
    refused(bare("up", "--port", "0", "--replay", "nowhere"), 2, f"there is no folder {bare.folder / 'nowhere'}")
    refused(bare("up", "--port", "0", "--replay", "synthetic", "--now", "noon"), 2, "--now 'noon' is not a moment")


def test_everything_works_on_the_embedded_database_in_a_home_of_any_name(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "a folder of Zoë's"
    folder.mkdir()
    program = Program(folder, OKX_REST_URL=url, OKX_HOME=str(folder / "home"))
    for command in NEED_A_STORE:
        nothing = f"there is no store in {folder / 'home'} yet; start with: okx-pipeline up"
        refused(program(*command.split()), 1, nothing)
    assert not program.home.exists()
    assert figures(program(*HOURLY, "--json"))["new"] == ROWS
    assert done(program("psql", "-At", "-c", "select 1")).stdout == "1\n"
    assert program("psql", "-At", "-v", "ON_ERROR_STOP=1", "-c", "select nothing").returncode == 1
    assert figures(program("status", "--json"))["series"][0]["projected_rows"] == ROWS
    assert parquet(program).read(AUGUST).num_rows == ROWS


# Subscriptions


def test_nothing_is_collected_from_a_day_that_has_not_begun_at_the_exchange(program: Program) -> None:
    # By the wall's clock it may be long past.
    refused(program("subscribe", BTC, "--since", "2026-08-23"), 2, "--since 2026-08-23 lies in the future")
    assert figures(program("subscriptions", "--json")) == []
    [series] = figures(program("subscribe", BTC, "--since", "2026-08-22", "--json"))
    assert series["since_ms"] == day_ms(date(2026, 8, 22))


def test_a_first_day_that_is_not_taken_is_told_and_taken_after_unsubscribing(program: Program) -> None:
    def since(ended: "subprocess.CompletedProcess[str]") -> str:
        [series] = figures(ended)
        assert series["until_ms"] is None
        return f"{datetime.fromtimestamp(series['since_ms'] / 1000, tz=UTC):%Y-%m-%d}"

    subscribe = ("subscribe", BTC, "--json")
    assert since(program(*subscribe, "--since", "2016-08-10")) == "2016-08-10"
    later = program(*subscribe, "--since", "2026-08-10")
    assert since(later) == "2016-08-10"
    assert later.stderr == (
        f"{BTC} 1h is subscribed since 2016-08-10 and stays so; "
        f"to begin on 2026-08-10: okx-pipeline unsubscribe {BTC} --timeframes 1h, and subscribe again\n"
    )
    assert document(program("coverage", "--json"), 0)[0]["missing"] > 365 * 24
    ended = done(program("unsubscribe", BTC, "ETH-USDT", "--timeframes", "1h"))
    assert ended.stderr == "ETH-USDT: not subscribed; see: okx-pipeline subscriptions\n"
    again = program(*subscribe, "--since", "2026-08-10")
    assert (since(again), again.stderr) == ("2026-08-10", "")
    # What lies before was neither read nor held, and is not wanted any more.
    [held] = document(program("coverage", "--json"), 0)
    assert (held["first"], held["missing"]) == ("2026-08-10", 12 * 24)
    assert figures(program("status", "--json"))["missing"] == 12 * 24


def test_symbols_are_listed_with_what_is_subscribed_and_held_of_them(
    program: Program, database: Database, exchange: Exchange
) -> None:
    # Nothing is recorded yet, so that OKX is asked, once.
    first = program("symbols", "--json")
    everything = figures(first)
    assert first.stderr == f"OKX lists {len(everything)} symbols: {len(everything)} new or changed, 0 gone\n"
    assert [each["symbol"] for each in everything] == sorted(each["symbol"] for each in everything)
    want(database, FIRST_MS, "ETH-USDT-SWAP")
    done(program(*HOURLY))
    exchange.requests.clear()
    [btc] = figures(program("symbols", BTC.lower(), "--json", OKX_REST_URL=NOBODY))
    assert btc == {
        "symbol": BTC,
        "type": "SWAP",
        "state": "live",
        "listed_ms": btc["listed_ms"],
        "expires_ms": None,
        "subscribed": [],
        "held": ["1h"],
        "first_ms": FIRST_MS,
        "last_ms": FIRST_MS + (ROWS - 1) * HOUR_MS,
    }
    shown = done(program("symbols", "*usdt-SWAP")).stdout.splitlines()
    assert len(shown) == 1 + sum(each["symbol"].endswith("USDT-SWAP") for each in everything)
    assert f"{BTC}        SWAP     live      -                    2026-08-10 00:00 to 2026-08-11 23:00 UTC" in shown
    assert "ETH-USDT-SWAP        SWAP     live      1h                   -" in shown
    unknown = (
        f"none of {len(everything)} symbols matches 'SWOP'; ask OKX for a newer listing with: okx-pipeline symbols"
    )
    refused(program("symbols", "SWOP"), 2, unknown)
    refused(program("symbols", "--refresh", OKX_REST_URL=NOBODY), 1, "cannot reach OKX at 127.0.0.1:9")
    assert done(program("symbols", "--refresh")).stderr.endswith(" symbols: 0 new or changed, 0 gone\n")


# Completeness

NOTHING = "error: there is nothing that is subscribed, wanted or held; see: "
FIRST_MS = day_ms(date(2026, 8, 10))
HOUR_MS = 3_600_000
SECOND = ("--start", "2026-08-11", "--end", "2026-08-12")


@pytest.fixture
def collected(program: Program, database: Database) -> Program:
    """The program on a store that is subscribed to hours and holds the first two days of them."""
    want(database, FIRST_MS, BTC)
    done(program(*HOURLY))
    return program


def want(database: Database, since_ms: int, *symbols: str) -> None:
    with database.connect() as connection:
        subscribe(connection, symbols, parse_timeframes("1h"), since_ms)


def lose(database: Database, *hours: int) -> None:
    """Take candles out of the store behind the ledger's back."""
    with database.connect() as connection:
        opens = [FIRST_MS + hour * HOUR_MS for hour in hours]
        connection.execute("DELETE FROM trading.candlesticks WHERE timestamp_ms = ANY(%s)", (opens,))


def document(ended: "subprocess.CompletedProcess[str]", status: int) -> Any:
    """The JSON document on stdout of a command that ended with `status`."""
    assert ended.returncode == status, ended.stderr
    return json.loads(ended.stdout)


def test_gaps_are_told_mended_and_then_gone(collected: Program, database: Database) -> None:
    whole = dict.fromkeys(("quarantined", "missing", "fetching", "accepted", "absent"), 0)
    whole |= {"checked": ROWS, "present": ROWS, "gaps": []}
    assert figures(collected("gaps", *DAYS, "--json")) == whole

    lose(database, 3, 4, 5, 30)
    found = collected("gaps", *DAYS, "--json")
    hole = {"symbol": BTC, "timeframe": "1h", "status": "open", "reason": None}
    three = {**hole, "first_ms": FIRST_MS + 3 * HOUR_MS, "last_ms": FIRST_MS + 5 * HOUR_MS, "candles": 3}
    single = {**hole, "first_ms": FIRST_MS + 30 * HOUR_MS, "last_ms": FIRST_MS + 30 * HOUR_MS, "candles": 1}
    lacking = {**whole, "present": ROWS - 4, "missing": 4}
    assert document(found, 1) == {**lacking, "gaps": [three, single]}
    assert found.stderr == "error: 4 candles are missing; fetch them with: okx-pipeline gaps --repair\n"

    told = collected("gaps", *DAYS)
    assert told.returncode == 1
    assert told.stdout.splitlines() == [
        f"{BTC}          1h  48 checked, 44 present, 4 missing, 0 absent, 0 in quarantine",
        "    3 from 2026-08-10 03:00 to 2026-08-10 05:00 UTC",
        "    1 from 2026-08-11 06:00 UTC",
    ]

    mended = collected("gaps", *DAYS, "--repair", "--json")
    assert figures(mended) == {**whole, "gaps": [{**three, "status": "repaired"}, {**single, "status": "repaired"}]}
    assert mended.stderr == ""
    assert count(database) == ROWS
    assert figures(collected("gaps", *DAYS, "--json")) == whole


def test_gaps_looks_at_what_is_subscribed_where_nothing_is_named(program: Program, database: Database) -> None:
    want(database, day_ms(date(2026, 8, 21)), BTC, "ETH-USDT-SWAP")
    found = document(program("gaps", "--json"), 0)
    # The hour that closed a moment ago is not due for another minute.
    assert (found["checked"], found["missing"], found["present"]) == (48, 48, 0)
    assert found["fetching"] == 48, "nobody has read those days from REST yet"
    [line, _] = done(program("gaps")).stdout.splitlines()
    assert line == f"{BTC}          1h  24 checked, 0 present, 0 missing, 24 being fetched, 0 absent, 0 in quarantine"
    assert [(gap["symbol"], gap["candles"]) for gap in found["gaps"]] == [(BTC, 24), ("ETH-USDT-SWAP", 24)]
    assert figures(program("gaps", "--repair", "--json"))["present"] == 48


def test_of_a_gap_only_what_was_looked_at_is_told(program: Program, database: Database) -> None:
    want(database, FIRST_MS, BTC)
    assert document(program("gaps", "--json"), 0)["gaps"][0]["candles"] == 12 * 24
    found = document(program("gaps", *SECOND, "--json"), 0)
    assert (found["checked"], found["missing"]) == (24, 24)
    [gap] = found["gaps"]
    assert (gap["first_ms"], gap["candles"]) == (FIRST_MS + 24 * HOUR_MS, 24)


def test_every_candle_that_was_checked_is_in_one_of_four_numbers(collected: Program, database: Database) -> None:
    lose(database, 3, 20, 30, 31)
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO trading.candlesticks_quarantine (symbol, timeframe, timestamp_ms, source, reason, original) "
            "VALUES (%s, '1h', %s, 'rest', 'a price is zero', '[]')",
            (BTC, FIRST_MS + 3 * HOUR_MS),
        )
        connection.execute(
            "INSERT INTO trading.candle_gaps "
            "(symbol, timeframe, first_ms, last_ms, candles, status, reason, resolved_at) "
            "VALUES (%s, '1h', %s, %s, 2, 'absent', 'not_served', now())",
            (BTC, FIRST_MS + 30 * HOUR_MS, FIRST_MS + 31 * HOUR_MS),
        )
    found = document(collected("gaps", *DAYS, "--json"), 1)
    assert {name: found[name] for name in ("checked", "present", "absent", "quarantined", "missing")} == {
        "checked": ROWS,
        "present": ROWS - 4,
        "absent": 2,
        "quarantined": 1,
        "missing": 1,
    }
    assert [(gap["status"], gap["reason"]) for gap in found["gaps"]] == [("open", None), ("absent", "not_served")]
    [series] = document(collected("coverage", *DAYS, "--json"), 0)
    assert {name: series[name] for name in ("expected", "present", "absent", "quarantined", "missing")} == {
        "expected": ROWS,
        "present": ROWS - 4,
        "absent": 2,
        "quarantined": 1,
        "missing": 1,
    }


def test_many_gaps_are_told_by_the_document_and_not_by_the_terminal(collected: Program, database: Database) -> None:
    collected("gaps", "--repair")
    lose(database, *range(1, 12 * 24, 2))
    told = collected("gaps").stdout.splitlines()
    assert len(told) == 1 + 50 + 1
    assert told[-1] == "    and 94 more; --json lists them all"
    assert len(document(collected("gaps", "--json"), 1)["gaps"]) == 144


def test_what_okx_cannot_serve_now_is_still_missing_after_a_repair(
    collected: Program, database: Database, exchange: Exchange
) -> None:
    lose(database, 7)
    exchange.faults.add([Fault(kind="empty", requests=1_000)])
    ended = collected("gaps", *DAYS, "--repair", "--json")
    assert document(ended, 1)["missing"] == 1
    assert ended.stderr == "error: 1 candles are missing; OKX did not serve them now\n"


@pytest.mark.parametrize(
    "command",
    [
        "gaps",
        "gaps --json",
        "gaps --repair",
        "coverage",
        "coverage --json",
        "validate",
        "export -",
        "monitor --once",
    ],
)
def test_a_command_about_nothing_says_so_and_fails(program: Program, command: str) -> None:
    refused(program(*command.split()), 2, NOTHING, "okx-pipeline subscribe --help")


def test_a_command_about_what_is_not_due_yet_says_so(program: Program, database: Database) -> None:
    want(database, day_ms(date(2026, 8, 22)) + HOUR_MS, BTC)
    found = figures(program("gaps", "--json"))
    assert found.pop("gaps") == []
    assert set(found.values()) == {0}
    for command in ("gaps", "coverage"):
        assert done(program(command)).stdout == "nothing that is wanted is due yet\n"
    assert document(program("coverage", "--json"), 0) == []
    refused(program("coverage", *DAYS), 2, NOTHING)
    refused(program("validate", "--timeframes", "4h"), 2, NOTHING)


def test_what_a_backfill_brought_is_in_the_scope_of_every_command_until_it_is_forgotten(
    program: Program, database: Database
) -> None:
    done(program(*HOURLY))
    done(program("backfill", *SECOND, "--symbols", "ETH-USDT-SWAP", "--timeframes", "1h"))
    lose(database, 3, 30)
    # Both symbols have the candle of the second day.
    for scope in ((), ("--symbols", f"{BTC},ETH-USDT-SWAP")):
        found = document(program("gaps", *scope, "--json"), 1)
        assert (found["checked"], found["missing"], found["fetching"]) == (ROWS + 24, 3, 0)
    rows = document(program("coverage", "--json"), 0)
    assert [(each["symbol"], each["expected"], each["missing"]) for each in rows] == [
        (BTC, ROWS, 2),
        ("ETH-USDT-SWAP", 24, 1),
    ]
    judged = document(program("validate", "--json"), 1)
    assert (judged["days"], judged["series_days"]) == (2, 3)
    assert f"{2 * ROWS // 2 + 24 - 3} candles of 2 series" in done(program("export", "-", "--store", "postgres")).stderr
    done(program("gaps", "--repair"))
    assert document(program("status", "--json"), 1)["missing"] == 0, "and the checks have not seen the repair yet"

    kept = figures(program("forget", "ETH-USDT-SWAP", "--json"))
    second_ms = FIRST_MS + 24 * HOUR_MS
    ended = {"timeframe": "1h", "since_ms": second_ms, "until_ms": second_ms + 24 * HOUR_MS}
    assert kept == {"symbol": "ETH-USDT-SWAP", "forgotten": [ended], "deleted": 0}
    lose(database, 31)
    found = document(program("gaps", "--json"), 1)
    assert (found["checked"], found["missing"]) == (ROWS + 23, 1), "what is held of the forgotten one is all of it"
    refused(program("forget", "ETH-USDT-SWAP"), 2, "nothing of ETH-USDT-SWAP is wanted there any more; with --delete")
    refused(program("forget", "NOPE-USDT-SWAP"), 2, "NOPE-USDT-SWAP: neither subscribed nor held")
    gone = done(program("forget", "ETH-USDT-SWAP", "--delete"))
    assert gone.stdout == "23 candles deleted\n"
    refused(program("coverage", "--symbols", "ETH-USDT-SWAP"), 2, "ETH-USDT-SWAP: neither subscribed nor held")
    assert parquet(program).months("ETH-USDT-SWAP", "1h") == []

    want(database, second_ms, BTC)
    refused(program("forget", BTC), 2, f"{BTC} is subscribed in 1h since 2026-08-11; name what lies before with --end")
    told = done(program("forget", BTC, "--end", "2026-08-11", "--delete")).stdout
    assert told == f"{BTC}          1h  2026-08-10 to 2026-08-10 is not wanted any more\n24 candles deleted\n"
    assert parquet(program).read(AUGUST).num_rows == 23


def test_days_that_somebody_names_are_looked_at_whether_they_are_wanted_or_not(
    program: Program, database: Database
) -> None:
    hourly = ("gaps", "--symbols", BTC, "--timeframes", "1h")
    for command in (hourly, ("gaps", "--symbols", BTC)):
        refused(program(*command), 2, f"nothing of {BTC} is subscribed, wanted or held; name --timeframes and --start")
    found = document(program(*hourly, *DAYS, "--json"), 1)
    assert (found["missing"], found["fetching"], found["gaps"][0]["candles"]) == (ROWS, 0, ROWS)
    refused(program("gaps"), 2, NOTHING)
    # To repair them is to want them.
    assert figures(program(*hourly, *DAYS, "--repair", "--json"))["present"] == ROWS
    assert figures(program("gaps", "--symbols", BTC, "--json"))["checked"] == ROWS
    unknown = ("gaps", *DAYS, "--symbols", "NOPE-USDT-SWAP", "--timeframes", "1h")
    refused(program(*unknown), 2, "OKX lists no instrument NOPE-USDT-SWAP; check how it is spelled")
    for command in ("coverage --json", "coverage", "validate --json", "export -", "export x.csv --timeframes 1h"):
        name, *rest = command.split()
        ended = program(name, "--symbols", f"{BTC},NOPE-USDT-SWAP", *rest)
        refused(ended, 2, "error: NOPE-USDT-SWAP: neither subscribed nor held; check how it is spelled")
    assert not (program.folder / "x.csv").exists()


def test_gaps_and_coverage_are_told_while_okx_is_out_of_reach_if_its_time_was_known_once(
    collected: Program, database: Database
) -> None:
    lose(database, 7)
    for command in (("gaps",), ("gaps", "--repair"), ("coverage",)):
        refused(collected(*command, OKX_REST_URL=NOBODY), 1, "cannot reach OKX at 127.0.0.1:9: connection refused")
    with database.connect() as connection:
        beat(connection, Heartbeat("host:1", "streaming", NOW))
    days = (*DAYS, "--json")
    found = document(collected("gaps", *days, OKX_REST_URL=NOBODY), 1)
    assert (found["checked"], found["missing"]) == (ROWS, 1)
    [series] = document(collected("coverage", *days, OKX_REST_URL=NOBODY), 0)
    assert (series["expected"], series["missing"]) == (ROWS, 1)
    refused(collected("gaps", *days, "--repair", OKX_REST_URL=NOBODY), 1, "cannot reach OKX at 127.0.0.1:9")


def test_an_accepted_finding_counts_no_more_until_its_day_changes_and_stays_listed(
    collected: Program, database: Database
) -> None:
    lose(database, 3, 4)
    done(collected("coverage"))
    assert "2 candles missing on 1 series-day" in collected("status").stderr
    accept = ("accept", BTC, "1h", "2026-08-10")
    refused(collected(*accept), 2, "accept takes SYMBOL TIMEFRAME DAY --reason TEXT, or --list")
    refused(collected("accept", BTC, "1h", "2030-01-01", "--reason", "why"), 2, "has no closed day 2030-01-01")
    told = f"{BTC} 1h 2026-08-10: OKX lost them\n"
    assert done(collected(*accept, "--reason", "OKX lost them")).stdout == told
    assert "1 findings accepted" in done(collected("status")).stdout
    assert "2 accepted" in done(collected("gaps", *DAYS)).stdout
    lose(database, 5)
    assert document(collected("gaps", *DAYS, "--json"), 1)["accepted"] == 0
    assert "3 candles missing on 1 series-day" in collected("status").stderr
    [listed] = document(collected("accept", "--list", "--json"), 0)
    assert (listed["reason"], listed["holds"]) == ("OKX lost them", False)


def test_coverage_is_one_line_per_series(collected: Program, database: Database) -> None:
    lose(database, 3, 4)
    collected("gaps", *DAYS)
    heading, line = done(collected("coverage", *DAYS)).stdout.splitlines()
    assert heading.split() == ["symbol", "first", "last", "expected", "present", "absent", "missing", "percent"]
    assert line.split() == [BTC, "1h", "2026-08-10", "2026-08-11", "48", "46", "0", "2", "95.83", "%"]
    [series] = document(collected("coverage", *DAYS, "--json"), 0)
    assert (series["symbol"], series["timeframe"]) == (BTC, "1h")
    assert (series["first"], series["last"]) == ("2026-08-10", "2026-08-11")
    assert series["percent"] == pytest.approx(100 * 46 / 48)
    assert (series["whole"], series["days"]) == (1, 2)
    [day] = document(collected("coverage", *SECOND, "--json"), 0)
    assert (day["expected"], day["percent"]) == (24, 100.0)
    assert done(collected("coverage", *SECOND)).stdout.endswith("  100 %\n")


def test_coverage_is_never_rounded_up_to_the_whole(program: Program, database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO trading.coverage (symbol, timeframe, day, expected, present, absent, quarantined, missing, "
            "content_hash) VALUES (%s, '1h', '2026-08-10', 10000000, 9999999, 0, 0, 1, '')",
            (BTC,),
        )
    assert done(program("coverage", "--symbols", BTC)).stdout.endswith("  99.99 %\n")
    assert document(program("coverage", "--symbols", BTC, "--json"), 0)[0]["percent"] < 100


def test_the_status_says_what_of_the_expected_is_there_and_what_became_of_the_rest(
    collected: Program, database: Database
) -> None:
    status = figures(collected("status", "--json"))
    assert (status["healthy"], status["missing"], status["fetching"], status["in_gaps"]) == (True, 240, 240, 0)
    [series] = status["series"]
    assert {name: series[name] for name in ("expected", "present", "absent", "quarantined", "missing", "fetching")} == {
        "expected": 288,
        "present": ROWS,
        "absent": 0,
        "quarantined": 0,
        "missing": 240,
        "fetching": 240,
    }
    assert series["percent"] == pytest.approx(100 * 48 / 288)
    assert (series["in_gaps"], series["overdue"]) == (0, 0)
    expected = "UTC, 16.67 % of 288 expected, 240 to fetch, 48 in Parquet\n"
    assert expected in done(collected("status")).stdout

    lose(database, 3, 4)
    collected("gaps")
    assert document(collected("status", "--json"), 1)["in_gaps"] == 2
    assert "15.97 % of 288 expected, 240 to fetch, 2 missing, 48 in Parquet" in collected("status").stdout
    with database.connect() as connection:
        beat(connection, Heartbeat("host:1", "streaming", NOW))
    assert "15.97 % of 288 expected, 240 being fetched, 2 missing, 48 in Parquet" in collected("status").stdout


def test_the_status_is_not_healthy_when_candles_are_missing_for_more_than_a_day(
    collected: Program, database: Database
) -> None:
    lose(database, 3, 4)
    collected("gaps")
    with database.connect() as connection:
        connection.execute("UPDATE trading.coverage SET counted_at = counted_at - interval '1 day'")
    told = collected("status")
    assert told.returncode == 1
    assert "240 to fetch, 2 missing for more than a day, 48 in Parquet" in told.stdout, told.stdout
    repair = f"gaps --repair --symbols {BTC} --timeframes 1h --start 2026-08-10 --end 2026-08-11"
    worst = f"the newest 2 of {BTC} 1h 2026-08-10; repair: okx-pipeline {repair}"
    problem = f"2 candles missing on 1 series-day, {worst}"
    assert told.stderr == f"error: {problem}\n"
    sick = document(collected("status", "--json"), 1)
    assert (sick["healthy"], sick["problem"], sick["series"][0]["overdue"]) == (False, problem, 2)
    done(collected("gaps", "--repair"))
    assert figures(collected("status", "--json"))["healthy"] is True


# Validation


def test_a_clean_store_passes_and_the_report_is_where_it_says(collected: Program) -> None:
    told, shown = watch(collected, "validate", *DAYS, "--json")
    assert shown.rindex("2/2 days") < shown.rindex("building the pages")
    judged = json.loads(told)
    assert (judged["days"], judged["series_days"], judged["errors"]) == (2, 2, 0)
    # One for each check and store. There is no other timeframe to compare with, so that check is not judged.
    assert judged["verdicts"] == 2 * 6 * 2
    assert Path(judged["report"]).is_file()
    assert figures(collected("status", "--json"))["quality"]["series_days"] == 2


def test_a_row_no_market_can_have_fails_the_check_that_names_it_and_the_status(
    collected: Program, database: Database
) -> None:
    with database.connect() as connection:
        connection.execute("ALTER TABLE trading.candlesticks DROP CONSTRAINT candlesticks_range")
        connection.execute(
            "UPDATE trading.candlesticks SET high_price = low_price - 1 WHERE timestamp_ms = %s", (FIRST_MS,)
        )
    ended = collected("validate", *DAYS, "--json")
    judged = document(ended, 1)
    sane = [each for each in judged["failed"] if (each["check"], each["store"]) == ("ohlc_sanity", "postgres")]
    assert [(each["symbol"], each["timeframe"], each["severity"]) for each in sane] == [(BTC, "1h", "critical")]
    assert re.fullmatch(r"error: \d+ checks failed at the level of an error; see \S+index.html\n", ended.stderr)
    told = collected("validate", *DAYS)
    assert told.returncode == 1
    assert f"{BTC} 1h: error in ohlc_sanity: " in told.stdout
    last = told.stdout.splitlines()[-1]
    assert last.startswith(f"2 days of 2 series-days judged: {judged['errors']} errors")
    assert judged["report"] in last
    unwell = collected("status")
    assert unwell.returncode == 1
    assert f"check failing on 1 series-day, the newest ohlc_sanity of {BTC} 1h 2026-08-10" in unwell.stderr


def test_candles_are_exported_to_a_file_or_to_stdout(collected: Program) -> None:
    ended = done(collected("export", "-", *DAYS))
    assert ended.stdout.count("\n") == 1 + ROWS
    assert ended.stderr == f"{ROWS:,} candles of 1 series\n"
    path = collected.home / "candles.parquet"
    done(collected("export", str(path), *DAYS, "--store", "postgres"))
    assert pq.read_metadata(path).num_rows == ROWS
    refused(collected("export", "candles.xls"), 2, "names no format")
    refused(collected("export", "-", "--timeframes", "4h"), 2, NOTHING)
    # The files need no database to be exported.
    alone = collected("export", "-", "--symbols", BTC, "--timeframes", "1h", OKX_DATABASE_URL=NOWHERE)
    assert done(alone).stdout == ended.stdout


def test_history_that_is_still_on_its_way_is_not_judged(program: Program, database: Database) -> None:
    want(database, FIRST_MS, BTC)
    assert figures(program("validate", "--json"))["verdicts"] == 0
    assert done(program("validate")).stdout == "nothing is judged: no day of that is both over and read from OKX yet\n"
    found = document(program("gaps", "--json"), 0)
    assert found["missing"] == found["fetching"] > 0
    assert "no series-day is judged yet" in done(program("status")).stdout
