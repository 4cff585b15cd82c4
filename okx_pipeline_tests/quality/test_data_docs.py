"""Data Docs: what a page shows, that it loads nothing, and that none is lost whoever writes at once."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import pytest

from okx_pipeline.quality.data_docs import Built, DataDocs
from okx_pipeline.quality.docs_pages import FAILED_DAYS, NEWEST_DAYS, OPEN_ROWS, Stored, index_pages, line_of
from okx_pipeline.quality.suites import CANDLE_RULES, RULES, Check
from okx_pipeline.storage.database import StorageError
from okx_pipeline.storage.quality_results import Store
from okx_pipeline_tests.storage.processes import Doom, barrier, finish, killed, start

DAY = date(2026, 8, 2)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SERIES = [("BTC-USDT-SWAP", "5m"), ("ETH-USDT-SWAP", "5m")]
SHOWN = {"symbol": "BTC-USDT-SWAP", "timeframe": "5m", "timestamp_ms": 1785673800000, "high_price": "63041.3"}


def result(*failed: str, shown: dict[str, Any] = SHOWN) -> dict[str, Any]:
    """A result as Great Expectations has it in JSON, in which `failed` do not hold."""

    def of(name: str) -> dict[str, Any]:
        rule = RULES[name]
        return {
            "success": name not in failed,
            "expectation_config": {
                "type": "expect_column_values_to_be_between",
                "kwargs": {"batch_id": "store-candles", "column": rule.column},
                "meta": {"rule": name, "check": rule.check.value},
                "description": rule.about,
                "severity": rule.severity.value,
            },
            "result": {
                "element_count": 576,
                "unexpected_count": 144 if name in failed else 0,
                "missing_count": 0,
                "unexpected_rows": [shown] if name in failed else [],
            },
        }

    failing = [
        {
            "symbol": "BTC-USDT-SWAP",
            "timeframe": "5m",
            "check": RULES[name].check.value,
            "severity": RULES[name].severity.value,
            "failed": [name],
        }
        for name in failed
    ]
    return {
        "success": not failed,
        "results": [of(name) for name in RULES],
        "statistics": {},
        "meta": {"great_expectations_version": "1.24.1", "rows": 576, "failing": failing},
    }


META = {
    "day": f"{DAY}",
    "store": "postgres",
    "series": SERIES,
    "rows": 576,
    "read_at": NOON,
    "great_expectations_version": "1.24.1",
}


def keep(docs: DataDocs, *failed: str, day: date = DAY, at: datetime = NOON, store: Store = Store.POSTGRES) -> str:
    return docs.store(result(*failed), day=day, store=store, series=SERIES, read_at=at)


@pytest.fixture
def docs(tmp_path: Path) -> DataDocs:
    return DataDocs(tmp_path / "quality")


class Page(HTMLParser):
    """What a browser would make of a page: texts, ids, links, and addresses of whatever it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        body = path.read_text()
        self.styles = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]*)", body)
        self.feed(body)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in {"href", "src", "srcset", "data", "action", "poster", "background"}:
                self.loads.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.lasttag not in {"style", "script"}:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def pages(docs: DataDocs) -> Iterable[Path]:
    return sorted(docs.site.rglob("*.html"))


# What a page shows


def test_a_page_shows_what_failed_where_and_with_which_rows(docs: DataDocs) -> None:
    page = Page(docs.site / keep(docs, "high_at_least_open", "no_outage"))
    assert page.text.count("Candles of BTC-USDT-SWAP and ETH-USDT-SWAP on 2026-08-02 in PostgreSQL") == 2
    assert "1 error 1 warning" in page.text
    assert "576 candles, 2 series" in page.text
    assert "BTC-USDT-SWAP 5m OHLC sanity error high_at_least_open" in page.text
    assert f"{RULES['high_at_least_open'].about} high_at_least_open symbol timeframe" in page.text
    assert "1785673800000 63041.3 1 of 144: the first of each series" in page.text
    assert set(Check) | set(RULES) <= page.ids


def test_a_page_of_a_good_day_says_so(docs: DataDocs) -> None:
    page = Page(docs.site / keep(docs))
    assert "every expectation holds" in page.text
    assert page.text.count("holds") >= len(RULES)
    assert "error" not in page.text
    assert "not judged" not in page.text


