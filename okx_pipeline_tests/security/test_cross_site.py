"""Who may ask what listens on the loopback: programs, people and its own pages; no page of another site."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from okx_pipeline.cross_site import OwnPagesOnly
from okx_pipeline_tests.e2e.browser import CHROMIUM, FLAGS

ACTING = "/graphql"
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
PICTURE = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
FRAME = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
FETCH = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}

Headers = dict[str, str]


class Guarded:
    """An application that acts when its acting path is looked at, on a port; what it has served is noted."""

    def __init__(self, port: int, served: list[str]) -> None:
        self.port = port
        self.served = served

    def ask(self, method: str, path: str, headers: Headers) -> int:
        """The status of what is answered."""
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.request(method, url, headers=headers, trust_env=False).status_code

    def talk(self, headers: Headers, name: str = "127.0.0.1") -> int:
        """The status of a handshake."""
        with socket.create_connection(("127.0.0.1", self.port)) as opened:
            try:
                with connect(f"ws://{name}{ACTING}", sock=opened, additional_headers=headers, proxy=None) as talking:
                    assert talking.recv() == "served"
            except InvalidStatus as refused:
                return refused.response.status_code
        return 101


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    served: list[str] = []

    async def answer(request: Request) -> Response:
        served.append(f"{request.method} {request.url.path}")
        return HTMLResponse("served")

    async def talk(websocket: WebSocket) -> None:
        served.append("WebSocket")
        await websocket.accept()
        await websocket.send_text("served")
        await websocket.close()

    routes = [
        Route("/page", answer, methods=["GET", "POST"]),
        Route(ACTING, answer, methods=["GET", "POST"]),
        WebSocketRoute(ACTING, talk),
    ]
    application = OwnPagesOnly(Starlette(routes=routes), ["candles.example.com"], [ACTING])
    server = uvicorn.Server(uvicorn.Config(application, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield Guarded(listener.getsockname()[1], served)
        server.should_exit = True
        thread.join()


def site(name: str, how: Headers) -> Headers:
    return {"Sec-Fetch-Site": name, **how}


@pytest.mark.parametrize("name", ["127.0.0.1:3000", "localhost", "[::1]:3000", "candles.example.com", "LOCALHOST:3000"])
def test_it_is_served_by_the_names_it_has(guarded: Guarded, name: str) -> None:
    assert guarded.ask("GET", "/page", {"Host": name}) == 200
    assert guarded.talk({}, name) == 101


@pytest.mark.parametrize("name", ["rebound.example.com:3000", "127.0.0.1.example.com", "x@127.0.0.1.example", "[", ""])
def test_a_name_that_was_made_to_lead_here_is_not_served(guarded: Guarded, name: str) -> None:
    # Its page is of the same origin as what it asks for, and says so.
    headers = site("same-origin", FETCH)
    assert guarded.ask("GET", ACTING, {"Host": name, **headers}) == 421


def test_nor_by_a_websocket(guarded: Guarded) -> None:
    assert guarded.talk(site("same-origin", FETCH), "rebound.example.com:3000") == 403


@pytest.mark.parametrize("headers", [{}, site("same-origin", FETCH), site("none", LINK)])
def test_programs_its_own_pages_and_people_are_served(guarded: Guarded, headers: Headers) -> None:
    assert {guarded.ask(method, ACTING, headers) for method in ("GET", "POST")} == {200}
    assert guarded.talk(headers) == 101


@pytest.mark.parametrize("where", ["cross-site", "same-site", "something new"])
@pytest.mark.parametrize("how", [LINK, PICTURE, FRAME, FETCH, {}])
def test_no_page_of_another_site_acts_here_by_whatever_means(guarded: Guarded, where: str, how: Headers) -> None:
    headers = site(where, how)
    acts = [("GET", ACTING), ("POST", ACTING), ("POST", "/page")]
    assert {guarded.ask(method, path, headers) for method, path in acts} == {403}
    assert guarded.talk(headers) == 403


@pytest.mark.parametrize(("how", "status"), [(LINK, 200), (PICTURE, 403), (FRAME, 403), (FETCH, 403)])
def test_a_link_of_another_site_is_followed_and_nothing_else(guarded: Guarded, how: Headers, status: int) -> None:
    assert guarded.ask("GET", "/page", site("cross-site", how)) == status


@pytest.mark.parametrize("origin", ["http://127.0.0.1:{}", "https://candles.example.com"])
def test_a_browser_that_says_only_whose_page_it_is_is_believed(guarded: Guarded, origin: str) -> None:
    headers = {"Origin": origin.format(guarded.port)}
    assert guarded.ask("POST", ACTING, headers) == 200
    assert guarded.talk(headers, f"127.0.0.1:{guarded.port}") == 101


@pytest.mark.parametrize(
    "origin", ["https://elsewhere.example.com", "null", "http://[", "", "http://127.0.0.1:1", "http://localhost"]
)
def test_and_refused_where_it_is_anothers(guarded: Guarded, origin: str) -> None:
    assert guarded.ask("POST", ACTING, {"Origin": origin}) == 403
    assert guarded.talk({"Origin": origin}) == 403


EVIL = """
<!doctype html><title>elsewhere</title><body><script>
async function attack(url) {
  const tried = (what) => new Promise((end) => { what(end); setTimeout(end, 2000); });
  await tried((end) => { const image = new Image(); image.onload = image.onerror = end; image.src = url; });
  await fetch(url, {method: "POST", mode: "no-cors", body: "x"}).catch(() => 0);
  await fetch(url, {mode: "no-cors", credentials: "include"}).catch(() => 0);
  await tried((end) => { const frame = document.createElement("iframe"); frame.onload = end; frame.src = url;
    document.body.append(frame); });
  await tried((end) => { const frame = document.createElement("iframe"); frame.name = "target"; frame.onload = end;
    document.body.append(frame); const form = document.createElement("form"); form.method = "POST"; form.action = url;
    form.target = "target"; document.body.append(form); form.submit(); });
  await tried((end) => { const socket = new WebSocket(url.replace("http", "ws"));
    socket.onopen = socket.onerror = end; });
}
</script></body>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_real_browser_says_whose_page_it_is(guarded: Guarded) -> None:
    url = f"http://127.0.0.1:{guarded.port}{ACTING}"
    # The page is of another site, then on another port of the same one.
    resolver = "--host-resolver-rules=MAP * 127.0.0.1, EXCLUDE localhost"

    async def evil(request: Request) -> Response:
        return HTMLResponse(EVIL)

    server = uvicorn.Server(uvicorn.Config(Starlette(routes=[Route("/", evil)]), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener, sync_playwright() as driver:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, resolver])
        try:
            page = chromium.new_page()
            for origin in ("http://evil.example.com", "http://127.0.0.1"):
                page.goto(f"{origin}:{listener.getsockname()[1]}/")
                guarded.served.clear()
                page.evaluate("url => attack(url)", url)
                assert guarded.served == []
            # The same name, made to lead here: to the browser it is its own page's.
            page.goto(f"http://evil.example.com:{listener.getsockname()[1]}/")
            page.evaluate("url => attack(url)", url.replace("127.0.0.1", "evil.example.com"))
            assert guarded.served == []
            # And what its own pages do, it does.
            page.goto(f"http://127.0.0.1:{guarded.port}/page")
            assert page.evaluate("url => fetch(url, {method: 'POST'}).then(answer => answer.text())", url) == "served"
            talked = "url => new Promise(end => new WebSocket(url).onmessage = said => end(said.data))"
            assert page.evaluate(talked, url.replace("http", "ws")) == "served"
            assert guarded.served == ["GET /page", f"POST {ACTING}", "WebSocket"]
        finally:
            chromium.close()
            server.should_exit = True
            thread.join()


def test_what_is_neither_a_request_nor_a_websocket_passes() -> None:
    seen: list[str] = []

    async def application(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        seen.append(scope["type"])

    asyncio.run(OwnPagesOnly(application)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
