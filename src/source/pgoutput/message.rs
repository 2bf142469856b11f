//! The messages of protocol version 1. Their fields borrow from the bytes that were received.

use tokio_postgres::types::PgLsn;

use super::reader::{DecodeError, Found, Reader};
use super::time::PgTime;

/// Columns of a tuple, at most: `MaxTupleAttributeNumber` (PostgreSQL documentation, "PostgreSQL Limits").
pub const COLUMNS_MAX: i16 = 1664;
/// Bytes of a column in a Relation message, at least: flags, an empty name, type, modifier.
const COLUMN_BYTES_MIN: usize = 1 + 1 + 4 + 4;

/// The identifier of a relation, as changes refer to it.
pub type Oid = u32;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins. Transactions follow each other in commit order and never interleave.
    Begin {
        /// LSN of the commit record.
        final_lsn: PgLsn,
        /// When it committed.
        committed_at: PgTime,
        /// The top-level transaction, without its epoch.
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// LSN of the commit record; the `final_lsn` of its Begin.
        commit_lsn: PgLsn,
        /// Where the commit record ends: what is confirmed to the server.
        end_lsn: PgLsn,
        /// When it committed.
        committed_at: PgTime,
    },
    /// The transaction came from another server.
    Origin {
        /// LSN of the commit there.
        commit_lsn: PgLsn,
        /// Its name.
        name: &'a str,
    },
    /// What the columns of a relation are: before its first change, and again when it was altered.
    Relation(RelationMessage<'a>),
    /// A data type that is not built in, before the Relation that uses it.
    Type {
        /// Of the type.
        oid: Oid,
        /// Its schema; empty for `pg_catalog`.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// In which relation.
        relation: Oid,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// In which relation.
        relation: Oid,
        /// What it was, if the replica identity tells.
        old: Option<OldTuple<'a>>,
        /// What it is.
        new: Tuple<'a>,
    },
    /// A deleted row.
    Delete {
        /// In which relation.
        relation: Oid,
        /// What it was.
        old: OldTuple<'a>,
    },
    /// Emptied relations.
    Truncate {
        /// `CASCADE` was given.
        cascade: bool,
        /// `RESTART IDENTITY` was given.
        restart_identity: bool,
        /// Which.
        relations: Vec<Oid>,
    },
    /// What `pg_logical_emit_message` wrote.
    Emitted {
        /// Part of the transaction around it; else it stands alone, between transactions.
        transactional: bool,
        /// Where it was written.
        lsn: PgLsn,
        /// Whose it is.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
}

/// A Relation message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationMessage<'a> {
    /// How changes refer to it.
    pub oid: Oid,
    /// Its schema; empty for `pg_catalog`.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What old tuples hold.
    pub replica_identity: ReplicaIdentity,
    /// In the order of its tuples. Not those that a column list leaves out.
    pub columns: Vec<ColumnMessage<'a>>,
}

/// `REPLICA IDENTITY` of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing.
    Nothing,
    /// All columns.
    Full,
    /// An index.
    Index,
}

/// A column in a Relation message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnMessage<'a> {
    /// Part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: &'a str,
    /// Its data type.
    pub type_oid: Oid,
    /// `atttypmod`; -1 for none.
    pub type_modifier: i32,
}

/// The values of a row, in the order of its Relation message's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    /// At most [`COLUMNS_MAX`].
    pub values: Vec<Value<'a>>,
}

/// What is told of a row before its change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// The columns of the replica identity; the others are NULL.
    Key(Tuple<'a>),
    /// All columns (`REPLICA IDENTITY FULL`).
    Full(Tuple<'a>),
}

/// One value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// Stored out of line and not touched by an update: it was not sent.
    Unchanged,
    /// What the type's output function printed.
    Text(&'a [u8]),
    /// What the type's send function wrote; only with the plug-in's option `binary`.
    Binary(&'a [u8]),
}

/// Decodes one message.
///
/// # Errors
/// The bytes are not exactly one message of protocol version 1.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let message = match reader.u8("the kind of message")? {
        b'B' => Message::Begin {
            final_lsn: lsn(&mut reader, "the LSN of the commit")?,
            committed_at: PgTime(reader.i64("the time of the commit")?),
            xid: reader.u32("the transaction id")?,
        },
        b'C' => commit(&mut reader)?,
        b'O' => Message::Origin {
            commit_lsn: lsn(&mut reader, "the LSN of the commit at the origin")?,
            name: reader.string("the name of the origin")?,
        },
        b'R' => Message::Relation(relation(&mut reader)?),
        b'Y' => Message::Type {
            oid: reader.u32("the OID of the type")?,
            schema: reader.string("the schema of the type")?,
            name: reader.string("the name of the type")?,
        },
        b'I' => {
            let relation = reader.u32("the OID of the relation")?;
            expect(&mut reader, b'N', "a new tuple ('N')")?;
            Message::Insert { relation, new: tuple(&mut reader)? }
        }
        b'U' => update(&mut reader)?,
        b'D' => {
            let relation = reader.u32("the OID of the relation")?;
            let offset = reader.offset();
            let kind = reader.u8(OLD)?;
            Message::Delete { relation, old: old_tuple(&mut reader, kind, offset, OLD)? }
        }
        b'T' => truncate(&mut reader)?,
        b'M' => emitted(&mut reader)?,
        other => return Err(reader.error(0, "a message of protocol version 1", Found::Byte(other))),
    };
    reader.finish()?;
    Ok(message)
}

