"""The settings: the only reader of the environment and of the `.env` file beside the command.

A wrong value is one clear line and exit status 2, before anything starts. What a setting is for stands in README.
"""

import logging
import os
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from okx_pipeline.candles import parse_symbols
from okx_pipeline.errors import UsageError, command
from okx_pipeline.timeframes import Timeframe, parse_timeframe, parse_timeframes

log = logging.getLogger(__name__)

PREFIX: Final = "OKX_"

SHORTEST_RETENTION_DAYS: Final = 30
"""OKX was seen to revise candles days later, and each is read again up to 15 days after its month: that would bring the
month back."""

_RETENTION_UNITS: Final = {"d": 1, "y": 365}


class Settings(BaseSettings):
    """All settings, checked. Read them with `read_settings`, once, at the top of a command or process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    home: Path = Path(".okx")
    database_url: SecretStr | None = None
    parquet_url: str = ""
    symbols: Annotated[tuple[str, ...], NoDecode] = ("BTC-USDT-SWAP",)
    timeframes: Annotated[tuple[Timeframe, ...], NoDecode] = parse_timeframes("5m,15m,1h,4h,1d")
    history_start: date = date(2026, 1, 1)
    partition_start: date = date(2020, 1, 1)
    retention: Annotated[tuple[tuple[Timeframe, int], ...], NoDecode] = ()
    rest_url: str = "https://openapi.okx.com"
    ws_url: str = "wss://ws.okx.com/ws/v5/business"
    demo_trading: bool = False
    rest_rate: Annotated[int, Field(ge=1)] | None = None
    pages_url: str = "http://127.0.0.1:3001"
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    workspace: Path | None = None
    proxy: SecretStr | None = Field(default=None, validation_alias="HTTPS_PROXY")
    ca_file: Path | None = Field(default=None, validation_alias="SSL_CERT_FILE")
    # Before the URLs that it is about: a field is checked against those above it.
    alert_allow_http: bool = False
    alert_webhook_url: SecretStr | None = None
    telegram_token: SecretStr | None = None
    telegram_chat: Annotated[str | None, Field(validate_default=True)] = None
    alert_gap_hours: Annotated[int, Field(ge=1, le=8760)] = 6
    dead_man_url: SecretStr | None = None

    @field_validator("home", mode="after")
    @classmethod
    def _home(cls, value: Path) -> Path:
        try:
            os.fsencode(value).decode("utf-8")
        except UnicodeDecodeError:
            # PostgreSQL is told of its socket in a URL.
            raise UsageError(f"{str(value)!a} is not written in UTF-8; choose a folder whose path is") from None
        return _expanded(value)

    @field_validator("workspace", mode="after")
    @classmethod
    def _workspace(cls, value: Path | None) -> Path | None:
        return value and _expanded(value)

    @field_validator("symbols", mode="before")
    @classmethod
    def _symbols(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = parse_symbols(value)
            if not value:
                raise UsageError("no symbol is named; write for example BTC-USDT-SWAP,ETH-USDT-SWAP")
        return value

    @field_validator("timeframes", mode="before")
    @classmethod
    def _timeframes(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = parse_timeframes(value)
            if not value:
                raise UsageError("no timeframe is named; write for example 5m,1h,1d")
        return value

    @field_validator("retention", mode="before")
    @classmethod
    def _retention(cls, value: Any) -> Any:
        return parse_retention(value) if isinstance(value, str) else value

    @field_validator("history_start", "partition_start", mode="after")
    @classmethod
    def _not_in_the_future(cls, value: date) -> date:
        if value > datetime.now(tz=UTC).date():
            raise UsageError(f"{value} lies in the future; write a day that has been")
        return value

    @field_validator("rest_url", "ws_url", "pages_url", mode="after")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https", "ws", "wss"} or not parts.hostname:
            raise UsageError(f"{value!r} is not a URL; it begins with https:// or wss://")
        return value.rstrip("/")

    @field_validator("parquet_url", mode="after")
    @classmethod
    def _parquet_url(cls, value: str) -> str:
        if "://" in value and not value.startswith("s3://"):
            raise UsageError(f"{value!r} is neither a folder nor an s3:// URL")
        return value.rstrip("/") if "://" in value or not value else str(_expanded(Path(value)))

    @field_validator("database_url", mode="after")
    @classmethod
    def _database_url(cls, value: SecretStr | None) -> SecretStr | None:
        # The URL may hold a password, so that the message does not repeat it.
        if value is not None and urlsplit(value.get_secret_value()).scheme not in {"postgresql", "postgres"}:
            raise UsageError("it is not a PostgreSQL URL; it begins with postgresql://")
        return value

    @field_validator("alert_webhook_url", "dead_man_url", mode="after")
    @classmethod
    def _outbound_url(cls, value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        # Such URLs hold keys, so that no message repeats them.
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            readable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            readable = False
        if not readable or re.search(r"[\x00-\x20\x7f]", value.get_secret_value()):
            raise UsageError("it is not a URL; it begins with https://")
        if "@" in parts.netloc:
            raise UsageError("it names a user; put the key into the path or the query")
        if parts.scheme == "http" and not others.data.get("alert_allow_http"):
            raise UsageError(
                "it begins with http://, which anybody on the way can read; OKX_ALERT_ALLOW_HTTP=true allows"
            )
        return value

    @field_validator("telegram_token", mode="after")
    @classmethod
    def _telegram_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[0-9]+:[A-Za-z0-9_-]+", value.get_secret_value()):
            raise UsageError("it is not a bot's token; it reads like 123456:ABC-DEF, as BotFather gave it")
        return value

    @field_validator("telegram_chat", mode="after")
    @classmethod
    def _telegram_chat(cls, value: str | None, others: ValidationInfo) -> str | None:
        token = others.data.get("telegram_token")
        if (value is None) != (token is None) and "telegram_token" in others.data:
            which = "it is set" if token is None else "it is not set"
            other = "OKX_TELEGRAM_TOKEN is not" if token is None else "OKX_TELEGRAM_TOKEN is"
            raise UsageError(f"{which} and {other}; a bot's token and a chat go together")
        if value is not None and not re.fullmatch(r"-?[0-9]+|@[A-Za-z0-9_]+", value):
            raise UsageError("it is neither a chat's number, such as -1001234567890, nor a channel's @name")
        return value

    @property
    def root(self) -> Path:
        """OKX_HOME as an absolute path."""
        return self.home.absolute()

    @property
    def parquet_root(self) -> str:
        """Folder or s3:// URL under which `candlesticks` lies."""
        if self.parquet_url.startswith("s3://"):
            return self.parquet_url
        return str(Path(self.parquet_url).absolute()) if self.parquet_url else str(self.root / "parquet")

    @property
    def quality_folder(self) -> Path:
        """Where results of validations and the Data Docs lie."""
        return self.root / "quality"

    @property
    def reports_folder(self) -> Path:
        """Where the daily reports lie."""
        return self.root / "reports"

    @property
    def replay_file(self) -> Path:
        """Where `up --replay` writes down how its stand-in is reached, for the commands of other terminals."""
        return self.root / "replay.env"

    @property
    def origin(self) -> str:
        """Which market these prices come from: `market`, `demo` or `replay`. A store holds one of them only."""
        if _is_here(self.rest_url):
            return "replay"
        return "demo" if self.demo_trading else "market"

    def workspace_files(self) -> list[Path]:
        """What OKX_WORKSPACE names, looked for now: a sidecar that starts later does not end for want of it.

        Raises
        ------
        UsageError
            If there is no such file.
        """
        if self.workspace is None:
            return []
        if not self.workspace.is_file():
            raise UsageError(f"OKX_WORKSPACE: there is no file {self.workspace.absolute()}")
        return [self.workspace.absolute()]

    def environment(self) -> dict[str, str]:
        """These settings as a child process's environment, paths absolute."""
        own: dict[str, str] = {
            "OKX_HOME": str(self.root),
            "OKX_PARQUET_URL": self.parquet_root,
            "OKX_SYMBOLS": ",".join(self.symbols),
            "OKX_TIMEFRAMES": ",".join(timeframe.name for timeframe in self.timeframes),
            "OKX_HISTORY_START": self.history_start.isoformat(),
            "OKX_PARTITION_START": self.partition_start.isoformat(),
            "OKX_RETENTION": ",".join(f"{timeframe}={days}d" for timeframe, days in self.retention),
            "OKX_REST_URL": self.rest_url,
            "OKX_WS_URL": self.ws_url,
            "OKX_DEMO_TRADING": str(self.demo_trading).lower(),
            "OKX_PAGES_URL": self.pages_url,
            "OKX_ALERT_ALLOW_HTTP": str(self.alert_allow_http).lower(),
            "OKX_ALERT_GAP_HOURS": str(self.alert_gap_hours),
        }
        if self.database_url is not None:
            own["OKX_DATABASE_URL"] = self.database_url.get_secret_value()
        if self.rest_rate is not None:
            own["OKX_REST_RATE"] = str(self.rest_rate)
        if self.metrics_port is not None:
            own["OKX_METRICS_PORT"] = str(self.metrics_port)
        if self.workspace is not None:
            own["OKX_WORKSPACE"] = str(self.workspace.absolute())
        if self.proxy is not None:
            own["HTTPS_PROXY"] = self.proxy.get_secret_value()
        if self.ca_file is not None:
            own["SSL_CERT_FILE"] = str(self.ca_file)
        if self.alert_webhook_url is not None:
            own["OKX_ALERT_WEBHOOK_URL"] = self.alert_webhook_url.get_secret_value()
        if self.telegram_token is not None and self.telegram_chat is not None:
            own["OKX_TELEGRAM_TOKEN"] = self.telegram_token.get_secret_value()
            own["OKX_TELEGRAM_CHAT"] = self.telegram_chat
        if self.dead_man_url is not None:
            own["OKX_DEAD_MAN_URL"] = self.dead_man_url.get_secret_value()
        return {**os.environ, **own}


