"""Great Expectations at work: rules become expectations, a frame is judged by them, results carry the failing rows.

The library is imported when it is first needed: it takes four seconds and 250 MB. What is judged and by which rules is
the caller's to say. Nothing here or in the library opens a connection.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from okx_pipeline.quality.suites import Rule

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult

# Where every failing row is, but neither its values, of which the library keeps 200 at most, nor a query by row number.
_RESULT_FORMAT: Final = {
    "result_format": "COMPLETE",
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}
_KEPT: Final = ("element_count", "unexpected_count", "unexpected_percent", "missing_count")
_SUITE: Final = "candles"


@dataclass(frozen=True, slots=True)
class Judged:
    """A rule held against a frame: the numbers of the rows for which it does not hold, and the library's own result."""

    rule: Rule
    failing: npt.NDArray[np.int64]
    result: "ExpectationValidationResult"


def imported() -> Any:
    """The library, imported at first need."""
    with warnings.catch_warnings():
        # The library imports sre_constants and sre_parse, which Python 3.11 and later deprecate.
        warnings.filterwarnings("ignore", "module 'sre_[a-z]+' is deprecated", DeprecationWarning)
        import great_expectations
    return great_expectations


def judge(frame: Any, rules: Sequence[Rule]) -> list[Judged]:
    """Hold every one of `rules` against the pandas `frame` at once, as one batch.

    Raises
    ------
    RuntimeError
        If an expectation cannot be evaluated: its column is not there or not of a kind it can look at.
    """
    library = imported()
    from great_expectations import expectations as classes
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    suite = library.ExpectationSuite(_SUITE, [_expectation(classes, rule) for rule in rules])
    # Without a site of its own: every context would make a temporary folder, which stays until the process ends.
    project = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
        analytics_enabled=False,
    )
    # Made anew for every batch, in 3 ms: what one process judges at once shares nothing.
    context = library.get_context(mode="ephemeral", project_config=project)
    source = context.data_sources.add_pandas("store")
    batch = (
        source.add_dataframe_asset(_SUITE).add_batch_definition_whole_dataframe("day").get_batch({"dataframe": frame})
    )
    result = batch.validate(suite, result_format=_RESULT_FORMAT)
    by_name = {each.expectation_config.meta["rule"]: each for each in result.results}
    return [_judged(rule, by_name[rule.name]) for rule in rules]


def whole_result(
    judged: Sequence[Judged], shown: Callable[[Judged], Sequence[Mapping[str, Any]]], meta: Mapping[str, Any]
) -> dict[str, Any]:
    """All results as one of the library's own, as JSON has it.

    Parameters
    ----------
    shown
        What is to be seen of the rows for which a rule does not hold; a few, whatever their number.
    meta
        Goes with the result.
    """
    imported()
    from great_expectations.core import ExpectationSuiteValidationResult

    for each in judged:
        kept = {name: each.result.result[name] for name in _KEPT if name in each.result.result}
        each.result.result = {**kept, "unexpected_rows": list(shown(each))}
    held = sum(1 for each in judged if each.result.success)
    whole = ExpectationSuiteValidationResult(
        success=held == len(judged),
        results=[each.result for each in judged],
        suite_name=_SUITE,
        statistics={
            "evaluated_expectations": len(judged),
            "successful_expectations": held,
            "unsuccessful_expectations": len(judged) - held,
            "success_percent": 100.0 * held / len(judged) if judged else 100.0,
        },
        meta={"great_expectations_version": imported().__version__, **meta},
    )
    document: dict[str, Any] = whole.to_json_dict()  # type: ignore[no-untyped-call]
    return document


def _expectation(classes: Any, rule: Rule) -> Any:
    column = {} if "column_list" in rule.arguments else {"column": rule.column}
    return getattr(classes, rule.expectation)(
        **column,
        **rule.arguments,
        description=rule.about,
        severity=rule.severity.value,
        meta={"rule": rule.name, "check": rule.check.value},
    )


def _judged(rule: Rule, result: "ExpectationValidationResult") -> Judged:
    if "unexpected_index_list" not in result.result:
        raise RuntimeError(f"{rule.name} cannot be judged: {result.exception_info}")
    return Judged(rule, np.array(result.result["unexpected_index_list"], dtype=np.int64), result)
