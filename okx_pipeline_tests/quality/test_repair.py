"""Repair: what is missing is fetched, what OKX lacks is proven absent, and nothing else counts as proof."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from okx_pipeline.candles import Candle, Source
from okx_pipeline.exchange.budget import Permit
from okx_pipeline.exchange.clock import ExchangeClock as OkxClock
from okx_pipeline.exchange.errors import ExchangeError
from okx_pipeline.exchange.protocol import Endpoint
from okx_pipeline.exchange.rest import RestClient
from okx_pipeline.history.backfill import Backfill
from okx_pipeline.history.plan import Span
from okx_pipeline.quality.gaps import SeriesRange, Wanted, detect
from okx_pipeline.quality.gaps_report import GapsReport, look_for_gaps
from okx_pipeline.quality.repair import AGAIN_ABSENT_MS, AGAIN_YOUNG_MS, Repair, repair
from okx_pipeline.ranges import Range
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.faults import Fault
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import Settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.storage.wanted import want
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS, WEEK_MS, Timeframe, day_ms, parse_timeframe, utc

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
MINUTE = parse_timeframe("1m")
FIVE = parse_timeframe("5m")
HOUR = parse_timeframe("1h")
FIRST_MS = day_ms(date(2026, 7, 27)) + 11 * HOUR_MS + 20 * MINUTE_MS
LAST_MS = day_ms(date(2026, 8, 22)) + 13 * HOUR_MS + 43 * MINUTE_MS
"""Where the recorded minutes begin and end."""

LATER_MS = LAST_MS + 3 * DAY_MS

Work = Callable[[Backfill], Any]


class Unlimited:
    """No budget: the stand-in counts no requests, and hundreds of them would take minutes on OKX's."""

    @asynccontextmanager
    async def request(self, endpoint: Endpoint) -> AsyncIterator[Permit]:
        yield Permit(endpoint, datetime.now(UTC))


