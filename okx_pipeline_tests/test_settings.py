"""Settings: defaults as documented, and one clear line for a wrong value."""

import re
from datetime import date
from pathlib import Path

import pytest

from okx_pipeline import settings
from okx_pipeline.errors import UsageError
from okx_pipeline.settings import read_settings, read_settings_of_home


def test_the_defaults_are_those_of_the_readme(tmp_path: Path) -> None:
    settings = read_settings()
    assert settings.root == tmp_path / ".okx"
    assert settings.parquet_root == str(tmp_path / ".okx" / "parquet")
    assert settings.symbols == ("BTC-USDT-SWAP",)
    assert [str(timeframe) for timeframe in settings.timeframes] == ["5m", "15m", "1h", "4h", "1d"]
    assert settings.history_start == date(2026, 1, 1)
    assert settings.partition_start == date(2020, 1, 1)
    assert settings.rest_url == "https://openapi.okx.com"
    assert settings.database_url is None
    assert settings.alert_gap_hours == 6
    assert not settings.alert_allow_http
    assert settings.origin == "market"


def test_the_environment_stands_above_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("OKX_SYMBOLS=ETH-USDT-SWAP\nOKX_TIMEFRAMES=1H,5m\n")
    monkeypatch.setenv("OKX_SYMBOLS", "BTC-USDT, ETH-USDT,BTC-USDT")
    settings = read_settings()
    assert settings.symbols == ("BTC-USDT", "ETH-USDT")
    assert [str(timeframe) for timeframe in settings.timeframes] == ["5m", "1h"]


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OKX_TIMEFRAMES", "1D", "OKX_TIMEFRAMES: timeframe '1D' is OKX's candle that opens at Hong Kong midnight"),
        ("OKX_TIMEFRAMES", "7m", "OKX_TIMEFRAMES: unknown timeframe '7m'; it is one of 1m, 3m"),
        ("OKX_TIMEFRAMES", ",", "OKX_TIMEFRAMES: no timeframe is named"),
        ("OKX_SYMBOLS", "../../etc", "OKX_SYMBOLS: '../../etc' is not an OKX symbol"),
        ("OKX_SYMBOLS", " , ", "OKX_SYMBOLS: no symbol is named"),
        ("OKX_HISTORY_START", "2999-01-01", "OKX_HISTORY_START: 2999-01-01 lies in the future"),
        ("OKX_HISTORY_START", "yesterday", "OKX_HISTORY_START: "),
        ("OKX_REST_URL", "openapi.okx.com", "OKX_REST_URL: 'openapi.okx.com' is not a URL"),
        ("OKX_RETENTION", "1m", "OKX_RETENTION: '1m' cannot be read; write for example 1m=90d,5m=2y"),
        ("OKX_RETENTION", "1m=90", "OKX_RETENTION: '1m=90' cannot be read"),
        ("OKX_RETENTION", "1m=-90d", "OKX_RETENTION: '1m=-90d' cannot be read"),
        ("OKX_RETENTION", "7m=90d", "OKX_RETENTION: unknown timeframe '7m'"),
        ("OKX_RETENTION", "5m=90d,1m=1y,5m=2y", "OKX_RETENTION: 5m is named twice"),
        ("OKX_RETENTION", "1m=29d", "OKX_RETENTION: '1m=29d' is too short; the least is 30d"),
        ("OKX_REST_RATE", "0", "OKX_REST_RATE: "),
        ("OKX_REST_RATE", "many", "OKX_REST_RATE: "),
        ("OKX_PARQUET_URL", "gs://bucket", "OKX_PARQUET_URL: 'gs://bucket' is neither a folder nor an s3:// URL"),
        ("OKX_DATABASE_URL", "mysql://u:hunter2@h/d", "OKX_DATABASE_URL: it is not a PostgreSQL URL"),
        ("OKX_ALERT_WEBHOOK_URL", "hooks.example/hunter2", "OKX_ALERT_WEBHOOK_URL: it is not a URL; it begins with"),
        ("OKX_ALERT_WEBHOOK_URL", "https://hooks.example:x/hunter2", "OKX_ALERT_WEBHOOK_URL: it is not a URL"),
        ("OKX_ALERT_WEBHOOK_URL", "https://hooks.example/hunter2 x", "OKX_ALERT_WEBHOOK_URL: it is not a URL"),
        ("OKX_ALERT_WEBHOOK_URL", "https://[::1/hunter2", "OKX_ALERT_WEBHOOK_URL: it is not a URL"),
        ("OKX_ALERT_WEBHOOK_URL", "file:///hunter2", "OKX_ALERT_WEBHOOK_URL: it is not a URL"),
        ("OKX_ALERT_WEBHOOK_URL", "https://u:hunter2@hooks.example", "OKX_ALERT_WEBHOOK_URL: it names a user"),
        ("OKX_ALERT_WEBHOOK_URL", "http://10.0.0.1/hunter2", "OKX_ALERT_WEBHOOK_URL: it begins with http://, which"),
        ("OKX_DEAD_MAN_URL", "http://ping.example/hunter2", "OKX_DEAD_MAN_URL: it begins with http://, which"),
        ("OKX_TELEGRAM_TOKEN", "bot/../hunter2", "OKX_TELEGRAM_TOKEN: it is not a bot's token"),
        ("OKX_TELEGRAM_TOKEN", "1:hunter2", "OKX_TELEGRAM_CHAT: it is not set and OKX_TELEGRAM_TOKEN is"),
        ("OKX_TELEGRAM_CHAT", "-100", "OKX_TELEGRAM_CHAT: it is set and OKX_TELEGRAM_TOKEN is not"),
        ("OKX_ALERT_GAP_HOURS", "0", "OKX_ALERT_GAP_HOURS: "),
        ("OKX_ALERT_GAP_HOURS", "soon", "OKX_ALERT_GAP_HOURS: "),
        ("OKX_ALERT_ALLOW_HTTP", "perhaps", "OKX_ALERT_ALLOW_HTTP: "),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    variable: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError) as refusal:
        read_settings()
    message = str(refusal.value)
    assert message.startswith(told)
    assert "\n" not in message
    assert "hunter2" not in message


