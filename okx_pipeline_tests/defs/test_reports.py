"""The daily report as Dagster makes it: one page that loads nothing, and the same as Markdown."""

import re
from datetime import date

import dagster as dg
import pytest

from okx_pipeline.definitions import defs
from okx_pipeline.defs.history.candles import candles
from okx_pipeline.defs.reports.daily_report import daily_report
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.replay.corrections import Correction, Corrections
from okx_pipeline.replay.exchange import Exchange
from okx_pipeline.storage.database import Connection, one
from okx_pipeline.storage.subscriptions import seed_subscriptions
from okx_pipeline.timeframes import day_ms, parse_timeframes

BTC = "BTC-USDT-SWAP"
DAY = date(2026, 8, 20)


@pytest.fixture
def landed(instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, exchange: Exchange) -> None:
    """A day that was landed, corrected and judged."""
    instance.add_dynamic_partitions("okx_symbols", [BTC])
    seed_subscriptions(connection, [BTC], parse_timeframes("15m,1h"), day_ms(DAY))
    resources = {"pipeline": pipeline}
    dg.materialize([candles], instance=instance, resources=resources, partition_key=f"{DAY}|{BTC}")
    correction = Correction(symbol=BTC, timeframe="1h", timestamp_ms=day_ms(DAY), volume="123456.5")
    exchange.correct(correction)
    dg.materialize([candles], instance=instance, resources=resources, partition_key=f"{DAY}|{BTC}")
    exchange.corrections = Corrections()
    judging = defs.resolve_job_def("okx_candle_quality")
    judging.execute_in_process(instance=instance, resources=resources, partition_key=f"{DAY}|{BTC}")


def test_a_day_is_told_on_one_page_that_loads_nothing(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, landed: None
) -> None:
    result = dg.materialize([daily_report], instance=instance, resources={"pipeline": pipeline}, partition_key=str(DAY))
    assert result.success
    [event] = result.asset_materializations_for_node("okx__daily_report")
    metadata = {name: value.value for name, value in event.metadata.items()}
    assert (metadata["expected"], metadata["present"], metadata["missing"], metadata["corrections"]) == (120, 120, 0, 1)
    assert metadata["page"] == "http://127.0.0.1:3001/reports/2026-08-20.html"

    folder = pipeline.settings().reports_folder
    page = (folder / "2026-08-20.html").read_text()
    assert not re.search(r"<script|<link[^>]+href=.(?!data:)|src=|@import|url\(", page)
    assert {"http://www.w3.org/2000/svg"} >= set(re.findall(r"https?://[^\"' <]+", page))
    high = one(connection, "SELECT max(high_price) FROM trading.candlesticks WHERE timeframe = '15m'")
    assert f"{high}" in page
    assert "123456.5" in page
    # A line of its prices, and a strip of days for each series.
    assert page.count("<svg") == 1 + 2
    for text in (page, (folder / "2026-08-20.md").read_text()):
        assert "120 of 120 candles held" in text
        assert "not judged" not in text
        assert f"{BTC} 15m" in text
    assert 'href="2026-08-20.html"' in (folder / "index.html").read_text()


def test_a_day_of_which_nothing_is_held_is_told_all_the_same(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection
) -> None:
    result = dg.materialize([daily_report], instance=instance, resources={"pipeline": pipeline}, partition_key=str(DAY))
    assert result.success
    [event] = result.asset_materializations_for_node("okx__daily_report")
    assert (event.metadata["errors"].value, event.metadata["series not judged"].value) == ("not judged", 0)
    page = (pipeline.settings().reports_folder / f"{DAY}.html").read_text()
    assert "0 of 0 candles held" in page
    assert 'class="good"' not in page


def test_what_is_held_and_not_subscribed_is_in_the_report(
    instance: dg.DagsterInstance, pipeline: Pipeline, connection: Connection, landed: None
) -> None:
    connection.execute("DELETE FROM trading.subscriptions")
    result = dg.materialize([daily_report], instance=instance, resources={"pipeline": pipeline}, partition_key=str(DAY))
    [event] = result.asset_materializations_for_node("okx__daily_report")
    assert (event.metadata["expected"].value, event.metadata["present"].value) == (120, 120)
