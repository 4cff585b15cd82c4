"""An event loop whose time jumps to the next timer as soon as nothing else is to be done: minutes pass in no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_IN_FLIGHT_S = 0.002
"""How long what was sent over the loopback may need, in real time, before it counts as not sent."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.passed_s = 0.0
        self._patience_s = patience_s

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        ready = super().select(0) if timeout <= 0 else super().select(self._patience_s)
        if not ready and timeout > 0:
            self.passed_s += timeout
        return ready


class _SimulatedTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self, patience_s: float) -> None:
        self._jumping = _JumpingSelector(patience_s)
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed_s


def run(main: Coroutine[Any, Any, T], *, sockets: bool = False) -> T:
    """Run `main` in simulated time; `sockets` if it talks over real ones, both ends in this loop."""
    patience_s = _IN_FLIGHT_S if sockets else 0.0
    with asyncio.Runner(loop_factory=lambda: _SimulatedTimeLoop(patience_s)) as runner:
        return runner.run(main)
