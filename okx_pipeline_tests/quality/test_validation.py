"""Validating a day: every rule broken, in PostgreSQL and in Parquet, and caught by its name; and nothing else."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.quality import copies
from okx_pipeline.quality.data_docs import DataDocs
from okx_pipeline.quality.suites import CANDLE_RULES, RULES, Check
from okx_pipeline.quality.validation import SAMPLES, validate
from okx_pipeline.quality.verdicts import DayJudged, judge_days
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth, day_hashes
from okx_pipeline.storage.projection import archive_month, pending_months, project
from okx_pipeline.storage.quality_results import Severity, Store, Verdict, latest
from okx_pipeline.storage.quality_rows import SeriesKey
from okx_pipeline.timeframes import DAY_MS, day_ms
from okx_pipeline_tests.quality.sound_store import DAY, EVE, candles, fill, list_instruments

CLEAN = [("CLEAN-USDT-SWAP", "15m"), ("CLEAN-USDT", "15m"), ("CLEAN-USDT-SWAP", "1d")]
ALONE = ("CLEAN-USDT", "15m")
"""Of CLEAN the one that has no other timeframe to be compared with."""
CHANGED = day_ms(DAY) + 50 * 900_000
AN_HOUR = f"timestamp_ms >= {CHANGED} AND timestamp_ms < {CHANGED + 3_600_000}"
LATER = datetime(2026, 9, 1, tzinfo=UTC)


@pytest.fixture
def files(tmp_path: Path) -> ParquetStore:
    return ParquetStore(str(tmp_path / "parquet"))


@pytest.fixture
def docs(tmp_path: Path) -> DataDocs:
    return DataDocs(tmp_path / "quality")


def failing(verdicts: Iterable[Verdict]) -> dict[SeriesKey, set[str]]:
    """The expectations that failed of each series."""
    found: dict[SeriesKey, set[str]] = {}
    for each in verdicts:
        found.setdefault((each.symbol, each.timeframe), set()).update(each.failed)
    return found


def samples(verdicts: Iterable[Verdict], key: SeriesKey, rule: str) -> list[dict[str, Any]]:
    """What is told of the rows of a series for which a rule does not hold."""
    of_series = [each for each in verdicts if (each.symbol, each.timeframe) == key]
    (found,) = [each.observed["samples"][rule] for each in of_series if rule in each.failed]
    return found  # type: ignore[no-any-return]


# Nothing wrong


@pytest.mark.parametrize("store", Store)
def test_a_clean_store_passes_every_check(
    connection: Connection, files: ParquetStore, docs: DataDocs, store: Store
) -> None:
    fill(connection, files, CLEAN)
    verdicts = validate(connection, files, CLEAN, DAY, store=store, docs=docs)
    judged = [(each.symbol, each.timeframe, each.check) for each in verdicts]
    assert judged == [
        (*key, check) for key in CLEAN for check in Check if (key, check) != (ALONE, Check.TIMEFRAME_CONSISTENCY)
    ]
    assert {(each.severity, each.failed, each.passed, each.store) for each in verdicts} == {(None, (), True, store)}
    assert {each.rows for each in verdicts if each.timeframe == "15m"} == {96}
    assert latest(connection) == sorted(verdicts, key=lambda each: (each.symbol, each.timeframe, each.check))


def test_no_series_has_no_verdicts_and_no_page(connection: Connection, files: ParquetStore, docs: DataDocs) -> None:
    assert validate(connection, files, [], DAY, docs=docs) == []
    assert not docs.folder.exists()


def unjudged(docs: DataDocs) -> dict[Store, dict[str, str]]:
    """What the newest result of each store says was not judged: the checks, and why."""
    found: dict[Store, dict[str, str]] = {}
    for path in sorted(docs.folder.rglob("*.json")):
        meta = msgspec.json.decode(path.read_bytes())["meta"]
        found[Store(meta["store"])] = {each["check"]: each["reason"] for each in meta["unjudged"]}
    return found


def test_a_day_nobody_has_anything_of_is_not_judged_and_has_passed_nothing(
    connection: Connection, files: ParquetStore, docs: DataDocs
) -> None:
    fill(connection, files, CLEAN[:1])
    verdicts = validate(connection, files, CLEAN[:1], date(2026, 7, 1), docs=docs)
    # That there are no rows in either store, and that the table has its columns, is known all the same.
    assert {each.check for each in verdicts} == {Check.SCHEMA, Check.STORE_PARITY}
    assert unjudged(docs)[Store.POSTGRES] == {
        Check.COMPLETENESS: "the ledger has not counted the day yet",
        Check.OHLC_SANITY: "no candle of the day is held",
        Check.VOLUMES: "no candle of the day is held",
        Check.MARKET_MOVES: "no candle of the day is held",
        Check.TIMEFRAME_CONSISTENCY: "no other timeframe of the day is held to compare with",
    }


def test_completeness_is_not_judged_of_a_day_that_the_ledger_does_not_know(
    connection: Connection, files: ParquetStore
) -> None:
    fill(connection, files, CLEAN)
    assert Check.COMPLETENESS in {each.check for each in validate(connection, files, CLEAN[:1], DAY)}
    connection.execute("DELETE FROM trading.coverage")
    validate(connection, files, CLEAN[:1], DAY)
    # Nor does the verdict from before stand: nobody knows whether it still holds.
    assert Check.COMPLETENESS not in {each.check for each in latest(connection)}


def test_a_file_that_cannot_be_read_has_passed_nothing_in_either_store(
    connection: Connection, files: ParquetStore, docs: DataDocs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged_again() -> DayJudged:
        [judged] = judge_days(CandleStore(connection, files, ""), docs, {CLEAN[0][0]: [DAY]})
        return judged

    # As on a disk that takes no more.
    monkeypatch.setattr(copies, "write_again", lambda *_: False)
    fill(connection, files, CLEAN[:1])
    judged_again()
    assert {each.store for each in latest(connection) if each.check == Check.STORE_PARITY} == set(Store)
    # The footer stays readable, and the hashes are there that parity goes by.
    with_a_flipped_bit(Path(files.place(SeriesMonth(*CLEAN[0], date(2026, 8, 1)))))
    judged = judged_again()
    of_file = [each for each in judged.verdicts if each.store is Store.PARQUET]
    assert {each.check for each in of_file} == {Check.SCHEMA, Check.COMPLETENESS}
    assert all(each.is_error for each in of_file)
    stand = latest(connection)
    assert {each.check for each in stand if each.store is Store.PARQUET} == {each.check for each in of_file}
    assert Check.STORE_PARITY not in {each.check for each in stand}
    assert judged.not_judged == 2 * len(Check) - len(judged.verdicts)
    assert unjudged(docs)[Store.PARQUET][Check.OHLC_SANITY] == "the Parquet file cannot be read"


@pytest.mark.parametrize("store", Store)
def test_a_silence_that_began_in_the_month_before_is_measured_whole(
    connection: Connection, files: ParquetStore, store: Store
) -> None:
    key, eve, first = ("CLEAN-USDT-SWAP", "5m"), date(2026, 7, 31), date(2026, 8, 1)

    def silent(candle: Candle) -> Candle:
        flat = dict.fromkeys(("open_price", "high_price", "low_price", "close_price"), "63000")
        return candle._replace(**flat, volume="0", volume_currency="0", volume_quote="0")

    before, after = candles(*key, eve), candles(*key, first)
    land(connection, [*before[:-2], *map(silent, [*before[-2:], *after[:2]]), *after[2:]], source=Source.REST)
    project(connection, files, pending_months(connection))
    # Ten minutes on either side of midnight, of which each alone would be nothing.
    assert "no_outage" not in failing(validate(connection, files, [key], eve, store=store))[key]
    told = samples(validate(connection, files, [key], first, store=store), key, "no_outage")
    assert [row["silent_minutes"] for row in told] == [20, 20]


# Every rule broken


@dataclass(frozen=True)
class Corruption:
    """What breaks `rule`, and the rules that cannot but break with it."""

    rule: str
    change: Any
    besides: str = ""
    symbol: str = "X{}-USDT-SWAP"

    def key(self, number: int) -> SeriesKey:
        return self.symbol.format(number), "15m"


def setting(
    rule: str, change: str, besides: str = "", where: str = f"timestamp_ms = {CHANGED}", **more: Any
) -> Corruption:
    """An UPDATE of the candle that opens at CHANGED, or of those `where` says."""
    return Corruption(rule, f"UPDATE trading.candlesticks SET {change} WHERE {{series}} AND {where}", besides, **more)


STILL = "volume = 0, volume_currency = 0, volume_quote = 0"
FLAT = "open_price = 63000, high_price = 63000, low_price = 63000, close_price = 63000"
MISMATCH = (
    "INSERT INTO trading.timeframe_mismatches (symbol, timeframe, timestamp_ms, against, column_name, value, summed, "
    "class, confirmed_at) VALUES ({{symbol}}, '15m', %s, '5m', 'volume', 10.50, 10.25, '{}', {})"
)
IN_POSTGRESQL = [
    setting("high_at_least_open", "open_price = high_price + 0.1"),
    setting("high_at_least_close", "close_price = high_price + 0.1"),
    setting("high_at_least_low", "low_price = high_price + 0.1", "low_at_most_open low_at_most_close"),
    setting("low_at_most_open", "open_price = low_price - 0.1"),
    setting("low_at_most_close", "close_price = low_price - 0.1"),
    setting("open_price_is_positive", "open_price = 0", "low_at_most_open"),
    setting("high_price_is_positive", "high_price = -1", "high_at_least_open high_at_least_close high_at_least_low"),
    setting("low_price_is_positive", "low_price = 0"),
    setting("close_price_is_positive", "close_price = 0", "low_at_most_close"),
    setting("prices_on_tick", "close_price = close_price + 0.000000000000000001"),
    setting("prices_on_later_tick", "high_price = high_price + 0.05", symbol="LATER{}-USDT-SWAP"),
    setting("volume_is_not_negative", "volume = -1", "volumes_agree_by_contract_value"),
    setting("volume_currency_is_not_negative", "volume_currency = -1", "volumes_agree_by_contract_value"),
    setting("volume_quote_is_not_negative", "volume_quote = -0.000000000000000001"),
    setting("volumes_agree_by_contract_value", "volume_currency = volume_currency + 0.000000000000000001"),
    setting("volumes_agree_by_contract_value", "volume_currency = volume_currency * 10"),
    setting("volumes_agree_by_later_contract_value", "volume = volume + 0.01", symbol="LATER{}-USDT-SWAP"),
    setting("spot_volumes_agree", "volume_quote = volume_quote + 0.1", symbol="X{}-USDT"),
    setting("no_range_without_trade", STILL),
    setting("no_outage", f"{FLAT}, {STILL}", where=AN_HOUR),
    setting("moves_within_usual_range", "high_price = 90000"),
    setting("open_price_is_a_number", "open_price = NULL"),
    setting("high_price_is_a_number", "high_price = 'NaN'"),
    setting("low_price_is_a_number", "low_price = '-Infinity'"),
    setting("close_price_is_a_number", "close_price = close_price + 0.0000000000000000001"),
    setting("volume_is_a_number", "volume = 'Infinity'"),
    setting("volume_currency_is_a_number", "volume_currency = 1e20"),
    setting("volume_quote_is_a_number", "volume_quote = NULL"),
    setting("source_is_known", "source = 'tape'"),
    setting("source_is_known", "source = NULL"),
    setting("received_at_is_there", "received_at = NULL"),
    setting("updated_at_is_there", "updated_at = NULL"),
    setting("opens_on_boundary", "timestamp_ms = timestamp_ms + 1"),
    Corruption(
        "key_is_unique",
        "INSERT INTO trading.candlesticks SELECT * FROM trading.candlesticks "
        f"WHERE {{series}} AND timestamp_ms = {CHANGED}",
    ),
    Corruption("no_candle_missing", f"DELETE FROM trading.candlesticks WHERE {{series}} AND timestamp_ms = {CHANGED}"),
    Corruption("no_candle_missing", "UPDATE trading.coverage SET expected = 97, missing = 1 WHERE {series}"),
    Corruption("candles_add_up", MISMATCH.format("open", "NULL") % CHANGED),
    Corruption("candles_of_okx_add_up", MISMATCH.format("exchange", "now()") % CHANGED),
    setting("parquet_equals_postgresql", "volume_quote = volume_quote + 1"),
    setting(
        "parquet_is_up_to_date",
        "volume_quote = volume_quote + 1",
    ),
]


def unguarded(connection: Connection) -> None:
    """Take away what keeps nonsense out of the tables, and what marks a change by hand as one to be projected."""
    tables = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'trading.candlesticks'::regclass"
    names = ["trading.candlesticks", *(name for (name,) in connection.execute(tables).fetchall())]
    for name in names:
        for (constraint,) in connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('c', 'p')", (name,)
        ).fetchall():
            connection.execute(f'ALTER TABLE {name} DROP CONSTRAINT IF EXISTS "{constraint}"')
    for column in ("open_price", "high_price", "volume_quote", "source", "received_at", "updated_at"):
        connection.execute(f"ALTER TABLE trading.candlesticks ALTER {column} DROP NOT NULL")
    for name in names:
        connection.execute(f"ALTER TABLE {name} DISABLE TRIGGER USER")


def test_every_corruption_in_postgresql_is_caught_by_the_expectation_that_names_it(
    connection: Connection, files: ParquetStore, docs: DataDocs
) -> None:
    keys = [corruption.key(number) for number, corruption in enumerate(IN_POSTGRESQL)]
    fill(connection, files, [*CLEAN, *keys])
    list_instruments(connection, [symbol for symbol, _ in keys if symbol.startswith("LATER")], LATER)
    unguarded(connection)
    for key, corruption in zip(keys, IN_POSTGRESQL, strict=True):
        series = f"symbol = '{key[0]}' AND timeframe = '{key[1]}'"
        changed = connection.execute(corruption.change.format(series=series, symbol=f"'{key[0]}'"))
        assert changed.rowcount, corruption
        if corruption.rule == "parquet_is_up_to_date":
            connection.execute(f"UPDATE trading.landing_marks SET revision = revision + 1 WHERE {series}")
    verdicts = validate(connection, files, [*CLEAN, *keys], DAY, docs=docs)
    found = failing(verdicts)
    for key, corruption in zip(keys, IN_POSTGRESQL, strict=True):
        assert corruption.rule in found[key], corruption
        # Nothing of this came by a landing, so that Parquet differs besides.
        allowed = {corruption.rule, "parquet_equals_postgresql", *corruption.besides.split()}
        assert found[key] <= allowed, corruption
        (verdict,) = [
            each for each in verdicts if (each.symbol, each.timeframe) == key and corruption.rule in each.failed
        ]
        assert verdict.check == RULES[corruption.rule].check
        assert verdict.severity is not None
        told = samples(verdicts, key, corruption.rule)[0]
        if RULES[corruption.rule] in CANDLE_RULES:
            assert told["timestamp_ms"] - CHANGED in (0, 1)
    assert {rule for key in CLEAN for rule in found[key]} == set()


def test_what_is_wrong_is_told_exactly(connection: Connection, files: ParquetStore) -> None:
    key = ("X-USDT-SWAP", "15m")
    fill(connection, files, [key])
    unguarded(connection)
    connection.execute(
        "UPDATE trading.candlesticks SET open_price = high_price + 0.000000000000000001 WHERE timestamp_ms = %s",
        (CHANGED,),
    )
    told = samples(validate(connection, files, [key], DAY), key, "high_at_least_open")
    assert told == [
        {
            "timestamp_ms": CHANGED,
            "open_time": "2026-08-02T12:30:00+00:00",
            "high_price": "63041.3",
            "open_price": "63041.300000000000000001",
            "high_below_open": 1e-18,
        }
    ]


def test_columns_and_types_that_are_not_those_of_the_schema_are_caught_in_every_series(
    connection: Connection, files: ParquetStore
) -> None:
    fill(connection, files, CLEAN)
    connection.execute("ALTER TABLE trading.candlesticks ADD COLUMN trades integer")
    verdicts = validate(connection, files, CLEAN, DAY)
    assert failing(verdicts) == {key: {"columns_and_types"} for key in CLEAN}
    assert samples(verdicts, CLEAN[0], "columns_and_types") == [{"differences": "trades does not belong there"}]
    connection.execute("ALTER TABLE trading.candlesticks DROP COLUMN trades")
    connection.execute("DROP VIEW trading.candles")
    connection.execute("ALTER TABLE trading.candlesticks ALTER source TYPE varchar(9)")
    verdicts = validate(connection, files, CLEAN, DAY)
    told = "source is character varying(9), not text"
    assert samples(verdicts, CLEAN[0], "columns_and_types") == [{"differences": told}]
    connection.execute("ALTER TABLE trading.candlesticks RENAME source TO origin")
    verdicts = validate(connection, files, CLEAN, DAY)
    assert failing(verdicts) == {key: {"columns_and_types", "source_is_known"} for key in CLEAN}
    told = "there is no source; origin does not belong there"
    assert samples(verdicts, CLEAN[0], "columns_and_types") == [{"differences": told}]


# The same in Parquet


def changed(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A file in which the candle that opens at CHANGED has another value; `value` may be made from the row."""

    def change(table: pa.Table) -> pa.Table:
        at = table["timestamp_ms"].to_pylist().index(CHANGED)
        values = table[column].to_pylist()
        values[at] = value(table.slice(at, 1).to_pylist()[0]) if callable(value) else value
        field = table.schema.field(column).with_nullable(True)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def several(*changes: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        for each in changes:
            table = each(table)
        return table

    return change


def without_trade(table: pa.Table) -> pa.Table:
    return several(*(changed(name, Decimal(0)) for name in ("volume", "volume_currency", "volume_quote")))(table)


def an_hour_of_silence(table: pa.Table) -> pa.Table:
    opens = table["timestamp_ms"].to_pylist()
    flat = dict.fromkeys(("open_price", "high_price", "low_price", "close_price"), Decimal(63_000))
    for name, value in {**flat, **dict.fromkeys(("volume", "volume_currency", "volume_quote"), Decimal(0))}.items():
        values = [
            value if CHANGED <= open_ms < CHANGED + 3_600_000 else held
            for open_ms, held in zip(opens, table[name].to_pylist(), strict=True)
        ]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, table[name].type))
    return table


