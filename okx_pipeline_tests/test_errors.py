"""How messages name a command that the user is to type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from okx_pipeline.errors import command

SCRIPT = Path(sys.executable).with_name("okx-pipeline")
NO_STORE = "yet; start with: {} up\n"


def start_hint(*typed: str, folder: Path, path: str = os.defpath) -> str:
    """What `typed` prints on stderr for a command that needs a store, run in `folder`, where there is none."""
    ended = subprocess.run(
        [*typed, "status"],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    return ended.stderr


def test_a_message_names_the_program_as_the_user_typed_it(tmp_path: Path) -> None:
    relative = os.path.relpath(SCRIPT, tmp_path)
    assert start_hint(relative, folder=tmp_path).endswith(NO_STORE.format(relative))
    assert start_hint(str(SCRIPT), folder=tmp_path).endswith(NO_STORE.format(SCRIPT))
    spaced = tmp_path / "a folder"
    spaced.mkdir()
    (spaced / "okx-pipeline").symlink_to(SCRIPT)
    typed = "a folder/okx-pipeline"
    assert start_hint(typed, folder=tmp_path).endswith(NO_STORE.format(f"'{typed}'"))


def test_a_message_names_the_program_alone_where_the_shell_finds_it(tmp_path: Path) -> None:
    path = f"{SCRIPT.parent}:{os.defpath}"
    found = start_hint("sh", "-c", 'okx-pipeline "$0"', folder=tmp_path, path=path)
    assert found.endswith(NO_STORE.format("okx-pipeline"))


def test_a_message_names_the_module_where_the_user_ran_the_module(tmp_path: Path) -> None:
    python = os.path.relpath(sys.executable, tmp_path)
    assert start_hint(python, "-m", "okx_pipeline", folder=tmp_path).endswith(
        NO_STORE.format(f"{python} -m okx_pipeline")
    )


def test_a_process_that_is_not_the_program_names_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/dagster/__main__.py"])
    assert command("gaps --repair") == "okx-pipeline gaps --repair"
