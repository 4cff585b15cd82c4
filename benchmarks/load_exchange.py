"""`python -m benchmarks.load_exchange SYMBOLS SPEED`: a synthetic exchange that pushes every series each second.

Prints its URL and serves until it is told to end. Its own process, so that the sidecar's CPU time is the sidecar's.
"""

import sys
import threading
from time import time

from okx_pipeline.replay.channels import Channels
from okx_pipeline.replay.clock import ExchangeClock
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.replay.server import ReplayServer
from okx_pipeline.replay.sources import open_market
from okx_pipeline.timeframes import DAY_MS


def main() -> None:
    symbols, speed = int(sys.argv[1]), float(sys.argv[2])
    now_ms = int(time() * 1000)
    # A little into a day, so that the day's beginning is soon caught up with.
    start_ms = now_ms - now_ms % DAY_MS - DAY_MS + 600_000
    exchange = Exchange(open_market("synthetic", symbols=symbols), ExchangeClock(start_ms, speed), limits=False)
    with ReplayServer(exchange, channels=Channels(exchange, push_unchanged=True)) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
