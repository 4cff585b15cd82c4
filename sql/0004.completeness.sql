-- The proof of completeness: the coverage ledger, and the gaps with what became of each.

-- When a day of a series is to be read once more, UTC: eight days after its last candle closed. OKX was seen to revise
-- candles three to seven days after they closed.
CREATE FUNCTION trading.reconcile_at(timeframe text, day date) RETURNS timestamp
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN day + CASE timeframe WHEN '1w' THEN interval '15 days' WHEN '1mo' THEN interval '1 month 8 days'
                                ELSE interval '9 days' END;

-- One row per (series, UTC day) in which a candle opens that was wanted or is held. A candle counts as expected once it
-- is due, 60 s after its close by the exchange's clock, so that the numbers of a day under way are those of a minute ago.
CREATE TABLE trading.coverage (
    symbol       text        NOT NULL,
    timeframe    text        NOT NULL,
    day          date        NOT NULL,
    expected     integer     NOT NULL,
    present      integer     NOT NULL CHECK (present >= 0),
    absent       integer     NOT NULL CHECK (absent >= 0),
    quarantined  integer     NOT NULL CHECK (quarantined >= 0),
    missing      integer     NOT NULL CHECK (missing >= 0),
    corrected    integer     NOT NULL DEFAULT 0,
    read_at      timestamptz,
    verified_at  timestamptz,
    content_hash text,
    counted_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    judged_at    timestamptz,
    PRIMARY KEY (symbol, timeframe, day),
    CONSTRAINT coverage_adds_up CHECK (expected = present + absent + quarantined + missing)
) WITH (fillfactor = 80);

CREATE INDEX coverage_open ON trading.coverage (symbol, timeframe, day) WHERE content_hash IS NULL;
CREATE INDEX coverage_unfinished ON trading.coverage (symbol, timeframe, day) WHERE missing > 0 OR read_at IS NULL;
CREATE INDEX coverage_unjudged ON trading.coverage (symbol, day)
    WHERE content_hash IS NOT NULL AND (judged_at IS NULL OR judged_at < counted_at);
CREATE INDEX coverage_to_reconcile ON trading.coverage (symbol, timeframe, day)
    WHERE (read_at AT TIME ZONE 'UTC') < trading.reconcile_at(timeframe, day);

COMMENT ON TABLE trading.coverage IS 'What is expected of a series on a UTC day, and what became of it';
COMMENT ON COLUMN trading.coverage.expected IS 'Candles that open on the day, are wanted and due';
COMMENT ON COLUMN trading.coverage.present IS 'Expected candles that are held, in PostgreSQL or an archived month''s Parquet file';
COMMENT ON COLUMN trading.coverage.absent IS 'Expected candles that OKX does not serve, as candle_gaps proves';
COMMENT ON COLUMN trading.coverage.quarantined IS 'Expected candles that OKX serves with values no market can have';
COMMENT ON COLUMN trading.coverage.missing IS 'Expected candles of which nothing is known yet';
COMMENT ON COLUMN trading.coverage.corrected IS 'Candles of the day whose value was changed after it was confirmed';
COMMENT ON COLUMN trading.coverage.read_at IS 'When REST last answered for the whole day, by the exchange''s clock';
COMMENT ON COLUMN trading.coverage.verified_at IS 'When REST last served exactly what is held of the whole day, by the exchange''s clock';
COMMENT ON COLUMN trading.coverage.content_hash IS 'trading.content_hash of the day once it is closed; null while it is open';
COMMENT ON COLUMN trading.coverage.counted_at IS 'When its numbers or hash last changed, by the database''s clock';
COMMENT ON COLUMN trading.coverage.judged_at IS 'As of when the quality checks last judged the closed day, by the database''s clock';

-- What the ledger of a series was laid out for; where that changes, the series is counted anew.
CREATE TABLE trading.coverage_extents (
    symbol     text   NOT NULL,
    timeframe  text   NOT NULL,
    since_ms   bigint NOT NULL,
    until_ms   bigint,
    listed_ms  bigint,
    expires_ms bigint,
    laid_ms    bigint NOT NULL,
    PRIMARY KEY (symbol, timeframe)
) WITH (fillfactor = 50);

COMMENT ON TABLE trading.coverage_extents IS 'Subscription and listing that the ledger of a series was laid out for, and up to when';

-- A run of candles that were expected and not held. Unresolved ones (open and absent) of a series never overlap.
CREATE TABLE trading.candle_gaps (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    symbol       text        NOT NULL,
    timeframe    text        NOT NULL,
    first_ms     bigint      NOT NULL,
    last_ms      bigint      NOT NULL,
    candles      bigint      NOT NULL CHECK (candles > 0),
    status       text        NOT NULL CHECK (status IN ('open', 'repaired', 'absent')),
    reason       text        CHECK (reason IN ('not_served', 'before_first', 'beyond_depth')),
    evidence     jsonb       NOT NULL DEFAULT '[]',
    ask_again_ms bigint,
    detected_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolved_at  timestamptz,
    CHECK (first_ms <= last_ms),
    CHECK ((status = 'absent') = (reason IS NOT NULL)),
    CHECK ((status = 'open') = (resolved_at IS NULL))
);

CREATE UNIQUE INDEX candle_gaps_unresolved ON trading.candle_gaps (symbol, timeframe, first_ms) WHERE status <> 'repaired';
CREATE INDEX candle_gaps_to_ask ON trading.candle_gaps (ask_again_ms) WHERE ask_again_ms IS NOT NULL;

COMMENT ON TABLE trading.candle_gaps IS 'Run of expected candles that were not held, and what became of it';
COMMENT ON COLUMN trading.candle_gaps.first_ms IS 'Open time of its first candle';
COMMENT ON COLUMN trading.candle_gaps.last_ms IS 'Open time of its last candle';
COMMENT ON COLUMN trading.candle_gaps.evidence IS 'Answers of OKX that lack it: when, from which endpoint, and the candles served next to it';
COMMENT ON COLUMN trading.candle_gaps.ask_again_ms IS 'When OKX is to be asked again, by its clock; null if not for this';
