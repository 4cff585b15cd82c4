"""The assets that people read: the Data Docs, built by one writer, and the report of the verdicts over time."""

import base64
from datetime import UTC, datetime
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
    """One page per validation of a day, and their index; pages of long ago are pruned."""
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
    """One row per day and check: series that passed, were warned of and failed, the last two months as a picture."""
    with told_in_one_line(), pipeline.store() as store:
        days = recent_verdicts(store, REPORT_DAYS)
    picture = base64.b64encode(verdicts_svg(days).encode()).decode()
    return dg.MaterializeResult(
        metadata={
            "verdicts": sum(each.series for each in days),
            "errors": sum(each.errors for each in days),
            "warnings": sum(each.warnings for each in days),
            "over time": dg.MetadataValue.md(f"![verdicts](data:image/svg+xml;base64,{picture})"),
            "by day": dg.MetadataValue.table([_record(each) for each in days[-300:]], _SCHEMA),
        }
    )


_SCHEMA: Final = dg.TableSchema(
    [
        dg.TableColumn("day", "string"),
        dg.TableColumn("check", "string"),
        *(dg.TableColumn(name, "int") for name in ("series", "passed", "warnings", "errors")),
    ]
)


def _record(each: DayVerdicts) -> dg.TableRecord:
    row: dict[str, Any] = {
        "day": each.day.isoformat(),
        "check": each.check,
        "series": each.series,
        "passed": each.series - each.warnings - each.errors,
        "warnings": each.warnings,
        "errors": each.errors,
    }
    return dg.TableRecord(row)
