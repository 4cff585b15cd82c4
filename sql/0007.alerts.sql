-- Incidents that somebody is told of, and what each sink was told.

-- One row per incident: a key has at most one that is open. One that is over before `announce_at` was nobody's business
-- and leaves no row.
CREATE TABLE trading.alerts (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    what         text        NOT NULL,
    key          text        NOT NULL,
    symbol       text,
    severity     text        NOT NULL CHECK (severity IN ('critical', 'warning')),
    text         text        NOT NULL,
    opened_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    announce_at  timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolved_at  timestamptz
);

CREATE UNIQUE INDEX alerts_open ON trading.alerts (key) WHERE resolved_at IS NULL;
CREATE INDEX alerts_resolved_at ON trading.alerts (resolved_at) WHERE resolved_at IS NOT NULL;

COMMENT ON TABLE trading.alerts IS 'Incident, open until resolved_at';
COMMENT ON COLUMN trading.alerts.what IS 'Kind of incident, as open_gaps';
COMMENT ON COLUMN trading.alerts.key IS 'Kind and what it is about, as open_gaps:BTC-USDT-SWAP';
COMMENT ON COLUMN trading.alerts.text IS 'What is wrong, as it was last seen';
COMMENT ON COLUMN trading.alerts.announce_at IS 'When it has lasted long enough to be told';
COMMENT ON COLUMN trading.alerts.last_seen_at IS 'When it was last found to be true';

-- One row per incident and sink that is to be told of it.
CREATE TABLE trading.alert_deliveries (
    alert            bigint      NOT NULL REFERENCES trading.alerts ON DELETE CASCADE,
    sink             text        NOT NULL,
    opened_sent_at   timestamptz,
    resolved_sent_at timestamptz,
    attempts         integer     NOT NULL DEFAULT 0,
    try_again_at     timestamptz NOT NULL DEFAULT '-infinity',
    problem          text,
    PRIMARY KEY (alert, sink),
    CHECK (opened_sent_at IS NOT NULL OR resolved_sent_at IS NULL)
);

CREATE INDEX alert_deliveries_waiting ON trading.alert_deliveries (sink) WHERE resolved_sent_at IS NULL;

COMMENT ON TABLE trading.alert_deliveries IS 'What a sink was told of an incident';
COMMENT ON COLUMN trading.alert_deliveries.attempts IS 'Failed ones since the last that did not fail';
COMMENT ON COLUMN trading.alert_deliveries.problem IS 'Why the last attempt failed; null if it did not';
