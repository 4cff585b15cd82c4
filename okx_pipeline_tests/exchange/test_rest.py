"""The REST client against a real server: what it asks, what it tries again, what it gives up on and how it says so."""

import asyncio
import gzip
import logging
import socket
import ssl
import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from okx_pipeline.errors import ExitStatus, PipelineError, UsageError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.budget import LocalBudget, Permit
from okx_pipeline.exchange.errors import (
    BusyError,
    ExchangeError,
    GarbledError,
    InvalidRequestError,
    RejectedError,
    RetryableError,
    ThrottledError,
    UnknownSymbolError,
    UnreachableError,
    WrongHostError,
)
from okx_pipeline.exchange.messages import encode_failure, encode_success
from okx_pipeline.exchange.protocol import CANDLES, HISTORY_CANDLES, STATUS, TIME
from okx_pipeline.exchange.rest import MOST_BODY_BYTES, REQUEST_TIMEOUT_S, RestClient, ServedPage
from okx_pipeline.timeframes import parse_timeframe
from okx_pipeline_tests.exchange.own_authority import certify
from okx_pipeline_tests.exchange.scripted_server import Answer, Server, serving
from okx_pipeline_tests.exchange.simulated_time import run

MINUTE = parse_timeframe("1m")
SYMBOL = "BTC-USDT-SWAP"
AFTER_MS = 1747094100000
NEWER, OLDER = (
    [open_ms, "102806.1", "102820.4", "102806.1", "102820.4", "1040.37", "10.4037", "1069603.34883", "1"]
    for open_ms in ("1747094040000", "1747093980000")
)
GOOD = Answer(encode_success([NEWER, OLDER]))


