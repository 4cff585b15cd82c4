"""Machines and homes as they should not be: every command says what is wrong in one line, or works all the same."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
import psycopg
import pytest

from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.migrations import known_migrations
from okx_pipeline_tests.e2e.system import System
from okx_pipeline_tests.storage.small_disk import fill, small_disk

NOBODY = "127.0.0.1:9"
UP, MIGRATE, STATUS, STREAM = ("up", "--port", "0"), ("migrate",), ("status",), ("stream",)
DISK_MB = 200


@pytest.fixture(scope="module")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a store, made where everything is odd at once and nothing is wrong.

    No locale that exists, a terminal of ASCII alone, no HOME, and OKX_HOME relative, with a space and an umlaut.
    """
    folder = tmp_path_factory.mktemp("odd")
    system = system_in(folder, OKX_HOME="the hömé", LC_ALL="nonsense_XX", PYTHONIOENCODING="ascii")
    del system.environment["HOME"]
    made = system.run("migrate")
    assert made.returncode == 0, made.stderr
    assert known_migrations()[-1] in made.stdout
    return folder / "the hömé"


@pytest.fixture
def home(made_home: Path, tmp_path: Path) -> Path:
    """A copy of that home."""
    return copied(made_home, tmp_path / "home")


@pytest.fixture
def cleared() -> Iterator[ExitStack]:
    """What is to be put right at the end."""
    with ExitStack() as stack:
        yield stack


def copied(made_home: Path, home: Path) -> Path:
    subprocess.run(["cp", "-a", made_home, home], check=True)
    return home


def system_in(folder: Path, **settings: str) -> System:
    """Commands in `folder`, on its ``home`` if no other is named, and on an exchange that is not there."""
    there = {"OKX_REST_URL": f"http://{NOBODY}", "OKX_WS_URL": f"ws://{NOBODY}", **settings}
    return System(folder / "home", folder, **there)


def refused(ended: "subprocess.CompletedProcess[str]", status: int, words: str) -> None:
    """Assert that a command ended with `status` and one line on stderr that has `words`, and said nothing else.

    `up` prints the steps that it has begun before.
    """
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == "" or "up" in ended.args
    assert re.fullmatch(r"error: [^\n]+\n", ended.stderr), ended.stderr
    assert words in ended.stderr


# No folder that a store could be in


class Case(NamedTuple):
    """An OKX_HOME that cannot be, what is said of it, and by which commands."""

    home: Callable[[Path], str]
    words: str
    commands: tuple[tuple[str, ...], ...] = (MIGRATE,)


def a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file")


HOMES = {
    "a file": Case(a_file, "File exists", (UP, MIGRATE, STREAM)),
    "below a file": Case(lambda folder: f"{a_file(folder)}/home", "Not a directory"),
    "where no folder can be made": Case(lambda _: "/proc/home", "No such file or directory"),
    "a name that is too long": Case(lambda _: 300 * "x", "File name too long", (UP, STATUS)),
    "of a user who is not there": Case(lambda _: "~no-one/home", "no home folder '~no-one' here"),
    "not in UTF-8": Case(lambda folder: f"{folder}/\udce9", "is not written in UTF-8"),
}


@pytest.mark.parametrize("case", HOMES.values(), ids=HOMES)
def test_a_home_that_cannot_be_is_a_wrong_setting(case: Case, tmp_path: Path) -> None:
    system = system_in(tmp_path, OKX_HOME=case.home(tmp_path))
    for command in case.commands:
        refused(system.run(*command), 2, case.words)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_a_home_that_may_not_be_written_is_a_wrong_setting(tmp_path: Path, cleared: ExitStack) -> None:
    disk = cleared.enter_context(small_disk(tmp_path / "disk", 1))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    system = system_in(tmp_path, OKX_HOME=f"{disk}/home")
    for command in (UP, MIGRATE):
        refused(system.run(*command), 2, "Read-only file system")


def test_a_home_that_nobody_has_is_no_store(tmp_path: Path) -> None:
    system = system_in(tmp_path, OKX_HOME="~/home", HOME="/nonexistent")
    refused(system.run("status"), 1, "there is no store in /nonexistent/home yet")


# No space


