"""The asset of reconciliation: days of symbols read from OKX once more, eight days later."""

import asyncio
from collections.abc import Mapping
from datetime import date
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.history.candles import DAYS_A_RUN, candles
from okx_pipeline.defs.partitions import day_and_symbol, day_by_symbol, days_by_symbol, key_of
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.defs.stream.streamed_candles import KEY as STREAMED
from okx_pipeline.quality.reconciliation import DayReconciled, Reconciled, reconcile_days
from okx_pipeline.storage.consistency import Mismatch, MismatchClass
from okx_pipeline.timeframes import utc

KEY: Final = dg.AssetKey(["okx", "reconciliation"])
LISTED: Final = 100


@dg.asset(
    key=KEY,
    partitions_def=day_by_symbol,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=DAYS_A_RUN),
    deps=[candles, STREAMED],
    group_name="quality",
    kinds={"rest", "postgres", "parquet"},
    owners=["team:market-data"],
    retry_policy=dg.RetryPolicy(max_retries=3, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
    pool="okx_rest",
    check_specs=[
        dg.AssetCheckSpec("rest_serves_what_is_held", asset=KEY, description="REST serves exactly what is held."),
        dg.AssetCheckSpec("timeframes_add_up", asset=KEY, description="Candles are what shorter ones add up to."),
    ],
    metadata={"dagster/table_name": "trading.coverage"},
)
def reconciliation(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster takes a subscripted one for a tuple
    """One row per symbol's day that was read from OKX again, days after its candles were confirmed."""

    async def reconcile(wanted: Mapping[str, list[date]]) -> Reconciled:
        async with pipeline.backfill() as backfill:
            return await reconcile_days(backfill, wanted)

    with told_in_one_line():
        done = asyncio.run(reconcile(days_by_symbol(context.partition_keys)))
    for key in context.partition_keys:
        day, symbol = day_and_symbol(key)
        context.add_asset_metadata(_metadata(done.days[day, symbol]), partition_key=key_of(day, symbol))
    return dg.MaterializeResult(check_results=_checks(done))


def _metadata(day: DayReconciled) -> dict[str, Any]:
    return {
        "corrected": day.corrected,
        "unverified": ", ".join(day.unverified),
        "windows": day.windows,
        "mismatches": dg.MetadataValue.table(list(map(_record, day.mismatches[:LISTED])), _SCHEMA),
    }


def _checks(done: Reconciled) -> list[dg.AssetCheckResult]:
    unverified = [f"{day} {symbol} {name}" for (day, symbol), each in done.days.items() for name in each.unverified]
    found = [mismatch for each in done.days.values() for mismatch in each.mismatches]
    windows = sum(each.windows for each in done.days.values())
    ours = [mismatch for mismatch in found if mismatch.class_ is MismatchClass.OPEN]
    return [
        dg.AssetCheckResult(
            check_name="rest_serves_what_is_held",
            passed=not unverified,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(unverified)} days differ" if unverified else "every day is served as it is held",
            metadata={"differing": ", ".join(unverified[:LISTED])},
        ),
        dg.AssetCheckResult(
            check_name="timeframes_add_up",
            passed=not ours,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(found)} values of {windows} candles differ from what shorter ones give, "
            f"{len(found) - len(ours)} of them as OKX itself serves them",
            metadata={"differing": dg.MetadataValue.table(list(map(_record, ours[:LISTED])), _SCHEMA)},
        ),
    ]


_SCHEMA: Final = dg.TableSchema(
    [dg.TableColumn(name, "string") for name in ("opens", "timeframe", "against", "column", "value", "summed", "class")]
)


def _record(mismatch: Mismatch) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "opens": f"{utc(mismatch.timestamp_ms):%Y-%m-%d %H:%M}",
            "timeframe": mismatch.timeframe.name,
            "against": mismatch.against.name,
            "column": mismatch.column,
            "value": mismatch.value,
            "summed": mismatch.summed,
            "class": mismatch.class_.value,
        }
    )
