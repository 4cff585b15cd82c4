"""A market of recorded candles: a folder of Parquet files named `{SYMBOL}_{BAR}_{anything}.parquet`.

Columns: ts (open time, ms), open, high, low, close, vol, vol_ccy as decimal text, and confirm; only confirmed rows
count. Several files of one symbol and bar are one series; of two rows for one candle the last file's by name counts.

Two things nobody recorded are made here, exactly. The volume in quote coin is vol_ccy x close (for spot, whose vol_ccy
is in quote coin already, vol_ccy itself). A file without vol_ccy gets it as vol x the contract value that the symbol's
other files show. Bars that nobody recorded are put together from the coarsest recorded one of which a candle has every
part, column by column; a recorded row always wins over a derived one, as OKX's own bars do not always add up.

Where the recorder was down there is nothing, unless the holes are to be filled (see `filling`): then a made-up candle
stands wherever there is neither a recorded one nor one of parts that were all recorded, made of the finest bar filled.
"""

import re
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange.messages import Instrument
from okx_pipeline.exchange.protocol import CONFIRMED
from okx_pipeline.replay.bars import BARS, Bar, Times
from okx_pipeline.replay.draws import key_of
from okx_pipeline.replay.filling import fill
from okx_pipeline.replay.market import (
    COLUMN_COUNT,
    SPOT,
    Columns,
    Row,
    Scales,
    Series,
    aggregate,
    instrument,
    kind_of,
    partial,
    unit_text,
)
from okx_pipeline.timeframes import utc

_PRICES: Final = ("open", "high", "low", "close")
_NEEDED: Final = {"ts", *_PRICES, "vol", "confirm"}
_SYMBOL: Final = re.compile(r"[A-Z0-9]+(?:[-_][A-Z0-9]+)+")
_SUM_LIMIT: Final = 2**62


