"""The daily report as people read it: never better than the day was, in words, on its page and in its Markdown."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html import unescape

from okx_pipeline.quality.calendar import calendar_svg, strips
from okx_pipeline.quality.suites import Check
from okx_pipeline.reports.daily import CALENDAR_DAYS, DailyReport, line_svg, markdown_of, page_of
from okx_pipeline.storage.coverage import DayCoverage
from okx_pipeline.storage.daily_figures import Arrival, Market
from okx_pipeline.storage.quality_results import Severity, Store, Verdict
from okx_pipeline.storage.stream_status import SidecarStatus
from okx_pipeline.timeframes import HOUR_MS, day_ms

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
DAY = date(2026, 8, 20)
READ_AT = datetime(2026, 8, 21, 1, tzinfo=UTC)
CANDLES = {"5m": 288, "1h": 24, "1d": 1}


def coverage(symbol: str, timeframe: str, day: date) -> DayCoverage:
    count = CANDLES[timeframe]
    return DayCoverage(symbol, timeframe, day, count, count, 0, 0, 0, 0, READ_AT, READ_AT, "hash")


def market(symbol: str, opened: str, closed: str) -> Market:
    closes = [float(opened), float(closed)]
    prices = (Decimal(opened), Decimal(opened), Decimal(closed), Decimal(closed))
    return Market(symbol, "5m", 288, *prices, Decimal("12345.6"), Decimal(774_512_345), closes)


def verdicts(symbols: tuple[str, ...] = (BTC, ETH)) -> list[Verdict]:
    """All pass, on all series of `symbols`."""
    return [
        Verdict(symbol, timeframe, DAY, check, store, None, (), {}, 1, READ_AT)
        for symbol in symbols
        for timeframe in CANDLES
        for check in Check
        for store in Store
    ]


def report(hours: float = 25, judged: tuple[str, ...] = (BTC, ETH)) -> DailyReport:
    """A whole day of two symbols, told `hours` after it began; `judged` were."""
    days = [DAY - timedelta(days=before) for before in range(CALENDAR_DAYS)]
    rows = [coverage(symbol, name, day) for symbol in (BTC, ETH) for name in CANDLES for day in days]
    now_ms = day_ms(DAY) + int(hours * HOUR_MS)
    counters = {"frames": 123_456, "inserted": 3_100, "landing took ms": 143, "connection lost": 2}
    return DailyReport(
        day=DAY,
        coverage=[row for row in rows if row.day == DAY],
        calendar=rows,
        verdicts=verdicts(judged),
        judged={(symbol, timeframe): True for symbol in judged for timeframe in CANDLES},
        corrections=[],
        arrivals=[Arrival(BTC, 300, 13)],
        markets=[market(BTC, "63000", "58338"), market(ETH, "2500", "2552.5")],
        sidecar=SidecarStatus("host:1", "streaming", READ_AT, READ_AT, 1.0, now_ms, counters, {}, []),
        made_at=READ_AT,
        now_ms=now_ms,
    )


def under_way() -> DailyReport:
    """At a quarter past two."""
    so_far = [
        replace(each, expected=held, present=held, content_hash=None, read_at=None, verified_at=None)
        for each in report().coverage
        for held in [CANDLES[each.timeframe] * 27 // 288]
    ]
    return replace(report(hours=2.25, judged=()), coverage=so_far)


def text_of(page: str) -> str:
    """What a person reads of a page."""
    shown = re.sub(r"<(style|title)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub("</?b[^>]*>", "", shown))).split())


def both(told: DailyReport) -> list[str]:
    return [text_of(page_of(told)), " ".join(markdown_of(told).split())]


# What was not judged has not passed


def test_a_day_that_nothing_judged_is_not_judged_wherever_it_is_told() -> None:
    for text in both(report(judged=())):
        assert "none missing; not judged; 0 corrections" in text
        assert f"Not judged: {BTC} 5m, {BTC} 1h, {BTC} 1d, {ETH} 5m, {ETH} 1h, {ETH} 1d." in text
        assert not re.search("pass|no check|verdict|0 errors|fail", text)


def test_series_that_were_not_judged_are_told_beside_those_that_passed() -> None:
    page = page_of(report(judged=(BTC,)))
    assert '<b class="good">none missing</b>' in page
    # Not in green: it is not all.
    assert "; 42 verdicts, all passed;" in page
    for text in both(report(judged=(BTC,))):
        assert "3 of 6 series not judged" in text
        assert f"Not judged: {ETH} 5m, {ETH} 1h, {ETH} 1d." in text
    assert '<b class="good">84 verdicts, all passed</b>' in page_of(report())


def test_a_day_that_changed_since_it_was_judged_is_told() -> None:
    told = replace(report(), judged={**report().judged, (BTC, "1h"): False})
    for text in both(told):
        assert "1 series not judged since they changed" in text
        assert f"Changed since they were judged, and not judged again yet: {BTC} 1h." in text
    assert 'class="good">84 verdicts' not in page_of(told)


def test_checks_that_had_nothing_to_look_at_are_counted() -> None:
    some = [each for each in verdicts() if (each.timeframe, each.check) != ("1d", Check.MARKET_MOVES)]
    for text in both(replace(report(), verdicts=some)):
        assert "80 verdicts: 80 passed." in text
        assert "4 checks not judged: they had nothing to look at." in text


def test_warnings_and_errors_are_both_in_the_headline() -> None:
    first, second, *others = verdicts()
    told = [
        replace(first, severity=Severity.CRITICAL, failed=("file_can_be_read",)),
        replace(second, severity=Severity.WARNING, failed=("no_outage",)),
        *others,
    ]
    for text in both(replace(report(), verdicts=told)):
        assert "1 error; 1 warning;" in text
        assert "84 verdicts: 82 passed, 1 error, 1 warning." in text
        assert "critical" not in text
    for text in both(replace(report(), verdicts=told[1:])):
        assert "1 warning;" in text
        assert "error" not in text


# What there is of the day


def test_a_day_under_way_is_told_to_be_so_with_how_much_of_it_is_there() -> None:
    for text in both(under_way()):
        assert (
            "This day was still under way when the report was made: 2 h 15 min of it had passed (9%, "
            "2026-08-20 02:15 UTC by OKX's clock), and 58 of the 626 candles of a whole day are here."
        ) in text
        assert "58 of 58 candles held of those due so far; none missing so far; not judged" in text
        assert "a day is judged once it is over" in text
    assert 'class="good"' not in page_of(under_way())
    assert all("under way when" not in text for text in both(report()))


def test_a_day_that_has_not_begun_is_told_to_be_so_and_has_nothing_that_is_good() -> None:
    ahead = replace(report(hours=-1, judged=()), coverage=[], calendar=[], markets=[])
    for text in both(ahead):
        assert "This day had not begun when the report was made (2026-08-19 23:00 UTC by OKX's clock)." in text
        assert "no candle of this day is due; not judged" in text
        assert "none missing" not in text
    assert 'class="good"' not in page_of(ahead)


def test_a_series_whose_last_candle_is_not_counted_is_named_when_the_day_is_over() -> None:
    rows = [replace(each, content_hash=None) if each.timeframe == "1d" else each for each in report().coverage]
    for text in both(replace(report(), coverage=rows)):
        assert f"Not complete yet, as their last candle is not due or not counted: {BTC} 1d, {ETH} 1d." in text


def test_what_is_still_to_be_fetched_is_told_apart_from_what_is_missing() -> None:
    first, second, *others = report().coverage
    lacking = [replace(first, present=280, missing=8), replace(second, present=20, missing=4, read_at=None), *others]
    page = page_of(replace(report(), coverage=lacking))
    assert '<b class="bad">8 missing</b>; <b class="warn">4 still to be fetched</b>' in page
    assert "none missing" not in page


# How it is drawn and worded


def test_a_falling_day_is_drawn_as_falling_and_a_rising_one_as_rising() -> None:
    page = page_of(report())
    for symbol, direction, move in ((BTC, "falling", "-7.40 %"), (ETH, "rising", "+2.10 %")):
        row = next(row for row in re.findall("<tr>.*?</tr>", page, re.DOTALL) if symbol in row)
        assert f'class="line {direction}"' in row
        assert f'class="n {direction}" data-name="Move">{move}' in row
    assert 'class="line flat"' in line_svg(market(BTC, "63000", "63000"))
    assert re.search(r"\.bad, \.falling \{ color: var\(--bad\)", page)


def test_counters_have_words_and_units_and_what_went_wrong_is_set_apart() -> None:
    page = page_of(report())
    text = text_of(page)
    assert "Since its start at 2026-08-21 01:00 UTC, whatever the day, it counted:" in text
    assert "123,456 frames received over WebSocket 3,100 candles landed 143 ms from a frame to its commit" in text
    assert '<li class="warn">2 times: connection lost</li>' in page
    assert "landing took ms" not in page


def test_volumes_have_their_coin() -> None:
    assert "12,345.60 BTC" in page_of(report())
    spot = replace(report(), markets=[market("DOGE-USDT", "0.25", "0.26")])
    assert "12,345.60 USDT" in page_of(spot)


def test_a_calendar_draws_days_in_a_row_as_one_and_each_gap_by_itself() -> None:
    first = DAY - timedelta(days=9)
    days = [coverage(BTC, "5m", first + timedelta(days=number)) for number in range(10) if number != 4]
    days[1] = replace(days[1], present=280, missing=8)
    days[2] = replace(days[2], present=280, missing=8)
    days[-1] = replace(days[-1], content_hash=None)
    [strip] = strips(days, first, DAY)
    runs = [(run.offset, run.days, run.state) for run in strip.runs]
    assert runs == [(0, 1, "complete"), (1, 1, "missing"), (2, 1, "missing"), (3, 1, "complete"), (5, 4, "complete"),
                    (9, 1, "open")]  # fmt: skip
    assert strip.summary == "6 complete, 2 with gaps, 1 unfinished"
    assert strip.runs[1].title == "2026-08-12: 280 of 288 candles, something is missing"


def test_the_legend_of_a_calendar_stays_within_its_picture() -> None:
    for days in (14, CALENDAR_DAYS, 90):
        picture = calendar_svg(report().calendar, DAY - timedelta(days=days - 1), DAY)
        width, height = (int(re.findall(f'{name}="([0-9]+)"', picture)[0]) for name in ("width", "height"))
        legend = [
            (int(x), int(y), text) for x, y, text in re.findall(r'<text x="(\d+)" y="(\d+)">([a-z][^<]+)', picture)
        ]
        assert len(legend) == 5
        for left, bottom, text in legend:
            assert bottom < height
            # Five to six wide at 9 px; what is longer than a narrow picture has a line of its own.
            assert left + 5.6 * len(text) <= width or days == 14


def test_every_day_of_a_long_calendar_is_within_the_width_that_dagster_shows() -> None:
    assert int(re.findall('width="([0-9]+)"', calendar_svg([], DAY - timedelta(days=89), DAY))[0]) <= 984
