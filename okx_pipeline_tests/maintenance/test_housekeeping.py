"""Housekeeping: logs and leftovers of runs are cut back, everything is weighed."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from okx_pipeline.maintenance import housekeeping
from okx_pipeline.maintenance.housekeeping import keep_house
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.database import Database, StorageError
from okx_pipeline_tests.maintenance.conftest import BTC

NOW = datetime(2026, 8, 22, tzinfo=UTC)


@pytest.fixture
def settings(database: Database, tmp_path: Path) -> Settings:
    return read_settings(home=tmp_path / "home", database_url=database.url, symbols=(BTC,))


def test_logs_of_runs_long_ago_go_and_what_else_lies_there_stays(settings: Settings, database: Database) -> None:
    storage = settings.root / "dagster" / "storage"
    for name, age in (("old", 31), ("young", 29)):
        logs = storage / name / "compute_logs"
        logs.mkdir(parents=True)
        (logs / "step.out").write_text("said")
        moment = (NOW - timedelta(days=age)).timestamp()
        os.utime(logs, (moment, moment))
    (storage / "old" / "result").write_text("of a run")
    assert keep_house(settings, database, NOW).removed == {"logs of runs": 1}
    assert sorted(path.name for path in storage.rglob("*")) == ["compute_logs", "old", "result", "step.out", "young"]


def test_a_long_log_is_emptied_under_whoever_writes_it_and_one_older_is_kept(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "LOG_BYTES", 100)
    folder = settings.root / "logs"
    folder.mkdir(parents=True)
    (folder / "short.log").write_text("short")
    with (folder / "sidecar.log").open("ab", buffering=0) as writer:
        writer.write(b"x" * 150)
        assert keep_house(settings, database, NOW).removed == {"logs": 1}
        writer.write(b"more")
    assert (folder / "sidecar.log").read_bytes() == b"more"
    assert (folder / "sidecar.log.1").read_bytes() == b"x" * 150
    assert (folder / "short.log").read_text() == "short"


def test_everything_is_weighed_and_growth_told_from_the_second_day_on(settings: Settings, database: Database) -> None:
    parquet = Path(settings.parquet_root) / "candlesticks"
    parquet.mkdir(parents=True)
    (parquet / "candles.parquet").write_bytes(b"p" * 500)
    first = keep_house(settings, database, NOW)
    assert (first.sizes.parquet_bytes, first.growth) == (500, None)
    with database.connect() as connection:
        connection.execute("UPDATE trading.store_sizes SET day = day - 2, parquet_bytes = 100")
    second = keep_house(settings, database, NOW)
    assert second.growth is not None
    assert second.growth.parquet_bytes == 200


def test_a_log_that_cannot_be_shortened_is_told_in_a_line(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "LOG_BYTES", 1)
    folder = settings.root / "logs"
    (folder / "sidecar.log.1").mkdir(parents=True)
    (folder / "sidecar.log").write_text("said")
    with pytest.raises(StorageError, match=r"the logs in .* cannot be shortened: "):
        keep_house(settings, database, NOW)
