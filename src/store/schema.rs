//! Which schema a database has, and whether this program can work with it.

use tokio_postgres::{Client, Error};

/// Major version this program works with: another one has tables it does not understand.
pub const SCHEMA_MAJOR: i32 = 1;
/// Oldest minor version of that major which has everything this program uses. `install` brings it.
pub const SCHEMA_MINOR: i32 = 3;

/// `statecast.meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaVersion {
    /// Changes when older programs would no longer work.
    pub major: i32,
    /// Rises with every addition.
    pub minor: i32,
}

/// The schema cannot be used. One line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Never installed here.
    #[error("database {database} has no Statecast schema: run `statecast install` against it")]
    Missing {
        /// Database.
        database: String,
    },
    /// Installed, but this login may not look.
    #[error("login {login} may not use the schema statecast: GRANT statecast_relay TO {login}")]
    Forbidden {
        /// Quoted role name.
        login: String,
    },
    /// An installation that stopped half-way, or a damaged one.
    #[error("the Statecast schema in database {database} is incomplete: run `statecast install` again")]
    Incomplete {
        /// Database.
        database: String,
    },
    /// Older than this program needs.
    #[error(
        "the Statecast schema is version {}.{}, this program needs {SCHEMA_MAJOR}.{SCHEMA_MINOR}: run `statecast install`",
        found.major, found.minor
    )]
    Older {
        /// What is there.
        found: SchemaVersion,
    },
    /// A newer major version.
    #[error(
        "the Statecast schema is version {}.{}, this program knows {SCHEMA_MAJOR}.x: use a newer statecast (`statecast install` does not go back)",
        found.major, found.minor
    )]
    Newer {
        /// What is there.
        found: SchemaVersion,
    },
    /// The question could not be asked.
    #[error("cannot read the version of the Statecast schema")]
    Sql(#[from] Error),
}

impl SchemaError {
    /// Can only a person help?
    pub fn is_permanent(&self) -> bool {
        !matches!(self, SchemaError::Sql(_))
    }
}

/// The installed version; `None` where there is no such schema.
///
/// # Errors
///
/// [`SchemaError::Forbidden`], [`SchemaError::Incomplete`] or [`SchemaError::Sql`].
pub async fn schema_version(client: &Client) -> Result<Option<SchemaVersion>, SchemaError> {
    // The catalogs can be read by everybody, while naming a table in a schema without USAGE is an error.
    let facts = client
        .query_one(
            "SELECT n.oid IS NOT NULL,
                    coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), false),
                    c.oid IS NOT NULL, current_database()::text, quote_ident(current_user)
             FROM (SELECT 1) one
             LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'statecast'
             LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'meta'",
            &[],
        )
        .await?;
    let (schema, usable, table): (bool, bool, bool) =
        (facts.try_get(0)?, facts.try_get(1)?, facts.try_get(2)?);
    let (database, login): (String, String) = (facts.try_get(3)?, facts.try_get(4)?);
    if !schema {
        return Ok(None);
    }
    if !table {
        return Err(SchemaError::Incomplete { database });
    }
    if !usable {
        return Err(SchemaError::Forbidden { login });
    }
    let row = client.query_opt("SELECT schema_major, schema_minor FROM statecast.meta", &[]).await?;
    let Some(row) = row else {
        return Err(SchemaError::Incomplete { database });
    };
    Ok(Some(SchemaVersion { major: row.try_get(0)?, minor: row.try_get(1)? }))
}

/// The installed version, if this program can work with it: the same major version, at or above the minimum.
///
/// # Errors
///
/// See [`SchemaError`].
pub async fn require_schema(client: &Client) -> Result<SchemaVersion, SchemaError> {
    let Some(found) = schema_version(client).await? else {
        let database = client.query_one("SELECT current_database()::text", &[]).await?.try_get(0)?;
        return Err(SchemaError::Missing { database });
    };
    if found.major > SCHEMA_MAJOR {
        return Err(SchemaError::Newer { found });
    }
    if found.major < SCHEMA_MAJOR || found.minor < SCHEMA_MINOR {
        return Err(SchemaError::Older { found });
    }
    Ok(found)
}
