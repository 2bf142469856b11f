//! What people do with events that are set aside: look at them, and ask for something.
//!
//! Asking writes a request into the rows and a line into `statecast.audit`, in one transaction; the leader acts. Looking may scan
//! the pipeline's rows.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, GenericClient, Row};
use uuid::Uuid;

use super::State;
use crate::contract::Act;

/// Rows of one transaction that asks, at most: a leader that writes one of them waits for it, and must not lose its lease over that.
const ROWS_AT_ONCE: i64 = 5_000;
/// A leader that writes one of the rows at this moment is through with it in milliseconds.
const TRIES: u32 = 10;
/// Between two tries.
const RETRY: Duration = Duration::from_millis(100);

/// A client that hangs while it has rows locked is thrown out before the leader, which may have to write them, has gone
/// without a renewal of its lease for so long (3 s) that it must not publish any more.
const HANGS_BRIEFLY: &str = "SET LOCAL idle_in_transaction_session_timeout = '1s'";

/// Which events. What is not said does not matter; what is said must hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Any of these.
    pub event_ids: Vec<Uuid>,
    /// Only rows with these numbers. With them, whatever is asked looks at these rows alone; by ids, at all of the pipeline's.
    pub seqs: Vec<i64>,
    /// Kind of the entity.
    pub aggregate_type: Option<String>,
    /// Its id.
    pub aggregate_id: Option<String>,
    /// Why they are set aside, as it stands in the column. (What only queues has no reason.)
    pub reason: Option<&'static str>,
    /// States; none: every open one.
    pub states: Vec<State>,
    /// Written longer ago than this.
    pub older_than: Option<Duration>,
}

/// Every state that is not final.
pub const OPEN: [State; 4] = [State::Waiting, State::Parked, State::Queued, State::Retry];

/// The states in which something can be asked for. A row that queues goes when its key does: there is nothing to retry.
pub fn can_be_asked(act: Act) -> &'static [State] {
    match act {
        Act::Retry => &[State::Waiting, State::Parked],
        Act::Discard => &OPEN,
    }
}

/// The condition of a [`Selector`]; `$1` to `$8`, see [`Parameters`].
const SELECTED: &str = "p.pipeline = $1 AND p.state = ANY ($2::text[])
   AND ($3::uuid[] IS NULL OR p.event_id = ANY ($3::uuid[]))
   AND ($4::text IS NULL OR p.aggregate_type = $4::text)
   AND ($5::text IS NULL OR p.aggregate_id = $5::text)
   AND ($6::text IS NULL OR p.reason = $6::text)
   AND ($7::float8 IS NULL OR p.recorded_at < clock_timestamp() - $7::float8 * interval '1 second')
   AND ($8::bigint[] IS NULL OR p.seq = ANY ($8::bigint[]))";

/// A selector as SQL takes it.
struct Parameters<'a> {
    pipeline: &'a str,
    states: Vec<&'static str>,
    event_ids: Option<&'a [Uuid]>,
    aggregate_type: Option<&'a str>,
    aggregate_id: Option<&'a str>,
    reason: Option<&'static str>,
    older_than_s: Option<f64>,
    seqs: Option<&'a [i64]>,
}

impl<'a> Parameters<'a> {
    /// Of the selector's states, those that are `possible`.
    fn new(pipeline: &'a str, selector: &'a Selector, possible: &[State]) -> Self {
        let asked = |state: &&State| selector.states.is_empty() || selector.states.contains(state);
        Parameters {
            pipeline,
            states: possible.iter().filter(asked).map(|state| state.as_str()).collect(),
            event_ids: Some(selector.event_ids.as_slice()).filter(|ids| !ids.is_empty()),
            aggregate_type: selector.aggregate_type.as_deref(),
            aggregate_id: selector.aggregate_id.as_deref(),
            reason: selector.reason,
            older_than_s: selector.older_than.map(|age| age.as_secs_f64()),
            seqs: Some(selector.seqs.as_slice()).filter(|seqs| !seqs.is_empty()),
        }
    }

    fn all(&self) -> [&(dyn ToSql + Sync); 8] {
        [
            &self.pipeline,
            &self.states,
            &self.event_ids,
            &self.aggregate_type,
            &self.aggregate_id,
            &self.reason,
            &self.older_than_s,
            &self.seqs,
        ]
    }
}

