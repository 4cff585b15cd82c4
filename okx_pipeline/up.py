"""The whole system on this machine: the processes that `up` starts, keeps running, and leaves nothing of.

Dagster's webserver and daemon, the sidecar (and the replay exchange, if one was asked for) are its children. The
embedded PostgreSQL belongs to everybody who uses it and stops with the last of them.
"""

import errno
import fcntl
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

import httpx
import msgspec
import psutil

from okx_pipeline.cross_site import LOOPBACK
from okx_pipeline.errors import AlreadyRunningError, ExitStatus, PipelineError, UsageError, command
from okx_pipeline.logs import JsonLines, LogFile, Mask, copy_lines, last_message, mask_of
from okx_pipeline.monitor.terminal import Board
from okx_pipeline.settings import Settings
from okx_pipeline.storage.activity import history_is_read
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database, DatabaseError
from okx_pipeline.storage.landings import database_now
from okx_pipeline.storage.migrations import packaged
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.stream_status import sidecar_asked_for_s, sidecar_status
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import day_ms
from okx_pipeline.up_guard import STOP_WITHIN_S, end_group

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
READY_WITHIN_S: Final = 120
RESTART_AFTER_S: Final = (1, 2, 5, 15, 60)
_LOOK_EVERY_S: Final = 0.2
_OBEY_EVERY_S: Final = 2.0
_LAST_WORDS_WITHIN_S: Final = 2.0
_REQUEST_HOLDS_S: Final = 120.0
SIDECAR_STARTS_WITHIN_S: Final = 60.0
"""A sidecar younger than this may not have beaten yet."""

_RUNS_UNDER_WAY: Final = (
    "query($before: Float!) { runsOrError(filter: {statuses: [STARTING, STARTED, CANCELING], updatedBefore: $before}) "
    "{ ... on Runs { results { runId } } } }"
)
_END_RUN: Final = (
    "mutation($run: String!) { terminateRun(runId: $run, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename } "
    "freeConcurrencySlotsForRun(runId: $run) }"
)

Say = Callable[[str], None]


