"""Looking: what opens, what is resolved, and what is told of sources that cannot be looked at."""

from collections.abc import Callable
from datetime import date

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from okx_pipeline.alerts.incidents import Source, look
from okx_pipeline.alerts.sources import detached_partitions, failed_quality_checks, open_gaps, quarantined_rows
from okx_pipeline.errors import PipelineError
from okx_pipeline.storage.alerts import Incident, forget_old, open_incidents
from okx_pipeline.storage.database import Connection, one
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms
from okx_pipeline_tests.alerts.conftest import Find
from okx_pipeline_tests.conftest import rows

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
DAY = date(2026, 8, 20)


def opened(connection: Connection, what: str = "open_gaps") -> list[str]:
    return [each.subject for each in open_incidents(connection, what)]


def test_what_is_found_opens_and_what_is_found_no_more_is_resolved(find: Find, connection: Connection) -> None:
    find(Incident("a", "as it was"), Incident("b", "text"))
    find(Incident("a", "as it is"), Incident("c", "text"))
    assert opened(connection) == ["a", "c"]
    assert rows(connection, "SELECT text FROM trading.alerts WHERE key = 'open_gaps:a'") == [("as it is",)]
    assert rows(connection, "SELECT key FROM trading.alerts WHERE resolved_at IS NOT NULL") == [("open_gaps:b",)]


def test_kinds_do_not_resolve_one_another(find: Find, connection: Connection) -> None:
    find(Incident("", "the stream"), what="stale_stream")
    find(what="open_gaps")
    assert opened(connection, "stale_stream") == [""]


