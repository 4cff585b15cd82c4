"""Subscriptions: seeded once, and never again over what the user made of them."""

import threading

import pytest

from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.subscriptions import (
    Subscription,
    seed_subscriptions,
    subscribe,
    subscriptions,
    unsubscribe,
)
from okx_pipeline.timeframes import parse_timeframe, parse_timeframes

SINCE = 1767225600000


@pytest.fixture
def database(emptied_database: Database) -> Database:
    return emptied_database


def test_an_empty_store_is_subscribed_to_every_symbol_in_every_timeframe(connection: Connection) -> None:
    assert seed_subscriptions(connection, ["ETH-USDT", "BTC-USDT-SWAP"], parse_timeframes("1h,5m,1mo"), SINCE) == 6
    assert subscriptions(connection) == [
        Subscription(symbol, parse_timeframe(timeframe), SINCE, None)
        for symbol in ("BTC-USDT-SWAP", "ETH-USDT")
        for timeframe in ("5m", "1h", "1mo")
    ]


def test_a_store_that_has_subscriptions_keeps_them_even_if_all_have_ended(connection: Connection) -> None:
    seed_subscriptions(connection, ["BTC-USDT-SWAP"], parse_timeframes("5m"), SINCE)
    connection.execute("UPDATE trading.subscriptions SET until_ms = %s", (SINCE + 1,))
    assert subscriptions(connection) == []
    assert seed_subscriptions(connection, ["ETH-USDT"], parse_timeframes("5m"), SINCE) == 0
    assert subscriptions(connection) == []


def test_one_that_is_named_twice_is_subscribed_once(connection: Connection) -> None:
    assert seed_subscriptions(connection, ["ETH-USDT", "ETH-USDT"], parse_timeframes("5m,5m"), SINCE) == 1


def test_several_that_seed_at_once_make_each_series_once(database: Database) -> None:
    gate = threading.Barrier(4)
    made: list[int] = []

    def seed() -> None:
        with database.connect() as connection:
            gate.wait(30)
            made.append(seed_subscriptions(connection, ["BTC-USDT-SWAP"], parse_timeframes("5m,1h,1d"), SINCE))

    threads = [threading.Thread(target=seed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(made) == 3
    with database.connect() as connection:
        assert len(subscriptions(connection)) == 3


@pytest.mark.parametrize(
    ("ended", "since_ms", "named", "found_ms"),
    [
        (False, SINCE + 1, False, SINCE),
        (False, SINCE - 1, False, SINCE),
        (True, SINCE + 1, False, SINCE),
        (True, SINCE - 1, False, SINCE),
        (False, SINCE + 1, True, SINCE),
        (False, SINCE - 1, True, SINCE - 1),
        (True, SINCE + 1, True, SINCE + 1),
        (True, SINCE - 1, True, SINCE - 1),
    ],
)
def test_what_was_wanted_once_keeps_its_beginning_unless_one_is_named_that_is_earlier_or_it_had_ended(
    connection: Connection, ended: bool, since_ms: int, named: bool, found_ms: int
) -> None:
    hours = parse_timeframes("1h")
    subscribe(connection, ["ETH-USDT"], hours, SINCE)
    if ended:
        unsubscribe(connection, ["ETH-USDT"], hours, SINCE + 2)
    [found] = subscribe(connection, ["ETH-USDT"], hours, since_ms, named=named)
    assert (found.since_ms, found.until_ms) == (found_ms, None)
    [new] = subscribe(connection, ["BTC-USDT"], hours, since_ms, named=named)
    assert new.since_ms == since_ms