@dataclass(slots=True)
class Child:
    """A process that `up` keeps running."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    group: int
    file: LogFile
    mask: Mask
    process: subprocess.Popen[bytes] | None = None
    copying: threading.Thread | None = None
    failures: int = 0
    started_s: float = field(default=0.0)

    def start(self) -> None:
        """Start it, what it says copied to its log, in the group that the guard ends if we are killed."""
        self.process = subprocess.Popen(
            self.command,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Not in our group: Ctrl-C in the terminal reaches us, and we stop the children in order.
            process_group=self.group,
        )
        assert self.process.stdout is not None
        self.copying = copy_lines(self.process.stdout, self.file, self.mask)
        self.started_s = monotonic()

    @property
    def log(self) -> Path:
        """Where what it says is kept."""
        return Path(self.file.baseFilename)

    def ended(self) -> int | None:
        """Its exit status if it has ended."""
        return None if self.process is None else self.process.poll()

    def last_words(self) -> str:
        """The last thing that it said."""
        if self.copying is not None:
            # What it started may live on and have its log open still.
            self.copying.join(_LAST_WORDS_WITHIN_S)
        return last_message(self.log) or "it said nothing"


@dataclass(frozen=True, slots=True)
class _Nursery:
    """Where children are started: the process group, the folder of logs, and what is left out of these."""

    group: int
    logs: Path
    mask: Mask

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        file = LogFile(self.logs / f"{name}.log")
        child = Child(name, [sys.executable, *command], environment, self.group, file, self.mask)
        child.start()
        return child


def run(settings: Settings, *, port: int, replay: Sequence[str] | None, board: Board, validate: bool = False) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP.

    Parameters
    ----------
    port
        Of the web UI, on 127.0.0.1.
    replay
        Arguments of the `replay` command, if a stand-in is to take OKX's place.
    board
        Told what a person at the terminal wants to know.
    validate
        Whether to run the data-quality checks once everything runs, and to say how they ended.

    Raises
    ------
    AlreadyRunningError
        If another `up` has this home.
    UsageError
        If the port is taken, a setting cannot be, or there is no file that OKX_WORKSPACE names.
    PipelineError
        If something does not start; its log is named.
    """
    own_workspace = settings.workspace_files()
    with _only_one(settings.root, board.say) as lock:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: stop.set())
        logs = settings.root / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True, mode=0o700)
            say = _logged(board, logs, mask_of(settings))
        except OSError as problem:
            raise _unusable(settings.root, problem) from problem
        _refuse_taken_port(port)
        port = port or _free_port()
        pages_port = _free_port(port + 1)
        if (urlsplit(settings.pages_url).hostname or "") in LOOPBACK:
            # Any other is that of a proxy, which leads here.
            settings = settings.model_copy(update={"pages_url": f"http://{HOST}:{pages_port}"})
        with _guarded_group(lock) as group:
            nursery = _Nursery(group, logs, mask_of(settings))
            children: list[Child] = []
            if replay is not None:
                child, settings = _start_replay(settings, replay, nursery, stop, board)
                children.append(child)
            board.await_("the database")
            with opened_database(settings, on_wait=say) as database:
                try:
                    _prepare(settings, database)
                    if replay is not None:
                        # Only now: a home that holds another market has just been refused.
                        _note_replay(settings)
                    with database.connect() as connection:
                        since = database_now(connection)
                    before_s = time()
                    sidecar = _start_sidecar(settings, nursery)
                    children.append(sidecar)
                    children.append(_start_pages(settings, pages_port, nursery))
                    children += _start_dagster(settings, database, port, own_workspace, nursery)
                    url = f"http://{HOST}:{port}/server_info"
                    _await(children, lambda: _answers(url), stop, board, what="the web UI")
                    _await(children, lambda: _beats(database, since), stop, board, what="the sidecar")
                    if not stop.is_set():
                        _end_runs(port, before_s)
                        say(f"Dagster UI   http://{HOST}:{port}")
                        say(f"Data quality {settings.pages_url}")
                        say(f"PostgreSQL   {database.place}  ({_in_home(settings)}{command('psql')})")
                        say(f"Parquet      {settings.parquet_root}")
                        say(f"OKX          {settings.rest_url}")
                        say(f"Logs         {logs}")
                        say("ready; Ctrl-C stops everything")
                        board.show(settings, database)
                        validation = _Validation(settings, database, nursery, say) if validate else None
                        _keep_running(children, stop, say, board, lambda: _obey(database, sidecar, say, validation))
                        board.close()
                        say("stopping …")
                        _end_runs(port, time())
                finally:
                    # Before the database is let go of, so that it stops with us.
                    end_group(group)


def _logged(board: Board, logs: Path, mask: Mask) -> Say:
    """What says a line on `board` and in a log of our own, where everything that is logged here goes, too."""
    file = LogFile(logs / "up.log")
    file.setFormatter(JsonLines(mask))
    root = logging.getLogger()
    for handler in list(root.handlers):
        if board.is_drawn:
            # It would write across what is drawn, which tells of the same.
            root.removeHandler(handler)
        else:
            handler.setLevel(logging.WARNING)
    root.addHandler(file)
    log.setLevel(logging.INFO)

    def both(line: str) -> None:
        log.info("%s", line)
        board.say(line)

    return both


@contextmanager
def _only_one(home: Path, say: Say) -> Iterator[TextIO]:
    """Hold the lock of `home`; the guard of a killed `up` may hold it a little longer, and is waited for."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (home / "up.lock").open("a+")
    except OSError as problem:
        raise _unusable(home, problem) from problem
    with lock:
        deadline = monotonic() + 3 * STOP_WITHIN_S
        waits = False
        while not _locked(lock):
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            if monotonic() > deadline or (holder.isdigit() and psutil.pid_exists(int(holder))):
                raise AlreadyRunningError(f"up is already running in {home} (process {holder})")
            if not waits:
                say("waiting for what a killed up has left to end")
                waits = True
            sleep(_LOOK_EVERY_S)
        try:
            lock.truncate(0)
            # Past the file's buffer, which would be written once more when it is closed.
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())
        except OSError as problem:
            raise _unusable(home, problem) from problem
        yield lock


def _unusable(home: Path, problem: OSError) -> PipelineError:
    """The reason why nothing can be written to `home`."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return PipelineError(f"no space left on the disk of {home}: free some and start again")
    return UsageError(f"OKX_HOME {home} cannot be written to: {problem.strerror}")


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _guarded_group(lock: TextIO) -> Iterator[int]:
    """A process group for everything that is started: ended with the block, or by its guard if we are killed.

    The guard holds `lock`, too: nobody starts anew before everything has ended.
    """
    command = [sys.executable, "-P", "-m", "okx_pipeline.up_guard"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0, pass_fds=[lock.fileno()]) as guard:
        try:
            yield guard.pid
        finally:
            end_group(guard.pid)


