"""The system under faults: a replay exchange whose minutes pass in seconds, a store, and the program's own processes.

Processes are the real thing, forked from a warm one so that starting one takes tens of milliseconds, and they can be
told to kill themselves at a named point of the program, as kill -9 there would.
"""

import asyncio
import faulthandler
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage import coverage, projection
from okx_pipeline.storage.database import Database, StorageError
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import day_ms
from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.checker import Checker, Findings
from okx_pipeline_tests.storage import processes
from okx_pipeline_tests.stream.stand import Stand, wait_until

START = day_ms(date(2026, 8, 20))
"""The UTC day from which on everything is wanted by default; the exchange's clock begins half an hour into it."""

SPEED = 60.0
SYMBOLS = "BTC-USDT-SWAP,ETH-USDT-SWAP"
TIMEFRAMES = "1m,5m"

Point = tuple[str, str, bool]
"""Where a process dies: `module:Class` or `module`, the function there, and whether after it or before."""

POINTS: dict[str, Point] = {
    "received": ("okx_pipeline.stream.lander:Lander", "offer", True),
    "before copy": ("okx_pipeline.storage.landing", "_land_rows", False),
    "in a copy": ("psycopg:Copy", "write", True),
    "after copy": ("psycopg:Copy", "__exit__", True),
    "before commit": ("okx_pipeline.storage.landing", "_refuse_archived", True),
    "after commit": ("okx_pipeline.storage.candle_store:CandleStore", "land", True),
    "before marks": ("okx_pipeline.storage.landing", "mark_landings", False),
    "before offset": ("okx_pipeline.stream.sidecar", "save_offsets", False),
    "before file": ("okx_pipeline.storage.parquet:ParquetStore", "write", False),
    "after file": ("okx_pipeline.storage.parquet:ParquetStore", "write", True),
    "before count": ("okx_pipeline.storage.coverage", "_settle", False),
}
"""Points at which a sidecar that is killed has something in its hands."""


def dying_at(point: str, call: int = 1, *, number: int = signal.SIGKILL, pid: int | None = None) -> Callable[[], None]:
    """A variation: at the `call`-th time it comes to a point of `POINTS`, it is sent a signal, or another process."""
    return _Dying(*POINTS[point], call, number, pid)


@dataclass(frozen=True)
class _Dying:
    owner: str
    function: str
    after: bool
    call: int
    number: int
    pid: int | None

    def __call__(self) -> None:
        module, _, name = self.owner.partition(":")
        owner = import_module(module)
        doom = processes.Doom(getattr(owner, name) if name else owner, self.function, call=self.call, after=self.after)
        doom.strike = lambda: os.kill(self.pid or os.getpid(), self.number)  # type: ignore[method-assign]


