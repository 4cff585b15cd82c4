"""The stream while PostgreSQL is away: it goes on receiving, and the store ends with the truth."""

import os
import signal
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.embedded_guard import postmaster
from okx_pipeline.storage.migrations import migrate
from okx_pipeline.timeframes import day_ms
from okx_pipeline_tests.stream.stand import standing, wait_until

START = day_ms(date(2026, 8, 20))


@pytest.fixture
def url() -> Iterator[str]:
    exchange = Exchange(open_market("synthetic", seed=3, symbols=6), ExchangeClock(START + 1_800_000, 60.0))
    with ReplayServer(exchange) as server:
        yield server.url


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "elsewhere") as server:
        migrate(Database(server.url))
        yield server


def settings_of(url: str, home: Path, **more: object) -> Settings:
    return read_settings(
        home=home,
        rest_url=url,
        ws_url=url.replace("http", "ws") + "/ws/v5/business",
        symbols="BTC-USDT-SWAP,ETH-USDT-SWAP",
        timeframes="1m,5m",
        **more,
    )


def kill_server(home: Path) -> None:
    pid = postmaster(str(home / "postgres" / "data"))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_a_server_that_was_killed_and_is_away_for_twenty_minutes_of_the_exchange_loses_nothing(
    url: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    settings = settings_of(url, tmp_path / "home", database_url=postgres.url)
    with standing(url, settings, Database(postgres.url), tmp_path) as stand:
        stand.start()
        wait_until(stand.streams, "the sidecar streams")
        kill_server(tmp_path / "elsewhere")
        stand.lets_pass(20)
        postgres.start()
        stand.lets_pass(1)
        stand.agrees_from(START)
        assert stand.sidecars[0].poll() is None
        assert "database away" in stand.log.read_text()


def test_an_embedded_server_that_was_killed_is_brought_back_by_the_sidecar_itself(url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = settings_of(url, home)
    with EmbeddedPostgres(home) as mine, standing(url, settings, Database(mine.url), tmp_path) as stand:
        migrate(Database(mine.url))
        stand.start()
        wait_until(stand.streams, "the sidecar streams")
        for _ in range(3):
            kill_server(home)
            stand.lets_pass(3)
        stand.agrees_from(START)
        stand.stop()


def test_what_does_not_fit_while_the_database_is_away_is_fetched_again(
    url: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    settings = settings_of(url, tmp_path / "home", database_url=postgres.url)
    with standing(url, settings, Database(postgres.url), tmp_path) as stand:
        stand.start("small-buffer")
        wait_until(stand.streams, "the sidecar streams")
        kill_server(tmp_path / "elsewhere")
        stand.lets_pass(15)
        postgres.start()
        stand.agrees_from(START)
        assert "no room to wait" in stand.log.read_text()
