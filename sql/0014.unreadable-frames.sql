-- A frame that cannot be read is kept, too: it may have brought a candle, and shows what the exchange or the way to it did.
-- Of what series it was to be is not known.

ALTER TABLE trading.candlesticks_quarantine ALTER COLUMN symbol DROP NOT NULL;
ALTER TABLE trading.candlesticks_quarantine ALTER COLUMN timeframe DROP NOT NULL;

COMMENT ON TABLE trading.candlesticks_quarantine IS 'Row OKX confirmed but no market can have, or frame that cannot be read';
COMMENT ON COLUMN trading.candlesticks_quarantine.symbol IS 'Instrument it was received for; null of a frame that cannot be read';
COMMENT ON COLUMN trading.candlesticks_quarantine.timeframe IS 'Length of the candle; null of a frame that cannot be read';
COMMENT ON COLUMN trading.candlesticks_quarantine.original IS 'The row as JSON, or the frame, character for character what OKX sent; bytes that are no text as \xNN';
