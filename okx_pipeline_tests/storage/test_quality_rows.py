"""What the quality checks look at: rows as they are, the rules in force on a day, and hashes that belong together."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from okx_pipeline.candles import Source
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import archive_month, pending_months, project
from okx_pipeline.storage.quality_results import Store
from okx_pipeline.storage.quality_rows import (
    HASH_OF_NOTHING,
    VALUES,
    DayMismatch,
    Expected,
    InstrumentRules,
    Parity,
    read_expected,
    read_mismatches,
    read_parity,
    read_rows,
    read_rules,
)
from okx_pipeline.timeframes import DAY_MS
from okx_pipeline_tests.storage.test_landing import AUGUST, MINUTE, candle

FIRST = date(2026, 8, 1)
BTC = ("BTC-USDT-SWAP", "1m")
ETH = ("ETH-USDT-SWAP", "1m")
SWAP = InstrumentRules(True, False, Decimal("0.01"), Decimal("0.1"))


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def files(tmp_path: Path) -> ParquetStore:
    return ParquetStore(str(tmp_path / "parquet"))


# Rows


@pytest.mark.parametrize("store", Store)
def test_the_rows_of_a_day_and_of_the_day_before_are_read_of_each_series_asked_for(
    connection: Connection, files: ParquetStore, store: Store
) -> None:
    minutes = [*range(-1440, -1437), 0, 1, 1439, 1440]
    both = [candle(minute, symbol=symbol) for minute in minutes for symbol in (ETH[0], BTC[0], "SOL-USDT-SWAP")]
    land(connection, both, source=Source.REST)
    project(connection, files, pending_months(connection))
    rows = read_rows(connection, files, [ETH, ("XRP-USDT", "1m"), BTC, ETH], FIRST, store)
    assert rows.series == (ETH, ("XRP-USDT", "1m"), BTC)
    found = sorted(zip(rows.candles["series"].to_pylist(), rows.candles["timestamp_ms"].to_pylist(), strict=True))
    assert found == [(number, AUGUST + minute * MINUTE) for number in (0, 2) for minute in (0, 1, 1439)]
    assert {text for name in VALUES for text in map(str, rows.candles.slice(0, 1)[name].to_pylist())} == {
        f"{Decimal(value):.18f}" for value in candle().values
    }
    earlier = sorted(zip(rows.earlier["series"].to_pylist(), rows.earlier["timestamp_ms"].to_pylist(), strict=True))
    assert earlier == [(number, AUGUST + minute * MINUTE) for number in (0, 2) for minute in minutes[:3]]
    assert set(rows.earlier["close_price"].to_pylist()) == {63030.0}
    assert rows.in_files == (frozenset(rows.series) if store is Store.PARQUET else frozenset())


def test_a_month_that_is_archived_is_read_from_its_file_and_the_others_are_not(
    connection: Connection, files: ParquetStore
) -> None:
    land(connection, [candle(0, symbol=symbol) for symbol in (BTC[0], ETH[0])], source=Source.REST)
    project(connection, files, pending_months(connection))
    archive_month(connection, files, SeriesMonth(*BTC, FIRST))
    rows = read_rows(connection, files, [BTC, ETH], FIRST, Store.POSTGRES)
    assert rows.in_files == {BTC}
    assert sorted(rows.candles["series"].to_pylist()) == [0, 1]
    assert rows.candles["open_time_ms"].null_count == 1


# The ledger and mismatches


def test_the_ledger_is_read_by_series_and_day(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO trading.coverage (symbol, timeframe, day, expected, present, absent, quarantined, missing) VALUES "
        "('BTC-USDT-SWAP', '1m', '2026-08-01', 10, 4, 3, 2, 1), ('BTC-USDT-SWAP', '5m', '2026-08-01', 9, 9, 0, 0, 0), "
        "('BTC-USDT-SWAP', '1m', '2026-08-02', 8, 8, 0, 0, 0)"
    )
    assert read_expected(connection, [BTC, ETH], FIRST) == {BTC: Expected(10, absent=3, quarantined=2, missing=1)}
    assert Expected(10, absent=3, quarantined=2, missing=1).due == 5
    land(connection, [candle(0)], source=Source.REST)
    assert read_expected(connection, [BTC], FIRST) == {BTC: Expected(10, absent=3, quarantined=2, missing=0)}


def test_mismatches_are_read_that_are_not_resolved(connection: Connection) -> None:
    rows = [
        (*BTC, AUGUST, "1s", "volume", "open", None, None),
        (*BTC, AUGUST + DAY_MS - MINUTE, "1s", "volume", "exchange", "now", None),
        (*BTC, AUGUST + MINUTE, "1s", "volume", "resolved", None, "now"),
        (*BTC, AUGUST + DAY_MS, "1s", "volume", "open", None, None),
        (*ETH, AUGUST, "1s", "volume", "open", None, None),
    ]
    for row in rows:
        connection.execute(
            "INSERT INTO trading.timeframe_mismatches (symbol, timeframe, timestamp_ms, against, column_name, class, "
            "confirmed_at, resolved_at, value, summed) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 1.5, 1.25)",
            row,
        )
    assert read_mismatches(connection, [BTC], FIRST) == [
        DayMismatch(*BTC, AUGUST, "1s", "volume", "1.5", "1.25", False),
        DayMismatch(*BTC, AUGUST + DAY_MS - MINUTE, "1s", "volume", "1.5", "1.25", True),
    ]


# Rules


def know(connection: Connection, *moments: datetime, tick: str = "0.1", **changed: str) -> None:
    """A version of BTC-USDT-SWAP's rules from each of `moments` on."""
    version = {
        "instrument_type": "SWAP",
        "contract_type": "linear",
        "contract_value": "0.01",
        "contract_multiplier": "1",
        **changed,
    }
    for moment in moments:
        connection.execute(
            "INSERT INTO trading.instruments (symbol, valid_from, instrument_type, contract_type, contract_value, "
            "contract_multiplier, tick_size, state) VALUES ('BTC-USDT-SWAP', %s, %s, %s, %s, %s, %s, 'live')",
            (moment, *version.values(), tick),
        )


