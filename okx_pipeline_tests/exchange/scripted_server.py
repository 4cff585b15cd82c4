"""A real HTTP server that answers as it is told, wrongly included: cut off, endless, reset, never, compressed."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Answer:
    """What one request is answered with.

    Parameters
    ----------
    whole
        Length that the header promises, where it is not that of `body`.
    endless
        Whether `body` is repeated until the client has enough.
    drip_s
        Seconds between the bytes of the body, for as long as the client listens.
    silent, reset
        Whether nothing is answered: the connection stays open, or is reset.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    whole: int | None = None
    endless: bool = False
    drip_s: float | None = None
    silent: bool = False
    reset: bool = False


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    target: str
    headers: dict[str, str]
    arrived_at: datetime

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def parameters(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))


@dataclass
class Server:
    """Answers in turn, the last one for ever."""

    answers: list[Answer]
    port: int = 0
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                self.requests.append(Request(head[0].split(" ")[1], headers, datetime.now(UTC)))
                await self._answer(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0], reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer.silent:
            await reader.read()
        if answer.reset:
            linger_not = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
            writer.transport.abort()
            raise ConnectionResetError
        whole = 2**40 if answer.endless else len(answer.body) if answer.whole is None else answer.whole
        lines = [f"HTTP/1.1 {answer.status} Scripted", f"Content-Length: {whole}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode("ascii") + answer.body)
        await writer.drain()
        while answer.drip_s is not None:
            await asyncio.sleep(answer.drip_s)
            writer.write(b" ")
            await writer.drain()
        while answer.endless:
            writer.write(answer.body)
            await writer.drain()
        if whole != len(answer.body):
            raise ConnectionAbortedError


@asynccontextmanager
async def serving(*answers: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server with this script, on loopback, for as long as the context lasts."""
    server = Server(list(answers), scheme="https" if tls else "http")
    talks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.ensure_future(server.talk(reader, writer)))

    listener = await asyncio.start_server(begin, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await listener.wait_closed()
