"""The whole system on this machine: `up` starts its processes, restarts those that end, and leaves none behind.

Its children are the sidecar, the server of the pages, Dagster's webserver and daemon, and with `--replay` the replay
exchange. The embedded PostgreSQL is not: all who use it share it, and it stops with the last of them.
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
from okx_pipeline.storage.migrations import has_dagster_tables, packaged
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.process_lock import Holder, ProcessLock
from okx_pipeline.storage.stream_status import last_exchange_ms, sidecar_asked_for_s, sidecar_status
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import day_ms, iso, utc
from okx_pipeline.up_guard import STOP_WITHIN_S, end_group

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
READY_WITHIN_S: Final = 120
RESTART_AFTER_S: Final = (1, 2, 5, 15, 60)
_LOOK_EVERY_S: Final = 0.2
_LOOK_AT_DATABASE_EVERY_S: Final = 2.0
_LAST_WORDS_WITHIN_S: Final = 2.0
_REQUEST_HOLDS_S: Final = 120.0
SIDECAR_STARTS_WITHIN_S: Final = 60.0
"""A sidecar may run for as long as this before its first heartbeat."""

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
    options_again: Callable[[], Sequence[str]] = tuple
    """What to add to the command when it is started again."""

    def start(self, options: Sequence[str] = ()) -> None:
        """Start it in the group that the guard ends if `up` is killed; its output goes to its log."""
        self.process = subprocess.Popen(
            [*self.command, *options],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Not in our group: Ctrl-C in the terminal reaches `up` alone, which stops the children in order.
            process_group=self.group,
        )
        assert self.process.stdout is not None
        self.copying = copy_lines(self.process.stdout, self.file, self.mask)
        self.started_s = monotonic()

    @property
    def log(self) -> Path:
        """The file that keeps its output."""
        return Path(self.file.baseFilename)

    def ended(self) -> int | None:
        """Its exit status if it has ended."""
        return None if self.process is None else self.process.poll()

    def last_words(self) -> str:
        """The last thing that it said."""
        if self.copying is not None:
            # A process that it started may still run and hold the log open.
            self.copying.join(_LAST_WORDS_WITHIN_S)
        return last_message(self.log) or "it said nothing"


@dataclass(frozen=True, slots=True)
class _Nursery:
    """Starts children: their process group, the folder of their logs, and the mask over secrets in these."""

    group: int
    logs: Path
    mask: Mask

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        file = LogFile(self.logs / f"{name}.log")
        child = Child(name, [sys.executable, *command], environment, self.group, file, self.mask)
        child.start()
        return child


def run(
    settings: Settings,
    *,
    port: int,
    replay: Sequence[str] | None,
    replay_now_ms: int | None = None,
    board: Board,
    validate: bool = False,
) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP.

    Parameters
    ----------
    port
        Of the web UI, on 127.0.0.1.
    replay
        Arguments of the `replay` command, if a stand-in takes OKX's place.
    replay_now_ms
        Where its time starts, if they name a moment.
    board
        Shows the person at the terminal what happens.
    validate
        Whether to run the data-quality checks once everything runs, and to print how they ended.

    Raises
    ------
    AlreadyRunningError
        If another `up` has this home or this database, or takes the database while ours was out of reach.
    UsageError
        If the port is taken, a setting cannot be, `replay_now_ms` lies before what this home has seen, or there is no
        file that OKX_WORKSPACE names.
    PipelineError
        If something does not start; the message names its log.
    """
    own_workspace = settings.workspace_files()
    with _only_one(settings.root, board.say) as home_lock:
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
            # Any other host is a proxy's, which forwards to this one.
            settings = settings.model_copy(update={"pages_url": f"http://{HOST}:{pages_port}"})
        with _guarded_group(home_lock) as group:
            nursery = _Nursery(group, logs, mask_of(settings))
            children: list[Child] = []
            if replay is not None:
                say("starting the replay exchange")
                child, settings = _start_replay(settings, replay, nursery, stop, board)
                children.append(child)
            board.await_("the database")
            with (
                opened_database(settings, on_step=say, on_wait=say) as database,
                _only_one_on(database, say) as lock,
            ):
                try:
                    _prepare(settings, database)
                    # Only now: a home that holds another market has just been refused.
                    if replay is not None and not stop.is_set():
                        _continue_replay(settings, database, children[0], replay_now_ms, say)
                        _note_replay(settings)
                    with database.connect() as connection:
                        since = database_now(connection)
                    before_s = time()
                    say("starting the sidecar and the server of the pages")
                    sidecar = _start_sidecar(settings, nursery)
                    children.append(sidecar)
                    children.append(_start_pages(settings, pages_port, port, nursery))
                    children += _start_dagster(settings, database, port, own_workspace, nursery)
                    if not _has_dagster_tables(database):
                        say("making Dagster's tables")
                        _await(children, lambda: _has_dagster_tables(database), stop, board, what="Dagster's tables")
                    say("starting Dagster's web UI and daemon")
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
                        _keep_running(
                            children,
                            stop,
                            say,
                            board,
                            lambda: _look_at_database(database, lock, sidecar, say, validation),
                        )
                        board.close()
                        say("stopping …")
                        _end_runs(port, time())
                finally:
                    # Before we let go of the database, so that it stops with us.
                    end_group(group)


