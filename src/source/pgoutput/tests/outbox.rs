//! Rows of the outbox: which become events, and what is said of the others.

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use crate::event::Event;
use crate::source::pgoutput::message::{ColumnMessage, RelationMessage, ReplicaIdentity, Tuple, Value};
use crate::source::pgoutput::{EventError, Relation, RelationError, Relations, event};

const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

/// Every column: name, type, a value.
const COLUMNS: [(&str, u32, Option<&str>); 15] = [
    ("xid", 5069, Some("18446744073709551615")),
    ("seq", 20, Some("9223372036854775807")),
    ("event_id", 2950, Some(ID)),
    ("aggregate_type", 25, Some("order")),
    ("aggregate_id", 25, Some("Nr. 7 – \u{1f98a}")),
    ("event_type", 25, Some("order.placed")),
    ("schema_version", 25, Some("1.2.3")),
    ("entity_version", 20, Some("-9223372036854775808")),
    ("payload", 114, Some("{\"n\" :  1e999, \"n\":2}")),
    ("headers", 114, Some("{ \"tenant\":\"a\"}")),
    ("correlation_id", 25, Some("c")),
    ("causation_id", 25, None),
    ("traceparent", 25, Some("")),
    ("tracestate", 25, None),
    ("recorded_at", 1184, Some("2024-02-29 12:34:56.07-03:30")),
];

fn expected() -> Event {
    Event {
        xid: u64::MAX,
        seq: i64::MAX,
        event_id: Uuid::parse_str(ID).unwrap(),
        aggregate_type: "order".into(),
        aggregate_id: "Nr. 7 – \u{1f98a}".into(),
        event_type: "order.placed".into(),
        schema_version: "1.2.3".into(),
        entity_version: Some(i64::MIN),
        payload: Some(Bytes::from_static(b"{\"n\" :  1e999, \"n\":2}")),
        headers: Some(b"{ \"tenant\":\"a\"}".to_vec()),
        correlation_id: Some("c".to_owned()),
        causation_id: None,
        traceparent: Some(String::new()),
        tracestate: None,
        recorded_at_us: 1_709_222_696_070_000,
    }
}

type Field = (&'static str, u32, Value<'static>);

fn fields() -> Vec<Field> {
    let value = |text: Option<&'static str>| text.map_or(Value::Null, |text| Value::Text(text.as_bytes()));
    COLUMNS.map(|(name, oid, text)| (name, oid, value(text))).to_vec()
}

fn message<'a>(schema: &'a str, name: &'a str, fields: &[Field]) -> RelationMessage<'a> {
    let columns = fields.iter().map(|(name, type_oid, _)| ColumnMessage {
        key: *name == "seq",
        name,
        type_oid: *type_oid,
        type_modifier: -1,
    });
    let replica_identity = ReplicaIdentity::Default;
    RelationMessage { oid: 7, schema, name, replica_identity, columns: columns.collect() }
}

fn relation(fields: &[Field]) -> Result<Relation, RelationError> {
    let mut relations = Relations::default();
    relations.apply(&message("statecast", "outbox", fields)).cloned()
}

fn tuple(fields: &[Field]) -> Tuple<'static> {
    Tuple { values: fields.iter().map(|(_, _, value)| *value).collect() }
}

/// The error of a row in which `column` is `value`.
fn with(column: &str, value: Value<'static>) -> EventError {
    let mut fields = fields();
    fields.iter_mut().find(|(name, ..)| *name == column).unwrap().2 = value;
    event(&relation(&fields).unwrap(), &tuple(&fields)).unwrap_err()
}

#[test]
fn every_column_arrives() {
    assert_eq!(event(&relation(&fields()).unwrap(), &tuple(&fields())), Ok(expected()));
}

#[test]
fn null_is_taken_where_the_table_takes_it() {
    const NULLABLE: [&str; 7] = [
        "entity_version",
        "payload",
        "headers",
        "correlation_id",
        "causation_id",
        "traceparent",
        "tracestate",
    ];
    let mut nulls = fields();
    for (name, _, value) in &mut nulls {
        if NULLABLE.contains(name) {
            *value = Value::Null;
        }
    }
    let read = event(&relation(&nulls).unwrap(), &tuple(&nulls)).unwrap();
    assert_eq!((read.entity_version, read.payload, read.headers), (None, None, None));
    assert_eq!((read.correlation_id, read.traceparent), (None, None));
    for (column, ..) in COLUMNS.iter().filter(|(name, ..)| !NULLABLE.contains(name)) {
        assert_eq!(with(column, Value::Null), EventError::Null { column });
    }
}

#[test]
fn values_that_no_type_prints() {
    for (column, text, shown) in [
        ("xid", "-1", "statecast.outbox.xid is \"-1\": not a number of 64 bits"),
        (
            "xid",
            "18446744073709551616",
            "statecast.outbox.xid is \"18446744073709551616\": not a number of 64 bits",
        ),
        ("seq", "+1", "statecast.outbox.seq is \"+1\": not a signed number of 64 bits"),
        ("seq", "", "statecast.outbox.seq is \"\": not a signed number of 64 bits"),
        ("entity_version", " 1", "statecast.outbox.entity_version is \" 1\": not a signed number of 64 bits"),
        (
            "event_id",
            "0190163d8694739baea5966c26f8ad91",
            "statecast.outbox.event_id is \"0190163d8694739baea5966c26f8ad91\": not a UUID",
        ),
        ("recorded_at", "infinity", "statecast.outbox.recorded_at is \"infinity\": infinite"),
        (
            "recorded_at",
            "0001-12-31 19:00:00-05 BC",
            "statecast.outbox.recorded_at is \"0001-12-31 19:00:00-05 BC\": before the year 1",
        ),
    ] {
        assert_eq!(with(column, Value::Text(text.as_bytes())).to_string(), shown);
    }
    let EventError::Invalid { found, .. } = with("seq", Value::Text(&[0xff; 5000])) else {
        panic!("a number")
    };
    assert_eq!(found.chars().count(), 64, "an error shows the beginning only");
    for column in ["aggregate_id", "tracestate"] {
        assert_eq!(with(column, Value::Text(b"a\xff")), EventError::NotUtf8 { column });
    }
    for (column, ..) in COLUMNS {
        assert_eq!(with(column, Value::Unchanged), EventError::Unchanged { column: column.to_owned() });
        assert_eq!(with(column, Value::Binary(b"1")), EventError::Binary { column });
    }
}

