"""Landing: what becomes of a batch, by every rule of truth, on a real PostgreSQL."""

import threading
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.landing import (
    STRAIGHT_FROM,
    ArchivedError,
    Change,
    Landed,
    SeriesDay,
    land,
    mark_landings,
)
from okx_pipeline.storage.months import held_months, series_months
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.projection import pending_months, project
from okx_pipeline.timeframes import day_of
from okx_pipeline_tests.storage.deadlocks import deadlocks, report

AUGUST = 1785542400000
MINUTE = 60_000


def candle(minute: int = 0, close: str = "63030", symbol: str = "BTC-USDT-SWAP") -> Candle:
    return Candle(
        symbol, "1m", AUGUST + minute * MINUTE, "63019.6", "63092.7", "62953", close, "9298.87", "92.9887", "5860000.5"
    )


def outcome(landed: Landed) -> dict[str, int]:
    numbers = {
        "inserted": landed.inserted,
        "corrected": landed.corrected,
        "unchanged": landed.unchanged,
        "quarantined": landed.quarantined,
        "disputed": len(landed.disputed),
    }
    return {name: number for name, number in numbers.items() if number}


def now(connection: Connection) -> datetime:
    return one(connection, "SELECT clock_timestamp()")


def stored(connection: Connection) -> list[tuple[Any, ...]]:
    query = "SELECT timestamp_ms, close_price::text, source FROM trading.candlesticks ORDER BY symbol, timestamp_ms"
    return connection.execute(query).fetchall()


def test_a_batch_lands_with_the_exact_text_of_its_numbers(connection: Connection) -> None:
    exact = candle()._replace(volume="0.000000000000000001", volume_quote="12345678901234567890.123456789012345678")
    assert outcome(land(connection, [exact], source=Source.REST)) == {"inserted": 1}
    row = connection.execute(
        "SELECT open_price::text, volume::text, volume_quote::text FROM trading.candlesticks"
    ).fetchone()
    assert row == ("63019.6", "0.000000000000000001", "12345678901234567890.123456789012345678")


@pytest.mark.parametrize("size", [3, 200])
def test_landing_a_batch_again_changes_nothing_and_writes_no_row_version(connection: Connection, size: int) -> None:
    batch = [candle(minute) for minute in range(size)]
    assert land(connection, batch, source=Source.REST).inserted == size
    versions = connection.execute("SELECT ctid, xmin::text, xmax::text FROM trading.candlesticks").fetchall()
    again = land(connection, batch, source=Source.REST, requested_at=now(connection))
    assert outcome(again) == {"unchanged": size}
    assert connection.execute("SELECT ctid, xmin::text, xmax::text FROM trading.candlesticks").fetchall() == versions


def test_one_duplicate_does_not_cost_the_other_rows_of_its_batch(connection: Connection) -> None:
    land(connection, [candle(7)], source=Source.WEBSOCKET)
    landed = land(connection, [candle(minute) for minute in range(100)], source=Source.WEBSOCKET)
    assert (landed.inserted, landed.unchanged) == (99, 1)


def test_the_websocket_never_changes_a_row_and_its_contradiction_is_reported(connection: Connection) -> None:
    land(connection, [candle(close="63030")], source=Source.REST)
    landed = land(connection, [candle(close="63031")], source=Source.WEBSOCKET)
    assert outcome(landed) == {"disputed": 1}
    assert landed.disputed == [candle().key]
    assert stored(connection) == [(AUGUST, "63030", "rest")]


def test_rest_corrects_a_row_that_is_older_than_its_request_and_keeps_the_old_value(connection: Connection) -> None:
    land(connection, [candle(close="63030")], source=Source.WEBSOCKET)
    landed = land(connection, [candle(close="63031")], source=Source.REST, requested_at=now(connection))
    assert outcome(landed) == {"corrected": 1}
    assert stored(connection) == [(AUGUST, "63031", "rest")]
    revision = connection.execute(
        "SELECT close_price::text, source, revised_by FROM trading.candlestick_revisions"
    ).fetchone()
    assert revision == ("63030", "websocket", "rest")
    received, updated = connection.execute("SELECT received_at, updated_at FROM trading.candlesticks").fetchone() or ()
    assert received < updated