class RecordedSymbol:
    """All recordings of one symbol, as integers; what was not recorded is derived when first asked for.

    Parameters
    ----------
    symbol
        The symbol.
    tables
        Confirmed rows by bar, one a candle, oldest first; at least one bar, and no bar without rows.
    fill_seed
        Seed of the candles that fill the holes; None leaves them open.
    """

    def __init__(self, symbol: str, tables: dict[Bar, pa.Table], fill_seed: int | None = None) -> None:
        spot = kind_of(symbol) == SPOT
        contract_value = None if spot else _contract_value(tables)
        tables = {bar: _with_currency(symbol, table, contract_value) for bar, table in sorted(tables.items())}
        price = max(_places(table[name]) for table in tables.values() for name in _PRICES)
        volume = max(_places(table["vol"]) for table in tables.values())
        currency = max(_places(table["vol_ccy"]) for table in tables.values())
        self.scales = Scales(price, volume, currency, currency if spot else currency + price)
        self.recorded = {bar: _as_integers(table, bar, self.scales, spot) for bar, table in tables.items()}
        self.filled: dict[Bar, Series] = {}
        if fill_seed is not None:
            self.filled = {
                bar: fill(series, bar, key=key_of(fill_seed, f"{symbol} {bar}"), spot=spot)
                for bar, series in self.recorded.items()
            }
        self.first_ms = min(int(series.opens[0]) for series in self.recorded.values())
        finest = min(self.recorded)
        self.end_ms = finest.close_of(int(self.recorded[finest].opens[-1]))
        self.rules = instrument(
            symbol,
            tick=unit_text(price),
            lot=unit_text(volume),
            contract_value="" if contract_value is None else f"{contract_value:f}",
            listed_ms=self.first_ms,
        )
        self.series = lru_cache(maxsize=None)(self._series)

    def _parts_of(self, bar: Bar) -> list[Bar]:
        """The recorded bars of which a candle of `bar` can be made, coarsest first; itself too, if recorded."""
        return [part for part in sorted(self.recorded, reverse=True) if part == bar or part.divides(bar)]

    def _series(self, bar: Bar) -> Series:
        opens: Times = np.empty(0, dtype=np.int64)
        columns: Columns = np.empty((COLUMN_COUNT, 0), dtype=np.int64)
        parts = self._parts_of(bar)
        sources = [(part, self.recorded[part]) for part in parts]
        # The finest first, or bars would be made up that their own made-up parts contradict.
        sources += [(part, self.filled[part]) for part in reversed(parts) if self.filled]
        for part, series in sources:
            found = _derived(series, part, bar)
            new = ~np.isin(found.opens, opens)
            opens = np.concatenate([opens, found.opens[new]])
            columns = np.concatenate([columns, found.columns[:, new]], axis=1)
        order = np.argsort(opens)
        return Series(opens[order], columns[:, order])

    def forming(self, bar: Bar, open_ms: int, now_ms: int) -> Columns | None:
        """The candle so far: whole ones of its parts from its open on, coarse before fine, and some of that under way.

        Minutes that the recorder missed are missed here too, unless they are filled.
        """
        parts = self._parts_of(bar)
        until_ms = min(now_ms, bar.close_of(open_ms))
        pieces = []
        position = open_ms
        while (found := self._next_whole(parts, position, until_ms)) is not None:
            part, index = found
            series = self.series(part)
            pieces.append(series.columns[:, index : index + 1])
            position = part.close_of(int(series.opens[index]))
        if position < until_ms and (under_way := self._under_way(parts, position, until_ms)) is not None:
            pieces.append(under_way)
        return aggregate(np.concatenate(pieces, axis=1), np.zeros(1, dtype=np.int64)) if pieces else None

    def _next_whole(self, parts: list[Bar], from_ms: int, until_ms: int) -> tuple[Bar, int] | None:
        """The first candle that opens from `from_ms` on and closes by `until_ms`; the coarsest of those."""
        best: tuple[Bar, int] | None = None
        best_ms = until_ms
        for part in parts:
            opens = self.series(part).opens
            index = int(np.searchsorted(opens, from_ms))
            if index < len(opens) and opens[index] < best_ms and part.close_of(int(opens[index])) <= until_ms:
                best, best_ms = (part, index), int(opens[index])
        return best

    def _under_way(self, parts: list[Bar], from_ms: int, now_ms: int) -> Columns | None:
        """The finest candle in which `now_ms` lies, as it looked then, if it opens at or after `from_ms`."""
        for part in reversed(parts):
            series = self.series(part)
            index = int(np.searchsorted(series.opens, now_ms, side="right")) - 1
            if index < 0 or series.opens[index] < from_ms:
                continue
            open_ms = int(series.opens[index])
            close_ms = part.close_of(open_ms)
            if now_ms < close_ms:
                return partial(series.columns[:, index : index + 1], now_ms - open_ms, close_ms - open_ms)
        return None


