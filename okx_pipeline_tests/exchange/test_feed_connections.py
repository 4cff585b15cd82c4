"""How the candle feed opens connections, knows that they are dead, and comes back; in simulated time."""

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange import dialing
from okx_pipeline.exchange.connection import Oddity
from okx_pipeline.exchange.dialing import FIRST_DELAY_S, LONGEST_DELAY_S, back_off
from okx_pipeline.exchange.feed import CandleFeed
from okx_pipeline.exchange.frames import SUBSCRIBE, Argument, Request, Series, argument_of
from okx_pipeline_tests.exchange.candle_server import (
    CandleServer,
    Notes,
    Scene,
    Talk,
    acknowledge,
    feeding,
    many,
    mixed,
    series,
)
from okx_pipeline_tests.exchange.own_authority import certify
from okx_pipeline_tests.exchange.simulated_time import run

BITCOIN = series()


def play(scene_of: Callable[[Scene], Awaitable[None]], *wanted: Series, **options: Any) -> None:
    """Play a scene in which these series are wanted from the start."""

    async def main() -> None:
        async with feeding(wanted, **options) as scene:
            await scene_of(scene)

    run(main(), sockets=True)


@pytest.fixture(autouse=True)
def the_same_chance_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    monkeypatch.setattr("okx_pipeline.exchange.dialing._chance", chance)
    monkeypatch.setattr("okx_pipeline.exchange.lane._chance", chance)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# Coming back.


@given(seed=st.integers())
def test_waits_begin_at_random_grow_and_stay_below_a_cap(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialing, "_chance", random.Random(seed))
        waits_s = list(islice(back_off(), 20))
    assert 0 <= waits_s[0] <= FIRST_DELAY_S
    assert all(wait_s <= LONGEST_DELAY_S for wait_s in waits_s)
    assert all(wait_s >= LONGEST_DELAY_S / 2 for wait_s in waits_s[6:])
    assert all(later_s <= 4 * max(earlier_s, FIRST_DELAY_S / 2) for earlier_s, later_s in pairwise(waits_s))


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4004, 4005, 4006, None])
def test_closed_connection_is_told_and_replaced_within_seconds(code: int | None) -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        await asyncio.sleep(70)
        (talk,) = scene.server.talks
        if code is None:
            talk.cut()
        else:
            await talk.socket.close(code, "No data received in 30s.")
        await scene.until(lambda: scene.notes.gone)
        assert set(scene.notes.gone) == set(wanted)
        assert scene.feed.subscribed_series == 0
        await scene.until_received(wanted, within_s=FIRST_DELAY_S + 1)
        (ending,) = scene.notes.of_kind(Oddity.ENDED)
        assert (str(code) if code else "cut off") in ending
        assert scene.notes.kinds() == {Oddity.ENDED}
        assert scene.feed.reconnects == 1
        assert len(scene.server.requests()) == 2

    wanted = many(5)
    play(scene_of, *wanted)


def test_one_connection_lost_leaves_the_others_alone() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        talk = scene.server.talks[1]
        its = set(talk.series)
        talk.cut()
        await scene.until(lambda: scene.notes.gone)
        await scene.until_received(wanted)
        assert set(scene.notes.gone) == its
        assert len(scene.server.talks) == 4
        assert len(scene.notes.joined) == 30 + len(its)

    wanted = mixed(30)
    play(scene_of, *wanted, channels_per_connection=10)


def test_tries_become_rarer_while_connections_break_at_once_and_quick_again_after_a_good_one() -> None:
    async def scene_of(scene: Scene) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            talk.cut()
            return None

        await scene.until_received([BITCOIN])
        scene.server.answer = answer
        scene.server.talks[0].cut()
        await scene.until(lambda: len(scene.server.knocks_s) == 12, within_s=300)
        waits_s = [later_s - earlier_s for earlier_s, later_s in pairwise(scene.server.knocks_s)]
        assert all(wait_s >= LONGEST_DELAY_S / 2 for wait_s in waits_s[-4:])
        assert all(wait_s <= LONGEST_DELAY_S + 1 for wait_s in waits_s)
        scene.server.answer = acknowledge
        await scene.until_received([BITCOIN])
        await asyncio.sleep(70)
        scene.server.open_talks[0].cut()
        await scene.until(lambda: scene.notes.received == set())
        await scene.until_received([BITCOIN], within_s=FIRST_DELAY_S + 1)

    play(scene_of, BITCOIN)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_host_that_turns_away_for_the_moment_is_asked_again_soon(status: int) -> None:
    def script(server: CandleServer) -> None:
        server.door = HTTPStatus(status)

    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: len(scene.notes.of_kind(Oddity.NOT_OPENED)) == 3, within_s=20)
        assert all(f"answers HTTP {status}" in said for said in scene.notes.of_kind(Oddity.NOT_OPENED))
        scene.server.door = None
        await scene.until_received([BITCOIN])
        assert scene.feed.reconnects == 0

    play(scene_of, BITCOIN, script=script)


