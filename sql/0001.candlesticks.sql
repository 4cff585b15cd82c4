-- The candle store: confirmed candles, one row per (symbol, timeframe, open time), partitioned by month.
-- Numbers are numeric without a scale: exactly OKX's value. NaN and infinity sort above every number, hence the bounds.
-- received_at and updated_at are one value until a row changes: the statement's time, the same for all its rows.

CREATE TABLE trading.candlesticks (
    symbol          text        NOT NULL CHECK (symbol ~ '^[A-Z0-9]+([-_][A-Z0-9]+)+$'),
    timeframe       text        NOT NULL,
    timestamp_ms    bigint      NOT NULL,
    open_price      numeric     NOT NULL CHECK (open_price > 0 AND open_price < 'Infinity'),
    high_price      numeric     NOT NULL CHECK (high_price > 0 AND high_price < 'Infinity'),
    low_price       numeric     NOT NULL CHECK (low_price > 0 AND low_price < 'Infinity'),
    close_price     numeric     NOT NULL CHECK (close_price > 0 AND close_price < 'Infinity'),
    volume          numeric     NOT NULL CHECK (volume >= 0 AND volume < 'Infinity'),
    volume_currency numeric     NOT NULL CHECK (volume_currency >= 0 AND volume_currency < 'Infinity'),
    volume_quote    numeric     NOT NULL CHECK (volume_quote >= 0 AND volume_quote < 'Infinity'),
    source          text        NOT NULL CHECK (source IN ('websocket', 'rest')),
    received_at     timestamptz NOT NULL DEFAULT statement_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (symbol, timeframe, timestamp_ms),
    CONSTRAINT candlesticks_range CHECK (
        high_price >= open_price AND high_price >= close_price AND low_price <= open_price AND low_price <= close_price
    ),
    -- Weeks open on Mondays, four days after the epoch; months on their first day; all at UTC.
    CONSTRAINT candlesticks_boundary CHECK (
        timestamp_ms >= 0 AND CASE timeframe
            WHEN '1m' THEN timestamp_ms % 60000 = 0
            WHEN '3m' THEN timestamp_ms % 180000 = 0
            WHEN '5m' THEN timestamp_ms % 300000 = 0
            WHEN '15m' THEN timestamp_ms % 900000 = 0
            WHEN '30m' THEN timestamp_ms % 1800000 = 0
            WHEN '1h' THEN timestamp_ms % 3600000 = 0
            WHEN '2h' THEN timestamp_ms % 7200000 = 0
            WHEN '4h' THEN timestamp_ms % 14400000 = 0
            WHEN '6h' THEN timestamp_ms % 21600000 = 0
            WHEN '12h' THEN timestamp_ms % 43200000 = 0
            WHEN '1d' THEN timestamp_ms % 86400000 = 0
            WHEN '1w' THEN (timestamp_ms - 345600000) % 604800000 = 0
            WHEN '1mo' THEN timestamp_ms % 86400000 = 0
                AND extract(day FROM (timestamp '1970-01-01' + timestamp_ms / 86400000 * interval '1 day')) = 1
            ELSE false
        END
    )
) PARTITION BY RANGE (timestamp_ms);

COMMENT ON TABLE trading.candlesticks IS 'Confirmed OKX candles; one row per symbol, timeframe and open time';
COMMENT ON COLUMN trading.candlesticks.symbol IS 'Instrument, as the exchange names it';
COMMENT ON COLUMN trading.candlesticks.timeframe IS 'Length of the candle';
COMMENT ON COLUMN trading.candlesticks.timestamp_ms IS 'Open time, Unix milliseconds UTC';
COMMENT ON COLUMN trading.candlesticks.open_price IS 'First price of the period';
COMMENT ON COLUMN trading.candlesticks.high_price IS 'Highest price of the period';
COMMENT ON COLUMN trading.candlesticks.low_price IS 'Lowest price of the period';
COMMENT ON COLUMN trading.candlesticks.close_price IS 'Last price of the period';
COMMENT ON COLUMN trading.candlesticks.volume IS 'Volume in contracts for swaps and futures, in base coin for spot';
COMMENT ON COLUMN trading.candlesticks.volume_currency IS 'Volume in base coin for swaps and futures, in quote coin for spot';
COMMENT ON COLUMN trading.candlesticks.volume_quote IS 'Volume in quote coin';
COMMENT ON COLUMN trading.candlesticks.source IS 'Where the value comes from: websocket or rest';
COMMENT ON COLUMN trading.candlesticks.received_at IS 'When it first landed, by the database''s clock';
COMMENT ON COLUMN trading.candlesticks.updated_at IS 'When it last changed, by the database''s clock';

CREATE VIEW trading.candles AS
SELECT symbol,
       timeframe,
       timestamp 'epoch' AT TIME ZONE 'UTC' + timestamp_ms * interval '1 millisecond' AS open_time,
       open_price AS open,
       high_price AS high,
       low_price AS low,
       close_price AS close,
       volume,
       volume_currency,
       volume_quote,
       source,
       received_at,
       updated_at,
       timestamp_ms
