-- What is wanted beyond the subscriptions: a backfill makes its days wanted, so that the ledger expects them, shows what is
-- missing, and the sensor repairs and checks them like any other. The ledger has a row exactly for a series-day that is
-- wanted or holds candles.

CREATE TABLE trading.wanted_ranges (
    symbol    text        NOT NULL,
    timeframe text        NOT NULL,
    since_ms  bigint      NOT NULL,
    until_ms  bigint      NOT NULL,
    wanted_by text        NOT NULL CHECK (wanted_by IN ('backfill', 'person', 'subscription', 'migration')),
    wanted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (symbol, timeframe, since_ms),
    CHECK (since_ms < until_ms)
);

COMMENT ON TABLE trading.wanted_ranges IS 'Range of a series that a backfill or a person asked for beyond the subscriptions; those of a series never overlap or touch';
COMMENT ON COLUMN trading.wanted_ranges.symbol IS 'Instrument, as the exchange names it';
COMMENT ON COLUMN trading.wanted_ranges.timeframe IS 'Length of the candle';
COMMENT ON COLUMN trading.wanted_ranges.since_ms IS 'Candles that open from then on are wanted, Unix milliseconds UTC';
COMMENT ON COLUMN trading.wanted_ranges.until_ms IS 'Candles that open before are wanted, Unix milliseconds UTC';
COMMENT ON COLUMN trading.wanted_ranges.wanted_by IS 'What asked for it first: backfill (the command, or days run in Dagster); person (gaps --repair of days that nobody wanted); subscription (what an ended one had read or held); migration (what a store held before it knew ranges)';
COMMENT ON COLUMN trading.wanted_ranges.wanted_at IS 'When it was first asked for';

COMMENT ON COLUMN trading.subscriptions.until_ms IS 'Set by unsubscribing; what was read or held by then is wanted as a range from then on';

ALTER TABLE trading.coverage ADD COLUMN wanted boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN trading.coverage.wanted IS 'Whether a subscription or a wanted range wants candles of the day; of another one, what is held is expected';

CREATE INDEX coverage_unwanted ON trading.coverage (symbol, timeframe, day) WHERE NOT wanted;
-- Candles missing where they are not on their way: few, whatever the size of the history that is being fetched.
CREATE INDEX coverage_in_gaps ON trading.coverage (symbol, timeframe, day)
    WHERE missing > 0 AND (read_at IS NOT NULL OR content_hash IS NULL);

-- What a store has read or holds outside of its live subscriptions is wanted from now on, up to where a subscription that
-- ended did; days in a row are one range, and so are weeks and months in a row.
INSERT INTO trading.wanted_ranges (symbol, timeframe, since_ms, until_ms, wanted_by)
WITH days AS (
    SELECT symbol, timeframe, trading.ms(day::timestamp AT TIME ZONE 'UTC') AS start_ms,
           trading.ms((day + 1)::timestamp AT TIME ZONE 'UTC') AS end_ms,
           trading.ms((day + CASE timeframe WHEN '1w' THEN interval '7 days' WHEN '1mo' THEN interval '1 month'
                                            ELSE interval '1 day' END) AT TIME ZONE 'UTC') AS closes_ms
    FROM trading.coverage WHERE present > 0 OR read_at IS NOT NULL
), pieces AS (
    SELECT days.symbol, days.timeframe, greatest(days.start_ms, ended.since_ms) AS since_ms,
           least(days.closes_ms, ended.until_ms) AS until_ms
    FROM days
    LEFT JOIN trading.subscriptions AS live
        ON live.symbol = days.symbol AND live.timeframe = days.timeframe AND live.until_ms IS NULL
    LEFT JOIN trading.subscriptions AS ended
        ON ended.symbol = days.symbol AND ended.timeframe = days.timeframe
       AND ended.since_ms < days.end_ms AND ended.until_ms > greatest(days.start_ms, ended.since_ms)
    WHERE live.symbol IS NULL OR live.since_ms >= days.end_ms
), marked AS (
    SELECT pieces.*, since_ms IS DISTINCT FROM
               lag(until_ms) OVER (PARTITION BY symbol, timeframe ORDER BY since_ms) AS begins
    FROM pieces
), numbered AS (
    SELECT marked.*, count(*) FILTER (WHERE begins) OVER (PARTITION BY symbol, timeframe ORDER BY since_ms) AS run
    FROM marked
)
SELECT symbol, timeframe, min(since_ms), max(until_ms), 'migration' FROM numbered GROUP BY symbol, timeframe, run;

-- The ledger was laid out for subscriptions, and is for ranges from now on: [since, until, since, until, ...].
ALTER TABLE trading.coverage_extents
    ADD COLUMN wanted_ms bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN dropped_ms bigint[] NOT NULL DEFAULT '{}';
UPDATE trading.coverage_extents SET wanted_ms = ARRAY[since_ms, coalesce(until_ms, 9223372036854775807)];
ALTER TABLE trading.coverage_extents DROP COLUMN since_ms, DROP COLUMN until_ms;
COMMENT ON TABLE trading.coverage_extents IS 'What was wanted of a series, and its listing, when its days in the ledger were last laid out, and up to when';
COMMENT ON COLUMN trading.coverage_extents.wanted_ms IS 'Start and end of each range that was wanted, Unix milliseconds UTC; 9223372036854775807 stands for no end';
COMMENT ON COLUMN trading.coverage_extents.dropped_ms IS 'Start and end of each range that nobody wants any more and that was not counted since: it may be wanted again by then';

-- Days in no range and of no subscription that hold nothing.
DELETE FROM trading.coverage AS day
WHERE day.present = 0 AND day.read_at IS NULL AND NOT EXISTS (
    SELECT FROM trading.subscriptions AS known
    WHERE known.symbol = day.symbol AND known.timeframe = day.timeframe
      AND known.since_ms < trading.ms((day.day + 1)::timestamp AT TIME ZONE 'UTC')
      AND (known.until_ms IS NULL OR known.until_ms > trading.ms(day.day::timestamp AT TIME ZONE 'UTC'))
);