def of_type(column: str, type_: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(column), column, table[column].cast(type_))


def row_at(table: pa.Table) -> int:
    return int(table["timestamp_ms"].to_pylist().index(CHANGED))


def row_twice(table: pa.Table) -> pa.Table:
    at = row_at(table)
    return table.take([*range(at + 1), *range(at, table.num_rows)])


def row_gone(table: pa.Table) -> pa.Table:
    at = row_at(table)
    return table.take([*range(at), *range(at + 1, table.num_rows)])


def rows_swapped(table: pa.Table) -> pa.Table:
    at = row_at(table)
    return table.take([*range(at), at + 1, at, *range(at + 2, table.num_rows)])


def row_of_another_month(table: pa.Table) -> pa.Table:
    opens = table["timestamp_ms"].to_pylist()
    opens[0] -= DAY_MS
    return table.set_column(0, table.schema.field(0), pa.array(opens, pa.int64()))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def with_a_flipped_bit(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 3] ^= 1
    path.write_bytes(body)


OTHER = {"high": "high_price", "close": "close_price", "low": "low_price"}
IN_PARQUET = [
    Corruption("high_at_least_open", changed("open_price", lambda row: row["high_price"] + Decimal("0.1"))),
    Corruption("high_at_least_close", changed("close_price", lambda row: row["high_price"] + Decimal("0.1"))),
    Corruption(
        "high_at_least_low",
        changed("low_price", lambda row: row["high_price"] + Decimal("0.1")),
        "low_at_most_open low_at_most_close",
    ),
    Corruption("low_at_most_open", changed("open_price", lambda row: row["low_price"] - Decimal("0.1"))),
    Corruption("low_at_most_close", changed("close_price", lambda row: row["low_price"] - Decimal("0.1"))),
    Corruption("open_price_is_positive", changed("open_price", Decimal(0)), "low_at_most_open"),
    Corruption(
        "high_price_is_positive",
        changed("high_price", Decimal(-1)),
        "high_at_least_open high_at_least_close high_at_least_low",
    ),
    Corruption("low_price_is_positive", changed("low_price", Decimal(0))),
    Corruption("close_price_is_positive", changed("close_price", Decimal(0)), "low_at_most_close"),
    Corruption("prices_on_tick", changed("close_price", lambda row: row["close_price"] + Decimal("0.05"))),
    Corruption(
        "prices_on_later_tick",
        changed("close_price", lambda row: row["close_price"] + Decimal("0.05")),
        symbol="LATER{}-USDT-SWAP",
    ),
    Corruption("volume_is_not_negative", changed("volume", Decimal(-1)), "volumes_agree_by_contract_value"),
    Corruption(
        "volume_currency_is_not_negative", changed("volume_currency", Decimal(-1)), "volumes_agree_by_contract_value"
    ),
    Corruption("volume_quote_is_not_negative", changed("volume_quote", Decimal(-1))),
    Corruption("volumes_agree_by_contract_value", changed("volume", lambda row: row["volume"] + Decimal("0.01"))),
    Corruption(
        "volumes_agree_by_later_contract_value",
        changed("volume", lambda row: row["volume"] + Decimal("0.01")),
        symbol="LATER{}-USDT-SWAP",
    ),
    Corruption("spot_volumes_agree", changed("volume_quote", Decimal(1)), symbol="X{}-USDT"),
    Corruption("no_range_without_trade", without_trade),
    Corruption("no_outage", an_hour_of_silence),
    Corruption("moves_within_usual_range", changed("high_price", Decimal(90_000))),
    *(
        Corruption(f"{name}_is_a_number", changed(name, None))
        for name in (
            "open_price",
            "high_price",
            "low_price",
            "close_price",
            "volume",
            "volume_currency",
            "volume_quote",
        )
    ),
    Corruption("source_is_known", changed("source", None)),
    Corruption("received_at_is_there", changed("received_at", None)),
    Corruption("updated_at_is_there", changed("updated_at", None)),
    Corruption("key_is_unique", row_twice),
    Corruption("no_candle_missing", row_gone),
    Corruption("opens_on_boundary", changed("timestamp_ms", CHANGED + 1), "open_time_is_the_timestamp"),
    Corruption("open_time_is_the_timestamp", changed("open_time", datetime(2026, 8, 2, tzinfo=UTC))),
    Corruption("rows_in_key_order", rows_swapped),
    Corruption("columns_and_types", of_type("volume", pa.float64())),
    Corruption("columns_and_types", lambda table: table.drop_columns(["source"]), "source_is_known"),
    Corruption("columns_and_types", lambda table: table.append_column("trades", table["timestamp_ms"])),
    Corruption("columns_and_types", changed("timestamp_ms", None), "no_candle_missing"),
    Corruption("file_holds_what_it_says", changed("volume_quote", Decimal(1))),
    Corruption("file_holds_what_it_says", row_of_another_month),
    Corruption("file_can_be_read", cut_off, "no_candle_missing parquet_equals_postgresql"),
    Corruption("file_can_be_read", with_a_flipped_bit, "no_candle_missing parquet_equals_postgresql"),
    Corruption("parquet_equals_postgresql", Path.unlink, "no_candle_missing"),
]


