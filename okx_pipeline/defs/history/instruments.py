"""The asset of instruments."""

import asyncio

import dagster as dg

from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.storage.instruments import Snapshot


@dg.asset(
    key=["okx", "instruments"],
    group_name="history",
    kinds={"rest", "postgres"},
    owners=["team:market-data"],
    retry_policy=dg.RetryPolicy(max_retries=3, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
    pool="okx_rest",
    metadata={"dagster/table_name": "trading.instruments"},
)
def instruments(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult[None]:
    """One row per instrument and version of its rules, as OKX lists them; delisted ones stay."""

    async def take() -> Snapshot:
        async with pipeline.backfill() as backfill:
            return await backfill.record_listing()

    with told_in_one_line():
        snapshot = asyncio.run(take())
    return dg.MaterializeResult(
        metadata={"listed": snapshot.listed, "new_versions": snapshot.added, "delisted": snapshot.delisted}
    )
