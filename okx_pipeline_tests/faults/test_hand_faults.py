"""Faults by hand: rows deleted, edited or truncated away, a partition detached, a file damaged, a symbol listed again.

Time runs as it does in life, so that "within a minute" is one. The sidecar finds the fault. The commands that `status`
names do here what Dagster's runs do about it.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from okx_pipeline.monitor.health import repair_of
from okx_pipeline.storage.findings import Findings, findings
from okx_pipeline.storage.partitions import detached_months
from okx_pipeline.timeframes import HOUR_MS, day_ms
from okx_pipeline_tests.faults.past import MINUTES_INTO_DAY, MakeSystem, day, filled
from okx_pipeline_tests.faults.system import System
from okx_pipeline_tests.stream.stand import wait_until

DAYS = 75
"""From the end of August into November: three months that are over, and the one under way."""

WITHIN_S = 60.0
BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"


@pytest.fixture
def lived_in(make_system: MakeSystem) -> System:
    """A store with a whole past, and a sidecar that streams into it."""
    system = make_system(speed=1.0, minutes=DAYS * 1_440 + MINUTES_INTO_DAY, timeframes="1h,4h")
    assert system.command("subscribe", BTC, ETH, "--timeframes", "1h,4h", "--since", str(day(system, 0))) == 0
    filled(system, 0, DAYS + 1)
    system.sidecar()
    beating = "SELECT count(*) FROM trading.stream_status WHERE state = 'streaming'"
    wait_until(lambda: system.rows(beating) == [(1,)], "the sidecar streams", 60)
    wait_until(lambda: system.command("status") == 0, "the store is healthy", 60)
    return system


def found(system: System) -> Findings:
    with system.database.connect() as connection:
        return findings(connection)


def await_found(system: System, what: Callable[[Findings], object], name: str) -> Findings:
    """Wait until the store knows, a minute at the most; the status says so from then on."""
    known = Findings()

    def is_known() -> bool:
        nonlocal known
        known = found(system)
        return bool(what(known))

    wait_until(is_known, name, WITHIN_S)
    assert system.command("status") == 1
    return known


def execute(system: System, *statements: str) -> None:
    with system.database.connect() as connection:
        for statement in statements:
            connection.execute(statement)


def rows_of(system: System, symbol: str, number: int, hours: int = 24) -> str:
    start_ms = day_ms(day(system, number))
    return (
        f"symbol = '{symbol}' AND timeframe = '1h' AND timestamp_ms >= {start_ms} "
        f"AND timestamp_ms < {start_ms + hours * HOUR_MS}"
    )


def repaired(system: System, known: Findings) -> None:
    """Run the commands that the status names until it names none."""
    for _ in range(3):
        commands = {repair_of(each) for each in (*known.files, *known.checks, *known.changed, *known.missing)} - {None}
        for line in sorted(filter(None, commands)):
            assert system.command(*line.split()[1:]) in (0, 1), line
        known = found(system)
        if not known.series:
            break
    system.recovers(60)
    wait_until(lambda: system.command("status") == 0, "the store is healthy again", WITHIN_S)


@pytest.mark.fault(35, "rows deleted, edited and truncated away by hand", tries=2)
def test_rows_changed_by_hand_are_found_within_a_minute_and_repaired_by_what_the_status_names(
    lived_in: System,
) -> None:
    execute(
        lived_in,
        f"DELETE FROM trading.candlesticks WHERE {rows_of(lived_in, BTC, 3)}",
        f"UPDATE trading.candlesticks SET close_price = low_price, volume = volume + 1 "
        f"WHERE {rows_of(lived_in, ETH, 5, hours=2)}",
        "TRUNCATE trading.candlesticks_2026_10",
    )
    known = await_found(
        lived_in,
        lambda each: each.missing_candles >= 24 + 2 * 31 * (24 + 6) and each.changed_days == 1,
        "what is gone or changed is known",
    )
    assert {(each.symbol, each.day) for each in known.changed} == {(ETH, day(lived_in, 5))}
    assert (BTC, day(lived_in, 3)) in {(each.symbol, each.day) for each in known.missing}
    repaired(lived_in, known)
    # Both the edit and what put it right are on record.
    assert lived_in.rows("SELECT count(*) FROM trading.candlestick_revisions") == [(4,)]


@pytest.mark.fault(36, "a month's partition detached by hand", tries=2)
def test_a_detached_month_is_told_within_a_minute_and_whole_again_once_it_is_attached(lived_in: System) -> None:
    execute(lived_in, "ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_2026_09")
    known = await_found(lived_in, lambda each: each.missing_candles, "the month's candles are missing")
    assert {each.day.replace(day=1).isoformat() for each in known.missing} == {"2026-09-01"}
    with lived_in.database.connect() as connection:
        [detached] = detached_months(connection)
    execute(lived_in, detached.remedy)
    wait_until(lambda: lived_in.command("status") == 0, "the store is healthy again", WITHIN_S)
    lived_in.recovers(60)


@pytest.mark.fault(37, "files removed and cut off while nobody reads them", tries=2)
def test_a_damaged_file_is_found_within_a_minute_and_written_again_by_itself(lived_in: System) -> None:
    root = Path(lived_in.settings.parquet_root)
    files = lived_in.randomly.sample(sorted(root.rglob("month=2026-0[89]/candles.parquet")), 2)
    before = [path.read_bytes() for path in files]
    files[0].unlink()
    files[1].write_bytes(before[1][: lived_in.randomly.randrange(len(before[1]))])

    def are_whole() -> bool:
        sizes = [path.stat().st_size if path.exists() else 0 for path in files]
        return all(size > 0.9 * len(body) for size, body in zip(sizes, before, strict=True))

    # Damage that is found may be repaired before anybody could ask.
    wait_until(are_whole, "both are whole", WITHIN_S)
    lived_in.recovers(60)
    wait_until(lambda: lived_in.command("status") == 0, "the store is healthy again", WITHIN_S)


@pytest.mark.fault(38, "a symbol listed again under its old name", tries=2)
def test_a_symbol_that_is_listed_again_keeps_its_first_life(lived_in: System) -> None:
    lived_in.exchange.relisted[BTC] = day_ms(day(lived_in, DAYS - 1))
    assert lived_in.command("symbols", "--refresh") == 0
    held = lived_in.rows("SELECT count(*) FROM trading.coverage WHERE symbol = %s", BTC)
    execute(lived_in, f"DELETE FROM trading.candlesticks WHERE {rows_of(lived_in, BTC, 3)}")
    known = await_found(lived_in, lambda each: each.missing_candles == 24, "what is gone is known")
    assert lived_in.rows("SELECT count(*) FROM trading.coverage WHERE symbol = %s", BTC) == held
    repaired(lived_in, known)
