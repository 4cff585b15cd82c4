"""The whole system on this machine: the processes that `up` starts, keeps running, and leaves nothing of.

Dagster's webserver and daemon (and the replay exchange, if one was asked for) are children of this process. The
embedded PostgreSQL belongs to everybody who uses it and stops with the last of them.
"""

import ctypes
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import httpx
import msgspec
import psutil

from okx_pipeline.errors import AlreadyRunningError, PipelineError, UsageError
from okx_pipeline.settings import Settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.migrations import packaged
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import day_ms

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
READY_WITHIN_S: Final = 120
STOP_WITHIN_S: Final = 15
RESTART_AFTER_S: Final = (1, 2, 5, 15, 60)
_LOOK_EVERY_S: Final = 0.2
_SET_PARENT_DEATH_SIGNAL: Final = 1
_RUNS_TO_END: Final = (
    "mutation($runs: [String!]!) { terminateRuns(runIds: $runs, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) "
    "{ __typename } }"
)
_RUNS_UNDER_WAY: Final = (
    "{ runsOrError(filter: {statuses: [STARTING, STARTED, CANCELING]}) { ... on Runs { results { runId } } } }"
)

Say = Callable[[str], None]


@dataclass(slots=True)
class Child:
    """A process that `up` keeps running."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started_s: float = field(default=0.0)

    def start(self) -> None:
        """Start it, its output appended to its log, ending with us even if we are killed."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C in the terminal reaches us, and we stop the children in order.
                process_group=0,
                preexec_fn=_die_with_parent,
            )
        self.started_s = monotonic()

    def ended(self) -> int | None:
        """Its exit status if it has ended."""
        return None if self.process is None else self.process.poll()


def run(settings: Settings, *, port: int, replay: Sequence[str] | None, say: Say) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP.

    Parameters
    ----------
    port
        Of the web UI, on 127.0.0.1.
    replay
        Arguments of the `replay` command, if a stand-in is to take OKX's place.
    say
        Told what a person at the terminal wants to know.

    Raises
    ------
    AlreadyRunningError
        If another `up` has this home.
    UsageError
        If the port is taken, or a setting cannot be.
    PipelineError
        If something does not start; its log is named.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with _only_one(settings.root):
        logs = settings.root / "logs"
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_taken_port(port)
        children: list[Child] = []
        try:
            if replay is not None:
                child, settings = _start_replay(settings, replay, logs, stop)
                children.append(child)
            with opened_database(settings, on_wait=say) as database:
                try:
                    _prepare(settings, database)
                    children += _start_dagster(settings, database, port, logs)
                    _await_ready(children, port, stop)
                    if not stop.is_set():
                        _end_runs_of_the_past(port)
                        say(f"Dagster UI   http://{HOST}:{port}")
                        say(f"PostgreSQL   {database.place}  (.venv/bin/okx-pipeline psql)")
                        say(f"Parquet      {settings.parquet_root}")
                        say(f"OKX          {settings.rest_url}")
                        say("ready; Ctrl-C stops everything")
                        _keep_running(children, stop, say)
                    say("stopping …")
                finally:
                    _stop(children, port)
        finally:
            _stop(children, None)


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (home / "up.lock").open("a+")
    except OSError as problem:
        raise UsageError(f"OKX_HOME {home} cannot be written to: {problem.strerror}") from problem
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise AlreadyRunningError(f"up is already running in {home} (process {holder})") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _prepare(settings: Settings, database: Database) -> None:
    with CandleStore.opened(database, ParquetStore(settings.parquet_root)) as store:
        store.claim_for(settings.origin)
        seed_subscriptions(store.connection, settings.symbols, settings.timeframes, day_ms(settings.history_start))


def _start_replay(
    settings: Settings, arguments: Sequence[str], logs: Path, stop: threading.Event
) -> tuple[Child, Settings]:
    port = _free_port()
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-P", "-m", "okx_pipeline", "replay", *arguments, "--port", str(port)]
    child = Child("replay", command, settings.environment(), logs / "replay.log")
    child.start()
    try:
        _await([child], f"{url}/replay/status", stop, what="the replay exchange")
    except PipelineError:
        _stop([child], None)
        raise
    websocket = f"ws://{HOST}:{port}/ws/v5/business"
    return child, settings.model_copy(update={"rest_url": url, "ws_url": websocket})