/// An event that is set aside, as people look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table's columns")]
pub struct ParkedRow {
    pub seq: i64,
    pub event_id: Uuid,
    pub aggregate_type: String,
    pub aggregate_id: String,
    pub event_type: String,
    /// `None` = deleted; also in a [`brief`] list, which does not read payloads.
    pub payload_bytes: Option<i32>,
    /// RFC 3339, UTC.
    pub recorded_at: String,
    pub state: String,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub routing_key: Option<String>,
    pub attempts: i32,
    /// RFC 3339, UTC.
    pub since: String,
    /// Seconds since it came into its state.
    pub since_s: i64,
    /// RFC 3339, UTC.
    pub parked_at: Option<String>,
    pub request: Option<String>,
    /// Who asked last.
    pub requested_by: Option<String>,
    /// RFC 3339, UTC.
    pub requested_at: Option<String>,
    pub passed: bool,
}

/// The columns of a [`ParkedRow`]; `size` is what tells the payload's.
fn columns(size: &str) -> String {
    format!(
        r#"p.seq, p.event_id, p.aggregate_type, p.aggregate_id, p.event_type, {size},
       to_char(p.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
       p.state, p.reason, p.detail, p.routing_key, p.attempts,
       to_char(p.since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
       extract(epoch FROM clock_timestamp() - p.since)::bigint,
       to_char(p.parked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
       p.request, p.requested_by,
       to_char(p.requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
       p.passed"#
    )
}

/// The payload's bytes as they were written. The server fetches and copies all of it to say so.
const EXACT_SIZE: &str = "octet_length(p.payload::text)";

fn decode(row: &Row) -> Result<ParkedRow, Error> {
    Ok(ParkedRow {
        seq: row.try_get(0)?,
        event_id: row.try_get(1)?,
        aggregate_type: row.try_get(2)?,
        aggregate_id: row.try_get(3)?,
        event_type: row.try_get(4)?,
        payload_bytes: row.try_get(5)?,
        recorded_at: row.try_get(6)?,
        state: row.try_get(7)?,
        reason: row.try_get(8)?,
        detail: row.try_get(9)?,
        routing_key: row.try_get(10)?,
        attempts: row.try_get(11)?,
        since: row.try_get(12)?,
        since_s: row.try_get(13)?,
        parked_at: row.try_get(14)?,
        request: row.try_get(15)?,
        requested_by: row.try_get(16)?,
        requested_at: row.try_get(17)?,
        passed: row.try_get(18)?,
    })
}

/// Events that match, in write order, at most `limit`; and how many match.
///
/// # Errors
/// SQL.
pub async fn list(
    client: &impl GenericClient,
    pipeline: &str,
    selector: &Selector,
    limit: i64,
) -> Result<(Vec<ParkedRow>, i64), Error> {
    matching(client, &Parameters::new(pipeline, selector, &OPEN), limit).await
}

/// Those for which `act` would be asked.
///
/// # Errors
/// SQL.
pub async fn would_ask(
    client: &impl GenericClient,
    pipeline: &str,
    selector: &Selector,
    act: Act,
    limit: i64,
) -> Result<(Vec<ParkedRow>, i64), Error> {
    matching(client, &Parameters::new(pipeline, selector, can_be_asked(act)), limit).await
}

async fn matching(
    client: &impl GenericClient,
    selected: &Parameters<'_>,
    limit: i64,
) -> Result<(Vec<ParkedRow>, i64), Error> {
    Ok((rows(client, selected, EXACT_SIZE, limit).await?, count(client, selected).await?))
}

async fn rows(
    client: &impl GenericClient,
    selected: &Parameters<'_>,
    size: &str,
    limit: i64,
) -> Result<Vec<ParkedRow>, Error> {
    let columns = columns(size);
    let sql = format!("SELECT {columns} FROM statecast.parked p WHERE {SELECTED} ORDER BY p.seq LIMIT $9");
    let mut parameters = selected.all().to_vec();
    parameters.push(&limit);
    client.query(&sql, &parameters).await?.iter().map(decode).collect()
}

/// How many events match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matching {
    /// So many.
    Exactly(i64),
    /// More than [`COUNTED_MAX`].
    More,
    /// The server had no time to count them.
    Unknown,
}

/// Matching events that a [`brief`] list counts, at most.
pub const COUNTED_MAX: i64 = 10_000;

/// The same list for who cannot wait: no payload is read for its size, and no more than [`COUNTED_MAX`] events are counted. Where
/// the server gives up counting (`statement_timeout`), the list is there nevertheless.
///
/// # Errors
/// SQL.
pub async fn brief(
    client: &impl GenericClient,
    pipeline: &str,
    selector: &Selector,
    limit: i64,
) -> Result<(Vec<ParkedRow>, Matching), Error> {
    let selected = Parameters::new(pipeline, selector, &OPEN);
    let rows = rows(client, &selected, "NULL::integer", limit).await?;
    if (rows.len() as i64) < limit {
        let matching = Matching::Exactly(rows.len() as i64);
        return Ok((rows, matching));
    }
    let sql = format!(
        "SELECT count(*) FROM (SELECT FROM statecast.parked p WHERE {SELECTED} LIMIT {COUNTED_MAX} + 1) m"
    );
    let matching = match client.query_one(&sql, &selected.all()).await {
        Ok(row) => Some(row.try_get::<_, i64>(0)?).filter(|count| *count <= COUNTED_MAX),
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            return Ok((rows, Matching::Unknown));
        }
        Err(error) => return Err(error),
    };
    Ok((rows, matching.map_or(Matching::More, Matching::Exactly)))
}

async fn count(client: &impl GenericClient, selected: &Parameters<'_>) -> Result<i64, Error> {
    let sql = format!("SELECT count(*) FROM statecast.parked p WHERE {SELECTED}");
    client.query_one(&sql, &selected.all()).await?.try_get(0)
}

/// An event with everything that there is to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table's columns")]
pub struct ParkedEvent {
    pub row: ParkedRow,
    pub schema_version: String,
    pub entity_version: Option<i64>,
    pub headers: Option<String>,
    pub correlation_id: Option<String>,
    pub causation_id: Option<String>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    /// Where it was asked for.
    pub payload: Option<String>,
    /// Rows of its key that come before it and are open.
    pub ahead: i64,
}

/// The events with this id, whatever their state. (An id that applications choose can occur twice.)
///
/// # Errors
/// SQL.
pub async fn show(
    client: &impl GenericClient,
    pipeline: &str,
    event_id: Uuid,
    payload: bool,
) -> Result<Vec<ParkedEvent>, Error> {
    let columns = columns(EXACT_SIZE);
    let sql = format!(
        "SELECT {columns}, p.schema_version, p.entity_version, p.headers::text, p.correlation_id, p.causation_id,
                p.traceparent, p.tracestate, CASE WHEN $3::boolean THEN p.payload::text END,
                (SELECT count(*)
                   FROM statecast.parked b
                  WHERE b.pipeline = $1 AND b.key_hash = p.key_hash AND b.seq < p.seq
                    AND b.state NOT IN ('confirmed', 'discarded'))
           FROM statecast.parked p
          WHERE p.pipeline = $1 AND p.event_id = $2
          ORDER BY p.seq"
    );
    let rows = client.query(&sql, &[&pipeline, &event_id, &payload]).await?;
    rows.iter()
        .map(|row| {
            Ok(ParkedEvent {
                row: decode(row)?,
                schema_version: row.try_get(19)?,
                entity_version: row.try_get(20)?,
                headers: row.try_get(21)?,
                correlation_id: row.try_get(22)?,
                causation_id: row.try_get(23)?,
                traceparent: row.try_get(24)?,
                tracestate: row.try_get(25)?,
                payload: row.try_get(26)?,
                ahead: row.try_get(27)?,
            })
        })
        .collect()
}

/// Who asks, for what and why.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What for.
    pub act: Act,
    /// For which events.
    pub selector: &'a Selector,
    /// The selector as it was said, for the audit.
    pub said: &'a str,
    /// Person and machine; the database role is added.
    pub actor: &'a str,
    /// Kept in the audit.
    pub why: Option<&'a str>,
}

/// What a request came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// Rows that are asked for it now.
    pub asked: i64,
    /// Rows that were asked for it before, which is not answered yet.
    pub already: i64,
    /// Rows that the leader was writing, again and again: nothing is asked for them.
    pub busy: i64,
    /// Of the ids that were named, those that there is nothing to ask for.
    pub not_found: Vec<Uuid>,
}

