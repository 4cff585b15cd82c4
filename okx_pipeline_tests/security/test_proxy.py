"""The proxy of docs/security.md, run as it stands there: who is asked, who is led where, and that the UI takes it."""

import base64
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from okx_pipeline.cross_site import OwnPagesOnly
from okx_pipeline_tests.e2e.system import free_port
from okx_pipeline_tests.exchange.own_authority import certify
from okx_pipeline_tests.test_pages import listens

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
NAME = "candles.example.com"
FROM_ITS_PAGE = {"Host": NAME, "Origin": f"https://{NAME}", "Sec-Fetch-Site": "same-origin"}


@contextmanager
def behind(port: int, what: str) -> Iterator[None]:
    """What answers with its name, and with the credentials that it was shown."""

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(what + request.headers.get("authorization", ""))

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(what)
        await websocket.close()

    routes = [Route("/{path:path}", answer, methods=["GET", "POST"]), WebSocketRoute("/graphql", talk)]
    application = OwnPagesOnly(Starlette(routes=routes), [NAME], ["/graphql"])
    server = uvicorn.Server(uvicorn.Config(application, log_config=None))
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the proxy, with what it leads to behind it."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("proxy")
    certify(folder)
    people = "".join(f"{name}:{{PLAIN}}{name}\n" for name in ("anna", "bert"))
    (folder / "htpasswd").write_text(people)
    ports = {port: str(free_port()) for port in ("443", "3000", "3001", "3002")}
    block = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    text = re.sub(r"\b(443|300[012])\b", lambda found: ports[found[0]], block[1])
    text = text.replace("listen ", "listen 127.0.0.1:").replace("/etc/nginx/candles.htpasswd", str(folder / "htpasswd"))
    text = text.replace("/etc/ssl/candles.pem", str(folder / "authority.pem"))
    text = text.replace("/etc/ssl/private/candles.key", str(folder / "key.pem"))
    temporary = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; {'user root; ' if os.geteuid() == 0 else ''}pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary} {text} }}\n"
    )
    command = [program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with ExitStack() as stack:
        for port, what in (("3000", "acts"), ("3001", "pages"), ("3002", "looks")):
            stack.enter_context(behind(int(ports[port]), what))
        running = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        try:
            deadline = time.monotonic() + 30
            while not listens("127.0.0.1", int(ports["443"])):
                assert running.poll() is None
                assert time.monotonic() < deadline
            yield int(ports["443"])
        finally:
            running.terminate()


def asked(port: int, path: str, who: str | None, method: str = "GET") -> httpx.Response:
    auth = None if who is None else (who, who)
    url = f"https://127.0.0.1:{port}{path}"
    return httpx.request(method, url, headers=FROM_ITS_PAGE, auth=auth, verify=False, trust_env=False)  # noqa: S501


def test_nobody_gets_in_unasked(proxy: int) -> None:
    for path in ("/", "/graphql", "/quality/index.html", "/reports/2026-08-01.html"):
        assert asked(proxy, path, None).status_code == 401
    assert asked(proxy, "/", "eve").status_code == 401


def test_who_is_named_acts_and_all_others_look(proxy: int) -> None:
    assert asked(proxy, "/graphql", "anna", "POST").text == "acts"
    assert asked(proxy, "/graphql", "bert", "POST").text == "looks"
    assert asked(proxy, "/quality/index.html", "bert").text == "pages"


def test_what_moves_in_the_ui_passes(proxy: int) -> None:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    shown = {"Authorization": f"Basic {base64.b64encode(b'bert:bert').decode()}", "Origin": f"https://{NAME}"}
    with (
        socket.create_connection(("127.0.0.1", proxy)) as opened,
        connect(f"wss://{NAME}/graphql", sock=opened, ssl=trusting, additional_headers=shown, proxy=None) as talking,
    ):
        assert talking.recv() == "looks"