def test_a_wrong_chat_is_told_and_the_token_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKX_TELEGRAM_TOKEN", "1:hunter2")
    monkeypatch.setenv("OKX_TELEGRAM_CHAT", "me & you")
    with pytest.raises(UsageError, match=r"^OKX_TELEGRAM_CHAT: it is neither a chat's number, .*") as refusal:
        read_settings()
    assert "hunter2" not in str(refusal.value)


def test_alerts_may_go_by_http_where_a_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKX_ALERT_ALLOW_HTTP", "true")
    monkeypatch.setenv("OKX_ALERT_WEBHOOK_URL", "http://10.0.0.1:8080/hook")
    url = read_settings().alert_webhook_url
    assert url is not None
    assert url.get_secret_value() == "http://10.0.0.1:8080/hook"


def test_retention_is_days_by_length_of_candle_and_for_ever_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings().retention == ()
    monkeypatch.setenv("OKX_RETENTION", "1H=2y, 1m=90d,")
    assert [(str(timeframe), days) for timeframe, days in read_settings().retention] == [("1m", 90), ("1h", 730)]


def test_secrets_do_not_show_in_the_settings_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKX_DATABASE_URL", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("HTTPS_PROXY", "http://u:hunter3@proxy:3128")
    monkeypatch.setenv("OKX_ALERT_WEBHOOK_URL", "https://hooks.example/hunter4")
    monkeypatch.setenv("OKX_DEAD_MAN_URL", "https://ping.example/hunter5")
    monkeypatch.setenv("OKX_TELEGRAM_TOKEN", "1:hunter6")
    monkeypatch.setenv("OKX_TELEGRAM_CHAT", "@hunters")
    settings = read_settings()
    assert not re.search(r"hunter\d", f"{settings!r}{settings}")
    assert settings.environment()["OKX_DATABASE_URL"] == "postgresql://u:hunter2@h/d"


