"""Delivery: each sink is told once of each incident and once that it is over, whatever happens in between."""

import asyncio
import threading
from collections import Counter
from time import monotonic

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from okx_pipeline.alerts import delivery, outbound
from okx_pipeline.alerts.delivery import MESSAGES_A_ROUND, deliver
from okx_pipeline.alerts.incidents import Source, look
from okx_pipeline.alerts.sinks import Telegram, Webhook
from okx_pipeline.storage.alerts import LONGEST_RETRY_S, Incident
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline_tests.alerts.conftest import TOKEN, Find, Tell
from okx_pipeline_tests.alerts.sink_server import Answer, SinkServer
from okx_pipeline_tests.conftest import rows

GAP = Incident("BTC-USDT", "3 candles are missing", "BTC-USDT")
OPENED, RESOLVED = ("open", "open_gaps:BTC-USDT"), ("resolved", "open_gaps:BTC-USDT")


def rest_is_over(connection: Connection) -> None:
    """As if the time had passed for which a sink is left alone."""
    connection.execute("UPDATE trading.alert_deliveries SET try_again_at = '-infinity'")


def test_an_incident_is_told_once_and_its_end_once(find: Find, tell: Tell, webhook: Webhook, hook: SinkServer) -> None:
    for _ in range(3):
        find(GAP)
        tell(webhook)
    assert hook.told == [OPENED]
    for _ in range(3):
        find()
        tell(webhook)
    assert hook.told == [OPENED, RESOLVED]
    find(GAP)
    tell(webhook)
    assert hook.told == [OPENED, RESOLVED, OPENED]
    numbers = [request.json["incident"] for request in hook.requests]
    assert numbers[0] == numbers[1] != numbers[2]


def test_every_sink_is_told_by_itself(
    find: Find, tell: Tell, webhook: Webhook, chat: Telegram, hook: SinkServer, telegram: SinkServer
) -> None:
    both = ("webhook", "telegram")
    hook.answer = Answer(500)
    find(GAP, sinks=both)
    assert [str(each) for each in tell(webhook, chat)] == ["webhook told 0, then: answered 500", "telegram told 1"]
    find(sinks=both)
    tell(webhook, chat)
    assert [request.json["text"].split(":")[0] for request in telegram.requests] == [
        "okx-pipeline critical",
        "okx-pipeline resolved",
    ]


def test_a_sink_that_is_named_later_is_told_of_what_is_open_and_not_of_what_is_over(
    find: Find, tell: Tell, webhook: Webhook, chat: Telegram, telegram: SinkServer
) -> None:
    find(GAP, Incident("ETH-USDT", "text"))
    find(Incident("ETH-USDT", "text"))
    tell(webhook)
    find(Incident("ETH-USDT", "text"), sinks=("webhook", "telegram"))
    tell(webhook, chat)
    assert len(telegram.requests) == 1


def test_what_a_sink_does_not_take_it_is_told_later_and_ever_less_often(
    find: Find, tell: Tell, webhook: Webhook, hook: SinkServer, connection: Connection
) -> None:
    hook.answer = Answer(503)
    find(GAP)
    pauses = []
    for _ in range(9):
        tell(webhook)
        tell(webhook)
        wait = "SELECT extract(epoch FROM try_again_at - clock_timestamp()) FROM trading.alert_deliveries"
        pauses.append(round(float(one(connection, wait)), -1))
        rest_is_over(connection)
    assert len(hook.requests) == 9, "left alone in between"
    assert pauses == [30, 60, 120, 240, 480] + [LONGEST_RETRY_S] * 4
    hook.answer = Answer()
    tell(webhook)
    assert hook.told == [OPENED] * 10
    assert rows(connection, "SELECT attempts, problem FROM trading.alert_deliveries") == [(0, None)]
    find()
    tell(webhook)
    assert hook.told[-1] == RESOLVED, "told at once again"


def test_a_message_that_a_sink_will_not_have_does_not_keep_others_from_it(
    find: Find, tell: Tell, webhook: Webhook, hook: SinkServer
) -> None:
    hook.answers = [Answer(400)]
    find(GAP, Incident("ETH-USDT", "text"))
    tell(webhook)
    tell(webhook)
    assert [key for _, key in hook.told] == ["open_gaps:BTC-USDT", "open_gaps:ETH-USDT"]


def test_a_sink_that_was_away_hears_of_what_came_and_went_but_not_after_a_day(
    find: Find, tell: Tell, webhook: Webhook, hook: SinkServer, connection: Connection
) -> None:
    find(GAP)
    find()
    find(Incident("ETH-USDT", "text"))
    find()
    connection.execute(
        "UPDATE trading.alerts SET resolved_at = resolved_at - interval '25 hours' WHERE key LIKE '%%ETH%%'"
    )
    tell(webhook)
    assert hook.told == [OPENED, RESOLVED]


def test_nobody_is_told_before_it_has_lasted(
    find: Find, tell: Tell, webhook: Webhook, hook: SinkServer, connection: Connection
) -> None:
    find(Incident("BTC-USDT", "late", patience_s=3600))
    tell(webhook)
    assert hook.requests == []
    connection.execute("UPDATE trading.alerts SET announce_at = clock_timestamp()")
    find(Incident("BTC-USDT", "late", patience_s=3600))
    tell(webhook)
    assert hook.told == [OPENED]


