"""The law of the status: green exactly if a recount of rows, files and verdicts finds nothing that is not accepted."""

import hashlib
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from okx_pipeline.candles import Source
from okx_pipeline.monitor.health import problem_of
from okx_pipeline.quality.data_docs import DataDocs
from okx_pipeline.quality.verdicts import judge_days
from okx_pipeline.ranges import Range
from okx_pipeline.storage.audit import audit
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import Read
from okx_pipeline.storage.damage import look_at_files
from okx_pipeline.storage.database import Database
from okx_pipeline.storage.findings import accept
from okx_pipeline.storage.gaps import database_now
from okx_pipeline.storage.landing import SeriesDay, mark_landings
from okx_pipeline.storage.overview import overview
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.wanted import want
from okx_pipeline.stream.health import StreamHealth
from okx_pipeline.timeframes import DAY_MS, HOUR_MS, day_ms
from okx_pipeline_tests.quality.sound_store import LISTED, candles, list_instruments
from okx_pipeline_tests.storage.emptying import empty

SYMBOL = "CLEAN-USDT-SWAP"
KEY = (SYMBOL, "4h")
FIRST = date(2026, 8, 3)
DAYS = [FIRST + timedelta(number) for number in range(3)]
ANCHOR = FIRST + timedelta(5)
"""A day that nothing happens to, so that its month is never empty."""
NOW_MS = day_ms(FIRST) + 20 * DAY_MS
MONTH = SeriesMonth(*KEY, date(2026, 8, 1))

BY_HAND = ["delete", "edit"]
steps = st.tuples(
    st.sampled_from(["land", "delete", "edit", "repair", "judge", "accept", "count", "project", "cut", "remove"]),
    st.integers(0, 2),
    st.sets(st.integers(0, 5), min_size=1, max_size=3),
)
unseen = st.tuples(st.sampled_from(BY_HAND), st.integers(0, 2), st.sets(st.integers(0, 5), min_size=1, max_size=3))


@pytest.fixture(scope="module")
def database(new_database: object) -> Database:
    return new_database(True)  # type: ignore[operator, no-any-return]


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[CandleStore]:
    with CandleStore.opened(database, ParquetStore(str(tmp_path / "parquet"))) as opened:
        yield opened


