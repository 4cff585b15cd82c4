"""Sinks on loopback, and a store whose incidents are what a test says they are."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from okx_pipeline.alerts import outbound
from okx_pipeline.alerts.delivery import Delivered, deliver
from okx_pipeline.alerts.incidents import Source, look
from okx_pipeline.alerts.sinks import Sink, Telegram, Webhook, sinks_of
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.alerts import Incident
from okx_pipeline.storage.database import Connection, Database
from okx_pipeline_tests.alerts.sink_server import SinkServer, sink_server

TOKEN = "123456789:AAsentinel-of-the-token_0123456789"  # noqa: S105  # nobody's

Find = Callable[..., None]
Tell = Callable[..., list[Delivered]]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink has half a second instead of five to answer."""
    monkeypatch.setattr(outbound, "WITHIN_S", 0.5)


@pytest.fixture
def hook() -> Iterator[SinkServer]:
    with sink_server() as server:
        yield server


@pytest.fixture
def telegram() -> Iterator[SinkServer]:
    with sink_server() as server:
        yield server


@pytest.fixture
def webhook(hook: SinkServer) -> Webhook:
    """A webhook as the settings make it."""
    (sink,) = sinks_of(read_settings(alert_webhook_url=f"{hook.url}/hook/s3cret", alert_allow_http=True))
    assert isinstance(sink, Webhook)
    return sink


@pytest.fixture
def chat(telegram: SinkServer, monkeypatch: pytest.MonkeyPatch) -> Telegram:
    """A chat as the settings make it, on a Telegram of our own."""
    monkeypatch.setattr("okx_pipeline.alerts.sinks.TELEGRAM", telegram.url)
    (sink,) = sinks_of(read_settings(telegram_token=TOKEN, telegram_chat="-100200300"))
    assert isinstance(sink, Telegram)
    return sink


@pytest.fixture
def find(connection: Connection) -> Find:
    """`find(*incidents, sinks=…)`: a look that finds these, and nothing else of its kind."""

    def once(*incidents: Incident, sinks: tuple[str, ...] = ("webhook",), what: str = "open_gaps") -> None:
        look(connection, [Source(what, lambda _: list(incidents))], sinks)

    return once


@pytest.fixture
def tell(database: Database) -> Tell:
    """`tell(*sinks)`: one round of delivery."""

    def once(*sinks: Sink) -> list[Delivered]:
        return asyncio.run(deliver(database, sinks))

    return once
