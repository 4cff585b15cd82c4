"""Data Docs and reports in a real browser: on a phone, a tablet and a desk, in light and dark, and filtered."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from okx_pipeline.quality.calendar import calendar_svg
from okx_pipeline.quality.data_docs import DataDocs
from okx_pipeline.reports.daily import CALENDAR_DAYS, write_report
from okx_pipeline.storage.quality_results import Store
from okx_pipeline_tests import test_daily_report as daily
from okx_pipeline_tests.e2e.browser import CHROMIUM, FLAGS, PICTURES
from okx_pipeline_tests.quality.test_data_docs import DAY, NOON, SERIES, result
from okx_pipeline_tests.test_pages import served

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; Debian's package is chromium"),
]

WIDE = {"symbol": "ETH-USDT-SWAP", "timeframe": "5m"} | {f"a_column_{number}": "1" * 40 for number in range(8)}
EVERY_RULE = ("high_at_least_open", "no_outage", "prices_on_tick", "open_price_is_positive", "no_candle_missing")
LEFT_OUT = """
Object.fromEntries([...document.querySelectorAll("body *")]
    .filter((each) => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth + 1)
    .map((each) => [each.tagName + " " + each.className, each.getBoundingClientRect().right]))
"""
TEXTS_OUTSIDE = """
[...document.querySelectorAll("svg text")].map((each) => [each.textContent, each.getBBox().x + each.getBBox().width])
    .filter(([, right]) => right > document.querySelector("svg").width.baseVal.value)
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of a page of each kind."""
    home = tmp_path_factory.mktemp("home")
    docs = DataDocs(home / "quality")
    for number in range(20):
        failed = ("no_outage",) if number == 3 else ()
        docs.store(result(*failed), day=DAY - timedelta(days=number), store=Store.POSTGRES, series=SERIES, read_at=NOON)
    one = [("ETH-USDT-SWAP", "5m")]
    failed = result(*EVERY_RULE, shown=WIDE)
    for each in failed["meta"]["failing"]:
        each["symbol"] = "ETH-USDT-SWAP"
    wide = docs.store(failed, day=DAY, store=Store.PARQUET, series=one, read_at=NOON)
    docs.build()
    report = write_report(home / "reports", daily.report()).name
    unfinished = write_report(home / "reports" / "unfinished", daily.under_way()).name
    with served(home) as port:
        root = f"http://127.0.0.1:{port}"
        yield {
            "index": f"{root}/quality/index.html",
            "month": f"{root}/quality/months/2026-08.html",
            "validation": f"{root}/quality/{wide}",
            "report": f"{root}/reports/{report}",
            "unfinished": f"{root}/reports/unfinished/{unfinished}",
            "reports": f"{root}/reports/",
        }


@pytest.fixture(scope="module")
def window() -> Iterator[Page]:
    """A window, whatever is wrong with a page among what it says."""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page()
        expect.set_options(timeout=30_000)
        yield page
        chromium.close()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_of_a_page_is_out_of_sight_at_the_side(window: Page, pages: dict[str, str], width: int) -> None:
    window.set_viewport_size({"width": width, "height": 900})
    complaints: list[str] = []
    window.on("console", lambda message: complaints.append(message.text))
    for name, address in pages.items():
        window.emulate_media(color_scheme="dark" if width == 768 else "light")
        window.goto(address)
        for each in window.locator("details").all():
            each.evaluate("each => { each.open = true; }")
        window.screenshot(path=PICTURES.with_name("pages") / f"{name}-{width}.png", full_page=True)
        assert window.evaluate(LEFT_OUT) == {}, name
        assert window.evaluate("document.documentElement.scrollWidth") <= width, name
    # Among others that its own policy keeps a page from what it needs.
    assert complaints == []


def test_validations_are_filtered_by_symbol_store_and_outcome(window: Page, pages: dict[str, str]) -> None:
    window.set_viewport_size({"width": 1280, "height": 900})
    window.goto(pages["index"])
    rows, found = window.locator("tr[data-store]:visible"), window.locator("#found")
    for field, value, count in (
        ("symbol", "BTC-USDT-SWAP", 20),
        ("outcome", "errors", 0),
        ("outcome", "warnings", 1),
        ("symbol", "ETH-USDT-SWAP", 1),
        ("outcome", "errors", 1),
        ("store", "PostgreSQL", 0),
        ("store", "Parquet", 1),
    ):
        window.get_by_label(field, exact=False).select_option(label=value)
        expect(rows).to_have_count(count)
        expect(found).to_contain_text(f"{count} on this page")
    # What is asked for is in the address, and goes along to the page of a month.
    address = window.url
    window.get_by_role("link", name="2026-08").click()
    expect(window.get_by_role("heading", name="Data Docs of 2026-08")).to_be_visible()
    expect(rows).to_have_count(1)
    assert window.url.partition("?")[2] == address.partition("?")[2] != ""
    window.get_by_role("button", name="Show all").click()
    expect(found).to_have_text("")
    # The 2nd of August and the one before it; the others are July's.
    expect(window.locator("tr[data-store]")).to_have_count(3)
    assert "?" not in window.url


def test_a_link_to_a_day_opens_it(window: Page, pages: dict[str, str]) -> None:
    window.goto(f"{pages['month']}#{DAY - timedelta(days=1)}")
    expect(window.locator(f"[id='{DAY - timedelta(days=1)}'] table")).to_be_visible()


def test_the_texts_of_a_calendar_are_within_its_picture(window: Page) -> None:
    for days in (30, CALENDAR_DAYS, 90):
        picture = calendar_svg(daily.report().calendar, daily.DAY - timedelta(days=days - 1), daily.DAY)
        window.set_content(f"<!doctype html>{picture}")
        assert window.evaluate(TEXTS_OUTSIDE) == []