def test_every_corruption_in_parquet_is_caught_by_the_expectation_that_names_it(
    connection: Connection, files: ParquetStore, docs: DataDocs
) -> None:
    keys = [corruption.key(number) for number, corruption in enumerate(IN_PARQUET)]
    fill(connection, files, [*CLEAN, *keys])
    list_instruments(connection, [symbol for symbol, _ in keys if symbol.startswith("LATER")], LATER)
    for key, corruption in zip(keys, IN_PARQUET, strict=True):
        path = Path(files.place(SeriesMonth(*key, date(2026, 8, 1))))
        if corruption.change in (cut_off, with_a_flipped_bit, Path.unlink):
            corruption.change(path)
        else:
            table = pq.read_table(path, partitioning=None)
            # The hashes in its metadata stay those of the rows it had.
            pq.write_table(corruption.change(table).replace_schema_metadata(table.schema.metadata), path)
    verdicts = validate(connection, files, [*CLEAN, *keys], DAY, store=Store.PARQUET, docs=docs)
    found = failing(verdicts)
    for key, corruption in zip(keys, IN_PARQUET, strict=True):
        assert corruption.rule in found[key], corruption
        assert found[key] <= {corruption.rule, "file_holds_what_it_says", *corruption.besides.split()}, corruption
    assert {rule for key in CLEAN for rule in found[key]} == set()
    # PostgreSQL has nothing wrong, and sees what the file says of itself alone.
    in_postgresql = failing(validate(connection, files, [*CLEAN, *keys], DAY))
    assert set().union(*in_postgresql.values()) == {"parquet_equals_postgresql"}


