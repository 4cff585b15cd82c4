"""The sidecar's figures for Prometheus, on a port of the loopback where one is named.

They are served from a thread of its own and taken when somebody asks, so that the stream works for them only while it
counts. Whatever goes wrong here is counted, and never a matter of the stream's. What is counted stands in `counters`.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final

import uvicorn
from prometheus_client import Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from okx_pipeline.errors import PipelineError
from okx_pipeline.exchange.frames import Series
from okx_pipeline.exchange.protocol import ENDPOINTS
from okx_pipeline.storage.activity import OpenGaps, budget_use, open_gaps
from okx_pipeline.storage.database import Database, DatabaseError
from okx_pipeline.storage.overview import ledger
from okx_pipeline.stream.counters import Counters, Figures
from okx_pipeline.stream.lander import Batch

HOST: Final = "127.0.0.1"
MOST_SERIES: Final = 2_000
"""Series whose lag is told each; of more, the first by name, and the longest lag of all."""

SAME_FOR_S: Final = 1.0
"""Who asks more often than this is given the same answer: a thousand series take some 20 ms to write."""

ANSWER_WITHIN_S: Final = 5.0
LOOK_EVERY_S: Final = 5.0
LEDGER_EVERY_S: Final = 60.0
LEDGER_SHARE: Final = 50
"""The ledger is summed for a fiftieth of the time at the most: 2 s for a thousand series of seven years."""

TRY_AGAIN_S: Final = 5.0
BUCKETS: Final = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60, 300)


@dataclass(frozen=True, slots=True)
class _Look:
    """What was read from the database: requests by endpoint, gaps, and candles missing on days read and not read."""

    budget: Mapping[str, int]
    gaps: OpenGaps
    in_gaps: int
    fetching: int


class Metrics:
    """Serves the figures of a sidecar.

    Parameters
    ----------
    port
        On the loopback.
    figures
        Gives the figures; called in the event loop of `run`.
    database
        Where gaps and the request budget are read.
    counters
        Where what goes wrong here is counted.
    """

    def __init__(self, port: int, figures: Callable[[], Figures], database: Database, counters: Counters) -> None:
        self._port = port
        self._figures = figures
        self._database = database
        self._counters = counters
        self._durable = Histogram(
            "okx_candle_durable_seconds",
            "From the receipt of a candle's frame to its commit",
            buckets=BUCKETS,
            registry=None,
        )
        self._look: _Look | None = None
        self._missing = (0, 0)
        self._ledger_from_s = 0.0
        self._answers: dict[str, tuple[float, bytes]] = {}

    def landed(self, batch: Batch) -> None:
        """A batch from the WebSocket has been committed."""
        now_s = monotonic()
        for received_s, candles in batch.arrivals():
            for _ in range(candles):
                self._durable.observe(now_s - received_s)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._for_ever(self._read, LOOK_EVERY_S))
            group.create_task(self._serve())

    async def _for_ever(self, read: Callable[[], None], every_s: float) -> None:
        while True:
            try:
                await asyncio.to_thread(read)
            except (PipelineError, DatabaseError) as problem:
                # Old figures are worse than none.
                self._look = None
                self._counters.wrong("metrics failed", str(problem).partition("\n")[0])
            await asyncio.sleep(every_s)

    def _read(self) -> None:
        with self._database.connect() as connection:
            if monotonic() >= self._ledger_from_s:
                began_s = monotonic()
                held = ledger(connection, None).values()
                self._missing = sum(each.in_gaps for each in held), sum(each.fetching for each in held)
                cost_s = monotonic() - began_s
                self._ledger_from_s = monotonic() + max(LEDGER_EVERY_S, LEDGER_SHARE * cost_s)
            self._look = _Look(budget_use(connection), open_gaps(connection), *self._missing)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                bound = socket.create_server((HOST, self._port))
            except OSError as problem:
                # A sidecar that is ending may have it still; a stream is worth more than its figures in any case.
                self._counters.wrong("metrics failed", f"port {self._port} cannot be used: {problem.strerror}")
                await asyncio.sleep(TRY_AGAIN_S)
                continue
            config = uvicorn.Config(
                self._application(loop),
                log_config=None,
                access_log=False,
                limit_concurrency=32,
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([bound],), name="metrics", daemon=True)
            thread.start()
            try:
                while thread.is_alive():
                    await asyncio.sleep(TRY_AGAIN_S)
            finally:
                server.should_exit = True
                bound.close()
            self._counters.wrong("metrics failed", "the server has ended")

    def _application(self, loop: asyncio.AbstractEventLoop) -> Starlette:
        async def figures() -> Figures:
            return self._figures()

        async def metrics(request: Request) -> Response:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
            made_s, text = self._answers.get(content_type, (0.0, b""))
            if not text or monotonic() - made_s > SAME_FOR_S:
                asked = asyncio.run_coroutine_threadsafe(figures(), loop)
                try:
                    taken = await asyncio.wait_for(asyncio.wrap_future(asked), ANSWER_WITHIN_S)
                except TimeoutError:
                    return PlainTextResponse("the stream is too busy to tell\n", 503)
                text = encode(_Collected(self._families(taken)))
                self._answers[content_type] = monotonic(), text
            return Response(text, media_type=content_type)

        # A page of another site may have its name lead here.
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
        return Starlette(routes=[Route("/metrics", metrics)], middleware=[hosts])

    def _families(self, figures: Figures) -> Iterator[Metric]:
        yield from _counted(figures)
        yield from _of_series(figures.lags_s)
        yield from _now(figures)
        yield from self._durable.collect()
        look = self._look
        if look is not None:
            yield from _looked_up(look)


@dataclass(frozen=True, slots=True)
class _Collected:
    """What the library takes for a registry."""

    families: Iterator[Metric]

    def collect(self) -> Iterable[Metric]:
        """The families, once."""
        return self.families


def _counted(figures: Figures) -> Iterator[Metric]:
    for name, what, number in (
        ("okx_frames", "Frames with rows of candles", figures.counts.get("frames", 0)),
        ("okx_candles_confirmed", "Candles that OKX confirmed by a frame", figures.counts.get("confirmed", 0)),
        ("okx_candles_inserted", "Candles that became durable, of whatever source", figures.counts.get("inserted", 0)),
        ("okx_candles_corrected", "Candles whose stored value was changed", figures.counts.get("corrected", 0)),
        ("okx_candles_caught_up", "Candles that REST brought as no frame had", figures.counts.get("caught up", 0)),
        ("okx_reconnects", "Connections that ended against our will", figures.reconnects),
    ):
        yield CounterMetricFamily(name, what, number)
    errors = CounterMetricFamily("okx_errors", "What ought not to be", labels=["kind"])
    for kind, number in sorted(figures.errors.items()):
        errors.add_metric([kind], number)
    yield errors


def _of_series(lags_s: Mapping[Series, float]) -> Iterator[Metric]:
    lags = GaugeMetricFamily(
        "okx_series_lag_seconds",
        "How long ago the first candle closed that is not durable; 0 where none has",
        labels=["symbol", "timeframe"],
    )
    for series in sorted(lags_s)[:MOST_SERIES]:
        lags.add_metric([series.symbol, series.timeframe.name], lags_s[series])
    yield lags
    yield GaugeMetricFamily("okx_lag_seconds_max", "The longest of these lags", max(lags_s.values(), default=0.0))


def _now(figures: Figures) -> Iterator[Metric]:
    series = GaugeMetricFamily("okx_series", "Series wanted, received and refused", labels=["state"])
    for state, number in (
        ("wanted", len(figures.lags_s)),
        ("received", figures.received),
        ("refused", figures.refused),
    ):
        series.add_metric([state], number)
    yield series
    yield GaugeMetricFamily("okx_connections", "Connections that are open", figures.connections)
    yield GaugeMetricFamily("okx_queue_candles", "Candles that wait to be landed", figures.waiting)
    yield GaugeMetricFamily("okx_queue_seconds", "How long the first of them has waited", figures.waiting_s)
    yield GaugeMetricFamily("okx_catching_up_series", "Series that REST is asked for now", figures.catching_up)
    if figures.silent_s is not None:
        yield GaugeMetricFamily("okx_silent_seconds", "Since anything came on a connection", figures.silent_s)
    if figures.clock_ahead_s is not None:
        ahead = "How far this machine's clock is ahead of the exchange's"
        yield GaugeMetricFamily("okx_clock_ahead_seconds", ahead, figures.clock_ahead_s)


def _looked_up(look: _Look) -> Iterator[Metric]:
    used = GaugeMetricFamily("okx_request_budget_used", "Requests that count against OKX's limit", labels=["endpoint"])
    limit = GaugeMetricFamily("okx_request_budget_limit", "OKX's limit", labels=["endpoint"])
    for endpoint in ENDPOINTS:
        used.add_metric([endpoint.name], look.budget.get(endpoint.name, 0))
        limit.add_metric([endpoint.name], endpoint.requests)
    yield used
    yield limit
    yield GaugeMetricFamily("okx_open_gaps", "Gaps on record that are open", look.gaps.gaps)
    missing = GaugeMetricFamily(
        "okx_missing_candles",
        "Candles missing, on days that REST was read for and on others",
        labels=["of"],
    )
    missing.add_metric(["gaps"], look.in_gaps)
    missing.add_metric(["history"], look.fetching)
    yield missing