@dataclass
class System(Stand):
    """A stand (see there) whose sidecars start quickly, and whose end is judged by the checker.

    Parameters
    ----------
    exchange
        The exchange itself, which runs in this process.
    item
        The test, in which the checker's findings are noted.
    randomly
        Chance, by the test's seed.
    since_ms
        From which open time on everything is wanted.
    """

    exchange: Exchange = field(kw_only=True)
    item: pytest.Item = field(kw_only=True)
    randomly: random.Random = field(kw_only=True)
    since_ms: int = field(kw_only=True, default=START)
    running: list[BaseProcess] = field(default_factory=list)

    @property
    def checker(self) -> Checker:
        """What judges this system."""
        parquet = Path(self.settings.parquet_root)
        return Checker(self.url, self.database.url, parquet, self.series(), self.since_ms)

    def sidecar(self, *variations: Callable[[], None], standby: bool = False) -> BaseProcess:
        """Start a sidecar; each variation, a function of a module, is called in it before it begins."""
        return self.process(_sidecar, self.settings, standby, variations)

    def begin(self, *arguments: str, variations: Sequence[Callable[[], None]] = (), **variables: str) -> BaseProcess:
        """Start a command of the program, with variations and further environment variables."""
        return self.process(_command, arguments, self.settings.environment() | variables, variations)

    def command(self, *arguments: str, variations: Sequence[Callable[[], None]] = (), **variables: str) -> int:
        """Run a command to its end; returns its exit status. What it writes goes to the log."""
        process = self.begin(*arguments, variations=variations, **variables)
        process.join(120)
        assert process.exitcode is not None, f"{arguments[0]} never ended\n{self.told()}"
        return process.exitcode

    def process(self, work: Callable[..., None], *arguments: Any) -> BaseProcess:
        """Run `work`, a function of a module, in a process of its own that writes to the log."""
        process = processes.start(_logged, str(self.log), work, *arguments)
        self.running.append(process)
        return process

    def end(self, process: BaseProcess, number: int = signal.SIGKILL) -> None:
        """End a process: by default as a power cut would, with SIGTERM as a service manager would."""
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, number)
        process.join(60)
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signal.SIGUSR1)
            process.join(2)
            raise AssertionError(f"it does not end\n{self.told()}")

    def end_all(self) -> None:
        """Kill what still runs."""
        for process in self.running:
            if process.exitcode is None:
                process.kill()
                process.join()

    def dies(self, process: BaseProcess) -> None:
        """Wait until a process that is to kill itself has done so.

        It may have to come to a month's file, which is written once a minute at the most.
        """
        process.join(150)
        assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode}\n{self.told()}"

    def streaming(self) -> BaseProcess:
        """Start a sidecar and wait until it streams."""
        process = self.sidecar()
        wait_until(self.streams, "the sidecar streams", 30)
        return process

    def told(self) -> str:
        """The end of what the processes wrote."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def holds_its_promises(self) -> None:
        """At every moment, in the midst of a fault too: nothing is doubled, wrong, or claimed without its rows."""
        found = self.checker.claims()
        if not found.is_sound:
            table.record(self.item, found)
            raise AssertionError(f"{found}\n{self.told()}")

    def recovers(self, seconds: float = 60) -> Findings:
        """Wait until all that the exchange has served by now is held or explained, exactly, everywhere; note it.

        The passes over the ledger and the Parquet files, which follow every quarter of a minute, are made at once.
        """
        checker = self.checker
        before = checker.served()
        assert all(before.values()), "the exchange served nothing"
        found = Findings(lost=["the store could not be read"])

        def sound() -> bool:
            nonlocal found
            try:
                self.settle()
                found = checker.check(before)
            except (StorageError, psycopg.Error) as problem:
                found = Findings(lost=[f"the store could not be read: {problem}"])
            return found.is_sound

        try:
            wait_until(sound, "the store is sound", seconds)
        except AssertionError:
            table.record(self.item, found)
            raise AssertionError(f"{found}\n{self.told()}") from None
        table.record(self.item, found)
        return found

    def settle(self) -> None:
        """Count the ledger, and write the Parquet files, as the next pass would."""
        files = ParquetStore(self.settings.parquet_root)
        with self.database.connect() as connection:
            coverage.count(connection, files, self.now_ms())
            projection.project(connection, files, projection.pending_months(connection))

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self.database.connect() as connection:
            return connection.execute(query, parameters or None).fetchall()

    def counter(self, name: str) -> int:
        """A counter of the sidecar that beat last, 0 if it counted nothing."""
        found = self.rows(
            "SELECT coalesce((counters ->> %s)::int, 0) FROM trading.stream_status ORDER BY heartbeat_at DESC LIMIT 1",
            name,
        )
        return int(found[0][0]) if found else 0

    def errors(self) -> dict[str, int]:
        """What failed in the sidecar that sent the last heartbeat; it tries everything again, so nothing else tells."""
        [(errors,)] = self.rows(
            "SELECT counters -> 'errors' FROM trading.stream_status ORDER BY heartbeat_at DESC LIMIT 1"
        )
        assert isinstance(errors, dict)
        return errors


@contextmanager
def system(
    database: Database,
    folder: Path,
    item: pytest.Item,
    seed: int,
    *,
    speed: float = SPEED,
    minutes: float = 30,
    since_ms: int = START,
    url: Callable[[ReplayServer], tuple[str, str]] | None = None,
    **settings: object,
) -> Iterator[System]:
    """A system whose processes are ended with it.

    Parameters
    ----------
    minutes
        How long after `since_ms` the exchange's clock begins.
    url
        Gives the REST and WebSocket URLs that the program is told, where they are not the exchange's own.
    settings
        Further settings, or others than by default.
    """
    clock = ExchangeClock(since_ms + int(minutes * 60_000), speed)
    exchange = Exchange(open_market("synthetic", seed=3, symbols=6), clock, seed=seed)
    with ReplayServer(exchange) as server:
        rest_url, ws_url = url(server) if url else (server.url, server.websocket_url)
        chosen: dict[str, Any] = {
            "home": folder / "home",
            "database_url": database.url,
            "rest_url": rest_url,
            "ws_url": ws_url,
            "symbols": SYMBOLS,
            "timeframes": TIMEFRAMES,
            "history_start": "2026-08-20",
        }
        made = System(
            server.url,
            read_settings(**chosen | settings),
            database,
            folder / "log",
            exchange=exchange,
            item=item,
            randomly=random.Random(seed),
            since_ms=since_ms,
        )
        try:
            yield made
        finally:
            made.end_all()


def _logged(log: str, work: Callable[..., None], *arguments: Any) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    signal.signal(signal.SIGUSR1, _tell_where)
    work(*arguments)


def _tell_where(*_: object) -> None:
    """Say what every thread and task is at: for one that does not end."""
    faulthandler.dump_traceback()
    for task in asyncio.all_tasks(asyncio._get_running_loop()):
        task.print_stack()


def _sidecar(settings: Settings, standby: bool, variations: Sequence[Callable[[], None]]) -> None:
    from okx_pipeline.errors import PipelineError
    from okx_pipeline.storage import landing
    from okx_pipeline.stream import sidecar

    # An edge of these few series goes the way of an edge of many.
    landing.STRAIGHT_FROM = 2  # type: ignore[misc]
    for vary in variations:
        vary()
    try:
        sidecar.run(settings, standby=standby, say=lambda line: print(line, flush=True))
    except PipelineError as problem:
        print(problem, file=sys.stderr, flush=True)
        sys.exit(int(problem.exit_status))


def _command(
    arguments: Sequence[str], environment: dict[str, str], variations: Sequence[Callable[[], None]] = ()
) -> None:
    from okx_pipeline import cli

    for vary in variations:
        vary()
    os.environ.update(environment)
    sys.argv = ["okx-pipeline", *arguments]
    sys.exit(cli.main())
