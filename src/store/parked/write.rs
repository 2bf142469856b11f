//! The keeper's writes: setting rows aside, changing them, and noting which of them the cursor has passed.
//!
//! All within the transaction of a cursor write, which goes last and undoes all of it when another relay has taken over. Each
//! statement says what it really changed, for the books: a row that a commit names may be unknown, or final already.

use futures_util::future::join3;
use tokio_postgres::{Client, Error, GenericClient, Statement, Transaction};

use super::changes::columns;
use super::{State, key_column, reason_str, storable};
use crate::contract::{Aside, Commit, Refusal, SetAside};
use crate::event::Seq;

/// Copies rows of the outbox. Returns those that are neither there nor set aside already.
///
/// `$1` pipeline; `$2` to `$7` one row each: seq, key_hash, state, reason, detail, routing_key.
///
/// The row comes from the table, never from memory. `LIMIT 1` keeps the sub-select a probe of the one chunk that can hold the
/// row, whatever the planner thinks of its statistics.
const SET_ASIDE: &str = "
WITH asked AS MATERIALIZED (
    SELECT *
      FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])
        AS a (seq, key_hash, state, reason, detail, routing_key)
), put AS (
    INSERT INTO statecast.parked (
           pipeline, seq, xid, key_hash, event_id, aggregate_type, aggregate_id, event_type, schema_version,
           entity_version, payload, headers, correlation_id, causation_id, traceparent, tracestate, recorded_at,
           state, reason, detail, routing_key, attempts, parked_at)
    SELECT $1, o.seq, o.xid, a.key_hash, o.event_id, o.aggregate_type, o.aggregate_id, o.event_type, o.schema_version,
           o.entity_version, o.payload, o.headers, o.correlation_id, o.causation_id, o.traceparent, o.tracestate,
           o.recorded_at, a.state, a.reason, a.detail, a.routing_key, (a.state <> 'queued')::integer,
           CASE WHEN a.state = 'parked' THEN clock_timestamp() END
      FROM asked a
     CROSS JOIN LATERAL (SELECT * FROM statecast.outbox WHERE seq = a.seq LIMIT 1) o
        ON CONFLICT (pipeline, seq) DO NOTHING
 RETURNING seq
)
SELECT a.seq
  FROM asked a
 WHERE NOT EXISTS (SELECT FROM put WHERE put.seq = a.seq)
   AND NOT EXISTS (SELECT FROM statecast.parked p WHERE p.pipeline = $1 AND p.seq = a.seq)
 ORDER BY a.seq";

/// Changes rows that are open. Returns how many open rows that the cursor has passed became final, and how many of those
/// were discarded.
///
/// `$1` pipeline; `$2` to `$9` one row each: seq, state, reason, detail, routing key, refused attempts, restarts, request
/// that is answered. See [`super::changes`].
///
/// What is final and passed is needed no more and goes at once. `since` is kept as long as the state is the same. A row that
/// was tried (it was its turn) and can never go has one attempt more.
const CHANGE: &str = "
WITH asked AS MATERIALIZED (
    SELECT *, coalesce(a.state IN ('confirmed', 'discarded'), false) AS final
      FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::integer[],
                  $8::boolean[], $9::text[])
        AS a (seq, state, reason, detail, routing_key, attempts, restarts, answers)
), gone AS (
    DELETE FROM statecast.parked p
     USING asked a
     WHERE p.pipeline = $1 AND p.seq = a.seq
       AND p.state NOT IN ('confirmed', 'discarded')
       AND p.passed AND a.final
 RETURNING a.state
), kept AS (
    UPDATE statecast.parked p
       SET state = coalesce(a.state, p.state),
           reason = coalesce(a.reason, p.reason),
           detail = coalesce(a.detail, p.detail),
           routing_key = coalesce(a.routing_key, p.routing_key),
           attempts = p.attempts + a.attempts
                    + CASE WHEN a.state = 'parked' AND a.attempts = 0 AND p.state IN ('queued', 'retry')
                           THEN 1 ELSE 0 END,
           since = CASE WHEN a.state <> p.state OR a.restarts THEN clock_timestamp() ELSE p.since END,
           parked_at = CASE WHEN a.state = 'parked' AND (p.state <> 'parked' OR a.restarts)
                            THEN clock_timestamp() ELSE p.parked_at END,
           request = CASE WHEN a.final OR a.answers = 'any' OR a.answers = p.request THEN NULL ELSE p.request END,
           updated_at = clock_timestamp()
      FROM asked a
     WHERE p.pipeline = $1 AND p.seq = a.seq
       AND p.state NOT IN ('confirmed', 'discarded')
       AND NOT (p.passed AND a.final)
)
SELECT count(*), count(*) FILTER (WHERE state = 'discarded')
  FROM gone";

/// Notes which rows the position covers. Returns them with their states.
///
/// `$1` pipeline, `$2` P, `$3` the upper snapshot of the window in progress, `$4` its settled prefix.
///
/// The sub-selects read each snapshot once, not once a row. Final rows are needed no more.
const PASS: &str = "
WITH covered AS MATERIALIZED (
    SELECT p.seq, p.state, p.state IN ('confirmed', 'discarded') AS final
      FROM statecast.parked p
     WHERE p.pipeline = $1 AND NOT p.passed
       AND (pg_visible_in_snapshot(p.xid, (SELECT $2::text::pg_snapshot))
            OR (p.seq <= $4::bigint AND pg_visible_in_snapshot(p.xid, (SELECT $3::text::pg_snapshot))))
), gone AS (
    DELETE FROM statecast.parked p
     USING covered c
     WHERE p.pipeline = $1 AND p.seq = c.seq AND c.final
), kept AS (
    UPDATE statecast.parked p
       SET passed = true
      FROM covered c
     WHERE p.pipeline = $1 AND p.seq = c.seq AND NOT c.final
)
SELECT seq, state
  FROM covered
 ORDER BY seq";

