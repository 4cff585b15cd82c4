"""The store's rules on dictionaries, written apart from the SQL that they are held against; and both side by side.

`ModelStore` says what must become of every batch. `MirroredStore` is the real store on PostgreSQL and Parquet, which
after each step is compared with the model in every row, revision, mark, month and answer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, Protocol

from okx_pipeline.candles import VALUE_COLUMNS, Candle, Refused, Source
from okx_pipeline.exchange.clock import ExchangeClock
from okx_pipeline.exchange.frames import Series
from okx_pipeline.history.backfill import Backfill
from okx_pipeline.quality.gaps import SeriesRange, detect
from okx_pipeline.quality.repair import AGAIN_YOUNG_MS, repair
from okx_pipeline.ranges import Range
from okx_pipeline.settings import Settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.coverage import due
from okx_pipeline.storage.database import Database, one
from okx_pipeline.storage.landing import Change, Key, Landed, SeriesDay
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.partitions import leave_archived_out
from okx_pipeline.storage.projection import archive_month, pending_months, restore_month
from okx_pipeline.storage.stream_status import save_offsets, stream_offsets
from okx_pipeline.timeframes import DAY_MS, Timeframe, day_of, month_bounds, month_of, parse_timeframe

Values = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A candle as it is held: its seven numbers as text, where they come from, and when they last changed."""

    values: Values
    source: Source
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Revision:
    """A value that a candle had before it was changed, and by whom it was."""

    key: Key
    values: Values
    source: Source
    revised_by: Source


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the ledger claims: (expected, present, quarantined, missing, corrected) by day, and open gaps by candle."""

    days: dict[SeriesDay, tuple[int, int, int, int, int]]
    gaps: dict[Series, list[int]]


class Store(Protocol):
    """What a sequence of faults does to a store, and what is to be seen of it."""

    def now(self) -> datetime: ...
    def land(
        self, candles: Iterable[Candle], refused: Sequence[Refused], *, source: Source, requested_at: datetime | None
    ) -> Landed: ...
    def land_and_die(self, candles: Sequence[Candle], refused: Sequence[Refused], **how: Any) -> None: ...
    def opens(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> list[int]: ...
    def offsets(self, wanted: Iterable[Series]) -> dict[Series, int]: ...
    def save_offsets(self, offsets: Mapping[Series, int]) -> None: ...
    def project(self) -> object: ...
    def archive(self, month: SeriesMonth) -> None: ...
    def bring_back(self, month: SeriesMonth) -> None: ...
    def maintain(self, month: date) -> None: ...
    def ledger(self, wanted: Mapping[Series, int], now_ms: int) -> Ledger: ...
    async def proves(
        self, settings: Settings, client: Any, clock: ExchangeClock, wanted: Mapping[Series, int]
    ) -> set[Key] | None: ...
    def held(self) -> dict[Key, Held]: ...
    def revisions(self) -> list[Revision]: ...
    def refused(self) -> set[tuple[str, str, int | None]]: ...
    def reopen(self) -> None: ...


def expected(wanted: Mapping[Series, int], now_ms: int) -> dict[Series, list[int]]:
    """Open times of the candles that ought to be held by `now_ms`, of series that are wanted since some moment."""
    found = {}
    for series, since_ms in wanted.items():
        within = due(series.timeframe, Range(since_ms, now_ms), now_ms)
        found[series] = list(series.timeframe.opens(*within))
    return found


@dataclass(slots=True)
class ModelStore:
    """The rules of landing, projecting, archiving and accounting, as short as they can be said.

    Parameters
    ----------
    clock
        The database's; no two answers are the same.
    """

    clock: Callable[[], datetime]
    rows: dict[Key, Held] = field(default_factory=dict)
    revised: list[Revision] = field(default_factory=list)
    quarantine: set[tuple[str, str, int | None, str]] = field(default_factory=set)
    waiting: set[SeriesMonth] = field(default_factory=set)
    """Months with landings that their file does not hold."""
    files: dict[SeriesMonth, dict[int, Values]] = field(default_factory=dict)
    archived: set[SeriesMonth] = field(default_factory=set)
    reached: dict[Series, int] = field(default_factory=dict)

    def now(self) -> datetime:
        return self.clock()

    def land(
        self, candles: Iterable[Candle], refused: Sequence[Refused], *, source: Source, requested_at: datetime | None
    ) -> Landed:
        at = self.clock()
        batch = list(candles)
        # Of frames the first counts, of REST's rows the last.
        chosen = {row.key: row for row in (reversed(batch) if source is Source.WEBSOCKET else batch)}
        disputed = {row.key for row in batch if source is Source.WEBSOCKET and row != chosen[row.key]}
        quarantined = self._quarantine(refused)
        changed: Counter[tuple[SeriesDay, str]] = Counter()
        against = set()
        for key, row in chosen.items():
            month = SeriesMonth(row.symbol, row.timeframe, month_of(row.timestamp_ms))
            self.archived.discard(month)
            known = self.rows.get(key)
            if known is not None and known.values == row.values:
                continue
            if known is not None and not (
                source is Source.REST and requested_at is not None and known.updated_at < requested_at
            ):
                against.add(key)
                continue
            if known is not None:
                self.revised.append(Revision(key, known.values, known.source, source))
            self.rows[key] = Held(row.values, source, at)
            self.waiting.add(month)
            kind = "inserted" if known is None else "corrected"
            changed[SeriesDay(row.symbol, row.timeframe, day_of(row.timestamp_ms)), kind] += 1
        days = {day for day, _ in changed}
        changes = {day: Change(changed[day, "inserted"], changed[day, "corrected"]) for day in days}
        unchanged = len(chosen) - len(against) - sum(map(sum, changes.values()))
        return Landed(changes, unchanged, quarantined, sorted(disputed | against))

    def _quarantine(self, refused: Sequence[Refused]) -> int:
        before = len(self.quarantine)
        self.quarantine.update((row.symbol, row.timeframe, row.timestamp_ms, row.original) for row in refused)
        return len(self.quarantine) - before

    def land_and_die(self, candles: Sequence[Candle], refused: Sequence[Refused], **how: Any) -> None:
        """Nothing of a transaction that was not committed is left."""

    def opens(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> list[int]:
        series = (symbol, timeframe.name)
        return sorted(key[2] for key in self.rows if key[:2] == series and start_ms <= key[2] < end_ms)

    def offsets(self, wanted: Iterable[Series]) -> dict[Series, int]:
        return {series: self.reached[series] for series in wanted if series in self.reached}

    def save_offsets(self, offsets: Mapping[Series, int]) -> None:
        for series, through_ms in offsets.items():
            self.reached[series] = max(through_ms, self.reached.get(series, 0))

    def of_month(self, month: SeriesMonth) -> dict[int, Values]:
        """What is held of a month."""
        start_ms, end_ms = month_bounds(month.month)
        return {
            key[2]: row.values for key, row in self.rows.items() if key[:2] == month[:2] and start_ms <= key[2] < end_ms
        }

    def project(self) -> None:
        for month in self.waiting - self.archived:
            rows = self.of_month(month)
            if rows:
                self.files[month] = rows
        self.waiting &= self.archived

    def archive(self, month: SeriesMonth) -> None:
        self.project()
        if self.of_month(month):
            self.archived.add(month)

    def bring_back(self, month: SeriesMonth) -> None:
        self.archived.discard(month)

    def maintain(self, month: date) -> None:
        """Giving back the space of what has left changes nothing that is held."""

    def ledger(self, wanted: Mapping[Series, int], now_ms: int) -> Ledger:
        refused = self.refused()
        corrected = {revision.key for revision in self.revised}
        days: dict[SeriesDay, tuple[int, int, int, int, int]] = {}
        gaps: dict[Series, list[int]] = {}
        for series, opens in expected(wanted, now_ms).items():
            gaps[series] = []
            counted: dict[SeriesDay, Counter[str]] = {}
            for open_ms in opens:
                key = (series.symbol, series.timeframe.name, open_ms)
                what = "present" if key in self.rows else "quarantined" if key in refused else "missing"
                tally = counted.setdefault(SeriesDay(key[0], key[1], day_of(open_ms)), Counter())
                tally.update([what, *(["corrected"] if key in corrected else [])])
                if what == "missing":
                    gaps[series].append(open_ms)
            for day, each in counted.items():
                present, quarantined, missing = each["present"], each["quarantined"], each["missing"]
                days[day] = (present + quarantined + missing, present, quarantined, missing, each["corrected"])
        return Ledger(days, gaps)

    def held(self) -> dict[Key, Held]:
        return dict(self.rows)

    def revisions(self) -> list[Revision]:
        return list(self.revised)

    def refused(self) -> set[tuple[str, str, int | None]]:
        return {entry[:3] for entry in self.quarantine}

    def reopen(self) -> None:
        """A model has no connection to lose."""

    async def proves(
        self, settings: Settings, client: Any, clock: ExchangeClock, wanted: Mapping[Series, int]
    ) -> set[Key] | None:
        """What nobody serves is proven by asking, of which there is no model."""
        return None


_VALUES: Final = ", ".join(f"{column.name}::text" for column in VALUE_COLUMNS)


class MirroredStore(CandleStore):
    """The real store, and the model of it that it must agree with.

    Parameters
    ----------
    database
        Migrated and without a row.
    files
        An empty folder.
    """

    def __init__(self, database: Database, files: ParquetStore) -> None:
        self._database = database
        super().__init__(database.connect(), files, database.place)
        self._last: datetime | None = None
        self.model = ModelStore(self._told)

    def now(self) -> datetime:
        """The database's clock; the model's stands still while a statement runs."""
        self._last = one(self.connection, "SELECT clock_timestamp()")
        assert self._last is not None
        return self._last

    def _told(self) -> datetime:
        assert self._last is not None
        return self._last

    def land(
        self,
        candles: Iterable[Candle],
        refused: Sequence[Refused] = (),
        *,
        source: Source,
        requested_at: datetime | None = None,
    ) -> Landed:
        batch = list(candles)
        self.now()
        landed = super().land(batch, refused, source=source, requested_at=requested_at)
        wanted = self.model.land(batch, refused, source=source, requested_at=requested_at)
        assert landed == wanted, f"PostgreSQL: {landed}\nthe rules: {wanted}"
        self.agree()
        return landed

    def land_and_die(self, candles: Sequence[Candle], refused: Sequence[Refused], **how: Any) -> None:
        """Land a batch in a transaction that is never committed."""
        with self.connection.transaction(force_rollback=True):
            super().land(candles, refused, **how)
        self.reopen()
        self.agree()

    def offsets(self, wanted: Iterable[Series]) -> dict[Series, int]:
        series = list(wanted)
        noted = stream_offsets(self.connection, [(each.symbol, each.timeframe.name) for each in series])
        found = {each: noted[each.symbol, each.timeframe.name] for each in series if _name(each) in noted}
        assert found == self.model.offsets(series)
        return found

    def save_offsets(self, offsets: Mapping[Series, int]) -> None:
        save_offsets(self.connection, {_name(series): through_ms for series, through_ms in offsets.items()})
        self.model.save_offsets(offsets)

    def project(self, months: Iterable[SeriesMonth] = (), *told: Any) -> list[Any]:
        assert set(pending_months(self.connection)) == self.model.waiting - self.model.archived
        done = super().project(months, *told)
        self.model.project()
        assert pending_months(self.connection) == []
        for month, rows in self.model.files.items():
            assert self._in_file(month) == rows, f"the file of {month} is not what was held when it was written"
        return done

    def archive(self, month: SeriesMonth) -> None:
        """Project what waits, and archive the month if it holds anything."""
        self.project()
        if self.model.of_month(month):
            archive_month(self.connection, self.files, month)
        self.model.archive(month)
        self.agree()

    def bring_back(self, month: SeriesMonth) -> None:
        restore_month(self.connection, self.files, month)
        self.model.bring_back(month)
        self.agree()

    def maintain(self, month: date) -> None:
        """Swap the month's partition for one without what is archived, if there is one."""
        name = f"trading.candlesticks_{month:%Y_%m}"
        if one(self.connection, "SELECT to_regclass(%s) IS NOT NULL", (name,)):
            leave_archived_out(self.connection, month)
        self.agree()

    def ledger(self, wanted: Mapping[Series, int], now_ms: int) -> Ledger:
        """Count the ledger, look for gaps by the rows, and read what both have put on record."""
        with self.connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO trading.subscriptions (symbol, timeframe, since_ms) VALUES (%s, %s, %s) "
                "ON CONFLICT DO NOTHING",
                [(*_name(series), since_ms) for series, since_ms in wanted.items()],
            )
        self.account(now_ms)
        counted = self._ledger(wanted).days
        for series, since_ms in wanted.items():
            within = due(series.timeframe, Range(since_ms, now_ms), now_ms)
            detect(self, SeriesRange(series.symbol, series.timeframe, within), now_ms)
        ledger = self._ledger(wanted)
        assert ledger.days == counted, "looking for gaps changes no number"
        model = self.model.ledger(wanted, now_ms)
        assert ledger == model, f"PostgreSQL: {ledger}\nthe rules: {model}"
        return ledger

    async def proves(
        self, settings: Settings, client: Any, clock: ExchangeClock, wanted: Mapping[Series, int]
    ) -> set[Key] | None:
        """Repair what is missing, and return the candles that are absent then, as the ledger says, each with proof."""
        now_ms = await clock.now_ms()
        due_now = [
            SeriesRange(*series, due(series.timeframe, Range(since_ms, now_ms), now_ms))
            for series, since_ms in wanted.items()
        ]
        await repair(Backfill(settings, client, clock, self), due_now)
        self.agree()
        absent: set[Key] = set()
        for symbol, name, first_ms, last_ms, answers in self.connection.execute(
            "SELECT symbol, timeframe, first_ms, last_ms, evidence FROM trading.candle_gaps WHERE status = 'absent'"
        ):
            first_asked_ms, asked_ms = (answer["asked_ms"] for answer in answers)
            is_old = asked_ms - parse_timeframe(name).close_of(last_ms) > DAY_MS
            assert is_old or asked_ms - first_asked_ms >= AGAIN_YOUNG_MS, "one answer proves nothing of what is young"
            absent |= {(symbol, name, open_ms) for open_ms in parse_timeframe(name).opens(first_ms, last_ms + 1)}
        counted = one(self.connection, "SELECT coalesce(sum(absent), 0)::int FROM trading.coverage")
        assert counted == len(absent), f"the ledger counts {counted} absent candles, its gaps have {len(absent)}"
        sums = one(
            self.connection,
            "SELECT count(*) FROM trading.coverage WHERE expected <> present + absent + quarantined + missing",
        )
        assert sums == 0
        return absent

    def _ledger(self, wanted: Mapping[Series, int]) -> Ledger:
        days = {
            SeriesDay(*row[:3]): row[3:]
            for row in self.connection.execute(
                "SELECT symbol, timeframe, day, expected, present, quarantined, missing, corrected "
                "FROM trading.coverage WHERE expected > 0"
            )
        }
        gaps: dict[Series, list[int]] = {series: [] for series in wanted}
        for symbol, name, first_ms, last_ms in self.connection.execute(
            "SELECT symbol, timeframe, first_ms, last_ms FROM trading.candle_gaps WHERE status = 'open' "
            "ORDER BY symbol, timeframe, first_ms"
        ):
            timeframe = parse_timeframe(name)
            gaps[Series(symbol, timeframe)] += timeframe.opens(first_ms, last_ms + 1)
        return Ledger(days, gaps)

    def held(self) -> dict[Key, Held]:
        """What is held, every key once, in PostgreSQL or in the file of an archived month."""
        found: dict[Key, Held] = {}
        for *key, values, source, updated_at in self._rows():
            assert tuple(key) not in found, f"{key} is held twice"
            found[key[0], key[1], key[2]] = Held(tuple(values), Source(source), updated_at)
        return found

    def _rows(self) -> Iterable[tuple[Any, ...]]:
        yield from self.connection.execute(
            f"SELECT symbol, timeframe, timestamp_ms, ARRAY[{_VALUES}], source, updated_at FROM trading.candlesticks"
        ).fetchall()
        for month in self.connection.execute(
            "SELECT symbol, timeframe, month FROM trading.candle_months WHERE state = 'archived'"
        ).fetchall():
            for row in self.files.read(SeriesMonth(*month)).to_pylist():
                values = [_text(row[column.name]) for column in VALUE_COLUMNS]
                yield (*month[:2], row["timestamp_ms"], values, row["source"], row["updated_at"])

    def _in_file(self, month: SeriesMonth) -> dict[int, Values]:
        return {
            row["timestamp_ms"]: tuple(_text(row[column.name]) for column in VALUE_COLUMNS)
            for row in self.files.read(month).to_pylist()
        }

    def revisions(self) -> list[Revision]:
        return [
            Revision((symbol, name, open_ms), tuple(values), Source(source), Source(revised_by))
            for symbol, name, open_ms, values, source, revised_by in self.connection.execute(
                f"SELECT symbol, timeframe, timestamp_ms, ARRAY[{_VALUES}], source, revised_by "
                "FROM trading.candlestick_revisions ORDER BY id"
            )
        ]

    def refused(self) -> set[tuple[str, str, int | None]]:
        query = "SELECT DISTINCT symbol, timeframe, timestamp_ms FROM trading.candlesticks_quarantine"
        return {(symbol, name, open_ms) for symbol, name, open_ms in self.connection.execute(query)}

    def reopen(self) -> None:
        """Lose the connection, and open another."""
        self.connection.close()
        self.connection = self._database.connect()

    def agree(self) -> None:
        """Raise where PostgreSQL and Parquet do not hold what the rules say.

        Moments are not compared: the model's is that of the question before the landing.
        """
        held = {key: (row.values, row.source) for key, row in self.held().items()}
        model = {key: (row.values, row.source) for key, row in self.model.rows.items()}
        assert held == model, f"in one and not in the other: {sorted(held.items() ^ model.items())}"
        revisions = sorted(map(repr, self.revisions()))
        assert revisions == sorted(map(repr, self.model.revised)), "the revisions are not those of the rules"
        assert self.refused() == self.model.refused()
        archived = self.connection.execute(
            "SELECT symbol, timeframe, month FROM trading.candle_months WHERE state = 'archived'"
        )
        assert {SeriesMonth(*row) for row in archived} == self.model.archived


def _name(series: Series) -> tuple[str, str]:
    return series.symbol, series.timeframe.name


def _text(number: Any) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