def test_what_was_not_judged_is_said_to_be_so_and_never_to_have_passed(docs: DataDocs) -> None:
    whole = result("file_can_be_read")
    whole["results"] = [each for each in whole["results"] if each["expectation_config"]["meta"]["check"] != "volumes"]
    for each in whole["results"]:
        if each["expectation_config"]["meta"]["rule"] == "no_outage":
            each["result"] = {"element_count": 576, "unexpected_count": 0, "missing_count": 576}
    lacking = [(key, "store_parity", "the Parquet file cannot be read") for key in SERIES]
    lacking.append((SERIES[0], "ohlc_sanity", "the Parquet file cannot be read"))
    whole["meta"]["unjudged"] = [
        {"symbol": symbol, "timeframe": timeframe, "check": check, "reason": reason}
        for (symbol, timeframe), check, reason in lacking
    ]
    kept = docs.store(whole, day=DAY, store=Store.PARQUET, series=SERIES, read_at=NOON)
    text = Page(docs.site / kept).text
    assert "Schema 1 error Completeness passed OHLC sanity passed some not judged Volumes not judged" in text
    assert "Timeframe consistency passed Store parity not judged" in text
    assert "Not judged of 1 of 2 series BTC-USDT-SWAP 5m : the Parquet file cannot be read" in text
    assert f"not judged {RULES['no_outage'].about}" in text
    assert f"not judged {RULES['parquet_equals_postgresql'].about}" in text
    docs.build()
    assert "1 error some not judged" in Page(docs.site / "index.html").text


def test_text_of_a_store_is_shown_as_text(docs: DataDocs) -> None:
    shown = {"differences": "<script src='http://example.org/x.js'></script>", "<b>": None}
    kept = docs.store(
        result("columns_and_types", shown=shown), day=DAY, store=Store.PARQUET, series=[("<i>", "5m")], read_at=NOON
    )
    page = Page(docs.site / kept)
    assert "<script src='http://example.org/x.js'></script>" in page.text
    assert not {"script", "b", "i"} & page.tags
    assert "null" in page.text
    docs.build()
    for name in ("index.html", "months/2026-08.html"):
        assert "i" not in Page(docs.site / name).tags


def validations(page: Page) -> list[str]:
    return [link.removeprefix("../") for link in page.links if "validations/" in link]


def test_the_index_lists_days_with_errors_first_and_then_the_newest(docs: DataDocs) -> None:
    kept = [
        keep(docs, day=DAY + timedelta(days=days), store=store, at=NOON + timedelta(seconds=second))
        for second, (days, store) in enumerate((days, store) for days in (0, 2, 1) for store in Store)
    ]
    failed = keep(docs, *[rule.name for rule in CANDLE_RULES], day=DAY - timedelta(days=40))
    warned = keep(docs, "no_outage", day=DAY, at=NOON + timedelta(minutes=1), store=Store.PARQUET)
    assert docs.build() == Built(pages=8, made=0, removed=0)
    index = Page(docs.site / "index.html")
    # On 2026-08-02 the warning comes first, and the validation that it replaced comes last.
    assert validations(index) == [failed, kept[3], kept[2], kept[5], kept[4], warned, kept[0], kept[1]]
    assert f"and {len(CANDLE_RULES) - 6} more" in index.text
    assert "8 validations of 4 days; 1 day with errors" in index.text
    assert "1 older, replaced by newer validations of the same candles" in index.text
    assert all((docs.site / link).exists() for link in validations(index))
    assert validations(Page(docs.site / "months/2026-06.html")) == [failed]


def test_an_error_counts_until_all_its_series_are_validated_again(docs: DataDocs) -> None:
    keep(docs, "high_at_least_open")
    later = {"day": DAY, "store": Store.POSTGRES, "read_at": NOON + timedelta(minutes=1)}
    docs.store(result(), series=SERIES[:1], **later)
    docs.build()
    assert "1 day with errors" in Page(docs.site / "index.html").text
    docs.store(result(), series=SERIES[1:], **later)
    docs.build()
    assert "no day with errors" in Page(docs.site / "index.html").text


