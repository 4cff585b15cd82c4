"""The asset of candle gaps: finds and repairs the gaps of symbols' days, and accounts for the rest in the ledger."""

import asyncio
import base64
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.history.candles import DAYS_A_RUN, candles
from okx_pipeline.defs.partitions import (
    day_and_symbol,
    day_by_symbol_with_today,
    days_by_symbol,
    key_of,
    partitioned_check,
)
from okx_pipeline.defs.quality.outcomes import Key, Outcome, evaluated
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.defs.stream.streamed_candles import KEY as STREAMED
from okx_pipeline.quality.calendar import calendar_svg
from okx_pipeline.quality.daily import DayMended, DaysMended, mend_days
from okx_pipeline.storage.coverage import DayCoverage, day_coverage

KEY: Final = dg.AssetKey(["okx", "candle_gaps"])
CALENDAR_DAYS: Final = 90
LISTED: Final = 100
"""Rows that a check's table shows at the most."""


@dg.asset(
    key=KEY,
    partitions_def=day_by_symbol_with_today,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=DAYS_A_RUN),
    deps=[candles, STREAMED],
    group_name="quality",
    kinds={"rest", "postgres"},
    owners=["team:market-data"],
    retry_policy=dg.RetryPolicy(max_retries=3, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
    pool="okx_rest",
    check_specs=[
        partitioned_check(*each, day_by_symbol_with_today)
        for each in (
            ("nothing_is_missing", KEY, "Every candle is held or accounted for."),
            ("ledger_matches_rows", KEY, "The ledger says what the rows say."),
        )
    ],
    metadata={"dagster/table_name": "trading.candle_gaps"},
)
def candle_gaps(context: dg.AssetExecutionContext, pipeline: Pipeline) -> Iterator[Any]:
    """One row per run of candles that were expected and not held: repaired, proven absent, or open."""

    async def repair(wanted: Mapping[str, list[date]]) -> tuple[DaysMended, dict[str, str]]:
        async with pipeline.backfill() as backfill:
            mended = await mend_days(backfill, wanted)
            newest = {symbol: max(days) for symbol, days in wanted.items()}
            return mended, {symbol: _calendar(backfill.store.connection, symbol, day) for symbol, day in newest.items()}

    with told_in_one_line():
        mended, calendars = asyncio.run(repair(days_by_symbol(context.partition_keys)))
    for key in context.partition_keys:
        day, symbol = day_and_symbol(key)
        context.add_asset_metadata(_metadata(mended.days[day, symbol]), partition_key=key_of(day, symbol))
    pictures = {f"calendar {symbol}": dg.MetadataValue.md(picture) for symbol, picture in calendars.items()}
    yield dg.MaterializeResult(metadata=pictures)
    yield from evaluated(context, _outcomes(mended))


def _metadata(day: DayMended) -> dict[str, Any]:
    names = ("expected", "present", "absent", "quarantined", "missing", "corrected")
    return {
        **{name: sum(getattr(row, name) for row in day.coverage) for name in names},
        "waiting": day.waiting,
        "coverage": dg.MetadataValue.table([_record(row) for row in day.coverage], schema=_SCHEMA),
    }


def _outcomes(mended: DaysMended) -> dict[Key, Outcome]:
    outcomes = {}
    for (day, symbol), each in mended.days.items():
        rows, wrong = [row for row in each.coverage if row.missing], each.disagreeing
        missing = sum(row.missing for row in rows)
        outcomes[dg.AssetCheckKey(KEY, "nothing_is_missing"), str(key_of(day, symbol))] = Outcome(
            passed=not missing,
            severity=dg.AssetCheckSeverity.ERROR if missing > each.waiting else dg.AssetCheckSeverity.WARN,
            description=f"{missing} candles are missing" if missing else "every candle is held or accounted for",
            metadata={
                "waiting": each.waiting,
                "missing": dg.MetadataValue.table(list(map(_record, rows[:LISTED])), _SCHEMA),
            },
        )
        outcomes[dg.AssetCheckKey(KEY, "ledger_matches_rows"), str(key_of(day, symbol))] = Outcome(
            passed=not wrong,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"the ledger differs in {', '.join(wrong)}" if wrong else "the ledger agrees with the rows",
        )
    return outcomes


_SCHEMA: Final = dg.TableSchema(
    [
        *(dg.TableColumn(name, "string") for name in ("day", "symbol", "timeframe")),
        *(dg.TableColumn(name, "int") for name in ("expected", "present", "absent", "quarantined", "missing")),
        dg.TableColumn("verified", "string", description="When REST last served exactly what is held of the day"),
    ]
)


def _record(row: DayCoverage) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "day": row.day.isoformat(),
            "symbol": row.symbol,
            "timeframe": row.timeframe,
            "expected": row.expected,
            "present": row.present,
            "absent": row.absent,
            "quarantined": row.quarantined,
            "missing": row.missing,
            "verified": "" if row.verified_at is None else f"{row.verified_at:%Y-%m-%d %H:%M}",
        }
    )


def _calendar(connection: Any, symbol: str, last: date) -> str:
    first = last - timedelta(days=CALENDAR_DAYS - 1)
    picture = calendar_svg(day_coverage(connection, symbol, first, last + timedelta(days=1)), first, last)
    return f"![coverage](data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()})"