/// `$9` what is asked for, `$10` by whom, `$11` rows above this seq, `$12` rows at most.
///
/// Rows are locked as they are found, without waiting for a leader that writes them: two that wait for each other's rows would
/// end in a deadlock, which might hit the leader.
fn ask_sql() -> String {
    format!(
        "WITH chosen AS (
    SELECT p.seq
      FROM statecast.parked p
     WHERE {SELECTED}
       AND p.request IS DISTINCT FROM $9 AND p.seq > $11
     ORDER BY p.seq
     LIMIT $12
       FOR UPDATE SKIP LOCKED
), asked AS (
    UPDATE statecast.parked p
       SET request = $9, requested_by = $10, requested_at = clock_timestamp()
      FROM chosen c
     WHERE p.pipeline = $1 AND p.seq = c.seq
 RETURNING p.seq
)
SELECT count(*), max(seq)
  FROM asked"
    )
}

/// Asks the leader to act: some rows at a time, each time with a line in the audit. Writes nothing where nothing matches.
///
/// # Errors
/// SQL. What was asked for by then stays so.
pub async fn ask(client: &mut Client, pipeline: &str, request: &Request<'_>) -> Result<Requested, Error> {
    let selected = Parameters::new(pipeline, request.selector, can_be_asked(request.act));
    let mut requested = survey(client, &selected, request).await?;
    let (mut above, mut tries) = (i64::MIN, 1);
    loop {
        let (asked, last) = ask_some(client, &selected, request, above).await?;
        requested.asked += asked;
        if let Some(last) = last.filter(|_| asked == ROWS_AT_ONCE) {
            above = last;
            continue;
        }
        // What was skipped is looked at once more, from the start.
        requested.busy =
            count(client, &selected).await? - count_asked(client, &selected, request.act).await?;
        if requested.busy <= 0 || tries == TRIES {
            requested.busy = requested.busy.max(0);
            return Ok(requested);
        }
        (above, tries) = (i64::MIN, tries + 1);
        tokio::time::sleep(RETRY).await;
    }
}

