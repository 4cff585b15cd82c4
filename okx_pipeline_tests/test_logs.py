"""Log files: one JSON object a line, no secret in any spelling, never longer than they may be, never in the way."""

import json
import logging
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from okx_pipeline import logs
from okx_pipeline.logs import JsonLines, LogFile, copy_lines, last_message, mask_of
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline_tests.storage.small_disk import fill, small_disk

SPECIAL = 'S3nt/in@el "of" a%secret'
BOT = "123456:S3ntinel-token"
HOOK = "https://hooks.example.com/services/S3ntinel-hook?key=S3ntinel-key"
PING = "https://ping.example.com/S3ntinel-ping"
PROXY = "http://proxy-user:S3ntinel-proxy@127.0.0.1:3128"


def settings() -> Settings:
    return read_settings(
        database_url=f"postgresql://okx:{quote(SPECIAL, safe='')}@127.0.0.1/okx",
        parquet_url="s3://AKID:S3ntinel-s3@bucket/x?secret_key=S3ntinel-query",
        telegram_token=BOT,
        telegram_chat="1",
        alert_webhook_url=HOOK,
        dead_man_url=PING,
        HTTPS_PROXY=PROXY,
    )


@pytest.fixture
def logger() -> tuple[logging.Logger, StringIO]:
    """A logger that writes JSON lines into a text."""
    said = StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(JsonLines(mask_of(settings())))
    logger = logging.Logger("okx_pipeline.some.place")
    logger.addHandler(handler)
    return logger, said


SPELLINGS = [
    SPECIAL,
    quote(SPECIAL, safe=""),
    quote(SPECIAL),
    BOT,
    HOOK,
    "services/S3ntinel-hook?key=S3ntinel-key",
    PING,
    PROXY,
    "S3ntinel-proxy",
    "S3ntinel-s3",
    "S3ntinel-query",
    "postgresql+psycopg2://somebody:S3ntinel-else@elsewhere/x",
]


@pytest.mark.parametrize("secret", SPELLINGS)
def test_no_secret_is_written_however_it_is_spelled(logger: tuple[logging.Logger, StringIO], secret: str) -> None:
    log, said = logger
    log.warning("before %s after", secret, extra={"detail": f"({secret})"})
    try:
        raise ValueError(f"it says {secret}")
    except ValueError:
        log.exception("failed")
    written = said.getvalue()
    assert "ntinel" not in written
    first, second = map(json.loads, written.splitlines())
    assert first["message"].startswith("before ")
    assert first["message"].endswith(" after")
    assert logs.MASK in first["detail"]
    assert "Traceback" in second["exception"]


def test_a_short_password_is_masked_in_urls_alone() -> None:
    mask = mask_of(read_settings(database_url="postgresql://okx:okx@127.0.0.1/okx"))
    assert (
        mask("okx-pipeline: postgresql://okx:okx@127.0.0.1/okx") == "okx-pipeline: postgresql://okx:***@127.0.0.1/okx"
    )


@given(st.text(alphabet=st.characters(codec="utf-8")), st.text(alphabet=st.characters(codec="utf-8")))
def test_whatever_is_logged_is_one_line_of_json(message: str, detail: str) -> None:
    record = logging.makeLogRecord(
        {"name": "x", "levelname": "WARNING", "msg": "%s", "args": (message,), "kind": detail}
    )
    line = JsonLines(lambda text: text).format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["message"], found["kind"], found["level"]) == (message, detail, "warning")
    assert found["at"].endswith("+00:00")


def test_a_process_that_logs_json_says_nothing_else(tmp_path: Path) -> None:
    program = (
        "import logging, sys, warnings; from okx_pipeline.logs import log_json, mask_of\n"
        "from okx_pipeline.settings import read_settings\n"
        "log_json(sys.stderr, mask_of(read_settings()))\n"
        "logging.getLogger('okx_pipeline.x').info('told')\n"
        "logging.getLogger('library').info('not told')\n"
        "warnings.warn('odd')\n"
        "raise ValueError('unforeseen')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, env=dict(os.environ)
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    told, odd, last = map(json.loads, ended.stderr.splitlines())
    assert (told["message"], told["level"], told["logger"]) == ("told", "info", "okx_pipeline.x")
    assert "odd" in odd["message"]
    assert "ValueError: unforeseen" in last["exception"]


def test_what_a_process_says_is_kept_masked_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 10_000)
    file = LogFile(tmp_path / "x.log")
    said = f"print({BOT!r}); [print(number, 'x' * 50) for number in range(1000)]; print('b\\xff\\n' * 2, end='last')"
    with subprocess.Popen([sys.executable, "-c", said], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        copy_lines(process.stdout, file, mask_of(settings())).join()
    kept = sorted(tmp_path.iterdir())
    assert [path.name for path in kept] == ["x.log", "x.log.1"]
    assert all(path.stat().st_size <= 10_000 for path in kept)
    assert (tmp_path / "x.log").read_text().splitlines()[-2:] == ["b\u00ff", "last"]
    assert last_message(tmp_path / "x.log") == "last"
    file.close()


def test_lines_are_masked_and_without_colours(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.log")
    with subprocess.Popen(["printf", f"\033[32mthe token\033[0m is {BOT}\\n"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        copy_lines(process.stdout, file, mask_of(settings())).join()
    file.close()
    assert (tmp_path / "x.log").read_text() == "the token is ***\n"


def test_a_log_that_somebody_emptied_is_written_on(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.log")
    file.line("one")
    os.truncate(tmp_path / "x.log", 0)
    file.line("two")
    file.close()
    assert (tmp_path / "x.log").read_text() == "two\n"


def test_a_full_disk_costs_lines_and_never_the_process_that_says_them(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        file = LogFile(disk / "x.log")
        filler = fill(disk)
        for number in range(100):
            file.line(f"{number} {'x' * 100}")
        filler.unlink()
        file.line("again")
        file.close()
        lines = (disk / "x.log").read_text(errors="replace").splitlines()
    assert lines[-1] == "again"
    assert any("lines could not be written here" in line for line in lines)


def test_the_last_message_of_a_log_is_told_whatever_its_form(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert last_message(path) == ""
    for text, message in [("", ""), ("one\nerror: two\n", "two"), ('{"message": "three"}\n', "three"), ("[1]", "[1]")]:
        path.write_text(text)
        assert last_message(path) == message