def at(days: float) -> datetime:
    return datetime(2026, 8, 1, tzinfo=UTC) + timedelta(days=days)


def rules(connection: Connection) -> InstrumentRules | None:
    found = read_rules(connection, ["BTC-USDT-SWAP", "ETH-USDT-SWAP"], FIRST)
    assert "ETH-USDT-SWAP" not in found
    return found.get("BTC-USDT-SWAP")


def test_of_an_instrument_never_listed_there_are_no_rules(connection: Connection) -> None:
    assert rules(connection) is None


@pytest.mark.parametrize("known_since", [-300, 0, 0.5, 1 - 1e-9])
def test_rules_cover_a_day_that_they_were_known_on(connection: Connection, known_since: float) -> None:
    know(connection, at(-301), tick="5")
    know(connection, at(known_since))
    changed_within = known_since > 0
    assert rules(connection) == replace(SWAP, tick_size=None if changed_within else Decimal("0.1"))


def test_rules_first_known_during_a_day_cover_it(connection: Connection) -> None:
    know(connection, at(0.5))
    know(connection, at(2), tick="5")
    assert rules(connection) == SWAP


def test_a_change_recorded_on_the_day_after_may_have_been_in_force_before(connection: Connection) -> None:
    know(connection, at(-10))
    know(connection, at(1.9), contract_value="0.1")
    assert rules(connection) == replace(SWAP, contract_value=None)


def test_before_the_first_rules_known_those_are_taken_and_do_not_cover_the_day(connection: Connection) -> None:
    know(connection, at(1))
    know(connection, at(2), tick="5", contract_value="10")
    assert rules(connection) == replace(SWAP, covers=False)


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"contract_multiplier": "10"}, replace(SWAP, contract_value=Decimal("0.10"))),
        ({"contract_multiplier": None}, SWAP),
        ({"contract_type": "inverse", "contract_value": "100"}, replace(SWAP, contract_value=None)),
        (
            {"instrument_type": "SPOT", "contract_type": None, "contract_value": None},
            replace(SWAP, contract_value=None, is_spot=True),
        ),
    ],
)
def test_only_linear_contracts_have_a_value_in_base_coin(
    connection: Connection, changed: dict[str, str], wanted: InstrumentRules
) -> None:
    know(connection, at(-1), **changed)
    assert rules(connection) == wanted


# Parity


def test_hashes_are_those_of_the_day_and_of_an_archived_month_those_of_the_month(
    connection: Connection, files: ParquetStore
) -> None:
    both = [candle(minute, symbol=symbol) for minute in (0, 1440) for symbol in (BTC[0], ETH[0])]
    land(connection, both, source=Source.REST)
    project(connection, files, pending_months(connection))
    archive_month(connection, files, SeriesMonth(*ETH, FIRST))
    day = str(one(connection, "SELECT trading.content_hash(%s, %s, %s, %s)", (*BTC, AUGUST, AUGUST + DAY_MS)))
    month = str(one(connection, "SELECT content_hash FROM trading.candle_months WHERE state = 'archived'"))
    nobody = ("XRP-USDT", "1m")
    assert read_parity(connection, files, [BTC, ETH, nobody], FIRST) == {
        BTC: Parity(day, day),
        ETH: Parity(month, month),
        nobody: Parity(HASH_OF_NOTHING, HASH_OF_NOTHING),
    }


def test_a_landing_since_the_projection_waits(connection: Connection, files: ParquetStore) -> None:
    land(connection, [candle(0), candle(1440)], source=Source.REST)
    project(connection, files, pending_months(connection))
    land(connection, [candle(1)], source=Source.REST)
    (parity,) = read_parity(connection, files, [BTC], FIRST).values()
    assert parity.waits
    assert parity.postgres != parity.parquet
    (parity,) = read_parity(connection, files, [BTC], date(2026, 8, 2)).values()
    assert not parity.waits
    assert parity.postgres == parity.parquet


def test_a_file_that_cannot_be_read_has_no_hash(connection: Connection, files: ParquetStore) -> None:
    land(connection, [candle(0)], source=Source.REST)
    project(connection, files, pending_months(connection))
    path = Path(files.place(SeriesMonth(*BTC, FIRST)))
    path.write_bytes(path.read_bytes()[:-9])
    (parity,) = read_parity(connection, files, [BTC], FIRST).values()
    assert (parity.parquet, parity.waits) == (None, False)
