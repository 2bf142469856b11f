//! Events as people look for them: the last ones, one entity's, one id's; each with how far it has come.
//!
//! Every question is bounded: by a limit over an index, or by a number of rows that are looked at. The outbox has no index on
//! event ids, which every insert would pay for. But an id of version 7 holds its time of creation, and rows are numbered in
//! the order of time: [`find`] searches the primary key by halves for that time and looks at the rows from there on.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, GenericClient, Row};
use uuid::{Uuid, Version};

use crate::event::Event;
use crate::event::assemble::key_hash;
use crate::event_row;

/// Rows that are looked at for one id, at most.
pub const LOOKED_AT_MAX: i64 = 100_000;
/// Rows of one statement of such a search, which has a time limit of its own.
const STEP_ROWS: i64 = 25_000;
/// The search begins with rows that were written so much before the id was made: clocks of applications and server differ.
const CLOCKS_DIFFER_MS: i64 = 2_000;
/// Halvings of a range of 64 bits, and some for good measure.
const HALVINGS_MAX: u32 = 70;
/// Characters of a payload that are shown.
pub const PAYLOAD_CHARS_MAX: i32 = 64 << 10;

/// An event and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its row, without the payload.
    pub event: Event,
    /// RFC 3339, UTC.
    pub recorded_at: String,
    /// The entity was deleted: there is no payload.
    pub deletion: bool,
    /// The payload as PostgreSQL stores it, perhaps compressed.
    pub stored_bytes: i32,
    /// The pipeline's cursor has passed it. `None`: the pipeline has no cursor.
    pub passed: Option<bool>,
    /// It is set aside, or was until the cursor passed it.
    pub aside: Option<AsideNow>,
}

/// How an event is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table's columns")]
pub struct AsideNow {
    pub state: String,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub routing_key: Option<String>,
    /// RFC 3339, UTC.
    pub since: String,
    pub request: Option<String>,
}

/// The columns of an event in both tables.
macro_rules! columns {
    ($table:literal) => {
        concat!(
            "SELECT ",
            $table,
            ".seq, ",
            $table,
            ".xid, ",
            $table,
            ".event_id, ",
            $table,
            ".aggregate_type, ",
            $table,
            ".aggregate_id, ",
            $table,
            ".event_type, ",
            $table,
            ".schema_version, ",
            $table,
            ".entity_version, ",
            $table,
            ".payload, ",
            $table,
            ".headers, ",
            $table,
            ".correlation_id, ",
            $table,
            ".causation_id, ",
            $table,
            ".traceparent, ",
            $table,
            ".tracestate, ",
            $table,
            ".recorded_at"
        )
    };
}

