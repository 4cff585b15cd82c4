-- Trigger functions are everybody's: whoever may make a temporary table could hang this one, which writes with its owner's
-- rights, on it, and so write revisions of candles that never were. It now serves tables of the store alone, where nobody
-- else can make any. Not by REVOKE, which a backup does not hold.

CREATE OR REPLACE FUNCTION trading.keep_revision() RETURNS trigger
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_TABLE_SCHEMA <> 'trading' THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied: revisions are kept of candles of the store alone';
    END IF;
    INSERT INTO trading.candlestick_revisions (
        symbol, timeframe, timestamp_ms, open_price, high_price, low_price, close_price,
        volume, volume_currency, volume_quote, source, updated_at, revised_by, revised_at)
    VALUES (
        OLD.symbol, OLD.timeframe, OLD.timestamp_ms, OLD.open_price, OLD.high_price, OLD.low_price, OLD.close_price,
        OLD.volume, OLD.volume_currency, OLD.volume_quote, OLD.source, OLD.updated_at, NEW.source, NEW.updated_at);
    RETURN NULL;
END
$$;