def _logged(board: Board, logs: Path, mask: Mask) -> Say:
    """A function that writes a line to `board` and to the log of `up`, which also takes what this process logs."""
    file = LogFile(logs / "up.log")
    file.setFormatter(JsonLines(mask))
    root = logging.getLogger()
    for handler in list(root.handlers):
        if board.is_drawn:
            # It would write across the drawing, which shows the same.
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
    """Hold the lock of `home`."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (home / "up.lock").open("a+")
    except OSError as problem:
        raise _unusable(home, problem) from problem

    def holder() -> tuple[str, bool]:
        lock.seek(0)
        process = lock.read().strip() or "unknown"
        return f"in {home} (process {process})", process.isdigit() and psutil.pid_exists(int(process))

    with lock:
        _wait_for(lambda: _locked(lock), holder, say)
        try:
            lock.truncate(0)
            # Past the file's buffer, which closing the file would write once more.
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())
        except OSError as problem:
            raise _unusable(home, problem) from problem
        yield lock


@contextmanager
def _only_one_on(database: Database, say: Say) -> Iterator[ProcessLock]:
    """Hold the lock of `database`: two `up` would cancel each other's runs."""
    with ProcessLock(database, "up") as lock:

        def holder() -> tuple[str, bool]:
            found = lock.holder()
            return _on(database, found), found is not None and not found.has_ended

        _wait_for(lock.take, holder, say)
        yield lock


def _on(database: Database, holder: Holder | None) -> str:
    return f"on {database.place} ({holder or 'an unknown process'}); stop it, or use another OKX_DATABASE_URL here"


def _wait_for(take: Callable[[], bool], holder: Callable[[], tuple[str, bool]], say: Say) -> None:
    """Take a lock of `up`, waiting while a killed `up` leaves it; `holder` tells where it runs and whether it lives."""
    deadline = monotonic() + 3 * STOP_WITHIN_S
    waits = False
    while not take():
        where, lives = holder()
        if lives or monotonic() > deadline:
            raise AlreadyRunningError(f"up is already running {where}")
        if not waits:
            say("waiting for the processes of a killed up to end")
            waits = True
        sleep(_LOOK_EVERY_S)


def _keep(lock: ProcessLock, database: Database) -> None:
    """Take the lock of `database` again if a restart of the server lost it."""
    if not lock.take() and (holder := lock.holder()) is not None:
        raise AlreadyRunningError(f"stopped, as another up is running now {_on(database, holder)}")


