//! What the columns of each relation are, as the stream told last.
//!
//! The server describes a relation before its first change on a connection and again whenever its own description went
//! stale, always before the changes that look so; hence what is kept is what the next tuple means. Rows of a partition
//! that are published as the root's bring a description of the root and then one of the partition, which no change
//! refers to. For the outbox, positions are resolved here by name, once, so that added columns and any order of columns
//! cost nothing per row.

use std::collections::HashMap;

use super::message::{Oid, RelationMessage, ReplicaIdentity};
use super::outbox;

/// Relations of one connection, at most. Each chunk that rows come from is one, too.
pub const RELATIONS_MAX: usize = 65_536;

/// A relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// How changes refer to it.
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What old tuples hold.
    pub replica_identity: ReplicaIdentity,
    /// In the order of its tuples.
    pub columns: Vec<Column>,
    /// Where the outbox's columns are, if it is the outbox.
    pub(super) outbox: Option<outbox::Positions>,
}

/// A column of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Part of the replica identity.
    pub key: bool,
    /// Its data type.
    pub type_oid: Oid,
    /// `atttypmod`; -1 for none.
    pub type_modifier: i32,
}

impl Relation {
    /// Is this `statecast.outbox`? Its chunks are not: the publication tells their rows as the root's.
    pub fn is_outbox(&self) -> bool {
        self.outbox.is_some()
    }
}

/// A relation cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    /// The outbox lacks columns: they were renamed, or the publication has a column list.
    #[error(
        "statecast.outbox is published without {}: these columns are missing, or the publication has a column list",
        .columns.join(", ")
    )]
    MissingColumns {
        /// Which.
        columns: Vec<&'static str>,
    },
    /// A column of the outbox has another type.
    #[error("statecast.outbox.{column} is of type {found}, not {expected}")]
    WrongType {
        /// Which.
        column: &'static str,
        /// What it was installed as.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A change of a relation that the server did not describe.
    #[error("a change of the relation with OID {oid}, which the server has not described")]
    Unknown {
        /// Which.
        oid: Oid,
    },
    /// More than [`RELATIONS_MAX`].
    #[error("more than {RELATIONS_MAX} relations on one connection")]
    TooMany,
}

/// The relations of one connection.
#[derive(Debug, Default)]
pub struct Relations {
    by_oid: HashMap<Oid, Relation>,
}

impl Relations {
    /// Takes in a Relation message. After an error the relation is unknown: nothing is read by an old description.
    ///
    /// # Errors
    /// It is the outbox and a column is missing or of another type; or there are too many relations.
    pub fn apply(&mut self, message: &RelationMessage<'_>) -> Result<&Relation, RelationError> {
        self.by_oid.remove(&message.oid);
        if self.by_oid.len() >= RELATIONS_MAX {
            return Err(RelationError::TooMany);
        }
        let is_outbox = message.schema == outbox::SCHEMA && message.name == outbox::TABLE;
        let outbox = is_outbox.then(|| outbox::Positions::resolve(&message.columns)).transpose()?;
        let columns = message.columns.iter().map(|column| Column {
            name: column.name.to_owned(),
            key: column.key,
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
        });
        let relation = Relation {
            oid: message.oid,
            schema: message.schema.to_owned(),
            name: message.name.to_owned(),
            replica_identity: message.replica_identity,
            columns: columns.collect(),
            outbox,
        };
        Ok(self.by_oid.entry(message.oid).insert_entry(relation).into_mut())
    }

    /// The relation that a change refers to.
    ///
    /// # Errors
    /// The server did not describe it.
    pub fn get(&self, oid: Oid) -> Result<&Relation, RelationError> {
        self.by_oid.get(&oid).ok_or(RelationError::Unknown { oid })
    }
}