def test_a_file_of_other_rows_that_says_so_is_not_what_postgresql_holds(
    connection: Connection, files: ParquetStore
) -> None:
    key = ("X-USDT-SWAP", "15m")
    fill(connection, files, [key])
    month = SeriesMonth(*key, date(2026, 8, 1))
    other = changed("volume_quote", Decimal(1))(files.read(month))
    files.write(month, other, day_hashes(other))
    for store in Store:
        verdicts = validate(connection, files, [key], DAY, store=store)
        assert failing(verdicts) == {key: {"parquet_equals_postgresql"}}
        assert failing(validate(connection, files, [key], EVE, store=store)) == {key: set()}
        (told,) = samples(verdicts, key, "parquet_equals_postgresql")
        assert set(told["parity_difference"].split()) >= {"PostgreSQL", "Parquet", day_hashes(other)[DAY]}


def test_every_rule_is_broken_in_one_of_these_tests_and_those_about_candles_in_both_stores() -> None:
    broken = [{corruption.rule for corruption in each} for each in (IN_POSTGRESQL, IN_PARQUET)]
    of_candles = {rule.name for rule in CANDLE_RULES}
    # What the ledger does not know is not judged, see above; its page says so.
    assert broken[0] | broken[1] == set(RULES) - {"ledger_knows_the_day"}
    assert of_candles - broken[0] == {rule.name for rule in CANDLE_RULES if rule.of_files}
    assert of_candles - broken[1] == set()
    assert len(IN_POSTGRESQL) >= 30
    assert len(IN_PARQUET) >= 30


