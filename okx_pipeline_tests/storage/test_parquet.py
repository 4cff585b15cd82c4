"""The Parquet files: layout and schema as promised, read by others' readers, exact, and damage that is noticed."""

import hashlib
import json
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from pyarrow import fs

from okx_pipeline.candles import VALUE_COLUMNS, Candle, Source, canonical
from okx_pipeline.errors import ExitStatus, PipelineError, UsageError
from okx_pipeline.storage.database import Connection, Database, StorageError, one
from okx_pipeline.storage.landing import land
from okx_pipeline.storage.parquet import (
    ARROW_SCHEMA,
    NUMBER,
    DamagedFileError,
    FileState,
    ParquetStore,
    SeriesMonth,
    canonical_texts,
    day_hashes,
    month_hash,
)
from okx_pipeline.storage.projection import pending_months, project
from okx_pipeline.timeframes import DAY_MS, day_ms
from okx_pipeline_tests.storage.small_disk import fill, small_disk
from okx_pipeline_tests.storage.test_landing import AUGUST, MINUTE, candle, now

MONTH = SeriesMonth("BTC-USDT-SWAP", "1m", date(2026, 8, 1))
VALUES = [column.name for column in VALUE_COLUMNS]


def table(rows: int = 300, noise: random.Random | None = None) -> pa.Table:
    """A file's rows, one a minute; with `noise` as volume that no compression makes small."""
    opens = [AUGUST + minute * MINUTE for minute in range(rows)]
    moment = datetime(2026, 8, 1, 0, 0, 1, 234567, tzinfo=UTC)
    prices = pa.array([f"{1 + minute % 997}.{minute}" for minute in range(rows)]).cast(NUMBER)
    columns = {
        "timestamp_ms": opens,
        "open_time": opens,
        **dict.fromkeys(VALUES, prices),
        "source": ["rest"] * rows,
        "received_at": [moment] * rows,
        "updated_at": [moment] * rows,
    }
    if noise is not None:
        columns["volume"] = pa.array([str(noise.getrandbits(60)) for _ in range(rows)]).cast(NUMBER)
    return pa.table([columns[name] for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA)


def write(store: ParquetStore, rows: pa.Table) -> None:
    store.write(MONTH, rows, day_hashes(rows))


def state_of(rows: pa.Table) -> FileState:
    return FileState(rows.num_rows, month_hash(day_hashes(rows)), day_hashes(rows))


def postgresqls_hash(connection: Connection, day: date) -> str:
    parameters = (MONTH.symbol, MONTH.timeframe, day_ms(day), day_ms(day) + DAY_MS)
    return str(one(connection, "SELECT trading.content_hash(%s, %s, %s, %s)", parameters))


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


@pytest.fixture
def store(tmp_path: Path) -> ParquetStore:
    return ParquetStore(str(tmp_path / "parquet"))


# Layout


def test_a_file_lies_where_others_look_for_it_and_has_the_columns_promised(store: ParquetStore, tmp_path: Path) -> None:
    write(store, table())
    path = tmp_path / "parquet/candlesticks/timeframe=1m/symbol=BTC-USDT-SWAP/month=2026-08/candles.parquet"
    assert store.place(MONTH) == str(path)
    assert [found for found in (tmp_path / "parquet").rglob("*") if found.is_file()] == [path]
    schema = pq.read_schema(path)
    number, moment = pa.decimal128(38, 18), pa.timestamp("us", tz="UTC")
    assert [(field.name, field.type) for field in schema] == [
        ("timestamp_ms", pa.int64()), ("open_time", pa.timestamp("ms", tz="UTC")),
        ("open_price", number), ("high_price", number), ("low_price", number), ("close_price", number),
        ("volume", number), ("volume_currency", number), ("volume_quote", number),
        ("source", pa.string()), ("received_at", moment), ("updated_at", moment),
    ]  # fmt: skip
    assert not any(field.nullable for field in schema)
    assert {key.decode() for key in schema.metadata} == {"okx_pipeline.content_sha256", "okx_pipeline.day_sha256"}


def test_what_was_written_is_read_back_row_by_row(store: ParquetStore) -> None:
    assert store.state(MONTH) is None
    for rows in (table(1), table(300), table(44_640)):
        write(store, rows)
        assert store.state(MONTH) == state_of(rows)
        assert store.read(MONTH).equals(rows)
        assert store.opens(MONTH) == rows["timestamp_ms"].to_pylist()


@pytest.fixture
def several_series(connection: Connection, store: ParquetStore) -> dict[tuple[str, str, int], tuple[Decimal, ...]]:
    """Two symbols, two timeframes, two months, in PostgreSQL and in files; by key what PostgreSQL holds."""
    minutes = [candle(minute, symbol=symbol) for symbol in ("BTC-USDT-SWAP", "ETH-USDT") for minute in (0, 1, 44_640)]
    days = [
        row._replace(timeframe="1d", timestamp_ms=AUGUST + day * 1440 * MINUTE)
        for row in minutes[::3]
        for day in range(40)
    ]
    land(connection, [*minutes, *days], source=Source.REST)
    project(connection, store, pending_months(connection))
    found = connection.execute(f"SELECT symbol, timeframe, timestamp_ms, {', '.join(VALUES)} FROM trading.candlesticks")
    return {row[:3]: row[3:] for row in found}


def leave_a_killed_writers_file(store: ParquetStore) -> None:
    path = Path(store.place(MONTH))
    path.with_name(".candles.parquet.0123456789abcdef.tmp").write_bytes(path.read_bytes()[:-9])


def test_pandas_reads_the_folder_with_filters(
    several_series: dict[tuple[str, str, int], tuple[Decimal, ...]], store: ParquetStore
) -> None:
    leave_a_killed_writers_file(store)
    for root in (store.root, f"{store.root}/candlesticks"):
        wanted = [("symbol", "==", "ETH-USDT"), ("timeframe", "==", "1d"), ("month", "==", "2026-09")]
        frame = pd.read_parquet(root, filters=wanted)
        opens = [
            key[2] for key in several_series if key[:2] == ("ETH-USDT", "1d") and key[2] >= AUGUST + 31 * 1440 * MINUTE
        ]
        assert sorted(frame["timestamp_ms"]) == sorted(opens)
        assert len(opens) == 9
        assert frame["close_price"].iloc[0] == Decimal("63030")
        assert str(frame["open_time"].iloc[0]) == "2026-09-01 00:00:00+00:00"
        whole = pd.read_parquet(root)
        assert sorted(zip(whole["symbol"], whole["timeframe"], whole["timestamp_ms"], strict=True)) == sorted(
            several_series
        )


def test_arrow_and_duckdb_read_every_candle_once_and_exactly(
    several_series: dict[tuple[str, str, int], tuple[Decimal, ...]], store: ParquetStore
) -> None:
    leave_a_killed_writers_file(store)
    names = ["symbol", "timeframe", "timestamp_ms", *VALUES]
    rows = ds.dataset(f"{store.root}/candlesticks", partitioning="hive").to_table(columns=names).to_pylist()
    assert {tuple(row.values())[:3]: tuple(row.values())[3:] for row in rows} == several_series
    assert len(rows) == len(several_series)
    with duckdb.connect() as duck:
        duck.execute("SET threads = 1")
        found = duck.execute(
            f"SELECT {', '.join(names)} FROM read_parquet('{store.root}/**/*.parquet', hive_partitioning = true)"
        ).fetchall()
        assert {row[:3]: row[3:] for row in found} == several_series
        assert len(found) == len(several_series)
        (types,) = duck.execute(
            "SELECT DISTINCT typeof(symbol) || typeof(month) || typeof(open_price) "
            f"FROM read_parquet('{store.root}/**/*.parquet', hive_partitioning = true)"
        ).fetchall()
        assert types == ("VARCHARVARCHARDECIMAL(38,18)",)


# Exactness

AWKWARD = [
    "0.000000000000000001",
    "99999999999999999999.999999999999999999",
    "10000000000000000000",
    "100",
    "0.1",
    "1e-7",
]

number = st.one_of(
    st.sampled_from(AWKWARD),
    *(st.decimals(0, 10**whole - 1, places=places) for whole in (1, 5, 20) for places in (0, 1, 5, 18)),
).map(lambda number: canonical(number if isinstance(number, str) else f"{number:f}"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(number.filter(lambda text: text != "0"), number, number, number), min_size=1, max_size=40))
@example([("0.000000000000000001", "0", "0", "0")])
def test_values_and_hash_in_the_file_are_postgresqls_to_the_last_digit(
    connection: Connection, store: ParquetStore, values: list[tuple[str, str, str, str]]
) -> None:
    for table in ("candlesticks", "landing_marks", "candle_months"):
        connection.execute(f"DELETE FROM trading.{table}")
    batch = [
        Candle("BTC-USDT-SWAP", "1m", AUGUST + minute * MINUTE, price, price, price, price, *volumes)
        for minute, (price, *volumes) in enumerate(values)
    ]
    land(connection, batch, source=Source.REST)
    project(connection, store, [MONTH])
    read = store.read(MONTH)
    assert day_hashes(read) == {MONTH.month: postgresqls_hash(connection, MONTH.month)}
    assert store.state(MONTH) == state_of(read)
    for column, texts in zip(VALUE_COLUMNS, zip(*(row.values for row in batch), strict=True), strict=True):
        assert canonical_texts(read[column.name]) == list(texts)
    as_stored = connection.execute(
        f"SELECT {', '.join(VALUES)} FROM trading.candlesticks ORDER BY timestamp_ms"
    ).fetchall()
    assert [tuple(row[name] for name in VALUES) for row in read.to_pylist()] == as_stored


def test_padding_zeros_of_a_row_that_came_by_another_way_do_not_change_its_hash(
    connection: Connection, store: ParquetStore
) -> None:
    land(connection, [candle()._replace(volume="0", volume_quote="100")], source=Source.REST)
    before = postgresqls_hash(connection, MONTH.month)
    connection.execute("UPDATE trading.candlesticks SET close_price = 63030.00, volume = 0.000, volume_quote = 100.0")
    assert postgresqls_hash(connection, MONTH.month) == before
    project(connection, store, [MONTH])
    assert day_hashes(store.read(MONTH)) == {MONTH.month: before}


def test_every_day_of_a_file_can_be_held_against_postgresql_by_its_metadata_alone(
    connection: Connection, store: ParquetStore
) -> None:
    minutes = [0, 1, 1439, 1440, 3 * 1440 - 1, 30 * 1440, 31 * 1440 - 1]
    land(connection, [candle(minute) for minute in minutes], source=Source.REST)
    project(connection, store, [MONTH])
    by_day = {date(2026, 8, day): postgresqls_hash(connection, date(2026, 8, day)) for day in (1, 2, 3, 31)}
    assert len(set(by_day.values())) == 4
    metadata = pq.read_metadata(store.place(MONTH)).metadata
    assert json.loads(metadata[b"okx_pipeline.day_sha256"]) == {str(day): hashed for day, hashed in by_day.items()}
    lines = "".join(f"{day} {hashed}\n" for day, hashed in by_day.items())
    assert metadata[b"okx_pipeline.content_sha256"].decode() == hashlib.sha256(lines.encode()).hexdigest()
    assert store.state(MONTH) == state_of(store.read(MONTH))
    land(connection, [candle(1440, "63031")], source=Source.REST, requested_at=now(connection))
    project(connection, store, [MONTH])
    state = store.state(MONTH)
    assert state is not None
    changed = {day for day in by_day if by_day[day] != state.day_hashes[day]}
    assert changed == {date(2026, 8, 2)}
    assert state.day_hashes[date(2026, 8, 2)] == postgresqls_hash(connection, date(2026, 8, 2))


# Damage


def test_a_flipped_byte_is_noticed_when_the_rows_are_read(store: ParquetStore) -> None:
    original = table(2_000)
    write(store, original)
    path = Path(store.place(MONTH))
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    dice = random.Random(7)
    noticed = 0
    flips = 150
    for _ in range(flips):
        at = dice.randrange(4, footer)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << dice.randrange(8)]) + whole[at + 1 :])
        try:
            # A page's header has bits without a meaning; what it frames has none.
            assert store.read(MONTH).equals(original)
        except DamagedFileError:
            noticed += 1
    assert noticed > 0.9 * flips


