//! Every kind of message, as bytes that were written down by hand from the documentation's tables.

use tokio_postgres::types::PgLsn;

use crate::source::pgoutput::message::{
    ColumnMessage, Message, OldTuple, RelationMessage, ReplicaIdentity, Tuple, Value, decode,
};
use crate::source::pgoutput::{DecodeError, Found, PgTime};

const LSN: &[u8] = &[0, 0, 0, 0x16, 0xb3, 0x74, 0xd8, 0x48];
const END: &[u8] = &[0, 0, 0, 0x16, 0xb3, 0x74, 0xd8, 0x78];
const TIME: &[u8] = &[0, 2, 0xe0, 0x3f, 0xb8, 0xd3, 0xf0, 0x10];
const OID: &[u8] = &[0, 0, 0x40, 5];
const AT: PgTime = PgTime(0x0002_e03f_b8d3_f010);
const RELATION: u32 = 0x4005;

fn lsn() -> PgLsn {
    PgLsn::from(0x16_b374_d848)
}

fn end() -> PgLsn {
    PgLsn::from(0x16_b374_d878)
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn text(text: &str) -> Value<'_> {
    Value::Text(text.as_bytes())
}

fn tuple<'a>(values: &[Value<'a>]) -> Tuple<'a> {
    Tuple { values: values.to_vec() }
}

fn error(bytes: &[u8]) -> DecodeError {
    decode(bytes).unwrap_err()
}

#[test]
fn begin_commit_origin() {
    let bytes = joined(&[b"B", LSN, TIME, &[0, 0, 2, 0xe5]]);
    let begin = Message::Begin { final_lsn: lsn(), committed_at: AT, xid: 741 };
    assert_eq!(decode(&bytes), Ok(begin));
    assert_eq!(lsn().to_string(), "16/B374D848");

    let bytes = joined(&[b"C", &[0], LSN, END, TIME]);
    let commit = Message::Commit { commit_lsn: lsn(), end_lsn: end(), committed_at: AT };
    assert_eq!(decode(&bytes), Ok(commit));

    let bytes = joined(&[b"O", LSN, b"elsewhere\0"]);
    assert_eq!(decode(&bytes), Ok(Message::Origin { commit_lsn: lsn(), name: "elsewhere" }));
}

#[test]
fn relation_and_type() {
    let columns: &[u8] = &[0, 2];
    let id = [&[1][..], b"id\0", &[0, 0, 0, 20], &[0xff; 4]].concat();
    let name = [&[0][..], b"na me\0", &[0, 0, 4, 0x13], &[0, 0, 0, 36]].concat();
    let bytes = joined(&[b"R", OID, b"shop\0", "bücher\0".as_bytes(), b"d", columns, &id, &name]);
    let relation = RelationMessage {
        oid: RELATION,
        schema: "shop",
        name: "bücher",
        replica_identity: ReplicaIdentity::Default,
        columns: vec![
            ColumnMessage { key: true, name: "id", type_oid: 20, type_modifier: -1 },
            ColumnMessage { key: false, name: "na me", type_oid: 1043, type_modifier: 36 },
        ],
    };
    assert_eq!(decode(&bytes), Ok(Message::Relation(relation)));

    for (letter, identity) in
        [(b"n", ReplicaIdentity::Nothing), (b"f", ReplicaIdentity::Full), (b"i", ReplicaIdentity::Index)]
    {
        // Of pg_catalog, without columns.
        let bytes = joined(&[b"R", OID, b"\0t\0", letter, &[0, 0]]);
        let relation = RelationMessage {
            oid: RELATION,
            schema: "",
            name: "t",
            replica_identity: identity,
            columns: vec![],
        };
        assert_eq!(decode(&bytes), Ok(Message::Relation(relation)));
    }

    let bytes = joined(&[b"Y", OID, b"shop\0colour\0"]);
    assert_eq!(decode(&bytes), Ok(Message::Type { oid: RELATION, schema: "shop", name: "colour" }));
}

#[test]
fn insert_update_delete() {
    let row: &[u8] = b"\0\x04t\0\0\0\x027\0nut\0\0\0\0";
    let values = tuple(&[text("7\0"), Value::Null, Value::Unchanged, text("")]);
    let bytes = joined(&[b"I", OID, b"N", row]);
    assert_eq!(decode(&bytes), Ok(Message::Insert { relation: RELATION, new: values.clone() }));
    let bytes = joined(&[b"I", OID, b"N\0\x01b\0\0\0\x02\xff\0"]);
    let binary = tuple(&[Value::Binary(&[0xff, 0])]);
    assert_eq!(decode(&bytes), Ok(Message::Insert { relation: RELATION, new: binary }));

    let key: &[u8] = b"\0\x02t\0\0\0\x016n";
    let old = tuple(&[text("6"), Value::Null]);
    for (letter, kind) in [(b"K", OldTuple::Key(old.clone())), (b"O", OldTuple::Full(old))] {
        let bytes = joined(&[b"U", OID, letter, key, b"N", row]);
        let update = Message::Update { relation: RELATION, old: Some(kind.clone()), new: values.clone() };
        assert_eq!(decode(&bytes), Ok(update));
        let bytes = joined(&[b"D", OID, letter, key]);
        assert_eq!(decode(&bytes), Ok(Message::Delete { relation: RELATION, old: kind }));
    }
    let bytes = joined(&[b"U", OID, b"N", row]);
    assert_eq!(decode(&bytes), Ok(Message::Update { relation: RELATION, old: None, new: values }));
}

