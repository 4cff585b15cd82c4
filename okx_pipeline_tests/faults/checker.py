"""What the exchange served, held against both stores and against what the ledger claims of them.

It knows the documented interface alone: `/replay/truth`, the tables, the layout of the Parquet files. It shares no
code with the program, so that a mistake there is not made here again. It changes nothing.

Whoever asks while candles close, reads the truth twice: what was served *before* PostgreSQL was read has to be in it,
what is in it has to be in what is served *after*.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

Series = tuple[str, str]
"""Symbol and timeframe."""

Values = tuple[Decimal, ...]
Candles = dict[int, Values]
"""By open time: open, high, low, close, volume, volume in currency, volume in quote coin."""

COLUMNS = ("open_price", "high_price", "low_price", "close_price", "volume", "volume_currency", "volume_quote")
DAY_MS = 86_400_000
KINDS = ("lost", "doubled", "wrong", "unexplained")
EXAMPLES = 5


@dataclass
class Findings:
    """What was found, each as a sentence with its key; sound if there is none.

    Attributes
    ----------
    lost
        Candles that the exchange serves, that are in no store, and that no gap of the ledger explains.
    doubled
        Keys that are in a store more than once, or in PostgreSQL and in an archive at once.
    wrong
        Candles with another value than the exchange's, and those that it never served, open ones among them.
    unexplained
        What the ledger claims and is not so.
    explained
        How many candles the exchange serves and the ledger explains not to have; not a fault, but seldom meant.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    explained: int = 0

    @property
    def counts(self) -> list[int]:
        """How many of each kind, in the order of `KINDS`."""
        return [len(getattr(self, kind)) for kind in KINDS]

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not any(self.counts)

    def __str__(self) -> str:
        lines = []
        for kind, number in zip(KINDS, self.counts, strict=True):
            examples = getattr(self, kind)[:EXAMPLES]
            lines.append(f"{number} {kind}" + "".join(f"\n    {example}" for example in examples))
        return "\n".join(lines)


@dataclass(frozen=True)
class Checker:
    """The two sides that are compared.

    Parameters
    ----------
    exchange_url
        The replay exchange.
    database_url
        PostgreSQL.
    parquet
        The folder of the Parquet store.
    series
        The series to look at.
    start_ms
        From which open time on everything is wanted.
    """

    exchange_url: str
    database_url: str
    parquet: Path
    series: Sequence[Series]
    start_ms: int

    def served(self) -> dict[Series, Candles]:
        """What the exchange serves now, by series."""
        return {each: self._served(each) for each in self.series}

    def check(self, before: Mapping[Series, Candles] | None = None) -> Findings:
        """Compare everything.

        Parameters
        ----------
        before
            What was served at a moment by which everything ought to have come; without it, now.
        """
        before = self.served() if before is None else before
        with self._snapshot() as connection:
            stored = {each: _Stored(connection, self.parquet, *each, self.start_ms) for each in self.series}
        after = self.served()
        found = Findings()
        for each in self.series:
            stored[each].judge(before[each], after[each], found)
        return found

    def claims(self) -> Findings:
        """Only what must hold at every moment, before a recovery too: nothing is doubled, wrong or claimed in vain."""
        found = self.check({each: {} for each in self.series})
        assert not found.lost
        return found

    def _served(self, series: Series) -> Candles:
        query = {"symbol": series[0], "timeframe": series[1], "start_ms": str(self.start_ms), "end_ms": str(10**14)}
        answer = httpx.get(f"{self.exchange_url}/replay/truth", params=query, trust_env=False, timeout=60)
        answer.raise_for_status()
        return {int(open_ms): tuple(map(Decimal, values)) for open_ms, *values in answer.json()}

    def _snapshot(self) -> "_Snapshot":
        return _Snapshot(self.database_url)


class _Snapshot:
    """A connection that sees one moment, and reads rows rather than indexes, which could hide what the rows hold."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def __enter__(self) -> psycopg.Connection:
        self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for way in ("indexscan", "indexonlyscan", "bitmapscan"):
            self._connection.execute(f"SET LOCAL enable_{way} = off")
        return self._connection

    def __exit__(self, *problem: object) -> None:
        self._connection.close()


@dataclass
class _File:
    """A series-month's Parquet file and what the ledger says of it."""

    month: date
    archived: bool
    settled: bool
    noted_rows: int | None
    keys: list[int]
    values: Candles
    damage: str | None


