"""A TCP proxy that makes a network misbehave between a program and whom it talks to: bytes only, no protocol.

What the other side says wrongly is the replay exchange's work. A machine's own packet filters would do the same, but
need rights and kernels that not every machine has.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

T = TypeVar("T")

HOST: Final = "127.0.0.1"
_CHUNK: Final = 16 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_START_TIMEOUT_S: Final = 30.0


class _Link:
    """A connection through the proxy: both its ends, and what moves between them."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.ends = (near, far)
        self.pumps: list[asyncio.Task[None]] = []
        self.forgotten = False

    def forget(self) -> None:
        """Move nothing any more, not even the end of either side."""
        self.forgotten = True
        for pump in self.pumps:
            pump.cancel()
        for end in self.ends:
            transport = end.transport
            if isinstance(transport, asyncio.ReadTransport) and transport.is_reading():
                transport.pause_reading()

    def reset(self) -> None:
        """End it with a reset to both sides."""
        for pump in self.pumps:
            pump.cancel()
        for end in self.ends:
            opened: socket.socket | None = end.get_extra_info("socket")
            if opened is not None and opened.fileno() >= 0:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.transport.abort()


class Proxy:
    """A proxy in a thread of this process, for as long as the context lasts.

    Parameters
    ----------
    target
        URL of whom it stands before; anything with a host and a port: ``http://…``, ``ws://…``, ``postgresql://…``.

    Attributes
    ----------
    url
        The same URL with the proxy's host and port; known on entry, and the same through every fault.
    opened_s
        When each connection to it was opened, `time.monotonic`.
    """

    def __init__(self, target: str) -> None:
        self.url = ""
        self.opened_s: list[float] = []
        self._target = urlsplit(target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._delay_s = 0.0
        self._bytes_a_second = float("inf")

    def __enter__(self) -> Self:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_START_TIMEOUT_S)
        user, at, _ = self._target.netloc.rpartition("@")
        self.url = urlunsplit(self._target._replace(netloc=f"{user}{at}{HOST}:{port}"))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_START_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """Connections that both sides believe in."""
        return self._do(lambda: sum(not link.forgotten for link in self._links))

    def cut(self) -> None:
        """Reset every connection there is; new ones work."""
        self._do_to_links(_Link.reset)

    def half_open(self) -> None:
        """Forget every connection there is, telling nobody; new ones work."""
        self._do_to_links(_Link.forget)

    def stall(self) -> None:
        """Let nothing pass, on connections there are and on new ones, until healed; what was held back passes then."""
        self._do(self._passes.clear)

    def delay(self, seconds: float) -> None:
        """Hold everything back for so long, each way."""
        self._do(lambda: setattr(self, "_delay_s", seconds))

    def slow(self, bytes_a_second: float) -> None:
        """Let so much pass on a connection, each way."""
        self._do(lambda: setattr(self, "_bytes_a_second", bytes_a_second))

    def heal(self) -> None:
        """Let everything pass again. Connections that were cut or forgotten stay so."""

        def heal() -> None:
            self._delay_s, self._bytes_a_second = 0.0, float("inf")
            self._passes.set()

        self._do(heal)

    def _do_to_links(self, harm: Callable[[_Link], None]) -> None:
        def work() -> None:
            for link in self._links:
                harm(link)

        self._do(work)

    def _do(self, work: Callable[[], T]) -> T:
        async def in_the_loop() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(in_the_loop(), self._loop).result(_START_TIMEOUT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self) -> int:
        self._listener = await asyncio.start_server(self._accept, HOST, 0)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for link in self._links:
            link.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened_s.append(monotonic())
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._passes.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, far_writer)
        self._links.add(link)
        link.pumps = [
            asyncio.create_task(self._pump(reader, far_writer)),
            asyncio.create_task(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(link.pumps)
            if link.forgotten:
                # It stays as it is until the proxy ends.
                await asyncio.Event().wait()
        finally:
            link.reset()
            self._links.discard(link)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Move what comes until there is no more, and pass on how it ended."""
        try:
            while chunk := await reader.read(_CHUNK):
                await self._hold_back(len(chunk))
                writer.write(chunk)
                await writer.drain()
            await self._hold_back(0)
            writer.write_eof()
        except OSError:
            await self._passes.wait()
            writer.transport.abort()

    async def _hold_back(self, size: int) -> None:
        if self._delay_s or size / self._bytes_a_second:
            await asyncio.sleep(self._delay_s + size / self._bytes_a_second)
        await self._passes.wait()
