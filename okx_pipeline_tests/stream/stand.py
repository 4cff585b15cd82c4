"""A sidecar process beside a replay exchange whose minutes pass in seconds, and the question whether they agree."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import pending_months, project
from okx_pipeline.timeframes import month_of, parse_timeframe

Row = tuple[Any, ...]
VALUES = "open_price, high_price, low_price, close_price, volume, volume_currency, volume_quote"


def wait_until(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    """Wait until `condition` holds, however long that takes below a bound that only a fault reaches."""
    pause = threading.Event()
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"it never came true that {what}"
        pause.wait(0.1)


@dataclass
class Stand:
    """The exchange at `url`, the store of `settings`, and the sidecars started between them."""

    url: str
    settings: Settings
    database: Database
    log: Path
    sidecars: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *variations: str) -> subprocess.Popen[bytes]:
        """Start a sidecar."""
        command = [sys.executable, "-P", "-m", "okx_pipeline_tests.stream.run_sidecar", *variations]
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, env=self.settings.environment(), stdout=log, stderr=log)
        self.sidecars.append(process)
        return process

    def stop(self) -> None:
        """End every sidecar as a service manager would."""
        for process in self.sidecars:
            if process.poll() is None:
                process.terminate()
        for process in self.sidecars:
            process.wait(timeout=60)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a sidecar as a power cut would."""
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def fault(self, *faults: dict[str, object]) -> None:
        """Make the exchange misbehave."""
        httpx.post(f"{self.url}/replay/faults", json=list(faults), trust_env=False).raise_for_status()

    def heal(self) -> None:
        """End all misbehaviour."""
        httpx.delete(f"{self.url}/replay/faults", trust_env=False).raise_for_status()

    def status(self) -> dict[str, Any]:
        """What the exchange counted."""
        return httpx.get(f"{self.url}/replay/status", trust_env=False).json()  # type: ignore[no-any-return]

    def now_ms(self) -> int:
        """The exchange's time."""
        return int(self.status()["now_ms"])

    def series(self) -> list[tuple[str, str]]:
        """Every series that is streamed."""
        return [(symbol, timeframe.name) for symbol in self.settings.symbols for timeframe in self.settings.timeframes]

    def truth(self, symbol: str, timeframe: str, start_ms: int, end_ms: int) -> list[Row]:
        """What a perfect client would hold, numbers as text."""
        query = {"symbol": symbol, "timeframe": timeframe, "start_ms": str(start_ms), "end_ms": str(end_ms)}
        answer = httpx.get(f"{self.url}/replay/truth", params=query, trust_env=False, timeout=30)
        return [(int(row[0]), *map(str, row[1:])) for row in answer.json()]

    def held(self, connection: Connection, symbol: str, timeframe: str, start_ms: int, end_ms: int) -> list[Row]:
        """What PostgreSQL holds, numbers as text."""
        texts = ", ".join(f"{name}::text" for name in VALUES.split(", "))
        return connection.execute(
            f"SELECT timestamp_ms, {texts} FROM trading.candlesticks WHERE symbol = %s AND timeframe = %s "
            "AND timestamp_ms >= %s AND timestamp_ms < %s ORDER BY timestamp_ms",
            (symbol, timeframe, start_ms, end_ms),
        ).fetchall()

    def lets_pass(self, minutes: float) -> None:
        """Wait until so many minutes have passed at the exchange."""
        until = self.now_ms() + int(minutes * 60_000)
        wait_until(lambda: self.now_ms() >= until, f"{minutes} minutes pass at the exchange")

    def agrees_from(self, start_ms: int) -> None:
        """Wait until PostgreSQL holds exactly what the exchange served of every series since `start_ms` to now."""
        end_ms = self.now_ms()
        bounds = {series: parse_timeframe(series[1]).closed_before(end_ms) for series in self.series()}
        different: dict[tuple[str, str], str] = {}

        def agree() -> bool:
            different.clear()
            try:
                with self.database.connect() as connection:
                    for series, bound in bounds.items():
                        truth = self.truth(*series, start_ms, bound)
                        assert truth
                        held = self.held(connection, *series, start_ms, bound)
                        if held != truth:
                            different[series] = f"{len(held)} of {len(truth)}: {set(truth).symmetric_difference(held)}"
            except StorageError:
                return False
            return not different

        try:
            wait_until(agree, "the store agrees with the exchange")
        except AssertionError:
            told = "\n".join(f"{series}: {difference[:400]}" for series, difference in different.items())
            raise AssertionError(f"{told}\n{self.log.read_text()[-3000:]}") from None
        self._parquet_agrees(start_ms, bounds)

    def _parquet_agrees(self, start_ms: int, bounds: dict[tuple[str, str], int]) -> None:
        files = ParquetStore(self.settings.parquet_root)
        with self.database.connect() as connection:
            project(connection, files, pending_months(connection))
            for (symbol, timeframe), bound in bounds.items():
                table = files.read(SeriesMonth(symbol, timeframe, month_of(start_ms)))
                opens = [open_ms for open_ms in table["timestamp_ms"].to_pylist() if start_ms <= open_ms < bound]
                assert opens == [row[0] for row in self.held(connection, symbol, timeframe, start_ms, bound)]

    def count(self, query: str) -> int:
        """The number that a query gives."""
        with self.database.connect() as connection:
            return int(one(connection, query))

    def streams(self) -> bool:
        """Whether a sidecar streams and has landed something of the WebSocket."""
        beating = self.count("SELECT count(*) FROM trading.stream_status WHERE state = 'streaming'")
        return beating > 0 and self.count("SELECT count(*) FROM trading.candlesticks WHERE source = 'websocket'") > 0


@contextmanager
def standing(url: str, settings: Settings, database: Database, folder: Path) -> Iterator[Stand]:
    """A stand whose sidecars are ended with it."""
    stand = Stand(url, settings, database, folder / "sidecar.log")
    try:
        yield stand
    finally:
        for process in stand.sidecars:
            if process.poll() is None:
                process.kill()
                process.wait()
