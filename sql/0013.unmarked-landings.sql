-- The edge of a minute, where a thousand series close at once: the marks of so many take longer than the candles. The
-- transaction that lands leaves one row of all of them here, and whoever landed makes the marks of it right after.

CREATE TABLE trading.unmarked_landings (
    symbols    text[] NOT NULL,
    timeframes text[] NOT NULL,
    days       date[] NOT NULL
);

CREATE VIEW trading.unmarked_days AS
SELECT landed.symbol, landed.timeframe, landed.day
FROM trading.unmarked_landings CROSS JOIN LATERAL unnest(symbols, timeframes, days) AS landed (symbol, timeframe, day);

-- Each landing asks whether anything is archived in its months, which the current one never is.
CREATE INDEX candle_months_archived ON trading.candle_months (month) WHERE state = 'archived';

COMMENT ON TABLE trading.unmarked_landings IS 'Landing of a stream of which the marks are yet to be made; empty but for moments';
COMMENT ON COLUMN trading.unmarked_landings.symbols IS 'Symbols of the series-days in which candles landed';
COMMENT ON COLUMN trading.unmarked_landings.timeframes IS 'Their timeframes, in the same order';
COMMENT ON COLUMN trading.unmarked_landings.days IS 'Their UTC days, in the same order';

COMMENT ON VIEW trading.unmarked_days IS 'Series-day in which candles landed of which the mark is yet to be made';
COMMENT ON COLUMN trading.unmarked_days.symbol IS 'Instrument';
COMMENT ON COLUMN trading.unmarked_days.timeframe IS 'Length of the candles';
COMMENT ON COLUMN trading.unmarked_days.day IS 'UTC day';

-- Whoever lands takes the notes away: the same as before, with one more table that a writer may delete from.
CREATE OR REPLACE FUNCTION trading.grant_roles() RETURNS text[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role text;
    bookkeeping regclass;
    granted text[] := '{}';
BEGIN
    REVOKE EXECUTE ON FUNCTION trading.ensure_month, trading.build_month, trading.swap_month, trading.grant_roles
        FROM PUBLIC;
    FOREACH role IN ARRAY ARRAY['okx_reader', 'okx_writer', 'okx_maintainer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
                IF role = 'okx_reader' THEN
                    -- In force where it logs in itself; a member's own login needs the same three lines.
                    ALTER ROLE okx_reader SET default_transaction_read_only = on;
                    ALTER ROLE okx_reader SET statement_timeout = '5min';
                    ALTER ROLE okx_reader SET idle_in_transaction_session_timeout = '5min';
                END IF;
            EXCEPTION
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'role % cannot be made by %; nothing is granted to it', role, current_user;
                    CONTINUE;
                WHEN duplicate_object OR unique_violation THEN
                    NULL;  -- somebody else has just made it
            END;
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA trading TO %I', role);
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA trading TO %I', role);
        -- Partitions, and tables of later migrations, are granted as they are made.
        EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA trading GRANT SELECT ON TABLES TO %I', role);
        IF role <> 'okx_reader' THEN
            EXECUTE format('GRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA trading TO %I', role);
            EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA trading GRANT INSERT, UPDATE ON TABLES TO %I', role);
            EXECUTE format('GRANT EXECUTE ON FUNCTION trading.ensure_month TO %I', role);
            FOR bookkeeping IN SELECT oid::regclass FROM pg_class WHERE relnamespace = 'trading'::regnamespace
                AND relname IN ('coverage', 'candle_gaps', 'stream_status', 'alerts', 'unmarked_landings') LOOP
                EXECUTE format('GRANT DELETE ON %s TO %I', bookkeeping, role);
            END LOOP;
        END IF;
        IF role = 'okx_maintainer' THEN
            GRANT DELETE ON ALL TABLES IN SCHEMA trading TO okx_maintainer;
            ALTER DEFAULT PRIVILEGES IN SCHEMA trading GRANT DELETE ON TABLES TO okx_maintainer;
            GRANT EXECUTE ON FUNCTION trading.build_month, trading.swap_month TO okx_maintainer;
            -- VACUUM can be granted since version 17; before that it is the owner's, and autovacuum's.
            IF current_setting('server_version_num')::int >= 170000 THEN
                EXECUTE 'GRANT MAINTAIN ON ALL TABLES IN SCHEMA trading TO okx_maintainer';
                EXECUTE 'ALTER DEFAULT PRIVILEGES IN SCHEMA trading GRANT MAINTAIN ON TABLES TO okx_maintainer';
            END IF;
        END IF;
        -- What a candle was before it was changed, and what OKX sent that cannot be, stays; as do the migrations' books.
        EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON trading.candlestick_revisions FROM %I', role);
        EXECUTE format('REVOKE UPDATE, DELETE ON trading.candlesticks_quarantine FROM %I', role);
        FOR bookkeeping IN SELECT oid::regclass FROM pg_class WHERE relnamespace = 'trading'::regnamespace
            AND relkind = 'r' AND relname ~ 'yoyo' LOOP
            EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %s FROM %I', bookkeeping, role);
        END LOOP;
        granted := granted || role;
    END LOOP;
    RETURN granted;
END
$$;

-- By DO: the migration library prints what a SELECT returns.
DO $$ BEGIN PERFORM trading.grant_roles(); END $$;
