"""Symbols and timeframes that are none, at every door: what users write, what Dagster hands on, what an exchange says.

They become part of SQL, requests, paths and screens. Each door lets in what a market could have, or says in one line
that it is none, before anything is opened or made.
"""

import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import TyperException

from okx_pipeline.candles import Source, parse_symbol, parse_symbols
from okx_pipeline.cli import app
from okx_pipeline.defs.partitions import day_and_symbol
from okx_pipeline.errors import PipelineError, UsageError
from okx_pipeline.exchange.errors import error_of
from okx_pipeline.exchange.frames import encode_requests
from okx_pipeline.exchange.listings import decode_instruments, decode_maintenance, decode_time, plain
from okx_pipeline.exchange.messages import Instrument, decode_page, encode_success
from okx_pipeline.exchange.protocol import INSTRUMENTS
from okx_pipeline.exchange.rest import RestClient
from okx_pipeline.loading import load_candles
from okx_pipeline.maintenance.backup import CONTENTS, restore
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.database import Connection, Database, one
from okx_pipeline.storage.instruments import record_listing
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.stream_status import Heartbeat, beat, sidecar_status
from okx_pipeline.timeframes import TIMEFRAMES, parse_timeframe
from okx_pipeline_tests.exchange.scripted_server import Answer, Server
from okx_pipeline_tests.exchange.test_rest import asking

HARMLESS = re.compile(r"[A-Z0-9_-]{3,130}", re.ASCII)
KNOWN = {spelling for timeframe in TIMEFRAMES for spelling in (timeframe.name, timeframe.bar)}
MONTH = date(2026, 8, 1)

HOSTILE = [
    "../../x",
    "BTC-USDT/../../../etc/passwd",
    "/etc/passwd",
    "..",
    "BTC-USDT\\..\\x",
    "BTC-USDT'; DROP TABLE trading.candlesticks; --",
    'BTC-USDT"',
    "BTC-USDT`id`",
    "$(id)-USDT",
    "BTC-USDT\x00",
    "BTC-USDT\nETH-USDT",
    "BTC-USDT\rX",
    "\x1b]0;title\x07-USDT",
    "BTC%2dUSDT",
    "%s-USDT",
    "{0}-USDT",
    "btc-usdt",
    "ВТС-USDT",
    "BTC\u2010USDT",
    "BTC-USDT\u202e",
    "٣-USDT",
    "-BTC",
    "BTC-",
    "BTC",
    "A-" * 70_000 + "B",
    "A" * 200_000,
    "symbol=BTC-USDT",
    "BTC-USDT|2026-01-01",
    "BTC-USDT.",
    "BTC-USDT/",
    "",
    " ",
]
"""What leads out of a folder, ends a statement, commands a terminal, is read as something else, or has no end."""

anything = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(),
    st.builds("{}{}{}".format, st.sampled_from(["BTC-USDT", "1h", ""]), st.text(max_size=5), st.sampled_from(HOSTILE)),
)
no_symbols = anything.filter(lambda text: not HARMLESS.fullmatch(text.strip()))
no_timeframes = anything.filter(lambda text: text.strip() not in KNOWN)
hostile = pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    """A folder in a folder: what leads out of the inner one is seen."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    return inner


@contextmanager
def refused_in_a_line() -> Iterator[None]:
    """What may be refused as a user's mistake, in one line."""
    try:
        yield
    except UsageError as problem:
        if "\n" in str(problem):
            raise AssertionError(f"several lines: {problem}") from problem


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# What a user writes.


@given(anything)
def test_what_passes_for_a_symbol_is_upper_case_letters_digits_and_dashes(text: str) -> None:
    with refused_in_a_line():
        assert HARMLESS.fullmatch(parse_symbol(text))


@given(anything)
def test_what_passes_for_a_timeframe_is_one_of_thirteen(text: str) -> None:
    with refused_in_a_line():
        assert parse_timeframe(text) in TIMEFRAMES


