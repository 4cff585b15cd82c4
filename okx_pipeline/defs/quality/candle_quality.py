"""The asset of candle quality, and the checks it says of the candles: one of every meaning, for all keys of a run."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.history.candles import DAYS_A_RUN, candles
from okx_pipeline.defs.partitions import day_and_symbol, day_by_symbol, days_by_symbol, key_of
from okx_pipeline.defs.quality.candle_gaps import candle_gaps
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.defs.stream.streamed_candles import KEY as STREAMED
from okx_pipeline.quality.suites import MEANING, Check
from okx_pipeline.quality.verdicts import judge_all, last_verdicts
from okx_pipeline.storage.quality_results import Verdict, latest

ONLY_CHANGED: Final = "okx/only_changed"
"""Tag of a run that judges only what was not judged as it is now."""

LISTED: Final = 100
BLOCKING: Final = frozenset({Check.SCHEMA, Check.OHLC_SANITY})
"""What is downstream in the same run does not go on with rows that fail these."""


@dg.asset(
    key=["okx", "candle_quality"],
    partitions_def=day_by_symbol,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=DAYS_A_RUN),
    # Of the gaps alone: a check of the candles that blocks stops what depends on them, not the verdict itself.
    deps=[candle_gaps],
    group_name="quality",
    kinds={"greatexpectations", "postgres"},
    owners=["team:market-data"],
    pool="okx_quality",
    metadata={"dagster/table_name": "trading.quality_results"},
)
def candle_quality(context: dg.AssetExecutionContext, pipeline: Pipeline) -> None:
    """One verdict per check on every series of a symbol's day, of its rows in PostgreSQL and in Parquet."""
    wanted, pages_url = days_by_symbol(context.partition_keys), pipeline.settings().pages_url
    with told_in_one_line(), pipeline.store() as store:
        judge_all(store, pipeline.docs(), wanted, only_changed=ONLY_CHANGED in context.run.tags)
        for key in context.partition_keys:
            day, symbol = day_and_symbol(key)
            found = latest(store.connection, symbols=[symbol], start=day, end=day + timedelta(days=1))
            context.add_asset_metadata(_metadata(found, pages_url), partition_key=key_of(day, symbol))


def _specs(asset: dg.AssetKey, blocking: Iterable[Check]) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            check.value,
            asset=asset,
            description=MEANING[check],
            blocking=check in blocking,
        )
        for check in Check
    ]


@dg.multi_asset_check(
    name="okx_candle_checks",
    specs=[*_specs(candles.key, BLOCKING), *_specs(STREAMED, ())],
    can_subset=True,
    pool="okx_quality",
)
def candle_checks(context: dg.AssetCheckExecutionContext, pipeline: Pipeline) -> Iterator[dg.AssetCheckResult]:
    """What the checks say of the days of the run; of the last day judged where the run has none."""
    with told_in_one_line(), pipeline.store() as store:
        if context.has_partition_key or context.has_partition_key_range:
            wanted = days_by_symbol(context.partition_keys)
            verdicts = judge_all(store, pipeline.docs(), wanted, only_changed=True)
        else:
            verdicts = last_verdicts(store)
    for key in sorted(context.selected_asset_check_keys):
        of_check = [verdict for verdict in verdicts if verdict.check == key.name]
        yield _result(key, of_check, pipeline.settings().pages_url)


def _result(key: dg.AssetCheckKey, verdicts: Sequence[Verdict], pages_url: str) -> dg.AssetCheckResult:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    errors = [verdict for verdict in failed if verdict.is_error]
    days = len({(verdict.day, verdict.symbol) for verdict in verdicts})
    metadata: dict[str, Any] = {"days": days, "verdicts": len(verdicts), "failed": len(failed)}
    if failed:
        metadata["failing"] = dg.MetadataValue.table([_record(verdict) for verdict in failed[:LISTED]], _SCHEMA)
    pages = [verdict.docs_page for verdict in (*failed, *verdicts) if verdict.docs_page]
    if pages:
        metadata["page"] = dg.MetadataValue.url(f"{pages_url}/quality/{pages[0]}")
    return dg.AssetCheckResult(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR if errors else dg.AssetCheckSeverity.WARN,
        description=_said(days, len(verdicts), len(failed)),
        metadata=metadata,
    )


def _said(days: int, verdicts: int, failed: int) -> str:
    if not verdicts:
        return "nothing to judge: no day that has closed"
    what = f"{failed} of {verdicts} verdicts fail" if failed else f"all {verdicts} verdicts pass"
    return f"{what}, on {days} {'day' if days == 1 else 'days'}"


def _metadata(verdicts: Sequence[Verdict], pages_url: str) -> dict[str, Any]:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    pages = [verdict.docs_page for verdict in (*failed, *verdicts) if verdict.docs_page]
    metadata: dict[str, Any] = {
        "verdicts": len(verdicts),
        "errors": sum(verdict.is_error for verdict in failed),
        "warnings": sum(not verdict.is_error for verdict in failed),
    }
    if failed:
        metadata["failing"] = dg.MetadataValue.table([_record(verdict) for verdict in failed[:LISTED]], _SCHEMA)
    if pages:
        metadata["page"] = dg.MetadataValue.url(f"{pages_url}/quality/{pages[0].partition('#')[0]}")
    return metadata


_SCHEMA: Final = dg.TableSchema(
    [
        *(dg.TableColumn(name, "string") for name in ("day", "symbol", "timeframe", "store", "check", "severity")),
        dg.TableColumn("failed", "string", description="Expectations, and how many values each found unexpected"),
    ]
)


def _record(verdict: Verdict) -> dg.TableRecord:
    counts = verdict.observed.get("unexpected", {})
    return dg.TableRecord(
        {
            "day": verdict.day.isoformat(),
            "symbol": verdict.symbol,
            "timeframe": verdict.timeframe,
            "store": verdict.store.value,
            "check": verdict.check,
            "severity": str(verdict.severity),
            "failed": ", ".join(f"{name} ({counts[name]})" if name in counts else name for name in verdict.failed),
        }
    )
