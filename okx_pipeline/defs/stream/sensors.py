"""The sensor that reports what streamed and what was corrected, and asks for the sidecar when it does not beat."""

import json
from datetime import date, datetime, timedelta
from typing import Any, Final

import dagster as dg

from okx_pipeline.defs.history.candles import candles, ledger_metadata
from okx_pipeline.defs.partitions import key_of, symbols
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.defs.stream.streamed_candles import KEY
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.landing import mark_landings
from okx_pipeline.storage.landings import Totals, corrected_days, database_now, streamed_days, totals_of_days
from okx_pipeline.storage.stream_status import ask_for_sidecar
from okx_pipeline.storage.subscriptions import subscriptions
from okx_pipeline.stream.health import StreamHealth, stream_health
from okx_pipeline.timeframes import utc

Report = tuple[dg.AssetKey, str, date]
"""An asset, a symbol and a day to be reported."""

REPORT_EVERY_S: Final = 900
"""A day of a symbol is reported at its first landing and then this often: each event is 2 kB for ever."""

REPORTS_A_TICK: Final = 250
"""Further ones wait for the next tick: storing one takes the daemon 20 ms."""


@dg.sensor(
    name="okx_sidecar",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports the sidecar's landings, and asks for a start where it does not beat.",
)
def sidecar_landings(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult:
    """Runless materializations of streamed days with totals, so that one reported twice says the same."""
    with pipeline.database() as database, database.connect() as connection:
        mark_landings(connection)
        now = database_now(connection)
        since, left = _read_cursor(context.cursor, now)
        known = set(context.instance.get_dynamic_partitions(str(symbols.name)))
        due = [(KEY, *each) for each in streamed_days(connection, since, now, REPORT_EVERY_S)]
        # The asset of history ends with yesterday; today's corrections show in the streamed day.
        due += [(candles.key, *each) for each in corrected_days(connection, since, now) if each[1] < now.date()]
        waiting = [each for each in dict.fromkeys([*left, *due]) if each[1] in known]
        reported, waiting = waiting[:REPORTS_A_TICK], waiting[REPORTS_A_TICK:]
        events = _materializations(connection, reported)
        health = stream_health(connection)
        if not health.is_alive:
            ask_for_sidecar(connection)
    cursor = {"since": now.isoformat(), "left": [(key.path[-1], symbol, f"{day}") for key, symbol, day in waiting]}
    return dg.SensorResult(
        asset_events=events, cursor=json.dumps(cursor), skip_reason=_summary(health, len(events), len(waiting))
    )


def _read_cursor(cursor: str | None, now: datetime) -> tuple[datetime, list[Report]]:
    if not cursor:
        return now - timedelta(seconds=REPORT_EVERY_S), []
    read = json.loads(cursor)
    left = [(dg.AssetKey(["okx", name]), symbol, date.fromisoformat(day)) for name, symbol, day in read["left"]]
    return datetime.fromisoformat(read["since"]), left


def _materializations(connection: Connection, reports: list[Report]) -> list[dg.AssetMaterialization]:
    timeframes: dict[str, list[str]] = {}
    for each in subscriptions(connection):
        timeframes.setdefault(each.symbol, []).append(each.timeframe.name)
    wanted = {(symbol, day, name) for _, symbol, day in reports for name in timeframes.get(symbol, [])}
    totals = totals_of_days(connection, wanted)
    ledger = ledger_metadata(connection) if any(key == candles.key for key, _, _ in reports) else {}
    return [
        _materialization(key, symbol, day, totals.get((symbol, day), {}), ledger if key == candles.key else {})
        for key, symbol, day in reports
    ]


def _materialization(
    key: dg.AssetKey, symbol: str, day: date, totals: dict[str, Totals], ledger: dict[str, Any]
) -> dg.AssetMaterialization:
    rows = sum(each.rows for each in totals.values())
    lasts = [each.last_ms for each in totals.values() if each.last_ms is not None]
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": rows,
        "rows": rows,
        **{f"rows_{name}": each.rows for name, each in totals.items()},
        **ledger,
    }
    if lasts:
        metadata["last_candle"] = dg.MetadataValue.timestamp(utc(max(lasts)))
    return dg.AssetMaterialization(key, partition=key_of(day, symbol), metadata=metadata)


def _summary(health: StreamHealth, reported: int, waiting: int) -> str:
    if health.sidecar is None:
        state = "none yet; asked for one"
    else:
        state = f"{health.sidecar.state}, beat {health.sidecar.age_s:.0f} s ago"
        if not health.is_alive:
            state = f"does not beat ({state}); asked for a start"
    late = f"; {len(health.silent)} series late" if health.silent else ""
    return f"sidecar {state}; reported {reported} days{f', {waiting} wait' if waiting else ''}{late}"