class Recordings:
    """The market in a folder of recordings.

    Parameters
    ----------
    folder
        Where they are.
    fill_seed
        Seed of the candles that are made up where the recorder was down; None leaves holes.

    Raises
    ------
    UsageError
        If there is no such folder, no recording in it, or one that cannot be read.
    """

    def __init__(self, folder: Path, *, fill_seed: int | None = None) -> None:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}; a source is a folder of recordings or the word 'synthetic'")
        self._folder = folder
        self._fill_seed = fill_seed
        self._symbols = {
            symbol: RecordedSymbol(symbol, tables, fill_seed) for symbol, tables in _tables(folder).items()
        }
        if not self._symbols:
            raise UsageError(f"{folder} has no recordings; they are named SYMBOL_BAR_anything.parquet")

    @property
    def description(self) -> str:
        """Where the recordings are, of what, and whether their holes are filled."""
        spans = []
        for symbol, recorded in self._symbols.items():
            bars = ", ".join(str(bar) for bar in recorded.recorded)
            spans.append(f"{symbol} {utc(recorded.first_ms):%Y-%m-%d} to {utc(recorded.end_ms):%Y-%m-%d} ({bars})")
        filled = "" if self._fill_seed is None else f"; holes filled with made-up candles, seed {self._fill_seed}"
        return f"recordings in {self._folder}: {'; '.join(spans)}{filled}"

    def start_ms(self, wall_ms: int) -> int:
        """The close of the last recorded candle of the finest bar."""
        return min(wall_ms, max(recorded.end_ms for recorded in self._symbols.values()))

    def instruments(self, now_ms: int) -> list[Instrument]:
        """Every recorded symbol of which there is a candle by `now_ms`; rules as its rows show them."""
        return [recorded.rules for symbol, recorded in self._symbols.items() if self.knows(symbol, now_ms)]

    def knows(self, symbol: str, now_ms: int) -> bool:
        """Whether there are candles of `symbol` by `now_ms`."""
        return symbol in self._symbols and self._symbols[symbol].first_ms <= now_ms

    def series(self, symbol: str, bar: Bar) -> Series:
        """All candles of one symbol and bar: recorded, derived or made up."""
        return self._symbols[symbol].series(bar)

    def closed(self, symbol: str, bar: Bar, *, after_ms: int, before_ms: int, limit: int) -> list[Row]:
        """The newest `limit` whole candles that open in (before_ms, after_ms), newest first."""
        series = self.series(symbol, bar)
        end = int(np.searchsorted(series.opens, after_ms))
        start = max(int(np.searchsorted(series.opens, before_ms, side="right")), end - limit)
        page = slice(start, max(start, end))
        return self._symbols[symbol].scales.rows(series.opens[page], series.columns[:, page])

    def oldest_of_newest(self, symbol: str, bar: Bar, *, end_ms: int, count: int) -> int:
        """Open time of the oldest among the newest `count` candles that open before `end_ms`; holes do not count."""
        opens = self.series(symbol, bar).opens
        end = int(np.searchsorted(opens, end_ms))
        return int(opens[max(0, end - count)]) if end and count else end_ms

    def forming(self, symbol: str, bar: Bar, open_ms: int, now_ms: int) -> Row | None:
        """The candle that opens at `open_ms` as it looks at `now_ms`; None where nothing was recorded of it."""
        recorded = self._symbols[symbol]
        columns = recorded.forming(bar, open_ms, now_ms)
        if columns is None:
            return None
        return recorded.scales.rows(np.array([open_ms], dtype=np.int64), columns)[0]


def _tables(folder: Path) -> dict[str, dict[Bar, pa.Table]]:
    """The confirmed rows of every symbol and bar that has some."""
    files: dict[str, dict[Bar, list[Path]]] = {}
    for file in sorted(folder.glob("*.parquet")):
        parts = file.stem.split("_")
        position = next((index for index, part in enumerate(parts) if index and part in BARS), None)
        symbol = "_".join(parts[:position])
        if position is not None and _SYMBOL.fullmatch(symbol):
            files.setdefault(symbol, {}).setdefault(BARS[parts[position]], []).append(file)
    read = {symbol: {bar: _read(parts, bar) for bar, parts in bars.items()} for symbol, bars in files.items()}
    kept = {symbol: {bar: table for bar, table in bars.items() if table.num_rows} for symbol, bars in read.items()}
    return {symbol: bars for symbol, bars in kept.items() if bars}


def _read(files: list[Path], bar: Bar) -> pa.Table:
    """The confirmed rows of the files, one a candle, oldest first."""
    tables = []
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowInvalid, OSError) as problem:
            raise UsageError(f"{file} cannot be read as Parquet: {str(problem).splitlines()[0]}") from problem
        missing = sorted(_NEEDED - set(table.schema.names))
        if missing:
            raise UsageError(f"{file} is no recording of candles: it has no column {missing[0]}")
        tables.append(table.filter(pc.equal(table["confirm"], CONFIRMED)))
        opens = tables[-1]["ts"].to_numpy()
        if not np.array_equal(bar.opens_at(opens), opens):
            raise UsageError(f"{file} has rows that no {bar} candle opens at; is it named for the right bar?")
    whole = pa.concat_tables(tables, promote_options="default")
    # np.unique keeps the first of equals and the last file counts, so it is asked from behind.
    _, from_behind = np.unique(whole["ts"].to_numpy()[::-1], return_index=True)
    return whole.take(pa.array(whole.num_rows - 1 - from_behind))


