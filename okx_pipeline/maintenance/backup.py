"""Backup and restore of the whole store as one file: what PostgreSQL holds, and the months that Parquet alone holds.

The file is a zip archive that compresses nothing again: ``store.json`` says what it holds, ``postgres.dump`` is what
pg_dump made, in its custom format, and the files of archived months lie under their usual paths. All other Parquet
files follow from PostgreSQL, and a restore makes them anew.
"""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from okx_pipeline.errors import UsageError
from okx_pipeline.settings import Settings
from okx_pipeline.storage.candle_store import CandleStore
from okx_pipeline.storage.database import Database, StorageError, translated
from okx_pipeline.storage.dumps import Tools, exported_snapshot, settle
from okx_pipeline.storage.migrations import known_migrations, migrate
from okx_pipeline.storage.months import HeldMonth, forget_files, held_months
from okx_pipeline.storage.parquet import DamagedFileError, ParquetStore

CONTENTS: Final = "store.json"
DUMP: Final = "postgres.dump"


class _Contents(msgspec.Struct):
    """What a backup holds: when and by which pg_dump it was made, the schema's migrations, and every series-month."""

    made_at: datetime
    pg_dump: int
    migrations: list[str]
    months: list[HeldMonth]


_DECODER: Final = msgspec.json.Decoder(_Contents)


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made or restored: its size in bytes, months of series in it, and how many of them archived."""

    size: int
    months: int
    archived: int


def back_up(settings: Settings, database: Database, file: Path) -> Backup:
    """Write the whole store, as it is at one moment, into `file`; everybody goes on meanwhile.

    Raises
    ------
    UsageError
        If there is such a file already, or no pg_dump that fits.
    StorageError
        If it cannot be written, pg_dump fails, or the file of an archived month does not hold what it should.
    """
    if file.exists():
        raise UsageError(f"{file} exists already; name another file")
    if not file.parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}")
    tools, files = Tools(database, settings.environment()), ParquetStore(settings.parquet_root)
    beside = file.with_name(f"{file.name}.unfinished")
    with _told_in_one_line(file), translated(database.place), database.connect() as connection:
        try:
            # What others wrote in it is nobody's business.
            with os.fdopen(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as sink:
                with zipfile.ZipFile(sink, "w") as archive, exported_snapshot(connection) as snapshot:
                    months = held_months(connection)
                    contents = _Contents(datetime.now(tz=UTC), tools.version, known_migrations(), months)
                    archive.writestr(CONTENTS, msgspec.json.encode(contents))
                    with archive.open(DUMP, "w", force_zip64=True) as dump:
                        tools.dump(snapshot, dump)
                    for month in months:
                        if month.archived:
                            archive.writestr(month.key.path, _file_of(files, month))
                sink.flush()
                os.fsync(sink.fileno())
            beside.rename(file)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    return Backup(file.stat().st_size, len(months), sum(month.archived for month in months))


def restore(settings: Settings, database: Database, file: Path) -> Backup:
    """Bring the whole store back from `file` into an empty database, and make the Parquet files anew.

    The database is restored whole or not at all; files that lack when this is killed later are made by any projection.

    Raises
    ------
    UsageError
        If `file` is no backup or of a newer version, the database is not empty, or a Parquet file is in the way.
    StorageError
        If the file is damaged, pg_restore fails, or what was restored is not what was backed up.
    """
    files = ParquetStore(settings.parquet_root)
    with _told_in_one_line(file), zipfile.ZipFile(file) as archive, database.connect() as connection:
        contents = _contents_of(archive, file)
        unknown = set(contents.migrations).difference(known_migrations())
        if unknown:
            raise UsageError(
                f"{file} has migration {max(unknown)!r}, which this version does not know; use the newer one"
            )
        _refuse_other_files(files, contents)
        with translated(database.place):
            tools = Tools(database, settings.environment(), at_least=contents.pg_dump)
            tools.check_can_restore(connection)
            archived = [month for month in contents.months if month.archived]
            for month in archived:
                files.write_bytes(month.key, archive.read(month.key.path))
                _check(files, month)
            tools.restore(connection, lambda: archive.open(DUMP))
            migrate(database)
            settle(connection)
            forget_files(connection)
            CandleStore(connection, files, database.place).project(
                month.key for month in contents.months if not month.archived
            )
            _compare(contents.months, held_months(connection), file)
    return Backup(file.stat().st_size, len(contents.months), len(archived))


def _file_of(files: ParquetStore, month: HeldMonth) -> bytes:
    body = files.read_bytes(month.key)
    _check(files, month)
    return body


def _check(files: ParquetStore, month: HeldMonth) -> None:
    """Read an archived month's file to its end, every page's checksum verified, and compare its hash with the known."""
    files.read(month.key)
    state = files.state(month.key)
    if state is None or state.content_hash != month.content_hash:
        raise DamagedFileError(
            f"{files.place(month.key)}: it does not hold the rows that were archived in it; "
            "where the month is just being brought back, run the same again"
        )


def _contents_of(archive: zipfile.ZipFile, file: Path) -> _Contents:
    try:
        return _DECODER.decode(archive.read(CONTENTS))
    except (KeyError, msgspec.DecodeError):
        raise UsageError(f"{file} is no backup of this program") from None


def _refuse_other_files(files: ParquetStore, contents: _Contents) -> None:
    """Parquet files that hold something else than the backup may be all that is left of it: none is written over."""
    others = []
    for month in contents.months:
        try:
            state = files.state(month.key)
        except DamagedFileError:
            others.append(month)
        else:
            if state is not None and state.content_hash != month.content_hash:
                others.append(month)
    if others:
        raise UsageError(
            f"{files.place(others[0].key)} holds something else than the backup, and {len(others) - 1} more do; "
            "move them away, or set OKX_PARQUET_URL to a new place"
        )


def _compare(before: list[HeldMonth], after: list[HeldMonth], file: Path) -> None:
    restored = {month.key: month.content_hash for month in after}
    for month in before:
        if month.content_hash is not None and restored.get(month.key) != month.content_hash:
            raise StorageError(f"{month.key} was restored and is not what {file} says it was")


@contextmanager
def _told_in_one_line(file: Path) -> Iterator[None]:
    try:
        yield
    except zipfile.BadZipFile as problem:
        raise StorageError(f"{file} is damaged, or no backup: {problem}") from problem
    except FileNotFoundError as problem:
        raise UsageError(f"there is no {problem.filename}") from problem
    except OSError as problem:
        raise StorageError(f"{problem.filename or file}: {problem.strerror or problem}") from problem