/// Tells the rows of `chosen`, the newest first. `$1` pipeline; `chosen` may use `$2` and more.
///
/// The payload itself is not read, only what the row says about it.
fn tell_sql(chosen: &str) -> String {
    format!(
        r#"SELECT o.seq, o.xid, o.event_id, o.aggregate_type, o.aggregate_id, o.event_type, o.schema_version,
       o.entity_version, NULL::json, o.headers, o.correlation_id, o.causation_id, o.traceparent, o.tracestate, o.recorded_at,
       to_char(o.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
       o.payload IS NULL, coalesce(pg_column_size(o.payload), 0),
       pg_visible_in_snapshot(o.xid, c.snapshot)
           OR coalesce(o.seq <= c.window_seq AND pg_visible_in_snapshot(o.xid, c.window_snapshot), false),
       p.state, p.reason, p.detail, p.routing_key,
       to_char(p.since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), p.request
  FROM ({chosen}) o
  LEFT JOIN statecast.cursor c ON c.pipeline = $1
  LEFT JOIN statecast.parked p ON p.pipeline = $1 AND p.seq = o.seq
 ORDER BY o.seq DESC"#
    )
}

fn decode(row: Row) -> Result<Told, Error> {
    let state: Option<String> = row.try_get(19)?;
    let aside = match state {
        Some(state) => Some(AsideNow {
            state,
            reason: row.try_get(20)?,
            detail: row.try_get(21)?,
            routing_key: row.try_get(22)?,
            since: row.try_get(23)?,
            request: row.try_get(24)?,
        }),
        None => None,
    };
    Ok(Told {
        recorded_at: row.try_get(15)?,
        deletion: row.try_get(16)?,
        stored_bytes: row.try_get(17)?,
        passed: row.try_get(18)?,
        aside,
        // Last, since it keeps the row.
        event: event_row::event(row)?,
    })
}

async fn tell(
    client: &impl GenericClient,
    chosen: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Told>, Error> {
    client.query(&tell_sql(chosen), parameters).await?.into_iter().map(decode).collect()
}

/// The last events that were written, the newest first; with `before`, those with a smaller number.
///
/// # Errors
/// SQL.
pub async fn last(
    client: &impl GenericClient,
    pipeline: &str,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Told>, Error> {
    const CHOSEN: &str =
        concat!(columns!("r"), " FROM statecast.outbox r WHERE r.seq < $2 ORDER BY r.seq DESC LIMIT $3");
    tell(client, CHOSEN, &[&pipeline, &before.unwrap_or(i64::MAX), &limit]).await
}

/// The last events of an entity, in the order in which they were written: those of the outbox, and those that are set aside
/// and whose row retention has dropped.
///
/// # Errors
/// SQL.
pub async fn of_entity(
    client: &impl GenericClient,
    pipeline: &str,
    aggregate_type: &str,
    aggregate_id: &str,
    limit: i64,
) -> Result<Vec<Told>, Error> {
    const CHOSEN: &str = concat!(
        "(",
        columns!("r"),
        " FROM statecast.outbox r WHERE r.aggregate_type = $2 AND r.aggregate_id = $3 ORDER BY r.seq DESC LIMIT $4)
          UNION ALL
          (",
        columns!("k"),
        " FROM statecast.parked k
           WHERE k.pipeline = $1 AND k.key_hash = $5 AND k.aggregate_type = $2 AND k.aggregate_id = $3
             AND NOT EXISTS (SELECT FROM statecast.outbox x WHERE x.seq = k.seq)
           ORDER BY k.seq DESC LIMIT $4)"
    );
    let hash = key_hash(aggregate_type, aggregate_id).cast_signed();
    let mut told = tell(client, CHOSEN, &[&pipeline, &aggregate_type, &aggregate_id, &limit, &hash]).await?;
    told.truncate(usize::try_from(limit).unwrap_or(0));
    told.reverse();
    Ok(told)
}

/// What a search for an id came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The event.
    pub told: Option<Box<Told>>,
    /// When the id was made, if it says so: RFC 3339, UTC.
    pub made_at: Option<String>,
    /// Rows of the outbox that were looked at.
    pub looked_at: i64,
    /// When the first and the last of them were written: RFC 3339, UTC.
    pub between: Option<(String, String)>,
}

/// Searches for an event by its id: among [`LOOKED_AT_MAX`] rows of the outbox, beginning where rows were written when the id
/// was made (an id that holds no time: among the newest rows), then among what is set aside.
///
/// # Errors
/// SQL.
pub async fn find(client: &impl GenericClient, pipeline: &str, id: Uuid) -> Result<Found, Error> {
    const ASIDE: &str =
        concat!(columns!("k"), " FROM statecast.parked k WHERE k.pipeline = $1 AND k.event_id = $2 LIMIT 1");
    let made_ms = made_ms(id);
    let made_at = match made_ms {
        Some(ms) => rfc3339(client, ms).await?,
        None => None,
    };
    let mut found = Found { told: None, made_at, looked_at: 0, between: None };
    if let Some((first, last)) = bounds(client).await? {
        let start = match made_ms {
            Some(ms) => first_written_since(client, first, last, ms.saturating_sub(CLOCKS_DIFFER_MS)).await?,
            None => newest(client).await?,
        };
        look_from(client, pipeline, id, start, &mut found).await?;
    }
    if found.told.is_none() {
        // Retention may have dropped its row from the outbox.
        found.told = tell(client, ASIDE, &[&pipeline, &id]).await?.pop().map(Box::new);
    }
    Ok(found)
}

/// Looks at the rows from `start` on, some at a time.
async fn look_from(
    client: &impl GenericClient,
    pipeline: &str,
    id: Uuid,
    start: i64,
    found: &mut Found,
) -> Result<(), Error> {
    // Both ends of the stretch and the event in it, by one walk over the primary key.
    const STEP: &str = r#"WITH stretch AS MATERIALIZED (
    SELECT o.seq, o.event_id, o.recorded_at FROM statecast.outbox o WHERE o.seq >= $1 ORDER BY o.seq LIMIT $2
)
SELECT count(*), max(seq), min(seq) FILTER (WHERE event_id = $3),
       to_char(min(recorded_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
       to_char(max(recorded_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
  FROM stretch"#;
    const BY_SEQ: &str = concat!(columns!("r"), " FROM statecast.outbox r WHERE r.seq = $2");
    let mut start = start;
    while found.looked_at < LOOKED_AT_MAX {
        let row = client.query_one(STEP, &[&start, &STEP_ROWS, &id]).await?;
        let rows: i64 = row.try_get(0)?;
        found.looked_at += rows;
        let ends: (Option<String>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
        if let (Some(from), Some(to)) = ends {
            let from = found.between.take().map_or(from, |(from, _)| from);
            found.between = Some((from, to));
        }
        if let Some(seq) = row.try_get::<_, Option<i64>>(2)? {
            let told = tell(client, BY_SEQ, &[&pipeline, &seq]).await?.pop();
            found.told = told.map(Box::new);
            return Ok(());
        }
        match row.try_get::<_, Option<i64>>(1)? {
            Some(last) if rows == STEP_ROWS => start = last.saturating_add(1),
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Milliseconds since 1970 that an id of version 7 begins with (RFC 9562).
fn made_ms(id: Uuid) -> Option<i64> {
    (id.get_version() == Some(Version::SortRand)).then(|| (id.as_u128() >> 80) as i64)
}

async fn rfc3339(client: &impl GenericClient, ms: i64) -> Result<Option<String>, Error> {
    // Ids are other people's: what lies beyond any calendar has no name.
    const YEAR_9999_MS: i64 = 253_402_300_799_999;
    if ms > YEAR_9999_MS {
        return Ok(None);
    }
    let sql = r#"SELECT to_char(to_timestamp($1::float8 / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#;
    client.query_one(sql, &[&(ms as f64)]).await?.try_get(0)
}

/// Numbers of the first and the last row.
async fn bounds(client: &impl GenericClient) -> Result<Option<(i64, i64)>, Error> {
    let sql = "SELECT (SELECT o.seq FROM statecast.outbox o ORDER BY o.seq LIMIT 1),
                      (SELECT o.seq FROM statecast.outbox o ORDER BY o.seq DESC LIMIT 1)";
    let row = client.query_one(sql, &[]).await?;
    Ok(row.try_get::<_, Option<i64>>(0)?.zip(row.try_get::<_, Option<i64>>(1)?))
}

/// The number with which the newest [`LOOKED_AT_MAX`] rows begin.
async fn newest(client: &impl GenericClient) -> Result<i64, Error> {
    let sql = "SELECT min(n.seq) FROM (SELECT o.seq FROM statecast.outbox o ORDER BY o.seq DESC LIMIT $1) n";
    Ok(client.query_one(sql, &[&LOOKED_AT_MAX]).await?.try_get::<_, Option<i64>>(0)?.unwrap_or(0))
}

/// The first number whose row was written at `ms` or later, by halves; above `last` if there is none. Writers overlap, and
/// clocks are set: near that time it may be off by what they are.
async fn first_written_since(
    client: &impl GenericClient,
    first: i64,
    last: i64,
    ms: i64,
) -> Result<i64, Error> {
    let sql = "SELECT o.seq, (extract(epoch FROM o.recorded_at) * 1000)::bigint
                 FROM statecast.outbox o WHERE o.seq >= $1 ORDER BY o.seq LIMIT 1";
    let statement = client.prepare(sql).await?;
    // Everything below `low` is earlier; everything at or above `high` is not.
    let (mut low, mut high) = (first, last.saturating_add(1));
    for _ in 0..HALVINGS_MAX {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        match client.query_opt(&statement, &[&middle]).await? {
            Some(row) => {
                let (seq, written_ms): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
                if seq < high && written_ms < ms {
                    low = seq.saturating_add(1);
                } else {
                    high = middle;
                }
            }
            None => high = middle,
        }
    }
    Ok(low)
}

/// The beginning of a payload, and whether there is more of it.
///
/// # Errors
/// SQL.
pub async fn payload(
    client: &impl GenericClient,
    pipeline: &str,
    seq: i64,
) -> Result<Option<(String, bool)>, Error> {
    let sql = "SELECT left(t.payload, $3), length(t.payload) > $3
                 FROM (SELECT coalesce((SELECT o.payload FROM statecast.outbox o WHERE o.seq = $2),
                                       (SELECT k.payload FROM statecast.parked k WHERE k.pipeline = $1 AND k.seq = $2))::text
                              AS payload) t
                WHERE t.payload IS NOT NULL";
    let row = client.query_opt(sql, &[&pipeline, &seq, &PAYLOAD_CHARS_MAX]).await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_when_it_was_made() {
        let id = Uuid::parse_str("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        assert_eq!(made_ms(id), Some(0x0189_0a5d_ac96));
        assert_eq!(made_ms(Uuid::parse_str("f47ac10b-58cc-4372-a567-0e02b2c3d479").unwrap()), None);
        assert_eq!(made_ms(Uuid::nil()), None);
    }
}
