"""Timeframes held against each other: which, what becomes of a mismatch, and what real candles show."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from itertools import combinations
from pathlib import Path
from typing import cast

import psycopg
import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.exchange.budget import Permit
from okx_pipeline.exchange.clock import ExchangeClock
from okx_pipeline.exchange.protocol import Endpoint
from okx_pipeline.exchange.rest import RestClient
from okx_pipeline.history.backfill import Backfill
from okx_pipeline.history.plan import days_of_range
from okx_pipeline.quality.consistency import ConsistencyReport, check, pairs
from okx_pipeline.replay import clock as replay_clock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.consistency import Mismatch, MismatchClass
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, TIMEFRAMES, day_ms, parse_timeframe, parse_timeframes, utc

BTC = "BTC-USDT-SWAP"
JANUARY = day_ms(date(2026, 1, 1))
M15, H1, H4 = map(parse_timeframe, ("15m", "1h", "4h"))
OPEN, EXCHANGE = MismatchClass.OPEN, MismatchClass.EXCHANGE


def named(names: str) -> list[tuple[str, str]]:
    return [(long.name, short.name) for long, short in pairs(parse_timeframes(names))]


def test_each_timeframe_is_held_against_the_longest_shorter_one() -> None:
    assert named("5m,15m,1h,4h,1d") == [("15m", "5m"), ("1h", "15m"), ("4h", "1h"), ("1d", "4h")]


def test_a_timeframe_is_not_held_against_one_that_does_not_divide_it() -> None:
    assert named("3m,5m") == []
    assert named("1m,3m,5m") == [("3m", "1m"), ("5m", "1m")]
    assert named("4h,6h") == []
    assert named("2h,4h,6h") == [("4h", "2h"), ("6h", "2h")]


def test_weeks_and_months_are_held_against_what_divides_the_day_and_a_month_never_against_weeks() -> None:
    assert named("1d,1w,1mo") == [("1w", "1d"), ("1mo", "1d")]
    assert named("4h,1w,1mo") == [("1w", "4h"), ("1mo", "4h")]
    assert named("1w,1mo") == []


def test_a_pair_is_one_whose_shorter_candles_fill_every_longer_one_exactly() -> None:
    for given in combinations(TIMEFRAMES, 3):
        found = dict(pairs(given))
        for long in given:
            filling = [
                short
                for short in given
                if short < long
                and all(
                    short.is_boundary(open_ms) and short.is_boundary(long.close_of(open_ms))
                    for open_ms in long.opens(JANUARY, JANUARY + 62 * DAY_MS)
                )
            ]
            assert found.get(long) == max(filling, default=None)


# What becomes of a mismatch


def candle(timeframe: str, open_ms: int, volume: str = "1") -> Candle:
    return Candle(BTC, timeframe, open_ms, "10", "11", "9", "10", volume, "1", "1")


class Market:
    """Four quarters and the hour they make, of which anything may be corrected; a day on which the hour is checked."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        quarters = [candle("15m", JANUARY + number * M15.length_ms) for number in range(4)]
        hour = candle("1h", JANUARY, "4")._replace(volume_currency="4")
        land(connection, [*quarters, hour], source=Source.WEBSOCKET)

    def correct(self, timeframe: str, volume: str) -> None:
        currency = "4" if timeframe == "1h" else "1"
        corrected = candle(timeframe, JANUARY, volume)._replace(volume_currency=currency)
        land(self.connection, [corrected], source=Source.REST, requested_at=datetime(9999, 1, 1, tzinfo=UTC))

    def check(self, *, rest: bool = False) -> list[tuple[str, str, MismatchClass]]:
        """Value, sum and class of each mismatch found."""
        report = check(self.connection, BTC, [M15, H1], JANUARY, JANUARY + DAY_MS, confirmed_by_rest=rest)
        assert report.windows == 1
        return [(each.value, each.summed, each.class_) for each in report.mismatches]

    def kept(self) -> tuple[str, bool, bool]:
        """Of the one mismatch that was ever found: class, whether REST ever confirmed it, whether it is resolved."""
        (row,) = self.connection.execute(
            "SELECT class, confirmed_at IS NOT NULL, resolved_at IS NOT NULL FROM trading.timeframe_mismatches"
        ).fetchall()
        return row

    def found_at(self) -> datetime:
        return cast(datetime, one(self.connection, "SELECT found_at FROM trading.timeframe_mismatches"))


