"""The asset of housekeeping: what grows cut back once a day, and how big everything is."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.maintenance.housekeeping import Housekept, keep_house


@dg.asset(
    key=["okx", "housekeeping"],
    group_name="maintenance",
    kinds={"postgres"},
    owners=["team:market-data"],
    metadata={"dagster/table_name": "trading.store_sizes"},
)
def housekeeping(pipeline: Pipeline) -> dg.MaterializeResult[None]:
    """One row per day: how big the stores, logs and events are, after what is old was removed."""
    with told_in_one_line(), pipeline.database() as database:
        kept = keep_house(pipeline.settings(), database, datetime.now(tz=UTC))
    return dg.MaterializeResult(metadata=_metadata(kept))


housekeeping_job = dg.define_asset_job("okx_housekeeping", selection=[housekeeping])

housekeeping_daily = dg.ScheduleDefinition(
    name="okx_housekeeping_daily",
    job=housekeeping_job,
    cron_schedule="10 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


def _metadata(kept: Housekept) -> dict[str, Any]:
    grown = {} if kept.growth is None else asdict(kept.growth)
    return {
        **{name: size for name, size in asdict(kept.sizes).items() if size is not None},
        **{f"{name}_a_day": size for name, size in grown.items() if size is not None},
        **{f"removed {what}": number for what, number in kept.removed.items()},
    }
