"""The edge of a minute: 1,000 series close at once, until all of them are durable.

Ours lands them as the sidecar does, in one transaction. The peer commits row by row, each an upsert of its own. The
limit is one durable COPY into the same partitioned table. Each round is another minute.
"""

import tempfile
from collections.abc import Iterator
from datetime import date
from itertools import count
from pathlib import Path

from benchmarks.contest import Contest, elapsed
from benchmarks.figures import Figure
from okx_pipeline.candles import VALUE_COLUMNS, Candle, Source
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.landing import ensure_months, land
from okx_pipeline.storage.opening import opened_database
from okx_pipeline.timeframes import MINUTE_MS, day_ms

SYMBOLS = [f"SYN{number:04d}-USDT-SWAP" for number in range(1_000)]
MONTH = date(2026, 8, 1)
ROUNDS = 9

_COLUMNS = f"symbol, timeframe, timestamp_ms, {', '.join(column.name for column in VALUE_COLUMNS)}, source"
_COPY = f"COPY trading.candlesticks ({_COLUMNS}) FROM STDIN"
_UPSERT = (
    f"INSERT INTO trading.candlesticks ({_COLUMNS}) VALUES ({', '.join(['%s'] * 11)}) "
    "ON CONFLICT (symbol, timeframe, timestamp_ms) DO NOTHING"
)


def run() -> list[Figure]:
    """The time of ours as a share of the peer's and as a multiple of the limit's."""
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(home=Path(home))
        with opened_database(settings) as database, database.connect() as connection:
            ensure_months(connection, [MONTH])
            minutes = _minutes()

            def ours() -> float:
                rows = next(minutes)
                return elapsed(lambda: land(connection, rows, source=Source.WEBSOCKET))

            def one_by_one() -> float:
                rows = next(minutes)
                return elapsed(lambda: [connection.execute(_UPSERT, (*row, "websocket")) for row in rows])

            def copied() -> float:
                text = "".join("\t".join(map(str, row)) + "\twebsocket\n" for row in next(minutes))

                def write() -> None:
                    with connection.transaction(), connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                        copy.write(text)

                return elapsed(write)

            contest = Contest({"ours": ours, "a commit for each row": one_by_one, "one COPY": copied}, ROUNDS)
    return [
        *contest.times(),
        contest.cost("ours", "a commit for each row", at_most=1 / 25),
        contest.cost("ours", "one COPY", at_most=2.0),
    ]


def _minutes() -> Iterator[list[Candle]]:
    values = ("45890.8", "46030.7", "45771.9", "45802.9", "55031.6", "550.316", "25270722.67163")
    for number in count():
        yield [Candle(symbol, "1m", day_ms(MONTH) + number * MINUTE_MS, *values) for symbol in SYMBOLS]