const OLD: &str = "a key ('K') or an old tuple ('O')";
const OLD_OR_NEW: &str = "a key ('K'), an old tuple ('O') or a new tuple ('N')";

pub(super) fn lsn(reader: &mut Reader<'_>, expected: &'static str) -> Result<PgLsn, DecodeError> {
    reader.u64(expected).map(PgLsn::from)
}

fn expect(reader: &mut Reader<'_>, byte: u8, expected: &'static str) -> Result<(), DecodeError> {
    let offset = reader.offset();
    match reader.u8(expected)? {
        found if found == byte => Ok(()),
        found => Err(reader.error(offset, expected, Found::Byte(found))),
    }
}

fn commit<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    // PostgreSQL's own subscriber refuses other flags as well: they would change what a commit means.
    expect(reader, 0, "no flags (0)")?;
    Ok(Message::Commit {
        commit_lsn: lsn(reader, "the LSN of the commit")?,
        end_lsn: lsn(reader, "the end LSN of the transaction")?,
        committed_at: PgTime(reader.i64("the time of the commit")?),
    })
}

fn relation<'a>(reader: &mut Reader<'a>) -> Result<RelationMessage<'a>, DecodeError> {
    const IDENTITY: &str = "a replica identity (d, n, f or i)";
    let oid = reader.u32("the OID of the relation")?;
    let schema = reader.string("the schema of the relation")?;
    let name = reader.string("the name of the relation")?;
    let offset = reader.offset();
    let replica_identity = match reader.u8(IDENTITY)? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        other => return Err(reader.error(offset, IDENTITY, Found::Byte(other))),
    };
    let count = reader.count16(COLUMNS_MAX, "the number of columns, 0 to 1664")?;
    reader.check_left(count.saturating_mul(COLUMN_BYTES_MIN), "so many columns")?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(ColumnMessage {
            // Other bits have no meaning yet; PostgreSQL's own subscriber passes over them too.
            key: reader.u8("the flags of a column")? & 1 != 0,
            name: reader.string("the name of a column")?,
            type_oid: reader.u32("the type of a column")?,
            type_modifier: reader.i32("the type modifier of a column")?,
        });
    }
    Ok(RelationMessage { oid, schema, name, replica_identity, columns })
}

fn tuple<'a>(reader: &mut Reader<'a>) -> Result<Tuple<'a>, DecodeError> {
    const KIND: &str = "a value (n, u, t or b)";
    let count = reader.count16(COLUMNS_MAX, "the number of values, 0 to 1664")?;
    reader.check_left(count, "so many values")?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let offset = reader.offset();
        values.push(match reader.u8(KIND)? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            b't' => Value::Text(sized(reader)?),
            b'b' => Value::Binary(sized(reader)?),
            other => return Err(reader.error(offset, KIND, Found::Byte(other))),
        });
    }
    Ok(Tuple { values })
}

/// A length, and as many bytes.
fn sized<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let length = reader.count32("the length of a value, not negative")?;
    reader.bytes(length, "a value of the announced length")
}

fn old_tuple<'a>(
    reader: &mut Reader<'a>,
    kind: u8,
    offset: usize,
    expected: &'static str,
) -> Result<OldTuple<'a>, DecodeError> {
    match kind {
        b'K' => tuple(reader).map(OldTuple::Key),
        b'O' => tuple(reader).map(OldTuple::Full),
        other => Err(reader.error(offset, expected, Found::Byte(other))),
    }
}

fn update<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("the OID of the relation")?;
    let offset = reader.offset();
    let old = match reader.u8(OLD_OR_NEW)? {
        b'N' => None,
        kind => {
            let old = old_tuple(reader, kind, offset, OLD_OR_NEW)?;
            expect(reader, b'N', "a new tuple ('N')")?;
            Some(old)
        }
    };
    Ok(Message::Update { relation, old, new: tuple(reader)? })
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    const OIDS: &str = "the OIDs of the relations";
    let count = reader.count32("the number of relations, not negative")?;
    let flags = reader.u8("the options of TRUNCATE")?;
    reader.check_left(count.saturating_mul(size_of::<Oid>()), OIDS)?;
    let relations = (0..count).map(|_| reader.u32(OIDS)).collect::<Result<_, _>>()?;
    Ok(Message::Truncate { cascade: flags & 1 != 0, restart_identity: flags & 2 != 0, relations })
}

fn emitted<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let flags = reader.u8("the flags of the message")?;
    let lsn = lsn(reader, "the LSN of the message")?;
    let prefix = reader.string("the prefix of the message")?;
    let length = reader.count32("the length of the content, not negative")?;
    let content = reader.bytes(length, "content of the announced length")?;
    Ok(Message::Emitted { transactional: flags & 1 != 0, lsn, prefix, content })
}
