"""The backfill against an exchange over real sockets: what it asks, what it leaves, and how it fails."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import date
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from okx_pipeline.candles import Source
from okx_pipeline.errors import PipelineError, UsageError
from okx_pipeline.exchange.errors import UnknownSymbolError
from okx_pipeline.exchange.protocol import CANDLES
from okx_pipeline.history import backfill as backfill_module
from okx_pipeline.history.backfill import Backfill, Phase, Report
from okx_pipeline.history.daily import DaysLanded, land_days
from okx_pipeline.history.plan import Span, days_of_range
from okx_pipeline.quality.daily import mend_days
from okx_pipeline.quality.work import Kind, work_left
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.faults import Fault
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database, StorageError, one
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.partitions import DetachedMonthError
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import day_ms, parse_timeframe, parse_timeframes

T = TypeVar("T")
NOW = day_ms(date(2026, 8, 22)) + 3_600_000
BTC = "BTC-USDT-SWAP"
FIRST, LAST = date(2026, 8, 10), date(2026, 8, 14)


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(open_market("synthetic", seed=11, symbols=8), ExchangeClock(NOW, 0.0), limits=False)


@pytest.fixture
def url(exchange: Exchange) -> Iterator[str]:
    with ReplayServer(exchange) as server:
        yield server.url


@pytest.fixture
def settings(url: str, settings_for: Callable[[str], Settings]) -> Settings:
    return settings_for(url)


def with_backfill(settings: Settings, database: Database, work: Callable[[Backfill], Awaitable[T]]) -> T:
    async def run() -> T:
        async with Backfill.opened(settings, database) as filling:
            return await work(filling)

    return asyncio.run(run())


def spans(*names: str, symbol: str = BTC) -> list[Span]:
    return [days_of_range(symbol, parse_timeframe(name), FIRST, LAST) for name in names or ("5m", "1h")]


def fill(settings: Settings, database: Database, *names: str, only_missing: bool = True) -> Report:
    async def work(filling: Backfill) -> Report:
        return await filling.run(await filling.plan(spans(*names), only_missing=only_missing))

    return with_backfill(settings, database, work)


def count(database: Database) -> int:
    with database.connect() as connection:
        return int(one(connection, "SELECT count(*) FROM trading.candlesticks"))


def served(exchange: Exchange) -> list[tuple[str, str, str | None]]:
    return [(request.symbol, request.bar, request.after) for request in exchange.requests]


def test_it_lands_every_candle_and_asks_nothing_when_run_again(
    exchange: Exchange, settings: Settings, database: Database
) -> None:
    report = fill(settings, database)
    assert report.total("inserted") == count(database) == 4 * (288 + 24)
    asked = len(exchange.requests)
    assert asked == report.requests == 4 + 1
    again = fill(settings, database)
    assert (again.requests, len(exchange.requests)) == (0, asked)


def test_a_run_that_was_cut_off_asks_only_for_what_is_missing(
    exchange: Exchange, settings: Settings, database: Database
) -> None:
    async def cut_off(filling: Backfill) -> None:
        plan = await filling.plan(spans(), only_missing=True)

        def stop(phase: Phase, *, done: int, total: int, rows: int, requests: int) -> None:
            if phase == "fetching" and done == 2:
                raise PipelineError("cut off")

        await filling.run(plan, progress=stop)

    with pytest.raises(PipelineError, match="cut off"):
        with_backfill(settings, database, cut_off)
    landed = count(database)
    assert 0 < landed < 4 * (288 + 24)
    with database.connect() as connection:
        missing_before = 4 * (288 + 24) - landed
        pending = one(connection, "SELECT count(*) FROM trading.landing_marks WHERE projected < revision")
    report = fill(settings, database)
    assert pending == 0, "what landed before the cut is projected"
    assert report.rows == missing_before
    assert count(database) == 4 * (288 + 24)


def test_files_that_others_landings_waited_for_are_not_counted_as_its_own(
    exchange: Exchange, settings: Settings, database: Database
) -> None:
    first = fill(settings, database)
    assert [len(files) for files in (first.written, first.caught_up)] == [2, 0]

    async def land_without_projecting(filling: Backfill) -> None:
        # In a month of the backfill's own, and in one that it was not asked for.
        for symbol in (BTC, "ETH-USDT-SWAP"):
            page, _ = await filling.client.candles_page(CANDLES, symbol, parse_timeframe("1h"), NOW - 3_600_000, 1)
            assert filling.store.land(page.candles, source=Source.WEBSOCKET).changes

    with_backfill(settings, database, land_without_projecting)
    again = fill(settings, database)
    assert (again.requests, len(again.projected)) == (0, 3)
    assert [len(files) for files in (again.written, again.caught_up)] == [0, 2]


def test_asked_to_it_reads_what_is_there_anew_and_corrects_it(
    exchange: Exchange, settings: Settings, database: Database
) -> None:
    fill(settings, database)
    with database.connect() as connection:
        changed = connection.execute(
            "UPDATE trading.candlesticks SET close_price = low_price, updated_at = clock_timestamp() "
            "WHERE timeframe = '5m' AND timestamp_ms % 3600000 = 0 AND close_price <> low_price"
        ).rowcount
    report = fill(settings, database, only_missing=False)
    assert report.total("corrected") == changed > 50
    assert report.total("inserted") == 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", requests=2),
        Fault(kind="code", requests=2),
        Fault(kind="too_many", requests=1),
        Fault(kind="truncated", requests=2),
        Fault(kind="html", requests=2),
        Fault(kind="reset", requests=2),
        Fault(kind="page_limit", requests=100, rows=100),
        Fault(kind="short", requests=3, rows=7),
        Fault(kind="empty", requests=1, skip=1),
        Fault(kind="yesterday", requests=1),
    ],
    ids=lambda fault: fault.kind,
)
def test_it_lands_every_candle_whatever_goes_wrong_on_the_way(
    exchange: Exchange, settings: Settings, database: Database, fault: Fault
) -> None:
    exchange.faults.add([fault])
    fill(settings, database)
    assert count(database) == 4 * (288 + 24)


def test_an_unknown_symbol_is_one_clear_line_and_lands_nothing(settings: Settings, database: Database) -> None:
    async def work(filling: Backfill) -> None:
        await filling.plan(spans("1h", symbol="NOPE-USDT-SWAP"), only_missing=True)

    with pytest.raises(UnknownSymbolError, match="OKX lists no instrument NOPE-USDT-SWAP; check how it is spelled"):
        with_backfill(settings, database, work)
    assert count(database) == 0


def test_an_exchange_out_of_reach_is_one_clear_line(
    settings_for: Callable[[str], Settings], database: Database
) -> None:
    nowhere = settings_for("http://127.0.0.1:9")
    with pytest.raises(PipelineError, match=r"cannot reach OKX at 127\.0\.0\.1:9: connection refused"):
        fill(nowhere, database)


def test_a_plan_that_the_disk_has_no_room_for_is_refused_before_anything_is_asked(
    exchange: Exchange, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_module, "SPARE_DISK_BYTES", 10**18)
    embedded = settings.model_copy(update={"database_url": None})

    async def work(filling: Backfill) -> None:
        plan = await filling.plan(spans(), only_missing=True)
        filling.settings = embedded
        filling.check_disk(plan)

    with pytest.raises(PipelineError, match="free some space or ask for fewer days"):
        with_backfill(settings, database, work)
    assert served(exchange) == []


def test_prices_of_another_market_never_mix_with_those_of_the_store(settings: Settings, database: Database) -> None:
    fill(settings, database)
    real = settings.model_copy(update={"rest_url": "https://openapi.okx.com"})
    with pytest.raises(UsageError, match="give that a home of its own"):
        fill(real, database)


def land(settings: Settings, database: Database, *days: date, symbol: str = BTC) -> DaysLanded:
    return with_backfill(settings, database, lambda filling: land_days(filling, {symbol: list(days)}))


def test_a_day_lands_in_every_subscribed_timeframe_with_its_summary(settings: Settings, database: Database) -> None:
    with database.connect() as connection:
        seed_subscriptions(connection, [BTC], parse_timeframes("15m,4h,1d"), 0)
    landed = land(settings, database, FIRST)
    day = landed.summaries[FIRST, BTC]
    assert (day.rows, day.inserted, day.missing, day.corrected) == (96 + 6 + 1, 96 + 6 + 1, 0, 0)
    assert (day.first_ms, day.last_ms) == (day_ms(FIRST), day_ms(FIRST) + 95 * 900_000)
    assert len(day.sparkline) == 48
    assert day.note is None


def test_the_week_and_the_month_land_with_the_day_on_which_they_close(settings: Settings, database: Database) -> None:
    with database.connect() as connection:
        seed_subscriptions(connection, [BTC], parse_timeframes("1w,1mo"), 0)
    land(settings, database, date(2026, 8, 15))
    assert count(database) == 0
    land(settings, database, date(2026, 8, 16), date(2026, 7, 31))
    with database.connect() as connection:
        held = connection.execute("SELECT timeframe, open_time::date FROM trading.candles ORDER BY 1").fetchall()
    assert held == [("1mo", date(2026, 7, 1)), ("1w", date(2026, 8, 10))]


def test_a_day_before_the_listing_has_no_rows_and_says_why(
    exchange: Exchange, settings: Settings, database: Database
) -> None:
    young = max(exchange.market.instruments(NOW), key=lambda instrument: int(instrument.listed))
    landed = land(settings, database, date(2020, 1, 1), symbol=young.symbol)
    day = landed.summaries[date(2020, 1, 1), young.symbol]
    assert day.rows == day.missing == 0
    assert day.note is not None
    assert day.note.startswith(f"{young.symbol} was listed on ")
    assert served(exchange) == []


def test_a_killed_process_leaves_what_it_landed_and_the_next_run_goes_on(
    url: str, exchange: Exchange, settings: Settings, database: Database
) -> None:
    httpx.post(f"{url}/replay/faults", json={"kind": "slow", "requests": 1000, "seconds": 0.2}).raise_for_status()
    environment = {**settings.environment(), "OKX_TIMEFRAMES": "1m"}
    command = [sys.executable, "-m", "okx_pipeline", "backfill", "--start", "2026-08-01", "--end", "2026-08-21"]
    process = subprocess.Popen([*command, "--symbols", BTC], env=environment, stderr=subprocess.DEVNULL)
    while count(database) == 0 and process.poll() is None:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    landed = count(database)
    assert 0 < landed < 20 * 1440
    httpx.delete(f"{url}/replay/faults").raise_for_status()
    exchange.requests.clear()
    ended = subprocess.run([*command, "--symbols", BTC, "--json"], env=environment, check=True, capture_output=True)
    figures = json.loads(ended.stdout)
    assert figures["received"] == figures["new"] == 20 * 1440 - landed
    assert count(database) == 20 * 1440


def test_a_long_run_counts_the_ledger_by_the_time_it_is_and_not_by_that_of_its_plan(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.connect() as connection:
        seed_subscriptions(connection, [BTC], parse_timeframes("1h"), day_ms(date(2026, 8, 22)))

    async def work(filling: Backfill) -> None:
        plan = await filling.plan(spans("1h"), only_missing=True)
        monkeypatch.setattr(filling.clock, "carried_ms", lambda: NOW + 5 * 3_600_000)
        await filling.run(plan)

    with_backfill(settings, database, work)
    with database.connect() as connection:
        assert one(connection, "SELECT expected FROM trading.coverage WHERE day = '2026-08-22'") == 5


def test_a_file_that_cannot_be_written_keeps_nothing_that_was_read_out_of_the_ledger(
    settings: Settings, database: Database
) -> None:
    place = Path(ParquetStore(settings.parquet_root).place(SeriesMonth(BTC, "1h", date(2026, 8, 1))))
    place.mkdir(parents=True)
    with pytest.raises(StorageError, match=str(place)):
        fill(settings, database, "1h")
    with database.connect() as connection:
        assert one(connection, "SELECT count(*) FROM trading.coverage WHERE verified_at IS NOT NULL") == 4


def test_what_a_run_has_read_is_in_the_ledger_while_it_goes_on(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("okx_pipeline.history.backfill.NOTE_EVERY_S", 0.0)
    read_by_then = []

    def look(phase: Phase, *, done: int, **_: int) -> None:
        if phase != "fetching" or not done:
            return
        with database.connect() as connection:
            read_by_then.append(one(connection, "SELECT count(*) FROM trading.coverage WHERE read_at IS NOT NULL"))

    async def work(filling: Backfill) -> None:
        whole = days_of_range(BTC, parse_timeframe("5m"), date(2026, 8, 1), LAST)
        await filling.run(await filling.plan([whole], only_missing=False), progress=look)

    with_backfill(settings, database, work)
    assert read_by_then[0] == 0
    assert 0 < read_by_then[-1] < 13
    with database.connect() as connection:
        assert one(connection, "SELECT count(verified_at) FROM trading.coverage") == 13


def test_a_detached_month_fails_a_run_in_the_end_and_keeps_no_other_month_from_landing(
    exchange: Exchange, settings: Settings, database: Database
) -> None:
    first, last = date(2026, 6, 29), date(2026, 8, 2)

    async def work(filling: Backfill) -> Report:
        span = days_of_range(BTC, parse_timeframe("1h"), first, last)
        return await filling.run(await filling.plan([span], only_missing=True))

    with database.connect() as connection:
        seed_subscriptions(connection, [BTC], parse_timeframes("1h"), day_ms(first))
        connection.execute("SELECT trading.ensure_month('2026-07-01')")
        connection.execute("ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_2026_07")
        with pytest.raises(DetachedMonthError, match=r"^the partition of 2026-07 is detached, ") as told:
            with_backfill(settings, database, work)
        assert count(database) == 3 * 24
        assert len(exchange.requests) == 2, "a page of that month alone is not asked for"
        files = ParquetStore(settings.parquet_root)
        assert [str(month.month) for month in files.months(BTC, "1h")] == ["2026-06-01", "2026-08-01"]
        read = "SELECT day::text FROM trading.coverage WHERE read_at IS NOT NULL ORDER BY day"
        assert connection.execute(read).fetchall() == [("2026-06-29",), ("2026-06-30",), ("2026-08-01",)]
        # Nor is a run requested for what cannot land.
        left = work_left(connection, [BTC], NOW, 100, today=date(2026, 8, 1))
        assert [each.kind for each in left] == [Kind.VERDICT]
        connection.execute(told.value.months[0].remedy)  # type: ignore[arg-type]
        assert with_backfill(settings, database, work).total("inserted") == 31 * 24
        assert one(connection, "SELECT count(*) FROM trading.coverage WHERE verified_at IS NOT NULL") == 34


def test_a_gap_in_a_detached_month_keeps_no_other_from_being_repaired(
    exchange: Exchange, settings: Settings, database: Database
) -> None:
    days = [date(2026, 7, 31), date(2026, 8, 10)]
    with database.connect() as connection:
        seed_subscriptions(connection, [BTC], parse_timeframes("1h"), day_ms(days[0]))
        connection.execute("SELECT trading.ensure_month('2026-07-01')")
        connection.execute("ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_2026_07")
        with pytest.raises(DetachedMonthError, match=r"^the partition of 2026-07 is detached, "):
            with_backfill(settings, database, lambda filling: mend_days(filling, {BTC: days}))
        present = "SELECT day, present FROM trading.coverage WHERE day = ANY(%s) ORDER BY day"
        assert connection.execute(present, (days,)).fetchall() == [(days[0], 0), (days[1], 24)]