class _System:
    """A store of four days of six candles, and what is known of it besides what the program knows."""

    def __init__(self, store: CandleStore) -> None:
        self.store = store
        self.docs = DataDocs(Path(store.files.root).parent / "docs")
        self.touched: set[date] = set()
        self.accepted: dict[date, str] = {}
        connection = store.connection
        empty(connection)
        Path(store.files.place(MONTH)).unlink(missing_ok=True)
        list_instruments(connection, [SYMBOL], LISTED)
        want(connection, {KEY: [Range(day_ms(day), day_ms(day) + DAY_MS) for day in (*DAYS, ANCHOR)]}, "backfill")
        for day in (*DAYS, ANCHOR):
            self.repair(day)
        store.project([])

    def take(self, step: str, number: int, chosen: set[int]) -> None:
        day = DAYS[number]
        if step == "land":
            self.store.land([candles(*KEY, day)[each] for each in sorted(chosen)], source=Source.REST)
        elif step in BY_HAND:
            self.by_hand(step, day, chosen)
            if step == "edit" and self.rows(day, chosen):
                self.touched.add(day)
        elif step == "repair":
            self.repair(day)
        elif step == "judge":
            self.store.account(NOW_MS)
            list(judge_days(self.store, self.docs, {SYMBOL: [day]}))
        elif step == "accept":
            self.store.account(NOW_MS)
            accept(self.store.connection, SeriesDay(*KEY, day), "it is known")
            self.accepted[day] = self.content(day)
        elif step == "count":
            self.store.account(NOW_MS)
        elif step == "project":
            self.store.project([])
        elif Path(self.store.files.place(MONTH)).exists():
            path = Path(self.store.files.place(MONTH))
            path.unlink() if step == "remove" else path.write_bytes(path.read_bytes()[:-50])

    def by_hand(self, step: str, day: date, chosen: set[int]) -> None:
        opens = [day_ms(day) + each * 4 * HOUR_MS for each in chosen]
        what = "DELETE FROM" if step == "delete" else "UPDATE"
        how = "" if step == "delete" else "SET volume_currency = volume_currency * 2"
        self.store.connection.execute(
            f"{what} trading.candlesticks {how} WHERE symbol = %s AND timestamp_ms = ANY(%s)", (SYMBOL, opens)
        )

    def repair(self, day: date) -> None:
        """As the gap repair or a reconciliation does: the whole day is read from REST."""
        store = self.store
        mark_landings(store.connection)
        began_at = database_now(store.connection)
        store.land(candles(*KEY, day), source=Source.REST, requested_at=began_at)
        store.account(NOW_MS, {SeriesDay(*KEY, day): Read(6, 6, False, NOW_MS)}, began_at)
        self.touched.discard(day)

    def drain(self) -> None:
        """Everything that the sidecar does by itself, once."""
        connection, files = self.store.connection, self.store.files
        look_at_files(connection, files, None, lambda took_s: True)
        self.store.account(NOW_MS)
        audit(connection, whole=True)
        self.store.account(NOW_MS)
        self.store.project([])

    def is_green(self) -> bool:
        return problem_of(overview(self.store.connection), StreamHealth(None, None, [])) is None

    def rows(self, day: date, chosen: set[int]) -> list[tuple[object, ...]]:
        opens = [day_ms(day) + each * 4 * HOUR_MS for each in chosen]
        return self.store.connection.execute(
            "SELECT timestamp_ms, open_price, high_price, low_price, close_price, volume, volume_currency, "
            "volume_quote FROM trading.candlesticks WHERE symbol = %s AND timestamp_ms = ANY(%s) ORDER BY 1",
            (SYMBOL, opens),
        ).fetchall()

    def content(self, day: date) -> str:
        return hashlib.sha256(str(self.rows(day, set(range(6)))).encode()).hexdigest()

    def recount(self) -> bool:
        """Whether nothing is wrong that is not accepted, found in another way than the program finds it."""
        every = set(range(6))
        wrong = {day for day in DAYS if len(self.rows(day, every)) < 6} | self.touched
        wrong |= {
            day
            for (day,) in self.store.connection.execute(
                "SELECT day FROM trading.quality_results WHERE severity = 'critical' AND symbol = %s", (SYMBOL,)
            )
        }
        wrong -= {day for day, content in self.accepted.items() if content == self.content(day)}
        held = [row for day in (*DAYS, ANCHOR) for row in self.rows(day, every)]
        table = pq.ParquetFile(self.store.files.place(MONTH)).read()
        names = ["timestamp_ms", *(f"{name}_price" for name in ("open", "high", "low", "close"))]
        names += ["volume", "volume_currency", "volume_quote"]
        return not wrong and held == list(zip(*(table[name].to_pylist() for name in names), strict=True))


@given(st.lists(steps, max_size=7), st.lists(unseen, max_size=2))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_status_is_green_exactly_if_a_recount_finds_nothing_wrong_that_is_not_accepted(
    store: CandleStore, done: list[tuple[str, int, set[int]]], hidden: list[tuple[str, int, set[int]]]
) -> None:
    system = _System(store)
    assert system.is_green()
    for step in done:
        system.take(*step)
    store.account(NOW_MS)
    before = {day: system.content(day) for day in DAYS}
    with store.connection.transaction():
        # As whoever has disabled the triggers.
        store.connection.execute("SET LOCAL session_replication_role = replica")
        for step, number, chosen in hidden:
            system.by_hand(step, DAYS[number], chosen)
    system.touched |= {day for day in DAYS if system.content(day) != before[day]}
    system.drain()
    assert system.is_green() == system.recount()
