//! One page of a window: asking for it, and reading the answer.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::sql::{FETCH, LIST, PAGE};
use crate::event::{Event, Seq};
use crate::event_row::event;
use crate::snapshot::{BadSnapshot, Snapshot};

/// No answer for this long: the connection is taken for dead. More than the session's `statement_timeout`, which a backend
/// that hangs, or a proxy whose server is gone, does not keep.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);

/// The statements of a poller, prepared once per session.
#[derive(Debug, Clone)]
pub struct Statements {
    page: Statement,
    list: Statement,
    fetch: Statement,
}

/// Where a page begins.
#[derive(Debug)]
pub struct Request<'a> {
    /// Pipeline.
    pub pipeline: &'a str,
    /// P.
    pub from: &'a Snapshot,
    /// The window's upper snapshot and ceil, after its first page.
    pub window: Option<(&'a Snapshot, Seq)>,
    /// Rows above this.
    pub after_seq: Seq,
    /// Lower bound of the `new` branch.
    pub prune_seq: Seq,
    /// Every unsettled row lies above this.
    pub floor_seq: Seq,
    /// Rows, at most.
    pub rows_max: i64,
    /// Bytes, at most; one larger row passes alone.
    pub bytes_max: i64,
}

/// What a page's statement saw besides rows.
#[derive(Debug)]
pub struct Head {
    /// The window's upper snapshot.
    pub upper: Snapshot,
    /// `max_seq` of the cursor row version that the snapshot sees.
    pub max_seq: Seq,
    /// `floor_seq` of the same version.
    pub floor_seq: Seq,
    /// The sequence's last value, read after the snapshot.
    pub last_seq: Seq,
    /// WAL position that covers every row of the page.
    pub insert_lsn: u64,
    /// WAL that is on disk.
    pub flush_lsn: u64,
}

/// A page.
#[derive(Debug)]
pub struct PageRows {
    /// What else the statement saw.
    pub head: Head,
    /// Rows, ascending by seq.
    pub events: Vec<Event>,
    /// More rows may follow in this window.
    pub full: bool,
}

/// A page without its events.
#[derive(Debug)]
pub struct Listing {
    /// What else the statement saw.
    pub head: Head,
    /// Rows, ascending.
    pub seqs: Vec<Seq>,
    /// More rows may follow in this window.
    pub full: bool,
}

/// A page could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// SQL.
    #[error("reading the outbox failed")]
    Sql(#[from] tokio_postgres::Error),
    /// The server sent a snapshot that is none.
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    /// The connection ended: the server shuts down, or the network broke.
    #[error("the connection to PostgreSQL that reads the outbox was closed")]
    Closed,
    /// The server does not answer.
    #[error("PostgreSQL has not answered a read of the outbox for {ANSWER_TIMEOUT:?}")]
    Silent,
    /// No cursor row.
    #[error("pipeline {0:?} has no row in statecast.cursor: it was dropped while the relay ran")]
    NoCursor(String),
    /// Rows that are not settled are not there any more.
    #[error(
        "{missing} unsettled rows are gone from statecast.outbox (the first is seq {first}): it was truncated or rows were deleted"
    )]
    RowsGone {
        /// How many.
        missing: usize,
        /// The lowest.
        first: Seq,
    },
    /// The same where a stream has brought rows, which may not be visible yet.
    #[error(
        "{missing} unsettled rows cannot be read (the first is seq {first}): their commit waits for a synchronous standby, or rows of statecast.outbox were deleted"
    )]
    StreamedRowsGone {
        /// How many.
        missing: usize,
        /// The lowest.
        first: Seq,
    },
}

impl Statements {
    /// Prepares the statements.
    ///
    /// # Errors
    /// SQL.
    pub async fn prepare(client: &Client) -> Result<Self, PageError> {
        Ok(Statements {
            page: client.prepare(PAGE).await?,
            list: client.prepare(LIST).await?,
            fetch: client.prepare(FETCH).await?,
        })
    }