FROM trading.candlesticks;

COMMENT ON VIEW trading.candles IS 'The rows of candlesticks, as people read them';

-- Unix milliseconds of a moment, for conditions on timestamp_ms that use the key and skip the other months:
-- WHERE timestamp_ms >= trading.ms('2026-08-01 00:00+00')
CREATE FUNCTION trading.ms(moment timestamptz) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (extract(epoch FROM moment) * 1000)::bigint;

-- The month's partition, made if it is not there. Built apart and attached, so that the parent is never locked against
-- readers and writers; the CHECK spares the attach its scan. Two at once are safe. Returns whether it was made now.
CREATE FUNCTION trading.ensure_month(month date) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first date := date_trunc('month', month)::date;
    partition text := 'candlesticks_' || to_char(first, 'YYYY_MM');
    lower_ms bigint := (extract(epoch FROM first::timestamp) * 1000)::bigint;
    upper_ms bigint := (extract(epoch FROM (first + interval '1 month')::timestamp) * 1000)::bigint;
BEGIN
    IF first < date '1970-01-01' OR first > date '9999-12-01' THEN
        RAISE EXCEPTION 'there are no candles in %', first;
    END IF;
    IF to_regclass('trading.' || partition) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('okx-pipeline:ensure_month', 0));
    -- Not to_regclass again: it answers from a cache that waiting for the lock has not brought up to date.
    IF EXISTS (SELECT FROM pg_class WHERE relnamespace = 'trading'::regnamespace AND relname = partition) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE trading.%I (LIKE trading.candlesticks INCLUDING ALL)', partition);
    EXECUTE format('ALTER TABLE trading.%I ADD CONSTRAINT month CHECK (timestamp_ms >= %s AND timestamp_ms < %s)',
                   partition, lower_ms, upper_ms);
    EXECUTE format('ALTER TABLE trading.candlesticks ATTACH PARTITION trading.%I FOR VALUES FROM (%s) TO (%s)',
                   partition, lower_ms, upper_ms);
    EXECUTE format('ALTER TABLE trading.%I DROP CONSTRAINT month', partition);
    RETURN true;
END
$$;

-- What a series holds in [from_ms, until_ms) as one sha256: over the canonical rows in key order, each
-- "timestamp_ms,open,high,low,close,volume,volume_currency,volume_quote" and a line feed.
CREATE FUNCTION trading.content_hash(of_symbol text, of_timeframe text, from_ms bigint, until_ms bigint) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN (
        SELECT encode(sha256(convert_to(coalesce(string_agg(
            concat_ws(',', timestamp_ms, trim_scale(open_price), trim_scale(high_price), trim_scale(low_price),
                      trim_scale(close_price), trim_scale(volume), trim_scale(volume_currency),
                      trim_scale(volume_quote)) || E'\n',
            '' ORDER BY timestamp_ms), ''), 'UTF8')), 'hex')
        FROM trading.candlesticks
        WHERE symbol = of_symbol AND timeframe = of_timeframe AND timestamp_ms >= from_ms AND timestamp_ms < until_ms
    );

-- A value that a confirmed candle had before it was changed. Written by the trigger below, so that no change of a
-- candle, by whichever way it comes, leaves none.
CREATE TABLE trading.candlestick_revisions (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    symbol          text        NOT NULL,
    timeframe       text        NOT NULL,
    timestamp_ms    bigint      NOT NULL,
    open_price      numeric     NOT NULL,
    high_price      numeric     NOT NULL,
    low_price       numeric     NOT NULL,
    close_price     numeric     NOT NULL,
    volume          numeric     NOT NULL,
    volume_currency numeric     NOT NULL,
    volume_quote    numeric     NOT NULL,
    source          text        NOT NULL,
    updated_at      timestamptz NOT NULL,
    revised_by      text        NOT NULL,
    revised_at      timestamptz NOT NULL
);

CREATE INDEX candlestick_revisions_key ON trading.candlestick_revisions (symbol, timeframe, timestamp_ms);

COMMENT ON TABLE trading.candlestick_revisions IS 'Value a confirmed candle had before it was changed, when and by which source';
COMMENT ON COLUMN trading.candlestick_revisions.source IS 'Where the old value came from';
COMMENT ON COLUMN trading.candlestick_revisions.updated_at IS 'When the old value was stored';
COMMENT ON COLUMN trading.candlestick_revisions.revised_by IS 'Where the new value comes from';
COMMENT ON COLUMN trading.candlestick_revisions.revised_at IS 'When the new value was stored';

