-- The outbox: an immutable, append-only log of events. Applications insert, the relay reads.
-- Runs as statecast_owner, inside one transaction.

-- Nothing in another schema can stand in for a function or operator that is meant here.
SET LOCAL search_path = pg_catalog, pg_temp;

GRANT USAGE ON SCHEMA statecast TO statecast_writer, statecast_relay;

-- A version 7 UUID (RFC 9562): 48 bits of milliseconds, then random bits; the version nibble goes from 4 to 7 by
-- setting two bits. The body is parsed now (RETURN, not a string), so no caller's search_path can change it.
CREATE FUNCTION statecast.uuid7() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN encode(
        set_bit(
            set_bit(
                overlay(
                    uuid_send(gen_random_uuid())
                    PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                    FROM 1 FOR 6),
                52, 1),
            53, 1),
        'hex')::uuid;

COMMENT ON FUNCTION statecast.uuid7() IS 'A new version 7 UUID: sorts by time of creation.';

-- Each name is an attribute that CloudEvents allows, is neither its own nor one that Statecast writes, and occurs once.
CREATE FUNCTION statecast.header_names_valid(headers json) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE WHEN json_typeof(headers) <> 'object' THEN true ELSE (
        SELECT count(*) = count(DISTINCT name) AND coalesce(bool_and(
            name COLLATE "C" ~ '^[a-z0-9]{1,20}$' AND name COLLATE "C" <> ALL (ARRAY[
                'id', 'source', 'specversion', 'type', 'datacontenttype', 'dataschema', 'subject', 'time',
                'data', 'database64',
                'partitionkey', 'sequence', 'aggregatetype', 'operation', 'schemaversion', 'entityversion',
                'correlationid', 'causationid', 'traceparent', 'tracestate'])), true)
        FROM json_object_keys(headers) AS name) END;

