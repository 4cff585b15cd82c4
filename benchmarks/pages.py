"""A page of 300 candles, from the body of an answer to rows.

Ours makes validated candles, each row judged by itself; the peer, ccxt, makes lists of floats of the same body and
judges nothing. The limit decodes the body into lists of text, and nothing else.
"""

import json
from datetime import date

import ccxt
import msgspec

from benchmarks.contest import Contest, computed
from benchmarks.figures import Figure
from benchmarks.market import MINUTE, SYMBOL, rows
from okx_pipeline.exchange.messages import decode_envelope, decode_page, encode_success
from okx_pipeline.timeframes import day_ms

PAGE = 300
PAGES = 40
ROUNDS = 7


def run() -> list[Figure]:
    """How many times as fast as the peer and the limit."""
    newest_first = rows(day_ms(date(2026, 8, 1)), PAGE * PAGES)
    bodies = [encode_success(newest_first[start : start + PAGE]) for start in range(0, PAGE * PAGES, PAGE)]
    okx = ccxt.okx()
    contest = Contest(
        {
            "ours": lambda: computed(lambda: _ours(bodies)),
            "ccxt": lambda: computed(lambda: _peer(okx, bodies)),
            "a bare decode": lambda: computed(lambda: _decode(bodies)),
        },
        ROUNDS,
    )
    return [
        *contest.times(),
        contest.speed("ours", "ccxt", at_least=8.0),
        contest.speed("ours", "a bare decode", at_least=0.5),
    ]


def _ours(bodies: list[bytes]) -> None:
    for body in bodies:
        page = decode_page(decode_envelope(body).data, SYMBOL, MINUTE)
        if len(page.candles) != PAGE:
            raise AssertionError(f"{len(page.candles)} candles came out of a page of {PAGE}")


def _peer(okx: ccxt.okx, bodies: list[bytes]) -> None:
    for body in bodies:
        okx.parse_ohlcvs(json.loads(body)["data"])


class _Answer(msgspec.Struct):
    code: str
    data: list[list[str]]


def _decode(bodies: list[bytes]) -> None:
    decode = msgspec.json.Decoder(_Answer).decode
    for body in bodies:
        decode(body)