def _unusable(home: Path, problem: OSError) -> PipelineError:
    """The error for a `home` that nothing can be written to."""
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
    """A process group for all children. It ends with the block, or by its guard if `up` is killed.

    The guard holds `lock`, too: the next `up` of this home starts after everything has ended.
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


def _continue_replay(settings: Settings, database: Database, child: Child, asked_ms: int | None, say: Say) -> None:
    """Let the replay's time go on from where it stopped in this home, now and whenever `child` is started again.

    Raises
    ------
    UsageError
        If `asked_ms`, the moment that the user named, lies before that.
    """

    def seen_ms() -> int | None:
        with database.connect() as connection:
            seen_ms = last_exchange_ms(connection)
        # The replay's clock never runs ahead of the wall's.
        return None if seen_ms is None else min(seen_ms, int(time() * 1000))

    def options() -> list[str]:
        at_ms = seen_ms()
        return [] if at_ms is None else ["--now", utc(at_ms + 1).isoformat(timespec="milliseconds")]

    child.options_again = options
    stopped_ms = seen_ms()
    if stopped_ms is None:
        return
    if asked_ms is not None and asked_ms < stopped_ms:
        raise UsageError(
            f"--now {iso(asked_ms)} lies before {iso(stopped_ms)}, where the replay of this home stopped; "
            "leave --now out to go on from there, or set OKX_HOME to a new home"
        )
    try:
        clock = httpx.get(f"{settings.rest_url}/replay/status", timeout=5, trust_env=False).raise_for_status().json()
        if clock["now_ms"] < stopped_ms:
            put = {"now_ms": stopped_ms}
            httpx.post(f"{settings.rest_url}/replay/clock", json=put, timeout=5, trust_env=False).raise_for_status()
            say(f"the replay goes on from {iso(stopped_ms)}, where it stopped")
    except httpx.HTTPError as problem:
        raise PipelineError(f"the replay exchange does not take its time: {problem} (log: {child.log})") from problem


def _note_replay(settings: Settings) -> None:
    """Write down where the stand-in is. The file stays: a home that holds a replay's prices can hold no others."""
    beside = settings.replay_file.with_suffix(".new")
    try:
        beside.touch(mode=0o600)
        beside.write_text(f"OKX_REST_URL={settings.rest_url}\nOKX_WS_URL={settings.ws_url}\n")
        beside.replace(settings.replay_file)
    except OSError as problem:
        raise _unusable(settings.root, problem) from problem


def _in_home(settings: Settings) -> str:
    """The start of a command in another terminal that leads it to this home."""
    default = Path(str(Settings.model_fields["home"].default)).absolute()
    return "" if settings.root == default else f"OKX_HOME={shlex.quote(str(settings.home))} "


def _start_sidecar(settings: Settings, nursery: _Nursery) -> Child:
    # It waits for its turn, so that a sidecar that somebody runs beside us is no failure.
    command = ["-P", "-m", "okx_pipeline", "stream", "--standby", "--log-json"]
    return nursery.start("sidecar", command, settings.environment())


def _start_pages(settings: Settings, port: int, ui_port: int, nursery: _Nursery) -> Child:
    command = ["-P", "-m", "okx_pipeline", "pages", "--port", str(port), "--ui-port", str(ui_port)]
    return nursery.start("pages", command, settings.environment())


def _dagster_environment(settings: Settings, database: Database) -> dict[str, str]:
    """The environment that leads a process of Dagster's to the instance of this home, whose folder is made here."""
    home = settings.root / "dagster"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copyfile(packaged("dagster.yaml"), home / "dagster.yaml")
    return {
        **settings.environment(),
        "DAGSTER_HOME": str(home),
        "DAGSTER_PG_URL": database.dagster_url(),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        # Otherwise Python takes a file in the working directory for the library of that name.
        "PYTHONSAFEPATH": "1",
    }


