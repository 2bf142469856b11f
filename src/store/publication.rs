//! The publication that a stream reads: `statecast install` creates it, and mends it where it is ours.
//!
//! After the schema, in a transaction of its own: who lacks the right for this step has the schema all the same. A
//! publication that also holds other tables may be somebody else's, and is left alone. One that is right is not touched:
//! every `ALTER PUBLICATION` makes running streams look the outbox up again.
//!
//! Rights: creating one takes `CREATE` on the database and the rights of the outbox's owner, mending one the rights of
//! its own owner too. That owner is `statecast_owner` where a superuser installs, or where that role has `CREATE` on the
//! database (which Statecast grants to nobody); else it is whoever installed. Streaming takes no right on a publication.

mod plan;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Transaction};

use super::install::{INSTALL_LOCK, InstallError, lock, unlock};
use crate::publication::find;
use plan::{Plan, create, create_sql, hand_over, plan};

/// An upkeep that is under way ends sooner; nobody who writes events waits for this lock.
const LOCK_TIMEOUT: &str = "10s";

/// What became of the publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was right.
    Nothing,
    /// There was none.
    Created,
    /// What was wrong with it.
    Mended(Vec<String>),
}

/// What [`ensure`] did and saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What was done.
    pub done: Done,
    /// Streaming needs `logical`.
    pub wal_level: String,
}

/// Why there is no publication that fits. One line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    /// It holds more than the outbox, and does not fit.
    #[error(
        "publication {name:?} belongs to {owner} and also publishes {holds}; for Statecast {wrong}: name another one in source.wal.publication, or let {owner} run: {by_hand}"
    )]
    Foreign {
        /// `source.wal.publication`.
        name: String,
        /// Its owner.
        owner: String,
        /// Other tables.
        holds: String,
        /// What is wrong with it.
        wrong: String,
        /// SQL that mends it.
        by_hand: String,
    },
    /// This login may not.
    #[error("login {login} lacks the rights to {what} publication {name:?}: let {who} run: {by_hand}")]
    Forbidden {
        /// Quoted role name.
        login: String,
        /// `create` or `mend`.
        what: &'static str,
        /// `source.wal.publication`.
        name: String,
        /// Who may.
        who: String,
        /// SQL that does it.
        by_hand: String,
        /// What the server said.
        #[source]
        source: Error,
    },
    /// The installer's lock.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A statement failed.
    #[error("cannot create or mend publication {name:?}")]
    Sql {
        /// `source.wal.publication`.
        name: String,
        /// What the server said.
        #[source]
        source: Error,
    },
}

/// Creates the publication `name`, mends it, or finds that it is right. The schema must be there.
///
/// # Errors
/// See [`PublicationError`]; then nothing was changed.
pub async fn ensure(client: &mut Client, name: &str) -> Result<Report, PublicationError> {
    lock(client).await?;
    let done = locked(client, name).await;
    let released = unlock(client).await;
    let report = done?;
    released?;
    Ok(report)
}

async fn locked(client: &mut Client, name: &str) -> Result<Report, PublicationError> {
    let failed = |source| PublicationError::Sql { name: name.to_owned(), source };
    let transaction = client.transaction().await.map_err(failed)?;
    let settings = format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'");
    transaction.batch_execute(&settings).await.map_err(failed)?;
    let (login, wal_level) = login(&transaction).await.map_err(failed)?;
    let found = find(&transaction, name).await.map_err(failed)?;
    let forbidden = |what, who: &str, sql: &[String]| {
        let (name, login, who, by_hand) = (name.to_owned(), login.clone(), who.to_owned(), sql.join("; "));
        move |source: Error| match source.code() {
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                PublicationError::Forbidden { login, what, name, who, by_hand, source }
            }
            _ => PublicationError::Sql { name, source },
        }
    };
    let done = match plan(found.as_ref(), name) {
        Plan::Nothing => Done::Nothing,
        Plan::Create => {
            let by_hand = [create(name), hand_over(name)];
            let refused = forbidden("create", "a superuser", &by_hand);
            transaction.batch_execute(&create_sql(name)).await.map_err(refused)?;
            Done::Created
        }
        Plan::Mend { sql, wrong } => {
            let owner = found.map(|found| found.owner).unwrap_or_default();
            let refused = forbidden("mend", &format!("its owner {owner} or a superuser"), &sql);
            transaction.batch_execute(&sql.join("; ")).await.map_err(refused)?;
            Done::Mended(wrong)
        }
        Plan::Refuse { owner, holds, wrong, sql } => {
            let (name, by_hand) = (name.to_owned(), sql.join("; "));
            return Err(PublicationError::Foreign { name, owner, holds, wrong, by_hand });
        }
    };
    transaction.commit().await.map_err(failed)?;
    Ok(Report { done, wal_level })
}

async fn login(transaction: &Transaction<'_>) -> Result<(String, String), Error> {
    let sql = "SELECT quote_ident(current_user), current_setting('wal_level')";
    let row = transaction.query_one(sql, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// The same for psql, to follow [`super::install::print_sql`].
pub fn print_sql(name: &str) -> String {
    format!(
        "
-- The publication for streaming (source.mode), in a transaction of its own: if one of this name exists, this part fails
-- and nothing else; `statecast check` says whether that one fits. Needs no wal_level yet, whatever the server warns of.
BEGIN;
SELECT pg_advisory_xact_lock({INSTALL_LOCK});
{}COMMIT;
",
        create_sql(name)
    )
}
