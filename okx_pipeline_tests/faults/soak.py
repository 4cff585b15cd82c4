"""The soak: the system under faults drawn by chance, for as long as one likes, and the checker at the end.

`make soak MINUTES=30`; pytest collects it only where its name is given. The exchange's minutes pass in seconds, so that
half an hour is more than a day of candles. Whatever chance does, nothing may be doubled, wrong or claimed too early in
between, and nothing lost once the faults are over. `FAULT_SEED` draws the same faults in the same order, though not at
the same moments.
"""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic

import psutil
import psycopg
import pytest

from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.storage.database import Database, StorageError
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.embedded_guard import postmaster
from okx_pipeline.storage.migrations import migrate
from okx_pipeline.timeframes import day_of
from okx_pipeline_tests.faults.checker import KINDS
from okx_pipeline_tests.faults.proxy import Proxy
from okx_pipeline_tests.faults.system import POINTS, System, dying_at, system
from okx_pipeline_tests.stream.stand import wait_until

MINUTES = float(os.environ.get("SOAK_MINUTES", "1"))
SEED = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1, 1_000_000))
LOOK_EVERY_S = 20.0
RECOVERS_WITHIN_S = 300.0

# Not among them: an exchange that lies, or says twice that there is nothing. What it says is believed until REST is
# read again, days later.
OF_REQUESTS = ("status", "code", "too_many", "slow", "truncated", "html", "reset", "page_limit", "short")
OF_PUSHES = ("duplicate", "reorder", "garble", "withhold", "late", "unconfirm", "two_rows", "off_boundary")
AT_ONCE = ("drop", "half_open", "notice", "refuse", "stall")


