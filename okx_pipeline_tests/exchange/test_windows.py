"""Paging: known windows, whole windows, whatever the exchange's pages look like; no candle lost, none twice."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from okx_pipeline.candles import Candle
from okx_pipeline.errors import PipelineError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.budget import LocalBudget
from okx_pipeline.exchange.errors import ExchangeError, UnknownSymbolError
from okx_pipeline.exchange.messages import encode_failure, encode_success
from okx_pipeline.exchange.protocol import CANDLES, HISTORY_CANDLES, PAGE_LIMIT, RECENT_DEPTH
from okx_pipeline.exchange.rest import RestClient
from okx_pipeline.exchange.windows import DEPTH_MARGIN, Window, WindowResult, fetch_window, fetch_windows, plan
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS, TIMEFRAMES, Timeframe, day_ms, parse_timeframe
from okx_pipeline_tests.exchange.simulated_time import run

MINUTE = parse_timeframe("1m")
MONTH = parse_timeframe("1mo")
SYMBOL = "BTC-USDT-SWAP"
NOW_MS = 1_790_000_000_000 + 17_123


@dataclass
class ModelExchange:
    """OKX's candle endpoints by their rules, and by their moods.

    Parameters
    ----------
    holes
        Open times of which there is no row.
    depth
        How many of the latest candles `candles` has.
    lag
        How many of the latest candles `history-candles` lacks.
    most_rows
        Its maximum for a page, whatever is asked for.
    glitch
        Rows cut from a page; None for all of them, which no request meets twice in a row.
    spoiled
        Open times of rows that no market can have.
    """

    timeframe: Timeframe
    now_ms: int = NOW_MS
    holes: frozenset[int] = frozenset()
    first_ms: int = 0
    depth: int = RECENT_DEPTH
    lag: int = 0
    most_rows: int = PAGE_LIMIT
    glitch: Callable[[], int | None] = lambda: 0
    spoiled: frozenset[int] = frozenset()
    requests: Counter[str] = field(default_factory=Counter)
    _emptied: tuple[str, int] | None = None

    def row(self, open_ms: int) -> list[str]:
        price = str(1 + open_ms // 1000 % 9973)
        confirm = "1" if self.timeframe.close_of(open_ms) <= self.now_ms else "0"
        high = "0.5" if open_ms in self.spoiled else price
        return [str(open_ms), price, high, price, price, "1", "0.01", price, confirm]

    def candle(self, open_ms: int) -> Candle:
        price, volumes = self.row(open_ms)[1], self.row(open_ms)[5:8]
        return Candle(SYMBOL, self.timeframe.name, open_ms, price, price, price, price, *volumes)

    def answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rsplit("/", 1)[1]
        self.requests[name] += 1
        asked = request.url.params
        if asked[protocol.SYMBOL] != SYMBOL:
            return respond(encode_failure(protocol.UNKNOWN_INSTRUMENT))
        rows = self._rows(name, int(asked[protocol.AFTER]), min(int(asked[protocol.LIMIT]), self.most_rows))
        cut = self.glitch()
        kept = rows[: max(1, len(rows) - cut)] if cut is not None else []
        query = (name, int(asked[protocol.AFTER]))
        if not kept and rows and self._emptied == query:
            kept = rows
        self._emptied = query if not kept else None
        return respond(encode_success([self.row(open_ms) for open_ms in kept]))

    def _rows(self, name: str, after_ms: int, most: int) -> list[int]:
        latest_ms = self.timeframe.open_at(self.now_ms)
        if name == CANDLES.name:
            newest_ms, oldest_ms = latest_ms, self.timeframe.step(latest_ms, 1 - self.depth)
        else:
            newest_ms, oldest_ms = self.timeframe.step(latest_ms, -self.lag), 0
        open_ms = min(self.timeframe.step(self.timeframe.first_open(after_ms), -1), newest_ms)
        rows: list[int] = []
        while open_ms >= max(oldest_ms, self.first_ms) and len(rows) < most:
            if open_ms not in self.holes:
                rows.append(open_ms)
            open_ms = self.timeframe.step(open_ms, -1)
        return rows


def respond(body: bytes) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(body))


def client_of(exchange: ModelExchange) -> RestClient:
    transport = httpx.MockTransport(exchange.answer)
    return RestClient("https://exchange.invalid", budget=LocalBudget(), transport=transport)


def fetched(exchange: ModelExchange, *windows: Window) -> list[WindowResult]:
    async def main() -> list[WindowResult]:
        async with client_of(exchange) as client:
            return [await fetch_window(client, SYMBOL, window) for window in windows]

    return run(main())


def opens_of(results: Iterable[WindowResult]) -> list[int]:
    return [candle.timestamp_ms for result in results for candle in result.candles]


# Planning


@given(
    timeframe=st.sampled_from(TIMEFRAMES),
    first=st.integers(-5000, 5),
    length=st.integers(-10, 5000),
    shift_ms=st.integers(0, DAY_MS),
    now_ms=st.integers(NOW_MS, NOW_MS + DAY_MS),
)
def test_windows_hold_every_closed_candle_of_the_range_once_in_the_fewest_requests_each_where_it_is_served(
    timeframe: Timeframe, first: int, length: int, shift_ms: int, now_ms: int
) -> None:
    start_ms = timeframe.step(timeframe.open_at(now_ms), first) + shift_ms
    end_ms = timeframe.step(timeframe.open_at(start_ms), length) + shift_ms
    windows = plan(timeframe, start_ms, end_ms, now_ms)
    closed = [open_ms for open_ms in timeframe.opens(start_ms, end_ms) if timeframe.close_of(open_ms) <= now_ms]
    planned = [open_ms for window in windows for open_ms in timeframe.opens(window.start_ms, window.end_ms)]
    assert planned == closed
    assert len(windows) == -(-len(closed) // PAGE_LIMIT)
    forming_ms = timeframe.open_at(now_ms)
    safe_ms = timeframe.step(forming_ms, 1 - RECENT_DEPTH + DEPTH_MARGIN)
    lagging_ms = timeframe.step(forming_ms, -100)
    for window in windows:
        assert 0 < window.candles <= PAGE_LIMIT
        assert timeframe.is_boundary(window.start_ms)
        assert timeframe.is_boundary(window.end_ms)
        if window.endpoint == CANDLES:
            assert window.start_ms >= safe_ms
        else:
            assert window.end_ms <= lagging_ms
            assert window.start_ms < safe_ms


def test_endpoint_changes_where_the_margin_of_what_candles_has_begins() -> None:
    safe_ms = MINUTE.step(MINUTE.open_at(NOW_MS), 1 - RECENT_DEPTH + DEPTH_MARGIN)
    for first_ms, endpoint in ((safe_ms, CANDLES), (safe_ms - MINUTE_MS, HISTORY_CANDLES)):
        (window,) = plan(MINUTE, first_ms, first_ms + 10 * MINUTE_MS, NOW_MS)
        assert window.endpoint == endpoint


def test_a_day_of_minutes_an_hour_ago_is_five_requests_and_old_days_are_historys() -> None:
    end_ms = MINUTE.open_at(NOW_MS)
    recent = plan(MINUTE, end_ms - DAY_MS, end_ms, NOW_MS)
    assert [window.endpoint for window in recent] == [HISTORY_CANDLES] + [CANDLES] * 4
    old = plan(MINUTE, end_ms - 10 * DAY_MS, end_ms - 9 * DAY_MS, NOW_MS)
    assert [window.endpoint for window in old] == [HISTORY_CANDLES] * 5


def test_all_months_there_are_come_from_one_recent_window() -> None:
    (window,) = plan(MONTH, 0, NOW_MS, NOW_MS)[-1:]
    assert window.endpoint == CANDLES
    assert window.end_ms == MONTH.open_at(NOW_MS)


def test_nothing_is_planned_of_the_future_of_the_forming_candle_and_of_an_empty_range() -> None:
    assert plan(MINUTE, NOW_MS, NOW_MS + DAY_MS, NOW_MS) == []
    assert plan(MINUTE, MINUTE.open_at(NOW_MS), NOW_MS, NOW_MS) == []
    assert plan(MINUTE, NOW_MS, NOW_MS - DAY_MS, NOW_MS) == []


# One window


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    timeframe=st.sampled_from(["1m", "4h", "1w", "1mo"]).map(parse_timeframe),
    back=st.integers(1, 700),
    span=st.integers(1, 700),
    depth=st.integers(0, RECENT_DEPTH),
    lag=st.integers(0, 99),
    most_rows=st.sampled_from([300, 100, 299, 7, 1]),
    holes=st.sampled_from([0.0, 0.02, 0.5, 0.98]),
    moody=st.booleans(),
    listed=st.integers(0, 700),
)
def test_every_candle_of_the_range_comes_out_exactly_once_whatever_the_pages_look_like(
    seed: int,
    timeframe: Timeframe,
    back: int,
    span: int,
    depth: int,
    lag: int,
    most_rows: int,
    holes: float,
    moody: bool,
    listed: int,
) -> None:
    luck = random.Random(seed)
    if most_rows == 1:
        span = min(span, 40)
    now_ms = NOW_MS
    latest_ms = timeframe.open_at(now_ms)
    start_ms = max(0, timeframe.step(latest_ms, -back))
    end_ms = timeframe.step(start_ms, span)
    exchange = ModelExchange(
        timeframe,
        now_ms=now_ms,
        holes=frozenset(open_ms for open_ms in timeframe.opens(start_ms, end_ms) if luck.random() < holes),
        first_ms=timeframe.step(latest_ms, -listed),
        depth=depth,
        lag=lag,
        most_rows=most_rows,
        glitch=(lambda: luck.choice([0, 0, 1, 5, 299, None])) if moody else (lambda: 0),
    )
    there = [
        exchange.candle(open_ms)
        for open_ms in timeframe.opens(start_ms, end_ms)
        if timeframe.close_of(open_ms) <= now_ms
        and open_ms >= exchange.first_ms
        and open_ms not in exchange.holes
        # What `candles` has dropped and history does not have yet is nowhere.
        and (open_ms > timeframe.step(latest_ms, -depth) or open_ms <= timeframe.step(latest_ms, -lag))
    ]
    results = fetched(exchange, *plan(timeframe, start_ms, end_ms, now_ms))
    assert [candle for result in results for candle in result.candles] == there
    assert [refused for result in results for refused in result.refused] == []
    assert sum(result.requests for result in results) == exchange.requests.total()


def test_well_served_window_takes_one_request() -> None:
    exchange = ModelExchange(MINUTE)
    end_ms = MINUTE.open_at(NOW_MS)
    windows = plan(MINUTE, end_ms - 3 * DAY_MS, end_ms, NOW_MS)
    results = fetched(exchange, *windows)
    assert [result.requests for result in results] == [1] * len(windows)
    assert exchange.requests == {CANDLES.name: 5, HISTORY_CANDLES.name: 10}
    assert len(opens_of(results)) == 3 * 1440


def test_maximum_silently_lowered_to_100_rows_costs_requests_and_no_candle() -> None:
    exchange = ModelExchange(MINUTE, most_rows=100)
    end_ms = MINUTE.open_at(NOW_MS)
    (result,) = fetched(exchange, *plan(MINUTE, end_ms - 300 * MINUTE_MS, end_ms, NOW_MS))
    assert (len(result.candles), result.requests, len(result.pages)) == (300, 3, 3)
    assert result.pages[0].sent_at >= result.pages[-1].sent_at


def test_single_empty_page_is_not_believed() -> None:
    moods = iter([None, 0])
    exchange = ModelExchange(MINUTE, glitch=lambda: next(moods))
    end_ms = MINUTE.open_at(NOW_MS)
    (result,) = fetched(exchange, *plan(MINUTE, end_ms - 300 * MINUTE_MS, end_ms, NOW_MS))
    assert (len(result.candles), result.requests) == (300, 2)


def test_window_before_listing_is_empty_after_asking_twice() -> None:
    exchange = ModelExchange(MINUTE, first_ms=NOW_MS)
    start_ms = day_ms(date(2020, 1, 1))
    (result,) = fetched(exchange, *plan(MINUTE, start_ms, start_ms + 300 * MINUTE_MS, NOW_MS))
    assert (result.candles, result.requests) == ([], 2)


def test_what_candles_has_no_more_history_has() -> None:
    exchange = ModelExchange(MINUTE, depth=150)
    end_ms = MINUTE.open_at(NOW_MS)
    (window,) = plan(MINUTE, end_ms - 300 * MINUTE_MS, end_ms, NOW_MS)
    assert window.endpoint == CANDLES
    (result,) = fetched(exchange, window)
    assert opens_of([result]) == list(MINUTE.opens(window.start_ms, window.end_ms))
    assert exchange.requests == {CANDLES.name: 3, HISTORY_CANDLES.name: 1}


def test_unconfirmed_candle_never_comes_out_even_of_a_window_that_holds_it() -> None:
    exchange = ModelExchange(MINUTE)
    forming_ms = MINUTE.open_at(NOW_MS)
    (result,) = fetched(exchange, Window(MINUTE, forming_ms - MINUTE_MS, forming_ms + MINUTE_MS, CANDLES))
    assert opens_of([result]) == [forming_ms - MINUTE_MS]


def test_refused_rows_of_the_window_come_out_once_and_others_do_not() -> None:
    end_ms = MINUTE.open_at(NOW_MS)
    start_ms = end_ms - 10 * MINUTE_MS
    exchange = ModelExchange(MINUTE, spoiled=frozenset({start_ms, start_ms - MINUTE_MS, end_ms - MINUTE_MS}))
    (result,) = fetched(exchange, Window(MINUTE, start_ms, end_ms, CANDLES))
    assert {refused.timestamp_ms for refused in result.refused} == {start_ms, end_ms - MINUTE_MS}
    assert len(result.refused) == 2
    assert len(result.candles) == 8


def test_pages_that_never_end_are_an_error() -> None:
    exchange = ModelExchange(MINUTE)

    def crawl(request: httpx.Request) -> httpx.Response:
        exchange.requests["asked"] += 1
        return respond(encode_success([exchange.row(int(request.url.params[protocol.AFTER]) - 1)]))

    exchange.answer = crawl  # type: ignore[method-assign]
    with pytest.raises(ExchangeError, match="do not end"):
        fetched(exchange, Window(MINUTE, 0, 10 * MINUTE_MS, HISTORY_CANDLES))
    assert exchange.requests["asked"] < 50


# Many windows


def jobs(count: int) -> list[tuple[str, Window]]:
    end_ms = MINUTE.open_at(NOW_MS) - 10 * DAY_MS
    return [(SYMBOL, window) for window in plan(MINUTE, end_ms - count * PAGE_LIMIT * MINUTE_MS, end_ms, NOW_MS)]


class SlowExchange(ModelExchange):
    """Takes its time, and notes how many requests it has at once."""

    at_once = most_at_once = 0
    delay_s: Callable[[], float] = staticmethod(lambda: 0.06)

    async def answer_slowly(self, request: httpx.Request) -> httpx.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_s())
            return self.answer(request)
        finally:
            self.at_once -= 1


def slow_client(exchange: SlowExchange) -> RestClient:
    transport = httpx.MockTransport(exchange.answer_slowly)
    return RestClient("https://exchange.invalid", budget=LocalBudget(), transport=transport)


def test_all_windows_come_as_they_are_complete_and_so_many_at_a_time() -> None:
    luck = random.Random(1)
    exchange = SlowExchange(MINUTE)
    exchange.delay_s = lambda: luck.random()

    async def main() -> list[Window]:
        async with slow_client(exchange) as client, fetch_windows(client, jobs(40), concurrency=7) as results:
            return [result.window async for result in results]

    windows = run(main())
    assert windows != [window for _, window in jobs(40)]
    assert sorted(windows, key=lambda window: window.start_ms) == [window for _, window in jobs(40)]
    assert exchange.most_at_once == 7


def test_no_windows_are_no_results() -> None:
    async def main() -> list[WindowResult]:
        async with client_of(ModelExchange(MINUTE)) as client, fetch_windows(client, [], concurrency=3) as results:
            return [result async for result in results]

    assert run(main()) == []


def test_fetching_uses_97_percent_of_what_okx_allows() -> None:
    exchange = SlowExchange(MINUTE)
    arrivals: list[float] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.03)
        arrivals.append(asyncio.get_running_loop().time())
        response = exchange.answer(request)
        await asyncio.sleep(0.03)
        return response

    async def main() -> None:
        transport = httpx.MockTransport(answer)
        client = RestClient("https://exchange.invalid", budget=LocalBudget(), transport=transport)
        async with client, fetch_windows(client, jobs(200), concurrency=20) as results:
            async for _ in results:
                pass

    run(main())
    assert 9 * HISTORY_CANDLES.period_s / (arrivals[-1] - arrivals[0]) > 0.97


def test_first_error_comes_out_of_the_iteration_as_itself_and_the_rest_is_stopped() -> None:
    exchange = SlowExchange(MINUTE)
    wanted = jobs(3) + [("NO-SUCH", window) for _, window in jobs(1)] + jobs(100)
    seen: list[WindowResult] = []

    async def main() -> None:
        async with slow_client(exchange) as client, fetch_windows(client, wanted, concurrency=2) as results:
            async for result in results:
                seen.append(result)

    with pytest.raises(UnknownSymbolError, match="NO-SUCH"):
        run(main())
    assert 1 <= len(seen) <= 5
    assert exchange.requests.total() < 15
    assert exchange.at_once == 0


def test_error_of_the_consumer_comes_out_as_itself_with_its_cause_and_stops_the_fetching() -> None:
    exchange = SlowExchange(MINUTE)

    async def main() -> None:
        async with slow_client(exchange) as client, fetch_windows(client, jobs(100), concurrency=3) as results:
            async for _ in results:
                raise PipelineError("disk full") from OSError("no space")

    with pytest.raises(PipelineError, match="disk full") as caught:
        run(main())
    assert isinstance(caught.value.__cause__, OSError)
    assert exchange.at_once == 0


def test_leaving_early_stops_the_fetching() -> None:
    exchange = SlowExchange(MINUTE)

    async def main() -> None:
        async with slow_client(exchange) as client:
            async with fetch_windows(client, jobs(100), concurrency=3) as results:
                async for _ in results:
                    break
            assert len(asyncio.all_tasks()) == 1
            assert exchange.at_once == 0

    run(main())
    assert exchange.requests.total() < 10


def test_being_cancelled_stops_the_fetching() -> None:
    exchange = SlowExchange(MINUTE)

    async def consume() -> None:
        async with slow_client(exchange) as client, fetch_windows(client, jobs(100), concurrency=3) as results:
            async for _ in results:
                pass

    async def main() -> None:
        task = asyncio.ensure_future(consume())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    run(main())
    assert exchange.at_once == 0


def test_slow_consumer_is_waited_for() -> None:
    exchange = SlowExchange(MINUTE)

    async def main() -> None:
        async with slow_client(exchange) as client, fetch_windows(client, jobs(60), concurrency=3) as results:
            taken = 0
            async for _ in results:
                taken += 1
                await asyncio.sleep(3)
                # In the queue, waiting for a place in it, and in hand.
                assert exchange.requests.total() <= taken + 3 + 3
            assert taken == 60

    run(main())