def parse_retention(text: str) -> tuple[tuple[Timeframe, int], ...]:
    """How many days PostgreSQL keeps candles of each length, of ``1m=90d,5m=2y``; what is not named it keeps for ever.

    Raises
    ------
    UsageError
        For a part that cannot be read, a length named twice, or a time that is too short.
    """
    kept: dict[Timeframe, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, time = (piece.strip() for piece in part.partition("="))
        if not re.fullmatch(r"[0-9]{1,5}[dy]", time):
            raise UsageError(f"{part!r} cannot be read; write for example 1m=90d,5m=2y, in days or years")
        timeframe, days = parse_timeframe(name), int(time[:-1]) * _RETENTION_UNITS[time[-1]]
        if timeframe in kept:
            raise UsageError(f"{timeframe} is named twice")
        if days < SHORTEST_RETENTION_DAYS:
            raise UsageError(f"{part!r} is too short; the least is {SHORTEST_RETENTION_DAYS}d, as OKX revises candles")
        kept[timeframe] = days
    return tuple(sorted(kept.items()))


def read_settings(**overrides: Any) -> Settings:
    """The settings of this process; `overrides` by field name stand above the environment.

    Raises
    ------
    UsageError
        Naming the variable and what is wrong with its value, in one line.
    """
    try:
        _tell_of_misspelt({*os.environ, *_check_env_file()})
        return Settings(**overrides)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        variable = field if field.isupper() else f"{PREFIX}{field.upper()}"
        raise UsageError(f"{variable}: {_plainly(first['msg'])}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"cannot read the file .env: {problem}") from None


def read_settings_of_home() -> Settings:
    """The settings of this process; in a home of a replay they lead to it, unless they say where OKX is.

    Raises
    ------
    UsageError
        See `read_settings`; also if what `up --replay` wrote down in the home cannot be read.
    """
    settings = read_settings()
    if settings.model_fields_set & {"rest_url", "ws_url"}:
        return settings
    file = settings.replay_file
    try:
        written = {each.key: each.value or "" for each in parse_stream(StringIO(file.read_text(encoding="utf-8")))}
    except (FileNotFoundError, NotADirectoryError):
        return settings
    except OSError as problem:
        raise UsageError(f"{file} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        written = {}
    urls = {"rest_url": written.get("OKX_REST_URL", ""), "ws_url": written.get("OKX_WS_URL", "")}
    if not all(map(_is_here, urls.values())):
        raise UsageError(f"{file} does not say where the replay is; `{command('up --replay …')}` writes it anew")
    return settings.model_copy(update=urls)


def _is_here(url: str) -> bool:
    try:
        return (urlsplit(url).hostname or "") in {"127.0.0.1", "localhost", "::1"}
    except ValueError:
        return False


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"there is no home folder {path.parts[0]!r} here; write the whole path") from None


def _check_env_file() -> set[str]:
    """The names that stand in `.env`."""
    # The library passes over a line that it cannot read, with a word in the log.
    path = Path(str(Settings.model_config.get("env_file")))
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8") as lines:
        secrets, names = [], set()
        for binding in parse_stream(lines):
            if binding.error:
                raise UsageError(f".env: line {binding.original.line} cannot be read; write NAME=value")
            names.add(binding.key or "")
            if binding.value and (binding.key or "").upper() in _SECRETS:
                secrets.append(str(binding.key))
        if secrets and os.fstat(lines.fileno()).st_mode & 0o077:
            _tell_once(f".env holds {', '.join(secrets)}, and others on this machine may read it; run: chmod 600 .env")
    return names


def _tell_of_misspelt(names: Iterable[str]) -> None:
    """Tell of names that are no setting and look like one; other programs have theirs, such as OKX_API_KEY."""
    strange = {name for name in names if name.upper().startswith(PREFIX) and name.upper() not in _NAMES}
    for name in sorted(strange):
        from difflib import get_close_matches

        for meant in get_close_matches(name.upper(), _NAMES, n=1, cutoff=0.85):
            _tell_once(f"{name} is no setting; did you mean {meant}?")


@cache
def _tell_once(warning: str) -> None:
    # Dagster reads the settings at every tick of a sensor.
    log.warning("%s", warning)


_NAMES: Final = frozenset(
    f"{PREFIX}{name.upper()}" for name, field in Settings.model_fields.items() if field.validation_alias is None
)

_SECRETS: Final = frozenset(
    field.validation_alias if isinstance(field.validation_alias, str) else f"{PREFIX}{name.upper()}"
    for name, field in Settings.model_fields.items()
    if "SecretStr" in str(field.annotation)
)
"""The settings that hold a password, a token or a key."""


def _plainly(message: str) -> str:
    return message.removeprefix("Value error, ")