def migrate_dagster(settings: Settings, database: Database) -> None:
    """Bring Dagster's own tables up to date; their schema exists in `database`.

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
        # After an SQL error, Dagster prints the statement and a link.
        reasons = re.findall(r"^[\w.]*(?:Error|Exception): .+", said, re.MULTILINE) or said.splitlines()
        raise PipelineError(f"Dagster's tables could not be brought up to date: {reasons[-1]}")


def _start_dagster(
    settings: Settings, database: Database, port: int, own_workspace: Sequence[Path], nursery: _Nursery
) -> list[Child]:
    environment = _dagster_environment(settings, database)
    # Ours last: Dagster takes the later of two locations with one name.
    workspaces = [option for file in (*own_workspace, packaged("workspace.yaml")) for option in ("-w", str(file))]
    webserver = ["-m", "okx_pipeline.defs.webserver", *workspaces, "-h", HOST, "-p", str(port)]
    daemon = ["-m", "okx_pipeline.defs.daemon", "run", *workspaces]
    return [
        nursery.start("webserver", webserver, environment),
        nursery.start("daemon", daemon, environment),
    ]


class _Validation:
    """The data-quality checks, run once all history is here; it prints how they ended."""

    def __init__(self, settings: Settings, database: Database, nursery: _Nursery, say: Say) -> None:
        self._settings = settings
        self._database = database
        self._nursery = nursery
        self._say = say
        self._child: Child | None = None
        self._ended = False
        self._waits = False

    def look(self) -> None:
        """Start the checks if they can begin, or print how they ended."""
        if self._ended:
            return
        if self._child is None:
            self._start()
        elif self._child.ended() is not None:
            self._ended = True
            self._say(f"validation: {self._child.last_words()}")

    def _start(self) -> None:
        # A day whose candles are still on their way would fail, and raise an alert.
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


def _has_dagster_tables(database: Database) -> bool:
    with database.connect() as connection:
        return has_dagster_tables(connection)


def _beats(database: Database, since: datetime) -> bool:
    """Whether a sidecar, ours or an earlier one, has sent a heartbeat after `since`."""
    with database.connect() as connection:
        sidecar = sidecar_status(connection)
    return sidecar is not None and sidecar.state != "stopped" and sidecar.heartbeat_at > since


def _keep_running(
    children: Sequence[Child],
    stop: threading.Event,
    say: Say,
    board: Board,
    look: Callable[[], None],
) -> None:
    """Start again whatever ends, and call `look` every few seconds, until `stop` is set."""
    due: dict[str, float] = {}
    looked_s = monotonic()
    while not stop.wait(_LOOK_EVERY_S):
        board.tick()
        now = monotonic()
        if now - looked_s > _LOOK_AT_DATABASE_EVERY_S:
            look()
            looked_s = monotonic()
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
                try:
                    options = child.options_again()
                except (PipelineError, DatabaseError) as problem:
                    # Without the database nobody knows at which time the replay goes on.
                    log.warning("the %s is not started yet: %s", child.name, problem)
                    due[child.name] = now + RESTART_AFTER_S[0]
                    continue
                del due[child.name]
                child.failures += 1
                child.start(options)


def _look_at_database(
    database: Database, lock: ProcessLock, sidecar: Child, say: Say, validation: _Validation | None
) -> None:
    """Keep the lock of `database`, and end a sidecar without a heartbeat if Dagster's sensor asked for a new one.

    Raises
    ------
    AlreadyRunningError
        If another `up` has taken the lock.
    """
    try:
        database.revive()
        _keep(lock, database)
        if validation is not None:
            validation.look()
        with database.connect() as connection:
            asked_s = sidecar_asked_for_s(connection)
    except AlreadyRunningError:
        raise
    except (PipelineError, DatabaseError) as problem:
        log.warning("the database cannot be reached: %s", problem)
        return
    lives_s = monotonic() - sidecar.started_s
    if asked_s is None or asked_s > _REQUEST_HOLDS_S or lives_s < asked_s + SIDECAR_STARTS_WITHIN_S:
        return
    if sidecar.process is not None and sidecar.process.poll() is None:
        say("the sidecar runs and sends no heartbeat; starting it again")
        sidecar.process.kill()


def _end_runs(port: int, before_s: float) -> None:
    """Cancel the runs under way since before `before_s`: their processes have ended, or are about to.

    This also frees their slots of pools, for which Dagster would let the next run wait for minutes.
    """
    try:
        found = _graphql(port, _RUNS_UNDER_WAY, {"before": before_s})["runsOrError"]
        for run in found.get("results", []):
            _graphql(port, _END_RUN, {"run": run["runId"]})
    except (httpx.HTTPError, msgspec.DecodeError, KeyError, TypeError) as problem:
        # Stop all the same if the webserver no longer answers: run monitoring ends such runs later.
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