def test_a_flipped_byte_of_the_open_times_is_noticed_when_they_alone_are_read(store: ParquetStore) -> None:
    write(store, table(2_000))
    path = Path(store.place(MONTH))
    whole = path.read_bytes()
    opens = pq.read_metadata(path).row_group(0).column(0)
    for at, noticed in ((opens.data_page_offset + opens.total_compressed_size - 1, True), (len(whole) // 2, False)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if noticed:
            with pytest.raises(DamagedFileError, match=f"^{path}: "):
                store.opens(MONTH)
        else:
            assert store.opens(MONTH) == table(2_000)["timestamp_ms"].to_pylist()
        with pytest.raises(DamagedFileError, match=f"^{path}: "):
            store.read(MONTH)


@pytest.mark.parametrize("order", ["days swapped", "rows swapped", "a row twice"])
def test_rows_that_are_not_in_key_order_are_noticed_whatever_the_hashes_say(store: ParquetStore, order: str) -> None:
    rows = table(2_000)
    pieces = {
        "days swapped": [rows.slice(1_440), rows.slice(0, 1_440)],
        "rows swapped": [rows.slice(1, 1), rows.slice(0, 1), rows.slice(2)],
        "a row twice": [rows.slice(0, 1), rows],
    }
    store.write(MONTH, pa.concat_tables(pieces[order]), day_hashes(rows))
    for action in (store.read, store.opens):
        with pytest.raises(DamagedFileError, match="its rows are out of order or doubled"):
            action(MONTH)


@pytest.mark.parametrize(
    "said",
    [
        {"okx_pipeline.day_sha256": None},
        {"okx_pipeline.content_sha256": None},
        {"okx_pipeline.day_sha256": '{"2026-08-01": "another"}'},
        {"okx_pipeline.content_sha256": "another"},
        {"okx_pipeline.day_sha256": '{"today": "another"}'},
        {"okx_pipeline.day_sha256": '["2026-08-01"]'},
        {"okx_pipeline.day_sha256": "{"},
        {"okx_pipeline.content_sha256": b"\xff"},
    ],
)
def test_hashes_that_cannot_be_read_or_contradict_one_another_are_damage(
    store: ParquetStore, said: dict[str, str | bytes | None]
) -> None:
    write(store, table())
    path = Path(store.place(MONTH))
    kept = {key.decode(): value for key, value in pq.read_schema(path).metadata.items()} | said
    told = {key: value for key, value in kept.items() if value is not None}
    pq.write_table(table().replace_schema_metadata(told), path)
    with pytest.raises(DamagedFileError, match=f"^{path}: ") as caught:
        store.state(MONTH)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_noticed_by_its_footer_however_much_is_missing(store: ParquetStore) -> None:
    write(store, table())
    path = Path(store.place(MONTH))
    whole = path.read_bytes()
    for kept in (0, 1, 4, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(DamagedFileError, match=f"^{path}: ") as told:
            store.state(MONTH)
        assert "\n" not in str(told.value)
        for action in (store.read, store.opens):
            with pytest.raises(DamagedFileError):
                action(MONTH)


def test_somebody_elses_file_and_a_missing_one_are_told(store: ParquetStore) -> None:
    for action in (store.read, store.opens):
        with pytest.raises(DamagedFileError, match="there is no such file"):
            action(MONTH)
    path = Path(store.place(MONTH))
    path.parent.mkdir(parents=True)
    pq.write_table(table(), path)
    with pytest.raises(DamagedFileError, match="carries no content hash"):
        store.state(MONTH)
    pq.write_table(table().drop_columns(["timestamp_ms"]), path)
    for action in (store.read, store.opens):
        with pytest.raises(DamagedFileError, match=f"^{path}: ") as told:
            action(MONTH)
        assert "\n" not in str(told.value)


def test_a_folder_that_is_in_the_way_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = ParquetStore(str(tmp_path / "file"))
    for action in (lambda: write(store, table()), lambda: store.state(MONTH), lambda: store.read(MONTH)):
        with pytest.raises(StorageError, match=r"cannot (read|write) .*Not a directory") as told:
            action()
        assert not isinstance(told.value, DamagedFileError)
        assert "\n" not in str(told.value)


def test_a_full_disk_leaves_the_old_file_alone_and_takes_no_space_with_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        store = ParquetStore(str(disk / "parquet"))
        write(store, table())
        old = Path(store.place(MONTH)).read_bytes()
        filler = fill(disk, leave_bytes=65_536)
        large = table(20_000, noise=random.Random(3))
        with pytest.raises(StorageError, match=r"No space left on device.*PostgreSQL has the rows") as told:
            write(store, large)
        assert told.value.exit_status == ExitStatus.FAILED
        assert "\n" not in str(told.value)
        folder = Path(store.place(MONTH)).parent
        assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("candles.parquet", old)]
        filler.unlink()
        write(store, large)
        assert store.read(MONTH).equals(large)


# S3


@pytest.fixture(scope="module")
def s3_options() -> Iterator[str]:
    """An S3 server with the bucket `candles`, as options of a URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "geheim-wort")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        made = fs.S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        made.create_dir("candles")
        yield f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


def test_an_object_store_is_written_and_read_as_a_folder_is(s3_options: str, connection: Connection) -> None:
    store = ParquetStore(f"s3://candles/some/prefix?{s3_options}")
    assert store.place(MONTH) == f"s3://candles/some/prefix/{MONTH.path}"
    assert store.state(MONTH) is None
    with pytest.raises(DamagedFileError, match="there is no such file"):
        store.read(MONTH)
    land(connection, [candle(minute) for minute in range(100)], source=Source.REST)
    assert [result.written for result in project(connection, store, [MONTH])] == [True]
    assert [result.written for result in project(connection, store, [MONTH])] == [False]
    land(connection, [candle(100)], source=Source.REST)
    assert [result.rows for result in project(connection, store, [MONTH])] == [101]
    rows = store.read(MONTH)
    assert rows.num_rows == 101
    assert store.opens(MONTH) == [AUGUST + minute * MINUTE for minute in range(101)]
    assert store.state(MONTH) == state_of(rows)
    assert day_hashes(rows) == {MONTH.month: postgresqls_hash(connection, MONTH.month)}


def test_a_damaged_object_is_noticed_and_rebuilt(s3_options: str, connection: Connection) -> None:
    store = ParquetStore(f"s3://candles/damaged?{s3_options}")
    land(connection, [candle(minute) for minute in range(100)], source=Source.REST)
    project(connection, store, [MONTH])
    with store._remote.open_output_stream(f"candles/damaged/{MONTH.path}") as sink:
        sink.write(b"PAR1 not a file of ours PAR1")
    with pytest.raises(DamagedFileError, match=r"^s3://candles/damaged/candlesticks/"):
        store.state(MONTH)
    (rebuilt,) = project(connection, store, [MONTH])
    assert rebuilt.written
    assert rebuilt.damage is not None
    assert store.read(MONTH).num_rows == 100


def test_a_missing_bucket_is_one_line(s3_options: str) -> None:
    store = ParquetStore(f"s3://nowhere/prefix?{s3_options}")
    with pytest.raises(StorageError, match=r"cannot write s3://nowhere/prefix/.*NO_SUCH_BUCKET") as told:
        write(store, table())
    assert "\n" not in str(told.value)
    assert "endpoint_override" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://", "names no bucket"),
        ("s3://candles/prefix?nope=1", "Unexpected query parameter in S3 URI: 'nope'"),
        ("s3://key:geheim/wort@candles/prefix", "cannot be read as s3://bucket/prefix"),
        ("s3://key:geheim-wort@candles/prefix?nope=1", "cannot be read as s3://bucket/prefix"),
    ],
)
def test_an_unreadable_url_is_wrong_usage_and_its_credentials_are_not_shown(url: str, reason: str) -> None:
    with pytest.raises(PipelineError, match=reason) as told:
        ParquetStore(url)
    assert isinstance(told.value, UsageError)
    assert "geheim" not in str(told.value)
    assert told.value.__cause__ is None