@pytest.mark.parametrize("status", [200, 301, 302, 403, 404])
def test_host_that_is_none_is_told_by_setting_and_asked_again_slowly(status: int) -> None:
    def script(server: CandleServer) -> None:
        server.door = HTTPStatus(status)

    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: len(scene.server.knocks_s) == 3, within_s=300)
        waits_s = [later_s - earlier_s for earlier_s, later_s in pairwise(scene.server.knocks_s)]
        assert all(60 <= wait_s <= 121 for wait_s in waits_s)
        assert all("OKX_WS_URL" in said and str(status) in said for said in scene.notes.of_kind(Oddity.NOT_OPENED))
        scene.server.door = None
        await scene.until_received([BITCOIN], within_s=121)

    play(scene_of, BITCOIN, script=script)


def test_port_where_nobody_listens_is_tried_again_until_somebody_does() -> None:
    async def main() -> None:
        port = free_port()
        notes = Notes(asyncio.Event())
        feed = CandleFeed(f"ws://127.0.0.1:{port}/ws/v5/business", notes)
        feed.want([BITCOIN])
        running = asyncio.create_task(feed.run())
        await asyncio.sleep(10)
        assert "connection refused; check OKX_WS_URL" in notes.of_kind(Oddity.NOT_OPENED)[-1]
        async with feeding([], serve_options={"port": port}) as scene:
            await scene.until(lambda: notes.received == {BITCOIN})
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run(main(), sockets=True)