def test_an_index_is_built_before_anything_was_validated(docs: DataDocs) -> None:
    assert docs.build() == Built(0, 0, 0)
    index = Page(docs.site / "index.html")
    assert "Nothing has been validated yet" in index.text
    assert "no day with errors" not in index.text


def test_ten_thousand_validations_leave_the_index_short_and_none_without_a_link() -> None:
    template = line_of(msgspec.convert({**result("no_outage"), "meta": META}, Stored), "")
    lines = [
        replace(
            template,
            page=f"validations/{number}.html",
            day=DAY - timedelta(days=number // 4),
            store=list(Store)[number % 2],
            read_at=NOON + timedelta(seconds=number),
            errors=frozenset({"BTC-USDT-SWAP"} if number % 100 >= 98 else {}),
        )
        for number in range(10_000)
    ]
    started = perf_counter()
    pages = index_pages(lines)
    assert perf_counter() - started < 10
    index = pages.pop("index.html").decode()
    assert len(index) < 150_000
    assert index.count('<details class="day"') == FAILED_DAYS + NEWEST_DAYS
    in_sight = [block.split("</details>")[0] for block in index.split('<details class="day"') if " open " in block[:40]]
    assert sum(block.partition("<details")[0].count("<tr data-store") for block in in_sight) <= OPEN_ROWS
    assert set(re.findall('href="(months/[^"]+)"', index)) == set(pages)
    linked = re.findall('href="../(validations/[^"]+)"', " ".join(page.decode() for page in pages.values()))
    assert sorted(linked) == sorted(line.page for line in lines)


def test_every_page_loads_nothing_and_leads_to_pages_the_ui_and_the_reports_alone(docs: DataDocs) -> None:
    keep(docs)
    keep(docs, *RULES, store=Store.PARQUET)
    docs.build()
    seen = 0
    for path in pages(docs):
        page = Page(path)
        assert set(page.loads) <= {"data:,"}
        assert page.styles == []
        assert not {"iframe", "img", "object", "embed", "video"} & page.tags
        assert ("script" in page.tags) == (path.parent.name in {"site", "months"})
        assert not re.search(r"https?:|[^/]//[a-z]", path.read_text())
        # Whatever a text of the store might bring in, the browser runs the one script.
        assert "Content-Security-Policy\" content=\"default-src 'none'" in path.read_text()
        up = path.parent.relative_to(docs.site).parts
        elsewhere = {f"{'../' * len(up)}ui", f"{'../' * len(up)}../reports/"}
        assert elsewhere <= set(page.links)
        for link in set(page.links) - elsewhere:
            target, _, fragment = link.partition("#")
            there = (path.parent / target).resolve() if target else path
            assert there.is_relative_to(docs.site)
            assert fragment in {"", *Page(there).ids}
            seen += 1
    assert seen > len(RULES)


# Kept


def test_the_whole_result_is_kept_as_the_library_has_it(docs: DataDocs) -> None:
    page = keep(docs, "no_outage")
    stored = msgspec.json.decode((docs.folder / "results" / page).with_suffix(".json").read_bytes())
    wanted = result("no_outage")
    assert stored["results"] == wanted["results"]
    assert stored["meta"] == {
        **wanted["meta"],
        "day": "2026-08-02",
        "store": "postgres",
        "series": [list(key) for key in SERIES],
        "read_at": "2026-11-20T12:00:00Z",
    }


def test_pages_that_are_gone_are_made_again_from_the_results(docs: DataDocs) -> None:
    page = keep(docs, "no_outage")
    before = (docs.site / page).read_bytes()
    (docs.site / page).unlink()
    assert docs.build() == Built(pages=1, made=1, removed=0)
    assert (docs.site / page).read_bytes() == before


def test_a_page_without_a_result_is_removed(docs: DataDocs) -> None:
    page = keep(docs)
    (docs.folder / "results" / page).with_suffix(".json").unlink()
    assert docs.build() == Built(pages=0, made=0, removed=1)
    assert list(pages(docs)) == [docs.site / "index.html"]


def test_the_page_of_a_month_goes_with_its_last_validation(docs: DataDocs) -> None:
    keep(docs, at=NOON - timedelta(days=91))
    keep(docs, day=DAY + timedelta(days=60))
    docs.build()
    assert (docs.site / "months/2026-08.html").exists()
    docs.prune(90, NOON)
    docs.build()
    assert [path.name for path in docs.site.glob("months/*")] == ["2026-10.html"]


def test_validations_of_one_day_that_differ_in_series_store_or_time_have_pages_of_their_own(docs: DataDocs) -> None:
    kept = {
        docs.page_of(DAY, Store.POSTGRES, SERIES, NOON),
        docs.page_of(DAY, Store.PARQUET, SERIES, NOON),
        docs.page_of(DAY, Store.POSTGRES, SERIES[:1], NOON),
        docs.page_of(DAY, Store.POSTGRES, SERIES, NOON + timedelta(microseconds=1)),
    }
    assert len(kept) == 4
    assert docs.page_of(DAY, Store.POSTGRES, SERIES[::-1], NOON) in kept


def test_a_result_that_cannot_be_read_is_named(docs: DataDocs) -> None:
    page = keep(docs)
    (docs.folder / "results" / page).with_suffix(".json").write_bytes(b"{")
    with pytest.raises(StorageError, match=re.escape(page)):
        docs.build()


def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "quality").write_text("in the way")
    for attempt in (keep, DataDocs.build):
        with pytest.raises(StorageError, match="cannot be written") as told:
            attempt(DataDocs(tmp_path / "quality"))
        assert "\n" not in str(told.value)


