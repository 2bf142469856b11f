//! The schema: its checks, the write API, the roles.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use statecast::store::preflight::preflight;
use statecast::store::schema::require_schema;

use crate::pg::{installed, login, number, open, refused};

pub(crate) async fn every_check_refuses_by_name(url: &str) {
    let url = installed(url, "it_checks", 1000).await;
    let session = open(&url).await;
    let headers = "headers_names_are_1_to_20_of_a_z_0_9_unique_not_reserved";
    let values = "headers_values_are_scalars_without_control_characters";
    let cases = [
        ("aggregate_type", "'a b'", "aggregate_type_is_1_to_64_letters_digits_underscore_hyphen"),
        ("aggregate_type", "''", "aggregate_type_is_1_to_64_letters_digits_underscore_hyphen"),
        ("aggregate_type", "'a:b'", "aggregate_type_is_1_to_64_letters_digits_underscore_hyphen"),
        ("aggregate_type", "'ä'", "aggregate_type_is_1_to_64_letters_digits_underscore_hyphen"),
        ("aggregate_type", "repeat('x', 65)", "aggregate_type_is_1_to_64_letters_digits_underscore_hyphen"),
        ("aggregate_id", "''", "aggregate_id_is_1_to_200_bytes"),
        ("aggregate_id", "repeat('ä', 101)", "aggregate_id_is_1_to_200_bytes"),
        ("aggregate_id", "E'a\\nb'", "aggregate_id_has_no_control_characters"),
        ("aggregate_id", "U&'a\\0085b'", "aggregate_id_has_no_control_characters"),
        ("event_type", "'a b'", "event_type_is_1_to_128_letters_digits_underscore_dot_hyphen"),
        ("event_type", "E'a\\n'", "event_type_is_1_to_128_letters_digits_underscore_dot_hyphen"),
        ("schema_version", "'1'", "schema_version_is_a_semantic_version"),
        ("schema_version", "'01.0.0'", "schema_version_is_a_semantic_version"),
        ("schema_version", "'1.0.0-' || repeat('x', 60)", "schema_version_is_at_most_64_bytes"),
        ("payload", "'null'", "payload_is_not_json_null_use_sql_null_for_a_deletion"),
        ("headers", "'[]'", "headers_is_an_object"),
        ("headers", "'null'", "headers_is_an_object"),
        ("headers", "json_build_object('x', repeat('x', 32768))", "headers_is_at_most_32_kib"),
        ("headers", "'{\"Upper\": 1}'", headers),
        ("headers", "'{\"\": 1}'", headers),
        ("headers", "'{\"a_b\": 1}'", headers),
        ("headers", "json_build_object(repeat('x', 21), 1)", headers),
        ("headers", "'{\"a\": 1, \"a\": 2}'", headers),
        ("headers", "'{\"a\": {}}'", values),
        ("headers", "'{\"a\": [1]}'", values),
        ("headers", "'{\"a\": \"x\\u000ay\"}'", values),
        ("correlation_id", "''", "correlation_id_is_1_to_255_bytes_without_control_characters"),
        ("correlation_id", "repeat('x', 256)", "correlation_id_is_1_to_255_bytes_without_control_characters"),
        ("causation_id", "E'\\t'", "causation_id_is_1_to_255_bytes_without_control_characters"),
        ("traceparent", "repeat('x', 256)", "traceparent_is_1_to_255_bytes_without_control_characters"),
        ("tracestate", "repeat('x', 513)", "tracestate_is_1_to_512_bytes_without_control_characters"),
        ("event_type", "repeat('x', 129)", "event_type_is_1_to_128_letters_digits_underscore_dot_hyphen"),
        ("payload", "' null '", "payload_is_not_json_null_use_sql_null_for_a_deletion"),
        ("recorded_at", "'infinity'", "recorded_at_is_in_the_years_1_to_9999"),
        ("recorded_at", "'-infinity'", "recorded_at_is_in_the_years_1_to_9999"),
        ("recorded_at", "'10000-01-01 00:00:00+00'", "recorded_at_is_in_the_years_1_to_9999"),
        (
            "recorded_at",
            "'0001-01-01 00:00:00+00'::timestamptz - interval '1 us'",
            "recorded_at_is_in_the_years_1_to_9999",
        ),
    ];
    let insert = |column: &str, value: &str| {
        let mut columns =
            vec![("aggregate_type", "'order'"), ("aggregate_id", "'1'"), ("event_type", "'order.created'")];
        columns.retain(|(name, _)| *name != column);
        columns.push((column, value));
        let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        format!("INSERT INTO statecast.outbox ({}) VALUES ({})", names.join(", "), values.join(", "))
    };
    for (column, value, constraint) in cases {
        let (code, found, _) = refused(&session, &insert(column, value)).await;
        assert_eq!((code.as_str(), found.as_str()), ("23514", constraint), "{column} = {value}");
    }
    // What is of no type at all: a standard SQLSTATE, and nothing is written.
    for (column, value, expected) in [
        ("aggregate_type", "NULL", "23502"),
        ("aggregate_id", "NULL", "23502"),
        ("event_type", "NULL", "23502"),
        ("schema_version", "NULL", "23502"),
        ("event_id", "NULL", "23502"),
        ("event_id", "'not-a-uuid'", "22P02"),
        ("entity_version", "'one'", "22P02"),
        ("entity_version", "9223372036854775808", "22003"),
        ("payload", "'{'", "22P02"),
        ("payload", "'{\"a\": 01}'", "22P02"),
        ("payload", "''", "22P02"),
        ("headers", "'{\"a\": \"\\ud800\"}'", "22P02"),
        ("headers", "'{\"a\": \"\\u0000\"}'", "22P05"),
        ("seq", "5", "428C9"),
    ] {
        assert_eq!(refused(&session, &insert(column, value)).await.0, expected, "{column} = {value}");
    }
    // publish() refuses the same by the same names.
    for (arguments, constraint) in [
        ("'a b', '1', 'x', '{}'", "aggregate_type_is_1_to_64_letters_digits_underscore_hyphen"),
        ("'order', '', 'x', '{}'", "aggregate_id_is_1_to_200_bytes"),
        ("'order', '1', 'x y', '{}'", "event_type_is_1_to_128_letters_digits_underscore_dot_hyphen"),
        ("'order', '1', 'x', '{}', 'one'", "schema_version_is_a_semantic_version"),
        ("'order', '1', 'x', '{}', headers => '{\"id\": 1}'", headers),
        ("'order', '1', 'x', '{}', headers => '{\"a\": []}'", values),
    ] {
        let (code, found, _) = refused(&session, &format!("SELECT statecast.publish({arguments})")).await;
        assert_eq!((code.as_str(), found.as_str()), ("23514", constraint), "{arguments}");
    }
    assert_eq!(number(&session, "SELECT count(*) FROM statecast.outbox").await, 0);
    let reserved = "id source specversion type datacontenttype dataschema subject time data database64 partitionkey sequence \
                    aggregatetype operation schemaversion entityversion correlationid causationid traceparent tracestate";
    for name in reserved.split_whitespace() {
        let (_, found, _) = refused(&session, &insert("headers", &format!("'{{\"{name}\": 1}}'"))).await;
        assert_eq!(found, headers, "{name}");
    }
    for (column, value) in [
        ("headers", "'{\"a\": null, \"b\": true, \"c\": 1e99, \"d\": \"äöü €\"}'"),
        ("headers", "'{}'"),
        ("aggregate_id", "'a:b/c d ä'"),
        ("schema_version", "'1.2.3-rc.1+build.5'"),
        ("payload", "NULL"),
        ("payload", "'\"null\"'"),
    ] {
        session.batch_execute(&insert(column, value)).await.unwrap();
    }
}