def test_rest_leaves_a_row_alone_that_changed_after_its_request_was_sent(connection: Connection) -> None:
    asked = now(connection)
    land(connection, [candle(close="63030")], source=Source.WEBSOCKET)
    landed = land(connection, [candle(close="63031")], source=Source.REST, requested_at=asked)
    assert outcome(landed) == {"disputed": 1}
    assert landed.disputed == [candle().key]
    assert stored(connection) == [(AUGUST, "63030", "websocket")]


def test_a_key_twice_in_a_batch_is_won_by_the_later_rest_row_and_the_earlier_frame(connection: Connection) -> None:
    twice = [candle(0, "63030"), candle(1), candle(0, "63031")]
    assert outcome(land(connection, twice, source=Source.REST)) == {"inserted": 2}
    assert stored(connection)[0] == (AUGUST, "63031", "rest")
    frames = [candle(5, "63030"), candle(6), candle(5, "63031")]
    landed = land(connection, frames, source=Source.WEBSOCKET)
    assert outcome(landed) == {"inserted": 2, "disputed": 1}
    assert landed.disputed == [candle(5).key]
    assert stored(connection)[2] == (AUGUST + 5 * MINUTE, "63030", "websocket")


def test_a_refused_row_is_quarantined_once_and_the_rest_of_the_batch_lands(connection: Connection) -> None:
    refused = Refused("BTC-USDT-SWAP", "1m", AUGUST, "high_price 1 is below open_price 2", '["1","2"]')
    unreadable = Refused("BTC-USDT-SWAP", "1m", None, "open time 'x' is unreadable", '["x\0"]')
    landed = land(connection, [candle(1)], [refused, unreadable], source=Source.REST)
    assert outcome(landed) == {"inserted": 1, "quarantined": 2}
    assert outcome(land(connection, [], [refused, unreadable], source=Source.REST)) == {}
    kept = connection.execute("SELECT timestamp_ms, reason FROM trading.candlesticks_quarantine ORDER BY id").fetchall()
    assert kept == [(AUGUST, refused.reason), (None, unreadable.reason)]


def test_a_frame_that_cannot_be_read_is_kept_once_and_is_of_no_day(connection: Connection) -> None:
    frame = Refused(None, None, None, "unreadable frame: it was cut off", '{"arg":')
    for outcomes in ({"quarantined": 1}, {}):
        assert outcome(land(connection, [], [frame], source=Source.WEBSOCKET)) == outcomes
    assert connection.execute("SELECT symbol, original FROM trading.candlesticks_quarantine").fetchall() == [
        (None, '{"arg":')
    ]
    assert one(connection, "SELECT count(*) FROM trading.landing_marks") == 0


def test_a_landing_marks_each_series_day_it_changed_and_only_those(connection: Connection) -> None:
    land(connection, [candle(0), candle(1440)], source=Source.REST)
    landed = land(connection, [candle(0), candle(1441)], source=Source.REST)
    assert landed.changes == {SeriesDay("BTC-USDT-SWAP", "1m", date(2026, 8, 2)): Change(1, 0)}
    marks = connection.execute("SELECT day, revision FROM trading.landing_marks ORDER BY day").fetchall()
    assert marks == [(date(2026, 8, 1), 1), (date(2026, 8, 2), 2)]


def test_the_edge_of_many_series_is_durable_before_its_marks_which_are_made_once(connection: Connection) -> None:
    def edge(minute: int) -> list[Candle]:
        return [candle(minute, symbol=f"SYN{number:02d}-USDT") for number in range(STRAIGHT_FROM)]

    landed = land(connection, edge(0), source=Source.WEBSOCKET)
    assert landed.changes == {SeriesDay(row.symbol, "1m", date(2026, 8, 1)): Change(1, 0) for row in edge(0)}
    marks = "SELECT symbol, day, revision FROM trading.landing_marks ORDER BY symbol"
    assert connection.execute(marks).fetchall() == []
    for _ in range(2):
        mark_landings(connection)
        assert connection.execute(marks).fetchall() == [(row.symbol, date(2026, 8, 1), 1) for row in edge(0)]
    land(connection, edge(1), source=Source.WEBSOCKET)
    assert {month.symbol for month in pending_months(connection)} == {row.symbol for row in edge(0)}
    assert {revision for _, _, revision in connection.execute(marks)} == {2}


