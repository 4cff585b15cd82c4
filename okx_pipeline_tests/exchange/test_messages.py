"""OKX's bodies as typed messages: each row judged by itself, nothing unconfirmed let through, nothing lost unsaid."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.messages import (
    Instrument,
    Page,
    ServerTime,
    decode_envelope,
    decode_page,
    encode_failure,
    encode_success,
)
from okx_pipeline.timeframes import TIMEFRAMES, parse_timeframe, utc

MINUTE = parse_timeframe("1m")
ROW = ["1747094040000", "102806.1", "102820.4", "102806.1", "102820.4", "1040.37", "10.4037", "1069603.34883", "1"]


def page_of(*rows: object) -> Page:
    return decode_page(msgspec.Raw(msgspec.json.encode(list(rows))), "BTC-USDT-SWAP", MINUTE)


def changed(field: int, value: object) -> list[object]:
    return [value if index == field else old for index, old in enumerate(ROW)]


def test_recorded_page_becomes_candles_with_every_number_as_it_was_sent(recorded: Callable[[str], bytes]) -> None:
    body = recorded("REST SWAP 1m two rows")
    page = decode_page(decode_envelope(body).data, "BTC-USDT-SWAP", MINUTE)
    assert [list(candle.values) for candle in page.candles] == [
        ["102806.1", "102820.4", "102806.1", "102820.4", "1040.37", "10.4037", "1069603.34883"],
        ["102806", "102820.5", "102783.1", "102806.1", "7164.04", "71.6404", "7364701.57952"],
    ]
    assert page.opens == [1747094040000, 1747093980000]
    assert page.refused == []


def test_recorded_page_gives_the_no_trade_minute_and_not_the_forming_one(recorded: Callable[[str], bytes]) -> None:
    page = decode_page(decode_envelope(recorded("REST SPOT 1m")).data, "BTC-USDT", MINUTE)
    assert [candle.timestamp_ms for candle in page.candles] == [1757076000000, 1757058180000, 1757058120000]
    assert page.candles[-1].values == ("112769.5",) * 4 + ("0",) * 3
    assert page.opens[0] == 1757076060000
    assert page.rows == 4


def test_padded_numbers_of_the_socket_equal_the_plain_ones_of_rest() -> None:
    (candle,) = page_of(changed(7, "1069603.34883000")).candles
    assert candle.volume_quote == "1069603.34883"


def test_recorded_instrument_server_time_and_status_are_read(recorded: Callable[[str], bytes]) -> None:
    instrument = msgspec.json.decode(recorded("instruments record BTC-USDT-SWAP"), type=Instrument)
    assert (instrument.symbol, instrument.contract_value, instrument.tick_size) == ("BTC-USDT-SWAP", "0.01", "0.1")
    assert (instrument.listed, instrument.expires, instrument.state) == ("1573557408000", "", "live")
    envelope = decode_envelope(recorded("server time"))
    assert msgspec.json.decode(envelope.data, type=list[ServerTime]) == [ServerTime("1597026383085")]


@pytest.mark.parametrize(
    ("row", "timestamp_ms", "reason"),
    [
        (ROW[:8], 1747094040000, "8 fields"),
        ([*ROW, "1"], 1747094040000, "10 fields"),
        (changed(8, ""), 1747094040000, "confirm is ''"),
        (changed(8, "2"), 1747094040000, "confirm is '2'"),
        (changed(0, "17470940x"), None, "open time '17470940x'"),
        (changed(0, "1747094040001"), 1747094040001, "not the open time"),
        (changed(0, "9" * 400), None, "unreadable"),
        (changed(1, ""), 1747094040000, "''"),
        (changed(1, "NaN"), 1747094040000, "NaN"),
        (changed(1, "-1"), 1747094040000, "negative"),
        (changed(2, "1"), 1747094040000, "high_price 1 is below"),
        (changed(5, "1" * 10_000), 1747094040000, "not a finite decimal"),
        (changed(1, None), 1747094040000, "not a list of texts"),
        (changed(1, 102806.1), 1747094040000, "not a list of texts"),
        (changed(0, 1747094040000), None, "not a list of texts"),
        ([], None, "unreadable"),
        (None, None, "not a list of texts"),
        ({"ts": "1747094040000"}, None, "not a list of texts"),
    ],
)
def test_row_that_is_no_candle_is_refused_and_costs_no_other_row(
    row: object, timestamp_ms: int | None, reason: str
) -> None:
    page = page_of(["1747094100000", *ROW[1:]], row, ["1747093980000", *ROW[1:]])
    assert [candle.timestamp_ms for candle in page.candles] == [1747094100000, 1747093980000]
    (refused,) = page.refused
    assert refused.timestamp_ms == timestamp_ms
    assert reason in refused.reason
    assert msgspec.json.decode(refused.original) == row
    assert page.opens == [1747094100000, *([timestamp_ms] if timestamp_ms else []), 1747093980000]


@pytest.mark.parametrize("row", [changed(8, "0"), [*changed(8, "0"), "1"], [ROW[0], None, *ROW[2:8], "0"]])
def test_forming_candle_is_neither_a_candle_nor_refused_whatever_its_shape(row: list[object]) -> None:
    page = page_of(row)
    assert (page.candles, page.refused, page.opens) == ([], [], [1747094040000])


def test_row_with_a_broken_character_is_refused_alone() -> None:
    data = msgspec.json.encode([ROW, changed(0, "1747093980000")]).replace(b"102820.4", b"\xff", 1)
    page = decode_page(msgspec.Raw(data), "BTC-USDT-SWAP", MINUTE)
    assert [candle.timestamp_ms for candle in page.candles] == [1747093980000]
    assert [refused.timestamp_ms for refused in page.refused] == [1747094040000]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"code":0}',
        b'{"code":"0","data":[["1","2"',
        b"[]",
        b'{"code":"0","msg":"\xff"}',
        b'{"code":"0","data":' + b"[" * 100_000,
        b"[" * 100_000,
        b'{"code":"0","data":[]}{',
    ],
)
def test_body_that_is_no_envelope_is_a_decode_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_envelope(body)


@pytest.mark.parametrize("data", [b"null", b"{}", b"", b'"rows"', b"[" * 100_000])
def test_data_that_is_no_list_is_a_decode_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_page(msgspec.Raw(data), "BTC-USDT-SWAP", MINUTE)


def test_body_without_data_is_told_apart_from_one_with_none() -> None:
    assert bytes(decode_envelope(b'{"code":"0","msg":""}').data) == b""
    assert bytes(decode_envelope(b'{"code":"0","msg":"","data":[]}').data) == b"[]"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(ROW),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=30,
)


@given(st.lists(json_values | st.lists(st.sampled_from(ROW), min_size=8, max_size=10), max_size=5))
def test_every_row_is_a_candle_or_refused_or_unconfirmed_and_never_an_exception(rows: list[object]) -> None:
    page = page_of(*rows)
    unconfirmed = [row for row in rows if isinstance(row, list) and len(row) >= 9 and row[8] == "0"]
    assert page.rows == len(rows) == len(page.candles) + len(page.refused) + len(unconfirmed)


@given(st.integers(0, 10**16).map(str) | st.sampled_from(["9" * 14, "9" * 15, "253402300800000", "²", "-1"]))
def test_no_open_time_is_beyond_what_calendars_have(text: str) -> None:
    for timeframe in TIMEFRAMES:
        page = decode_page(msgspec.Raw(msgspec.json.encode([[text, *ROW[1:]]])), "BTC-USDT-SWAP", timeframe)
        for candle in page.candles:
            assert utc(timeframe.close_of(candle.timestamp_ms)) > utc(candle.timestamp_ms)


def test_failures_are_encoded_as_recorded(recorded: Callable[[str], bytes]) -> None:
    assert encode_failure(protocol.TOO_MANY_REQUESTS) == recorded("REST rate limit body")
    assert encode_failure(protocol.UNKNOWN_INSTRUMENT) == recorded("REST unknown instrument")
    assert encode_failure(protocol.PARAMETER_ERROR, "instFamily") == recorded("REST parameter error")
    assert encode_success([ServerTime("1597026383085")]) == recorded("server time")
