"""What OKX revised in real life, revised again: the days are landed before, read again after, and nothing is lost.

Seven confirmed rows were seen with another volume between two fetches on 4 August 2026; five are of timeframes that are
stored. The exchange serves the old values until the second fetch, and from then on the new ones, which are recorded.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from okx_pipeline.candles import VALUE_COLUMNS
from okx_pipeline.errors import UsageError
from okx_pipeline.history.backfill import Backfill, Report
from okx_pipeline.quality.reconciliation import reconcile_days
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import DAY_MS, day_ms, day_of, month_of, parse_timeframe, parse_timeframes

TIMEFRAMES = parse_timeframes("5m,15m,30m,1h,4h,1d")
VALUES = [column.name for column in VALUE_COLUMNS]
ROWS = f"""
SELECT symbol, timeframe, timestamp_ms, {", ".join(VALUES)}, source, received_at, updated_at
FROM trading.candlesticks ORDER BY symbol, timeframe, timestamp_ms
"""
REVISIONS = f"""
SELECT symbol, timeframe, timestamp_ms, {", ".join(VALUES)}, source, revised_by
FROM trading.candlestick_revisions ORDER BY symbol, timeframe, timestamp_ms
"""

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Revision:
    """A confirmed row as OKX had it at two fetches; values in the order of our columns."""

    symbol: str
    timeframe: str
    timestamp_ms: int
    before: tuple[Decimal, ...]
    after: tuple[Decimal, ...]

    @property
    def key(self) -> Key:
        return self.symbol, self.timeframe, self.timestamp_ms

    def correction(self, values: Sequence[Decimal]) -> dict[str, object]:
        """That it has these values from now on, as the stand-in is told."""
        key = {"symbol": self.symbol, "timeframe": self.timeframe, "timestamp_ms": self.timestamp_ms}
        return {**key, **{name: f"{value:f}" for name, value in zip(VALUES, values, strict=True)}}


def values_of(fetched: Mapping[str, Any]) -> tuple[Decimal, ...]:
    """The seven values of a fetched row, whose volume in quote coin nobody recorded: as the stand-in makes it."""
    recorded = [Decimal(fetched[name]) for name in ("open", "high", "low", "close", "vol", "volCcy")]
    return *recorded, recorded[5] * recorded[3]


def moment_ms(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC).timestamp() * 1000)


@pytest.fixture(scope="module")
def recorded_rows(recordings: Path) -> list[dict[str, Any]]:
    lines = (recordings / "confirmed_row_revisions.jsonl").read_text().splitlines()
    return [json.loads(line, parse_float=Decimal) for line in lines]


@pytest.fixture(scope="module")
def revisions(recorded_rows: list[dict[str, Any]]) -> list[Revision]:
    """Those of timeframes that are stored, in order of their keys."""
    kept = []
    for row in recorded_rows:
        try:
            timeframe = parse_timeframe(row["bar"])
        except UsageError:
            assert row["bar"] == "1D", "the day of Hong Kong, which is not stored"
            continue
        kept.append(
            Revision(row["instId"], timeframe.name, row["ts"], values_of(row["before"]), values_of(row["after"]))
        )
    return sorted(kept, key=lambda revision: revision.key)


@pytest.fixture
def okx(recordings: Path, recorded_rows: list[dict[str, Any]], revisions: list[Revision]) -> Iterator[httpx.Client]:
    """The exchange at the moment of the first fetch, with the values of then."""
    market = open_market(str(recordings / "candles"))
    now_ms = max(moment_ms(row["before"]["fetched_at"]) for row in recorded_rows)
    with (
        ReplayServer(Exchange(market, ExchangeClock(now_ms, 0), limits=False)) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        serve(http, [revision.correction(revision.before) for revision in revisions])
        yield http


def serve(okx: httpx.Client, corrections: Sequence[Mapping[str, object]]) -> None:
    for correction in corrections:
        okx.post("/replay/corrections", json=correction).raise_for_status()


def read_days(settings: Settings, database: Database, wanted: Mapping[str, Sequence[date]]) -> Report:
    """Read these days from OKX, whether they are held or not."""

    async def run() -> Report:
        async with Backfill.opened(settings, database) as backfill:
            return (await reconcile_days(backfill, wanted)).landed.report

    return asyncio.run(run())


def all_rows(database: Database) -> dict[Key, tuple[Any, ...]]:
    """Everything PostgreSQL holds: by key the values, the source, and when each landed and last changed."""
    with database.connect() as connection:
        return {row[:3]: row[3:] for row in connection.execute(ROWS).fetchall()}


def all_revisions(database: Database) -> list[tuple[Any, ...]]:
    with database.connect() as connection:
        return connection.execute(REVISIONS).fetchall()


def assert_parquet_holds(settings: Settings, database: Database, rows: Mapping[Key, tuple[Any, ...]]) -> None:
    """The files hold these rows, every column of them, and tell the hash that PostgreSQL has of each day."""
    files = ParquetStore(settings.parquet_root)
    in_files = {}
    for symbol, timeframe, month in {(key[0], key[1], month_of(key[2])) for key in rows}:
        file = SeriesMonth(symbol, timeframe, month)
        for row in files.read(file).drop_columns(["open_time"]).to_pylist():
            in_files[symbol, timeframe, row["timestamp_ms"]] = tuple(row.values())[1:]
        state = files.state(file)
        assert state is not None
        with database.connect() as connection:
            for day, hashed in state.day_hashes.items():
                asked = (symbol, timeframe, day_ms(day), day_ms(day) + DAY_MS)
                found = connection.execute("SELECT trading.content_hash(%s, %s, %s, %s)", asked).fetchone()
                assert found == (hashed,)
    assert in_files == rows


def test_what_okx_revised_is_corrected_kept_as_it_was_and_carried_into_parquet(
    okx: httpx.Client,
    revisions: list[Revision],
    recorded_rows: list[dict[str, Any]],
    database: Database,
    settings_for: Callable[[str], Settings],
) -> None:
    assert [revision.key[:2] for revision in revisions] == [
        ("BTC-USDT-SWAP", "1h"), ("BTC-USDT-SWAP", "30m"), ("BTC-USDT-SWAP", "4h"),
        ("ETH-USDT-SWAP", "1h"), ("ETH-USDT-SWAP", "4h"),
    ]  # fmt: skip
    settings = settings_for(str(okx.base_url))
    wanted: dict[str, list[date]] = {}
    for revision in revisions:
        days = wanted.setdefault(revision.symbol, [])
        days += [] if (day := day_of(revision.timestamp_ms)) in days else [day]
    assert wanted == {"BTC-USDT-SWAP": [date(2026, 8, 1)], "ETH-USDT-SWAP": [date(2026, 7, 28)]}
    with database.connect() as connection:
        subscribe(connection, wanted, TIMEFRAMES, day_ms(date(2026, 7, 28)))

    first = read_days(settings, database, wanted)
    old = all_rows(database)
    assert first.total("inserted") == len(old) == 2 * (288 + 96 + 48 + 24 + 6 + 1)
    assert [old[revision.key][:7] for revision in revisions] == [revision.before for revision in revisions]
    assert_parquet_holds(settings, database, old)

    now_ms = max(moment_ms(row["after"]["fetched_at"]) for row in recorded_rows)
    okx.post("/replay/clock", json={"now_ms": now_ms}).raise_for_status()
    serve(okx, [revision.correction(revision.after) for revision in revisions])
    again = read_days(settings, database, wanted)

    new = all_rows(database)
    assert (again.total("inserted"), again.total("corrected"), again.total("disputed")) == (0, 5, 0)
    assert {key for key in new if new[key] != old[key]} == {revision.key for revision in revisions}
    assert new.keys() == old.keys()
    for revision in revisions:
        *values, source, received_at, updated_at = new[revision.key]
        assert tuple(values) == revision.after
        assert (source, received_at) == old[revision.key][7:9]
        assert updated_at > received_at
    kept = [(*revision.key, *revision.before, "rest", "rest") for revision in revisions]
    assert all_revisions(database) == kept
    assert_parquet_holds(settings, database, new)
    rewritten = {projected.month for projected in again.projected if projected.written}
    assert rewritten == {SeriesMonth(*revision.key[:2], month_of(revision.timestamp_ms)) for revision in revisions}

    assert read_days(settings, database, wanted).total("corrected") == 0
    assert all_rows(database) == new
    assert all_revisions(database) == kept


def test_the_recording_has_the_values_that_okx_ended_with(
    okx: httpx.Client, recordings: Path, revisions: list[Revision]
) -> None:
    market = open_market(str(recordings / "candles"))
    exchange = Exchange(market, ExchangeClock(day_ms(date(2026, 8, 22)), 0))
    for revision in revisions:
        symbol, timeframe, open_ms = revision.key
        (row,) = exchange.truth(symbol, parse_timeframe(timeframe), open_ms, open_ms + 1)
        assert tuple(Decimal(text) for text in row[1:8]) == revision.after
        asked: dict[str, str | int] = {"symbol": symbol, "timeframe": timeframe}
        (row,) = okx.get("/replay/truth", params={**asked, "start_ms": open_ms, "end_ms": open_ms + 1}).json()
        assert tuple(Decimal(text) for text in row[1:8]) == revision.before
