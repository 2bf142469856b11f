-- The lease. Runs as statecast_owner, inside one transaction.

-- Nothing in another schema can stand in for a function or operator that is meant here.
SET LOCAL search_path = pg_catalog, pg_temp;

-- The number of a backend is given again; with the time at which it started it is one and no other. In the order of
-- pids.
ALTER TABLE statecast.cursor ADD COLUMN backends_started timestamptz[] NOT NULL DEFAULT '{}';

COMMENT ON COLUMN statecast.cursor.holder IS 'Who leads: host and process.';
COMMENT ON COLUMN statecast.cursor.pids IS 'Backends of the leader, the keeper first. Whoever takes over from a leader that does not answer ends them.';
COMMENT ON COLUMN statecast.cursor.backends_started IS 'When each of pids started.';
COMMENT ON COLUMN statecast.cursor.lease_until IS 'Renewed by the leader each second. Past, and seen unchanged for four seconds: a standby may take over. NULL: released.';

UPDATE statecast.meta SET schema_minor = greatest(schema_minor, 2);
