"""`make mutations`: the tests are tested. In a copy of the tree one protection after the other is switched off.

Each has to turn every test named with it red; one that stays green would not have noticed the protection's loss. A
mutation is text that is found exactly once and replaced, so that it cannot quietly apply to nothing.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = ROOT / ".artifacts" / "faults" / "mutations.md"
AT_ONCE: Final = 2
LONGEST_S: Final = 300

_COPIED: Final = ("okx_pipeline", "okx_pipeline_tests", "sql", "pyproject.toml", "dagster.yaml", "workspace.yaml")
_TESTS: Final = "okx_pipeline_tests"
_FAILED: Final = re.compile(r"^FAILED (\S+?)(?:\[|\s|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Edit:
    """Text of a file, to be found once, and what stands there instead."""

    file: str
    text: str
    instead: str

    def applied(self, source: str) -> str:
        """`source` with the edit.

        Raises
        ------
        ValueError
            If the text is not there exactly once.
        """
        found = source.count(self.text)
        if found != 1:
            raise ValueError(f"{self.file} holds {self.text.strip().splitlines()[0]!r} {found} times instead of once")
        return source.replace(self.text, self.instead)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A protection, how it is switched off, and the tests that have to turn red for it."""

    what: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


LANDING: Final = "okx_pipeline/storage/landing.py"
PROJECTION: Final = "okx_pipeline/storage/projection.py"
PARQUET: Final = "okx_pipeline/storage/parquet.py"
LANDER: Final = "okx_pipeline/stream/lander.py"
SIDECAR: Final = "okx_pipeline/stream/sidecar.py"

BY_THE_RULES: Final = "faults/test_sequences.py::test_any_sequence_of_faults_ends_with_the_truth_by_the_rules"
IN_POSTGRESQL: Final = (
    "faults/test_sequences.py::test_any_sequence_of_faults_ends_with_the_truth_in_postgresql_as_by_the_rules"
)

LOST_CONNECTION: Final = (
    "faults/test_order.py::test_a_projector_that_lost_its_connection_never_puts_an_older_month_over_a_newer_one"
)

