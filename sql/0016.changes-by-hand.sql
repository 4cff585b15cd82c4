-- Changes that no landing made: a statement by hand leaves the same marks as a landing, so that the ledger, the Parquet
-- files and the checks follow it. Whatever triggers cannot see (a restored backup, a disabled trigger) the audit finds.

-- A statement by hand leaves a note, from which the marks are made: notes are only inserted, so nobody waits for a
-- transaction that somebody keeps open in a terminal. A day whose values changed is read from REST again.
ALTER TABLE trading.unmarked_landings
    ADD COLUMN origin text NOT NULL DEFAULT 'stream' CHECK (origin IN ('stream', 'rows', 'values'));
ALTER TABLE trading.landing_marks ADD COLUMN changed_at timestamptz;
CREATE INDEX landing_marks_changed ON trading.landing_marks (symbol, timeframe, day) WHERE changed_at IS NOT NULL;

COMMENT ON TABLE trading.unmarked_landings IS 'Landing of a stream or change by hand of which the marks are yet to be made; empty but for moments';
COMMENT ON COLUMN trading.unmarked_landings.origin IS 'stream: candles landed; rows: some were deleted, or came back, by hand; values: some were inserted or edited by hand';
COMMENT ON COLUMN trading.landing_marks.changed_at IS 'When values of the day were last changed by hand; null once REST was read for the day again';

CREATE FUNCTION trading.leave_marks(symbols text[], timeframes text[], days date[], origin text) RETURNS void
    LANGUAGE sql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO trading.unmarked_landings (symbols, timeframes, days, origin)
    SELECT $1, $2, $3, $4 WHERE cardinality($1) > 0
$$;

-- Marks every day of a month that the ledger, or a mark that is not counted yet, says holds rows.
CREATE FUNCTION trading.mark_month(month date) RETURNS void
    LANGUAGE sql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT trading.leave_marks(array_agg(symbol), array_agg(timeframe), array_agg(day), 'rows')
    FROM (
        SELECT known.symbol, known.timeframe, known.day FROM trading.coverage AS known
        WHERE known.day >= $1 AND known.day < $1 + interval '1 month' AND known.present > 0
        UNION
        SELECT mark.symbol, mark.timeframe, mark.day FROM trading.landing_marks AS mark
        WHERE mark.day >= $1 AND mark.day < $1 + interval '1 month'
        UNION
        SELECT landed.symbol, landed.timeframe, landed.day FROM trading.unmarked_days AS landed
        WHERE landed.day >= $1 AND landed.day < $1 + interval '1 month'
    ) AS held
$$;

-- A transaction that sets okx_pipeline.leaves_marks to 'on' leaves its own marks: landings do, archiving and restoring.
CREATE FUNCTION trading.mark_changed() RETURNS trigger
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    symbols text[];
    timeframes text[];
    days date[];
BEGIN
    -- Anybody may hang a trigger function on a temporary table of their own; this one serves the store's tables alone.
    IF TG_TABLE_SCHEMA <> 'trading' THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied: only changes of the store''s candles are marked';
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM trading.mark_month(to_date(substring(TG_TABLE_NAME FROM '[0-9]{4}_[0-9]{2}'), 'YYYY_MM'));
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(symbol), array_agg(timeframe), array_agg(day) INTO symbols, timeframes, days
        FROM (
            SELECT symbol, timeframe, date '1970-01-01' + (timestamp_ms / 86400000)::integer AS day FROM before
            UNION
            SELECT symbol, timeframe, date '1970-01-01' + (timestamp_ms / 86400000)::integer FROM changed
        ) AS touched;
    ELSE
        SELECT array_agg(symbol), array_agg(timeframe), array_agg(day) INTO symbols, timeframes, days
        FROM (
            SELECT DISTINCT symbol, timeframe, date '1970-01-01' + (timestamp_ms / 86400000)::integer AS day FROM changed
        ) AS touched;
    END IF;
    IF symbols IS NOT NULL THEN
        PERFORM trading.leave_marks(symbols, timeframes, days, CASE TG_OP WHEN 'DELETE' THEN 'rows' ELSE 'values' END);
    END IF;
    RETURN NULL;
END
$$;

