-- What every column means, where the migration that made it left it unsaid. docs/data-dictionary.md is made from these.

COMMENT ON COLUMN trading.alerts.symbol IS 'Instrument it is about; null if about none';
COMMENT ON COLUMN trading.alerts.severity IS 'critical or warning';
COMMENT ON COLUMN trading.alerts.opened_at IS 'When it was first found';
COMMENT ON COLUMN trading.alerts.resolved_at IS 'When it was found to be over; null while it is not';

COMMENT ON COLUMN trading.alert_deliveries.alert IS 'Incident, by alerts.id';
COMMENT ON COLUMN trading.alert_deliveries.sink IS 'webhook or telegram';
COMMENT ON COLUMN trading.alert_deliveries.opened_sent_at IS 'When the sink took that it is open';
COMMENT ON COLUMN trading.alert_deliveries.resolved_sent_at IS 'When the sink took that it is resolved';
COMMENT ON COLUMN trading.alert_deliveries.try_again_at IS 'Not before then, after a failure';

COMMENT ON COLUMN trading.candle_gaps.candles IS 'How many candles it is long';
COMMENT ON COLUMN trading.candle_gaps.status IS 'open; repaired: the candles are held; absent: OKX does not have them, for the reason given';
COMMENT ON COLUMN trading.candle_gaps.reason IS 'Of an absent one: not_served (OKX has those around it), before_first (the series begins later) or beyond_depth (OKX has days of that time, and nothing as short)';
COMMENT ON COLUMN trading.candle_gaps.detected_at IS 'When it was first found, by the database''s clock';
COMMENT ON COLUMN trading.candle_gaps.resolved_at IS 'When it was repaired or proven absent, by the database''s clock; null while it is open';

COMMENT ON COLUMN trading.candle_months.month IS 'Its first day';
COMMENT ON COLUMN trading.candle_months.state IS 'live: rows in PostgreSQL and Parquet; archived: in Parquet alone';
COMMENT ON COLUMN trading.candle_months.rows IS 'Rows of the Parquet file';
COMMENT ON COLUMN trading.candle_months.projected_at IS 'When the file was last written, by the database''s clock';

COMMENT ON COLUMN trading.candlestick_revisions.timestamp_ms IS 'Open time of the candle, Unix milliseconds UTC';
COMMENT ON COLUMN trading.candlestick_revisions.open_price IS 'First price of the period, as it was';
COMMENT ON COLUMN trading.candlestick_revisions.high_price IS 'Highest price of the period, as it was';
COMMENT ON COLUMN trading.candlestick_revisions.low_price IS 'Lowest price of the period, as it was';
COMMENT ON COLUMN trading.candlestick_revisions.close_price IS 'Last price of the period, as it was';
COMMENT ON COLUMN trading.candlestick_revisions.volume IS 'Volume as it was, in the unit of candlesticks.volume';
COMMENT ON COLUMN trading.candlestick_revisions.volume_currency IS 'Volume as it was, in the unit of candlesticks.volume_currency';
COMMENT ON COLUMN trading.candlestick_revisions.volume_quote IS 'Volume in quote coin, as it was';

COMMENT ON COLUMN trading.candlesticks_quarantine.source IS 'Where it came from: websocket or rest';
COMMENT ON COLUMN trading.candlesticks_quarantine.received_at IS 'When it first came, by the database''s clock';

COMMENT ON COLUMN trading.coverage_extents.since_ms IS 'As subscriptions.since_ms';
COMMENT ON COLUMN trading.coverage_extents.until_ms IS 'As subscriptions.until_ms';
COMMENT ON COLUMN trading.coverage_extents.listed_ms IS 'As instruments.listed_ms';
COMMENT ON COLUMN trading.coverage_extents.expires_ms IS 'As instruments.expires_ms';
COMMENT ON COLUMN trading.coverage_extents.laid_ms IS 'Up to when the ledger has days';

COMMENT ON VIEW trading.current_instruments IS 'The version of each instrument''s rules that is in force';
COMMENT ON COLUMN trading.instruments.valid_from IS 'When OKX was first seen to list these rules, by the database''s clock';
COMMENT ON COLUMN trading.instruments.instrument_type IS 'SPOT, SWAP or FUTURES';
COMMENT ON COLUMN trading.instruments.family IS 'Family of a derivative, as BTC-USDT';
COMMENT ON COLUMN trading.instruments.base_currency IS 'Base coin, of spot';
COMMENT ON COLUMN trading.instruments.quote_currency IS 'Quote coin, of spot';
COMMENT ON COLUMN trading.instruments.settle_currency IS 'Coin that a derivative settles in';
COMMENT ON COLUMN trading.instruments.contract_type IS 'linear or inverse, of a derivative';
COMMENT ON COLUMN trading.instruments.contract_value IS 'What one contract stands for, in contract_currency';
COMMENT ON COLUMN trading.instruments.contract_multiplier IS 'Multiplier of the contract''s value';
COMMENT ON COLUMN trading.instruments.contract_currency IS 'Coin of the contract''s value';
COMMENT ON COLUMN trading.instruments.tick_size IS 'Least step of a price';
COMMENT ON COLUMN trading.instruments.lot_size IS 'Least step of an order''s size';
COMMENT ON COLUMN trading.instruments.minimum_size IS 'Least size of an order';
COMMENT ON COLUMN trading.instruments.listed_ms IS 'When OKX listed it, Unix milliseconds UTC; its first candle may be weeks later';
COMMENT ON COLUMN trading.instruments.expires_ms IS 'When it expires, as OKX announces; null for most';