pub(crate) async fn publish_variants(url: &str) {
    let url = installed(url, "it_publish", 1000).await;
    let session = open(&url).await;
    // Bytes stay as they were written, and every argument arrives in its column.
    let row = session
        .query_one(
            "SELECT statecast.publish('order', '7', 'order.paid', '{\"b\": 1.10,\"a\":  2}', '2.0.0', 5,
                 '{\"tenant\": \"x\"}', 'corr', 'cause', '00-a', 'k=v',
                 '01890a5d-ac96-774b-bcce-b302099a8057')::text",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, String>(0), "01890a5d-ac96-774b-bcce-b302099a8057");
    let stored = "SELECT count(*) FROM statecast.outbox WHERE (event_id, aggregate_type, aggregate_id, event_type,
            schema_version, entity_version, payload::text, headers::text, correlation_id, causation_id, traceparent, tracestate)
        = ('01890a5d-ac96-774b-bcce-b302099a8057', 'order', '7', 'order.paid', '2.0.0', 5, '{\"b\": 1.10,\"a\":  2}',
           '{\"tenant\": \"x\"}', 'corr', 'cause', '00-a', 'k=v') AND xid < pg_current_xact_id() AND seq = 1";
    assert_eq!(number(&session, stored).await, 1);
    // A deletion, and the defaults.
    session.batch_execute("SELECT statecast.publish('order', '7', 'order.deleted', NULL)").await.unwrap();
    let version = "SELECT count(*) FROM statecast.outbox WHERE payload IS NULL AND schema_version = '1.0.0'
                   AND substr(event_id::text, 15, 1) = '7' AND substr(event_id::text, 20, 1) IN ('8','9','a','b')
                   AND abs(extract(epoch FROM recorded_at) * 1000
                           - ('x' || substr(replace(event_id::text, '-', ''), 1, 12))::bit(48)::bigint) < 5000";
    assert_eq!(number(&session, version).await, 1);
    // Strict refuses what many readers cannot parse; without it the payload goes as it is.
    for payload in [r#"{"a": "\ud800"}"#, r#"{"a": "\u0000"}"#, r#"{"a": 1e999999}"#] {
        let call = |strict| {
            format!("SELECT statecast.publish('order', '8', 'order.odd', '{payload}', strict => {strict})")
        };
        let (code, _, text) = refused(&session, &call("true")).await;
        assert_eq!(code, "22032");
        assert!(text.contains("strict => false"), "{text}");
        session.batch_execute(&call("false")).await.unwrap();
    }
    let (_, constraint, _) = refused(&session, "SELECT statecast.publish('order', '8', 'x', 'null')").await;
    assert_eq!(constraint, "payload_is_not_json_null_use_sql_null_for_a_deletion");
    // The lock is the key's, and lasts as long as the transaction.
    let other = open(&url).await;
    let locked =
        |key: &str| format!("SELECT statecast.publish('order', '{key}', 'order.paid', '{{}}', lock => true)");
    session.batch_execute(&format!("BEGIN; {}", locked("9"))).await.unwrap();
    other.batch_execute("SET lock_timeout = '100ms'").await.unwrap();
    assert_eq!(refused(&other, &locked("9")).await.0, "55P03");
    other.batch_execute(&locked("10")).await.unwrap();
    session.batch_execute("COMMIT").await.unwrap();
    other.batch_execute(&locked("9")).await.unwrap();
}

