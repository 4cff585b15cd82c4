"""The README's commands and queries, run as they stand there on a store of real candles."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.timeframes import day_ms

README = (Path(__file__).parents[1] / "README.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROGRAM = ".venv/bin/okx-pipeline"


@pytest.fixture(scope="module")
def place(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A working directory, and an environment in which OKX is the replay of the recordings."""
    exchange = Exchange(open_market(str(recordings / "candles")), ExchangeClock(day_ms(date(2026, 8, 22)), 0.0))
    with ReplayServer(exchange) as server:
        own = {name: value for name, value in os.environ.items() if not name.startswith("OKX_")}
        folder = tmp_path_factory.mktemp("readme")
        yield folder, {**own, "OKX_REST_URL": server.url, "OKX_WS_URL": server.websocket_url}


def run(place: tuple[Path, dict[str, str]], command: list[str]) -> str:
    folder, environment = place
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
    return ended.stdout


def test_the_first_screen_is_two_commands() -> None:
    assert [line.split("#")[0].strip() for line in SHELL[0].splitlines()] == ["make up", "make test"]
    assert README.index("make up") < 1000


def test_its_commands_and_queries_do_what_it_says(place: tuple[Path, dict[str, str]]) -> None:
    program = [sys.executable, "-P", "-m", "okx_pipeline"]
    told = []
    for block in SHELL[1:]:
        for command in re.split(rf"(?=^(?:\w+=\S+ )?{re.escape(PROGRAM)})", block, flags=re.MULTILINE):
            words = shlex.split(command)
            if words and " up " not in f" {' '.join(words)} ":
                assert words[0] == PROGRAM
                told.append(run(place, [*program, *words[1:]]))
    assert any("new candles" in output for output in told)
    assert any("(24 rows)" in output for output in told), "a day of hours"
    assert any("ETH-USDT-SWAP" in output and "since 2026-06-01" in output for output in told)
    loaded, pandas, duckdb = (run(place, [sys.executable, "-c", block]) for block in PYTHON)
    assert "2026-08-21" in loaded
    assert loaded.splitlines()[1:22] == pandas.splitlines()[1:22]
    assert "BTC-USDT-SWAP" in duckdb
    assert "504" in duckdb, "three weeks of hours"
