"""The suites: what a day of candles has to be, as rules with names, and the checks they belong to.

Only what is demanded stands here; what the rules look at is measured in `measures`, and Great Expectations, which
judges, is driven from `expectations`. Nothing heavy is imported: a code location loads the checks' names from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from okx_pipeline.candles import PRICE_COLUMNS, VALUE_COLUMNS, VOLUME_COLUMNS, Source
from okx_pipeline.storage.quality_results import Severity


class Check(StrEnum):
    """What is asked of a series-day; each check is several rules of one meaning."""

    SCHEMA = "schema"
    COMPLETENESS = "completeness"
    OHLC_SANITY = "ohlc_sanity"
    VOLUMES = "volumes"
    MARKET_MOVES = "market_moves"
    TIMEFRAME_CONSISTENCY = "timeframe_consistency"
    STORE_PARITY = "store_parity"


MEANING: Final[Mapping[Check, str]] = {
    Check.SCHEMA: "Every row has its columns, in their types, under a key of its own that a candle can have",
    Check.COMPLETENESS: "Every candle is held that OKX serves and the ledger expects",
    Check.OHLC_SANITY: "Prices are positive, on the instrument's tick, and lie between low and high",
    Check.VOLUMES: "Volumes are not negative and agree with one another",
    Check.MARKET_MOVES: "The market traded, and moved no further than it lately does",
    Check.TIMEFRAME_CONSISTENCY: "Longer candles are what the shorter ones of their time add up to",
    Check.STORE_PARITY: "Parquet holds what PostgreSQL holds",
}

OUTAGE_MINUTES: Final = 15
"""So long without a trade, in a market that trades all the time, is an outage.

OKX serves its outages as flat rows without volume: of BTC-USDT-SWAP from May to December 2022, 21 runs of 5 minutes to
10 hours, 11 of them of 15 minutes or more. A market that is merely quiet leaves single minutes: LINK-USDT-SWAP 93 of
26,473.
"""

USUAL_MOVES: Final = 10
"""How many times the usual move of its series a candle may make.

