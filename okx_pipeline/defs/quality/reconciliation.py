"""The asset of reconciliation: days of symbols read from OKX once more, eight days later."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.history.candles import DAYS_A_RUN, candles
from okx_pipeline.defs.partitions import day_and_symbol, day_by_symbol, days_by_symbol, key_of, partitioned_check
from okx_pipeline.defs.quality.outcomes import Key, Outcome, evaluated
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
        partitioned_check(*each, day_by_symbol)
        for each in (
            ("rest_serves_what_is_held", KEY, "REST serves exactly what is held."),
            ("timeframes_add_up", KEY, "Candles are what shorter ones add up to."),
        )
    ],
    metadata={"dagster/table_name": "trading.coverage"},
)
def reconciliation(context: dg.AssetExecutionContext, pipeline: Pipeline) -> Iterator[Any]:
    """One row per symbol's day that was read from OKX again, days after its candles were confirmed."""

    async def reconcile(wanted: Mapping[str, list[date]]) -> Reconciled:
        async with pipeline.backfill() as backfill:
            return await reconcile_days(backfill, wanted)

    with told_in_one_line():
        done = asyncio.run(reconcile(days_by_symbol(context.partition_keys)))
    for key in context.partition_keys:
        day, symbol = day_and_symbol(key)
        context.add_asset_metadata(_metadata(done.days[day, symbol]), partition_key=key_of(day, symbol))
    yield dg.MaterializeResult()
    yield from evaluated(context, _outcomes(done))


def _metadata(day: DayReconciled) -> dict[str, Any]:
    return {
        "corrected": day.corrected,
        "unverified": ", ".join(day.unverified),
        "windows": day.windows,
        "mismatches": dg.MetadataValue.table(list(map(_record, day.mismatches[:LISTED])), _SCHEMA),
    }


def _outcomes(done: Reconciled) -> dict[Key, Outcome]:
    outcomes = {}
    for (day, symbol), each in done.days.items():
        ours = [mismatch for mismatch in each.mismatches if mismatch.class_ is MismatchClass.OPEN]
        outcomes[dg.AssetCheckKey(KEY, "rest_serves_what_is_held"), str(key_of(day, symbol))] = Outcome(
            passed=not each.unverified,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"REST serves {', '.join(each.unverified)} differently"
            if each.unverified
            else "REST serves what is held",
        )
        outcomes[dg.AssetCheckKey(KEY, "timeframes_add_up"), str(key_of(day, symbol))] = Outcome(
            passed=not ours,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(each.mismatches)} values of {each.windows} candles differ from what shorter ones give, "
            f"{len(each.mismatches) - len(ours)} of them as OKX itself serves them",
            metadata={"differing": dg.MetadataValue.table(list(map(_record, ours[:LISTED])), _SCHEMA)},
        )
    return outcomes


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
