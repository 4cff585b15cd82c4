"""The checker itself: what is broken by hand in a sound store is found, each as what it is, and nothing else is."""

import ast
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.storage import coverage
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month, pending_months, project
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms, parse_timeframe
from okx_pipeline_tests.faults import checker
from okx_pipeline_tests.faults.checker import KINDS, Checker

SYMBOL, TIMEFRAME = "BTC-USDT-SWAP", "5m"
START = day_ms(date(2026, 8, 20))
NOON = START + 12 * HOUR_MS
OF = f"symbol = '{SYMBOL}' AND timeframe = '{TIMEFRAME}'"
AT_NOON = f"{OF} AND timestamp_ms = {NOON}"
MONTH = SeriesMonth(SYMBOL, TIMEFRAME, date(2026, 8, 1))
FILE = Path("candlesticks") / f"timeframe={TIMEFRAME}" / f"symbol={SYMBOL}" / "month=2026-08" / "candles.parquet"

Store = tuple[Connection, Path, Exchange]


@pytest.fixture(scope="module")
def exchange() -> Iterator[ReplayServer]:
    """A day and three hours of candles, the clock standing still."""
    market = open_market("synthetic", seed=3, symbols=2)
    with ReplayServer(Exchange(market, ExchangeClock(START + DAY_MS + 3 * HOUR_MS, 0))) as server:
        yield server


@pytest.fixture
def judge(exchange: ReplayServer, database: Database, tmp_path: Path) -> Checker:
    """The checker of a store that is sound: everything landed, counted and projected."""
    judge = Checker(exchange.url, database.url, tmp_path, [(SYMBOL, TIMEFRAME)], START)
    served = judge.served()[SYMBOL, TIMEFRAME]
    candles = [Candle(SYMBOL, TIMEFRAME, open_ms, *map(str, values)) for open_ms, values in served.items()]
    assert len(candles) == 27 * 12
    files = ParquetStore(str(tmp_path))
    with database.connect() as connection:
        subscribe(connection, [SYMBOL], [parse_timeframe(TIMEFRAME)], START)
        land(connection, candles, source=Source.REST)
        coverage.count(connection, files, START + DAY_MS + 3 * HOUR_MS)
        project(connection, files, pending_months(connection))
    found = judge.check()
    assert found.is_sound, found
    assert found.explained == 0
    return judge


@pytest.fixture
def untold(connection: Connection) -> Connection:
    """A connection whose changes no trigger marks: the ledger goes on claiming what it claimed."""
    connection.execute("SET session_replication_role = replica")
    return connection


def lose_one(connection: Connection, folder: Path) -> None:
    connection.execute(f"DELETE FROM trading.candlesticks WHERE {OF} AND timestamp_ms = {START + DAY_MS}")


def lose_one_of_a_closed_day(connection: Connection, folder: Path) -> None:
    connection.execute(f"DELETE FROM trading.candlesticks WHERE {AT_NOON}")


def double_one(connection: Connection, folder: Path) -> None:
    connection.execute("ALTER TABLE trading.candlesticks DROP CONSTRAINT candlesticks_pkey CASCADE")
    connection.execute(f"INSERT INTO trading.candlesticks SELECT * FROM trading.candlesticks WHERE {AT_NOON}")


def falsify_one(connection: Connection, folder: Path) -> None:
    connection.execute(f"UPDATE trading.candlesticks SET volume = volume + 0.00000001 WHERE {AT_NOON}")
    settle(connection, folder)


def store_an_open_one(connection: Connection, folder: Path) -> None:
    connection.execute(
        "INSERT INTO trading.candlesticks SELECT symbol, timeframe, timestamp_ms + 300000, open_price, high_price, "
        "low_price, close_price, volume, volume_currency, volume_quote, source, received_at, updated_at "
        f"FROM trading.candlesticks WHERE {OF} ORDER BY timestamp_ms DESC LIMIT 1"
    )
    settle(connection, folder)


def settle(connection: Connection, folder: Path) -> None:
    connection.execute("UPDATE trading.landing_marks SET revision = revision + 1")
    files = ParquetStore(str(folder))
    coverage.count(connection, files, START + DAY_MS + 3 * HOUR_MS)
    project(connection, files, pending_months(connection))


def claim_a_candle_too_many(connection: Connection, folder: Path) -> None:
    connection.execute("UPDATE trading.coverage SET present = present + 1, expected = expected + 1")


def claim_another_hash(connection: Connection, folder: Path) -> None:
    connection.execute("UPDATE trading.coverage SET content_hash = md5('') WHERE content_hash IS NOT NULL")


