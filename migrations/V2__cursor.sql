-- What Statecast keeps for itself. Runs as statecast_owner, inside one transaction.

-- Nothing in another schema can stand in for a function or operator that is meant here.
SET LOCAL search_path = pg_catalog, pg_temp;

-- One row per pipeline, written many times a second: free room in the page and no further index keep every write a
-- HOT update, and vacuum comes early so that the dead versions never become many.
CREATE TABLE statecast.cursor (
    pipeline           text        PRIMARY KEY
        CONSTRAINT pipeline_is_1_to_48_of_a_z_0_9_hyphen CHECK (pipeline COLLATE "C" ~ '^[a-z0-9-]{1,48}$'),
    system_identifier  bigint      NOT NULL,
    timeline           integer     NOT NULL,
    epoch              bigint      NOT NULL DEFAULT 0,
    holder             text,
    pids               integer[]   NOT NULL DEFAULT '{}',
    lease_until        timestamptz,
    snapshot           pg_snapshot NOT NULL,
    prune_seq          bigint      NOT NULL DEFAULT 0,
    floor_seq          bigint      NOT NULL DEFAULT 0,
    cand_xid           xid8,
    cand_seq           bigint,
    max_seq            bigint      NOT NULL DEFAULT 0,
    window_snapshot    pg_snapshot,
    window_prune_seq   bigint,
    window_ceil        bigint,
    window_seq         bigint,
    lanes              integer     NOT NULL DEFAULT 1,
    base               bigint      NOT NULL DEFAULT 0,
    confirmed          bigint      NOT NULL DEFAULT 0,
    parked             bigint      NOT NULL DEFAULT 0,
    discarded          bigint      NOT NULL DEFAULT 0,
    updated_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT window_is_whole_or_absent
        CHECK (num_nulls(window_snapshot, window_prune_seq, window_ceil, window_seq) IN (0, 4))
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000);
COMMENT ON TABLE statecast.cursor IS 'Where each pipeline stands. Written by the relay only.';

CREATE TABLE statecast.audit (
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor    text        NOT NULL,
    act      text        NOT NULL,
    selector text,
    reason   text
);
COMMENT ON TABLE statecast.audit IS 'What people did to events and cursors.';

CREATE TABLE statecast.meta (
    schema_major integer NOT NULL,
    schema_minor integer NOT NULL
);
CREATE UNIQUE INDEX meta_has_one_row ON statecast.meta ((true));
INSERT INTO statecast.meta (schema_major, schema_minor) VALUES (1, 0);
COMMENT ON TABLE statecast.meta IS 'Version of this schema: a relay runs on any schema of its major version.';

REVOKE ALL ON ALL TABLES IN SCHEMA statecast FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON statecast.cursor TO statecast_relay;
GRANT SELECT, INSERT ON statecast.audit TO statecast_relay;
GRANT SELECT ON statecast.meta TO statecast_relay;