class _Stored:
    """Everything that is held and claimed of one series, read at one moment."""

    def __init__(self, connection: psycopg.Connection, parquet: Path, symbol: str, timeframe: str, start_ms: int):
        self.name = f"{symbol} {timeframe}"
        self.start_ms = start_ms
        self._connection = connection
        self._series = (symbol, timeframe)
        texts = ", ".join(f"{name}::text" for name in COLUMNS)
        held = self._all(f"SELECT timestamp_ms, {texts} FROM trading.candlesticks WHERE {_SERIES}")
        self.opens = Counter(int(row[0]) for row in held)
        self.held: Candles = {int(row[0]): tuple(map(Decimal, row[1:])) for row in held}
        self.texts: dict[int, tuple[str, ...]] = {int(row[0]): row[1:] for row in held}
        self.gaps = self._all(f"SELECT first_ms, last_ms, status FROM trading.candle_gaps WHERE {_SERIES}")
        # Days of which a landing has yet to leave its mark.
        self.unmarked = {
            day
            for symbols, timeframes, days in connection.execute(
                "SELECT symbols, timeframes, days FROM trading.unmarked_landings"
            )
            for *series, day in zip(symbols, timeframes, days, strict=True)
            if series == [symbol, timeframe]
        }
        self.days = [
            (day, present, missing, content_hash, counted and day not in self.unmarked)
            for day, present, missing, content_hash, counted in self._all(
                "SELECT day, present, missing, content_hash, coalesce(mark.counted >= mark.revision, true) "
                "FROM trading.coverage LEFT JOIN trading.landing_marks AS mark USING (symbol, timeframe, day) "
                f"WHERE {_SERIES}"
            )
        ]
        self.through_ms = max(
            (row[0] for row in self._all(f"SELECT through_ms FROM trading.stream_offsets WHERE {_SERIES}")), default=0
        )
        self.files = list(self._files(parquet))
        self.archived = {open_ms: file.values[open_ms] for file in self.files if file.archived for open_ms in file.keys}

    def judge(self, before: Candles, after: Candles, found: Findings) -> None:
        everything = self.archived | self.held
        self._absence(before, everything, found)
        self._presence(after, found)
        self._offset(after, everything, found)
        self._ledger(after, everything, found)
        for file in self.files:
            self._parquet(file, after, found)

    def _absence(self, before: Candles, everything: Candles, found: Findings) -> None:
        for open_ms in before.keys() - everything.keys():
            if self._gap_at(open_ms, "absent"):
                found.explained += 1
            else:
                found.lost.append(self._at(open_ms, "is in no store"))

    def _presence(self, after: Candles, found: Findings) -> None:
        for open_ms, number in self.opens.items():
            if number > 1:
                found.doubled.append(self._at(open_ms, f"{number} rows in PostgreSQL"))
        for open_ms in self.held.keys() & self.archived.keys():
            found.doubled.append(self._at(open_ms, "both archived and in PostgreSQL"))
        for where, candles in (("PostgreSQL", self.held), ("the archive", self.archived)):
            for open_ms, values in candles.items():
                self._value(open_ms, values, after, where, found)

    def _value(self, open_ms: int, values: Values, after: Candles, where: str, found: Findings) -> None:
        if open_ms < self.start_ms:
            return
        if open_ms not in after:
            found.wrong.append(self._at(open_ms, f"in {where}, and the exchange never confirmed it"))
        elif values != after[open_ms]:
            said = f"{_told(values)} in {where}, the exchange says {_told(after[open_ms])}"
            found.wrong.append(self._at(open_ms, said))

    def _offset(self, after: Candles, everything: Candles, found: Findings) -> None:
        """The sidecar's note says how far everything has landed: it must not run ahead of the rows."""
        for open_ms in after:
            if open_ms < self.through_ms and open_ms not in everything and not self._gap_at(open_ms, "absent", "open"):
                found.unexplained.append(self._at(open_ms, f"noted as landed (through {self.through_ms}), and is not"))

    def _ledger(self, after: Candles, everything: Candles, found: Findings) -> None:
        for day, present, missing, content_hash, counted in self.days:
            if not counted:
                continue  # the ledger has not looked yet, and says so
            first_ms = _ms(day)
            opens = sorted(open_ms for open_ms in everything if first_ms <= open_ms < first_ms + DAY_MS)
            if content_hash is None:
                if present > len(opens):
                    found.unexplained.append(f"{self.name} {day}: {present} counted, {len(opens)} held")
                continue
            if present != len(opens):
                found.unexplained.append(f"{self.name} {day}: {present} counted of a closed day, {len(opens)} held")
            if all(open_ms in self.texts for open_ms in opens) and content_hash != self._hash(opens):
                found.unexplained.append(f"{self.name} {day}: the noted hash is not that of the rows")
            if missing == 0 and first_ms >= self.start_ms:
                for open_ms in after.keys() - everything.keys():
                    if first_ms <= open_ms < first_ms + DAY_MS and not self._gap_at(open_ms, "absent"):
                        found.unexplained.append(self._at(open_ms, "is not there, and its day is called whole"))
        unresolved = [(first_ms, last_ms) for first_ms, last_ms, status in self.gaps if status != "repaired"]
        uncounted = {_ms(row[0]) for row in self.days if not row[4]}
        for first_ms, last_ms in unresolved:
            for open_ms in everything:
                if first_ms <= open_ms <= last_ms and open_ms - open_ms % DAY_MS not in uncounted:
                    found.unexplained.append(self._at(open_ms, "is held, and an unresolved gap says that it is not"))

    def _parquet(self, file: _File, after: Candles, found: Findings) -> None:
        where = f"{self.name} {file.month:%Y-%m}"
        if file.damage:
            found.unexplained.append(f"{where}: {file.damage}")
            return
        for open_ms, number in Counter(file.keys).items():
            if number > 1:
                found.doubled.append(self._at(open_ms, f"{number} rows in Parquet"))
        if file.keys != sorted(file.keys):
            found.unexplained.append(f"{where}: the rows of its file are not in key order")
        if not file.settled:
            # What has landed since is still to come; what is there must be true all the same.
            for open_ms, values in file.values.items():
                if open_ms not in self.opens:
                    self._value(open_ms, values, after, "Parquet", found)
            return
        if file.noted_rows is not None and file.noted_rows != len(file.keys):
            found.unexplained.append(f"{where}: {file.noted_rows} rows noted, {len(file.keys)} in the file")
        if file.archived:
            return
        held = {open_ms: values for open_ms, values in self.held.items() if _month(open_ms) == file.month}
        for open_ms in held.keys() ^ file.values.keys():
            place = "PostgreSQL" if open_ms in held else "Parquet"
            found.unexplained.append(self._at(open_ms, f"in {place} alone, though its month is projected"))
        for open_ms in held.keys() & file.values.keys():
            if held[open_ms] != file.values[open_ms]:
                found.unexplained.append(self._at(open_ms, "Parquet and PostgreSQL differ"))

    def _files(self, parquet: Path) -> Iterator[_File]:
        noted = {
            row[0]: row[1:]
            for row in self._all(f"SELECT month, state, rows, content_hash FROM trading.candle_months WHERE {_SERIES}")
        }
        behind = {
            row[0].replace(day=1)
            for row in self._all(f"SELECT day FROM trading.landing_marks WHERE {_SERIES} AND projected < revision")
        } | {day.replace(day=1) for day in self.unmarked}
        symbol, timeframe = self._series
        folder = parquet / "candlesticks" / f"timeframe={timeframe}" / f"symbol={symbol}"
        there = {
            date.fromisoformat(f"{path.parent.name.removeprefix('month=')}-01"): path
            for path in folder.glob("month=*/candles.parquet")
        }
        for month in sorted(noted.keys() | there.keys()):
            state, rows, content_hash = noted.get(month, ("live", None, None))
            settled = month in noted and content_hash is not None and month not in behind
            keys, values, damage = _read(there.get(month), expected=settled or state == "archived")
            yield _File(month, state == "archived", settled, rows, keys, values, damage)

    def _hash(self, opens: Iterable[int]) -> str:
        lines = "".join(f"{open_ms},{','.join(map(_trimmed, self.texts[open_ms]))}\n" for open_ms in opens)
        return hashlib.sha256(lines.encode()).hexdigest()

    def _gap_at(self, open_ms: int, *statuses: str) -> bool:
        return any(first_ms <= open_ms <= last_ms and status in statuses for first_ms, last_ms, status in self.gaps)

    def _at(self, open_ms: int, what: str) -> str:
        return f"{self.name} {datetime.fromtimestamp(open_ms / 1000, UTC):%Y-%m-%d %H:%M} ({open_ms}): {what}"

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, self._series).fetchall()


_SERIES = "symbol = %s AND timeframe = %s"


def _read(path: Path | None, *, expected: bool) -> tuple[list[int], Candles, str | None]:
    """Keys in the order of the file, values by key, and what is wrong with it."""
    if path is None:
        return [], {}, "its Parquet file is not there" if expected else None
    try:
        # Not of a data set: the folders' names would become columns.
        table = pq.ParquetFile(path).read(["timestamp_ms", *COLUMNS])
    except (pa.ArrowException, OSError) as problem:
        return [], {}, f"its Parquet file cannot be read: {problem}"
    keys = table["timestamp_ms"].to_pylist()
    columns = [table[name].to_pylist() for name in COLUMNS]
    return keys, dict(zip(keys, zip(*columns, strict=True), strict=True)), None


def _trimmed(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def _told(values: Values) -> str:
    return " ".join(map(str, values))


def _ms(day: date) -> int:
    return int(
        (datetime(day.year, day.month, day.day, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC))
        / timedelta(milliseconds=1)
    )


def _month(open_ms: int) -> date:
    return datetime.fromtimestamp(open_ms / 1000, UTC).date().replace(day=1)