MUTATIONS: Final = (
    # What lands
    Mutation(
        "de-duplication within a batch",
        (Edit(LANDING, "return sorted(batch.values()), contradicted", "return sorted(rows), contradicted"),),
        (
            "storage/test_landing.py::test_a_key_twice_in_a_batch_is_won_by_the_later_rest_row_and_the_earlier_frame",
            IN_POSTGRESQL,
        ),
    ),
    Mutation(
        "of frames the first counts",
        (Edit(LANDING, "(reversed(rows) if keep_first else rows)", "rows"),),
        (
            "storage/test_landing.py::test_a_key_twice_in_a_batch_is_won_by_the_later_rest_row_and_the_earlier_frame",
            IN_POSTGRESQL,
        ),
    ),
    Mutation(
        "one order of keys",
        (
            Edit(LANDING, "return sorted(batch.values()), contradicted", "return [*batch.values()], contradicted"),
            Edit(LANDING, "        return ordered, []", "        return rows, []"),
            Edit(LANDING, "    ORDER BY symbol, timeframe, timestamp_ms\n    ON CONFLICT", "    ON CONFLICT"),
        ),
        ("faults/test_order.py::test_writers_of_the_same_keys_wait_for_each_other_and_never_in_a_circle",),
    ),
    Mutation(
        "a landing that was ended by a deadlock, or lost its partition, begins anew",
        (Edit(LANDING, "_TRIES: Final = 3\n", "_TRIES: Final = 1\n"),),
        (
            "faults/test_order.py::test_of_two_landings_that_wait_for_each_other_both_land",
            "storage/test_partitions.py::test_what_lands_while_its_partition_is_dropped_lands",
        ),
    ),
    Mutation(
        "a row that is there already is not written again",
        (
            Edit(
                LANDING,
                "WHERE stored.symbol IS NULL OR ({stored_values}) IS DISTINCT FROM ({staged_values})\n), landed",
                "), landed",
            ),
        ),
        ("storage/test_landing.py::test_landing_a_batch_again_changes_nothing_and_writes_no_row_version",),
    ),
    Mutation(
        "precedence: REST counts only where it was asked later",
        (
            Edit(
                LANDING,
                "OR coalesce(%(source)s = 'rest' AND stored.updated_at < %(requested_at)s, false) AS wanted",
                "OR %(source)s = 'rest' AS wanted",
            ),
            Edit(
                LANDING,
                "WHERE %(source)s = 'rest' AND stored.updated_at < %(requested_at)s\n",
                "WHERE %(source)s = 'rest'\n",
            ),
        ),
        (
            "storage/test_landing.py::test_rest_leaves_a_row_alone_that_changed_after_its_request_was_sent",
            IN_POSTGRESQL,
        ),
    ),
    Mutation(
        "precedence: a frame changes nothing",
        (
            Edit(
                LANDING,
                "OR coalesce(%(source)s = 'rest' AND stored.updated_at < %(requested_at)s, false) AS wanted",
                "OR coalesce(stored.updated_at < %(requested_at)s, true) AS wanted",
            ),
            Edit(
                LANDING,
                "WHERE %(source)s = 'rest' AND stored.updated_at < %(requested_at)s\n",
                "WHERE coalesce(stored.updated_at < %(requested_at)s, true)\n",
            ),
        ),
        (
            "storage/test_landing.py::test_the_websocket_never_changes_a_row_and_its_contradiction_is_reported",
            IN_POSTGRESQL,
        ),
    ),
    Mutation(
        "a changed value is kept as a revision",
        (
            Edit(
                "sql/0001.candlesticks.sql",
                "CREATE TRIGGER keep_revision AFTER UPDATE ON trading.candlesticks",
                "CREATE TRIGGER keep_revision AFTER UPDATE OF symbol ON trading.candlesticks",
            ),
        ),
        (
            "storage/test_landing.py::test_rest_corrects_a_row_that_is_older_than_its_request_and_keeps_the_old_value",
            IN_POSTGRESQL,
        ),
    ),
    Mutation(
        "the landing mark",
        (
            Edit(
                LANDING,
                "    FROM days ORDER BY symbol, timeframe, day\n    {remark}",
                "    FROM days WHERE false ORDER BY symbol, timeframe, day\n    {remark}",
            ),
        ),
        (
            "storage/test_landing.py::test_a_landing_marks_each_series_day_it_changed_and_only_those",
            IN_POSTGRESQL,
        ),
    ),
    Mutation(
        "the note of landings that are to be marked",
        (Edit(LANDING, "        connection.execute(_NOTE, [", "        len(["),),
        ("storage/test_landing.py::test_the_edge_of_many_series_is_durable_before_its_marks_which_are_made_once",),
    ),
    Mutation(
        "marks that a killed stream left unmade",
        (
            Edit(
                LANDER,
                "        self._is_marked = False\n        self._arrived.set()\n",
                "        self._is_marked = True\n",
            ),
        ),
        ("faults/test_order.py::test_the_marks_that_a_killed_stream_left_unmade_are_made_by_the_next",),
    ),
    Mutation(
        "quarantine",
        (
            Edit(
                LANDING,
                "            quarantined = _quarantine(connection, refused, source)\n",
                "            quarantined = 0\n",
            ),
        ),
        (
            "storage/test_landing.py::test_a_refused_row_is_quarantined_once_and_the_rest_of_the_batch_lands",
            IN_POSTGRESQL,
        ),
    ),
    Mutation(
        "the archive state, when something lands",
        (Edit(LANDING, "                _refuse_archived(connection, days, months)\n", "                pass\n"),),
        ("storage/test_landing.py::test_an_archived_month_is_refused_whole_and_says_which", IN_POSTGRESQL),
    ),
    Mutation(
        "candles are committed to the disk",
        (
            Edit(
                "okx_pipeline/storage/database.py",
                "                connection.execute(_DURABLE if durable else _NOT_DURABLE)\n                if watched",
                "                connection.execute(_NOT_DURABLE)\n                if watched",
            ),
        ),
        ("storage/test_database.py::test_a_connection_speaks_utc_and_commits_durably_unless_told_otherwise",),
    ),
    # What is a candle
    Mutation(
        "the confirm check",
        (
            Edit(
                "okx_pipeline/exchange/messages.py",
                "    if confirm == protocol.UNCONFIRMED:\n        return\n",
                "    if confirm == protocol.UNCONFIRMED:\n        confirm = protocol.CONFIRMED\n",
            ),
        ),
        (
            "exchange/test_messages.py::test_forming_candle_is_neither_a_candle_nor_refused_whatever_its_shape",
            "exchange/test_windows.py::test_unconfirmed_candle_never_comes_out_even_of_a_window_that_holds_it",
        ),
    ),
    Mutation(
        "a confirmation before the close is not believed",
        (
            Edit(
                SIDECAR,
                "        if self._is_early(series.timeframe.close_of(candle.timestamp_ms), now_ms):",
                "        if False:",
            ),
        ),
        (BY_THE_RULES,),
    ),
    Mutation(
        "values that no market can have are refused",
        (
            Edit(
                "okx_pipeline/exchange/messages.py",
                "return impossibility(timeframe, candle) or candle",
                "return candle",
            ),
        ),
        ("exchange/test_messages.py::test_row_that_is_no_candle_is_refused_and_costs_no_other_row", BY_THE_RULES),
    ),
    Mutation(
        "one spelling of a number",
        (
            Edit(
                "okx_pipeline/candles.py",
                '    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain\n',
                "",
            ),
        ),
        ("test_candles.py::test_canonical_keeps_the_value_and_gives_equal_values_equal_text", BY_THE_RULES),
    ),
    # The stream
    Mutation(
        "catch-up of what no frame brought",
        (Edit("okx_pipeline/stream/series.py", "            now_ms >= self.due_ms and", "            False and"),),
        (
            "stream/test_series.py::test_a_candle_that_is_never_confirmed_is_asked_for_after_its_grace",
            BY_THE_RULES,
        ),
    ),
    Mutation(
        "REST is asked about what is in dispute",
        (
            Edit(
                SIDECAR,
                "            self._disputed[Series(symbol, parse_timeframe(name)), open_ms] = monotonic()",
                "            _ = monotonic()",
            ),
        ),
        (
            "faults/test_sequences.py::test_rest_that_was_asked_while_a_frame_waited_is_asked_again_and_decides",
            BY_THE_RULES,
        ),
    ),
    Mutation(
        "acknowledgement after the commit",
        (
            Edit(
                LANDER,
                "        try:\n            landed = await self._landed(batch)\n",
                "        if batch.rows:\n            self._on_landed(batch, Landed())\n"
                "        try:\n            landed = await self._landed(batch)\n",
            ),
        ),
        (
            "faults/test_order.py::"
            "test_a_batch_is_acknowledged_once_others_can_see_it_and_landed_again_where_it_was_not",
        ),
    ),
    Mutation(
        "a batch that did not land is landed again",
        (
            Edit(
                LANDER,
                "                self._put_back(batch)\n                self.is_away = True\n",
                "                self.is_away = True\n",
            ),
        ),
        (
            "faults/test_order.py::"
            "test_a_batch_is_acknowledged_once_others_can_see_it_and_landed_again_where_it_was_not",
        ),
    ),
    Mutation(
        "candles of a detached month wait",
        (Edit(LANDER, "        self._held_back.append(replace(batch, candles", "        _ = (replace(batch, candles"),),
        ("faults/test_order.py::test_candles_of_a_detached_month_wait_until_it_is_attached_while_all_others_land",),
    ),
    Mutation(
        "the offset moves only with what has landed",
        (
            Edit(
                "okx_pipeline/stream/series.py",
                "            self.on_their_way.add(open_ms)\n",
                "            self.landed.add(open_ms)\n            self._move_on(0)\n",
            ),
        ),
        ("stream/test_series.py::test_a_candle_on_its_way_is_not_asked_for_and_one_that_was_dropped_is",),
    ),
    Mutation(
        "what did not fit is asked for again",
        (
            Edit(
                SIDECAR,
                '            self.counters.wrong("no room to wait",',
                '            progress.queued(candle.timestamp_ms)\n            self.counters.wrong("no room to wait",',
            ),
        ),
        (BY_THE_RULES,),
    ),
    Mutation(
        "the rate budget",
        (
            Edit(
                "okx_pipeline/storage/request_budget.py",
                "      AND free_at <= clock_timestamp() AND claimed_until <= clock_timestamp()\n",
                "      AND claimed_until <= clock_timestamp()\n",
            ),
        ),
        ("storage/test_request_budget.py::test_processes_together_never_ask_more_than_allowed_and_hardly_less",),
    ),
    Mutation(
        "a short page is not the end",
        (
            Edit(
                "okx_pipeline/exchange/windows.py",
                "        cursor_ms = page.opens[-1]\n",
                "        cursor_ms = page.opens[-1] if page.rows == protocol.PAGE_LIMIT else window.start_ms\n",
            ),
        ),
        (
            "exchange/test_windows.py::test_maximum_silently_lowered_to_100_rows_costs_requests_and_no_candle",
            "exchange/test_windows.py::"
            "test_every_candle_of_the_range_comes_out_exactly_once_whatever_the_pages_look_like",
        ),
    ),
    # The ledger
    Mutation(
        "the ledger counts what is missing",
        (
            Edit(
                "okx_pipeline/storage/coverage.py",
                "        tally.missing = sum(day.timeframe.count(*each) for each in missing)\n",
                "        tally.missing = 0\n",
            ),
        ),
        ("storage/test_coverage.py::test_a_day_wanted_and_not_held_at_all_is_missing_whole", IN_POSTGRESQL),
    ),
    Mutation(
        "one answer without a candle proves nothing",
        (
            Edit(
                "okx_pipeline/quality/repair.py",
                "        if len(evidence) < 2 or (not self._is_old(gap, last) and apart_ms < AGAIN_YOUNG_MS):\n",
                "        if False:\n",
            ),
        ),
        (IN_POSTGRESQL,),
    ),
    Mutation(
        "gaps that stay open are told",
        (
            Edit(
                "okx_pipeline/alerts/sources.py",
                "        for each in gaps_open_for(connection, hours)\n",
                "        for each in gaps_open_for(connection, hours)[:0]\n",
            ),
        ),
        ("alerts/test_incidents.py::test_gaps_that_stay_open_are_an_incident_a_symbol",),
    ),
    # The files
    Mutation(
        "fsync of a file before it gets its name",
        (Edit(PARQUET, "            os.fsync(sink.fileno())\n", ""),),
        ("faults/test_order.py::test_a_file_is_on_the_disk_whole_before_it_gets_its_name_and_its_folders_are_after",),
    ),
    Mutation(
        "fsync of the folder after it",
        (Edit(PARQUET, "            os.fsync(opened)\n", "            pass\n"),),
        ("faults/test_order.py::test_a_file_is_on_the_disk_whole_before_it_gets_its_name_and_its_folders_are_after",),
    ),
    Mutation(
        "a file is written beside the one that is there",
        (
            Edit(PARQUET, '        with beside.open("xb") as sink:', '        with path.open("wb") as sink:'),
            Edit(PARQUET, "        beside.replace(path)\n", ""),
        ),
        (
            "storage/test_parquet.py::test_a_full_disk_leaves_the_old_file_alone_and_takes_no_space_with_it",
            "storage/test_projection.py::test_a_pass_killed_at_any_step_is_completed_by_the_next",
        ),
    ),
    Mutation(
        "checksums of pages, when written",
        (Edit(PARQUET, "        write_page_checksum=True,", "        write_page_checksum=False,"),),
        ("storage/test_parquet.py::test_a_flipped_byte_is_noticed_when_the_rows_are_read",),
    ),
    Mutation(
        "checksums of pages, when read",
        (Edit(PARQUET, "page_checksum_verification=True", "page_checksum_verification=False"),),
        ("storage/test_parquet.py::test_a_flipped_byte_is_noticed_when_the_rows_are_read",),
    ),
    Mutation(
        "the projector's lock",
        (
            Edit(
                PROJECTION,
                '    with session_lock(connection, "parquet", *map(str, month)):\n        started = perf_counter()\n',
                "    if True:\n        started = perf_counter()\n",
            ),
        ),
        ("faults/test_order.py::test_a_projector_that_was_slow_never_puts_an_older_month_over_a_newer_one",),
    ),
    Mutation(
        "the proof that the projector's lock is still held",
        (Edit(PARQUET, "        confirm()\n        beside.replace(path)\n", "        beside.replace(path)\n"),),
        (LOST_CONNECTION,),
    ),
    Mutation(
        "the unfinished files of others are removed",
        (Edit(PARQUET, "        unfinished.unlink(missing_ok=True)\n", "        pass\n"),),
        (LOST_CONNECTION, "faults/test_order.py::test_two_writers_of_a_month_never_write_into_the_same_temporary_file"),
    ),
    Mutation(
        "a projection settles only what it has read",
        (
            Edit(
                PROJECTION,
                "UPDATE trading.landing_marks AS mark SET projected = known.revision ",
                "UPDATE trading.landing_marks AS mark SET projected = mark.revision ",
            ),
        ),
        ("storage/test_projection.py::test_what_lands_during_a_projection_waits_for_the_next",),
    ),
    Mutation(
        "the proof before rows leave PostgreSQL",
        (Edit(PROJECTION, "            _check_held(connection, store, month, proven)\n", ""),),
        ("storage/test_projection.py::test_a_month_whose_file_does_not_hold_it_all_is_not_archived",),
    ),
    Mutation(
        "a statement by hand leaves marks",
        (
            Edit(
                "sql/0016.changes-by-hand.sql",
                "PERFORM trading.leave_marks(symbols, timeframes, days, CASE",
                "PERFORM (symbols, timeframes, days, CASE",
            ),
        ),
        ("storage/test_changes_by_hand.py::test_a_statement_by_hand_marks_the_days_it_changes",),
    ),
    Mutation(
        "the audit marks what no mark tells of",
        (Edit("okx_pipeline/storage/audit.py", "FROM differing HAVING count(*) > 0", "FROM differing HAVING false"),),
        (
            "storage/test_changes_by_hand.py::"
            "test_a_whole_pass_marks_every_day_whose_rows_are_not_those_that_were_counted",
            "quality/test_status_tells.py::"
            "test_the_status_is_green_exactly_if_a_recount_finds_nothing_wrong_that_is_not_accepted",
        ),
    ),
    Mutation(
        "a file that fails a check is written again",
        (
            Edit(
                "okx_pipeline/quality/verdicts.py",
                "repaired = repair_copies(store, day, verdicts)",
                "repaired: set[SeriesKey] = set()",
            ),
        ),
        ("quality/test_copies.py::test_a_damaged_file_is_written_again_by_the_check_that_finds_it_and_the_day_passes",),
    ),
    Mutation(
        "the status tells of days of long ago",
        (
            Edit(
                "okx_pipeline/storage/findings.py",
                "WHERE known.missing > 0 AND known.read_at IS NOT NULL",
                "WHERE known.missing > 0 AND known.read_at IS NOT NULL AND known.day > current_date - 7",
            ),
        ),
        ("storage/test_findings.py::test_candles_that_are_deleted_on_an_old_day_are_a_finding_after_the_next_count",),
    ),
)


