"""The sensor that has outcomes reported which no run of the verdicts did.

A run may be killed before it reports, or leave outcomes to the next one; `okx-pipeline validate` reaches verdicts
without Dagster; and a partition that is materialized again shows no outcome although its verdicts stand.
"""

import json
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.history.candles import candles
from okx_pipeline.defs.partitions import days_by_symbol, key_of
from okx_pipeline.defs.quality.candle_quality import outcomes_to_report, report_outcomes
from okx_pipeline.defs.quality.ledger import TAG, next_after
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.defs.stream.streamed_candles import KEY as STREAMED
from okx_pipeline.storage.quality_results import judged_after

DAYS_A_TICK: Final = 200
NAME: Final = "check_outcomes"


class SymbolDays(dg.Config):
    """The partition keys whose outcomes are to be reported."""

    keys: list[str]


@dg.op
def report_check_outcomes(context: dg.OpExecutionContext, config: SymbolDays, pipeline: Pipeline) -> None:
    """Reports the outcomes of days that were checked before, where Dagster does not show them."""
    with told_in_one_line(), pipeline.store() as store:
        report_outcomes(context, store, days_by_symbol(config.keys), pipeline.settings().pages_url)


@dg.job(name="okx_check_outcomes")
def check_outcomes_job() -> None:
    """Reports the outcomes of checks that a run of the verdicts did not."""
    report_check_outcomes()


@dg.sensor(
    name="okx_check_outcomes",
    # By its name: given the job itself, Dagster copies the sensor and warns of a parameter that nobody set.
    job_name="okx_check_outcomes",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts a run where Dagster does not show what a check says of a day.",
)
def check_outcomes(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult:
    """Reads verdicts and materializations in the order they came, and goes on once Dagster shows what they say."""
    cursor = _read_cursor(context.instance, context.cursor)
    with pipeline.store() as store:
        judged = judged_after(store.connection, datetime.fromisoformat(cursor["judged"]), DAYS_A_TICK)
        keys = [str(key_of(day, symbol)) for symbol, day, _ in judged]
        passed = {"judged": judged[-1][2].isoformat() if judged else cursor["judged"]}
        for asset in (candles.key, STREAMED):
            name = asset.path[-1]
            found = _materialized(context.instance, asset, cursor[name])
            keys += [key for _, key in found]
            passed[name] = found[-1][0] if found else cursor[name]
        left = outcomes_to_report(context.instance, store, days_by_symbol(keys), pipeline.settings().pages_url)
    if not left:
        return dg.SensorResult(
            cursor=json.dumps(passed), skip_reason=f"Dagster shows {len(set(keys))} days as they are"
        )
    after = next_after(context.instance, NAME)
    if after is None:
        return dg.SensorResult(cursor=json.dumps(cursor), skip_reason=f"{len(left)} outcomes wait for a run")
    days = sorted({partition for _, partition in left})
    request = dg.RunRequest(
        run_key=f"{NAME} {after}",
        run_config={"ops": {report_check_outcomes.name: {"config": {"keys": days}}}},
        tags={TAG: NAME},
    )
    return dg.SensorResult(run_requests=[request], cursor=json.dumps(cursor))


def _read_cursor(instance: dg.DagsterInstance, cursor: str | None) -> dict[str, Any]:
    if cursor:
        return dict(json.loads(cursor))
    # All verdicts there are, and what is materialized from now on.
    newest = {key.path[-1]: instance.fetch_materializations(key, limit=1).records for key in (candles.key, STREAMED)}
    begin = datetime.fromtimestamp(0, tz=UTC).isoformat()
    return {"judged": begin, **{name: records[0].storage_id if records else 0 for name, records in newest.items()}}


def _materialized(instance: dg.DagsterInstance, asset: dg.AssetKey, after: int) -> list[tuple[int, str]]:
    """The next materializations after the storage id `after`, and the partition of each."""
    wanted = dg.AssetRecordsFilter(asset_key=asset, after_storage_id=after)
    records = instance.fetch_materializations(wanted, limit=DAYS_A_TICK, ascending=True).records
    return [(record.storage_id, record.partition_key) for record in records if record.partition_key is not None]
