"""OKX's public REST API: one method a thing that is asked, each answered with typed values or one clear error.

Every request has a permit of the request budget, a bound on its time and its size, and as many further tries as its
error is worth. What to ask for in which order is `windows`' work.
"""

import asyncio
import logging
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import httpx
import msgspec
import stamina.instrumentation

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.budget import Permit, RequestBudget
from okx_pipeline.exchange.errors import (
    BusyError,
    ExchangeError,
    GarbledError,
    RetryableError,
    ThrottledError,
    UnreachableError,
    WrongHostError,
    error_of,
)
from okx_pipeline.exchange.listings import decode_instruments, decode_maintenance, decode_time
from okx_pipeline.exchange.messages import (
    Instrument,
    Maintenance,
    Page,
    decode_envelope,
    decode_page,
)
from okx_pipeline.exchange.network import USER_AGENT, mistrust, reason, trust
from okx_pipeline.exchange.protocol import Endpoint
from okx_pipeline.timeframes import Timeframe, iso

MOST_BODY_BYTES: Final = 8 * 1024 * 1024
"""Longest body that is read, before and after decompression; 300 rows are 30 kB, all swaps some 600 kB."""

CONNECT_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 15.0
"""From sending a request to the last byte of its answer; whoever lends a permit can count on it."""

TRIES: Final = 8
PATIENCE_S: Final = 120.0
"""No further try is begun this long after the first one, waiting for permits included."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class ServedPage(NamedTuple):
    """A candle page and the moment after which it was asked for, by the budget's clock."""

    page: Page
    sent_at: datetime


class TimeReading(NamedTuple):
    """What OKX's clock said when ours, `time.monotonic`, stood at `local_s`, give or take half of `round_trip_s`."""

    server_ms: int
    local_s: float
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class _Answer:
    data: msgspec.Raw
    sent_at: datetime
    sent_s: float
    round_trip_s: float