def test_a_full_disk_is_told_and_nothing_is_left_running(tmp_path: Path, cleared: ExitStack) -> None:
    disk = cleared.enter_context(small_disk(tmp_path / "disk", 1))
    fill(disk)
    system = system_in(tmp_path, OKX_HOME=f"{disk}/home")
    for command in (UP, MIGRATE):
        refused(system.run(*command), 1, f"no space left on the disk of {disk}/home: free some and start again")
    assert system.processes() == []


def test_a_store_whose_disk_is_full_is_told_and_works_again_with_space(
    made_home: Path, tmp_path: Path, cleared: ExitStack
) -> None:
    disk = cleared.enter_context(small_disk(tmp_path / "disk", DISK_MB))
    copied(made_home, disk / "home")
    filler = fill(disk)
    system = system_in(tmp_path, OKX_HOME=f"{disk}/home")
    for command in (UP, STATUS):
        refused(system.run(*command), 1, f"no space left on the disk of {disk}/home: free some and start again")
    filler.unlink()
    with EmbeddedPostgres(disk / "home"):
        filler = fill(disk)
        # A new connection may find a file that it needs, or not; the server lives.
        ended = system.run("backup", f"{disk}/backup")
        refused(ended, 1, "o space left")
        filler.unlink()
    assert system.run("migrate").returncode == 0


# Another encoding


ODD = (
    {"LC_ALL": "nonsense_XX", "PYTHONIOENCODING": "ascii", "TERM": "nonsense", "COLUMNS": "nonsense"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


def test_what_a_terminal_has_no_letters_for_is_written_all_the_same(made_home: Path) -> None:
    with EmbeddedPostgres(made_home):
        for odd in ODD:
            system = system_in(made_home.parent, OKX_HOME=str(made_home), **odd)
            for command in (MIGRATE, ("accept", "--list"), ("subscribe", "--help")):
                ended = system.run(*command)
                assert (ended.returncode, ended.stderr) == (0, ""), (odd, command)
            refused(system.run("subscribe", "Zoë"), 2, "is not an OKX symbol")


# A store of another time


def test_a_store_of_a_newer_version_is_refused_and_left_alone(home: Path, tmp_path: Path) -> None:
    system = system_in(tmp_path)
    with EmbeddedPostgres(home) as server, psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO trading._yoyo_migration (migration_hash, migration_id, applied_at_utc) "
            "VALUES ('x', '9999.of-tomorrow', now())"
        )
        for command in (UP, STATUS, STREAM):
            refused(system.run(*command), 2, "'9999.of-tomorrow', which this version does not know; use the newer")
    assert system.processes() == []


def test_the_data_of_another_postgresql_is_refused_and_left_alone(home: Path, tmp_path: Path) -> None:
    version = home / "postgres" / "data" / "PG_VERSION"
    version.write_text("17\n")
    system = system_in(tmp_path)
    for command in (UP, STATUS):
        refused(system.run(*command), 1, "was made by PostgreSQL 17, and this program brings 18: make a backup")
    version.write_text("18\n")
    assert system.run("migrate").returncode == 0


def test_half_of_a_store_is_not_made_anew_over_what_is_left(home: Path, tmp_path: Path) -> None:
    data = home / "postgres" / "data"
    system = system_in(tmp_path)
    (data / "global" / "pg_control").rename(tmp_path / "pg_control")
    refused(system.run("status"), 1, "could not find the database system")
    (data / "PG_VERSION").unlink()
    refused(system.run("migrate"), 1, f"{data} holds files and is no PostgreSQL's data: move it away")
    assert (data / "base").is_dir()


def test_a_store_on_a_machine_that_lost_power_goes_on(home: Path, tmp_path: Path) -> None:
    system = system_in(tmp_path)
    EmbeddedPostgres(home).start()
    for process in system.processes():
        process.kill()
        process.wait()
    pid_file = home / "postgres" / "data" / "postmaster.pid"
    _, *rest = pid_file.read_text().splitlines()
    # By now the numbers belong to somebody else, who lives.
    pid_file.write_text("\n".join([str(psutil.Process().ppid()), *rest, ""]))
    (home / "up.lock").write_text("1\n")
    shutil.copytree(home / "postgres" / "data" / "base", home / "postgres" / "data.new" / "base")
    assert os.path.lexists(Path(rest[3]) / ".s.PGSQL.5432")
    assert system.run("migrate").returncode == 0
