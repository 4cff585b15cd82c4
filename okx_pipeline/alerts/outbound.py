"""One small request to an address of the operator's own, such as a webhook's.

The address may hold a secret (Telegram's token is part of its path), so nothing here says it: no log line, no error,
no repr. It is the operator's setting and may lead anywhere; where an answer would send us is not followed.
"""

import asyncio
import logging
from contextvars import ContextVar
from typing import Any, Final, Literal

import httpx
from pydantic import SecretStr

from okx_pipeline.errors import PipelineError
from okx_pipeline.exchange.network import USER_AGENT, causes, mistrust, trust
from okx_pipeline.settings import Settings

WITHIN_S: Final = 5.0
"""From looking up the name to the end of the answer."""

LARGEST_ANSWER: Final = 64 * 1024

_unsaid: Final = ContextVar("_unsaid", default=False)


class UndeliveredError(PipelineError):
    """A request was not taken; why, in a few words that do not say where it went."""


class _Unsaid(logging.Filter):
    """Keeps back what the HTTP libraries would log of our requests: URLs at INFO, headers of answers at DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _unsaid.get()


# A filter holds for the very logger it is on, so that each that the libraries write to is named.
for _name in ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks"))):
    logging.getLogger(_name).addFilter(_Unsaid())


class Outbound:
    """The way out, as the settings have it: through ``HTTPS_PROXY`` for https, trusting ``SSL_CERT_FILE``.

    Raises
    ------
    UsageError
        If there is no certificate in the file.
    """

    def __init__(self, settings: Settings) -> None:
        self._proxy = settings.proxy
        self._trust = trust(settings.ca_file)

    async def ask(self, method: Literal["GET", "POST"], url: SecretStr, json: Any = None) -> bytes:
        """Send a request and return the beginning of a 2xx answer, at most `LARGEST_ANSWER` bytes and some.

        Raises
        ------
        UndeliveredError
            If there is no such answer within `WITHIN_S`.
        """
        token = _unsaid.set(True)
        try:
            async with asyncio.timeout(WITHIN_S):
                status, body = await self._ask(method, url.get_secret_value(), json)
        except (TimeoutError, httpx.TimeoutException):
            raise UndeliveredError(f"no answer within {WITHIN_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as problem:
            raise UndeliveredError(_words(problem)) from None
        finally:
            _unsaid.reset(token)
        if 300 <= status < 400:
            raise UndeliveredError(f"answered {status}; redirects are not followed")
        if not 200 <= status < 300:
            raise UndeliveredError(f"answered {status}")
        return body

    async def _ask(self, method: str, url: str, json: Any) -> tuple[int, bytes]:
        proxy = self._proxy.get_secret_value() if self._proxy and url.lower().startswith("https:") else None
        # Uncompressed, so that what is read is no larger than what came.
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        async with (
            httpx.AsyncClient(
                verify=self._trust, proxy=proxy, trust_env=False, follow_redirects=False, timeout=WITHIN_S
            ) as client,
            client.stream(method, url, headers=headers, json=json) as response,
        ):
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > LARGEST_ANSWER:
                    break
            return response.status_code, bytes(body)


def _words(problem: Exception) -> str:
    """Why, by kind: a library's own words may repeat the address."""
    untrusted = mistrust(problem)
    if untrusted is not None:
        return f"its certificate is not trusted: {untrusted}"
    kinds = {type(cause).__name__ for cause in causes(problem)}
    if "gaierror" in kinds:
        return "its name cannot be resolved"
    if "ConnectionRefusedError" in kinds:
        return "connection refused"
    return f"the request failed ({type(problem).__name__})"