# Archived, waiting, and changing meanwhile


def test_an_archived_month_is_judged_by_its_file_whichever_store_is_asked_for(
    connection: Connection, files: ParquetStore
) -> None:
    key, live = ("X-USDT-SWAP", "15m"), ("LIVE-USDT-SWAP", "15m")
    fill(connection, files, [key, live])
    month = SeriesMonth(*key, date(2026, 8, 1))
    archive_month(connection, files, month)
    for store in Store:
        verdicts = validate(connection, files, [key, live], DAY, store=store)
        assert failing(verdicts) == {key: set(), live: set()}
        assert {each.rows for each in verdicts} == {96}
    notes = [
        each.observed.get("notes") for each in validate(connection, files, [key, live], DAY) if each.check == "schema"
    ]
    assert notes == [["the month is archived: its rows were read from Parquet"], None]
    other = changed("open_price", Decimal(90_000))(files.read(month))
    files.write(month, other, day_hashes(other))
    found = failing(validate(connection, files, [key, live], DAY))
    assert found == {key: {"high_at_least_open", "parquet_equals_postgresql"}, live: set()}


def test_a_landing_that_waits_to_be_projected_is_no_error(connection: Connection, files: ParquetStore) -> None:
    key = ("X-USDT-SWAP", "15m")
    fill(connection, files, [key])
    corrected = [candle._replace(volume_quote="1") for candle in candles(*key, DAY)[:1]]
    land(connection, corrected, source=Source.REST, requested_at=one(connection, "SELECT clock_timestamp()"))
    verdicts = validate(connection, files, [key], DAY)
    assert failing(verdicts) == {key: {"parquet_is_up_to_date"}}
    assert all(each.passed for each in verdicts)
    project(connection, files, pending_months(connection))
    assert failing(validate(connection, files, [key], DAY)) == {key: set()}


