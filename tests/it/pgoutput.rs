//! The decoder against what a real server sends: every event that streaming would decode is the one that polling reads.
//!
//! The plug-in is read through SQL, so that nothing but the bytes of its messages is tried here.

use std::collections::BTreeMap;

use statecast::event::Event;
use statecast::snapshot::Snapshot;
use statecast::source::pgoutput::message::RelationMessage;
use statecast::source::pgoutput::{EventError, Message, OldTuple, Relations, Value, decode, event};
use statecast::source::poll::page::{Request, Statements};
use statecast::store::cursor::{self, Start};
use statecast::store::preflight;
use tokio_postgres::Client;

use crate::schedules::{installed, turn};
use crate::servers::{connect, unique};

/// A temporary slot, and the messages of one publication that it brings.
struct Stream {
    client: Client,
    slot: String,
    relations: Relations,
    options: &'static str,
}

/// What a stream brought.
#[derive(Debug, Default)]
struct Brought {
    /// In commit order.
    events: Vec<Event>,
    /// Messages of each kind, by their tag.
    kinds: BTreeMap<char, usize>,
    /// Columns of each Relation message, in order.
    widths: Vec<(String, usize)>,
    truncated: Vec<u32>,
    /// Transactional or not, prefix, content.
    emitted: Vec<(bool, String, Vec<u8>)>,
    origins: Vec<String>,
    types: Vec<(String, String)>,
    /// Changes of other tables, as text.
    changes: Vec<String>,
    refused: Vec<EventError>,
}

impl Stream {
    /// The slot exists when this returns: what commits later is brought.
    async fn open(url: &str, time_zone: &str) -> Stream {
        let client = connect(url).await.unwrap();
        let slot = unique("slot").replace('-', "_");
        let settings = format!("SET DateStyle = 'ISO, DMY'; SET TimeZone = '{time_zone}'");
        client.batch_execute(&settings).await.unwrap();
        let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput', true)";
        client.execute(create, &[&slot]).await.unwrap();
        Stream { client, slot, relations: Relations::default(), options: "'messages', 'true'" }
    }

    /// All messages since the last call. A call is a connection to the plug-in: it describes relations anew.
    async fn messages(&self) -> Vec<Vec<u8>> {
        let sql = format!(
            "SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
                 'proto_version', '1', 'publication_names', 'test', {})",
            self.options
        );
        let rows = self.client.query(&sql, &[&self.slot]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn read(&mut self) -> Brought {
        let mut brought = Brought::default();
        let mut transaction = None;
        for bytes in self.messages().await {
            *brought.kinds.entry(char::from(bytes[0])).or_default() += 1;
            for length in 0..bytes.len().min(200) {
                assert!(decode(&bytes[..length]).is_err());
            }
            match decode(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}")) {
                Message::Begin { final_lsn, committed_at, xid } => {
                    assert!(transaction.replace((final_lsn, committed_at, xid)).is_none());
                }
                Message::Commit { commit_lsn, end_lsn, committed_at } => {
                    let (final_lsn, at, _) = transaction.take().unwrap();
                    assert_eq!((final_lsn, at), (commit_lsn, committed_at));
                    assert!(end_lsn > commit_lsn);
                }
                Message::Relation(relation) => self.described(&relation, &mut brought),
                message => self.change(message, transaction.map(|(_, _, xid)| xid), &mut brought),
            }
        }
        assert!(transaction.is_none());
        brought
    }

    fn described(&mut self, relation: &RelationMessage<'_>, brought: &mut Brought) {
        brought.widths.push((format!("{}.{}", relation.schema, relation.name), relation.columns.len()));
        self.relations.apply(relation).unwrap();
    }

