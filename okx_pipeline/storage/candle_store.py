"""The store as the rooms above see it: where candles land, are looked for, and are projected into Parquet."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Final, LiteralString

from okx_pipeline.candles import Candle, Refused, Source
from okx_pipeline.errors import UsageError
from okx_pipeline.ranges import Range, union
from okx_pipeline.storage import coverage, gaps, landing, projection
from okx_pipeline.storage.coverage import Read
from okx_pipeline.storage.database import Connection, Database, one, snapshot, translated
from okx_pipeline.storage.gaps import Gap, Reason, Verdict
from okx_pipeline.storage.landing import ArchivedError, Landed, SeriesDay
from okx_pipeline.storage.parquet import ParquetStore, SeriesMonth
from okx_pipeline.storage.projection import Done, Projected
from okx_pipeline.timeframes import Timeframe, month_of

_HAVE: Final[LiteralString] = """
SELECT array_agg(held.timestamp_ms)
FROM unnest(%s::bigint[], %s::bigint[]) AS wanted (start_ms, end_ms)
CROSS JOIN LATERAL (
    SELECT timestamp_ms FROM trading.candlesticks
    WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= wanted.start_ms AND timestamp_ms < wanted.end_ms
) AS held
"""

_PER_STRETCH: Final[LiteralString] = """
SELECT array_agg(number), array_agg(rows) FROM (
    SELECT timestamp_ms / %s AS number, count(*) AS rows
    FROM trading.candlesticks
    WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
    GROUP BY 1
) AS counted
"""

_NEXT: Final[LiteralString] = """
SELECT min(timestamp_ms) FROM trading.candlesticks WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s
"""

_QUARANTINED: Final[LiteralString] = """
SELECT DISTINCT timestamp_ms FROM trading.candlesticks_quarantine
WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
"""

_CLOSES: Final[LiteralString] = """
SELECT close_price::float8 FROM trading.candlesticks
WHERE symbol = %s AND timeframe = %s AND timestamp_ms >= %s AND timestamp_ms < %s
ORDER BY timestamp_ms
"""

_ARCHIVED_MONTHS: Final[LiteralString] = """
SELECT month FROM trading.candle_months
WHERE symbol = %s AND timeframe = %s AND state = 'archived'
  AND month >= %s AND month <= %s
