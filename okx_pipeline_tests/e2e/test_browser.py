"""The UI and the Data Docs in a real browser, as a person goes through them; nothing is asked for off the loopback."""

import re
from collections.abc import Iterator
from datetime import date
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, expect

from okx_pipeline.storage.database import Database
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.timeframes import HOUR_MS, day_ms
from okx_pipeline_tests.e2e.browser import CHROMIUM, LOOPBACK, Browser, browser, button
from okx_pipeline_tests.e2e.system import System, Up, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; Debian's package is chromium"),
]

SYMBOL = "BTC-USDT-SWAP"
DAY_ROWS = 288 + 96 + 24 + 6
DAY, EARLIER = "2026-08-21", "[2026-08-19...2026-08-20]"
STEPS = re.compile("[▁▂▃▄▅▆▇█]{48}")

LAUNCH_VERDICT = """
mutation($tags: [ExecutionTag!]!) { launchRun(executionParams: {
    selector: {
        repositoryLocationName: "okx_pipeline", repositoryName: "__repository__", jobName: "okx_candle_quality"
    },
    executionMetadata: {tags: $tags}
}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
JUDGING = """
{ runsOrError(filter: {pipelineName: "okx_candle_quality", statuses: [QUEUED, NOT_STARTED, STARTING, STARTED]}) {
    ... on Runs { results { runId } }
} }
"""
FAILING = """
{ assetNodeOrError(assetKey: {path: ["okx", "candles"]}) { ... on AssetNode { assetChecksOrError { ... on AssetChecks {
    checks { name partitionStatuses { ... on AssetCheckMultiPartitionStatuses { ranges {
        primaryDimStartKey primaryDimEndKey
        secondaryDim { ... on AssetCheckDefaultPartitionStatuses { failedPartitions } }
    } } } }
} } } } }
"""
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    """A fresh home that wants no history but today's, so that what the tests ask for is all there is."""
    folder = tmp_path_factory.mktemp("a user")
    settings = {"OKX_SYMBOLS": SYMBOL, "OKX_TIMEFRAMES": "5m,15m,1h,4h", "OKX_HISTORY_START": "2026-08-22"}
    return System(folder / "home", folder, **settings)


@pytest.fixture(scope="module")
def running(system: System) -> Iterator[Up]:
    """`up` on a made-up market, ready."""
    with system.up("--replay", "synthetic", "--now", "2026-08-22T02:00Z") as ready:
        yield ready


@pytest.fixture(scope="module")
def window(system: System, running: Up) -> Iterator[Browser]:
    """A browser at the UI."""
    with browser(f"http://127.0.0.1:{system.port}") as opened:
        yield opened


@pytest.fixture(autouse=True)
def picture(window: Browser, request: pytest.FixtureRequest) -> Iterator[None]:
    """What the window shows at the end of each test, be it passed or failed, is kept."""
    yield
    window.keep(request.node.name)


@pytest.fixture
def database(system: System, running: Up) -> Iterator[Database]:
    """The store of the home, which is up."""
    with EmbeddedPostgres(system.home) as embedded:
        yield Database(embedded.url)


def materialize(window: Browser, asset: str, days: str) -> Locator:
    """Ask for days of the symbol in the dialog of the asset's page; returns the dialog, one click before the end."""
    page = window.open(f"/assets/{asset}")
    button(page, "Materialize…").first.click()
    dialog = page.get_by_role("dialog")
    chosen, sure = dialog.get_by_placeholder("ex: 2020-01-01"), button(dialog, "Confirm")
    expect(chosen.or_(sure)).to_be_visible()
    if sure.is_visible():
        sure.click()
    chosen.fill(days)
    chosen.press("Enter")
    dialog.get_by_text("Select a partition").click()
    page.get_by_role("menuitem", name=SYMBOL).click()
    page.keyboard.press("Escape")
    return dialog


def value(window: Browser, name: str) -> Locator:
    """The value of an entry of metadata."""
    row = window.page.get_by_role("row").filter(has=window.page.get_by_role("cell", name=name, exact=True))
    return row.get_by_role("cell").nth(1)


def high_below_low(database: Database, day: str) -> None:
    """Write what no market can have, past the constraint and the triggers, so that nothing repairs it meanwhile."""
    with database.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("ALTER TABLE trading.candlesticks DROP CONSTRAINT candlesticks_range")
        connection.execute(
            "UPDATE trading.candlesticks SET high_price = low_price - 1 "
            "WHERE symbol = %s AND timeframe = '1h' AND timestamp_ms = %s",
            (SYMBOL, day_ms(date.fromisoformat(day)) + 7 * HOUR_MS),
        )


def failing(running: Up, check: str) -> dict[str, list[str]]:
    """The symbols of which the UI shows a check of the candles to fail, by the first of the days."""
    checks = running.graphql(FAILING)["assetNodeOrError"]["assetChecksOrError"]["checks"]
    [ranges] = [each["partitionStatuses"]["ranges"] for each in checks if each["name"] == check]
    found = {each["primaryDimStartKey"]: each["secondaryDim"]["failedPartitions"] for each in ranges}
    return {day: symbols for day, symbols in found.items() if symbols}


