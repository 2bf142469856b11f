//! What a publication brings of the outbox, as the catalogs have it.
//!
//! The stream asks before it starts and while it runs, `install` before it creates or repairs: one question, so that
//! both mean the same by "right". <https://www.postgresql.org/docs/current/logical-replication-publication.html>

use std::fmt;

use tokio_postgres::{Error, GenericClient};

/// Names that are shown of a longer list.
const SHOWN_MAX: usize = 3;

/// A publication, as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Who owns it.
    pub owner: String,
    /// `publish`: some of insert, update, delete, truncate.
    pub operations: Vec<String>,
    /// `publish_via_partition_root`.
    pub via_root: bool,
    /// It holds the outbox: by name, with its schema, or with all tables.
    pub outbox: bool,
    /// Rows of the outbox are left out.
    pub row_filter: bool,
    /// Columns of the outbox are left out.
    pub column_list: bool,
    /// `FOR ALL TABLES`.
    pub all_tables: bool,
    /// `FOR TABLES IN SCHEMA`.
    pub schemas: Vec<String>,
    /// Tables by name, but for the outbox and its chunks: at most one more than is shown.
    pub others: Vec<String>,
}

/// Why a stream from a publication would not bring every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `publish` lacks `insert`.
    NoInserts,
    /// Events would come from the chunks instead of the outbox.
    NotViaRoot,
    /// The outbox is not in it.
    NoOutbox,
    /// Some events are left out.
    RowFilter,
    /// Some columns are left out.
    ColumnList,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::NoInserts => "it does not publish inserts",
            Fault::NotViaRoot => "publish_via_partition_root is off",
            Fault::NoOutbox => "it lacks statecast.outbox",
            Fault::RowFilter => "it has a row filter on statecast.outbox",
            Fault::ColumnList => "it has a column list on statecast.outbox",
        })
    }
}

/// What a publication holds that no stream of Statecast needs: it costs work, and loses nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extra {
    /// `FOR ALL TABLES`.
    AllTables,
    /// `FOR TABLES IN SCHEMA`.
    Schemas(Vec<String>),
    /// Further tables.
    Tables(Vec<String>),
    /// More than inserts.
    Operations(Vec<String>),
}

impl fmt::Display for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Extra::AllTables => f.write_str("all tables of the database"),
            Extra::Schemas(names) => write!(f, "all tables of schema {}", Shown(names)),
            Extra::Tables(names) => f.write_str(&Shown(names).to_string()),
            Extra::Operations(names) => f.write_str(&names.join(", ")),
        }
    }
}

/// The first names of a list.
struct Shown<'a>(&'a [String]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<&str> = self.0.iter().take(SHOWN_MAX).map(String::as_str).collect();
        f.write_str(&first.join(", "))?;
        if self.0.len() > SHOWN_MAX { f.write_str(" and others") } else { Ok(()) }
    }
}

impl Found {
    /// What is wrong with it; empty: a stream brings every event.
    pub fn faults(&self) -> Vec<Fault> {
        let faults = [
            (!self.publishes("insert"), Fault::NoInserts),
            (!self.via_root, Fault::NotViaRoot),
            (!self.outbox, Fault::NoOutbox),
            (self.row_filter, Fault::RowFilter),
            (self.column_list, Fault::ColumnList),
        ];
        faults.into_iter().filter_map(|(wrong, fault)| wrong.then_some(fault)).collect()
    }

    /// Tables that are not ours: somebody else may use this publication.
    pub fn foreign(&self) -> Vec<Extra> {
        let mut foreign = Vec::new();
        if self.all_tables {
            foreign.push(Extra::AllTables);
        }
        if !self.schemas.is_empty() {
            foreign.push(Extra::Schemas(self.schemas.clone()));
        }
        if !self.others.is_empty() {
            foreign.push(Extra::Tables(self.others.clone()));
        }
        foreign
    }

    /// All that is more than needed.
    pub fn extras(&self) -> Vec<Extra> {
        let mut extras = self.foreign();
        let more: Vec<String> = self.operations.iter().filter(|name| *name != "insert").cloned().collect();
        if !more.is_empty() {
            extras.push(Extra::Operations(more));
        }
        extras
    }

    fn publishes(&self, operation: &str) -> bool {
        self.operations.iter().any(|name| name == operation)
    }
}

/// Reads catalogs only, by index. `pg_publication_namespace` and the columns `prqual` and `prattrs` exist from version 15
/// on, so they are reached by ways that version 14 can parse: `pg_depend`, and the row as JSON.
const FIND: &str = "
SELECT pg_get_userbyid(p.pubowner)::text,
       array_remove(ARRAY[CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
                          CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END], NULL),
       p.pubviaroot,
       p.puballtables,
       -- the outbox by name, and what is left out of it
       r.prrelid IS NOT NULL,
       to_jsonb(r) ->> 'prqual' IS NOT NULL,
       to_jsonb(r) ->> 'prattrs' IS NOT NULL,
       -- FOR TABLES IN SCHEMA: its catalog rows depend on the publication and on the schema
       ARRAY(SELECT n.nspname::text
               FROM pg_depend d
               JOIN pg_depend s ON (s.classid, s.objid) = (d.classid, d.objid)
                               AND s.refclassid = 'pg_catalog.pg_namespace'::regclass
               JOIN pg_namespace n ON n.oid = s.refobjid
              WHERE d.refclassid = 'pg_catalog.pg_publication'::regclass AND d.refobjid = p.oid
                AND d.classid = to_regclass('pg_catalog.pg_publication_namespace')
              ORDER BY 1),
       -- other tables by name; a chunk is no other table
       ARRAY(SELECT format('%I.%I', n.nspname, c.relname)
               FROM pg_publication_rel other
               JOIN pg_class c ON c.oid = other.prrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE other.prpubid = p.oid AND other.prrelid IS DISTINCT FROM o.oid
                AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = other.prrelid AND i.inhparent = o.oid)
              ORDER BY 1
              LIMIT $2)
  FROM pg_publication p
  LEFT JOIN (SELECT c.oid
               FROM pg_class c
               JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname = 'statecast' AND c.relname = 'outbox') o ON true
  LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = o.oid
 WHERE p.pubname = $1";

/// The publication of that name, if there is one. Any login may ask; it takes no lock that anybody waits for.
///
/// # Errors
/// SQL.
pub async fn find(client: &impl GenericClient, name: &str) -> Result<Option<Found>, Error> {
    let limit = SHOWN_MAX as i64 + 1;
    let Some(row) = client.query_opt(FIND, &[&name, &limit]).await? else {
        return Ok(None);
    };
    let (all_tables, listed): (bool, bool) = (row.try_get(3)?, row.try_get(4)?);
    let schemas: Vec<String> = row.try_get(7)?;
    // With its whole schema in the publication, a filter on the table is not applied.
    let with_schema = schemas.iter().any(|name| name == "statecast");
    Ok(Some(Found {
        owner: row.try_get(0)?,
        operations: row.try_get(1)?,
        via_root: row.try_get(2)?,
        outbox: all_tables || listed || with_schema,
        row_filter: row.try_get::<_, bool>(5)? && !with_schema,
        column_list: row.try_get::<_, bool>(6)? && !with_schema,
        all_tables,
        schemas,
        others: row.try_get(8)?,
    }))
}