ORDER BY month
"""


class CandleStore:
    """The candles of a database and its Parquet files. Open one with `opened`; use it from one thread at a time.

    Parameters
    ----------
    connection
        An autocommit connection.
    files
        The Parquet files that are the projection of this database.
    place
        Where the database is, for messages.
    """

    def __init__(self, connection: Connection, files: ParquetStore, place: str) -> None:
        self.connection = connection
        self.files = files
        self.place = place

    @classmethod
    @contextmanager
    def opened(cls, database: Database, files: ParquetStore) -> Iterator["CandleStore"]:
        """A store on a connection of its own, closed at the end."""
        with database.connect() as connection:
            yield cls(connection, files, database.place)

    def land(
        self,
        candles: Iterable[Candle],
        refused: Sequence[Refused] = (),
        *,
        source: Source,
        requested_at: datetime | None = None,
    ) -> Landed:
        """Land a batch (see `landing.land`), bringing archived months it reaches into back first.

        Raises
        ------
        StorageError
            If the database is out of reach or its disk full; nothing of the batch landed, and it can be landed again.
        DamagedFileError
            If the file of an archived month that the batch reaches into cannot be read; nothing landed.
        DetachedMonthError
            If the partition of a month of the batch is detached; nothing landed, and the rest of the batch can.
        """
        batch = list(candles)
        with translated(self.place):
            while True:
                try:
                    return landing.land(self.connection, batch, refused, source=source, requested_at=requested_at)
                except ArchivedError as archived:
                    for month in archived.months:
                        projection.restore_month(self.connection, self.files, SeriesMonth(*month))

    def mark_landings(self) -> None:
        """Make the marks of landings of which there is only a note (see `landing.mark_landings`).

        Raises
        ------
        StorageError
            If the database is out of reach or its disk full; the notes stay.
        """
        with translated(self.place):
            landing.mark_landings(self.connection)

    def opens(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> list[int]:
        """Open times that the series holds in [start_ms, end_ms), ascending; archived months from their files.

        Raises
        ------
        DamagedFileError
            If the file of an archived month cannot be read.
        """
        return sorted(self.opens_in(symbol, timeframe, [Range(start_ms, end_ms)]))

    def opens_in(self, symbol: str, timeframe: Timeframe, ranges: Sequence[Range]) -> set[int]:
        """As `opens`, of several ranges, ascending, at once."""
        ranges = [each for each in ranges if each.start_ms < each.end_ms]
        if not ranges:
            return set()
        starts, ends = [each.start_ms for each in ranges], [each.end_ms for each in ranges]
        months = (symbol, timeframe.name, month_of(starts[0]), month_of(ends[-1] - 1))
        # In one snapshot, or a month archived or brought back meanwhile would be seen twice or not at all.
        with translated(self.place), snapshot(self.connection):
            have = set(one(self.connection, _HAVE, (starts, ends, symbol, timeframe.name)) or ())
            archived = self.connection.execute(_ARCHIVED_MONTHS, months).fetchall()
        for (month,) in archived:
            held = self.files.opens(SeriesMonth(symbol, timeframe.name, month))
            for start_ms, end_ms in ranges:
                have.update(held[bisect_left(held, start_ms) : bisect_left(held, end_ms)])
        return have

    def rows_per_stretch(
        self, symbol: str, timeframe: Timeframe, candles: int, start_ms: int, end_ms: int
    ) -> dict[int, int]:
        """How many candles are held of each stretch in [start_ms, end_ms) that holds any.

        Parameters
        ----------
        candles
            Length of a stretch, in lengths of the timeframe; stretches are numbered from 1970.

        Raises
        ------
        DamagedFileError
            If the file of an archived month cannot be read.
        """
        if start_ms >= end_ms:
            return {}
        stretch_ms = candles * timeframe.length_ms
        months = (symbol, timeframe.name, month_of(start_ms), month_of(end_ms - 1))
        with translated(self.place), snapshot(self.connection):
            found = self.connection.execute(_PER_STRETCH, (stretch_ms, symbol, timeframe.name, start_ms, end_ms))
            numbers, rows = found.fetchone() or (None, None)
            held = Counter(dict(zip(numbers or (), rows or (), strict=True)))
            archived = self.connection.execute(_ARCHIVED_MONTHS, months).fetchall()
        for (month,) in archived:
            opens = self.files.opens(SeriesMonth(symbol, timeframe.name, month))
            held.update(open_ms // stretch_ms for open_ms in opens if start_ms <= open_ms < end_ms)
        return held

    def quarantined(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> set[int]:
        """Open times in [start_ms, end_ms) of which OKX confirmed rows that no market can have."""
        with translated(self.place):
            found = self.connection.execute(_QUARANTINED, (symbol, timeframe.name, start_ms, end_ms))
            return {open_ms for (open_ms,) in found}

    def absent(self, symbol: str, timeframe: Timeframe, within: Range) -> list[Range]:
        """What of a series OKX is proven not to serve; ranges may reach beyond `within`."""
        key = (symbol, timeframe.name)
        with translated(self.place):
            return gaps.absent_ranges(self.connection, [key], within).get(key, [])

    def record_gaps(
        self, symbol: str, timeframe: Timeframe, within: Range, lacking: Sequence[Range], now_ms: int
    ) -> None:
        """Put on record what lacks of `within`, as its rows show, and bring the ledger of those days up to date."""
        with translated(self.place):
            with self.connection.transaction():
                gaps.lock_ledger(self.connection)
                change = gaps.fit_gaps(self.connection, symbol, timeframe, within, lacking, add_new=True)
            # From the rows again: what landed since they were looked at is no gap, and nothing else would tell.
            self._recount(symbol, timeframe, union(lacking, (gap.range for gap in change.remove)), now_ms)

    def settle_gap(self, gap: Gap, verdicts: Sequence[Verdict], now_ms: int) -> dict[Reason | None, int]:
        """Write down what became of a gap (see `gaps.settle`), and bring the ledger of its days up to date."""
        with translated(self.place):
            with self.connection.transaction():
                gaps.lock_ledger(self.connection)
                concerned = gaps.settle(self.connection, gap, verdicts)
            self._recount(gap.symbol, gap.timeframe, [gap.range], now_ms)
        return concerned

    def _recount(self, symbol: str, timeframe: Timeframe, pieces: Iterable[Range], now_ms: int) -> None:
        days = [
            SeriesDay(symbol, timeframe.name, day) for piece in pieces for day in coverage.days_in(timeframe, piece)
        ]
        coverage.recount(self.connection, self.files, now_ms, days)

    def next_open(self, symbol: str, timeframe: Timeframe, from_ms: int) -> int | None:
        """Open time of the first candle that is held from `from_ms` on; None if there is none.

        Raises
        ------
        DamagedFileError
            If the file of an archived month cannot be read.
        """
        near = self.opens(symbol, timeframe, from_ms, timeframe.step(from_ms, 100))
        if near:
            return near[0]
        with translated(self.place):
            found = one(self.connection, _NEXT, (symbol, timeframe.name, from_ms))
        return None if found is None else int(found)

    def closes(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> list[float]:
        """Closing prices in [start_ms, end_ms) as floats, for drawing."""
        with translated(self.place):
            found = self.connection.execute(_CLOSES, (symbol, timeframe.name, start_ms, end_ms))
            return [row[0] for row in found]

    def project(self, months: Iterable[SeriesMonth], told: Done = lambda done, total: None) -> list[Projected]:
        """Bring the files of `months` up to date, and any others in which landings wait to be projected.

        Parameters
        ----------
        told
            Called after each month.

        Raises
        ------
        StorageError
            If the database is out of reach or a file cannot be written; the marks stay, for the next pass.
        """
        with translated(self.place):
            wanted = dict.fromkeys([*months, *projection.pending_months(self.connection)])
            return projection.project(self.connection, self.files, wanted, told)

    def account(
        self,
        now_ms: int,
        reads: Mapping[SeriesDay, Read] = MappingProxyType({}),
        began_at: datetime | None = None,
    ) -> None:
        """Bring the coverage ledger up to date, and note what REST was asked of whole days.

        Parameters
        ----------
        now_ms
            The exchange's time.
        began_at
            When the first of `reads` was asked, by the database's clock.

        Raises
        ------
        StorageError
            If the database is out of reach or the file of an archived month damaged; the marks stay.
        """
        with translated(self.place):
            try:
                coverage.count(self.connection, self.files, now_ms)
            finally:
                # A damaged file keeps the days of one month alone from being counted.
                coverage.note_reads(self.connection, reads, began_at)

    def database_now(self) -> datetime:
        """The database's clock."""
        with translated(self.place):
            return gaps.database_now(self.connection)

    def claim_for(self, origin: str) -> None:
        """Say which market this store holds, at first use; prices of another one never mix with it.

        Raises
        ------
        UsageError
            If the store holds another market.
        """
        with translated(self.place):
            self.connection.execute(
                "INSERT INTO trading.store_facts (name, value) VALUES ('origin', %s) ON CONFLICT DO NOTHING", (origin,)
            )
            holds = one(self.connection, "SELECT value FROM trading.store_facts WHERE name = 'origin'")
        if holds != origin:
            raise UsageError(
                f"this store holds prices of OKX's {holds}, and the settings lead to its {origin} (see OKX_REST_URL, "
                "OKX_WS_URL and OKX_DEMO_TRADING); give that a home of its own: OKX_HOME (and OKX_DATABASE_URL, "
                "OKX_PARQUET_URL)"
            )
