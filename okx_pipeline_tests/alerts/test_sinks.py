"""What a sink is sent, what counts as taken, and that nothing of its address ever shows."""

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from okx_pipeline.alerts import outbound
from okx_pipeline.alerts.outbound import UndeliveredError
from okx_pipeline.alerts.sinks import Sink, Telegram, Webhook, sinks_of
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.alerts import Message
from okx_pipeline_tests.alerts.conftest import TOKEN
from okx_pipeline_tests.alerts.sink_server import Answer, SinkServer, sink_server
from okx_pipeline_tests.exchange.own_authority import certify

AT = datetime(2026, 8, 22, 1, 2, 3, 456_000, tzinfo=UTC)
OPEN = Message(7, "open_gaps", "open_gaps:BTC-USDT", "BTC-USDT", "critical", "3 candles are missing", "open", AT)
RESOLVED = Message(
    7, "open_gaps", "open_gaps:BTC-USDT", "BTC-USDT", "critical", "3 candles are missing", "resolved", AT
)


def send(sink: Sink, message: Message = OPEN) -> None:
    asyncio.run(sink.send(message))


def refusal(sink: Sink) -> str:
    with pytest.raises(UndeliveredError) as problem:
        send(sink)
    return str(problem.value)


def test_a_webhook_is_posted_the_body_of_the_readme(webhook: Webhook, hook: SinkServer) -> None:
    send(webhook)
    send(webhook, RESOLVED)
    assert {request.target for request in hook.requests} == {"/hook/s3cret"}
    opened, resolved = (request.json for request in hook.requests)
    assert opened == {
        "text": "okx-pipeline critical: 3 candles are missing",
        "incident": 7,
        "state": "open",
        "severity": "critical",
        "what": "open_gaps",
        "key": "open_gaps:BTC-USDT",
        "symbol": "BTC-USDT",
        "at": "2026-08-22T01:02:03Z",
    }
    assert resolved == {**opened, "state": "resolved", "text": "okx-pipeline resolved: 3 candles are missing"}
    assert hook.requests[0].headers["Content-Type"] == "application/json"
    assert hook.requests[0].headers["User-Agent"].startswith("okx-pipeline/")


def test_telegram_is_asked_to_send_plain_text_to_the_chat(chat: Telegram, telegram: SinkServer) -> None:
    send(chat)
    (request,) = telegram.requests
    assert request.target == f"/bot{TOKEN}/sendMessage"
    assert request.json["chat_id"] == "-100200300"
    assert request.json["text"] == "okx-pipeline critical: 3 candles are missing"
    assert "parse_mode" not in request.json


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_an_answer_that_is_no_success_means_it_was_not_taken(webhook: Webhook, hook: SinkServer, status: int) -> None:
    hook.answer = Answer(status)
    assert refusal(webhook) == f"answered {status}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_not_followed(webhook: Webhook, hook: SinkServer, status: int) -> None:
    with sink_server() as elsewhere:
        hook.answer = Answer(status, headers={"Location": f"{elsewhere.url}/metadata"})
        assert refusal(webhook) == f"answered {status}; redirects are not followed"
        assert elsewhere.requests == []
    assert len(hook.requests) == 1


@pytest.mark.parametrize("slow", [Answer(silent=True), Answer(drips=True)], ids=["silent", "dripping"])
def test_a_sink_that_does_not_answer_in_time_is_left(webhook: Webhook, hook: SinkServer, slow: Answer) -> None:
    hook.answer = slow
    assert refusal(webhook) == "no answer within 0.5 s"


def test_an_endless_answer_is_not_read_to_its_end(
    webhook: Webhook, hook: SinkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "WITHIN_S", 60.0)
    hook.answer = Answer(body=b"x" * 4096, endless=True)
    body = asyncio.run(webhook.outbound.ask("POST", webhook.url))
    assert outbound.LARGEST_ANSWER < len(body) < 2 * outbound.LARGEST_ANSWER


