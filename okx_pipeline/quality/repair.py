"""Repair: every open gap is fetched from OKX, and what OKX, asked twice, answers without is proven absent.

An answer is evidence only with a candle next to the gap in it: an error, silence or an empty page says nothing. Candles
older than a day are asked for twice a second apart, younger ones a quarter of an hour apart, as they may come late.
A verdict younger than a week is asked again once a day.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.errors import UnknownSymbolError
from okx_pipeline.exchange.windows import plan
from okx_pipeline.history.backfill import Backfill, Progress, Report
from okx_pipeline.quality.gaps import Findings, SeriesRange, detect
from okx_pipeline.ranges import Range, difference, intersection, union
from okx_pipeline.storage.database import translated
from okx_pipeline.storage.gaps import Gap, Reason, Verdict, unresolved_gaps
from okx_pipeline.storage.instruments import lives
from okx_pipeline.storage.partitions import DetachedMonthError
from okx_pipeline.timeframes import DAY_MS, MINUTE_MS, WEEK_MS, Timeframe, month_bounds, parse_timeframe

AGAIN_OLD_S: Final = 1.0
AGAIN_YOUNG_MS: Final = 15 * MINUTE_MS
AGAIN_ABSENT_MS: Final = DAY_MS
SURE_AFTER_MS: Final = WEEK_MS

_EMPTY_ASKS: Final = 2
_DAY: Final = parse_timeframe("1d")

Series = tuple[str, Timeframe]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of OKX's without the candles of a gap.

    Parameters
    ----------
    asked_ms
        When, by the exchange's clock.
    endpoint
        Path of what was asked.
    newer_ms, older_ms
        Open times of the candles it served next to the gap; None where it has none on that side.
    unknown
        OKX does not know the instrument any more.
    """

    asked_ms: int
    endpoint: str
    newer_ms: int | None
    older_ms: int | None
    unknown: bool = False

    def evidence(self) -> dict[str, Any]:
        """The answer as it is kept."""
        kept: dict[str, Any] = {
            "asked_ms": self.asked_ms,
            "endpoint": self.endpoint,
            "newer_ms": self.newer_ms,
            "older_ms": self.older_ms,
        }
        return {**kept, "answer": "unknown instrument"} if self.unknown else kept


@dataclass(slots=True)
class Repair:
    """What a repair did.

    Parameters
    ----------
    before, after
        What was found before and after it.
    fetched
        The report of what was fetched.
    judged
        Candles that are proven absent now, by reason.
    waiting
        Candles that OKX answered without once, and is to be asked for again later.
    requests
        Requests sent to gather evidence.
    """

    before: list[Findings]
    fetched: Report
    after: list[Findings] = field(default_factory=list)
    judged: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    requests: int = 0


async def repair(backfill: Backfill, wanted: Sequence[SeriesRange], *, progress: Progress | None = None) -> Repair:
    """Fetch and land what is missing of `wanted`, and settle what OKX does not serve.

    Raises
    ------
    ExchangeError
        If OKX cannot be asked to the last try. What came before has landed; what is missing stays open.
    DetachedMonthError
        If months of `wanted` have a detached partition. The gaps of all other months are dealt with.
    StorageError
        If the database or the disk refuses.
    """
    return await _Repairing(backfill).run(wanted, progress)