In nine months of 5m candles of BTC-USDT-SWAP that were recorded, two days have such a candle: crashes of 7 and 4 %
within minutes. The wicks of a demo market that went for prices, 60,500 to 77,777 in 5 minutes, are far beyond.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, which becomes one expectation.

    Parameters
    ----------
    name
        What it demands; verdicts and pages know it by this.
    check
        Where it belongs.
    severity
        How bad it is if it does not hold.
    about
        The same as a sentence.
    column
        What is looked at: a column of a frame of `measures`.
    expectation
        Name of the class of Great Expectations.
    arguments
        What it is given besides the column.
    shows
        Columns of the candle that a person wants to see where it does not hold.
    of_files
        Whether it is about Parquet files alone.
    """

    name: str
    check: Check
    severity: Severity
    about: str
    column: str
    expectation: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shows: tuple[str, ...] = ()
    of_files: bool = False


_BETWEEN: Final = "ExpectColumnValuesToBeBetween"
_NOT_NULL: Final = "ExpectColumnValuesToNotBeNull"
_NULL: Final = "ExpectColumnValuesToBeNull"
_IN_SET: Final = "ExpectColumnValuesToBeInSet"
_UNIQUE: Final = "ExpectCompoundColumnsToBeUnique"
_NONE: Final = {"max_value": 0}
_PRICES: Final = tuple(column.name for column in PRICE_COLUMNS)

CRITICAL, WARNING, INFO = Severity.CRITICAL, Severity.WARNING, Severity.INFO

_KEY: Final = (
    Rule(
        "key_is_unique",
        Check.SCHEMA,
        CRITICAL,
        "There is one row of each candle",
        "timestamp_ms",
        _UNIQUE,
        {"column_list": ["symbol", "timeframe", "timestamp_ms"]},
        ("close_price", "volume"),
    ),
    Rule(
        "opens_on_boundary",
        Check.SCHEMA,
        CRITICAL,
        "A candle of its timeframe opens at its timestamp",
        "ms_off_boundary",
        _IN_SET,
        {"value_set": [0]},
    ),
    Rule(
        "open_time_is_the_timestamp",
        Check.SCHEMA,
        CRITICAL,
        "The open time beside it in the file is the timestamp",
        "open_time_off_ms",
        _IN_SET,
        {"value_set": [0]},
        of_files=True,
    ),
)

_COLUMNS: Final = (
    *(
        Rule(
            f"{column.name}_is_a_number",
            Check.SCHEMA,
            CRITICAL,
            f"{column.meaning}: it is there, and is a number that a decimal(38, 18) holds",
            column.name,
            _NOT_NULL,
            shows=(column.name,),
        )
        for column in VALUE_COLUMNS
    ),
    Rule(
        "source_is_known",
        Check.SCHEMA,
        CRITICAL,
        "The row says whether it came from the WebSocket or REST",
        "source",
        _IN_SET,
        {"value_set": [source.value for source in Source]},
        ("source",),
    ),
    *(
        Rule(
            f"{name}_is_there",
            Check.SCHEMA,
            CRITICAL,
            f"The row says when it {what}",
            name,
            _NOT_NULL,
        )
        for name, what in (("received_at", "first landed"), ("updated_at", "last changed"))
    ),
)

_OHLC: Final = (
    *(
        Rule(
            f"high_at_least_{other}",
            Check.OHLC_SANITY,
            CRITICAL,
            f"The high is at least the {other}",
            f"high_below_{other}",
            _BETWEEN,
            _NONE,
            ("high_price", f"{other}_price"),
        )
        for other in ("open", "close", "low")
    ),
    *(
        Rule(
            f"low_at_most_{other}",
            Check.OHLC_SANITY,
            CRITICAL,
            f"The low is at most the {other}",
            f"low_above_{other}",
            _BETWEEN,
            _NONE,
            ("low_price", f"{other}_price"),
        )
        for other in ("open", "close")
    ),
    *(
        Rule(
            f"{name}_is_positive",
            Check.OHLC_SANITY,
            CRITICAL,
            f"{meaning}: above zero",
            name,
            _BETWEEN,
            {"min_value": 0, "strict_min": True},
            (name,),
        )
        for name, meaning in ((column.name, column.meaning) for column in PRICE_COLUMNS)
    ),
    # Ticks were made finer and coarser over the years, and a change is known only from when it was seen.
    Rule(
        "prices_on_tick",
        Check.OHLC_SANITY,
        WARNING,
        "Every price is a multiple of the instrument's tick",
        "price_off_tick",
        _BETWEEN,
        _NONE,
        _PRICES,
    ),
    Rule(
        "prices_on_later_tick",
        Check.OHLC_SANITY,
        INFO,
        "Every price is a multiple of the first tick known of the instrument, which is younger than the day",
        "price_off_later_tick",
        _BETWEEN,
        _NONE,
        _PRICES,
    ),
)

_VOLUME: Final = (
    *(
        Rule(
            f"{column.name}_is_not_negative",
            Check.VOLUMES,
            CRITICAL,
            f"{column.meaning}: zero or more",
            column.name,
            _BETWEEN,
            {"min_value": 0},
            (column.name,),
        )
        for column in VOLUME_COLUMNS
    ),
    # Exact in all 26,472 minutes that were looked at, and in every recording.
    Rule(
        "volumes_agree_by_contract_value",
        Check.VOLUMES,
        CRITICAL,
        "The volume in base coin is the contracts times the contract value, exactly",
        "contract_value_error",
        _BETWEEN,
        {"min_value": 0, "max_value": 0},
        ("volume", "volume_currency"),
    ),
    Rule(
        "volumes_agree_by_later_contract_value",
        Check.VOLUMES,
        WARNING,
        "The volume in base coin is the contracts times the first contract value known, which is younger than the day",
        "later_contract_value_error",
        _BETWEEN,
        {"min_value": 0, "max_value": 0},
        ("volume", "volume_currency"),
    ),
    Rule(
        "spot_volumes_agree",
        Check.VOLUMES,
        WARNING,
        "Of a spot instrument both volumes in quote coin are the same",
        "spot_volume_difference",
        _BETWEEN,
        {"min_value": 0, "max_value": 0},
        ("volume_currency", "volume_quote"),
    ),
    Rule(
        "no_range_without_trade",
        Check.VOLUMES,
        WARNING,
        "A candle in which nothing was traded is flat",
        "range_without_trade",
        _BETWEEN,
        _NONE,
        ("high_price", "low_price", "volume"),
    ),
)

_MOVES: Final = (
    Rule(
        "no_outage",
        Check.MARKET_MOVES,
        WARNING,
        f"A market that trades all the time never stands still for {OUTAGE_MINUTES} minutes, as in outages of OKX",
        "silent_minutes",
        _BETWEEN,
        {"max_value": OUTAGE_MINUTES, "strict_max": True},
        ("close_price", "volume"),
    ),
    Rule(
        "moves_within_usual_range",
        Check.MARKET_MOVES,
        WARNING,
        f"No candle moves {USUAL_MOVES} times as far as 19 in 20 of its series did since the day before",
        "times_usual_move",
        _BETWEEN,
        {"max_value": USUAL_MOVES},
        _PRICES,
    ),
)

CANDLE_RULES: Final = (*_KEY, *_COLUMNS, *_OHLC, *_VOLUME, *_MOVES)
"""Rules about every candle."""

SERIES_RULES: Final = (
    Rule(
        "file_can_be_read",
        Check.SCHEMA,
        CRITICAL,
        "The Parquet file is whole, every page as it was written",
        "unreadable",
        _NULL,
        of_files=True,
    ),
    Rule(
        "columns_and_types",
        Check.SCHEMA,
        CRITICAL,
        "The columns are those of the schema, in their types",
        "differences",
        _NULL,
    ),
    Rule(
        "rows_in_key_order",
        Check.SCHEMA,
        CRITICAL,
        "The rows of the file are in the order of their keys",
        "disorder",
        _NULL,
        of_files=True,
    ),
    Rule(
        "file_holds_what_it_says",
        Check.SCHEMA,
        CRITICAL,
        "The file holds rows of its month alone, and those that its hashes stand for",
        "contradiction",
        _NULL,
        of_files=True,
    ),
    Rule(
        "no_candle_missing",
        Check.COMPLETENESS,
        CRITICAL,
        "Every candle is held that the ledger expects and OKX is not proven to lack",
        "candles_missing",
        _BETWEEN,
        _NONE,
    ),
    Rule(
        "ledger_knows_the_day",
        Check.COMPLETENESS,
        INFO,
        "The ledger has counted the day",
        "uncounted",
        _NULL,
    ),
    # A mismatch that REST has confirmed is the exchange's own: 7 values of BTC-USDT-SWAP in 8 months of 2022.
    Rule(
        "candles_add_up",
        Check.TIMEFRAME_CONSISTENCY,
        CRITICAL,
        "No candle differs from what shorter ones add up to, unless OKX itself serves them so",
        "mismatches",
        _NULL,
    ),
    Rule(
        "candles_of_okx_add_up",
        Check.TIMEFRAME_CONSISTENCY,
        INFO,
        "Nor does any differ that OKX itself serves so",
        "mismatches_of_okx",
        _NULL,
    ),
    Rule(
        "parquet_equals_postgresql",
        Check.STORE_PARITY,
        CRITICAL,
        "The day's rows in Parquet have the hash of those in PostgreSQL, unless landings wait to be projected",
        "parity_difference",
        _NULL,
    ),
    Rule(
        "parquet_is_up_to_date",
        Check.STORE_PARITY,
        INFO,
        "No landing waits to be projected",
        "projection_waits",
        _NULL,
    ),
)
"""Rules about every series-day as a whole."""

RULES: Final[Mapping[str, Rule]] = {rule.name: rule for rule in (*CANDLE_RULES, *SERIES_RULES)}
"""Every rule by its name."""
