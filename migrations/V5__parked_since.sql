-- How many events wait for a person, and for how long. Runs as statecast_owner, inside one transaction.

-- Nothing in another schema can stand in for a function or operator that is meant here.
SET LOCAL search_path = pg_catalog, pg_temp;

-- The oldest first: counted every few seconds.
CREATE INDEX parked_since ON statecast.parked (pipeline, since) WHERE state = 'parked';

UPDATE statecast.meta SET schema_minor = greatest(schema_minor, 3);