def test_a_month_in_which_an_unmarked_edge_landed_is_not_taken_for_projected(
    connection: Connection, tmp_path: Path
) -> None:
    files = ParquetStore(str(tmp_path))
    symbols = [f"SYN{number:02d}-USDT" for number in range(STRAIGHT_FROM)]
    land(connection, [candle(0, symbol=symbol) for symbol in symbols], source=Source.REST)
    project(connection, files, pending_months(connection))

    def projected() -> list[tuple[bool, bool]]:
        hashes = {month.key: month.content_hash for month in held_months(connection)}
        return [(hashes[state.key] is not None, not state.waiting) for state in series_months(connection)]

    assert projected() == STRAIGHT_FROM * [(True, True)]
    land(connection, [candle(1, symbol=symbol) for symbol in symbols], source=Source.WEBSOCKET)
    assert projected() == STRAIGHT_FROM * [(False, False)]
    project(connection, files, pending_months(connection))
    assert projected() == STRAIGHT_FROM * [(True, True)]


@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(-3, 4000)), min_size=STRAIGHT_FROM, unique=True))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_changed_is_counted_by_series_and_day(connection: Connection, keys: list[tuple[str, int]]) -> None:
    connection.execute("DELETE FROM trading.candlesticks")
    batch = [candle(minute, symbol=f"{name}-USDT") for name, minute in keys]
    landed = land(connection, batch, source=Source.REST)
    wanted = Counter(SeriesDay(row.symbol, "1m", day_of(row.timestamp_ms)) for row in batch)
    assert landed.changes == {day: Change(rows, 0) for day, rows in wanted.items()}


def test_the_month_of_a_candle_is_made_when_it_is_not_there(connection: Connection) -> None:
    early = candle()._replace(timestamp_ms=0)
    late = candle()._replace(timestamp_ms=4102444800000)
    assert land(connection, [early, late], source=Source.REST).inserted == 2
    partitions = connection.execute(
        "SELECT relid::text FROM pg_partition_tree('trading.candlesticks') WHERE isleaf ORDER BY 1"
    ).fetchall()
    assert partitions == [("trading.candlesticks_1970_01",), ("trading.candlesticks_2100_01",)]


def test_an_archived_month_is_refused_whole_and_says_which(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO trading.candle_months (symbol, timeframe, month, state) "
        "VALUES ('BTC-USDT-SWAP', '1m', '2026-08-01', 'archived')"
    )
    with pytest.raises(ArchivedError) as refusal:
        land(connection, [candle(0)], source=Source.REST)
    assert refusal.value.months == [("BTC-USDT-SWAP", "1m", date(2026, 8, 1))]
    assert stored(connection) == []
    assert land(connection, [candle(0, symbol="ETH-USDT-SWAP")], source=Source.REST).inserted == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("open_price", "NaN"), ("high_price", "Infinity"), ("low_price", "0"), ("low_price", "63020"),
        ("close_price", "-1"), ("volume", "-1"), ("volume_quote", "NaN"), ("high_price", "63019.5"),
        ("timestamp_ms", AUGUST + 1), ("timeframe", "7m"), ("symbol", "../etc"), ("timestamp_ms", -MINUTE),
        ("source", "rumour"),
    ],
)  # fmt: skip
def test_the_table_itself_refuses_what_no_market_can_have(connection: Connection, column: str, value: object) -> None:
    connection.execute("SELECT trading.ensure_month('2026-08-01'), trading.ensure_month('1970-01-01')")
    row = {**candle()._asdict(), "source": "rest", column: value}
    placeholders = ", ".join(["%s"] * len(row))
    with pytest.raises(psycopg.errors.IntegrityError):
        connection.execute(
            f"INSERT INTO trading.candlesticks ({', '.join(row)}) VALUES ({placeholders})", list(row.values())
        )