def test_old_results_are_pruned_with_their_pages_and_empty_folders(docs: DataDocs) -> None:
    old = [keep(docs, at=NOON - timedelta(days=90, seconds=1)), keep(docs, day=DAY + timedelta(days=1), at=NOON)]
    young = keep(docs, at=NOON - timedelta(days=89))
    docs.build()
    assert docs.prune(90, NOON) == [old[0]]
    assert docs.prune(90, NOON + timedelta(days=91)) == sorted([young, old[1]])
    assert docs.build() == Built(0, 0, 0)
    assert [path.name for path in docs.folder.rglob("*") if path.is_file() and path.name != ".lock"] == ["index.html"]
    assert not list(docs.site.glob("validations/*"))


# At once, and killed


def store_many(folder: str, together: Any, first: int, count: int) -> None:
    together.wait()
    for number in range(first, first + count):
        keep(DataDocs(Path(folder)), day=DAY + timedelta(days=number % 5), at=NOON + timedelta(seconds=number))


def build_many(folder: str, together: Any, count: int) -> None:
    together.wait()
    for number in range(count):
        DataDocs(Path(folder)).build()
        DataDocs(Path(folder)).prune(365_000, NOON + timedelta(seconds=number))


def test_no_page_is_lost_when_several_validate_and_build_at_once(docs: DataDocs) -> None:
    together = barrier(4)
    writers = [start(store_many, str(docs.folder), together, first, 60) for first in (0, 60)]
    builders = [start(build_many, str(docs.folder), together, 20) for _ in range(2)]
    finish(*writers, *builders)
    assert docs.build() == Built(pages=120, made=0, removed=0)
    linked = validations(Page(docs.site / "months/2026-08.html"))
    assert len(set(linked)) == 120
    assert all("every expectation holds" in Page(docs.site / link).text for link in linked)


def store_and_die(folder: str, call: int) -> None:
    Doom(os, "fsync" if call == 0 else "replace", call=max(call, 1))
    Path.replace = lambda path, target: os.replace(path, target)  # type: ignore[method-assign, assignment]
    keep(DataDocs(Path(folder)))


@pytest.mark.parametrize(("call", "left"), [(0, 0), (1, 0), (2, 1)])
def test_a_validation_killed_while_it_is_kept_leaves_all_of_it_or_nothing(docs: DataDocs, call: int, left: int) -> None:
    killed(start(store_and_die, str(docs.folder), call))
    assert docs.build() == Built(pages=left, made=left, removed=0)
    assert len(list(docs.site.glob("validations/*/*.html"))) == left


def test_four_hundred_days_are_built_in_under_ten_seconds(docs: DataDocs) -> None:
    for number in range(400):
        keep(docs, "no_outage", day=DAY - timedelta(days=number))
    for path in docs.site.rglob("*.html"):
        path.unlink()
    started = perf_counter()
    assert docs.build() == Built(pages=400, made=400, removed=0)
    assert perf_counter() - started < 10