OPTIONS: list[Callable[[str], list[str]]] = [
    lambda text: ["backfill", "--start", "2026-08-01", "--end", "2026-08-02", "--symbols", text],
    lambda text: ["gaps", "--symbols", text],
    lambda text: ["coverage", "--symbols", text],
    lambda text: ["validate", "--symbols", text],
    lambda text: ["export", "x.csv", "--timeframes", "1h", "--symbols", text],
    lambda text: ["restore", "--month", "2024-01", "--symbols", text],
    lambda text: ["subscribe", "--", text],
    lambda text: ["unsubscribe", "--", text],
    lambda text: ["backfill", "--start", "2026-08-01", "--end", "2026-08-02", "--timeframes", text],
    lambda text: ["gaps", "--timeframes", text],
    lambda text: ["coverage", "--timeframes", text],
    lambda text: ["validate", "--timeframes", text],
    lambda text: ["export", "x.csv", "--symbols", "BTC-USDT", "--timeframes", text],
    lambda text: ["restore", "--month", "2024-01", "--timeframes", text],
    lambda text: ["subscribe", "BTC-USDT", "--timeframes", text],
    lambda text: ["unsubscribe", "BTC-USDT", "--timeframes", text],
]


@hostile
def test_no_command_takes_it_nor_begins_anything(somewhere: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(somewhere)
    for arguments in OPTIONS:
        with pytest.raises((UsageError, TyperException)):
            app(arguments(text), standalone_mode=False)
    assert everything_below(somewhere.parents[1]) == [somewhere.parent, somewhere]


@hostile
def test_no_setting_takes_it(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for name in ("symbols", "timeframes"):
        if text.strip():
            with pytest.raises(UsageError, match=f"OKX_{name.upper()}") as problem:
                read_settings(**{name: text})
            assert "\n" not in str(problem.value)


@given(no_symbols, st.sampled_from(["parquet", "postgres"]))
def test_nothing_is_loaded_of_what_is_no_symbol(text: str, store: Any) -> None:
    # There is nothing below this home: whatever were opened would end in another error.
    with pytest.raises(UsageError):
        load_candles(text, "1h", store=store, settings=Settings(home=Path("/nonexistent")))


@given(no_timeframes)
def test_nothing_is_loaded_of_what_is_no_timeframe(text: str) -> None:
    with pytest.raises(UsageError):
        load_candles("BTC-USDT", text, settings=Settings(home=Path("/nonexistent")))


# Where files are.


@given(no_symbols)
def test_no_path_of_a_file_is_made_of_what_is_no_symbol(text: str) -> None:
    files = ParquetStore("/nonexistent/inner")
    with pytest.raises(UsageError):
        files.place(SeriesMonth(text, "1h", MONTH))
    with pytest.raises(UsageError):
        files.months(text, "1h")
    with pytest.raises(UsageError):
        files.place(SeriesMonth("BTC-USDT", text, MONTH))


def test_a_backup_leads_nowhere_else(somewhere: Path, new_database: Callable[[bool], Database]) -> None:
    contents = {"made_at": "2026-08-01T00:00:00Z", "pg_dump": 15, "migrations": []}
    backup = somewhere / "made.backup"
    for symbol in ("../../../../x", "/x"):
        with zipfile.ZipFile(backup, "w") as archive:
            months = [[symbol, "1h", "2024-01-01", True, "0" * 64]]
            archive.writestr(CONTENTS, msgspec.json.encode({**contents, "months": months}))
            archive.writestr(f"candlesticks/timeframe=1h/symbol={symbol}/month=2024-01/candles.parquet", b"anything")
        before = everything_below(somewhere.parents[1])
        with pytest.raises(UsageError, match="is not an OKX symbol"):
            restore(read_settings(home=somewhere / "home"), new_database(False), backup)
        assert everything_below(somewhere.parents[1]) == before


# What Dagster hands on: partitions of symbols can be added by hand.


@given(st.one_of(anything, st.builds("2026-01-01|{}".format, no_symbols), st.builds("{}|BTC-USDT".format, anything)))
def test_a_partition_is_a_day_and_a_symbol(key: str) -> None:
    with refused_in_a_line():
        day, symbol = day_and_symbol(key)
        assert HARMLESS.fullmatch(symbol)
        assert isinstance(day, date)


# What an exchange says.

PLAIN = Instrument(symbol="BTC-USDT-SWAP", instrument_type="SWAP", tick_size="0.1", listed="1611916828000")
texts = st.one_of(
    anything, st.sampled_from(["", "live", "1", "0.1", "1e-9", "NaN", "Infinity", "1e999", "²", "9" * 30])
)


@st.composite
def instruments(draw: st.DrawFn) -> Instrument:
    fields = draw(st.dictionaries(st.sampled_from(PLAIN.__struct_fields__), texts, max_size=4))
    return msgspec.structs.replace(PLAIN, **fields)


def listed(found: list[Instrument]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(found))


@given(instruments())
@settings(max_examples=300)
def test_of_a_listing_only_what_could_be_traded_is_taken(odd: Instrument) -> None:
    sound, passed_over = decode_instruments(listed([PLAIN, odd]))
    assert len(sound) + passed_over == 2
    assert sound[0] == PLAIN
    for each in sound:
        assert HARMLESS.fullmatch(each.symbol)
        assert all(text.isprintable() and len(text) <= 200 for text in msgspec.structs.astuple(each))


def test_whatever_is_taken_of_a_listing_fits_the_table(connection: Connection) -> None:
    @given(st.lists(instruments(), max_size=8))
    @settings(max_examples=25, deadline=None)
    def record(found: list[Instrument]) -> None:
        record_listing(connection, decode_instruments(listed([PLAIN, *found]))[0])

    record()
    assert one(connection, "SELECT count(*) FROM trading.instruments WHERE symbol ~ '[^A-Z0-9_-]'") == 0


def test_a_listing_that_names_a_folder_costs_itself_alone_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(client: RestClient, server: Server) -> list[Instrument]:
        return await client.instruments("SWAP")

    folder = msgspec.structs.replace(PLAIN, symbol="../../x")
    with caplog.at_level(logging.WARNING):
        assert asking(ask, Answer(encode_success([folder, PLAIN]))) == [PLAIN]
    assert "lists 1 instruments of kind SWAP that cannot be" in caplog.text


def test_a_listing_of_nothing_else_is_none() -> None:
    # Taken, it would say that every instrument is gone.
    with pytest.raises(msgspec.DecodeError):
        decode_instruments(listed([msgspec.structs.replace(PLAIN, symbol="../../x")]))
    assert decode_instruments(listed([])) == ([], 0)
    assert INSTRUMENTS.path.startswith("/api/")


def test_whatever_rows_hold_lands_as_text_or_not_at_all(connection: Connection) -> None:
    good = ["1747094040000", "2", "2", "1", "2", "1", "1", "1", "1"]
    minute = parse_timeframe("1m")
    field = st.one_of(texts, st.integers(), st.none(), st.lists(texts, max_size=2), st.sampled_from(good))
    row = st.one_of(
        st.lists(field, min_size=9, max_size=9),
        st.builds(lambda at, odd: [*good[:at], odd, *good[at + 1 :]], st.integers(0, 8), field),
    )

    @given(st.lists(row, max_size=5))
    @settings(max_examples=40, deadline=None)
    def landed(rows: list[Any]) -> None:
        page = decode_page(msgspec.Raw(msgspec.json.encode(rows)), "BTC-USDT", minute)
        land(connection, page.candles, page.refused, source=Source.REST)

    landed()
    for said, original in connection.execute("SELECT reason, original FROM trading.candlesticks_quarantine"):
        assert str(said).isprintable()
        assert json.loads(original) is not None


@given(texts, texts, texts, texts)
def test_maintenance_has_readable_times_and_plain_words(title: str, state: str, begin: str, end: str) -> None:
    body = [{"title": title, "state": state, "begin": begin, "end": end, "serviceType": "5"}]
    for window in decode_maintenance(msgspec.Raw(msgspec.json.encode(body))):
        assert window.title == plain(title, 200)
        assert (int(window.begin), int(window.end or 0)) >= (0, 0)


@given(texts)
def test_a_time_is_one_that_calendars_have(text: str) -> None:
    with suppress(msgspec.DecodeError):
        assert 0 <= decode_time(msgspec.Raw(msgspec.json.encode([{"ts": text}]))) < 10**14


@given(st.text(), st.text(), st.integers(0, 40))
def test_what_an_exchange_says_is_one_line_that_commands_nothing(words: str, code: str, most: int) -> None:
    said = plain(words, most)
    assert len(said) <= most
    assert said.isprintable()
    assert str(error_of(code, words, "/x", {})).isprintable()


def test_what_an_exchange_says_never_stops_a_heartbeat(connection: Connection) -> None:
    refused = {"BTC-USDT 1h": plain("\x00\x1b[2Jdoes not exist\ud800", 300)}
    beat(connection, Heartbeat("here", "streaming", refused=refused))
    status = sidecar_status(connection)
    assert status is not None
    assert status.refused == {"BTC-USDT 1h": "[2Jdoes not exist"}


def test_no_request_is_made_of_two_names() -> None:
    assert parse_symbols("BTC-USDT,ETH-USDT") == ("BTC-USDT", "ETH-USDT")
    with pytest.raises(UsageError):
        parse_symbols('BTC-USDT"},{"op":"x",ETH-USDT')
    assert list(encode_requests("subscribe", [])) == []
    assert issubclass(UsageError, PipelineError)