def judge(running: Up, day: str) -> None:
    """Have a day judged, by the job that the ledger requests."""
    tags = {"partition": f"{day}|{SYMBOL}", "partition/date": day, "partition/symbol": SYMBOL}
    sent = [{"key": f"dagster/{key}", "value": text} for key, text in tags.items()]
    launched = running.graphql(LAUNCH_VERDICT, tags=sent)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = launched["run"]["runId"]
    wait_for(lambda: running.graphql(RUN, id=run)["runOrError"]["status"] in {"SUCCESS", "FAILURE"}, "verdict")


# In the order of a user's first hour; the tests share one `up` and one window.


def test_the_graph_of_assets_shows_the_stages(window: Browser) -> None:
    page = window.open("/asset-groups")
    graph = page.locator("foreignObject")
    for group in ("history", "stream", "quality"):
        expect(graph.get_by_text(group, exact=True)).to_be_visible()
    window.keep("groups")
    graph.get_by_text("quality", exact=True).click()
    # Only what is in sight is drawn.
    expect(graph.get_by_text("candle_quality", exact=True)).to_be_visible()


def test_a_day_is_materialized_from_the_page_of_the_asset_and_shows_what_it_holds(window: Browser) -> None:
    dialog = materialize(window, "okx/candles", DAY)
    window.keep("dialog")
    button(dialog, "Launch 1 run").click()
    expect(window.page.get_by_text("Launched run")).to_be_visible()
    window.open("/assets/okx/candles?view=events")
    window.reload_until(window.page.get_by_text(f"{DAY}|{SYMBOL}").first)
    for name, shown in {"rows": f"{DAY_ROWS}", "new": f"{DAY_ROWS}", "missing": "0", "quarantined": "0"}.items():
        expect(value(window, name)).to_have_text(shown)
    expect(value(window, "sparkline")).to_have_text(STEPS)


def test_a_day_that_landed_has_been_checked(window: Browser) -> None:
    page = window.open("/assets/okx/candles?view=checks&checkDetail=ohlc_sanity")
    window.reload_until(page.get_by_text("Passed", exact=True))
    expect(page.get_by_text("all 8 verdicts pass, on 1 day")).to_be_visible()


def test_a_failed_check_leads_to_the_page_that_names_the_expectation(
    window: Browser, running: Up, database: Database
) -> None:
    # The ledger may have asked for the same before the day was judged; what is said last is what the page shows.
    wait_for(lambda: not running.graphql(JUDGING)["runsOrError"]["results"], "end of other verdicts")
    high_below_low(database, DAY)
    judge(running, DAY)
    page = window.open("/assets/okx/candles")
    page.get_by_role("tab", name="Checks").click()
    page.get_by_text("ohlc_sanity").first.click()
    # The month's file is written anew whenever something of it lands, and has the row from then on.
    expect(page.get_by_text(re.compile("[12] of 8 verdicts fail, on 1 day"))).to_be_visible()
    expect(page.get_by_text(f"{DAY}|{SYMBOL}")).to_be_visible()
    assert failing(running, "ohlc_sanity") == {DAY: [SYMBOL]}
    assert not failing(running, "schema")
    window.keep("failed-check")
    with page.expect_popup() as opened:
        page.get_by_role("link").filter(has_text="/quality/").click()
    docs = opened.value
    heading = re.compile(f"Candles of {SYMBOL} on {DAY} in (PostgreSQL|Parquet)")
    expect(docs.get_by_role("heading", name=heading)).to_be_visible()
    failed = docs.locator("#ohlc_sanity").get_by_role("row").filter(has_text="high_at_least_low").first
    expect(failed).to_be_visible()
    expect(failed).to_contain_text("error")
    expect(failed).to_contain_text(f"{DAY}T07:00")
    window.keep("data-docs", docs)
    assert urlsplit(docs.url).netloc == urlsplit(running.await_line("Data quality").split()[-1]).netloc
    docs.get_by_role("link", name="Dagster", exact=True).click()
    docs.wait_for_url(f"http://127.0.0.1:{running.system.port}/**")
    docs.close()


def test_a_backfill_is_followed_on_its_page(window: Browser) -> None:
    dialog = materialize(window, "okx/candles", EARLIER)
    button(dialog, "Launch backfill").click()
    page = window.page
    expect(page.get_by_text("Created backfill")).to_be_visible()
    window.open("/overview/backfills")
    expect(button(page, "2 partitions")).to_be_visible()
    window.keep("backfills")
    page.get_by_role("link", name="View", exact=True).click()
    # That it lands is another test's; Dagster's daemon looks for backfills every 30 s.
    expect(page.get_by_text(f"2026-08-20|{SYMBOL}")).to_be_visible()
    expect(page.get_by_text("% completed")).to_be_visible()


def test_a_picture_among_the_metadata_is_drawn(window: Browser) -> None:
    page = window.open("/assets/okx/quality_report")
    shown = page.get_by_text("Show Markdown")
    window.reload_until(shown)
    shown.click()
    picture = page.get_by_role("dialog").locator("img")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_nothing_was_asked_for_off_the_loopback(window: Browser) -> None:
    assert len(window.asked) > 100
    assert any(url.startswith("ws://") for url in window.asked)
    assert window.hosts <= LOOPBACK
