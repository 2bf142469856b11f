//! The cursor row: taking it over, and the one statement that moves it. Who may take it over: [`super::lease`].
//!
//! Two values in the row carry the correctness of polling. `max_seq` is a sequence value that its writer knew *before* its
//! transaction began, so the writer's own transaction id is younger than every row at or below `max_seq`. `floor_seq` rises
//! only to the `max_seq` of a write that every transaction still open is younger than.

use std::sync::Arc;

use tokio_postgres::{Client, GenericClient, Row, Statement};

use super::lease::OWN;
use super::parked::start::aside_state;
use super::parked::write::Deltas;
use super::preflight::{LastCursor, ServerFacts};
use crate::contract::{AsideState, Commit, Position, WindowPosition};
use crate::event::Seq;
use crate::gate::LEASE;
use crate::snapshot::{BadSnapshot, Snapshot};
use crate::switches::fenced;

/// For the one statement of a leader that reads the whole outbox.
const COUNT_PATIENTLY: &str = "SET LOCAL statement_timeout = '10min'";

/// Where a new pipeline starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the oldest row that is still there.
    #[default]
    Oldest,
    /// After everything that has committed by now.
    Now,
}

/// What a leader found in the cursor row.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Fences every later write.
    pub epoch: i64,
    /// Where to go on.
    pub position: Position,
    /// Every unsettled row lies above this.
    pub floor_seq: Seq,
    /// Highest sequence value of any cursor write.
    pub max_seq: Seq,
    /// Events before `position` since the pipeline began: confirmed, set aside or discarded.
    pub passed: i64,
    /// What is set aside, read after the claim: nobody else writes it any more.
    pub aside: AsideState,
    /// Lanes of the predecessor, whose fences must be taken too.
    pub lanes: i32,
    /// The server's timeline is another than the row's: a standby was promoted.
    pub new_timeline: bool,
}

/// The cursor row cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// SQL.
    #[error("the cursor of pipeline {pipeline:?} cannot be read or written")]
    Sql {
        /// Pipeline.
        pipeline: String,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// A snapshot in the row is none.
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    /// Another relay has taken over.
    #[error("another relay has taken pipeline {0:?} over")]
    Superseded(String),
}

/// What the row says about the server it was written on, if there is a row.
///
/// # Errors
/// SQL.
pub async fn last(client: &Client, pipeline: &str) -> Result<Option<LastCursor>, CursorError> {
    let row = client
        .query_opt(
            "SELECT system_identifier, timeline, max_seq FROM statecast.cursor WHERE pipeline = $1",
            &[&pipeline],
        )
        .await
        .map_err(sql(pipeline))?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(LastCursor {
        system_identifier: row.try_get(0).map_err(sql(pipeline))?,
        timeline: row.try_get(1).map_err(sql(pipeline))?,
        max_seq: row.try_get(2).map_err(sql(pipeline))?,
    }))
}

/// Takes the row over (creating it for a new pipeline): raises its epoch, which fences every earlier leader, and begins the
/// lease. With `epoch`, only a row that has it still.
///
/// On a new timeline the sequence is moved ahead by `timeline_gap` first: the promoted standby may not have seen numbers that
/// were already published, and would hand them out again.
///
/// # Errors
/// SQL. (That the row belongs to this server is for the preflight to say.)
pub async fn claim(
    client: &mut Client,
    pipeline: &str,
    server: &ServerFacts,
    start: Start,
    holder: &str,
    timeline_gap: i64,
    epoch: Option<i64>,
) -> Result<Claim, CursorError> {
    create(client, pipeline, server, start).await?;
    let transaction = client.transaction().await.map_err(sql(pipeline))?;
    // Only who will have the row moves the sequence: that is not rolled back.
    let statement = "SELECT timeline FROM statecast.cursor WHERE pipeline = $1 AND epoch = coalesce($2, epoch) FOR UPDATE";
    let row = transaction
        .query_opt(statement, &[&pipeline, &epoch])
        .await
        .map_err(sql(pipeline))?
        .ok_or_else(|| CursorError::Superseded(pipeline.to_owned()))?;
    let new_timeline = row.try_get::<_, i32>(0).map_err(sql(pipeline))? != server.timeline;
    if new_timeline {
        transaction
            .query_one("SELECT statecast.advance_sequence($1)", &[&timeline_gap])
            .await
            .map_err(sql(pipeline))?;
    }
    let statement = format!(
        "UPDATE statecast.cursor
            SET epoch = epoch + 1, holder = $2, pids = own.pids, backends_started = own.started,
                lease_until = clock_timestamp() + make_interval(secs => $4), timeline = $3,
                updated_at = clock_timestamp()
           FROM ({OWN}) AS own
          WHERE pipeline = $1 AND epoch = coalesce($5, epoch)
      RETURNING epoch, snapshot::text, prune_seq, floor_seq, max_seq, confirmed + parked + discarded, lanes,
                window_snapshot::text, window_prune_seq, window_ceil, window_seq"
    );
    let row = transaction
        .query_opt(&statement, &[&pipeline, &holder, &server.timeline, &LEASE.as_secs_f64(), &epoch])
        .await
        .map_err(sql(pipeline))?
        .ok_or_else(|| CursorError::Superseded(pipeline.to_owned()))?;
    transaction.commit().await.map_err(sql(pipeline))?;
    let claim = decode(&row, pipeline)?;
    let aside = aside_state(client, pipeline, claim.epoch).await?;
    Ok(Claim { new_timeline, aside, ..claim })
}

