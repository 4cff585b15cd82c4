"""The store at a glance: what it shows of each series, and what it does not read for that."""

from pathlib import Path

import pytest

from okx_pipeline.candles import Refused, Source
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.overview import _SERIES, SeriesOverview, overview
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import parse_timeframes
from okx_pipeline_tests.storage.test_landing import AUGUST, MINUTE, candle, now


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def store(connection: Connection, tmp_path: Path) -> CandleStore:
    return CandleStore(connection, ParquetStore(str(tmp_path / "parquet")), "here")


def test_an_empty_store_shows_its_server_and_nothing_else(connection: Connection) -> None:
    seen = overview(connection)
    assert seen.server_version.split(".")[0].isdigit()
    assert seen.size_bytes > 1_000_000
    assert (seen.origin, seen.quarantined, seen.revisions, seen.series) == (None, 0, 0, [])


def test_a_series_shows_its_first_and_last_candle_what_is_in_files_and_what_waits(
    connection: Connection, store: CandleStore
) -> None:
    seed_subscriptions(connection, ["BTC-USDT-SWAP"], parse_timeframes("1d,1m"), 0)
    store.claim_for("market")
    store.land([candle(minute) for minute in (0, 1, 44_640)], source=Source.REST)
    store.land([candle(7, symbol="ETH-USDT")], source=Source.REST)
    store.project([])
    refused = Refused("BTC-USDT-SWAP", "1m", AUGUST + MINUTE, "a price is zero", "[]")
    store.land([candle(1, "63031")], [refused], source=Source.REST, requested_at=now(connection))
    seen = overview(connection)
    assert seen.series == [
        SeriesOverview("BTC-USDT-SWAP", "1m", AUGUST, AUGUST + 44_640 * MINUTE, 3, True),
        SeriesOverview("BTC-USDT-SWAP", "1d", None, None, 0, False),
        SeriesOverview("ETH-USDT", "1m", AUGUST + 7 * MINUTE, AUGUST + 7 * MINUTE, 1, False),
    ]
    assert (seen.origin, seen.quarantined, seen.revisions) == ("market", 1, 1)
    store.project([])
    assert not any(series.waiting for series in overview(connection).series)


def test_what_has_ended_is_shown_as_long_as_candles_of_it_are_kept(connection: Connection, store: CandleStore) -> None:
    seed_subscriptions(connection, ["BTC-USDT-SWAP", "ETH-USDT"], parse_timeframes("1m"), 0)
    store.land([candle(0)], source=Source.REST)
    store.project([])
    connection.execute("UPDATE trading.subscriptions SET until_ms = 1")
    assert [series.symbol for series in overview(connection).series] == ["BTC-USDT-SWAP"]


def test_the_rows_of_a_series_are_not_read_to_show_it(connection: Connection, store: CandleStore) -> None:
    store.land([candle(minute) for minute in range(0, 200_000, 10)], source=Source.REST)
    store.project([])
    connection.execute("ANALYZE")
    (plan,) = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {_SERIES}").fetchone() or ()

    def rows(node: dict[str, object]) -> int:
        own = node["Actual Rows"] * node["Actual Loops"]  # type: ignore[operator]
        below = node.get("Plans", [])
        return int(max(own, *map(rows, below))) if below else int(own)  # type: ignore[call-overload]

    assert rows(plan[0]["Plan"]) < 100
