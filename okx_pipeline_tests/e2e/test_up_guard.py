"""The guard's part alone: what the end of a process group is, and how the next `up` waits for it."""

import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from okx_pipeline import up, up_guard
from okx_pipeline_tests.e2e.system import wait_for

ENDLESS = ["sleep", "1000"]
STUBBORN = ["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 1000; done"]


@pytest.fixture
def leader() -> Iterator["subprocess.Popen[bytes]"]:
    """The leader of a process group."""
    with subprocess.Popen(ENDLESS, process_group=0) as process:
        yield process
        process.kill()


def test_the_end_of_a_group_is_the_end_of_all_but_its_leader(
    leader: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up_guard, "STOP_WITHIN_S", 0.5)
    orphaned = subprocess.run(
        ["sh", "-c", "sleep 1000 >&- & echo $!"], process_group=leader.pid, stdout=subprocess.PIPE, check=True
    )
    orphan = psutil.Process(int(orphaned.stdout))
    with (
        subprocess.Popen(STUBBORN, process_group=leader.pid, stdout=subprocess.PIPE) as stubborn,
        subprocess.Popen(ENDLESS, process_group=0) as stranger,
    ):
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"ready\n"
        (grandchild,) = wait_for(psutil.Process(stubborn.pid).children, "grandchild")
        up_guard.end_group(leader.pid)
        assert stubborn.wait() != 0
        assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert leader.poll() is None
        assert stranger.poll() is None
        stranger.kill()


def test_a_home_is_not_used_before_the_guard_of_a_killed_one_has_left_it(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    with (tmp_path / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{dead.pid}\n")
        lock.flush()
        guard = subprocess.Popen(ENDLESS, pass_fds=[lock.fileno()])
    said: list[str] = []

    def leave(line: str) -> None:
        said.append(line)
        guard.kill()
        guard.wait()

    with up._only_one(tmp_path, leave) as mine:
        assert said == ["waiting for the processes of a killed up to end"]
        mine.seek(0)
        assert int(mine.read()) == psutil.Process().pid
