//! A small encoder: what a server would send for a message.

use crate::source::pgoutput::message::{Message, OldTuple, RelationMessage, ReplicaIdentity, Tuple, Value};

/// The bytes of `message`.
pub(super) fn encode(message: &Message<'_>) -> Vec<u8> {
    let mut out = Out(Vec::new());
    match message {
        Message::Begin { final_lsn, committed_at, xid } => {
            out.byte(b'B').u64((*final_lsn).into()).i64(committed_at.0).u32(*xid);
        }
        Message::Commit { commit_lsn, end_lsn, committed_at } => {
            out.byte(b'C').byte(0).u64((*commit_lsn).into()).u64((*end_lsn).into()).i64(committed_at.0);
        }
        Message::Origin { commit_lsn, name } => {
            out.byte(b'O').u64((*commit_lsn).into()).string(name);
        }
        Message::Relation(relation) => self::relation(&mut out, relation),
        Message::Type { oid, schema, name } => {
            out.byte(b'Y').u32(*oid).string(schema).string(name);
        }
        Message::Insert { relation, new } => {
            out.byte(b'I').u32(*relation).byte(b'N').tuple(new);
        }
        Message::Update { relation, old, new } => {
            out.byte(b'U').u32(*relation);
            if let Some(old) = old {
                out.old(old);
            }
            out.byte(b'N').tuple(new);
        }
        Message::Delete { relation, old } => {
            out.byte(b'D').u32(*relation).old(old);
        }
        Message::Truncate { cascade, restart_identity, relations } => {
            let flags = u8::from(*cascade) | u8::from(*restart_identity) << 1;
            out.byte(b'T').u32(u32::try_from(relations.len()).unwrap()).byte(flags);
            for relation in relations {
                out.u32(*relation);
            }
        }
        Message::Emitted { transactional, lsn, prefix, content } => {
            out.byte(b'M').byte((*transactional).into()).u64((*lsn).into()).string(prefix).sized(content);
        }
    }
    out.0
}

fn relation(out: &mut Out, relation: &RelationMessage<'_>) {
    let identity = match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    };
    out.byte(b'R').u32(relation.oid).string(relation.schema).string(relation.name).byte(identity);
    out.u16(relation.columns.len());
    for column in &relation.columns {
        out.byte(column.key.into()).string(column.name).u32(column.type_oid);
        out.0.extend(column.type_modifier.to_be_bytes());
    }
}

struct Out(Vec<u8>);

impl Out {
    fn byte(&mut self, byte: u8) -> &mut Self {
        self.0.push(byte);
        self
    }

    fn u16(&mut self, count: usize) -> &mut Self {
        self.0.extend(u16::try_from(count).unwrap().to_be_bytes());
        self
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn i64(&mut self, number: i64) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn string(&mut self, text: &str) -> &mut Self {
        self.0.extend(text.as_bytes());
        self.byte(0)
    }

    fn sized(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap()).0.extend(bytes);
        self
    }

    fn old(&mut self, old: &OldTuple<'_>) -> &mut Self {
        match old {
            OldTuple::Key(tuple) => self.byte(b'K').tuple(tuple),
            OldTuple::Full(tuple) => self.byte(b'O').tuple(tuple),
        }
    }

    fn tuple(&mut self, tuple: &Tuple<'_>) -> &mut Self {
        self.u16(tuple.values.len());
        for value in &tuple.values {
            match value {
                Value::Null => self.byte(b'n'),
                Value::Unchanged => self.byte(b'u'),
                Value::Text(text) => self.byte(b't').sized(text),
                Value::Binary(bytes) => self.byte(b'b').sized(bytes),
            };
        }
        self
    }
}
