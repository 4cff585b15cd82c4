"""The suites: what they cover, and that no whole day of real candles is taken for wrong."""

import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.candles import VALUE_COLUMNS
from okx_pipeline.quality.suites import CANDLE_RULES, MEANING, OUTAGE_MINUTES, RULES, SERIES_RULES, Check
from okx_pipeline.quality.validation import validate_day
from okx_pipeline.storage.quality_results import Severity, Verdict
from okx_pipeline_tests.quality import recorded_days
from okx_pipeline_tests.quality.recorded_days import RecordedDays

BTC, ETH = recorded_days.SYMBOLS

# Minutes in which BTC-USDT-SWAP stood still for 15 or more on end, as the file has them: weekly upgrades, mostly at
# 09:15 UTC, unplanned ones, and the ten hours of 18 December.
OUTAGES = {
    "2022-05-26": 20,
    "2022-06-01": 65,
    "2022-07-07": 75,
    "2022-07-14": 25,
    "2022-11-03": 15,
    "2022-11-10": 55,
    "2022-11-23": 15,
    "2022-12-18": 610,
}


@pytest.fixture(scope="module")
def days(recordings: Path) -> RecordedDays:
    return recorded_days.read(recordings / "candles")


@pytest.fixture(scope="module")
def verdicts(days: RecordedDays) -> list[Verdict]:
    """All checks on every whole day of every recording, holes taken for proven."""
    validation = validate_day(
        days.rows, expected=days.expected, rules=days.rules, mismatches=[], parity={}, compared=days.rows.series
    )
    return list(validation.verdicts)


# What they cover


def test_every_rule_has_a_name_of_its_own_and_every_check_has_rules() -> None:
    assert len(RULES) == len(CANDLE_RULES) + len(SERIES_RULES)
    assert {rule.check for rule in RULES.values()} == set(Check) == set(MEANING)


def test_every_column_of_the_candle_has_to_be_there() -> None:
    assert {f"{column.name}_is_a_number" for column in VALUE_COLUMNS} <= RULES.keys()


def test_a_price_that_opens_elsewhere_than_the_last_closed_breaks_no_rule() -> None:
    # It does in 46 % of real minutes.
    assert not [rule.name for rule in RULES.values() if "continu" in rule.name]


def test_the_names_of_the_checks_are_known_without_importing_what_judges() -> None:
    code = "import sys, okx_pipeline.quality.suites; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"great_expectations", "pandas", "numpy", "jinja2"}.intersection(loaded)


def test_validating_is_imported_without_the_library_that_judges() -> None:
    code = "import sys, okx_pipeline.quality.validation; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"great_expectations", "pandas", "jinja2"}.intersection(loaded)


# Real days


def test_all_recordings_are_judged(days: RecordedDays, verdicts: list[Verdict]) -> None:
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for symbol, timeframe in days.rows.series:
        counts[symbol.split()[0], timeframe] += 1
    assert all(counts[symbol, name] >= 19 for symbol in (BTC, ETH) for name in recorded_days.RECORDED)
    assert counts[BTC, "5m"] >= 244 + 26
    # There is no second store to compare with.
    assert len(verdicts) == len(days.rows.series) * (len(Check) - 1)


def test_no_whole_day_of_the_recordings_has_an_error(verdicts: list[Verdict]) -> None:
    assert [each for each in verdicts if each.is_error] == []


def test_every_warning_on_the_recordings_is_an_outage_or_a_crash(verdicts: list[Verdict]) -> None:
    warned = {(each.symbol, each.timeframe, *each.failed) for each in verdicts if not each.passed}
    outages = {(f"{BTC} {day}", "5m", "no_outage") for day in OUTAGES} | {(f"{BTC} 2022-12-18", "4h", "no_outage")}
    crashes = {
        (f"{symbol} {day}", timeframe, "moves_within_usual_range")
        for symbol, day, timeframe in (
            (BTC, "2022-08-19", "5m"),
            (BTC, "2026-08-19", "5m"),
            (BTC, "2026-08-19", "1m"),
            (ETH, "2026-08-19", "1m"),
        )
    }
    assert warned == outages | crashes


@pytest.mark.parametrize(("day", "minutes"), OUTAGES.items())
def test_an_outage_is_told_with_all_its_candles(verdicts: list[Verdict], day: str, minutes: int) -> None:
    (verdict,) = [
        each for each in verdicts if (each.symbol, each.timeframe, *each.failed) == (f"{BTC} {day}", "5m", "no_outage")
    ]
    assert verdict.severity is Severity.WARNING
    assert all(OUTAGE_MINUTES <= row["silent_minutes"] <= minutes for row in verdict.observed["samples"]["no_outage"])
    assert verdict.observed["unexpected"]["no_outage"] * 5 == minutes


def test_a_day_with_a_hole_that_is_not_proven_is_not_complete(days: RecordedDays) -> None:
    key = (f"{BTC} 2026-08-05", "1m")
    proven = days.expected[key]
    assert proven.absent > 0
    expected = {**days.expected, key: replace(proven, absent=proven.absent - 1)}
    validation = validate_day(
        days.rows, expected=expected, rules=days.rules, mismatches=[], parity={}, compared=days.rows.series
    )
    wrong = [each for each in validation.verdicts if each.is_error]
    assert [(each.symbol, each.check, each.failed) for each in wrong] == [
        (key[0], "completeness", ("no_candle_missing",))
    ]
    assert wrong[0].observed["samples"] == {"no_candle_missing": [{"candles_missing": 1}]}
    assert wrong[0].day == days.rows.day == date(2026, 8, 1)