/// What a cursor write does to the books besides moving them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deltas {
    /// To the cursor row's `parked`.
    pub parked: i64,
    /// To the cursor row's `discarded`.
    pub discarded: i64,
    /// Rows that the write passed.
    pub passed: Vec<Seq>,
}

/// Rows were not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// SQL.
    #[error("events cannot be set aside")]
    Sql(#[from] Error),
    /// A row that a page has listed is gone.
    #[error(
        "event with seq {0} is to be set aside, and is no longer in statecast.outbox: it was truncated or rows were deleted"
    )]
    NotInOutbox(Seq),
}

/// The statements, prepared once per session.
#[derive(Debug, Clone)]
pub struct Statements {
    set_aside: Statement,
    change: Statement,
    pass: Statement,
}

impl Statements {
    /// Prepares them.
    ///
    /// # Errors
    /// SQL.
    pub async fn prepare(client: &Client) -> Result<Self, Error> {
        Ok(Statements {
            set_aside: client.prepare(SET_ASIDE).await?,
            change: client.prepare(CHANGE).await?,
            pass: client.prepare(PASS).await?,
        })
    }

    /// Writes what a commit says about rows that are set aside, all but the cursor row. One round trip: the server gets the
    /// statements together and works them off in this order.
    ///
    /// # Errors
    /// SQL, or a row that is not in the outbox. Roll back.
    pub async fn write(
        &self,
        transaction: &Transaction<'_>,
        pipeline: &str,
        commit: &Commit,
    ) -> Result<Deltas, WriteError> {
        let set_aside = self.set_aside(transaction, pipeline, &commit.set_aside);
        let change = self.change(transaction, pipeline, commit);
        let pass = self.pass(transaction, pipeline, commit);
        // Polled in this order, and each is sent when it is first polled.
        let (set_aside, change, pass) = join3(set_aside, change, pass).await;
        if let Some(seq) = set_aside?.first() {
            return Err(WriteError::NotInOutbox(*seq));
        }
        let ((ended, discarded), passed) = (change?, pass?);
        let open = passed.iter().filter(|(_, state)| !is_final(state)).count() as i64;
        let given_up = passed.iter().filter(|(_, state)| state == State::Discarded.as_str()).count() as i64;
        Ok(Deltas {
            parked: open - ended,
            discarded: given_up + discarded,
            passed: passed.into_iter().map(|(seq, _)| seq).collect(),
        })
    }

    /// The rows that are not there.
    async fn set_aside(
        &self,
        client: &impl GenericClient,
        pipeline: &str,
        rows: &[SetAside],
    ) -> Result<Vec<Seq>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let seqs: Vec<Seq> = rows.iter().map(|row| row.seq).collect();
        let keys: Vec<i64> = rows.iter().map(|row| key_column(row.key)).collect();
        let states: Vec<&str> = rows.iter().map(|row| state(&row.state).as_str()).collect();
        let refusals: Vec<Option<&Refusal>> = rows.iter().map(|row| refusal(&row.state)).collect();
        let reasons: Vec<Option<&str>> = refusals.iter().map(|r| r.map(|r| reason_str(r.reason))).collect();
        let details: Vec<_> = refusals.iter().map(|r| r.map(|r| storable(&r.detail))).collect();
        let routing_keys: Vec<_> = rows.iter().map(|row| row.routing_key.as_deref().map(storable)).collect();
        let missing = client
            .query(&self.set_aside, &[&pipeline, &seqs, &keys, &states, &reasons, &details, &routing_keys])
            .await?;
        missing.iter().map(|row| row.try_get(0)).collect()
    }

    /// Open and passed rows that became final, and how many of them were discarded.
    async fn change(
        &self,
        client: &impl GenericClient,
        pipeline: &str,
        commit: &Commit,
    ) -> Result<(i64, i64), Error> {
        if commit.changes.is_empty() {
            return Ok((0, 0));
        }
        let c = columns(&commit.changes);
        let row = client
            .query_one(
                &self.change,
                &[
                    &pipeline,
                    &c.seqs,
                    &c.states,
                    &c.reasons,
                    &c.details,
                    &c.routing_keys,
                    &c.attempts,
                    &c.restarts,
                    &c.answers,
                ],
            )
            .await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }

    /// The rows that the position passes, with their states.
    async fn pass(
        &self,
        client: &impl GenericClient,
        pipeline: &str,
        commit: &Commit,
    ) -> Result<Vec<(Seq, String)>, Error> {
        if !commit.unpassed {
            return Ok(Vec::new());
        }
        let position = &commit.position;
        let window = position.window.as_ref();
        let (upper, prefix) = (window.map(|w| w.upper.to_string()), window.map(|w| w.seq));
        let rows =
            client.query(&self.pass, &[&pipeline, &position.snapshot.to_string(), &upper, &prefix]).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

fn is_final(state: &str) -> bool {
    [State::Confirmed, State::Discarded].iter().any(|last| last.as_str() == state)
}

fn state(aside: &Aside) -> State {
    match aside {
        Aside::Queued => State::Queued,
        Aside::Waiting(_) => State::Waiting,
        Aside::Parked(_) => State::Parked,
    }
}

fn refusal(aside: &Aside) -> Option<&Refusal> {
    match aside {
        Aside::Queued => None,
        Aside::Waiting(refusal) | Aside::Parked(refusal) => Some(refusal),
    }
}
