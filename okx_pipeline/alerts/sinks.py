"""Who is told: a webhook and a chat of Telegram's, each with its own shape of the same message."""

from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Final, Protocol

import msgspec
from pydantic import SecretStr

from okx_pipeline.alerts.outbound import Outbound, UndeliveredError
from okx_pipeline.settings import Settings
from okx_pipeline.storage.alerts import Message

TELEGRAM: Final = "https://api.telegram.org"


class Sink(Protocol):
    """Somebody who is told of incidents."""

    @property
    def name(self) -> str:
        """By which the table knows what it was told."""

    async def send(self, message: Message) -> None:
        """Tell it.

        Raises
        ------
        UndeliveredError
            If it did not say that it has taken the message.
        """


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL to which each message is posted as JSON; docs/alerts.md shows the body."""

    outbound: Outbound = field(repr=False)
    url: SecretStr = field(repr=False)
    name: str = "webhook"

    async def send(self, message: Message) -> None:
        """Tell it; any 2xx means that it has taken the message."""
        await self.outbound.ask("POST", self.url, webhook_body(message))


@dataclass(frozen=True, slots=True)
class Telegram:
    """A chat that a bot of Telegram's writes to.

    See https://core.telegram.org/bots/api#sendmessage; the token is part of the URL's path.
    """

    outbound: Outbound = field(repr=False)
    token: SecretStr = field(repr=False)
    chat: str = field(repr=False)
    host: str = TELEGRAM
    name: str = "telegram"

    async def send(self, message: Message) -> None:
        """Tell it; Telegram says ``"ok": true`` when it has taken the message."""
        url = SecretStr(f"{self.host}/bot{self.token.get_secret_value()}/sendMessage")
        body = {"chat_id": self.chat, "text": line(message), "link_preview_options": {"is_disabled": True}}
        answer = await self.outbound.ask("POST", url, body)
        try:
            taken = msgspec.json.decode(answer, type=_Taken).ok
        except msgspec.DecodeError:
            taken = False
        if not taken:
            raise UndeliveredError("answered something else than Telegram does")


class _Taken(msgspec.Struct):
    ok: bool


def sinks_of(settings: Settings) -> list[Sink]:
    """Those that the settings name.

    Raises
    ------
    UsageError
        If SSL_CERT_FILE holds no certificate.
    """
    if settings.alert_webhook_url is None and settings.telegram_token is None:
        return []
    outbound = Outbound(settings)
    sinks: list[Sink] = []
    if settings.alert_webhook_url is not None:
        sinks.append(Webhook(outbound, settings.alert_webhook_url))
    if settings.telegram_token is not None and settings.telegram_chat is not None:
        sinks.append(Telegram(outbound, settings.telegram_token, settings.telegram_chat, TELEGRAM))
    return sinks


def line(message: Message) -> str:
    """A message for a person."""
    return f"okx-pipeline {'resolved' if message.state == 'resolved' else message.severity}: {message.text}"


def webhook_body(message: Message) -> dict[str, Any]:
    """A message for a program; `text` is the line for a person, where chat services look for it."""
    return {
        "text": line(message),
        "incident": message.incident,
        "state": message.state,
        "severity": message.severity,
        "what": message.what,
        "key": message.key,
        "symbol": message.symbol,
        "at": f"{message.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
