"""The watch beside the stream: Dagster's silence is told, the dead man's URL pinged, and the stream never minds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import date
from time import monotonic

import pytest

from okx_pipeline.alerts import outbound
from okx_pipeline.candles import Candle, Source
from okx_pipeline.errors import PipelineError
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.alert_sources import note_daemon
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.stream_status import Heartbeat, beat
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.stream import watch as watching
from okx_pipeline.stream.counters import Counters
from okx_pipeline.stream.sidecar import stream
from okx_pipeline.stream.watch import UNSOUND_S, Watch
from okx_pipeline.timeframes import MINUTE_MS, day_ms, parse_timeframes
from okx_pipeline_tests.alerts.sink_server import Answer, SinkServer, sink_server

BTC = "BTC-USDT-SWAP"
NOW_MS = day_ms(date(2026, 8, 20)) + 12 * 3_600_000


@pytest.fixture
def hook() -> Iterator[SinkServer]:
    with sink_server() as server:
        yield server


@pytest.fixture
def watch(database: Database, hook: SinkServer) -> Watch:
    """A watch that has watched for long enough, as its patience is none."""
    return Watch(told(hook), database, Counters(), silent_after_s=300.0)


def told(hook: SinkServer) -> Settings:
    return read_settings(
        alert_allow_http=True, alert_webhook_url=f"{hook.url}/hook", dead_man_url=f"{hook.url}/ping/s3cret"
    )


def seen_ago(connection: Connection, minutes: float) -> None:
    note_daemon(connection)
    connection.execute(
        "UPDATE trading.store_facts SET value = (clock_timestamp() - %s * interval '1 minute')::text "
        "WHERE name = 'daemon_seen_at'",
        (minutes,),
    )


def has_watched(watch: Watch, seconds: float) -> None:
    watch._began_s = monotonic() - seconds


def do(work: Callable[[], Awaitable[float]]) -> float:
    async def run() -> float:
        return await work()

    return asyncio.run(run())


def test_a_daemon_that_was_heard_of_and_is_silent_is_told_once_and_its_return_once(
    watch: Watch, hook: SinkServer, connection: Connection
) -> None:
    has_watched(watch, 3600)
    do(watch.look)
    assert hook.requests == [], "never heard of"
    seen_ago(connection, 4)
    do(watch.look)
    assert hook.requests == []
    seen_ago(connection, 6)
    do(watch.look)
    do(watch.look)
    assert hook.told == [("open", "silent_daemon")]
    assert "Dagster was last heard of 6 minutes ago" in hook.requests[0].json["text"]
    note_daemon(connection)
    do(watch.look)
    assert hook.told == [("open", "silent_daemon"), ("resolved", "silent_daemon")]


def test_a_sidecar_that_has_just_begun_neither_tells_nor_takes_back(
    watch: Watch, hook: SinkServer, connection: Connection, database: Database
) -> None:
    seen_ago(connection, 600)
    do(watch.look)
    assert hook.requests == [], "a night off"
    has_watched(watch, 3600)
    do(watch.look)
    begun = Watch(told(hook), database, Counters())
    do(begun.look)
    assert hook.told == [("open", "silent_daemon")]
    has_watched(begun, 3600)
    do(begun.look)
    assert hook.told == [("open", "silent_daemon")]


def sound(connection: Connection) -> None:
    """A stream that is well."""
    seed_subscriptions(connection, [BTC], parse_timeframes("1m"), 0)
    held = Candle(BTC, "1m", NOW_MS - 2 * MINUTE_MS, "10", "11", "9", "10", "5", "0.05", "500")
    land(connection, [held], source=Source.WEBSOCKET)
    beat(connection, Heartbeat("host:1", "streaming", NOW_MS))


def test_the_dead_mans_url_is_pinged_while_the_stream_is_sound(
    watch: Watch, hook: SinkServer, connection: Connection
) -> None:
    sound(connection)
    assert do(watch.ping) == 60
    (request,) = hook.requests
    assert (request.method, request.target) == ("GET", "/ping/s3cret")


UNSOUND = {
    "no sidecar ever": "DELETE FROM trading.stream_status",
    "it does not beat": "UPDATE trading.stream_status SET heartbeat_at = heartbeat_at - interval '1 minute'",
    "it has no connection yet": "UPDATE trading.stream_status SET state = 'starting'",
    "it has stopped": "UPDATE trading.stream_status SET state = 'stopped'",
    "a series is late": "UPDATE trading.stream_status SET exchange_ms = exchange_ms + 3600000",
}


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND.keys())
def test_a_stream_that_is_not_sound_pings_nobody(
    watch: Watch, hook: SinkServer, connection: Connection, change: str
) -> None:
    sound(connection)
    connection.execute(change)  # type: ignore[call-overload]
    assert do(watch.ping) == UNSOUND_S
    assert hook.requests == []


def test_a_database_that_is_away_pings_nobody(hook: SinkServer) -> None:
    away = Watch(told(hook), Database("postgresql://nobody@127.0.0.1:1/none"), Counters())
    with pytest.raises(PipelineError):
        do(away.ping)
    assert hook.requests == []


def test_a_database_that_stays_away_is_told_once_without_it_and_its_return_once(
    hook: SinkServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(told(hook), Database("postgresql://nobody@127.0.0.1:1/none"), Counters())

    def look_while_away() -> None:
        with pytest.raises(PipelineError):
            do(watch.look)

    look_while_away()
    assert hook.requests == [], "a restart"
    monkeypatch.setattr(watching, "AWAY_AFTER_S", 0.0)
    hook.answers.append(Answer(500))
    for _ in range(3):
        look_while_away()
    assert hook.told == 2 * [("open", "database_away")], "once more to a sink that had not taken it"
    assert "out of reach" in hook.requests[0].json["text"]
    assert hook.requests[0].json == hook.requests[1].json
    watch._database = database
    for _ in range(2):
        do(watch.look)
    assert hook.told[2:] == [("resolved", "database_away")]
    assert hook.requests[2].json["incident"] == hook.requests[0].json["incident"] > 0


def test_where_nobody_is_to_be_told_there_is_nothing_to_watch(database: Database) -> None:
    asyncio.run(asyncio.wait_for(Watch(read_settings(), database, Counters()).run(), 10))


@pytest.mark.parametrize(
    ("breaks", "counted"), [(ValueError("/bot1:s3cret/"), "ValueError"), (PipelineError("it is full"), "it is full")]
)
def test_whatever_goes_wrong_in_it_is_counted_without_its_secrets_and_it_goes_on(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, breaks: Exception, counted: str
) -> None:
    monkeypatch.setattr(watching, "AFTER_FAILURE_S", 0.0)
    again = asyncio.Event()
    looks: list[None] = []

    def fail() -> None:
        looks.append(None)
        if len(looks) == 3:
            again.set()
        raise breaks

    monkeypatch.setattr(watch, "_look", fail)

    async def run() -> None:
        running = asyncio.create_task(watch.run())
        await asyncio.wait_for(again.wait(), 30)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    assert counted in caplog.text
    assert "s3cret" not in caplog.text


@pytest.fixture
def exchange() -> Iterator[str]:
    market = Exchange(open_market("synthetic", seed=3, symbols=6), ExchangeClock(NOW_MS, 60.0))
    with ReplayServer(market) as server:
        yield server.url


async def until(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    deadline = monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert monotonic() < deadline, f"it never came true that {what}"
        await asyncio.sleep(0.05)


def streaming(exchange: str, database: Database, **more: object) -> Settings:
    return read_settings(
        database_url=database.url,
        rest_url=exchange,
        ws_url=exchange.replace("http", "ws") + "/ws/v5/business",
        symbols=BTC,
        timeframes="1m",
        alert_allow_http=True,
        **more,
    )


def test_the_sidecar_itself_tells_of_a_silent_daemon_and_pings_when_it_streams(
    exchange: str, database: Database, connection: Connection, hook: SinkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(watching, "UNSOUND_S", 0.2)
    monkeypatch.setattr(Watch.__init__, "__kwdefaults__", {"silent_after_s": 2.0})
    seen_ago(connection, 10)
    with sink_server() as dead_man:
        settings = streaming(exchange, database, alert_webhook_url=f"{hook.url}/h", dead_man_url=f"{dead_man.url}/p")

        async def run() -> None:
            stop = asyncio.Event()
            running = asyncio.create_task(stream(settings, database, standby=False, stop=stop, say=lambda _: None))
            await until(lambda: dead_man.requests, "the dead man's URL is pinged")
            # On a busy machine REST may have brought the first.
            landed = "SELECT count(*) FROM trading.candlesticks WHERE source = 'websocket'"
            await until(lambda: one(connection, landed), "it streams")
            await until(lambda: hook.told == [("open", "silent_daemon")], "the silence is told")
            connection.execute("UPDATE trading.store_facts SET value = 'infinity' WHERE name = 'daemon_seen_at'")
            await until(lambda: len(hook.told) == 2, "the return is told")
            stop.set()
            await running

        asyncio.run(run())
    assert hook.told == [("open", "silent_daemon"), ("resolved", "silent_daemon")]


def test_sinks_that_never_answer_and_a_table_that_is_gone_neither_stop_the_stream_nor_its_end(
    exchange: str, database: Database, connection: Connection, hook: SinkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(watching, "UNSOUND_S", 0.05)
    monkeypatch.setattr(watching, "AFTER_FAILURE_S", 0.05)
    monkeypatch.setattr(Watch.__init__, "__kwdefaults__", {"silent_after_s": 0.0})
    # So long that only who waits for an answer would not end in time.
    monkeypatch.setattr(outbound, "WITHIN_S", 600.0)
    hook.answer = Answer(silent=True)
    seen_ago(connection, 10)
    settings = streaming(exchange, database, alert_webhook_url=f"{hook.url}/h", dead_man_url=f"{hook.url}/p")
    landed = "SELECT count(*) FROM trading.candlesticks WHERE source = 'websocket'"

    async def run() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(stream(settings, database, standby=False, stop=stop, say=lambda _: None))
        await until(lambda: {each.target for each in hook.requests} == {"/h", "/p"}, "both were asked")
        before = one(connection, landed)
        await until(lambda: one(connection, landed) > before + 3, "the stream goes on")
        connection.execute("ALTER TABLE trading.alerts RENAME TO gone")
        before = one(connection, landed)
        await until(lambda: one(connection, landed) > before + 3, "the stream goes on")
        assert not running.done()
        stop.set()
        await asyncio.wait_for(running, 60)

    asyncio.run(run())