class Soak:
    """The system, its network and server, and what is done to them.

    Parameters
    ----------
    home
        The folder of a PostgreSQL that may be killed.
    """

    def __init__(self, home: Path, item: pytest.Item, opened: ExitStack) -> None:
        self.done: Counter[str] = Counter()
        self.most_mb = 0.0
        self._home = home
        self._server = opened.enter_context(EmbeddedPostgres(home))
        database = Database(self._server.url)
        migrate(database)

        def between(server: ReplayServer) -> tuple[str, str]:
            self._proxies = [opened.enter_context(Proxy(url)) for url in (server.url, server.websocket_url)]
            return self._proxies[0].url, self._proxies[1].url

        self.system: System = opened.enter_context(system(database, home, item, SEED, url=between))
        self._randomly = random.Random(SEED)
        self._sidecar: BaseProcess = self.system.streaming()

    def strike(self) -> None:
        """One fault more."""
        name, harm = self._randomly.choices(
            [
                ("exchange misbehaves", self._misbehave),
                ("connections end or fall silent", self._disconnect),
                ("network harmed", self._harm_network),
                ("network heals", self._heal_network),
                ("exchange heals", self.system.heal),
                ("sidecar killed", self._kill_sidecar),
                ("sidecar killed at a point", self._kill_at_point),
                ("sidecar ended", self._end_sidecar),
                ("PostgreSQL killed", self._kill_server),
                ("sessions ended", self._end_sessions),
                ("backfill beside", self._backfill),
                ("maintenance beside", self._maintain),
            ],
            weights=[6, 3, 3, 3, 3, 2, 2, 1, 1, 2, 2, 1],
        )[0]
        harm()
        self.done[name] += 1

    def look(self) -> None:
        """What must hold at every moment, and how much memory the sidecar has."""
        if self._sidecar.exitcode is not None:
            self._sidecar = self.system.sidecar()
        try:
            self.system.holds_its_promises()
            with psycopg.connect(self.system.database.url) as connection:
                connection.execute("SELECT 1")
        except (StorageError, psycopg.Error):
            self._server.start()
        if self._sidecar.exitcode is None and self._sidecar.pid is not None:
            self.most_mb = max(self.most_mb, psutil.Process(self._sidecar.pid).memory_info().rss / 1e6)

    def end(self) -> str:
        """Let all faults be over, wait until the store is sound, and say what happened."""
        self.system.heal()
        self._heal_network()
        self._server.start()
        self.look()
        found = self.system.recovers(RECOVERS_WITHIN_S)
        (held,) = self.system.rows("SELECT count(*) FROM trading.candlesticks")[0]
        assert found.explained == 0, f"{found.explained} candles that the exchange serves are explained away"
        counts = ", ".join(f"{number} {kind}" for kind, number in zip(KINDS, found.counts, strict=True))
        lines = [f"seed {SEED}, {MINUTES:g} minutes, {sum(self.done.values())} faults: {counts}"]
        lines += [f"  {name}: {times}" for name, times in sorted(self.done.items())]
        return "\n".join([*lines, f"  candles held: {held:,}; the most memory a sidecar had: {self.most_mb:.0f} MB"])

    def _misbehave(self) -> None:
        if self._randomly.random() < 0.5:
            kind = self._randomly.choice(OF_REQUESTS)
            more = {"rows": self._randomly.randint(1, 99)} if kind in {"page_limit", "short"} else {}
            self.system.fault({"kind": kind, "requests": self._randomly.randint(1, 6), **more})
        else:
            kind = self._randomly.choice(OF_PUSHES)
            self.system.fault({"kind": kind, "share": self._randomly.uniform(0.05, 0.5), "requests": 50})

    def _disconnect(self) -> None:
        self.system.fault({"kind": self._randomly.choice(AT_ONCE), "seconds": self._randomly.uniform(1, 5)})

    def _harm_network(self) -> None:
        proxy = self._randomly.choice(self._proxies)
        harms: list[Callable[[], None]] = [
            proxy.cut,
            proxy.half_open,
            proxy.stall,
            lambda: proxy.slow(self._randomly.uniform(500, 20_000)),
            lambda: proxy.delay(self._randomly.uniform(0.05, 1)),
        ]
        self._randomly.choice(harms)()

    def _heal_network(self) -> None:
        for proxy in self._proxies:
            proxy.heal()

    def _kill_sidecar(self) -> None:
        self.system.end(self._sidecar)
        self._sidecar = self.system.sidecar()

    def _kill_at_point(self) -> None:
        self.system.end(self._sidecar)
        point = self._randomly.choice(sorted(POINTS))
        self._sidecar = self.system.sidecar(dying_at(point, self._randomly.randint(1, 5)))

    def _end_sidecar(self) -> None:
        self.system.end(self._sidecar, signal.SIGTERM)
        self._sidecar = self.system.sidecar()

    def _kill_server(self) -> None:
        pid = postmaster(str(self._home / "postgres" / "data"))
        if pid is not None:
            os.kill(pid, self._randomly.choice([signal.SIGQUIT, signal.SIGKILL]))

    def _end_sessions(self) -> None:
        try:
            with psycopg.connect(self.system.database.url) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND random() < 0.5"
                )
        except psycopg.OperationalError:
            self._server.start()

    def _backfill(self) -> None:
        today = day_of(self.system.now_ms())
        self.system.begin("backfill", "--start", "2026-08-20", "--end", f"{_after(today)}", "--refetch")

    def _maintain(self) -> None:
        self.system.begin("maintain")


def _after(day: date) -> date:
    return date.fromordinal(day.toordinal() + 1)


@pytest.fixture
def soak(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Soak]:
    with ExitStack() as opened:
        yield Soak(tmp_path, request.node, opened)


@pytest.mark.fault(34, "soak")
def test_whatever_chance_does_for_long_the_store_is_sound_at_the_end(
    soak: Soak, capfd: pytest.CaptureFixture[str]
) -> None:
    ends_s = monotonic() + MINUTES * 60
    next_look_s = monotonic() + LOOK_EVERY_S
    while monotonic() < ends_s:
        soak.strike()
        pause_s = monotonic() + soak.system.randomly.uniform(0.5, 4)
        wait_until(lambda until_s=pause_s: monotonic() >= until_s, "the next fault is due")
        if monotonic() >= next_look_s:
            soak.look()
            next_look_s = monotonic() + LOOK_EVERY_S
    told = soak.end()
    with capfd.disabled():
        print(f"\n{told}")
