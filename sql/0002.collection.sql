-- What is collected, the instruments' rules, the shared request budget, and which market the store holds.

CREATE TABLE trading.subscriptions (
    symbol        text        NOT NULL,
    timeframe     text        NOT NULL,
    since_ms      bigint      NOT NULL,
    until_ms      bigint,
    subscribed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (symbol, timeframe)
);

COMMENT ON TABLE trading.subscriptions IS 'Series wanted, and from when to when';
COMMENT ON COLUMN trading.subscriptions.until_ms IS 'Set by unsubscribing: candles that open from then on are not wanted';

-- Instruments as OKX listed them: one row per instrument and version of its rules, never deleted.
CREATE TABLE trading.instruments (
    symbol              text        NOT NULL,
    valid_from          timestamptz NOT NULL,
    instrument_type     text        NOT NULL,
    family              text,
    base_currency       text,
    quote_currency      text,
    settle_currency     text,
    contract_type       text,
    contract_value      numeric,
    contract_multiplier numeric,
    contract_currency   text,
    tick_size           numeric,
    lot_size            numeric,
    minimum_size        numeric,
    listed_ms           bigint,
    expires_ms          bigint,
    state               text        NOT NULL,
    PRIMARY KEY (symbol, valid_from)
);

COMMENT ON TABLE trading.instruments IS 'Instrument and version of its rules; the latest valid_from is in force';
COMMENT ON COLUMN trading.instruments.state IS 'OKX''s state, or delisted once OKX lists it no more';

CREATE VIEW trading.current_instruments AS
SELECT DISTINCT ON (symbol) * FROM trading.instruments ORDER BY symbol, valid_from DESC;

-- OKX counts requests per endpoint in a sliding window. Each slot is one request of a full window: claimed until its
-- response is back, then free again when that request has left the window. A claim of a process that died ends by itself.
CREATE TABLE trading.request_slots (
    endpoint      text        NOT NULL,
    slot          integer     NOT NULL,
    free_at       timestamptz NOT NULL DEFAULT '-infinity',
    claimed_until timestamptz NOT NULL DEFAULT '-infinity',
    claimed_by    integer,
    rested_at     timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (endpoint, slot)
) WITH (fillfactor = 50);

COMMENT ON COLUMN trading.request_slots.claimed_by IS 'Process id of the database session that claimed it last';
COMMENT ON TABLE trading.request_slots IS 'Request budget shared by every process that uses this database';

-- Facts about the store itself, among them which market it holds: prices of a demo or replay never mix with OKX's.
CREATE TABLE trading.store_facts (
    name  text PRIMARY KEY,
    value text NOT NULL
);
