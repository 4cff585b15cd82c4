"""A store in which nothing is wrong: two days of candles in PostgreSQL and Parquet, counted, instruments listed."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal

from okx_pipeline.candles import Candle, Source, canonical
from okx_pipeline.replay.market import SPOT, instrument, kind_of
from okx_pipeline.storage.coverage import recount
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.instruments import record_listing
from okx_pipeline.storage.landing import SeriesDay, land
from okx_pipeline.storage.parquet import ParquetStore
from okx_pipeline.storage.projection import pending_months, project
from okx_pipeline.storage.quality_rows import SeriesKey
from okx_pipeline.timeframes import DAY_MS, day_ms, parse_timeframe

DAY = date(2026, 8, 2)
EVE = date(2026, 8, 1)
NOW_MS = day_ms(DAY) + 2 * DAY_MS
LISTED = datetime(2020, 1, 1, tzinfo=UTC)
CONTRACT_VALUE = Decimal("0.01")


def candles(symbol: str, timeframe: str, day: date) -> list[Candle]:
    """A day of a market that never stands still: prices on a tick of 0.1, volumes as the kind of symbol has them."""
    made = []
    length = parse_timeframe(timeframe)
    for number, open_ms in enumerate(length.opens(day_ms(day), day_ms(day) + DAY_MS)):
        base = Decimal(63_000) + number % 7
        high, low, close = base + Decimal("40.3") + number % 5, base - Decimal("30.1"), base + Decimal("7.7")
        volume = Decimal(1_000 + number % 13) / 4
        spot = kind_of(symbol) == SPOT
        in_base = volume if spot else volume * CONTRACT_VALUE
        quote = in_base * close
        numbers = (base, high, low, close, volume, quote if spot else in_base, quote)
        made.append(Candle(symbol, timeframe, open_ms, *(canonical(f"{each:f}") for each in numbers)))
    return made


def fill(
    connection: Connection, files: ParquetStore, series: Sequence[SeriesKey], *, listed: datetime = LISTED
) -> None:
    """Land both days of `series`, project and count them; their instruments known since `listed`."""
    landed = [candle for key in series for day in (EVE, DAY) for candle in candles(*key, day)]
    land(connection, landed, source=Source.REST)
    list_instruments(connection, sorted({symbol for symbol, _ in series}), listed)
    project(connection, files, pending_months(connection))
    recount(connection, files, NOW_MS, [SeriesDay(*key, day) for key in series for day in (EVE, DAY)])


def list_instruments(connection: Connection, symbols: Sequence[str], listed: datetime) -> None:
    """Write down the rules of `symbols` as known since `listed`, tick 0.1 and contract value 0.01."""
    listing = [
        instrument(symbol, tick="0.1", lot="0.01", contract_value=f"{CONTRACT_VALUE}", listed_ms=0)
        for symbol in symbols
    ]
    record_listing(connection, listing)
    connection.execute("UPDATE trading.instruments SET valid_from = %s WHERE symbol = ANY(%s)", (listed, symbols))
