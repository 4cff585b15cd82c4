"""Whoever is to be told fails: the candles do not notice, and the incident is told once it can be."""

import asyncio
from functools import partial

import pytest

from okx_pipeline.alerts import outbound
from okx_pipeline.alerts.delivery import deliver
from okx_pipeline.alerts.incidents import Source as IncidentSource
from okx_pipeline.alerts.incidents import look
from okx_pipeline.alerts.sinks import sinks_of
from okx_pipeline.alerts.sources import quarantined_rows
from okx_pipeline.candles import Refused, Source
from okx_pipeline.storage.alerts import LONGEST_RETRY_S
from okx_pipeline.storage.database import one
from okx_pipeline.storage.landing import land
from okx_pipeline.timeframes import MINUTE_MS
from okx_pipeline_tests.alerts.sink_server import Answer, sink_server
from okx_pipeline_tests.faults.past import MakeSystem
from okx_pipeline_tests.faults.system import START, System
from okx_pipeline_tests.stream.stand import wait_until

HARMS = [Answer(500), Answer(silent=True), Answer(302, headers={"Location": "/"}), Answer(drips=True), Answer(429)]
ROUNDS = 3
HELD = "SELECT count(*) FROM trading.candlesticks"


def holds_more_than(system: System, candles: int) -> bool:
    return system.count(HELD) > candles


@pytest.mark.fault(31, "whoever is told of alerts: failing, silent, slow", tries=6)
def test_a_sink_that_fails_holds_up_no_candle_and_is_told_once_when_it_is_well_again(
    make_system: MakeSystem, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "WITHIN_S", 0.3)
    with sink_server() as hook:
        hook.answer = HARMS[seed % len(HARMS)]
        system = make_system(alert_webhook_url=f"{hook.url}/hook", alert_allow_http=True)
        sinks = sinks_of(system.settings)
        system.streaming()
        with system.database.connect() as connection:
            # One that the exchange mends a moment later.
            refused = Refused("BTC-USDT-SWAP", "1m", START + 25 * MINUTE_MS, "high_price 1 is below low_price 2", "[]")
            land(connection, [], [refused], source=Source.WEBSOCKET)
            look(connection, [IncidentSource("quarantined_rows", quarantined_rows)], [sink.name for sink in sinks])
            pauses = []
            for number in range(ROUNDS):
                landed = system.count(HELD)
                [done] = asyncio.run(deliver(system.database, sinks))
                assert (done.messages, bool(done.problem)) == (0, True)
                [again] = asyncio.run(deliver(system.database, sinks))
                assert again.problem is None, "it is left alone for a while"
                assert len(hook.requests) == number + 1
                wait = "SELECT extract(epoch FROM try_again_at - clock_timestamp()) FROM trading.alert_deliveries"
                pauses.append(float(one(connection, wait)))
                connection.execute("UPDATE trading.alert_deliveries SET try_again_at = '-infinity'")
                wait_until(partial(holds_more_than, system, landed), "candles land meanwhile")
            assert pauses == sorted(pauses)
            assert pauses[-1] <= LONGEST_RETRY_S
            assert one(connection, "SELECT count(*) FROM trading.alerts WHERE resolved_at IS NULL") == 1
            hook.answer = Answer()
            for _ in range(2):
                asyncio.run(deliver(system.database, sinks))
            assert hook.told[ROUNDS:] == [("open", "quarantined_rows:BTC-USDT-SWAP")]
            assert len({request.json["incident"] for request in hook.requests}) == 1
        system.recovers()
        assert system.counter("database away") == 0