-- Values are what an AMQP header and a CloudEvents attribute can both carry: text without control characters,
-- numbers, booleans; null is left out of the event. (The object test is another constraint's.)
CREATE FUNCTION statecast.header_values_valid(headers json) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE WHEN json_typeof(headers) <> 'object' THEN true ELSE (
        SELECT coalesce(bool_and(CASE json_typeof(value)
            WHEN 'object' THEN false
            WHEN 'array' THEN false
            WHEN 'string' THEN (value #>> '{}') COLLATE "C" !~ '[\u0001-\u001F\u007F-\u009F]'
            ELSE true END), true)
        FROM json_each(headers)) END;

-- xid stands first: defaults are evaluated in column order, so the transaction has its id before its seq is
-- allocated. The relay's pruning depends on it.
CREATE TABLE statecast.outbox (
    xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    seq            bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1 INCREMENT 1 NO CYCLE),
    event_id       uuid        NOT NULL DEFAULT statecast.uuid7(),
    aggregate_type text        NOT NULL,
    aggregate_id   text        NOT NULL,
    event_type     text        NOT NULL,
    schema_version text        NOT NULL DEFAULT '1.0.0',
    entity_version bigint,
    payload        json,
    headers        json,
    correlation_id text,
    causation_id   text,
    traceparent    text,
    tracestate     text,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT outbox_pkey PRIMARY KEY (seq),

    -- The names are what an application's developer reads in the error.
    CONSTRAINT aggregate_type_is_1_to_64_letters_digits_underscore_hyphen
        CHECK (aggregate_type COLLATE "C" ~ '^[A-Za-z0-9_-]{1,64}$'),
    CONSTRAINT aggregate_id_is_1_to_200_bytes
        CHECK (octet_length(aggregate_id) BETWEEN 1 AND 200),
    CONSTRAINT aggregate_id_has_no_control_characters
        CHECK (aggregate_id COLLATE "C" !~ '[\u0001-\u001F\u007F-\u009F]'),
    CONSTRAINT event_type_is_1_to_128_letters_digits_underscore_dot_hyphen
        CHECK (event_type COLLATE "C" ~ '^[A-Za-z0-9_.-]{1,128}$'),
    CONSTRAINT schema_version_is_a_semantic_version
        CHECK (schema_version COLLATE "C" ~ ('^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)'
            '(-(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?'
            '([+][0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$')),
    CONSTRAINT schema_version_is_at_most_64_bytes
        CHECK (octet_length(schema_version) <= 64),
    CONSTRAINT payload_is_not_json_null_use_sql_null_for_a_deletion
        CHECK (json_typeof(payload) <> 'null'),
    CONSTRAINT headers_is_an_object
        CHECK (json_typeof(headers) = 'object'),
    CONSTRAINT headers_is_at_most_32_kib
        CHECK (octet_length(headers::text) <= 32768),
    CONSTRAINT headers_names_are_1_to_20_of_a_z_0_9_unique_not_reserved
        CHECK (statecast.header_names_valid(headers)),
    CONSTRAINT headers_values_are_scalars_without_control_characters
        CHECK (statecast.header_values_valid(headers)),
    CONSTRAINT correlation_id_is_1_to_255_bytes_without_control_characters
        CHECK (octet_length(correlation_id) BETWEEN 1 AND 255
               AND correlation_id COLLATE "C" !~ '[\u0001-\u001F\u007F-\u009F]'),
    CONSTRAINT causation_id_is_1_to_255_bytes_without_control_characters
        CHECK (octet_length(causation_id) BETWEEN 1 AND 255
               AND causation_id COLLATE "C" !~ '[\u0001-\u001F\u007F-\u009F]'),
    CONSTRAINT traceparent_is_1_to_255_bytes_without_control_characters
        CHECK (octet_length(traceparent) BETWEEN 1 AND 255
               AND traceparent COLLATE "C" !~ '[\u0001-\u001F\u007F-\u009F]'),
    CONSTRAINT tracestate_is_1_to_512_bytes_without_control_characters
        CHECK (octet_length(tracestate) BETWEEN 1 AND 512
               AND tracestate COLLATE "C" !~ '[\u0001-\u001F\u007F-\u009F]'),
    -- RFC 3339, which CloudEvents times are, knows no others.
    CONSTRAINT recorded_at_is_in_the_years_1_to_9999
        CHECK (recorded_at >= '0001-01-01 00:00:00+00' AND recorded_at < '10000-01-01 00:00:00+00')
) PARTITION BY RANGE (seq);

COMMENT ON TABLE statecast.outbox IS 'Events to publish. Insert only, in the transaction that changes the entity; see statecast.publish().';
COMMENT ON COLUMN statecast.outbox.payload IS 'The full state of the entity; SQL NULL says that it was deleted.';

-- The page's late branch: rows of a transaction that was still running when the last window closed.
CREATE INDEX outbox_xid_seq ON statecast.outbox (xid, seq);
-- One entity's history, for people and for repairs.
CREATE INDEX outbox_aggregate_seq ON statecast.outbox (aggregate_type, aggregate_id, seq);

-- What was dropped, so that the books still balance.
CREATE TABLE statecast.chunk (
    lo         bigint      PRIMARY KEY,
    hi         bigint      NOT NULL,
    rows       bigint      NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT chunk_bounds CHECK (lo < hi AND rows >= 0)
);
COMMENT ON TABLE statecast.chunk IS 'Chunks of the outbox that retention has dropped: lo <= seq < hi.';

-- The writers' API. SECURITY INVOKER, so that the table's own grants decide; the id is made first, so that the
-- caller needs no SELECT on the outbox.
CREATE FUNCTION statecast.publish(
    aggregate_type text,
    aggregate_id   text,
    event_type     text,
    payload        json,
    schema_version text    DEFAULT '1.0.0',
    entity_version bigint  DEFAULT NULL,
    headers        json    DEFAULT NULL,
    correlation_id text    DEFAULT NULL,
    causation_id   text    DEFAULT NULL,
    traceparent    text    DEFAULT NULL,
    tracestate     text    DEFAULT NULL,
    event_id       uuid    DEFAULT NULL,
    strict         boolean DEFAULT true,
    lock           boolean DEFAULT false
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY INVOKER
    SET search_path = pg_catalog, pg_temp
AS $publish$
#variable_conflict use_variable
DECLARE
    id uuid := coalesce(event_id, statecast.uuid7());
BEGIN
    IF strict AND payload IS NOT NULL THEN
        -- jsonb refuses what json lets pass and many readers cannot take.
        BEGIN
            PERFORM payload::jsonb;
        EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
            RAISE EXCEPTION 'statecast.publish: the payload of % % is not JSON that every reader can parse: %',
                aggregate_type, aggregate_id, SQLERRM
                USING ERRCODE = 'invalid_json_text',
                      HINT = 'Lone surrogates, \u0000 and numbers beyond numeric are refused; '
                             'strict => false publishes the payload as it is.';
        END;
    END IF;
    IF lock THEN
        -- For applications that do not lock the entity's own row: same key, one transaction at a time.
        PERFORM pg_advisory_xact_lock(hashtextextended(aggregate_type || ':' || aggregate_id, 5356));
    END IF;
    INSERT INTO statecast.outbox (event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
                                  payload, headers, correlation_id, causation_id, traceparent, tracestate)
    VALUES (id, aggregate_type, aggregate_id, event_type, coalesce(schema_version, '1.0.0'), entity_version,
            payload, headers, correlation_id, causation_id, traceparent, tracestate);
    RETURN id;
END
$publish$;

COMMENT ON FUNCTION statecast.publish(text, text, text, json, text, bigint, json, text, text, text, text, uuid, boolean, boolean)
    IS 'Writes one event to the outbox and returns its id. Call it in the transaction that changes the entity.';

-- After a failover, numbers may be issued again that were published before: the relay moves the sequence ahead.
-- SECURITY DEFINER, because the relay may not write to the sequence otherwise. Inserts go on meanwhile; the gap is
-- large enough that those between reading and setting cannot make the sequence go back.
CREATE FUNCTION statecast.advance_sequence(gap bigint) RETURNS bigint
    LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $advance$
BEGIN
    IF gap NOT BETWEEN 10000 AND 1000000000000000 THEN
        RAISE EXCEPTION 'statecast.advance_sequence: the gap must lie between 10000 and 10^15, not %', gap
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN setval('statecast.outbox_seq_seq', (SELECT last_value FROM statecast.outbox_seq_seq) + gap);
END
$advance$;

-- Functions are open to everybody unless told otherwise.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA statecast FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA statecast FROM PUBLIC;

-- Never xid, seq or recorded_at: order, windows and retention rest on them.
GRANT INSERT (event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
              payload, headers, correlation_id, causation_id, traceparent, tracestate)
    ON statecast.outbox TO statecast_writer;
-- Defaults and checks run with the writer's own rights.
GRANT EXECUTE ON FUNCTION statecast.uuid7(), statecast.header_names_valid(json), statecast.header_values_valid(json)
    TO statecast_writer;
GRANT EXECUTE ON FUNCTION
    statecast.publish(text, text, text, json, text, bigint, json, text, text, text, text, uuid, boolean, boolean)
    TO statecast_writer;

GRANT SELECT ON statecast.outbox, statecast.outbox_seq_seq, statecast.chunk TO statecast_relay;
GRANT EXECUTE ON FUNCTION statecast.advance_sequence(bigint) TO statecast_relay;
