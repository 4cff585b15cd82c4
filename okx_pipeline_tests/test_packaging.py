"""What travels: the wheel holds everything the program needs, and the lock names nobody."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


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


@pytest.mark.parametrize("name", ["requirements.lock", "deploy/requirements.lock"])
def test_every_locked_package_has_hashes_and_no_index_is_named(name: str) -> None:
    lock = (REPOSITORY / name).read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", lock)
    for requirement, hashes in locked(name).items():
        assert hashes, requirement


def test_the_lock_holds_every_dependency_that_is_asked_for() -> None:
    extras = PROJECT["optional-dependencies"]
    assert names(PROJECT["dependencies"] + extras["dev"] + extras["build"]) <= pinned("requirements.lock").keys()


def test_a_deployment_installs_the_same_packages_without_the_tests() -> None:
    deployed, known = pinned("deploy/requirements.lock"), pinned("requirements.lock")
    extras = PROJECT["optional-dependencies"]
    assert names(PROJECT["dependencies"] + extras["build"]) <= deployed.keys()
    assert not {"ccxt", "moto", "playwright", "pytest"} & deployed.keys()
    assert deployed.items() <= known.items()
    everything = locked("requirements.lock")
    assert all(everything[pin] == hashes for pin, hashes in locked("deploy/requirements.lock").items())


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in requirements}


def locked(name: str) -> dict[str, set[str]]:
    """The hashes of every pin in a lock."""
    blocks = re.findall(r"^([a-z0-9._-]+==\S+)(.*?)(?=^[a-z]|\Z)", (REPOSITORY / name).read_text(), re.M | re.S)
    return {pin: set(re.findall(r"--hash=sha256:(\w+)", block)) for pin, block in blocks}


def pinned(name: str) -> dict[str, str]:
    """The version of every package in a lock."""
    return dict(tuple(pin.split("==")) for pin in locked(name))


def test_dagster_names_the_location_as_the_workspace_does() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    name = project["tool"]["dg"]["project"]["code_location_name"]
    assert f"location_name: {name}" in (REPOSITORY / "workspace.yaml").read_text()
