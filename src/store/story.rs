//! Events as people look for them: the last ones, one entity's, one id's; each with how far it has come.
//!
//! Every question is bounded: by a limit over an index, or by a number of rows that are looked at. The outbox has no index on
//! event ids, which every insert would pay for. But an id of version 7 holds its time of creation, and rows are numbered in
//! the order of time: [`find`] searches the primary key by halves for that time and looks at the rows from there on, then at
//! those before, since the clock that made the id may be ahead of the server's.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, GenericClient, Row};
use uuid::{Uuid, Version};

use crate::event::Event;
use crate::event::assemble::key_hash;
use crate::event_row;

/// Rows that are looked at for one id, at most.
pub const LOOKED_AT_MAX: i64 = 100_000;
/// Of these, at most, from the time at which the id was made on; the others lie before.
const AHEAD_MAX: i64 = 75_000;
/// Rows of one statement of such a search, which has a time limit of its own.
const STEP_ROWS: i64 = 25_000;
/// The search begins with rows that were written so much before the id was made: clocks of applications and server differ.
const CLOCKS_DIFFER_MS: i64 = 2_000;
/// Halvings of a range of 64 bits, and some for good measure.
const HALVINGS_MAX: u32 = 70;
/// Characters of a payload that are shown.
pub const PAYLOAD_CHARS_MAX: i32 = 64 << 10;
/// Characters of an event's headers that are read where many events are told: a page of them stays small.
pub const HEADERS_CHARS_MAX: usize = 2 << 10;

/// An event and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its row, without payload and headers.
    pub event: Event,
    /// The beginning of its headers, JSON: [`HEADERS_CHARS_MAX`] characters, and an ellipsis if there is more.
    pub headers: Option<String>,
    /// RFC 3339, UTC.
    pub recorded_at: String,
    /// The entity was deleted: there is no payload.
    pub deletion: bool,
    /// The payload as PostgreSQL stores it, perhaps compressed.
    pub stored_bytes: i32,
    /// The pipeline's cursor has passed it. `None`: the pipeline has no cursor, or one that speaks of another server (a dump or
    /// a copy was restored): its snapshots say nothing about these transactions.
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
       o.entity_version, NULL::json, NULL::json, o.correlation_id, o.causation_id, o.traceparent, o.tracestate, o.recorded_at,
       to_char(o.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
       o.payload IS NULL, coalesce(pg_column_size(o.payload), 0),
       CASE WHEN c.system_identifier = (SELECT system_identifier FROM pg_control_system())
            THEN pg_visible_in_snapshot(o.xid, c.snapshot)
                 OR coalesce(o.seq <= c.window_seq AND pg_visible_in_snapshot(o.xid, c.window_snapshot), false) END,
       p.state, p.reason, p.detail, p.routing_key,
       to_char(p.since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), p.request,
       CASE WHEN length(h.written) > {HEADERS_CHARS_MAX} THEN left(h.written, {HEADERS_CHARS_MAX}) || '…' ELSE h.written END
  FROM ({chosen}) o
 CROSS JOIN LATERAL (SELECT o.headers::text) h (written)
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
        headers: row.try_get(25)?,
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
    /// When the id was made, if it says so: RFC 3339, UTC, or that no calendar has it.
    pub made_at: Option<String>,
    /// Rows of the outbox that were looked at.
    pub looked_at: i64,
    /// When the first and the last of them were written: RFC 3339, UTC.
    pub between: Option<(String, String)>,
    /// Rows of what is set aside that were looked at: the oldest.
    pub looked_aside: i64,
}

/// Searches for an event by its id: among [`LOOKED_AT_MAX`] rows of the outbox, around those that were written when the id was
/// made (an id that holds no time: among the newest rows), then among as many of the oldest that are set aside.
///
/// # Errors
/// SQL.
pub async fn find(client: &impl GenericClient, pipeline: &str, id: Uuid) -> Result<Found, Error> {
    let made_ms = made_ms(id);
    let made_at = match made_ms {
        Some(ms) => Some(rfc3339(client, ms).await?),
        None => None,
    };
    let mut found = Found { told: None, made_at, looked_at: 0, between: None, looked_aside: 0 };
    if let Some((first, last)) = bounds(client).await? {
        let start = match made_ms {
            Some(ms) => first_written_since(client, first, last, ms.saturating_sub(CLOCKS_DIFFER_MS)).await?,
            None => last.saturating_add(1),
        };
        look(client, pipeline, id, Way::Up(start), AHEAD_MAX, &mut found).await?;
        if found.told.is_none() {
            look(client, pipeline, id, Way::Down(start), LOOKED_AT_MAX, &mut found).await?;
        }
    }
    if found.told.is_none() {
        look_aside(client, pipeline, id, &mut found).await?;
    }
    Ok(found)
}

