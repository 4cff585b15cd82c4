-- The streaming sidecar: how far each series has come, and whether it lives.

-- OKX is the log, and this is the offset in it: every candle of the series that opens before `through_ms` was landed by
-- the sidecar or given up to gap repair. Written after the landing; a crash in between costs a look, never a candle.
CREATE TABLE trading.stream_offsets (
    symbol     text        NOT NULL,
    timeframe  text        NOT NULL,
    through_ms bigint      NOT NULL,
    moved_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (symbol, timeframe)
) WITH (fillfactor = 50);

COMMENT ON TABLE trading.stream_offsets IS 'How far the sidecar has come in each series';

CREATE TABLE trading.stream_status (
    sidecar      text        PRIMARY KEY,
    state        text        NOT NULL CHECK (state IN ('standby', 'starting', 'streaming', 'stopped')),
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    exchange_ms  bigint,
    counters     jsonb       NOT NULL DEFAULT '{}',
    refused      jsonb       NOT NULL DEFAULT '{}',
    maintenance  jsonb       NOT NULL DEFAULT '[]'
) WITH (fillfactor = 50);

COMMENT ON TABLE trading.stream_status IS 'A sidecar (host and process), its heartbeat, counters and refused series';
COMMENT ON COLUMN trading.stream_status.exchange_ms IS 'The exchange''s time at the heartbeat';

COMMENT ON COLUMN trading.stream_status.maintenance IS 'Maintenance that OKX has announced or is at';
