"""`up` as a person watches it: in a terminal, with the monitor and the checks, on a database with a password."""

import json
import re
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.migrations import known_migrations
from okx_pipeline_tests.e2e.system import PROGRAM, WITHIN_S, System, free_port, wait_for
from okx_pipeline_tests.e2e.terminal import ALTERNATE, NORMAL, Terminal, terminal
from okx_pipeline_tests.storage.password_server import PasswordServer, password_server

pytestmark = pytest.mark.e2e

BTC = "BTC-USDT-SWAP"
SENTINEL = "s3ntinel/of a@secret"
SENTINEL_PART = "ntinel"
"""What all secrets here have in common, however they are spelled."""

MAKEFILE = Path(__file__).parents[2] / "Makefile"
TOLD = (
    "Dagster UI   http://127.0.0.1:",
    "Data quality http://127.0.0.1:",
    "PostgreSQL   ",
    "Parquet      ",
    "Logs         ",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PasswordServer]:
    """A PostgreSQL whose owner has the sentinel for a password."""
    with password_server(tmp_path_factory.mktemp("server")) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE okx LOGIN PASSWORD '{SENTINEL}'")
            connection.execute("CREATE DATABASE okx OWNER okx")
        yield server


@pytest.fixture(scope="module")
def system(server: PasswordServer, tmp_path_factory: pytest.TempPathFactory) -> System:
    folder = tmp_path_factory.mktemp("a user")
    settings = {
        "OKX_DATABASE_URL": server.url("okx", SENTINEL, "okx"),
        "OKX_SYMBOLS": BTC,
        "OKX_TIMEFRAMES": "1h,4h",
        "OKX_HISTORY_START": "2026-08-20",
        "OKX_TELEGRAM_TOKEN": "1234567:s3ntinel-token",
        "OKX_TELEGRAM_CHAT": "1",
        "OKX_ALERT_WEBHOOK_URL": "http://127.0.0.1:9/s3ntinel-hook",
        "OKX_DEAD_MAN_URL": "http://127.0.0.1:9/s3ntinel-ping",
        "OKX_ALERT_ALLOW_HTTP": "true",
        "OKX_METRICS_PORT": str(free_port()),
    }
    return System(folder / "home", folder, **settings)


@pytest.fixture(scope="module")
def shown(system: System, recordings: Path) -> Iterator[Terminal]:
    """`up --monitor --validate` in a terminal, on the recordings."""
    stand_in = ["--replay", str(recordings / "candles"), "--now", "2026-08-22T02:00Z", "--speed", "1"]
    command = [PROGRAM, "up", "--port", str(system.port), "--monitor", "--validate", *stand_in]
    with terminal(command, system.folder, system.environment, rows=40) as up:
        yield up


# In the order of a user's day: the tests share one `up`.


def test_it_says_what_it_waits_for_and_opens_the_monitor_once_ready(shown: Terminal) -> None:
    shown.await_text("ready; Ctrl-C stops everything")
    before = shown.text
    assert "waiting for the web UI" in before
    steps = (
        "loading the program, for the home",
        "starting the replay exchange",
        "connecting to PostgreSQL (okx@127.0.0.1:",
        f"bringing the schema up to date ({len(known_migrations())} migrations)",
        "starting the sidecar and the server of the pages",
        "making Dagster's tables",
        "starting Dagster's web UI and daemon",
    )
    assert [before.count(step) for step in steps] == [1] * len(steps)
    assert sorted(steps, key=before.index) == list(steps)
    for told in TOLD:
        assert told in before
    shown.await_text("q leaves the monitor, Ctrl-C stops everything")
    assert ALTERNATE in shown.raw
    assert "streaming, beat" in shown.text
    wait_for(lambda: any(line.startswith(BTC) for line in shown.lines), "a line of a series")


def test_q_leaves_the_monitor_for_a_summary_and_what_was_said_meanwhile(shown: Terminal, system: System) -> None:
    daemon = next(
        each for each in psutil.Process(shown.process.pid).children() if "okx_pipeline.defs.daemon" in each.cmdline()
    )
    daemon.kill()
    log = system.home / "logs" / "up.log"
    wait_for(lambda: "the daemon ended with status -9" in log.read_text(), "its end in the log")
    assert "the daemon ended" not in shown.text, "the monitor has the terminal"
    shown.press("q")
    shown.await_text("the daemon ended with status -9; starting it again in 1 s")
    assert NORMAL in shown.raw
    shown.await_text("2 of 2 series sound")
    shown.await_text("database ")


def test_the_checks_are_run_once_history_is_here_and_their_result_is_said(shown: Terminal) -> None:
    shown.await_text("validation: 2 days of 4 series-days judged: 0 errors")
    assert shown.text.index("validation waits until all history is here") < shown.text.index("validation begins")


def test_every_port_of_it_is_on_the_loopback_the_figures_included(shown: Terminal, system: System) -> None:
    metrics = int(system.environment["OKX_METRICS_PORT"])
    wait_for(lambda: ("127.0.0.1", metrics) in listening(system), "figures")
    ports = listening(system)
    assert {system.port, system.port + 1} <= {port for _, port in ports}
    assert {address for address, _ in ports} == {"127.0.0.1"}
    assert SENTINEL_PART not in httpx.get(f"http://127.0.0.1:{metrics}/metrics", trust_env=False).text


def listening(system: System) -> set[tuple[str, int]]:
    found = set()
    for process in system.processes():
        with suppress(psutil.NoSuchProcess):
            found |= {
                (each.laddr.ip, each.laddr.port)
                for each in process.net_connections(kind="inet")
                if each.status == psutil.CONN_LISTEN
            }
    return found


