"""Tables that change under everybody's feet: months archived while they are corrected, missing months, migrations."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from time import monotonic
from urllib.parse import quote

import pytest

from okx_pipeline.alerts.sources import detached_partitions
from okx_pipeline.errors import PipelineError
from okx_pipeline.history.backfill import Backfill
from okx_pipeline.history.plan import days_of_range
from okx_pipeline.maintenance import upkeep
from okx_pipeline.maintenance.upkeep import look_after_months
from okx_pipeline.replay.corrections import Correction
from okx_pipeline.storage import migrations
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.migrations import known_migrations, migrate, packaged
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.partitions import detached_months
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, MINUTE_MS, day_ms, day_of, parse_timeframes
from okx_pipeline_tests.faults.checker import Checker
from okx_pipeline_tests.faults.past import MakeSystem, fill, with_backfill
from okx_pipeline_tests.faults.system import SPEED, System
from okx_pipeline_tests.faults.table import is_full
from okx_pipeline_tests.stream.stand import wait_until

LAST_OF_MONTH = date(2026, 8, 31)
DAY_MINUTES = 1_440
OLD = (date(2026, 5, 1), date(2026, 8, 1))
OLD_TIMEFRAMES = parse_timeframes("1h,1d")


def a_turn_of_month(make_system: MakeSystem, minutes_before: float, **settings: object) -> System:
    """A system whose exchange stands still so many minutes before a month ends."""
    since_ms = day_ms(LAST_OF_MONTH)
    return make_system(since_ms=since_ms, minutes=DAY_MINUTES - minutes_before, speed=0.0, **settings)


def streaming(system: System) -> None:
    """Start a sidecar, and the exchange's clock once it has come to where that stands."""
    system.sidecar()
    caught_up = "SELECT count(*) FROM trading.stream_status WHERE state = 'streaming'"
    wait_until(lambda: system.count(caught_up), "the sidecar streams", 30)
    system.exchange.clock.set(speed=SPEED)


# Months archived and corrected


def refetch(system: System, start: date, end: date) -> None:
    """Read the old candles of the days [start, end) again from REST."""

    async def work(backfill: Backfill) -> None:
        spans = [
            days_of_range(symbol, timeframe, start, end)
            for symbol in system.settings.symbols
            for timeframe in OLD_TIMEFRAMES
        ]
        await backfill.run(await backfill.plan(spans, only_missing=False))

    with_backfill(system.settings, system.database, work)


def of_old_candles(system: System) -> Checker:
    """What judges the old candles, wherever they are."""
    series = [(symbol, timeframe.name) for symbol in system.settings.symbols for timeframe in OLD_TIMEFRAMES]
    return replace(system.checker, series=series, start_ms=day_ms(OLD[0]))


def old_candles_are_sound(system: System) -> None:
    checker, end_ms = of_old_candles(system), day_ms(OLD[1])
    served = {
        series: {open_ms: values for open_ms, values in candles.items() if open_ms < end_ms}
        for series, candles in checker.served().items()
    }
    found = checker.check(served)
    assert found.is_sound, f"{found}\n{system.told()}"


