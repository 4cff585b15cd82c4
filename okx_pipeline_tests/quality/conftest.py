"""A store to look into and an exchange to mend it from: the replay exchange over real sockets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.database import Database


@pytest.fixture
def settings_for(database: Database, tmp_path: Path) -> Callable[[str], Settings]:
    """Settings that lead to `database`, a Parquet folder of the test, and the exchange at a URL."""

    def make(url: str) -> Settings:
        return read_settings(home=tmp_path / "home", database_url=database.url, rest_url=url, ws_url=url)

    return make
