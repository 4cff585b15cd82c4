"""The mutations of `make mutations` apply to the code as it is; that each is caught takes minutes and is seen there."""

from pathlib import Path

import pytest

from okx_pipeline_tests.faults.mutations import MUTATIONS, ROOT, Edit, Mutation, apply, source_of


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_it_still_applies_and_its_tests_are_there(mutation: Mutation, tmp_path: Path) -> None:
    for edit in mutation.edits:
        copy = tmp_path / edit.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source_of(edit.file))
    apply(mutation, tmp_path)
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in source_of(f"okx_pipeline_tests/{file}")


def test_the_page_names_every_mutation() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    assert [each.what for each in MUTATIONS if f"| {each.what} |" not in page] == []


@pytest.mark.parametrize("source", ["", "guard()\nguard()\n"])
def test_one_that_applies_nowhere_or_twice_is_told(source: str) -> None:
    with pytest.raises(ValueError, match=r"holds 'guard\(\)' [02] times instead of once"):
        Edit("some.py", "guard()", "pass").applied(source)
