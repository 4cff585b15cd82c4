-- Timeframes held against each other: where a candle is not what the shorter ones of its time add up to.

-- OKX's own candles do not always add up (5m to 4h of BTC-USDT-SWAP, May to December 2022: 7 values in 6 of 1,468 candles
-- differ), so what REST confirms is written down as the exchange's own, and not repaired for ever.
CREATE TABLE trading.timeframe_mismatches (
    symbol       text        NOT NULL,
    timeframe    text        NOT NULL,
    timestamp_ms bigint      NOT NULL,
    against      text        NOT NULL,
    column_name  text        NOT NULL,
    value        numeric     NOT NULL,
    summed       numeric     NOT NULL,
    class        text        NOT NULL CHECK (class IN ('open', 'exchange', 'resolved')),
    found_at     timestamptz NOT NULL DEFAULT statement_timestamp(),
    confirmed_at timestamptz,
    resolved_at  timestamptz,
    PRIMARY KEY (symbol, timeframe, timestamp_ms, against, column_name),
    CHECK (class <> 'exchange' OR confirmed_at IS NOT NULL),
    CHECK ((class = 'resolved') = (resolved_at IS NOT NULL))
);

COMMENT ON TABLE trading.timeframe_mismatches IS 'Value of a candle that differs from what the shorter candles of its time give';
COMMENT ON COLUMN trading.timeframe_mismatches.timestamp_ms IS 'Open time of the longer candle, Unix milliseconds UTC';
COMMENT ON COLUMN trading.timeframe_mismatches.against IS 'Length of the shorter candles';
COMMENT ON COLUMN trading.timeframe_mismatches.column_name IS 'Column of candlesticks that differs';
COMMENT ON COLUMN trading.timeframe_mismatches.value IS 'What the longer candle had when last found to differ';
COMMENT ON COLUMN trading.timeframe_mismatches.summed IS 'What the shorter ones gave when last found to differ';
COMMENT ON COLUMN trading.timeframe_mismatches.class IS 'open: not yet held against REST; exchange: REST, asked again for both, serves both values; resolved: differs no more';
COMMENT ON COLUMN trading.timeframe_mismatches.found_at IS 'When it was first found, or found again after it had been resolved';
COMMENT ON COLUMN trading.timeframe_mismatches.confirmed_at IS 'When REST first confirmed both values';
COMMENT ON COLUMN trading.timeframe_mismatches.resolved_at IS 'When it was first found to differ no more';