def test_two_who_deliver_at_once_tell_a_sink_once(
    find: Find, database: Database, webhook: Webhook, hook: SinkServer
) -> None:
    find(*(Incident(f"S{number}-USDT", "text") for number in range(MESSAGES_A_ROUND)))
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        asyncio.run(deliver(database, [webhook]))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(hook.told) == {("open", f"open_gaps:S{number}-USDT"): 1 for number in range(MESSAGES_A_ROUND)}


def test_two_who_look_at_once_open_one_incident(find: Find, database: Database, connection: Connection) -> None:
    start = threading.Barrier(4)

    def run() -> None:
        with database.connect() as own:
            start.wait()
            for _ in range(20):
                look(own, [Source("open_gaps", lambda _: [GAP])], ["webhook"])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one(connection, "SELECT count(*) FROM trading.alerts") == 1


def test_one_who_is_killed_while_telling_leaves_the_sink_to_the_next(
    find: Find, database: Database, tell: Tell, webhook: Webhook, hook: SinkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "WITHIN_S", 60.0)
    hook.answers = [Answer(silent=True)]
    find(GAP)

    async def stopped_midway() -> None:
        telling = asyncio.create_task(deliver(database, [webhook]))
        await asyncio.to_thread(hook.asked.wait)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    asyncio.run(stopped_midway())
    tell(webhook)
    assert hook.told == [OPENED, OPENED], "whether the first was taken nobody knows"
    tell(webhook)
    assert len(hook.requests) == 2


def test_a_silent_sink_costs_one_answers_time_and_the_other_sink_nothing(
    find: Find, tell: Tell, webhook: Webhook, chat: Telegram, hook: SinkServer, telegram: SinkServer
) -> None:
    hook.answer = Answer(silent=True)
    incidents = [Incident(f"S{number}-USDT", "text") for number in range(10)]
    find(*incidents, sinks=("webhook", "telegram"))
    started = monotonic()
    silent, other = tell(webhook, chat)
    assert (silent.messages, silent.problem) == (0, "no answer within 0.5 s")
    assert (other.messages, other.problem) == (10, None)
    assert len(hook.requests) == 1
    assert monotonic() - started < 10 * outbound.WITHIN_S, "not one answer's time for each message"


def test_a_round_is_bounded_in_messages_and_in_time(
    find: Find, tell: Tell, webhook: Webhook, hook: SinkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(*(Incident(f"S{number}-USDT", "text") for number in range(MESSAGES_A_ROUND + 5)))
    assert [each.messages for each in tell(webhook)] == [MESSAGES_A_ROUND]
    with monkeypatch.context() as no_time:
        no_time.setattr(delivery, "ROUND_S", 0.0)
        assert [each.messages for each in tell(webhook)] == [0]
    assert [each.messages for each in tell(webhook)] == [5]


def test_what_is_kept_of_a_failed_delivery_holds_no_token(
    find: Find, tell: Tell, chat: Telegram, telegram: SinkServer, connection: Connection
) -> None:
    telegram.answer = Answer(404, f"no page /bot{TOKEN}/sendMessage".encode())
    find(GAP, sinks=("telegram",))
    (done,) = tell(chat)
    kept = rows(connection, "SELECT * FROM trading.alerts, trading.alert_deliveries")
    assert "answered 404" in str(kept)
    assert "sentinel" not in f"{kept}{done}{done!r}"


def test_a_database_that_is_away_is_told_in_a_line(webhook: Webhook, hook: SinkServer) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    (done,) = asyncio.run(deliver(away, [webhook]))
    assert "cannot reach PostgreSQL" in str(done.problem)
    assert hook.requests == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("look"), st.frozensets(st.sampled_from("abc"))),
        st.tuples(st.just("deliver"), st.sampled_from([200, 500, 302, 400])),
    ),
    max_size=14,
)


@given(STEPS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_each_incident_is_taken_once_open_and_once_resolved_in_that_order(
    find: Find, tell: Tell, webhook: Webhook, hook: SinkServer, connection: Connection, steps: list[tuple[str, object]]
) -> None:
    connection.execute("DELETE FROM trading.alerts")
    hook.requests.clear()
    taken: list[tuple[int, str]] = []

    def go(status: int) -> None:
        hook.answer = Answer(status)
        before = len(hook.requests)
        tell(webhook)
        rest_is_over(connection)
        if status == 200:
            taken.extend((request.json["incident"], request.json["state"]) for request in hook.requests[before:])

    for step, value in steps:
        if step == "look":
            assert isinstance(value, frozenset)
            find(*(Incident(each, "text") for each in value))
        else:
            assert isinstance(value, int)
            go(value)
    find()
    go(200)
    incidents = [number for (number,) in rows(connection, "SELECT id FROM trading.alerts")]
    assert Counter(taken) == Counter((number, state) for number in incidents for state in ("open", "resolved"))
    for number in incidents:
        assert taken.index((number, "open")) < taken.index((number, "resolved"))
