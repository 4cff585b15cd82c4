"""What travels: the wheel holds everything the program needs, and the lock names nobody."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository with what the lock installs."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(REPOSITORY)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_an_installed_wheel_migrates_and_finds_its_files_far_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    code = (
        "import okx_pipeline; from okx_pipeline.storage.migrations import known_migrations, packaged; "
        "print(okx_pipeline.__file__); print(len(known_migrations())); "
        "print(packaged('dagster.yaml').read_text()[:1], packaged('workspace.yaml').exists())"
    )
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {code}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.splitlines()
    assert told[0].startswith(str(installed))
    assert int(told[1]) == len(list((REPOSITORY / "sql").glob("*.sql")))
    assert told[2] == "# True"


def test_every_locked_package_has_hashes_and_no_index_is_named() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", lock)
    for requirement in re.findall(r"^[a-z0-9._-]+==.*?(?=^[a-z]|\Z)", lock, re.MULTILINE | re.DOTALL):
        assert "--hash=sha256:" in requirement, requirement.splitlines()[0]


def test_the_lock_holds_every_dependency_that_is_asked_for() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in asked}
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE))
    assert names <= locked


def test_dagster_names_the_location_as_the_workspace_does() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    name = project["tool"]["dg"]["project"]["code_location_name"]
    assert f"location_name: {name}" in (REPOSITORY / "workspace.yaml").read_text()
