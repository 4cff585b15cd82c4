"""Opening WebSockets to OKX: by which way, how often, how long to wait for the next try, and what a failure means.

What is done with an open one is `connection`'s work.
"""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI, ProxyError
from websockets.uri import parse_uri

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.errors import (
    BusyError,
    ExchangeError,
    RetryableError,
    ThrottledError,
    UnreachableError,
    WrongHostError,
)
from okx_pipeline.exchange.network import USER_AGENT, mistrust, reason, trust

OPEN_WITHIN_S: Final = 10.0
CLOSE_WITHIN_S: Final = 2.0

OPEN_EVERY_S: Final = 1.2 / protocol.CONNECTIONS_A_SECOND
"""OKX counts arrivals: spaced so, a fourth may arrive 0.2 s early and still be the fourth of more than a second."""

MOST_FRAME_BYTES: Final = 2 * protocol.MOST_REQUEST_BYTES
"""Longest message that is read, after decompression: an error may repeat a whole request; a push is some 200 bytes."""

MOST_WAITING_FRAMES: Final = 256
"""Messages read ahead before the socket is left alone; they are dealt with faster than a socket brings them."""

FIRST_DELAY_S: Final = 2.0
LONGEST_DELAY_S: Final = 30.0
SLOW_DELAY_S: Final = 60.0
"""Between tries that will fail until somebody mends a setting."""

_chance: Final = random.SystemRandom()


def back_off() -> Iterator[float]:
    """Seconds to wait before each try of a series: the first random, then longer and longer, to a cap.

    All are random in part: connections that were lost together should not come back together.
    """
    yield _chance.uniform(0, FIRST_DELAY_S)
    longest = FIRST_DELAY_S
    while True:
        yield _chance.uniform(longest / 2, longest)
        longest = min(2 * longest, LONGEST_DELAY_S)


def delay_after(problem: ExchangeError, delays: Iterator[float]) -> float:
    """Seconds to wait after `problem`: the next of `delays`, or long if another try cannot mend it."""
    if isinstance(problem, RetryableError):
        return next(delays)
    return _chance.uniform(SLOW_DELAY_S, 2 * SLOW_DELAY_S)


class _Connect(connect):
    """Follows no redirect: it would leave the host that the settings name."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Dialer:
    """Opens WebSockets to one URL, never more in a second than OKX allows.

    Parameters
    ----------
    url
        Host and path, ws:// or wss://.
    proxy
        URL of a proxy; none is taken from the environment.
    ca_file
        File of the certificate authorities to trust, instead of the usual ones.

    Raises
    ------
    UsageError
        If one of them cannot be.
    """

    def __init__(self, url: str, *, proxy: str | None, ca_file: Path | None) -> None:
        self._url = _checked_url(url)
        self._host = urlsplit(url).netloc
        self._proxy = _checked_proxy(proxy)
        self._to_check = "OKX_WS_URL, HTTPS_PROXY and the network" if proxy else "OKX_WS_URL and the network"
        trusted = trust(ca_file)
        self._tls: dict[str, Any] = {"ssl": trusted} if urlsplit(url).scheme == "wss" else {}
        if proxy and urlsplit(proxy).scheme == "https":
            self._tls["proxy_ssl"] = trusted
        self._turn = asyncio.Lock()
        self._next_s = 0.0

    async def open(self) -> ClientConnection:
        """Wait for our turn, then open a WebSocket; whoever gets it must close it.

        Raises
        ------
        ExchangeError
            If that fails; a `RetryableError` if it may succeed a moment later.
        """
        await self._wait_for_turn()
        try:
            return await _Connect(
                self._url,
                proxy=self._proxy,
                user_agent_header=USER_AGENT,
                open_timeout=OPEN_WITHIN_S,
                close_timeout=CLOSE_WITHIN_S,
                # OKX has a ping of its own, a text, and that is what it counts.
                ping_interval=None,
                max_size=MOST_FRAME_BYTES,
                max_queue=MOST_WAITING_FRAMES,
                **self._tls,
            )
        except (OSError, InvalidHandshake) as problem:
            raise self._error_of(problem) from problem

    async def _wait_for_turn(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(self._next_s - loop.time())
            self._next_s = loop.time() + OPEN_EVERY_S

    def _error_of(self, problem: OSError | InvalidHandshake) -> ExchangeError:
        """The error that a failure to open means; which of them are worth another try soon is decided here."""
        mistrusted = mistrust(problem)
        if mistrusted is not None:
            return WrongHostError(
                f"the certificate of {self._host} is not trusted: {mistrusted}; "
                "check OKX_WS_URL, and SSL_CERT_FILE if your network has an authority of its own"
            )
        if isinstance(problem, ProxyError):
            return UnreachableError(f"the proxy does not let us through to {self._host}: {problem}; check HTTPS_PROXY")
        if isinstance(problem, InvalidStatus):
            status = problem.response.status_code
            if status == 429:
                return ThrottledError(f"{self._host} answers HTTP 429, too many connections; try again later")
            if status >= 500:
                return BusyError(f"{self._host} answers HTTP {status}; try again later")
            return WrongHostError(f"{self._host} has no WebSocket at this path (HTTP {status}); check OKX_WS_URL")
        cut_off = isinstance(problem, InvalidMessage) and isinstance(problem.__cause__, EOFError)
        if isinstance(problem, InvalidHandshake) and not cut_off:
            return WrongHostError(f"{self._host} does not speak WebSocket: {str(problem)[:200]}; check OKX_WS_URL")
        if isinstance(problem, TimeoutError):
            why = f"no connection within {OPEN_WITHIN_S:g} s"
        else:
            why = "connection cut off" if cut_off else reason(problem)
        return UnreachableError(f"cannot reach OKX at {self._host}: {why}; check {self._to_check}")


def _checked_url(url: str) -> str:
    try:
        parsed = parse_uri(url)
        parsed.host.encode("idna")
    except (InvalidURI, ValueError) as problem:
        raise UsageError(f"OKX_WS_URL is not the URL of a WebSocket: {problem}") from problem
    if parsed.username is not None:
        raise UsageError("OKX_WS_URL must be ws(s)://HOST/PATH, as in wss://ws.okx.com/ws/v5/business")
    return url


def _checked_proxy(proxy: str | None) -> str | None:
    if proxy is None:
        return None
    # What is wrong is told without the value: it may hold a password.
    try:
        parts = urlsplit(proxy)
        can_be = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        can_be = False
    if not can_be or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError("HTTPS_PROXY must be the URL of an HTTP proxy; it looks like http://HOST:PORT")
    if parts.username is not None and parts.password is None:
        raise UsageError("HTTPS_PROXY names a user without a password; it looks like http://USER:PASSWORD@HOST:PORT")
    return proxy
