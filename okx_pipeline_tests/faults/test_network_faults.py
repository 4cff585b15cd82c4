"""The network between the program and the exchange: silent, cut, forgetful, slow; and an exchange that hangs up."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from okx_pipeline.exchange.protocol import BUSINESS_PATH
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline_tests.faults import table
from okx_pipeline_tests.faults.proxy import Proxy
from okx_pipeline_tests.faults.system import System
from okx_pipeline_tests.faults.variations import impatient, series_apart
from okx_pipeline_tests.stream.stand import wait_until

NOTICED_WITHIN_S = 45.0
"""What 25 s until a dead connection is known, and the waits before the next, come to on a machine that is busy."""


class Network:
    """A system, and the two ways on which it reaches the exchange."""

    def __init__(self, make_system: Callable[..., System], opened: ExitStack) -> None:
        def between(server: ReplayServer) -> tuple[str, str]:
            self.rest = opened.enter_context(Proxy(server.url))
            self.websocket = opened.enter_context(Proxy(server.websocket_url))
            assert self.websocket.url.endswith(BUSINESS_PATH)
            return self.rest.url, self.websocket.url

        self.system = make_system(url=between)
        self.proxies = (self.rest, self.websocket)

    def streaming(self) -> None:
        """Start a sidecar that notices soon, or as soon as a real one where everything is tried; wait for it."""
        self.system.sidecar(*([] if table.is_full() else [impatient]))
        wait_until(self.system.streams, "the sidecar streams", 30)

    @property
    def connected(self) -> int:
        """WebSockets that the exchange has ever accepted."""
        return int(self.system.status()["websocket"]["connected"])


@pytest.fixture
def network(make_system: Callable[..., System]) -> Iterator[Network]:
    """A network that works."""
    with ExitStack() as opened:
        yield Network(make_system, opened)


@pytest.mark.fault(7, "connections half open", tries=1)
def test_connections_that_nobody_is_at_the_other_end_of_are_noticed_and_replaced(network: Network) -> None:
    network.streaming()
    before = network.connected
    for proxy in network.proxies:
        proxy.half_open()
    wait_until(lambda: network.connected > before, "the sidecar is connected anew", NOTICED_WITHIN_S)
    network.system.lets_pass(1)
    assert network.system.recovers().explained == 0
    wait_until(lambda: network.system.counter("connection lost"), "the loss is told")


@pytest.mark.fault(7, "network cut, silent or slow", tries=5)
def test_a_network_that_is_cut_silent_or_slow_in_turns_loses_nothing(network: Network) -> None:
    network.streaming()
    randomly = network.system.randomly
    harms: list[Callable[[Proxy], None]] = [
        Proxy.stall,
        Proxy.cut,
        Proxy.half_open,
        lambda proxy: proxy.slow(randomly.uniform(200, 5_000)),
        lambda proxy: proxy.delay(randomly.uniform(0.05, 1)),
    ]
    for harm in randomly.sample(harms, len(harms) if table.is_full() else 3):
        for proxy in randomly.sample(network.proxies, randomly.randint(1, 2)):
            harm(proxy)
        network.system.lets_pass(randomly.uniform(0.3, 1.5))
        network.system.holds_its_promises()
        for proxy in network.proxies:
            if randomly.random() < 0.7:
                proxy.heal()
    for proxy in network.proxies:
        proxy.heal()
    assert network.system.recovers().explained == 0


@pytest.mark.fault(8, "service upgrade announced", tries=1)
def test_an_announced_upgrade_is_followed_before_the_old_connection_goes(network: Network) -> None:
    system = network.system
    network.streaming()
    series = len(system.series())
    # On a long line both connections can be seen to be there.
    network.websocket.delay(0.3)
    system.fault({"kind": "notice", "seconds": 60 if table.is_full() else 5})

    def carried_twice() -> bool:
        figures = system.status()["websocket"]
        return bool(figures["connections"] == 2 and figures["subscriptions"] == 2 * series)

    wait_until(carried_twice, "every series is subscribed on the new connection while the old one has it too")
    wait_until(lambda: system.status()["websocket"]["connections"] == 1, "the old connection is left")
    system.lets_pass(1)
    assert system.recovers().explained == 0
    wait_until(lambda: system.counter("upgrade announced") == 1, "the notice is counted")
    closes = system.status()["websocket"]["closes"]
    assert "1001" not in closes, "it was left before the exchange closed it"
    assert system.counter("connection lost") == system.counter("reconnects") == 0


@pytest.mark.fault(9, "reconnect storm, requests throttled", tries=8)
def test_a_storm_of_disconnects_never_makes_more_of_us_than_the_exchange_allows(system: System) -> None:
    randomly = system.randomly
    system.sidecar(series_apart)
    wait_until(system.streams, "the sidecar streams")
    throttled = randomly.choice([{"kind": "too_many"}, {"kind": "code", "code": "50011"}])
    system.fault({**throttled, "requests": 5}, {"kind": "withhold", "share": 0.3})
    for _ in range(10 if table.is_full() else 5):
        system.fault(
            randomly.choice([{"kind": "drop"}, {"kind": "drop", "close": 4006}, {"kind": "drop", "close": 1001}])
        )
        system.lets_pass(randomly.uniform(0.2, 1.2))
    wait_until(
        lambda: {each.kind for each in system.exchange.faults.pending} == {"withhold"}, "requests were throttled"
    )
    system.heal()
    assert system.recovers().explained == 0
    wait_until(lambda: system.status()["websocket"]["subscriptions"] == len(system.series()), "all is received again")
    status = system.status()
    assert status["websocket"]["connected"] > len(system.series())
    assert status["websocket"]["refused"] == 0, "never a fourth connection in a second"
    assert [name for name, tally in status["endpoints"].items() if tally["refused"]] == []
    assert sum(tally["faulted"] for tally in status["endpoints"].values()) == 5
    assert system.counter("asked too often") == 0