class _Repairing:
    def __init__(self, backfill: Backfill) -> None:
        self.backfill = backfill
        self.store = backfill.store
        self.requests = 0
        self.delisted: set[str] = set()

    async def run(self, wanted: Sequence[SeriesRange], progress: Progress | None) -> Repair:
        now_ms = await self.backfill.clock.now_ms()
        with translated(self.store.place):
            self.delisted = {
                symbol for symbol, life in lives(self.store.connection).items() if life.state == "delisted"
            }
            before = [await asyncio.to_thread(detect, self.store, each, now_ms) for each in wanted]
            to_ask = self._to_ask(wanted, now_ms)
            done = Repair(before, await self._fetch(to_ask, progress))
            await self._settle(to_ask, done)
            now_ms = await self.backfill.clock.now_ms()
            done.after = [await asyncio.to_thread(detect, self.store, each, now_ms) for each in wanted]
        done.requests = self.requests
        if done.fetched.detached:
            raise DetachedMonthError(done.fetched.detached)
        return done

    def _to_ask(self, wanted: Sequence[SeriesRange], now_ms: int) -> dict[Series, list[Range]]:
        """What is open, or absent not for long enough, and not asked for just now."""
        to_ask: defaultdict[Series, list[Range]] = defaultdict(list)
        for each in wanted:
            for gap in unresolved_gaps(self.store.connection, each.symbol, each.timeframe, each.range):
                again_ms = gap.ask_again_ms
                # What nothing is known of may be asked for whenever somebody wants it.
                unknown = gap.status == "open" and (again_ms is None or not gap.evidence)
                if unknown or (again_ms is not None and again_ms <= now_ms):
                    to_ask[each.symbol, each.timeframe] += intersection([gap.range], [each.range])
        return {series: union(ranges) for series, ranges in to_ask.items() if ranges}

    async def _fetch(self, to_ask: Mapping[Series, Sequence[Range]], progress: Progress | None) -> Report:
        # OKX may not know a delisted instrument any more; asking for evidence finds out.
        known = {series: ranges for series, ranges in to_ask.items() if series[0] not in self.delisted}
        return await self.backfill.run_attached(await self.backfill.plan_ranges(known), progress=progress)

    async def _settle(self, to_ask: Mapping[Series, Sequence[Range]], done: Repair) -> None:
        """Ask for evidence of what was not served; a second time, a second later, for what is old."""
        first_s = monotonic()
        waiting: list[tuple[Gap, Answer]] = []
        for gap in self._left(to_ask, done.fetched):
            answer = await self._ask(gap)
            if answer is None:
                await self._wait(gap, done)
            elif gap.evidence or not self._is_old(gap, answer):
                await self._judge(gap, [*gap.evidence, answer.evidence()], answer, done)
            else:
                waiting.append((gap, answer))
        if waiting:
            await asyncio.sleep(max(0.0, first_s + AGAIN_OLD_S - monotonic()))
        for gap, first in waiting:
            answer = await self._ask(gap)
            if answer is None:
                await self._wait(gap, done)
            else:
                await self._judge(gap, [first.evidence(), answer.evidence()], answer, done)

    def _left(self, to_ask: Mapping[Series, Sequence[Range]], fetched: Report) -> list[Gap]:
        """The gaps that are still there, without those that reach into a month in which nothing can land."""
        left = []
        closed = [Range(*month_bounds(each.month)) for each in fetched.detached]
        for (symbol, timeframe), ranges in to_ask.items():
            around = Range(ranges[0].start_ms, ranges[-1].end_ms)
            gaps = unresolved_gaps(self.store.connection, symbol, timeframe, around)
            left += [
                gap
                for gap in gaps
                if intersection([gap.range], ranges) and not intersection([gap.range], sorted(closed))
            ]
        return left

    def _is_old(self, gap: Gap, answer: Answer) -> bool:
        return answer.asked_ms - gap.range.end_ms > DAY_MS

    async def _ask(self, gap: Gap) -> Answer | None:
        """Ask for the candles around a gap and land what comes; None if the answer is no evidence, or has them all."""
        now_ms = await self.backfill.clock.now_ms()
        timeframe = gap.timeframe
        endpoint = plan(timeframe, gap.range.start_ms, gap.range.end_ms, now_ms)[0].endpoint
        next_ms = self.store.next_open(gap.symbol, timeframe, gap.range.end_ms)
        cursor_ms = timeframe.close_of(timeframe.open_at(now_ms) if next_ms is None else next_ms)
        newer_ms = older_ms = None
        empty = 0
        served = False
        while older_ms is None:
            try:
                page, sent_at = await self.backfill.client.candles_page(endpoint, gap.symbol, timeframe, cursor_ms)
            except UnknownSymbolError:
                if gap.symbol not in self.delisted:
                    raise
                return Answer(now_ms, endpoint.path, None, None, unknown=True)
            self.requests += 1
            if not page.opens:
                empty += 1
                if empty < _EMPTY_ASKS:
                    continue
                if endpoint != protocol.CANDLES:
                    break
                endpoint, empty = protocol.HISTORY_CANDLES, 0
                continue
            empty = 0
            cursor_ms = page.opens[-1]
            newer_ms = min((each for each in page.opens if each >= gap.range.end_ms), default=newer_ms)
            older_ms = max((each for each in page.opens if each < gap.range.start_ms), default=None)
            served |= await self._land(gap, page.candles, page.refused, sent_at)
        if served:
            now_ms = await self.backfill.clock.now_ms()
            await asyncio.to_thread(self.store.account, now_ms)
        if newer_ms is None and (older_ms is None or not self._is_the_end(gap)):
            return None
        return Answer(now_ms, endpoint.path, newer_ms, older_ms)

    async def _land(self, gap: Gap, candles: Sequence[Candle], refused: Sequence[Refused], sent_at: Any) -> bool:
        wanted = [each for each in candles if gap.range.start_ms <= each.timestamp_ms < gap.range.end_ms]
        impossible = [
            each
            for each in refused
            if each.timestamp_ms is not None and gap.range.start_ms <= each.timestamp_ms < gap.range.end_ms
        ]
        if wanted or impossible:
            await asyncio.to_thread(self.store.land, wanted, impossible, source=Source.REST, requested_at=sent_at)
        return bool(wanted or impossible)

    def _is_the_end(self, gap: Gap) -> bool:
        """Whether no candle can come after the gap: its instrument trades no more."""
        return gap.symbol in self.delisted or self._expires_ms(gap.symbol) == gap.range.end_ms

    def _expires_ms(self, symbol: str) -> int | None:
        life = lives(self.store.connection).get(symbol)
        return life.expires_ms if life is not None else None

    async def _wait(self, gap: Gap, done: Repair) -> None:
        """Ask again later: what came was no evidence, or what is left of the gap was served after all."""
        now_ms = await self.backfill.clock.now_ms()
        verdict = Verdict(gap.range, gap.status, gap.reason, gap.evidence, now_ms + AGAIN_YOUNG_MS)
        concerned = await asyncio.to_thread(self.store.settle_gap, gap, [verdict], now_ms)
        done.waiting += concerned.get(None, 0)

    async def _judge(self, gap: Gap, evidence: Sequence[dict[str, Any]], last: Answer, done: Repair) -> None:
        apart_ms = last.asked_ms - evidence[0]["asked_ms"]
        if len(evidence) < 2 or (not self._is_old(gap, last) and apart_ms < AGAIN_YOUNG_MS):
            verdicts = [Verdict(gap.range, "open", None, evidence, last.asked_ms + AGAIN_YOUNG_MS)]
        else:
            kept = [evidence[0], evidence[-1]]
            verdicts = [
                Verdict(piece, "absent", reason, kept, self._again_ms(reason, kept))
                for reason, piece in await self._reasons(gap, last)
            ]
        concerned = await asyncio.to_thread(self.store.settle_gap, gap, verdicts, last.asked_ms)
        for reason, candles in concerned.items():
            if reason is None:
                done.waiting += candles
            else:
                done.judged[reason] += candles

    def _again_ms(self, reason: Reason, evidence: Sequence[dict[str, Any]]) -> int | None:
        first_ms, last_ms = evidence[0]["asked_ms"], evidence[-1]["asked_ms"]
        return last_ms + AGAIN_ABSENT_MS if reason == "not_served" and last_ms - first_ms < SURE_AFTER_MS else None

    async def _reasons(self, gap: Gap, last: Answer) -> list[tuple[Reason, Range]]:
        """Why the candles of a gap are absent. Below the first candle of a series OKX serves daily candles, or none."""
        if last.older_ms is not None or last.unknown:
            return [("not_served", gap.range)]
        if gap.timeframe.length_ms >= DAY_MS or last.newer_ms is None:
            return [("before_first", gap.range)]
        first_day_ms = await self._first_day_ms(gap.symbol, last.newer_ms)
        if first_day_ms is None or last.newer_ms < first_day_ms + DAY_MS:
            return [("before_first", gap.range)]
        deeper = Range(first_day_ms, last.newer_ms)
        before: list[tuple[Reason, Range]] = [("before_first", each) for each in difference([gap.range], [deeper])]
        return [*before, *(("beyond_depth", each) for each in intersection([gap.range], [deeper]))]

    async def _first_day_ms(self, symbol: str, before_ms: int) -> int | None:
        """Open time of the first daily candle that OKX serves, at or before the day of `before_ms`."""
        cursor_ms = _DAY.close_of(_DAY.open_at(before_ms))
        first_ms, empty = None, 0
        while empty < _EMPTY_ASKS:
            page, _ = await self.backfill.client.candles_page(protocol.HISTORY_CANDLES, symbol, _DAY, cursor_ms)
            self.requests += 1
            empty = empty + 1 if not page.opens else 0
            if page.opens:
                first_ms = cursor_ms = page.opens[-1]
        return first_ms