def _prepare(settings: Settings, database: Database) -> None:
    with CandleStore.opened(database, ParquetStore(settings.parquet_root)) as store:
        store.claim_for(settings.origin)
        seed_subscriptions(store.connection, settings.symbols, settings.timeframes, day_ms(settings.history_start))


def _start_replay(
    settings: Settings, arguments: Sequence[str], nursery: _Nursery, stop: threading.Event, board: Board
) -> tuple[Child, Settings]:
    port = _free_port()
    url = f"http://{HOST}:{port}"
    command = ["-P", "-m", "okx_pipeline", "replay", *arguments, "--port", str(port)]
    child = nursery.start("replay", command, settings.environment())
    _await([child], lambda: _answers(f"{url}/replay/status"), stop, board, what="the replay exchange")
    websocket = f"ws://{HOST}:{port}/ws/v5/business"
    return child, settings.model_copy(update={"rest_url": url, "ws_url": websocket})


def _note_replay(settings: Settings) -> None:
    """Write down where the stand-in is. It stays: what the home holds is a replay's for good."""
    beside = settings.replay_file.with_suffix(".new")
    try:
        beside.touch(mode=0o600)
        beside.write_text(f"OKX_REST_URL={settings.rest_url}\nOKX_WS_URL={settings.ws_url}\n")
        beside.replace(settings.replay_file)
    except OSError as problem:
        raise _unusable(settings.root, problem) from problem


def _in_home(settings: Settings) -> str:
    """What a command in another terminal begins with, so that it finds this home."""
    default = Path(str(Settings.model_fields["home"].default)).absolute()
    return "" if settings.root == default else f"OKX_HOME={shlex.quote(str(settings.home))} "


def _start_sidecar(settings: Settings, nursery: _Nursery) -> Child:
    # Standing by, so that one that somebody runs beside us is no failure of ours.
    command = ["-P", "-m", "okx_pipeline", "stream", "--standby", "--log-json"]
    return nursery.start("sidecar", command, settings.environment())


def _start_pages(settings: Settings, port: int, nursery: _Nursery) -> Child:
    command = ["-P", "-m", "okx_pipeline", "pages", "--port", str(port)]
    return nursery.start("pages", command, settings.environment())


def _dagster_environment(settings: Settings, database: Database) -> dict[str, str]:
    """What leads a process of Dagster's to the instance of the home, which is made where there is none yet."""
    home = settings.root / "dagster"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copyfile(packaged("dagster.yaml"), home / "dagster.yaml")
    return {
        **settings.environment(),
        "DAGSTER_HOME": str(home),
        "DAGSTER_PG_URL": database.dagster_url(),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        # Else a file in the working directory with the name of a library would be taken for it.
        "PYTHONSAFEPATH": "1",
    }


def migrate_dagster(settings: Settings, database: Database) -> None:
    """Bring Dagster's own tables up to date; `database` has the schema for them.

    Raises
    ------
    PipelineError
        If Dagster could not, with the last thing it said.
    """
    command = [sys.executable, "-m", "dagster", "instance", "migrate"]
    environment = _dagster_environment(settings, database)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode:
        said = mask_of(settings)(ended.stderr.strip() or ended.stdout.strip() or "it said nothing")
        # Of an error of SQL the statement and a link follow.
        reasons = re.findall(r"^[\w.]*(?:Error|Exception): .+", said, re.MULTILINE) or said.splitlines()
        raise PipelineError(f"Dagster's tables could not be brought up to date: {reasons[-1]}")


def _start_dagster(
    settings: Settings, database: Database, port: int, own_workspace: Sequence[Path], nursery: _Nursery
) -> list[Child]:
    environment = _dagster_environment(settings, database)
    # Ours last: of two locations with one name Dagster takes the later.
    workspaces = [option for file in (*own_workspace, packaged("workspace.yaml")) for option in ("-w", str(file))]
    webserver = ["-m", "okx_pipeline.defs.webserver", *workspaces, "-h", HOST, "-p", str(port)]
    daemon = ["-m", "okx_pipeline.defs.daemon", "run", *workspaces]
    return [
        nursery.start("webserver", webserver, environment),
        nursery.start("daemon", daemon, environment),
    ]