def _start_dagster(settings: Settings, database: Database, port: int, logs: Path) -> list[Child]:
    home = settings.root / "dagster"
    home.mkdir(exist_ok=True, mode=0o700)
    shutil.copyfile(packaged("dagster.yaml"), home / "dagster.yaml")
    environment = {
        **settings.environment(),
        "DAGSTER_HOME": str(home),
        "DAGSTER_PG_URL": database.dagster_url(),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        # Else a file in the working directory with the name of a library would be taken for it.
        "PYTHONSAFEPATH": "1",
    }
    workspace = str(packaged("workspace.yaml"))
    python = sys.executable
    webserver = [python, "-m", "dagster_webserver", "-w", workspace, "-h", HOST, "-p", str(port)]
    daemon = [python, "-m", "dagster._daemon", "run", "-w", workspace]
    children = [
        Child("webserver", webserver, environment, logs / "webserver.log"),
        Child("daemon", daemon, environment, logs / "daemon.log"),
    ]
    for child in children:
        child.start()
    return children


def _await_ready(children: Sequence[Child], port: int, stop: threading.Event) -> None:
    _await(children, f"http://{HOST}:{port}/server_info", stop, what="the web UI")


def _await(children: Sequence[Child], url: str, stop: threading.Event, *, what: str) -> None:
    deadline = monotonic() + READY_WITHIN_S
    while not stop.wait(_LOOK_EVERY_S):
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5, trust_env=False).is_success:
                return
        for child in children:
            if child.ended() is not None:
                raise PipelineError(f"the {child.name} did not start: {_last_line(child.log)}; see {child.log}")
        if monotonic() > deadline:
            raise PipelineError(f"{what} did not answer within {READY_WITHIN_S} s; see {children[0].log.parent}")


def _keep_running(children: Sequence[Child], stop: threading.Event, say: Say) -> None:
    due: dict[str, float] = {}
    while not stop.wait(_LOOK_EVERY_S):
        now = monotonic()
        for child in children:
            status = child.ended()
            if status is None:
                if child.failures and now - child.started_s > RESTART_AFTER_S[-1]:
                    child.failures = 0
            elif child.name not in due:
                pause = RESTART_AFTER_S[min(child.failures, len(RESTART_AFTER_S) - 1)]
                due[child.name] = now + pause
                say(f"the {child.name} ended with status {status}; starting it again in {pause} s ({child.log})")
            elif now >= due[child.name]:
                del due[child.name]
                child.failures += 1
                child.start()


def _stop(children: Sequence[Child], port: int | None) -> None:
    """End every process below us: runs first, so that they are noted as ended, then children, then what is left."""
    running = [child for child in children if child.process is not None and child.process.poll() is None]
    if port is not None and running:
        _end_runs_of_the_past(port)
    below = _below(running)
    for child in running:
        assert child.process is not None
        child.process.terminate()
    _, left = psutil.wait_procs(below, timeout=STOP_WITHIN_S)
    for process in left:
        log.warning("process %s does not end and is killed", process.pid)
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_WITHIN_S)


def _below(children: Sequence[Child]) -> list[psutil.Process]:
    """The children and everything they started. Not our own descendants: the database outlives us if others use it."""
    found: list[psutil.Process] = []
    for child in children:
        assert child.process is not None
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(child.process.pid)
            found += [process, *process.children(recursive=True)]
    return found


def _end_runs_of_the_past(port: int) -> None:
    """Mark the runs under way as canceled: whoever worked on them is gone, or is about to be."""
    try:
        runs = [run["runId"] for run in _graphql(port, _RUNS_UNDER_WAY)["runsOrError"].get("results", [])]
        if runs:
            _graphql(port, _RUNS_TO_END, {"runs": runs})
    except (httpx.HTTPError, msgspec.DecodeError, KeyError, TypeError) as problem:
        # A webserver that no longer answers does not keep us from stopping; run monitoring ends such runs later.
        log.warning("runs under way could not be marked as canceled: %s", problem)


def _graphql(port: int, query: str, variables: Mapping[str, object] | None = None) -> dict[str, Any]:
    body = {"query": query, "variables": variables or {}}
    answer = httpx.post(f"http://{HOST}:{port}/graphql", json=body, timeout=10, trust_env=False)
    return msgspec.json.decode(answer.content, type=dict[str, dict[str, Any]])["data"]


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as problem:
            raise UsageError(
                f"port {port} cannot be used ({problem.strerror}); choose another with --port"
            ) from problem


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