/// Where a search goes on.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// From this number on.
    Up(i64),
    /// Below this number.
    Down(i64),
}

/// Looks at rows of the outbox, some at a time, until `most` are looked at in all.
async fn look(
    client: &impl GenericClient,
    pipeline: &str,
    id: Uuid,
    mut way: Way,
    most: i64,
    found: &mut Found,
) -> Result<(), Error> {
    const UP: &str = "o.seq >= $1 ORDER BY o.seq";
    const DOWN: &str = "o.seq < $1 ORDER BY o.seq DESC";
    const BY_SEQ: &str = concat!(columns!("r"), " FROM statecast.outbox r WHERE r.seq = $2");
    while found.looked_at < most {
        let limit = STEP_ROWS.min(most - found.looked_at);
        let (from, rows) = match way {
            Way::Up(from) => (from, UP),
            Way::Down(from) => (from, DOWN),
        };
        // Both ends of the stretch and the event in it, by one walk over the primary key.
        let sql = format!(
            r#"WITH stretch AS MATERIALIZED (
    SELECT o.seq, o.event_id, o.recorded_at FROM statecast.outbox o WHERE {rows} LIMIT $2
)
SELECT count(*), min(seq), max(seq), min(seq) FILTER (WHERE event_id = $3),
       to_char(min(recorded_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
       to_char(max(recorded_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
  FROM stretch"#
        );
        let row = client.query_one(&sql, &[&from, &limit, &id]).await?;
        let rows: i64 = row.try_get(0)?;
        found.looked_at += rows;
        if let (Some(from), Some(to)) = (row.try_get(4)?, row.try_get(5)?) {
            found.widen(from, to);
        }
        if let Some(seq) = row.try_get::<_, Option<i64>>(3)? {
            found.told = tell(client, BY_SEQ, &[&pipeline, &seq]).await?.pop().map(Box::new);
            return Ok(());
        }
        let ends: (Option<i64>, Option<i64>) = (row.try_get(1)?, row.try_get(2)?);
        way = match (way, ends) {
            (Way::Up(_), (_, Some(last))) if rows == limit => Way::Up(last.saturating_add(1)),
            (Way::Down(_), (Some(first), _)) if rows == limit => Way::Down(first),
            _ => return Ok(()),
        };
    }
    Ok(())
}

impl Found {
    /// Rows that were written between these times were looked at as well.
    fn widen(&mut self, from: String, to: String) {
        // The same format throughout: text compares as the times do.
        self.between = Some(match self.between.take() {
            Some((first, last)) => (first.min(from), last.max(to)),
            None => (from, to),
        });
    }
}

/// Looks at what is set aside, the oldest first: their rows are those that retention may have dropped from the outbox.
async fn look_aside(
    client: &impl GenericClient,
    pipeline: &str,
    id: Uuid,
    found: &mut Found,
) -> Result<(), Error> {
    // By steps: each has the statement's limit of time for itself.
    const STRETCH: &str = "WITH stretch AS MATERIALIZED (
    SELECT k.seq, k.event_id FROM statecast.parked k WHERE k.pipeline = $1 AND k.seq > $2 ORDER BY k.seq LIMIT $3
)
SELECT count(*), min(seq) FILTER (WHERE event_id = $4), max(seq) FROM stretch";
    const BY_SEQ: &str =
        concat!(columns!("k"), " FROM statecast.parked k WHERE k.pipeline = $1 AND k.seq = $2");
    let mut after_seq = i64::MIN;
    while found.looked_aside < LOOKED_AT_MAX {
        let limit = STEP_ROWS.min(LOOKED_AT_MAX - found.looked_aside);
        let row = client.query_one(STRETCH, &[&pipeline, &after_seq, &limit, &id]).await?;
        let rows: i64 = row.try_get(0)?;
        found.looked_aside += rows;
        if let Some(seq) = row.try_get::<_, Option<i64>>(1)? {
            found.told = tell(client, BY_SEQ, &[&pipeline, &seq]).await?.pop().map(Box::new);
            return Ok(());
        }
        match row.try_get(2)? {
            Some(last) if rows == limit => after_seq = last,
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Milliseconds since 1970 that an id of version 7 begins with (RFC 9562).
fn made_ms(id: Uuid) -> Option<i64> {
    (id.get_version() == Some(Version::SortRand)).then(|| (id.as_u128() >> 80) as i64)
}

async fn rfc3339(client: &impl GenericClient, ms: i64) -> Result<String, Error> {
    // Ids are other people's: what lies beyond any calendar has no name.
    const YEAR_9999_MS: i64 = 253_402_300_799_999;
    if ms > YEAR_9999_MS {
        return Ok("a time after the year 9999".to_owned());
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
