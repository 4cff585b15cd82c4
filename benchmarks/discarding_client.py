"""`python -m benchmarks.discarding_client URL SECONDS SYMBOL,… TIMEFRAME,…`: a client that receives and forgets.

It subscribes every series as the sidecar does, 200 a connection, reads frames for SECONDS once everything is
subscribed, and prints how many, and the seconds of processor that took: what the WebSocket library costs alone.
"""

import asyncio
import sys
from time import process_time

from websockets.asyncio.client import ClientConnection, connect

from okx_pipeline.exchange.feed import CHANNELS_A_CONNECTION
from okx_pipeline.exchange.frames import SUBSCRIBE, Series, encode_requests
from okx_pipeline.timeframes import parse_timeframes


async def main() -> None:
    """Connect, count, print."""
    url, seconds, symbols, timeframes = sys.argv[1], float(sys.argv[2]), sys.argv[3].split(","), sys.argv[4]
    series = [Series(symbol, timeframe) for symbol in symbols for timeframe in parse_timeframes(timeframes)]
    frames = 0

    async def read(socket: ClientConnection) -> None:
        nonlocal frames
        while True:
            await socket.recv(decode=False)
            frames += 1

    sockets = []
    async with asyncio.TaskGroup() as group:
        for start in range(0, len(series), CHANNELS_A_CONNECTION):
            socket = await connect(url, compression=None, proxy=None, open_timeout=60)
            for request in encode_requests(SUBSCRIBE, series[start : start + CHANNELS_A_CONNECTION]):
                await socket.send(request)
            sockets.append(group.create_task(read(socket)))
            await asyncio.sleep(0.4)  # OKX takes three connections a second
        begun, begun_s = frames, process_time()
        await asyncio.sleep(seconds)
        print(frames - begun, process_time() - begun_s, flush=True)
        for task in sockets:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