-- A row inserted through the parent belongs to no one partition whose trigger would fire, and a transition table on the
-- parent makes COPY insert row by row. So the audit is asked to look at everything once more.
CREATE FUNCTION trading.ask_for_audit() RETURNS trigger
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_TABLE_SCHEMA <> 'trading' THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied: only changes of the store''s candles are marked';
    END IF;
    INSERT INTO trading.audit_requests DEFAULT VALUES;
    RETURN NULL;
END
$$;

-- Gives a month's table the triggers that its parent's do not replace: a parent's trigger does not fire for a statement
-- on a partition, and LIKE copies none. Safe to call again.
CREATE FUNCTION trading.watch_month(partition text) RETURNS void
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF partition !~ '^candlesticks_[0-9]{4}_[0-9]{2}(_live)?$' THEN
        RAISE EXCEPTION '% is no month of candles', partition;
    END IF;
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = format('trading.%I', partition)::regclass
               AND tgname = 'mark_truncated') THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE TRIGGER mark_inserted AFTER INSERT ON trading.%I REFERENCING NEW TABLE AS changed FOR EACH STATEMENT '
        'WHEN (current_setting(''okx_pipeline.leaves_marks'', true) IS DISTINCT FROM ''on'') '
        'EXECUTE FUNCTION trading.mark_changed()', partition);
    EXECUTE format(
        'CREATE TRIGGER mark_updated AFTER UPDATE ON trading.%I REFERENCING OLD TABLE AS before NEW TABLE AS changed '
        'FOR EACH STATEMENT WHEN (current_setting(''okx_pipeline.leaves_marks'', true) IS DISTINCT FROM ''on'') '
        'EXECUTE FUNCTION trading.mark_changed()', partition);
    EXECUTE format(
        'CREATE TRIGGER mark_deleted AFTER DELETE ON trading.%I REFERENCING OLD TABLE AS changed FOR EACH STATEMENT '
        'WHEN (current_setting(''okx_pipeline.leaves_marks'', true) IS DISTINCT FROM ''on'') '
        'EXECUTE FUNCTION trading.mark_changed()', partition);
    EXECUTE format(
        'CREATE TRIGGER mark_truncated AFTER TRUNCATE ON trading.%I FOR EACH STATEMENT '
        'EXECUTE FUNCTION trading.mark_changed()', partition);
END
$$;

-- The program names itself when it connects, so that an edge of the stream takes no statement more for this.
CREATE TRIGGER ask_for_audit AFTER INSERT ON trading.candlesticks FOR EACH STATEMENT
    WHEN (current_setting('application_name') <> 'okx-pipeline')
    EXECUTE FUNCTION trading.ask_for_audit();