    fn change(&self, message: Message<'_>, xid: Option<u32>, brought: &mut Brought) {
        match message {
            Message::Insert { relation, new } => {
                let relation = self.relations.get(relation).unwrap();
                if !relation.is_outbox() {
                    brought.changes.push(format!("insert {}", shown(&new.values)));
                    return;
                }
                match event(relation, &new) {
                    Ok(event) => {
                        assert_eq!(Some(event.xid as u32), xid, "the top-level transaction");
                        brought.events.push(event);
                    }
                    Err(error) => brought.refused.push(error),
                }
            }
            Message::Update { relation, old, new } => {
                self.relations.get(relation).unwrap();
                let old = old.as_ref().map_or_else(String::new, old_shown);
                brought.changes.push(format!("update {old}{}", shown(&new.values)));
            }
            Message::Delete { relation, old } => {
                self.relations.get(relation).unwrap();
                brought.changes.push(format!("delete {}", old_shown(&old)));
            }
            Message::Truncate { relations, cascade, restart_identity } => {
                assert!(!cascade && !restart_identity);
                brought.truncated.extend(relations);
            }
            Message::Emitted { transactional, prefix, content, .. } => {
                brought.emitted.push((transactional, prefix.to_owned(), content.to_vec()));
            }
            Message::Origin { name, .. } => brought.origins.push(name.to_owned()),
            Message::Type { schema, name, .. } => brought.types.push((schema.to_owned(), name.to_owned())),
            other => panic!("not a change: {other:?}"),
        }
    }
}

/// Values as `1|NULL|(unchanged)|`.
fn shown(values: &[Value<'_>]) -> String {
    let shown = values.iter().map(|value| match value {
        Value::Null => "NULL|".to_owned(),
        Value::Unchanged => "(unchanged)|".to_owned(),
        Value::Text(text) => format!("{}|", String::from_utf8_lossy(text)),
        Value::Binary(bytes) => format!("{bytes:?}|"),
    });
    shown.collect()
}

fn old_shown(old: &OldTuple<'_>) -> String {
    match old {
        OldTuple::Key(tuple) => format!("key {} ", shown(&tuple.values)),
        OldTuple::Full(tuple) => format!("old {} ", shown(&tuple.values)),
    }
}

/// What polling reads, by seq.
async fn polled(url: &str, pipeline: &str) -> Vec<Event> {
    let mut client = connect(url).await.unwrap();
    let server = preflight::preflight(&client, None).await.unwrap();
    cursor::claim(&mut client, pipeline, &server, Start::Oldest, "test", 10_000, None).await.unwrap();
    let statements = Statements::prepare(&client).await.unwrap();
    let request = Request {
        pipeline,
        from: &Snapshot::NOTHING,
        window: None,
        after_seq: 0,
        prune_seq: 0,
        floor_seq: 0,
        rows_max: 1_000_000,
        bytes_max: i64::MAX,
    };
    let page = statements.page(&client, &request).await.unwrap();
    assert!(!page.full);
    page.events
}

async fn published(url: &str) -> Client {
    let client = connect(url).await.unwrap();
    let sql = "CREATE PUBLICATION test FOR TABLE statecast.outbox WITH (publish_via_partition_root = true)";
    client.batch_execute(sql).await.unwrap();
    client
}

/// Values that are easily mangled.
const HOSTILE: &str = r#"
INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, schema_version, entity_version, payload, headers,
                              correlation_id, causation_id, traceparent, tracestate, recorded_at)