def correct_one(system: System) -> date:
    """Have OKX change an old candle, as it does days after it confirmed it; returns its day."""
    at_ms = day_ms(OLD[0]) + system.randomly.randrange((day_ms(OLD[1]) - day_ms(OLD[0])) // HOUR_MS) * HOUR_MS
    symbol, volume = system.randomly.choice(system.settings.symbols), str(system.randomly.randrange(1, 10**6))
    system.exchange.correct(Correction(symbol=symbol, timeframe="1h", timestamp_ms=at_ms, volume=volume))
    return day_of(at_ms)


@contextmanager
def nobody_waits_for_long(database: Database) -> Iterator[str]:
    """A URL whose sessions never wait a second for another's lock, nor meet in a deadlock, while the block runs."""
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    with database.connect() as connection:
        met = one(connection, deadlocks)
        log = Path(one(connection, "SHOW data_directory")).parents[1] / "logs" / "postgres.log"
        begun = log.stat().st_size
        yield f"{database.url}&options={quote('-c log_lock_waits=on -c deadlock_timeout=1s', safe='')}"
        assert one(connection, deadlocks) == met
    with log.open("rb") as lines:
        lines.seek(begun)
        said = lines.read().decode().splitlines()
    assert [line for line in said if re.search(r"still waiting for|deadlock", line)] == []


@pytest.mark.fault(33, "months archived while they are read again and corrected", tries=5)
def test_retention_against_late_repairs_beside_the_stream_loses_nothing_and_holds_nobody_up(
    make_system: MakeSystem, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "RESTORED_STAYS_DAYS", 0)
    with nobody_waits_for_long(database) as url:
        system = a_turn_of_month(make_system, 2, database_url=url)
        refetch(system, *OLD)
        streaming(system)
        did: Counter[str] = Counter()
        until = monotonic() + (6 if is_full() else 3)

        def maintain() -> None:
            retention = dict.fromkeys(OLD_TIMEFRAMES[: 1 + did["maintain"] % 2], 10)
            with CandleStore.opened(database, ParquetStore(system.settings.parquet_root)) as store:
                for done in look_after_months(store, retention, system.now_ms()).done:
                    did["archived"] += len(done.archived)
                    did["dropped or swapped"] += done.dropped + done.swapped

        def repair() -> None:
            """A correction of a month that may be archived, or about to be."""
            corrected = correct_one(system)
            refetch(system, corrected, corrected + timedelta(days=1))

        def read_again() -> None:
            month = date(2026, 5 + did["read_again"] % 3, 1)
            refetch(system, month, month + timedelta(days=10))

        def over_and_over(work: Callable[[], None]) -> None:
            while monotonic() < until or not did[work.__name__]:
                work()
                did[work.__name__] += 1

        with ThreadPoolExecutor(3) as threads:
            for working in [threads.submit(over_and_over, work) for work in (maintain, repair, read_again)]:
                working.result()
        print(dict(did))
        assert did["archived"] >= 4
        # A candle of one run may have been corrected after the other had asked for it.
        refetch(system, *OLD)
        system.settle()
        old_candles_are_sound(system)
        wait_until(lambda: system.now_ms() > day_ms(LAST_OF_MONTH) + DAY_MS + 2 * MINUTE_MS, "the month turns", 30)
        system.recovers()
    with database.connect() as connection:
        assert one(connection, "SELECT count(*) FROM trading.candlestick_revisions") >= 1


@pytest.mark.fault(33, "months archived while they are read again and corrected", tries=5)
def test_a_late_repair_of_a_month_whose_archive_is_damaged_is_refused_aloud_and_lands_once_that_is_mended(
    make_system: MakeSystem, database: Database
) -> None:
    system = a_turn_of_month(make_system, 60)
    with CandleStore.opened(database, ParquetStore(system.settings.parquet_root)) as store:
        refetch(system, *OLD)
        refetch_today(system)
        look_after_months(store, dict.fromkeys(OLD_TIMEFRAMES, 10), system.now_ms())
        corrected = correct_one(system)
        archived = system.rows("SELECT symbol, timeframe, month FROM trading.candle_months WHERE state = 'archived'")
        assert len(archived) == 3 * len(system.settings.symbols) * len(OLD_TIMEFRAMES)
        saved = {}
        for path in Path(system.settings.parquet_root).rglob(f"month={corrected:%Y-%m}/candles.parquet"):
            saved[path] = path.read_bytes()
            path.write_bytes(saved[path][: system.randomly.randrange(len(saved[path]))])
        maintained = look_after_months(store, {}, system.now_ms())
        assert len(maintained.damaged) == len(saved)
        held = system.rows("SELECT * FROM trading.candlesticks ORDER BY symbol, timeframe, timestamp_ms")
        with pytest.raises(PipelineError, match=r"candles\.parquet: ") as told:
            refetch(system, corrected, corrected + timedelta(days=1))
        assert "\n" not in str(told.value)
        assert system.rows("SELECT * FROM trading.candlesticks ORDER BY symbol, timeframe, timestamp_ms") == held
        for path, body in saved.items():
            path.write_bytes(body)
        refetch(system, corrected, corrected + timedelta(days=1))
        old_candles_are_sound(system)
        system.recovers()


def refetch_today(system: System) -> None:
    """The candles that the system streams otherwise."""
    fill(system.settings, system.database, LAST_OF_MONTH, LAST_OF_MONTH + timedelta(days=1))


# Months without a partition


def drop(system: System, month: str) -> None:
    with system.database.connect() as connection:
        connection.execute(f"DROP TABLE IF EXISTS trading.candlesticks_{month}")


@pytest.mark.fault(24, "next month's partition gone, or there and not attached", tries=4)
def test_the_first_candles_of_a_month_without_a_partition_make_it(make_system: MakeSystem) -> None:
    system = a_turn_of_month(make_system, 3)
    streaming(system)
    drop(system, "2026_09")
    system.lets_pass(3 + system.randomly.random())
    if system.randomly.random() < 0.5:
        drop(system, "2026_10")
    system.lets_pass(1)
    system.recovers()
    assert system.errors() == {}
    assert system.rows("SELECT * FROM trading.candlesticks_2026_09")
    # There is none that would take what belongs elsewhere.
    assert system.rows("SELECT partdefid::int FROM pg_partitioned_table") == [(0,)]


@pytest.mark.fault(24, "next month's partition gone, or there and not attached", tries=4)
def test_what_opens_in_a_detached_month_waits_and_is_told_while_all_else_lands(make_system: MakeSystem) -> None:
    system = a_turn_of_month(make_system, 1)
    last_of_month = (
        "SELECT count(*) FROM trading.candlesticks WHERE timeframe = '1m' AND timestamp_ms = "
        f"{day_ms(date(2026, 9, 1)) - MINUTE_MS}"
    )
    with system.database.connect() as connection:
        connection.execute("SELECT trading.ensure_month('2026-09-01')")
        connection.execute("ALTER TABLE trading.candlesticks DETACH PARTITION trading.candlesticks_2026_09")
        streaming(system)
        wait_until(lambda: system.counter("month detached"), "the sidecar says that a month is detached")
        [detached] = detached_months(connection)
        assert detached.remedy in system.told()
        system.lets_pass(1 + 2 * system.randomly.random())
        assert system.count(last_of_month) == len(system.settings.symbols)
        assert system.counter("database away") == 0
        system.holds_its_promises()
        assert system.command("status") == 1
        assert str(detached) in system.told().splitlines()[-1]
        assert [incident.text for incident in detached_partitions(connection)] == [str(detached)]
        connection.execute(detached.remedy)  # type: ignore[arg-type]
        assert detached_partitions(connection) == []
    system.recovers()
    assert system.errors().keys() == {"month detached"}


# Migrations


@pytest.mark.fault(25, "a migration of the candles while they stream", tries=5)
def test_a_migration_under_load_gives_way_until_it_has_its_moment_and_nothing_is_lost(
    system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    for name in known_migrations():
        (folder / f"{name}.sql").write_text((packaged("sql") / f"{name}.sql").read_text())
    (folder / "9999.of-a-test.sql").write_text(
        "ALTER TABLE trading.candlesticks ADD COLUMN of_a_test integer;\n"
        "ALTER TABLE trading.candlesticks ADD CONSTRAINT of_a_test CHECK (volume >= 0);\n"
        "ALTER TABLE trading.candlesticks DROP CONSTRAINT of_a_test;\n"
        "ALTER TABLE trading.candlesticks DROP COLUMN of_a_test;\n"
    )
    monkeypatch.setattr(migrations, "packaged", lambda _: folder)
    landed = "SELECT count(*) FROM trading.candlesticks WHERE source = 'websocket'"
    system.streaming()
    with system.database.connect() as reader, system.database.connect() as other, ThreadPoolExecutor(1) as thread:
        # Who else would read waits as long as the migration does before it gives way, and no longer.
        other.execute("SET lock_timeout = '10s'")
        with reader.transaction():
            before = one(reader, landed)
            migrating = thread.submit(migrate, system.database)
            system.lets_pass(3 + 2 * system.randomly.random())
            wait_until(lambda: one(other, landed) > before, "candles land while the migration waits", 20)
            assert not migrating.done()
        assert migrating.result(60) == ["9999.of-a-test"]
    system.lets_pass(1)
    system.recovers()
    assert system.counter("database away") == 0
