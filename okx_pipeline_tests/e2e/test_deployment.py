"""The services of compose.yaml, run as processes as they stand there: only addresses and folders are this machine's.

That the commands, their settings and their health checks are right does not depend on a container engine.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.timeframes import day_ms
from okx_pipeline_tests.e2e.system import WITHIN_S, free_port, wait_for

# What can be said of the deployment without running it is in test_deploy.
pytestmark = [pytest.mark.e2e, pytest.mark.long]

REPOSITORY = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())["services"]
STAYING = ("code", "daemon", "webserver", "sidecar", "pages")
"""All that run on but PostgreSQL, whose image is somebody else's."""

IMAGE = dict(
    re.findall(r"([A-Z_]+)=(\S+)", (REPOSITORY / "deploy" / "Dockerfile").read_text().partition("ENV PATH")[2])
)
SENSORS = """
{ sensorsOrError(repositorySelector: {
    repositoryLocationName: "okx_pipeline", repositoryName: "__repository__"
}) { ... on Sensors { results { name sensorState { status ticks(limit: 1) { timestamp status } } } } } }
"""
RUNS = "{ runsOrError(filter: {statuses: [SUCCESS]}) { ... on Runs { results { jobName } } } }"


class Deployment:
    """The services on this machine.

    Parameters
    ----------
    folder
        Where the image has `/`.
    database
        In PostgreSQL's place.
    settings
        What the file of settings holds.
    """

    def __init__(self, folder: Path, database: Database, settings: dict[str, str]) -> None:
        self._folder = folder
        self._ports = {port: str(free_port()) for port in ("3000", "3001")}
        self._urls = {"OKX_DATABASE_URL": database.url, "DAGSTER_PG_URL": database.dagster_url()}
        self._settings = settings
        self._started: dict[str, subprocess.Popen[str]] = {}
        etc, self.home = folder / "etc" / "okx", folder / "var" / "lib" / "okx"
        for made in (etc, self.home):
            made.mkdir(parents=True)
        (etc / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
        (etc / "workspace.yaml").write_text((REPOSITORY / "deploy" / "workspace.yaml").read_text())

    def port(self, published: str) -> str:
        """The port in a published one's place."""
        return self._ports[published]

    def run(self, name: str, command: list[str]) -> "subprocess.CompletedProcess[str]":
        """Run a command as a service's."""
        words = [self._here(word) for word in command]
        return subprocess.run(
            words,
            env=self._environment(name),
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN_S,
        )

    def start(self, name: str, as_name: str = "") -> "subprocess.Popen[str]":
        """Start a service."""
        with (self._folder / f"{as_name or name}.log").open("w") as log:
            self._started[as_name or name] = process = subprocess.Popen(
                [self._here(word) for word in SERVICES[name]["command"]],
                env=self._environment(name),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
        return process

    def is_healthy(self, name: str) -> bool:
        """Whether its health check passes; fails the test if it has ended."""
        status = self._started[name].poll()
        assert status is None, f"{name} ended with {status}: {self.log(name)}"
        return self.run(name, SERVICES[name]["healthcheck"]["test"][1:]).returncode == 0

    def log(self, name: str) -> str:
        """What it has said."""
        return (self._folder / f"{name}.log").read_text()

    def kill_one(self, name: str) -> None:
        """Kill a service without a warning."""
        self._started[name].kill()
        self._started[name].wait()

    def stop(self) -> dict[str, int]:
        """Stop everything, the last first, as an engine does; returns the exit status of each."""
        ended = {}
        for name, process in reversed(self._started.items()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                ended[name] = process.wait(WITHIN_S)
        return ended

    def kill(self) -> None:
        """Leave nothing of it."""
        for process in self._started.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _environment(self, name: str) -> dict[str, str]:
        service = SERVICES[name]
        given = {
            key: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for key, value in service.get("environment", {}).items()
        }
        everything = {**IMAGE, **(self._settings if "env_file" in service else {}), **given}
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        here = {key: self._urls.get(key, self._here(value)) for key, value in everything.items()}
        return {**here, "PATH": path, "HOME": str(self.home)}

    def _here(self, text: str) -> str:
        text = re.sub(r"(?<![\w.])/(var/lib|etc)/okx\b", rf"{self._folder}/\1/okx", text)
        text = text.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        return re.sub(r"\b(3000|3001)\b", lambda found: self._ports[found[0]], text)


@pytest.fixture
def deployment(recordings: Path, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The services, not started, with the replay of the recordings in OKX's place."""
    exchange = Exchange(open_market(str(recordings / "candles")), ExchangeClock(day_ms(date(2026, 8, 22)) + 7_200_000))
    with ReplayServer(exchange) as server:
        settings = {
            "OKX_REST_URL": server.url,
            "OKX_WS_URL": server.websocket_url,
            "OKX_TIMEFRAMES": "1h",
            "OKX_HISTORY_START": "2026-08-20",
        }
        deployment = Deployment(tmp_path_factory.mktemp("here"), database, settings)
        try:
            yield deployment
        finally:
            deployment.kill()


def test_the_services_become_healthy_do_their_work_and_stop(deployment: Deployment, connection: Connection) -> None:
    setup = deployment.run("setup", SERVICES["setup"]["command"])
    assert setup.returncode == 0, setup.stderr
    for name in STAYING:
        deployment.start(name)
        wait_for(lambda name=name: deployment.is_healthy(name), f"healthy {name}: {deployment.log(name)}")
    deployment.start("sidecar", as_name="standby")

    graphql = f"http://127.0.0.1:{deployment.port('3000')}/graphql"

    def asked(query: str) -> dict[str, Any]:
        return dict(httpx.post(graphql, json={"query": query}, trust_env=False).json()["data"])

    def sensor(name: str) -> dict[str, Any]:
        found = asked(SENSORS)["sensorsOrError"]["results"]
        return dict(next(each["sensorState"] for each in found if each["name"] == name))

    assert sensor("okx_ledger")["status"] == "RUNNING"
    wait_for(lambda: asked(RUNS)["runsOrError"]["results"], "a run that succeeded")
    whole = (
        "SELECT missing = 0 AND read_at IS NOT NULL FROM trading.coverage WHERE timeframe = '1h' AND day = '2026-08-20'"
    )
    wait_for(lambda: one(connection, f"SELECT coalesce(({whole}), false)"), "a day of history")
    assert list((deployment.home / "parquet").rglob("candles.parquet"))
    pages = httpx.get(f"http://127.0.0.1:{deployment.port('3001')}/", trust_env=False, follow_redirects=True)
    assert pages.status_code == 200

    wait_for(lambda: "standing by" in deployment.log("standby"), "a sidecar that stands by")
    deployment.kill_one("sidecar")
    wait_for(lambda: "streaming from" in deployment.log("standby"), "one that takes over")

    # As when its container is replaced: the socket is left, and the others go on with the new one.
    deployment.kill_one("code")
    killed_s = time.time()
    deployment.start("code")
    ticked = ("SUCCESS", "SKIPPED")
    wait_for(
        lambda: any(
            tick["timestamp"] > killed_s + 5 and tick["status"] in ticked for tick in sensor("okx_sidecar")["ticks"]
        ),
        "a tick of a sensor",
    )

    assert set(deployment.stop().values()) <= {0, -signal.SIGTERM}