VALUES
    ('a-B_9', $$it's "quoted" \ \\ \x41 % $1 NULL$$, 'e.v-1', '1.0.0-rc.1+b', -9223372036854775808,
     $$ { "n" : 12345678901234567890.10e-400,	"n":2,
 "u":"\u0000\ud800 \"\\" } $$, $${"tenant" : "'\"\\ ü \u00fc","n":1e400,"b":true,"z":null}$$,
     $$'$$, $$\$$, $$00-4bf9$$, $$a=1,b=2$$, DEFAULT),
    ('order', E'Ünïcödé – 日本語 – 🦊 – \u202e', 'x', '0.0.0', 9223372036854775807, '"NULL"', NULL, 'NULL', '\N', ' ', E'\u2028', DEFAULT),
    ('order', ' ', 'x', '1.0.0', 0, '0', '{}', NULL, NULL, NULL, NULL, '1970-01-01 00:00:00+00'),
    ('order', repeat('é', 100), repeat('x', 128), '1.0.0', NULL, NULL, NULL, repeat('c', 255), repeat('ß', 127), NULL,
     repeat('t', 512), '1969-12-31 23:59:59.999999+00'),
    ('order', 'old', 'x', '1.0.0', NULL, '[]', NULL, NULL, NULL, NULL, NULL, '0001-01-01 12:00:00.1+00'),
    ('order', 'lmt', 'x', '1.0.0', NULL, '[]', NULL, NULL, NULL, NULL, NULL, '1850-06-01 00:00:00.000001+00'),
    ('order', 'new', 'x', '1.0.0', NULL, 'false', NULL, NULL, NULL, NULL, NULL, '9999-12-31 23:59:59.999999+00');
"#;

/// Payloads that are stored out of line: compressible and not, and headers near their limit.
const BIG: &str = "
INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload, headers)
SELECT 'big', n::text, 'written',
       CASE n WHEN 1 THEN to_json(repeat('z', 9000000))
              WHEN 2 THEN (SELECT json_agg(md5(i::text)) FROM generate_series(1, 100000) i)
              ELSE to_json(repeat(md5(n::text), 100)) END,
       json_build_object('x', repeat(md5(n::text), 1000))
  FROM generate_series(1, 4) n";