def test_no_command_shows_a_secret_nor_does_any_process_to_others(shown: Terminal, system: System) -> None:
    told = []
    for arguments in (
        ("status", "--json"),
        ("gaps", "--json"),
        ("backfill", "--start", "2026-08-20", "--end", "2026-08-21"),
        ("backup", str(system.folder / "okx.backup")),
        ("psql", "-c", "SELECT 1"),
        ("up", "--port", "0"),
    ):
        ended = system.run(*arguments)
        told.append(f"{ended.args}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
    assert SENTINEL_PART not in "".join(told)
    # They were told of the home alone, and asked its stand-in all the same.
    assert "new candles" in told[2]
    lines = []
    for process in system.processes():
        with suppress(psutil.NoSuchProcess):
            lines.append(f"{process.name()} {process.cmdline()}")
    assert len(lines) > 6
    assert SENTINEL_PART not in "".join(lines)


def test_a_second_up_on_the_same_database_says_who_has_it_and_touches_nothing(
    shown: Terminal, system: System, tmp_path: Path
) -> None:
    settings = {name: value for name, value in system.environment.items() if name.startswith("OKX_DATABASE")}
    other = System(tmp_path / "home", tmp_path, **settings)
    ended = other.run("up", "--port", "0", "--replay", "synthetic")
    assert ended.returncode == 75, ended.stdout
    assert re.fullmatch(
        rf"error: up is already running on okx@127\.0\.0\.1:\d+/okx \(process {shown.process.pid} on .+\); "
        "stop it, or use another OKX_DATABASE_URL here\n",
        ended.stderr,
    ), ended.stderr
    assert "starting the sidecar" not in ended.stdout
    assert other.processes() == []


def test_no_table_holds_a_secret_whether_ours_or_dagsters(
    shown: Terminal, system: System, server: PasswordServer
) -> None:
    dump = subprocess.run(
        [EmbeddedPostgres(system.home).bin / "pg_dump", "-d", server.url("okx", SENTINEL, "okx")],
        capture_output=True,
        check=True,
    ).stdout
    for table in (b"COPY dagster.event_logs", b"COPY dagster.runs", b"COPY trading.stream_status"):
        assert table in dump
    assert SENTINEL_PART.encode() not in dump
    compressed = [zlib.decompress(bytes.fromhex(body.decode())) for body in re.findall(rb"\\\\x(789c[0-9a-f]+)", dump)]
    assert any(b"okx_candles" in body for body in compressed), "what runs were made of"
    assert not any(SENTINEL_PART.encode() in body for body in compressed)
    # What the page of the deployment shows.
    instance = {"query": "{ instance { info } }"}
    answer = httpx.post(f"http://127.0.0.1:{system.port}/graphql", json=instance, trust_env=False).text
    assert "run_monitoring" in answer
    assert SENTINEL_PART not in answer


def test_ctrl_c_stops_everything_and_leaves_the_terminal_as_it_was(shown: Terminal, system: System) -> None:
    shown.press("\x03")
    assert shown.end() == 0
    assert "stopping …" in shown.text
    assert shown.is_as_it_was
    assert "Traceback" not in shown.text
    assert system.processes() == []


def test_the_logs_are_bounded_json_where_ours_and_without_a_secret(shown: Terminal, system: System) -> None:
    logs = {path.name: path.read_text() for path in (system.home / "logs").iterdir()}
    assert {"up.log", "sidecar.log", "daemon.log", "webserver.log", "pages.log", "validation.log"} <= logs.keys()
    assert SENTINEL_PART not in "".join(logs.values())
    assert SENTINEL_PART not in shown.text
    for name in ("up.log", "sidecar.log"):
        lines = [json.loads(line) for line in logs[name].splitlines()]
        assert lines
        assert all({"at", "level", "logger", "message"} <= line.keys() for line in lines)
    kept = {path: path.read_bytes() for path in system.home.rglob("*") if path.is_file()}
    assert len(kept) > 20
    assert [path for path, body in kept.items() if SENTINEL_PART.encode() in body] == []
    assert any("watch failed" in line for line in logs["sidecar.log"].splitlines()), (
        "it asked in vain, without saying whom"
    )


def test_the_demo_moves_and_its_terminal_when_closed_leaves_nothing(tmp_path: Path) -> None:
    [demo] = re.findall(r"okx-pipeline up (--replay .*)", MAKEFILE.read_text())
    system = System(tmp_path / "demo", tmp_path)
    command = [PROGRAM, "up", "--port", str(system.port), *demo.split()]
    # Behind a proxy, whose name is not overwritten by the port that the pages have.
    proxied = {**system.environment, "OKX_PAGES_URL": "https://candles.example.com"}
    with terminal(command, system.folder, proxied) as up:
        up.await_text("5 of 5 series sound")
        for moving in (r"[1-9][\d,]* held", r"([1-9][\d.]*|0\.[1-9]) candles/s"):
            wait_for(lambda said=moving: re.search(said, up.text), moving)
        assert "Errors" not in up.text, "what a newcomer sees first"
        assert "Data quality https://candles.example.com" in up.text
        named = {"Host": "candles.example.com", "Origin": "https://candles.example.com"}
        ui = f"http://127.0.0.1:{system.port}/server_info"
        assert httpx.get(ui, headers=named, trust_env=False).status_code == 200
        up.hang_up()
        up.process.wait(WITHIN_S)
    assert system.processes() == []
    assert '"message":"stopping …"' in (system.home / "logs" / "up.log").read_text().splitlines()[-1], "in order"


def test_the_monitor_needs_a_terminal(system: System) -> None:
    ended = system.run("up", "--monitor")
    assert ended.returncode == 2
    assert ended.stderr == "error: there is no terminal here to draw on; leave --monitor out\n"
