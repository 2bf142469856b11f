//! Over arbitrary bytes nothing panics; over messages that an encoder made, nothing but the whole message is one.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tokio_postgres::types::PgLsn;

use super::encode::encode;
use crate::source::pgoutput::message::{
    ColumnMessage, Message, OldTuple, RelationMessage, ReplicaIdentity, Tuple, Value, decode,
};
use crate::source::pgoutput::{PgTime, Relations};

/// What a message is made of: it borrows from here.
#[derive(Clone, Debug)]
struct Parts {
    kind: u8,
    variant: u8,
    number: u32,
    longs: [u64; 2],
    time: i64,
    names: [String; 2],
    columns: Vec<(bool, String, u32, i32)>,
    old: Vec<Part>,
    new: Vec<Part>,
    relations: Vec<u32>,
    content: Vec<u8>,
}

/// A value: how it is sent, and what.
type Part = (u8, Vec<u8>);

const KINDS: u8 = 10;

fn parts() -> impl Strategy<Value = Parts> {
    let name = || "[^\0]{0,12}";
    let row = || vec((0..4_u8, vec(any::<u8>(), 0..24)), 0..8);
    let scalars = (0..KINDS, any::<u8>(), any::<u32>(), any::<[u64; 2]>(), any::<i64>(), [name(), name()]);
    let lists = (
        vec((any::<bool>(), name(), any::<u32>(), any::<i32>()), 0..8),
        row(),
        row(),
        vec(any::<u32>(), 0..5),
        vec(any::<u8>(), 0..40),
    );
    (scalars, lists).prop_map(
        |((kind, variant, number, longs, time, names), (columns, old, new, relations, content))| Parts {
            kind,
            variant,
            number,
            longs,
            time,
            names,
            columns,
            old,
            new,
            relations,
            content,
        },
    )
}

impl Parts {
    fn message(&self) -> Message<'_> {
        let [first, second] = self.longs.map(PgLsn::from);
        let [schema, name] = self.names.each_ref().map(String::as_str);
        let (relation, committed_at) = (self.number, PgTime(self.time));
        let (one, other) = (self.variant & 1 != 0, self.variant & 2 != 0);
        match self.kind {
            0 => Message::Begin { final_lsn: first, committed_at, xid: self.number },
            1 => Message::Commit { commit_lsn: first, end_lsn: second, committed_at },
            2 => Message::Origin { commit_lsn: first, name },
            3 => Message::Relation(self.relation()),
            4 => Message::Type { oid: self.number, schema, name },
            5 => Message::Insert { relation, new: tuple(&self.new) },
            6 => Message::Update { relation, old: one.then(|| self.old(other)), new: tuple(&self.new) },
            7 => Message::Delete { relation, old: self.old(other) },
            8 => {
                let relations = self.relations.clone();
                Message::Truncate { cascade: one, restart_identity: other, relations }
            }
            _ => Message::Emitted { transactional: one, lsn: first, prefix: name, content: &self.content },
        }
    }

    fn relation(&self) -> RelationMessage<'_> {
        let columns = self.columns.iter().map(|(key, name, type_oid, type_modifier)| ColumnMessage {
            key: *key,
            name,
            type_oid: *type_oid,
            type_modifier: *type_modifier,
        });
        let replica_identity = match self.variant % 4 {
            0 => ReplicaIdentity::Default,
            1 => ReplicaIdentity::Nothing,
            2 => ReplicaIdentity::Full,
            _ => ReplicaIdentity::Index,
        };
        let [schema, name] = self.names.each_ref().map(String::as_str);
        RelationMessage { oid: self.number, schema, name, replica_identity, columns: columns.collect() }
    }

    fn old(&self, full: bool) -> OldTuple<'_> {
        if full { OldTuple::Full(tuple(&self.old)) } else { OldTuple::Key(tuple(&self.old)) }
    }
}

fn tuple(parts: &[Part]) -> Tuple<'_> {
    let values = parts.iter().map(|(kind, bytes)| match kind {
        0 => Value::Null,
        1 => Value::Unchanged,
        2 => Value::Text(bytes),
        _ => Value::Binary(bytes),
    });
    Tuple { values: values.collect() }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(tag in option::of(0..18_usize), bytes in vec(any::<u8>(), 0..300)) {
        let tag = tag.map(|at| b"BCORYIUDTMwkKNn\0\xff"[at % 17]);
        let bytes: Vec<u8> = tag.into_iter().chain(bytes).collect();
        if let Err(error) = decode(&bytes) {
            prop_assert!(error.offset <= bytes.len());
            prop_assert_eq!(error.tag, bytes.first().copied());
        }
    }

    #[test]
    fn roundtrip(parts in parts()) {
        let message = parts.message();
        let bytes = encode(&message);
        prop_assert_eq!(decode(&bytes), Ok(message));
    }

    #[test]
    fn truncated_or_longer_is_an_error(parts in parts(), more in vec(any::<u8>(), 1..20)) {
        let bytes = encode(&parts.message());
        for length in 0..bytes.len() {
            prop_assert!(decode(&bytes[..length]).is_err(), "{} of {} bytes", length, bytes.len());
        }
        let longer = [&bytes[..], &more].concat();
        prop_assert!(decode(&longer).is_err());
    }

    /// Near misses reach further into the decoder than noise does.
    #[test]
    fn altered_messages_never_panic(
        parts in parts(), at in any::<proptest::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = encode(&parts.message());
        let position = at.index(bytes.len());
        bytes[position] = byte;
        match decode(&bytes) {
            Ok(Message::Relation(relation)) => {
                prop_assert!(Relations::default().apply(&relation).is_ok(), "not the outbox");
            }
            Ok(_) => {}
            Err(error) => prop_assert!(error.offset <= bytes.len()),
        }
    }
}
