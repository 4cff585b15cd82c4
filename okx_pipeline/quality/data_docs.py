"""Data Docs: results of validations in a folder of files, and the pages that show them to people.

Great Expectations' own pages load styles, scripts and pictures from eight hosts, and are bare without; these are made
from the same results by two templates of ours that load nothing. Every validation has files of its own name, written
beside and renamed, so that any number may be kept at once; the index and removals are one process's at a time.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from okx_pipeline.quality.suites import MEANING, Check
from okx_pipeline.storage.database import StorageError
from okx_pipeline.storage.quality_results import Severity, Store
from okx_pipeline.storage.quality_rows import SeriesKey

NAMES: Final = {Store.POSTGRES: "PostgreSQL", Store.PARQUET: "Parquet"}
_PAGES: Final = "validations"
_INDEX: Final = "index.html"
_SERIES_NAMED: Final = 3
_TITLES: Final = {check: check.replace("_", " ").capitalize().replace("Ohlc", "OHLC") for check in Check}


class _Failing(msgspec.Struct):
    symbol: str
    timeframe: str
    check: Check
    severity: Severity
    failed: list[str]


class _Meta(msgspec.Struct):
    """What a stored result says of the validation besides the library's own."""

    day: date
    store: Store
    series: list[tuple[str, str]]
    rows: int
    read_at: datetime
    great_expectations_version: str
    failing: list[_Failing] = []


class _About(msgspec.Struct):
    rule: str
    check: Check


class _Expectation(msgspec.Struct):
    type: str
    severity: Severity
    description: str
    meta: _About


class _Outcome(msgspec.Struct):
    element_count: int = 0
    unexpected_count: int = 0
    missing_count: int = 0
    unexpected_rows: list[dict[str, Any]] = []


class _Result(msgspec.Struct):
    success: bool
    expectation_config: _Expectation
    result: _Outcome


class _Stored(msgspec.Struct):
    """A stored result, as far as pages show it; the library's own JSON has more."""

    meta: _Meta
    results: list[_Result]

    def failed(self, severity: Severity | None = None) -> list[_Result]:
        """The expectations that failed, of one severity or all."""
        failed = [each for each in self.results if not each.success]
        return [each for each in failed if severity in (None, each.expectation_config.severity)]

    def of(self, check: Check) -> list[_Result]:
        """The expectations of a check, what failed first."""
        return sorted(
            (each for each in self.results if each.expectation_config.meta.check is check),
            key=lambda each: (each.success, list(Severity).index(each.expectation_config.severity)),
        )


_DECODER: Final = msgspec.json.Decoder(_Stored)


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did: pages there are now, those made by it, and those removed as their results are no more."""

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
            _replace(self.site / page, _page(body, page), durably=False)
        return page

    def page_of(self, day: date, store: Store, series: Sequence[SeriesKey], read_at: datetime) -> str:
        """The path below the site of the page of a validation; a check's name is a fragment of it."""
        named = "\n".join(" ".join(key) for key in sorted(series))
        digest = hashlib.blake2b(named.encode(), digest_size=4).hexdigest()
        return f"{_PAGES}/{day}/{store}-{read_at.astimezone(UTC):%Y%m%dT%H%M%S%fZ}-{digest}.html"

    def build(self) -> Built:
        """Bring the site up to the results: pages that are not there, and the index; one process at a time does it.

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
            made, stored = 0, []
            for page in self._stored_pages():
                body = self._result_of(page).read_bytes()
                stored.append((page, _decoded(body, page)))
                if not (self.site / page).exists():
                    _replace(self.site / page, _page(body, page), durably=False)
                    made += 1
            _replace(self.site / _INDEX, _index(stored), durably=False)
        return Built(len(stored), made, removed)

    def prune(self, keep_days: int, now: datetime) -> list[str]:
        """Remove results that are older than `keep_days` days at `now`, and their pages; returns the pages' paths.

        The index still names them until the next build.
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


def _decoded(body: bytes, page: str) -> _Stored:
    try:
        return _DECODER.decode(body)
    except msgspec.DecodeError as problem:
        raise StorageError(f"the stored result of {page} cannot be read: {problem}; remove it") from problem


def _page(body: bytes, page: str) -> bytes:
    stored = _decoded(body, page)
    checks = [(check, _TITLES[check], MEANING[check], stored.of(check)) for check in Check]
    named = {"name": _name(stored), "titles": _TITLES, "index": f"../../{_INDEX}"}
    return _rendered("page.html.j2", stored=stored, checks=checks, **named)


def _index(stored: Sequence[tuple[str, _Stored]]) -> bytes:
    newest = sorted(stored, key=lambda line: (line[1].meta.day, line[1].meta.read_at), reverse=True)
    lines = [(page, each, _name(each), _series(each.meta.series)) for page, each in newest]
    return _rendered("index.html.j2", lines=lines, stores=NAMES)


def _name(stored: _Stored) -> str:
    return f"Candles of {stored.meta.day} in {NAMES[stored.meta.store]}"


def _series(series: Sequence[tuple[str, str]]) -> str:
    symbols = sorted({symbol for symbol, _ in series})
    if len(series) <= _SERIES_NAMED:
        return ", ".join(" ".join(key) for key in series)
    return f"{len(series)} series of {symbols[0] if len(symbols) == 1 else f'{len(symbols)} symbols'}"


def _rendered(template: str, **values: Any) -> bytes:
    return str(_templates().get_template(template).render(**values, Severity=Severity)).encode()


@cache
def _templates() -> Any:
    import jinja2

    folder = Path(__file__).parent / "pages"
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