COMMENT ON COLUMN trading.landing_marks.revision IS 'Grows with every landing that changed something of the day';
COMMENT ON COLUMN trading.landing_marks.landed_at IS 'When something last landed';
COMMENT ON COLUMN trading.landing_marks.first_streamed_at IS 'When something of the WebSocket first landed';

COMMENT ON COLUMN trading.month_partitions.month IS 'Its first day';
COMMENT ON COLUMN trading.month_partitions.vacuumed_at IS 'When it was last vacuumed for good';

COMMENT ON COLUMN trading.quality_results.check_name IS 'Name of the check, as in Dagster';

COMMENT ON COLUMN trading.request_slots.endpoint IS 'REST endpoint of OKX';
COMMENT ON COLUMN trading.request_slots.slot IS 'Number of the slot';
COMMENT ON COLUMN trading.request_slots.free_at IS 'When its next request may be sent';
COMMENT ON COLUMN trading.request_slots.claimed_until IS 'How long whoever sends a request holds it at most';
COMMENT ON COLUMN trading.request_slots.rested_at IS 'When it was last sent to rest, as OKX said that it is asked too often';

COMMENT ON TABLE trading.store_facts IS 'Facts about the store itself';
COMMENT ON COLUMN trading.store_facts.name IS 'origin (market, demo or replay), sidecar_asked_for_at, daemon_seen_at';
COMMENT ON COLUMN trading.store_facts.value IS 'The fact, as text';

COMMENT ON COLUMN trading.store_sizes.day IS 'UTC day';
COMMENT ON COLUMN trading.store_sizes.dagster_bytes IS 'Tables and indexes of Dagster''s own storage';
COMMENT ON COLUMN trading.store_sizes.database_bytes IS 'The whole database';
COMMENT ON COLUMN trading.store_sizes.data_docs_bytes IS 'Pages and results of the checks, under OKX_HOME/quality';
COMMENT ON COLUMN trading.store_sizes.logs_bytes IS 'Logs, under OKX_HOME/logs';

COMMENT ON COLUMN trading.stream_offsets.through_ms IS 'Every candle that opens before it was landed, or given up to gap repair';
COMMENT ON COLUMN trading.stream_offsets.moved_at IS 'When it last grew';

COMMENT ON COLUMN trading.stream_status.sidecar IS 'Host and process id';
COMMENT ON COLUMN trading.stream_status.state IS 'starting, streaming or stopped';
COMMENT ON COLUMN trading.stream_status.started_at IS 'When it first beat';
COMMENT ON COLUMN trading.stream_status.heartbeat_at IS 'When it last beat; it does every 2 s';
COMMENT ON COLUMN trading.stream_status.counters IS 'What it has counted since it started';
COMMENT ON COLUMN trading.stream_status.refused IS 'Series that OKX refuses to stream, and why';

COMMENT ON COLUMN trading.subscriptions.since_ms IS 'Candles that open from then on are wanted, Unix milliseconds UTC';
COMMENT ON COLUMN trading.subscriptions.subscribed_at IS 'When it was first subscribed';

COMMENT ON FUNCTION trading.ms IS 'Unix milliseconds of a moment, for conditions on timestamp_ms that read only the months they need';
COMMENT ON FUNCTION trading.content_hash IS 'SHA-256 of what a series holds in [from_ms, until_ms): its rows in key order, as canonical text';
COMMENT ON FUNCTION trading.grant_roles IS 'Grants okx_reader, okx_writer and okx_maintainer what is theirs; for the owner of the schema';

-- What is called the same means the same, and the views show columns of their tables.
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT class.relname, attribute.attname, coalesce(
            col_description(shown.oid, (SELECT attnum FROM pg_attribute WHERE attrelid = shown.oid
                AND attname IN (attribute.attname, attribute.attname || '_price'))),
            CASE attribute.attname
                WHEN 'id' THEN 'Number of the row'
                WHEN 'symbol' THEN 'Instrument, as the exchange names it'
                WHEN 'timeframe' THEN 'Length of the candle'
                WHEN 'day' THEN 'UTC day'
                WHEN 'open_time' THEN 'Open time, as a moment'
            END) AS meaning
        FROM pg_class AS class
        JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid AND attribute.attnum > 0
        LEFT JOIN pg_class AS shown ON shown.oid = CASE class.relname
            WHEN 'candles' THEN 'trading.candlesticks'::regclass
            WHEN 'current_instruments' THEN 'trading.instruments'::regclass
        END
        WHERE class.relnamespace = 'trading'::regnamespace AND class.relkind IN ('r', 'p', 'v')
          AND NOT class.relispartition AND NOT attribute.attisdropped AND class.relname !~ 'yoyo'
          AND col_description(class.oid, attribute.attnum) IS NULL
    LOOP
        IF found.meaning IS NOT NULL THEN
            EXECUTE format('COMMENT ON COLUMN trading.%I.%I IS %L', found.relname, found.attname, found.meaning);
        END IF;
    END LOOP;
END
$$;