fn one(id: &str) -> String {
    format!("SELECT statecast.publish('order', '{id}', 'changed', '{{}}')")
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Transactions of every shape; the columns of the outbox change between and inside of them.
async fn write(client: &Client, other: &Client) {
    run(client, HOSTILE).await;
    run(client, BIG).await;
    run(client, &format!("BEGIN; {}; ROLLBACK", one("rolled back"))).await;
    // Savepoints: rolled back, released, nested.
    run(
        client,
        &format!(
            "BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; {}; SAVEPOINT b; SAVEPOINT c; {}; RELEASE b; {}; COMMIT",
            one("s1"),
            one("never"),
            one("s2"),
            one("s3"),
            one("s4")
        ),
    )
    .await;
    // Two that interleave: the first to begin is the last to commit.
    run(client, &format!("BEGIN; {}", one("late"))).await;
    run(other, &format!("BEGIN; {}; {}; COMMIT", one("early"), one("early"))).await;
    run(client, &format!("{}; COMMIT", one("late"))).await;
    // Over several chunks.
    let many = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
                SELECT 'order', n::text, 'changed', json_build_object('n', n) FROM generate_series(1, 2500) n";
    run(client, many).await;
    // Messages of other tools, in and outside of a transaction, which ends well or does not.
    run(client, "SELECT pg_logical_emit_message(false, 'it', 'alone')").await;
    run(
        client,
        &format!("BEGIN; {}; SELECT pg_logical_emit_message(true, 'it', 'within'); COMMIT", one("m")),
    )
    .await;
    run(client, "BEGIN; SELECT pg_logical_emit_message(true, 'it', 'never'); ROLLBACK").await;
    // Columns come and go, also in the transaction that writes.
    run(client, "ALTER TABLE statecast.outbox ADD COLUMN note text DEFAULT 'n'").await;
    run(client, &one("with a note")).await;
    run(
        client,
        &format!(
            "BEGIN; {}; ALTER TABLE statecast.outbox ADD COLUMN more jsonb, ADD COLUMN less int; {}; COMMIT",
            one("before"),
            one("after")
        ),
    )
    .await;
    run(client, "ALTER TABLE statecast.outbox DROP COLUMN note").await;
    run(client, &one("without")).await;
    run(client, "UPDATE statecast.outbox SET more = '{}' WHERE aggregate_id = 'early'").await;
    run(client, "DELETE FROM statecast.outbox WHERE aggregate_id = '2500'").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_decoded_is_what_polling_reads() {
    let server = turn().await;
    // Offsets with minutes; before 1920 with seconds.
    for (zone, time_zone) in ["UTC", "Asia/Kathmandu", "Pacific/Marquesas"].into_iter().enumerate() {
        let url = installed(&server).await;
        let (client, other) = (published(&url).await, connect(&url).await.unwrap());
        let mut stream = Stream::open(&url, time_zone).await;
        write(&client, &other).await;
        let mut brought = stream.read().await;
        assert_eq!(brought.refused, []);

        let committed: Vec<&str> = brought.events.iter().map(|event| &event.aggregate_id[..]).collect();
        let position = |id| committed.iter().position(|other| *other == id);
        assert!(position("early") < position("late"), "commit order");
        assert_eq!((position("never"), position("rolled back")), (None, None));
        assert_eq!(position("s1").map(|at| at + 3), position("s4"));

        brought.events.sort_by_key(|event| event.seq);
        let mut expected = polled(&url, &format!("pgoutput{zone}")).await;
        // Deleted since: the WAL knows it still.
        let deleted = brought.events.iter().position(|event| event.aggregate_id == "2500").unwrap();
        expected.insert(deleted, brought.events[deleted].clone());
        assert_eq!(brought.events.len(), 7 + 4 + 4 + 4 + 2500 + 1 + 4);
        let ids = |events: &[Event]| events.iter().map(|event| event.seq).collect::<Vec<_>>();
        assert_eq!(ids(&brought.events), ids(&expected));
        for (decoded, read) in brought.events.iter().zip(&expected) {
            // Not assert_eq: megabytes would be printed.
            assert!(decoded == read, "seq {} differs ({})", read.seq, read.aggregate_id);
        }

        // The server describes the root with each chunk that it meets, and then the chunk, of which no change speaks.
        let (mut root, chunks): (Vec<_>, Vec<_>) =
            brought.widths.into_iter().partition(|(name, _)| name == "statecast.outbox");
        assert!(chunks.iter().all(|(name, _)| name.starts_with("statecast.outbox_")), "{chunks:?}");
        root.dedup();
        assert_eq!(root, [15, 16, 18, 17].map(|width| ("statecast.outbox".to_owned(), width)));
        let message = |transactional, content: &[u8]| (transactional, "it".to_owned(), content.to_vec());
        assert_eq!(brought.emitted, [message(false, b"alone"), message(true, b"within")]);
        assert_eq!((brought.kinds[&'U'], brought.kinds[&'D']), (2, 1));

        // TRUNCATE names the root, not its chunks; and the stream goes on.
        run(&client, "TRUNCATE statecast.outbox").await;
        run(&client, &one("again")).await;
        let brought = stream.read().await;
        let sql = "SELECT 'statecast.outbox'::regclass::oid";
        let root: u32 = client.query_one(sql, &[]).await.unwrap().get(0);
        assert_eq!(brought.truncated, [root]);
        assert_eq!(brought.events.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_event_is_refused_by_name() {
    let server = turn().await;
    let url = installed(&server).await;
    let client = published(&url).await;
    // West of Greenwich the year 1 begins before it.
    let mut stream = Stream::open(&url, "America/New_York").await;
    let first =
        "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload, recorded_at)
                 VALUES ('order', '1', 'x', '{}', '0001-01-01 00:00:00+00')";
    run(&client, first).await;
    let refused: Vec<String> = stream.read().await.refused.iter().map(ToString::to_string).collect();
    let [refused] = &refused[..] else { panic!("{refused:?}") };
    assert!(
        refused.starts_with("statecast.outbox.recorded_at is \"0001-12-31 19:03:58-04:56:02 BC\""),
        "{refused}"
    );

    // A slot that did not ask for ISO, and one that asked for binary values.
    run(&stream.client, "SET DateStyle = 'German'").await;
    run(&client, &one("1")).await;
    let refused = stream.read().await.refused;
    assert!(matches!(&refused[..], [EventError::Invalid { column: "recorded_at", .. }]), "{refused:?}");
    run(&stream.client, "SET DateStyle = 'ISO'").await;
    stream.options = "'messages', 'true', 'binary', 'true'";
    run(&client, &one("1")).await;
    assert_eq!(stream.read().await.refused, [EventError::Binary { column: "xid" }]);
    stream.options = "'messages', 'true'";

    // Chunks are not the outbox, where the publication tells them apart.
    run(&client, "ALTER PUBLICATION test SET (publish_via_partition_root = false)").await;
    run(&client, &one("1")).await;
    let brought = stream.read().await;
    assert_eq!((brought.events.len(), brought.changes.len()), (0, 1));
    assert!(brought.widths[0].0.starts_with("statecast.outbox_"), "{:?}", brought.widths);
    run(&client, "ALTER PUBLICATION test SET (publish_via_partition_root = true)").await;

    // A column that was renamed.
    run(&client, "ALTER TABLE statecast.outbox RENAME COLUMN tracestate TO trace_state").await;
    let insert =
        "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type) VALUES ('order', '1', 'x')";
    run(&client, insert).await;
    let messages = stream.messages().await;
    let refused = messages.iter().find_map(|bytes| match decode(bytes).unwrap() {
        Message::Relation(relation) => stream.relations.apply(&relation).err(),
        _ => None,
    });
    assert!(refused.unwrap().to_string().contains("without tracestate"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_message() {
    const CHANGES: &str = "
        INSERT INTO shop.item VALUES (1, 'red', NULL), (2, 'blue', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) n));
        UPDATE shop.item SET colour = 'red' WHERE id = 2;
        UPDATE shop.item SET id = 3 WHERE id = 1;
        DELETE FROM shop.item WHERE id = 3;
        INSERT INTO shop.whole VALUES (1, 'a');
        UPDATE shop.whole SET name = 'b';
        DELETE FROM shop.whole;
        TRUNCATE shop.whole, shop.item";
    let server = turn().await;
    let url = installed(&server).await;
    let client = published(&url).await;
    let tables = "CREATE SCHEMA shop; CREATE TYPE shop.colour AS ENUM ('red', 'blue');
        CREATE TABLE shop.item (id int PRIMARY KEY, colour shop.colour, text text);
        CREATE TABLE shop.whole (id int, name text); ALTER TABLE shop.whole REPLICA IDENTITY FULL;
        ALTER PUBLICATION test ADD TABLE shop.item, shop.whole";
    run(&client, tables).await;
    let mut stream = Stream::open(&url, "UTC").await;
    run(&client, CHANGES).await;
    // Changes that another server made first.
    let origin = unique("origin");
    let set = format!(
        "SELECT pg_replication_origin_create('{origin}'); SELECT pg_replication_origin_session_setup('{origin}')"
    );
    run(&client, &set).await;
    run(
        &client,
        &format!("BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', now()); {}; COMMIT", one("1")),
    )
    .await;
    let reset = format!(
        "SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{origin}')"
    );
    run(&client, &reset).await;
    run(&client, "SELECT pg_logical_emit_message(true, '', '')").await;

    let mut brought = stream.read().await;
    let big = brought.changes.remove(1);
    assert!(big.starts_with("insert 2|blue|c4ca4238a0b9"), "{big}");
    assert_eq!(big.len(), "insert 2|blue||".len() + 500 * 32);
    assert_eq!(
        brought.changes,
        [
            "insert 1|red|NULL|",
            "update 2|red|(unchanged)|",
            "update key 1|NULL|NULL| 3|red|NULL|",
            "delete key 3|NULL|NULL| ",
            "insert 1|a|",
            "update old 1|a| 1|b|",
            "delete old 1|b| ",
        ]
    );
    assert_eq!(brought.truncated.len(), 2);
    assert_eq!(brought.origins, [origin]);
    // Once more with the description that TRUNCATE makes stale.
    brought.types.dedup();
    assert_eq!(brought.types, [("shop".to_owned(), "colour".to_owned())]);
    assert_eq!(brought.events.len(), 1);
    let kinds: String = brought.kinds.keys().collect();
    assert_eq!(kinds, "BCDIMORTUY");
}