class _Validation:
    """The data-quality checks, run once when everything that is to be judged is here; it says how they ended."""

    def __init__(self, settings: Settings, database: Database, nursery: _Nursery, say: Say) -> None:
        self._settings = settings
        self._database = database
        self._nursery = nursery
        self._say = say
        self._child: Child | None = None
        self._ended = False
        self._waits = False

    def look(self) -> None:
        """Start it if it can begin, or say how it ended."""
        if self._ended:
            return
        if self._child is None:
            self._start()
        elif self._child.ended() is not None:
            self._ended = True
            self._say(f"validation: {self._child.last_words()}")

    def _start(self) -> None:
        # A day that REST was not read for yet would fail for want of its candles, and somebody be told.
        with self._database.connect() as connection:
            can_begin = history_is_read(connection)
        if can_begin:
            self._say("validation begins")
            command = ["-P", "-m", "okx_pipeline", "validate"]
            self._child = self._nursery.start("validation", command, self._settings.environment())
        elif not self._waits:
            self._waits = True
            self._say("validation waits until all history is here")


def _await(
    children: Sequence[Child], is_there: Callable[[], bool], stop: threading.Event, board: Board, *, what: str
) -> None:
    board.await_(what)
    deadline = monotonic() + READY_WITHIN_S
    while not stop.wait(_LOOK_EVERY_S):
        if is_there():
            return
        for child in children:
            status = child.ended()
            if status is not None:
                kind = UsageError if status == ExitStatus.USAGE else PipelineError
                raise kind(f"the {child.name} did not start: {child.last_words()} (log: {child.log})")
        if monotonic() > deadline:
            raise PipelineError(f"{what} did not answer within {READY_WITHIN_S} s; see {children[0].log.parent}")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _beats(database: Database, since: datetime) -> bool:
    """Whether a sidecar, ours or one that was there before, has beaten after `since`."""
    with database.connect() as connection:
        sidecar = sidecar_status(connection)
    return sidecar is not None and sidecar.state != "stopped" and sidecar.heartbeat_at > since


def _keep_running(
    children: Sequence[Child],
    stop: threading.Event,
    say: Say,
    board: Board,
    obey: Callable[[], None],
) -> None:
    due: dict[str, float] = {}
    obeyed_s = monotonic()
    while not stop.wait(_LOOK_EVERY_S):
        board.tick()
        now = monotonic()
        if now - obeyed_s > _OBEY_EVERY_S:
            obey()
            obeyed_s = monotonic()
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


def _obey(database: Database, sidecar: Child, say: Say, validation: _Validation | None) -> None:
    """End a sidecar that lives and does not beat, when Dagster's sensor asked for one: it is then started again."""
    try:
        database.revive()
        if validation is not None:
            validation.look()
        with database.connect() as connection:
            asked_s = sidecar_asked_for_s(connection)
    except (PipelineError, DatabaseError) as problem:
        log.warning("the database is away: %s", problem)
        return
    lives_s = monotonic() - sidecar.started_s
    if asked_s is None or asked_s > _REQUEST_HOLDS_S or lives_s < asked_s + SIDECAR_STARTS_WITHIN_S:
        return
    if sidecar.process is not None and sidecar.process.poll() is None:
        say("the sidecar lives and does not beat; starting it anew")
        sidecar.process.kill()


def _end_runs(port: int, before_s: float) -> None:
    """Cancel the runs under way since before `before_s`: whoever worked on them is gone, or is about to be.

    Their slots of pools are given back; Dagster would let the next run wait for them for minutes.
    """
    try:
        found = _graphql(port, _RUNS_UNDER_WAY, {"before": before_s})["runsOrError"]
        for run in found.get("results", []):
            _graphql(port, _END_RUN, {"run": run["runId"]})
    except (httpx.HTTPError, msgspec.DecodeError, KeyError, TypeError) as problem:
        # A webserver that no longer answers does not keep us from stopping; run monitoring ends such runs later.
        log.warning("runs under way could not be marked as canceled: %s", problem)


def _graphql(port: int, query: str, variables: Mapping[str, object]) -> dict[str, Any]:
    body = {"query": query, "variables": variables}
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


def _free_port(first_choice: int = 0) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, first_choice))
        except OSError:
            return _free_port()
        return int(probe.getsockname()[1])