@pytest.fixture
def market(connection: Connection) -> Market:
    return Market(connection)


def test_candles_that_add_up_leave_nothing_behind(market: Market) -> None:
    assert market.check() == []
    assert market.check(rest=True) == []
    assert market.connection.execute("SELECT FROM trading.timeframe_mismatches").fetchall() == []


def test_a_mismatch_is_open_until_rest_confirms_it_and_then_the_exchanges_own(market: Market) -> None:
    market.correct("1h", "5")
    assert market.check() == market.check() == [("5", "4", OPEN)]
    assert market.kept() == ("open", False, False)
    first = market.found_at()
    assert market.check(rest=True) == [("5", "4", EXCHANGE)]
    assert market.kept() == ("exchange", True, False)
    assert market.found_at() == first
    assert market.check() == market.check(rest=True) == [("5", "4", EXCHANGE)]


@pytest.mark.parametrize(
    ("timeframe", "volume", "values"), [("1h", "6", ("6", "4")), ("15m", "1.5", ("5", "4.5"))], ids=["long", "short"]
)
def test_a_confirmed_mismatch_whose_values_change_is_open_again_unless_rest_confirms_that_too(
    market: Market, timeframe: str, volume: str, values: tuple[str, str]
) -> None:
    market.correct("1h", "5")
    market.check(rest=True)
    market.correct(timeframe, volume)
    assert market.check() == [(*values, OPEN)]
    assert market.kept() == ("open", False, False)
    assert market.check(rest=True) == [(*values, EXCHANGE)]


@pytest.mark.parametrize("rest", [False, True])
def test_a_mismatch_is_resolved_once_the_values_agree_and_found_anew_if_they_differ_again(
    market: Market, rest: bool
) -> None:
    market.correct("1h", "5")
    market.check(rest=rest)
    first = market.found_at()
    market.correct("1h", "4")
    assert market.check() == []
    assert market.kept() == ("resolved", rest, True)
    assert market.found_at() == first
    market.correct("1h", "5")
    assert market.check() == [("5", "4", OPEN)]
    assert market.kept() == ("open", False, False)
    assert market.found_at() > first


def test_a_mismatch_is_not_resolved_by_a_check_of_another_range_or_of_a_window_that_is_not_whole(
    market: Market,
) -> None:
    market.correct("1h", "5")
    market.check()
    assert check(market.connection, BTC, [M15, H1], JANUARY + HOUR_MS, JANUARY + DAY_MS, confirmed_by_rest=True) == (
        ConsistencyReport(0, [])
    )
    market.connection.execute(
        "DELETE FROM trading.candlesticks WHERE timeframe = '15m' AND timestamp_ms > %s", [JANUARY]
    )
    assert check(market.connection, BTC, [M15, H1], JANUARY, JANUARY + DAY_MS, confirmed_by_rest=False).windows == 0
    assert market.kept() == ("open", False, False)


def test_a_check_covers_all_pairs_and_is_written_down_whole_or_not_at_all(connection: Connection) -> None:
    quarters = [candle("15m", JANUARY + number * M15.length_ms) for number in range(16)]
    hours = [candle("1h", JANUARY + number * HOUR_MS, "4")._replace(volume_currency="4") for number in range(4)]
    hours[2] = hours[2]._replace(volume="5")
    land(
        connection, [*quarters, *hours, candle("4h", JANUARY, "16")._replace(volume_currency="16")], source=Source.REST
    )
    connection.execute("ALTER TABLE trading.timeframe_mismatches ADD CONSTRAINT refused CHECK (timeframe <> '4h')")
    with pytest.raises(psycopg.errors.CheckViolation):
        check(connection, BTC, [M15, H1, H4], JANUARY, JANUARY + DAY_MS, confirmed_by_rest=False)
    assert connection.execute("SELECT FROM trading.timeframe_mismatches").fetchall() == []
    connection.execute("ALTER TABLE trading.timeframe_mismatches DROP CONSTRAINT refused")
    report = check(connection, BTC, [H4, M15, H1], JANUARY, JANUARY + DAY_MS, confirmed_by_rest=False)
    assert report.windows == 5
    assert report.mismatches == [
        Mismatch(H1, JANUARY + 2 * HOUR_MS, M15, "volume", "5", "4", OPEN),
        Mismatch(H4, JANUARY, H1, "volume", "16", "17", OPEN),
    ]