def asking(
    ask: Callable[[RestClient, Server], Awaitable[Any]],
    *answers: Answer,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> Any:
    """What `ask` gives with a client, made with `options`, of a server that gives these answers."""

    async def main() -> Any:
        async with serving(*answers, tls=tls) as server:
            options.setdefault("budget", LocalBudget())
            url = options.pop("base_url", server.url)
            async with RestClient(url, **options) as client:
                return await ask(client, server)

    return run(main(), sockets=True)


async def ask_candles(client: RestClient, server: Server | None = None) -> ServedPage:
    return await client.candles_page(HISTORY_CANDLES, SYMBOL, MINUTE, AFTER_MS)


async def ask_candles_and_count(client: RestClient, server: Server) -> tuple[ServedPage, int]:
    return await ask_candles(client), len(server.requests)


async def ask_in_vain(client: RestClient, server: Server) -> tuple[ExchangeError, int]:
    with pytest.raises(ExchangeError) as caught:
        await ask_candles(client)
    assert "\n" not in str(caught.value)
    return caught.value, len(server.requests)


def test_candles_are_asked_for_in_okx_words_and_come_back_as_recorded(recorded: Callable[[str], bytes]) -> None:
    async def ask(client: RestClient, server: Server) -> None:
        before = datetime.now(UTC)
        page, sent_at = await ask_candles(client)
        assert [candle.close_price for candle in page.candles] == ["102820.4", "102806.1"]
        (request,) = server.requests
        assert request.path == "/api/v5/market/history-candles"
        assert request.parameters == {"instId": SYMBOL, "bar": "1m", "after": str(AFTER_MS), "limit": "300"}
        assert request.headers["user-agent"].startswith("okx-pipeline/")
        assert request.headers["accept-encoding"] == "gzip"
        assert "x-simulated-trading" not in request.headers
        assert before <= sent_at <= request.arrived_at

    asking(ask, Answer(recorded("REST SWAP 1m two rows")))


def test_timeframe_is_asked_for_by_okx_name_of_its_utc_bar_and_limit_as_told() -> None:
    async def ask(client: RestClient, server: Server) -> None:
        await client.candles_page(CANDLES, SYMBOL, parse_timeframe("1d"), AFTER_MS)
        await client.candles_page(CANDLES, SYMBOL, parse_timeframe("1h"), AFTER_MS, limit=7)
        asked = [(request.parameters["bar"], request.parameters["limit"]) for request in server.requests]
        assert asked == [("1Dutc", "100"), ("1H", "7")]

    asking(ask, Answer(encode_success([])), page_limit=100)


def test_demo_environment_is_asked_with_its_header() -> None:
    async def ask(client: RestClient, server: Server) -> None:
        await ask_candles(client)
        assert server.requests[0].headers["x-simulated-trading"] == "1"

    asking(ask, GOOD, demo=True)


def test_instruments_server_time_and_maintenance_are_read_as_recorded(recorded: Callable[[str], bytes]) -> None:
    async def ask(client: RestClient, server: Server) -> None:
        (instrument,) = await client.instruments("SWAP")
        assert (instrument.symbol, instrument.listed) == ("BTC-USDT-SWAP", "1573557408000")
        before = time.monotonic()
        reading = await client.server_time()
        assert reading.server_ms == 1597026383085
        assert before <= reading.local_s <= time.monotonic()
        assert 0 < reading.round_trip_s < 5
        (maintenance,) = await client.maintenance()
        assert (maintenance.begin, maintenance.state) == ("1672823400000", "completed")
        assert [request.target for request in server.requests] == [
            "/api/v5/public/instruments?instType=SWAP",
            "/api/v5/public/time",
            "/api/v5/system/status",
        ]

    asking(
        ask,
        Answer(b'{"code":"0","msg":"","data":[' + recorded("instruments record BTC-USDT-SWAP") + b"]}"),
        Answer(recorded("server time")),
        Answer(recorded("system status")),
    )


def failure(answer: protocol.Failure, parameter: str = "") -> Answer:
    return Answer(encode_failure(answer, parameter), answer.http_status)


WORTH_ANOTHER_TRY: dict[str, tuple[Answer, type[RetryableError]]] = {
    "50011 with 429 and no data": (failure(protocol.TOO_MANY_REQUESTS), ThrottledError),
    "50011 with 200": (failure(protocol.RATE_LIMIT_REACHED), ThrottledError),
    "50040": (Answer(b'{"code":"50040","data":[],"msg":"Too frequent operations"}'), ThrottledError),
    "429 of a proxy": (Answer(b"<html>slow down</html>", 429), ThrottledError),
    "429 with another code": (Answer(b'{"code":"1","msg":"Operation failed."}', 429), ThrottledError),
    "50013": (failure(protocol.SYSTEMS_BUSY), BusyError),
    "50001": (failure(protocol.UNAVAILABLE), BusyError),
    "50004": (failure(protocol.ENDPOINT_TIMEOUT), BusyError),
    "50004 with a sub-code": (Answer(b'{"code":"50004_1101","msg":"timeout","data":[]}', 400), BusyError),
    "50026": (failure(protocol.SYSTEM_ERROR), BusyError),
    "502 of a gateway": (Answer(b"<html>Bad Gateway</html>", 502), BusyError),
    "500 with a code we do not know": (Answer(b'{"code":"59999","msg":"?","data":[]}', 500), BusyError),
    "HTML with 200": (Answer(b"<!DOCTYPE html>", headers={"Content-Type": "text/html"}), GarbledError),
    "HTML with 403": (Answer(b"<html>Attention Required!</html>", 403), GarbledError),
    "nothing": (Answer(b""), GarbledError),
    "JSON cut off": (Answer(GOOD.body[:-20]), GarbledError),
    "JSON of another shape": (Answer(b'{"code":"0","msg":"","data":{"rows":[]}}'), GarbledError),
    "success without data": (Answer(b'{"code":"0","msg":""}'), GarbledError),
    "success with 400": (Answer(GOOD.body, 400), GarbledError),
    "nested too deeply": (Answer(b'{"code":"0","msg":"","data":' + b"[" * 100_000), GarbledError),
    "not UTF-8": (Answer(b'{"code":"0","msg":"\xff","data":[]}'), GarbledError),
    "rows that are not rows": (Answer(encode_success(["a", "b"])), GarbledError),
    "oldest first": (Answer(encode_success([OLDER, NEWER])), GarbledError),
    "a row twice": (Answer(encode_success([NEWER, NEWER])), GarbledError),
    "rows from elsewhere": (Answer(encode_success([[str(AFTER_MS), *NEWER[1:]], NEWER])), GarbledError),
    "body cut off": (Answer(GOOD.body, whole=len(GOOD.body) + 1), UnreachableError),
    "connection reset": (Answer(reset=True), UnreachableError),
    "never answered": (Answer(silent=True), UnreachableError),
    "no HTTP": (Answer(b"", headers={"Bro ken": "\x00"}), UnreachableError),
    "broken gzip": (Answer(b"\x1f\x8b\x08nonsense" * 9, headers={"Content-Encoding": "gzip"}), GarbledError),
    "gzip cut off": (Answer(gzip.compress(GOOD.body)[:-9], headers={"Content-Encoding": "gzip"}), GarbledError),
    "unknown encoding": (Answer(GOOD.body, headers={"Content-Encoding": "br"}), GarbledError),
}


@pytest.mark.parametrize("fault", WORTH_ANOTHER_TRY)
def test_what_may_pass_is_tried_again_and_then_forgotten(fault: str) -> None:
    answer, _ = WORTH_ANOTHER_TRY[fault]
    served, requests = asking(ask_candles_and_count, answer, answer, GOOD)
    assert requests == 3
    assert len(served.page.candles) == 2


@pytest.mark.parametrize("fault", WORTH_ANOTHER_TRY)
def test_what_does_not_pass_is_told_after_a_bounded_number_of_tries(fault: str) -> None:
    answer, kind = WORTH_ANOTHER_TRY[fault]
    error, requests = asking(ask_in_vain, answer, tries=4)
    assert (type(error), requests) == (kind, 4)
    assert error.exit_status == ExitStatus.FAILED


def test_tries_end_with_patience_too() -> None:
    started = time.monotonic()
    error, requests = asking(ask_in_vain, failure(protocol.SYSTEMS_BUSY), tries=10**9, patience_s=0.2)
    assert isinstance(error, BusyError)
    assert requests > 2
    assert time.monotonic() - started < 10


def test_pauses_between_tries_grow_and_are_not_the_same_twice() -> None:
    async def ask(client: RestClient, server: Server) -> list[float]:
        arrivals: list[float] = []
        loop = asyncio.get_running_loop()

        class Noting(list[Answer]):
            def __getitem__(self, index: Any) -> Any:
                arrivals.append(loop.time())
                return super().__getitem__(index)

        server.answers = Noting(server.answers)
        with pytest.raises(BusyError):
            await ask_candles(client)
        return [later - earlier for earlier, later in pairwise(arrivals)]

    first, second = (asking(ask, failure(protocol.SYSTEMS_BUSY), tries=8) for _ in range(2))
    assert len(first) == 7
    assert first[-1] > 4 * first[1]
    assert first != second


FINAL: dict[str, tuple[Answer, type[ExchangeError], ExitStatus, str]] = {
    "51001": (failure(protocol.UNKNOWN_INSTRUMENT), UnknownSymbolError, ExitStatus.USAGE, f"no instrument {SYMBOL}"),
    "51000": (failure(protocol.PARAMETER_ERROR, "bar"), InvalidRequestError, ExitStatus.USAGE, "Parameter bar error"),
    "50014": (failure(protocol.PARAMETER_EMPTY, "instId"), InvalidRequestError, ExitStatus.USAGE, "Parameter instId"),
    "a code we do not know": (
        Answer(b'{"code":"59999","msg":"Not\\n today.","data":[]}'),
        RejectedError,
        ExitStatus.FAILED,
        "Not today (code 59999)",
    ),
    "a redirect": (
        Answer(b"", 301, {"Location": "https://elsewhere.invalid/"}),
        WrongHostError,
        ExitStatus.USAGE,
        "redirects to https://elsewhere.invalid/; set OKX_REST_URL",
    ),
    "404 of a stranger": (Answer(b"<html>", 404), WrongHostError, ExitStatus.USAGE, "check OKX_REST_URL"),
}


@pytest.mark.parametrize("fault", FINAL)
def test_what_will_never_pass_is_told_at_once_and_names_what_to_change(fault: str) -> None:
    answer, kind, status, said = FINAL[fault]
    error, requests = asking(ask_in_vain, answer)
    assert (type(error), requests, error.exit_status) == (kind, 1, status)
    assert said in str(error)


def test_recorded_errors_mean_what_they_say(recorded: Callable[[str], bytes]) -> None:
    error, requests = asking(ask_in_vain, Answer(recorded("REST unknown instrument")))
    assert (type(error), requests) == (UnknownSymbolError, 1)
    error, requests = asking(ask_in_vain, Answer(recorded("REST parameter error"), 400))
    assert (type(error), requests) == (InvalidRequestError, 1)
    assert "bar=1m" in str(error)
    error, requests = asking(ask_in_vain, Answer(recorded("REST rate limit body"), 429), tries=2)
    assert (type(error), requests) == (ThrottledError, 2)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_compressed_answer_is_read(compress: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if compress is gzip.compress else "deflate"
    served = asking(ask_candles, Answer(compress(GOOD.body), headers={"Content-Encoding": encoding}))
    assert len(served.page.candles) == 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer(gzip.compress(bytes(64 * 1024 * 1024)), headers={"Content-Encoding": "gzip"}),
        Answer(bytes(65536), endless=True),
        Answer(gzip.compress(GOOD.body), headers={"Content-Encoding": "gzip"}, endless=True),
        # Empty blocks of deflate: for ever valid, and never a byte of output.
        Answer(zlib.compress(b"", 0)[:2] + b"\x00\x00\x00\xff\xff" * 20_000, headers={"Content-Encoding": "deflate"}),
    ],
    ids=["bomb", "endless", "endless behind gzip", "endless nothing"],
)
def test_body_without_end_is_an_error_and_not_memory(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    if not answer.endless and answer.headers["Content-Encoding"] == "deflate":
        monkeypatch.setattr("okx_pipeline.exchange.rest.MOST_BODY_BYTES", 50_000)
    tracemalloc.start()
    error, _ = asking(ask_in_vain, answer, tries=1)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(error, GarbledError)
    assert "answers with more than" in str(error)
    assert most_bytes < 3 * MOST_BODY_BYTES


def test_long_answer_below_the_bound_is_read_whole() -> None:
    async def ask(client: RestClient, server: Server) -> int:
        return len(await client.instruments("SPOT"))

    listed = [{"instId": f"COIN{number}-USDT", "instType": "SPOT", "unknown": "x" * 1000} for number in range(6000)]
    body = encode_success(listed)
    assert len(body) > MOST_BODY_BYTES // 2
    assert asking(ask, Answer(gzip.compress(body), headers={"Content-Encoding": "gzip"})) == 6000


@pytest.mark.parametrize("answer", [Answer(silent=True), Answer(b"", whole=1000, drip_s=4)], ids=["silence", "drip"])
def test_silence_and_dripping_end_with_the_time_a_request_may_take(answer: Answer) -> None:
    async def ask(client: RestClient, server: Server) -> float:
        started = asyncio.get_running_loop().time()
        await ask_in_vain(client, server)
        return asyncio.get_running_loop().time() - started

    assert asking(ask, answer, tries=1) == pytest.approx(REQUEST_TIMEOUT_S, abs=0.1)


def test_nobody_listening_is_told_with_what_to_check() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        error, _ = asking(ask_in_vain, GOOD, base_url=f"http://{host}", tries=2)
    assert isinstance(error, UnreachableError)
    assert str(error) == f"cannot reach OKX at {host}: connection refused; check OKX_REST_URL and the network"


def test_proxy_that_does_not_listen_is_named_among_what_to_check() -> None:
    error, _ = asking(ask_in_vain, GOOD, proxy="http://user:password@127.0.0.1:9", tries=1)
    assert "check OKX_REST_URL, HTTPS_PROXY and the network" in str(error)
    assert "password" not in str(error)


def test_requests_go_through_the_proxy_that_is_given() -> None:
    async def main() -> None:
        async with (
            serving(GOOD) as proxy,
            RestClient("http://exchange.invalid", budget=LocalBudget(), proxy=proxy.url) as client,
        ):
            await ask_candles(client)
            assert proxy.requests[0].target.startswith("http://exchange.invalid/api/v5/market/history-candles?")

    run(main(), sockets=True)


def test_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len(asking(ask_candles, GOOD).page.candles) == 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS for 127.0.0.1, and the file of the authority that vouches for it: itself."""
    return certify(tmp_path_factory.mktemp("tls"))


def test_authority_of_ones_own_is_trusted_when_named(certificate: tuple[ssl.SSLContext, Path]) -> None:
    tls, authority = certificate
    assert len(asking(ask_candles, GOOD, tls=tls, ca_file=authority).page.candles) == 2


def test_untrusted_certificate_is_told_at_once(certificate: tuple[ssl.SSLContext, Path]) -> None:
    error, requests = asking(ask_in_vain, GOOD, tls=certificate[0])
    assert (type(error), requests) == (WrongHostError, 0)
    assert "is not trusted: self-signed certificate" in str(error)
    assert "SSL_CERT_FILE" in str(error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "openapi.okx.com"}, "OKX_REST_URL must be"),
        ({"base_url": "ftp://openapi.okx.com"}, "OKX_REST_URL must be"),
        ({"base_url": "https://"}, "OKX_REST_URL must be"),
        ({"base_url": "http://host:port"}, "OKX_REST_URL is not a URL"),
        ({"base_url": "https://user:password@openapi.okx.com"}, "OKX_REST_URL must be"),
        ({"proxy": "user:password@proxy"}, "HTTPS_PROXY"),
        ({"proxy": "socks5://user:password@proxy:1"}, "HTTPS_PROXY"),
        ({"proxy": "http://user:password@proxy:port"}, "HTTPS_PROXY"),
        ({"ca_file": Path("/nowhere/authority.pem")}, "SSL_CERT_FILE /nowhere/authority.pem cannot be used: No such"),
        ({"ca_file": Path(__file__)}, "cannot be used: it holds no certificate"),
    ],
)
def test_setting_that_cannot_be_is_refused_by_name_and_without_its_secrets(options: dict[str, Any], said: str) -> None:
    base_url = options.pop("base_url", "https://openapi.okx.com")
    with pytest.raises(UsageError) as caught:
        RestClient(base_url, budget=LocalBudget(), **options)
    assert said in str(caught.value)
    assert "password" not in str(caught.value)


class NotingBudget(LocalBudget):
    """Keeps the permits it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.permits: list[Permit] = []

    def request(self, endpoint: protocol.Endpoint) -> Any:
        context = super().request(endpoint)
        budget = self

        class Noting:
            async def __aenter__(self) -> Permit:
                budget.permits.append(await context.__aenter__())
                return budget.permits[-1]

            async def __aexit__(self, *error: Any) -> Any:
                return await context.__aexit__(*error)

        return Noting()


def test_budget_is_asked_before_every_try_and_told_how_it_went() -> None:
    budget = NotingBudget()
    answers = [
        failure(protocol.TOO_MANY_REQUESTS),
        failure(protocol.RATE_LIMIT_REACHED),
        failure(protocol.SYSTEMS_BUSY),
        Answer(reset=True),
        Answer(GOOD.body, whole=len(GOOD.body) + 1),
        GOOD,
    ]
    asking(ask_candles, *answers, budget=budget)
    assert [permit.endpoint for permit in budget.permits] == [HISTORY_CANDLES] * 6
    assert [permit.throttled for permit in budget.permits] == [True, True, False, False, False, False]
    answered = [permit.round_trip_s is not None for permit in budget.permits]
    assert answered == [True, True, True, False, True, True]


def test_round_trip_does_not_hold_the_making_of_the_connection(certificate: tuple[ssl.SSLContext, Path]) -> None:
    async def ask(client: RestClient, server: Server) -> float:
        started = time.monotonic()
        await client.server_time()
        return time.monotonic() - started

    tls, authority = certificate
    shares = []
    for _ in range(5):
        budget = NotingBudget()
        whole_s = asking(ask, Answer(encode_success([{"ts": "1"}])), tls=tls, ca_file=authority, budget=budget)
        round_trip_s = budget.permits[0].round_trip_s
        assert round_trip_s is not None
        assert round_trip_s > 0
        shares.append(round_trip_s / whole_s)
    # A handshake of TLS is most of a first request. A busy machine may hold up the answer of one or another of them;
    # a round trip that held the handshake would be nearly the whole of every one.
    assert min(shares) < 0.5


def test_requests_of_an_endpoint_wait_for_the_budget() -> None:
    async def ask(client: RestClient, server: Server) -> float:
        for _ in range(3):
            await client.maintenance()
        return asyncio.get_running_loop().time()

    assert asking(ask, Answer(encode_success([]))) == pytest.approx(2 * STATUS.period_s, abs=0.1)


def test_retries_are_told_in_the_log_in_one_sentence_each_and_nowhere_else(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="okx_pipeline"):
        asking(ask_candles, failure(protocol.SYSTEMS_BUSY), GOOD)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("okx_pipeline")]
    assert message.startswith("OKX cannot answer just now: Systems are busy. Please try again later (code 50013)")
    assert capsys.readouterr().out == ""


def test_transport_can_take_the_place_of_the_network() -> None:
    async def main() -> ServedPage:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(GOOD.body)))
        async with RestClient("https://exchange.invalid", budget=LocalBudget(), transport=transport) as client:
            return await ask_candles(client)

    assert len(run(main()).page.candles) == 2


@pytest.mark.parametrize("ts", ["", "soon", "-1", "²", "1" * 5000, "999999999999999"])
def test_time_that_is_none_is_not_taken_for_one(ts: str) -> None:
    async def ask(client: RestClient, server: Server) -> None:
        with pytest.raises(GarbledError):
            await client.server_time()

    asking(ask, Answer(msgspec.json.encode({"code": "0", "data": [{"ts": ts}]})), tries=1)
    assert TIME.requests == 10


def test_every_error_is_one_the_commands_know_how_to_end_with() -> None:
    assert issubclass(ExchangeError, PipelineError)
    finals = (RejectedError, WrongHostError, UnknownSymbolError, InvalidRequestError)
    assert not any(issubclass(kind, RetryableError) for kind in finals)