/// Makes the row of a new pipeline; one that has had a leader stays as it is.
///
/// `Start::Now` needs two transactions: P must be taken after a write with `max_seq` committed, or nothing may be pruned.
/// A row that was cut off between them has never been claimed (its epoch is 0), and the next start finishes it.
async fn create(
    client: &mut Client,
    pipeline: &str,
    server: &ServerFacts,
    start: Start,
) -> Result<(), CursorError> {
    let last: i64 = client
        .query_one(
            "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM statecast.outbox_seq_seq",
            &[],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(sql(pipeline))?;
    client
        .execute(
            // Until it is claimed: nobody may take it from who is counting.
            "INSERT INTO statecast.cursor (pipeline, system_identifier, timeline, snapshot, max_seq, base, lease_until)
             SELECT $1, $2, $3, '1:1:'::pg_snapshot, $4, coalesce(sum(rows), 0)::bigint,
                    CASE WHEN $5 THEN 'infinity' ELSE clock_timestamp() END::timestamptz
               FROM statecast.chunk
             ON CONFLICT (pipeline) DO NOTHING",
            &[&pipeline, &server.system_identifier, &server.timeline, &last, &(start == Start::Now)],
        )
        .await
        .map_err(sql(pipeline))?;
    if start == Start::Now {
        let transaction = client.transaction().await.map_err(sql(pipeline))?;
        // Whoever skips an archive has a large one, and all of it is counted.
        transaction.batch_execute(COUNT_PATIENTLY).await.map_err(sql(pipeline))?;
        transaction
            .execute(
                "UPDATE statecast.cursor
                    SET snapshot = pg_current_snapshot(), prune_seq = max_seq,
                        base = base + (SELECT count(*) FROM statecast.outbox)
                  WHERE pipeline = $1 AND epoch = 0 AND snapshot::text = '1:1:'",
                &[&pipeline],
            )
            .await
            .map_err(sql(pipeline))?;
        transaction.commit().await.map_err(sql(pipeline))?;
    }
    Ok(())
}

/// Notes how many lanes will publish, before they do: a successor takes their fences.
///
/// # Errors
/// SQL, or another relay has taken over.
pub async fn set_lanes(client: &Client, pipeline: &str, epoch: i64, lanes: i32) -> Result<(), CursorError> {
    let updated = client
        .execute(
            "UPDATE statecast.cursor SET lanes = $3, updated_at = clock_timestamp() WHERE pipeline = $1 AND epoch = $2",
            &[&pipeline, &epoch, &lanes],
        )
        .await
        .map_err(sql(pipeline))?;
    if updated == 1 { Ok(()) } else { Err(CursorError::Superseded(pipeline.to_owned())) }
}

/// Moves the cursor.
///
/// The floor's candidate is a write: `cand_xid` its transaction, `cand_seq` its `max_seq`. Once every transaction that P does
/// not see is younger than the candidate, no unsettled row can lie at or below `cand_seq`; the newest write, this one,
/// becomes the next candidate.
///
/// `confirmed` is what is left of the rows before the position: neither set aside and open, nor discarded.
const ADVANCE: &str = "
UPDATE statecast.cursor
   SET snapshot = $3::text::pg_snapshot,
       prune_seq = $4,
       floor_seq = CASE WHEN $5 AND cand_xid <= pg_snapshot_xmin($3::text::pg_snapshot)
                        THEN greatest(floor_seq, cand_seq) ELSE floor_seq END,
       cand_seq = CASE WHEN cand_xid IS NULL OR ($5 AND cand_xid <= pg_snapshot_xmin($3::text::pg_snapshot))
                       THEN $6 ELSE cand_seq END,
       cand_xid = CASE WHEN cand_xid IS NULL OR ($5 AND cand_xid <= pg_snapshot_xmin($3::text::pg_snapshot))
                       THEN pg_current_xact_id() ELSE cand_xid END,
       max_seq = greatest(max_seq, $6),
       window_snapshot = $7::text::pg_snapshot,
       window_prune_seq = $8,
       window_ceil = $9,
       window_seq = $10,
       confirmed = $11 - (parked + $12) - (discarded + $13),
       parked = parked + $12,
       discarded = discarded + $13,
       updated_at = clock_timestamp()
 WHERE pipeline = $1 AND epoch = $2
RETURNING floor_seq";

/// Locks the row that a commit will move.
const HOLD: &str = "SELECT FROM statecast.cursor WHERE pipeline = $1 AND epoch = $2 FOR UPDATE";

/// Prepares [`hold`]'s statement.
///
/// # Errors
/// SQL.
pub async fn prepare_hold(client: &Client, pipeline: &str) -> Result<Statement, CursorError> {
    client.prepare(&fenced(HOLD)).await.map_err(sql(pipeline))
}

/// Locks the row for the rest of the transaction, whose other statements may take longer than the lease lasts: a standby
/// finds it locked, and waits, where it would take over what is nearly done and begin again.
///
/// # Errors
/// SQL, or another relay has taken over: roll back.
pub async fn hold(
    client: &impl GenericClient,
    statement: &Statement,
    pipeline: &str,
    epoch: i64,
) -> Result<(), CursorError> {
    match client.execute(statement, &[&pipeline, &epoch]).await.map_err(sql(pipeline))? {
        0 => Err(CursorError::Superseded(pipeline.to_owned())),
        _ => Ok(()),
    }
}

/// Prepares [`advance`]'s statement.
///
/// # Errors
/// SQL.
pub async fn prepare_advance(client: &Client, pipeline: &str) -> Result<Statement, CursorError> {
    client.prepare(&fenced(ADVANCE)).await.map_err(sql(pipeline))
}

/// Writes a [`Commit`], but for the rows that are set aside, of which `deltas` tell. Returns the new `floor_seq`.
///
/// # Errors
/// SQL, or another relay has taken over: roll back.
pub async fn advance(
    client: &impl GenericClient,
    statement: &Statement,
    pipeline: &str,
    epoch: i64,
    commit: &Commit,
    deltas: &Deltas,
) -> Result<Seq, CursorError> {
    let position = &commit.position;
    let window = position.window.as_ref();
    let row = client
        .query_opt(
            statement,
            &[
                &pipeline,
                &epoch,
                &position.snapshot.to_string(),
                &position.prune_seq,
                &commit.closes,
                &commit.max_seq,
                &window.map(|w| w.upper.to_string()),
                &window.map(|w| w.prune_seq),
                &window.map(|w| w.ceil),
                &window.map(|w| w.seq),
                &commit.passed,
                &deltas.parked,
                &deltas.discarded,
            ],
        )
        .await
        .map_err(sql(pipeline))?
        .ok_or_else(|| CursorError::Superseded(pipeline.to_owned()))?;
    row.try_get(0).map_err(sql(pipeline))
}

fn decode(row: &Row, pipeline: &str) -> Result<Claim, CursorError> {
    let get = |column| row.try_get::<_, i64>(column).map_err(sql(pipeline));
    let snapshot = |column| -> Result<Option<Arc<Snapshot>>, CursorError> {
        let text: Option<&str> = row.try_get(column).map_err(sql(pipeline))?;
        Ok(text.map(str::parse::<Snapshot>).transpose()?.map(Arc::new))
    };
    let window = match snapshot(7)? {
        None => None,
        Some(upper) => Some(WindowPosition { upper, prune_seq: get(8)?, ceil: get(9)?, seq: get(10)? }),
    };
    let position = Position {
        snapshot: snapshot(1)?.unwrap_or_else(|| Arc::new(Snapshot::NOTHING)),
        prune_seq: get(2)?,
        window,
    };
    Ok(Claim {
        epoch: get(0)?,
        position,
        floor_seq: get(3)?,
        max_seq: get(4)?,
        passed: get(5)?,
        aside: AsideState::default(),
        lanes: row.try_get(6).map_err(sql(pipeline))?,
        new_timeline: false,
    })
}

pub(super) fn sql(pipeline: &str) -> impl FnOnce(tokio_postgres::Error) -> CursorError {
    let pipeline = pipeline.to_owned();
    move |source| CursorError::Sql { pipeline, source }
}
