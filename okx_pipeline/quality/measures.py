"""What is measured of candles before the rules judge them: two frames whose columns the rules of `suites` name.

Everything that has to be exact is decided here in decimals, and only the outcome is a float, whose sign and zero
rounding leaves as they are: by how much the high lies below the open, how far a price is off its tick. What is a matter
of degree, such as how far a market moves, is measured in floats.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from okx_pipeline.candles import FRACTION_DIGITS, INTEGER_DIGITS, PRICE_COLUMNS
from okx_pipeline.quality.suites import CANDLE_RULES, Check
from okx_pipeline.storage.doubles import doubles
from okx_pipeline.storage.parquet import NUMBER
from okx_pipeline.storage.quality_results import Store
from okx_pipeline.storage.quality_rows import (
    HASH_OF_NOTHING,
    VALUES,
    DayMismatch,
    DayRows,
    Expected,
    InstrumentRules,
    Parity,
    SeriesKey,
)
from okx_pipeline.timeframes import MINUTE_MS, WEEK_MS, iso, parse_timeframe

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Truths = npt.NDArray[np.bool_]

QUIET_SHARE: Final = 0.05
"""A market trades all the time if of its candles outside a silence at most this share is without a trade."""

USUAL_QUANTILE: Final = 0.95
"""The usual move of a series is what this share of its candles stays below, over two days."""

SMALLEST_USUAL_MOVE: Final = 0.001
"""A market that hardly moves may begin to: no move below a percent is unusual."""

ENOUGH_CANDLES: Final = 40
"""So many are needed to know the usual move: the two that an outlier spoils are then not among the usual ones."""

NO_RULES: Final = InstrumentRules(covers=False, is_spot=False, contract_value=None, tick_size=None)
_WIDE: Final = pa.decimal256(INTEGER_DIGITS + FRACTION_DIGITS, FRACTION_DIGITS)
# Times a volume it has 75 digits, and the difference of that 76, which is as many as there are.
_FACTOR: Final = pa.decimal256(36, 18)
_PRICES: Final = tuple(column.name for column in PRICE_COLUMNS)
_OF_CANDLES: Final = (Check.OHLC_SANITY, Check.VOLUMES, Check.MARKET_MOVES)
"""The checks that look at candles alone; that of the schema looks at tables, too."""


def in_key_order(rows: DayRows) -> pa.Table:
    """The candles of `rows` by series and timestamp."""
    series, opens = _integers(rows.candles["series"]), _integers(rows.candles["timestamp_ms"])
    return rows.candles.take(np.lexsort((opens, series)))


def candle_frame(rows: DayRows, candles: pa.Table, rules: Mapping[str, InstrumentRules]) -> Any:
    """A pandas frame of one row a candle, in the order of `candles`, which are those of `rows` in key order.

    Keys as they are; values as floats, NaN where there is none; and the measures that `suites.CANDLE_RULES` name.
    """
    import pandas as pd

    series, opens = _integers(candles["series"]), _integers(candles["timestamp_ms"])
    exact = {name: _Exact(candles[name]) for name in VALUES}
    of_series = [rules.get(symbol) for symbol, _ in rows.series]
    covering = [found if found is not None and found.covers else NO_RULES for found in of_series]
    later = [found if found is not None and not found.covers else NO_RULES for found in of_series]
    columns: dict[str, Any] = {
        "symbol": _categories([symbol for symbol, _ in rows.series], series),
        "timeframe": _categories([timeframe for _, timeframe in rows.series], series),
        "timestamp_ms": opens,
        "ms_off_boundary": _off_boundary(rows.series, series, opens),
        "open_time_off_ms": _floats(pc.subtract(candles["open_time_ms"], candles["timestamp_ms"])),
        **{name: _floats(candles[name]) for name in VALUES},
        "source": pd.Categorical(pc.fill_null(candles["source"], "").to_pandas()),
        "received_at": _floats(pc.if_else(candles["received_at"], 1, None)),
        "updated_at": _floats(pc.if_else(candles["updated_at"], 1, None)),
        **{
            f"high_below_{other}": _excess(exact[f"{other}_price"], exact["high_price"])
            for other in ("open", "close", "low")
        },
        **{f"low_above_{other}": _excess(exact["low_price"], exact[f"{other}_price"]) for other in ("open", "close")},
        "price_off_tick": _off_tick(exact, series, [each.tick_size for each in covering]),
        "price_off_later_tick": _off_tick(exact, series, [each.tick_size for each in later]),
        "contract_value_error": _volume_error(candles, series, [each.contract_value for each in covering]),
        "later_contract_value_error": _volume_error(candles, series, [each.contract_value for each in later]),
        "spot_volume_difference": _spot_difference(candles, series, of_series),
        "range_without_trade": _range_without_trade(exact),
        **_against_the_day_before(rows, candles, series, opens),
    }
    return pd.DataFrame(columns)


def series_frame(
    rows: DayRows,
    candles: pa.Table,
    expected: Mapping[SeriesKey, Expected],
    mismatches: Iterable[DayMismatch],
    parity: Mapping[SeriesKey, Parity],
) -> Any:
    """A pandas frame of one row a series, in their order, with the facts that `suites.SERIES_RULES` name."""
    import pandas as pd

    counts = np.bincount(_integers(candles["series"]), minlength=len(rows.series)).tolist()
    differing = _told_by_series(mismatches)
    facts = []
    for key, held in zip(rows.series, counts, strict=True):
        flaws, ledger = rows.flaws[key], expected.get(key)
        facts.append(
            {
                "symbol": key[0],
                "timeframe": key[1],
                "rows": held,
                "unreadable": flaws.unreadable,
                "differences": flaws.differences,
                "disorder": flaws.disorder,
                "contradiction": flaws.contradiction,
                "candles_missing": float("nan") if ledger is None else float(max(ledger.due - held, ledger.missing)),
                "uncounted": "the ledger has no row of the day yet" if ledger is None else None,
                "mismatches": differing[key, False],
                "mismatches_of_okx": differing[key, True],
                **_parity_facts(parity.get(key)),
            }
        )
    frame = pd.DataFrame(facts)
    texts = [name for name in frame.columns if name not in {"rows", "candles_missing"}]
    return frame.astype(dict.fromkeys(texts, object))


def notes(rows: DayRows, rules: Mapping[str, InstrumentRules], frame: Any) -> dict[tuple[SeriesKey, Check], list[str]]:
    """What could not be judged of each series by each check, and why; `frame` is that of the candles."""
    unmeasured = frame["times_usual_move"].isna()
    still = set(zip(frame["symbol"][unmeasured], frame["timeframe"][unmeasured], strict=True))
    told: defaultdict[tuple[SeriesKey, Check], list[str]] = defaultdict(list)
    for key in rows.series:
        known = rules.get(key[0])
        for check, what in ((Check.OHLC_SANITY, "tick size"), (Check.VOLUMES, "contract value")):
            if known is None:
                told[key, check].append(f"{what}: no listing of the instrument is known")
            elif not known.covers:
                told[key, check].append(f"{what}: that of the first listing known, which is younger than the day")
        if key in still:
            told[key, Check.MARKET_MOVES].append(f"moves: there are not {ENOUGH_CANDLES} candles to measure them by")
        if key in rows.in_files and rows.store is Store.POSTGRES:
            told[key, Check.SCHEMA].append("the month is archived: its rows were read from Parquet")
    return told


def unjudged(
    rows: DayRows, frame: Any, facts: Any, parity: Mapping[SeriesKey, Parity], compared: Collection[SeriesKey]
) -> dict[tuple[SeriesKey, Check], str]:
    """The checks that have nothing to look at, by series, and why.

    Parameters
    ----------
    frame, facts
        The frames of the candles and of the series.
    parity
        As in `series_frame`.
    compared
        Series that were compared with other timeframes.
    """
    told: dict[tuple[SeriesKey, Check], str] = {}
    measured = _measured(frame)
    for key, held, missing in zip(rows.series, facts["rows"], facts["candles_missing"], strict=True):
        unreadable = rows.flaws[key].unreadable is not None
        for check in _OF_CANDLES:
            if unreadable:
                told[key, check] = "the Parquet file cannot be read"
            elif not held:
                told[key, check] = "no candle of the day is held"
            elif key not in measured[check]:
                told[key, check] = "there are too few candles to measure by"
        if np.isnan(missing):
            told[key, Check.COMPLETENESS] = "the ledger has not counted the day yet"
        if key not in compared:
            told[key, Check.TIMEFRAME_CONSISTENCY] = "no other timeframe of the day is held to compare with"
        if unreadable or key not in parity:
            why = "the Parquet file cannot be read" if unreadable else "the two stores were not compared"
            told[key, Check.STORE_PARITY] = why
    return told


def _measured(frame: Any) -> dict[Check, set[SeriesKey]]:
    """The series of which a rule of the check has a value to look at, by check, for checks of the candles."""
    found = {}
    for check in _OF_CANDLES:
        columns = sorted({rule.column for rule in CANDLE_RULES if rule.check is check})
        some = frame[columns].notna().any(axis=1)
        found[check] = set(zip(frame["symbol"][some], frame["timeframe"][some], strict=True))
    return found


def _parity_facts(found: Parity | None) -> dict[str, str | None]:
    if found is None or found.postgres == found.parquet:
        return {"parity_difference": None, "projection_waits": None}
    told = f"PostgreSQL has {_hash(found.postgres)}, Parquet {_hash(found.parquet)}"
    return {
        "parity_difference": None if found.waits else told,
        "projection_waits": told if found.waits else None,
    }


def _hash(value: str | None) -> str:
    return "what cannot be read" if value is None else "no rows" if value == HASH_OF_NOTHING else f"rows of {value}"


def _told_by_series(mismatches: Iterable[DayMismatch]) -> defaultdict[tuple[SeriesKey, bool], str | None]:
    """The mismatches of each series in words, those of the exchange apart."""
    lists: defaultdict[tuple[SeriesKey, bool], list[str]] = defaultdict(list)
    for each in mismatches:
        lists[(each.symbol, each.timeframe), each.is_exchanges].append(
            f"{each.column} of {iso(each.timestamp_ms)} is {each.value}, {each.against} candles give {each.summed}"
        )
    told: defaultdict[tuple[SeriesKey, bool], str | None] = defaultdict(lambda: None)
    for key, found in lists.items():
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        told[key] = "; ".join(found[:3]) + more
    return told


def _integers(column: Any) -> Integers:
    found: Integers = column.to_numpy().astype(np.int64)
    return found


def _floats(column: Any) -> Floats:
    if column.type == NUMBER:
        return doubles(column)
    found: Floats = column.cast(pa.float64()).to_numpy()
    return found


def _categories(names: Sequence[str], series: Integers) -> Any:
    import pandas as pd

    kinds = sorted(set(names))
    codes = np.array([kinds.index(name) for name in names], dtype=np.int64)
    return pd.Categorical.from_codes(codes[series], categories=kinds)


def _off_boundary(keys: Sequence[SeriesKey], series: Integers, opens: Integers) -> Integers:
    """Milliseconds since the candle opened in which each of `opens` lies."""
    off = np.zeros(len(opens), dtype=np.int64)
    for number, (_, name) in enumerate(keys):
        timeframe, mine = parse_timeframe(name), series == number
        if timeframe.length_ms < WEEK_MS:
            off[mine] = opens[mine] % timeframe.length_ms
        else:
            off[mine] = [open_ms - timeframe.open_at(open_ms) for open_ms in opens[mine].tolist()]
    return off


class _Exact:
    """A column of decimals whose values are compared as the integers of 128 bits that they are.

    Arrow's own comparisons of decimals take 0.4 us a value, 40 times as long.
    """

    def __init__(self, column: Any) -> None:
        chunk = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        words = np.frombuffer(chunk.buffers()[1] or b"", dtype="<i8").reshape(-1, 2)
        words = words[chunk.offset : chunk.offset + len(chunk)]
        self.column = chunk
        self.valid: Truths = pc.is_valid(chunk).to_numpy(zero_copy_only=False)
        self._low: npt.NDArray[np.uint64] = words[:, 0].view(np.uint64)
        self._high: Integers = words[:, 1]

    def above(self, other: "_Exact") -> Truths:
        """Where this is greater; false where one is null."""
        greater: Truths = (self._high > other._high) | ((self._high == other._high) & (self._low > other._low))
        return greater & self.valid & other.valid

    def differs(self, other: "_Exact") -> Truths:
        """Where both are there and not equal."""
        unequal: Truths = (self._high != other._high) | (self._low != other._low)
        return unequal & self.valid & other.valid

    def is_zero(self) -> Truths:
        """Where it is zero."""
        zero: Truths = (self._high == 0) & (self._low == 0)
        return zero & self.valid


def _excess(left: _Exact, right: _Exact) -> Floats:
    """By how much `left` is above `right`, zero where it is not, NaN where one is null."""
    found = np.where(left.valid & right.valid, 0.0, np.nan)
    for row in np.flatnonzero(left.above(right)).tolist():
        found[row] = float(left.column[row].as_py() - right.column[row].as_py())
    return found


def _range_without_trade(exact: Mapping[str, _Exact]) -> Floats:
    """How far high and low are apart in candles in which nothing was traded; NaN in others."""
    high, low = exact["high_price"], exact["low_price"]
    idle = exact["volume"].is_zero() & high.valid & low.valid
    found = np.where(idle, 0.0, np.nan)
    for row in np.flatnonzero(idle & high.above(low)).tolist():
        found[row] = float(high.column[row].as_py() - low.column[row].as_py())
    return found


def _off_tick(exact: Mapping[str, _Exact], series: Integers, ticks: Sequence[Decimal | None]) -> Floats:
    """How far the price that is furthest off is from a multiple of its tick; NaN where no tick is known."""
    off = np.full(len(series), np.nan)
    for tick in {tick for tick in ticks if tick}:
        members = np.flatnonzero(np.isin(series, [number for number, each in enumerate(ticks) if each == tick]))
        off[members] = 0.0
        for name in _PRICES:
            prices = exact[name].column.take(members)
            nearest = pc.round_to_multiple(prices, multiple=pa.scalar(tick, NUMBER))
            for row in np.flatnonzero(_Exact(prices).differs(_Exact(nearest))).tolist():
                distance = float(abs(prices[row].as_py() - nearest[row].as_py()))
                off[members[row]] = max(off[members[row]], distance)
    return off


def _volume_error(candles: pa.Table, series: Integers, values: Sequence[Decimal | None]) -> Floats:
    """By how much the volume in base coin differs from contracts times contract value; NaN where that is not known."""
    if not any(values):
        return np.full(len(series), np.nan)
    factors = pa.array([value or None for value in values], _FACTOR).take(pa.array(series))
    wanted = pc.multiply(candles["volume"].cast(_WIDE), pa.chunked_array([factors]))
    return _floats(pc.subtract(candles["volume_currency"].cast(_WIDE), wanted))


def _spot_difference(candles: pa.Table, series: Integers, rules: Sequence[InstrumentRules | None]) -> Floats:
    spot = np.array([each is not None and each.is_spot for each in rules], dtype=bool)
    difference = np.full(len(series), np.nan)
    members = np.flatnonzero(spot[series])
    if len(members):
        chosen = candles.take(members)
        wide = [chosen[name].cast(_WIDE) for name in ("volume_currency", "volume_quote")]
        difference[members] = _floats(pc.subtract(*wide))
    return difference


def _against_the_day_before(rows: DayRows, candles: pa.Table, series: Integers, opens: Integers) -> dict[str, Floats]:
    """`silent_minutes` and `times_usual_move` of each candle, measured over it and the candles since the day before."""
    before = rows.earlier
    all_series = np.concatenate([_integers(before["series"]), series])
    all_opens = np.concatenate([_integers(before["timestamp_ms"]), opens])
    high, low, close, volume = (
        np.concatenate([_floats(before[name]), _floats(candles[name])])
        for name in ("high_price", "low_price", "close_price", "volume")
    )
    order = np.lexsort((all_opens, all_series))
    lengths = np.array([parse_timeframe(name).length_ms for _, name in rows.series], dtype=np.int64)
    ordered_series, ordered_opens = all_series[order], all_opens[order]
    follows = np.zeros(len(order), dtype=bool)
    follows[1:] = (ordered_series[1:] == ordered_series[:-1]) & (np.diff(ordered_opens) == lengths[ordered_series[1:]])
    silent = _silent_minutes(
        ordered_series, follows, ((volume == 0) & (high == low))[order], lengths[ordered_series] / MINUTE_MS
    )
    moves = _times_usual_move(ordered_series, _moves(high[order], low[order], close[order], follows))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    mine = place[len(before) :]
    return {"silent_minutes": silent[mine], "times_usual_move": moves[mine]}


def _silent_minutes(series: Integers, follows: Truths, silent: Truths, minutes: Floats) -> Floats:
    """How long the silence lasts that a candle is part of: zero where it traded, NaN in a market that rarely does."""
    begins = silent.copy()
    begins[1:] &= ~(silent[:-1] & follows[1:])
    run = np.cumsum(begins) - 1
    lengths = np.bincount(run[silent]) if silent.any() else np.zeros(0, dtype=np.int64)
    mine = np.where(silent, lengths[run] if len(lengths) else 0, 0)
    candles, quiet = np.bincount(series), np.bincount(series, weights=silent)
    others, quiet_others = candles[series] - mine, quiet[series] - mine
    trades_all_the_time = (others > 0) & (quiet_others <= QUIET_SHARE * others)
    found: Floats = np.where(~silent, 0.0, np.where(trades_all_the_time, mine * minutes, np.nan))
    return found


def _moves(high: Floats, low: Floats, close: Floats, follows: Truths) -> Floats:
    """The true range of each candle, from the close before it on, as the logarithm of a ratio."""
    last_close = np.concatenate([close[:1], close[:-1]])
    top = np.where(follows, np.fmax(high, last_close), high)
    bottom = np.where(follows, np.fmin(low, last_close), low)
    valid = (top > 0) & (bottom > 0)
    ratio = np.divide(top, bottom, out=np.full(len(high), np.nan), where=valid)
    found: Floats = np.log(ratio)
    return found


def _times_usual_move(series: Integers, moves: Floats) -> Floats:
    """Each move as a multiple of the usual one of its series; NaN where there are too few to know it."""
    known = np.flatnonzero(np.isfinite(moves))
    ascending = known[np.lexsort((moves[known], series[known]))]
    found = np.full(len(moves), np.nan)
    numbers, starts, counts = np.unique(series[ascending], return_index=True, return_counts=True)
    enough = counts >= ENOUGH_CANDLES
    usual = np.full(int(series.max(initial=0)) + 1, np.nan)
    ranks = starts + np.ceil(USUAL_QUANTILE * counts).astype(np.int64) - 1
    usual[numbers[enough]] = np.maximum(moves[ascending[ranks[enough]]], SMALLEST_USUAL_MOVE)
    found[known] = moves[known] / usual[series[known]]
    return found