#[test]
fn truncate_and_emitted() {
    let bytes = joined(&[b"T", &[0, 0, 0, 2, 3], OID, &[0, 0, 0, 9]]);
    let both = Message::Truncate { cascade: true, restart_identity: true, relations: vec![RELATION, 9] };
    assert_eq!(decode(&bytes), Ok(both));
    let bytes = joined(&[b"T", &[0, 0, 0, 0, 0]]);
    let none = Message::Truncate { cascade: false, restart_identity: false, relations: vec![] };
    assert_eq!(decode(&bytes), Ok(none));

    for transactional in [false, true] {
        let bytes = joined(&[b"M", &[transactional.into()], LSN, b"audit\0", &[0, 0, 0, 3], b"a\0b"]);
        let emitted = Message::Emitted { transactional, lsn: lsn(), prefix: "audit", content: b"a\0b" };
        assert_eq!(decode(&bytes), Ok(emitted));
    }
}

#[test]
fn errors_name_message_byte_and_what_was_expected() {
    for (bytes, message) in [
        (b"".to_vec(), "empty message, byte 0: expected the kind of message, found 0 of at least 1 bytes"),
        (b"S\0\0".to_vec(), "message 'S', byte 0: expected a message of protocol version 1, found 'S'"),
        (b"\x01".to_vec(), "message 0x01, byte 0: expected a message of protocol version 1, found 0x01"),
        (joined(&[b"C", &[2], LSN, END, TIME]), "message 'C', byte 1: expected no flags (0), found 0x02"),
        (joined(&[b"I", OID, b"K\0\0"]), "message 'I', byte 5: expected a new tuple ('N'), found 'K'"),
        (
            joined(&[b"U", OID, b"x\0\0"]),
            "message 'U', byte 5: expected a key ('K'), an old tuple ('O') or a new tuple ('N'), found 'x'",
        ),
        (joined(&[b"U", OID, b"K\0\0K\0\0"]), "message 'U', byte 8: expected a new tuple ('N'), found 'K'"),
        (
            joined(&[b"D", OID, b"N\0\0"]),
            "message 'D', byte 5: expected a key ('K') or an old tuple ('O'), found 'N'",
        ),
        (
            joined(&[b"I", OID, b"N\0\x01x"]),
            "message 'I', byte 8: expected a value (n, u, t or b), found 'x'",
        ),
        (
            joined(&[b"I", OID, b"N\0\x01t\0\0\0\x05abc"]),
            "message 'I', byte 13: expected a value of the announced length, found 3 of at least 5 bytes",
        ),
        (
            joined(&[b"I", OID, b"N\0\x01t\xff\xff\xff\xff"]),
            "message 'I', byte 9: expected the length of a value, not negative, found -1",
        ),
        (
            joined(&[b"I", OID, b"N\0\x01nn"]),
            "message 'I', byte 9: expected the end of the message, found 1 more bytes",
        ),
        (
            joined(&[b"R", OID, b"s\0t\0x\0\0"]),
            "message 'R', byte 9: expected a replica identity (d, n, f or i), found 'x'",
        ),
        (
            joined(&[b"R", OID, b"s\0t"]),
            "message 'R', byte 7: expected the name of the relation, found a string without an end",
        ),
        (
            joined(&[b"Y", OID, b"s\0\xff\0"]),
            "message 'Y', byte 7: expected the name of the type, found bytes that are not UTF-8",
        ),
        (
            joined(&[b"T", &[0xff, 0xff, 0xff, 0xff, 0]]),
            "message 'T', byte 1: expected the number of relations, not negative, found -1",
        ),
    ] {
        assert_eq!(error(&bytes).to_string(), message);
    }
}

#[test]
fn counts_are_checked_before_anything_is_allocated() {
    // As many values as a tuple may have, and one more.
    let row = |count: i16| {
        let values = vec![b'n'; usize::try_from(count).unwrap()];
        joined(&[b"I", OID, b"N", &count.to_be_bytes(), &values])
    };
    let full = row(1664);
    let Ok(Message::Insert { new, .. }) = decode(&full) else { panic!("a full tuple") };
    assert_eq!(new.values.len(), 1664);
    assert_eq!(error(&row(1665)).found, Found::Number(1665));
    assert_eq!(error(&joined(&[b"I", OID, b"N\xff\xff"])).found, Found::Number(-1));

    // Counts for which there are not the bytes.
    let found = |bytes: &[u8]| error(bytes).found;
    let row = joined(&[b"I", OID, b"N\x06\x80nn"]);
    assert_eq!(found(&row), Found::End { needed: 1664, left: 2 });
    let relation = joined(&[b"R", OID, b"s\0t\0d\x06\x80"]);
    assert_eq!(found(&relation), Found::End { needed: 16_640, left: 0 });
    assert_eq!(found(&joined(&[b"R", OID, b"s\0t\0d\x06\x81"])), Found::Number(1665));
    let truncate = joined(&[b"T", &[0x7f, 0xff, 0xff, 0xff, 0], OID]);
    assert_eq!(found(&truncate), Found::End { needed: 0x7fff_ffff * 4, left: 4 });
    let emitted = joined(&[b"M\0", LSN, b"p\0", &[0x7f, 0xff, 0xff, 0xff]]);
    assert_eq!(found(&emitted), Found::End { needed: 0x7fff_ffff, left: 0 });
}