class Stand:
    """A store and the replay exchange on the recordings, whose time stands where it is set."""

    def __init__(self, url: str, exchange: Exchange, settings: Settings, database: Database) -> None:
        self.url, self.exchange, self.settings, self.database = url, exchange, settings, database

    def do(self, work: Work) -> Any:
        async def run() -> Any:
            with CandleStore.opened(self.database, ParquetStore(self.settings.parquet_root)) as store:
                async with RestClient(self.settings.rest_url, budget=Unlimited(), tries=2) as client:
                    return await work(Backfill(self.settings, client, OkxClock(client), store))

        return asyncio.run(run())

    def land(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> None:
        async def work(backfill: Backfill) -> None:
            span = Span(symbol, timeframe, start_ms, end_ms)
            await backfill.run(await backfill.plan([span], only_missing=True))

        self.do(work)

    def want(self, *series: SeriesRange) -> None:
        with self.database.connect() as connection:
            for each in series:
                want(connection, {(each.symbol, each.timeframe.name): [each.range]}, "person")

    def detect(self, series: SeriesRange) -> Any:
        self.want(series)

        async def work(backfill: Backfill) -> Any:
            return detect(backfill.store, series, await backfill.clock.now_ms())

        return self.do(work)

    def repair(self, *series: SeriesRange) -> Repair:
        self.want(*series)

        async def work(backfill: Backfill) -> Repair:
            return await repair(backfill, series)

        found = self.do(work)
        assert isinstance(found, Repair)
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            return connection.execute(query).fetchall()

    def statuses(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT status, reason, candles FROM trading.candle_gaps ORDER BY symbol, first_ms, id")


@pytest.fixture(scope="module")
def exchange(recordings: Path) -> Exchange:
    return Exchange(open_market(str(recordings / "candles")), ExchangeClock(LATER_MS, 0.0), limits=False)


@pytest.fixture(scope="module")
def url(exchange: Exchange) -> Iterator[str]:
    with ReplayServer(exchange) as server:
        yield server.url


@pytest.fixture
def stand(exchange: Exchange, url: str, settings_for: Callable[[str], Settings], database: Database) -> Iterator[Stand]:
    exchange.clock.set(LATER_MS, 0.0)
    yield Stand(url, exchange, settings_for(url), database)
    exchange.faults.clear()


def without(stand: Stand, opens: Sequence[int]) -> None:
    """Take candles out of the store, as if they had never landed."""
    with stand.database.connect() as connection:
        connection.execute("DELETE FROM trading.candlesticks WHERE timestamp_ms = ANY(%s)", (list(opens),))


def test_the_recorders_holes_are_found_exactly_and_proven_absent_where_okx_serves_none(stand: Stand) -> None:
    minutes = 11_175
    series = SeriesRange(BTC, MINUTE, Range(FIRST_MS, LAST_MS))
    stand.land(BTC, MINUTE, FIRST_MS, LAST_MS)
    found = stand.detect(series)
    assert (len(found.missing), found.missing_candles) == (62, minutes)
    assert found.checked == (LAST_MS - FIRST_MS) // MINUTE_MS

    done = stand.repair(series)
    assert dict(done.judged) == {"not_served": minutes}
    assert done.waiting == 0
    [after] = done.after
    assert (after.missing_candles, after.absent_candles, after.present) == (0, minutes, found.present)
    gaps = stand.rows("SELECT first_ms, last_ms, status, reason, evidence FROM trading.candle_gaps ORDER BY 1")
    assert len(gaps) == 62
    for first_ms, last_ms, status, reason, evidence in gaps:
        assert (status, reason) == ("absent", "not_served")
        assert len(evidence) == 2
        for answer in evidence:
            assert answer["older_ms"] == first_ms - MINUTE_MS
            assert answer["newer_ms"] == last_ms + MINUTE_MS
    # Two asks a hole, and the windows they lie in.
    assert done.requests == 124
    assert done.fetched.requests < 90


def test_the_same_holes_are_closed_where_okx_serves_them(
    recordings: Path, settings_for: Callable[[str], Settings], database: Database, stand: Stand
) -> None:
    stand.land(ETH, MINUTE, FIRST_MS, LAST_MS)
    before = stand.rows("SELECT * FROM trading.candlesticks ORDER BY timestamp_ms")
    filled = Exchange(open_market(str(recordings / "candles"), fill=11), ExchangeClock(LATER_MS, 0.0), limits=False)
    with ReplayServer(filled) as server:
        stand.settings = settings_for(server.url)
        series = SeriesRange(ETH, MINUTE, Range(FIRST_MS, LAST_MS))
        done = stand.repair(series)
    assert (done.before[0].missing_candles, done.after[0].missing_candles) == (11_177, 0)
    assert done.fetched.total("inserted") == 11_177
    assert done.requests == 0
    assert {status for status, *_ in stand.statuses()} == {"repaired"}
    kept = {row[2]: row for row in stand.rows("SELECT * FROM trading.candlesticks")}
    assert all(kept[row[2]] == row for row in before)


CANDLES = "candles"
"""The hour's candles of the last 60 days come from there."""

HOLE = [day_ms(date(2026, 8, 20)) + hour * HOUR_MS for hour in (3, 4, 5)]
DAY = SeriesRange(BTC, HOUR, Range(day_ms(date(2026, 8, 20)), day_ms(date(2026, 8, 21))))


def test_an_exchange_that_cannot_be_asked_proves_nothing(stand: Stand) -> None:
    stand.land(BTC, HOUR, *DAY.range)
    without(stand, HOLE)
    stand.exchange.faults.add([Fault(kind="status", status=503, requests=1_000, endpoint=CANDLES)])
    with pytest.raises(ExchangeError):
        stand.repair(DAY)
    assert stand.statuses() == [("open", None, 3)]
    assert stand.rows("SELECT DISTINCT evidence FROM trading.candle_gaps") == [([],)]


def test_empty_pages_prove_nothing(stand: Stand) -> None:
    stand.land(BTC, HOUR, *DAY.range)
    without(stand, HOLE)
    stand.exchange.faults.add([Fault(kind="empty", requests=1_000)])
    done = stand.repair(DAY)
    assert not done.judged
    assert stand.statuses() == [("open", None, 3)]
    assert stand.rows("SELECT DISTINCT evidence FROM trading.candle_gaps") == [([],)]
    stand.exchange.faults.clear()
    assert stand.repair(DAY).after[0].missing_candles == 0


def young_hole(stand: Stand) -> SeriesRange:
    """A minute that nobody recorded, an hour old."""
    start_ms = LAST_MS - 3 * DAY_MS
    stand.land(BTC, MINUTE, start_ms, LAST_MS)
    series = SeriesRange(BTC, MINUTE, Range(start_ms, LAST_MS))
    newest = stand.detect(series).missing[-1]
    stand.exchange.clock.set(newest.end_ms + HOUR_MS, 0.0)
    return SeriesRange(BTC, MINUTE, newest)


def test_a_young_gap_is_proven_absent_only_by_a_second_answer_a_quarter_of_an_hour_later(stand: Stand) -> None:
    hole = young_hole(stand)
    minutes = MINUTE.count(*hole.range)
    first = stand.repair(hole)
    assert (first.waiting, dict(first.judged)) == (minutes, {})
    # Asked again at once, OKX is not asked.
    again = stand.repair(hole)
    assert (again.requests, again.fetched.requests) == (0, 0)
    stand.exchange.clock.set(hole.range.end_ms + HOUR_MS + AGAIN_YOUNG_MS - 1, 0.0)
    assert not stand.repair(hole).judged
    stand.exchange.clock.set(hole.range.end_ms + HOUR_MS + AGAIN_YOUNG_MS + 60_000, 0.0)
    assert dict(stand.repair(hole).judged) == {"not_served": minutes}


def test_a_young_verdict_is_asked_again_daily_for_a_week_and_falls_when_okx_serves_the_candle(
    stand: Stand, recordings: Path, settings_for: Callable[[str], Settings]
) -> None:
    hole = young_hole(stand)
    start_ms = hole.range.end_ms + HOUR_MS
    stand.repair(hole)
    stand.exchange.clock.set(start_ms + AGAIN_YOUNG_MS + 60_000, 0.0)
    stand.repair(hole)
    asked = []
    for days in range(1, 10):
        stand.exchange.clock.set(start_ms + days * (AGAIN_ABSENT_MS + HOUR_MS), 0.0)
        asked.append(stand.repair(hole).requests > 0)
    assert asked == [True] * 7 + [False] * 2
    [(evidence,)] = stand.rows("SELECT evidence FROM trading.candle_gaps WHERE status = 'absent'")
    assert evidence[-1]["asked_ms"] - evidence[0]["asked_ms"] >= WEEK_MS
    # Somebody lands it after all.
    filled = Exchange(open_market(str(recordings / "candles"), fill=11), stand.exchange.clock, limits=False)
    with ReplayServer(filled) as server:
        stand.settings = settings_for(server.url)
        stand.land(BTC, MINUTE, *hole.range)
    assert {status for status, *_ in stand.statuses() if status != "open"} == {"repaired"}


def test_what_lies_before_the_first_candle_is_so_proven(stand: Stand) -> None:
    # OKX's listing may name a day weeks before the first trade: BTC-USDT-SWAP's did.
    with stand.database.connect() as connection:
        connection.execute(
            "INSERT INTO trading.instruments (symbol, valid_from, instrument_type, state) "
            "VALUES (%s, now(), 'SWAP', 'live')",
            (BTC,),
        )
    began_ms = day_ms(date(2022, 5, 1))
    series = SeriesRange(BTC, FIVE, Range(began_ms - DAY_MS, began_ms + DAY_MS))
    stand.land(BTC, FIVE, *series.range)
    done = stand.repair(series)
    assert dict(done.judged) == {"before_first": 288}
    assert [gap[:2] for gap in stand.statuses()] == [("absent", "before_first")]


def test_what_lies_below_the_depth_of_a_short_timeframe_is_told_from_what_never_was(stand: Stand) -> None:
    with stand.database.connect() as connection:
        connection.execute(
            "INSERT INTO trading.instruments (symbol, valid_from, instrument_type, state) "
            "VALUES (%s, now(), 'SWAP', 'live')",
            (BTC,),
        )
    stand.land(BTC, MINUTE, FIRST_MS, FIRST_MS + HOUR_MS)
    deep = SeriesRange(BTC, MINUTE, Range(FIRST_MS - 2 * HOUR_MS, FIRST_MS + HOUR_MS))
    assert dict(stand.repair(deep).judged) == {"beyond_depth": 120}


def test_the_report_says_what_is_missing_what_was_mended_and_what_cannot_be_had(stand: Stand) -> None:
    stand.land(BTC, HOUR, *DAY.range)
    without(stand, HOLE)
    wanted = Wanted([BTC], [HOUR], date(2026, 8, 20), date(2026, 8, 21))

    def look(mend: bool) -> GapsReport:
        async def work(backfill: Backfill) -> GapsReport:
            return await look_for_gaps(backfill, wanted, mend=mend)

        found = stand.do(work)
        assert isinstance(found, GapsReport)
        return found

    document = look(mend=False).document()
    assert {name: document[name] for name in ("checked", "present", "missing", "absent")} == {
        "checked": 24,
        "present": 21,
        "missing": 3,
        "absent": 0,
    }
    [gap] = document["gaps"]
    assert gap == {
        "symbol": BTC,
        "timeframe": "1h",
        "first_ms": HOLE[0],
        "last_ms": HOLE[2],
        "candles": 3,
        "status": "open",
        "reason": None,
    }
    assert "3 from 2026-08-20 03:00 to 2026-08-20 05:00 UTC" in "\n".join(look(mend=False).lines())
    mended = look(mend=True)
    assert mended.missing == 0
    assert [gap["status"] for gap in mended.document()["gaps"]] == ["repaired"]
    assert look(mend=False).document()["gaps"] == []
    assert utc(HOLE[0]).hour == 3


COUNT = 60
WRONG = "777777"
"""A volume that OKX never served."""


@pytest.fixture(scope="module")
def made_up() -> Iterator[tuple[Exchange, str]]:
    """A market that serves every candle."""
    market = open_market("synthetic", seed=3, symbols=2)
    serving = Exchange(market, ExchangeClock(day_ms(date(2026, 8, 22)), 0.0), limits=False)
    with ReplayServer(serving) as server:
        yield serving, server.url


def truth_of(exchange: Exchange, series: SeriesRange) -> dict[int, Candle]:
    name = series.timeframe.name
    rows = exchange.truth(series.symbol, series.timeframe, *series.range)
    return {int(row[0]): Candle(series.symbol, name, int(row[0]), *row[1:8]) for row in rows}


def held_rows(stand: Stand) -> dict[int, tuple[Any, ...]]:
    """Every row whole, with where it came from and when it was last touched."""
    return {row[2]: row for row in stand.rows("SELECT * FROM trading.candlesticks")}


@given(
    timeframe=st.sampled_from([FIVE, HOUR, parse_timeframe("1d")]),
    right=st.sets(st.integers(0, COUNT - 1)),
    wrong=st.sets(st.integers(0, COUNT - 1), max_size=5),
)
# Not shrunk: an example takes half a second, so that to find a smaller one would take minutes.
@hypothesis_settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_was_held_nothing_is_missing_after_a_repair_and_no_row_that_was_right_was_touched(
    made_up: tuple[Exchange, str],
    settings_for: Callable[[str], Settings],
    database: Database,
    timeframe: Timeframe,
    right: set[int],
    wrong: set[int],
) -> None:
    exchange, url = made_up
    stand = Stand(url, exchange, settings_for(url), database)
    with database.connect() as connection:
        books = "subscriptions", "wanted_ranges", "coverage", "coverage_extents", "candle_gaps", "landing_marks"
        for table in books:
            connection.execute(f"DELETE FROM trading.{table}")
        connection.execute("DELETE FROM trading.candlesticks")
        connection.execute("DELETE FROM trading.candlestick_revisions")
        end_ms = day_ms(date(2026, 8, 21))
        series = SeriesRange(BTC, timeframe, Range(timeframe.step(end_ms, -COUNT), end_ms))
        subscribe(connection, [BTC], [timeframe], series.range.start_ms)
    truth = truth_of(exchange, series)
    opens = sorted(truth)
    revised = {opens[number] for number in wrong}
    held = [truth[opens[number]] for number in right | wrong]

    async def land(backfill: Backfill) -> None:
        was = [each._replace(volume=WRONG) if each.timestamp_ms in revised else each for each in held]
        backfill.store.land(was, source=Source.WEBSOCKET)

    stand.do(land)
    before = held_rows(stand)
    done = stand.repair(series)
    after = held_rows(stand)

    [found] = done.after
    assert (found.missing, found.present, found.checked) == ([], COUNT, COUNT)
    assert stand.detect(series).missing == []
    assert done.fetched.total("inserted") == COUNT - len(held)
    assert set(after) == set(opens)
    assert all(after[each] == row for each, row in before.items() if each not in revised)
    volumes = {
        open_ms: str(volume) for open_ms, volume in stand.rows("SELECT timestamp_ms, volume FROM trading.candlesticks")
    }
    corrected = {open_ms for open_ms in revised if volumes[open_ms] != WRONG}
    assert all(volumes[each] == truth[each].volume for each in opens if each not in revised - corrected)
    # What was wrong and lay in a page that was asked for is right now, and what it was is kept.
    kept = stand.rows("SELECT timestamp_ms, volume::text FROM trading.candlestick_revisions")
    assert sorted(kept) == [(open_ms, WRONG) for open_ms in sorted(corrected)]
    statuses = stand.rows("SELECT status, sum(candles)::int FROM trading.candle_gaps GROUP BY 1")
    assert statuses == ([("repaired", COUNT - len(held))] if len(held) < COUNT else [])
    counted = "SELECT sum(missing)::int, sum(present)::int FROM trading.coverage WHERE day < '2026-08-21'"
    assert stand.rows(counted) == [(0, COUNT)]
