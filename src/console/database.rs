//! The console's own connections: few, read-only but for requests, and each question with a deadline. What nobody has used for a
//! while is closed: nobody counts on them where the server's connections are counted.

use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use tokio::time::timeout;
use tokio_postgres::{Client, Transaction};

use crate::config::Postgres;
use crate::postgres::{self, PgError, describe};

/// Connections for pages at a time.
const READERS_MAX: usize = 2;
/// Connections for requests: whatever pages ask for, there is one.
const WRITERS_MAX: usize = 1;
/// A connection that was last borrowed so long ago is closed.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How often that is looked at.
const TIDY: Duration = Duration::from_secs(2);
/// For a connection to be there and set up.
const BORROW_TIMEOUT: Duration = Duration::from_secs(3);
/// How it is known on the server.
const APPLICATION: &str = "statecast console";

/// Whoever stops in the middle of a page does not keep retention waiting for its locks.
const READ: &str = "SET LOCAL statement_timeout = '2s'; SET LOCAL lock_timeout = '1s';
    SET LOCAL idle_in_transaction_session_timeout = '5s'";
const WRITE: &str = "SET statement_timeout = '2s'; SET lock_timeout = '1s'";

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
pub(super) struct Database {
    readers: Pool,
    writers: Pool,
}

impl Database {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The settings are unusable.
    pub(super) fn new(config: &Postgres) -> Result<Database, PgError> {
        Ok(Database {
            readers: postgres::pool(config, APPLICATION, READERS_MAX)?,
            writers: postgres::pool(config, APPLICATION, WRITERS_MAX)?,
        })
    }

    /// Closes what nobody uses, for ever.
    pub(super) async fn tidy(&self) {
        loop {
            tokio::time::sleep(TIDY).await;
            for pool in [&self.readers, &self.writers] {
                drop(pool.retain(|_, metrics| metrics.last_used() < IDLE_MAX));
            }
        }
    }

    /// A connection for [`begin`], which answers.
    ///
    /// # Errors
    /// None in time.
    pub(super) async fn reader(&self) -> Result<Object, Away> {
        borrow(&self.readers, "").await
    }

    /// A connection for requests.
    ///
    /// # Errors
    /// None in time.
    pub(super) async fn writer(&self) -> Result<Object, Away> {
        borrow(&self.writers, WRITE).await
    }
}

/// Begins to read for a page. The transaction's settings go with it: behind a pooler by mistake, the session is also others'.
/// Between its statements it holds no snapshot.
///
/// # Errors
/// SQL, or no answer in time.
pub(super) async fn begin(client: &mut Object) -> Result<Transaction<'_>, Away> {
    let client: &mut Client = client;
    let begin = async {
        let transaction = client.build_transaction().read_only(true).start().await?;
        transaction.batch_execute(READ).await?;
        Ok::<_, tokio_postgres::Error>(transaction)
    };
    Ok(timeout(BORROW_TIMEOUT, begin).await.map_err(|_| silent())??)
}

fn silent() -> Away {
    Away(format!("no answer from PostgreSQL within {} s", BORROW_TIMEOUT.as_secs()))
}

async fn borrow(pool: &Pool, settings: &str) -> Result<Object, Away> {
    let client = timeout(BORROW_TIMEOUT, pool.get()).await.map_err(|_| silent())?;
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
