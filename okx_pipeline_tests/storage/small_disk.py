"""A disk of its own that is soon full."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk of `megabytes` at `folder` while the block runs; skips the test where nothing can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a disk of its own, and not everywhere")
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 30
        # Whoever was stopped may still be closing its last file.
        while subprocess.run(["umount", folder], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"{folder} is still in use"
            time.sleep(0.01)


def fill(disk: Path, *, leave_bytes: int = 0) -> Path:
    """Fill `disk` but for `leave_bytes`; removing the file that is returned makes space again."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - leave_bytes))
    return filler
