"""Great Expectations at work: every failing row is found, nothing is connected to, and nothing is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from okx_pipeline.quality.expectations import judge, whole_result
from okx_pipeline.quality.suites import RULES

HIGH, ORDER = RULES["high_at_least_open"], RULES["rows_in_key_order"]

ALONE = """
import os
import sys

def refuse(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"}:
        raise RuntimeError(f"{event} {arguments}")

sys.addaudithook(refuse)
import pandas as pd
from okx_pipeline.quality.expectations import judge, whole_result
from okx_pipeline.quality.suites import RULES
judged = judge(pd.DataFrame({"high_below_open": [0.0, 1.0]}), [RULES["high_at_least_open"]])
whole_result(judged, lambda each: [], {})
print(*judged[0].failing, os.listdir(os.environ["TMPDIR"]))
"""


def test_every_failing_row_is_found_however_many_and_missing_values_are_not_judged() -> None:
    frame = pd.DataFrame({"high_below_open": np.tile([0.0, 1e-18, np.nan], 1_000)})
    (judged,) = judge(frame, [HIGH])
    assert judged.failing.tolist() == list(range(1, 3_000, 3))
    assert not judged.result.success


def test_rules_about_text_take_whatever_is_there_for_wrong() -> None:
    frame = pd.DataFrame({"disorder": pd.Series([None, "the row of 2 comes after that of 1"], dtype=object)})
    (judged,) = judge(frame, [ORDER])
    assert judged.failing.tolist() == [1]


def test_nothing_held_breaks_no_rule() -> None:
    (judged,) = judge(pd.DataFrame({"high_below_open": np.zeros(0)}), [HIGH])
    assert judged.result.success
    assert judged.failing.tolist() == []


def test_a_rule_that_cannot_be_judged_is_no_verdict() -> None:
    with pytest.raises(RuntimeError, match="high_at_least_open cannot be judged"):
        judge(pd.DataFrame({"low_above_open": [0.0]}), [HIGH])


def test_the_result_is_the_librarys_own_with_the_rows_that_are_shown() -> None:
    frame = pd.DataFrame({"high_below_open": [0.0, 0.5]})
    document = whole_result(judge(frame, [HIGH]), lambda each: [{"row": int(each.failing[0])}], {"rows": 2})
    (result,) = document["results"]
    assert result["expectation_config"]["type"] == "expect_column_values_to_be_between"
    assert result["expectation_config"]["severity"] == "critical"
    assert result["expectation_config"]["meta"] == {"rule": "high_at_least_open", "check": "ohlc_sanity"}
    assert result["result"]["unexpected_rows"] == [{"row": 1}]
    assert result["result"]["unexpected_count"] == 1
    assert not document["success"]
    assert document["statistics"]["unsuccessful_expectations"] == 1
    assert document["meta"]["rows"] == 2


def test_judging_connects_to_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    places = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR")}
    for place in places.values():
        place.mkdir()
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE],
        env=environment,
        cwd=tmp_path / "home",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "1 []\n", "")
    assert [path for place in places.values() for path in place.rglob("*")] == []
