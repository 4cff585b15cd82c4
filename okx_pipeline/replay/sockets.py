"""Connections as a stand-in needs them and ASGI does not have them: to reset, to freeze, to push many frames at once.

Made on the protocols of the one version of uvicorn that this package allows. What is said on a connection is not
decided here.
"""

import asyncio
import socket
import struct
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode
from websockets.protocol import State

TRANSPORT: Final = "replay.transport"
"""Where an HTTP request's scope has its `asyncio.Transport`."""

SOCKET: Final = "replay.socket"
"""Where a WebSocket's scope has its `Socket`."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_CLOSE_TIMEOUT_S: Final = 5


class HttpConnection(HttpToolsProtocol):
    """An HTTP connection whose requests can get at its transport."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]


class Socket(WebSocketsSansIOProtocol):
    """A WebSocket connection that can be written to, frozen, closed and reset at any moment, from the event loop.

    Attributes
    ----------
    frozen
        Nothing is read or written any more, and the connection stays: the peer sees one whose other end is gone.
    """

    frozen = False

    @property
    def ended_with(self) -> int:
        """The close code with which it was ended, by whichever side was first; 1006 if it just broke."""
        return CloseCode.ABNORMAL_CLOSURE if self.conn.close_sent is None else self.conn.close_sent.code

    @property
    def unsent_bytes(self) -> int:
        """How much was written that the peer has not taken yet."""
        return self.transport.get_write_buffer_size()

    def send_texts(self, texts: list[str]) -> bool:
        """Send these frames in one write; whether they were, which they are not on a frozen or closing connection."""
        if self.frozen or self.conn.state is not State.OPEN or self.transport.is_closing():
            return False
        for text in texts:
            self.conn.send_text(text.encode())
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def hang_up(self, code: int, reason: str = "") -> None:
        """Close it with this code; a peer that does not answer is cut off."""
        if self.frozen or self.conn.state is not State.OPEN or self.transport.is_closing():
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code})
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(_CLOSE_TIMEOUT_S, self.transport.abort)

    def reset(self) -> None:
        """Drop it the hard way."""
        reset(self.transport)

    async def run_asgi(self) -> None:
        self.scope[SOCKET] = self  # type: ignore[typeddict-unknown-key]
        await super().run_asgi()

    def data_received(self, data: bytes) -> None:
        if not self.frozen:
            super().data_received(data)


def reset(transport: asyncio.Transport) -> None:
    """Drop a connection the hard way: the peer reads a reset, not an end."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
