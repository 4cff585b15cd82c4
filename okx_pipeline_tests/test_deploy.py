"""What deploys, held by linters and by what it promises; none of it needs a container engine or a running systemd."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Database

REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy"
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (DEPLOY / "example.env").read_text()


def linted(*command: str | Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_dockerfile_pleases_its_linter() -> None:
    linted(BIN / "hadolint", "--failure-threshold", "style", DEPLOY / "Dockerfile")


def test_the_image_is_built_from_the_lock_alone_and_does_not_run_as_root() -> None:
    steps = (DEPLOY / "Dockerfile").read_text()
    installs = re.findall(r"pip install .*", steps)
    assert "--no-deps --require-hashes --only-binary=:all:" in installs[0]
    assert "--no-deps --no-build-isolation --no-index" in installs[1]
    assert len(installs) == 2
    assert not re.search(r"index-url|https?://|apt-get", steps)
    assert re.findall(r"^USER (\d+)", steps, re.MULTILINE)[-1] != "0"


def test_everything_that_the_image_copies_is_there_and_nothing_else_is_sent_to_its_build() -> None:
    copied = set()
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        copied.update(names.split())
    assert all((REPOSITORY / name).exists() for name in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_the_compose_file_follows_its_schema() -> None:
    linted(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_may_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service.get("user", "by the image") not in {"root", "0"}
    assert service["image"] == "okx-pipeline" or service["user"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not service.get("privileged")
    assert name == "setup" or service["healthcheck"]["test"][0] == "CMD"


def test_the_database_reaches_nothing_outside_and_is_not_published() -> None:
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["inside"]
    assert "ports" not in SERVICES["postgres"]


def test_secrets_come_from_the_file_of_settings_and_a_missing_one_is_told() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert "${POSTGRES_PASSWORD:?" in text
    assert set(re.findall(r"://okx:([^@]*)@", text)) == {
        "${POSTGRES_PASSWORD:?copy example.env to .env and write a password}",
        "${POSTGRES_PASSWORD}",
    }
    assert re.search(r"^POSTGRES_PASSWORD=$", EXAMPLE, re.MULTILINE)
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_services_are_given_both_spellings_of_the_same_database() -> None:
    environment = SERVICES["code"]["environment"]
    own, dagster = (
        re.sub(r"\$\{POSTGRES_PASSWORD[^}]*\}", "0123456789abcdef", environment[name])
        for name in ("OKX_DATABASE_URL", "DAGSTER_PG_URL")
    )
    assert dagster == Database(own).dagster_url()
    assert read_settings(database_url=own).database_url is not None


# systemd

UNITS = sorted((DEPLOY / "systemd").glob("okx-pipeline*.*"))
INSTALLED = "/opt/okx-pipeline/"
EXPOSURE = 15
"""Of 100, as systemd judges; without a sandbox it is 96. What is left is mostly the network, which is needed."""


@pytest.fixture
def units(tmp_path: Path) -> dict[str, str]:
    """The environment in which systemd finds our units, as though the program were installed where they say."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    shutil.copytree(DEPLOY / "systemd", tmp_path / "units")
    # The repository may lie in a path with spaces, which the units' own does not have.
    (tmp_path / "installed").symlink_to(REPOSITORY)
    for unit in (tmp_path / "units").glob("*.service"):
        unit.write_text(unit.read_text().replace(INSTALLED, f"{tmp_path}/installed/"))
    # A colon at the end: systemd's own units as well.
    return {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path / 'units'}:"}


def test_systemd_takes_the_units_and_finds_what_they_run(units: dict[str, str], tmp_path: Path) -> None:
    named = [str(tmp_path / "units" / unit.name) for unit in UNITS if unit.is_file()]
    assert len(named) == 8
    verified = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *named]
    ended = subprocess.run(verified, env=units, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "okx-pipeline" not in ended.stderr, "other units of this machine may have faults of their own"


def test_every_unit_is_in_a_sandbox(units: dict[str, str], tmp_path: Path) -> None:
    for unit in UNITS:
        if unit.suffix == ".service":
            judged = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}"]
            path = str(tmp_path / "units" / unit.name)
            ended = subprocess.run([*judged, path], env=units, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stdout.splitlines()[-1]


def test_the_units_start_the_services_of_the_compose_file_on_loopback() -> None:
    started = {unit.stem: unit.read_text() for unit in UNITS if unit.suffix == ".service"}
    names = {name.removeprefix("okx-pipeline-") for name in started}
    assert names - {"up"} == set(SERVICES) - {"postgres", "sidecar"} | {"stream"}
    assert not any("0.0.0.0" in text for text in started.values())  # noqa: S104
    assert all(INSTALLED in text for text in started.values())
