"""Paging as data: a range of candles as windows known in advance, and fetching one or many of them whole.

That the windows are known in advance is what makes paging parallel: no request waits for another's oldest row. How a
single request is sent, tried again and judged is `rest`'s work.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from okx_pipeline.candles import Candle, Refused
from okx_pipeline.errors import PipelineError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.errors import ExchangeError
from okx_pipeline.exchange.protocol import Endpoint
from okx_pipeline.exchange.rest import RestClient
from okx_pipeline.timeframes import Timeframe, iso

DEPTH_MARGIN: Final = 60
"""Of the candles that `candles` serves, this many of the oldest are not counted on: they fall out while a run lasts."""

_EMPTY_ASKS: Final = 2
"""How often an endpoint must answer "nothing" before that is believed; a single empty page may be a glitch."""


@dataclass(frozen=True, slots=True)
class Window:
    """A run of candles that one page holds.

    Parameters
    ----------
    start_ms, end_ms
        Open time of its first candle, and of the first one after it.
    endpoint
        Which one serves all of it.
    """

    timeframe: Timeframe
    start_ms: int
    end_ms: int
    endpoint: Endpoint

    @property
    def candles(self) -> int:
        """How many candles open in it."""
        return self.timeframe.count(self.start_ms, self.end_ms)


@dataclass(frozen=True, slots=True)
class WindowPage:
    """What one page brought: confirmed candles of the window, oldest first, asked for after `sent_at`."""

    candles: list[Candle]
    sent_at: datetime


@dataclass(frozen=True, slots=True)
class WindowResult:
    """All that OKX has of a window.

    Parameters
    ----------
    pages
        Oldest first; no candle is in two of them.
    refused
        Rows that OKX confirmed but that cannot be candles.
    requests
        Pages asked for.
    """

    symbol: str
    window: Window
    pages: list[WindowPage]
    refused: list[Refused]
    requests: int

    @property
    def candles(self) -> list[Candle]:
        """The candles of all pages, oldest first."""
        return [candle for page in self.pages for candle in page.candles]


def plan(timeframe: Timeframe, start_ms: int, end_ms: int, now_ms: int) -> list[Window]:
    """The windows that hold every candle opening in [start_ms, end_ms) and closed at `now_ms`, in the fewest requests.

    Parameters
    ----------
    now_ms
        The exchange's time.

    Notes
    -----
    `candles` serves the latest 1,440 candles, the forming one included; `history-candles` has older ones too, but may
    lag behind by minutes (seen by others; OKX does not say). A window lies on `candles` if all of it is safely among
    the latest. Its length being far less than that depth, whatever is recent enough for history to lag always is.
    """
    forming_ms = timeframe.open_at(now_ms)
    recent_ms = timeframe.step(forming_ms, DEPTH_MARGIN + 1 - protocol.RECENT_DEPTH)
    end_ms = timeframe.first_open(min(end_ms, forming_ms))
    windows = []
    first_ms = timeframe.first_open(start_ms)
    while first_ms < end_ms:
        next_ms = min(timeframe.step(first_ms, protocol.PAGE_LIMIT), end_ms)
        endpoint = protocol.CANDLES if first_ms >= recent_ms else protocol.HISTORY_CANDLES
        windows.append(Window(timeframe, first_ms, next_ms, endpoint))
        first_ms = next_ms
    return windows


async def fetch_window(client: RestClient, symbol: str, window: Window) -> WindowResult:
    """Every candle that OKX has of a window.

    A page with fewer rows than asked for is not the end (OKX's maximum may be lower today), and nor is the first empty
    one. If `candles` has no more, as when its depth has moved on, `history-candles` is asked for the rest.

    Raises
    ------
    ExchangeError
        If OKX cannot be asked or refuses; or if its pages are so small that they would never end.
    """
    pages: list[WindowPage] = []
    refused: dict[tuple[int | None, str], Refused] = {}
    endpoint, cursor_ms, empty, requests = window.endpoint, window.end_ms, 0, 0
    # A page brings one candle of the window at least, and an empty one may stand before each and at two ends.
    most_requests = _EMPTY_ASKS * (window.candles + 2)
    while cursor_ms > window.start_ms:
        if requests == most_requests:
            raise ExchangeError(
                f"OKX answers the {window.timeframe} candles of {symbol} before {iso(cursor_ms)} in pages "
                "that do not end; try again later"
            )
        page, sent_at = await client.candles_page(endpoint, symbol, window.timeframe, cursor_ms)
        requests += 1
        if not page.opens:
            empty += 1
            if empty == _EMPTY_ASKS:
                if endpoint != protocol.CANDLES:
                    break
                endpoint, empty = protocol.HISTORY_CANDLES, 0
            continue
        empty = 0
        cursor_ms = page.opens[-1]
        pages.append(
            WindowPage([candle for candle in reversed(page.candles) if candle.timestamp_ms >= window.start_ms], sent_at)
        )
        for row in page.refused:
            if row.timestamp_ms is None or row.timestamp_ms >= window.start_ms:
                refused[row.timestamp_ms, row.original] = row
    return WindowResult(symbol, window, pages[::-1], list(refused.values()), requests)


@asynccontextmanager
async def fetch_windows(
    client: RestClient, wanted: Iterable[tuple[str, Window]], *, concurrency: int
) -> AsyncIterator[AsyncIterator[WindowResult]]:
    """Fetch windows of symbols side by side, at most `concurrency` at a time; the results come as they are complete.

    To be used as ``async with fetch_windows(...) as results: async for result in results: ...``. Leaving the context,
    early or by an error, ends what is still being fetched. The first error is raised out of the iteration, after which
    nothing more comes. A consumer that is slower than OKX is waited for.

    Raises
    ------
    PipelineError
        See `fetch_window`, and whatever the request budget raises.
    """
    remaining = iter(wanted)
    working = concurrency
    finished: asyncio.Queue[WindowResult | PipelineError | None] = asyncio.Queue(maxsize=concurrency)

    async def work() -> None:
        nonlocal working
        try:
            for symbol, window in remaining:
                await finished.put(await fetch_window(client, symbol, window))
        except PipelineError as error:
            await finished.put(error)
        working -= 1
        if not working:
            await finished.put(None)

    async def results() -> AsyncGenerator[WindowResult, None]:
        while (result := await finished.get()) is not None:
            if isinstance(result, PipelineError):
                raise result
            yield result

    error: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group, aclosing(results()) as stream:
            workers = [group.create_task(work()) for _ in range(concurrency)]
            yield stream
            for worker in workers:
                worker.cancel()
    except BaseExceptionGroup as errors:
        error = errors.exceptions[0]
    # Raised out here, it keeps the cause it came with.
    if error is not None:
        raise error