@given(st.lists(st.sets(st.sampled_from("abcd")), max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_incident_is_open_exactly_while_it_is_found_and_new_each_time_it_comes_back(
    connection: Connection, looks: list[set[str]]
) -> None:
    connection.execute("DELETE FROM trading.alerts")
    before: set[str] = set()
    expected = 0
    for now in looks:
        look(connection, [Source("kind", lambda _, now=now: [Incident(each, "text") for each in now])], ["webhook"])  # type: ignore[misc]
        expected += len(now - before)
        assert set(opened(connection, "kind")) == now
        before = now
    assert one(connection, "SELECT count(*) FROM trading.alerts") == expected


def test_what_is_over_before_it_was_to_be_told_was_never_there(find: Find, connection: Connection) -> None:
    find(Incident("a", "text", patience_s=3600))
    assert opened(connection) == ["a"]
    find()
    assert rows(connection, "SELECT * FROM trading.alerts") == []


def test_a_source_that_fails_is_an_incident_itself_and_keeps_what_it_found(
    find: Find, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Connection) -> list[Incident]:
        raise PipelineError("the disk is full")

    def breaks(broken: Connection) -> list[Incident]:
        broken.execute("SELECT 1 / 0")
        return []

    find(Incident("a", "text"))
    find(Incident("b", "text"), what="failed_run")
    look(connection, [Source("open_gaps", fails), Source("failed_run", breaks), Source("other", lambda _: [])], [])
    assert opened(connection) == ["a", "unseen"]
    assert opened(connection, "failed_run") == ["b", "unseen"]
    texts = {each.text for each in open_incidents(connection, "open_gaps")}
    assert "open_gaps cannot be looked at: the disk is full" in texts
    assert "failed_run cannot be looked at: DivisionByZero" in {
        each.text for each in open_incidents(connection, "failed_run")
    }
    assert "cannot look for incidents of the kind failed_run" in caplog.text
    find(Incident("a", "text"))
    assert opened(connection) == ["a"]


def test_a_text_is_of_bounded_length(find: Find, connection: Connection) -> None:
    find(Incident("a", "x" * 100_000))
    assert one(connection, "SELECT length(text) FROM trading.alerts") == 1000


def test_what_was_resolved_long_ago_is_forgotten_with_what_was_sent_of_it(find: Find, connection: Connection) -> None:
    find(Incident("a", "text"))
    find(Incident("b", "text"))
    find()
    connection.execute("UPDATE trading.alerts SET resolved_at = resolved_at - interval '91 days' WHERE key LIKE '%a'")
    forget_old(connection)
    assert rows(connection, "SELECT key FROM trading.alerts") == [("open_gaps:b",)]
    assert one(connection, "SELECT count(*) FROM trading.alert_deliveries") == 1


# Sources that need nothing but the store.

Gap = Callable[..., None]


@pytest.fixture
def gap(connection: Connection) -> Gap:
    """`gap(symbol, hours)`: a gap of twelve candles that was detected so long ago."""

    def write(
        symbol: str, hours: float, status: str = "open", timeframe: str = "5m", first_ms: int = day_ms(DAY)
    ) -> None:
        connection.execute(
            "INSERT INTO trading.candle_gaps (symbol, timeframe, first_ms, last_ms, candles, status, detected_at, "
            "resolved_at) VALUES (%s, %s, %s, %s, 12, %s, clock_timestamp() - %s * interval '1 hour', "
            "CASE WHEN %s <> 'open' THEN clock_timestamp() END)",
            (symbol, timeframe, first_ms, first_ms + HOUR_MS, status, hours, status),
        )

    return write


def test_gaps_that_stay_open_are_an_incident_a_symbol(gap: Gap, connection: Connection) -> None:
    gap(BTC, 7)
    gap(BTC, 8, timeframe="1m", first_ms=day_ms(DAY) + DAY_MS)
    gap(BTC, 5, first_ms=day_ms(DAY) + 2 * DAY_MS)
    gap(ETH, 5)
    gap("SOL-USDT-SWAP", 99, "repaired")
    (incident,) = open_gaps(connection, 6)
    assert incident == Incident(
        BTC, f"{BTC}: 24 candles in 2 gaps (1m, 5m) missing for more than 6 hours", BTC, "critical"
    )
    assert [each.subject for each in open_gaps(connection, 4)] == [BTC, ETH]


def test_history_that_is_still_to_be_fetched_is_no_incident(gap: Gap, connection: Connection) -> None:
    gap(BTC, 7)
    connection.execute(
        "INSERT INTO trading.coverage (symbol, timeframe, day, expected, present, absent, quarantined, missing, "
        "content_hash) VALUES (%s, '5m', %s, 288, 276, 0, 0, 12, 'hash')",
        (BTC, DAY),
    )
    assert open_gaps(connection, 6) == []
    connection.execute("UPDATE trading.coverage SET read_at = clock_timestamp()")
    assert len(open_gaps(connection, 6)) == 1
    connection.execute("UPDATE trading.coverage SET read_at = NULL, content_hash = NULL")
    assert len(open_gaps(connection, 6)) == 1, "a gap of the day that is under way"


def test_quarantined_rows_are_a_warning_until_a_day_has_brought_no_more(connection: Connection) -> None:
    insert = (
        "INSERT INTO trading.candlesticks_quarantine (symbol, timeframe, timestamp_ms, reason, original, source, "
        "received_at) VALUES (%s, %s, %s, 'its high is below its low', '[]', 'rest', "
        "clock_timestamp() - %s * interval '1 hour')"
    )
    connection.execute(insert, (BTC, "5m", 0, 1))
    connection.execute(insert, (BTC, "1h", 0, 23))
    connection.execute(insert, (ETH, "1h", 0, 25))
    connection.execute(insert, (None, None, None, 1))
    told = "quarantined within 24 hours: its high is below its low"
    assert quarantined_rows(connection) == [
        Incident(BTC, f"{BTC}: 2 rows (5m, 1h) {told}", BTC, "warning"),
        Incident("", f"1 frame {told}", None, "warning"),
    ]


def test_a_detached_partition_is_an_incident_per_month_until_it_is_attached_dropped_or_renamed(
    connection: Connection,
) -> None:
    for number, ends in enumerate(["{attach}", "DROP TABLE {table}", "ALTER TABLE {table} RENAME TO kept"], start=5):
        connection.execute("SELECT trading.ensure_month(make_date(2026, %s, 1))", (number,))
        table = f"trading.candlesticks_2026_{number:02}"
        connection.execute(f"ALTER TABLE trading.candlesticks DETACH PARTITION {table}")
        [incident] = detached_partitions(connection)
        assert (incident.subject, incident.symbol, incident.severity) == (f"2026-{number:02}", None, "critical")
        assert incident.text.startswith(
            f"the partition of 2026-{number:02} is detached, so its candles can be neither "
        )
        connection.execute(ends.format(table=table, attach=incident.text.partition("attach it again with: ")[2]))
        assert detached_partitions(connection) == []


def test_verdicts_at_the_level_of_an_error_are_an_incident_a_check_and_symbol(connection: Connection) -> None:
    insert = (
        "INSERT INTO trading.quality_results (symbol, timeframe, day, check_name, store, passed, severity, failed, "
        "rows, validated_at) VALUES (%s, %s, %s, %s, %s, false, %s, '{rule}', 1, clock_timestamp())"
    )
    for store in ("postgres", "parquet"):
        connection.execute(insert, (BTC, "5m", DAY, "ohlc_sanity", store, "critical"))
    connection.execute(insert, (BTC, "1h", date(2026, 8, 21), "ohlc_sanity", "postgres", "critical"))
    connection.execute(insert, (BTC, "1h", DAY, "market_moves", "postgres", "warning"))
    (incident,) = failed_quality_checks(connection)
    told = f"{BTC}: check ohlc_sanity fails on 2 days (5m, 1h), the newest 2026-08-21"
    assert incident == Incident(f"ohlc_sanity/{BTC}", told, BTC)