CREATE TRIGGER mark_updated AFTER UPDATE ON trading.candlesticks
    REFERENCING OLD TABLE AS before NEW TABLE AS changed FOR EACH STATEMENT
    WHEN (current_setting('okx_pipeline.leaves_marks', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION trading.mark_changed();
CREATE TRIGGER mark_deleted AFTER DELETE ON trading.candlesticks
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT
    WHEN (current_setting('okx_pipeline.leaves_marks', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION trading.mark_changed();

-- DETACH, ATTACH and DROP of a partition fire nothing, so what is attached is compared with what was last seen.
ALTER TABLE trading.month_partitions ADD COLUMN attached oid;

COMMENT ON COLUMN trading.month_partitions.attached IS 'Table that was attached when last looked at; 0 if none was, null if nobody has looked';

-- Marks the days of every month whose partition is another than when last looked at, or is gone; returns how many months.
-- A partition that somebody made by hand gets its triggers.
CREATE FUNCTION trading.compare_partitions() RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    partition record;
    moved bigint := 0;
BEGIN
    FOR partition IN
        WITH now AS (
            SELECT to_date(right(relname, 7), 'YYYY_MM') AS month, inhrelid AS attached, relname,
                   EXISTS (SELECT FROM pg_trigger WHERE tgrelid = inhrelid AND tgname = 'mark_truncated') AS watched
            FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
            WHERE inhparent = 'trading.candlesticks'::regclass AND NOT inhdetachpending
              AND relname ~ '^candlesticks_[0-9]{4}_[0-9]{2}$'
        )
        SELECT month, coalesce(now.attached, 0) AS attached, now.relname, now.watched,
               known.month IS NULL OR known.attached IS NULL AS is_new
        FROM now FULL JOIN trading.month_partitions AS known USING (month)
        WHERE known.attached IS DISTINCT FROM coalesce(now.attached, 0) OR NOT now.watched
        ORDER BY month
    LOOP
        IF NOT partition.watched THEN
            PERFORM trading.watch_month(partition.relname);
        END IF;
        INSERT INTO trading.month_partitions AS known (month, attached) VALUES (partition.month, partition.attached)
            ON CONFLICT ON CONSTRAINT month_partitions_pkey DO UPDATE SET attached = excluded.attached
            WHERE known.attached IS DISTINCT FROM excluded.attached;
        IF FOUND AND NOT partition.is_new THEN
            PERFORM trading.mark_month(partition.month);
            moved := moved + 1;
        END IF;
    END LOOP;
    RETURN moved;
END
$$;

-- The same as before, with the triggers. Where no table was attached when last looked at, this one is noted as seen: it
-- brings nothing back. Where another was, that one is gone, and the comparison marks its days.
CREATE OR REPLACE FUNCTION trading.ensure_month(month date) RETURNS boolean
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
    PERFORM trading.watch_month(partition);
    EXECUTE format('ALTER TABLE trading.%I ADD CONSTRAINT month CHECK (timestamp_ms >= %s AND timestamp_ms < %s)',
                   partition, lower_ms, upper_ms);
    EXECUTE format('ALTER TABLE trading.candlesticks ATTACH PARTITION trading.%I FOR VALUES FROM (%s) TO (%s)',
                   partition, lower_ms, upper_ms);
    EXECUTE format('ALTER TABLE trading.%I DROP CONSTRAINT month', partition);
    INSERT INTO trading.month_partitions AS known (month, attached)
        VALUES (first, format('trading.%I', partition)::regclass)
        ON CONFLICT ON CONSTRAINT month_partitions_pkey DO UPDATE SET attached = excluded.attached
        WHERE known.attached = 0;
    RETURN true;
END
$$;

-- The same as before, with the triggers, made after the copy so that it leaves no marks.
CREATE OR REPLACE FUNCTION trading.build_month(month date) RETURNS bigint
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
    PERFORM trading.watch_month(partition || '_live');
    RETURN rows;
END
$$;

-- The same as before; the new table is noted as seen, as it holds what the old one held of live months.
CREATE OR REPLACE FUNCTION trading.swap_month(month date) RETURNS boolean
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
    INSERT INTO trading.month_partitions AS known (month, swapped_at, attached)
        VALUES (first, clock_timestamp(), coalesce(to_regclass('trading.' || partition)::oid, 0))
        ON CONFLICT ON CONSTRAINT month_partitions_pkey
        DO UPDATE SET vacuumed_hash = NULL, vacuumed_at = NULL, swapped_at = excluded.swapped_at,
                      attached = excluded.attached;
    RETURN keep;
END
$$;

-- The audit holds every series-day against its rows in turn, series by series. One row: how far it has come in its pass.
CREATE TABLE trading.audit (
    is_only   boolean     PRIMARY KEY DEFAULT true CHECK (is_only),
    began_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    is_asked  boolean     NOT NULL DEFAULT false,
    expected  bigint      NOT NULL DEFAULT 0,
    audited   bigint      NOT NULL DEFAULT 0,
    symbol    text        NOT NULL DEFAULT '',
    timeframe text        NOT NULL DEFAULT '',
    month     date,
    ended_at  timestamptz
);
INSERT INTO trading.audit DEFAULT VALUES;

COMMENT ON TABLE trading.audit IS 'The audit of the ledger against the rows, in passes over every month of every series';
COMMENT ON COLUMN trading.audit.is_only IS 'True: there is one row';
COMMENT ON COLUMN trading.audit.began_at IS 'When this pass began, by the database''s clock';
COMMENT ON COLUMN trading.audit.is_asked IS 'Whether a request began this pass, so that it goes on without waiting for its time';
COMMENT ON COLUMN trading.audit.expected IS 'Series-months there were when it began';
COMMENT ON COLUMN trading.audit.audited IS 'Series-months that this pass has audited';
COMMENT ON COLUMN trading.audit.symbol IS 'Instrument of the series-month audited last; empty where this pass has audited none';
COMMENT ON COLUMN trading.audit.timeframe IS 'Its length of candle';
COMMENT ON COLUMN trading.audit.month IS 'Its first day; null where this pass has audited none';
COMMENT ON COLUMN trading.audit.ended_at IS 'When the last whole pass ended; null before the first';

CREATE TABLE trading.audit_requests (
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE trading.audit_requests IS 'Request for a pass of the audit, as rows were inserted by hand; gone once such a pass begins';
COMMENT ON COLUMN trading.audit_requests.asked_at IS 'When, by the database''s clock';

-- Findings that somebody took note of. It holds while the day is what it was.
CREATE TABLE trading.accepted_findings (
    symbol       text        NOT NULL,
    timeframe    text        NOT NULL,
    day          date        NOT NULL,
    reason       text        NOT NULL CHECK (reason <> ''),
    content_hash text        NOT NULL,
    accepted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (symbol, timeframe, day)
);

COMMENT ON TABLE trading.accepted_findings IS 'Finding on a closed series-day that somebody took note of; it holds while coverage.content_hash is the same';
COMMENT ON COLUMN trading.accepted_findings.symbol IS 'Instrument';
COMMENT ON COLUMN trading.accepted_findings.timeframe IS 'Length of the candles';
COMMENT ON COLUMN trading.accepted_findings.day IS 'UTC day';
COMMENT ON COLUMN trading.accepted_findings.reason IS 'Why, in the words of whoever accepted it';
COMMENT ON COLUMN trading.accepted_findings.content_hash IS 'coverage.content_hash for which it holds';
COMMENT ON COLUMN trading.accepted_findings.accepted_at IS 'When, by the database''s clock';

-- What is wrong with a month's file, until it is written again or found sound.
ALTER TABLE trading.candle_months
    ADD COLUMN damage     text,
    ADD COLUMN damaged_at timestamptz,
    ADD CONSTRAINT candle_months_damage CHECK ((damage IS NULL) = (damaged_at IS NULL));
CREATE INDEX candle_months_damaged ON trading.candle_months (symbol, timeframe, month) WHERE damage IS NOT NULL;

COMMENT ON COLUMN trading.candle_months.damage IS 'What is wrong with its Parquet file; null where nothing is known to be';
COMMENT ON COLUMN trading.candle_months.damaged_at IS 'When that was found, by the database''s clock';

-- A day whose verdict is an error is repaired and checked again, some times.
ALTER TABLE trading.coverage ADD COLUMN repairs smallint NOT NULL DEFAULT 0;

CREATE INDEX coverage_repaired ON trading.coverage (symbol, day) WHERE repairs > 0;

COMMENT ON COLUMN trading.coverage.repairs IS 'Repairs tried since the checks last found no error on the day';

DO $$
DECLARE
    partition text;
BEGIN
    FOR partition IN SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                     WHERE inhparent = 'trading.candlesticks'::regclass LOOP
        PERFORM trading.watch_month(partition);
    END LOOP;
    PERFORM trading.compare_partitions();
END
$$;

-- The same as before, with the tables above and the wanted ranges among the books that a writer may delete from.
CREATE OR REPLACE FUNCTION trading.grant_roles() RETURNS text[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role text;
    bookkeeping regclass;
    granted text[] := '{}';
BEGIN
    REVOKE EXECUTE ON FUNCTION trading.ensure_month, trading.build_month, trading.swap_month, trading.grant_roles,
        trading.leave_marks, trading.mark_month, trading.watch_month, trading.compare_partitions
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
            EXECUTE format('GRANT EXECUTE ON FUNCTION trading.ensure_month, trading.leave_marks, '
                           'trading.compare_partitions TO %I', role);
            FOR bookkeeping IN SELECT oid::regclass FROM pg_class WHERE relnamespace = 'trading'::regnamespace
                AND relname IN ('coverage', 'candle_gaps', 'stream_status', 'alerts', 'unmarked_landings',
                                'accepted_findings', 'wanted_ranges', 'audit_requests') LOOP
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

DO $$ BEGIN PERFORM trading.grant_roles(); END $$;
