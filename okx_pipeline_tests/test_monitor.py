"""The monitor: what it shows of a store, how it fits a terminal, what ends it, and what health is."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from okx_pipeline.candles import Candle, Source
from okx_pipeline.monitor import reading as reads
from okx_pipeline.monitor.health import health_of
from okx_pipeline.monitor.reading import Disk, History, Reader, Reading, SeriesNow, used_bytes
from okx_pipeline.monitor.screen import ASCII, UNICODE, frame, head_lines, percent
from okx_pipeline.ranges import Range
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.activity import OpenDay, OpenGaps
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.findings import DamagedMonth, FailingCheck, Findings, MissingCandles, OpenIncident
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.overview import SeriesLedger, StoreOverview
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.partitions import DetachedMonth
from okx_pipeline.storage.quality_results import QualitySummary
from okx_pipeline.storage.stream_status import Heartbeat, SidecarStatus, beat
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.storage.wanted import want
from okx_pipeline.stream.health import SilentSeries, StreamHealth
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS, day_ms, parse_timeframes
from okx_pipeline_tests.e2e.terminal import Terminal, terminal
from okx_pipeline_tests.test_cli import Program, refused

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
DAY = date(2026, 8, 20)
NOW_MS = day_ms(DAY) + 100 * MINUTE_MS + 5_000


def candle(open_ms: int, symbol: str = BTC) -> Candle:
    return Candle(symbol, "1m", open_ms, "10", "11", "9", "10", "5", "0.05", "500")


def beats(connection: Connection, state: str = "streaming", **more: Any) -> None:
    """A heartbeat of a sidecar that streams two series."""
    counters = {
        "frames": 1000,
        "inserted": 60,
        "series": 2,
        "subscribed": 2,
        "connections": 1,
        "reconnects": 3,
        "waiting": 7,
        "waiting s": 0.2,
        "catching up": 0,
        "errors": {"connection ended": 3, "catch-up failed": 1},
    }
    beat(connection, Heartbeat("host:1", state, NOW_MS, counters, **more))


@pytest.fixture
def store(connection: Connection, tmp_path: Path) -> CandleStore:
    """Two series of a minute, both streamed until a moment ago, and a sidecar that lives."""
    subscribe(connection, [BTC, ETH], parse_timeframes("1m"), day_ms(DAY))
    store = CandleStore(connection, ParquetStore(str(tmp_path / "home" / "parquet")), "here")
    opens = range(day_ms(DAY), NOW_MS - MINUTE_MS, MINUTE_MS)
    store.land([candle(open_ms, symbol) for symbol in (BTC, ETH) for open_ms in opens], source=Source.WEBSOCKET)
    store.account(NOW_MS)
    beats(connection)
    return store


@pytest.fixture
def program(database: Database, tmp_path: Path) -> Program:
    (tmp_path / "home").mkdir()
    return Program(tmp_path, OKX_DATABASE_URL=database.url, COLUMNS="80")


# Once


def test_once_shows_everything_and_ends_well_if_all_is_well(store: CandleStore, program: Program) -> None:
    ended = program("monitor", "--once")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    lines = ended.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "2026-08-20 01:40" in lines[0]
    assert "100 %  2 of 2 series sound" in ended.stdout
    assert "streaming, beat" in ended.stdout
    assert "1 connection · 2 of 2 series · 3 reconnects" in ended.stdout
    assert "queue 7 (0.2 s)" in ended.stdout
    assert "connection ended 3, catch-up failed 1" in ended.stdout
    assert "MB free" in ended.stdout or "GB free" in ended.stdout
    assert "no open gaps" in ended.stdout
    (btc,) = (line for line in lines if line.startswith(BTC))
    assert "08-20 01:39" in btc


def test_once_is_red_as_status_is(store: CandleStore, program: Program, connection: Connection) -> None:
    connection.execute("UPDATE trading.stream_status SET exchange_ms = exchange_ms + 600000")
    shown, status = program("monitor", "--once"), program("status")
    assert shown.returncode == status.returncode == 1
    told = "error: 2 series are late, BTC-USDT-SWAP 1m by "
    assert shown.stderr.startswith(told)
    assert status.stderr.startswith(told)
    assert "0.0 %  0 of 2 series sound" in shown.stdout
    assert "2 series are late" in shown.stdout
    connection.execute("UPDATE trading.stream_status SET heartbeat_at = heartbeat_at - interval '1 minute'")
    assert "error: the sidecar host:1 does not beat" in program("monitor", "--once").stderr


def test_once_without_a_store_or_with_an_old_one_is_one_line(
    program: Program, new_database: Callable[[bool], Database], tmp_path: Path
) -> None:
    refused(program("monitor", "--once", OKX_DATABASE_URL=new_database(False).url), 1, "okx-pipeline migrate")
    refused(program("monitor", "--once", OKX_DATABASE_URL=""), 1, "no store", "okx-pipeline up")
    refused(program("monitor", "--once", OKX_DATABASE_URL="postgresql://x@127.0.0.1:1/x"), 1, "cannot reach")


def test_live_needs_a_terminal(store: CandleStore, program: Program) -> None:
    refused(program("monitor"), 2, "no terminal", "--once")
    refused(program("monitor", FORCE_COLOR="1"), 2, "no terminal")


def test_ascii_is_enough(store: CandleStore, program: Program) -> None:
    ended = program("monitor", "--once", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii()


# Live


Live = Callable[..., AbstractContextManager[Terminal]]


@pytest.fixture
def live(store: CandleStore, program: Program) -> Live:
    """Opens the monitor in a terminal."""

    def opened(**how: Any) -> AbstractContextManager[Terminal]:
        environment = {name: value for name, value in program.environment.items() if name != "COLUMNS"}
        environment |= how.pop("environment", {})
        return terminal([sys.executable, "-m", "okx_pipeline", "monitor"], program.folder, environment, **how)

    return opened


def test_it_moves_and_q_ends_it(live: Live, connection: Connection) -> None:
    with live() as shown:
        shown.await_text(BTC)
        shown.await_text("01:39")
        assert not shown.is_as_it_was
        last_ms = NOW_MS - NOW_MS % MINUTE_MS
        land(connection, [candle(last_ms)], source=Source.WEBSOCKET)
        beat(connection, Heartbeat("host:1", "streaming", NOW_MS + MINUTE_MS, {"frames": 1100}))
        shown.await_text("08-20 01:40")
        assert all(len(line) <= 80 for line in shown.lines)
        shown.press("\x1b[A")
        shown.resize(120, 30)
        shown.await_text("08-20 01:40")
        assert shown.process.poll() is None
        shown.press("q")
        assert shown.end() == 0
        assert shown.is_as_it_was


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_as_q_does(live: Live, number: signal.Signals) -> None:
    with live() as shown:
        shown.await_text(BTC)
        if number is signal.SIGINT:
            shown.press("\x03")
        else:
            os.kill(shown.process.pid, number)
        assert shown.end() == 0
        assert shown.is_as_it_was
        assert "Traceback" not in shown.text


def test_a_database_that_fails_is_told_and_looked_at_again(live: Live, connection: Connection) -> None:
    with live() as shown:
        shown.await_text(BTC)
        connection.execute("ALTER TABLE trading.subscriptions RENAME TO gone")
        shown.await_text('relation "trading.subscriptions" does not exist')
        shown.await_text(BTC)
        connection.execute("ALTER TABLE trading.gone RENAME TO subscriptions")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )
        beat(connection, Heartbeat("host:1", "streaming", NOW_MS + 2 * MINUTE_MS, {"frames": 1100}))
        shown.await_text("01:42")
        shown.press("q")
        assert shown.end() == 0


def test_a_dumb_terminal_is_shown_everything_without_a_command_to_it(
    live: Live,
) -> None:
    with live(environment={"TERM": "dumb"}) as shown:
        shown.await_text(BTC)
        shown.press("\x03")
        assert shown.end() == 0
        assert "\x1b" not in shown.raw


def test_the_store_as_a_whole_is_summed_up_as_seldom_as_it_costs(
    store: CandleStore, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed: list[None] = []
    monkeypatch.setattr(
        reads, "overview", lambda connection, real=reads.overview: summed.append(None) or real(connection)
    )
    with Reader(read_settings(home=tmp_path / "home"), database) as reader:
        for _ in range(3):
            assert reader.read(10).health.percent == 100
        assert len(summed) <= 3
        monkeypatch.setattr(reads, "STORE_SHARE", 1e9)
        reader._store_from_s = 0
        before = len(summed)
        for _ in range(3):
            reader.read(10)
        assert len(summed) == before + 1


def test_what_a_backfill_wants_is_shown_beside_what_is_subscribed(
    store: CandleStore, database: Database, tmp_path: Path
) -> None:
    want(store.connection, {("SOL-USDT", "1h"): [Range(day_ms(DAY) - DAY_MS, day_ms(DAY))]}, "backfill")
    with Reader(read_settings(home=tmp_path / "home"), database) as reader:
        shown = {each.symbol: (each.late_ms, each.last_ms is None) for each in reader.read(3).series}
    assert shown == {BTC: (0, False), ETH: (0, False), "SOL-USDT": (0, True)}


def test_the_worst_series_come_first(store: CandleStore, database: Database, tmp_path: Path) -> None:
    def order() -> list[str]:
        with Reader(read_settings(home=tmp_path / "home"), database) as reader:
            return [each.symbol for each in reader.read(10).series]

    assert order() == [BTC, ETH]
    store.connection.execute(
        "DELETE FROM trading.candlesticks WHERE symbol = %s AND timestamp_ms > %s", (ETH, NOW_MS // 2)
    )
    store.land([candle(day_ms(DAY), ETH)], source=Source.REST)
    assert order() == [ETH, BTC], "it is late"
    beats(store.connection, refused={f"{BTC} 1m": "gone"})
    assert order() == [BTC, ETH], "it is refused"


def test_rates_are_told_from_the_second_look_on(store: CandleStore, database: Database, tmp_path: Path) -> None:
    with Reader(read_settings(home=tmp_path / "home"), database) as reader:
        assert reader.read(10).frames_s is None
        store.connection.execute(
            "UPDATE trading.stream_status SET heartbeat_at = heartbeat_at + interval '2 seconds', "
            'counters = counters || \'{"frames": 1100, "inserted": 64}\''
        )
        later = reader.read(10)
        assert (later.frames_s, later.landed_s) == (50, 2)
        store.connection.execute("UPDATE trading.stream_status SET started_at = started_at + interval '3 seconds'")
        assert reader.read(10).frames_s is None, "another sidecar counts from nothing"


def test_the_pace_of_history_tells_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    reader = Reader(read_settings(), database)
    now = [1000.0]
    monkeypatch.setattr(reads, "monotonic", lambda: now[0])
    told = []
    for seconds, fetching in [(0, 10_000), (10, 9_000), (10, 8_000), (100, 8_000), (1000, 8_000)]:
        now[0] += seconds
        told.append(reader._left_s(fetching))
    assert told == [None, None, 80.0, 480.0, None]


def test_the_disk_is_counted_in_blocks_and_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"x" * 10_000)
    with (tmp_path / "a" / "sparse").open("wb") as sparse:
        sparse.truncate(10**9)
    assert 10_000 <= used_bytes(tmp_path) < 10**6


# Health


def ledgers(**in_gaps: tuple[int, int]) -> dict[tuple[str, str], SeriesLedger]:
    return {
        (symbol, "1m"): SeriesLedger(symbol, "1m", 1000, 1000 - missing, 0, 0, missing, 0, overdue)
        for symbol, (missing, overdue) in in_gaps.items()
    }


def sidecar(state: str = "streaming", age_s: float = 1.0, **more: Any) -> SidecarStatus:
    at = datetime(2026, 8, 20, tzinfo=UTC)
    whole = {"counters": {}, "refused": {}, "maintenance": [], **more}
    return SidecarStatus("host:1", state, at, at, age_s, NOW_MS, **whole)


def stream(status: SidecarStatus | None, late: dict[str, int] | None = None) -> StreamHealth:
    silent = [SilentSeries(symbol, "1m", None, late_ms, None) for symbol, late_ms in (late or {}).items()]
    return StreamHealth(status, NOW_MS, silent)


def whole(found: Findings | None = None) -> StoreOverview:
    at = datetime(2026, 8, 20, tzinfo=UTC)
    judged = QualitySummary(day=DAY, validated_at=at, series_days=7, unjudged=0, with_errors=0, with_warnings=0)
    return StoreOverview("18", 10**6, 10**4, "market", 0, 0, judged, [], found or Findings())


LONG_AGO = date(2024, 2, 29)
A_MISSING = Findings(
    [MissingCandles("A", "1m", LONG_AGO, 12, None)],
    missing_candles=12,
    missing_days=1,
    series=frozenset({("A", "1m")}),
)
A_FAILING = Findings(
    checks=[FailingCheck("A", "1m", LONG_AGO, "ohlc_sanity", "postgres", ["low_at_most_open"], "a.html", None)],
    failing_days=1,
    failing_checks=1,
    series=frozenset({("A", "1m")}),
)
B_DAMAGED = Findings(
    files=[DamagedMonth("B", "1m", date(2024, 2, 1), True, "/b: it is gone", None)],
    damaged=1,
    series=frozenset({("B", "1m")}),
)


FOUR = {(symbol, "1m"): None for symbol in "ABCD"}
MAINTENANCE = [{"title": "work", "state": "ongoing", "begin_ms": 0, "end_ms": NOW_MS + 1, "stops_candles": True}]
CASES: dict[str, tuple[float, bool, str, dict[str, Any]]] = {
    "all is well": (100, True, "", {}),
    "a month is detached": (
        *(75, False, "the partition of 2026-08 is detached, "),
        {
            "store": whole(Findings(detached=[DetachedMonth(date(2026, 8, 1))])),
            "stream": stream(sidecar(), {"A": 65_000}),
        },
    ),
    "a series is late": (75, False, "1 series are late, A 1m by 65 s", {"stream": stream(sidecar(), {"A": 65_000})}),
    "late while OKX is at maintenance": (
        *(100, True, "OKX is at maintenance: work"),
        {"stream": stream(sidecar(maintenance=MAINTENANCE), {"A": 65_000})},
    ),
    "OKX refuses one": (
        *(75, True, "OKX refuses 1 series, B 1m: gone"),
        {"stream": stream(sidecar(refused={"B 1m": "gone"}))},
    ),
    "candles are missing on an old day": (
        *(75, False, "12 candles missing on 1 series-day, the newest 12 of A 1m 2024-02-29; repair: okx-pipeline gaps"),
        {"store": whole(A_MISSING)},
    ),
    "the same series is late and has a gap": (
        *(75, False, "late"),
        {"stream": stream(sidecar(), {"A": 65_000}), "store": whole(A_MISSING)},
    ),
    "an archived file is damaged": (
        *(75, False, "1 Parquet file damaged: /b: it is gone; bring the file back from a backup"),
        {"store": whole(B_DAMAGED)},
    ),
    "an incident is open": (
        *(100, False, "1 incident open: the daemon is silent"),
        {"store": whole(Findings(incidents=[OpenIncident(None, "the daemon is silent")]))},
    ),
    "a finding is accepted": (
        *(100, True, "1 finding accepted; see: okx-pipeline accept --list"),
        {"store": whole(Findings(accepted=1))},
    ),
    "a series that is held and not subscribed has a finding": (
        *(80, False, "12 candles missing"),
        {
            "store": whole(A_MISSING),
            "wanted": dict.fromkeys([(name, "1m") for name in "BCDE"]),
            "held": ledgers(A=(12, 0)),
        },
    ),
    "the sidecar is dead": (0, False, "does not beat since 60 s", {"stream": stream(sidecar(age_s=60))}),
    "it was stopped": (100, True, "no sidecar streams", {"stream": stream(sidecar("stopped", 60), {"A": 1})}),
    "there never was one": (100, True, "no sidecar streams", {"stream": stream(None)}),
    "a check fails on an old day": (
        75,
        False,
        "1 check failing on 1 series-day, the newest ohlc_sanity of A 1m 2024-02-29; repair: okx-pipeline backfill "
        "--refetch --symbols A --timeframes 1m --start 2024-02-29 --end 2024-03-01",
        {"store": whole(A_FAILING)},
    ),
    "nothing is subscribed": (100, True, "nothing is subscribed", {"wanted": {}}),
}


@pytest.mark.parametrize(("share", "healthy", "reason", "given_"), CASES.values(), ids=CASES.keys())
def test_health_is_the_share_of_sound_series_with_its_reasons(
    share: float, healthy: bool, reason: str, given_: dict[str, Any]
) -> None:
    parts = {"store": whole(), "held": {}, "stream": stream(sidecar()), "wanted": FOUR, **given_}
    health = health_of(parts["store"], parts["held"], parts["stream"], parts["wanted"])
    assert health.percent == share
    assert (health.problem is None) == healthy
    assert any(reason in each for each in health.reasons) if reason else health.reasons == []


def test_a_percentage_is_never_rounded_up_to_a_whole() -> None:
    assert [percent(share) for share in (100, 99.99, 99.96, 50, 0)] == ["100 %", "99.9 %", "99.9 %", "50.0 %", "0.0 %"]


# Drawing


def reading(series: list[SeriesNow], **more: Any) -> Reading:
    status = sidecar(**more.pop("sidecar", {}))
    health = health_of(whole(), {}, stream(status), [(each.symbol, each.timeframe) for each in series])
    parts: dict[str, Any] = {
        "at": datetime(2026, 8, 20, tzinfo=UTC),
        "read_s": monotonic(),
        "place": "here",
        "stream": stream(status),
        "series": series,
        "store": whole(),
        "history": History(1000, 500, 400, 3600.0),
        "gaps": OpenGaps(2, 30),
        "health": health,
        "disk": Disk(10**9, 10**11),
        "frames_s": 10.0,
        "landed_s": 1.0,
        "budget": {"candles": 7},
        **more,
    }
    return Reading(**parts)


def drawn(read: Reading, width: int = 80, height: int | None = 24, strokes: Any = UNICODE) -> list[str]:
    said = StringIO()
    Console(file=said, width=width, height=height or 1000, force_terminal=False, highlight=False).print(
        frame(read, width, height, strokes)
    )
    return said.getvalue().splitlines()


def one_series(number: int, **more: Any) -> SeriesNow:
    parts: dict[str, Any] = {
        "last_ms": NOW_MS - MINUTE_MS,
        "age_ms": 5_000,
        "late_ms": 0,
        "refused": None,
        "missing": 0,
        "day": OpenDay(100, 100, 0),
        "day_candles": 1440,
        "landed": 60,
        **more,
    }
    return SeriesNow(f"S{number:04}-USDT-SWAP", "1m", **parts)


def test_of_a_thousand_series_the_worst_are_shown_and_how_many_more() -> None:
    many = [one_series(0, late_ms=95_000), *(one_series(number) for number in range(1, 1000))]
    lines = drawn(reading(many))
    assert len(lines) == 24
    shown = [line for line in lines if line.startswith("S0")]
    assert "95s late" in shown[0]
    assert lines[-1] == f"and {1000 - len(shown)} more, all of them sound"
    assert len(drawn(reading(many), height=None)) > 1000


def test_a_days_bar_tells_what_is_held_what_is_missing_and_what_is_to_come() -> None:
    held = one_series(1, day=OpenDay(720, 576, 144), missing=144)
    (line,) = (line for line in drawn(reading([held])) if line.startswith("S0001"))
    assert "████▒·····" in line
    assert "576/720" in line
    assert "144 missing" in line
    assert "####!....." in "\n".join(drawn(reading([held]), strokes=ASCII))


def test_what_okx_says_cannot_command_the_terminal() -> None:
    lines = drawn(reading([one_series(1)], sidecar={"refused": {"S0001-USDT-SWAP 1m": "\x1b[2J\x07\nno\x9b1m"}}))
    told = "\n".join(lines)
    assert "OKX refuses 1 series" in told
    assert all(character.isprintable() or character == "\n" for character in told)


OPEN_DAYS = st.builds(lambda held, lost: OpenDay(held + lost, held, lost), st.integers(0, 1440), st.integers(0, 1440))
SERIES = st.builds(
    SeriesNow,
    st.from_regex(r"[A-Z0-9]{1,12}(-[A-Z0-9]{1,8}){1,3}", fullmatch=True),
    st.sampled_from(["1m", "15m", "1mo"]),
    st.none() | st.integers(0, 2 * 10**12),
    st.none() | st.integers(-1000, 10**12),
    st.integers(0, 10**12),
    st.none() | st.text(),
    st.integers(0, 10**6),
    st.none()
    | st.builds(lambda held, lost: OpenDay(held + lost, held, lost), st.integers(0, 1440), st.integers(0, 1440)),
    st.integers(0, 1440),
    st.none() | st.integers(0, 10**4),
)


@settings(max_examples=60, deadline=None)
@given(
    series=st.lists(SERIES, max_size=60),
    width=st.integers(80, 200),
    height=st.integers(20, 80),
    text=st.text(),
    number=st.integers(0, 10**15),
)
def test_whatever_there_is_fits_the_terminal(
    series: list[SeriesNow], width: int, height: int, text: str, number: int
) -> None:
    counters = {"waiting": number, "series": number, "errors": {text: number}}
    read = reading(
        series, sidecar={"counters": counters, "refused": {text: text}}, history=History(number, 0, number, None)
    )
    lines = drawn(read, width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= height
    above = list(head_lines(read, width, UNICODE))
    assert lines[len(above) + 1].startswith("symbol"), "each of them is one line"
    assert all(line.isascii() for line in drawn(reading(series), width, height, ASCII))
