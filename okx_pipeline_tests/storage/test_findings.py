"""Findings: what is wrong on any day, however old, until it is repaired, or accepted and unchanged."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from okx_pipeline.candles import Candle, Source
from okx_pipeline.errors import UsageError
from okx_pipeline.ranges import Range
from okx_pipeline.storage.alert_sources import failed_checks
from okx_pipeline.storage.alerts import Incident, looking, see
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import Read
from okx_pipeline.storage.damage import note_damage
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.findings import accept, accepted_findings, findings
from okx_pipeline.storage.landing import SeriesDay
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.quality_results import Severity, Store, Verdict, latest, record, summary
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.storage.wanted import want
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms, parse_timeframe

SYMBOL = "BTC-USDT-SWAP"
FIRST = date(2024, 2, 28)
DAYS = [FIRST + timedelta(number) for number in range(3)]
NOW_MS = day_ms(date(2026, 8, 20))
HOUR = parse_timeframe("1h")
KEY = SeriesDay(SYMBOL, "1h", DAYS[1])


def candle(open_ms: int, volume: str = "5") -> Candle:
    return Candle(SYMBOL, "1h", open_ms, "10", "12", "9", "11", volume, "0.05", "0.55")


@pytest.fixture
def store(emptied_database: Database, tmp_path: Path) -> Iterator[CandleStore]:
    """Three days of long ago, backfilled: whole and read from REST, of a series that nobody subscribed to."""
    with CandleStore.opened(emptied_database, ParquetStore(str(tmp_path / "parquet"))) as opened:
        wanted = Range(day_ms(FIRST), day_ms(FIRST) + 3 * DAY_MS)
        want(opened.connection, {(SYMBOL, HOUR.name): [wanted]}, "backfill")
        opened.land([candle(day_ms(FIRST) + number * HOUR_MS) for number in range(72)], source=Source.REST)
        opened.account(NOW_MS, {SeriesDay(SYMBOL, "1h", day): Read(24, 24, False, NOW_MS) for day in DAYS})
        opened.project([])
        yield opened


def verdict(severity: Severity | None, day: date = DAYS[1], check: str = "ohlc_sanity") -> Verdict:
    failed = () if severity is None else ("low_at_most_open",)
    at = datetime.now(tz=UTC)
    return Verdict(SYMBOL, "1h", day, check, Store.POSTGRES, severity, failed, {}, 24, at, f"page.html#{check}")


def lose(store: CandleStore, day: date, hours: int = 2) -> None:
    within = (SYMBOL, day_ms(day), day_ms(day) + hours * HOUR_MS)
    store.connection.execute(
        "DELETE FROM trading.candlesticks WHERE symbol = %s AND timestamp_ms >= %s AND timestamp_ms < %s", within
    )
    store.account(NOW_MS)


def test_a_sound_store_has_no_finding(store: CandleStore) -> None:
    found = findings(store.connection)
    assert (found.missing, found.checks, found.files, found.incidents) == ([], [], [], [])
    assert (found.series, found.accepted) == (frozenset(), 0)


def test_candles_that_are_deleted_on_an_old_day_are_a_finding_after_the_next_count(store: CandleStore) -> None:
    lose(store, DAYS[1])
    found = findings(store.connection)
    assert [(each.symbol, each.timeframe, each.day, each.missing) for each in found.missing] == [(*KEY, 2)]
    assert (found.missing_candles, found.missing_days, found.series) == (2, 1, {(SYMBOL, "1h")})


def test_history_on_its_way_is_no_finding(store: CandleStore) -> None:
    subscribe(store.connection, [SYMBOL], [HOUR], day_ms(FIRST) - 5 * DAY_MS)
    store.account(NOW_MS)
    assert findings(store.connection).missing == []


def test_the_standing_errors_of_all_days_are_findings_and_warnings_are_none(store: CandleStore) -> None:
    record(store.connection, [verdict(Severity.CRITICAL), verdict(Severity.CRITICAL, DAYS[0], "volumes")])
    record(store.connection, [verdict(Severity.WARNING, DAYS[2]), verdict(None, DAYS[2], "schema")])
    found = findings(store.connection)
    assert [(each.day, each.check, each.failed, each.page) for each in found.checks] == [
        (DAYS[1], "ohlc_sanity", ["low_at_most_open"], "page.html#ohlc_sanity"),
        (DAYS[0], "volumes", ["low_at_most_open"], "page.html#volumes"),
    ]
    assert (found.failing_checks, found.failing_days) == (2, 2)
    told = summary(store.connection)
    assert told is not None
    assert (told.with_errors, told.with_warnings, told.unjudged) == (2, 1, 3)


def test_the_verdict_on_a_day_that_the_ledger_let_go_is_no_finding(store: CandleStore) -> None:
    record(store.connection, [verdict(Severity.CRITICAL, FIRST - timedelta(days=30))])
    assert findings(store.connection).checks == []


def test_an_open_incident_is_a_finding_unless_the_store_itself_tells_it(store: CandleStore) -> None:
    for what in ("failed_run", "open_gaps", "stale_stream"):
        with looking(store.connection, what):
            see(store.connection, what, [Incident("", f"{what} of old")], [])
    with looking(store.connection, "failed_check"):
        ours = Incident("okx/candle_gaps/ledger_matches_rows", "the ledger differs")
        see(store.connection, "failed_check", [ours, Incident("volumes/BTC-USDT", "volumes fails")], [])
    with looking(store.connection, "quarantined_rows"):
        see(store.connection, "quarantined_rows", [Incident(SYMBOL, "odd rows", severity="warning")], [])
    assert [each.text for each in findings(store.connection).incidents] == ["failed_run of old", "the ledger differs"]


def test_an_accepted_finding_holds_until_the_content_of_its_day_changes_and_stays_listed(store: CandleStore) -> None:
    lose(store, DAYS[1])
    record(store.connection, [verdict(Severity.CRITICAL)])
    accept(store.connection, KEY, "OKX lost them in its outage")
    found = findings(store.connection)
    assert (found.missing, found.checks, found.accepted, found.series) == ([], [], 2, frozenset())
    [judged] = latest(store.connection)
    assert (judged.passed, judged.is_error, judged.accepted) == (False, False, "OKX lost them in its outage")
    assert failed_checks(store.connection) == []
    [told] = accepted_findings(store.connection)
    assert (told.day, told.reason, told.holds) == (DAYS[1], "OKX lost them in its outage", True)
    # The same content again is the same day.
    lose(store, DAYS[1])
    assert findings(store.connection).accepted == 2
    lose(store, DAYS[1], hours=3)
    found = findings(store.connection)
    assert (found.missing_candles, found.failing_checks, found.accepted) == (3, 1, 0)
    assert [each.is_error for each in latest(store.connection)] == [True]
    assert len(failed_checks(store.connection)) == 1
    assert [each.holds for each in accepted_findings(store.connection)] == [False]
    accept(store.connection, KEY, "and one more")
    assert findings(store.connection).accepted == 2


def test_only_a_closed_day_of_the_ledger_can_be_accepted(store: CandleStore) -> None:
    for key in (SeriesDay("ETH-USDT", "1h", DAYS[1]), SeriesDay(SYMBOL, "1h", date(2030, 1, 1))):
        with pytest.raises(UsageError, match=r"has no closed day .* okx-pipeline coverage"):
            accept(store.connection, key, "why not")


def test_a_damaged_file_is_a_finding_until_a_day_of_its_month_is_accepted_after_the_damage(store: CandleStore) -> None:
    accept(store.connection, KEY, "something else, earlier")
    note_damage(store.connection, SeriesMonth(SYMBOL, "1h", date(2024, 2, 1)), "it is gone")
    found = findings(store.connection)
    assert [(each.month, each.damage) for each in found.files] == [(date(2024, 2, 1), "it is gone")]
    assert found.damaged == 1
    accept(store.connection, KEY, "the disk is lost")
    found = findings(store.connection)
    assert (found.files, found.damaged, found.accepted) == ([], 0, 1)
