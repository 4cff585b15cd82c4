"""Verdicts in PostgreSQL: the latest of each check on each series-day, and what is told of all of them."""

import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.quality_results import (
    QualitySummary,
    Severity,
    Store,
    Verdict,
    forget_pages,
    latest,
    record,
    summary,
)
from okx_pipeline.timeframes import parse_timeframes

DAY = date(2026, 8, 2)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
PASSED = Verdict("BTC-USDT-SWAP", "5m", DAY, "schema", Store.POSTGRES, None, (), {}, 288, NOON, "a.html#schema")
FAILED = replace(
    PASSED,
    severity=Severity.CRITICAL,
    failed=("high_at_least_open", "no_outage"),
    observed={"unexpected": {"high_at_least_open": 1, "no_outage": 4}},
)


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


def test_a_verdict_is_read_as_it_was_written_down(connection: Connection) -> None:
    record(connection, [FAILED])
    assert latest(connection) == [FAILED]


def test_a_verdict_takes_the_place_of_the_one_before_on_the_same_check_series_day_and_store(
    connection: Connection,
) -> None:
    others = [
        replace(FAILED, check="volumes"),
        replace(FAILED, store=Store.PARQUET),
        replace(FAILED, timeframe="1h"),
        replace(FAILED, day=DAY + timedelta(days=1)),
    ]
    record(connection, [FAILED, *others])
    again = replace(PASSED, validated_at=NOON + timedelta(minutes=1), docs_page="b.html#schema")
    record(connection, [again])
    found = latest(connection)
    assert len(found) == 5
    assert again in found
    assert FAILED not in found


def test_a_verdict_on_older_rows_does_not_replace_one_on_newer(connection: Connection) -> None:
    record(connection, [PASSED])
    record(connection, [replace(FAILED, validated_at=NOON - timedelta(seconds=1))])
    assert latest(connection) == [PASSED]


@pytest.mark.parametrize(
    ("severity", "passed", "is_error"),
    [(None, True, False), ("info", True, False), ("warning", False, False), ("critical", False, True)],
)
def test_only_infos_let_a_check_pass_and_only_critical_failures_are_errors(
    connection: Connection, severity: str | None, passed: bool, is_error: bool
) -> None:
    verdict = replace(FAILED, severity=Severity(severity), failed=("x",)) if severity else PASSED
    record(connection, [verdict])
    (found,) = latest(connection)
    assert (found.passed, found.is_error) == (passed, is_error)
    assert connection.execute("SELECT passed FROM trading.quality_results").fetchone() == (passed,)
    assert latest(connection, failed_only=True) == ([] if passed else [verdict])


def test_the_table_takes_no_verdict_that_contradicts_itself(connection: Connection) -> None:
    record(connection, [PASSED])
    for contradiction in ("passed = false", "severity = 'critical'", "failed = '{x}'", "store = 'tape'", "rows = -1"):
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(f"UPDATE trading.quality_results SET {contradiction}")


def test_verdicts_are_found_by_symbol_timeframe_and_days(connection: Connection) -> None:
    verdicts = [
        replace(PASSED, symbol=symbol, timeframe=timeframe, day=DAY + timedelta(days=days))
        for days in (0, 1)
        for symbol in ("BTC-USDT-SWAP", "ETH-USDT-SWAP")
        for timeframe in ("1h", "5m")
    ]
    record(connection, reversed(verdicts))
    assert latest(connection) == verdicts
    assert latest(connection, symbols=["ETH-USDT-SWAP"]) == [each for each in verdicts if each.symbol[0] == "E"]
    assert latest(connection, timeframes=parse_timeframes("5m")) == [
        each for each in verdicts if each.timeframe == "5m"
    ]
    assert latest(connection, end=DAY + timedelta(days=1)) == verdicts[:4]
    assert latest(connection, start=DAY + timedelta(days=1)) == verdicts[4:]


def test_the_summary_counts_the_series_days_of_the_ledger_by_the_worst_that_failed(connection: Connection) -> None:
    assert summary(connection) is None
    old = DAY - timedelta(days=400)
    for timeframe, day in (("5m", DAY), ("1h", old), ("4h", DAY), ("15m", old)):
        connection.execute(
            "INSERT INTO trading.coverage (symbol, timeframe, day, expected, present, absent, quarantined, missing, "
            "content_hash, judged_at) VALUES ('BTC-USDT-SWAP', %s, %s, 1, 1, 0, 0, 0, '', "
            "CASE WHEN %s <> '15m' THEN clock_timestamp() END)",
            (timeframe, day, timeframe),
        )
    warning = replace(FAILED, severity=Severity.WARNING, timeframe="4h", check="volumes")
    record(connection, [PASSED, replace(FAILED, check="market_moves"), replace(FAILED, timeframe="1h", day=old)])
    record(connection, [replace(warning, validated_at=NOON + timedelta(hours=1))])
    # The ledger knows nothing of this one.
    record(connection, [replace(FAILED, timeframe="2h")])
    assert summary(connection) == QualitySummary(DAY, NOON + timedelta(hours=1), 3, 1, 2, 1)


def test_links_to_pages_that_are_gone_are_taken_back(connection: Connection) -> None:
    kept = replace(PASSED, timeframe="1h", docs_page="ab.html#schema")
    record(connection, [PASSED, replace(PASSED, check="volumes", docs_page="a.html#volumes"), kept])
    forget_pages(connection, ["a.html"])
    assert [each.docs_page for each in latest(connection)] == ["ab.html#schema", None, None]


def test_two_who_write_down_the_same_verdicts_at_once_do_not_block_each_other(database: Database) -> None:
    verdicts = [replace(PASSED, symbol=f"C{number}-USDT") for number in range(200)]
    failures = []

    def write(order: list[Verdict]) -> None:
        try:
            with database.connect() as connection:
                for _ in range(5):
                    record(connection, order)
        except psycopg.Error as problem:
            failures.append(problem)

    writers = [threading.Thread(target=write, args=(order,)) for order in (verdicts, verdicts[::-1])]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