CREATE FUNCTION trading.keep_revision() RETURNS trigger
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO trading.candlestick_revisions (
        symbol, timeframe, timestamp_ms, open_price, high_price, low_price, close_price,
        volume, volume_currency, volume_quote, source, updated_at, revised_by, revised_at)
    VALUES (
        OLD.symbol, OLD.timeframe, OLD.timestamp_ms, OLD.open_price, OLD.high_price, OLD.low_price, OLD.close_price,
        OLD.volume, OLD.volume_currency, OLD.volume_quote, OLD.source, OLD.updated_at, NEW.source, NEW.updated_at);
    RETURN NULL;
END
$$;

CREATE TRIGGER keep_revision AFTER UPDATE ON trading.candlesticks
    FOR EACH ROW
    WHEN ((OLD.open_price, OLD.high_price, OLD.low_price, OLD.close_price, OLD.volume, OLD.volume_currency, OLD.volume_quote)
          IS DISTINCT FROM
          (NEW.open_price, NEW.high_price, NEW.low_price, NEW.close_price, NEW.volume, NEW.volume_currency, NEW.volume_quote))
    EXECUTE FUNCTION trading.keep_revision();

-- A row OKX confirmed but no market can have. The same row received again is the same entry.
CREATE TABLE trading.candlesticks_quarantine (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    symbol       text        NOT NULL,
    timeframe    text        NOT NULL,
    timestamp_ms bigint,
    reason       text        NOT NULL,
    original     text        NOT NULL,
    source       text        NOT NULL CHECK (source IN ('websocket', 'rest')),
    received_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE UNIQUE INDEX candlesticks_quarantine_row
    ON trading.candlesticks_quarantine (symbol, timeframe, timestamp_ms, md5(original)) NULLS NOT DISTINCT;

COMMENT ON TABLE trading.candlesticks_quarantine IS 'Row OKX confirmed but no market can have';
COMMENT ON COLUMN trading.candlesticks_quarantine.timestamp_ms IS 'Open time, where it has a readable one';
COMMENT ON COLUMN trading.candlesticks_quarantine.reason IS 'What is wrong with it';
COMMENT ON COLUMN trading.candlesticks_quarantine.original IS 'The row as JSON, character for character what OKX sent';

-- One mark per (series, UTC day), left by the transaction that lands: `revision` grows with every landing that changed
-- something; each reader of the marks writes down the revision it has dealt with. Behind means work is waiting.
CREATE TABLE trading.landing_marks (
    symbol            text        NOT NULL,
    timeframe         text        NOT NULL,
    day               date        NOT NULL,
    revision          bigint      NOT NULL DEFAULT 1,
    projected         bigint      NOT NULL DEFAULT 0,
    counted           bigint      NOT NULL DEFAULT 0,
    landed_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    corrected_at      timestamptz,
    streamed_at       timestamptz,
    first_streamed_at timestamptz,
    PRIMARY KEY (symbol, timeframe, day)
) WITH (fillfactor = 70);

CREATE INDEX landing_marks_to_project ON trading.landing_marks (symbol, timeframe, day) WHERE projected < revision;
CREATE INDEX landing_marks_to_count ON trading.landing_marks (symbol, timeframe, day) WHERE counted < revision;

CREATE INDEX landing_marks_corrected_at ON trading.landing_marks (corrected_at) WHERE corrected_at IS NOT NULL;
CREATE INDEX landing_marks_streamed_at ON trading.landing_marks (streamed_at) WHERE streamed_at IS NOT NULL;

COMMENT ON TABLE trading.landing_marks IS 'Mark of the last landing in a series-day; drives Parquet and the coverage ledger';
COMMENT ON COLUMN trading.landing_marks.corrected_at IS 'When a stored value was last changed';
COMMENT ON COLUMN trading.landing_marks.streamed_at IS 'When something of the WebSocket last landed';
COMMENT ON COLUMN trading.landing_marks.projected IS 'Revision that the Parquet file of the month holds';
COMMENT ON COLUMN trading.landing_marks.counted IS 'Revision that the coverage ledger has counted';

-- One row per (series, month): where its rows are and what its Parquet file holds. While `archived`, its rows are in
-- Parquet alone, and nothing lands before they are back.
CREATE TABLE trading.candle_months (
    symbol         text        NOT NULL,
    timeframe      text        NOT NULL,
    month          date        NOT NULL CHECK (month = date_trunc('month', month)),
    state          text        NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'archived')),
    rows           bigint,
    content_hash   text,
    projected_at   timestamptz,
    projection_ms  bigint,
    PRIMARY KEY (symbol, timeframe, month)
);

COMMENT ON TABLE trading.candle_months IS 'State of a series-month: live in PostgreSQL or archived in Parquet, and what its file holds';
COMMENT ON COLUMN trading.candle_months.content_hash IS 'Hash of the Parquet file: sha256 over a line "YYYY-MM-DD content_hash" for each UTC day with rows';
COMMENT ON COLUMN trading.candle_months.projection_ms IS 'How long the last rewrite of the file took';