pub(crate) async fn roles_may_what_they_should(url: &str) {
    let url = installed(url, "it_roles", 1000).await;
    let writer = open(&login(&url, "it_writer", "", "GRANT statecast_writer TO it_writer").await).await;
    writer
        .batch_execute(
            "SELECT statecast.publish('order', '1', 'order.created', '{}', headers => '{\"a\": 1}');
             INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
             VALUES ('order', '1', 'order.paid', '{}')",
        )
        .await
        .unwrap();
    for sql in [
        "INSERT INTO statecast.outbox (xid, aggregate_type, aggregate_id, event_type) VALUES ('3', 'a', '1', 'b')",
        "INSERT INTO statecast.outbox (seq, aggregate_type, aggregate_id, event_type)
         OVERRIDING SYSTEM VALUE VALUES (3, 'a', '1', 'b')",
        "INSERT INTO statecast.outbox (recorded_at, aggregate_type, aggregate_id, event_type) VALUES (now(), 'a', '1', 'b')",
        "SELECT 1 FROM statecast.outbox",
        "UPDATE statecast.outbox SET payload = NULL",
        "DELETE FROM statecast.outbox",
        "SELECT 1 FROM statecast.cursor",
        "SELECT statecast.advance_sequence(10000)",
        "SET ROLE statecast_owner",
    ] {
        assert_eq!(refused(&writer, sql).await.0, "42501", "{sql}");
    }
    let relay = open(&login(&url, "it_relay", "", "GRANT statecast_relay TO it_relay").await).await;
    let facts = preflight(&relay, None).await.unwrap();
    assert_eq!(facts.last_seq, 2);
    relay
        .batch_execute(
            "SELECT * FROM statecast.outbox; SELECT * FROM statecast.chunk;
             INSERT INTO statecast.cursor (pipeline, system_identifier, timeline, snapshot)
             VALUES ('orders', 1, 1, '1:1:'); UPDATE statecast.cursor SET epoch = 1; DELETE FROM statecast.cursor;
             INSERT INTO statecast.audit (actor, act) VALUES ('x', 'y')",
        )
        .await
        .unwrap();
    assert_eq!(number(&relay, "SELECT statecast.advance_sequence(10000)").await, 10002);
    for sql in [
        "DELETE FROM statecast.outbox",
        "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type) VALUES ('a', '1', 'b')",
        "DELETE FROM statecast.audit",
        "SELECT setval('statecast.outbox_seq_seq', 1)",
        "DROP TABLE statecast.outbox_1",
    ] {
        assert_eq!(refused(&relay, sql).await.0, "42501", "{sql}");
    }
    assert_eq!(refused(&relay, "SELECT statecast.advance_sequence(1)").await.0, "22023");
    relay.batch_execute("SET ROLE statecast_owner; RESET ROLE").await.unwrap();
    let nobody = open(&login(&url, "it_nothing", "", "").await).await;
    assert_eq!(refused(&nobody, "SELECT statecast.uuid7()").await.0, "42501");
    let error = require_schema(&nobody).await.unwrap_err();
    assert!(error.to_string().contains("GRANT statecast_relay TO it_nothing"), "{error}");
    // The window's four columns belong together.
    let admin = open(&url).await;
    let half = "INSERT INTO statecast.cursor (pipeline, system_identifier, timeline, snapshot, window_seq)
                VALUES ('orders', 1, 1, '1:1:', 1)";
    assert_eq!(refused(&admin, half).await.1, "window_is_whole_or_absent");
    assert_eq!(
        refused(
            &admin,
            &half.replace("'orders'", "'Orders'").replace(", window_seq", "").replace(", 1)", ")")
        )
        .await
        .1,
        "pipeline_is_1_to_48_of_a_z_0_9_hyphen"
    );
}
