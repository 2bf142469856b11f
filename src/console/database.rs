//! The console's own connections: few, read-only but for requests, and each question with a deadline.

use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use tokio::time::timeout;

use crate::config::Postgres;
use crate::postgres::{self, PgError, describe};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 2;
/// For a connection to be there and set up.
const BORROW_TIMEOUT: Duration = Duration::from_secs(3);
/// How it is known on the server.
const APPLICATION: &str = "statecast console";

const READ: &str =
    "SET statement_timeout = '2s'; SET lock_timeout = '1s'; SET default_transaction_read_only = on";
const WRITE: &str =
    "SET statement_timeout = '2s'; SET lock_timeout = '1s'; SET default_transaction_read_only = off";

/// PostgreSQL cannot be asked, or did not answer: in one line, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Away(pub(super) String);

impl From<tokio_postgres::Error> for Away {
    fn from(error: tokio_postgres::Error) -> Away {
        Away(describe(&error))
    }
}

/// The database that holds the outbox.
#[derive(Debug)]
pub(super) struct Database(Pool);

impl Database {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The settings are unusable.
    pub(super) fn new(config: &Postgres) -> Result<Database, PgError> {
        Ok(Database(postgres::pool(config, APPLICATION, CONNECTIONS_MAX)?))
    }

    /// A connection that only reads.
    ///
    /// # Errors
    /// None in time.
    pub(super) async fn reader(&self) -> Result<Object, Away> {
        self.borrow(READ).await
    }

    /// A connection for requests.
    ///
    /// # Errors
    /// None in time.
    pub(super) async fn writer(&self) -> Result<Object, Away> {
        self.borrow(WRITE).await
    }

    async fn borrow(&self, settings: &str) -> Result<Object, Away> {
        let silent = || Away(format!("no answer from PostgreSQL within {} s", BORROW_TIMEOUT.as_secs()));
        let client = timeout(BORROW_TIMEOUT, self.0.get()).await.map_err(|_| silent())?;
        let client = client.map_err(|error| Away(describe(&error)))?;
        match timeout(BORROW_TIMEOUT, client.batch_execute(settings)).await {
            Ok(Ok(())) => Ok(client),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                // Whoever borrowed it next would wait as well.
                drop(Object::take(client));
                Err(silent())
            }
        }
    }
}
