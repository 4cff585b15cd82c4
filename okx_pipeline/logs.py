"""Log files: bounded in size, one JSON object a line where the lines are ours, and never a secret in them.

What is logged is decided where it happens.
"""

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import IO, Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

import msgspec

from okx_pipeline.settings import Settings

MOST_BYTES: Final = 5_000_000
"""A file that is longer is put aside, and one older is kept: 10 MB for each process."""

LONGEST_LINE: Final = 65_536
MASK: Final = "***"

SHORTEST_SECRET: Final = 6
"""What is shorter stands in ordinary words too, and is masked as part of a URL alone."""

_PASSWORD_IN_URL: Final = re.compile(r"(?<=://)([^\s:/@\"']*):[^\s/@\"']+@")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_OWN_FIELDS: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

Mask = Callable[[str], str]


def mask_of(settings: Settings) -> Mask:
    """A function that puts `MASK` in place of every secret of the settings, and of passwords in URLs of anybody's."""
    long = [secret for secret in _secrets(settings) if len(secret) >= SHORTEST_SECRET]
    secrets = {spelling for secret in long for spelling in _spell(secret)}
    known = re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True)))) if secrets else None

    def mask(text: str) -> str:
        if known is not None:
            text = known.sub(MASK, text)
        return _PASSWORD_IN_URL.sub(rf"\1:{MASK}@", text)

    return mask


def _secrets(settings: Settings) -> Iterable[str]:
    urls = [settings.parquet_url]
    urls += [secret.get_secret_value() for secret in (settings.database_url, settings.proxy) if secret is not None]
    for url in urls:
        parts = urlsplit(url)
        yield from (parts.password or "", unquote(parts.password or ""))
        yield from (value for name, value in parse_qsl(parts.query) if re.search("password|secret|token", name))
    if settings.telegram_token is not None:
        yield settings.telegram_token.get_secret_value()
    for key in (settings.alert_webhook_url, settings.dead_man_url):
        if key is not None:
            # Such a URL is a key as a whole, and libraries log the path by itself.
            yield key.get_secret_value()
            yield key.get_secret_value().partition("://")[2].partition("/")[2]


def _spell(secret: str) -> set[str]:
    """The ways in which a secret may be written."""
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}


class JsonLines(logging.Formatter):
    """A record as a line of JSON: ``at`` (UTC), ``level``, ``logger``, ``message``, and whatever else it was given."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without its end."""
        fields: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._mask(record.getMessage()),
        }
        for name, value in record.__dict__.items():
            if name not in _OWN_FIELDS:
                fields[name] = self._mask(value) if isinstance(value, str) else value
        if record.exc_info:
            fields["exception"] = self._mask(self.formatException(record.exc_info))
        return msgspec.json.encode(fields, enc_hook=str).decode()


class LogFile(RotatingFileHandler):
    """A bounded file of lines. A disk that takes none costs lines, which are counted, and never whoever logs."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8", errors="replace")
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record's line."""
        lost, self._lost = self._lost, 0
        if lost:
            super().emit(logging.makeLogRecord({"msg": f"{lost} lines could not be written here"}))
            if self._lost:
                self._lost += lost
                return
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the library's name
        """Count a line that could not be written."""
        self._lost += 1

    def line(self, text: str) -> None:
        """Write a line as it is."""
        self.handle(logging.makeLogRecord({"msg": text}))


def copy_lines(source: IO[bytes], file: LogFile, mask: Mask) -> threading.Thread:
    """Write every line that comes from `source` into `file`, in a thread of its own that ends with the source.

    Without colours: Dagster puts them in wherever it writes.
    """

    def copy() -> None:
        with source:
            while line := source.readline(LONGEST_LINE):
                file.line(mask(_COLOURS.sub("", line.decode(errors="replace").rstrip("\r\n"))))

    thread = threading.Thread(target=copy, name=f"log of {Path(file.baseFilename).stem}", daemon=True)
    thread.start()
    return thread


def log_json(stream: IO[str], mask: Mask) -> None:
    """Let this process log as JSON lines to `stream`: its own from INFO on, those of libraries from WARNING on.

    So are Python's warnings, and what ends the process unforeseen.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(mask))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("okx_pipeline").setLevel(logging.INFO)
    logging.captureWarnings(True)

    def tell(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
        logging.getLogger(__name__).critical("ended by %s", kind.__name__, exc_info=(kind, problem, trace))

    sys.excepthook = tell


def last_message(path: Path) -> str:
    """What the last line of a log says, JSON or not; empty if there is none."""
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    last = lines[-1].strip() if lines else ""
    try:
        return str(msgspec.json.decode(last, type=dict[str, object])["message"])
    except (msgspec.DecodeError, KeyError):
        return last.removeprefix("error: ")
