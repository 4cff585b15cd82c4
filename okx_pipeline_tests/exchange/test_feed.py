"""The candle feed against a real WebSocket server that behaves as OKX does, well and badly; in simulated time."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.connection import Oddity
from okx_pipeline.exchange.frames import SUBSCRIBE, UNSUBSCRIBE, Argument, Request, Series, argument_of, encode_push
from okx_pipeline.timeframes import HOUR_MS
from okx_pipeline_tests.exchange.candle_server import (
    ROW,
    CandleServer,
    Scene,
    Talk,
    acknowledge,
    error,
    feeding,
    many,
    mixed,
    series,
    unknown,
)
from okx_pipeline_tests.exchange.simulated_time import run

HOUR_S = HOUR_MS / 1000
BITCOIN = series()
ETHER = series("ETH-USDT-SWAP")


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


# Subscribing and receiving.


def test_series_are_asked_for_in_okx_words_and_rows_come_as_they_were_sent() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        (talk,) = scene.server.talks
        ((_, request),) = talk.requests
        assert request.op == "subscribe"
        assert set(request.args) == {
            Argument("candle1m", "BTC-USDT-SWAP"),
            Argument("candle1Dutc", "ETH-USDT"),
            Argument("candle1Mutc", "ETH-USDT"),
        }
        assert request.id.isalnum()
        assert scene.server.headers[0]["user-agent"].startswith("okx-pipeline/")
        older = [str(int(ROW[0]) - 60_000), *ROW[1:8], "1"]
        await scene.server.push(BITCOIN, ROW, older)
        await scene.server.push(series("ETH-USDT", "1d"), ROW)
        await scene.until(lambda: scene.notes.frames == 2)
        assert scene.notes.rows == {BITCOIN: [ROW, older], series("ETH-USDT", "1d"): [ROW]}
        assert scene.notes.oddities == []
        assert (scene.feed.connections, scene.feed.subscribed_series, scene.feed.reconnects) == (1, 3, 0)
        assert scene.feed.last_frame_s == scene.notes.frame_s

    wanted = [BITCOIN, series("ETH-USDT", "1d"), series("ETH-USDT", "1mo")]
    play(scene_of, *wanted)


def test_a_candle_that_goes_on_forming_is_told_by_its_open_time_until_it_is_confirmed_or_unsubscribed() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN, ETHER])
        again = [*ROW[:5], "1400", *ROW[6:]]
        confirmed = [*again[:8], "1"]
        following = [str(int(ROW[0]) + 60_000), *ROW[1:]]
        for row in (ROW, again, again, confirmed, following, ROW):
            await scene.server.push(BITCOIN, row)
        await scene.server.push(ETHER, ROW)
        await scene.until(lambda: scene.notes.frames == 7)
        assert scene.notes.rows == {BITCOIN: [ROW, confirmed, following, ROW], ETHER: [ROW]}
        assert scene.notes.repeated == 2 * [(BITCOIN, ROW[0])]
        assert scene.feed.last_frame_s == scene.notes.frame_s
        scene.feed.want([ETHER])
        await scene.until(lambda: scene.feed.subscribed_series == 1)
        await scene.server.talks[0].send(encode_push(BITCOIN, [ROW]))
        await scene.until(lambda: Oddity.UNEXPECTED in scene.notes.kinds())

    play(scene_of, BITCOIN, ETHER)


@pytest.mark.parametrize("what", ["ws push SWAP 1m", "ws push SPOT 1m", "ws push SWAP 1H for"])
def test_recorded_push_is_handed_on_character_for_character(recorded: Callable[[str], bytes], what: str) -> None:
    async def scene_of(scene: Scene) -> None:
        assert about is not None
        await scene.until_received([about])
        await scene.server.talks[0].send(push.decode())
        await scene.until(lambda: scene.notes.frames == 1)
        assert scene.notes.rows == {about: sent["data"]}

    push = recorded(what)
    sent = msgspec.json.decode(push)
    about = Argument(sent["arg"]["channel"], sent["arg"]["instId"]).series
    assert about is not None
    play(scene_of, about)


def test_recorded_acknowledgement_is_one(recorded: Callable[[str], bytes]) -> None:
    def script(server: CandleServer) -> None:
        reply = recorded("ws subscribe reply").decode().replace("candle1D", "candle1Dutc")
        server.answer = lambda talk, request, argument: acknowledge(talk, request, argument) and reply

    async def scene_of(scene: Scene) -> None:
        await scene.until_received([about])

    about = series("BTC-USDT", "1d")
    play(scene_of, about, script=script)


def test_as_many_series_as_fit_share_a_connection_and_a_request() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        assert [len(talk.subscribed) for talk in scene.server.talks] == [200, 200, 50]
        assert [len(talk.requests) for talk in scene.server.talks] == [1, 1, 1]

    wanted = mixed(450)
    play(scene_of, *wanted)


def test_requests_are_never_longer_than_okx_takes() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        (talk,) = scene.server.talks
        assert len(talk.sizes) == 3
        assert max(talk.sizes) <= protocol.MOST_REQUEST_BYTES

    wanted = many(3000)
    play(scene_of, *wanted, channels_per_connection=3000)


def test_never_more_than_three_connections_arrive_in_a_second() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        for talk in scene.server.talks:
            talk.cut()
        await scene.until(lambda: len(scene.server.talks) == 60)
        await scene.until_received(wanted)
        knocks_s = scene.server.knocks_s
        for first, fourth in zip(knocks_s, knocks_s[3:], strict=False):
            assert fourth - first > 1.0

    wanted = mixed(300)
    play(scene_of, *wanted, channels_per_connection=10)


def test_a_long_subscription_list_is_there_within_seconds() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted, within_s=15)

    wanted = mixed(5000)
    play(scene_of, *wanted)


# Changing what is wanted.


def test_wanted_series_change_on_the_open_connection_in_one_request_each() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(old + kept)
        scene.want(kept + new)
        await scene.until_received(kept + new)
        (talk,) = scene.server.talks
        assert talk.ops() == [SUBSCRIBE, UNSUBSCRIBE, SUBSCRIBE]
        assert set(talk.requests[1][1].args) == set(map(argument_of, old))
        assert set(talk.requests[2][1].args) == set(map(argument_of, new))
        assert scene.notes.gone == []
        assert sorted(scene.notes.joined) == sorted(old + kept + new), "what is kept is not disturbed"
        assert scene.notes.oddities == []

    every = mixed(30)
    old, kept, new = every[:10], every[10:20], every[20:]
    play(scene_of, *old, *kept)


def test_frames_of_a_series_that_is_no_longer_wanted_are_counted_and_dropped() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN, other])
        (talk,) = scene.server.talks
        scene.want([other])
        await scene.server.push(BITCOIN)
        await scene.until_received([other])
        talk.subscribed[argument_of(BITCOIN)] = None
        await scene.server.push(BITCOIN)
        await scene.server.push(other)
        await scene.until(lambda: scene.notes.frames)
        assert list(scene.notes.rows) == [other]
        assert scene.notes.of_kind(Oddity.UNEXPECTED) == ["'candle1m' 'BTC-USDT-SWAP'"] * 2
        assert scene.feed.connections == 1

    other = series("ETH-USDT")
    play(scene_of, BITCOIN, other)


def test_series_dropped_and_wanted_again_in_one_breath_is_received() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        for _ in range(20):
            scene.want(wanted[:5])
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
            scene.want(wanted)
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
        await scene.until_received(wanted)
        await scene.server.push_all()
        await scene.until(lambda: set(wanted) == set(scene.notes.rows))
        assert len(scene.server.talks) == 1

    chance = random.Random(7)
    wanted = many(10)
    play(scene_of, *wanted)


def test_nothing_wanted_leaves_no_connection_and_something_wanted_opens_one() -> None:
    async def scene_of(scene: Scene) -> None:
        assert scene.server.talks == []
        scene.want(many(3))
        await scene.until_received(many(3))
        scene.want([])
        await scene.until(lambda: not scene.server.open_talks)
        assert scene.server.talks[0].close_code == 1000
        assert scene.feed.connections == 0
        assert scene.feed.last_frame_s is None
        scene.want([BITCOIN])
        await scene.until_received([BITCOIN])
        assert scene.notes.oddities == []

    play(scene_of)


def test_connection_never_has_more_series_than_the_cap_as_wishes_change() -> None:
    async def scene_of(scene: Scene) -> None:
        for _ in range(15):
            wanted = chance.sample(every, chance.randrange(1, 100))
            scene.want(wanted)
            await scene.until_received(wanted)
            assert all(len(talk.subscribed) <= 20 for talk in scene.server.open_talks)
            assert len(scene.server.carried) == len(wanted), "none is carried twice"
        assert scene.notes.gone == []

    chance = random.Random(3)
    every = mixed(100)
    play(scene_of, channels_per_connection=20)


def test_requests_of_a_connection_stay_below_480_an_hour_and_nothing_is_lost_for_it() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        for number in range(500):
            wanted = [BITCOIN, series(f"COIN{number}-USDT")]
            scene.want(wanted)
            await scene.until_received(wanted)
        for talk in scene.server.talks:
            sent_s = [at_s for at_s, _ in talk.requests]
            assert len(sent_s) <= protocol.REQUESTS_AN_HOUR
        assert sum(len(talk.requests) for talk in scene.server.talks) > 900
        assert scene.notes.gone == []
        assert scene.notes.joined.count(BITCOIN) == 1

    play(scene_of, BITCOIN)


# What OKX refuses.


@pytest.mark.parametrize("what", ["ws candle channel asked on /public, 2026", "same error, 2025"])
def test_refused_series_is_told_by_name_and_the_others_go_on(recorded: Callable[[str], bytes], what: str) -> None:
    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        if argument != argument_of(bad):
            return acknowledge(talk, request, argument)
        words = msgspec.json.decode(recorded(what))["msg"]
        for recorded_name in ("candle1m,instId:BTC-USDT ", "candle1s,instId:BTC-USDT-SWAP "):
            words = words.replace(recorded_name, f"{argument.channel},instId:{argument.symbol} ")
        return error("60018", words)

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until_received(good)
        ((_, refused, code, message),) = scene.notes.refusals
        assert (refused, code) == (bad, "60018")
        assert "doesn't exist" in message
        assert len(scene.server.requests()) == 1
        assert scene.notes.oddities == []

    good, bad = many(20), series("NOSUCH-USDT")
    play(scene_of, *good, bad, script=script)


def test_refused_series_is_asked_for_again_after_minutes_and_ever_later_until_okx_lists_it() -> None:
    listed = False

    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        return acknowledge(talk, request, argument) if listed or argument != argument_of(bad) else unknown(argument)

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        nonlocal listed
        await scene.until(lambda: len(scene.notes.refusals) == 4, within_s=HOUR_S)
        times_s = [at_s for at_s, *_ in scene.notes.refusals]
        pauses_s = [after - before for before, after in pairwise(times_s)]
        assert pauses_s[0] >= 100
        assert all(1.8 < longer / shorter < 2.2 for shorter, longer in pairwise(pauses_s))
        listed = True
        await scene.until_received([BITCOIN, bad], within_s=HOUR_S)
        assert len(scene.server.talks) == 1
        assert scene.notes.gone == []
        listed = False
        scene.server.talks[0].cut()
        await scene.until(lambda: len(scene.notes.refusals) == 5)
        scene.notes.refusals.clear()
        await scene.until(lambda: scene.notes.refusals, within_s=125)

    bad = series("NEW-USDT")
    play(scene_of, BITCOIN, bad, script=script)


def test_where_everything_is_refused_no_connection_stays_open_for_nothing() -> None:
    def script(server: CandleServer) -> None:
        server.answer = lambda talk, request, argument: unknown(argument, request.id)

    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: len(scene.notes.refusals) == 10)
        await scene.until(lambda: not scene.server.open_talks and not scene.feed.connections)
        assert {refused for _, refused, *_ in scene.notes.refusals} == set(wanted)
        assert scene.server.talks[0].close_code == 1000
        scene.server.answer = acknowledge
        await scene.until_received(wanted, within_s=200)
        assert len(scene.server.talks) == 2

    wanted = many(10)
    play(scene_of, *wanted, script=script)


@pytest.mark.parametrize("with_id", [True, False])
@pytest.mark.parametrize("code", ["60012", "64003"])
def test_request_refused_as_a_whole_is_divided_until_the_culprits_are_found(code: str, with_id: bool) -> None:
    def reject(talk: Talk, request: Request) -> str | None:
        if not set(request.args).intersection(map(argument_of, bad)):
            return None
        return error(code, "Invalid request: {}", request.id if with_id else "")

    def script(server: CandleServer) -> None:
        server.reject = reject

    async def scene_of(scene: Scene) -> None:
        await scene.until_received(good, within_s=120)
        assert [(refused, why) for _, refused, why, _ in sorted(scene.notes.refusals)] == [(each, code) for each in bad]
        assert len(scene.server.requests()) < 40
        assert len(scene.server.talks) == 1

    every = many(100)
    bad = [every[17], every[80]]
    good = [each for each in every if each not in bad]
    play(scene_of, *every, script=script)


def test_error_that_names_no_series_costs_the_answered_ones_nothing() -> None:
    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        return (
            error("60033", "Parameter error") if argument == argument_of(bad) else acknowledge(talk, request, argument)
        )

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: scene.notes.refusals)
        assert scene.notes.received == set(good)
        assert [(refused, code) for _, refused, code, _ in scene.notes.refusals] == [(bad, "60033")]
        assert len(scene.server.requests()) == 1

    every = many(50)
    good, bad = every[:20] + every[21:], every[20]
    play(scene_of, *every, script=script)


@pytest.mark.parametrize("words", ["Requests too frequent", "Too frequent: channel:candle1m,instId:COIN0-USDT"])
def test_asked_too_often_means_later_and_not_never(words: str) -> None:
    def script(server: CandleServer) -> None:
        busy = iter([error("60014", words)] * 4)
        server.reject = lambda talk, request: next(busy, None)

    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        assert len(scene.notes.of_kind(Oddity.TOO_FREQUENT)) == 4
        assert scene.notes.refusals == []
        (talk,) = scene.server.talks
        (earlier_s, _), (later_s, _) = talk.requests[-2:]
        assert later_s - earlier_s > 3, "each time a little longer"

    wanted = many(5)
    play(scene_of, *wanted, script=script)


def test_answers_that_come_after_an_error_are_waited_for() -> None:
    late: list[asyncio.Task[None]] = []

    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        if argument == argument_of(bad):
            return error("60033", "Parameter error")
        late.append(asyncio.create_task(reply(talk, acknowledge(talk, request, argument) or "")))
        return None

    async def reply(talk: Talk, text: str) -> None:
        await asyncio.sleep(0.3)
        await talk.send(text)

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: scene.notes.refusals)
        assert scene.notes.received == set(good)
        assert [refused for _, refused, *_ in scene.notes.refusals] == [bad]
        assert len(scene.server.requests()) == 1

    good, bad = many(20), series("AAA-USDT")
    play(scene_of, *good, bad, script=script)


def test_error_with_the_number_of_another_request_is_not_about_this_one() -> None:
    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        late.append(asyncio.create_task(reply(talk, acknowledge(talk, request, argument) or "")))
        return error("60012", "Invalid request", "77777")

    async def reply(talk: Talk, text: str) -> None:
        await asyncio.sleep(3)
        await talk.send(text)

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        assert scene.notes.refusals == []
        assert scene.notes.kinds() == {Oddity.ERROR}
        assert len(scene.server.requests()) == 1

    late: list[asyncio.Task[None]] = []
    play(scene_of, BITCOIN, script=script)


def test_refusal_of_what_is_no_longer_wanted_is_not_told() -> None:
    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        return None if argument == argument_of(BITCOIN) else acknowledge(talk, request, argument)

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: scene.notes.received == set(good))
        scene.want(good)
        await scene.server.talks[0].send(unknown(argument_of(BITCOIN)))
        await asyncio.sleep(30)
        assert scene.notes.refusals == []

    good = many(3)
    play(scene_of, *good, BITCOIN, script=script)


def test_series_wanted_again_while_it_is_being_unsubscribed_is_received_only_when_subscribed_again() -> None:
    async def scene_of(scene: Scene) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            return None if request.op == UNSUBSCRIBE else acknowledge(talk, request, argument)

        await scene.until_received([BITCOIN, *many(3)])
        scene.server.answer = answer
        (talk,) = scene.server.talks
        scene.want(many(3))
        await scene.until(lambda: talk.ops(BITCOIN) == [SUBSCRIBE, UNSUBSCRIBE])
        scene.want([BITCOIN, *many(3)])
        await scene.server.push(BITCOIN)
        await scene.until(lambda: scene.notes.rows)
        assert scene.notes.joined.count(BITCOIN) == 1
        late = acknowledge(talk, talk.requests[-1][1], argument_of(BITCOIN))
        assert late is not None
        await talk.send(late)
        await scene.until_received([BITCOIN, *many(3)])
        assert scene.notes.joined.count(BITCOIN) == 2
        assert talk.ops(BITCOIN) == [SUBSCRIBE, UNSUBSCRIBE, SUBSCRIBE]

    play(scene_of, BITCOIN, *many(3))


def test_unsubscribing_what_okx_does_not_know_is_done_with() -> None:
    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        return acknowledge(talk, request, argument) if request.op == SUBSCRIBE else unknown(argument)

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until_received(many(3))
        scene.want([*many(1), BITCOIN])
        await scene.until(lambda: scene.notes.received == {*many(1), BITCOIN}, within_s=1)
        assert scene.notes.refusals == []

    play(scene_of, *many(3), script=script)


@pytest.mark.parametrize("reply", [None, error("60012", "Invalid request")])
def test_connection_that_cannot_be_rid_of_a_series_is_replaced(reply: str | None) -> None:
    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        return acknowledge(talk, request, argument) if request.op == SUBSCRIBE else reply

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until_received(many(3))
        scene.want(many(1))
        await until_moved(scene, many(1))
        old, new = scene.server.talks
        assert_overlap(old, new)
        assert scene.notes.kinds() == {Oddity.UNANSWERED}
        assert scene.notes.gone == []

    play(scene_of, *many(3), script=script)


@pytest.mark.parametrize(
    "frame",
    [
        error("60018", unknown(argument_of(series("OTHER-USDT")))),
        error("60012", "Invalid request", "77777"),
        error("60012", "Invalid\nrequest " + 5000 * "X"),
    ],
)
def test_error_about_nothing_that_was_asked_is_counted_and_changes_nothing(frame: str) -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        await scene.server.talks[0].send(frame)
        await scene.until(lambda: scene.notes.oddities)
        assert scene.notes.kinds() == {Oddity.ERROR}
        assert scene.notes.refusals == []
        assert scene.notes.received == {BITCOIN}

    play(scene_of, BITCOIN)


# What OKX does not answer.


def test_subscription_without_an_answer_is_asked_for_again_and_then_told() -> None:
    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        return None if argument == argument_of(bad) else acknowledge(talk, request, argument)

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: scene.notes.refusals)
        assert scene.notes.received == set(good)
        ((at_s, refused, code, message),) = scene.notes.refusals
        assert (refused, code) == (bad, "")
        assert "did not answer" in message
        assert 20 <= at_s < 25
        assert len(scene.notes.of_kind(Oddity.UNANSWERED)) == 2
        scene.server.answer = acknowledge
        await scene.until_received([*good, bad], within_s=200)
        assert len(scene.server.talks) == 1

    good, bad = many(9), BITCOIN
    play(scene_of, *good, bad, script=script)


def test_connection_on_which_no_subscription_is_answered_is_replaced_with_a_word() -> None:
    def script(server: CandleServer) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            return None if talk is server.talks[0] else acknowledge(talk, request, argument)

        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        assert len(scene.server.talks) == 2
        assert scene.notes.kinds() == {Oddity.UNANSWERED, Oddity.ENDED}
        assert scene.notes.refusals == []
        assert scene.feed.reconnects == 1

    wanted = many(5)
    play(scene_of, *wanted, script=script)


def test_rows_that_come_say_as_much_as_an_acknowledgement() -> None:
    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        acknowledge(talk, request, argument)
        return None

    def script(server: CandleServer) -> None:
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        trading = asyncio.create_task(scene.server.trade())
        await scene.until_received(wanted, within_s=5)
        await asyncio.sleep(100)
        assert scene.notes.oddities == []
        assert scene.notes.refusals == []
        trading.cancel()

    wanted = many(5)
    play(scene_of, *wanted, script=script)


def test_late_answers_are_believed() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: scene.notes.refusals)
        (talk,) = scene.server.talks
        request = talk.requests[0][1]
        late = acknowledge(talk, request, argument_of(BITCOIN))
        assert late is not None
        await talk.send(late)
        await scene.until_received([*good, BITCOIN], within_s=5)
        await scene.server.push(BITCOIN)
        await scene.until(lambda: scene.notes.rows)

    def script(server: CandleServer) -> None:
        server.answer = lambda talk, request, argument: (
            None if argument == argument_of(BITCOIN) else acknowledge(talk, request, argument)
        )

    good = many(3)
    play(scene_of, *good, BITCOIN, script=script)


# What no protocol foresees.


def push_of(rows: Any, about: Any = None) -> bytes:
    about = {"channel": "candle1m", "instId": "BTC-USDT-SWAP"} if about is None else about
    return msgspec.json.encode({"arg": about, "data": rows})


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (b"", Oddity.GARBLED),
        (b"po", Oddity.GARBLED),
        (b"<html><body>502 Bad Gateway</body></html>", Oddity.GARBLED),
        (push_of([ROW])[:-20], Oddity.GARBLED),
        (push_of([[None, *ROW[1:]]]), Oddity.GARBLED),
        (push_of([[1774964340000, *ROW[1:]]]), Oddity.GARBLED),
        (push_of({"ts": "1"}), Oddity.GARBLED),
        (push_of([ROW], about="candle1m"), Oddity.GARBLED),
        (b"\xff\xfe" + push_of([ROW]), Oddity.GARBLED),
        (push_of([["\xe9"]]).replace("\xe9".encode(), b"\xe9"), Oddity.GARBLED),
        (b"[" * 100_000, Oddity.GARBLED),
        (b'{"event": "subscribe", "arg": [' + b"1," * 5000 + b"1]}", Oddity.GARBLED),
        (push_of([]), Oddity.UNKNOWN_EVENT),
        (b"{}", Oddity.UNKNOWN_EVENT),
        (b'{"data": [["1"]]}', Oddity.UNKNOWN_EVENT),
        (
            b'{"event":"channel-conn-count","channel":"orders","connCount":"2","connId":"abcd1234"}',
            Oddity.UNKNOWN_EVENT,
        ),
        (b'{"event":"notice","code":"64999","msg":"The moon is full.","connId":"a4d3ae55"}', Oddity.NOTICE),
        (push_of([ROW], about={"channel": "tickers", "instId": "BTC-USDT-SWAP"}), Oddity.UNEXPECTED),
        (push_of([ROW], about={"channel": "candle1D", "instId": "BTC-USDT-SWAP"}), Oddity.UNEXPECTED),
        (push_of([ROW], about={"channel": "candle1m", "instId": "X" * 10_000}), Oddity.UNEXPECTED),
        (push_of([ROW], about={"channel": "candle1m\n", "instId": "BTC-USDT-SWAP"}), Oddity.UNEXPECTED),
        (push_of([ROW], about={}), Oddity.UNEXPECTED),
    ],
)
def test_frame_that_is_none_of_okx_is_counted_and_costs_no_other(frame: bytes, kind: Oddity) -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        (talk,) = scene.server.talks
        await talk.send(push_of([ROW]))
        await talk.send(frame)
        await talk.send(push_of([ROW]))
        await scene.until(lambda: scene.notes.frames == 2)
        assert [each for _, each, _ in scene.notes.oddities] == [kind]
        assert scene.notes.unread == ([frame] if kind is Oddity.GARBLED else [])
        assert len(scene.server.open_talks) == 1

    play(scene_of, BITCOIN)


def test_binary_frame_is_read_like_a_text() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        await scene.server.talks[0].socket.send(push_of([ROW]), text=False)
        await scene.until(lambda: scene.notes.frames == 1)

    play(scene_of, BITCOIN)


def test_fields_that_okx_may_add_change_nothing() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        (talk,) = scene.server.talks
        about = {"channel": "candle1m", "instId": "BTC-USDT-SWAP", "instFamily": "BTC-USDT"}
        await talk.send(msgspec.json.encode({"arg": about, "data": [ROW], "action": "update", "seqId": 12}))
        await scene.until(lambda: scene.notes.frames == 1)
        assert scene.notes.oddities == []

    play(scene_of, BITCOIN)


@pytest.mark.parametrize("compression", ["deflate", None])
def test_endless_frame_is_cut_off_and_the_connection_replaced(compression: str | None) -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        await scene.server.talks[0].send(b" " * (8 * 1024 * 1024))
        await scene.until(lambda: len(scene.server.talks) == 2)
        await scene.until_received([BITCOIN])
        (ending,) = scene.notes.of_kind(Oddity.ENDED)
        assert "1009" in ending

    play(scene_of, BITCOIN, serve_options={"compression": compression})


# Silence.


def test_series_that_is_silent_for_longer_than_its_candles_is_subscribed_anew() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        trading = asyncio.create_task(scene.server.trade(but=[silent, hourly]))
        await scene.until(lambda: scene.notes.oddities, within_s=200)
        ((at_s, kind, detail),) = scene.notes.oddities
        assert kind == Oddity.SILENT
        assert str(silent) in detail
        assert 120 < at_s < 155
        await scene.until(lambda: scene.notes.joined.count(silent) == 2)
        (talk,) = scene.server.talks
        assert talk.ops(silent) == [SUBSCRIBE, UNSUBSCRIBE, SUBSCRIBE]
        assert talk.ops(hourly) == [SUBSCRIBE]
        assert scene.notes.gone == []
        assert scene.notes.received == set(wanted)
        trading.cancel()

    silent, hourly = series("ETH-USDT"), series("ETH-USDT", "1h")
    wanted = [BITCOIN, silent, hourly]
    play(scene_of, *wanted)


def test_patience_with_a_silent_series_grows_and_begins_anew_with_its_next_frame() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received([BITCOIN])
        await scene.until(lambda: len(scene.notes.of_kind(Oddity.SILENT)) == 3, within_s=1200)
        times_s = [0.0, *(at_s for at_s, *_ in scene.notes.oddities)]
        first_s, second_s, third_s = (after - before for before, after in pairwise(times_s))
        assert first_s < 155
        assert 240 < second_s < 275
        assert 480 < third_s < 515
        await scene.server.push(BITCOIN)
        await scene.until(lambda: len(scene.notes.of_kind(Oddity.SILENT)) == 4, within_s=200)

    play(scene_of, BITCOIN)


def test_rows_that_come_while_a_series_is_subscribed_anew_are_handed_on() -> None:
    async def scene_of(scene: Scene) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            if request.op == UNSUBSCRIBE:
                asyncio.get_running_loop().call_later(2, unsubscribed.set)
                return None
            return acknowledge(talk, request, argument)

        unsubscribed = asyncio.Event()
        await scene.until_received([BITCOIN])
        scene.server.answer = answer
        await unsubscribed.wait()
        (talk,) = scene.server.talks
        await scene.server.push(BITCOIN)
        await scene.until(lambda: scene.notes.rows)
        late = acknowledge(talk, talk.requests[-1][1], argument_of(BITCOIN))
        assert late is not None
        await talk.send(late)
        await scene.until(lambda: scene.notes.joined.count(BITCOIN) == 2)
        assert talk.ops() == [SUBSCRIBE, UNSUBSCRIBE, SUBSCRIBE]
        assert scene.notes.kinds() == {Oddity.SILENT}

    play(scene_of, BITCOIN)


# Moving to another connection.


def assert_nothing_missed(scene: Scene) -> None:
    for about, pushed in scene.server.pushes.items():
        received = [row[5] for row in scene.notes.rows[about]]
        assert set(received) == set(pushed)


async def until_moved(scene: Scene, wanted: list[Series], within_s: float = 60.0) -> None:
    await scene.until(lambda: not scene.server.talks[0].is_open, within_s=within_s)
    await scene.until_received(wanted)
    # So that what the server pushed last has come.
    await asyncio.sleep(0.5)


def assert_overlap(old: Talk, new: Talk) -> None:
    assert old.closed_s is not None
    assert old.close_code == 1000
    assert max(at_s for at_s, _ in new.requests) <= old.closed_s


def test_announced_upgrade_moves_all_series_before_the_old_connection_is_left() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        trading = asyncio.create_task(scene.server.trade(every_s=0.05))
        await scene.until(lambda: scene.notes.frames > 100)
        (old,) = scene.server.talks
        assert old.series == set(wanted)
        await scene.server.notice(old)
        await until_moved(scene, wanted, within_s=10)
        trading.cancel()
        await asyncio.sleep(1)
        old, new = scene.server.talks
        assert_overlap(old, new)
        assert_nothing_missed(scene)
        assert scene.notes.gone == []
        assert len(scene.notes.joined) == len(wanted)
        assert scene.notes.kinds() == {Oddity.UPGRADE}
        assert scene.feed.reconnects == 0

    wanted = mixed(40)
    play(scene_of, *wanted)


def test_announced_upgrade_of_every_connection_at_once_moves_them_all() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        old = list(scene.server.talks)
        trading = asyncio.create_task(scene.server.trade())
        for talk in old:
            await scene.server.notice(talk)
        await scene.until(lambda: not any(talk.is_open for talk in old))
        await scene.until_received(wanted)
        trading.cancel()
        await asyncio.sleep(1)
        assert_nothing_missed(scene)
        assert scene.notes.gone == []
        assert len(scene.server.talks) == 20

    wanted = mixed(100)
    play(scene_of, *wanted, channels_per_connection=10)


def test_old_connection_carries_on_while_no_new_one_can_be_opened() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        trading = asyncio.create_task(scene.server.trade())
        scene.server.door = HTTPStatus.SERVICE_UNAVAILABLE
        (old,) = scene.server.talks
        await scene.server.notice(old)
        await scene.until(lambda: len(scene.notes.of_kind(Oddity.NOT_OPENED)) >= 2)
        assert scene.notes.gone == []
        more = [*wanted, BITCOIN]
        scene.want(more)
        await scene.until_received(more)
        assert old.is_open
        scene.server.door = None
        await until_moved(scene, more)
        trading.cancel()
        await asyncio.sleep(1)
        assert_nothing_missed(scene)
        assert scene.notes.gone == []

    wanted = many(10)
    play(scene_of, *wanted)


def test_new_connection_that_breaks_before_it_has_everything_is_followed_by_another() -> None:
    async def scene_of(scene: Scene) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            if talk is scene.server.talks[1]:
                talk.cut()
                return None
            return acknowledge(talk, request, argument)

        await scene.until_received(wanted)
        scene.server.answer = answer
        trading = asyncio.create_task(scene.server.trade())
        await scene.server.notice(scene.server.talks[0])
        await until_moved(scene, wanted)
        trading.cancel()
        await asyncio.sleep(1)
        old, _, new = scene.server.talks
        assert_overlap(old, new)
        assert_nothing_missed(scene)
        assert scene.notes.gone == []

    wanted = many(10)
    play(scene_of, *wanted)


def test_new_connection_on_which_everything_is_refused_does_not_cost_the_old_one() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        scene.server.answer = lambda talk, request, argument: unknown(argument, request.id)
        trading = asyncio.create_task(scene.server.trade())
        (old,) = scene.server.talks
        await scene.server.notice(old)
        await scene.until(lambda: len(scene.notes.refusals) == 10)
        await asyncio.sleep(30)
        assert old.is_open
        assert scene.notes.received == set(wanted)
        assert scene.feed.subscribed_series == len(wanted)
        scene.server.answer = acknowledge
        await until_moved(scene, wanted, within_s=300)
        trading.cancel()
        await asyncio.sleep(1)
        assert_nothing_missed(scene)
        assert scene.notes.gone == []

    wanted = many(10)
    play(scene_of, *wanted)


def test_connections_do_not_pile_up_when_none_of_the_new_ones_gets_ready() -> None:
    async def scene_of(scene: Scene) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            notices.append(asyncio.create_task(scene.server.notice(talk)))
            open_at_once.append(len(scene.server.open_talks))
            return None

        notices: list[asyncio.Task[None]] = []
        open_at_once: list[int] = []
        await scene.until_received(wanted)
        scene.server.answer = answer
        await scene.server.notice(scene.server.talks[0])
        await scene.until(lambda: len(scene.server.talks) == 9, within_s=200)
        assert max(open_at_once) <= 3
        assert scene.server.knocks_s[-1] > 60, "each time a little later"
        assert scene.notes.gone == []

    wanted = many(3)
    play(scene_of, *wanted)


def test_old_connection_that_is_closed_before_the_new_one_is_there_is_a_loss_like_any() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        (old,) = scene.server.talks
        scene.server.door = HTTPStatus.SERVICE_UNAVAILABLE
        await scene.server.notice(old)
        await scene.until(lambda: scene.notes.of_kind(Oddity.NOT_OPENED))
        await old.socket.close(1001)
        await scene.until(lambda: len(scene.notes.gone) == len(wanted))
        scene.server.door = None
        await scene.until_received(wanted)
        assert len(scene.notes.joined) == 2 * len(wanted)

    wanted = many(10)
    play(scene_of, *wanted)


def test_connections_are_renewed_at_some_age_one_after_the_other_without_a_gap() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        trading = asyncio.create_task(scene.server.trade(every_s=5))
        await asyncio.sleep(1500)
        trading.cancel()
        await asyncio.sleep(1)
        assert_nothing_missed(scene)
        assert scene.notes.gone == []
        ages_s = [talk.closed_s - talk.opened_s for talk in scene.server.talks if talk.closed_s is not None]
        assert len(ages_s) >= 6
        assert all(440 < age_s < 770 for age_s in ages_s)
        assert max(ages_s) - min(ages_s) > 60

    wanted = many(6)
    play(scene_of, *wanted, channels_per_connection=2, renew_after_s=600)


# Too many channels.


@pytest.mark.parametrize(("code", "allowed", "fewer", "connections"), [(4008, 60, 50, 9), (4009, 150, 100, 5)])
def test_too_many_channels_halves_what_a_connection_carries_and_spreads_the_rest(
    code: int, allowed: int, fewer: int, connections: int
) -> None:
    def script(server: CandleServer) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            reply = acknowledge(talk, request, argument)
            if len(talk.subscribed) == allowed + 1:
                closings.append(asyncio.create_task(talk.socket.close(code)))
            return reply

        closings: list[asyncio.Task[None]] = []
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted, within_s=120)
        assert scene.feed.channels_per_connection == fewer
        assert all(len(talk.subscribed) <= fewer for talk in scene.server.open_talks)
        assert len(scene.server.open_talks) == connections
        assert scene.notes.of_kind(Oddity.FEWER_CHANNELS)[0].startswith("100 ")

    wanted = mixed(410)
    play(scene_of, *wanted, script=script)


def test_connections_closed_together_for_too_many_channels_halve_the_cap_once() -> None:
    async def scene_of(scene: Scene) -> None:
        await scene.until_received(wanted)
        await asyncio.gather(*(talk.socket.close(4008) for talk in scene.server.talks))
        await scene.until_received(wanted)
        assert scene.feed.channels_per_connection == 100

    wanted = mixed(600)
    play(scene_of, *wanted)


def test_channels_of_a_connection_are_not_halved_without_end() -> None:
    def script(server: CandleServer) -> None:
        def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
            closings.append(asyncio.create_task(talk.socket.close(4008)))
            return acknowledge(talk, request, argument)

        closings: list[asyncio.Task[None]] = []
        server.answer = answer

    async def scene_of(scene: Scene) -> None:
        await scene.until(lambda: scene.feed.channels_per_connection == 10, within_s=300)
        scene.server.answer = acknowledge
        await scene.until_received(wanted, within_s=120)
        assert scene.feed.channels_per_connection == 10

    wanted = mixed(50)
    play(scene_of, *wanted, script=script)


# The whole of it.


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_everything_wanted_is_received_in_the_end(seed: int) -> None:
    chance = random.Random(seed)
    every = mixed(60)

    def answer(talk: Talk, request: Request, argument: Argument) -> str | None:
        match chance.randrange(40):
            case 0:
                return None
            case 1 if request.op == SUBSCRIBE:
                return unknown(argument)
            case 2:
                return error("60014", "Requests too frequent")
            case 3:
                return error("60012", "Invalid request", request.id)
            case 4:
                talk.cut()
                return None
            case _:
                return acknowledge(talk, request, argument)

    async def mischief(scene: Scene) -> None:
        server = scene.server
        talk = chance.choice(server.open_talks) if server.open_talks else None
        match chance.randrange(11):
            case 0:
                server.door = chance.choice([None, None, HTTPStatus(503), HTTPStatus(429), HTTPStatus(502)])
            case 1:
                server.answer = chance.choice([acknowledge, answer])
            case 2:
                server.pong = not server.pong
            case 3:
                wanted[:] = chance.sample(every, chance.randrange(1, 60))
                scene.want(wanted)
            case 4 if talk:
                await talk.socket.close(chance.choice([1000, 1001, 1012, 4004, 4006, 4008]))
            case 5 if talk:
                talk.cut()
            case 6 if talk:
                talk.freeze()
            case 7 if talk:
                await server.notice(talk)
            case 8 if talk:
                await talk.send(chance.choice([b"garbage", push_of([["1"]]), b'{"event":"error","code":"60012"}']))
            case 9 if talk:
                talk.subscribed.clear()
            case _:
                await asyncio.sleep(chance.uniform(0, 100))

    async def scene_of(scene: Scene) -> None:
        trading = asyncio.create_task(scene.server.trade(every_s=5))
        for _ in range(60):
            await mischief(scene)
            await asyncio.sleep(chance.choice([0, 0, 0.01, 1, 10]))
        trading.cancel()
        scene.server.door, scene.server.pong, scene.server.answer = None, True, acknowledge
        # A series refused time after time is asked for again within the hour, one that was forgotten is noticed.
        await scene.until_received(wanted, within_s=2 * HOUR_S)
        scene.notes.rows.clear()
        trading = asyncio.create_task(scene.server.trade(every_s=30))
        await scene.until(lambda: set(scene.notes.rows) == set(wanted), within_s=HOUR_S)
        # None is carried twice.
        await scene.until(lambda: len(scene.server.carried) == len(wanted))
        assert all(len(talk.subscribed) <= 25 for talk in scene.server.open_talks)
        assert scene.feed.subscribed_series == len(wanted)
        knocks_s = scene.server.knocks_s
        assert all(fourth - first > 1.0 for first, fourth in zip(knocks_s, knocks_s[3:], strict=False))
        trading.cancel()

    wanted = chance.sample(every, 40)
    play(scene_of, *wanted, channels_per_connection=25, renew_after_s=900)


def test_cancelled_feed_leaves_no_connection_and_no_task() -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with feeding(wanted, channels_per_connection=10) as scene:
            await scene.until_received(wanted)
            await scene.server.notice(scene.server.talks[0])
            talks = scene.server.talks
            scene.running.cancel()
            await asyncio.gather(scene.running, return_exceptions=True)
            assert scene.feed.connections == 0
            await scene.until_closed(talks)
            assert {talk.close_code for talk in talks} == {1000}
        assert asyncio.all_tasks() == before

    wanted = many(50)
    run(main(), sockets=True)


@pytest.mark.parametrize("after_s", [0.0, 0.0001, 0.001, 0.3, 0.5, 1.0, 5.0])
def test_feed_can_be_cancelled_at_any_moment(after_s: float) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with feeding(many(50), channels_per_connection=10) as scene:
            await asyncio.sleep(after_s)
            for talk in scene.server.open_talks[::2]:
                talk.cut()
            await asyncio.sleep(after_s)
        assert asyncio.all_tasks() == before

    run(main(), sockets=True)


def test_feed_runs_by_the_clock_on_the_wall_too() -> None:
    async def main() -> None:
        async with feeding(wanted) as scene:
            await scene.until_received(wanted)
            trading = asyncio.create_task(scene.server.trade(every_s=0.01))
            await scene.until(lambda: scene.notes.frames > 200)
            scene.server.talks[0].cut()
            await scene.until(lambda: len(scene.server.talks) == 2)
            await scene.until_received(wanted)
            await scene.server.notice(scene.server.talks[1])
            await scene.until(lambda: len(scene.server.talks) == 3 and not scene.server.talks[1].is_open)
            await scene.until_received(wanted)
            trading.cancel()
        assert scene.feed.reconnects == 1

    wanted = mixed(20)
    asyncio.run(main())