@asynccontextmanager
async def listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A TCP server whose connections are left to `talk`; gives its port."""
    writers: list[asyncio.StreamWriter] = []

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await talk(reader, writer)

    server = await asyncio.start_server(begin, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (None, "no connection within 10 s"),
        (b"", "connection cut off"),
        (b"HTTP/1.1 101 Swi", "connection cut off"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak WebSocket"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "does not speak WebSocket"),
    ],
)
def test_what_answers_in_no_way_of_a_websocket_is_told_and_tried_again(reply: bytes | None, said: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if reply is not None:
            writer.write(reply)
            writer.close()

    async def main() -> None:
        async with listening(talk) as port:
            notes = Notes(asyncio.Event())
            feed = CandleFeed(f"ws://127.0.0.1:{port}/ws/v5/business", notes)
            feed.want([BITCOIN])
            running = asyncio.create_task(feed.run())
            await asyncio.sleep(150)
            assert len(notes.of_kind(Oddity.NOT_OPENED)) >= 2
            assert said in notes.of_kind(Oddity.NOT_OPENED)[-1]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run(main(), sockets=True)


def test_name_that_cannot_be_resolved_is_told_and_tried_again() -> None:
    # By the clock on the wall: names are resolved in a thread.
    async def main() -> None:
        happened = asyncio.Event()
        notes = Notes(happened)
        feed = CandleFeed("wss://nowhere.invalid/ws/v5/business", notes)
        feed.want([BITCOIN])
        running = asyncio.create_task(feed.run())
        async with asyncio.timeout(30):
            while len(notes.oddities) < 2:
                happened.clear()
                await happened.wait()
        assert "nowhere.invalid" in notes.of_kind(Oddity.NOT_OPENED)[0]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


# Trust, proxies, settings.


def test_authority_of_ones_own_is_trusted_when_named(tmp_path: Path) -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        assert scene.server.scheme == "wss"

    tls, authority = certify(tmp_path)
    play(scene_of, BITCOIN, tls=tls, ca_file=authority)


def test_untrusted_certificate_is_told_by_setting_and_tried_again_slowly(tmp_path: Path) -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: len(scene.notes.oddities) == 2, within_s=130)
        assert "is not trusted: self-signed certificate" in scene.notes.of_kind(Oddity.NOT_OPENED)[0]
        assert "SSL_CERT_FILE" in scene.notes.of_kind(Oddity.NOT_OPENED)[0]
        (first_s, *_), (second_s, *_) = scene.notes.oddities
        assert second_s - first_s >= 60

    play(scene_of, BITCOIN, tls=certify(tmp_path)[0])


@dataclass
class Proxy:
    """An HTTP proxy that lets everything through, or answers with `refusal`."""

    refusal: bytes = b""
    asked: list[str] = field(default_factory=list)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        self.asked.append(head)
        if self.refusal:
            writer.write(self.refusal)
            writer.close()
            return
        host, _, port = head.split(" ")[1].partition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(self._pass_on(reader, there_writer), self._pass_on(there_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()
        except ConnectionError:
            writer.transport.abort()


@pytest.mark.parametrize("with_tls", [True, False])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_is_gone_through_when_named(tmp_path: Path, scheme: str, with_tls: bool) -> None:
    async def main() -> None:
        proxy = Proxy()
        tls, authority = certify(tmp_path)
        async with listening(proxy.talk, tls if scheme == "https" else None) as port:
            url = f"{scheme}://me:secret@127.0.0.1:{port}"
            async with feeding([BITCOIN], tls=tls if with_tls else None, ca_file=authority, proxy=url) as scene:
                await scene.until_received([BITCOIN])
                (asked,) = proxy.asked
                assert asked.startswith(f"CONNECT 127.0.0.1:{scene.server.port} HTTP/1.1")
                assert "Basic bWU6c2VjcmV0" in asked

    run(main(), sockets=True)


def test_proxy_that_refuses_is_told_by_setting() -> None:
    async def main() -> None:
        proxy = Proxy(refusal=b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        async with (
            listening(proxy.talk) as port,
            feeding([BITCOIN], proxy=f"http://me:secret@127.0.0.1:{port}") as scene,
        ):
            await scene.until(lambda: len(proxy.asked) >= 2)
            said = scene.notes.of_kind(Oddity.NOT_OPENED)[0]
            assert "the proxy does not let us through" in said
            assert "407" in said
            assert "secret" not in said

    run(main(), sockets=True)


def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN], within_s=5)

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{free_port()}")
    play(scene_of, BITCOIN)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "ws.okx.com"}, "OKX_WS_URL"),
        ({"url": "https://ws.okx.com/ws/v5/business"}, "OKX_WS_URL"),
        ({"url": "wss://"}, "OKX_WS_URL"),
        ({"url": "wss://ws.okx.com:port/"}, "OKX_WS_URL"),
        ({"url": f"wss://{'x' * 70}.com/"}, "OKX_WS_URL"),
        ({"url": "wss://user:password@ws.okx.com/ws/v5/business"}, "OKX_WS_URL must be"),
        ({"proxy": "user:password@proxy"}, "HTTPS_PROXY"),
        ({"proxy": "socks5://user:password@proxy:1"}, "HTTPS_PROXY"),
        ({"proxy": "http://user:password@proxy:port"}, "HTTPS_PROXY"),
        ({"proxy": "http://password@proxy:1"}, "HTTPS_PROXY names a user without a password"),
        ({"proxy": "http://user:password@[proxy:1"}, "HTTPS_PROXY"),
        ({"proxy": "http://proxy:1/?password"}, "HTTPS_PROXY"),
        ({"ca_file": Path("/nowhere/authority.pem")}, "SSL_CERT_FILE /nowhere/authority.pem cannot be used: No such"),
    ],
)
def test_setting_that_cannot_be_is_refused_by_name_and_without_its_secrets(options: dict[str, Any], said: str) -> None:
    url = options.pop("url", "wss://ws.okx.com/ws/v5/business")
    with pytest.raises(UsageError) as caught:
        CandleFeed(url, Notes(asyncio.Event()), **options)
    assert said in str(caught.value)
    assert "password@" not in str(caught.value)
    assert "\n" not in str(caught.value)


# Whether it lives.


def test_quiet_connection_is_kept_by_pings_as_long_as_they_are_answered() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        await asyncio.sleep(600)
        (talk,) = scene.server.talks
        assert talk.pings >= 20
        assert all(later_s - earlier_s < 20 for earlier_s, later_s in pairwise(talk.heard_s))
        assert scene.notes.oddities == []

    wanted = many(5, "4h")
    play(scene_of, *wanted)


def test_busy_connection_is_not_pinged() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(many(3))
        trading = asyncio.create_task(scene.server.trade(every_s=5))
        await asyncio.sleep(120)
        assert scene.server.talks[0].pings == 0
        trading.cancel()

    play(scene_of, *many(3))


@pytest.mark.parametrize("trades", [True, False])
def test_half_open_connection_is_known_and_replaced_within_30_seconds(trades: bool) -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        trading = asyncio.create_task(scene.server.trade(every_s=1 if trades else 1000))
        await asyncio.sleep(100)
        scene.server.talks[0].freeze()
        await scene.until(lambda: len(scene.notes.gone) == len(wanted), within_s=25)
        await scene.until_received(wanted, within_s=5)
        assert "no answer to a ping" in scene.notes.of_kind(Oddity.ENDED)[0]
        trading.cancel()

    wanted = many(5)
    play(scene_of, *wanted)


def test_connection_that_freezes_before_it_answers_a_subscription_is_replaced() -> None:
    def script(server: CandleServer) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            if talk is server.talks[0]:
                talk.freeze()
            return acknowledge(talk, request, argument)

        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted, within_s=30)
        assert scene.notes.refusals == []

    wanted = many(5)
    play(scene_of, *wanted, script=script)


def test_connection_is_suspect_when_none_of_its_many_series_says_anything() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        await scene.until(lambda: scene.feed.reconnects == 4, within_s=600)
        ends_s = [talk.closed_s - talk.opened_s for talk in scene.server.talks if talk.closed_s is not None]
        for end_s, patience_s in zip(ends_s, (30, 60, 120, 240), strict=True):
            assert patience_s < end_s <= patience_s + 10
        assert "no candle came" in scene.notes.of_kind(Oddity.ENDED)[0]
        await scene.until_received(wanted)

    wanted = many(25, "1h")
    play(scene_of, *wanted)


def test_connection_is_suspect_when_a_steady_flow_of_candles_ends() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        trading = asyncio.create_task(scene.server.trade())
        await asyncio.sleep(60)
        trading.cancel()
        await scene.until(lambda: scene.feed.reconnects == 1, within_s=40)
        await scene.until_received(wanted)

    wanted = [BITCOIN, series(timeframe="5m")]
    play(scene_of, *wanted)


def test_few_quiet_series_are_no_reason_to_doubt_a_connection() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        trading = asyncio.create_task(scene.server.trade(every_s=55))
        await asyncio.sleep(900)
        assert scene.notes.oddities == []
        trading.cancel()

    wanted = many(5)
    play(scene_of, *wanted)


def test_quiet_connection_is_not_suspect_for_having_got_many_series_just_now() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted[:5])
        await asyncio.sleep(300)
        scene.want(wanted)
        await scene.until_received(wanted)
        await asyncio.sleep(25)
        assert scene.notes.oddities == []

    wanted = many(25, "4h")
    play(scene_of, *wanted[:5])


def test_subscribing_is_asked_of_one_connection_only_while_another_takes_over() -> None:
    async def scene_of(scene: Scene) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            is_slow = talk is not old and len(talk.requests) == 1 and argument == argument_of(wanted[0])
            return None if is_slow else acknowledge(talk, request, argument)

        await scene.until_received(wanted)
        (old,) = scene.server.talks
        scene.server.answer = answer
        await scene.server.notice(old)
        await scene.until(lambda: len(scene.server.requests()) == 2)
        scene.want([*wanted, BITCOIN])
        await scene.until_closed([old])
        await scene.until_received([*wanted, BITCOIN])
        assert old.ops() == [SUBSCRIBE]
        assert scene.notes.gone == []

    wanted = many(5)
    play(scene_of, *wanted)
