"""The work that the ledger says is left: of what is wanted, and never what no run would do."""

from datetime import date, timedelta
from pathlib import Path

import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.quality.work import Kind, Work, work_left
from okx_pipeline.ranges import Range
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import Read
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.gaps import Verdict, unresolved_gaps
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.subscriptions import subscribe, unsubscribe
from okx_pipeline.storage.wanted import forget, want
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms, parse_timeframe, parse_timeframes

BTC = "BTC-USDT-SWAP"
HOUR = parse_timeframe("1h")
FIRST = date(2026, 8, 1)
FIRST_MS = day_ms(FIRST)
LAST = date(2026, 8, 20)
NOW_MS = day_ms(LAST) + DAY_MS + 2 * HOUR_MS
ASKING = {Kind.HISTORY, Kind.REPAIR, Kind.RECONCILIATION}


@pytest.fixture
def store(connection: Connection, tmp_path: Path) -> CandleStore:
    return CandleStore(connection, ParquetStore(str(tmp_path / "parquet")), "here")


def left(store: CandleStore) -> list[Work]:
    """The work that asks OKX."""
    return [each for each in work_left(store.connection, [BTC], NOW_MS, 100) if each.kind in ASKING]


def read(store: CandleStore, *opens: int, at_ms: int) -> None:
    """As a run does that has read the first day of hours, and was served `opens`."""
    store.land(
        [Candle(BTC, "1h", each, "10", "11", "9", "10", "5", "0.05", "500") for each in opens], source=Source.REST
    )
    store.account(at_ms, {SeriesDay(BTC, "1h", FIRST): Read(24, len(opens), False, at_ms)})


def test_history_of_a_timeframe_is_left_only_while_it_is_wanted(store: CandleStore) -> None:
    subscribe(store.connection, [BTC], parse_timeframes("1h,1d"), FIRST_MS)
    store.account(NOW_MS)
    assert left(store) == [Work(Kind.HISTORY, BTC, FIRST, LAST)]
    unsubscribe(store.connection, [BTC], parse_timeframes("1h"), NOW_MS)
    store.account(NOW_MS)
    assert left(store) == [Work(Kind.HISTORY, BTC, FIRST, LAST)]
    unsubscribe(store.connection, [BTC], parse_timeframes("1d"), NOW_MS)
    subscribe(store.connection, [BTC], parse_timeframes("4h"), NOW_MS)
    store.account(NOW_MS)
    # Nothing of it was read or is held; else it would be requested for ever, as a run reads what is wanted.
    assert left(store) == []
    want(store.connection, {(BTC, "1h"): [Range(FIRST_MS, FIRST_MS + 2 * DAY_MS)]}, "backfill")
    store.account(NOW_MS)
    assert left(store) == [Work(Kind.HISTORY, BTC, FIRST, FIRST + timedelta(days=1))]


def test_what_nobody_wants_is_not_read_once_more(store: CandleStore) -> None:
    opens = HOUR.opens(FIRST_MS, FIRST_MS + DAY_MS)
    subscribe(store.connection, [BTC], parse_timeframes("4h"), NOW_MS)
    read(store, *opens, at_ms=FIRST_MS + 2 * DAY_MS)
    assert left(store) == []
    want(store.connection, {(BTC, "1h"): [Range(FIRST_MS, FIRST_MS + DAY_MS)]}, "backfill")
    store.account(NOW_MS)
    assert left(store) == [Work(Kind.RECONCILIATION, BTC, FIRST, FIRST)]


def test_okx_is_asked_again_about_a_day_that_was_read_until_it_is_forgotten(store: CandleStore) -> None:
    subscribe(store.connection, [BTC], parse_timeframes("1h,4h"), FIRST_MS)
    day = Range(FIRST_MS, FIRST_MS + DAY_MS)
    hole = Range(FIRST_MS + 3 * HOUR_MS, FIRST_MS + 4 * HOUR_MS)
    read(store, *(each for each in HOUR.opens(*day) if each != hole.start_ms), at_ms=NOW_MS)
    assert Work(Kind.REPAIR, BTC, FIRST, FIRST) in left(store)
    store.record_gaps(BTC, HOUR, day, [hole], NOW_MS)
    [gap] = unresolved_gaps(store.connection, BTC, HOUR, day)
    store.settle_gap(gap, [Verdict(hole, "absent", "not_served", [], NOW_MS)], NOW_MS)
    assert Work(Kind.REPAIR, BTC, FIRST, FIRST) in left(store)
    unsubscribe(store.connection, [BTC], [HOUR], NOW_MS)
    store.account(NOW_MS)
    assert Work(Kind.REPAIR, BTC, FIRST, FIRST) in left(store)
    forget(store.connection, BTC, [HOUR], day)
    store.account(NOW_MS)
    assert Work(Kind.REPAIR, BTC, FIRST, FIRST) not in left(store)
