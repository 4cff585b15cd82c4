"""Outcomes of checks by partition: what Dagster shows of a symbol's day, and how a run reports it.

An outcome is an `AssetCheckEvaluation` with the key of its partition, stored in a run. Reported outside of any run,
Dagster's storage takes one for each check and partition, and refuses the second. What a verdict says is not decided
here.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from okx_pipeline.defs.partitions import day_and_symbol

STATUS: Final = {
    True: AssetCheckExecutionRecordStatus.SUCCEEDED,
    False: AssetCheckExecutionRecordStatus.FAILED,
}

Key = tuple[dg.AssetCheckKey, str]
"""A check and a partition."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check says of a partition. A partition that was not judged has a warning; it has not passed."""

    passed: bool
    severity: dg.AssetCheckSeverity
    description: str
    metadata: dict[str, Any] = field(default_factory=dict)


def evaluated(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
    outcomes: Mapping[Key, Outcome],
    *,
    blocking: Collection[dg.AssetCheckKey] = (),
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Outcomes for all partitions and selected checks of a run, one partition or a range of them.

    Dagster stores an `AssetCheckResult` of a range without its partitions, and leaves the row that it planned for each.
    An evaluation that names its partition takes the place of the planned row, and one that blocks stops what is
    downstream in the run, as a result does.
    """
    for check in sorted({check for check, _ in outcomes}):
        yield dg.Output(None, output_name=_output_name(check))
    yield from _evaluations(context.instance, outcomes, blocking)


def changed(instance: dg.DagsterInstance, outcomes: Mapping[Key, Outcome], *, passes_since: date) -> dict[Key, Outcome]:
    """Those of `outcomes` that Dagster does not show yet, failures first.

    Dagster shows the latest evaluation of a partition until the partition is materialized again. An outcome that was
    reported before that is reported once more.

    Parameters
    ----------
    passes_since
        The first pass of an earlier day is left out; a pass that follows a failure is not.
    """
    found = {}
    for check, by_partition in _by_check(outcomes).items():
        partitions = list(by_partition)
        known = {
            each.partition_key: each
            for each in instance.event_log_storage.get_asset_check_partition_info([check], partition_keys=partitions)
        }
        for partition, outcome in by_partition.items():
            last = known.get(partition)
            if last is None and outcome.passed and day_and_symbol(partition)[0] < passes_since:
                continue
            is_shown = last is not None and last.latest_execution_status is STATUS[outcome.passed] and last.is_current
            if not is_shown or not (outcome.passed or _says(instance, check, partition, outcome)):
                found[check, partition] = outcome
    return dict(sorted(found.items(), key=lambda each: each[1].passed))


def report(context: dg.OpExecutionContext | dg.AssetExecutionContext, outcomes: Mapping[Key, Outcome]) -> None:
    """Store `outcomes` of partitions that the run did not plan to check. Each takes about 20 ms."""
    for evaluation in _evaluations(context.instance, outcomes, ()):
        # Dagster takes it, though its annotation leaves it out.
        context.log_event(evaluation)  # type: ignore[arg-type]


def failing_partitions(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> list[str]:
    """The partitions whose latest evaluation fails at the level of an error, ascending."""
    infos = instance.event_log_storage.get_asset_check_partition_info([check])
    failed = [each.partition_key for each in infos if each.latest_execution_status is STATUS[False]]
    return sorted(
        partition
        for partition in failed
        if partition is not None
        and (last := _last(instance, check, partition)) is not None
        and last.severity is dg.AssetCheckSeverity.ERROR
    )


def _says(instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str, outcome: Outcome) -> bool:
    last = _last(instance, check, partition)
    return last is not None and (last.severity, last.description) == (outcome.severity, outcome.description)


def _last(instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str) -> dg.AssetCheckEvaluation | None:
    records = instance.event_log_storage.get_asset_check_execution_history(
        check, limit=1, partition_filter=PartitionKeyFilter(key=partition)
    )
    return records[0].evaluation if records else None


def _evaluations(
    instance: dg.DagsterInstance, outcomes: Mapping[Key, Outcome], blocking: Collection[dg.AssetCheckKey]
) -> Iterator[dg.AssetCheckEvaluation]:
    partitions: defaultdict[dg.AssetKey, set[str]] = defaultdict(set)
    for check, partition in outcomes:
        partitions[check.asset_key].add(partition)
    targets = {asset: materializations(instance, asset, found) for asset, found in partitions.items()}
    for (check, partition), outcome in outcomes.items():
        yield dg.AssetCheckEvaluation(
            asset_key=check.asset_key,
            check_name=check.name,
            passed=outcome.passed,
            severity=outcome.severity,
            description=outcome.description,
            metadata=outcome.metadata,
            partition=partition,
            blocking=check in blocking,
            target_materialization_data=targets[check.asset_key].get(partition),
        )


def materializations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partitions: Iterable[str]
) -> dict[str, AssetCheckEvaluationTargetMaterializationData]:
    """The latest materialization of each of `partitions`; a partition that has none is left out."""
    ids = instance.event_log_storage.get_latest_storage_id_by_partition(
        asset, dg.DagsterEventType.ASSET_MATERIALIZATION, set(partitions)
    )
    if not ids:
        return {}
    wanted = dg.AssetRecordsFilter(asset_key=asset, storage_ids=list(ids.values()))
    return {
        record.partition_key: AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
        for record in instance.fetch_materializations(wanted, limit=len(ids)).records
        if record.partition_key is not None
    }


def _by_check(outcomes: Mapping[Key, Outcome]) -> dict[dg.AssetCheckKey, dict[str, Outcome]]:
    grouped: defaultdict[dg.AssetCheckKey, dict[str, Outcome]] = defaultdict(dict)
    for (check, partition), outcome in outcomes.items():
        grouped[check][partition] = outcome
    return dict(grouped)


def _output_name(check: dg.AssetCheckKey) -> str:
    return dg.AssetCheckSpec(check.name, asset=check.asset_key).get_python_identifier()