    /// Reads a page.
    ///
    /// # Errors
    /// SQL, or the cursor row is gone.
    pub async fn page(&self, client: &Client, request: &Request<'_>) -> Result<PageRows, PageError> {
        let texts = Texts::of(request);
        let mut parameters = texts.parameters(request).to_vec();
        parameters.push(&request.bytes_max);
        let rows = answered(client.query(&self.page, &parameters)).await?;
        let mut head = None;
        let mut found = 0;
        let mut events = Vec::with_capacity(rows.len().saturating_sub(1));
        for row in rows {
            if row.try_get::<_, Option<Seq>>(0)?.is_some() {
                found = row.try_get::<_, i64>(15)?;
                events.push(event(row)?);
            } else {
                head = Some(decode_head(&row, 16)?);
            }
        }
        let head = head.ok_or_else(|| PageError::NoCursor(request.pipeline.to_owned()))?;
        // An append of two plans: nothing but convention keeps its order.
        events.sort_unstable_by_key(|e| e.seq);
        let full = found >= request.rows_max || (events.len() as i64) < found;
        Ok(PageRows { head, events, full })
    }

    /// Lists the rows of a page. Its bound is the number of rows alone.
    ///
    /// # Errors
    /// SQL, or the cursor row is gone.
    pub async fn list(&self, client: &Client, request: &Request<'_>) -> Result<Listing, PageError> {
        let texts = Texts::of(request);
        let rows = answered(client.query(&self.list, &texts.parameters(request))).await?;
        let mut head = None;
        let mut seqs = Vec::with_capacity(rows.len().saturating_sub(1));
        for row in &rows {
            match row.try_get(0)? {
                Some(seq) => seqs.push(seq),
                None => head = Some(decode_head(row, 1)?),
            }
        }
        let head = head.ok_or_else(|| PageError::NoCursor(request.pipeline.to_owned()))?;
        seqs.sort_unstable();
        let full = seqs.len() as i64 >= request.rows_max;
        Ok(Listing { head, seqs, full })
    }

    /// Reads unsettled rows again.
    ///
    /// # Errors
    /// SQL, or rows are gone.
    pub async fn fetch(&self, client: &Client, seqs: &[Seq]) -> Result<Vec<Event>, PageError> {
        let (Some(lo), Some(hi)) = (seqs.iter().min(), seqs.iter().max()) else {
            return Ok(Vec::new());
        };
        let rows = answered(client.query(&self.fetch, &[&seqs, lo, hi])).await?;
        let events = rows.into_iter().map(event).collect::<Result<Vec<_>, _>>()?;
        if events.len() < seqs.len() {
            let there: std::collections::HashSet<Seq> = events.iter().map(|e| e.seq).collect();
            let first = seqs.iter().copied().filter(|seq| !there.contains(seq)).min().unwrap_or(*lo);
            return Err(PageError::RowsGone { missing: seqs.len() - events.len(), first });
        }
        Ok(events)
    }
}

/// The answer to a query, if there is one in time.
pub(in crate::source) async fn answered<T>(
    query: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, PageError> {
    Ok(timeout(ANSWER_TIMEOUT, query).await.map_err(|_| PageError::Silent)??)
}

/// The parameters of a request that have no binary form of their own.
struct Texts {
    from: String,
    p_xmax: String,
    upper: Option<String>,
    ceil: Option<Seq>,
}

impl Texts {
    fn of(request: &Request<'_>) -> Self {
        Texts {
            from: request.from.to_string(),
            p_xmax: request.from.xmax.to_string(),
            upper: request.window.map(|(upper, _)| upper.to_string()),
            ceil: request.window.map(|(_, ceil)| ceil),
        }
    }

    /// `$1` to `$9`.
    fn parameters<'a>(&'a self, request: &'a Request<'_>) -> [&'a (dyn ToSql + Sync); 9] {
        [
            &request.pipeline,
            &self.from,
            &self.upper,
            &self.p_xmax,
            &request.after_seq,
            &request.prune_seq,
            &request.floor_seq,
            &self.ceil,
            &request.rows_max,
        ]
    }
}

/// The head's columns begin at `first`.
fn decode_head(row: &Row, first: usize) -> Result<Head, PageError> {
    let lsn = |column| row.try_get::<_, tokio_postgres::types::PgLsn>(column).map(u64::from);
    Ok(Head {
        upper: row.try_get::<_, &str>(first)?.parse()?,
        max_seq: row.try_get(first + 1)?,
        floor_seq: row.try_get(first + 2)?,
        last_seq: row.try_get(first + 3)?,
        insert_lsn: lsn(first + 4)?,
        flush_lsn: lsn(first + 5)?,
    })
}