@pytest.mark.parametrize(
    ("changes", "origin"),
    [({"rest_url": "http://127.0.0.1:8090"}, "replay"), ({"demo_trading": True}, "demo"), ({}, "market")],
)
def test_it_knows_whose_prices_the_settings_lead_to(changes: dict[str, object], origin: str) -> None:
    assert read_settings(**changes).origin == origin


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = read_settings(
        home=Path("somewhere"),
        symbols=("ETH-USDT",),
        rest_rate=5,
        demo_trading=True,
        alert_allow_http=True,
        alert_webhook_url="http://hooks.example/x",
        telegram_token="1:token",  # noqa: S106
        telegram_chat="@chat",
        alert_gap_hours=2,
        dead_man_url="https://ping.example/x",
        workspace=Path("own.yaml"),
    )
    for name, value in settings.environment().items():
        if name.startswith("OKX_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    child = read_settings()
    assert child.root == tmp_path / "somewhere"
    assert child.workspace == tmp_path / "own.yaml"
    as_here = {"home": settings.home, "parquet_url": "", "workspace": settings.workspace}
    assert child.model_copy(update=as_here) == settings


def test_a_workspace_that_is_not_there_is_told_in_one_line_to_whoever_needs_it(tmp_path: Path) -> None:
    assert read_settings().workspace_files() == []
    settings = read_settings(workspace=Path("own.yaml"))
    with pytest.raises(UsageError, match=f"^OKX_WORKSPACE: there is no file {tmp_path}/own.yaml$"):
        settings.workspace_files()
    (tmp_path / "own.yaml").touch()
    assert settings.workspace_files() == [tmp_path / "own.yaml"]


def test_a_line_of_the_env_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OKX_SYMBOLS=ETH-USDT\n# fine\nOKX_TIMEFRAMES='1h\n")
    with pytest.raises(UsageError, match=r"^\.env: line 3 cannot be read; write NAME=value$"):
        read_settings()


def test_in_the_home_of_a_replay_the_settings_lead_to_it_unless_they_say_where_okx_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_settings_of_home() == read_settings()
    (tmp_path / ".okx").mkdir()
    rest, websocket = "http://127.0.0.1:8090", "ws://127.0.0.1:8090/ws/v5/business"
    read_settings().replay_file.write_text(f"OKX_REST_URL={rest}\nOKX_WS_URL={websocket}\n")
    found = read_settings_of_home()
    assert (found.rest_url, found.ws_url, found.origin) == (rest, websocket, "replay")
    assert read_settings().origin == "market"
    for name in ("OKX_REST_URL", "OKX_WS_URL"):
        with monkeypatch.context() as chosen:
            chosen.setenv(name, "https://eea.okx.com")
            assert read_settings_of_home().origin == "market"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"", "does not say where the replay is"),
        (b"\xff\xfe", "does not say where the replay is"),
        (b"OKX_REST_URL=http://127.0.0.1:8090\n", "does not say where the replay is"),
        (b"OKX_REST_URL='http\nOKX_WS_URL=ws://[::1/", "does not say where the replay is"),
        (b"OKX_REST_URL=https://openapi.okx.com\nOKX_WS_URL=wss://ws.okx.com\n", "does not say where the replay is"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_what_a_replay_left_in_its_home_and_cannot_be_read_is_one_line(
    tmp_path: Path, written: bytes | None, told: str
) -> None:
    file = tmp_path / ".okx" / "replay.env"
    (file.parent if written is not None else file).mkdir(parents=True)
    if written is not None:
        file.write_bytes(written)
    with pytest.raises(UsageError, match=f"^{re.escape(str(file))} {told}[^\n]*$"):
        read_settings_of_home()


def test_a_name_that_looks_like_a_setting_is_told_of_once_and_other_programs_names_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings._tell_once.cache_clear()
    (tmp_path / ".env").write_text("okx_timeframe=1h\nokx_retention=1m=90d\n")
    monkeypatch.setenv("OKX_SYMBOL", "ETH-USDT")
    monkeypatch.setenv("OKX_API_KEY", "x")
    for _ in range(2):
        assert read_settings().symbols == ("BTC-USDT-SWAP",)
    assert [record.getMessage() for record in caplog.records] == [
        "OKX_SYMBOL is no setting; did you mean OKX_SYMBOLS?",
        "okx_timeframe is no setting; did you mean OKX_TIMEFRAMES?",
    ]