/// What matches before anything is asked for.
async fn survey(
    client: &Client,
    selected: &Parameters<'_>,
    request: &Request<'_>,
) -> Result<Requested, Error> {
    let already = count_asked(client, selected, request.act).await?;
    let sql = format!(
        "SELECT DISTINCT p.event_id FROM statecast.parked p WHERE $3::uuid[] IS NOT NULL AND {SELECTED}"
    );
    let rows = client.query(&sql, &selected.all()).await?;
    let found: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let not_found = request.selector.event_ids.iter().copied().filter(|id| !found.contains(id)).collect();
    Ok(Requested { already, not_found, ..Requested::default() })
}

async fn count_asked(client: &Client, selected: &Parameters<'_>, act: Act) -> Result<i64, Error> {
    let sql = format!("SELECT count(*) FROM statecast.parked p WHERE {SELECTED} AND p.request = $9");
    let act = act_str(act);
    let mut parameters = selected.all().to_vec();
    parameters.push(&act);
    client.query_one(&sql, &parameters).await?.try_get(0)
}

/// Rows that were asked for, and the last of them.
async fn ask_some(
    client: &mut Client,
    selected: &Parameters<'_>,
    request: &Request<'_>,
    above: i64,
) -> Result<(i64, Option<i64>), Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(HANGS_BRIEFLY).await?;
    let role: String = transaction.query_one("SELECT session_user::text", &[]).await?.try_get(0)?;
    let (act, by) = (act_str(request.act), format!("{} as {role}", request.actor));
    let mut parameters = selected.all().to_vec();
    parameters.extend::<[&(dyn ToSql + Sync); 4]>([&act, &by, &above, &ROWS_AT_ONCE]);
    let row = transaction.query_one(&ask_sql(), &parameters).await?;
    let (asked, last): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    if asked > 0 {
        let selector = format!("{}: {} ({asked} events)", selected.pipeline, request.said);
        transaction
            .execute(
                "INSERT INTO statecast.audit (actor, act, selector, reason) VALUES ($1, $2, $3, $4)",
                &[&by, &format!("parked {act}"), &selector, &request.why],
            )
            .await?;
    }
    transaction.commit().await?;
    Ok((asked, last))
}

fn act_str(act: Act) -> &'static str {
    match act {
        Act::Retry => "retry",
        Act::Discard => "discard",
    }
}
