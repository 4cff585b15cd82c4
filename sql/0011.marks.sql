-- Fewer indexes on the marks, of which a minute's edge moves one for every series: each index cost it a third more.

-- What waits for either is found by one index.
DROP INDEX trading.landing_marks_to_project;
DROP INDEX trading.landing_marks_to_count;
CREATE INDEX landing_marks_pending ON trading.landing_marks (symbol, timeframe, day)
    WHERE projected < revision OR counted < revision;

-- What streamed lately is looked for every 30 s, in a table that is cut back every day: it can be read whole.
DROP INDEX trading.landing_marks_streamed_at;