# Real candles


class Unlimited:
    """No budget: the stand-in counts no requests, and 240 of them would take 24 seconds on OKX's."""

    @asynccontextmanager
    async def request(self, endpoint: Endpoint) -> AsyncIterator[Permit]:
        yield Permit(endpoint, datetime.now(UTC))


@pytest.fixture
def okx(recordings: Path) -> Iterator[str]:
    """The replay exchange on the recordings."""
    now = replay_clock.ExchangeClock(day_ms(date(2026, 8, 22)), 0.0)
    with ReplayServer(Exchange(open_market(str(recordings / "candles")), now, limits=False)) as server:
        yield server.url


@pytest.fixture
def read_over_rest(okx: str, database: Database, tmp_path: Path) -> Callable[..., None]:
    """Reads the candles of `timeframes` that open on [start, end) over REST and lands them, whether held or not."""
    settings = read_settings(home=tmp_path / "home", database_url=database.url, rest_url=okx, ws_url=okx)

    async def read(timeframes: str, start: date, end: date) -> None:
        with CandleStore.opened(database, ParquetStore(settings.parquet_root)) as store:
            async with RestClient(okx, budget=Unlimited()) as client:
                filling = Backfill(settings, client, ExchangeClock(client), store)
                spans = [days_of_range(BTC, timeframe, start, end) for timeframe in parse_timeframes(timeframes)]
                await filling.run(await filling.plan(spans, only_missing=False))

    return lambda *what: asyncio.run(read(*what))


def test_where_okx_itself_does_not_add_up_is_found_exactly_and_after_rest_taken_for_its_own(
    connection: Connection, read_over_rest: Callable[..., None]
) -> None:
    months = (date(2022, 5, 1), date(2023, 1, 1))
    read_over_rest("5m,4h", *months)
    timeframes, span = parse_timeframes("5m,4h"), [day_ms(day) for day in months]
    first = check(connection, BTC, timeframes, *span, confirmed_by_rest=False)
    assert first.windows == 1_468
    # No volume in coin was recorded of 4h; the stand-in makes it as volume x 0.01, so it differs where volume does.
    assert [
        (f"{utc(each.timestamp_ms):%m-%d %H:%M}", each.column, each.value, each.summed) for each in first.mismatches
    ] == [
        ("06-08 00:00", "volume", "3594499", "3590896"),
        ("06-08 00:00", "volume_currency", "35944.99", "35908.96"),
        ("07-06 00:00", "volume", "3061068", "3060936"),
        ("07-06 00:00", "volume_currency", "30610.68", "30609.36"),
        ("07-20 00:00", "volume", "3584609", "3584093"),
        ("07-20 00:00", "volume_currency", "35846.09", "35840.93"),
        ("12-18 00:00", "close_price", "16729.9", "16739.4"),
        ("12-18 00:00", "volume", "310310", "355998"),
        ("12-18 00:00", "volume_currency", "3103.1", "3559.98"),
        ("12-18 08:00", "close_price", "16733.8", "16729.9"),
        ("12-18 16:00", "open_price", "16738.3", "16729.9"),
    ]
    assert {each.class_ for each in first.mismatches} == {OPEN}
    # Every day with a mismatch is read again: OKX still serves both values.
    for open_ms in sorted({each.timestamp_ms for each in first.mismatches}):
        start_ms = open_ms - open_ms % DAY_MS
        read_over_rest("5m,4h", utc(start_ms).date(), utc(start_ms + DAY_MS).date())
        check(connection, BTC, timeframes, start_ms, start_ms + DAY_MS, confirmed_by_rest=True)
    again = check(connection, BTC, timeframes, *span, confirmed_by_rest=False)
    assert {each.class_ for each in again.mismatches} == {EXCHANGE}
    assert [(each.timestamp_ms, each.column) for each in again.mismatches] == [
        (each.timestamp_ms, each.column) for each in first.mismatches
    ]
