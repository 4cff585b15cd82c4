"""Whom files are for: the settings' secrets and the store for their owner alone, an export for whom the user likes."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from okx_pipeline import settings
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.subscriptions import subscribe
from okx_pipeline.timeframes import parse_timeframes

SENTINEL = "s3ntinel"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("line", "permissions", "told"),
    [
        (f"OKX_DATABASE_URL=postgresql://okx:{SENTINEL}@127.0.0.1/okx", 0o644, "OKX_DATABASE_URL"),
        (f"export https_proxy=http://x:{SENTINEL}@127.0.0.1:1", 0o604, "https_proxy"),
        (f"OKX_DATABASE_URL=postgresql://okx:{SENTINEL}@127.0.0.1/okx", 0o600, None),
        ("OKX_SYMBOLS=ETH-USDT\nOKX_DATABASE_URL=", 0o644, None),
    ],
)
def test_a_file_of_settings_with_a_secret_that_others_may_read_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, permissions: int, told: str | None
) -> None:
    settings._tell_once.cache_clear()
    (tmp_path / ".env").write_text(f"{line}\n")
    (tmp_path / ".env").chmod(permissions)
    with caplog.at_level(logging.WARNING):
        read_settings()
        read_settings()
    said = [f".env holds {told}, and others on this machine may read it; run: chmod 600 .env"] if told else []
    assert [record.getMessage() for record in caplog.records] == said
    assert SENTINEL not in caplog.text


def test_an_export_is_for_whom_the_users_files_are(tmp_path: Path, database: Database) -> None:
    with database.connect() as connection:
        subscribe(connection, ["BTC-USDT"], parse_timeframes("1h"), 0)
    environment = {
        "PATH": os.environ["PATH"],
        "OKX_HOME": str(tmp_path / "home"),
        "OKX_DATABASE_URL": database.url,
    }
    subprocess.run(
        [sys.executable, "-m", "okx_pipeline", "export", "x.csv", "--symbols", "BTC-USDT", "--timeframes", "1h"],
        cwd=tmp_path,
        env=environment,
        umask=0o027,
        check=True,
    )
    assert mode(tmp_path / "x.csv") == 0o640


def test_what_a_command_makes_is_nobody_elses_whatever_the_shell_says(tmp_path: Path) -> None:
    # The command ends at its first word; what it was given as a umask it has had by then.
    program = (
        "import os, sys, pathlib; from okx_pipeline import cli; sys.argv[1:] = ['--version-that-is-not-there']\n"
        "try: cli.main()\n"
        "finally: pathlib.Path('made').touch(); os.mkdir('folder')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, umask=0, capture_output=True, check=False)
    assert ended.returncode == 2
    assert (mode(tmp_path / "made"), mode(tmp_path / "folder")) == (0o600, 0o700)