class ProjectedMeanwhile(ParquetStore):
    """Files that are looked at just after something landed and was projected."""

    def __init__(self, root: str, meanwhile: Callable[[], None]) -> None:
        super().__init__(root)
        self._meanwhile: Callable[[], None] | None = meanwhile

    def state(self, month: SeriesMonth) -> Any:
        if self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            meanwhile()
        return super().state(month)


def test_a_projection_between_two_looks_is_no_difference(
    connection: Connection, database: Database, files: ParquetStore
) -> None:
    key = ("X-USDT-SWAP", "15m")
    fill(connection, files, [key])

    def correct() -> None:
        with database.connect() as other:
            corrected = [candle._replace(volume_quote="1") for candle in candles(*key, DAY)[:1]]
            land(other, corrected, source=Source.REST, requested_at=one(other, "SELECT clock_timestamp()"))
            project(other, files, pending_months(other))

    meanwhile = ProjectedMeanwhile(files.root, correct)
    assert failing(validate(connection, meanwhile, [key], DAY)) == {key: set()}


# How much of it is kept, and what it costs


def test_a_day_that_is_wrong_all_over_is_told_of_by_a_few_rows(
    connection: Connection, files: ParquetStore, docs: DataDocs
) -> None:
    keys = [(f"X{number}-USDT-SWAP", "15m") for number in range(20)]
    fill(connection, files, keys)
    unguarded(connection)
    connection.execute("UPDATE trading.candlesticks SET open_price = -open_price, source = 'tape', volume = -volume")
    verdicts = validate(connection, files, keys, DAY, docs=docs)
    assert all(
        key_failing >= {"open_price_is_positive", "source_is_known"} for key_failing in failing(verdicts).values()
    )
    for each in verdicts:
        assert all(len(rows) <= SAMPLES for rows in each.observed.get("samples", {}).values())
        assert each.severity in (None, Severity.CRITICAL, Severity.WARNING)
    assert {each.observed["unexpected"]["source_is_known"] for each in verdicts if each.check == "schema"} == {96}
    assert all(path.stat().st_size < 100_000 for path in docs.folder.rglob("*.*"))


def test_a_hundred_series_cost_less_than_three_times_one(connection: Connection, files: ParquetStore) -> None:
    keys = [(f"X{number}-USDT-SWAP", "15m") for number in range(100)]
    fill(connection, files, keys)
    validate(connection, files, keys[:1], DAY)

    def seconds(series: list[SeriesKey]) -> float:
        started = perf_counter()
        # All but the consistency of timeframes, of which each symbol has one.
        assert len(validate(connection, files, series, DAY)) == len(series) * (len(Check) - 1)
        return perf_counter() - started

    # The best of several, as a busy machine holds up one or another.
    assert min(seconds(keys) for _ in range(3)) < 3 * min(seconds(keys[:1]) for _ in range(3))
