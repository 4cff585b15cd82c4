"""A sidecar at work beside a synthetic exchange: its processor time, memory and landing delay, sampled from outside."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic

import httpx
import psutil

from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.storage.stream_status import sidecar_status

PAUSE = Event()


@dataclass(frozen=True, slots=True)
class Sample:
    """The sidecar at a moment: seconds of processor and wall, MB resident, and what it counted."""

    at_s: float
    processor_s: float
    resident_mb: float
    counters: dict[str, float]


@contextmanager
def streaming(symbols: int, timeframes: str, speed: float) -> Iterator[tuple[psutil.Process, Database, str]]:
    """A sidecar of `symbols` x `timeframes`, its database, and the exchange's URL."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OKX_")}
    load = [sys.executable, "-m", "benchmarks.load_exchange", str(symbols), str(speed)]
    with (
        tempfile.TemporaryDirectory() as home,
        subprocess.Popen(load, stdout=subprocess.PIPE, text=True, env=environment) as exchange,
    ):
        assert exchange.stdout is not None
        url = exchange.stdout.readline().strip()
        names = ",".join(names_of(url))
        websocket = url.replace("http", "ws") + "/ws/v5/business"
        settings = read_settings(home=Path(home), rest_url=url, ws_url=websocket, symbols=names, timeframes=timeframes)
        with opened_database(settings) as database:
            command = [sys.executable, "-m", "okx_pipeline", "stream"]
            with subprocess.Popen(command, env={**environment, **settings.environment()}) as sidecar:
                try:
                    yield psutil.Process(sidecar.pid), database, url
                finally:
                    sidecar.send_signal(signal.SIGTERM)
        exchange.terminate()


def names_of(url: str) -> list[str]:
    """The symbols that the exchange at `url` lists."""
    kinds = ("SWAP", "SPOT")
    answers = [httpx.get(f"{url}/api/v5/public/instruments?instType={kind}", trust_env=False).json() for kind in kinds]
    return [each["instId"] for answer in answers for each in answer["data"]]


def sample(process: psutil.Process, database: Database) -> Sample:
    """The sidecar now."""
    times = process.cpu_times()
    with database.connect() as connection:
        status = sidecar_status(connection)
    return Sample(
        monotonic(), times.user + times.system, process.memory_info().rss / 1e6, status.counters if status else {}
    )


def wait_until_caught_up(database: Database, series: int, seconds: float = 600) -> None:
    """Wait until the sidecar receives every series and has nothing left to catch up with."""
    deadline = monotonic() + seconds
    while True:
        with database.connect() as connection:
            status = sidecar_status(connection)
        counters = status.counters if status else {}
        if counters.get("subscribed") == series and counters.get("frames", 0) > series and not counters["catching up"]:
            return
        if monotonic() > deadline:
            raise TimeoutError(f"the sidecar did not catch up: {counters}")
        PAUSE.wait(1)


def candles_of_the_websocket(database: Database) -> int:
    """How many candles landed from frames."""
    with database.connect() as connection:
        return int(one(connection, "SELECT count(*) FROM trading.candlesticks WHERE source = 'websocket'"))
