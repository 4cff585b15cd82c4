-- Maintenance of months: what was done with each, and how a partition lets go of what is archived.

ALTER TABLE trading.candle_months
    ADD COLUMN rebuilt_hash text,
    ADD COLUMN archived_at  timestamptz,
    ADD COLUMN restored_at  timestamptz;

COMMENT ON COLUMN trading.candle_months.rebuilt_hash IS 'What the file held when it was last rebuilt for good, the month being whole; another content_hash means it has changed since';
COMMENT ON COLUMN trading.candle_months.archived_at IS 'When its rows last left PostgreSQL';
COMMENT ON COLUMN trading.candle_months.restored_at IS 'When its rows were last brought back; retention leaves them alone for some days';

-- Months that a restore has brought back without their files.
CREATE INDEX candle_months_without_file ON trading.candle_months (symbol, timeframe, month)
    WHERE state = 'live' AND content_hash IS NULL;

CREATE TABLE trading.month_partitions (
    month         date PRIMARY KEY CHECK (month = date_trunc('month', month)),
    vacuumed_hash text,
    vacuumed_at   timestamptz,
    swapped_at    timestamptz
);

COMMENT ON TABLE trading.month_partitions IS 'What maintenance did to a month''s partition';
COMMENT ON COLUMN trading.month_partitions.vacuumed_hash IS 'trading.month_fingerprint when it was last vacuumed for good; null after it was made anew';
COMMENT ON COLUMN trading.month_partitions.swapped_at IS 'When it was last made anew, or dropped, without the rows of archived series';

-- One row a day, from which growth is told.
CREATE TABLE trading.store_sizes (
    day             date   PRIMARY KEY,
    candles         bigint NOT NULL,
    candles_bytes   bigint NOT NULL,
    dagster_bytes   bigint NOT NULL,
    database_bytes  bigint NOT NULL,
    parquet_bytes   bigint,
    data_docs_bytes bigint NOT NULL,
    logs_bytes      bigint NOT NULL
);

COMMENT ON TABLE trading.store_sizes IS 'How big everything was on a day';
COMMENT ON COLUMN trading.store_sizes.candles IS 'Candles held, in PostgreSQL or an archived month''s Parquet file';
COMMENT ON COLUMN trading.store_sizes.candles_bytes IS 'Tables and indexes of candlesticks in PostgreSQL';
COMMENT ON COLUMN trading.store_sizes.parquet_bytes IS 'Null where they are not in a folder';

-- What every series of a month is known to hold and where, as one hash.
CREATE FUNCTION trading.month_fingerprint(of_month date) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN (
        SELECT encode(sha256(convert_to(coalesce(string_agg(
            concat_ws(' ', symbol, timeframe, state, content_hash),
            E'\n' ORDER BY symbol, timeframe), ''), 'UTF8')), 'hex')
        FROM trading.candle_months
        WHERE month = of_month
    );

-- The rows of archived series leave their partition by being left out: a copy of what is live is built beside it and
-- swapped in. Deleted rows would keep their space, as nothing lands in an old month that could take it. Both functions
-- are called in one transaction, during which nobody else can write to the month.

-- Builds the copy, in key order, and locks writers of the month out until the transaction ends. Returns its rows.
CREATE FUNCTION trading.build_month(month date) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first date := date_trunc('month', month)::date;
    partition text := 'candlesticks_' || to_char(first, 'YYYY_MM');
    lower_ms bigint := (extract(epoch FROM first::timestamp) * 1000)::bigint;
    upper_ms bigint := (extract(epoch FROM (first + interval '1 month')::timestamp) * 1000)::bigint;
    rows bigint;
BEGIN
    EXECUTE format('LOCK TABLE trading.%I IN SHARE ROW EXCLUSIVE MODE', partition);
    EXECUTE format('DROP TABLE IF EXISTS trading.%I', partition || '_live');
    EXECUTE format('CREATE TABLE trading.%I (LIKE trading.candlesticks INCLUDING ALL)', partition || '_live');
    EXECUTE format('ALTER TABLE trading.%I ADD CONSTRAINT month CHECK (timestamp_ms >= %s AND timestamp_ms < %s)',
                   partition || '_live', lower_ms, upper_ms);
    EXECUTE format(
        'INSERT INTO trading.%I SELECT held.* FROM trading.%I AS held WHERE NOT EXISTS ('
        'SELECT FROM trading.candle_months AS known WHERE known.symbol = held.symbol '
        'AND known.timeframe = held.timeframe AND known.month = %L AND known.state = ''archived'') '
        'ORDER BY held.symbol, held.timeframe, held.timestamp_ms', partition || '_live', partition, first);
    GET DIAGNOSTICS rows = ROW_COUNT;
    RETURN rows;
END
$$;

-- Puts the copy in the partition's place, or nothing if it is empty; returns whether a partition is there now. It never
-- waits for a lock: while one waits for ACCESS EXCLUSIVE, everybody else waits behind it. Raises lock_not_available where
-- somebody reads or writes candlesticks at the moment; to be tried again.
CREATE FUNCTION trading.swap_month(month date) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first date := date_trunc('month', month)::date;
    partition text := 'candlesticks_' || to_char(first, 'YYYY_MM');
    lower_ms bigint := (extract(epoch FROM first::timestamp) * 1000)::bigint;
    upper_ms bigint := (extract(epoch FROM (first + interval '1 month')::timestamp) * 1000)::bigint;
    copy text := partition || '_live';
    index name;
    keep boolean;
BEGIN
    -- Who has made a table in this transaction holds it locked.
    IF (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND granted
        AND ((relation = to_regclass('trading.' || partition) AND mode = 'ShareRowExclusiveLock')
             OR (relation = to_regclass('trading.' || copy) AND mode = 'AccessExclusiveLock'))) < 2 THEN
        RAISE EXCEPTION 'trading.build_month(%) comes first, in the same transaction', first;
    END IF;
    -- The parent first, as everybody who reads or writes through it does.
    LOCK TABLE ONLY trading.candlesticks IN ACCESS EXCLUSIVE MODE NOWAIT;
    EXECUTE format('LOCK TABLE trading.%I IN ACCESS EXCLUSIVE MODE NOWAIT', partition);
    EXECUTE format('SELECT EXISTS (SELECT FROM trading.%I)', copy) INTO keep;
    EXECUTE format('DROP TABLE trading.%I', partition);
    IF keep THEN
        EXECUTE format('ALTER TABLE trading.%I RENAME TO %I', copy, partition);
        FOR index IN SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                     WHERE indrelid = format('trading.%I', partition)::regclass LOOP
            EXECUTE format('ALTER INDEX trading.%I RENAME TO %I', index, replace(index, copy, partition));
        END LOOP;
        EXECUTE format('ALTER TABLE trading.candlesticks ATTACH PARTITION trading.%I FOR VALUES FROM (%s) TO (%s)',
                       partition, lower_ms, upper_ms);
        EXECUTE format('ALTER TABLE trading.%I DROP CONSTRAINT month', partition);
    ELSE
        EXECUTE format('DROP TABLE trading.%I', copy);
    END IF;
    INSERT INTO trading.month_partitions AS known (month, swapped_at) VALUES (first, clock_timestamp())
        ON CONFLICT ON CONSTRAINT month_partitions_pkey
        DO UPDATE SET vacuumed_hash = NULL, vacuumed_at = NULL, swapped_at = excluded.swapped_at;
    RETURN keep;
END
$$;
