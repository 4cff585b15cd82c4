-- What the checks say of the days held: the latest verdict of each check on each series-day.

CREATE TABLE trading.quality_results (
    symbol       text        NOT NULL,
    timeframe    text        NOT NULL,
    day          date        NOT NULL,
    check_name   text        NOT NULL,
    store        text        NOT NULL CHECK (store IN ('postgres', 'parquet')),
    passed       boolean     NOT NULL,
    severity     text        CHECK (severity IN ('critical', 'warning', 'info')),
    failed       text[]      NOT NULL DEFAULT '{}',
    observed     jsonb       NOT NULL DEFAULT '{}',
    rows         integer     NOT NULL CHECK (rows >= 0),
    validated_at timestamptz NOT NULL,
    docs_page    text,
    PRIMARY KEY (symbol, timeframe, day, check_name, store),
    CONSTRAINT quality_results_severity CHECK ((severity IS NULL) = (failed = '{}')),
    CONSTRAINT quality_results_passed CHECK (passed = (severity IS NULL OR severity = 'info'))
) WITH (fillfactor = 80);

CREATE INDEX quality_results_day ON trading.quality_results (day);
CREATE INDEX quality_results_failed ON trading.quality_results (severity, day) WHERE NOT passed;
CREATE INDEX quality_results_validated_at ON trading.quality_results (validated_at);

COMMENT ON TABLE trading.quality_results IS 'Latest verdict of a check on a series-day, of the rows in PostgreSQL or in Parquet';
COMMENT ON COLUMN trading.quality_results.store IS 'Whose rows were judged; those of an archived month are in Parquet alone, whichever was asked for';
COMMENT ON COLUMN trading.quality_results.passed IS 'Whether nothing but infos failed';
COMMENT ON COLUMN trading.quality_results.severity IS 'The worst that failed; null if nothing did';
COMMENT ON COLUMN trading.quality_results.failed IS 'Expectations that failed, by name';
COMMENT ON COLUMN trading.quality_results.observed IS 'Of each failed expectation how many rows, and the first of them; what was not judged and why';
COMMENT ON COLUMN trading.quality_results.rows IS 'Candles of the day that were judged';
COMMENT ON COLUMN trading.quality_results.validated_at IS 'When they were read, by the database''s clock';
COMMENT ON COLUMN trading.quality_results.docs_page IS 'Path of its page below the Data Docs, with the check as its fragment; null once it is pruned';