def source_of(file: str, root: Path = ROOT) -> str:
    """A file of the tree."""
    return (root / file).read_text(encoding="utf-8")


def apply(mutation: Mutation, root: Path) -> None:
    """Switch the protection off in the tree at `root`.

    Raises
    ------
    ValueError
        If an edit does not apply any more, or what comes of it is no Python.
    """
    for edit in mutation.edits:
        mutated = edit.applied(source_of(edit.file, root))
        if edit.file.endswith(".py"):
            compile(mutated, edit.file, "exec")
        (root / edit.file).write_text(mutated, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the tests of a mutation: which turned red, and whether something else went wrong."""

    mutation: Mutation
    red: frozenset[str]
    trouble: str = ""

    @property
    def caught(self) -> bool:
        """Whether every test that is named turned red."""
        return not self.trouble and set(self.mutation.tests) == self.red != frozenset()


def run_tests(root: Path, tests: Iterable[str]) -> tuple[frozenset[str], str]:
    """Run tests of the tree at `root`; which failed, and the end of what was said where they could not be run."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "--no-header"]
    # First on the path, also of the processes that tests start: the environment's own install is the unmutated tree.
    environment = {**os.environ, "PYTHONPATH": str(root), "FAULTS": "mutations", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *(f"{_TESTS}/{test}" for test in tests)],
            cwd=root, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return frozenset(), f"not done after {LONGEST_S} s"
    if done.returncode not in (0, 1) or "\nERROR " in done.stdout:
        return frozenset(), (done.stdout + done.stderr).strip()[-500:]
    failed = _FAILED.findall(done.stdout)
    return frozenset(test.removeprefix(f"{_TESTS}/") for test in failed), ""


def copied(folder: Path) -> Path:
    """The tree as it is, in a folder of its own."""
    root = folder / "tree"
    root.mkdir()
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        else:
            shutil.copy(source, root / name)
    return root


def tried(mutation: Mutation) -> Outcome:
    """Switch the protection off in a copy, and run its tests."""
    with tempfile.TemporaryDirectory(prefix="okx-mutation-") as folder:
        root = copied(Path(folder))
        try:
            apply(mutation, root)
        except ValueError as problem:
            return Outcome(mutation, frozenset(), f"no longer applies: {problem}")
        return Outcome(mutation, *run_tests(root, mutation.tests))


def without_any(mutations: Iterable[Mutation]) -> str:
    """Why the tests cannot tell anything: what is red, or cannot be run, with nothing switched off; else empty."""
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    with tempfile.TemporaryDirectory(prefix="okx-mutation-") as folder:
        root = copied(Path(folder))
        where = subprocess.run(
            [sys.executable, "-P", "-c", "import okx_pipeline; print(okx_pipeline.__file__)"],
            cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        if not Path(where.stdout.strip()).is_relative_to(root):
            return f"the copy is not what is imported: {where.stdout.strip()}"
        red, trouble = run_tests(root, tests)
    return trouble or "\n".join(sorted(red))


def line_of(outcome: Outcome) -> str:
    """The mutation's line of the table; tests are sentences."""
    red = [test.partition("::test_")[2].replace("_", " ") for test in outcome.mutation.tests if test in outcome.red]
    verdict = "" if outcome.caught else " **NOT CAUGHT**"
    return f"| {outcome.mutation.what} | {'; '.join(red) or 'nothing'}{verdict} |"


def main(names: Iterable[str]) -> int:
    """Try every mutation, or those whose names hold one of `names`; 1 if one is not caught."""
    wanted = [each for each in MUTATIONS if not names or any(name in each.what for name in names)]
    problem = without_any(wanted)
    if problem:
        print(f"red although nothing is switched off:\n{problem}", file=sys.stderr)
        return 1
    lines = ["| switched off | turned red |", "|---|---|"]
    outcomes = []
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for outcome in threads.map(tried, wanted):
            outcomes.append(outcome)
            lines.append(line_of(outcome))
            print(f"{'caught' if outcome.caught else 'NOT CAUGHT'}: {outcome.mutation.what}", flush=True)
            for test in outcome.mutation.tests:
                print(f"    {'red' if test in outcome.red else 'STAYED GREEN'}: {test}", flush=True)
            if outcome.trouble:
                print(f"    {outcome.trouble}", flush=True)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    missed = sum(not outcome.caught for outcome in outcomes)
    print(f"{len(outcomes) - missed} of {len(outcomes)} caught; {TABLE.relative_to(ROOT)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
