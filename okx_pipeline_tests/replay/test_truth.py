"""What a perfect client would hold, and corrections of it that nobody announces."""

from decimal import Decimal

import pytest

from okx_pipeline.candles import VALUE_COLUMNS, canonical
from okx_pipeline.replay.bars import BARS
from okx_pipeline.replay.recordings import Recordings
from okx_pipeline.replay.synthetic import SyntheticMarket
from okx_pipeline.timeframes import DAY_MS, HOUR_MS
from okx_pipeline_tests.replay.stand import BTC, ETH, NOW_MS, Stand, confirmed, standing

NAMES = [column.name for column in VALUE_COLUMNS]
HOUR = NOW_MS // HOUR_MS * HOUR_MS - HOUR_MS
"""The last hour that has closed."""


def as_truth(rows: list[list[str]]) -> list[list[object]]:
    return [[int(row[0]), *row[1:8]] for row in confirmed(rows)]


def test_the_truth_is_every_confirmed_candle_of_the_range_oldest_first(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        for timeframe, bar in (("1m", "1m"), ("1h", "1H"), ("1d", "1Dutc"), ("1mo", "1Mutc")):
            served = as_truth(stand.rest(bar=bar, limit=40))
            first = int(str(served[0][0]))
            assert stand.truth(first, NOW_MS + DAY_MS, timeframe=timeframe) == served
            assert stand.truth(first, int(str(served[-1][0])), timeframe=timeframe) == served[:-1]
            assert stand.truth(first + 1, NOW_MS, timeframe=timeframe) == served[1:]
        assert len(stand.truth(HOUR - 10 * DAY_MS, HOUR)) == 10 * 1440
        assert stand.truth(-DAY_MS, 5) == []


def test_the_truth_waits_for_confirmation_as_rest_does(synthetic: SyntheticMarket):
    with standing(synthetic, confirm_delay_ms=90_000) as stand:
        served = as_truth(stand.rest(limit=6))
        assert len(served) == 3
        assert stand.truth(HOUR, NOW_MS)[-3:] == served


def test_of_a_recording_the_truth_is_what_was_recorded(recorded: Recordings):
    now_ms = recorded.start_ms(NOW_MS)
    with standing(recorded, now_ms=now_ms) as stand:
        assert [row[0] for row in stand.truth(0, now_ms)] == recorded.series(BTC, BARS["1m"]).opens.tolist()


@pytest.mark.parametrize(
    "query",
    [
        {"timeframe": "1m", "start_ms": 0, "end_ms": 1},
        {"symbol": "NOPE", "timeframe": "1m", "start_ms": 0, "end_ms": 1},
        {"symbol": BTC, "timeframe": "1D", "start_ms": 0, "end_ms": 1},
        {"symbol": BTC, "timeframe": "1m", "start_ms": "yesterday", "end_ms": 1},
        {"symbol": BTC, "timeframe": "1m", "start_ms": 0, "end_ms": 1, "limit": 5},
    ],
)
def test_a_truth_that_cannot_be_told_is_refused_with_a_reason(synthetic: SyntheticMarket, query: dict[str, object]):
    with standing(synthetic) as stand:
        answer = stand.http.get("/replay/truth", params=query)
        assert (answer.status_code, bool(answer.json()["error"])) == (400, True)


def correct(stand: Stand, **fields: object) -> int:
    return stand.http.post("/replay/corrections", json={"symbol": BTC, "timeframe": "1h"} | fields).status_code


def test_a_correction_changes_what_rest_serves_and_nothing_around_it(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client = stand.subscribed(("candle1H", BTC), ("candle1m", BTC))
        before = stand.rest(bar="1H")
        others = [stand.rest(bar="1m"), stand.rest(ETH, "1H"), stand.rest(bar="2H")]
        volume = canonical(f"{Decimal(before[-2][5]) - Decimal('5.78'):f}")
        assert correct(stand, timestamp_ms=HOUR, volume=volume) == 200
        after = stand.rest(bar="1H")
        assert after[-2] == [*before[-2][:5], volume, *before[-2][6:]]
        assert after[:-2] + after[-1:] == before[:-2] + before[-1:]
        assert [stand.rest(bar="1m"), stand.rest(ETH, "1H"), stand.rest(bar="2H")] == others
        assert stand.truth(HOUR, HOUR + 1, timeframe="1h") == as_truth(after[-2:-1])
        history = stand.http.get("/api/v5/market/history-candles", params={"instId": BTC, "bar": "1H", "limit": 1})
        assert history.json()["data"] == after[-2:-1]
        stand.step()
        assert client.frames() == []


def test_a_correction_can_be_pushed_to_whoever_has_subscribed(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        client, other = stand.subscribed(("candle1H", BTC)), stand.subscribed(("candle1m", BTC))
        assert correct(stand, timestamp_ms=HOUR, volume="5", pushed=True) == 200
        (frame,) = client.frames()
        assert frame["data"] == stand.rest(bar="1H")[-2:-1]
        assert frame["data"][0][5] == "5"
        assert other.frames() == []
        assert correct(stand, symbol=ETH, timestamp_ms=HOUR, volume="5", pushed=True) == 200


def test_every_value_can_be_corrected_and_the_last_correction_counts(synthetic: SyntheticMarket):
    with standing(synthetic) as stand:
        values = [f"{number}.5" for number in range(7)]
        assert correct(stand, timestamp_ms=HOUR, timeframe="1H", **dict(zip(NAMES, values, strict=True))) == 200
        assert stand.truth(HOUR, HOUR + 1, timeframe="1h") == [[HOUR, *values]]
        assert correct(stand, timestamp_ms=HOUR, close_price="9.90") == 200
        assert stand.truth(HOUR, HOUR + 1, timeframe="1h") == [[HOUR, *values[:3], "9.9", *values[4:]]]


@pytest.mark.parametrize(
    "fields",
    [
        {"timestamp_ms": HOUR + HOUR_MS, "volume": "1"},
        {"timestamp_ms": HOUR + 1, "volume": "1"},
        {"timestamp_ms": HOUR, "volume": "much"},
        {"timestamp_ms": HOUR, "volume": "-1"},
        {"timestamp_ms": HOUR, "volume": 1},
        {"timestamp_ms": HOUR, "volumes": "1"},
        {"timestamp_ms": HOUR, "symbol": "NOPE-USDT"},
        {"timestamp_ms": HOUR, "timeframe": "1D"},
        {"volume": "1"},
    ],
)
def test_a_correction_of_what_is_not_confirmed_or_no_number_is_refused(
    synthetic: SyntheticMarket, fields: dict[str, object]
):
    with standing(synthetic) as stand:
        before = stand.rest(bar="1H")
        assert correct(stand, **fields) == 400
        assert stand.rest(bar="1H") == before
