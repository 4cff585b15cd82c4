"""`up` as a user has it: everything runs, a backfill from the UI lands what OKX has, nothing is left at the end."""

import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.embedded_guard import postmaster_file
from okx_pipeline.timeframes import day_ms
from okx_pipeline_tests.e2e.system import System, Up, wait_for
from okx_pipeline_tests.history.test_recordings import in_parquet, in_postgresql, recorded

pytestmark = pytest.mark.e2e

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
BARS = {"5m": "5m", "15m": "15m", "1h": "1H", "4h": "4H"}
DAY_ROWS = 288 + 96 + 24 + 6
OUTAGE = f"2022-12-18|{BTC}"

DEFINITIONS = """
{ repositoriesOrError { ... on RepositoryConnection { nodes {
    location { name }
    assetNodes { assetKey { path } partitionKeysByDimension { name partitionKeys } }
    schedules { name scheduleState { status } }
    sensors { name sensorState { status } }
} } } }
"""
LAUNCH_BACKFILL = """
mutation($keys: [String!]!) { launchPartitionBackfill(backfillParams: {
    assetSelection: [{path: ["okx", "candles"]}], partitionNames: $keys
}) { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
BACKFILL = "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
LANDED = """
{ assetNodeOrError(assetKey: {path: ["okx", "candles"]}) { ... on AssetNode { partitionStats { numMaterialized } } } }
"""
MATERIALIZATION = """
query($key: String!) { assetNodeOrError(assetKey: {path: ["okx", "candles"]}) { ... on AssetNode {
    assetMaterializations(partitions: [$key], limit: 1) { metadataEntries {
        label
        ... on IntMetadataEntry { intValue }
        ... on FloatMetadataEntry { floatValue }
        ... on TextMetadataEntry { text }
        ... on TimestampMetadataEntry { timestamp }
    } }
} } }
"""
LAUNCH_RUN = """
mutation($tags: [ExecutionTag!]!) { launchRun(executionParams: {
    selector: {
        repositoryLocationName: "okx_pipeline", repositoryName: "__repository__", jobName: "okx_candles"
    },
    executionMetadata: {tags: $tags}
}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
CLAIMS = "{ instance { concurrencyLimits { concurrencyKey claimedSlots { runId } } } }"


@pytest.fixture(scope="module")
def replay(recordings: Path) -> list[str]:
    """Arguments that put the recordings in OKX's place, two hours after the last of them."""
    return ["--replay", str(recordings / "candles"), "--now", "2026-08-22T02:00Z"]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    """A home that nobody uses any more, whatever its lock says, with an odd path and in an odd locale.

    Seen from a folder with a file that has the name of a library, and with a workspace of the user's own.
    """
    folder = tmp_path_factory.mktemp("a user of Zoë's")
    (folder / "own.yaml").write_text("load_from: []\n")
    (folder / "gql.py").write_text("raise ImportError('this is not the library')\n")
    settings = {"OKX_SYMBOLS": f"{BTC},{ETH}", "OKX_TIMEFRAMES": ",".join(BARS), "OKX_HISTORY_START": "2026-08-21"}
    odd = {"OKX_WORKSPACE": "own.yaml", "LC_ALL": "nonsense_XX", "PYTHONIOENCODING": "ascii"}
    home = folder / "the hömé"
    home.mkdir(mode=0o700)
    (home / "up.lock").write_text("1\n")
    return System(home, folder, **settings, **odd)


@pytest.fixture(scope="module")
def running(system: System, replay: list[str]) -> Iterator[Up]:
    """`up`, ready."""
    with system.up(*replay) as ready:
        yield ready


@pytest.fixture(scope="module")
def backfill(running: Up) -> str:
    """A backfill that was asked for as the asset's page asks: three weeks of two symbols, and a day with an outage."""
    wait_for(lambda: set(symbols(running)) >= {BTC, ETH}, "partitions of the symbols")
    keys = [f"2026-08-{day:02}|{symbol}" for symbol in (BTC, ETH) for day in range(1, 22)]
    launched = running.graphql(LAUNCH_BACKFILL, keys=[*keys, OUTAGE])["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return str(launched["backfillId"])


@pytest.fixture(scope="module")
def landed(running: Up, backfill: str) -> None:
    """The partitions of that backfill, materialized."""

    def materialized() -> int:
        return int(running.graphql(LANDED)["assetNodeOrError"]["partitionStats"]["numMaterialized"])

    wait_for(lambda: materialized() >= 2 * 21 + 1, "materializations")


@pytest.fixture
def database(system: System, running: Up) -> Iterator[Database]:
    """The store of the home, which is up."""
    with EmbeddedPostgres(system.home) as embedded:
        yield Database(embedded.url)


def definitions(running: Up) -> dict[str, Any]:
    (repository,) = running.graphql(DEFINITIONS)["repositoriesOrError"]["nodes"]
    return dict(repository)


def symbols(running: Up) -> list[str]:
    assets = {"/".join(node["assetKey"]["path"]): node for node in definitions(running)["assetNodes"]}
    dimensions = {each["name"]: each["partitionKeys"] for each in assets["okx/candles"]["partitionKeysByDimension"]}
    assert dimensions["date"][0] == "2020-01-01"
    return list(dimensions["symbol"])


def between(start: date, end: date, rows: list[Any]) -> list[Any]:
    """The rows of [start, end): today's come from the stream, and no backfill was asked for them."""
    return [row for row in rows if day_ms(start) <= row[0] < day_ms(end)]


def metadata(running: Up, key: str) -> dict[str, Any]:
    (found,) = running.graphql(MATERIALIZATION, key=key)["assetNodeOrError"]["assetMaterializations"]
    return {
        entry["label"]: next(value for name, value in entry.items() if name != "label")
        for entry in found["metadataEntries"]
    }


# In the order of a user's day: the tests share one `up`, and the backfill goes on while the first of them run.


def test_everything_that_runs_by_itself_is_loaded_and_on(running: Up, backfill: str) -> None:
    loaded = definitions(running)
    assert loaded["location"]["name"] == "okx_pipeline"
    assert {"okx/candles", "okx/instruments"} <= {"/".join(node["assetKey"]["path"]) for node in loaded["assetNodes"]}
    states = {each["name"]: each["scheduleState"]["status"] for each in loaded["schedules"]}
    states |= {each["name"]: each["sensorState"]["status"] for each in loaded["sensors"]}
    assert {"okx_candles_daily", "okx_instruments_daily", "okx_subscribed_symbols"} <= states.keys()
    assert set(states.values()) == {"RUNNING"}


def test_a_workspace_of_ones_own_is_loaded_beside_ours_which_wins_a_name(system: System, running: Up) -> None:
    for name in ("okx_pipeline.defs.webserver", "okx_pipeline.defs.daemon"):
        child = running.child(name)
        assert child is not None
        words = child.cmdline()
        own, ours = (words[index + 1] for index, word in enumerate(words) if word == "-w")
        assert own == str(system.folder / "own.yaml")
        assert ours.endswith("/workspace.yaml")


def test_the_command_that_it_names_looks_into_the_database_of_this_home(system: System, running: Up) -> None:
    [named] = re.findall(r"  \(OKX_HOME='/.*' (.*okx-pipeline psql)\)$", running.await_line("PostgreSQL   "))
    ended = subprocess.run(
        ["sh", "-c", f"{named} -At -c 'select count(*) FROM trading.subscriptions'"],
        cwd=system.folder,
        # The terminal's encoding lacks letters of the home's name, so that it is not read off the line.
        env={name: system.environment[name] for name in ("PATH", "HOME", "OKX_HOME")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert int(ended.stdout or 0) > 0, ended.stderr


def test_every_step_to_there_was_one_line(running: Up) -> None:
    before = running.output.partition("Dagster UI")[0].splitlines()
    # On a busy machine it also says what it waits for.
    steps = [line.partition(",")[0].partition(" (")[0] for line in before if not line.startswith("waiting")]
    assert not any("recover" in line for line in before), "in a home that never ran"
    assert steps == [
        "loading the program",
        "starting the replay exchange",
        "creating the database",
        "starting PostgreSQL",
        "bringing the schema up to date",
        "starting the sidecar and the server of the pages",
        "making Dagster's tables",
        "starting Dagster's web UI and daemon",
    ]


def test_nothing_listens_but_on_the_loopback(system: System, running: Up) -> None:
    processes = system.processes()
    assert any(process.name() == "postgres" for process in processes)
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", system.port) in listening
    assert {address for address, _ in listening} == {"127.0.0.1"}
    assert httpx.get(f"http://127.0.0.1:{system.port}/", trust_env=False).is_success


def test_no_page_of_another_site_can_have_the_ui_act(system: System, running: Up) -> None:
    url = f"http://127.0.0.1:{system.port}/graphql"
    # Whatever Dagster is asked for it does, by GET as well: this is what a picture in a page asks by.
    asked = {"query": "mutation { setNuxSeen }"}

    def status(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.get(url, params=asked, headers=named, timeout=60, trust_env=False).status_code

    assert status() == 200
    assert status(Sec_Fetch_Site="same-origin") == 200
    assert status(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image") == 403
    assert status(Origin="https://elsewhere.example.com") == 403
    assert status(Host=f"rebound.example.com:{system.port}") == 421


def test_a_second_one_in_the_same_home_ends_at_once(system: System, running: Up) -> None:
    second = system.run("up", "--port", "0")
    assert second.returncode == 75
    assert second.stdout.startswith("loading the program")
    assert second.stdout.count("\n") == 1
    home = str(system.home).encode("ascii", "backslashreplace").decode()
    assert second.stderr == f"error: up is already running in {home} (process {running.process.pid})\n"


def test_a_child_that_dies_is_started_again_and_goes_on(running: Up, backfill: str) -> None:
    killed = running.child("okx_pipeline.defs.daemon")
    assert killed is not None
    killed.kill()
    line = running.await_line("the daemon ended with status -9; starting it again in 1 s")
    assert "daemon.log" in line

    def successor() -> bool:
        found = running.child("okx_pipeline.defs.daemon")
        return found is not None and found != killed

    wait_for(successor, "new daemon")


def test_a_backfill_from_the_ui_lands_what_was_recorded_in_both_stores(
    system: System, running: Up, landed: None, database: Database, recordings: Path
) -> None:
    settings = read_settings(home=system.home)
    start, end = date(2026, 8, 1), date(2026, 8, 22)
    for symbol in (BTC, ETH):
        for timeframe, bar in BARS.items():
            truth = recorded(recordings, symbol, bar, "2026-08", start, end)
            held = in_postgresql(database, symbol, timeframe)
            assert between(start, end, held) == truth
            assert between(start, end, in_parquet(settings, symbol, timeframe, start)) == truth
    start, end = date(2022, 12, 18), date(2022, 12, 19)
    truth = recorded(recordings, BTC, "5m", "2022-05_2022-12", start, end)
    assert between(start, end, in_postgresql(database, BTC, "5m")) == truth
    assert in_parquet(settings, BTC, "5m", date(2022, 12, 1)) == truth


def test_whatever_it_leaves_is_its_owners_alone(system: System, landed: None) -> None:
    backup = system.folder / "okx.backup"
    made = system.run("backup", str(backup))
    assert made.returncode == 0, made.stderr
    seen: dict[str, set[str]] = {}
    # The socket lies elsewhere where the home's path is too long for one.
    sockets = Path(postmaster_file(str(system.home / "postgres" / "data"))[4])
    for folder, folders, files in (*os.walk(system.home), *os.walk(sockets.parent)):
        for path in [Path(folder), *(Path(folder) / name for name in (*folders, *files)), backup]:
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue  # of a run that has just ended
            kind = "folder" if stat.S_ISDIR(mode) else "socket" if stat.S_ISSOCK(mode) else "file"
            assert not stat.S_ISLNK(mode), path
            # The lock was there before, as this test has made it.
            assert path.name == "up.lock" or not mode & 0o077, f"{path} {stat.filemode(mode)}"
            seen.setdefault(kind, set()).add(path.name)
    assert {"parquet", "logs", "dagster", "postgres", "socket", "data"} <= seen["folder"]
    written = {"candles.parquet", "sidecar.log", "dagster.yaml", "PG_VERSION", "okx.backup", "replay.env"}
    assert written <= seen["file"]
    assert ".s.PGSQL.5432" in seen["socket"]


def test_a_partition_shows_what_it_holds(running: Up, landed: None) -> None:
    shown = metadata(running, f"2026-08-03|{ETH}")
    assert shown["rows"] == shown["dagster/partition_row_count"] == shown["new"] == DAY_ROWS
    assert (shown["missing"], shown["corrected"], shown["quarantined"]) == (0, 0, 0)
    assert shown["requests"] >= len(BARS)
    assert shown["seconds"] > 0
    assert shown["first_candle"] * 1000 == day_ms(date(2026, 8, 3))
    assert shown["last_candle"] * 1000 == day_ms(date(2026, 8, 4)) - 300_000
    assert len(shown["sparkline"]) == 48
    assert metadata(running, OUTAGE)["rows"] == DAY_ROWS


def test_a_killed_one_leaves_nothing_and_the_next_one_goes_on_and_ends_in_order(
    system: System, replay: list[str], running: Up, landed: None, backfill: str
) -> None:
    held = counts(system)
    assert f"{ETH}|4h|{21 * 6}\n" in held
    run = start_endless_run(running)
    stopped_ms = exchange_ms(running)
    assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: not system.processes(), "end of what a killed up left")
    # Without a moment: left to themselves, the recordings begin two hours before.
    with system.up(*replay[:2]) as next_one:
        assert exchange_ms(next_one) >= stopped_ms
        # A worker that is told to end may still get to say that it failed.
        assert next_one.graphql(RUN, id=run)["runOrError"]["status"] in {"CANCELED", "FAILURE"}
        assert not holds_slot(next_one, run)
        wait_for(lambda: status(next_one, backfill) != "REQUESTED", "end of the backfill")
        assert status(next_one, backfill) == "COMPLETED_SUCCESS"
        assert next_one.stop(signal.SIGINT) == 0
        assert system.processes() == []
    assert counts(system) == held
    assert system.processes() == []


def exchange_ms(running: Up) -> int:
    """The time at the replay exchange."""
    exchange = running.await_line("OKX ").split()[-1]
    return int(httpx.get(f"{exchange}/replay/status", trust_env=False).json()["now_ms"])


def status(running: Up, backfill: str) -> str:
    return str(running.graphql(BACKFILL, id=backfill)["partitionBackfillOrError"]["status"])


def counts(system: System) -> str:
    """How many candles each series has, by the program's own `psql`."""
    query = (
        "SELECT symbol, timeframe, count(*) FROM trading.candles WHERE open_time < '2026-08-22' "
        "GROUP BY symbol, timeframe ORDER BY symbol, timeframe"
    )
    asked = system.run("psql", "-At", "-c", query)
    assert (asked.returncode, asked.stderr) == (0, "")
    return asked.stdout


def start_endless_run(running: Up) -> str:
    """A run that is in the middle of its work, and waits there for an exchange that never answers."""
    exchange = running.await_line("OKX ").split()[-1]
    silence = {"kind": "slow", "requests": 1000, "seconds": 1000}
    httpx.post(f"{exchange}/replay/faults", json=silence, trust_env=False).raise_for_status()
    tags = [{"key": "dagster/partition", "value": f"2026-07-01|{BTC}"}]
    tags += [
        {"key": "dagster/partition/date", "value": "2026-07-01"},
        {"key": "dagster/partition/symbol", "value": BTC},
    ]
    launched = running.graphql(LAUNCH_RUN, tags=tags)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = str(launched["run"]["runId"])
    wait_for(lambda: holds_slot(running, run), "start of the run")
    return run


def holds_slot(running: Up, run: str) -> bool:
    pools = running.graphql(CLAIMS)["instance"]["concurrencyLimits"]
    return run in {claim["runId"] for pool in pools for claim in pool["claimedSlots"]}