@pytest.mark.parametrize(
    ("timeframe", "opens", "refused"),
    [
        ("1w", "2026-08-03", "2026-08-04"),
        ("1mo", "2026-08-01", "2026-08-02"),
        ("1mo", "2024-02-01", "2024-02-29"),
        ("1d", "2026-08-02", "2026-08-02 16:00"),
        ("12h", "2026-08-02 12:00", "2026-08-02 04:00"),
    ],
)
def test_the_table_knows_the_boundaries_of_long_candles(
    connection: Connection, timeframe: str, opens: str, refused: str
) -> None:
    def at(text: str) -> int:
        return int(datetime.fromisoformat(f"{text}+00:00").timestamp()) * 1000

    row = candle()._replace(timeframe=timeframe)
    assert land(connection, [row._replace(timestamp_ms=at(opens))], source=Source.REST).inserted == 1
    with pytest.raises(psycopg.errors.CheckViolation):
        land(connection, [row._replace(timestamp_ms=at(refused))], source=Source.REST)


def test_two_writers_of_the_same_candles_neither_deadlock_nor_double(database: Database) -> None:
    batches = 12
    barrier = threading.Barrier(2)
    landed: list[Landed] = []

    def write(order: int) -> None:
        with database.connect() as connection:
            for batch in range(batches):
                minutes = range(batch * 200, batch * 200 + 200)
                barrier.wait(timeout=60)
                candles = [candle(minute) for minute in (minutes if order else reversed(minutes))]
                landed.append(land(connection, candles, source=Source.REST, requested_at=now(connection)))
            report(connection)

    writers = [threading.Thread(target=write, args=(order,)) for order in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with database.connect() as connection:
        assert len(landed) == 2 * batches
        assert sum(result.inserted for result in landed) == 200 * batches == len(stored(connection))
        assert one(connection, "SELECT count(*) FROM trading.candlestick_revisions") == 0
        assert deadlocks(connection) == 0


def test_a_batch_whose_connection_is_cut_lands_whole_or_not_at_all(database: Database) -> None:
    with database.connect() as doomed, database.connect() as killer:
        land(doomed, [candle(0)], source=Source.REST)
        blocker = database.connect(autocommit=False)
        blocker.execute("INSERT INTO trading.landing_marks VALUES ('BTC-USDT-SWAP', '1m', '2026-08-05')")

        def cut() -> None:
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            deadline = datetime.now().astimezone() + timedelta(seconds=30)
            while not (found := killer.execute(waiting).fetchone()):
                assert datetime.now().astimezone() < deadline
            killer.execute("SELECT pg_terminate_backend(%s)", found)

        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(psycopg.OperationalError):
            land(doomed, [candle(minute) for minute in range(4 * 1440, 4 * 1440 + 300)], source=Source.REST)
        thread.join()
        blocker.close()
        assert len(stored(killer)) == 1


batches = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["63030", "63031", "63032"])), max_size=8),
        st.sampled_from(Source),
        st.integers(0, 3),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches)
def test_any_sequence_of_landings_ends_where_the_rules_of_truth_lead(
    connection: Connection, sequence: list[tuple[list[tuple[int, str]], Source, int]]
) -> None:
    """The model: value and step of the last change per minute; a request is sent some landings before it lands."""
    connection.execute("TRUNCATE trading.candlesticks, trading.candlestick_revisions, trading.landing_marks")
    clock = [now(connection)]
    model: dict[int, tuple[str, int]] = {}
    revisions = 0
    for step, (batch, source, age) in enumerate(sequence, start=1):
        sent = max(0, step - 1 - age)
        land(connection, [candle(*row) for row in batch], source=source, requested_at=clock[sent])
        clock.append(now(connection))
        last = dict(batch) if source is Source.REST else dict(reversed(batch))
        for minute, close in last.items():
            known = model.get(minute)
            if known is None:
                model[minute] = (close, step)
            elif source is Source.REST and known[0] != close and known[1] <= sent:
                model[minute] = (close, step)
                revisions += 1
    assert [row[:2] for row in stored(connection)] == [
        (AUGUST + minute * MINUTE, close) for minute, (close, _) in sorted(model.items())
    ]
    assert one(connection, "SELECT count(*) FROM trading.candlestick_revisions") == revisions
