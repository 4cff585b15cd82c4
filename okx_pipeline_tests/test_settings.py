"""Settings: defaults as documented, and one clear line for a wrong value."""

from datetime import date
from pathlib import Path

import pytest

from okx_pipeline.errors import UsageError
from okx_pipeline.settings import read_settings


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
        ("OKX_REST_RATE", "0", "OKX_REST_RATE: "),
        ("OKX_REST_RATE", "many", "OKX_REST_RATE: "),
        ("OKX_PARQUET_URL", "gs://bucket", "OKX_PARQUET_URL: 'gs://bucket' is neither a folder nor an s3:// URL"),
        ("OKX_DATABASE_URL", "mysql://u:hunter2@h/d", "OKX_DATABASE_URL: it is not a PostgreSQL URL"),
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


def test_secrets_do_not_show_in_the_settings_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKX_DATABASE_URL", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("HTTPS_PROXY", "http://u:hunter3@proxy:3128")
    settings = read_settings()
    assert "hunter" not in f"{settings!r}{settings}"
    assert settings.environment()["OKX_DATABASE_URL"] == "postgresql://u:hunter2@h/d"


@pytest.mark.parametrize(
    ("changes", "origin"),
    [({"rest_url": "http://127.0.0.1:8090"}, "replay"), ({"demo_trading": True}, "demo"), ({}, "market")],
)
def test_it_knows_whose_prices_the_settings_lead_to(changes: dict[str, object], origin: str) -> None:
    assert read_settings(**changes).origin == origin


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = read_settings(home=Path("somewhere"), symbols=("ETH-USDT",), rest_rate=5, demo_trading=True)
    for name, value in settings.environment().items():
        if name.startswith("OKX_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    child = read_settings()
    assert child.root == tmp_path / "somewhere"
    assert child.model_copy(update={"home": settings.home, "parquet_url": ""}) == settings


def test_a_line_of_the_env_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OKX_SYMBOLS=ETH-USDT\n# fine\nOKX_TIMEFRAMES='1h\n")
    with pytest.raises(UsageError, match=r"^\.env: line 3 cannot be read; write NAME=value$"):
        read_settings()
