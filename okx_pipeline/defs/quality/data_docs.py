"""The assets that people read: the Data Docs, built by one writer, and the report of the verdicts over time."""

import base64
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.quality.candle_quality import candle_quality
from okx_pipeline.defs.resources import Pipeline, told_in_one_line
from okx_pipeline.quality.calendar import verdicts_svg
from okx_pipeline.quality.verdicts import build_pages, recent_verdicts
from okx_pipeline.storage.quality_results import DayVerdicts

KEEP_DAYS: Final = 90
"""Days for which the pages of a validation are kept; its verdicts outlive them."""

REPORT_DAYS: Final = 60


@dg.asset(
    key=["okx", "data_docs"],
    deps=[candle_quality],
    group_name="quality",
    kinds={"greatexpectations", "html"},
    owners=["team:market-data"],
    pool="okx_data_docs",
)
def data_docs(pipeline: Pipeline) -> dg.MaterializeResult[None]:
    """One page per validation of a day, their index and a page per month; old pages are pruned."""
    with told_in_one_line(), pipeline.store() as store:
        built, pruned = build_pages(store, pipeline.docs(), KEEP_DAYS, datetime.now(tz=UTC))
    return dg.MaterializeResult(
        metadata={
            "pages": built.pages,
            "made": built.made,
            "pruned": pruned,
            "site": dg.MetadataValue.url(f"{pipeline.settings().pages_url}/quality/index.html"),
        }
    )


@dg.asset(
    key=["okx", "quality_report"],
    deps=[candle_quality],
    group_name="quality",
    kinds={"postgres"},
    owners=["team:market-data"],
)
def quality_report(pipeline: Pipeline) -> dg.MaterializeResult[None]:
    """One row per day and check: series that passed, have warnings or errors, and series that are not judged.

    Errors and warnings are those that stand on all days; picture and table show the last two months.
    """
    with told_in_one_line(), pipeline.store() as store:
        recent = recent_verdicts(store, REPORT_DAYS)
    picture = base64.b64encode(verdicts_svg(recent.days, recent.unjudged).encode()).decode()
    series = {
        day: max(each.series for each in of_day) for day, of_day in groupby(recent.days, key=lambda each: each.day)
    }
    standing = recent.standing
    return dg.MaterializeResult(
        metadata={
            "outcome": recent.outcome,
            "series-days": standing.series_days if standing else 0,
            "errors": standing.with_errors if standing else "not judged",
            "warnings": standing.with_warnings if standing else "not judged",
            "not judged": standing.unjudged if standing else "everything",
            "over time": dg.MetadataValue.md(f"![verdicts](data:image/svg+xml;base64,{picture})"),
            "by day": dg.MetadataValue.table([_record(each, series[each.day]) for each in recent.days[-300:]], _SCHEMA),
        }
    )


_SCHEMA: Final = dg.TableSchema(
    [
        dg.TableColumn("day", "string"),
        dg.TableColumn("check", "string"),
        *(dg.TableColumn(name, "int") for name in ("series", "passed", "warnings", "errors", "not judged")),
    ]
)


def _record(each: DayVerdicts, series: int) -> dg.TableRecord:
    """A row of the table; `series` were judged by any check of the day."""
    row: dict[str, Any] = {
        "day": each.day.isoformat(),
        "check": each.check,
        "series": each.series,
        "passed": each.series - each.warnings - each.errors,
        "warnings": each.warnings,
        "errors": each.errors,
        "not judged": series - each.series,
    }
    return dg.TableRecord(row)