def _contract_value(tables: dict[Bar, pa.Table]) -> Decimal | None:
    """vol_ccy / vol if the newest rows of all tables agree on it (BTC-USDT-SWAP: 0.01); inverse contracts have none."""
    ratios: set[Decimal] = set()
    for table in tables.values():
        if "vol_ccy" not in table.schema.names:
            continue
        newest = table.slice(max(0, table.num_rows - 100))
        for volume, currency in zip(newest["vol"].to_pylist(), newest["vol_ccy"].to_pylist(), strict=True):
            if volume is not None and currency is not None and Decimal(volume):
                ratios.add((Decimal(currency) / Decimal(volume)).normalize())
    return ratios.pop() if len(ratios) == 1 else None


def _with_currency(symbol: str, table: pa.Table, contract_value: Decimal | None) -> pa.Table:
    recorded = "vol_ccy" in table.schema.names
    if recorded and not table["vol_ccy"].null_count:
        return table
    if contract_value is None:
        raise UsageError(f"a recording of {symbol} has no vol_ccy, and no other one tells its contract value")
    known = table["vol_ccy"].to_pylist() if recorded else [None] * table.num_rows
    made = [
        f"{Decimal(volume) * contract_value:f}" if currency is None else currency
        for volume, currency in zip(table["vol"].to_pylist(), known, strict=True)
    ]
    without = table.drop_columns("vol_ccy") if recorded else table
    return without.append_column("vol_ccy", pa.array(made, pa.string()))


def _places(column: pa.ChunkedArray) -> int:
    """The most digits after the point that a text of the column has."""
    point: Any = pc.find_substring(column, ".")
    after = pc.subtract(pc.subtract(pc.utf8_length(column), point), 1)
    return pc.max(pc.if_else(pc.less(point, 0), 0, after)).as_py() or 0


def _as_integers(table: pa.Table, bar: Bar, scales: Scales, spot: bool) -> Series:
    opens: Times = table["ts"].to_numpy().astype(np.int64)
    prices = [_integers(table[name], scales.price) for name in _PRICES]
    volume = _integers(table["vol"], scales.volume)
    currency = _integers(table["vol_ccy"], scales.currency)
    largest_quote = int(currency.max()) * (1 if spot else int(prices[3].max()))
    # int64 where even the sum of everything fits, holes filled; Python's own integers where it might not.
    candles = int(opens[-1] - opens[0]) // bar.length_ms + 1
    fits = max(largest_quote, int(volume.max())) * candles < _SUM_LIMIT
    columns = np.array([*prices, volume, currency, currency], dtype=np.int64 if fits else object)
    if not spot:
        columns[6] = columns[5] * columns[3]
    return Series(opens, columns)


def _integers(column: pa.ChunkedArray, places: int) -> Columns:
    """The column's texts as numbers of units in its last decimal place, shape (n,)."""
    try:
        decimals = pc.cast(column, pa.decimal128(38, places))
    except pa.ArrowInvalid as problem:
        raise UsageError(f"a recording holds a number that cannot be read exactly: {problem}") from problem
    # A decimal128 is two words, low and high; reading the low ones is 10 times faster than making Decimals.
    words = np.concatenate([_words(chunk) for chunk in decimals.chunks])
    if np.array_equal(words[:, 1], words[:, 0] >> 63):
        return words[:, 0]
    return np.array([int(number.scaleb(places)) for number in decimals.to_pylist()], dtype=object)


def _words(chunk: pa.Array) -> Any:
    words = np.frombuffer(chunk.buffers()[1], dtype="<i8").reshape(-1, 2)
    return words[chunk.offset : chunk.offset + len(chunk)]


def _derived(series: Series, part: Bar, bar: Bar) -> Series:
    """The candles of `bar` of which every part is in `series`; of the bar itself, those recorded."""
    opens, starts, counts = np.unique(bar.opens_at(series.opens), return_index=True, return_counts=True)
    whole = counts == (bar.closes_of(opens) - opens) // part.length_ms
    return Series(opens[whole], aggregate(series.columns, starts)[:, whole])
