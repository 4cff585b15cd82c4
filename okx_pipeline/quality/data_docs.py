"""Data Docs: results of validations in a folder of files, and the site of pages made from them.

Great Expectations' own pages load styles, scripts and pictures from eight hosts, and are bare without; ours are drawn
from the same results in `docs_pages`. Every validation has files of its own name, written beside and renamed, so that
any number may be kept at once. One process at a time writes the index and removes files.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from okx_pipeline.quality.docs_pages import decoded, index_pages, line_of, validation_page
from okx_pipeline.storage.database import StorageError
from okx_pipeline.storage.quality_results import Store
from okx_pipeline.storage.quality_rows import SeriesKey

_PAGES: Final = "validations"


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did: validations with a page, pages it made, and pages it removed because their results are gone."""

    pages: int
    made: int
    removed: int


class DataDocs:
    """The Data Docs in `folder`: results in ``results``, pages in ``site``, which may be served as it is.

    Parameters
    ----------
    folder
        Where they are; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self._results = folder / "results"

    def store(
        self,
        result: Mapping[str, Any],
        *,
        day: date,
        store: Store,
        series: Sequence[SeriesKey],
        read_at: datetime,
    ) -> str:
        """Keep the result of a validation, durably, and make its page; returns the page's path below the site.

        Parameters
        ----------
        result
            The library's result as JSON has it, of `expectations.whole_result`.
        day, store, series, read_at
            What was judged, and when it was read.

        Raises
        ------
        StorageError
            If the folder cannot be written to.
        """
        page = self.page_of(day, store, series, read_at)
        meta = {"day": day, "store": store, "series": [list(key) for key in series], "read_at": read_at}
        body = msgspec.json.encode({**result, "meta": {**result["meta"], **meta}})
        with _written(self.folder):
            _replace(self._result_of(page), body, durably=True)
            _replace(self.site / page, validation_page(decoded(body, page)), durably=False)
        return page

    def page_of(self, day: date, store: Store, series: Sequence[SeriesKey], read_at: datetime) -> str:
        """The path below the site of the page of a validation; a check's name is a fragment of it."""
        named = "\n".join(" ".join(key) for key in sorted(series))
        digest = hashlib.blake2b(named.encode(), digest_size=4).hexdigest()
        return f"{_PAGES}/{day}/{store}-{read_at.astimezone(UTC):%Y%m%dT%H%M%S%fZ}-{digest}.html"

    def build(self) -> Built:
        """Make the pages that the site lacks, and the index and months anew; one process at a time does it.

        Raises
        ------
        StorageError
            If a result cannot be read or the folder not be written to.
        """
        with _written(self.folder), self._alone():
            removed = 0
            for path in self.site.glob(f"{_PAGES}/*/*.html"):
                # Looked for now, not in a list made before: results are written before their pages.
                if not self._result_of(path.relative_to(self.site).as_posix()).exists():
                    path.unlink()
                    removed += 1
            made, lines = 0, []
            for page in self._stored_pages():
                stored = decoded(self._result_of(page).read_bytes(), page)
                lines.append(line_of(stored, page))
                if not (self.site / page).exists():
                    _replace(self.site / page, validation_page(stored), durably=False)
                    made += 1
            pages = index_pages(lines)
            for name, body in pages.items():
                _replace(self.site / name, body, durably=False)
            for path in self.site.glob("months/*.html"):
                if path.relative_to(self.site).as_posix() not in pages:
                    path.unlink()
        return Built(len(lines), made, removed)

    def prune(self, keep_days: int, now: datetime) -> list[str]:
        """Remove results that are older than `keep_days` days at `now`, and their pages; returns the pages' paths.

        The index and the months still name them until the next build.
        """
        before = now - timedelta(days=keep_days)
        gone = []
        with _written(self.folder), self._alone():
            for page in self._stored_pages():
                if _read_at(page) < before:
                    self._result_of(page).unlink(missing_ok=True)
                    (self.site / page).unlink(missing_ok=True)
                    gone.append(page)
            for folder in (*self._results.glob(f"{_PAGES}/*"), *self.site.glob(f"{_PAGES}/*")):
                _remove_if_empty(folder)
        return gone

    def _result_of(self, page: str) -> Path:
        return (self._results / page).with_suffix(".json")

    def _stored_pages(self) -> list[str]:
        """The pages of all results."""
        found = self._results.glob(f"{_PAGES}/*/*.json")
        return sorted(path.relative_to(self._results).with_suffix(".html").as_posix() for path in found)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            # Let go by the system when the process ends, however it does.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise StorageError(f"the Data Docs in {folder} cannot be written: {problem}") from problem


def _replace(path: Path, body: bytes, *, durably: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with beside.open("wb") as sink:
            sink.write(body)
            if durably:
                sink.flush()
                os.fsync(sink.fileno())
    except FileNotFoundError:
        # Its folder was empty, and another process has just removed it.
        _replace(path, body, durably=durably)
        return
    beside.replace(path)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        try:
            folder.rmdir()
        except OSError:
            return  # another process has just written into it


def _read_at(page: str) -> datetime:
    moment = page.rsplit("-", 2)[-2]
    return datetime.strptime(moment, "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
