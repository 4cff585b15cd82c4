"""The proxy does to connections what it says, and nothing to what passes."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from okx_pipeline_tests.faults.proxy import HOST, Proxy

DEADLINE_S = 20.0
A_WHILE_S = 0.3
"""How long nothing has to come for it to count as nothing."""


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """URL of a server that sends back what it is sent, and ends when its peer does."""
    listener = socket.create_server((HOST, 0))

    def serve(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            while chunk := peer.recv(65_536):
                peer.sendall(chunk)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"tcp://somebody:secret@{HOST}:{listener.getsockname()[1]}/name?option=1"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: str) -> Iterator[Proxy]:
    """A proxy before it."""
    with Proxy(echo) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    """Opens connections to the proxy."""
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection((HOST, int(proxy.url.rsplit(":", 1)[1].split("/")[0])), DEADLINE_S))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def received(peer: socket.socket, size: int) -> bytes:
    """The next `size` bytes, or fewer if no more come for a while."""
    peer.settimeout(A_WHILE_S)
    got = b""
    with suppress(TimeoutError):
        while len(got) < size and (chunk := peer.recv(size - len(got))):
            got += chunk
    peer.settimeout(DEADLINE_S)
    return got


def echoed(peer: socket.socket, sent: bytes = b"there?") -> bool:
    """Whether what is sent comes back."""
    peer.sendall(sent)
    return received(peer, len(sent)) == sent


def hears_nothing(peer: socket.socket) -> bool:
    """Whether nothing comes for a while, not even the end."""
    peer.settimeout(A_WHILE_S)
    with suppress(TimeoutError):
        return peer.recv(1) is None
    return True


def test_its_url_is_the_targets_but_for_the_host_and_port(proxy: Proxy, echo: str) -> None:
    before, _, after = proxy.url.partition("@")
    assert before == "tcp://somebody:secret"
    assert after.endswith("/name?option=1")
    assert proxy.url != echo


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 70_000), min_size=1, max_size=6))
def test_whatever_is_sent_comes_through_as_it_was_and_so_does_its_end(
    connect: Callable[[], socket.socket], sizes: list[int]
) -> None:
    sent = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    peer = connect()
    writing = threading.Thread(target=peer.sendall, args=(b"".join(sent),))
    writing.start()
    got = b""
    while len(got) < sum(sizes):
        got += peer.recv(65_536)
    writing.join()
    assert got == b"".join(sent)
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b""


def test_a_cut_resets_what_is_open_and_new_connections_work(proxy: Proxy, connect: Callable[[], socket.socket]) -> None:
    peers = [connect(), connect()]
    assert all(echoed(peer) for peer in peers)
    assert proxy.connections == 2
    proxy.cut()
    for peer in peers:
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    assert echoed(connect())


def test_half_open_connections_say_nothing_and_stay_and_new_ones_work(
    proxy: Proxy, connect: Callable[[], socket.socket]
) -> None:
    peer = connect()
    assert echoed(peer)
    proxy.half_open()
    assert not echoed(peer)
    peer.shutdown(socket.SHUT_WR)
    assert hears_nothing(peer)
    proxy.heal()
    assert echoed(connect())
    assert proxy.connections == 1
    assert hears_nothing(peer)


def test_a_stall_holds_everything_back_and_loses_nothing(proxy: Proxy, connect: Callable[[], socket.socket]) -> None:
    peer = connect()
    assert echoed(peer)
    proxy.stall()
    late = connect()
    assert not echoed(peer, b"one")
    assert not echoed(late, b"two")
    proxy.heal()
    assert received(peer, 3) == b"one"
    assert received(late, 3) == b"two"


def test_a_delay_and_a_slow_line_take_at_least_so_long(proxy: Proxy, connect: Callable[[], socket.socket]) -> None:
    peer = connect()
    assert echoed(peer)
    for harm, number in ((proxy.delay, 0.1), (proxy.slow, 10_000)):
        harm(number)
        begun_s = monotonic()
        peer.sendall(b"x" * 1000)
        got = b""
        while len(got) < 1000:
            got += peer.recv(1000)
        assert monotonic() - begun_s >= 0.2
        proxy.heal()


def test_when_connections_were_opened_can_be_told(proxy: Proxy, connect: Callable[[], socket.socket]) -> None:
    begun_s = monotonic()
    assert all(echoed(connect()) for _ in range(3))
    assert len(proxy.opened_s) == 3
    assert all(begun_s <= opened_s <= monotonic() for opened_s in proxy.opened_s)


def test_where_nobody_listens_a_connection_ends_at_once() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    with Proxy(f"http://{HOST}:{port}") as proxy, pytest.raises(httpx.TransportError):
        httpx.get(proxy.url, trust_env=False)
