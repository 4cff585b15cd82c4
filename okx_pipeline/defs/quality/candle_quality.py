"""The asset of candle quality, and the checks of candles that Dagster shows by partition: one for each meaning.

The asset's run checks days and reports the outcomes that changed. A run of the candles themselves that was started in
the UI has the checks in it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.history.candles import DAYS_A_RUN, candles
from okx_pipeline.defs.partitions import (
    day_and_symbol,
    day_by_symbol,
    day_by_symbol_with_today,
    days_by_symbol,
    key_of,
    partitioned_check,
    symbols,
)
from okx_pipeline.defs.quality.candle_gaps import candle_gaps
from okx_pipeline.defs.quality.outcomes import Key, Outcome, changed, evaluated, materializations, report
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.defs.stream.streamed_candles import KEY as STREAMED
from okx_pipeline.quality.suites import MEANING, Check
from okx_pipeline.quality.verdicts import judge_all, last_verdicts, standing_failures, unchecked_days, verdicts_on
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.quality_results import Verdict, latest

ONLY_CHANGED: Final = "okx/only_changed"
"""Tag of a run that leaves out days that have not changed since their last verdict."""

LISTED: Final = 100
BLOCKING: Final = frozenset({Check.SCHEMA, Check.OHLC_SANITY})
"""Assets downstream in the same run do not start when one of these fails."""

OUTCOMES_A_RUN: Final = 500
"""Storing an outcome takes 20 ms. The sensor `okx_check_outcomes` requests a run for the rest."""

DAYS_SHOWN: Final = 2_000
"""Symbol-days for which a first pass is reported. For every check a pass takes 2 kB, and 0.2 ms to show."""

FEWEST_DAYS_SHOWN: Final = 7


@dg.asset(
    key=["okx", "candle_quality"],
    partitions_def=day_by_symbol,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=DAYS_A_RUN),
    # Not on the candles: a blocking check of theirs would stop the verdict itself.
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
        report_outcomes(context, store, wanted, pages_url)


def _specs(
    asset: dg.AssetKey, partitions: dg.MultiPartitionsDefinition, blocking: Iterable[Check] = ()
) -> list[dg.AssetCheckSpec]:
    return [
        partitioned_check(check.value, asset, MEANING[check], partitions, blocking=check in blocking) for check in Check
    ]


@dg.multi_asset_check(
    name="okx_candle_checks",
    specs=[*_specs(candles.key, day_by_symbol, BLOCKING), *_specs(STREAMED, day_by_symbol_with_today)],
    can_subset=True,
    pool="okx_quality",
)
def candle_checks(
    context: dg.AssetCheckExecutionContext, pipeline: Pipeline
) -> Iterator[dg.AssetCheckResult | dg.AssetCheckEvaluation | dg.Output[None]]:
    """What the checks say of each day of the run; of all days where the run has no partition."""
    selected, pages_url = sorted(context.selected_asset_check_keys), pipeline.settings().pages_url
    if not (context.has_partition_key or context.has_partition_key_range):
        with told_in_one_line(), pipeline.store() as store:
            verdicts = [*standing_failures(store), *(each for each in last_verdicts(store) if each.passed)]
        yield from (_result(key, verdicts, pages_url) for key in selected)
        return
    wanted = days_by_symbol(context.partition_keys)
    with told_in_one_line(), pipeline.store() as store:
        found = _by_day(judge_all(store, pipeline.docs(), wanted, only_changed=True))
        # Passes of long ago are forgotten, so there may be no verdict on a day that has not changed.
        unjudged = {symbol: [day for day in days if (day, symbol) not in found] for symbol, days in wanted.items()}
        again = {symbol: days for symbol, days in unjudged.items() if days}
        found |= _by_day(judge_all(store, pipeline.docs(), again, only_changed=False))
    outcomes = {
        (key, str(partition)): _outcome(key.name, found.get(day_and_symbol(partition), []), pages_url) or NOT_CHECKED
        for partition in context.partition_keys
        for key in selected
    }
    blocking = [dg.AssetCheckKey(candles.key, check.value) for check in BLOCKING]
    yield from evaluated(context, outcomes, blocking=blocking)


def report_outcomes(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    store: CandleStore,
    wanted: Mapping[str, Sequence[date]],
    pages_url: str,
) -> None:
    """Report what the verdicts on the days of `wanted` say, where Dagster does not show it yet: failures first."""
    found = outcomes_to_report(context.instance, store, wanted, pages_url)
    report(context, dict(islice(found.items(), OUTCOMES_A_RUN)))
    left = max(0, len(found) - OUTCOMES_A_RUN)
    context.log.info(f"reported {len(found) - left} outcomes of checks; {left} are left for okx_check_outcomes")


def outcomes_to_report(
    instance: dg.DagsterInstance, store: CandleStore, wanted: Mapping[str, Sequence[date]], pages_url: str
) -> dict[Key, Outcome]:
    """The outcomes on the days of `wanted`, by symbol, that Dagster does not show yet, failures first.

    A day passes once all its series were checked as they are now. The outcome on a streamed day is that of the candles.
    """
    known = instance.get_dynamic_partitions(str(symbols.name))
    possible = {symbol: wanted[symbol] for symbol in known if wanted.get(symbol)}
    unchecked = unchecked_days(store, sorted(possible))
    found = _by_day(verdicts_on(store, possible))
    keys = {str(key_of(*each)): each for each in found}
    streamed = materializations(instance, STREAMED, keys)
    outcomes = {}
    for key, each in keys.items():
        for check in Check:
            outcome = _outcome(check.value, found[each], pages_url)
            if outcome is None or (outcome.passed and each in unchecked):
                continue
            for asset in (candles.key, STREAMED) if key in streamed else (candles.key,):
                outcomes[dg.AssetCheckKey(asset, check.value), key] = outcome
    shown = max(FEWEST_DAYS_SHOWN, DAYS_SHOWN // max(1, len(known)))
    return changed(instance, outcomes, passes_since=datetime.now(tz=UTC).date() - timedelta(days=shown))


def _by_day(verdicts: Iterable[Verdict]) -> dict[tuple[date, str], list[Verdict]]:
    found: defaultdict[tuple[date, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        found[verdict.day, verdict.symbol].append(verdict)
    return dict(found)


def _result(key: dg.AssetCheckKey, verdicts: Sequence[Verdict], pages_url: str) -> dg.AssetCheckResult:
    outcome = _outcome(key.name, verdicts, pages_url) or NOT_CHECKED
    return dg.AssetCheckResult(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=outcome.passed,
        severity=outcome.severity,
        description=outcome.description,
        metadata=outcome.metadata,
    )


NOT_CHECKED: Final = Outcome(False, dg.AssetCheckSeverity.WARN, "not judged: no closed day with candles")


def _outcome(check: str, verdicts: Iterable[Verdict], pages_url: str) -> Outcome | None:
    """What the verdicts of `check` say; None where there are none, which is not a pass."""
    of_check = [verdict for verdict in verdicts if verdict.check == check]
    if not of_check:
        return None
    failed = [verdict for verdict in of_check if not verdict.passed]
    days = len({(verdict.day, verdict.symbol) for verdict in of_check})
    metadata: dict[str, Any] = {"days": days, "verdicts": len(of_check), "failed": len(failed)}
    if failed:
        metadata["failing"] = dg.MetadataValue.table([_record(verdict) for verdict in failed[:LISTED]], _SCHEMA)
    pages = [verdict.docs_page for verdict in (*failed, *of_check) if verdict.docs_page]
    if pages:
        metadata["page"] = dg.MetadataValue.url(f"{pages_url}/quality/{pages[0]}")
    return Outcome(
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR
        if any(verdict.is_error for verdict in failed)
        else dg.AssetCheckSeverity.WARN,
        description=_said(days, len(of_check), len(failed)),
        metadata=metadata,
    )


def _said(days: int, verdicts: int, failed: int) -> str:
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