#[test]
fn added_columns_are_passed_over() {
    let mut more = fields();
    more.insert(0, ("tenant", 3802, Value::Binary(b"\x01{}")));
    more.push(("note", 25, Value::Null));
    assert_eq!(event(&relation(&more).unwrap(), &tuple(&more)), Ok(expected()));
    more[0].2 = Value::Unchanged;
    let error = event(&relation(&more).unwrap(), &tuple(&more)).unwrap_err();
    assert_eq!(error.to_string(), "a row of statecast.outbox was sent without its tenant");
}

#[test]
fn rows_of_another_width() {
    let relation = relation(&fields()).unwrap();
    for row in [&fields()[..14], &[fields(), fields()].concat()] {
        let error = EventError::Width { values: row.len(), columns: 15 };
        assert_eq!(event(&relation, &tuple(row)), Err(error));
    }
}

#[test]
fn missing_and_changed_columns_are_named() {
    let left: Vec<Field> =
        fields().into_iter().filter(|(name, ..)| !matches!(*name, "payload" | "seq")).collect();
    let error = relation(&left).unwrap_err();
    assert_eq!(error, RelationError::MissingColumns { columns: vec!["seq", "payload"] });
    assert!(error.to_string().starts_with("statecast.outbox is published without seq, payload: "));

    for (column, oid, found) in
        [("payload", 3802, "jsonb"), ("seq", 23, "int4"), ("event_id", 99_999, "with OID 99999")]
    {
        let mut changed = fields();
        changed.iter_mut().find(|(name, ..)| *name == column).unwrap().1 = oid;
        let Err(RelationError::WrongType { column: named, found: type_name, .. }) = relation(&changed) else {
            panic!("{column}")
        };
        assert_eq!((named, type_name.as_str()), (column, found));
    }
    // Strings on the wire, as polling takes them.
    let mut varchar = fields();
    varchar[3].1 = 1043;
    assert_eq!(event(&relation(&varchar).unwrap(), &tuple(&varchar)), Ok(expected()));
}

#[test]
fn only_the_root_of_the_outbox_counts() {
    let mut relations = Relations::default();
    for (schema, name) in
        [("public", "outbox"), ("statecast", "outbox_1"), ("", "outbox"), ("Statecast", "outbox")]
    {
        let relation = relations.apply(&message(schema, name, &fields())).unwrap();
        assert!(!relation.is_outbox());
        let error = EventError::NotOutbox { schema: schema.to_owned(), name: name.to_owned() };
        assert_eq!(event(relation, &tuple(&fields())), Err(error));
        // And it may have any columns.
        assert!(relations.apply(&message(schema, name, &[])).is_ok());
    }
    assert!(relations.apply(&message("statecast", "outbox", &fields())).unwrap().is_outbox());
}

#[test]
fn the_last_description_counts() {
    let mut relations = Relations::default();
    assert_eq!(relations.get(7), Err(RelationError::Unknown { oid: 7 }));
    relations.apply(&message("statecast", "outbox", &fields())).unwrap();
    let mut reversed = fields();
    reversed.reverse();
    relations.apply(&message("statecast", "outbox", &reversed)).unwrap();
    assert_eq!(event(relations.get(7).unwrap(), &tuple(&reversed)), Ok(expected()));
    // Nothing is read by a description that was replaced by an unusable one.
    assert!(relations.apply(&message("statecast", "outbox", &reversed[1..])).is_err());
    assert_eq!(relations.get(7), Err(RelationError::Unknown { oid: 7 }));
}

#[test]
fn relations_are_bounded() {
    use crate::source::pgoutput::relation::RELATIONS_MAX;
    let mut relations = Relations::default();
    let described = |oid| RelationMessage { oid, ..message("public", "t", &[]) };
    for oid in 0..u32::try_from(RELATIONS_MAX).unwrap() {
        relations.apply(&described(oid)).unwrap();
    }
    assert!(relations.apply(&described(5)).is_ok(), "described again");
    assert_eq!(relations.apply(&described(u32::MAX)), Err(RelationError::TooMany));
}

proptest! {
    #[test]
    fn any_order_of_columns(order in Just(fields()).prop_shuffle()) {
        prop_assert_eq!(event(&relation(&order).unwrap(), &tuple(&order)), Ok(expected()));
    }

    /// One value of a good row is replaced: the row is an event, or the error names that column.
    #[test]
    fn any_value_is_taken_or_refused_by_name(
        at in 0..15_usize,
        kind in 0..4_u8,
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100),
            "[-+:. 0-9a-fA-Zinfty]{0,40}".prop_map(String::into_bytes),
        ],
    ) {
        let relation = relation(&fields()).unwrap();
        let mut row: Tuple<'_> = tuple(&fields());
        row.values[at] = match kind {
            0 => Value::Null,
            1 => Value::Unchanged,
            2 => Value::Text(&bytes),
            _ => Value::Binary(&bytes),
        };
        if let Err(error) = event(&relation, &row) {
            prop_assert!(error.to_string().contains(COLUMNS[at].0), "{}", error);
        }
    }
}
