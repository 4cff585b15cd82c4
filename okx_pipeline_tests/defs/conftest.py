"""Dagster on a temporary instance, the replay exchange behind it."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import pytest

from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.storage.database import Database
from okx_pipeline.timeframes import day_ms

NOW = day_ms(date(2026, 8, 22)) + 3_600_000


@pytest.fixture(scope="module")
def exchange() -> Exchange:
    return Exchange(open_market("synthetic", seed=5, symbols=6), ExchangeClock(NOW, 0.0), limits=False)


@pytest.fixture(scope="module")
def url(exchange: Exchange) -> Iterator[str]:
    with ReplayServer(exchange) as server:
        yield server.url


@pytest.fixture
def pipeline(database: Database, url: str, tmp_path: Path) -> Pipeline:
    return Pipeline(
        overrides={
            "home": str(tmp_path / "home"),
            "database_url": database.url,
            "rest_url": url,
            "ws_url": url,
            "timeframes": "15m,1h",
        }
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as temporary:
        yield temporary