class RestClient:
    """A client of one OKX host, to be used as an asynchronous context manager.

    Parameters
    ----------
    base_url
        Scheme and host; the program's own paths are added to it.
    budget
        Asked for a permit before each request, further tries included.
    demo
        Whether the host is OKX's demo environment.
    proxy
        URL of a proxy.
    ca_file
        File of the certificate authorities to trust, instead of the usual ones.
    request_timeout_s, tries, patience_s
        Bounds of one request, and of all tries of it together.
    page_limit
        Rows asked for in a candle page.
    transport
        Takes the place of the network; its responses must have a `stream`, not `content`.

    Raises
    ------
    UsageError
        If one of the settings cannot be.
    """

    def __init__(
        self,
        base_url: str,
        *,
        budget: RequestBudget,
        demo: bool = False,
        proxy: str | None = None,
        ca_file: Path | None = None,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        tries: int = TRIES,
        patience_s: float = PATIENCE_S,
        page_limit: int = protocol.PAGE_LIMIT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._budget = budget
        self._request_timeout_s = request_timeout_s
        self._page_limit = page_limit
        self._retrying = stamina.AsyncRetryingCaller(
            attempts=tries, timeout=patience_s, wait_initial=0.25, wait_max=15.0, wait_jitter=0.5
        ).on(RetryableError)
        url = _checked_url(base_url)
        self._host = url.netloc.decode("ascii")
        self._to_check = "OKX_REST_URL, HTTPS_PROXY and the network" if proxy else "OKX_REST_URL and the network"
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "gzip"}
        if demo:
            headers.update([protocol.DEMO_HEADER])
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            verify=trust(ca_file),
            proxy=_checked_proxy(proxy),
            timeout=httpx.Timeout(request_timeout_s, connect=CONNECT_TIMEOUT_S),
            # Every request in flight has a permit, and there are fewer permits than this.
            limits=httpx.Limits(max_connections=200, max_keepalive_connections=100, keepalive_expiry=30),
            transport=transport,
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def candles_page(
        self, endpoint: Endpoint, symbol: str, timeframe: Timeframe, after_ms: int, limit: int | None = None
    ) -> ServedPage:
        """The newest candles that open before `after_ms`, newest first, at most `limit` (OKX: at most 300).

        Raises
        ------
        UnknownSymbolError, InvalidRequestError, RejectedError
            If OKX will not answer.
        RetryableError
            If it did not to the last try; a page that is out of order or not of what was asked is a `GarbledError`.
        """
        parameters = {
            protocol.SYMBOL: symbol,
            protocol.BAR: timeframe.bar,
            # Its name means the opposite of what it says: `after` asks for what is EARLIER.
            protocol.AFTER: str(after_ms),
            protocol.LIMIT: str(limit or self._page_limit),
        }

        def read(answer: _Answer) -> ServedPage:
            page = decode_page(answer.data, symbol, timeframe)
            fault = _fault_of(page, after_ms)
            if fault is not None:
                raise GarbledError(
                    f"{self._host} answered a request for {symbol} {timeframe} candles before {iso(after_ms)} "
                    f"with {fault}; try again later"
                )
            return ServedPage(page, answer.sent_at)

        return await self._ask(endpoint, parameters, read)

    async def instruments(self, kind: str) -> list[Instrument]:
        """Every instrument of a kind (one of `protocol.INSTRUMENT_TYPES`) that OKX lists at present."""
        parameters = {protocol.INSTRUMENT_TYPE: kind}
        listed, odd = await self._ask(protocol.INSTRUMENTS, parameters, lambda answer: decode_instruments(answer.data))
        if odd:
            _log.warning("%s lists %d instruments of kind %s that cannot be; passed over", self._host, odd, kind)
        return listed

    async def maintenance(self) -> list[Maintenance]:
        """Maintenance that OKX has announced or is at."""
        return await self._ask(protocol.STATUS, {}, lambda answer: decode_maintenance(answer.data))

    async def server_time(self) -> TimeReading:
        """OKX's clock, and where ours stood in the middle of the round trip."""

        def read(answer: _Answer) -> TimeReading:
            return TimeReading(decode_time(answer.data), answer.sent_s + answer.round_trip_s / 2, answer.round_trip_s)

        return await self._ask(protocol.TIME, {}, read)

    async def _ask(self, endpoint: Endpoint, parameters: dict[str, str], read: Callable[[_Answer], T]) -> T:
        return await self._retrying(self._ask_once, endpoint, parameters, read)

    async def _ask_once(self, endpoint: Endpoint, parameters: dict[str, str], read: Callable[[_Answer], T]) -> T:
        async with self._budget.request(endpoint) as permit:
            try:
                answer = await self._exchange(endpoint, parameters, permit)
            except ThrottledError:
                permit.throttled = True
                raise
        try:
            return read(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            raise GarbledError(
                f"{self._host} answered {endpoint.path} with data of another shape ({problem}); try again later"
            ) from problem

    async def _exchange(self, endpoint: Endpoint, parameters: dict[str, str], permit: Permit) -> _Answer:
        """Send one request and read its answer.

        Raises
        ------
        ExchangeError
            Whatever other than success came of it.
        """
        sent_s = time.monotonic()

        async def note_sending(event: str, _: dict[str, Any]) -> None:
            # Not from the beginning: a round trip that holds a handshake would promise too slow a path to the budget.
            nonlocal sent_s
            if event.endswith(".send_request_headers.started"):
                sent_s = time.monotonic()

        try:
            async with (
                asyncio.timeout(self._request_timeout_s),
                self._http.stream(
                    "GET", endpoint.path, params=parameters, extensions={"trace": note_sending}
                ) as response,
            ):
                permit.round_trip_s = time.monotonic() - sent_s
                body = await self._body(response)
        except TimeoutError as problem:
            raise UnreachableError(
                f"{self._host} did not answer within {self._request_timeout_s:g} s; check the network"
            ) from problem
        except httpx.TransportError as problem:
            raise self._connection_error(problem) from problem
        return _Answer(self._data(endpoint, parameters, response, body), permit.sent_at, sent_s, permit.round_trip_s)

    def _data(
        self, endpoint: Endpoint, parameters: dict[str, str], response: httpx.Response, body: bytes
    ) -> msgspec.Raw:
        """The data of a success; anything else is raised as the error it means."""
        status = response.status_code
        if response.is_redirect:
            # Followed, it would leave the host that the settings name, and the budget's.
            raise WrongHostError(
                f"{self._host} redirects to {response.headers.get('location', 'elsewhere')[:200]}; "
                "set OKX_REST_URL to a host of OKX's API itself"
            )
        envelope = error = None
        with suppress(msgspec.DecodeError):
            envelope = decode_envelope(body)
        if envelope is not None and envelope.code != protocol.SUCCESS_CODE:
            error = error_of(envelope.code, envelope.msg, endpoint.path, parameters)
        if isinstance(error, RetryableError):
            raise error
        if status == 429:
            raise ThrottledError(
                f"{self._host} answers HTTP 429, too many requests; if other programs use this address, "
                "lower OKX_REST_RATE"
            )
        if status >= 500:
            raise BusyError(f"{self._host} answers HTTP {status}; try again later")
        if error is not None:
            raise error
        if envelope is None and status == 404:
            raise WrongHostError(f"{self._host} has no {endpoint.path} (HTTP 404); check OKX_REST_URL")
        if envelope is None or status != 200 or not bytes(envelope.data):
            kind = response.headers.get("content-type", "no content type")[:80]
            raise GarbledError(
                f"{self._host} answered {endpoint.path} with HTTP {status} and what is not OKX's JSON ({kind}); "
                "check OKX_REST_URL, or try again later"
            )
        return envelope.data

    async def _body(self, response: httpx.Response) -> bytes:
        """The body, decompressed here and not by httpx, which knows no bound."""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise GarbledError(f"{self._host} answers in the encoding {encoding[:20]!r}, which was not asked for")
        # 32 more than the largest window: gzip's header or zlib's, whichever is there.
        inflation = None if encoding == "identity" else zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
        body = bytearray()
        received = 0
        async for chunk in response.aiter_raw():
            received += len(chunk)
            if inflation is None:
                body += chunk
            else:
                try:
                    body += inflation.decompress(chunk, MOST_BODY_BYTES - len(body) + 1)
                except zlib.error as problem:
                    raise GarbledError(f"{self._host} answered with broken compression; try again later") from problem
            if max(received, len(body)) > MOST_BODY_BYTES:
                raise GarbledError(
                    f"{self._host} answers with more than {MOST_BODY_BYTES // 1024**2} MB; check OKX_REST_URL"
                )
        if inflation is not None and not inflation.eof:
            raise GarbledError(f"{self._host} answered with compressed data that is cut off; try again later")
        return bytes(body)

    def _connection_error(self, problem: httpx.TransportError) -> ExchangeError:
        """The error that a failure below HTTP means, in words."""
        mistrusted = mistrust(problem)
        if mistrusted is not None:
            return WrongHostError(
                f"the certificate of {self._host} is not trusted: {mistrusted}; "
                "check OKX_REST_URL, and SSL_CERT_FILE if your network has an authority of its own"
            )
        if isinstance(problem, httpx.ProxyError):
            return UnreachableError(f"the proxy does not let us through to {self._host}: {problem}; check HTTPS_PROXY")
        return UnreachableError(f"cannot reach OKX at {self._host}: {_reason(problem)}; check {self._to_check}")


def _fault_of(page: Page, after_ms: int) -> str | None:
    """What about a page shows that it does not answer what was asked, or None."""
    if page.rows and not page.opens:
        return "rows that cannot be read"
    if page.opens and page.opens[0] >= after_ms:
        return f"one that opens at {iso(page.opens[0])}"
    if any(newer <= older for newer, older in pairwise(page.opens)):
        return "rows that are not newest first"
    return None


def _checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as problem:
        raise UsageError(f"OKX_REST_URL is not a URL: {problem}") from problem
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise UsageError("OKX_REST_URL must be http(s)://HOST, as in https://openapi.okx.com")
    return url


def _checked_proxy(proxy: str | None) -> httpx.Proxy | None:
    if proxy is None:
        return None
    # What is wrong is told without the value: it may hold a password.
    try:
        checked = httpx.Proxy(proxy)
    except (httpx.InvalidURL, ValueError):
        raise UsageError("HTTPS_PROXY is not the URL of a proxy; it looks like http://HOST:PORT") from None
    if checked.url.scheme not in ("http", "https") or not checked.url.host:
        raise UsageError("HTTPS_PROXY must be the URL of an HTTP proxy; it looks like http://HOST:PORT")
    return checked


def _reason(problem: httpx.TransportError) -> str:
    if isinstance(problem, httpx.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(problem, httpx.TimeoutException):
        return "no answer in time"
    return reason(problem)


def _log_retry(details: stamina.instrumentation.RetryDetails) -> None:
    level = logging.WARNING if details.retry_num > 2 else logging.INFO
    _log.log(level, "%s (trying again in %.1f s)", details.caused_by, details.wait_for)


# Left alone, stamina tells of retries through structlog where that is installed, as it is with Dagster: on stdout,
# where a command's JSON goes.
stamina.instrumentation.set_on_retry_hooks([_log_retry])
