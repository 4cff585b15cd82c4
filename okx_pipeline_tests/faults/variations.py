"""What a sidecar can be told before it begins, so that minutes of waiting pass in seconds or its machine is a bad one.

Points at which it dies stand in `system`. Each is called in the sidecar's process, and must be a function of a module
or an object that can be sent there.
"""

import os
import time
from dataclasses import dataclass

IMPATIENCE = 10
"""How much sooner an impatient sidecar doubts whom it talks to."""

IMPATIENCE_WITH_A_SERIES = 40
"""The same of a silent series, which is otherwise given two minutes and more."""


def impatient() -> None:
    """Connections and requests are given up `IMPATIENCE` times as soon: what is watched, and how, stays the same."""
    from okx_pipeline.exchange import connection, dialing, lane, rest
    from okx_pipeline.timeframes import GRACE_MS, MINUTE_MS

    for module, names in (
        (connection, ("PING_AFTER_S", "PONG_WITHIN_S", "ANSWER_WITHIN_S", "AFTER_ERROR_S", "STALL_LOOK_S")),
        (dialing, ("OPEN_WITHIN_S", "CLOSE_WITHIN_S")),
        (lane, ("STALL_S",)),
    ):
        for name in names:
            setattr(module, name, getattr(module, name) / IMPATIENCE)
    connection.SILENCE_LOOK_S /= IMPATIENCE_WITH_A_SERIES  # type: ignore[misc]
    _default(rest.RestClient, "request_timeout_s", rest.REQUEST_TIMEOUT_S / IMPATIENCE)

    def patience_s(subscription: connection._Subscription) -> float:
        longest_ms = max(subscription.series.timeframe.length_ms, MINUTE_MS) + GRACE_MS
        return longest_ms / 1000 / IMPATIENCE_WITH_A_SERIES * float(1 << subscription.silences)

    connection._Subscription.patience_s = property(patience_s)  # type: ignore[assignment,method-assign]


def series_apart() -> None:
    """Every series has a connection of its own."""
    from okx_pipeline.exchange.feed import CandleFeed

    _default(CandleFeed, "channels_per_connection", 1)


def _default(made: type, parameter: str, default: float) -> None:
    defaults = made.__init__.__kwdefaults__  # type: ignore[misc]
    assert parameter in defaults
    defaults[parameter] = default


@dataclass(frozen=True)
class ClockOff:
    """This machine's wall clock is `by_s` seconds fast (slow if negative), from `after_s` seconds on."""

    by_s: float
    after_s: float = 0.0

    def __call__(self) -> None:
        real, since_s = time.time, time.monotonic() + self.after_s
        time.time = lambda: real() + (self.by_s if time.monotonic() >= since_s else 0.0)


@dataclass(frozen=True)
class TimeZone:
    """This machine, and its sessions with PostgreSQL, live in a time zone, told in POSIX's words."""

    rule: str

    def __call__(self) -> None:
        os.environ["TZ"] = os.environ["PGTZ"] = self.rule
        time.tzset()
