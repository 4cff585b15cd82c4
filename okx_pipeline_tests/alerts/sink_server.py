"""A real HTTP server in a thread, which takes what it is sent down and answers as it is told, badly included."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a request is answered with.

    Parameters
    ----------
    silent
        Nothing at all, for as long as the server lives.
    endless
        The body over and over, for as long as the client listens.
    drips
        The head, a byte at a time, for twenty seconds.
    """

    status: int = 200
    body: bytes = b'{"ok": true, "result": {}}'
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False
    endless: bool = False
    drips: bool = False


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class SinkServer:
    """Answers every request with `answer`, or in turn with those of `answers` first."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.answers: list[Answer] = []
        self.requests: list[Request] = []
        self.url = ""
        self.closing = threading.Event()
        self.asked = threading.Event()

    @property
    def told(self) -> list[tuple[str, str]]:
        """(state, key) of each message of a webhook's."""
        return [(request.json["state"], request.json["key"]) for request in self.requests]

    def take(self, request: Request) -> Answer:
        self.requests.append(request)
        self.asked.set()
        return self.answers.pop(0) if self.answers else self.answer


class _Handler(BaseHTTPRequestHandler):
    sink: SinkServer

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.sink.take(Request(self.command, self.path, dict(self.headers), body))
        if answer.silent:
            self.sink.closing.wait()
            return
        try:
            self._answer(answer)
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    def _answer(self, answer: Answer) -> None:
        if answer.drips:
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400:
                self.wfile.write(bytes([byte]))
                if self.sink.closing.wait(0.05):
                    return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not answer.endless:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        while answer.endless and not self.sink.closing.is_set():
            self.wfile.write(answer.body)
        self.close_connection = True

    do_GET = do_POST = do_CONNECT = _any  # noqa: N815  # the library's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def sink_server(tls: ssl.SSLContext | None = None) -> Iterator[SinkServer]:
    """A server on loopback for as long as the block runs."""
    sink = SinkServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"sink": sink}))
    server.daemon_threads = False
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    sink.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield sink
    finally:
        sink.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
