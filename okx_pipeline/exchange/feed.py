"""The candle feed: every wanted series received over OKX's WebSocket, through whatever OKX and the network do.

Series are spread over lanes here. How a lane keeps its connection is `lane`'s work, what a connection asks and hears
`connection`'s; what rows mean, and fetching what was missed, the listener's.
"""

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Final

from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.connection import Connection, Listener, Oddity
from okx_pipeline.exchange.dialing import Dialer
from okx_pipeline.exchange.frames import Series
from okx_pipeline.exchange.lane import Lane, Reception
from okx_pipeline.timeframes import HOUR_MS

CHANNELS_A_CONNECTION: Final = 200
"""OKX publishes no limit but has one (close codes 4008 and 4009)."""

FEWEST_CHANNELS: Final = 10
"""Fewer than this OKX cannot mean."""

RENEW_AFTER_S: Final = 12 * HOUR_MS / 1000
"""Age of a connection at which another takes its place: before something on the way forgets it."""


class CandleFeed:
    """Receives the candles of many series and hands on every row.

    Parameters
    ----------
    url
        OKX's WebSocket for candles, /ws/v5/business; that of the demo environment is on another host.
    listener
        Who is told.
    proxy
        URL of a proxy; none is taken from the environment.
    ca_file
        File of the certificate authorities to trust, instead of the usual ones.
    channels_per_connection
        Most series on one connection; halved when OKX says that they are too many.
    renew_after_s
        Age at which a connection is replaced, give or take a quarter.

    Raises
    ------
    UsageError
        If one of the settings cannot be.
    """

    def __init__(
        self,
        url: str,
        listener: Listener,
        *,
        proxy: str | None = None,
        ca_file: Path | None = None,
        channels_per_connection: int = CHANNELS_A_CONNECTION,
        renew_after_s: float = RENEW_AFTER_S,
    ) -> None:
        self.channels_per_connection = channels_per_connection
        self.reconnects = 0
        """Connections that have ended against our will."""
        self._dialer = Dialer(url, proxy=proxy, ca_file=ca_file)
        self._listener = listener
        self._reception = Reception(listener)
        self._renew_after_s = renew_after_s
        self._wanted: frozenset[Series] = frozenset()
        self._lanes: dict[Lane, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return sum(len(lane.connections) for lane in self._lanes)

    @property
    def subscribed_series(self) -> int:
        """Wanted series that OKX sends."""
        return len(self._reception.received)

    @property
    def last_frame_s(self) -> float | None:
        """When anything came last on a connection that is open, in loop time."""
        heard = [connection.heard_s for lane in self._lanes for connection in lane.connections]
        return max(heard, default=None)

    def want(self, series: Collection[Series]) -> None:
        """Make these the series that are received, and no others; at any time, before `run` too."""
        self._wanted = frozenset(series)
        self._reception.keep(self._wanted)
        self._spread()

    async def run(self) -> None:
        """Receive until cancelled; then close all connections."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._spread()
                await asyncio.Event().wait()
        finally:
            self._group = None
            self._lanes.clear()
            self._reception.keep(())

    def _spread(self) -> None:
        """Give every wanted series a lane: as few lanes as there may be, and moving none that may be received."""
        if self._group is None:
            return
        most = self.channels_per_connection
        homeless = set(self._wanted)
        for lane in self._lanes:
            lane.series &= self._wanted
            if not lane.connections:
                lane.series = set(sorted(lane.series)[:most])
            homeless -= lane.series
        waiting = sorted(homeless, reverse=True)
        for lane in self._lanes:
            while waiting and len(lane.series) < most:
                lane.series.add(waiting.pop())
        while waiting:
            lane = self._new_lane({waiting.pop() for _ in range(min(most, len(waiting)))})
            self._lanes[lane] = self._group.create_task(lane.run())
        for lane in [lane for lane in self._lanes if not lane.series]:
            self._lanes.pop(lane).cancel()
        for lane in self._lanes:
            lane.look_again()

    def _new_lane(self, series: set[Series]) -> Lane:
        return Lane(
            series,
            self._dialer,
            self._listener,
            self._reception,
            renew_after_s=self._renew_after_s,
            on_end=self._on_end,
        )

    def _on_end(self, lane: Lane, connection: Connection) -> None:
        self.reconnects += 1
        channels = len(lane.series)
        # Several connections may be closed at once for the same excess, so that the cap is not simply halved each time.
        fewer = max(FEWEST_CHANNELS, min(self.channels_per_connection, channels // 2))
        if connection.close_code in protocol.CLOSE_TOO_MANY_CHANNELS and fewer < self.channels_per_connection:
            self.channels_per_connection = fewer
            self._listener.noticed(Oddity.FEWER_CHANNELS, f"{fewer} from now on: {channels} were too many for OKX")
        self._spread()
