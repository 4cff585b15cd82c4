"""The webserver for people who look and change nothing, as docs/security.md starts it: it refuses every change."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from okx_pipeline_tests.e2e.system import free_port, wait_for

CHANGES = {
    "launchRun": """
        mutation { launchRun(executionParams: {
            selector: {repositoryLocationName: "x", repositoryName: "x", jobName: "x"}, runConfigData: {}
        }) { __typename } }""",
    "launchPartitionBackfill": """
        mutation { launchPartitionBackfill(backfillParams: {
            assetSelection: [{path: ["okx", "candles"]}], partitionNames: ["2026-07-01|BTC-USDT"]
        }) { __typename } }""",
    "wipeAssets": """
        mutation { wipeAssets(assetPartitionRanges: [{assetKey: {path: ["okx", "candles"]}}]) { __typename } }""",
    "addDynamicPartition": """
        mutation { addDynamicPartition(
            repositorySelector: {repositoryLocationName: "x", repositoryName: "x"},
            partitionsDefName: "okx_symbols", partitionKey: "x"
        ) { __typename } }""",
    "startSensor": """
        mutation { startSensor(sensorSelector: {
            repositoryLocationName: "x", repositoryName: "x", sensorName: "x"
        }) { __typename } }""",
    "terminateRun": """mutation { terminateRun(runId: "x") { __typename } }""",
}

Ask = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks a webserver for viewers.

    What may be done is decided before it is looked for, so that it needs neither definitions nor a database of ours.
    """
    folder, port = tmp_path_factory.mktemp("viewer"), free_port()
    command = ["-m", "okx_pipeline.defs.webserver", "--read-only", "--host", "127.0.0.1", "--port", str(port)]

    def answers() -> bool:
        assert viewer.poll() is None, (folder / "out").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/server_info", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def asked(query: str) -> dict[str, Any]:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/graphql", json={"query": query}, timeout=60, trust_env=False
        ).json()
        assert "errors" not in answer, answer
        return dict(answer["data"])

    with (
        (folder / "out").open("w") as out,
        subprocess.Popen(
            [sys.executable, *command, "--empty-workspace"],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "DAGSTER_HOME": str(folder), "PYTHONSAFEPATH": "1"},
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as viewer,
    ):
        try:
            wait_for(answers, "webserver for viewers")
            yield asked
        finally:
            viewer.terminate()


def test_it_shows(ask: Ask) -> None:
    assert ask("{ runsOrError { ... on Runs { count } } }") == {"runsOrError": {"count": 0}}


@pytest.mark.parametrize("change", CHANGES)
def test_it_changes_nothing(ask: Ask, change: str) -> None:
    assert ask(CHANGES[change])[change]["__typename"] == "UnauthorizedError"


def test_it_is_the_one_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert "python -m okx_pipeline.defs.webserver --read-only" in page
