"""Frames that are passed over unread: only such as could not have brought a candle."""

import json
from contextlib import suppress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline.exchange.frames import Frame, Series, decode_frame, encode_push, known_opening, opening_of
from okx_pipeline.exchange.protocol import CONFIRMED, ROW_FIELDS, UNCONFIRMED
from okx_pipeline.timeframes import parse_timeframe

BITCOIN = Series("BTC-USDT-SWAP", parse_timeframe("1m"))
OPENED = "1787184000000"
FORMING = [OPENED, "60000.1", "60012.4", "59991", "60004.8", "100.31", "0.1031", "183022.718264", UNCONFIRMED]
PUSH = encode_push(BITCOIN, [FORMING]).encode()
OPENING = opening_of(PUSH, decode_frame(PUSH)) or b""

texts = st.sampled_from(["60000.1", "7", CONFIRMED, UNCONFIRMED, "", OPENED, '"', "]", ",", '"0"]]}'])
candle_rows = st.builds(
    lambda values, confirm: [OPENED, *values, confirm],
    st.lists(st.sampled_from(["60000.1", "7"]), min_size=7, max_size=7),
    st.sampled_from([CONFIRMED, UNCONFIRMED]),
)
rows = st.lists(texts, min_size=1, max_size=10) | candle_rows
pushes = st.tuples(candle_rows).map(list) | st.lists(rows, min_size=1, max_size=3)
KEYS = ("arg", "data")


def brings_a_candle(frame: Frame) -> bool:
    return any(len(row) == ROW_FIELDS and row[-1] != UNCONFIRMED for row in frame.data or [])


def test_a_candle_that_is_said_again_to_be_forming_is_known_by_its_opening() -> None:
    again = encode_push(BITCOIN, [[OPENED, "60000.1", "60019", "59991", "60019", "107", "0.107", "7", UNCONFIRMED]])
    assert known_opening(again.encode(), {OPENING: "known"}) == "known"
    closed = encode_push(BITCOIN, [[*FORMING[:-1], CONFIRMED]])
    following = encode_push(BITCOIN, [["1787184060000", *FORMING[1:]]])
    another = encode_push(BITCOIN._replace(symbol="ETH-USDT-SWAP"), [FORMING])
    for text in (closed, following, another, encode_push(BITCOIN, [FORMING, FORMING])):
        assert known_opening(text.encode(), {OPENING: "known"}) is None


@given(pushes, st.booleans(), st.booleans())
def test_no_push_that_is_passed_over_brings_a_candle_or_is_about_another(
    pushed: list[list[str]], begins_so: bool, is_spaced: bool
) -> None:
    if begins_so:
        pushed[0][0] = OPENED
    text = encode_push(BITCOIN, pushed).encode()
    text = json.dumps(json.loads(text)).encode() if is_spaced else text
    if known_opening(text, {OPENING: True}):
        frame = decode_frame(text)
        assert not brings_a_candle(frame)
        assert (frame.arg, frame.data and frame.data[0][0]) == (decode_frame(PUSH).arg, OPENED)


@given(
    st.integers(0, len(PUSH)), st.integers(0, 40), st.binary(max_size=12) | st.sampled_from([b'"1"', b'"],["', b"1"])
)
def test_no_damage_makes_a_push_that_is_passed_over_bring_a_candle(at: int, length: int, instead: bytes) -> None:
    text = PUSH[:at] + instead + PUSH[at + length :]
    if known_opening(text, {OPENING: True}):
        with suppress(msgspec.DecodeError):
            assert not brings_a_candle(decode_frame(text))


@given(st.permutations(KEYS), pushes, st.sampled_from([(",", ":"), (", ", ":"), None]))
def test_an_opening_tells_what_all_that_begins_so_is_about(
    keys: list[str], pushed: list[list[str]], separators: tuple[str, str] | None
) -> None:
    whole = {"arg": {"channel": "candle1m", "instId": BITCOIN.symbol}, "data": pushed}
    text = json.dumps({key: whole[key] for key in keys}, separators=separators).encode()
    opening = opening_of(text, decode_frame(text))
    if opening is not None:
        again = decode_frame(opening + b"," + json.dumps(FORMING[1:])[1:].encode() + b"]}")
        assert (again.arg, again.data) == (decode_frame(PUSH).arg, [[pushed[0][0], *FORMING[1:]]])


def test_an_opening_is_learned_of_a_push_as_okx_spells_it_and_of_no_other() -> None:
    for rows_of_one, is_learned in (([FORMING], True), ([FORMING[:-1]], False), ([FORMING, FORMING], False)):
        text = encode_push(BITCOIN, rows_of_one).encode()
        assert (opening_of(text, decode_frame(text)) is not None) is is_learned
    swapped = json.dumps({"data": [FORMING], "arg": {"channel": "candle1m", "instId": "X"}}, separators=(",", ":"))
    assert opening_of(swapped.encode(), decode_frame(swapped)) is None
