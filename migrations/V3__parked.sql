-- Events that are set aside, so that the cursor can pass them. Runs as statecast_owner, inside one transaction.

-- Nothing in another schema can stand in for a function or operator that is meant here.
SET LOCAL search_path = pg_catalog, pg_temp;

-- A copy of the outbox row, enough to publish it when retention has dropped the row itself. The payload's columns have no
-- checks of their own: the outbox has judged them, and a row that could not be set aside would hold up all others.
--
--   waiting    refused; its key is tried again              queued     behind another row of its key
--   parked     a person decides                             retry      a person wants it tried again
--   confirmed, discarded    final; deleted once the cursor has passed the row, since until then it is read again
CREATE TABLE statecast.parked (
    pipeline       text        NOT NULL,
    seq            bigint      NOT NULL,
    xid            xid8        NOT NULL,
    -- The relay's 64-bit hash of the partition key, as two's complement.
    key_hash       bigint      NOT NULL,

    event_id       uuid        NOT NULL,
    aggregate_type text        NOT NULL,
    aggregate_id   text        NOT NULL,
    event_type     text        NOT NULL,
    schema_version text        NOT NULL,
    entity_version bigint,
    payload        json,
    headers        json,
    correlation_id text,
    causation_id   text,
    traceparent    text,
    tracestate     text,
    recorded_at    timestamptz NOT NULL,

    state          text        NOT NULL,
    reason         text,
    detail         text,
    routing_key    text,
    attempts       integer     NOT NULL DEFAULT 0,
    since          timestamptz NOT NULL DEFAULT clock_timestamp(),
    parked_at      timestamptz,
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),

    request        text,
    requested_by   text,
    requested_at   timestamptz,

    -- The cursor's settled prefix covers the row: no page lists it any more.
    passed         boolean     NOT NULL DEFAULT false,

    CONSTRAINT parked_pkey PRIMARY KEY (pipeline, seq),
    CONSTRAINT state_is_known
        CHECK (state IN ('waiting', 'parked', 'queued', 'retry', 'confirmed', 'discarded')),
    CONSTRAINT reason_is_known
        CHECK (reason IN ('nack', 'unroutable', 'too_large', 'invalid')),
    CONSTRAINT what_was_refused_has_a_reason
        CHECK (state NOT IN ('waiting', 'parked') OR reason IS NOT NULL),
    CONSTRAINT detail_is_at_most_500_characters
        CHECK (char_length(detail) <= 500),
    CONSTRAINT request_is_known
        CHECK (request IN ('retry', 'discard'))
) WITH (
    -- Rows come, change and go: what is dead must not pile up in front of the rows that a recall looks for.
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_analyze_threshold = 1000);
COMMENT ON TABLE statecast.parked IS 'Events that are set aside. Written by the relay; people use "statecast parked".';
COMMENT ON COLUMN statecast.parked.since IS 'When the row came into its state.';
COMMENT ON COLUMN statecast.parked.detail IS 'The last answer of the broker, or the limit with both numbers.';

-- The first rows of a key, to publish them; and the first row of every key, one probe each, when a leader starts.
CREATE INDEX parked_key_seq ON statecast.parked (pipeline, key_hash, seq);
-- Asked once a second, and nearly always empty.
CREATE INDEX parked_requests ON statecast.parked (pipeline, seq) WHERE request IS NOT NULL;
-- What the cursor has still to pass: a few rows, whatever the size of the table.
CREATE INDEX parked_unpassed ON statecast.parked (pipeline, seq) WHERE NOT passed;

UPDATE statecast.meta SET schema_minor = 1;

REVOKE ALL ON statecast.parked FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON statecast.parked TO statecast_relay;