def test_a_closed_port_is_told_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        (sink,) = sinks_of(read_settings(alert_webhook_url=f"http://127.0.0.1:{port}/x", alert_allow_http=True))
        assert refusal(sink) == "connection refused"


@pytest.mark.parametrize("body", [b"", b"<html>sign in to the hotel</html>", b'{"ok": false}', b"[]", b'{"ok": "no"}'])
def test_telegram_has_taken_only_what_it_says_it_has(chat: Telegram, telegram: SinkServer, body: bytes) -> None:
    telegram.answer = Answer(body=body)
    assert refusal(chat) == "answered something else than Telegram does"


def test_over_https_the_certificate_is_held_against_ssl_cert_file(tmp_path: Path) -> None:
    tls, authority = certify(tmp_path)
    with sink_server(tls) as server:
        known, unknown = (
            sinks_of(read_settings(alert_webhook_url=f"{server.url}/x", **more))[0]
            for more in ({"SSL_CERT_FILE": authority}, {})
        )
        send(known)
        assert refusal(unknown).startswith("its certificate is not trusted: ")
        assert len(server.requests) == 1


def test_https_goes_through_the_proxy_and_http_does_not(hook: SinkServer) -> None:
    with sink_server() as proxy:
        proxy.answer = Answer(502)
        through = {"HTTPS_PROXY": proxy.url, "alert_allow_http": True}
        (direct,) = sinks_of(read_settings(alert_webhook_url=f"{hook.url}/x", **through))
        send(direct)
        assert (len(hook.requests), proxy.requests) == (1, [])
        (proxied,) = sinks_of(read_settings(alert_webhook_url=f"{hook.url.replace('http', 'https')}/s3cret", **through))
        refusal(proxied)
        (request,) = proxy.requests
        assert (request.method, request.target) == ("CONNECT", hook.url.removeprefix("http://"))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that is logged, at its loudest."""
    for name in ("", "httpx", "httpcore", "asyncio", "okx_pipeline"):
        caplog.set_level(logging.DEBUG, logger=name)
    yield caplog
    printed = capfd.readouterr()
    assert "sentinel" not in printed.out + printed.err


@pytest.mark.parametrize(
    "answer",
    [
        Answer(),
        Answer(401, b'{"ok": false, "description": "Unauthorized"}'),
        Answer(301, headers={"Location": f"https://127.0.0.1/bot{TOKEN}/sendMessage", "X-Said": TOKEN}),
        Answer(silent=True),
        Answer(404, f"no such page: /bot{TOKEN}/sendMessage".encode()),
    ],
    ids=["taken", "unauthorized", "redirect", "silent", "echo"],
)
def test_the_token_shows_nowhere_whatever_becomes_of_a_message(
    chat: Telegram, telegram: SinkServer, told: pytest.LogCaptureFixture, answer: Answer
) -> None:
    telegram.answer = answer
    try:
        send(chat)
        problem: BaseException | None = None
    except UndeliveredError as refused:
        problem = refused
    assert TOKEN in telegram.requests[0].target
    shown = (
        f"{told.text}{chat!r}{chat.outbound!r}{problem!r}{problem}{json.dumps(str(vars(problem) if problem else ''))}"
    )
    assert "sentinel" not in shown


def test_what_others_ask_by_http_is_logged_as_before(
    hook: SinkServer, webhook: Webhook, told: pytest.LogCaptureFixture
) -> None:
    send(webhook)
    assert "httpx" not in {record.name for record in told.records}
    httpx.get(f"{hook.url}/other", trust_env=False)
    assert "/other" in told.text


def test_the_settings_show_no_address_and_no_token(hook: SinkServer) -> None:
    settings = read_settings(
        alert_webhook_url="https://hooks.example/sentinel",
        dead_man_url="https://ping.example/sentinel",
        telegram_token=TOKEN,
        telegram_chat="@channel",
    )
    assert "sentinel" not in f"{settings!r}{settings}{settings.model_dump()}{sinks_of(settings)!r}"