def note_an_offset_ahead_of_the_rows(connection: Connection, folder: Path) -> None:
    lose_one(connection, folder)
    connection.execute(
        f"INSERT INTO trading.stream_offsets VALUES ('{SYMBOL}', '{TIMEFRAME}', {START + DAY_MS + HOUR_MS})"
    )


def claim_a_gap_where_there_is_none(connection: Connection, folder: Path) -> None:
    connection.execute(
        "INSERT INTO trading.candle_gaps (symbol, timeframe, first_ms, last_ms, candles, status) "
        f"VALUES ('{SYMBOL}', '{TIMEFRAME}', {NOON}, {NOON}, 1, 'open')"
    )


def remove_the_file(connection: Connection, folder: Path) -> None:
    (folder / FILE).unlink()


def cut_the_file(connection: Connection, folder: Path) -> None:
    body = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(body[: len(body) // 2])


def drop_a_row_of_the_file(connection: Connection, folder: Path) -> None:
    table = pq.ParquetFile(folder / FILE).read()
    pq.write_table(table.slice(1), folder / FILE)


def archive_and_keep_a_row(connection: Connection, folder: Path) -> None:
    connection.execute(f"CREATE TEMPORARY TABLE kept AS SELECT * FROM trading.candlesticks WHERE {AT_NOON}")
    archive_month(connection, ParquetStore(str(folder)), MONTH)
    connection.execute("INSERT INTO trading.candlesticks SELECT * FROM kept")


def archive_and_cut_the_file(connection: Connection, folder: Path) -> None:
    archive_month(connection, ParquetStore(str(folder)), MONTH)
    cut_the_file(connection, folder)


Break = Callable[[Connection, Path], None]


@pytest.mark.parametrize(
    ("by_hand", "expected"),
    [
        # Whatever is not in PostgreSQL is also in Parquet alone, of which the ledger says that they agree.
        (lose_one, {"lost": 1, "unexplained": 1}),
        (lose_one_of_a_closed_day, {"lost": 1, "unexplained": 4}),
        (double_one, {"doubled": 1}),
        (falsify_one, {"wrong": 1}),
        (store_an_open_one, {"wrong": 1}),
        (claim_a_candle_too_many, {"unexplained": 1}),
        (claim_another_hash, {"unexplained": 1}),
        (note_an_offset_ahead_of_the_rows, {"lost": 1, "unexplained": 2}),
        (claim_a_gap_where_there_is_none, {"unexplained": 1}),
        (remove_the_file, {"unexplained": 1}),
        (cut_the_file, {"unexplained": 1}),
        (drop_a_row_of_the_file, {"unexplained": 2}),
        (archive_and_keep_a_row, {"doubled": 1}),
        # Of the closed day every candle, its count and its hash; of the open one its count; and the file.
        (archive_and_cut_the_file, {"lost": 27 * 12, "unexplained": 288 + 2 + 1 + 1}),
    ],
    ids=lambda each: each.__name__ if callable(each) else "-",
)
def test_what_is_broken_by_hand_is_found(
    judge: Checker, untold: Connection, tmp_path: Path, by_hand: Break, expected: dict[str, int]
) -> None:
    by_hand(untold, tmp_path)
    found = judge.check()
    assert dict(zip(KINDS, found.counts, strict=True)) == dict.fromkeys(KINDS, 0) | expected, str(found)


def test_a_gap_that_is_explained_is_not_lost_but_told(judge: Checker, untold: Connection, tmp_path: Path) -> None:
    lose_one_of_a_closed_day(untold, tmp_path)
    untold.execute(
        "INSERT INTO trading.candle_gaps (symbol, timeframe, first_ms, last_ms, candles, status, reason, resolved_at) "
        f"VALUES ('{SYMBOL}', '{TIMEFRAME}', {NOON}, {NOON}, 1, 'absent', 'not_served', now())"
    )
    settle(untold, tmp_path)
    found = judge.check()
    assert found.is_sound, str(found)
    assert found.explained == 1


def test_before_anything_has_recovered_only_what_is_claimed_counts(
    judge: Checker, connection: Connection, tmp_path: Path
) -> None:
    lose_one(connection, tmp_path)
    settle(connection, tmp_path)
    assert judge.claims().is_sound
    assert judge.check().counts == [1, 0, 0, 0]


def test_an_archive_is_as_good_as_the_rows(judge: Checker, connection: Connection, tmp_path: Path) -> None:
    assert archive_month(connection, ParquetStore(str(tmp_path)), MONTH) == 27 * 12
    found = judge.check()
    assert found.is_sound, str(found)


def test_it_shares_no_code_with_the_program() -> None:
    tree = ast.parse(Path(checker.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not [name for name in imported if name and name.startswith("okx_pipeline")]
